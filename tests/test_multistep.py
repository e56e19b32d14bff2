"""MultistepSGD: which formulas it takes and refuses, and that it follows the ones it takes."""

import itertools
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers import pairwise
from torch import Tensor

from tmbench.optim import TMSGD, MultistepSGD
from tmbench.optim.formula import difference_names
from tmbench.optim.multistep import PRESETS, exact

ACCEPTED = [name for name in PRESETS if name not in ("leapfrog", "lagrange")]
THIRD_ORDER = ["five_point", "five_point_best", "six_point"]
DIRECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}


def one() -> Tensor:
    return torch.ones(1, dtype=torch.float64, requires_grad=True)


def noisy_path(
    make: Callable[..., torch.optim.Optimizer], reload_at: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Two weights of a noisy quadratic, side by side, after each of 40 steps, one row a step."""
    random = torch.Generator().manual_seed(0)
    curvature = torch.linspace(0.1, 1, 7, dtype=dtype)
    params = [torch.randn(n, generator=random).to(dtype).requires_grad_() for n in (4, 3)]
    optimizer = make(params)
    rows = []
    for step in range(40):
        if step == reload_at:
            state = optimizer.state_dict()
            optimizer = make(params)
            optimizer.load_state_dict(state)
        for p, h in zip(params, curvature.split([4, 3]), strict=True):
            p.grad = h * p.detach() + 0.1 * torch.randn(p.shape, generator=random).to(dtype)
        optimizer.step()
        rows.append(torch.cat([p.detach() for p in params]))
    weights = torch.stack(rows)
    assert weights.isfinite().all()
    return weights


NUMBERS = "multistep: expected finite numbers or texts such as 6/13, got "
ROOTS = "multistep: zero-stability needs every root except the one at 1 inside the unit circle, got the root "


class TestWhichFormulas:
    @pytest.mark.parametrize(
        ("name", "order", "moduli"),
        [
            ("euler", 1, []),
            ("paper", 2, [0.7071, 0.7071]),
            ("third", 2, [0.5774, 0.5774]),
            ("five_point", 3, [0.9025, 0.9025, 0.3069]),
            ("five_point_best", 3, [0.8863, 0.8863, 0.3030]),
            ("six_point", 3, [0.7604, 0.7604, 0.6624, 0.4016]),
        ],
    )
    def test_a_preset_has_the_derived_order_and_roots(self, name: str, order: int, moduli: list[float]) -> None:
        optimizer = MultistepSGD([one()], 0.1, preset=name)
        assert optimizer.order == order
        roots = optimizer._formula(optimizer.param_groups[0]).parasitic_roots
        assert sorted(map(abs, roots), reverse=True) == pytest.approx(moduli, abs=1e-4)

    def test_every_preset_is_tested_or_refused(self) -> None:
        assert {"leapfrog", "lagrange", *ACCEPTED} == PRESETS.keys()

    @pytest.mark.parametrize(("name", "limit"), [("paper", 1.0), ("six_point", 2 / 3)])
    def test_the_limit_is_an_attribute(self, name: str, limit: float) -> None:
        assert MultistepSGD([one()], 0.1, preset=name).limit == pytest.approx(limit, abs=1e-6)

    @pytest.mark.parametrize(
        "coefficients", [(0.4615384615384616, 2 / 13, 4 / 13, 3 / 13, -2 / 13), PRESETS["six_point"]]
    )
    def test_floats_that_are_rounded_fractions_count_as_these(self, coefficients: Any) -> None:
        optimizer = MultistepSGD([one()], 0.1, coefficients=coefficients)
        assert optimizer.order == 3
        assert optimizer.param_groups[0]["b"] == 24 / 13

    def test_texts_are_taken_as_a_yaml_can_write_them(self) -> None:
        optimizer = MultistepSGD([one()], 0.1, coefficients=["3/2", -1, "1/2"], b="1")
        assert optimizer.param_groups[0]["coefficients"] == (1.5, -1.0, 0.5)
        assert optimizer.order == 2

    def test_a_fraction_is_found_again_from_its_float(self) -> None:
        assert [exact(float(x)) for a in PRESETS.values() for x in a] == [x for a in PRESETS.values() for x in a]
        assert exact(math.pi) == Fraction(math.pi)

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"coefficients": (1.0, 0.1)}, "multistep: coefficients must sum to 1, got 11/10"),
            ({"coefficients": (math.pi,)}, "multistep: coefficients must sum to 1, got 3.141592654"),
            ({"coefficients": (math.nan,)}, NUMBERS + "nan"), ({"coefficients": (math.inf,)}, NUMBERS + "inf"),
            ({"coefficients": ("1/0",)}, NUMBERS + "'1/0'"), ({"coefficients": ("1",), "b": "b"}, NUMBERS + "'b'"),
            ({"coefficients": ()}, "multistep: expected at least one coefficient, got none"),
            (
                {"coefficients": (1.5, -1, 0.5), "b": 1.5},
                "multistep: b must be 1 with these coefficients (first order), got 3/2",
            ),
            ({"coefficients": (2, -1)}, "multistep: b must be > 0, or the method ascends, got 0"),
            ({"preset": "leapfrog"}, ROOTS + "-1 of modulus 1"),
            ({"preset": "lagrange"}, ROOTS + "-2.686 of modulus 2.686"),
            ({"coefficients": ("11/10", "1/10", "-14/10", "12/10")}, ROOTS),
            (
                {"preset": "seven"},
                "multistep: preset must be one of euler, leapfrog, paper, third, lagrange, five_point, "
                "five_point_best, six_point, got 'seven'",
            ),
            ({}, "multistep: expected either coefficients (and b) or a preset, got coefficients None"),
            ({"preset": "euler", "b": 1}, "multistep: expected either coefficients (and b) or a preset, got coeff"),
            ({"preset": "euler", "coefficients": (1,)}, "multistep: expected either coefficients (and b) or a preset"),
            ({"preset": "paper", "switch_step": -1}, "multistep: switch_step must be a whole number >= 0 or None"),
            ({"preset": "paper", "lr": -1.0}, "multistep: lr must be >= 0 and finite, got -1.0"),
        ],
        ids=repr,
    )  # fmt: skip
    def test_a_formula_that_cannot_train_is_refused_with_the_numbers(self, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
            MultistepSGD([one()], **{"lr": 0.1, **settings})

    @pytest.mark.parametrize("b", ["1.99", "2.0", "2.4", "2.41"])
    def test_third_order_on_five_points_is_refused_outside_its_open_interval(self, b: str) -> None:
        with pytest.raises(ValueError, match="zero-stability"):
            MultistepSGD([one()], 0.1, coefficients=five_points(b), b=b)

    @pytest.mark.parametrize("b", ["2.01", "2.286", "2.39"])
    def test_third_order_on_five_points_is_taken_inside_its_open_interval(self, b: str) -> None:
        assert MultistepSGD([one()], 0.1, coefficients=five_points(b), b=b).order == 3

    def test_a_refused_group_is_not_kept_and_a_groups_own_formula_counts(self) -> None:
        optimizer = MultistepSGD([one()], 0.1, preset="six_point")
        with pytest.raises(ValueError, match="coefficients must sum to 1, got 2"):
            optimizer.add_param_group({"params": [one()], "coefficients": (2.0,), "b": 1.0})
        with pytest.raises(ValueError, match="preset is for all groups together"):
            optimizer.add_param_group({"params": [one()], "preset": "euler"})
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": [one()], "coefficients": (1.0,), "b": 1.0})
        assert optimizer.order == 1
        assert optimizer.limit == pytest.approx(2 / 3)


def five_points(b: str) -> tuple[Fraction, ...]:
    x = Fraction(b)
    return 4 - 11 * x / 6, 3 * x - 6, 4 - 3 * x / 2, x / 3 - 1


class TestConvergence:
    """On the gradient flow w' = -gradient(w) up to t = 1, in float64."""

    FLOWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
        "linear": (lambda w: w, lambda t: math.exp(-t)),
        "quadratic": (lambda w: w * w, lambda t: 1 / (1 + t)),
    }

    @pytest.mark.parametrize("flow", FLOWS)
    @pytest.mark.parametrize("name", ACCEPTED)
    def test_from_exact_start_values_the_slope_is_the_told_order(self, name: str, flow: str) -> None:
        """Started from W[0] and exact differences at t = 0, -h, -2h, ...: the flow, followed backwards."""
        gradient, w_at = self.FLOWS[flow]
        optimizer = MultistepSGD([one()], 0.1, preset=name)
        errors = []
        for n in (80, 160, 320, 640):
            w, h = one(), 1 / n
            optimizer = MultistepSGD([w], h, preset=name)
            for i, key in enumerate(difference_names(len(PRESETS[name]) - 1)):
                optimizer.state[w][key] = torch.full_like(w, w_at(-i * h) - w_at(-(i + 1) * h))
            errors.append(abs(self.end(w, optimizer, gradient, n) - w_at(1)))
        for coarse, fine in itertools.pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(optimizer.order, abs=0.1)

    @pytest.mark.parametrize("name", THIRD_ORDER)
    def test_euler_steps_as_a_start_leave_order_two(self, name: str) -> None:
        errors = []
        for n in (160, 320, 640, 1280):
            w = one()
            optimizer = MultistepSGD([w], 1 / n, preset=name, switch_step=len(PRESETS[name]) - 1)
            errors.append(abs(self.end(w, optimizer, lambda x: x, n) - math.exp(-1)))
        for coarse, fine in itertools.pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(2, abs=0.15)

    def end(self, w: Tensor, optimizer: torch.optim.Optimizer, gradient: Callable[[Tensor], Tensor], n: int) -> float:
        for _ in range(n):
            w.grad = gradient(w.detach().clone())
            optimizer.step()
        return w.item()


