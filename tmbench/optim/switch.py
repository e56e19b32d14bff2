"""One optimizer at first, another from a step on: the step is given, or found by the criterion of SWATS (see swats)."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .handover import Handover
from .rows import LazyRows, moves_linearly
from .swats import check_criterion, swats_gamma, swats_update

# What OneCycleLR and CyclicLR keep in a group, or look for there.
OF_CYCLES = ("max_lr", "min_lr", "base_momentum", "max_momentum", "momentum", "betas")


class SwitchOptimizer(Optimizer):
    """The `first` optimizer for `switch_step` steps, bit for bit, then a new `second` one, bit for bit.

    `param_groups`, `state` and `defaults` are those of the optimizer that is active; a group stays the
    same object over the switch. Options written in a parameter group go to both optimizers.

    **Learning rates.** Without a scheduler, group["lr"] is from the switch on the second optimizer's own
    lr, and what is written there acts. A scheduler (known by the "initial_lr" it leaves in a group)
    keeps its own scale, that of the first optimizer's lr; the second then works with

        (second's lr) * group["lr"] / (first's lr at construction)

    so the same factors multiply both; `lrs` is the result. The factors of OneCycleLR and CyclicLR, which have rates
    of their own, are those rates over the first's lr. They write the momentum that they cycle into the second's
    group, too; with cycle_momentum=False it keeps its own.

    **criterion="swats"** (Algorithm 1). With p the step that the weights made and g the gradient, over all
    parameters together, gamma = p.p / -p.g is averaged with the first optimizer's beta2; the switch comes
    when the bias-corrected average and gamma differ by less than `tolerance`. It becomes the second's lr,
    times 1 - momentum, as in Algorithm 1 (there momentum is beta1: give the second what you want), over 1 -
    dampening. Our choices: an L2 penalty is part of g, as the loss would have it, decoupled decay is part
    of p; beta2 is that of the first group; the average starts no SGD while it is not positive; a
    scheduler's factor at the switch is divided out of the rate, since p contains it. Each step copies the
    weights once and waits for the device.

    Args:
        params: parameters or parameter groups.
        first, second: params -> Optimizer, such as `functools.partial(torch.optim.Adam, lr=1e-3)`.
        switch_step: number of steps of the first optimizer; 0 is the second from the start, None is never.
        criterion: "swats" finds the step by itself; None does not.
        tolerance: epsilon in Algorithm 1, an absolute difference of learning rates.
        handover: None leaves the second its own rate. A number of steps, such as an epoch's, multiplies that rate once,
            so that the second's first step is as long as the first's mean step over so many steps before the switch.
            That step is tried at the second's own rate before; each step of the first copies the weights.

    Attributes:
        active: the optimizer at work.
        switched_at: number of steps the first optimizer did, or None while it is at work.
        handed_over: what `handover` did: see `Handover.told`.

    `state_dict` holds the active optimizer's state and the progress towards the switch; what is given
    to the constructor (first, second, switch_step, criterion, tolerance) is not in it and is kept as it is.

    Raises:
        ValueError: a wrong argument, also one that an optimizer refuses; the second is tried at construction, too.
    """

    def __init__(
        self, params: Iterable[Any], first: Callable[..., Optimizer], second: Callable[..., Optimizer],
        switch_step: int | None = None, criterion: str | None = None, *, tolerance: float = 1e-9,
        handover: int | None = None,
    ) -> None:  # fmt: skip
        _check(first, second, switch_step, criterion, tolerance)
        self.first, self.second = first, second
        self.switch_step, self.criterion, self.tolerance = switch_step, criterion, tolerance
        if handover is not None and criterion is not None:
            raise ValueError("switch: expected handover or criterion, which sets the second's rate itself, got both")
        self._handover = None if handover is None else Handover(handover)
        self.switched_at: int | None = None
        self._steps = 0
        self._left: dict[str, Any] | None = None  # the first's last state, until the next step
        self._average = 0.0  # lambda_k
        if not isinstance(params, (Tensor, set)):  # those torch refuses
            params = [dict(group) if isinstance(group, dict) else group for group in params]
        self.attached: list[LazyRows] = []
        super().__init__(params, {})  # for its checks and hooks; its groups are the options given, no more
        self._given = [_options(group) for group in self.param_groups]
        later = self._build("second")
        self.active = self._build("first")
        is_plain = criterion is None and handover is None
        self.moves_linearly = is_plain and moves_linearly(self.active) and moves_linearly(later)
        needs = (("first", self.active, "betas", ", such as Adam"), ("second", later, "lr", ""))
        for which, optimizer, key, example in needs if criterion is not None else ():
            if any(key not in group for group in optimizer.param_groups):
                got = f"{which} optimizer with {key}{example}, got {type(optimizer).__name__}"
                raise ValueError(f"switch: criterion: swats expected a {got}")
        self._first_lrs = [_number(group.get("lr")) for group in self.active.param_groups]
        # For each group under a scheduler, after the switch: the lr its scale is based on, and the second's.
        self._scales: list[tuple[float, Any] | None] = [None] * len(self._given)
        self._link()
        self._switch_if_due()

    def _link(self) -> None:
        self.state, self.param_groups, self.defaults = (
            self.active.state, self.active.param_groups, self.active.defaults
        )  # fmt: skip
        for table in self.attached:
            table.serve(self.active)

    def attach(self, table: nn.Embedding | nn.EmbeddingBag, *, l2: float = 0.0) -> LazyRows:
        """Steps this table by the rows that are read, before and after the switch: see `LazyRows`."""
        return LazyRows(self, table, l2=l2)

    def _build(self, which: str) -> Optimizer:
        """A new first or second optimizer of our parameters, with the options that their groups were given."""
        groups = [
            {**options, "params": _named(group)} for options, group in zip(self._given, self.param_groups, strict=True)
        ]
        plain = len(groups) == 1 and groups[0].keys() == {"params"}
        optimizer: Any = getattr(self, which)(groups[0]["params"] if plain else groups)
        if not isinstance(optimizer, Optimizer):
            kind = type(optimizer).__name__
            raise ValueError(f"switch: {which}: expected a callable that returns an Optimizer, got a {kind} from it")
        if len(optimizer.param_groups) != len(groups):
            raise ValueError(
                f"switch: {which}: expected an optimizer that keeps its {len(groups)} parameter groups, "
                f"got {len(optimizer.param_groups)} groups from {type(optimizer).__name__}"
            )
        return optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; the group joins the active optimizer, and switches with the others."""
        if "active" not in self.__dict__:  # torch's constructor at work
            super().add_param_group(param_group)
            return
        param_group = dict(param_group)
        options = _options(param_group)
        self.active.add_param_group(param_group)
        self._given.append(options)
        self._first_lrs.append(_number(self.active.param_groups[-1].get("lr")))
        self._scales.append(None)

    @property
    def lrs(self) -> list[Any]:
        """The learning rate of each group as the active optimizer uses it in its next step."""
        groups = zip(self.param_groups, self._scales, strict=True)
        return [g.get("lr") if scale is None else scale[1] * (float(g["lr"]) / scale[0]) for g, scale in groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step of the active optimizer; returns what that returns, the closure's loss."""
        self._left = None
        watching = self.criterion is not None and self.switched_at is None
        before = [p.detach().clone() for group in self.param_groups for p in group["params"]] if watching else []
        groups = zip(self.param_groups, self.lrs, self._scales, strict=True)
        scaled = [(group, group["lr"], lr) for group, lr, scale in groups if scale is not None]
        for group, _, lr in scaled:
            group["lr"] = lr
        take = self.active.step if closure is None else partial(self.active.step, closure)
        try:
            if self._handover is None or (self.switched_at is not None and self._steps != self.switched_at):
                loss = take()
            elif self.switched_at is None:
                loss = self._handover.watch(self.active, take)
            else:
                loss = self._handover.first_step(self.active, take, self._rescale)
        finally:
            for group, shown, _ in scaled:
                group["lr"] = shown
        self._steps += 1
        self._link()  # an optimizer inside may be one that switches, too
        rate = self._swats_rate(before) if watching else None
        if rate is not None:
            self._switch(rate)
        self._switch_if_due()
        return loss

    @property
    def handed_over(self) -> dict[str, float]:
        return self._handover.told if self._handover else {}

    def _rescale(self, factor: float) -> None:
        """Multiplies the second's rate."""
        for number, (group, scale) in enumerate(zip(self.param_groups, self._scales, strict=True)):
            if scale is not None:
                self._scales[number] = scale[0], scale[1] * factor
            group["lr"] = group["lr"] * factor  # of this step; a scheduler's own is put back after it

    @torch.no_grad()
    def _swats_rate(self, before: list[Tensor]) -> float | None:
        """Lambda if the step just done is Adam's last, else None."""
        gamma = swats_gamma(self.param_groups, before)
        if not math.isfinite(gamma):  # as in Algorithm 1; and one that overflows must not spoil the average for good
            return None
        beta2 = float(self.param_groups[0]["betas"][1])
        self._average, rate = swats_update(self._average, gamma, beta2, self._steps, self.tolerance)
        return rate

    @property
    def has_switched(self) -> bool:
        """Whether the second optimizer has taken a step."""
        return self.switched_at is not None and self._steps > self.switched_at

    def switch_at(self, step: int | None) -> None:
        """Moves the switch, as long as it has not come: to this number of steps, or None for never; at once if due.

        Raises:
            ValueError: it has come, or the step is in the past; nothing has changed then.
        """
        _check(self.first, self.second, step, self.criterion, self.tolerance)
        if self.switched_at is not None:
            raise ValueError(f"switch: switch_at: the switch has come, at step {self.switched_at}")
        if step is not None and step < self._steps:
            raise ValueError(f"switch: switch_at: expected a step not in the past ({self._steps}), got {step}")
        self.switch_step = step
        self._switch_if_due()

    def second_now(self) -> tuple[Optimizer, list[Any]]:
        """The second optimizer, and the learning rates of its groups, as they would be after a switch now."""
        second = self._build("second")
        rates: list[Any] = [group.get("lr") for group in second.param_groups]
        for number, (old, reference) in enumerate(zip(self.param_groups, self._first_lrs, strict=True)):
            if self._steps and "initial_lr" in old and reference and rates[number] is not None:
                rates[number] = float(rates[number]) * (float(old["lr"]) / reference)
        return second, rates

    def _switch_if_due(self) -> None:
        if self.switched_at is None and self.switch_step is not None and self._steps >= self.switch_step:
            self._switch()

    def _switch(self, rate: float | None = None) -> None:
        """Makes a new second optimizer the active one; rate: the learning rate for SGD without momentum."""
        active = self._build("second")
        self._left = self.active.state_dict()
        groups = zip(self.param_groups, active.param_groups, self._first_lrs, strict=True)
        for number, (old, new, reference) in enumerate(groups):
            if rate is not None:
                new["lr"] = rate * (1 - new.get("momentum", 0.0)) / (1 - new.get("dampening", 0.0))
            fresh = dict(new)
            if self._steps and "initial_lr" in old and reference and "lr" in new:
                base = new["lr"] if rate is None else new["lr"] / (float(old["lr"]) / reference)
                if self._handover or _number(base) != reference:
                    self._scales[number] = (reference, base)
                fresh |= {"initial_lr": old["initial_lr"], "lr": old["lr"]}
                if "max_momentum" in old or "max_lr" in old:
                    fresh = {key: old[key] for key in OF_CYCLES if key in old} | fresh
            old.clear()
            old.update(fresh)
            active.param_groups[number] = old
        self.active = active
        self.switched_at = self._steps
        self._link()

    def before_switch(self) -> dict[str, Any]:
        """The state_dict that `first` alone would have at this step; up to the switch, and just after it.

        Raises:
            RuntimeError: the second optimizer has done a step.
        """
        if self.switched_at is None:
            return self.active.state_dict()
        if self._left is None:
            raise RuntimeError("switch: the first optimizer's state is gone: the second is at work")
        for saved, group in zip(self._left["param_groups"], self.param_groups, strict=True):
            if "initial_lr" in group:  # a scheduler, who may have been at work since
                saved["lr"] = group["lr"]
        return self._left

    def start_after(self, steps: int, state_dict: dict[str, Any], recorded: Any = ()) -> None:
        """Continues from `first` alone after so many steps, bitwise as if this optimizer had done them.

        Args:
            steps: at most `switch_step`.
            state_dict: that of `first`, of these parameters in this order.
            recorded: not used; others start a history from it.
        """
        self.active = self._build("first")
        self.active.load_state_dict(state_dict)
        self._steps, self.switched_at, self._scales = steps, None, [None] * len(self._given)
        self._link()
        self._switch_if_due()

    def state_dict(self) -> dict[str, Any]:
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        rest = self.active.state_dict()
        state = {"state": rest.pop("state"), "param_groups": rest.pop("param_groups")}
        state["switch"] = {
            "steps": self._steps, "switched_at": self.switched_at, "average": self._average,
            "first_lrs": list(self._first_lrs), "scales": list(self._scales), "rest": rest,
            "handover": self._handover.state_dict() if self._handover else None,
        }  # fmt: skip
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to the phase in which the state was saved, earlier or later; one that is refused changes nothing."""
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if "switch" not in state_dict:
            keys = ", ".join(map(str, state_dict))
            raise ValueError(f"switch: state_dict: expected one that a SwitchOptimizer saved, got one with {keys}")
        progress, active = state_dict["switch"], self.active
        if (progress["switched_at"] is None) != (self.switched_at is None):
            active = self._build("first" if progress["switched_at"] is None else "second")
        active.load_state_dict({key: state_dict[key] for key in ("state", "param_groups")} | progress["rest"])
        self.active = active
        self._steps, self.switched_at, self._average = progress["steps"], progress["switched_at"], progress["average"]
        self._first_lrs = list(progress["first_lrs"])
        self._scales = [None if scale is None else (scale[0], scale[1]) for scale in progress["scales"]]
        if self._handover and (known := progress.get("handover")):
            self._handover.load_state_dict(known)
        self._link()
        self._switch_if_due()  # the state may come from one that was to switch later
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        for table in self.attached:
            table.catch_up()
        ours = ("first", "second", "switch_step", "criterion", "tolerance", "switched_at", "active", "_steps", "_left",
                "_average", "_given", "_first_lrs", "_scales", "moves_linearly", "_handover")  # fmt: skip
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in ours}, "attached": []}


def _check(first: Any, second: Any, switch_step: Any, criterion: Any, tolerance: Any) -> None:
    for name, value in (("first", first), ("second", second)):
        if not callable(value):
            kind = type(value).__name__
            raise ValueError(f"switch: {name}: expected a callable, params -> Optimizer, got a {kind}")
    whole = isinstance(switch_step, int) and not isinstance(switch_step, bool) and switch_step >= 0
    if switch_step is not None and not whole:
        raise ValueError(f"switch: switch_step: expected a whole number >= 0 or None (never), got {switch_step!r}")
    check_criterion(criterion, switch_step, tolerance)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _named(group: dict[str, Any]) -> list[Any]:
    """The group's parameters, as (name, parameter) pairs if they have names."""
    return list(zip(group["param_names"], group["params"], strict=True)) if "param_names" in group else group["params"]


def _number(lr: Any) -> float | None:
    return None if lr is None else float(lr)
