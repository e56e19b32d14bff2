"""SGD until a step, then a formula with one gradient a step: what our optimizers share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from .formula import (
    as_number,
    decay,
    difference_names,
    differences_of,
    direction_of,
    evaluated,
    multistep_update,
    phase,
    rotate,
)
from .fused import fused_sgd, fused_step
from .rows import LazyRows

HISTORIES = ("true", "zero")


class SGDSettings(TypedDict, total=False):
    """The keyword arguments that every subclass of SGDThenFormula takes in addition to its own."""

    dampening: float
    nesterov: bool
    weight_decay: float
    decoupled: bool
    switch_step: int | None
    maximize: bool
    foreach: bool | None
    fused: bool | None


class SGDThenFormula(torch.optim.Optimizer):
    """SGD until `switch_step`, then the formula of the subclass, which gives `step_form` and adds to `_check`.

    Before the switch it is `torch.optim.SGD` with the same settings, bit for bit. From the switch on, torch's direction
    (gradient, plus `weight_decay` times the weights, through the momentum buffer, which is kept) takes the place of g
    in the formula. A parameter whose gradient is None in a step keeps its weight and its history in that step.

    Args:
        params: parameters or parameter groups, as in `torch.optim.SGD`. Real. An embedding that
            `attach` is given may have sparse gradients, and is stepped by the rows that they have.
        formula: the settings of the subclass, which become keys of each group.
        lr: learning rate, a number or a tensor of one, which is read as a number in every step.
        momentum: in [0, 1); PyTorch's convention, v = momentum v + (1 - dampening) g.
        dampening: in [0, 1); the first gradient is not dampened, as in torch.
        nesterov: direction g + momentum v in place of v.
        weight_decay: L2 penalty, added to the gradient.
        decoupled: weight decay as in AdamW: every step first multiplies the weights by 1 - lr weight_decay. This shrink
            is no part of d: W[k+1] = (1 - lr weight_decay) W[k] + d[k+1].
        switch_step: number of SGD steps before the formula; 0 is the formula from the first step, None is never.
        history: "true" starts the formula from the last differences of SGD's weights (taken after the shrink of
            `decoupled`), "zero" from zeros (a cold start, which overshoots by half a step at first).
        maximize: ascend instead.
        foreach: update all tensors of a group at once, or one by one; None takes torch's choice for SGD: at once on an
            accelerator, one by one on the CPU (where the two round apart in bfloat16 and float16).
        fused: update by one kernel in a single pass: after the switch ours (in C on the CPU: float32, float64; in
            Triton on CUDA: float32, bfloat16, float16), before it torch's. Without one it warns and acts as if False.
            All paths stay within 2e-6 of the largest weight of a float64 run (float32, 40 noisy steps).

    Raises:
        ValueError: an argument out of its range, of any group, or a complex parameter.
        RuntimeError: a sparse gradient of a table that is not attached; no weight has moved then.

    No `capturable`: the switch is a branch in Python and the history moves by renaming buffers, so a captured CUDA
    graph would replay one phase on the wrong buffers. For the same reason `torch.compile` leaves `step` as it is, and
    compiles what is around it. No `differentiable`: the history is updated in place.
    """

    name: str  # how messages call it
    moves_linearly = True  # without a gradient

    def __init__(
        self, params: Iterable[Any], formula: dict[str, Any], lr: float | Tensor, momentum: float = 0.0, *,
        dampening: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0, decoupled: bool = False,
        switch_step: int | None = 0, history: str = "true", maximize: bool = False, foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov,
            "weight_decay": weight_decay, "decoupled": decoupled, **formula, "switch_step": switch_step,
            "history": history, "maximize": maximize, "foreach": foreach, "fused": fused, "step": 0,
        }  # fmt: skip
        super().__init__(params, defaults)
        self.attached: list[LazyRows] = []

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        """The factors of d[k], d[k-1], ... and the factor b of lr g[k], after the switch."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        for table in self.attached:
            table.catch_up()
        state: dict[str, Any] = super().__getstate__()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("attached", [])  # of a copy, none
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
                if isinstance(value, Tensor) and value.shape != p.shape:
                    raise ValueError(
                        f"{self.name}: the state is of other parameters or another order: parameter {place} has shape "
                        f"{tuple(p.shape)}, its saved {key} has {tuple(value.shape)}"
                    )
        super().load_state_dict(state_dict)

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

    @property
    def has_switched(self) -> bool:
        """Whether the formula has taken a step."""
        return any(group["switch_step"] is not None and group["step"] > group["switch_step"]
                   for group in self.param_groups)  # fmt: skip

    def switch_at(self, step: int | None) -> None:
        """Moves the switch, as long as it has not come: to this number of steps, not in the past, or None for never.

        The steps just before it are recorded as the formula's history, so it needs to be known before them. With None,
        a history that has been recorded is dropped.

        Raises:
            ValueError: it has come, or the step is in the past; nothing has changed then.
        """
        if self.has_switched:
            self._refuse("switch_at: the formula is at work")
        if step is not None and any(step < group["step"] for group in self.param_groups):
            self._refuse(f"switch_at: expected a step not in the past, got {step}")
        for group in self.param_groups:
            group["switch_step"] = step
            for name in difference_names(len(self.step_form(group)[0])) if step is None else ():
                for p in group["params"]:
                    self.state.get(p, {}).pop(name, None)

    def before_switch(self) -> dict[str, Any]:
        """The state_dict that torch's SGD with these settings would have at this step, up to the switch."""
        keys = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize", "foreach", "fused", "initial_lr")
        for table in self.attached:
            table.catch_up()
        groups = [{key: group[key] for key in ("params", *keys) if key in group} for group in self.param_groups]
        sgd = torch.optim.SGD(groups)
        for p, state in self.state.items():
            if "momentum_buffer" in state:
                sgd.state[p]["momentum_buffer"] = state["momentum_buffer"]
        return sgd.state_dict()

    def start_after(
        self, steps: int, state_dict: dict[str, Any], recorded: Sequence[Sequence[tuple[int, Tensor]]] = ()
    ) -> None:
        """Continues from torch's SGD with the same settings, bitwise as if this optimizer had done its steps.

        Args:
            steps: how many steps SGD did, at most `switch_step`.
            state_dict: SGD's, of these parameters in this order.
            recorded: for each parameter, newest first, (number of the step, counted from 0; what that step added).
        """
        order = [p for group in self.param_groups for p in group["params"]]
        for group, before in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {"step": steps, **{key: before[key] for key in ("lr", "initial_lr") if key in before}}
        for place, state in state_dict["state"].items():
            if state.get("momentum_buffer") is not None:
                self.state[order[place]]["momentum_buffer"] = state["momentum_buffer"].to(order[place], copy=True)
        groups = [group for group in self.param_groups for _ in group["params"]]
        for p, group, steps_of_p in zip(order, groups, recorded, strict=False):
            names, switch = difference_names(len(self.step_form(group)[0])), group["switch_step"]
            if switch is None or group["history"] != "true":
                continue
            history = [d for step, d in steps_of_p if step >= switch - len(names)]
            for name, d in zip(names, history, strict=False):
                self.state[p][name] = d.to(p, copy=True)
            if history:  # zeros where there was none yet
                differences_of(self.state, [p], names)

    # Traced, it would be compiled anew in every step, whose number it reads.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step; returns the closure's loss, if there is a closure to evaluate first."""
        loss = evaluated(closure)
        work = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        if any(p.grad.is_sparse for _, params in work for p in params):
            raise RuntimeError(
                f"{self.name}: expected dense gradients, got a sparse one of an embedding that is not attached, whose "
                "rows without a gradient may move, too: call optimizer.attach(embedding) before the first step"
            )
        for group, params in work:
            if params:
                self._step_group(group, params)
            group["step"] += 1
        return loss

    def settings_of_step(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """All that a step without a gradient depends on, beside the state."""
        names = difference_names(len(self.step_form(group)[0]))
        return *phase(group, names), *(value for key, value in group.items() if key not in ("params", "step"))

    def attach(self, table: nn.Embedding | nn.EmbeddingBag, *, l2: float = 0.0) -> LazyRows:
        """Steps this table by the rows that are read, with the result of the dense step: see `LazyRows`."""
        return LazyRows(self, table, l2=l2)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, foreach = as_number(group["lr"]), all_at_once(group["foreach"], params)
        factors, b = self.step_form(group)
        names = difference_names(len(factors))
        acts, recording = phase(group, names)
        if acts and group["fused"]:
            params = fused_step(self.name, self.state, group, params, factors, b * lr)
            if not params:
                return
        direction = [] if group["fused"] and not acts else direction_of(self.state, group, params, foreach)
        decay(group, params, lr, foreach)
        if acts:
            multistep_update(params, direction, differences_of(self.state, params, names), factors, b * lr, foreach)
            rotate((self.state[p] for p in params), names)
            return
        before = [p.clone() for p in params] if recording else []
        if group["fused"]:
            fused_sgd(self.state, group, params, lr)
        else:
            multistep_update(params, direction, [], (), lr, foreach)
        if recording:
            oldest = differences_of(self.state, params, names)[-1]
            for d, p, w in zip(oldest, params, before, strict=True):
                # The weights' own difference, not -lr direction: what anybody who sees the weights can tell.
                torch.sub(p, w, out=d)
            rotate((self.state[p] for p in params), names)

    def _check(self, group: dict[str, Any]) -> None:
        switch = group["switch_step"]
        if group["foreach"] and group["fused"]:
            self._refuse("expected one of foreach and fused, got both")
        check_rates(group, self._refuse)
        for key in ("momentum", "dampening"):
            if not 0 <= group[key] < 1:
                self._refuse(f"{key} must be in [0, 1), got {group[key]}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            got = f"momentum {group['momentum']} and dampening {group['dampening']}"
            self._refuse(f"nesterov needs momentum > 0 and dampening 0, got {got}")
        if switch is not None and (not isinstance(switch, int) or isinstance(switch, bool) or switch < 0):
            self._refuse(f"switch_step must be a whole number >= 0 or None (never), got {switch!r}")
        if group["history"] not in HISTORIES:
            self._refuse(f"history must be one of {', '.join(HISTORIES)}, got {group['history']!r}")
        if any(p.is_complex() for p in group["params"]):
            self._refuse("complex parameters are not supported; use their real view")

    def _refuse(self, message: str) -> NoReturn:
        raise ValueError(f"{self.name}: {message}")


def check_rates(group: dict[str, Any], refuse: Callable[[str], NoReturn]) -> None:
    """Refuses a group's lr and weight_decay if they are out of range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        refuse(f"lr must be a number or a tensor of one, got shape {tuple(lr.shape)}")
    for key in ("lr", "weight_decay"):
        if not 0 <= group[key] < float("inf"):
            refuse(f"{key} must be >= 0 and finite, got {group[key]}")


def all_at_once(foreach: bool | None, params: list[Tensor]) -> bool:
    """Whether to use foreach operations; where nothing is said, as torch's optimizers choose."""
    if foreach is not None:
        return foreach
    return all(type(p) in (Tensor, nn.Parameter) and p.device.type in ("cuda", "xpu", "mtia") for p in params)
