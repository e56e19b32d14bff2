"""EG: the exponentiated gradient with positive and negative parts, unnormalised.

Kivinen and Warmuth 1997, "Exponentiated gradient versus gradient descent for linear predictors" (Information and
Computation 132): their EG+- multiplies the weights of doubled inputs by exp(-lr g) and exp(lr g). Without its
normalisation, a weight is the difference of two positive parts,

    p = p+ - p-,    p+ <- p+ exp(-lr g),    p- <- p- exp(lr g).

The product of the parts never changes. With p+ p- = (beta/2)^2 at the start, the weight alone tells both parts, so
no state is kept, and the steps are those of mirror descent with the hypentropy of Ghai, Hazan and Singer 2020
(arXiv 1902.01903): asinh(p / beta) moves by -lr g.
"""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep


def eg_update(params: list[Tensor], grads: list[Tensor], lr: float, beta: float) -> None:
    """p <- p+ exp(-a) - p- exp(a) in place, with a = lr g, p = p+ - p- and p+ p- = (beta/2)^2.

    With r = p+ + p- = sqrt(p^2 + beta^2), p moves by
        p (cosh(a) - 1) - r sinh(a) = 2 sinh(a/2) (p sinh(a/2) - r cosh(a/2)),
    which is 0 where g is, and loses no digits where a is small.
    """
    half = torch._foreach_mul(grads, lr / 2)
    sum_of_parts = torch._foreach_mul(params, params)
    torch._foreach_add_(sum_of_parts, beta**2)
    torch._foreach_sqrt_(sum_of_parts)
    torch._foreach_mul_(sum_of_parts, torch._foreach_cosh(half))
    torch._foreach_sinh_(half)
    move = torch._foreach_mul(params, half)
    torch._foreach_sub_(move, sum_of_parts)
    torch._foreach_mul_(move, half)
    torch._foreach_add_(params, move, alpha=2)


class EG(OneStep):
    """Multiplies the positive part of each weight by exp(-lr g), and its negative part by exp(lr g).

    The parts never change their signs; the weight, their difference, does. A weight much larger than `beta` changes by
    the factor exp(-+lr g), one much smaller by -lr beta g: zeros, such as biases at first, are trained. As beta grows
    with lr beta fixed, the method becomes SGD of rate lr beta.

    Args:
        params: parameters or parameter groups, real.
        lr: multiplies g in the exponent.
        beta: > 0: twice the size of either part of a weight that is 0.
        weight_decay: L2 penalty, added to the gradient.
        maximize, foreach: as in torch.

    Raises: as in `OneStep`.
    """

    name = "eg"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, *, beta: float = 0.1, **common: Unpack[CommonSettings]
    ) -> None:
        super().__init__(params, lr, {"beta": beta}, **common)

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        eg_update(params, grads, lr, group["beta"])

    def check(self, group: dict[str, Any]) -> None:
        if not 0 < group["beta"] < float("inf"):
            self.refuse(f"beta must be > 0 and finite, got {group['beta']}")
