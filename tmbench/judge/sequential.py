"""May the comparison of two methods stop after this seed? A sign-flip test that may be looked at after every seed.

If both methods are equally good, each paired difference is as likely to be plus as minus, whatever its size. So the
running sum could as well have been that of any other choice of signs: each choice is a path. At each look, the test
rejects the paths whose sum is largest among those not rejected before, as many in all as the level allows so far
(Design.spent). The path of the data is one of them, so it is ever rejected with at most the probability of the level:
at all looks together, exactly, for any distribution of symmetric differences. docs/judge-method.md has the reasons.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..report.statistics import Values, holm, seeds_to_find, tied
from .design import GENERATORS, Design

PRECISION = 0.02  # of a bound of a confidence sequence, as a share of its distance from the median difference
LADDER = np.geomspace(5e-4, 0.5, 37)  # the one-sided levels that p is read off from: about 12 for each factor of ten


class Look(NamedTuple):
    """What is known after so many seeds. Every value holds at all looks together, so each may be read at any time."""

    seeds: int
    p_better: float  # to be compared with alpha: twice the one-sided p, rounded up to a level of LADDER
    p_worse: float
    p_equivalent: float | None  # of both one-sided tests against the margin; None without a margin
    low: float  # confidence sequence (1 - alpha) of the mean difference: infinite until it can exclude anything, nan
    high: float  # where a difference is infinite


def looks(
    differences: Sequence[float], design: Design, near: float | Sequence[float] = 0.0,
    both_diverged: Sequence[bool] = (),
) -> list[Look]:  # fmt: skip
    """A look after each seed; the one after n seeds depends on the first n differences only.

    While all differences have the same size there is no evidence: p is 1.

    Args:
        differences: of pairs, in the order of their seeds; positive if the method is better, 0 if both are the same,
            inf or -inf if one diverged and has no value. Signed ranks are tested from the first infinite one on.
        near: how far from an equal one each may come out; see report.statistics.tolerance.
        both_diverged: as in report.statistics.compare: these seeds are no evidence for equivalence.

    Raises:
        ValueError: a difference is nan, or there are more than max_seeds.
    """
    d = np.asarray(differences, float)
    if np.isnan(d).any() or len(d) > design.max_seeds:
        raise ValueError(f"looks: expected at most {design.max_seeds} differences and no nan, got {d.tolist()}")
    near_N = np.broadcast_to(np.asarray(near, float), d.shape)
    pairs = _Pairs(d, near_N, design, np.ones(len(d), bool))
    p_better, p_worse = np.minimum(1, 2 * pairs.p_values(0.0))
    n_finite = int(pairs.is_finite.sum())
    finite = _Pairs(d[:n_finite], near_N[:n_finite], design, pairs.counts[:n_finite])
    mirrored = _Pairs(-finite.d, finite.near, design, finite.counts)
    lows, highs = np.full((2, len(d)), np.nan)
    lows[:n_finite], highs[:n_finite] = finite.lower_bounds(), -mirrored.lower_bounds()
    p_equivalent = np.ones(len(d))
    if design.margin is not None:
        counts = ~np.asarray(both_diverged or [False] * len(d), bool)
        informative = _Pairs(finite.d, finite.near, design, counts[:n_finite])
        above, below = informative.p_values(-design.margin)[0], informative.p_values(design.margin)[1]
        p_equivalent[:n_finite] = np.maximum(above, below)
    return [
        Look(n + 1, float(p_better[n]), float(p_worse[n]), None if design.margin is None else float(p_equivalent[n]),
             float(lows[n]), float(highs[n]))
        for n in range(len(d))
    ]  # fmt: skip


def verdicts(looks_of: Mapping[str, list[Look]], design: Design) -> dict[str, str]:
    """better, worse, equivalent or undecided, of each method; corrected for design.comparisons; the first one stays.

    Methods may have different numbers of looks: one that is decided needs no more seeds.
    """
    found = dict.fromkeys(looks_of, "undecided")
    rest = [1.0] * max(0, design.comparisons - len(looks_of))
    level = design.alpha * (1 + 1e-9)  # a p that is the level's own part, times the number of parts
    for place in range(max(map(len, looks_of.values()), default=0)):
        now = {name: of[min(place, len(of) - 1)] for name, of in looks_of.items() if of}
        unequal = holm([*(min(look.p_better, look.p_worse) for look in now.values()), *rest])
        equivalent = holm([*(1.0 if look.p_equivalent is None else look.p_equivalent for look in now.values()), *rest])
        for (name, look), p, p_equivalent in zip(now.items(), unequal, equivalent, strict=False):
            if found[name] != "undecided":
                continue
            if p <= level:
                found[name] = "better" if look.p_better < look.p_worse else "worse"
            elif p_equivalent <= level:
                found[name] = "equivalent"
    return found


def first_rejections(differences: Values, design: Design, level: float, shift: float = 0.0) -> tuple[int, int]:
    """After how many seeds the mean is first shown to be above the shift, and below it, each at the level; 0: never."""
    pairs = _Pairs(differences, np.zeros(len(differences)), design, np.ones(len(differences), bool))
    is_rejected = np.array([*pairs.walk(level, shift)])
    first = np.where(is_rejected.any(0), is_rejected.argmax(0) + 1, 0)
    return int(first[0]), int(first[1])


def fixed_design_seeds(effect_in_sd: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """How many seeds a test without looks needs to find a difference of so many standard deviations; None: too many."""
    return seeds_to_find(effect_in_sd, 1.0, alpha, power)


# ---- the test


@cache
def _flips(seeds: int, generators: int) -> Values:
    """The choices of sign (looks x paths), relative to those of the data: the first path changes none, the last all.

    The first signs, as many as there are generators, take all combinations. Each later one is the product of an odd
    number of these, every time others. So the choices form a group: from any path the same paths are seen. This makes a
    test by a part of all choices exact.
    """
    own = min(seeds, generators)
    signs = np.where((np.arange(2**own) >> np.arange(own)[:, None]) & 1, -1.0, 1.0)
    products = [product for product in range(2**own) if product.bit_count() % 2 and product.bit_count() > 1]
    chosen = np.random.default_rng(0).permutation(products)
    later = [signs[[i for i in range(own) if product >> i & 1]].prod(0) for product in np.resize(chosen, seeds - own)]
    return np.array([*signs, *later])


@dataclass(frozen=True)
class _Pairs:
    """Differences in the order of their seeds, and tests of their mean after each of them."""

    d: Values
    near: Values
    design: Design
    counts: NDArray[np.bool_]  # which differences are tested; the others are seeds all the same

    def p_values(self, shift: float) -> Values:
        """One-sided p (2 x looks) of a mean above the shift, and of one below it: the least level that rejects.

        All larger levels must reject as well; one that has spent its share elsewhere may not.
        """
        parts = [self.design.alpha / sides / rank for rank in range(1, self.design.comparisons + 1) for sides in (1, 2)]
        p, is_rejected = np.ones((2, len(self.d))), np.ones((2, len(self.d)), bool)
        for level in np.unique([*LADDER, *parts])[::-1]:
            is_rejected &= np.array([*self.walk(level, shift)], bool).reshape(-1, 2).T
            if not is_rejected.any():
                break
            p[is_rejected] = level
        return p

    def walk(self, level: float, shift: float) -> Iterator[tuple[bool, bool]]:
        """At each look whether the path of the data was rejected so far, and whether the mirrored one was."""
        paths = 2 ** min(self.design.max_seeds, GENERATORS)
        allowed = np.floor(level * self.design.spent() * paths + 1e-9).astype(int)
        is_open, slack = self._has_spread(shift), self._slack
        gone = np.array([], int)
        for n, sums_P in enumerate(self._sums(shift)):
            more = int(allowed[n]) - len(gone)
            if is_open[n] and more > 0:
                sums_P[gone] = -np.inf
                threshold = np.partition(sums_P, -more - 1)[-more - 1]
                gone = np.append(gone, np.flatnonzero(sums_P > threshold + slack[n]))
            yield 0 in gone, paths - 1 in gone

    def _sums(self, shift: float) -> Iterator[Values]:
        """At each look the sum of each path: of the differences less the shift; of signed ranks if one is infinite."""
        flips = _flips(self.design.max_seeds, GENERATORS)
        sums = np.zeros(flips.shape[1])
        for n in range(len(self.d)):
            if self.is_finite[n]:
                sums = sums + flips[n] * ((self.d[n] - shift) * self.counts[n])
                yield sums
            else:
                d = self.d[: n + 1]
                ranks = np.sign(d) * stats.rankdata(tied(np.abs(d), self.near[: n + 1])) * (d != 0)
                yield ranks @ flips[: n + 1]

    def _has_spread(self, shift: float) -> NDArray[np.bool_]:
        """At each look whether the differences are not all of the same size. The sizes are the same for all paths."""
        sizes = np.where(self.counts, np.abs(self.d - shift), np.nan)
        with np.errstate(invalid="ignore"):
            spread = np.fmax.accumulate(sizes) - np.fmin.accumulate(sizes)
        return ~self.is_finite | (spread > np.maximum.accumulate(self.near, axis=0))

    @cached_property
    def is_finite(self) -> NDArray[np.bool_]:
        """At each look whether all differences so far are finite."""
        return np.logical_and.accumulate(np.isfinite(self.d))

    @cached_property
    def _slack(self) -> Values:
        """At each look how far apart two sums may come out that are equal in truth.

        A difference larger than all smaller ones together decides which of two sums is larger, unless both have it with
        the same sign. So a run that ended with a huge score, which is known less exactly, blurs no other seed.
        """
        slack = 1e-12 * np.cumsum(np.where(self.is_finite, np.abs(self.d), 0.0)) * self.is_finite
        for n in np.flatnonzero(self.is_finite) if self.near.any() else ():
            sizes, near = np.abs(self.d[: n + 1]), self.near[: n + 1]
            order = np.argsort(sizes)
            sizes, near = sizes[order], near[order]
            smaller = np.cumsum(sizes + 2 * near) - sizes - near
            slack[n] += 2 * near[sizes <= smaller].sum()
        return slack

    def lower_bounds(self) -> Values:
        """At each look the largest shift that the mean is shown to be above at alpha / 2, rounded down by PRECISION."""
        if not (looks := len(self.d)):
            return np.array([])
        shown, not_shown = np.full(looks, -np.inf), np.full(looks, np.inf)

        def find(shift: float) -> None:
            steps = enumerate(self.walk(self.design.alpha / 2, shift))
            first = next((n for n, (is_above, _) in steps if is_above), looks)
            shown[first:] = np.maximum(shown[first:], shift)
            not_shown[:first] = np.minimum(not_shown[:first], shift)

        least = 1e-9 * float(np.ptp(self.d)) + 4 * float(self._slack[-1])
        find(float(self.d.min()) - least)
        find(float(self.d.max()))
        medians = np.array([np.median(self.d[: n + 1]) for n in range(looks)])
        while True:
            precision = PRECISION * np.abs(medians - np.where(np.isfinite(shown), shown, medians)) + least
            too_wide = np.where(np.isfinite(shown), not_shown - shown - precision, 0.0)
            if not (too_wide > 0).any():
                return shown
            widest = too_wide.argmax()
            find(float(shown[widest] + not_shown[widest]) / 2)
