"""How sure one can be of a difference between two methods: intervals, exact tests, equivalence.

The seed is the replicate: two methods are compared on the same seeds, d = a - b of each. Runs that share a trunk share
its noise, which the difference takes out; they are never counted as replicates of each other.
"""

import itertools
import math
import sys
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Below so many seeds a bootstrap interval is too narrow: of normal differences a nominal 95 % covers 73 % with 3 seeds,
# 86 % with 5, 88 % with 10, 92 % with 20 (400 draws each); Student's covers 95 %. See tests/test_statistics.py.
ENOUGH_TO_BOOTSTRAP = 20
RESAMPLES = 9999
EXACT_UP_TO = 13  # seeds: 2^13 changes of sign are fewer than RESAMPLES
LARGEST_DIVISOR = 2000  # of the smallest difference, in the search for a number that all are multiples of
LARGEST_SUM = 1_000_000  # of differences in such units
MOST_WORK = 100_000_000  # that sum times the seeds
# The fewest seeds that can show equivalence. Two seeds come out alike by chance too often: a metric that counts
# examples has few values to differ by. See scripts/simulate_report.py.
LEAST_TO_EQUATE = 3
# Scores come as float32 (a share k/N is rounded once, by up to 2^-24 of itself), so two differences of scores that are
# equal in truth are this close, relative to the larger of their own scores. So a run that ended with 1e6 does not make
# the differences on other seeds less exact.
RESOLUTION = 2.0**-22

Values = NDArray[np.float64]


def worth(score: float | None, baseline: float | None, worst: float | None, higher_is_better: bool) -> float | None:
    """The value that a run counts as: its score; of a diverged run the worse of the baseline and the worst score seen.

    None for a diverged run without a baseline: it is worse than every completed run, no number says by how much.

    Args:
        score: the run's metric; None, or not finite, if the run diverged.
        baseline: the score of the input-blind baseline on the problem, if there is one.
        worst: the worst score of the problem's completed runs, if there are any.
    """
    if score is not None and math.isfinite(score):
        return score
    if baseline is None or not math.isfinite(baseline):
        return None
    known = [baseline, baseline if worst is None or not math.isfinite(worst) else worst]
    return min(known) if higher_is_better else max(known)


@dataclass
class Difference:
    """Of a and b over the seeds that both have: a - b, in units of the scores.

    Where a run diverged and has no value, the difference has no size: mean, sd and intervals are nan, and p is that of
    the signed ranks.
    """

    n: int
    mean: float
    sd: float  # of the differences; nan of a single one
    direction: int  # of what p tests: 1 if a has the higher scores, -1 if b has, 0 if neither
    has_spread: bool  # whether the differences are not all the same; where they are, p and p_equivalent are 1
    low: float  # of the interval that is to be quoted
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p: float  # two-sided
    p_equivalent: float  # TOST: that the true mean difference is not within the margin
    margin: float
    is_sampled: bool  # whether p is from a sample of the changes of sign, rather than all
    p_holm: float = math.nan
    p_equivalent_holm: float = math.nan


def compare(
    a: Sequence[float], b: Sequence[float], margin: float, level: float, test: str, bound: float = math.inf,
    both_diverged: Sequence[bool] = (),
) -> Difference:  # fmt: skip
    """The difference of two methods; a[i] and b[i] are of the same seed. The Holm values are left to adjust.

    Args:
        a, b: scores; -inf or inf of a diverged run that has no value and is worse than every other.
        bound: the largest difference that the metric allows: 1 for a share. Student's interval ends there.
        both_diverged: of each seed whether both runs diverged. They come out the same then, which is no evidence that
            the methods are: equivalence is tested on the other seeds.
    """
    a_S, b_S = np.asarray(a, float), np.asarray(b, float)
    near_S = tolerance(a_S, b_S)
    with np.errstate(invalid="ignore"):
        d = np.where((a_S == b_S) | (np.abs(a_S - b_S) <= near_S), 0.0, a_S - b_S)
    near_S[d == 0] = 0.0
    n, is_finite, nan = len(d), bool(np.isfinite([a_S, b_S]).all()), math.nan
    test = test if is_finite else "wilcoxon"
    is_spread = not is_finite or has_spread(d, near_S)
    p, is_sampled = sign_flip_p(d, test, near_S) if is_spread else (1.0, False)
    tested, slack_S = _tested(d, test, near_S)
    direction = 0 if abs(tested.sum()) <= slack_S.sum() else int(np.sign(tested.sum()))
    if not is_finite:
        return Difference(n, nan, nan, direction, True, nan, nan, nan, nan, p, 1.0, margin, is_sampled)
    informative = ~np.asarray(both_diverged or [False] * n, bool)
    low, high = t_interval(d, level)
    student, bootstrap = (max(low, -bound), min(high, bound)), bootstrap_interval(d, level)
    quoted = bootstrap if n >= ENOUGH_TO_BOOTSTRAP else student
    mean = 0.0 if abs(d.sum()) <= near_S.sum() else float(d.mean())
    is_informed = has_spread(d[informative], near_S[informative])
    p_equivalent = equivalence_p(d[informative], margin) if is_informed else 1.0
    return Difference(
        n, mean, spread(d), direction, is_spread, *quoted, *bootstrap, p, p_equivalent, margin, is_sampled
    )


