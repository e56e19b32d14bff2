"""The edge of stability: full-batch training drives the top Hessian eigenvalue up until the optimizer limits it.

Networks of several seeds are trained side by side: their losses are summed, and no weight is shared.

Shapes: S seeds, N examples, H hidden units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..optim import TMSGD, stability
from .formulas import LineStyle, legend_below, markdown

LR = 0.05
SEEDS, HIDDEN, EXAMPLES, DEGREE = 3, 40, 20, 4
STEPS, SWITCH, EVERY = 6000, 4500, 50
EARLY = 1000  # steps after which a loss may be the worst; at first it is large anyway
BLOWN_UP = 1e3  # a loss beyond it counts as divergence; it begins below 1
Losses = Callable[[], Tensor]


@dataclass(frozen=True)
class Arm:
    """An optimizer from the first step on; or, if it branches, from the switch on, after SGD."""

    label: str
    settings: dict[str, Any]
    style: LineStyle
    factor: float = 1.0  # of the learning rate
    branches: bool = True


ARMS = {
    "sgd": Arm("SGD", {"switch_step": None}, LineStyle(), branches=False),
    "tm": Arm("TM, c = 1/2", {"switch_step": 2}, LineStyle("#D55E00", "-"), branches=False),
    "third": Arm("TM, c = 1/3", {"switch_step": 2, "c": 1 / 3}, LineStyle("#0072B2", "--"), branches=False),
    "to_tm": Arm("to TM, c = 1/2", {}, LineStyle("#D55E00", "-")),
    "to_tm_half": Arm("to TM, c = 1/2, lr/2", {}, LineStyle("#E69F00", "-."), 0.5),
    "to_third": Arm("to TM, c = 1/3", {"c": 1 / 3}, LineStyle("#0072B2", "--")),
    "to_half": Arm("to SGD, lr/2", {"switch_step": None}, LineStyle("#009E73", ":"), 0.5),
}


def initial(seeds: int, hidden: int) -> list[Tensor]:
    """Weights and biases of a tanh network with two hidden layers, as torch.nn.Linear begins, a row for each seed."""
    params: list[Tensor] = []
    for fan_in, fan_out in ((1, hidden), (hidden, hidden), (hidden, 1)):
        for shape in ((fan_in, fan_out), (1, fan_out)):
            # A generator for each tensor of each seed: seed 0 begins alike, however many are beside it.
            random = [torch.Generator().manual_seed(100 * seed + len(params)) for seed in range(seeds)]
            drawn = [torch.rand(shape, generator=of_seed, dtype=torch.float64) for of_seed in random]
            params.append(((2 * torch.stack(drawn) - 1) / fan_in**0.5).requires_grad_())
    return params


def regression(params: Sequence[Tensor], examples: int) -> Losses:
    """Half the mean squared error on the Chebyshev polynomial of degree 4, for each seed: (S,)."""
    x_N1 = torch.linspace(-1, 1, examples, dtype=torch.float64)[:, None]
    y_N1 = torch.cos(DEGREE * torch.arccos(x_N1))

    def losses() -> Tensor:
        a, b, c, d, e, f = params
        h_SNH = torch.tanh(x_N1 @ a + b)
        h_SNH = torch.tanh(h_SNH @ c + d)
        return (h_SNH @ e + f - y_N1).square().mean((1, 2)) / 2

    return losses


def top_eigenvalues(
    losses_S: Tensor, params: Sequence[Tensor], start: Sequence[Tensor], tolerance: float = 1e-3, most: int = 500
) -> tuple[Tensor, list[Tensor]]:
    """The Hessian's eigenvalue of largest modulus for each seed, and its vector, by power iteration.

    Each step is a Hessian-vector product, by differentiating the gradient times the vector; until no eigenvalue
    changes by more than `tolerance` of itself. Where it is negative, the minimum, not the top, has been found.
    """
    slopes = torch.autograd.grad(losses_S.sum(), params, create_graph=True)
    vectors, values_S = list(start), torch.full_like(losses_S, torch.nan)
    for _ in range(most):
        norm_S = _dot(vectors, vectors).sqrt()
        vectors = [v / norm_S.view(-1, 1, 1) for v in vectors]
        products = torch.autograd.grad(slopes, params, vectors, retain_graph=True)
        before_S, values_S = values_S, _dot(vectors, products).detach()
        if (((values_S - before_S).abs() <= tolerance * values_S.abs()) | ~losses_S.isfinite()).all():
            break
        vectors = [v.detach() for v in products]
    return values_S, vectors


def _dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """Of each seed's tensors with each seed's: (S,)."""
    return torch.stack([(x * y).sum((1, 2)) for x, y in zip(xs, ys, strict=True)]).sum(0)


def train(params: list[Tensor], optimizer: torch.optim.Optimizer, first: int, last: int) -> dict[str, Any]:
    """Full-batch steps `first` to `last`; every `EVERY` steps the top eigenvalues, and the largest losses till then."""
    losses = regression(params, EXAMPLES)
    random = torch.Generator().manual_seed(0)
    vectors = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in params]
    record: dict[str, Any] = {"step": [], "eigenvalue": []}
    largest: list[Tensor] = []  # of the losses in each EVERY steps: a jump may be over before the next record
    for step in range(first, last):
        losses_S = losses()
        if step % EVERY == 0:
            values_S, vectors = top_eigenvalues(losses_S, params, vectors)
            record["step"].append(step)
            record["eigenvalue"].append(values_S.tolist())
            largest.append(losses_S.detach())
        largest[-1] = torch.maximum(largest[-1], losses_S.detach())
        optimizer.zero_grad()
        torch.autograd.backward(losses_S.sum())
        optimizer.step()
    late = [loss_S for step, loss_S in zip(record["step"], largest, strict=True) if step >= EARLY]
    worst_S, end_S = torch.stack(late or largest).amax(0), losses().detach()
    return {**record, "loss": torch.stack(largest).tolist(), "worst_loss": worst_S.tolist(), "end_loss": end_S.tolist()}


def measure(steps: int = STEPS, switch: int = SWITCH) -> dict[str, Any]:
    """Every arm; those with a switch branch off one SGD run, with its last two steps as history."""
    numbers: dict[str, Any] = {"lr": LR, "switch": switch, "steps": steps, "arms": {}}
    before = initial(SEEDS, HIDDEN)
    trunk = TMSGD(before, LR, switch_step=switch)
    train(before, trunk, 0, switch)
    for name, arm in ARMS.items():
        lr = arm.factor * LR
        if arm.branches:
            params = [p.detach().clone().requires_grad_() for p in before]
            optimizer = TMSGD(params, LR)
            optimizer.load_state_dict(trunk.state_dict())
            optimizer.param_groups[0].update(arm.settings, lr=lr)
        else:
            params = initial(SEEDS, HIDDEN)
            optimizer = TMSGD(params, lr, **arm.settings)
        record = train(params, optimizer, switch if arm.branches else 0, steps)
        late = np.array(record["eigenvalue"])[np.array(record["step"]) >= switch + (steps - switch) / 3]
        numbers["arms"][name] = {
            **record, "lr": lr, "limit": stability(optimizer).limit, "late": (lr * late.mean(0)).tolist()
        }  # fmt: skip
    return numbers


def table(numbers: dict[str, Any]) -> str:
    columns = {"late": "lr * top eigenvalue, late", "worst_loss": "worst loss", "end_loss": "loss at the end"}
    rows = []
    for name, record in numbers["arms"].items():
        cells = [", ".join(_shown(x, what) for x in record[what]) for what in columns]
        rows.append([ARMS[name].label, f"{record['lr']:g}", f"{record['limit']:g}", *cells])
    return markdown(["optimizer", "lr", "limit", *columns.values()], rows)


def _shown(x: float | None, what: str) -> str:
    if x is None or x > BLOWN_UP:
        return "diverged"
    return f"{x:.2f}" if what == "late" else f"{x:.2g}"


def draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), layout="constrained", sharex="col")
    for column, branches in enumerate((False, True)):
        for name, arm in ARMS.items():
            if arm.branches != branches and name != "sgd":
                continue
            record = numbers["arms"][name]
            shown = [i for i, step in enumerate(record["step"]) if not branches or step >= numbers["switch"] - 500]
            for row, what in enumerate(("eigenvalue", "loss")):
                values = np.array(record[what], dtype=float)[shown]
                axes[row, column].plot(np.array(record["step"])[shown], values[:, 0], label=arm.label, **arm.style.line)
        for divisor in (1, 2):
            limit = divisor / numbers["lr"]
            axes[0, column].axhline(limit, color="grey", linewidth=0.8)
            axes[0, column].annotate(f"{divisor}/lr", (1, limit), xycoords=("axes fraction", "data"), ha="right",
                                     va="bottom")  # fmt: skip
        axes[1, column].set(yscale="log", xlabel="steps")
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
        legend_below(axes[1, column], 3)
    axes[0, 0].set(title="one optimizer from the first step on", ylabel="top eigenvalue of the Hessian")
    axes[0, 1].set(title=f"switched at step {numbers['switch']} of SGD")
    axes[1, 0].set(ylabel=f"largest training loss in {EVERY} steps")
    return figure
