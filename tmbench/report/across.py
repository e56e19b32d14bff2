"""What several problems say together: mean ranks, the probability of improvement, the time to reach a target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from ..config.settle import Settings
from ..result import FINAL
from .comparisons import Scores
from .problems import Problem, Runs
from .statistics import RESOLUTION, Values, tied, tolerance

BOOTSTRAPS = 1000

Profile = tuple[list[str], dict[str, Values]]  # names; times (problem x method) in steps and in seconds


@dataclass
class Ranking:
    """Mean ranks of methods (1 is best) over blocks, of which there are at least two: problems, or seeds of one."""

    kind: str  # of the problems; see Problem.kind
    names: list[str]
    mean: list[float]
    place: list[int]  # 1 more than the number of methods that are better by the critical difference
    firsts: list[float]  # in how many of BOOTSTRAPS of the seeds it has the best mean rank; ties are shared out
    range_without_one: list[tuple[float, float]]  # lowest and highest mean rank if any one block is left out
    blocks: list[str]
    unit: str  # what a block is: problem or seed
    critical_difference: float
    p: float  # Friedman's


def common(runs: Runs, kind: str) -> tuple[list[Problem], dict[str, list[int]]]:
    """The problems of a kind; and of the methods that all of them have, by name, the index on each problem."""
    problems = [p for p in runs.problems if p.kind == kind]
    methods: dict[str, list[int]] = {}
    for method in (method for problem in problems for method in runs.methods_of(problem)):
        methods.setdefault(method.name, []).append(method.index)
    return problems, {name: on for name, on in methods.items() if len(on) == len(problems)}


def rankings_of(runs: Runs, scores: Scores, settings: Settings) -> list[Ranking]:
    """Of each kind of problems that has at least two methods and two blocks."""
    rankings = []
    for kind in runs.kinds():
        problems, methods = common(runs, kind)
        of_methods = {name: [scores[i] for i in on] for name, on in methods.items() if all(scores.get(i) for i in on)}
        if len(of_methods) < 2:
            continue
        blocks, rows, samples = _blocks(problems, list(zip(*of_methods.values(), strict=True)))
        if len(blocks) > 1:
            ranks_BM = ranks(np.array(rows))
            mean, apart = ranks_BM.mean(0), critical_difference(len(of_methods), len(blocks), settings["level"])
            without_BM = np.array([np.delete(ranks_BM, i, 0).mean(0) for i in range(len(blocks))])
            rankings.append(Ranking(
                kind, [*of_methods], mean.tolist(), places(mean, apart), firsts(samples),
                list(zip(without_BM.min(0).tolist(), without_BM.max(0).tolist(), strict=True)), blocks,
                "seed" if len(problems) == 1 else "problem", apart, friedman_p(ranks_BM),
            ))  # fmt: skip
    return rankings


def _blocks(
    problems: list[Problem], scores: list[tuple[dict[int, float], ...]]
) -> tuple[list[str], list[Values], list[Values]]:
    """Names of the blocks; of each one value a method; and of each problem what these are means of (seeds x methods).

    The higher the better; `scores` are by problem, method and seed.
    """
    blocks: list[str] = []
    rows: list[Values] = []
    samples: list[Values] = []
    for problem, methods in zip(problems, scores, strict=True):
        seeds = sorted(set.intersection(*({*of_seeds} for of_seeds in methods)))
        scores_SM = np.array([[problem.sign * of_seeds[seed] for of_seeds in methods] for seed in seeds])
        if not seeds:
            continue
        # Without a mean the order on the problem is that of the mean ranks.
        has_mean = len(problems) > 1 and bool(np.isfinite(scores_SM).all())
        samples.append(scores_SM if has_mean else -ranks(scores_SM))
        if len(problems) == 1:
            rows, blocks = [*scores_SM], [f"{problem.label} seed={seed}" for seed in seeds]
        else:
            rows.append(samples[-1].mean(0))
            blocks.append(problem.label)
    return blocks, rows, samples


# ---- the time to reach a target


def targets_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> dict[int, float]:
    """The value to be reached on each problem: as set, or the median of what the reference's runs end with.

    Of several settings of the reference the one with the best median; where it has no run, all runs. Of an even number
    of runs the worse of the two in the middle, which more than half of them reach. No target where that run diverged.
    """
    if settings["target"] is not None:
        return {problem.index: float(settings["target"]) for problem in runs.problems}
    targets = {}
    for problem in runs.problems:
        of = values.filter((pl.col("problem") == problem.index) & pl.col("value").is_not_null())
        rows = of.select("method", "optimizer", "value", "lost").rows()
        of_reference = [row for row in rows if row[1] == settings["against"]]
        ends: dict[int | None, list[float]] = {}
        for method, _, value, lost in of_reference or rows:
            end = -math.inf if lost else problem.sign * value
            ends.setdefault(method if of_reference else None, []).append(end)
        best = max((sorted(end)[(len(end) - 1) // 2] for end in ends.values()), default=-math.inf)
        if math.isfinite(best):
            targets[problem.index] = problem.sign * best
    return targets


def times_of(runs: Runs, targets: dict[int, float]) -> pl.DataFrame:
    """Of each counting run when it first reached its problem's target: epoch, step, seconds; null if it never did."""
    signs = {problem.index: problem.sign for problem in runs.problems}
    counting = runs.runs.filter(pl.col("counts") & pl.col("status").is_in(FINAL)).select(
        "run", "method", "problem", "seed",
        target=pl.col("problem").replace_strict(targets, default=None, return_dtype=pl.Float64),
        sign=pl.col("problem").replace_strict(signs, return_dtype=pl.Int64),
    )  # fmt: skip
    target = pl.col("target") * pl.col("sign") - RESOLUTION * pl.col("target").abs()
    reached = (
        runs.curves.join(counting.select("run", "target", "sign"), on="run", maintain_order="left")
        .filter(pl.col("metric") * pl.col("sign") >= target)
        .sort("run", "epoch").group_by("run", maintain_order=True).first().select("run", "epoch", "step", "seconds")
    )  # fmt: skip
    return counting.join(reached, on="run", how="left", maintain_order="left")


