"""What each method scored on a problem, in the paper's form: a row a method, ours beside what the paper printed."""

import math
import re
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from ..config.identity import rate_of
from ..config.settle import Settings
from ..config.table import values_of
from .formats import DASH, Cell, Table, diverged_value, named, numeric, score, spread, unit, whole
from .problems import Method, Problem
from .statistics import half_width

if TYPE_CHECKING:
    from .contents import Report

COUNTS = ("n", "completed", "diverged", "failed", "unfinished")


@cache
def paper() -> Any:
    path = Path(__file__).parent / "paper_results.yaml"
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def table_order(method: Method) -> tuple[Any, ...]:
    """A sort key: by problem, the paper's optimizers in its order, then the others by name; numbers by size."""
    known = list(paper()["paper"]["optimizers"].values())
    place = known.index(method.optimizer) if method.optimizer in known else len(known)
    words = re.split(r"((?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", method.label)  # each second one is a number
    return method.problem, place, method.optimizer, [float(word) if i % 2 else word for i, word in enumerate(words)]


def entry_of(problem: Problem) -> Settings | None:
    """What the paper has on this problem, whatever the settings; None if nothing, or not of real test data."""
    task = problem.config["task"]
    for entry in paper()["results"]:
        ours = entry["ours"]
        same = ours["task"] == problem.task and all(task.get(k) == ours[k] for k in ("model", "dataset") if k in ours)
        if same and problem.profile != "tiny" and problem.split == "test":
            return dict(entry)
    return None


def printed(entry: Settings | None, problem: Problem) -> dict[str, Settings]:
    """By our name of the optimizer, what the paper printed for it; empty where the paper has another metric."""
    if entry is None or entry["ours"]["metric"] != problem.metric:
        return {}
    names = paper()["paper"]["optimizers"]
    return {names[theirs]: value for theirs, value in entry["values"].items() if value}


def protocol_difference(method: Method, task: str) -> str:
    """How a method's settings differ from the paper's Table 2, and from those of its own YAML file, in words."""
    row, config = paper()["table2"].get(task), method.config
    if row is None:
        return "not in the paper"
    ours = {"epochs": config["epochs"], "lr": rate_of(config), "batch": config["batch_size"]}
    if "switch_epoch" in method.facts:
        ours["switch"] = config["switch_epoch"]
    optimizer, usual = config["optimizer"], values_of(f"optimizer/{method.optimizer}.yaml")
    changed = [
        f"{key} {optimizer[key]} (usually {'none' if value is None else value})" for key, value in usual.items()
        if key in optimizer and not isinstance(value, dict) and "${" not in str(value) and optimizer[key] != value
    ]  # fmt: skip
    for reading, words in (("printed", "as printed"), ("reconciled", "reconciled")):
        if not changed and all(row[reading][key] == value for key, value in ours.items()):
            return "none in Table 2" + ("" if row["printed"] == row["reconciled"] else f" ({words})")
    theirs = row["reconciled"]
    other = [f"{key} {value} (paper {theirs[key]})" for key, value in ours.items() if value != theirs[key]]
    return ", ".join([*other, *changed])


# ---- the table


def result_table(report: "Report", problem: Problem) -> Table:
    entry = entry_of(problem)
    theirs = printed(entry, problem)
    level = report.settings["level"]
    columns = ["method", "ours", f"{100 * (1 - level):g} % interval", *COUNTS, "best epoch's", "train s"]
    if entry:
        columns += ["paper", "ours - paper", "protocol difference"]
    rows = []
    for method in report.runs.methods_of(problem):
        row = report.summary[method.index]
        rows.append([
            named(method), Cell(spread(problem, row["mean"], row["sd"]), row["mean"], method.index),
            _interval(problem, row, level), *(whole(row[key]) for key in COUNTS),
            Cell(score(problem, row["best"]), row["best"]), numeric(row["seconds"]),
        ])  # fmt: skip
        if entry:
            rows[-1] += _beside(theirs.get(method.optimizer, {}), row["mean"], entry["ours"]["scale"])
            rows[-1].append(Cell(protocol_difference(method, problem.task)))
    notes = [
        "ours: mean ± standard deviation between seeds (n - 1); the interval is Student's, of the mean over seeds. "
        "best epoch's and train s: means of completed runs.",
        *_of_lost(report, problem), *_of_the_paper(report, problem, entry, theirs),
    ]  # fmt: skip
    key = f"results-{problem.index}-{problem.task}-{problem.profile}"
    return Table(key, _title(report, problem, entry), columns, rows, notes)


