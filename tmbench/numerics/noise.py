"""What gradient noise does to the weights: how far they spread around a minimum, and on flat ground.

Shapes: Q values of q = lr * curvature, N independent walkers.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from scipy import linalg, signal
from torch import Tensor

from ..optim import TMSGD
from .formulas import METHODS, SGD, Method, markdown, measured_and_theory, panels

MOMENTUM = 0.9
PLAIN = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
HEAVY = (0.01, 0.05, 0.1, 0.3, 0.45)
WALK = (1, 2, 3, 5, 10, 50)
PAIRS = {
    # name: SGD, the methods beside it, the q at which they are simulated
    "plain": (METHODS["euler"], {key: METHODS[key] for key in ("tm", "tm_third")}, PLAIN),
    "heavy_ball": (Method("SGD-M", SGD, {"momentum": MOMENTUM}),
                   {"tm": Method("TM, c = 1/2 (paper)", TMSGD, {"momentum": MOMENTUM})}, HEAVY),
}  # fmt: skip


def variance(method: Method, q: float) -> float:
    """Stationary variance of w, in units of (noise / curvature)^2, for gradients curvature * w + noise.

    The weights are autoregressive, w[k+1] = a . (w[k], w[k-1], ...) + b q noise: the discrete Lyapunov equation.
    """
    stay, move = method.polynomials
    padded = np.zeros(len(stay))
    padded[len(stay) - len(move) :] = move
    assert np.count_nonzero(padded) == 1, "one noise a step; not so with Nesterov"
    a = linalg.companion(np.array(stay) + q * padded)
    noise = np.zeros_like(a)
    noise[0, 0] = (q * padded.sum()) ** 2
    return float(linalg.solve_discrete_lyapunov(a, noise)[0, 0])


def simulated(methods: list[Method], qs: tuple[float, ...], walkers: int, burn_in: int, steps: int) -> Tensor:
    """The variance of w over walkers and time, for each method (rows) and q; all methods get the same noise."""
    random = torch.Generator().manual_seed(0)
    q_Q1 = torch.tensor(qs, dtype=torch.float64)[:, None]
    weights = [torch.zeros(len(qs), walkers, dtype=torch.float64, requires_grad=True) for _ in methods]
    optimizers = [method.optimizer(w_QN, 1.0) for method, w_QN in zip(methods, weights, strict=True)]
    sums = torch.zeros(len(methods), len(qs), dtype=torch.float64)
    for step in range(burn_in + steps):
        noise_QN = torch.randn(len(qs), walkers, generator=random, dtype=torch.float64)
        for i, (w_QN, optimizer) in enumerate(zip(weights, optimizers, strict=True)):
            w_QN.grad = q_Q1 * (w_QN.detach() + noise_QN)
            optimizer.step()
            if step >= burn_in and step % 5 == 0:
                sums[i] += w_QN.detach().square().mean(-1) / (steps / 5)
    return sums


def random_walk(walkers: int) -> dict[str, Any]:
    """Without curvature: Var(W_n - W_0) beside SGD's, and the variance of a step beside that of SGD's."""
    steps = WALK[-1]
    numbers: dict[str, Any] = {}
    sgd: list[float] = []
    for key in ("euler", "tm", "tm_0.4", "tm_third", "tm_0.2"):
        random = torch.Generator().manual_seed(0)
        w_N = torch.zeros(walkers, dtype=torch.float64, requires_grad=True)
        optimizer = METHODS[key].optimizer(w_N, 1.0)
        spread, gain = [], 0.0
        for n in range(1, steps + 1):
            before_N = w_N.detach().clone()
            w_N.grad = torch.randn(walkers, generator=random, dtype=torch.float64)
            optimizer.step()
            if n in WALK:
                spread.append(w_N.detach().square().mean().item())
            if n > steps // 2:
                gain += (w_N.detach() - before_N).square().mean().item() / (steps - steps // 2)
        h = impulse(METHODS[key], steps)
        cumulative = np.cumsum(np.cumsum(h) ** 2)
        sgd = spread if key == "euler" else sgd
        numbers[key] = {
            "measured": [x / s for x, s in zip(spread, sgd, strict=True)],
            "theory": [float(cumulative[n - 1]) / n for n in WALK], "gain": gain, "gain_theory": float((h**2).sum()),
        }  # fmt: skip
    del numbers["euler"]
    return {"n": WALK, **numbers}


def impulse(method: Method, steps: int) -> np.ndarray:
    """The steps that one gradient of 1 causes, in units of the rate, descent counted as positive."""
    stay, move = method.polynomials
    recurrence = np.polydiv(np.array(stay), np.array([1.0, -1.0]))[0]  # of the steps: w's without the root at 1
    return np.asarray(signal.lfilter(move, recurrence, np.eye(1, steps)[0]))


def measure(walkers: int = 4000, burn_in: int = 1000, steps: int = 1500) -> dict[str, Any]:
    numbers: dict[str, Any] = {"momentum": MOMENTUM, "walkers": walkers}
    for name, (sgd, others, qs) in PAIRS.items():
        sums = simulated([sgd, *others.values()], qs, walkers, burn_in, steps)
        numbers[name] = {"q": qs, "sgd": {"measured": sums[0].tolist(), "theory": [variance(sgd, q) for q in qs]}}
        for row, (key, method) in zip(sums[1:], others.items(), strict=True):
            fine = method.limit * np.sin(np.linspace(0.0005, 0.495, 150) * np.pi)  # closer near the limit
            numbers[name][key] = {
                "measured": row.tolist(), "theory": [variance(method, q) for q in qs],
                "ratio_measured": (row / sums[0]).tolist(),
                "ratio_theory": [variance(method, q) / variance(sgd, q) for q in qs],
                "curve_q": fine.tolist(), "curve": [variance(method, q) / variance(sgd, q) for q in fine],
            }  # fmt: skip
    return {**numbers, "walk": random_walk(50 * walkers)}


def table(numbers: dict[str, Any]) -> str:
    walk, ratios = numbers["walk"], ("ratio_measured", "ratio_theory")
    parts = [  # title, columns, numbers by method, keys of the measured and the theoretical ones
        ("variance beside SGD's, at q =", numbers["plain"]["q"], numbers["plain"], ratios),
        ("with momentum 0.9, at q =", numbers["heavy_ball"]["q"], numbers["heavy_ball"], ratios),
        ("flat: Var(W_n - W_0) beside SGD's, at n =", walk["n"], walk, ("measured", "theory")),
    ]
    tables = []
    for title, columns, methods, pair in parts:
        rows = [
            [f"{METHODS[key].label}: measured (theory)", *measured_and_theory(*(methods[key][k] for k in pair))]
            for key in ("tm", "tm_third") if key in methods
        ]  # fmt: skip
        tables.append(markdown([title, *map(str, columns)], rows))
    keys = [key for key in walk if key in METHODS]
    gains = measured_and_theory(*([walk[key][k] for key in keys] for k in ("gain", "gain_theory")))
    head = ["flat: variance of one step beside SGD's", *(METHODS[key].label for key in keys)]
    return "\n\n".join([*tables, markdown(head, [["measured (theory)", *gains]])])


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 3.8)
    for ax, name in zip(axes, PAIRS, strict=False):
        for key in PAIRS[name][1]:
            of_method, style = numbers[name][key], METHODS[key].style
            ax.plot(of_method["curve_q"], of_method["curve"], **style.line)
            ax.plot(numbers[name]["q"], of_method["ratio_measured"], **style.marks)
        ax.set(yscale="log", xlabel="q = lr * curvature", ylim=(0.5, 30))
        ax.axhline(1, color="black", linewidth=0.8)
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes[0].set(title="variance beside SGD's")
    axes[1].set(title=f"the same, momentum {numbers['momentum']}")
    walk = numbers["walk"]
    for key in ("tm", "tm_third"):
        axes[2].plot(walk["n"], walk[key]["theory"], **METHODS[key].style.line)
        axes[2].plot(walk["n"], walk[key]["measured"], **METHODS[key].style.marks)
        axes[2].plot([], [], label=METHODS[key].label, **METHODS[key].style.both)
    axes[2].axhline(1, color="black", linewidth=0.8, label="SGD")
    axes[2].set(title="without curvature: spread beside SGD's", xlabel="steps", xscale="log")
    axes[2].xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes[2].legend(fontsize="small")
    return figure
