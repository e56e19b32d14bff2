"""How large a learning rate may be: the stability limit of SGD and of the multistep methods.

On a quadratic of one curvature, every method here is a linear recurrence in the weight. It is stable
while all roots of its characteristic polynomial stay(z) + q move(z), q = lr * curvature, lie inside
the unit circle. Where no closed form is known, the roots are computed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import SGDThenFormula


@dataclass(frozen=True)
class Stability:
    """`limit`: every lr * curvature from 0 to here is stable. `angle`: turn per step just beyond, in degrees."""

    limit: float
    angle: float

    @property
    def kind(self) -> str:
        """The oscillation in which it ends: "period 2" flips its sign in every step; or "monotone"."""
        return f"period {360 / self.angle:.4g}" if self.angle > 0 else "monotone"


def stability(optimizer: Any, *, switched: bool | None = None, **settings: Any) -> Stability:
    """The stability of an optimizer, from the switch on if it has one; of several groups, the lowest.

    The curvature includes an L2 `weight_decay`. Where decay is decoupled, the limit holds at the group's lr.

    Args:
        optimizer: a `torch.optim.SGD`, `TMSGD` or `MultistepSGD`; or such a class (or a partial of it),
            to which `settings` are given: `stability(TMSGD, momentum=0.9)`.
        switched: whether to take it as it is after its switch (True) or before (False), whenever that comes.

    Raises:
        TypeError: any other optimizer, or settings for one that has its own.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        if not callable(optimizer):
            raise _unknown(optimizer)
        given = {**getattr(optimizer, "keywords", {}), **settings}
        optimizer = optimizer([torch.zeros(1, requires_grad=True)], **{"lr": 1.0, **given})
    elif settings:
        raise TypeError(f"stability: expected settings with a class only, got {', '.join(settings)} with an instance")
    if not isinstance(optimizer, torch.optim.SGD | SGDThenFormula):
        raise _unknown(optimizer)
    return min((_of_group(optimizer, group, switched) for group in optimizer.param_groups), key=lambda s: s.limit)


def preconditioned_limit(optimizer: torch.optim.Optimizer) -> tuple[float, list[Tensor]] | None:
    """Of torch's Adam and AdamW: the limit of lr times the preconditioned curvature, and P, a tensor a parameter.

    Adam with P = sqrt(v_hat) + eps held fixed is heavy ball along P^-1 g: stable on a quadratic while lr times the top
    eigenvalue of P^-1/2 H P^-1/2 is below (2 + 2 beta1) / (1 - beta1), 38 at beta1 = 0.9 (Cohen et al. 2022, arXiv
    2207.14484). An L2 `weight_decay` is part of H. Decoupled decay multiplies the weights by 1 - s in every step,
    s = lr * weight_decay, and is no curvature: it lowers the limit to (2 - s) (1 + beta1) / (1 - beta1). With amsgrad P
    is of the largest v. The first steps, in which the bias correction of the mean is felt, are not covered.

    Args:
        optimizer: of one or several groups. `top_curvature(..., preconditioner=P)` takes its parameters in the order of
            the groups. A parameter that has had no gradient has P = 1; it does not move.

    Returns:
        None where this is not defined: any other optimizer, one that has not stepped, or groups that differ in lr or
        beta1.
    """
    groups = optimizer.param_groups
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or not optimizer.state:
        return None
    if len({(float(group["lr"]), float(group["betas"][0])) for group in groups}) > 1:
        return None
    beta1, shrink = float(groups[0]["betas"][0]), max(_shrink(group) for group in groups)
    diagonals = [_adam_diagonal(group, p, optimizer.state.get(p)) for group in groups for p in group["params"]]
    return (2 - shrink) * (1 + beta1) / (1 - beta1), diagonals


def _shrink(group: dict[str, Any]) -> float:
    decoupled = group.get("decoupled") or group.get("decoupled_weight_decay")  # ours, torch's
    return float(group["lr"] * group["weight_decay"]) if decoupled else 0.0


def _adam_diagonal(group: dict[str, Any], p: Tensor, state: dict[str, Any] | None) -> Tensor:
    if not state:
        return torch.ones_like(p, requires_grad=False)
    square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return (square / (1 - float(group["betas"][1]) ** float(state["step"]))).sqrt() + group["eps"]


