"""Any explicit multistep formula with one gradient a step, checked before it may train anything.

    W[k+1] = a[0] W[k] + a[1] W[k-1] + ... - b lr g[k]

A formula that is not consistent follows another flow than the gradient's, and one that is not
zero-stable diverges for every learning rate; both are refused with the numbers that show it.
Kept in step form, as TMSGD is: the factor of the difference d[k-i] is minus the sum of a beyond a[i].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, Unpack

import torch
from torch import Tensor

from .base import SGDSettings, SGDThenFormula
from .stability import recurrence, roots, stability

Number = int | float | str | Fraction
TOLERANCE = Fraction(1, 10**9)  # for coefficients that were rounded; exact ones meet every condition exactly
F = Fraction
PRESETS: dict[str, tuple[Fraction, ...]] = {
    "euler": (F(1),),
    "leapfrog": (F(0), F(1)),  # refused: only weakly stable, its limit is 0
    "paper": (F(3, 2), F(-1), F(1, 2)),
    "third": (F(1), F(-1, 3), F(1, 3)),
    "lagrange": (F(-3, 2), F(3), F(-1, 2)),  # refused: a root of modulus 2.686
    "five_point": (F(-1, 8), F(6, 8), F(5, 8), F(-2, 8)),
    # Third order: (4 - 11 b/6, 3 b - 6, 4 - 3 b/2, b/3 - 1), zero-stable for 2 < b < 2.4; the best b is 2.286.
    "five_point_best": (F("-0.191"), F("0.858"), F("0.571"), F("-0.238")),
    "six_point": (F(6, 13), F(2, 13), F(4, 13), F(3, 13), F(-2, 13)),
}


@dataclass(frozen=True)
class Formula:
    """A checked formula: consistent and strongly zero-stable.

    Raises:
        ValueError: it is not; with the sum, the b or the root that shows it.
    """

    coefficients: tuple[Fraction, ...]
    b: Fraction

    def __post_init__(self) -> None:
        if not self.coefficients:
            raise ValueError("multistep: expected at least one coefficient, got none")
        total, b = Fraction(sum(self.coefficients)), first_order_b(self.coefficients)
        if not _zero(total - 1):
            raise ValueError(f"multistep: coefficients must sum to 1, got {_show(total)}")
        if not _zero(self.b - b):
            got = f"{_show(b)} with these coefficients (first order), got {_show(self.b)}"
            raise ValueError(f"multistep: b must be {got}")
        if self.b <= 0:
            raise ValueError(f"multistep: b must be > 0, or the method ascends, got {_show(self.b)}")
        worst = max(self.parasitic_roots, key=abs, default=0j)
        if abs(worst) >= 1 - 1e-9:
            root = f"{worst.real:.4g}" if worst.imag == 0 else f"{worst.real:.4g}{worst.imag:+.4g}i"
            raise ValueError(
                "multistep: zero-stability needs every root except the one at 1 inside the unit circle, "
                f"got the root {root} of modulus {abs(worst):.4g}"
            )

    @cached_property
    def factors(self) -> tuple[float, ...]:
        """Of d[k], d[k-1], ... in the step form."""
        a = self.coefficients
        return tuple(-float(sum(a[i:])) for i in range(1, len(a)))

    @cached_property
    def parasitic_roots(self) -> list[complex]:
        """The roots of z^n - a[0] z^(n-1) - ... without the one at 1, which follows the gradient flow."""
        if not self.factors:
            return []
        z: list[complex] = roots(torch.tensor(recurrence(self.factors), dtype=torch.float64, device="cpu")).tolist()
        return z

    @cached_property
    def order(self) -> int:
        """Largest p for which the formula is exact on all polynomials of degree p: global error O(lr^p)."""
        p = 1
        while _zero(1 - sum(a * (-j) ** (p + 1) for j, a in enumerate(self.coefficients))):
            p += 1
        return p


def first_order_b(coefficients: Sequence[Fraction]) -> Fraction:
    """The only b with which W = k follows g = -1/lr exactly."""
    return 1 + sum((j * a for j, a in enumerate(coefficients)), Fraction(0))


def exact(x: Number) -> Fraction:
    """The simplest fraction that rounds to x, if it is a simple one (6/13 of 0.46153846153846156); else x itself."""
    try:
        value = Fraction(x)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(f"multistep: expected finite numbers or texts such as 6/13, got {x!r}") from None
    simple = value.limit_denominator(10_000)
    return simple if isinstance(x, float) and float(simple) == x else value


@cache
def formula(coefficients: tuple[float, ...], b: float) -> Formula:
    return Formula(tuple(map(exact, coefficients)), exact(b))


class MultistepSGD(SGDThenFormula):
    """SGD until `switch_step`, then W[k+1] = coefficients . (W[k], W[k-1], ...) - b lr g[k].

    `order` is the formula's, computed exactly where the coefficients allow; `limit` the largest stable
    lr * curvature with these settings. Of several groups with formulas of their own, the lowest.

    Args:
        params, lr, momentum, history, others: as in `SGDThenFormula`.
        coefficients: of W[k], W[k-1], ...: numbers, or texts such as "6/13".
        b: of lr g[k]; None is the only one that is consistent, 1 plus the sum of j times coefficient j.
        preset: in place of both: euler, paper (TMSGD), third (its c = 1/3), five_point, five_point_best, six_point.
            (leapfrog and lagrange are known, too, and refused: see the message.)
        switch_step: number of SGD steps before; None is never. A formula on n points has no history from fewer
            than n - 2; with "true" history these steps start it, at an error O(lr^2), below its own if of order 3.

    Raises:
        ValueError: also a formula that is inconsistent or not strongly zero-stable. Weak stability is refused
            because every lr > 0 diverges then.
    """

    name = "multistep"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, momentum: float = 0.0, *,
        coefficients: Iterable[Number] | None = None, b: Number | None = None, preset: str | None = None,
        history: str = "true", **others: Unpack[SGDSettings],
    ) -> None:  # fmt: skip
        a = _chosen(coefficients, b, preset)
        # Floats, which a checkpoint can hold; `exact` finds the fractions again.
        formula = {"coefficients": tuple(map(float, a)), "b": float(first_order_b(a) if b is None else exact(b))}
        super().__init__(params, formula, lr, momentum, history=history, **others)

    @property
    def order(self) -> int:
        return min(self._formula(group).order for group in self.param_groups)

    @property
    def limit(self) -> float:
        return stability(self).limit

    def step_form(self, group: dict[str, Any]) -> tuple[Sequence[float], float]:
        return self._formula(group).factors, group["b"]

    def _formula(self, group: dict[str, Any]) -> Formula:
        return formula(tuple(group["coefficients"]), group["b"])

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if "preset" in group:
            raise ValueError("multistep: a group takes coefficients and b; preset is for all groups together")
        self._formula(group)


def _chosen(coefficients: Iterable[Number] | None, b: Number | None, preset: str | None) -> tuple[Fraction, ...]:
    if (coefficients is None) == (preset is None) or (preset is not None and b is not None):
        got = f"coefficients {coefficients}, b {b} and preset {preset}"
        raise ValueError(f"multistep: expected either coefficients (and b) or a preset, got {got}")
    if preset is not None:
        if preset not in PRESETS:
            raise ValueError(f"multistep: preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        return PRESETS[preset]
    assert coefficients is not None
    return tuple(map(exact, coefficients))


def _zero(x: Fraction | int) -> bool:
    return -TOLERANCE <= x <= TOLERANCE


def _show(x: Fraction) -> str:
    return str(x) if x.denominator <= 10_000 else f"{float(x):.10g}"