@pairwise(name=ACCEPTED, switch=[0, 2, 5, 12, None], history=["true", "zero"])
def test_it_equals_the_weights_form_of_its_formula(name: str, switch: int | None, history: str) -> None:
    """In plain Python floats; weights from before the start, and with "zero" before the switch, equal the first."""
    a = list(map(float, PRESETS[name]))
    b = 1 + sum(j * x for j, x in enumerate(a))
    lr, curvature = 0.1, 1.5
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    past, expected = [1.0] * len(a), []
    for k in range(60):
        if k == switch and history == "zero":
            past = [past[0]] * len(a)
        g = curvature * past[0] + noise[k]
        if switch is not None and k >= switch:
            new = sum(x * w for x, w in zip(a, past, strict=True)) - b * lr * g
        else:
            new = past[0] - lr * g
        past = [new, *past[:-1]]
        expected.append(new)

    w = one()
    optimizer = MultistepSGD([w], lr, preset=name, switch_step=switch, history=history)
    weights = []
    for k in range(60):
        w.grad = curvature * w.detach() + noise[k]
        optimizer.step()
        weights.append(w.item())
    assert weights == pytest.approx(expected, rel=1e-10, abs=1e-11)


@pairwise(direction=DIRECTIONS, switch=[0, 10, None], foreach=[None, True, False], maximize=[False, True])
def test_euler_equals_torch_sgd_bitwise(
    direction: str, switch: int | None, foreach: bool | None, maximize: bool
) -> None:
    settings = {"lr": 0.02, "weight_decay": 0.1, "maximize": maximize, "foreach": foreach, **DIRECTIONS[direction]}
    expected = noisy_path(lambda p: torch.optim.SGD(p, **settings))
    assert torch.equal(noisy_path(lambda p: MultistepSGD(p, preset="euler", switch_step=switch, **settings)), expected)


