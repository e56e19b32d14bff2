"""Is optimizer=learned any good on tiny data? Its training loss beside that of SGD at the fixed rate 0.01; time.

    python scripts/learned_trials.py tiny runs_dir=DIR [seeds=3]      # some 20 minutes on 2 cores
    python scripts/learned_trials.py curve curve=learned/curve.csv

Every task of the tiny profile at its own number of epochs. Compared is the mean training loss of the last epoch; for
`ig`, whose two players oppose each other, the Frechet distance. `tc`, `ctr` and `ic` are among what the network was
trained on. Time: a step of ResNet-18 beside Adam, the median of ten in turn. Prints a table, and writes every number to
`out`, docs/learned. `curve`: a figure of what `tmbench learn` wrote of its course.
"""

import csv
import json
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torchvision.models import resnet18

import tmbench
from tmbench.config.machine import cpu_model
from tmbench.config.table import choices, values_of
from tmbench.config.values import Setting
from tmbench.files import write
from tmbench.learn.pes import KINDS
from tmbench.result import versions
from tmbench.training.learned import learned
from tmbench.verbs import RUNS_DIR, Values, Verb, out_dir

SGD_RATE, ROUNDS = 0.01, 10


def end(task: str, optimizer: str, seed: int, runs_dir: str, **more: Any) -> float:
    """The loss of a run's last epoch, or the Frechet distance after it."""
    result = tmbench.run(task, optimizer, seed=seed, data="tiny", runs_dir=runs_dir, progress=False, **more)
    return float(result.metrics["last"][result.headline if task == "ig" else "train/loss"])


def trials(settings: Values, words: list[str]) -> int:
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    for part in words:
        {"tiny": tiny, "curve": curve}[part](settings, out)
    return 0


def curve(settings: Values, out: Path) -> None:
    with Path(settings["curve"]).open() as f:
        rows = list(csv.DictReader(f))
    figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for kind in dict.fromkeys(row["problem"] for row in rows):
        of = [(int(row["update"]), float(row["loss over the first"])) for row in rows if row["problem"] == kind]
        window = max(1, len(of) // 25)
        ends = range(window, len(of) + 1)
        means = [statistics.mean(loss for _, loss in of[i - window : i]) for i in ends]
        ax.plot([of[i - 1][0] for i in ends], means, label=kind)
    ax.set(xlabel="updates of the network", ylabel="loss, over the first one's", yscale="log")
    ax.legend(title="mean of the last 4 %")
    figure.savefig(out / "curve.png", dpi=120)


def tiny(settings: Values, out: Path) -> None:
    rows = []
    for task in choices("task"):
        words: dict[str, tuple[str, dict[str, Any]]] = {
            "start": ("sgd", {"lr": 1e-30, "epochs": 1}), "learned": ("learned", {}), "sgd": ("sgd", {"lr": SGD_RATE}),
        }  # fmt: skip
        runs = {
            name: [end(task, optimizer, seed, settings["runs_dir"], **more) for seed in range(settings["seeds"])]
            for name, (optimizer, more) in words.items()
        }
        means = {name: statistics.mean(values) for name, values in runs.items()}
        rows.append({"task": task, "seen": task in KINDS, **means, "runs": runs})
        print(task, means, file=sys.stderr)
    steps = times()
    about = {"hardware": cpu_model(), "versions": versions(), "milliseconds": steps, "rows": rows}
    write(out / "tiny.json", json.dumps(about, indent=1) + "\n")
    print(table(rows))
    print(f"a step of ResNet-18 on one thread: {steps['learned']:.0f} ms, Adam's {steps['adam']:.0f} ms")


def table(rows: Iterable[dict[str, Any]]) -> str:
    lines = [
        "| task | meta-training saw it | untrained | learned | SGD, 0.01 | lower |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        lower = "learned" if row["learned"] < row["sgd"] else "SGD"
        name = f"{row['task']} (Frechet distance)" if row["task"] == "ig" else row["task"]
        numbers = " | ".join(f"{row[key]:.4g}" for key in ("start", "learned", "sgd"))
        lines.append(f"| {name} | {'yes' if row['seen'] else ''} | {numbers} | {lower} |")
    return "\n".join(lines) + "\n"


def times() -> dict[str, float]:
    """Milliseconds of a step of ResNet-18, on one thread."""
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {}
    digest = values_of("optimizer/learned.yaml")["digest"]
    made: dict[str, Any] = {"learned": lambda p: learned(p, None, digest), "adam": torch.optim.Adam}
    optimizers = {}
    for name, new in made.items():
        params = list(resnet18().parameters())
        for p in params:
            p.grad = torch.randn_like(p)
        optimizers[name] = new(params)
        optimizers[name].step()
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            optimizer.step()
            taken.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(each) for name, each in taken.items()}


main = Verb(
    "learned_trials",
    "optimizer=learned on tiny data, beside SGD: see the text at the head of this file.",
    trials,
    {
        "runs_dir": RUNS_DIR,
        "seeds": Setting("a whole number >= 1", "of each task", 3),
        "curve": Setting("a file", "that tmbench learn wrote", "learned/curve.csv"),
        "out": out_dir("docs/learned"),
    },
    takes="tiny|curve ...",
)

if __name__ == "__main__":
    sys.exit(main())
