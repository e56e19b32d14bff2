"""What happens just under and just over the limit of lr * curvature on a quadratic; and the limit, by bisection.

Shapes: Q curvatures, a weight each.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .formulas import METHODS, LineStyle, Method, markdown, panels

RELATIVE = (0.95, 0.999, 1.001, 1.05)  # of the theoretical limit
STEPS, WINDOW = 20_000, 20
STYLES = (LineStyle("#0072B2", "-"), LineStyle("#56B4E9", "--"), LineStyle("#E69F00", "-."), LineStyle("#D55E00", ":"))
TRAINED = ("euler", "tm", "tm_third")
BISECTIONS, TRIAL = 12, 2000
OUTSIDE = 1e12  # of the figure


def amplitudes(method: Method, qs: list[float], steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest |w| in each window of steps, from a cold start at 1, and the last four |w|: (windows, Q), (4, Q)."""
    q_Q = torch.tensor(qs, dtype=torch.float64)
    w_Q = torch.ones_like(q_Q, requires_grad=True)
    optimizer = method.optimizer(w_Q, 1.0)
    rows = []
    for _ in range(steps):
        w_Q.grad = q_Q * w_Q.detach()
        optimizer.step()
        rows.append(w_Q.detach().abs())
    moduli = torch.stack(rows)
    return moduli.view(steps // WINDOW, WINDOW, -1).amax(1), moduli[-4:]


def bisected(method: Method) -> float:
    """The learning rate up to which training lowers the loss of a quadratic of curvature 1, to within 4 / 2^12."""
    low, high = 0.0, 4.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        windows, _ = amplitudes(method, [middle], TRIAL)
        half, end = windows[len(windows) // 2], windows[-1]
        falls = bool((end <= half) & end.isfinite())  # equal where both have come to 0
        low, high = (middle, high) if falls else (low, middle)
    return (low + high) / 2


def measure() -> dict[str, Any]:
    shown = np.unique(np.geomspace(1, STEPS // WINDOW, 60).round()).astype(int)
    numbers: dict[str, Any] = {"relative": RELATIVE, "window": WINDOW, "steps": (WINDOW * shown).tolist()}
    for key in TRAINED:
        method = METHODS[key]
        qs = [r * method.limit for r in RELATIVE]
        windows, last = amplitudes(method, qs, STEPS)
        numbers[key] = {
            "theory": method.limit, "bisected": bisected(method), "q": qs, "amplitude": windows[shown - 1].T.tolist(),
            "last": last.amax(0).tolist(),
        }  # fmt: skip
    return numbers


def table(numbers: dict[str, Any]) -> str:
    weights = [f"weight at {r:g} of it" for r in numbers["relative"]]
    head = ["largest lr * curvature", "theory", "by bisection", *weights]
    rows = []
    for key in TRAINED:
        of_method = numbers[key]
        last = ["overflow" if x is None else f"{x:.2g}" if x > 1e-300 else "0" for x in of_method["last"]]
        rows.append([METHODS[key].label, *(f"{of_method[k]:.3f}" for k in ("theory", "bisected")), *last])
    return markdown(head, rows)


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(len(TRAINED), 3.8, sharey=True)
    for ax, key in zip(axes, TRAINED, strict=True):
        for q, amplitude, style in zip(numbers[key]["q"], numbers[key]["amplitude"], STYLES, strict=True):
            known = [min(a, OUTSIDE) if a is not None else OUTSIDE for a in amplitude]
            ax.plot(numbers["steps"], known, label=f"lr * curvature = {q:.4g}", **style.line)
        ax.set(title=METHODS[key].label, xlabel="steps", xscale="log", yscale="log", ylim=(1e-8, 1e8))
        ax.legend(fontsize="small", loc="lower left")
    axes[0].set_ylabel("largest |weight| in 20 steps")
    return figure
