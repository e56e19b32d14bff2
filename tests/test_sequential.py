"""The sequential test agrees with a count of all changes of sign, and keeps its level though it is looked at always."""

import itertools
import math

import numpy as np
import pytest

from tmbench.judge.sequential import Design, first_rejections

FIXED = np.array([0.3, 0.1, 0.25, 0.4, -0.05, 0.15, 0.2, 0.35, 0.12])


def by_brute_force(d: np.ndarray, design: Design, level: float) -> int:
    """The first look that rejects, from all 2^max_seeds continuations; 0 if none does."""
    paths = np.array([*itertools.product((1.0, -1.0), repeat=design.max_seeds)])[:, : len(d)]
    sums = np.cumsum(paths * d, axis=1)
    alive = np.ones(len(paths), bool)
    for n, share in enumerate(design.spent()[: len(d)]):
        budget = math.floor(level * share * len(paths) + 1e-9)
        for value in np.unique(sums[alive, n].round(9))[::-1]:
            if (
                np.ptp(np.abs(d[: n + 1])) == 0
                or (~alive).sum() + (alive & (sums[:, n].round(9) == value)).sum() > budget
            ):
                break
            alive &= sums[:, n].round(9) != value
        if not alive[0]:
            return n + 1
    return 0


@pytest.mark.parametrize(("level", "zeros"), [(0.005, 0), (0.025, 0), (0.025, 2), (0.3, 4)])
def test_first_rejection_is_that_of_all_changes_of_sign(level: float, zeros: int) -> None:
    rng, design = np.random.default_rng(0), Design(9)
    found = set()
    for _ in range(25):
        d = rng.normal(0.8, 1, 9).round(1)  # with ties
        d[rng.permutation(9)[:zeros]] = 0
        expected = by_brute_force(d, design, level), by_brute_force(-d, design, level)
        assert first_rejections(d, design, level) == expected
        found.add(expected[0])
    assert len(found) > 1
