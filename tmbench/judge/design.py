"""What is fixed before the first seed of a judgement. Without scipy, so that a known judgement answers at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GENERATORS = 13  # 2^13 choices of sign are tested: up to 13 seeds these are all
# Of the level, the share that is spent before the last look, and how slowly (a power of the share of seeds seen so
# far). Chosen by simulation: to spend more or sooner is to stop sooner and to have less power. See docs/judge-method.
EARLY, SLOWNESS = 0.75, 1.4


@dataclass(frozen=True)
class Design:
    """What is fixed before the first seed."""

    max_seeds: int  # the last look
    margin: float | None = None  # in units of the differences; None: equivalence is not asked for
    alpha: float = 0.05  # of better and worse together; and of equivalent
    comparisons: int = 1  # methods against one baseline; verdicts are corrected for them (Holm)

    def spent(self) -> NDArray[np.float64]:
        """The share of a level that may be spent up to each look, 1 at the last one (max_seeds)."""
        share = EARLY * (np.arange(1, self.max_seeds + 1) / self.max_seeds) ** SLOWNESS
        share[-1] = 1.0
        return share

    def least_seeds(self) -> int:
        """The first look that can decide anything. If none can, the least max_seeds with which the last look can.

        For that all seeds must agree in sign, which has probability 2^-n. Holm leaves the first of the comparisons this
        level.
        """
        level = (self.alpha if self.margin is not None else self.alpha / 2) / self.comparisons
        possible = [n for n, share in enumerate(self.spent(), 1) if 2.0 ** -min(n, GENERATORS) <= level * share]
        return possible[0] if possible else int(np.ceil(-np.log2(level)))