def median_times(times: pl.DataFrame) -> pl.DataFrame:
    """A row a method: problem, medians of epoch, step and seconds (a target that is not reached takes infinitely long),
    how many runs reached it, and n."""
    units = pl.col("epoch", "step", "seconds")
    return (
        times.with_columns(units.cast(pl.Float64).fill_null(math.inf))
        .group_by("method", maintain_order=True)
        .agg(pl.col("problem").first(), units.median(), reached=pl.col("epoch").is_finite().sum(), n=pl.len())
    )


def profiles_of(runs: Runs, times: pl.DataFrame) -> dict[str, Profile]:
    """Of each kind with several problems that have a target, the median times of the methods that all of them have."""
    profiles = {}
    medians = {row["method"]: row for row in median_times(times).iter_rows(named=True)}
    with_target = set(times.filter(pl.col("target").is_not_null())["problem"])
    for kind in runs.kinds():
        problems, methods = common(runs, kind)
        chosen = [place for place, problem in enumerate(problems) if problem.index in with_target]
        if len(chosen) > 1 and len(methods) > 1:
            rows = [[medians.get(on[i], {}) for on in methods.values()] for i in chosen]
            profiles[kind] = [*methods], {
                unit: np.array([[row.get(key, math.inf) for row in of_problem] for of_problem in rows])
                for unit, key in (("steps", "step"), ("seconds", "seconds"))
            }  # fmt: skip
    return profiles


# ---- statistics


def improvement(samples: Sequence[tuple[Sequence[float], Sequence[float]]], level: float) -> tuple[float, float, float]:
    """The probability that a run of a beats one of b on a problem, averaged over problems, with a bootstrap interval.

    Of each problem the values of a and of b, the higher the better; ties count half, and -inf is allowed.
    After Agarwal et al. 2021 (Mann-Whitney's U over the number of pairs; runs are resampled within each problem).
    """
    arrays = []
    for a, b in samples:
        both = np.asarray([*a, *b], float)
        ranks_of_both = stats.rankdata(tied(both, tolerance(both)))
        arrays += [ranks_of_both[: len(a)], ranks_of_both[len(a) :]]

    def statistic(*drawn: Values, axis: int = -1) -> Any:
        pairs = zip(drawn[::2], drawn[1::2], strict=True)
        return np.mean([(np.sign(a[..., None] - b[..., None, :]).mean((-1, -2)) + 1) / 2 for a, b in pairs], axis=0)

    value = float(statistic(*arrays))
    if min(map(len, arrays)) < 2:
        return value, math.nan, math.nan
    drawn = stats.bootstrap(
        arrays, statistic, confidence_level=1 - level, n_resamples=1999, batch=500, method="percentile", rng=0
    )
    return value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def ranks(scores_BM: Values) -> Values:
    """Ranks (1 is best, ties share) of methods in each block; the higher a score the better. -inf is allowed."""
    return np.array([stats.rankdata(-tied(row, tolerance(row))) for row in scores_BM])


def places(mean_ranks: Values, critical: float) -> list[int]:
    """Of each method 1 more than the number of those whose mean rank is better by the critical difference."""
    return [int(place) for place in 1 + (mean_ranks[:, None] - mean_ranks >= critical).sum(1)]


def firsts(samples: Sequence[Values]) -> list[float]:
    """In how many of BOOTSTRAPS each method has the best mean rank over problems; those that share it have a part each.

    Of each problem values (seeds x methods), the higher the better: its seeds are drawn anew, with replacement, and the
    methods ranked by their means.
    """
    rng = np.random.default_rng(0)
    mean_ranks_RM = np.zeros((BOOTSTRAPS, samples[0].shape[1]))
    for values_SM in samples:
        means_RM = values_SM[rng.integers(len(values_SM), size=(BOOTSTRAPS, len(values_SM)))].mean(1)
        step = RESOLUTION * (np.abs(means_RM).max() or 1.0)  # for equal means to be ties
        mean_ranks_RM += stats.rankdata(-np.round(means_RM / step), axis=1)
    is_first_RM = mean_ranks_RM == mean_ranks_RM.min(1, keepdims=True)
    return [float(count) for count in (is_first_RM / is_first_RM.sum(1, keepdims=True)).sum(0)]


def critical_difference(methods: int, blocks: int, level: float) -> float:
    """How far apart two mean ranks must be to differ (Nemenyi; Demsar 2006, section 3.2.2)."""
    q = float(stats.studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * blocks))


def friedman_p(ranks_BM: Values) -> float:
    """Friedman's p that the methods do not differ in rank; nan for fewer than 3 methods or 2 blocks."""
    if ranks_BM.shape[0] < 2 or ranks_BM.shape[1] < 3:
        return math.nan
    if not np.ptp(ranks_BM, axis=1).any():
        return 1.0
    return float(stats.friedmanchisquare(*ranks_BM.T).pvalue)


def profile(times_BM: Values, ratios: Values) -> Values:
    """For each ratio and method, the share of problems that it brings to their target in so many times the least time.

    After Dahl et al. 2023 (AlgoPerf), section 4.3. A time is inf where the target was never reached; a problem
    whose target no run reached counts against all.
    """
    least = times_BM.min(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(times_BM), times_BM / least, np.inf)
    return np.asarray((relative[None] <= ratios[:, None, None]).mean(1))
