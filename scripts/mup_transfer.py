"""Whether a learning rate found at one width serves at another: a coordinate check, and a sweep of widths and rates.

    python scripts/mup_transfer.py                                   # tiny data, some 10 minutes on 2 cores
    python scripts/mup_transfer.py --data-dir DIR --families lstm    # the real R8, under DIR

Both compare the standard parametrisation with task.mup=true, the base being the narrowest width, for SGD, TM-SGD (TM
from the first step) and Adam. Writes a figure of each and every number as JSON, and prints a table; families that are
not asked for keep the numbers that they have there.

The coordinate check takes a few steps and asks how much each layer's output has changed on one batch, against the
width: by as much at every width if all is well, else by a power of it. The sweep asks which rate gives the lowest
training loss (mean over the last quarter of the steps) at each width.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from tmbench.config import compose
from tmbench.config.machine import cpu_model
from tmbench.config.settle import settle
from tmbench.data import open_dataset
from tmbench.figures import save
from tmbench.files import write
from tmbench.result import versions
from tmbench.seeds import seed_all
from tmbench.task import Task
from tmbench.training.build import optimizer_of
from tmbench.training.loader import TrainLoader

OPTIMIZERS = {"sgd": ["optimizer=sgd"], "tmsgd": ["optimizer=tmsgd", "switch_epoch=0"], "adam": ["optimizer=adam"]}
PARAMETRISATIONS = {"standard": False, "mup": True}
LAYERS = (nn.Conv2d, nn.Linear, nn.LSTM)
CHECK_STEPS = 5


class Family(NamedTuple):
    """One architecture: its settings, its widths, and the rates 2^k to try, k from the first number up to the last."""

    words: list[str]
    widths: tuple[int, ...]
    steps: int
    linear: range
    entrywise: range
    seeds: int = 1

    def rates(self, optimizer: str) -> list[float]:
        return [2.0**k for k in (self.entrywise if optimizer == "adam" else self.linear)]

    def middle(self, optimizer: str) -> float:
        """The rate of the coordinate check."""
        rates = self.rates(optimizer)
        return rates[len(rates) // 2 - 1]


FAMILIES = {
    "vgg": Family(["task=ic", "task.model=vgg16", "batch_size=8"], (4, 8, 16), 20, range(-9, -2), range(-12, -5)),
    "resnet": Family(["task=ic", "task.model=resnet18", "batch_size=8"], (2, 4, 8), 20, range(-8, -1), range(-12, -5)),
    "lstm": Family(["task=tc", "batch_size=16"], (8, 32, 128), 50, range(-2, 5), range(-9, -2)),
    "wide_deep": Family(["task=ctr", "batch_size=64"], (16, 64, 256), 60, range(-4, 5), range(-10, -1)),
}
REAL = {"lstm": Family(["task=tc", "data=full", "batch_size=32"], (16, 128), 60, range(-1, 5), range(-8, -2))}


@cache
def composed(*words: str) -> DictConfig:
    return OmegaConf.create(compose.composed(list(words)))


def settled(family: Family, optimizer: str, mup: bool, width: int, rate: float, seed: int) -> DictConfig:
    cfg = composed(*family.words, *OPTIMIZERS[optimizer], "task.weight_decay=0").copy()
    cfg.lr, cfg.seed = rate, seed
    cfg.task.update(mup=mup, width=width, mup_base=family.widths[0])
    return settle(cfg)


def batches(task: Task, cfg: DictConfig) -> Iterator[Any]:
    """Training batches without end, as a run has them."""
    epoch = 0
    where = {"device": torch.device("cpu"), "seed": cfg.seed, "epoch": lambda: epoch}
    loader = TrainLoader(task.examples("train"), task.collate, cfg.batch_size, **where)
    while True:
        seed_all("epoch", cfg.seed, epoch, 0)
        for block in loader:
            yield from (step[0][0] for step in block)
        epoch += 1


def started(cfg: DictConfig, data: Any) -> tuple[Task, Any]:
    seed_all("weights", cfg.seed)
    task: Task = get_class(cfg.task._target_)(cfg.task, data)
    return task, task.with_own_rates(optimizer_of(cfg, switch_step=0))(list(task.parameters()))


def step(task: Task, optimizer: Any, batch: Any) -> float:
    optimizer.zero_grad()
    total, weight = task.loss(batch)
    loss = total / weight
    loss.backward()
    optimizer.step()
    return loss.item()


def final_loss(cfg: DictConfig, data: Any, steps: int) -> float:
    """The mean training loss over the last quarter of the steps; infinite if it ever was not finite."""
    task, optimizer = started(cfg, data)
    losses: list[float] = []
    for _, batch in zip(range(steps), batches(task, cfg), strict=False):
        losses.append(step(task, optimizer, batch))
        if not math.isfinite(losses[-1]):
            return math.inf
    return mean(losses[-steps // 4 :])


def outputs(task: Task, batch: Any) -> dict[str, Tensor]:
    """What each layer says to a batch."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        return lambda module, args, out: found.update({name: (out[0] if isinstance(out, tuple) else out).clone()})

    hooks = [m.register_forward_hook(note(n)) for n, m in task.model.named_modules() if isinstance(m, LAYERS)]
    with torch.no_grad():
        task.loss(batch)
    for hook in hooks:
        hook.remove()
    return found


