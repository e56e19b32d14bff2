"""Which step is stable? For x' = lambda x with complex lambda; and, with momentum, for real curvatures.

Shapes: A points on the edge of a region, R roots.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..optim import TMSGD
from ..optim.stability import roots
from .formulas import (
    METHODS,
    SGD,
    LineStyle,
    Method,
    largest_step,
    legend_below,
    markdown,
    measured_and_theory,
    panels,
)  # fmt: skip

SECOND = ("euler", "ab2", "tm", "tm_third")
THIRD = ("tm", "five_point", "five_point_best", "six_point")
ANGLES = 480
BETAS = (0.0, 0.3, 0.5, 0.7, 0.9)
MOMENTUM = {
    "sgdm": Method("SGD-M", SGD),
    "nag": Method("NAG", SGD, {"nesterov": True}, LineStyle("#009E73", ":", "x")),
    "tmsgdm": Method("TM-SGD-M, c = 1/2", TMSGD, {}, LineStyle("#D55E00", "-", "o")),
    "tmnag": Method("TM-NAG, c = 1/2", TMSGD, {"nesterov": True}, LineStyle("#E69F00", "-.", "v")),
    "tm_third": Method("TM-SGD-M, c = 1/3", TMSGD, {"c": 1 / 3}, LineStyle("#0072B2", "--", "^")),
}


def boundary(method: Method) -> Tensor:
    """The upper half of the edge of the stability region, from 0 to the negative axis; complex, (A,).

    Where a root z is on the unit circle, h * lambda is stay(z) / -move(z); the edge is where no other root is outside.
    """
    stay, move = (torch.tensor(p, dtype=torch.complex128) for p in method.polynomials)
    angles_A = torch.linspace(0, torch.pi, ANGLES + 1, dtype=torch.float64)[1:]
    z_A = torch.polar(torch.ones_like(angles_A), angles_A)
    powers_AR = z_A[:, None] ** torch.arange(len(stay) - 1, -1, -1)
    mu_A = (powers_AR @ stay) / (powers_AR[:, -len(move) :] @ move)
    return mu_A[spectrum(method, mu_A).abs().amax(-1) < 1 + 1e-9]


def spectrum(method: Method, mu_A: Tensor) -> Tensor:
    """The roots for each complex h * lambda. Shapes: (A,) -> (A, R)."""
    stay, move = (torch.tensor(p, dtype=torch.complex128) for p in method.polynomials)
    padded = torch.zeros_like(stay)
    padded[len(stay) - len(move) :] = move
    return roots(stay - mu_A[:, None] * padded)


def measure() -> dict[str, Any]:
    """For each formula the edge of its region and its limit on the real axis; the limits under momentum."""
    numbers: dict[str, Any] = {"formulas": {}, "momentum": {}}
    for key, method in METHODS.items():
        mu = boundary(method)
        numbers["formulas"][key] = {"limit": method.limit, "re": mu.real.tolist(), "im": mu.imag.tolist()}
    for key in MOMENTUM:
        methods = [_with(key, beta) for beta in BETAS]
        fine = np.linspace(0, 0.99, 100).tolist()
        numbers["momentum"][key] = {
            "beta": BETAS, "theory": [method.limit for method in methods],
            "measured": [largest_step(method, lambda w: w, 0.05, 5) for method in methods],
            "curve_beta": fine, "curve": [_with(key, beta).limit for beta in fine],
        }  # fmt: skip
    return numbers


def _with(key: str, beta: float) -> Method:
    method = MOMENTUM[key]
    nesterov = method.settings.get("nesterov", False) and beta > 0  # which torch allows with momentum alone
    return Method(method.label, method.cls, {**method.settings, "momentum": beta, "nesterov": nesterov})


def table(numbers: dict[str, Any]) -> str:
    rows = [[f"{MOMENTUM[key].label}: measured (theory)", *measured_and_theory(limits["measured"], limits["theory"])]
            for key, limits in numbers["momentum"].items()]  # fmt: skip
    return markdown(["largest lr * curvature at momentum", *(f"{beta:g}" for beta in BETAS)], rows)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 4.6)
    for ax, keys, title in ((axes[0], SECOND, "orders 1 and 2"), (axes[1], THIRD, "order 3 beside the paper's")):
        for key in keys:
            formula, style = numbers["formulas"][key], METHODS[key].style
            re, im = (np.array([0.0, *formula[part]]) for part in ("re", "im"))
            re, im = np.append(re, re[::-1]), np.append(im, -im[::-1])
            ax.plot(re, im, label=METHODS[key].label, **style.line)
            ax.fill(re, im, color=style.colour, alpha=0.08)
        ax.axhline(0, color="grey", linewidth=0.5)
        ax.axvline(0, color="grey", linewidth=0.5)
        ax.set(title=title, xlabel="Re hλ", aspect="equal")
    axes[0].set_ylabel("Im hλ")
    axes[1].set_ylim(-0.85, 0.85)
    for key, limits in numbers["momentum"].items():
        style = MOMENTUM[key].style
        axes[2].plot(limits["curve_beta"], limits["curve"], **style.line)
        axes[2].plot(limits["beta"], limits["measured"], **style.marks)
        axes[2].plot([], [], label=MOMENTUM[key].label, **style.both)
    axes[2].set(title="limit under momentum", xlabel="momentum", ylabel="lr * curvature", ylim=(0, 4.2))
    for ax in axes:
        legend_below(ax, 2)
    return figure
