"""Does CLARS do without a warm-up what SGD with momentum and LARS need one for, as batches grow?

    python scripts/large_batches.py runs_dir=DIR data_dir=DATA    # CIFAR-10, about an hour on one core

A ResNet18 of 4 channels, three sizes of batch, rates in proportion to them, with and without warm-up, three seeds. All
constants below were fixed before anything was measured. Batch norm sees PART examples at a time in all runs, so that
the methods differ by their steps alone. Writes a table, a figure and every number to `out`, docs/large-batches.

Rates at a batch of 256: 0.1 of SGD with momentum is Goyal et al. 2017 (arXiv 1706.02677), and the task's own; 1 of LARS
is the rate with which it is tested here, and what You et al. 2017 give for AlexNet, 2 at 512. CLARS has that of LARS.
"""

import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tmbench
from tmbench.config.machine import cpu_model
from tmbench.config.values import Setting
from tmbench.doctor.bench import losses
from tmbench.figures import save
from tmbench.files import write
from tmbench.result import Result, shown, versions
from tmbench.verbs import DATA_DIR, RUNS_DIR, Values, Verb

RATES = {"sgdm": 0.1, "lars": 1.0, "clars": 1.0}  # at a batch of REFERENCE
BATCHES, REFERENCE, PART = (64, 256, 1024), 256, 32
EPOCHS, WARMUP, SEEDS = 8, 2, (0, 1, 2)
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "constant"},
    "warm-up": {"schedule": "warmup", "schedule.warmup_epochs": WARMUP},
}


def trained(optimizer: str, batch: int, schedule: str, seed: int, settings: Values) -> Result:
    return tmbench.run(
        "ic", optimizer, seed, lr=RATES[optimizer] * batch / REFERENCE, batch_size=batch, epochs=EPOCHS, data="full",
        runs_dir=settings["runs_dir"], data_dir=settings["data_dir"], progress=False,
        **{"task.model": "resnet18", "task.width": 4, "trainer.accumulate": batch // PART, **SCHEDULES[schedule]},
    )  # fmt: skip


def measured(settings: Values) -> list[dict[str, Any]]:
    """One row a size of batch, schedule and optimizer."""
    found = []
    for batch, schedule, optimizer in product(BATCHES, SCHEDULES, RATES):
        results = [trained(optimizer, batch, schedule, seed, settings) for seed in SEEDS]
        found.append(
            {
                "batch": batch, "schedule": schedule, "optimizer": optimizer, "steps": results[0].steps,
                "metric": results[0].headline, "scores": [r.score for r in results if r.status == "completed"],
                "diverged": sum(r.status == "diverged" for r in results), "loss": [losses(r) for r in results],
                "profile": results[0].profile, "seconds": [r.seconds for r in results],
            }
        )  # fmt: skip
        print({key: value for key, value in found[-1].items() if key != "loss"}, file=sys.stderr)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy after the last epoch and the training loss of the first and last, as means over seeds."""
    lines = ["| batch | steps | optimizer | without warm-up | with warm-up | loss after 1 epoch | after all |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for batch, optimizer in product(BATCHES, RATES):
        both = [r for r in rows if (r["batch"], r["optimizer"]) == (batch, optimizer)]
        first, last = (" / ".join(f"{mean(loss[k] for loss in r['loss'] if loss):.2f}" for r in both) for k in (0, -1))
        scores = " | ".join(_score(r) for r in both)
        lines.append(f"| {batch:,} | {both[0]['steps']} | {optimizer} | {scores} | {first} | {last} |")
    return "\n".join(lines) + "\n"


def _score(row: dict[str, Any]) -> str:
    scores, metric = row["scores"], row["metric"]
    parts = [f"{shown(mean(scores), metric)} ± {shown(stdev(scores), metric)}"] if len(scores) > 1 else []
    return ", ".join(parts + [f"{row['diverged']} diverged"] * bool(row["diverged"]))


def drawn(rows: list[dict[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, schedule in zip(axes, SCHEDULES, strict=True):
        for k, optimizer in enumerate(RATES):
            mine = [r for r in rows if (r["schedule"], r["optimizer"]) == (schedule, optimizer) and r["scores"]]
            ax.plot([r["batch"] for r in mine], [100 * mean(r["scores"]) for r in mine], color=f"C{k}", label=optimizer)
            points = [(r["batch"], 100 * score) for r in mine for score in r["scores"]]
            ax.plot(*zip(*points, strict=True), "o", markersize=4, color=f"C{k}")
        ax.set_xscale("log", base=2)
        ax.set_xticks(BATCHES, [f"{batch:,}" for batch in BATCHES])
        ax.set(title="constant rate" if schedule == "constant" else f"warm-up of {WARMUP} epochs", xlabel="batch size")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel(f"test accuracy after {EPOCHS} epochs, %")
    axes[0].legend(frameon=False)
    return figure


def experiment(settings: Values, words: list[str]) -> int:
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    rows = measured(settings)
    about = {"hardware": cpu_model(), "versions": versions(), "rates": RATES, "epochs": EPOCHS, "rows": rows}
    write(out / "large-batches.json", json.dumps(about, indent=1) + "\n")
    write(out / "table.md", table(rows))
    save(drawn(rows), out / "accuracy.png")
    print(table(rows))
    return 0


main = Verb(
    "large_batches",
    "Large batches with and without warm-up: see the text at the head of this file.",
    experiment,
    {
        "runs_dir": RUNS_DIR, "data_dir": DATA_DIR,
        "out": Setting("a folder", "where table and figure go", "docs/large-batches"),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
