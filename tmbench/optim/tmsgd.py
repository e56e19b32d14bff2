"""TM-SGD: gradient descent by the four-point Taylor difference, after some epochs of plain SGD.

The paper's eq. 8, W[k+1] = 1.5 W[k] - W[k-1] + 0.5 W[k-2] - lr g[k], is the member c = 1/2 of a
one-parameter family of second-order formulas, computed here in its step form

    d[k+1] = (3c-1) d[k] - c d[k-1] - (2-2c) lr g[k],    W[k+1] = W[k] + d[k+1],    d[k] = W[k] - W[k-1]

which rounds less, and makes cold starts and checkpoints explicit. The paper's is stable for
lr * curvature < 1, half of what SGD tolerates; c = 1/3 is stable up to 2, as SGD is.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

from torch import Tensor

from .base import SGDSettings, SGDThenFormula


class TMSGD(SGDThenFormula):
    """SGD until `switch_step`, then the Taylor multi-step method (eq. 8); with `momentum`, TM-SGD-M.

    The paper prints no formula for TM-SGD-M; this is ours: the momentum buffer in place of g.

    Args:
        params, momentum, history, others: as in `SGDThenFormula`.
        lr: TM is stable for lr * curvature < 1 (momentum 0.9: < 0.5008); see `stability`.
        c: member of the family, in (0, 1): 1/2 is the paper's, 1/3 the most stable (lr * curvature < 2).
        lr_factor: > 0, multiplies the learning rate from the switch on; None is 1. The decay of `decoupled` keeps the
            old rate.
    """

    name = "tmsgd"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, momentum: float = 0.0, *, c: float = 0.5,
        history: str = "true", lr_factor: float | None = None, **others: Unpack[SGDSettings],
    ) -> None:  # fmt: skip
        super().__init__(params, {"c": c, "lr_factor": lr_factor}, lr, momentum, history=history, **others)

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        c = group["c"]
        return (3 * c - 1, -c), (2 - 2 * c) * (1.0 if group["lr_factor"] is None else group["lr_factor"])

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not 0 < group["c"] < 1:
            self._refuse(f"c must be in (0, 1), where the family is zero-stable, got {group['c']}")
        if group["lr_factor"] is not None and not 0 < group["lr_factor"] < float("inf"):
            self._refuse(f"lr_factor must be > 0 and finite, or None, got {group['lr_factor']}")
