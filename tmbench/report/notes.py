"""What a reader must know before believing a number of a report."""

from collections import Counter

import polars as pl

from .contents import Report
from .problems import Problem
from .read import ENVIRONMENT


def notes_of(report: Report) -> list[str]:
    notes = []
    runs = report.runs
    counts = Counter(runs.runs["status"].to_list())
    others = [f"{n} {status}" for status, n in sorted(counts.items()) if status != "completed"]
    if others:
        notes.append(f"Of {len(runs.runs)} runs, {', '.join(others)}; the tables count them.")
    profiles = list(dict.fromkeys(p.profile for p in runs.problems))
    if len(profiles) > 1:
        notes.append(f"Mixed profiles: runs on {', '.join(profiles)} data have separate tables and statistics.")
    if "subset" in profiles:
        notes.append("subset: the data files are real, but not the published set; do not compare them with full.")
    if len(schemas := sorted({p.schema for p in runs.problems})) > 1:
        words = " and ".join(map(str, schemas))
        notes.append(f"Results of several versions of tmbench (schema {words}) are here; each has its own problems.")
    if report.settings["metric"] == "best":
        notes.append("metric=best: the test split chose the epoch, which favours methods whose scores fluctuate more.")
    return notes + [note for problem in runs.problems for note in _of_problem(report, problem)]


def _of_problem(report: Report, problem: Problem) -> list[str]:
    notes = []
    is_here = pl.col("problem") == problem.index
    of = report.runs.runs.filter(is_here & pl.col("counts"))
    for key, word in ENVIRONMENT.items():
        several = of[key].drop_nulls().unique().sort().to_list()
        if len(several) > 1:
            notes.append(f"mixed {word}: {_some(several)}.")
    tried = Counter(method.optimizer for method in report.runs.methods_of(problem))
    if len(set(tried.values())) > 1:
        words = ", ".join(f"{name} {n}" for name, n in sorted(tried.items()))
        notes.append(f"unequal tuning budgets, in settings tried: {words}.")
    finished = of.filter(pl.col("status").is_in(["completed", "diverged"]))
    seeds = finished.group_by("method", maintain_order=True).agg("seed")["seed"].to_list()
    if len({frozenset(of_method) for of_method in seeds}) > 1:
        notes.append("the methods do not all have the same seeds; only seeds that two methods share are compared.")
    lost = report.values.filter(is_here & pl.col("lost"))
    if n := len(lost.filter(pl.col("status") == "completed")):
        notes.append(f"{n} completed runs have no finite {problem.metric} and count as diverged.")
    if lost["value"].is_infinite().any():
        notes.append(
            f"{len(lost)} runs diverged, and there is no baseline that they could count as: they rank below every "
            "completed run, and there is no mean or difference of them."
        )
    return [f"{problem.name}: {note}" for note in notes]


def _some(several: list[str]) -> str:
    """The first three of several texts, each cut to a line."""
    shown = " | ".join(text[:60] + ("..." if len(text) > 60 else "") for text in several[:3])
    return shown + (f" and {len(several) - 3} more" if len(several) > 3 else "")
