"""TM-SGD: gradient descent by the four-point Taylor difference, after a beginning as plain SGD.

The paper's eq. 8, W[k+1] = 1.5 W[k] - W[k-1] + 0.5 W[k-2] - lr g[k], is the member c = 1/2 of a
one-parameter family of second-order formulas, which is kept here in its step form

    d[k+1] = (3c-1) d[k] - c d[k-1] - (2-2c) lr g[k],    W[k+1] = W[k] + d[k+1],    d[k] = W[k] - W[k-1]

which rounds less, and makes cold starts and checkpoints explicit. The paper's is stable for
lr * curvature < 1, half of what SGD tolerates; c = 1/3 is stable up to 2, as SGD is.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from .fused import Coefficients, fused_update, no_kernel, odd_layout

HISTORIES = ("true", "zero")


def multistep_update(
    params: list[Tensor],
    grads: list[Tensor],
    differences: list[list[Tensor]],
    factors: Sequence[float],
    rate: float,
    foreach: bool,
) -> None:
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


class SGDThenMultistep(torch.optim.Optimizer):
    """SGD until `switch_step`, then the formula of the subclass: what TMSGD and MultistepSGD share.

    A subclass gives `step_form`, and adds its own checks to `_check`. All else, that is
    torch's SGD direction, the switch, the history of differences and the decay, is here.

    No `capturable`: the switch is a branch in Python and the history moves by renaming buffers, so a
    captured CUDA graph would replay one phase on the wrong buffers. No `differentiable`: the history
    is updated in place, which autograd cannot follow.
    """

    name: str  # how messages call it
    _by_rows = False  # whether a sparse gradient has come; their rows in motion are then in the state as `live`

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        """The factors of d[k], d[k-1], ... and the factor b of lr g[k], after the switch."""
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._by_rows = any("live" in own for own in self.state.values())
        for group in self.param_groups:  # a checkpoint from before a setting existed
            for key in self.defaults.keys() - {"differentiable"}:  # which torch has just added to the defaults
                group.setdefault(key, self.defaults[key])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but a state whose shapes are not these parameters' in their order is refused.

        Raises:
            ValueError: names the first parameter that does not fit; nothing has changed then.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for place, (p, i) in enumerate(zip(params, saved, strict=False)):  # torch itself compares the counts
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor) and key != "live" and value.shape != p.shape:
                    raise ValueError(
                        f"{self.name}: the state is of other parameters or another order: parameter {place} has shape "
                        f"{tuple(p.shape)}, its saved {key} has {tuple(value.shape)}"
                    )
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.pop("live", None)  # torch has made it a parameter's type; the differences tell it again

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group that joins later counts its steps with the others, so all switch together."""
        if self.param_groups:
            param_group = {"step": self.param_groups[0]["step"], **param_group}
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def before_switch(self) -> dict[str, Any]:
        """The state_dict that torch's SGD with these settings would have in our place, up to the switch."""
        keys = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize", "foreach", "fused", "initial_lr")
        groups = [{key: group[key] for key in ("params", *keys) if key in group} for group in self.param_groups]
        sgd = torch.optim.SGD(groups)
        for p, state in self.state.items():
            if "momentum_buffer" in state:
                sgd.state[p]["momentum_buffer"] = state["momentum_buffer"]
        return sgd.state_dict()

    def start_after(
        self, steps: int, state_dict: dict[str, Any], recorded: Sequence[Sequence[tuple[int, Tensor]]] = ()
    ) -> None:
        """Goes on from where torch's SGD with the same settings came to, bitwise as if it had been us.

        Args:
            steps: how many steps SGD did, at most `switch_step`.
            state_dict: SGD's, of these parameters in this order.
            recorded: for each parameter, newest first, (number of the step, counted from 0; what that step added).
        """
        order = [p for group in self.param_groups for p in group["params"]]
        for group, before in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["step"] = steps
            group.update({key: before[key] for key in ("lr", "initial_lr") if key in before})
        for place, state in state_dict["state"].items():
            if state.get("momentum_buffer") is not None:
                self.state[order[place]]["momentum_buffer"] = state["momentum_buffer"].to(order[place], copy=True)
        for group in self.param_groups:
            names, switch = difference_names(len(self.step_form(group)[0])), group["switch_step"]
            if switch is None or group["history"] != "true":
                continue
            places = {p: place for place, p in enumerate(order)}
            for p in group["params"] if recorded else ():
                own = [d for step, d in recorded[places[p]] if step >= switch - len(names)]
                for name, d in zip(names, own, strict=False):
                    self.state[p][name] = d.to(p, copy=True)
                if own:  # zeros where there was none yet
                    self._differences([p], names)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step; returns the closure's loss, if there is a closure to evaluate first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:
            dense: list[Tensor] = []
            sparse: list[Tensor] = []
            for p in group["params"]:
                if p.grad is not None:
                    (sparse if p.grad.is_sparse else dense).append(p)
            for p in sparse:
                self._check_sparse(group, p)  # before any weight has moved
            work.append((group, dense, sparse))
        for group, dense, sparse in work:
            if dense:
                for p in dense if self._by_rows else ():
                    self.state.get(p, {}).pop("live", None)  # all of its rows move now
                self._step_group(group, dense)
            for p in sparse:
                self._step_rows(group, p)
            group["step"] += 1
        return loss

    def _check_sparse(self, group: dict[str, Any], p: Tensor) -> None:
        assert p.grad is not None
        if group["momentum"] != 0 or group["weight_decay"] != 0:
            got = f"momentum {group['momentum']}, weight_decay {group['weight_decay']}"
            raise RuntimeError(
                f"{self.name}: sparse gradients need momentum 0 and weight_decay 0, with which rows without a gradient "
                f"stay where they are; got {got}: build the embedding with sparse=False"
            )
        if p.grad.sparse_dim() != 1:
            raise RuntimeError(
                f"{self.name}: expected sparse gradients of whole rows, as of nn.Embedding(sparse=True), "
                f"got {p.grad.sparse_dim()} sparse dimensions"
            )

    def _step_rows(self, group: dict[str, Any], p: Tensor) -> None:
        """Steps the rows that have a gradient or are still moving.

        A row's differences shrink by sqrt(c) a step once it has no gradient. It rests when they can't change its
        weights any more, which in float32 takes some 30 steps (until they are exactly 0: 280). Resting weights
        are those of the dense path, bit for bit; its next gradient finds no history in place of such a small one.
        """
        assert p.grad is not None
        lr, grad, state = _number(group["lr"]), p.grad.coalesce(), self.state[p]
        rows, grad_RD = grad.indices()[0], grad.values()
        grad_RD = -grad_RD if group["maximize"] else grad_RD
        factors, b = self.step_form(group)
        names = difference_names(len(factors))
        acts, recording = _phase(group, names)
        if not names or not (acts or recording):
            moved_RD = p[rows].add_(grad_RD, alpha=-lr * (b if acts else 1))
            p.index_copy_(0, rows, moved_RD)
            return
        known = [d for (d,) in self._differences([p], names)]
        self._by_rows = True
        if "live" not in state:
            state["live"] = _moving(p, known, factors)
        state["live"][rows] = True
        live = state["live"].nonzero()[:, 0]
        weights_LD, grads_LD = p[live], p.new_zeros(len(live), *p.shape[1:])
        grads_LD.index_copy_(0, torch.searchsorted(live, rows), grad_RD)
        differences = [[state[name][live]] for name in names]
        if acts:
            multistep_update([weights_LD], [grads_LD], differences, factors, b * lr, foreach=False)
        else:
            before_LD = weights_LD.clone()
            torch.sub(weights_LD.add_(grads_LD, alpha=-lr), before_LD, out=differences[-1][0])
        p.index_copy_(0, live, weights_LD)
        state[names[-1]].index_copy_(0, live, differences[-1][0])
        state["live"][live] = _moving(weights_LD, [d for (d,) in differences], factors)
        self._rotate([p], names)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, foreach = _number(group["lr"]), group["foreach"] is not False
        factors, b = self.step_form(group)
        names = difference_names(len(factors))
        acts, recording = _phase(group, names)
        if acts and group["fused"]:
            params = self._fused_step(group, params, factors, b * lr)
            if not params:
                return
        direction = [] if group["fused"] and not acts else self._direction(group, params, foreach)
        _decay(group, params, lr, foreach)
        if acts:
            multistep_update(params, direction, self._differences(params, names), factors, b * lr, foreach)
            self._rotate(params, names)
            return
        before = [p.clone() for p in params] if recording else []
        if group["fused"]:
            self._fused_sgd(group, params, lr)
        else:
            add_(params, direction, -lr, foreach)
        if recording:
            oldest = self._differences(params, names)[-1]
            for d, p, w in zip(oldest, params, before, strict=True):
                # The weights' own difference, not -lr direction: what anybody who sees the weights can tell.
                torch.sub(p, w, out=d)
            self._rotate(params, names)

    def _fused_step(
        self, group: dict[str, Any], params: list[Tensor], factors: Sequence[float], rate: float
    ) -> list[Tensor]:
        """Steps by a kernel the parameters that it can step; returns the others."""
        names, keeps = difference_names(len(factors)), group["momentum"] != 0
        lr, decay, decoupled = _number(group["lr"]), group["weight_decay"], group["decoupled"]
        batches: dict[Any, list[list[Tensor]]] = {}
        left = []
        for p in params:  # once through all, which is what a step of many small tensors costs
            state = self.state[p]
            fresh = keeps and "momentum_buffer" not in state
            if fresh:
                state["momentum_buffer"] = torch.zeros_like(p)
            if names and names[-1] not in state:
                self._differences([p], names)
            row = [p, p.grad, *([state["momentum_buffer"]] if keeps else ()), *(state[name] for name in names)]
            kind = p.device, p.dtype, fresh
            batch = batches.get(kind)
            if why := (batch is None and no_kernel(p, len(names))) or odd_layout(row):
                _say_once(f"{self.name}: fused: {why}; foreach is used for such parameters")
                if fresh:
                    del state["momentum_buffer"]
                left.append(p)
                continue
            if batch is None:
                batch = batches[kind] = []
            batch.append(row)
            if names:  # what is written over the oldest becomes the newest
                state.update(zip(names, (row[-1], *row[-len(names) : -1]), strict=True))
        for (*_, fresh), rows in batches.items():
            by = Coefficients(
                factors, rate,
                sign=-1.0 if group["maximize"] else 1.0,
                decay=0.0 if decoupled else decay,
                momentum=group["momentum"],
                fresh=1.0 if fresh else 1 - group["dampening"],  # the first gradient is not dampened, in torch
                nesterov=group["nesterov"],
                shrink=1 - lr * decay if decoupled else 1.0,
            )  # fmt: skip
            fused_update(rows, by, buffered=keeps)
        return left

    def _fused_sgd(self, group: dict[str, Any], params: list[Tensor], lr: float) -> None:
        """torch's own fused SGD, which is what we are until the switch."""
        fresh = [p for p in params if self.state[p].get("momentum_buffer") is None]
        known = [p for p in params if self.state[p].get("momentum_buffer") is not None]
        for some in filter(None, (fresh, known)):  # torch expects that all have a buffer, or none
            buffers = [self.state[p].get("momentum_buffer") for p in some]
            sgd(
                some, [p.grad for p in some], buffers, fused=True,  # type: ignore[misc]
                lr=lr, momentum=group["momentum"], dampening=group["dampening"], nesterov=group["nesterov"],
                weight_decay=0.0 if group["decoupled"] else group["weight_decay"], maximize=group["maximize"],
            )  # fmt: skip
            if group["momentum"] != 0:
                for p, buffer in zip(some, buffers, strict=True):
                    self.state[p]["momentum_buffer"] = buffer

    def _direction(self, group: dict[str, Any], params: list[Tensor], foreach: bool) -> list[Tensor]:
        """torch's SGD direction, operation by operation; gradients stay as they are."""
        momentum = group["momentum"]
        direction: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
        if group["maximize"]:
            direction = [-g for g in direction]
        if group["weight_decay"] != 0 and not group["decoupled"]:
            direction = add(direction, params, group["weight_decay"], foreach)
        if momentum == 0:
            return direction
        known = [(self.state[p], g) for p, g in zip(params, direction, strict=True)]
        fresh = [(state, g) for state, g in known if state.get("momentum_buffer") is None]
        known = [(state, g) for state, g in known if state.get("momentum_buffer") is not None]
        if known:
            buffers = [state["momentum_buffer"] for state, _ in known]
            mul_(buffers, momentum, foreach)
            add_(buffers, [g for _, g in known], 1 - group["dampening"], foreach)
        for state, g in fresh:  # the first gradient is not dampened, in torch
            state["momentum_buffer"] = g.clone()
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        return add(direction, buffers, momentum, foreach) if group["nesterov"] else buffers

    def _differences(self, params: list[Tensor], names: Sequence[str]) -> list[list[Tensor]]:
        """The last differences of each parameter, newest first; zeros where there are none yet."""
        for p in params:
            for name in names:
                if name not in self.state[p]:
                    self.state[p][name] = torch.zeros_like(p)
        return [[self.state[p][name] for p in params] for name in names]

    def _rotate(self, params: list[Tensor], names: Sequence[str]) -> None:
        """What was written over the oldest becomes the newest."""
        for state in (self.state[p] for p in params):
            *newer, oldest = [state[name] for name in names] or [None]
            state.update(zip(names, [oldest, *newer], strict=False))

    def _check(self, group: dict[str, Any]) -> None:
        lr, switch = group["lr"], group["switch_step"]
        if group["foreach"] and group["fused"]:
            raise ValueError(f"{self.name}: expected one of foreach and fused, got both")
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"{self.name}: lr must be a number or a tensor of one, got shape {tuple(lr.shape)}")
        if not 0 <= lr < float("inf"):
            raise ValueError(f"{self.name}: lr must be >= 0 and finite, got {lr}")
        for key in ("momentum", "dampening"):
            if not 0 <= group[key] < 1:
                raise ValueError(f"{self.name}: {key} must be in [0, 1), got {group[key]}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            got = f"momentum {group['momentum']} and dampening {group['dampening']}"
            raise ValueError(f"{self.name}: nesterov needs momentum > 0 and dampening 0, got {got}")
        if not 0 <= group["weight_decay"] < float("inf"):
            raise ValueError(f"{self.name}: weight_decay must be >= 0 and finite, got {group['weight_decay']}")
        if switch is not None and (not isinstance(switch, int) or isinstance(switch, bool) or switch < 0):
            raise ValueError(f"{self.name}: switch_step must be a whole number >= 0 or None (never), got {switch!r}")
        if group["history"] not in HISTORIES:
            raise ValueError(f"{self.name}: history must be one of {', '.join(HISTORIES)}, got {group['history']!r}")
        if any(p.is_complex() for p in group["params"]):
            raise ValueError(f"{self.name}: complex parameters are not supported; use their real view")


class TMSGD(SGDThenMultistep):
    """SGD until `switch_step`, then the Taylor multi-step method (eq. 8); with `momentum`, TM-SGD-M.

    Before the switch it is `torch.optim.SGD` with the same settings, bit for bit. From the switch on,
    torch's direction (gradient, plus `weight_decay` times the weights, through the momentum buffer,
    which is kept) takes the place of g in eq. 8; the paper prints no formula for TM-SGD-M, this is ours.

    Args:
        params: parameters or parameter groups, as in `torch.optim.SGD`. Real. Gradients of whole rows, as of
            `nn.Embedding(sparse=True)`, are stepped by rows, as if they were dense, without momentum and decay.
        lr: learning rate, a number or a tensor of one, which is read as a number in every step;
            TM is stable for lr * curvature < 1 (momentum 0.9: < 0.5008); see `stability`.
        momentum: in [0, 1); PyTorch's convention, v = momentum v + (1 - dampening) g.
        dampening: in [0, 1); the first gradient is not dampened, as in torch.
        nesterov: direction g + momentum v in place of v.
        weight_decay: L2 penalty, added to the gradient.
        decoupled: weight decay as in AdamW: every step first multiplies the weights by
            1 - lr weight_decay. This shrink is no part of d: W[k+1] = (1 - lr weight_decay) W[k] + d[k+1].
        c: member of the family, in (0, 1): 1/2 is the paper's, 1/3 the most stable (lr * curvature < 2).
        switch_step: number of SGD steps before TM; 0 is TM from the first step, None is never.
        history: "true" starts TM from the last two differences of SGD's weights (taken after the shrink of
            `decoupled`, which is no part of them).
            "zero" starts from zeros (a cold start, which overshoots by half a step at first).
        maximize: ascend instead.
        foreach: update all tensors of a group at once (the default), or one by one.
        fused: update by one kernel in a single pass: after the switch ours (in C on the CPU: float32, float64; in
            Triton on CUDA: float32, bfloat16, float16), before it torch's, as `torch.optim.SGD(fused=True)`. Where
            it can't, it warns and takes foreach. All three paths stay within 2e-6 of the largest weight of a float64
            run (float32, 40 noisy steps).

    A parameter whose gradient is None in a step keeps its weight and its history in that step.

    Raises:
        ValueError: an argument out of its range, of any group, or a complex parameter.
        RuntimeError: a sparse gradient, together with momentum or weight decay; no weight has moved then.
    """

    name = "tmsgd"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.0,
        *,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        c: float = 0.5,
        switch_step: int | None = 0,
        history: str = "true",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov,
            "weight_decay": weight_decay, "decoupled": decoupled, "c": c, "switch_step": switch_step,
            "history": history, "maximize": maximize, "foreach": foreach, "fused": fused, "step": 0,
        }  # fmt: skip
        super().__init__(params, defaults)

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        c = group["c"]
        return (3 * c - 1, -c), 2 - 2 * c

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if not 0 < group["c"] < 1:
            raise ValueError(f"tmsgd: c must be in (0, 1), where the family is zero-stable, got {group['c']}")


