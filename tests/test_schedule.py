"""The learning rate's factor: its values in closed form, through torch's LambdaLR, and of every YAML."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from conftest import Compose, choices
from torch.optim.lr_scheduler import LambdaLR

from tmbench.config.settle import settle
from tmbench.training import schedule
from tmbench.training.build import schedule_of

STEPS, EPOCH = 100, 10  # ten epochs of ten steps

Factor = Callable[[int], float]


def factor(name: str, warmup_epochs: float = 0.0, warmup_from: float = 0.1, **extra: object) -> Factor:
    """A function of tmbench.training.schedule as a function of the step alone."""
    settings = {"warmup_epochs": warmup_epochs, "warmup_from": warmup_from, **extra}
    return partial(getattr(schedule, name), steps=STEPS, epoch=EPOCH, **settings)


EXTRA: dict[str, dict[str, object]] = {"cosine": {}, "poly": {"power": 0.9}, "warmup": {},
                                       "step": {"milestones": [0.5, 0.75], "gamma": 0.1}}  # fmt: skip
EVERY = pytest.mark.parametrize("name", EXTRA)

HALF, LAST = math.sqrt(0.5), math.pi * 0.99  # the cosine of pi/4, and its argument in the last of 100 steps
VALUES = [
    ("cosine", 0, {0: 1, 25: 0.5 * (1 + HALF), 50: 0.5, 75: 0.5 * (1 - HALF), 99: 0.5 * (1 + math.cos(LAST)), 100: 0}),
    ("cosine", 2, {0: 0.1, 10: 0.55, 19: 0.955, 20: 1.0, 40: 0.5 * (1 + HALF), 60: 0.5, 80: 0.5 * (1 - HALF), 100: 0}),
    ("poly", 0, {0: 1.0, 50: 0.5**0.9, 75: 0.25**0.9, 99: 0.01**0.9, 100: 0}),
    ("poly", 2, {0: 0.1, 10: 0.55, 20: 1.0, 60: 0.5**0.9, 80: 0.25**0.9, 99: (1 / 80) ** 0.9, 100: 0}),
    ("warmup", 0, {0: 1.0, 1: 1.0, 50: 1.0, 99: 1.0}),
    ("warmup", 2, {0: 0.1, 5: 0.325, 10: 0.55, 19: 0.955, 20: 1.0, 99: 1.0}),
    ("warmup", 0.5, {0: 0.1, 1: 0.28, 4: 0.82, 5: 1.0, 6: 1.0}),
    ("step", 0, {0: 1.0, 49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
    ("step", 2, {0: 0.1, 10: 0.55, 20: 1.0, 49: 1.0, 50: 0.1, 75: 0.01, 99: 0.01}),
]


@pytest.mark.parametrize(("name", "warmup_epochs", "values"), VALUES)
def test_a_factor_has_its_closed_form_value(name: str, warmup_epochs: float, values: dict[int, float]) -> None:
    at = factor(name, warmup_epochs, **EXTRA[name])
    assert {step: at(step) for step in values} == pytest.approx(values, rel=1e-12, abs=1e-15)


@EVERY
@pytest.mark.parametrize("warmup_from", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("warmup_epochs", [0.25, 1.0, 3.0, 20.0])
def test_every_warm_up_is_the_straight_line_to_1(name: str, warmup_epochs: float, warmup_from: float) -> None:
    at = factor(name, warmup_epochs, warmup_from, **EXTRA[name])
    warm = warmup_epochs * EPOCH
    for step in range(min(STEPS, math.ceil(warm))):
        assert at(step) == pytest.approx(warmup_from + (1 - warmup_from) * step / warm, rel=1e-12)
    if warm < 50 and warm == int(warm):
        assert at(int(warm)) == 1.0


@pytest.mark.parametrize("name", ["cosine", "poly"])
@pytest.mark.parametrize("warmup_epochs", [0, 3])
def test_a_decay_falls_at_every_step_to_nearly_0(name: str, warmup_epochs: float) -> None:
    at = factor(name, warmup_epochs, **EXTRA[name])
    values = [at(step) for step in range(warmup_epochs * EPOCH, STEPS)]
    assert all(after < before for before, after in itertools.pairwise(values))
    assert 0 < values[-1] < 0.03


@EVERY
@pytest.mark.parametrize("warmup_epochs", [0, 2, 9.95, 10, 11])
def test_a_factor_stays_between_0_and_1_even_past_the_end(name: str, warmup_epochs: float) -> None:
    at = factor(name, warmup_epochs, **EXTRA[name])
    values = [at(step) for step in range(3 * STEPS)]
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)
    decayed = {"cosine": 0.0, "poly": 0.0, "warmup": 1.0, "step": 0.01}
    assert values[-1] == pytest.approx(decayed[name], abs=1e-15)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_poly_has_the_given_power(power: float) -> None:
    at = factor("poly", power=power)
    assert [at(0), at(36), at(75)] == pytest.approx([1.0, 0.64**power, 0.25**power], rel=1e-12)


def test_step_takes_any_number_of_milestones() -> None:
    assert {factor("step", milestones=[], gamma=0.1)(step) for step in range(STEPS)} == {1.0}
    at = factor("step", milestones=[0.2, 0.4, 0.401, 0.9], gamma=0.5)
    assert [at(step) for step in (19, 20, 40, 41, 89, 90)] == pytest.approx([1, 0.5, 0.25, 0.125, 0.125, 0.0625])


def test_step_may_decay_before_the_warm_up_is_over() -> None:
    at = factor("step", 4, milestones=[0.2], gamma=0.1)
    assert [at(20), at(39), at(40)] == pytest.approx([0.55, 0.9775, 0.1], rel=1e-12)


@pytest.mark.parametrize(("name", "warmup_epochs"), [("cosine", 0), ("poly", 2), ("step", 2)])
def test_lambda_lr_gives_each_step_its_factor_times_the_rate(name: str, warmup_epochs: float) -> None:
    at = factor(name, warmup_epochs, **EXTRA[name])
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scheduler = LambdaLR(optimizer, at)
    moved = []
    for _ in range(STEPS):
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        scheduler.step()
        moved.append(before - weight.item())
    assert moved == pytest.approx([0.5 * at(step) for step in range(STEPS)], rel=1e-9, abs=1e-13)


# Every YAML of conf/schedule


# Each of another task, which gives it its number of epochs alone; `source` of every one, which has its milestones.
YAMLS = [
    *zip(itertools.cycle(choices("task")), choices("schedule"), strict=False),
    *((t, "source") for t in choices("task")),
]


@pytest.mark.parametrize(("task", "name"), sorted({*YAMLS}))
def test_every_yaml_gives_factors_between_0_and_1_over_the_whole_run(composed: Compose, task: str, name: str) -> None:
    cfg = settle(composed(f"task={task}", f"schedule={name}", "trainer=cpu"))
    assert cfg.schedule.name == name
    for steps_an_epoch in (1, 2, 53):
        at = schedule_of(cfg, steps_an_epoch)
        if name == "constant":
            assert at is None
            continue
        assert at is not None
        values = [at(step) for step in range(cfg.epochs * steps_an_epoch + 1)]
        assert all(0 <= value <= 1 for value in values)
        top = pytest.approx(1.0, abs=0.05 if name == "one_cycle" else 0)  # which is between steps
        assert max(values[:-1]) == top


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cosine", {0: 1.0, 20: 0.5 * (1 + math.cos(math.pi / 16)), 160: 0.5, 320: 0.0}),
        ("poly", {0: 0.001, 10: 0.5005, 20: 1.0, 170: 0.5**0.9, 320: 0.0}),
        ("step", {0: 1.0, 159: 1.0, 160: 0.1, 239: 0.1, 240: 0.01, 319: 0.01}),
        ("warmup", {0: 0.001, 10: 0.5005, 20: 1.0, 319: 1.0}),
    ],
)
def test_a_yaml_is_spread_over_the_run_s_own_length(composed: Compose, name: str, values: dict[int, float]) -> None:
    cfg = settle(composed("task=tc", f"schedule={name}", "trainer=cpu", "epochs=16"))
    at = schedule_of(cfg, 20)
    assert at is not None
    assert {step: at(step) for step in values} == pytest.approx(values, rel=1e-12, abs=1e-15)


def test_a_schedule_s_settings_reach_its_function(composed: Compose) -> None:
    overrides = ("schedule.milestones=[0.25]", "schedule.gamma=0.5", "schedule.warmup_epochs=1", "epochs=4")
    cfg = settle(composed("task=tc", "schedule=step", "trainer=cpu", *overrides, "schedule.warmup_from=0.2"))
    at = schedule_of(cfg, 10)
    assert at is not None
    assert [at(step) for step in (0, 5, 9, 10, 39)] == pytest.approx([0.2, 0.6, 0.92, 0.5, 0.5], rel=1e-12)


@pytest.mark.parametrize("steps", [10, 97, 1000])
def test_one_cycle_is_torchs(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    for step in range(steps):
        ours = schedule.one_cycle(step, steps=steps, epoch=1, peak=0.3, start=0.04, end=4e-6)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        if step < steps - 1:
            torchs.step()


def test_wsd_warms_up_stays_and_decays_to_zero() -> None:
    factors = [schedule.wsd(k, steps=100, epoch=10, warmup_epochs=1, warmup_from=0, decay=0.2) for k in range(101)]
    assert factors[:3] == pytest.approx([0, 0.1, 0.2])
    assert set(factors[10:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - k / 20 for k in range(21)])