def tolerance(*scores: Values) -> Values:
    """How far from one that is equal in truth each difference of these scores may come out; 0 where one is infinite."""
    near = RESOLUTION * np.max(np.abs(scores), axis=0)
    return np.where(np.isfinite(near), near, 0.0)


def has_spread(d: Values, near: Values) -> bool:
    """Whether the values are not all the same; each is known to within its own `near`."""
    return len(d) > 1 and bool(np.ptp(d) > max(near[d.argmin()], near[d.argmax()]))


def spread(values: Values) -> float:
    """The standard deviation between seeds (n - 1); nan of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def t_interval(d: Values, level: float) -> tuple[float, float]:
    """Student's interval of the mean; nan of a single value."""
    if len(d) < 2:
        return math.nan, math.nan
    half = half_width(spread(d), len(d), level)
    return float(d.mean()) - half, float(d.mean()) + half


def half_width(sd: float, n: int, level: float) -> float:
    """Of Student's interval of the mean of n values with this standard deviation; n is at least 2."""
    return float(stats.t.ppf(1 - level / 2, n - 1)) * sd / math.sqrt(n)


def bootstrap_interval(d: Values, level: float) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of the mean (scipy's); nan of a single value."""
    if len(d) < 2:
        return math.nan, math.nan
    if np.ptp(d) == 0:
        return float(d[0]), float(d[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of 2 seeds; it comes out as nan
        drawn = stats.bootstrap((d,), np.mean, confidence_level=1 - level, n_resamples=RESAMPLES, rng=0)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def sign_flip_p(d: Values, test: str = "permutation", near: float | Values = 0.0) -> tuple[float, bool]:
    """Two-sided p of no difference, from the changes of sign; and whether these are a sample, rather than all.

    They are all up to EXACT_UP_TO seeds, and for more seeds where `multiples` finds a number that all differences are
    multiples of, as shares of the same test examples and ranks are: then the sums have few values, and how often each
    comes is counted seed by seed.

    Args:
        d: the differences; infinite ones only for wilcoxon.
        test: permutation (of the mean) or wilcoxon (of signed ranks).
        near: differences no further apart are equal; one number, or one for each difference.
    """
    d, slack_S = _tested(d, test, near)
    if len(d) > EXACT_UP_TO and (units_S := multiples(d, slack_S)) is not None:
        return _p_of_multiples(units_S), False
    d = d if d.sum() >= 0 else -d
    signs_RS = signs(len(d))
    # A sum falls short of the observed one by twice what changed its sign (or did not, where the sum is negative). So
    # what a large difference leaves unsure counts only where it is among these.
    changed_RS = signs_RS != np.where(signs_RS @ d < 0, -1.0, 1.0)[:, None]
    extreme = int((2 * (changed_RS @ d) <= changed_RS @ (slack_S + 2e-12 * np.abs(d))).sum())
    is_sampled = len(d) > EXACT_UP_TO  # then the observed signs are one draw more
    return (extreme + is_sampled) / (len(signs_RS) + is_sampled), is_sampled


def multiples(d: Values, near: Values) -> NDArray[np.int64] | None:
    """The differences in units of one number that all are multiples of, as far as they are known; None: there is none.

    Args:
        near: how far from a multiple each may be, beside rounding.
    """
    sizes = np.abs(d)
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    if not len(order):
        return np.zeros(len(d), np.int64)
    ascending, close = sizes[order].tolist(), (near + 1e-12 * sizes)[order].tolist()
    for divisor in range(1, LARGEST_DIVISOR + 1):
        unit = ascending[0] / divisor
        if near.max() > unit / 20:  # anything would be near a multiple
            return None
        length, units = 0.0, 0
        for size, room in zip(ascending, close, strict=True):
            count = round(size / unit)
            if abs(size - count * unit) > room + count * unit * (room / length if units else 0.0):
                break
            length, units = length + size, units + count
            unit = length / units  # known better with each, so that a large one is told, too
        else:
            found = np.rint(d / unit)
            if units > LARGEST_SUM or units * len(d) > MOST_WORK:
                return None
            return found.astype(np.int64) if (np.abs(d - found * unit) <= near + 1e-12 * sizes).all() else None
    return None


def _p_of_multiples(units: NDArray[np.int64]) -> float:
    """The share of all changes of sign whose sum is at least as far from 0."""
    share = np.ones(1)  # of the changes of sign with each sum, from the lowest to the highest by steps of 1
    for size in np.abs(units):
        moved = np.zeros(len(share) + 2 * size)
        moved[: len(share)] += share / 2
        moved[2 * size :] += share / 2
        share = moved
    reach, sum_ = len(share) // 2, abs(int(units.sum()))
    p = float(share[: reach - sum_ + 1].sum() + share[max(reach + sum_, reach - sum_ + 1) :].sum())
    return max(p, sys.float_info.min)  # of more than a thousand seeds it would come out as 0


def _tested(d: Values, test: str, near: float | Values) -> tuple[Values, Values]:
    """What the test changes the signs of and adds up; and how far from an equal one each of these may come out."""
    if test == "wilcoxon":
        # Zeros carry no sign; tables of the exact test know neither them nor ties, so the ranks are permuted.
        return np.sign(d) * stats.rankdata(tied(np.abs(d), near)) * (d != 0), np.zeros(len(d))
    return d, near + np.zeros(len(d))


@cache
def signs(n: int) -> Values:
    """Changes of sign (R x n): all of them up to EXACT_UP_TO, else RESAMPLES at random."""
    if n <= EXACT_UP_TO:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    return np.random.default_rng(0).choice((1.0, -1.0), (RESAMPLES, n))


def tied(values: Values, near: float | Values) -> Values:
    """The values, with one and the same for those that lie no further apart than `near`, theirs or that of all."""
    order = np.argsort(values, kind="stable")
    ordered, near_S = values[order], np.broadcast_to(near, values.shape)[order]
    with np.errstate(invalid="ignore"):
        is_near = np.diff(ordered) <= np.maximum(near_S[1:], near_S[:-1])
    starts = np.r_[True, ~((ordered[1:] == ordered[:-1]) | is_near)]
    equal = np.empty_like(values)
    equal[order] = ordered[starts][np.cumsum(starts) - 1]
    return equal


def equivalence_p(d: Values, margin: float) -> float:
    """Schuirmann's two one-sided t-tests (statsmodels'): small if the mean difference is surely within the margin.

    1 for fewer than LEAST_TO_EQUATE seeds, and where the differences have no spread: that is no evidence.
    """
    from statsmodels.stats.weightstats import DescrStatsW

    if len(d) < LEAST_TO_EQUATE or np.ptp(d) == 0:
        return 1.0
    return float(DescrStatsW(d).ttost_mean(-margin, margin)[0])


def holm(p: Sequence[float]) -> list[float]:
    """p values of tests that are made together, adjusted (Holm 1979).

    statsmodels has it, too, but collects all garbage at each call, which takes longer than a whole report.
    """
    order = np.argsort(p)
    values = np.empty(len(p))
    values[order] = np.minimum(np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1)), 1.0)
    return [float(value) for value in values]


def adjust(differences: Sequence[Difference]) -> None:
    """Fills in the Holm values of differences that are reported together.

    A single pair of runs, such as two trials of tuning, has p = 1 whatever it shows. It can never be found significant,
    so it does not count as a test, and the others are corrected as if it were not there.
    """
    tests = [d for d in differences if d.n > 1]
    adjusted = holm([d.p for d in tests]), holm([d.p_equivalent for d in tests])
    for one in differences:
        one.p_holm = one.p_equivalent_holm = 1.0
    for one, p, p_equivalent in zip(tests, *adjusted, strict=True):
        one.p_holm, one.p_equivalent_holm = p, p_equivalent


# ---- how many seeds a question needs


def attainable_p(n: int) -> float:
    """The smallest two-sided p that a paired test with n seeds is sure to allow, of all changes of sign or a sample."""
    return min(1.0, max(2.0 ** (1 - n), 1 / (RESAMPLES + 1) if n > EXACT_UP_TO else 0.0))


def seeds_to_attain(level: float, comparisons: int = 1) -> int | None:
    """The fewest seeds whose test can fall below the level as the first of so many comparisons (Holm).

    None if no number of seeds can: the comparisons are too many for a sample of RESAMPLES.
    """
    return next((n for n in range(1, EXACT_UP_TO + 10) if attainable_p(n) <= level / comparisons), None)


@cache
def seeds_to_find(difference: float, sd: float, level: float, power: float, comparisons: int = 1) -> int | None:
    """How many seeds would find a true mean difference with this power, if paired differences have this spread.

    By the power of Student's paired test (scipy's nct), at the level that Holm leaves the first of so many
    comparisons; at least as many as the exact test needs. None if a million would not do, or no number can.
    """
    attaining = seeds_to_attain(level, comparisons)
    if attaining is None:
        return None
    least = max(2, attaining)
    if not sd > 0:
        return least
    effect, alpha = abs(difference) / sd, level / comparisons

    def is_enough(n: int) -> bool:
        # In the true direction alone: of the other side scipy often says nan (statsmodels, too, which adds both).
        power_of_n = float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, effect * math.sqrt(n)))
        return power_of_n >= power or (math.isnan(power_of_n) and effect > 1)  # so sure that it underflows

    high = least
    while not is_enough(high):
        high *= 2
        if high > 1_000_000:
            return None
    return bisect_left(range(high), True, max(least, high // 2), high, key=is_enough)
