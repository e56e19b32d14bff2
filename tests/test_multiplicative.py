"""Multiplicative optimizers: their invariants, their papers' formulas, and the remedy for weights that are 0."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tmbench.certify import certify
from tmbench.optim import EG, Madam, Multiplicative

METHODS: dict[str, Any] = {
    "madam": partial(Madam, lr=0.3),
    "eg": partial(EG, lr=0.3),
    "multiplicative": partial(Multiplicative, lr=0.9, momentum=0.9, alpha=0.99),
}
KEEP_SIGNS = ("madam", "multiplicative")


def stepped(new: Any, starts: list[Tensor], steps: int = 30, size: float = 1.0) -> list[list[Tensor]]:
    """The weights after each step with random gradients of this size; the gradients stay as they are."""
    params, random = [w.clone().requires_grad_() for w in starts], torch.Generator().manual_seed(1)
    optimizer, path = new(params), []
    for _ in range(steps):
        for p in params:
            p.grad = size * torch.randn(p.shape, generator=random, dtype=p.dtype)
        optimizer.step()
        path.append([p.detach().clone() for p in params])
    return path


def starts(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).to(dtype) for shape in ((6, 4), (2, 3, 2, 2), (5,), ())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", KEEP_SIGNS)
def test_a_pure_form_never_changes_a_sign_and_zeros_stay_zeros(name: str, size: float, dtype: torch.dtype) -> None:
    weights = starts(dtype)
    weights[0][1], weights[2][3] = 0, -0.0
    for now in stepped(METHODS[name], weights, size=size):
        assert all(torch.equal(w.sign(), first.sign()) for w, first in zip(now, weights, strict=True))
    assert not any(torch.equal(w, first) for w, first in zip(now, weights, strict=True))


@pytest.mark.parametrize("name", KEEP_SIGNS)
def test_additive_for_1d_trains_biases_that_are_0_and_no_matrix_notices(name: str) -> None:
    weights = starts()
    weights[2].zero_()
    pure, mixed = (stepped(partial(METHODS[name], additive_for_1d=on), weights)[-1] for on in (False, True))
    assert not pure[2].any()
    assert mixed[2].all()
    assert torch.equal(mixed[0], pure[0])
    assert torch.equal(mixed[1], pure[1])


def test_madam_bounds_each_weight_by_three_times_its_tensors_first_root_mean_square() -> None:
    weights = starts()
    bounds = [3 * w.square().mean().sqrt() for w in weights]
    path = stepped(METHODS["madam"], weights, steps=60)
    largest = [max(float(w.abs().max()) for w in tensor) for tensor in zip(*path, strict=True)]
    assert all(size <= bound * (1 + 1e-6) for size, bound in zip(largest, bounds, strict=True))
    assert max(size / bound for size, bound in zip(largest, bounds, strict=True)) > 0.999


def test_eg_ends_where_the_sum_of_its_gradients_says() -> None:
    """asinh(p / beta) moves by -lr g: the order of the gradients, and how they are parted, does not count."""
    w0 = torch.tensor([-3.0, -0.1, 0.0, 0.02, 0.5], dtype=torch.float64)
    w, beta, total = w0.clone().requires_grad_(), 0.2, torch.zeros_like(w0)
    optimizer = EG([w], 0.3, beta=beta)
    for k in range(50):
        w.grad = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        total += w.grad
        optimizer.step()
    expected = beta * torch.sinh(torch.asinh(w0 / beta) - 0.3 * total)
    assert torch.allclose(w.detach(), expected, rtol=1e-10, atol=0)
    assert not optimizer.state


def test_eg_with_a_large_beta_is_sgd() -> None:
    beta = 1e6
    eg = stepped(partial(EG, lr=0.1 / beta, beta=beta), starts(torch.float64))[-1]
    sgd = stepped(partial(torch.optim.SGD, lr=0.1), starts(torch.float64))[-1]
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(eg, sgd, strict=True))


def test_eg_far_above_beta_multiplies() -> None:
    w = torch.tensor([5.0, -5.0], dtype=torch.float64, requires_grad=True)
    w.grad = torch.tensor([0.7, 0.7], dtype=torch.float64)
    EG([w], 1.0, beta=1e-6).step()
    factor = torch.tensor(0.7, dtype=torch.float64).exp()
    assert torch.allclose(w.detach(), torch.stack([5 / factor, -5 * factor]))


def test_multiplicative_changes_a_weight_by_at_most_the_share_lr() -> None:
    before = starts(torch.float64)
    for now in stepped(partial(Multiplicative, lr=0.25, inner_lr=100.0), before, size=10.0):
        shares = [(w / b - 1).abs().max() for w, b in zip(now, before, strict=True)]
        assert max(shares) <= 0.25 * (1 + 1e-12)
        before = now
    assert max(shares) > 0.2499


CERTIFIED = {
    **METHODS,
    "madam, additive_for_1d": partial(Madam, lr=0.05, additive_for_1d=True, weight_decay=0.1),
    "multiplicative, of SGD": partial(Multiplicative, lr=0.3, inner_lr=5.0, weight_decay=0.1),
    "multiplicative, of momentum": partial(Multiplicative, lr=0.3, inner_lr=5.0, momentum=0.9),
    "multiplicative, additive_for_1d": partial(Multiplicative, lr=0.05, alpha=0.9, additive_for_1d=True),
    "eg, decay": partial(EG, lr=0.05, beta=1.0, weight_decay=0.1),
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_takes_the_steps_of_its_paper_in_float64(name: str) -> None:
    findings = certify(CERTIFIED[name], checks=["reference", "paths", "gradients"])
    assert [finding.verdict for finding in findings] == ["holds"] * 4, findings


@pytest.mark.parametrize("name", METHODS)
def test_maximize_goes_where_negated_gradients_go(name: str) -> None:
    up = stepped(partial(METHODS[name], maximize=True), starts(), size=1.0)[-1]
    down = stepped(METHODS[name], starts(), size=-1.0)[-1]
    assert all(map(torch.equal, up, down))


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Madam, {"lr": -0.1}, "madam: lr must be >= 0 and finite, got -0.1"),
    (Madam, {"weight_decay": float("nan")}, "madam: weight_decay must be >= 0 and finite, got nan"),
    (Madam, {"lr": torch.ones(2)}, "madam: lr must be a number or a tensor of one, got shape (2,)"),
    (Madam, {"beta": 1.0}, "madam: beta must be in [0, 1), got 1.0"),
    (Madam, {"p_scale": 0.0}, "madam: p_scale must be > 0 and finite, got 0.0"),
    (Madam, {"g_bound": float("inf")}, "madam: g_bound must be > 0 and finite, got inf"),
    (Multiplicative, {"lr": 1.0}, "multiplicative: lr must be in [0, 1), got 1.0"),
    (Multiplicative, {"alpha": 1.0}, "multiplicative: alpha must be in [0, 1), got 1.0"),
    (Multiplicative, {"inner_lr": 0.0}, "multiplicative: inner_lr must be > 0 and finite, got 0.0"),
    (EG, {"beta": 0.0}, "eg: beta must be > 0 and finite, got 0.0"),
]


@pytest.mark.parametrize(("new", "settings", "text"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_value_out_of_range_is_refused_of_any_group(new: Any, settings: dict[str, Any], text: str) -> None:
    w = torch.ones(1, requires_grad=True)
    for params, given in (([w], {"lr": 0.1, **settings}), ([{"params": [w], **settings}], {"lr": 0.1})):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            new(params, **given)


@pytest.mark.parametrize("name", METHODS)
def test_complex_parameters_and_sparse_gradients_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: complex parameters are not supported; use their real view$"):
        METHODS[name]([torch.ones(2, dtype=torch.complex64, requires_grad=True)])
    dense, w = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = METHODS[name]([dense, w])
    dense.grad, w.grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"^{name}: expected dense gradients, got a sparse one; use sparse=False$"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(3))
