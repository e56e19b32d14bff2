"""SwitchOptimizer: each phase against its optimizer alone, schedules, checkpoints; SWATS against a slow reference."""

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run, saved_and_loaded
from helpers import assert_same, curves, pairwise, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from tmbench.optim import TMSGD, SwitchOptimizer
from tmbench.optim.swats import swats_update
from tmbench.run import run
from tmbench.training import module

SWITCH = 6
ADAM = partial(Adam, lr=0.01)
SGDM = partial(SGD, lr=0.05, momentum=0.9)
Make = Callable[..., Optimizer]


pytestmark = pytest.mark.usefixtures("one_thread")


class Training:
    """A small network and its batches, the same each time; `go` does steps and notes the weights after each."""

    def __init__(self, make: Make, schedule: Callable[[Optimizer], Any] | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.make = make
        self.schedule = schedule
        self.rows: list[Tensor] = []
        self.new_optimizer()

    def reload(self) -> None:
        """A new optimizer and scheduler, into which the states of these are loaded."""
        states = saved_and_loaded(self.optimizer.state_dict()), self.scheduler and self.scheduler.state_dict()
        self.new_optimizer()
        self.optimizer.load_state_dict(states[0])
        if self.scheduler:
            self.scheduler.load_state_dict(states[1])

    def go_on_with(self, make: Make, steps: int) -> "Training":
        self.make = make
        self.new_optimizer()
        return self.go(steps)

    def new_optimizer(self) -> None:
        self.optimizer: Any = self.make(self.model.parameters())
        self.scheduler = self.schedule(self.optimizer) if self.schedule else None

    def go(self, steps: int) -> "Training":
        for _ in range(steps):
            random = torch.Generator().manual_seed(len(self.rows))
            inputs, labels = torch.randn(16, 6, generator=random), torch.randint(3, (16,), generator=random)

            def closure(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model(inputs), labels)
                loss.backward()
                return loss

            self.optimizer.step(closure)
            if self.scheduler is not None:
                self.scheduler.step()
            self.rows.append(nn.utils.parameters_to_vector(self.model.parameters()).detach())
        return self

    def path(self) -> Tensor:
        path = torch.stack(self.rows)
        assert path.isfinite().all()
        return path


def switching(first: Make = ADAM, second: Make = SGDM, switch_step: int | None = SWITCH, **more: Any) -> Make:
    return partial(SwitchOptimizer, first=first, second=second, switch_step=switch_step, **more)


def by_layer(make: Make, *options: dict[str, Any]) -> Make:
    """make(groups) with the weight matrices in a group of their own and these options."""

    def build(params: Any) -> Optimizer:
        w1, b1, w2, b2 = params
        return make([{"params": p, **o} for p, o in zip(([w1, w2], [b1, b2]), options, strict=True)])

    return build


PAIRS: dict[str, tuple[Make, Make]] = {
    "adam-sgdm": (partial(Adam, lr=0.01, weight_decay=0.1), partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.1)),
    "sgdm-adam": (SGDM, ADAM),
    "same-class": (ADAM, partial(Adam, lr=0.03)),
    "tmsgd-rmsprop": (partial(TMSGD, lr=0.1, momentum=0.5), partial(RMSprop, lr=1e-3, centered=True)),
    "adagrad-tmsgd": (partial(Adagrad, lr=0.05), partial(TMSGD, lr=0.1)),
    "maximize": (partial(Adam, lr=1e-3, maximize=True), partial(SGD, lr=1e-2, maximize=True)),
    "lbfgs-sgd": (partial(LBFGS, lr=0.5, max_iter=3), SGDM),
    "sgd-lbfgs": (SGDM, partial(LBFGS, lr=0.5, max_iter=3)),
}


