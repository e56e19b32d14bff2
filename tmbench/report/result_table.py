"""What each method scored on a problem, in the paper's form: a row a method, ours beside the paper's."""

import math

import polars as pl

from ..config.settle import Settings
from .contents import Report
from .paper import entry_of, order_note, printed, protocol_difference
from .problems import Method, Problem
from .scores import by_seed
from .sentences import diverged_value
from .words import DASH, Cell, Table, numeric, score, spread, unit

COUNTS = ("n", "completed", "diverged", "failed", "unfinished")


def result_table(report: Report, problem: Problem) -> Table:
    entry = entry_of(problem)
    theirs = printed(entry, problem)
    rows_of = report.summary.filter(pl.col("problem") == problem.index)
    methods = {method.index: method for method in report.runs.methods_of(problem)}
    columns = ["method", "ours", *COUNTS, "best epoch's", "train s"]
    if entry:
        columns += ["paper", "ours - paper", "protocol difference"]
    rows = []
    for row in rows_of.iter_rows(named=True):
        method = methods[row["method"]]
        rows.append([
            Cell(method.label, method.label, method.index),
            Cell(spread(problem, row["mean"], row["sd"]), row["mean"], method.index),
            *(Cell(str(row[key] or 0), row[key] or 0) for key in COUNTS),
            Cell(score(problem, row["best"]), row["best"]), numeric(row["seconds"]),
        ])  # fmt: skip
        if entry:
            rows[-1] += _beside(theirs.get(method.optimizer, {}), row["mean"], entry["ours"]["scale"])
            rows[-1].append(Cell(protocol_difference(method, problem.task)))
    notes = [
        "ours: mean ± standard deviation between seeds (n - 1). best epoch's and train s: means of completed runs.",
        *_of_lost(report, problem, rows_of), *_of_the_paper(report, problem, entry, theirs),
    ]  # fmt: skip
    key = f"results-{problem.index}-{problem.task}-{problem.profile}"
    return Table(key, _title(report, problem, entry), columns, rows, notes)


def _title(report: Report, problem: Problem, entry: Settings | None) -> str:
    methods = report.runs.methods_of(problem)
    rates = {method.config["lr"] for method in methods}
    rate = f", lr {rates.pop():g}" if len(rates) == 1 else ""  # else it is in the methods' labels
    model = entry and (problem.config["task"].get("model") or str(entry["model"]))
    name = f"{entry['task']}, {entry['dataset']}, {model}" if entry else problem.label
    when = "after the last epoch" if report.settings["metric"] == "last" else "of the best epoch"
    percent = " (%)" if problem.is_percent else ""
    about = f"{problem.profile} data, {problem.config['epochs']} epochs{rate}"
    return f"{name}: {problem.measure}{percent} {when}; {about}"


def _beside(theirs: Settings, mean: float | None, scale: float) -> list[Cell]:
    """What the paper printed for a method, and how far ours is from it."""
    value, sd = theirs.get("mean"), theirs.get("spread")
    if value is None:
        return [Cell(theirs.get("bound", DASH)), Cell(DASH)]
    gap = None if mean is None else scale * mean - value
    words = DASH if gap is None else f"{gap:+.{2 if scale == 100 else 4}f}"
    return [Cell(f"{value:g} ± {sd:g}" if sd else f"{value:g}", value), Cell(words, gap)]


def _of_lost(report: Report, problem: Problem, rows: pl.DataFrame) -> list[str]:
    notes = []
    if rows["lost"].sum():
        value = report.diverged_values[problem.index]
        notes.append(
            f"A diverged run counts as {diverged_value(problem, value)}."
            if math.isfinite(value)
            else "There is no mean where a run diverged: without a baseline it only ranks below every completed run."
        )
    baseline = rows["baseline"].mean()
    if isinstance(baseline, float):
        notes.append(f"The input-blind baseline scores {score(problem, baseline)}{unit(problem)}.")
    return notes


def _of_the_paper(report: Report, problem: Problem, entry: Settings | None, theirs: dict[str, Settings]) -> list[str]:
    if entry:
        notes = [f"paper: {entry['source']}; it does not say how many runs, nor what ± is."]
        if entry["ours"]["metric"] != problem.metric:
            return [*notes, f"The paper has {entry['metric']}, not {problem.metric}: no value stands beside ours."]
        scores = by_seed(report.values)
        methods: list[Method] = report.runs.methods_of(problem)
        return notes + order_note(theirs, problem, [(method, scores.get(method.index, {})) for method in methods])
    if problem.split != "test":
        return ["Judged on examples held out of training; the paper's values are of the test split."]
    if problem.profile == "tiny":
        return ["Tiny data are made up: the paper's values do not stand beside them."]
    return []
