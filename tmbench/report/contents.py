"""All that a report has to say: the numbers, and the tables, sentences and notes made of them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from ..config.settle import Settings
from .across import Profile, Ranking, profiles_of, rankings_of, targets_of, times_of
from .comparisons import Comparison, Scores, by_seed, comparisons_of, diverged_values, summarize, values_of
from .formats import Table
from .problems import Problem, Runs

ENVIRONMENT = {"hardware": "hardware", "git_commit": "commits", "versions": "versions"}  # columns, and their words


class Drawing(NamedTuple):
    """A figure of a report."""

    name: str  # of a file
    text: str  # what it shows, for those who cannot see it
    svg: str


@dataclass
class Report:
    settings: Settings
    runs: Runs
    diverged_values: dict[int, float]  # by problem, what a diverged run counts as
    values: pl.DataFrame  # a row a (method, seed); see values_of
    scores: Scores  # the same, by method and seed
    summary: dict[int, dict[str, Any]]  # by method; see summarize
    comparisons: list[Comparison]
    rankings: list[Ranking]
    targets: dict[int, float]  # by problem
    times: pl.DataFrame  # a row a run; see times_of
    profiles: dict[str, Profile]  # by kind of problems
    tables: list[Table] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def numbers_of(runs: Runs, settings: Settings) -> Report:
    """A report with its numbers, still without words."""
    of_diverged = diverged_values(runs)
    values = values_of(runs, of_diverged)
    scores, targets = by_seed(values), targets_of(runs, values, settings)
    times = times_of(runs, targets)
    return Report(
        settings, runs, of_diverged, values, scores, summarize(runs, values),
        comparisons_of(runs, values, scores, settings), rankings_of(runs, scores, settings), targets, times,
        profiles_of(runs, times),
    )  # fmt: skip


# ---- what a reader must know before believing a number


def notes_of(report: Report) -> list[str]:
    notes, runs = [], report.runs
    counts = Counter(runs.runs["status"].to_list())
    if others := [f"{n} {status}" for status, n in sorted(counts.items()) if status != "completed"]:
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
    return notes + [f"{problem.name}: {note}" for problem in runs.problems for note in _of_problem(report, problem)]


def _of_problem(report: Report, problem: Problem) -> list[str]:
    notes = []
    is_here = pl.col("problem") == problem.index
    of = report.runs.runs.filter(is_here & pl.col("counts"))
    for key, word in ENVIRONMENT.items():
        several = of[key].drop_nulls().unique().sort().to_list()
        if len(several) > 1:
            shown = " | ".join(text[:60] + ("..." if len(text) > 60 else "") for text in several[:3])
            more = f" and {len(several) - 3} more" if len(several) > 3 else ""
            notes.append(f"mixed {word}: {shown}{more}.")
    tried = Counter(method.optimizer for method in report.runs.methods_of(problem))
    if len(set(tried.values())) > 1:
        words = ", ".join(f"{name} {n}" for name, n in sorted(tried.items()))
        notes.append(f"unequal tuning budgets, in settings tried: {words}.")
    finished = of.filter(pl.col("status").is_in(["completed", "diverged"]))
    seeds = finished.group_by("method", maintain_order=True).agg("seed")["seed"].to_list()
    if len(set(map(frozenset, seeds))) > 1:
        notes.append("the methods do not all have the same seeds; only seeds that two methods share are compared.")
    lost = report.values.filter(is_here & pl.col("lost"))
    if n := len(lost.filter(pl.col("status") == "completed")):
        notes.append(f"{n} completed runs have no finite {problem.metric} and count as diverged.")
    if lost["value"].is_infinite().any():
        words = f"{len(lost)} runs diverged, and there is no baseline that they could count as: they rank below every"
        notes.append(f"{words} completed run, and there is no mean or difference of them.")
    return notes
