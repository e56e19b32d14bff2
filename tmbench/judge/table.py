"""The method-by-task table of a paper: all judgements in a folder of runs, with a mark for each verdict."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from ..config.identity import SCHEMA
from ..config.settle import Settings
from ..errors import ConfigError, count
from ..files import folder_for, read_sealed, write
from ..report import formats
from ..report.formats import DASH, Cell, Table, numeric, whole
from ..report.problems import Outcome, Problem
from ..runs.show import console
from .ledger import entries_of
from .plan import FOLDER

MARKS = {"better": "↑", "worse": "↓", "equivalent": "≈", "undecided": "?"}


@dataclass
class Result:
    """One method on one problem."""

    problem: Problem
    method: str
    against: str
    verdict: str  # empty for the baseline
    judgement: str  # its name
    scores: list[float]  # of its completed runs
    diverged: int

    @property
    def text(self) -> str:
        """Mean, standard deviation, and the mark."""
        more = f", {self.diverged} diverged" if self.diverged else ""
        sd = stdev(self.scores) if len(self.scores) > 1 else None
        mean = formats.spread(self.problem, fmean(self.scores), sd) if self.scores else DASH
        return f"{mean}{more} {MARKS.get(self.verdict, '')}".strip()


def do_table(values: Settings, words: list[str]) -> int:
    """Writes table.tex and table.csv, and prints the table."""
    folder = Path(values["runs_dir"]) / FOLDER
    contents = []
    for entry in entries_of(folder / "ledger.json"):
        path = folder / entry.name / "result.json"
        if path.exists():  # else it has not ended, or was removed
            contents.append((entry.problem, read_sealed(path, remedy="repeat its command, which makes it anew")))
    if not contents:
        raise ConfigError(f"runs_dir: expected judgements that have ended under {folder}, got none; see tmbench judge")
    entries, notes = _entries(contents)
    short, long = _wide(entries, notes), _long(entries)
    out = folder_for("out", Path(values["out"]))
    write(out / "table.tex", formats.latex(short))
    write(out / "table.csv", formats.comma(long))
    if values["json"]:
        print(formats.as_json(formats.table_content(long)), end="")
    else:
        formats.console(short, console())
        print(f"{out / 'table.tex'} and {out / 'table.csv'}")
    return 0


def _entries(contents: list[tuple[str, Settings]]) -> tuple[list[Result], list[str]]:
    """The last judgement of each method on each problem; a baseline that was judged itself keeps its verdict."""
    problems = dict[str, Problem]()
    found, notes = dict[tuple[str, str], Result](), list[str]()
    for key, content in contents:
        outcome = Outcome(
            content["profile"], "", content["split"], content["metric"], content["higher_is_better"], SCHEMA
        )
        config = {"epochs": content["epochs"]}
        problem = problems.setdefault(key, Problem(len(problems), content["task"], config, {}, outcome))
        verdicts = {content["against"]: "", **{name: of["verdict"] for name, of in content["methods"].items()}}
        for method, verdict in verdicts.items():
            runs = [run for run in content["runs"] if run["method"] == method]
            scores = [run["score"] for run in runs if run["score"] is not None]
            entry = Result(
                problem, method, content["against"], verdict, content["name"], scores, len(runs) - len(scores)
            )
            before = found.get((key, method))
            if before and before.verdict and verdict:
                notes.append(f"{method} on {problem.task} was judged more than once; this is {content['name']}.")
            if verdict or not (before and before.verdict):
                found[key, method] = entry
    _label(list(problems.values()))
    return list(found.values()), notes


def _label(problems: list[Problem]) -> None:
    """Columns' heads: the task and metric, and what differs where several are of one task."""
    for problem in problems:
        alike = [other for other in problems if other.task == problem.task]
        differs = len({other.profile for other in alike}) > 1, len({other.config["epochs"] for other in alike}) > 1
        words = (f"{problem.profile} data", count(problem.config["epochs"], "epoch"))
        more = [word for word, is_shown in zip(words, differs, strict=True) if is_shown]
        problem.label = f"{problem.task}, {', '.join([problem.measure, *more])}"
    heads = [problem.label for problem in problems]
    for n, problem in enumerate(problems):
        if heads.count(problem.label) > 1:  # another setting differs, such as the batch size
            problem.label += f" ({n + 1})"


def _best(entries: list[Result]) -> dict[int, float]:
    """By problem the best mean of a method of which no run diverged."""
    means = dict[int, list[float]]()
    for entry in entries:
        if entry.scores and not entry.diverged:
            means.setdefault(entry.problem.index, []).append(entry.problem.sign * fmean(entry.scores))
    return {index: max(own) for index, own in means.items()}


def _is_best(entry: Result, best: dict[int, float]) -> bool:
    return bool(
        entry.scores and not entry.diverged
        and entry.problem.sign * fmean(entry.scores) == best[entry.problem.index]
    )  # fmt: skip


def _wide(entries: list[Result], notes: list[str]) -> Table:
    """A row a method, a column a task."""
    best, cells = _best(entries), {(entry.method, entry.problem.index): entry for entry in entries}
    problems = list({entry.problem.index: entry.problem for entry in entries}.values())
    rows = []
    for method in dict.fromkeys(entry.method for entry in entries):
        own = [cells.get((method, problem.index)) for problem in problems]
        rows.append([Cell(method), *(Cell(e.text, is_bold=_is_best(e, best)) if e else Cell(DASH) for e in own)])
    baselines = ", ".join(dict.fromkeys(entry.against for entry in entries))
    return Table("table", "All judgements", ["method", *(problem.label for problem in problems)], rows, [
        f"Mean and standard deviation over seeds, in percent where the metric is a share; against {baselines}: "
        f"{', '.join(f'{mark} {verdict}' for verdict, mark in MARKS.items())}. Bold in table.tex: the best mean of a "
        "method without diverged runs, which need not be better by a verdict.",
        "Each judgement holds its own level; the ledger tells the chance that one of them is false.", *notes,
    ])  # fmt: skip


def _long(entries: list[Result]) -> Table:
    """A row a method and task, for other programs."""
    best, rows = _best(entries), []
    for e in entries:
        mean = fmean(e.scores) if e.scores else None
        sd = stdev(e.scores) if len(e.scores) > 1 else None
        rows.append([
            Cell(e.problem.task), Cell(e.problem.profile), Cell(e.problem.measure), whole(e.problem.config["epochs"]),
            Cell(e.method), Cell(e.against), Cell(e.verdict or "baseline"), whole(len(e.scores)), whole(e.diverged),
            numeric(mean), numeric(sd), Cell("yes" if _is_best(e, best) else "no"), Cell(e.judgement),
        ])  # fmt: skip
    columns = ["task", "data", "metric", "epochs", "method", "against", "verdict", "completed", "diverged", "mean",
               "sd", "best mean", "judgement"]  # fmt: skip
    return Table("table", "All judgements", columns, rows)
