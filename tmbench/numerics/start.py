"""The first steps: what a method that needs a history does without one, and after a switch from SGD."""

import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..optim import TMSGD
from .formulas import DASHES, METHODS, LineStyle, legend_below, markdown, panels
from .noise import impulse

Q = 0.1  # lr * curvature
STEPS = 40
SWITCH = 10
SWITCH_Q = (0.1, 0.01)
CASES: dict[str, tuple[str, dict[str, Any], LineStyle]] = {
    "sgd": ("SGD", {"switch_step": None}, LineStyle("black", ":", "s")),
    "cold": ("TM, c = 1/2, no history", {}, LineStyle("#D55E00", "-", "o")),
    "euler": ("TM, c = 1/2, after two SGD steps", {"switch_step": 2}, LineStyle("#0072B2", "--", "^")),
    "third_cold": ("c = 1/3, no history", {"c": 1 / 3}, LineStyle("#56B4E9", "-.", "<")),
    "third_euler": ("c = 1/3, after two SGD steps", {"c": 1 / 3, "switch_step": 2}, LineStyle("#009E73", DASHES, "v")),
}
HISTORIES = {
    "true": ("SGD's last two steps as history", LineStyle("#0072B2", "--", "^")),
    "zero": ("no history", LineStyle("#D55E00", "-", "o")),
}


def path(steps: int, q: float, **settings: Any) -> list[float]:
    """The weight before the first and after every step, on the loss w^2 / 2 from w = 1."""
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD([w], q, **settings)
    weights = [1.0]
    for _ in range(steps):
        w.grad = w.detach().clone()
        optimizer.step()
        weights.append(w.item())
    return weights


def measure() -> dict[str, Any]:
    """Paths at q = 0.1, the response to one gradient, and how far from the flow a switch leads."""
    numbers: dict[str, Any] = {
        "q": Q,
        "flow": [math.exp(-Q * k) for k in range(STEPS + 1)],
        "paths": {case: path(STEPS, Q, **settings) for case, (_, settings, _) in CASES.items()},
        "impulse": {key: np.cumsum(impulse(METHODS[key], 20)).tolist() for key in ("euler", "tm", "tm_third")},
        "switch": {},
    }
    for q in SWITCH_Q:
        for history in HISTORIES:
            weights = path(SWITCH + STEPS, q, switch_step=SWITCH, history=history)[SWITCH:]
            flow = [weights[0] * math.exp(-q * k) for k in range(STEPS + 1)]
            deviation = [(w - f) / weights[0] for w, f in zip(weights, flow, strict=True)]
            numbers["switch"][f"{history} {q}"] = {"deviation": deviation, "worst": max(map(abs, deviation))}
    return numbers


def table(numbers: dict[str, Any]) -> str:
    steps = (0, 1, 2, 3, 4, 5, 6, 8, 10, 20)
    paths = {"gradient flow": numbers["flow"], **{CASES[case][0]: path for case, path in numbers["paths"].items()}}
    rows = [[label, *(f"{weights[k]:.4f}" for k in steps)] for label, weights in paths.items()]
    off = [[label, *(f"{100 * numbers['switch'][f'{history} {q}']['worst']:.3f} %" for q in SWITCH_Q)]
           for history, (label, _) in HISTORIES.items()]  # fmt: skip
    return "\n\n".join([
        markdown([f"weight at q = {numbers['q']}, after steps", *map(str, steps)], rows),
        markdown(["farthest from the flow after a switch", *(f"q = {q}" for q in SWITCH_Q)], off),
    ])  # fmt: skip


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 4.4)
    for case, weights in numbers["paths"].items():
        off = 100 * (np.array(weights) - numbers["flow"])
        axes[0].plot(off, label=CASES[case][0], **CASES[case][2].both)
    axes[0].set(title=f"the first steps, q = {numbers['q']}", xlabel="steps",
                ylabel="off the flow, % of the first weight")  # fmt: skip
    for key, response in numbers["impulse"].items():
        axes[1].plot(range(1, len(response) + 1), response, label=METHODS[key].label, **METHODS[key].style.both)
    axes[1].set(title="answer to one gradient", xlabel="steps", ylabel="moved so far, in units of lr")
    for history, (label, style) in HISTORIES.items():
        deviation = numbers["switch"][f"{history} {numbers['q']}"]["deviation"]
        axes[2].plot([100 * d for d in deviation], label=label, **style.both)
    axes[2].set(title=f"after a switch from SGD, q = {numbers['q']}", xlabel="steps since the switch",
                ylabel="off the flow, % of the weight then")  # fmt: skip
    for ax in axes:
        legend_below(ax)
    return figure