def _of_group(optimizer: Any, group: dict[str, Any], switched: bool | None) -> Stability:
    momentum, dampening, nesterov = group["momentum"], group["dampening"], group["nesterov"]
    shrink = _shrink(group)
    multistep = group.get("switch_step") is not None if switched is None else switched
    multistep = multistep and isinstance(optimizer, SGDThenFormula)
    if shrink == 0 and not nesterov:
        if not multistep:
            return sgd_limit(momentum, dampening)
        rescaled = group.get("lr_factor") not in (None, 1.0)
        if "c" in group and momentum == 0 and not rescaled:
            return family_limit(group["c"])
        if "c" in group and group["c"] == 0.5 and not rescaled:
            return tm_momentum_limit(momentum, dampening)
    factors, b = optimizer.step_form(group) if multistep else ((), 1.0)
    return root_limit(*characteristic(factors, b, momentum, dampening, nesterov, shrink))


def sgd_limit(momentum: float, dampening: float = 0.0) -> Stability:
    """SGD, with heavy ball: closed form. Without momentum, torch ignores dampening."""
    return Stability(2 * (1 + momentum) / (1 - dampening if momentum else 1), 180.0)


def family_limit(c: float) -> Stability:
    """TM-SGD without momentum: closed form. A real root leaves at -1 up to c = 1/3, a pair of roots beyond."""
    if c <= 1 / 3:
        return Stability(4 * c / (1 - c), 180.0)
    return Stability((1 - c) / c, math.degrees(math.acos((2 * c - 1) / c)))


def tm_momentum_limit(momentum: float, dampening: float = 0.0) -> Stability:
    """TM-SGD-M at c = 1/2: closed form, rewritten so that nothing cancels for a small momentum."""
    cos = 2 * momentum / (1 + 2 * momentum + math.sqrt(1 + 4 * momentum - 4 * momentum**2))
    limit = (1 - cos) * (1 - momentum + 2 * momentum * cos)
    return Stability(limit / (1 - dampening if momentum else 1), math.degrees(math.acos(cos)))


def characteristic(
    factors: Sequence[float], b: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False,
    shrink: float = 0.0,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """The polynomials stay and move, highest power first, for d[k+1] = factors . d - b lr direction."""
    stay = _product([1.0, shrink - 1], recurrence(factors))
    move = [b] + [0.0] * len(factors)
    if momentum != 0:
        stay = _product(stay, [1.0, -momentum])
        move = _product(move, [1 + momentum, -momentum] if nesterov else [1 - dampening, 0.0])
    return stay, move


def recurrence(factors: Sequence[float]) -> list[float]:
    """The polynomial of d[k+1] = factors . (d[k], d[k-1], ...): its roots are the parasitic ones."""
    return [1.0, *(-f for f in factors)]


def root_limit(stay: Sequence[float], move: Sequence[float]) -> Stability:
    """The first q > 0 from which on the largest root of stay + q move is outside the unit circle.

    Searched on a grid (3 % apart, 1e-8 to 1e8), then by bisection. A second stable range beyond it is not reported.
    """
    a = torch.tensor(stay, dtype=torch.float64, device="cpu")
    b = torch.zeros_like(a)
    b[len(a) - len(move) :] = torch.tensor(move, dtype=torch.float64, device="cpu")

    def unstable(q: Tensor) -> Tensor:
        return roots(a + q[..., None] * b).abs().amax(-1) > 1 + 1e-12  # a little more than their rounding

    grid = torch.logspace(-8, 8, 1249, dtype=torch.float64, device="cpu")
    beyond = unstable(grid)
    if not beyond.any():
        return Stability(math.inf, 0.0)
    first = int(beyond.int().argmax())
    high = grid[first]
    if first == 0:
        return Stability(0.0, _angle(roots(a + high * b)))
    low = grid[first - 1]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if unstable(middle) else (middle, high)
    return Stability(low.item(), _angle(roots(a + high * b)))


def roots(polynomials: Tensor) -> Tensor:
    """The roots of monic polynomials, by eigenvalues. Shapes: (..., n + 1), highest power first -> (..., n)."""
    n = polynomials.shape[-1] - 1
    companion = torch.diag(torch.ones(n - 1, dtype=polynomials.dtype, device=polynomials.device), -1)
    companion = companion.repeat(*polynomials.shape[:-1], 1, 1)
    companion[..., 0, :] = -polynomials[..., 1:]
    return torch.linalg.eigvals(companion)


def _angle(z: Tensor) -> float:
    return math.degrees(abs(z[z.abs().argmax()].angle().item()))


def _product(p: Sequence[float], q: Sequence[float]) -> list[float]:
    out = [0.0] * (len(p) + len(q) - 1)
    for i, x in enumerate(p):
        for j, y in enumerate(q):
            out[i + j] += x * y
    return out


def _unknown(optimizer: object) -> TypeError:
    return TypeError(f"stability: known are SGD (of torch), TMSGD and MultistepSGD, got {type(optimizer).__name__}")
