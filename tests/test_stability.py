"""`stability`: closed form against root finding, both against the derived limits and against real optimizers."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from tmbench.optim import TMSGD, MultistepSGD, stability
from tmbench.optim.multistep import PRESETS
from tmbench.optim.stability import (
    Stability,
    characteristic,
    family_limit,
    root_limit,
    roots,
    sgd_limit,
    tm_momentum_limit,
)  # fmt: skip

SGD = torch.optim.SGD
MOMENTA = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99]
NAG: dict[str, Any] = {"momentum": 0.9, "nesterov": True}

# Derived by hand from each method's characteristic polynomial: optimizer, settings, limit.
DERIVED: list[tuple[Any, dict[str, Any], float]] = [
    (SGD, {}, 2.0),
    (TMSGD, {}, 1.0),
    (TMSGD, {"switch_step": None}, 2.0),
    *((TMSGD, {"c": c}, q) for c, q in [(0.2, 1.0), (0.25, 4 / 3), (1 / 3, 2.0), (0.4, 1.5), (0.5, 1.0), (0.6, 2 / 3)]),
    *((SGD, {"momentum": m}, 2 + 2 * m) for m in MOMENTA),
    *((TMSGD, {"momentum": m}, q) for m, q in
      zip(MOMENTA, [1.0, 0.839404, 0.654993, 0.560660, 0.515502, 0.500780, 0.500109, 0.500001], strict=True)),
    *((TMSGD, {"momentum": m, "dampening": m}, q / (1 - m)) for m, q in [(0.5, 0.560660), (0.9, 0.500780)]),
    *((SGD, {"momentum": m, "dampening": m}, (2 + 2 * m) / (1 - m)) for m in (0.5, 0.9)),
    *((TMSGD, {"momentum": m, "nesterov": True}, q) for m, q in [(0.5, 0.5458), (0.9, 0.3942), (0.99, 0.3767)]),
    *((SGD, {"momentum": m, "nesterov": True}, (2 + 2 * m) / (1 + 2 * m)) for m in (0.5, 0.9, 0.99)),
    *((MultistepSGD, {"preset": name}, q) for name, q in [
        ("euler", 2.0), ("paper", 1.0), ("third", 2.0),
        ("five_point", 0.2808), ("five_point_best", 0.3325), ("six_point", 2 / 3),
    ]),
    (MultistepSGD, {"coefficients": (1,)}, 2.0),
]  # fmt: skip
NAMES = [f"{make.__name__}-{settings}" for make, settings, _ in DERIVED]


@pytest.mark.parametrize(("make", "settings", "limit"), DERIVED, ids=NAMES)
def test_the_limit_is_the_derived_one_and_so_is_that_of_the_roots_alone(
    make: Any, settings: dict[str, Any], limit: float
) -> None:
    optimizer = make([torch.zeros(1, requires_grad=True)], lr=1.0, **settings)
    group = optimizer.param_groups[0]
    factors, b = ((), 1.0) if make is SGD or group["switch_step"] is None else optimizer.step_form(group)
    found = root_limit(*characteristic(factors, b, group["momentum"], group["dampening"], group["nesterov"]))
    assert found.limit == pytest.approx(limit, rel=1e-4, abs=1e-4)
    given = stability(optimizer)
    assert given.limit == pytest.approx(found.limit, rel=1e-6)
    assert given.kind == found.kind
    assert given == stability(make, **settings)


@pytest.mark.parametrize("c", [0.05, 0.1, 0.2, 0.3, 1 / 3, 0.35, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_closed_form_of_the_family_equals_root_finding(c: float) -> None:
    agree(family_limit(c), root_limit(*characteristic((3 * c - 1, -c), 2 - 2 * c)))


@pytest.mark.parametrize("dampening", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("momentum", [0.0, 1e-4, *MOMENTA[1:]])
def test_closed_forms_of_momentum_equal_root_finding(momentum: float, dampening: float) -> None:
    agree(sgd_limit(momentum, dampening), root_limit(*characteristic((), 1.0, momentum, dampening)))
    agree(tm_momentum_limit(momentum, dampening), root_limit(*characteristic((0.5, -0.5), 1.0, momentum, dampening)))


def agree(closed: Stability, found: Stability) -> None:
    assert closed.limit == pytest.approx(found.limit, rel=1e-7)
    assert closed.angle == pytest.approx(found.angle, abs=1e-3)


def test_closed_form_of_tm_momentum_equals_the_one_in_which_terms_cancel() -> None:
    for m in (0.1, 0.5, 0.9, 0.99):
        cos = (1 + 2 * m - math.sqrt(1 + 4 * m - 4 * m**2)) / (4 * m)
        assert tm_momentum_limit(m).limit == pytest.approx((1 - cos) * (1 - m + 2 * m * cos), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "settings", "angle", "kind"),
    [
        (SGD, {}, 180, "period 2"),
        (SGD, NAG, 180, "period 2"),
        (TMSGD, {}, 90, "period 4"),
        (TMSGD, {"c": 0.2}, 180, "period 2"),
        (TMSGD, {"c": 1 / 3}, 180, "period 2"),
        (TMSGD, {"c": 0.4}, 120, "period 3"),
        (TMSGD, {"momentum": 0.1}, 85.15, "period 4.228"),
        (TMSGD, {"momentum": 0.5}, 72.97, "period 4.934"),
        (TMSGD, {"momentum": 0.9}, 63.01, "period 5.713"),
        (TMSGD, {"momentum": 0.99}, 60.33, "period 5.967"),
        (MultistepSGD, {"preset": "paper"}, 90, "period 4"),
        (MultistepSGD, {"preset": "six_point"}, 180, "period 2"),
    ],
)
def test_the_kind_of_oscillation_is_the_derived_one(
    make: Any, settings: dict[str, Any], angle: float, kind: str
) -> None:
    given = stability(make, **settings)
    assert given.angle == pytest.approx(angle, abs=0.01)
    assert given.kind == kind


def test_a_root_that_leaves_at_one_is_monotone_and_what_never_diverges_has_no_limit() -> None:
    """z - 1 - q: growth from the first q on; and z - 0.5 - q: from q = 1/2 on."""
    assert root_limit([1.0, 0.0], [0.0]).limit == math.inf
    assert root_limit([1.0, -1.0], [-1.0]) == Stability(0.0, 0.0)
    late = root_limit([1.0, -0.5], [-1.0])
    assert late.limit == pytest.approx(0.5)
    assert late.kind == "monotone"


def test_the_roots_of_eq_8_at_its_limit_are_one_half_and_a_pair_on_the_circle() -> None:
    z = roots(torch.tensor([1.0, -0.5, 1.0, -0.5], dtype=torch.float64))
    expected = {0.5, 1j, -1j}
    assert all(min(abs(x - e) for e in expected) < 1e-12 for x in z.tolist())


MEASURED: list[tuple[Any, dict[str, Any]]] = [
    *((make, settings) for make, settings, _ in DERIVED),
    *((TMSGD, {"c": c, **direction}) for c in (0.2, 1 / 3) for direction in ({"momentum": 0.9}, NAG)),
    (TMSGD, {"switch_step": None, **NAG}),
    (TMSGD, {"decoupled": True, "weight_decay": 0.3}),
    (TMSGD, {"decoupled": True, "weight_decay": 0.3, "switch_step": None, "momentum": 0.5}),
    (MultistepSGD, {"preset": "six_point", **NAG}),
    (MultistepSGD, {"preset": "five_point", "momentum": 0.5, "dampening": 0.5}),
    (MultistepSGD, {"preset": "third", "decoupled": True, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("make", "settings"), MEASURED, ids=[f"{m.__name__}-{s}" for m, s in MEASURED])
def test_the_real_optimizer_shrinks_at_098_and_grows_at_102_of_its_limit(make: Any, settings: dict[str, Any]) -> None:
    settings = {"lr": 1.0, **settings}
    q = torch.tensor([0.5, 0.98, 1.02], dtype=torch.float64) * stability(make, **settings).limit
    w = torch.ones_like(q, requires_grad=True)
    optimizer = make([w], **settings)
    early, late = torch.zeros_like(q), torch.zeros_like(q)
    for step in range(400):
        w.grad = q * w.detach()
        optimizer.step()
        if 200 <= step < 260:
            early += w.detach() ** 2
        elif step >= 340:
            late += w.detach() ** 2
    assert (late > early).tolist() == [False, False, True]


def test_decoupled_decay_moves_the_limit_at_the_given_lr() -> None:
    """SGD: W <- (1 - s - q) W is stable for q < 2 - s, s = lr * weight_decay."""
    given = stability(TMSGD, lr=0.5, switch_step=None, decoupled=True, weight_decay=0.4)
    assert given.limit == pytest.approx(1.8)
    assert stability(TMSGD, lr=0.5, weight_decay=0.4) == stability(TMSGD), "an L2 penalty counts as curvature"


def test_an_instance_a_class_and_a_partial_are_told_the_same() -> None:
    expected = stability(TMSGD([torch.zeros(3, requires_grad=True)], 0.1, 0.9))
    assert stability(TMSGD, momentum=0.9) == expected
    assert stability(partial(TMSGD, lr=0.1, momentum=0.5), momentum=0.9) == expected


def test_of_several_groups_the_lowest_limit_is_told() -> None:
    w, v = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = TMSGD([{"params": [w], "c": 1 / 3}, {"params": [v], "momentum": 0.9}], 0.1)
    assert stability(optimizer).limit == pytest.approx(0.50078, abs=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [(torch.optim.Adam([torch.zeros(1, requires_grad=True)]), "Adam"), (torch.optim.Adam, "Adam"), ("tmsgd", "str")],
)
def test_an_unknown_optimizer_is_refused_with_the_known_ones(optimizer: Any, name: str) -> None:
    text = rf"^stability: known are SGD \(of torch\), TMSGD and MultistepSGD, got {name}$"
    with pytest.raises(TypeError, match=text):
        stability(optimizer)


def test_settings_for_an_instance_are_refused() -> None:
    with pytest.raises(TypeError, match="expected settings with a class only, got momentum with an instance"):
        stability(TMSGD([torch.zeros(1, requires_grad=True)], 0.1), momentum=0.9)


def test_every_accepted_preset_has_a_derived_limit_here() -> None:
    tested = {settings.get("preset") for _, settings, _ in DERIVED} - {None}
    assert tested == PRESETS.keys() - {"leapfrog", "lagrange"}
