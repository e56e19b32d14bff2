"""Steps that are a share of each weight, and at most a fixed share: the multiplicative rule of Kirtas et al. 2023.

Kirtas, Passalis and Tefas 2023, "Multiplicative update rules for accelerating deep learning training and increasing
robustness" (arXiv 2307.07189), put any method's direction m l (m a mean of gradients, l a rate for each weight) into

    theta <- theta - eta_out |theta| tanh(eta_in m l)

as a summary of the paper gives it (https://www.sciencestack.ai/paper/2307.07189). Their hybrid with an additive term is
not here.
"""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep


def multiplicative_update(params: list[Tensor], direction: list[Tensor], inner_lr: float, lr: float) -> None:
    """theta <- theta - lr |theta| tanh(inner_lr direction), in place."""
    move = torch._foreach_mul(direction, inner_lr)
    torch._foreach_tanh_(move)
    torch._foreach_mul_(move, torch._foreach_abs(params))
    torch._foreach_add_(params, move, alpha=-lr)


class Multiplicative(OneStep):
    """Changes each weight by at most the share `lr`, in proportion to it: SGD's direction, or RMSprop's with `alpha`.

    A weight never changes its sign, and one that is 0 stays 0: biases that start at 0 are not trained. The remedy
    (ours) is `additive_for_1d`: tensors of less than two dimensions (biases, gains of norms) take theta - lr
    tanh(inner_lr direction).

    Args:
        params: parameters or parameter groups, real.
        lr: in [0, 1): eta_out, the largest share of a weight that a step changes.
        inner_lr: > 0: eta_in, by which the direction is multiplied within the tanh.
        momentum: in [0, 1): the direction's m is v = momentum v + g.
        alpha: in [0, 1): the direction's l is 1 / sqrt(s) with s = alpha s + (1 - alpha) g^2; None: l is 1.
        additive_for_1d: see above.
        weight_decay: L2 penalty, added to the gradient.
        maximize, foreach: as in torch.

    Raises: as in `OneStep`.
    """

    name = "multiplicative"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, *, inner_lr: float = 10.0, momentum: float = 0.0,
        alpha: float | None = None, additive_for_1d: bool = False, **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        settings = {"inner_lr": inner_lr, "momentum": momentum, "alpha": alpha, "additive_for_1d": additive_for_1d}
        super().__init__(params, lr, settings, **common)

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        direction, alpha = grads, group["alpha"]
        if group["momentum"]:
            direction = self._kept("momentum_buffer", params)
            torch._foreach_mul_(direction, group["momentum"])
            torch._foreach_add_(direction, grads)
        if alpha is not None:
            squares = self._kept("square", params)
            torch._foreach_mul_(squares, alpha)
            torch._foreach_addcmul_(squares, grads, grads, 1 - alpha)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_clamp_min_(roots, [torch.finfo(p.dtype).tiny for p in params])
            direction = list(torch._foreach_div(direction, roots))
        if self.is_additive(group, params[0]):
            move = torch._foreach_tanh(torch._foreach_mul(direction, group["inner_lr"]))
            torch._foreach_add_(params, move, alpha=-lr)
        else:
            multiplicative_update(params, direction, group["inner_lr"], lr)

    def _kept(self, key: str, params: list[Tensor]) -> list[Tensor]:
        """This part of the parameters' states; zeros at first."""
        for p in params:
            if key not in self.state[p]:
                self.state[p][key] = torch.zeros_like(p)
        return [self.state[p][key] for p in params]

    def check(self, group: dict[str, Any]) -> None:
        for key in ("lr", "momentum", "alpha"):
            if group[key] is not None and not 0 <= group[key] < 1:
                self.refuse(f"{key} must be in [0, 1), got {group[key]}")
        if not 0 < group["inner_lr"] < float("inf"):
            self.refuse(f"inner_lr must be > 0 and finite, got {group['inner_lr']}")
