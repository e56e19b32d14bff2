"""SGD whose learning rate is multiplied once: what a change of method must be told apart from."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from .tmsgd import SGDThenMultistep


class RescaledSGD(SGDThenMultistep):
    """SGD, with `factor` times its learning rate from `switch_step` on; all else, momentum too, goes on as it was.

    Args:
        params, lr, momentum, dampening, nesterov, weight_decay, decoupled, switch_step, maximize, foreach, fused: as in
            TMSGD.
        factor: > 0. (The decay of `decoupled` keeps the old rate.)

    Raises:
        ValueError: an argument out of its range.
    """

    name = "rescaled"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.0,
        *,
        factor: float = 0.5,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        switch_step: int | None = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "factor": factor, "dampening": dampening, "nesterov": nesterov,
            "weight_decay": weight_decay, "decoupled": decoupled, "switch_step": switch_step, "history": "zero",
            "maximize": maximize, "foreach": foreach, "fused": fused, "step": 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        return (), group["factor"]

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not 0 < group["factor"] < float("inf"):
            raise ValueError(f"rescaled: factor must be > 0 and finite, got {group['factor']}")
