"""All that a report says: numbers, tables, sentences and notes; and how many seeds a question needs."""

from collections import Counter

import polars as pl

from ..config.settle import Settings
from ..errors import ConfigError
from . import statistics
from .numbers import (
    Report,
    contests_of,
    floors_of,
    profiles_of,
    standings_of,
    summarize,
    targets_of,
    times_of,
    values_of,
)
from .read import ENVIRONMENT, Runs
from .tables import contest_tables, improvement_tables, result_table, standing_tables, time_tables
from .words import Cell, Table, number


def report(runs: Runs, settings: Settings) -> Report:
    """All answers.

    Raises:
        ConfigError: a setting does not fit the runs.
    """
    floors = floors_of(runs)
    values = values_of(runs, floors)
    summary = summarize(runs, values)
    contests = contests_of(runs, values, floors, settings)
    targets = targets_of(runs, values, settings)
    times = times_of(runs, targets)
    standings = standings_of(runs, values, settings)
    found = Report(settings, runs, summary, contests, standings, [], [], [], targets=targets, floors=floors)
    found.profiles = profiles_of(runs, times)
    found.notes = [str(settings["note"])] if settings["note"] else []
    found.notes += _notes(runs, values, settings) + runs.notes
    found.tables = [
        *(result_table(found, problem, values) for problem in runs.problems),
        *contest_tables(found), *standing_tables(found), *improvement_tables(found, values),
        *time_tables(found, times),
    ]  # fmt: skip
    found.sentences = [contest.sentence for contest in contests] or [
        "Nothing to compare: "
        + (f"there is no run of {settings['against']}" if settings["against"] != "all" else "one method only")
    ]
    return found


def _notes(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    table = runs.runs
    counts = Counter(table["status"].to_list())
    others = [f"{n} {status}" for status, n in sorted(counts.items()) if status != "completed"]
    if others:
        notes.append(f"Of {len(table)} runs {', '.join(others)}; they are counted in the tables.")
    profiles = list(dict.fromkeys(p.profile for p in runs.problems))
    if len(profiles) > 1:
        notes.append(f"Mixed profiles: {', '.join(profiles)} data are all here, in separate tables and statistics.")
    if "subset" in profiles:
        notes.append("subset: real files that are not the published set; not comparable with full.")
    if len(schemas := sorted({p.outcome.schema for p in runs.problems})) > 1:
        words = " and ".join(map(str, schemas))
        notes.append(f"Results of several versions of tmbench (schema {words}) are here; each has its own problems.")
    if settings["metric"] == "best":
        notes.append("metric=best: the epoch was chosen by the test split, which flatters whoever fluctuates more.")
    for problem in runs.problems:
        of = table.filter((pl.col("problem") == problem.index) & pl.col("counts"))
        for key, word in zip(ENVIRONMENT, ("hardware", "commits", "versions"), strict=True):
            several = of[key].drop_nulls().unique().sort().to_list()
            if len(several) > 1:
                notes.append(f"{problem.label} ({problem.profile}): mixed {word}: {_differing(several)}.")
        budgets = Counter(m.optimizer for m in runs.methods if m.problem == problem.index)
        if len(set(budgets.values())) > 1:
            words = ", ".join(f"{name} {n}" for name, n in sorted(budgets.items()))
            notes.append(f"{problem.label} ({problem.profile}): unequal tuning budgets, in settings tried: {words}.")
        methods = of.filter(pl.col("status").is_in(["completed", "diverged"]))
        seeds = {
            frozenset(own)
            for (own,) in methods.group_by("method", maintain_order=True).agg("seed").select("seed").rows()
        }
        if len(seeds) > 1:
            notes.append(f"{problem.label} ({problem.profile}): not all methods have the same seeds; only pairs count.")
        lost = values.filter((pl.col("problem") == problem.index) & pl.col("lost"))
        if nothing := len(lost.filter(pl.col("status") == "completed")):
            notes.append(
                f"{problem.label} ({problem.profile}): {nothing} completed runs have no finite {problem.metric} and "
                "count as diverged."
            )
        if lost["value"].is_infinite().any():
            notes.append(
                f"{problem.label} ({problem.profile}): {len(lost)} runs diverged, and there is no baseline that they "
                "could count as: they rank below every completed run, and there is no mean or difference of them."
            )
    return notes


def _differing(several: list[str]) -> str:
    """A few of several strings, cut where they are the same."""
    shown = several[:3]
    return " | ".join(one[:60] + ("..." if len(one) > 60 else "") for one in shown) + (
        f" and {len(several) - 3} more" if len(several) > 3 else ""
    )


# ---- planning


def plan(settings: Settings, found: Report | None) -> list[Table]:
    """Which p is attainable with n seeds, and how many seeds a difference needs."""
    level, power = settings["level"], settings["power"]
    wanted = settings["plan"]
    comparisons = settings["comparisons"] or (len(found.contests) if found and found.contests else 1)
    rows = [
        [Cell(str(n), n), Cell(number(statistics.attainable_p(n)), statistics.attainable_p(n)),
         Cell(number(min(1.0, statistics.attainable_p(n) * comparisons))),
         Cell("yes" if statistics.attainable_p(n) * comparisons <= level else "no")]
        for n in range(1, max(12, statistics.seeds_to_attain(level, comparisons) or 0) + 1)
    ]  # fmt: skip
    word = f"{comparisons} comparison{'s' if comparisons > 1 else ''}"
    tables = [
        Table("attainable", f"The smallest p of a paired test, alone and with {word} (Holm)",
              ["seeds", "p", f"p (Holm, {comparisons})", f"reaches {level:g}"], rows)
    ]  # fmt: skip
    sources: list[tuple[str, str, float]] = []
    if settings["sd"] is not None:
        sources = [("any", "as given", float(settings["sd"]))]
    elif found:
        sources = [
            (f"{c.problem.label} ({c.problem.profile})", f"{c.a.label} - {c.b.label}", c.result.sd)
            for c in found.contests if c.result.has_spread and c.result.sd > 0
        ]  # fmt: skip
    if not sources:
        raise ConfigError(
            "plan: the spread is not known: say sd=..., or name runs of two methods that show one, over 2 seeds or more"
        )
    rows = []
    for problem, whose, sd in sources:
        needed = statistics.seeds_to_find(float(wanted), sd, level, power, comparisons)
        alone = statistics.seeds_to_find(float(wanted), sd, level, power)
        many = "over a million" if statistics.seeds_to_attain(level, comparisons) else "none would"
        rows.append([
            Cell(problem), Cell(whose), Cell(number(sd), sd), Cell(number(wanted), wanted),
            Cell(str(alone or many), alone), Cell(str(needed or many), needed),
        ])  # fmt: skip
    tables.append(
        Table(
            "seeds",
            f"Seeds that find a true difference of {number(wanted)} with probability {power:g}",
            ["problem", "differences of", "their sd", "difference", "seeds, alone", f"seeds, {word}"],
            rows,
            [
                "By the power of Student's paired test, and at least what an exact test needs. A spread known from few "
                "seeds is itself uncertain: of 3 by a factor of 0.5 to 6 (95 %)."
            ],
        )
    )
    return tables