@pytest.mark.parametrize("pair", PAIRS)
class TestEachPhase:
    def test_before_the_switch_it_is_the_first_optimizer_bitwise(self, pair: str) -> None:
        first, second = PAIRS[pair]
        alone = Training(first).go(12).path()
        assert torch.equal(Training(switching(first, second, None)).go(12).path(), alone)
        assert torch.equal(Training(switching(first, second)).go(SWITCH).path(), alone[:SWITCH])

    @pytest.mark.parametrize("switch_step", [0, 1, SWITCH])
    def test_from_the_switch_on_it_is_a_fresh_second_optimizer_bitwise(self, pair: str, switch_step: int) -> None:
        first, second = PAIRS[pair]
        expected = Training(first).go(switch_step).go_on_with(second, 14 - switch_step)
        path = Training(switching(first, second, switch_step)).go(14).path()
        assert torch.equal(path, expected.path())
        if switch_step:
            assert not torch.equal(path, Training(first).go(14).path())

    @pytest.mark.parametrize("reload_at", [0, SWITCH - 1, SWITCH, 10])
    def test_a_loaded_state_dict_continues_bitwise_in_every_phase(self, pair: str, reload_at: int) -> None:
        make = switching(*PAIRS[pair])
        training = Training(make).go(reload_at)
        training.reload()
        assert training.optimizer.switched_at == (None if reload_at < SWITCH else SWITCH)
        assert torch.equal(training.go(14 - reload_at).path(), Training(make).go(14).path())

    @pytest.mark.parametrize("switch_step", [None, 0, 2])
    def test_gradients_are_left_unchanged(self, pair: str, switch_step: int | None) -> None:
        w = torch.nn.Parameter(torch.ones(3))
        optimizer = switching(*PAIRS[pair], switch_step)([w])
        for step in range(5):
            w.grad = grad = torch.full((3,), 0.1 + step)
            given = grad.clone()
            optimizer.step(lambda: torch.tensor(1.0))
            assert w.grad is grad
            assert torch.equal(grad, given)


class TestGroups:
    OPTIONS = {"lr": 0.02, "weight_decay": 0.1}, {"weight_decay": 0.3}

    def test_the_options_of_a_group_reach_both_optimizers(self) -> None:
        make = by_layer(switching(), *self.OPTIONS)
        expected = Training(by_layer(ADAM, *self.OPTIONS)).go(SWITCH).go_on_with(by_layer(SGDM, *self.OPTIONS), 6)
        training = Training(make).go(12)
        assert torch.equal(training.path(), expected.path())
        assert [group["lr"] for group in training.optimizer.param_groups] == [0.02, 0.05]
        assert [group["weight_decay"] for group in training.optimizer.param_groups] == [0.1, 0.3]
        assert all("betas" not in group for group in training.optimizer.param_groups)

    @pytest.mark.parametrize(("added_at", "reload_at"), [(3, None), (8, None), (3, 5), (8, 7)])
    def test_a_group_added_in_either_phase_is_trained_and_switches_with_the_others(
        self, added_at: int, reload_at: int | None
    ) -> None:
        def run(make: Make | None) -> list[Tensor]:
            """make None: with Adam alone, then SGD alone."""
            first, late = (nn.Parameter(torch.linspace(1, 2, 3)) for _ in range(2))

            def group(kind: Callable[[list[Any]], Any] = list) -> dict[str, Any]:
                return {"params": kind([late]), "weight_decay": 0.5}

            optimizer = (make or ADAM)([first])
            for step in range(12):
                if step == SWITCH and make is None:
                    optimizer = SGDM([first] if added_at > step else [{"params": [first]}, group()])
                if step == added_at:
                    optimizer.add_param_group(group(iter))
                if step == reload_at and make is not None:
                    state = saved_and_loaded(optimizer.state_dict())
                    optimizer = make([first])
                    if step >= added_at:
                        optimizer.add_param_group(group())
                    optimizer.load_state_dict(state)
                for w in (first, late):
                    w.grad = w.detach().clone()
                optimizer.step()
            assert len(optimizer.param_groups) == 2
            return [first.detach(), late.detach()]

        for a, b in zip(run(switching()), run(None), strict=True):
            assert torch.equal(a, b)

    def test_a_refused_group_changes_nothing_and_the_callers_dict_is_left_alone(self) -> None:
        w, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        optimizer = switching()([w])
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group({"params": [w]})
        given = {"params": late}
        optimizer.add_param_group(given)
        assert given == {"params": late}
        assert len(optimizer.param_groups) == 2
        w.grad = late.grad = torch.ones(2)
        for _ in range(SWITCH + 1):
            optimizer.step()
        assert torch.equal(w, late)

    @pytest.mark.parametrize("switch_step", [0, 2])
    def test_names_of_parameters_survive_the_switch(self, switch_step: int) -> None:
        model = nn.Linear(2, 2)
        optimizer = switching(switch_step=switch_step)(model.named_parameters())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for _ in range(3):
            optimizer.step()
        assert isinstance(optimizer.active, SGD)
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]

    def test_a_group_held_from_the_beginning_is_live_after_the_switch(self) -> None:
        training = Training(switching())
        held = training.optimizer.param_groups[0]
        training.go(SWITCH)
        assert held is training.optimizer.param_groups[0] is training.optimizer.active.param_groups[0]
        assert held["lr"] == 0.05
        held["lr"] = 0.0
        assert torch.equal(training.go(1).rows[-1], training.rows[-2])

    def test_state_and_defaults_are_those_of_the_active_optimizer(self) -> None:
        training = Training(switching()).go(1)
        weight = next(training.model.parameters())
        assert set(training.optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}
        assert "betas" in training.optimizer.defaults
        training.go(SWITCH)
        assert set(training.optimizer.state[weight]) == {"momentum_buffer"}
        assert "betas" not in training.optimizer.defaults

    @pytest.mark.parametrize("more", [{}, {"criterion": "swats", "switch_step": None}], ids=["step", "swats"])
    def test_a_parameter_without_gradient_stays_where_it_is(self, more: dict[str, Any]) -> None:
        w, idle, alone = (nn.Parameter(torch.ones(2)) for _ in range(3))
        optimizer, alone_optimizer = switching(**more)([w, idle]), switching(**more)([alone])
        for _ in range(SWITCH + 3):
            w.grad, alone.grad = w.detach().clone(), alone.detach().clone()
            optimizer.step()
            alone_optimizer.step()
        assert torch.equal(idle, torch.ones(2))
        assert torch.equal(w, alone)


