"""Madam: multiplicative Adam, whose steps are relative to the size of each weight.

Bernstein et al. 2020, "Learning compositional functions via multiplicative weight updates" (arXiv 2006.14560),
Algorithm 1 (Madam); the bias correction and the defaults of `p_scale` and `g_bound` are the authors' code.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep


def normalised(
    grads: list[Tensor], squares: list[Tensor], steps: Sequence[int], beta: float, g_bound: float
) -> list[Tensor]:
    """clamp(g / sqrt(v)) to +-g_bound, with v the mean square of the gradients, which becomes part of `squares`.

    Shapes: all lists correspond item by item; `steps` counts from 1. 0 / 0 is 0.
    """
    torch._foreach_mul_(squares, beta)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta)
    rms = torch._foreach_div(squares, [1 - beta**step for step in steps])
    torch._foreach_sqrt_(rms)
    torch._foreach_clamp_min_(rms, [torch.finfo(g.dtype).tiny for g in grads])
    direction = torch._foreach_div(grads, rms)
    torch._foreach_clamp_max_(direction, g_bound)
    torch._foreach_clamp_min_(direction, -g_bound)
    return list(direction)


def madam_update(params: list[Tensor], direction: list[Tensor], bounds: list[Tensor], lr: float) -> None:
    """Algorithm 1 in place: p <- clamp(p exp(-lr direction sign(p))) to +-bound."""
    exponents = torch._foreach_sign(params)
    torch._foreach_mul_(exponents, direction)
    torch._foreach_mul_(exponents, -lr)
    torch._foreach_exp_(exponents)
    torch._foreach_mul_(params, exponents)
    torch._foreach_clamp_max_(params, bounds)
    torch._foreach_clamp_min_(params, torch._foreach_neg(bounds))


class Madam(OneStep):
    """Multiplies each weight by exp(-lr u sign(p)), where u is its gradient over the root of its mean square.

    A weight never changes its sign, and one that is 0 stays 0: biases that start at 0 are not trained. The remedy,
    `additive_for_1d`, steps tensors of less than two dimensions (biases, gains of norms) by p - lr u, without bound.
    A tensor of zeros has bound 0.

    Args:
        params: parameters or parameter groups, real.
        lr: a weight changes by at most the factor exp(lr g_bound) in a step, usually by about exp(lr).
        beta: in [0, 1): share of the last mean square that is kept.
        p_scale: > 0: the largest size of a weight, in units of the root mean square of its tensor when first stepped.
        g_bound: > 0: the largest u.
        additive_for_1d: see above.
        weight_decay: L2 penalty, added to the gradient; the paper has none, the bound is in its place.
        maximize, foreach: as in torch.

    Raises: as in `OneStep`.
    """

    name = "madam"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 0.01, *, beta: float = 0.999, p_scale: float = 3.0,
        g_bound: float = 10.0, additive_for_1d: bool = False, **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        settings = {"beta": beta, "p_scale": p_scale, "g_bound": g_bound, "additive_for_1d": additive_for_1d}
        super().__init__(params, lr, settings, **common)

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                wide = p.to(torch.promote_types(p.dtype, torch.float32))  # squares of float16 are soon 0
                bound = group["p_scale"] * wide.square().mean().sqrt().to(p.dtype)
                state.update(step=0, square=torch.zeros_like(p), bound=bound)
            state["step"] += 1
        squares, steps = [state["square"] for state in states], [state["step"] for state in states]
        direction = normalised(grads, squares, steps, group["beta"], group["g_bound"])
        if self.is_additive(group, params[0]):
            torch._foreach_add_(params, direction, alpha=-lr)
        else:
            madam_update(params, direction, [state["bound"] for state in states], lr)

    def check(self, group: dict[str, Any]) -> None:
        if not 0 <= group["beta"] < 1:
            self.refuse(f"beta must be in [0, 1), got {group['beta']}")
        for key in ("p_scale", "g_bound"):
            if not 0 < group[key] < float("inf"):
                self.refuse(f"{key} must be > 0 and finite, got {group[key]}")
