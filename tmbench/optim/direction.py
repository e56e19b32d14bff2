"""torch's SGD up to where the weights move: the decay, and the direction that takes the gradient's place."""

from typing import Any

from torch import Tensor
from torch.optim.sgd import sgd

from .formula import State, add, add_, mul_


def decay(group: dict[str, Any], params: list[Tensor], lr: float, foreach: bool) -> None:
    """The shrink that `decoupled` weight decay does before a step."""
    if group["decoupled"] and group["weight_decay"] != 0:
        mul_(params, 1 - lr * group["weight_decay"], foreach)


def fused_sgd(state: State, group: dict[str, Any], params: list[Tensor], lr: float) -> None:
    """One step of torch's own fused SGD, which serves until the switch."""
    fresh = [p for p in params if state[p].get("momentum_buffer") is None]
    known = [p for p in params if state[p].get("momentum_buffer") is not None]
    for some in filter(None, (fresh, known)):  # torch expects that all have a buffer, or none
        buffers = [state[p].get("momentum_buffer") for p in some]
        sgd(
            some, [p.grad for p in some], buffers, fused=True,  # type: ignore[misc]
            lr=lr, momentum=group["momentum"], dampening=group["dampening"], nesterov=group["nesterov"],
            weight_decay=0.0 if group["decoupled"] else group["weight_decay"], maximize=group["maximize"],
        )  # fmt: skip
        if group["momentum"] != 0:
            for p, buffer in zip(some, buffers, strict=True):
                state[p]["momentum_buffer"] = buffer


def direction_of(state: State, group: dict[str, Any], params: list[Tensor], foreach: bool) -> list[Tensor]:
    """torch's SGD direction, operation by operation; gradients stay as they are."""
    momentum = group["momentum"]
    direction: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
    if group["maximize"]:
        direction = [-g for g in direction]
    if group["weight_decay"] != 0 and not group["decoupled"]:
        direction = add(direction, params, group["weight_decay"], foreach)
    if momentum == 0:
        return direction
    pairs = [(state[p], g) for p, g in zip(params, direction, strict=True)]
    fresh = [(s, g) for s, g in pairs if s.get("momentum_buffer") is None]
    known = [(s, g) for s, g in pairs if s.get("momentum_buffer") is not None]
    if known:
        buffers = [s["momentum_buffer"] for s, _ in known]
        mul_(buffers, momentum, foreach)
        add_(buffers, [g for _, g in known], 1 - group["dampening"], foreach)
    for s, g in fresh:  # the first gradient is not dampened, in torch
        s["momentum_buffer"] = g.clone()
    buffers = [state[p]["momentum_buffer"] for p in params]
    return add(direction, buffers, momentum, foreach) if group["nesterov"] else buffers
