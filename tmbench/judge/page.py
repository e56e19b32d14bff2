"""The page of a judgement, with its tables and figures as files."""

from dataclasses import replace

from ..config.settle import Settings
from ..files import folder_for, write
from ..report import formats
from ..report.contents import Report
from ..report.figures import figures as curves
from ..report.formats import DASH, Cell, Table, numeric, signed, whole
from ..report.page import page
from ..report.problems import Problem
from .figures import figures
from .plan import Plan
from .show import lines


def write_page(plan: Plan, content: Settings, report: Report) -> None:
    """Writes judge.html, result.json for other programs, and the folders tables and figures."""
    out = folder_for("out", plan.page_folder)
    places = {name: folder_for("out", out / name) for name in ("tables", "figures")}
    problem = report.runs.problems[0]
    judged = [_verdicts(content, problem), *(_looks(content, problem, name) for name in content["methods"])]
    for table in judged:
        write(places["tables"] / f"{table.key}.csv", formats.comma(table))
        write(places["tables"] / f"{table.key}.tex", formats.latex(table))
    drawings = [*figures(content, problem, places["figures"])]
    drawings += [drawing for drawing in curves(report) if drawing.name.startswith("curves-")]
    for drawing in drawings:
        write(places["figures"] / f"{drawing.name}.svg", drawing.svg)
    others = [table for table in report.tables if table.key.startswith("results-")]
    notes = [alarm["text"] for alarm in content["alarms"]] + report.notes
    tables = [judged[0], _cost(content), *judged[1:], *others]
    report = replace(report, tables=tables, notes=notes, comparisons=[])
    verdicts = [(method["verdict"], method["sentence"]) for method in content["methods"].values()]
    write(out / "result.json", formats.as_json(content))
    write(out / "judge.html", page(report, drawings, {}, plan.command, title="tmbench judge", verdicts=verdicts))


def _verdicts(content: Settings, problem: Problem) -> Table:
    share = f"{100 * (1 - content['design']['alpha']):g} % confidence sequence"
    columns = ["method", "against", "verdict", "seeds", "difference", share, "p better", "p worse", "p equivalent",
               "margin", "diverged",
               "against diverged"]  # fmt: skip
    rows = []
    for name, method in content["methods"].items():
        mean, margin = method["difference"], content["margin"]
        rows.append([
            Cell(name), Cell(content["against"]), Cell(method["verdict"]), whole(method["pairs"]),
            Cell(DASH) if mean is None else Cell(signed(problem, mean), mean),
            _interval(problem, *method["interval"]),
            *(numeric(method["p"][key]) for key in ("better", "worse", "equivalent")),
            Cell(DASH) if margin is None else Cell(formats.number(problem.scale * margin), margin),
            whole(method["diverged"]["method"]), whole(method["diverged"]["against"]),
        ])  # fmt: skip
    notes = [
        "Differences are between method and against, paired by seed, in points where the metric is a share. Positive "
        "means that the method is better, also where a lower value of the metric is.",
        "The p values and the confidence sequence hold at every look, however the seeds were stopped.",
    ]
    return Table("verdicts", "Is it better?", columns, rows, notes)


def _interval(problem: Problem, low: float | None, high: float | None) -> Cell:
    if low is None or high is None:
        return Cell(DASH)
    return Cell(f"{signed(problem, low)} to {signed(problem, high)}", [low, high])


def _cost(content: Settings) -> Table:
    """What the judgement took, beside a design with a fixed number of seeds."""
    rows = []
    for key in ("seeds", "runs", "device_seconds"):
        both = content["spent"][key], content["spent"]["fixed_design"][key]
        rows.append([Cell(key.replace("_", "-")), *(Cell(f"{value:,.0f}", value) for value in both)])
    notes = [text for head, text in lines(content) if head in ("fixed n", "test set", "noise")]
    return Table("cost", "What it took", ["of", "this judgement", "a fixed design"], rows, notes)


def _looks(content: Settings, problem: Problem, name: str) -> Table:
    """The differences of one method in the order of the seeds, and what each look has shown."""
    method = content["methods"][name]
    rows = []
    for seed, gap, look in zip(method["seeds"], method["differences"], method["looks"], strict=False):
        rows.append([
            whole(seed), Cell(DASH) if gap is None else Cell(signed(problem, gap), gap), whole(look["seeds"]),
            _interval(problem, look["low"], look["high"]),
            *(numeric(look[f"p_{key}"]) for key in ("better", "worse", "equivalent")),
        ])  # fmt: skip
    columns = ["seed", "difference", "look", "confidence sequence", "p better", "p worse", "p equivalent"]
    return Table(f"looks-{name}", f"{name} against {content['against']}, seed by seed", columns, rows)
