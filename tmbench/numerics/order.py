"""Does the error fall with the step as theory says? At t = 1, on x' = -x, x' = -x^2 and a stiff linear system.

Shapes: D components of x.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from .formulas import METHODS, Field, follow, largest_step, markdown, panels

STIFF = 100.0  # the larger eigenvalue; the smaller is 1
OUTSIDE = 1e9  # of the figure
FITTED = 3  # of the smallest steps, which the order is fitted to


@dataclass(frozen=True)
class Problem:
    title: str
    slope: Field
    exact: Callable[[float], Tensor]
    steps: list[int]  # to t = 1; h is one over it


# Eigenvectors that are no axes: the components of the stiff system are coupled.
COS, SIN = math.cos(math.radians(30)), math.sin(math.radians(30))
TURN_DD = torch.tensor([[COS, -SIN], [SIN, COS]], dtype=torch.float64)
RATES_D = torch.tensor([1.0, STIFF], dtype=torch.float64)
STIFF_DD = TURN_DD @ RATES_D.diag() @ TURN_DD.T
ONE = torch.ones(1, dtype=torch.float64)
PROBLEMS = {
    "linear": Problem("x' = -x", lambda x: -x, lambda t: ONE * math.exp(-t), [20 * 2**i for i in range(6)]),
    "square": Problem("x' = -x²", lambda x: -x * x, lambda t: ONE / (1 + t), [20 * 2**i for i in range(6)]),
    "stiff": Problem(
        "stiff: rates 1 and 100", lambda x: -(STIFF_DD @ x),
        lambda t: TURN_DD @ (torch.exp(-RATES_D * t) * (TURN_DD.T @ torch.ones(2, dtype=torch.float64))),
        [25 * 2**i for i in range(8)],
    ),
}  # fmt: skip


def measure() -> dict[str, Any]:
    """For each problem and formula the errors at t = 1 and the fitted order; where the stiff system blows up."""
    numbers: dict[str, Any] = {"fitted_to_smallest": FITTED}
    for name, problem in PROBLEMS.items():
        numbers[name] = {"h": [1 / n for n in problem.steps]}
        for key, method in METHODS.items():
            of_method: dict[str, Any] = {}
            # An Euler step leaves an error O(h^2), whatever comes after it; shown once.
            orders = {"exact": method.order} | ({"euler": min(2, method.order)} if name == "linear" else {})
            for start, theory in orders.items():
                errors = [
                    (follow(method, problem.slope, 1 / n, n, problem.exact, start) - problem.exact(1.0)).norm().item()
                    for n in problem.steps
                ]
                of_method[start] = {"errors": errors, "order": fitted_order(problem.steps, errors), "theory": theory}
            numbers[name][key] = of_method
    numbers["blow_up"] = {}
    for key, method in METHODS.items():
        measured = largest_step(method, lambda w_BD: w_BD @ STIFF_DD, 0.05 / STIFF, 5 / STIFF, size=2)
        numbers["blow_up"][key] = {"theory": method.limit / STIFF, "measured": measured}
    return numbers


def fitted_order(steps: list[int], errors: list[float]) -> float:
    """The slope of log error over log h, at the smallest steps."""
    return float(np.polyfit(-np.log(steps[-FITTED:]), np.log(errors[-FITTED:]), 1)[0])


def table(numbers: dict[str, Any]) -> str:
    titles = [problem.title for problem in PROBLEMS.values()]
    head = ["fitted order", *titles, "theory", "x' = -x, Euler start", "theory"]
    rows, limits, stiff = [], [], numbers["blow_up"]
    for key, method in METHODS.items():
        limits.append([method.label, f"{stiff[key]['measured']:.5f}", f"{stiff[key]['theory']:.5f}"])
        exact, euler = numbers["linear"][key]["exact"], numbers["linear"][key]["euler"]
        fits = [f"{numbers[name][key]['exact']['order']:.3f}" for name in PROBLEMS]
        rows.append([method.label, *fits, str(exact["theory"]), f"{euler['order']:.3f}", str(euler["theory"])])
    return markdown(head, rows) + "\n\n" + markdown(["stiff: stable up to h =", "measured", "theory"], limits)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 4.4, sharey=True)
    for ax, (name, problem) in zip(axes, PROBLEMS.items(), strict=True):
        h = np.array(numbers[name]["h"])
        for key, method in METHODS.items():
            errors = [OUTSIDE if e is None else min(e, OUTSIDE) for e in numbers[name][key]["exact"]["errors"]]
            ax.loglog(h, errors, label=method.label, **method.style.both)
        for order in (1, 2, 3):
            guide = 10.0 ** (0.5 - 1.5 * order) * (h / h[0]) ** order
            ax.loglog(h, guide, color="grey", linewidth=0.6)
            ax.annotate(f"slope {order}", (h[1], guide[1]), color="grey", fontsize="small", ha="right", va="bottom")
        ax.set(title=problem.title, xlabel="step h", ylim=(1e-13, 1e3))
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("error at t = 1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure
