"""Apollo: a quasi-Newton method with a diagonal Hessian, the paper's fifth optimizer.

Ma 2020, "Apollo: An adaptive parameter-wise diagonal quasi-Newton method for nonconvex stochastic optimization" (arXiv
2009.13586), Algorithm 1; the two bounds, the warm-up and the kinds of weight decay are the authors' code.
"""

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep

REBOUNDS, DECAYS = ("constant", "belief"), ("l2", "decoupled", "stable")
_BOUND = 0.01  # the least that a mean gradient is divided by, with the constant rebound


class Apollo(OneStep):
    """w[k+1] = w[k] - lr d[k+1], with d[k+1] = m[k+1] / max(|B[k+1]|, bound), for each tensor by itself.

    m is the mean gradient, corrected for its start at 0: m[k+1] = m[k] + a y, with y = g[k] - m[k] and a = (1 - beta) /
    (1 - beta^(k+1)). The diagonal B follows from the weak secant condition along the last direction: with u = d[k] /
    (|d[k]|_4 + eps'), B[k+1] = B[k] - (a <y, u> / (|d[k]|_4 + eps') + <B[k], u^2>) u^2.

    Args:
        params: parameters or parameter groups, real.
        lr: rate after the warm-up.
        init_lr: >= 0: rate of the first update, or lr if that is less; None: lr / 1000.
        beta: in [0, 1): share of the last mean gradient that is kept.
        eps: > 0: see `rebound`.
        rebound: "constant": the bound is 0.01 and eps' is eps / 0.01; "belief": the bound is the largest |y| of the
            tensor, eps / a is added to what m is divided by, and eps' is eps.
        warmup_steps: updates over which the rate rises evenly from `init_lr` to `lr`, as its group has it at the time;
            the authors' code goes up to the constructor's rate.
        weight_decay: share of the weights that is added: to the gradient or to the direction.
        weight_decay_type: "l2": to the gradient; "decoupled": to d[k+1]; "stable": to d[k+1], divided by the mean of
            what m is divided by.
        maximize, foreach: as in torch.

    Raises: as in `OneStep`.
    """

    name = "apollo"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 0.01, *, init_lr: float | None = None, beta: float = 0.9,
        eps: float = 1e-4, rebound: str = "constant", warmup_steps: int = 500, weight_decay_type: str = "l2",
        **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        settings = {
            "init_lr": init_lr, "beta": beta, "eps": eps, "rebound": rebound, "warmup_steps": warmup_steps,
            "weight_decay_type": weight_decay_type,
        }  # fmt: skip
        super().__init__(params, lr, settings, **common)

    def is_decoupled(self, group: dict[str, Any]) -> bool:
        return group["weight_decay_type"] != "l2"

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state.update(step=0, mean=torch.zeros_like(p), hessian=torch.zeros_like(p), update=torch.zeros_like(p))
            state["step"] += 1
        means, hessians, updates = ([state[key] for state in states] for key in ("mean", "hessian", "update"))
        shares = [(1 - group["beta"]) / (1 - group["beta"] ** state["step"]) for state in states]
        is_belief = group["rebound"] == "belief"

        changes = torch._foreach_sub(grads, means)
        torch._foreach_lerp_(means, grads, shares)
        wide = [d.to(torch.promote_types(d.dtype, torch.float32)) for d in updates]  # float16's squares soon overflow
        squares = torch._foreach_mul(wide, wide)
        sizes = torch._foreach_sqrt(torch._foreach_norm(squares))  # |d|_4; torch's own takes a power of each number
        torch._foreach_add_(sizes, group["eps"] if is_belief else group["eps"] / _BOUND)
        for y, b, d, square, size, share in zip(changes, hessians, wide, squares, sizes, shares, strict=True):
            square.div_(size**2)
            exact = b.to(square.dtype)  # b itself, but for halves, which a large factor of small squares is beyond
            b.copy_(exact.addcmul_(square, -(share * _dot(y, d) / size**2 + _dot(b, square))))

        divisors = list(torch._foreach_abs(hessians))
        if is_belief:
            largest = [y.abs().amax() if y.numel() else y.new_zeros(()) for y in changes]
            torch._foreach_maximum_(divisors, largest)
            torch._foreach_add_(divisors, [group["eps"] / share for share in shares])
        else:
            torch._foreach_clamp_min_(divisors, _BOUND)
        torch._foreach_copy_(updates, means)
        torch._foreach_div_(updates, divisors)
        if group["weight_decay"] and self.is_decoupled(group):
            is_stable = group["weight_decay_type"] == "stable"
            for p, d, divisor in zip(params, updates, divisors, strict=True):
                d.add_(p * (group["weight_decay"] / divisor.mean()) if is_stable else p * group["weight_decay"])
        for p, d, state in zip(params, updates, states, strict=True):
            p.add_(d, alpha=-self._rate(group, lr, state["step"] - 1))

    def _rate(self, group: dict[str, Any], lr: float, done: int) -> float:
        """The rate of an update, after `done` others."""
        if done >= group["warmup_steps"]:
            return lr
        first: float = lr / 1000 if group["init_lr"] is None else min(group["init_lr"], lr)
        return first + (lr - first) * done / group["warmup_steps"]

    def check(self, group: dict[str, Any]) -> None:
        if not 0 <= group["beta"] < 1:
            self.refuse(f"beta must be in [0, 1), got {group['beta']}")
        if not 0 < group["eps"] < float("inf"):
            self.refuse(f"eps must be > 0 and finite, got {group['eps']}")
        if group["init_lr"] is not None and not 0 <= group["init_lr"] < float("inf"):
            self.refuse(f"init_lr must be >= 0 and finite, or None, got {group['init_lr']}")
        if type(group["warmup_steps"]) is not int or group["warmup_steps"] < 0:
            self.refuse(f"warmup_steps must be a whole number >= 0, got {group['warmup_steps']}")
        for key, choices in (("rebound", REBOUNDS), ("weight_decay_type", DECAYS)):
            if group[key] not in choices:
                self.refuse(f"{key} must be one of {', '.join(choices)}, got {group[key]!r}")


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, in the type of y."""
    return torch.dot(x.to(y.dtype).reshape(-1), y.reshape(-1))
