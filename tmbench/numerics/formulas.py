"""The formulas that are compared, each as the real optimizer; a step along x' = f(x) is one with gradient -f(x)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..optim import TMSGD, MultistepSGD, stability
from ..optim.stability import characteristic, root_limit

Field = Callable[[Tensor], Tensor]
SGD = torch.optim.SGD


class AdamsBashforth2(torch.optim.Optimizer):
    """The textbook's second-order method, W[k+1] = W[k] - lr (1.5 g[k] - 0.5 g[k-1]): keeps a gradient, not iterates.

    For comparison alone. Its first step is Euler's.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                before = self.state[p].get("before", p.grad)
                self.state[p]["before"] = p.grad.clone()
                p.add_(1.5 * p.grad - 0.5 * before, alpha=-group["lr"])


@dataclass(frozen=True)
class LineStyle:
    """How figures draw a method: its colour, and the line and marker that show which it is in grey, too."""

    colour: str = "black"
    ls: Any = "-"
    marker: str = "s"

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "ls": self.ls, "linewidth": 1.3}

    @property
    def marks(self) -> dict[str, Any]:
        return {"color": self.colour, "ls": "", "marker": self.marker, "markersize": 5}

    @property
    def both(self) -> dict[str, Any]:
        return {**self.line, "marker": self.marker, "markersize": 4}


@dataclass(frozen=True)
class Method:
    """A formula: the optimizer that follows it, with its settings, and the order it should have."""

    label: str
    cls: Any
    settings: dict[str, Any] = field(default_factory=dict)
    style: LineStyle = LineStyle()
    order: int = 2

    def optimizer(self, w: Tensor, lr: float, first: int = 0) -> torch.optim.Optimizer:
        """One for the weights w; with `first` steps of SGD, where the class has a switch."""
        switch = {"switch_step": first} if self.cls in (TMSGD, MultistepSGD) else {}
        optimizer: torch.optim.Optimizer = self.cls([w], lr=lr, **self.settings, **switch)
        return optimizer

    @property
    def polynomials(self) -> tuple[list[float], list[float]]:
        """stay and move, as in `tmbench.optim.stability`."""
        if self.cls is AdamsBashforth2:
            return [1.0, -1.0, 0.0], [1.5, -0.5]
        optimizer: Any = self.optimizer(torch.zeros(1, requires_grad=True), 1.0)
        (group,) = optimizer.param_groups
        factors, b = ((), 1.0) if self.cls is SGD else optimizer.step_form(group)
        return characteristic(factors, b, group["momentum"], group["dampening"], group["nesterov"])

    @property
    def past(self) -> int:
        """How many points before the present one it needs."""
        return len(self.polynomials[0]) - 2

    @property
    def limit(self) -> float:
        """The largest stable lr * curvature, as theory has it."""
        if self.cls is AdamsBashforth2:
            return root_limit(*self.polynomials).limit
        return stability(self.cls, **self.settings).limit


DASHES = (0, (5, 1, 1, 1, 1, 1))
# Okabe and Ito's colours; the third-order formulas have shades of one.
METHODS = {
    "euler": Method("Euler (SGD)", SGD, order=1),
    "ab2": Method("Adams-Bashforth 2", AdamsBashforth2, style=LineStyle("#009E73", ":", "x")),
    "tm": Method("TM, c = 1/2 (paper)", TMSGD, {"c": 0.5}, LineStyle("#D55E00", "-", "o")),
    "tm_0.4": Method("TM, c = 0.4", TMSGD, {"c": 0.4}, LineStyle("#E69F00", "-.", "v")),
    "tm_third": Method("TM, c = 1/3", TMSGD, {"c": 1 / 3}, LineStyle("#0072B2", "--", "^")),
    "tm_0.2": Method("TM, c = 0.2", TMSGD, {"c": 0.2}, LineStyle("#56B4E9", DASHES, "<")),
    "five_point": Method("five points", MultistepSGD, {"preset": "five_point"}, LineStyle("#CC79A7", "-", "d"), 3),
    "five_point_best": Method("five points, best", MultistepSGD, {"preset": "five_point_best"},
                              LineStyle("#8F5A78", "--", "p"), 3),
    "six_point": Method("six points", MultistepSGD, {"preset": "six_point"}, LineStyle("#5D3A4E", ":", "*"), 3),
}  # fmt: skip


def follow(method: Method, slope: Field, h: float, steps: int, exact: Callable[[float], Tensor], start: str) -> Tensor:
    """x(steps h) as the formula has it, from exact(0); its first points are the `exact` ones, or by `euler` steps."""
    first = method.past
    k = first if start == "exact" else 0
    w = exact(k * h).clone().requires_grad_()
    optimizer: Any = method.optimizer(w, h, first)
    if k and method.cls is AdamsBashforth2:
        optimizer.state[w]["before"] = -slope(exact((k - 1) * h))
    elif k:
        differences = [(j, exact((j + 1) * h) - exact(j * h)) for j in reversed(range(k))]
        optimizer.start_after(k, SGD([w], lr=h).state_dict(), [differences])
    for _ in range(steps - k):
        w.grad = -slope(w.detach())
        optimizer.step()
    return w.detach()


def largest_step(method: Method, gradient: Field, low: float, high: float, size: int = 1, steps: int = 1500) -> float:
    """The step beyond which the optimizer's weights grow: tried in `steps` steps, twice, with 60 rates between two.

    The gradient is linear, of weights of shape (60, size), a row for each rate.
    """
    for _ in range(2):
        h_B1 = torch.logspace(math.log10(low), math.log10(high), 60, dtype=torch.float64)[:, None]
        w_BD = torch.ones(60, size, dtype=torch.float64, requires_grad=True)
        optimizer = method.optimizer(w_BD, 1.0)
        early_B, late_B = torch.zeros(60, dtype=torch.float64), torch.zeros(60, dtype=torch.float64)
        for step in range(steps):
            w_BD.grad = h_B1 * gradient(w_BD.detach())
            optimizer.step()
            if 0.5 <= step / steps < 0.6:
                early_B += w_BD.detach().square().sum(-1)
            elif step / steps >= 0.9:
                late_B += w_BD.detach().square().sum(-1)
        grows_B = ~((late_B <= early_B) & late_B.isfinite())
        if not grows_B.any() or grows_B[0]:
            return float("nan")  # it is not between low and high
        i = int(grows_B.int().argmax())
        low, high = h_B1[i - 1].item(), h_B1[i].item()
    return (low * high) ** 0.5


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, as the page and the terminal show it."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in lines)


def panels(columns: int, height: float, **settings: Any) -> tuple[Figure, Any]:
    """A figure and its axes, side by side, with grids."""
    figure, axes = plt.subplots(1, columns, figsize=(11, height), layout="constrained", **settings)
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def legend_below(ax: Any, columns: int = 1) -> None:
    ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns, frameon=False)


def measured_and_theory(measured: list[float], theory: list[float]) -> list[str]:
    return [f"{m:.3f} ({t:.3f})" for m, t in zip(measured, theory, strict=True)]
