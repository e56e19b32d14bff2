"""Would other seeds agree, and would another test set? The variance of a difference, split by what it comes from."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from ..result import examples_of
from .statistics import Values, t_interval


@dataclass(frozen=True)
class Split:
    """Of the differences of one example after training with one seed: d = mean + seed + example + residual."""

    mean: float
    seeds: float  # variance between seeds, the same on all examples: of the training
    examples: float  # variance between examples, the same with all seeds: of the test sample
    residual: float  # variance of what is particular to an example and a seed
    of_training: tuple[float, float]  # interval of the mean on these test examples, over seeds
    of_both: tuple[float, float]  # interval of the mean over seeds and test samples


@dataclass(frozen=True)
class SampleSplit:
    """The split of paired runs by the scores of single test examples that they have kept."""

    metric: str  # whose value is the mean of these scores; not of every task the one that ranks runs
    test_examples: int
    split: Split  # of differences, positive where the first of each two runs is better


def sample_split(pairs: Iterable[tuple[Path, Path]], higher_is_better: bool, level: float) -> SampleSplit | None:
    """The split of these pairs of runs; None with fewer than two, or where a run has no scores of the same examples.

    Args:
        pairs: the folders of two runs of one seed.
        higher_is_better: of the headline.

    Raises:
        DataError: a run's scores are damaged.
    """
    rows, kinds = [], set[tuple[str, int]]()
    for two in pairs:
        a, b = map(examples_of, two)
        if a is None or b is None:
            return None
        higher = higher_is_better if a.higher_is_better is None else a.higher_is_better
        kinds |= {(each.key, len(each.scores)) for each in (a, b)}
        if len(kinds) > 1:
            return None
        rows.append((1 if higher else -1) * (np.asarray(a.scores, float) - np.asarray(b.scores, float)))
    if len(rows) < 2:
        return None
    ((key, count),) = kinds
    return SampleSplit(key.split("/")[-1], count, split(np.array(rows), level))


def split(differences_SN: Values, level: float) -> Split:
    """The components of variance, and an interval (1 - level) of the mean for each of the two questions.

    Components are estimated by the mean squares of a two-way analysis of variance without replication; one that comes
    out negative is 0. The variance of the mean over both is the sum of the variances of seeds, examples and residual,
    each over its number; its degrees of freedom are Satterthwaite's (Searle, Casella and McCulloch 1992).

    Args:
        differences_SN: of paired scores, seeds x test examples. With one of either all values but the mean are nan.
    """
    seeds, examples = differences_SN.shape
    mean = float(differences_SN.mean())
    if min(seeds, examples) < 2:
        nothing = math.nan, math.nan
        return Split(mean, math.nan, math.nan, math.nan, nothing, nothing)
    of_seeds, of_examples = differences_SN.mean(1), differences_SN.mean(0)
    residuals_SN = differences_SN - of_seeds[:, None] - of_examples + mean
    square_seeds, square_examples = examples * of_seeds.var(ddof=1), seeds * of_examples.var(ddof=1)
    freedom = np.array([seeds - 1, examples - 1, (seeds - 1) * (examples - 1)])
    square_residual = (residuals_SN**2).sum() / freedom[2]
    squares = np.array([square_seeds, square_examples, square_residual])
    low, high = of_training = t_interval(of_seeds, level)
    total = square_seeds + square_examples - square_residual
    if total > square_seeds:  # else the examples add nothing
        t = stats.t.ppf(1 - level / 2, total**2 / (squares**2 / freedom).sum())
        half = float(t * math.sqrt(total / (seeds * examples)))
        low, high = min(low, mean - half), max(high, mean + half)
    return Split(
        mean, max(0.0, float(square_seeds - square_residual) / examples),
        max(0.0, float(square_examples - square_residual) / seeds), float(square_residual), of_training, (low, high),
    )  # fmt: skip