def _interval(problem: Problem, row: dict[str, Any], level: float) -> Cell:
    """Student's, of the mean over seeds."""
    if row["mean"] is None or not row["sd"]:
        return Cell(DASH)
    half = half_width(row["sd"], row["n"], level)
    low, high = row["mean"] - half, row["mean"] + half
    if problem.is_bounded:
        low, high = max(low, 0.0), min(high, 1.0)
    return Cell(f"{score(problem, low)} to {score(problem, high)}", [low, high])


def _title(report: "Report", problem: Problem, entry: Settings | None) -> str:
    rates = {rate_of(method.config) for method in report.runs.methods_of(problem)}
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


def _of_lost(report: "Report", problem: Problem) -> list[str]:
    notes, rows = [], [report.summary[method.index] for method in report.runs.methods_of(problem)]
    if any(row["lost"] for row in rows):
        value = report.diverged_values[problem.index]
        words = "There is no mean where a run diverged: without a baseline it only ranks below every completed run."
        notes.append(f"A diverged run counts as {diverged_value(problem, value)}." if math.isfinite(value) else words)
    if baselines := [row["baseline"] for row in rows if row["baseline"] is not None]:
        notes.append(
            f"The input-blind baseline on {problem.label} scores {score(problem, fmean(baselines))}{unit(problem)}."
        )
    return notes


def _of_the_paper(report: "Report", problem: Problem, entry: Settings | None, theirs: dict[str, Settings]) -> list[str]:
    if entry:
        notes = [f"paper: {entry['source']}; it does not say how many runs, nor what ± is."]
        if entry["ours"]["metric"] != problem.metric:
            return [*notes, f"The paper has {entry['metric']}, not {problem.metric}: no value stands beside ours."]
        return notes + _order_note(report, problem, theirs)
    if problem.split != "test":
        return ["Judged on examples held out of training; the paper's values are of the test split."]
    if problem.profile == "tiny":
        return ["Tiny data are made up: the paper's values do not stand beside them."]
    return []


def _order_note(report: "Report", problem: Problem, of_paper: dict[str, Settings]) -> list[str]:
    """The paper's order and ours, of the optimizers that both have; ours on the seeds that all of these have."""
    theirs = {name: problem.sign * value["mean"] for name, value in of_paper.items() if value.get("mean") is not None}
    methods = [m for m in report.runs.methods_of(problem) if m.optimizer in theirs and report.scores.get(m.index)]
    seeds = sorted(set.intersection(*({*report.scores[m.index]} for m in methods))) if methods else []
    ours: dict[str, float] = {}
    for method in methods:
        total = problem.sign * math.fsum(report.scores[method.index][seed] for seed in seeds)
        ours[method.optimizer] = max(total, ours.get(method.optimizer, -math.inf))
    if len(ours) < 2 or not seeds:
        return []
    theirs_first, ours_first = (" > ".join(sorted(ours, key=lambda name: -table[name])) for table in (theirs, ours))
    which = f"on the {len(seeds)} seeds that all have" if len(seeds) > 1 else "on the one seed that all have"
    several = ", of several settings the best" if len(methods) > len(ours) else ""
    same = " (the same)" if theirs_first == ours_first else ""
    return [f"Best first: the paper {theirs_first}; ours {ours_first}{same}, {which}{several}."]