def changes(cfg: DictConfig, data: Any) -> dict[str, float]:
    """For each layer, the root mean square of what a few steps add to its outputs."""
    task, optimizer = started(cfg, data)
    stream = batches(task, cfg)
    probe = next(stream)
    before = outputs(task, probe)
    for _, batch in zip(range(CHECK_STEPS), stream, strict=False):
        step(task, optimizer, batch)
    return {name: (out - before[name]).square().mean().sqrt().item() for name, out in outputs(task, probe).items()}


def slope(widths: tuple[int, ...], values: list[float]) -> float:
    """The exponent e in value ~ width^e, by least squares."""
    x = torch.tensor(widths, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def coordinate_check(family: Family, optimizer: str, mup: bool, data: Any, seeds: int = 2) -> dict[str, Any]:
    """By layer, its change at each width and the slope of it (means over seeds)."""
    rate = family.middle(optimizer)
    configs = [[settled(family, optimizer, mup, width, rate, seed) for seed in range(seeds)] for width in family.widths]
    by_width = [[changes(cfg, data) for cfg in of_width] for of_width in configs]
    layers = {layer: [mean(one[layer] for one in of_width) for of_width in by_width] for layer in by_width[0][0]}
    return {
        "rate": rate, "steps": CHECK_STEPS, "seeds": seeds, "changes": layers,
        "slopes": {layer: slope(family.widths, values) for layer, values in layers.items()},
    }  # fmt: skip


def sweep(family: Family, optimizer: str, mup: bool, data: Any) -> dict[str, Any]:
    """The final loss at each width and rate (mean over seeds), and what comes of taking the narrowest's best rate."""
    rates = family.rates(optimizer)

    def loss(width: int, rate: float) -> float:
        configs = (settled(family, optimizer, mup, width, rate, seed) for seed in range(family.seeds))
        return mean(final_loss(cfg, data, family.steps) for cfg in configs)

    losses = [[loss(width, rate) for rate in rates] for width in family.widths]
    best = [min(range(len(rates)), key=own.__getitem__) for own in losses]
    finite = [[loss if math.isfinite(loss) else None for loss in own] for own in losses]  # JSON knows no infinity
    return {
        "rates": rates, "losses": finite, "best": [rates[i] for i in best],
        "widest": {"own_best": finite[-1][best[-1]], "transferred": finite[-1][best[0]]},
    }  # fmt: skip


def drawn(found: dict[str, Any], what: str) -> plt.Figure:
    """A row for each family, a column for each optimizer and parametrisation."""
    columns = list(product(OPTIMIZERS, PARAMETRISATIONS))
    figure, axes = plt.subplots(
        len(found), len(columns), figsize=(2.3 * len(columns), 2.2 * len(found) + 0.6), squeeze=False, sharey="row",
        layout="constrained",
    )  # fmt: skip
    for row, (name, family) in zip(axes, found.items(), strict=True):
        # The loss at the lowest rate, about what all start from.
        start = max(own["sweep"]["losses"][0][0] for pair in OPTIMIZERS for own in family[pair].values())
        for ax, (optimizer, kind) in zip(row, columns, strict=True):
            own = family[optimizer][kind]
            if what == "coordinates":
                for layer, values in own["coordinates"]["changes"].items():
                    last = layer == list(own["coordinates"]["changes"])[-1]
                    colour = {"color": "crimson", "zorder": 3} if last else {"color": "grey", "alpha": 0.6}
                    ax.loglog(family["widths"], values, marker="o", markersize=3, linewidth=2 if last else 1, **colour)
                ax.set_xticks(family["widths"], map(str, family["widths"]))
                ax.minorticks_off()
            else:
                for i, (width, losses) in enumerate(zip(family["widths"], own["sweep"]["losses"], strict=True)):
                    colour = plt.get_cmap("viridis")(0.9 * i / (len(family["widths"]) - 1))
                    shown = [math.nan if loss is None else loss for loss in losses]
                    ax.plot(own["sweep"]["rates"], shown, color=colour, label=str(width), linewidth=1.2)
                    ax.plot(own["sweep"]["best"][i], np.nanmin(shown), "o", color=colour, markersize=5)
                ax.set(xscale="log", ylim=(0, 1.25 * start))
            if ax in axes[0]:
                ax.set_title(f"{optimizer}, {kind}", fontsize=9)
            ax.tick_params(labelsize=7)
        row[0].set_ylabel(f"{name}\n" + ("change" if what == "coordinates" else "training loss"), fontsize=8)
        if what == "sweep":
            row[0].legend(title="width", fontsize=6, title_fontsize=6)
    for ax in axes[-1]:
        ax.set_xlabel("width" if what == "coordinates" else "learning rate", fontsize=8)
    return figure


def shown(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.3f}"


def told(found: dict[str, Any]) -> Iterator[str]:
    """The table: how each layer's change grows with the width, and where the best rate goes."""
    yield "| family | optimizer |  | slopes of the layers | of the output | best rate by width | loss | transferred |"
    yield "|" + "---|" * 8
    for name, optimizer, kind in product(found, OPTIMIZERS, PARAMETRISATIONS):
        own = found[name][optimizer][kind]
        *inner, last = own["coordinates"]["slopes"].values()
        best = ", ".join(f"2^{math.log2(rate):.0f}" for rate in own["sweep"]["best"])
        widest = own["sweep"]["widest"]
        yield (
            f"| {name} | {optimizer} | {kind} | {min(inner):.2f} to {max(inner):.2f} | {last:.2f} | {best} | "
            f"{shown(widest['own_best'])} | {shown(widest['transferred'])} |"
        )


def measured(family: Family, optimizer: str, where: list[str]) -> dict[str, Any]:
    family = family._replace(words=family.words + where)
    cfg = settled(family, "sgd", False, family.widths[0], 1.0, 0)
    data, _, _ = open_dataset(cfg, get_class(cfg.task.data))
    measures = {"coordinates": coordinate_check, "sweep": sweep}
    return {
        kind: {name: measure(family, optimizer, mup, data) for name, measure in measures.items()}
        for kind, mup in PARAMETRISATIONS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="*", choices=FAMILIES, default=list(FAMILIES), help="none: only draw again")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--data-dir", help="a folder with r8/: the real data, for lstm; without it, tiny data")
    parser.add_argument("--out", type=Path, default=Path("docs/mup"))
    asked = parser.parse_args()
    families, stem = (REAL, "r8") if asked.data_dir else (FAMILIES, "tiny")
    where = [f"data_dir={asked.data_dir}"] if asked.data_dir else []
    asked.out.mkdir(parents=True, exist_ok=True)
    numbers = asked.out / f"{stem}.json"
    found: dict[str, Any] = json.loads(numbers.read_text()) if numbers.exists() else {}
    for name, optimizer in product(asked.families, asked.optimizers):
        if name not in families:
            sys.exit(f"--families: with --data-dir expected {', '.join(families)}, got {name}")
        family = families[name]
        about = {
            "words": family.words, "widths": family.widths, "steps": family.steps, "seeds": family.seeds,
            "versions": versions(), "hardware": f"{cpu_model()}, {torch.get_num_threads()} threads",
        }  # fmt: skip
        found[name] = found.get(name, {}) | about | {optimizer: measured(family, optimizer, where)}
        found = {key: found[key] for key in families if key in found}
        write(numbers, json.dumps(found, allow_nan=False) + "\n")
        print(name, optimizer, "measured", file=sys.stderr)
    whole = {name: own for name, own in found.items() if own.keys() >= OPTIMIZERS.keys()}
    if whole:
        for what in ("coordinates", "sweep"):
            save(drawn(whole, what), asked.out / f"{stem}_{what}.png")
        print("\n".join(told(whole)))


if __name__ == "__main__":
    main()
