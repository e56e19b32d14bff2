"""The parts of a step: SGD's direction as torch computes it, any explicit multistep formula, and their arithmetic."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = Mapping[Tensor, dict[str, Any]]  # an optimizer's state: what it keeps for each parameter


def multistep_update(
    params: list[Tensor], grads: list[Tensor], differences: list[list[Tensor]], factors: Sequence[float], rate: float,
    foreach: bool,
) -> None:  # fmt: skip
    """One step in place: `params` move by the new difference, which replaces the oldest; eq. 8 with (0.5, -0.5), lr.

    Shapes: `differences` holds one list for each of `factors`, newest first; all lists correspond item by item.
    The caller renames the differences afterwards.
    """
    if not differences:  # Euler
        add_(params, grads, -rate, foreach)
        return
    *newer, oldest = differences
    mul_(oldest, factors[-1], foreach)
    for factor, d in zip(factors[:-1], newer, strict=True):
        add_(oldest, d, factor, foreach)
    add_(oldest, grads, -rate, foreach)
    add_(params, oldest, 1, foreach)


def decay(group: dict[str, Any], params: list[Tensor], lr: float, foreach: bool) -> None:
    """The shrink that `decoupled` weight decay does before a step."""
    if group["decoupled"] and group["weight_decay"] != 0:
        mul_(params, 1 - lr * group["weight_decay"], foreach)


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


def difference_names(count: int) -> list[str]:
    """The state's keys of the last `count` differences, newest first: d, d_before, d_before_2, ..."""
    return ["d", "d_before", *(f"d_before_{i}" for i in range(2, count))][:count]


def differences_of(state: State, params: list[Tensor], names: Sequence[str]) -> list[list[Tensor]]:
    """The last differences of each parameter, newest first; zeros where there are none yet."""
    for p in params:
        for name in names:
            if name not in state[p]:
                state[p][name] = torch.zeros_like(p)
    return [[state[p][name] for p in params] for name in names]


def rotate(states: Iterable[dict[str, Any]], names: Sequence[str]) -> None:
    """Renames the differences of each parameter after a step: what was written over the oldest becomes the newest."""
    for state in states:
        *newer, oldest = [state[name] for name in names] or [None]
        state.update(zip(names, [oldest, *newer], strict=False))


def phase(group: dict[str, Any], names: Sequence[str]) -> tuple[bool, bool]:
    """Whether the formula acts in this step; whether the step is one of the history that it will begin with."""
    switch, step = group["switch_step"], group["step"]
    if switch is None:
        return False, False
    soon = bool(names) and step >= switch - len(names) and group["history"] == "true"
    return step >= switch, soon and step < switch


def summed(grad: Tensor) -> Tensor:
    """A sparse gradient with each row once; a row's sum is added up in the order of the batch, whatever else is in it.

    `coalesce` adds in an order that depends on how many rows there are.
    """
    if grad.is_coalesced():
        return grad
    rows_R, of_row = torch.unique(grad._indices()[0], return_inverse=True)
    values = grad._values().new_zeros(len(rows_R), *grad.shape[1:]).index_add_(0, of_row, grad._values())
    return torch.sparse_coo_tensor(rows_R[None], values, grad.shape, is_coalesced=True, check_invariants=False)


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of a step's closure, with its gradients; None if there is no closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def as_number(lr: float | Tensor) -> float:
    """Foreach operations take numbers alone; float() of a tensor that requires a gradient would warn."""
    return lr.item() if isinstance(lr, Tensor) else lr


def add(xs: list[Tensor], ys: list[Tensor], factor: float, foreach: bool) -> list[Tensor]:
    if foreach:
        return list(torch._foreach_add(xs, ys, alpha=factor))
    return [x.add(y, alpha=factor) for x, y in zip(xs, ys, strict=True)]


def add_(xs: list[Tensor], ys: list[Tensor], factor: float, foreach: bool) -> None:
    if foreach:
        torch._foreach_add_(xs, ys, alpha=factor)
    else:
        for x, y in zip(xs, ys, strict=True):
            x.add_(y, alpha=factor)


def mul_(xs: list[Tensor], factor: float, foreach: bool) -> None:
    if foreach:
        torch._foreach_mul_(xs, factor)
    else:
        for x in xs:
            x.mul_(factor)