SETTINGS: dict[str, Any] = {"direction": DIRECTIONS, "decoupled": [False, True], "foreach": [None, True, False]}


@pairwise(name=["paper", "third"], switch=[0, 1, 10, None], history=["true", "zero"], **SETTINGS)
def test_paper_and_third_follow_tmsgd(
    name: str, switch: int | None, history: str, direction: str, decoupled: bool, foreach: bool | None
) -> None:
    settings = {
        "lr": 0.1, "weight_decay": 0.1, "decoupled": decoupled, "foreach": foreach, "switch_step": switch,
        "history": history, **DIRECTIONS[direction],
    }  # fmt: skip
    c = {"paper": 0.5, "third": 1 / 3}[name]
    multistep = noisy_path(lambda p: MultistepSGD(p, preset=name, **settings), dtype=torch.float64)
    tm = noisy_path(lambda p: TMSGD(p, c=c, **settings), dtype=torch.float64)
    torch.testing.assert_close(multistep, tm, rtol=1e-12, atol=1e-13)


@pairwise(name=ACCEPTED, **SETTINGS)
def test_all_at_once_equals_one_by_one_and_a_reload_continues_bitwise(
    name: str, direction: str, decoupled: bool, foreach: bool | None
) -> None:
    """At a small lr: the third-order formulas with momentum diverge soon."""

    def make(params: Any, foreach: bool | None = foreach) -> MultistepSGD:
        settings = {"lr": 0.01, "weight_decay": 0.1, "decoupled": decoupled, "foreach": foreach, "switch_step": 10}
        return MultistepSGD(params, preset=name, **settings, **DIRECTIONS[direction])

    whole = noisy_path(make)
    assert torch.equal(whole, noisy_path(lambda p: make(p, False)))
    for reload_at in (4, 8, 10, 30):
        assert torch.equal(whole, noisy_path(make, reload_at)), f"reload_at={reload_at}"


def test_a_checkpoint_of_it_can_be_loaded_with_weights_only(tmp_path: Any) -> None:
    w = one()
    optimizer = MultistepSGD([w], 0.1, preset="six_point")
    w.grad = torch.ones_like(w)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = MultistepSGD([w], 1.0, preset="euler")
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert loaded.order == 3, "a state brings its formula"
    assert loaded.param_groups == optimizer.param_groups
