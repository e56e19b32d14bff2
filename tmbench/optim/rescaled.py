"""SGD whose learning rate is multiplied once: the control for a change of method."""

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

from torch import Tensor

from .base import SGDSettings, SGDThenFormula


class RescaledSGD(SGDThenFormula):
    """SGD, with `factor` times its learning rate from `switch_step` on; momentum and all else stay as they are.

    Args:
        params, lr, momentum, others: as in `SGDThenFormula`.
        factor: > 0. (The decay of `decoupled` keeps the old rate.)
    """

    name = "rescaled"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, momentum: float = 0.0, *, factor: float = 0.5,
        **others: Unpack[SGDSettings],
    ) -> None:  # fmt: skip
        super().__init__(params, {"factor": factor}, lr, momentum, history="zero", **others)

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        return (), group["factor"]

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not 0 < group["factor"] < float("inf"):
            self._refuse(f"factor must be > 0 and finite, got {group['factor']}")
