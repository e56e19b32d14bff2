"""The LMO template: its members are the published methods, and its oracles are what the name says."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_optimizer import SCION
from pytorch_optimizer.optimizer.scion import LMONorm
from torch import Tensor

from tmbench.optim import LMO
from tmbench.optim.lmo import NORMS, steepest

MATRICES, MIXED = ((6, 4), (4, 6), (5, 5)), ((6, 4), (3, 2, 2, 2), (5,))
# Scion's scales of these are powers of 2, which its multiplications in bfloat16 do not round.
EXACT = ((8, 2), (4, 16), (5, 5), (4, 1, 2, 2))
Path = list[list[Tensor]]


def path(new: Callable[[Any], Any], shapes: Any, dtype: torch.dtype = torch.float32, grow: float = 1.0) -> Path:
    """The weights after each of 20 steps with noisy gradients of a quadratic, `grow` times as large."""
    random = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    optimizer, found = new(params), []
    for _ in range(20):
        for p in params:
            p.grad = grow * (p.detach() + torch.randn(p.shape, generator=random).to(dtype))
        optimizer.step()
        found.append([p.detach().clone() for p in params])
    return found


def assert_near(one: Path, other: Path, bound: float = 1e-6) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert all(torch.allclose(a, b, rtol=bound, atol=bound) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_spectral_with_muons_scale_is_torchs_muon_bitwise(nesterov: bool, weight_decay: float) -> None:
    common = {"lr": 0.02, "momentum": 0.95, "nesterov": nesterov, "weight_decay": weight_decay}
    ours = path(partial(LMO, norm="spectral", scale="muon", **common), MATRICES)
    theirs = path(partial(torch.optim.Muon, **common), MATRICES)
    assert all(
        torch.equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("constraint", [False, True])
@pytest.mark.parametrize(
    ("norm", "theirs", "shapes"),
    [("auto", LMONorm.AUTO, (*EXACT, (5,))), ("sign", LMONorm.SIGN, MATRICES),
     ("spectral", LMONorm.SPECTRAL, EXACT[:3]), ("l2", LMONorm.BIAS, ((5,), (7,)))],
)  # fmt: skip
def test_scions_scale_is_the_librarys_scion(norm: str, theirs: int, shapes: Any, constraint: bool) -> None:
    ours = path(partial(LMO, lr=0.02, norm=norm, radius=4.0, weight_decay=float(constraint)), shapes)
    scion = partial(SCION, lr=0.02, momentum=0.1, norm_type=theirs, scale=4.0, constraint=constraint, foreach=False)
    assert_near(ours, path(scion, shapes))


def written_out(direction: Callable[[Tensor], Tensor]) -> type[torch.optim.Optimizer]:
    """Momentum, then a step of 0.02 along the direction."""

    class Literal(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                m = self.state[p]["m"] = 0.9 * self.state[p].get("m", torch.zeros_like(p)) + 0.1 * p.grad
                p -= 0.02 * direction(m)

    return Literal


@pytest.mark.parametrize(("norm", "direction"), [("sign", torch.sign), ("l2", lambda m: m / m.norm())])
def test_unit_scale_is_sign_sgd_and_normalised_sgd_written_out(norm: str, direction: Any) -> None:
    ours = path(partial(LMO, lr=0.02, norm=norm, scale="unit"), MIXED, torch.float64)
    assert_near(ours, path(written_out(direction), MIXED, torch.float64), 1e-12)


DUALS: dict[
    str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]
] = {  # ball, its dual, and how near
    "l2": (torch.linalg.vector_norm, torch.linalg.vector_norm, 1e-12),
    "sign": (lambda x: x.abs().max(), lambda d: d.abs().sum(), 1e-12),
    # Muon's coefficients take singular values to between 0.68 and 1.14, not to 1.
    "spectral": (lambda x: torch.linalg.matrix_norm(x, 2), lambda d: torch.linalg.svdvals(d).sum(), 0.35),
}


@pytest.mark.parametrize("norm", DUALS)
def test_an_oracle_reaches_the_dual_norm_on_the_unit_sphere(norm: str) -> None:
    ball, dual, near = DUALS[norm]
    d = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = steepest(d, norm).to(d.dtype)
    assert float(ball(x)) == pytest.approx(1, rel=near)
    assert float((d * x).sum()) == pytest.approx(float(dual(d)), rel=near)
    assert not steepest(torch.zeros(3, 2), norm).any()


def test_newton_schulz_acts_on_the_singular_values_alone() -> None:
    """Its five steps as a polynomial of each singular value; bfloat16 leaves 2 to 3 digits."""
    d = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    u, sigma, v = torch.linalg.svd(d / d.norm(), full_matrices=False)
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    assert torch.allclose(steepest(d, "spectral").double(), u * sigma @ v, atol=0.02)


@pytest.mark.parametrize("norm", NORMS)
def test_the_size_of_the_gradients_does_not_matter(norm: str) -> None:
    start = path(partial(LMO, lr=0.0), MIXED)[0]
    moved = [path(partial(LMO, lr=0.1, norm=norm, momentum=0.0), MIXED, grow=g)[0] for g in (1.0, 1024.0)]
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moved[0], start, strict=True))


def test_a_weight_decay_of_1_keeps_weights_within_the_ball() -> None:
    last = path(partial(LMO, lr=0.2, norm="sign", scale="unit", radius=5.0, weight_decay=1.0), MIXED)[-1]
    assert all((w.abs() <= 5).all() for w in last)


def test_auto_takes_signs_of_tables_alone_and_groups_may_differ() -> None:
    table, matrix, named = (torch.zeros(shape, requires_grad=True) for shape in ((50, 4), (4, 4), (3, 2)))
    for p in (table, matrix, named):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    groups = [{"params": [table, matrix]}, {"params": [named], "norm": "sign", "scale": "unit"}]
    LMO(groups, 1.0, max_side=32).step()
    assert torch.equal(table.abs(), torch.full((50, 4), 0.25))
    assert torch.equal(named.abs(), torch.ones(3, 2))
    assert float(torch.linalg.matrix_norm(matrix.detach(), 2)) < 1.3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"norm": "l1"}, "norm must be one of auto, l2, sign, spectral, got 'l1'"),
        ({"scale": 1.0}, "scale must be one of scion, muon, unit, got 1.0"),
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"radius": 0.0}, "radius must be > 0 and finite, got 0.0"),
        ({"ns_coefficients": (1.5, -0.5)}, "ns_coefficients must be three numbers, got (1.5, -0.5)"),
        ({"ns_steps": 0}, "ns_steps must be a whole number >= 1, got 0"),
        ({"lr": -1.0}, "lr must be >= 0 and finite, got -1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_out_of_range_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^lmo: {re.escape(text)}$"):
        LMO([torch.ones(2, 2, requires_grad=True)], **{"lr": 0.1, **settings})