@pytest.mark.parametrize("switch_step", [None, 0, 1])
def test_the_closures_loss_is_returned_and_its_gradient_used(switch_step: int | None) -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer = switching(SGDM, partial(SGD, lr=0.05), switch_step)([w])

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (w**2 / 2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 0.5
    assert w.item() == pytest.approx(0.95)
    assert optimizer.step() is None


def halving(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: 0.5 ** (step // 2))


class TestSchedules:
    SCHEDULES: dict[str, tuple[Callable[[Optimizer], Any], Callable[[int], float]]] = {
        "lambda": (lambda o: LambdaLR(o, lambda k: 1 / (1 + k)), lambda k: 1 / (1 + k)),
        "step": (lambda o: StepLR(o, 4, 0.3), lambda k: 0.3 ** (k // 4)),
        "cosine": (lambda o: CosineAnnealingLR(o, 20), lambda k: (1 + math.cos(math.pi * k / 20)) / 2),
    }

    @pairwise(name=["lambda", "step", "cosine"], reload_at=[None, 4, SWITCH])
    def test_a_schedule_multiplies_the_first_lr_then_the_seconds_own(self, name: str, reload_at: int | None) -> None:
        schedule, factor = self.SCHEDULES[name]
        training = Training(switching(), schedule)
        used = []
        for step in range(14):
            if step == reload_at:
                training.reload()
            used.append(training.optimizer.lrs)
            training.go(1)
        assert used == [[pytest.approx((0.01 if k < SWITCH else 0.05) * factor(k), rel=1e-12)] for k in range(14)]

    @pairwise(
        new=[
            lambda o, **more: OneCycleLR(o, 0.1, total_steps=20, **more),
            lambda o, **more: CyclicLR(o, 0.001, 0.1, step_size_up=5, **more),
        ],
        second=[SGDM, ADAM],
        cycles=[True, False],
        reload_at=[None, 4, SWITCH],
    )
    def test_a_cycle_goes_on_over_the_switch(
        self, new: Callable[..., Any], second: Make, cycles: bool, reload_at: int | None
    ) -> None:
        first = partial(SGD, lr=0.01, momentum=0.8)
        training = Training(switching(first, second), partial(new, cycle_momentum=cycles))
        alone = Training(first, partial(new, cycle_momentum=cycles))
        own_lr, own_momentum = second.keywords["lr"], second.keywords.get("momentum")  # type: ignore[attr-defined]
        for step in range(14):
            if step == reload_at:
                training.reload()
            of_first = alone.optimizer.param_groups[0]
            factor = of_first["lr"] / 0.01
            assert training.optimizer.lrs == [pytest.approx((0.01 if step < SWITCH else own_lr) * factor, rel=1e-12)]
            if own_momentum:
                expected = of_first["momentum"] if cycles or step < SWITCH else own_momentum
                assert training.optimizer.param_groups[0]["momentum"] == expected
            training.go(1)
            alone.go(1)

    def test_a_cycle_of_adam_s_betas_leaves_the_second_its_momentum(self) -> None:
        training = Training(switching(ADAM, SGDM), lambda o: OneCycleLR(o, 0.1, total_steps=20)).go(14)
        assert training.optimizer.param_groups[0]["momentum"] == 0.9

    @pytest.mark.parametrize("second_lr", [0.01, 0.05, 0.003])
    def test_the_scheduled_rates_are_those_the_weights_move_by(self, second_lr: float) -> None:
        """Powers of two as factors, with which the arithmetic is exact."""
        second = partial(SGD, lr=second_lr, momentum=0.9)
        expected = Training(ADAM, halving).go(SWITCH)
        expected.make, expected.schedule = second, None
        expected.new_optimizer()
        for step in range(SWITCH, 14):
            expected.optimizer.param_groups[0]["lr"] = second_lr * 0.5 ** (step // 2)
            expected.go(1)
        assert torch.equal(Training(switching(ADAM, second), halving).go(14).path(), expected.path())

    @pytest.mark.parametrize("reload_at", [3, SWITCH, 9])
    def test_a_scheduled_run_resumes_bitwise(self, reload_at: int) -> None:
        training = Training(switching(), halving).go(reload_at)
        training.reload()
        assert torch.equal(training.go(14 - reload_at).path(), Training(switching(), halving).go(14).path())

    def test_the_scale_of_a_schedule_is_that_of_the_loaded_state(self) -> None:
        saved = Training(switching(), halving).go(3)
        loaded = Training(switching(partial(Adam, lr=77.0)), halving)
        loaded.optimizer.load_state_dict(saved_and_loaded(saved.optimizer.state_dict()))
        loaded.scheduler.load_state_dict(saved.scheduler.state_dict())
        assert loaded.go(5).optimizer.lrs == saved.go(5).optimizer.lrs == [pytest.approx(0.05 / 16)]

    def test_each_group_keeps_its_own_scale(self) -> None:
        second = by_layer(SGDM, {"lr": 0.3}, {"lr": 0.01})

        def either(params: Any) -> Optimizer:
            return second([p for pair in zip(*(g["params"] for g in params), strict=True) for p in pair])

        training = Training(by_layer(switching(ADAM, either), {}, {}), halving).go(10)
        assert training.optimizer.lrs == [pytest.approx(0.3 / 32), pytest.approx(0.01 / 32)]

    def test_without_a_scheduler_a_written_lr_is_the_rate_itself(self) -> None:
        training = Training(switching()).go(SWITCH + 1)
        training.optimizer.param_groups[0]["lr"] = 0.125
        assert training.optimizer.lrs == [0.125]
        expected = Training(switching()).go(SWITCH + 1)
        expected.optimizer.active.param_groups[0]["lr"] = 0.125
        assert torch.equal(training.go(1).path(), expected.go(1).path())
        assert not torch.equal(training.path(), Training(switching()).go(SWITCH + 2).path())

    def test_reduce_on_plateau_lowers_the_rate_of_the_active_optimizer(self) -> None:
        training = Training(switching())
        scheduler = ReduceLROnPlateau(training.optimizer, factor=0.5, patience=0)
        used = []
        for _ in range(9):
            used.append(training.optimizer.lrs[0])
            training.go(1)
            scheduler.step(1.0)
        assert used[:6] == [0.01, 0.01, 0.005, 0.0025, 0.00125, 0.000625]
        assert used[6:] == [0.025, 0.0125, 0.00625]

    def test_the_shown_lr_is_given_back_even_if_the_closure_fails(self) -> None:
        training = Training(switching(), halving).go(SWITCH + 1)
        shown = training.optimizer.param_groups[0]["lr"]
        with pytest.raises(ZeroDivisionError):
            training.optimizer.step(lambda: 1 / 0)
        assert training.optimizer.param_groups[0]["lr"] == shown == 0.01 / 8


class TestStateDict:
    def test_a_state_from_before_the_switch_takes_a_switched_optimizer_back(self) -> None:
        training = Training(switching()).go(3)
        early = saved_and_loaded(training.optimizer.state_dict())
        weights = copy.deepcopy(training.model.state_dict())
        path = training.go(9).path()
        training.model.load_state_dict(weights)
        training.optimizer.load_state_dict(early)
        assert isinstance(training.optimizer.active, Adam)
        training.rows = training.rows[:3]
        assert torch.equal(training.go(9).path(), path)

    def test_a_state_past_this_ones_switch_step_switches_at_once(self) -> None:
        late = Training(switching(switch_step=None)).go(SWITCH + 2)
        optimizer = Training(switching()).optimizer
        optimizer.load_state_dict(saved_and_loaded(late.optimizer.state_dict()))
        assert isinstance(optimizer.active, SGD)
        assert optimizer.switched_at == SWITCH + 2

    @pytest.mark.parametrize("saved_at", [1, SWITCH])
    def test_a_refused_state_says_why_and_changes_nothing(self, saved_at: int) -> None:
        training = Training(switching()).go(2)
        with pytest.raises(ValueError, match=r"^switch: state_dict: expected one that a SwitchOptimizer saved, got"):
            training.optimizer.load_state_dict(Training(ADAM).go(saved_at).optimizer.state_dict())
        other = Training(by_layer(switching(), {}, {})).go(saved_at)
        with pytest.raises(ValueError, match="different number of parameter groups"):
            training.optimizer.load_state_dict(other.optimizer.state_dict())
        assert torch.equal(training.go(8).path(), Training(switching()).go(10).path())

    def test_hooks_are_called(self) -> None:
        training, called = Training(switching()), []
        optimizer = training.optimizer
        optimizer.register_step_pre_hook(lambda *_: called.append("step"))
        optimizer.register_state_dict_pre_hook(lambda _: called.append("before saving"))
        optimizer.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: called.append(f"more {state['more']}"))
        optimizer.register_load_state_dict_post_hook(lambda _: called.append("loaded"))
        training.go(1)
        optimizer.load_state_dict(optimizer.state_dict())
        assert called == ["step", "before saving", "more 1", "loaded"]

    @pytest.mark.parametrize("at", [2, SWITCH, 8])
    def test_a_deep_copy_continues_bitwise_on_its_own(self, at: int) -> None:
        training = Training(switching()).go(at)
        twin = copy.deepcopy(training)
        path = training.go(10 - at).path()
        assert torch.equal(twin.go(10 - at).path(), path)
        assert twin.optimizer.param_groups is twin.optimizer.active.param_groups

    @pytest.mark.parametrize("reload_at", [None, 1, 3, 4, 7, 8])
    def test_one_that_switches_twice_is_three_optimizers(self, reload_at: int | None) -> None:
        last = partial(RMSprop, lr=1e-3)
        expected = Training(ADAM).go(3).go_on_with(SGDM, 4).go_on_with(last, 3)
        nested = [switching(ADAM, switching(SGDM, last, 4), 3), switching(switching(ADAM, SGDM, 3), last, 7)]
        for make in nested:
            training = Training(make)
            for step in range(10):
                if step == reload_at:
                    training.reload()
                training.go(1)
                assert training.optimizer.param_groups is training.optimizer.active.param_groups
                assert training.optimizer.state is training.optimizer.active.state
            assert torch.equal(training.path(), expected.path())


def swats_reference(
    gradient: Callable[[Tensor, int], Tensor], start: Tensor, steps: int, tolerance: float, decay: float, alpha: float
) -> tuple[list[Tensor], int | None, float | None]:
    """Algorithm 1 of arXiv 1712.07628, line by line, with Adam's epsilon outside the square root as torch has it."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    w, m, a, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(start)
    lam, Lambda, switched, path = 0.0, None, None, []
    for k in range(1, steps + 1):
        g = gradient(w, k) + decay * w
        if switched is not None:
            v = beta1 * v + g
            w = w - (1 - beta1) * Lambda * v
        else:
            m = beta1 * m + (1 - beta1) * g
            a = beta2 * a + (1 - beta2) * g**2
            p = -alpha * (m / (1 - beta1**k)) / ((a / (1 - beta2**k)).sqrt() + eps)
            w = w + p
            if p @ g != 0:
                gamma = float(p @ p / -(p @ g))
                lam = beta2 * lam + (1 - beta2) * gamma
                if k > 1 and abs(lam / (1 - beta2**k) - gamma) < tolerance and lam > 0:
                    switched, Lambda = k, lam / (1 - beta2**k)
        path.append(w)
    return path, switched, Lambda


CURVATURE = torch.linspace(0.5, 5, 12, dtype=torch.float64)
NOISE = 3 * torch.randn(400, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noisy(w: Tensor, k: int) -> Tensor:
    return CURVATURE * w + NOISE[k]


def swats_run(
    steps: int = 300, tolerance: float = 1e-4, lr: float = 0.02, decay: float = 0.0, sign: float = 1.0,
    split: bool = False, second: Make = SGDM, schedule: Callable[[Optimizer], Any] | None = None,
    reload_at: int | None = None,
) -> tuple[list[Tensor], Any]:  # fmt: skip
    parts = [nn.Parameter(p) for p in torch.ones(12, dtype=torch.float64).split(5)]
    first = partial(Adam, lr=lr, weight_decay=decay, maximize=sign < 0)
    second = partial(second, weight_decay=decay, maximize=sign < 0)

    def new() -> Any:
        groups = [{"params": parts[:1]}, {"params": parts[1:]}] if split else parts
        optimizer = SwitchOptimizer(groups, first, second, criterion="swats", tolerance=tolerance)
        return optimizer, schedule(optimizer) if schedule else None

    optimizer, scheduler = new()
    path = []
    for k in range(1, steps + 1):
        if k == reload_at:
            state, scheduler_state = saved_and_loaded(optimizer.state_dict()), scheduler and scheduler.state_dict()
            optimizer, scheduler = new()
            optimizer.load_state_dict(state)
            if scheduler:
                scheduler.load_state_dict(scheduler_state)
        grads = (sign * noisy(torch.cat([p.detach() for p in parts]), k)).split(5)
        for p, grad in zip(parts, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(parts, grads, strict=True))
        if scheduler:
            scheduler.step()
        path.append(torch.cat([p.detach().clone() for p in parts]))
    return path, optimizer


class TestSwats:
    @pairwise(tolerance=[1e-4, 3e-5], decay=[0.0, 0.2], sign=[1.0, -1.0], split=[False, True])
    def test_it_is_algorithm_1_whatever_the_groups(
        self, tolerance: float, decay: float, sign: float, split: bool
    ) -> None:
        start = torch.ones(12, dtype=torch.float64)
        expected, switched, rate = swats_reference(noisy, start, 300, tolerance, decay, 0.02)
        path, optimizer = swats_run(tolerance=tolerance, decay=decay, sign=sign, split=split)
        assert optimizer.switched_at == switched
        assert switched is not None
        assert 20 < switched < 280, "both phases must be in the test"
        assert rate is not None
        assert optimizer.lrs == [pytest.approx(0.1 * rate, rel=1e-8)] * (1 + split)
        torch.testing.assert_close(torch.stack(path), torch.stack(expected), rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("schedule", [None, lambda o: LambdaLR(o, lambda k: 1 / (1 + k / 100))])
    def test_it_resumes_bitwise_with_its_average(self, schedule: Any) -> None:
        path, whole = swats_run(200, schedule=schedule)
        assert 20 < whole.switched_at < 190
        for reload_at in (15, whole.switched_at, whole.switched_at + 1):
            resumed, optimizer = swats_run(200, schedule=schedule, reload_at=reload_at)
            assert optimizer.switched_at == whole.switched_at
            assert all(map(torch.equal, resumed, path))

    @pytest.mark.parametrize(("settings", "scale"), [
        ({}, 1.0), ({"momentum": 0.9}, 0.1), ({"momentum": 0.5, "nesterov": True}, 0.5),
        ({"momentum": 0.9, "dampening": 0.8}, 0.5),
    ], ids=str)  # fmt: skip
    def test_the_rate_is_scaled_by_the_momentum_of_the_second(self, settings: dict[str, Any], scale: float) -> None:
        _, optimizer = swats_run(second=partial(SGD, lr=77.0, **settings))
        _, _, rate = swats_reference(noisy, torch.ones(12, dtype=torch.float64), 300, 1e-4, 0.0, 0.02)
        assert optimizer.lrs == [pytest.approx(scale * rate, rel=1e-8)]

    def test_adam_at_half_its_lr_by_schedule_finds_the_rate_of_adam_at_half_the_lr(self) -> None:
        _, plain = swats_run(lr=0.02)
        _, halved = swats_run(lr=0.04, schedule=lambda o: LambdaLR(o, lambda k: 0.5))
        assert halved.switched_at == plain.switched_at is not None
        assert halved.lrs == [pytest.approx(plain.lrs[0], rel=1e-9)]

    def test_sgd_starts_with_the_found_rate_and_follows_the_schedule_from_there(self) -> None:
        _, found = swats_run(3, tolerance=1e9, schedule=lambda o: LambdaLR(o, lambda k: 0.5))
        assert found.switched_at == 2
        _, faded = swats_run(3, tolerance=1e9, schedule=lambda o: LambdaLR(o, lambda k: 0.5 if k < 2 else 0.125))
        assert faded.switched_at == 2
        assert faded.lrs == [pytest.approx(found.lrs[0] / 4, rel=1e-12)]

    def test_it_never_switches_in_the_first_step(self) -> None:
        assert swats_update(0.0, 0.3, 0.999, 1, 1e9)[1] is None
        assert swats_update(0.0, 0.3, 0.999, 2, 1e9)[1] is not None

    @pytest.mark.parametrize("gamma", [-0.5, 0.0])
    def test_it_never_switches_to_a_rate_that_is_not_positive(self, gamma: float) -> None:
        average, rate = 0.0, None
        for k in range(1, 5):
            average, rate = swats_update(average, gamma, 0.9, k, 1e-3)
            assert rate is None
        assert average == pytest.approx(gamma * (1 - 0.9**4))

    @pytest.mark.parametrize("gradient", [0.0, math.nan, math.inf])
    def test_a_step_without_a_projection_does_not_spoil_the_average(self, gradient: float) -> None:
        w, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        optimizer = SwitchOptimizer([w, other], ADAM, SGDM, criterion="swats")
        w.grad = torch.full((2,), gradient)
        optimizer.step()
        assert (optimizer.switched_at, optimizer._average) == (None, 0.0)

    def test_decoupled_decay_is_part_of_the_step_not_of_the_gradient(self) -> None:
        w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = SwitchOptimizer([w], partial(AdamW, lr=0.01, weight_decay=1.0), SGDM, criterion="swats")
        w.grad = torch.tensor([4.0], dtype=torch.float64)
        optimizer.step()
        step = 2.0 - w.item()
        assert step == pytest.approx(0.01 + 0.01 * 2, rel=1e-6)  # Adam's first step, and the decay
        assert optimizer._average / (1 - 0.999) == pytest.approx(step / 4.0, rel=1e-9)

    def test_it_is_the_first_optimizer_bitwise_while_it_watches(self) -> None:
        make = switching(switch_step=None, criterion="swats", tolerance=1e-300)
        assert torch.equal(Training(make).go(20).path(), Training(ADAM).go(20).path())


PARAMS = [nn.Parameter(torch.ones(1))]
MUST_BE: dict[str, tuple[str, list[Any]]] = {
    "switch_step": ("a whole number >= 0 or None (never)", [-1, 1.5, True, "never"]),
    "criterion": ("one of swats or None", ["swat", ""]), "tolerance": ("a finite number > 0", [0.0, math.nan, "1e-9"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        *(
            ({key: v}, f"switch: {key}: expected {what}, got {v!r}")
            for key, (what, bad) in MUST_BE.items()
            for v in bad
        ),
        (
            {"switch_step": 0, "criterion": "swats"},
            "switch: expected switch_step or criterion, got both: 0 and 'swats'",
        ),
        ({"first": "adam"}, "switch: first: expected a callable, params -> Optimizer, got a str"),
        ({"second": Adam(PARAMS)}, "switch: second: expected a callable, params -> Optimizer, got a Adam"),
        ({"first": list}, "switch: first: expected a callable that returns an Optimizer, got a list from it"),
        ({"second": len}, "switch: second: expected a callable that returns an Optimizer, got a int from it"),
        ({"second": partial(SGD, lr=-1.0)}, "Invalid learning rate: -1.0"),
        (
            {"first": SGDM, "criterion": "swats"},
            "switch: criterion: swats expected a first optimizer with betas, such as Adam, got SGD",
        ),
        (
            {"second": lambda p: Optimizer(p, {}), "criterion": "swats"},
            "switch: criterion: swats expected a second optimizer with lr, got Optimizer",
        ),
        (
            {"first": lambda p: Adam([{"params": [q]} for q in [*p, nn.Parameter(torch.ones(1))]])},
            "switch: first: expected an optimizer that keeps its 1 parameter groups, got 2 groups from Adam",
        ),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_argument_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        SwitchOptimizer(PARAMS, **{"first": ADAM, "second": SGDM, **settings})


@pytest.mark.parametrize(("params", "error"), [([], ValueError), (torch.ones(1), TypeError), ([1], TypeError)])
def test_parameters_are_checked_as_in_torch(params: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as ours:
        switching()(params)
    with pytest.raises(error) as torchs:
        ADAM(params)
    assert str(ours.value) == str(torchs.value)


class TestRuns:
    SHORT = ("task=tc", "optimizer=switch", "epochs=3", "batch_size=40")

    def test_a_run_is_adam_up_to_the_switch_epoch_and_differs_after_it(self, do: Run) -> None:
        _, switched = do(*self.SHORT, "switch_epoch=2")
        _, adam = do(*self.SHORT, "optimizer=adam")
        same = [a["train/loss"] == b["train/loss"] for a, b in zip(curves(switched), curves(adam), strict=True)]
        assert same == [True, True, False]

    def test_swats_runs_with_switch_epoch_never_and_is_adam_until_it_switches(self, do: Run) -> None:
        _, swats = do(
            *self.SHORT, "switch_epoch=never", "optimizer.criterion=swats", "optimizer.tolerance=1e-300", "epochs=2"
        )
        _, adam = do(*self.SHORT, "optimizer=adam", "epochs=2")
        assert_same(weights(swats), weights(adam))
        _, loose = do(
            *self.SHORT, "switch_epoch=never", "optimizer.criterion=swats", "optimizer.tolerance=1e9", "epochs=1"
        )
        state = torch.load(loose / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
        assert state["switch"]["switched_at"] == 2
        assert "momentum" in state["param_groups"][0]

    @pytest.mark.parametrize(
        "more",
        [
            ("switch_epoch=1", "schedule=cosine", "batch_size=80"),
            ("switch_epoch=2", "schedule=cosine", "optimizer.second.lr=0.05"),
            ("switch_epoch=never", "optimizer.criterion=swats"),
        ],
        ids=["after", "at", "swats-before"],
    )
    def test_a_run_stopped_after_two_epochs_and_resumed_ends_bitwise_like_one_never_stopped(
        self, more: tuple[str, ...], do: Run, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = [*self.SHORT, *more]
        whole, folder = do(*short)
        cfg = composed(*short, f"runs_dir={tmp_path / 'stopped'}")
        begin, began = module.Training.on_train_epoch_start, []

        def fail(training: module.Training) -> None:
            began.append(training.current_epoch)
            if began == [0, 1, 2]:
                raise ZeroDivisionError
            begin(training)

        monkeypatch.setattr(module.Training, "on_train_epoch_start", fail)
        with pytest.raises(ZeroDivisionError):
            run(cfg)
        result, stopped, how = run(cfg)
        assert (how, began) == ("resumed", [0, 1, 2, 2])
        assert_same(weights(stopped), weights(folder))
        assert curves(stopped) == curves(folder)
        assert result.metrics == whole.metrics
