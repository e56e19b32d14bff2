"""TM-SGD: gradient descent by the four-point Taylor difference, after a beginning as plain SGD.

The paper's eq. 8, W[k+1] = 1.5 W[k] - W[k-1] + 0.5 W[k-2] - lr g[k], is kept here in its step form

    d[k+1] = 0.5 d[k] - 0.5 d[k-1] - lr g[k],    W[k+1] = W[k] + d[k+1],    d[k] = W[k] - W[k-1]

which rounds less, and makes cold starts and checkpoints explicit. Stable for lr * curvature < 1,
half of what SGD tolerates.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd

HISTORIES = ("true", "zero")


def tm_update(
    params: list[Tensor], grads: list[Tensor], d: list[Tensor], d_before: list[Tensor], lr: float, foreach: bool
) -> None:
    """One step of eq. 8, in place: `params` move by d[k+1], which replaces d[k-1] in `d_before`.

    Shapes: the four lists correspond item by item. The caller swaps `d` and `d_before` afterwards.
    """
    if foreach:
        torch._foreach_mul_(d_before, -0.5)
        torch._foreach_add_(d_before, d, alpha=0.5)
        torch._foreach_add_(d_before, grads, alpha=-lr)
        torch._foreach_add_(params, d_before)
    else:
        for w, g, d1, d2 in zip(params, grads, d, d_before, strict=True):
            w.add_(d2.mul_(-0.5).add_(d1, alpha=0.5).add_(g, alpha=-lr))


class TMSGD(torch.optim.Optimizer):
    """SGD until `switch_step`, then the Taylor multi-step method (eq. 8); with `momentum`, TM-SGD-M.

    Before the switch it is `torch.optim.SGD` with the same momentum and weight decay, bit for bit.
    From the switch on, the direction (gradient, plus `weight_decay` times the weights, through the
    momentum buffer) takes the place of g in eq. 8; the paper prints no formula for TM-SGD-M, this
    is ours.

    Args:
        params: parameters or parameter groups, as in `torch.optim.SGD`. Real and dense.
        lr: learning rate; TM is stable for lr * curvature < 1 (momentum 0.9: < 0.5008).
        momentum: in [0, 1); PyTorch's convention, v = momentum v + g.
        weight_decay: L2 penalty, added to the gradient.
        switch_step: number of SGD steps before TM; 0 is TM from the first step, None is never.
        history: "true" starts TM from the last two differences of the SGD weights,
            "zero" from zeros (a cold start, which overshoots by half a step at first).
        maximize: ascend instead.
        foreach: update all tensors of a group at once (the default), or one by one.

    A parameter whose gradient is None in a step keeps its weight and its history in that step.

    Raises:
        ValueError: an argument out of its range, of any group, or a complex parameter.
        RuntimeError: a sparse gradient; no weight has moved then.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        switch_step: int | None = 0,
        history: str = "true",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "switch_step": switch_step,
            "history": history, "maximize": maximize, "foreach": foreach, "step": 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group that joins later counts its steps with the others, so all switch together."""
        if self.param_groups:
            param_group = {"step": self.param_groups[0]["step"], **param_group}
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step; returns the closure's loss, if there is a closure to evaluate first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is not None and p.grad.is_sparse:  # before any weight has moved
                raise RuntimeError("tmsgd: sparse gradients are not supported; build the embedding with sparse=False")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            switch, step = group["switch_step"], group["step"]
            if switch is not None and step >= switch:
                self._tm_step(group, params)
            elif switch is not None and step >= switch - 2 and group["history"] == "true":
                before = [p.clone() for p in params]
                self._sgd_step(group, params)
                self._remember(params, before)
            else:
                self._sgd_step(group, params)
            group["step"] = step + 1
        return loss

    def _sgd_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        torch_sgd(
            params, [p.grad for p in params], buffers,  # type: ignore[misc]
            has_sparse_grad=False, foreach=group["foreach"] is not False, weight_decay=group["weight_decay"],
            momentum=group["momentum"], lr=group["lr"], dampening=0.0, nesterov=False, maximize=group["maximize"],
        )  # fmt: skip
        if group["momentum"] != 0:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _remember(self, params: list[Tensor], before: list[Tensor]) -> None:
        for p, w in zip(params, before, strict=True):
            state = self.state[p]
            state["d_before"] = state.get("d", torch.zeros_like(p))
            state["d"] = torch.sub(p, w, out=w)

    def _tm_step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "d" not in state:
                state["d"], state["d_before"] = torch.zeros_like(p), torch.zeros_like(p)
        foreach = group["foreach"] is not False
        direction = self._direction(group, params, states)
        d, d_before = [s["d"] for s in states], [s["d_before"] for s in states]
        if params:
            tm_update(params, direction, d, d_before, group["lr"], foreach)
        for state in states:
            state["d"], state["d_before"] = state["d_before"], state["d"]

    def _direction(self, group: dict[str, Any], params: list[Tensor], states: list[dict[str, Any]]) -> list[Tensor]:
        """What eq. 8 takes for g: torch's SGD direction; gradients stay as they are."""
        direction: list[Tensor] = []
        momentum, decay = group["momentum"], group["weight_decay"]
        for p, state in zip(params, states, strict=True):
            assert p.grad is not None
            g = -p.grad if group["maximize"] else p.grad
            if decay != 0:
                g = g.add(p, alpha=decay)
            if momentum != 0:
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = g.detach().clone()
                else:
                    state["momentum_buffer"].mul_(momentum).add_(g)
                g = state["momentum_buffer"]
            direction.append(g)
        return direction


def _check_group(group: dict[str, Any]) -> None:
    lr, momentum, weight_decay, switch = (group[k] for k in ("lr", "momentum", "weight_decay", "switch_step"))
    if not 0 <= lr < float("inf"):
        raise ValueError(f"tmsgd: lr must be >= 0 and finite, got {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"tmsgd: momentum must be in [0, 1), got {momentum}")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"tmsgd: weight_decay must be >= 0 and finite, got {weight_decay}")
    if switch is not None and (not isinstance(switch, int) or isinstance(switch, bool) or switch < 0):
        raise ValueError(f"tmsgd: switch_step must be a whole number >= 0 or None (never), got {switch!r}")
    if group["history"] not in HISTORIES:
        raise ValueError(f"tmsgd: history must be one of {', '.join(HISTORIES)}, got {group['history']!r}")
    if any(p.is_complex() for p in group["params"]):
        raise ValueError("tmsgd: complex parameters are not supported; use their real view")