def _moving(weights: Tensor, differences: list[Tensor], factors: Sequence[float]) -> Tensor:
    """Which rows will still change without a gradient; shape (rows,)."""
    # Below half a unit in the last place, and no later difference will be larger than these.
    share = torch.finfo(weights.dtype).eps / 8 if sum(map(abs, factors)) <= 1 else 0.0
    least = weights.abs() * share
    return torch.stack([(d.abs() > least).flatten(1).any(1) for d in differences]).any(0)


def difference_names(count: int) -> list[str]:
    """The state's keys of the last `count` differences, newest first: d, d_before, d_before_2, ..."""
    return ["d", "d_before", *(f"d_before_{i}" for i in range(2, count))][:count]


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


def _phase(group: dict[str, Any], names: Sequence[str]) -> tuple[bool, bool]:
    """Whether the formula acts in this step; whether the step is one of the history that it will begin with."""
    switch, step = group["switch_step"], group["step"]
    if switch is None:
        return False, False
    soon = bool(names) and step >= switch - len(names) and group["history"] == "true"
    return step >= switch, soon and step < switch


def _decay(group: dict[str, Any], params: list[Tensor], lr: float, foreach: bool) -> None:
    """The shrink of `decoupled`."""
    if group["decoupled"] and group["weight_decay"] != 0:
        mul_(params, 1 - lr * group["weight_decay"], foreach)


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _number(lr: float | Tensor) -> float:
    """Foreach operations take numbers alone; float() of a tensor that requires a gradient would warn."""
    return lr.item() if isinstance(lr, Tensor) else lr
