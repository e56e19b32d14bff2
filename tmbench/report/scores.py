"""What each run counts as, and what each method comes to over its seeds."""

import math
from typing import Any

import polars as pl

from ..result import FINAL
from . import statistics
from .paper import optimizers
from .problems import Method, Problem, Runs


def diverged_values(runs: Runs) -> dict[int, float]:
    """By problem, what a diverged run counts as (see statistics.worth); infinitely bad where there is no baseline."""
    values = {}
    for problem in runs.problems:
        of = runs.runs.filter(pl.col("counts") & (pl.col("problem") == problem.index))
        baseline, worst = (_worst(of[key], problem) for key in ("baseline", "score"))
        value = statistics.worth(None, baseline, worst, problem.higher_is_better)
        values[problem.index] = -problem.sign * math.inf if value is None else value
    return values


def _worst(values: pl.Series, problem: Problem) -> float | None:
    return values.min() if problem.higher_is_better else values.max()  # type: ignore[return-value]


def values_of(runs: Runs, of_diverged: dict[int, float]) -> pl.DataFrame:
    """One value a (method, seed): the score, or `of_diverged` for a `lost` run, which has no finite score at its end.

    An infinitely bad value ranks below every completed run's, and no mean or difference is made of it.
    """
    lost = pl.col("status").is_in(FINAL) & pl.col("score").is_null()
    value = pl.col("problem").replace_strict(of_diverged, return_dtype=pl.Float64)
    return runs.runs.filter("counts").with_columns(lost=lost, value=pl.when(lost).then(value).otherwise("score"))


def summarize(runs: Runs, values: pl.DataFrame) -> pl.DataFrame:
    """A row a method: problem, n (values), lost, mean, sd, best, seconds, and how many runs have which status.

    mean and sd are null where a value is infinite; best and seconds are of completed runs.
    """
    counts = runs.runs.group_by("method", maintain_order=True).agg(
        problem=pl.col("problem").first(), optimizer=pl.col("optimizer").first(), runs=pl.len(),
        completed=(pl.col("status") == "completed").sum(), diverged=(pl.col("status") == "diverged").sum(),
        failed=pl.col("status").is_in(["failed", "broken"]).sum(),
        unfinished=pl.col("status").is_in(["interrupted", "running", "stopped"]).sum(),
    )  # fmt: skip
    value, completed = pl.col("value"), pl.col("status") == "completed"
    is_known = value.is_finite().all()
    numbers = values.group_by("method", maintain_order=True).agg(
        n=value.count(), lost=pl.col("lost").sum(), mean=pl.when(is_known).then(value.mean()),
        sd=pl.when(is_known).then(value.std()), best=pl.col("best").filter(completed).mean(),
        seconds=pl.col("seconds").filter(completed).mean(), baseline=pl.col("baseline").mean(),
        memory=pl.col("peak_memory_bytes").max(), parameters=pl.col("parameters").first(),
    )  # fmt: skip
    places = {method.index: i for i, method in enumerate(sorted(runs.methods, key=table_order))}
    return (
        counts.join(numbers, on="method", how="left", maintain_order="left")
        .with_columns(place=pl.col("method").replace_strict(places))
        .sort("problem", "place")
    )


def table_order(method: Method) -> tuple[Any, ...]:
    """A sort key: by problem, the paper's optimizers in its order, then the others by name."""
    known = optimizers()
    place = known.index(method.optimizer) if method.optimizer in known else len(known)
    return method.problem, place, method.optimizer, method.label


def by_seed(values: pl.DataFrame) -> dict[int, dict[int, float]]:
    """Of each method, the value of each seed."""
    scores: dict[int, dict[int, float]] = {}
    for method, seed, value in values.filter(pl.col("value").is_not_null()).select("method", "seed", "value").rows():
        scores.setdefault(method, {})[seed] = value
    return scores
