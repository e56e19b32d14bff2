"""How many seeds a machine trains in an hour, one at a time and as stacks of replicas; all in one run.

    python scripts/bench_replicas.py [data_dir=DIR] [against=[CHECKOUT,...]] [out=docs/replicas]

A table of the milliseconds that a step takes for each seed: of tc, ic (resnet18 of width 8, batch 32), fkpd and ctr, by
the number of replicas, with one thread and with two. With data_dir=, tc is R8. Then, with `against`, whole epochs of R8
with one thread by other checkouts of the project, beside 16 replicas of this one: each by itself, in
turn, and repeated. Writes replicas.json and replicas.png.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tmbench.config.compose import composed
from tmbench.config.machine import cpu_model
from tmbench.config.values import Setting
from tmbench.plan import planned
from tmbench.training.capacity import seconds_a_step
from tmbench.verbs import Values, Verb

SLOTS, REPEATS, EPOCHS = (1, 4, 8, 16, 32), 2, 1
TASKS = {
    "tc": ["task=tc"], "ctr": ["task=ctr"], "fkpd": ["task=fkpd", "task.width=8", "batch_size=32"],
    "ic": ["task=ic", "task.model=resnet18", "task.width=8", "batch_size=32"],
}  # fmt: skip
OPTIMIZERS = ("sgd", "tmsgd")


def milliseconds(words: list[str], slots: int, runs: Path) -> float:
    """Of a step and seed, over 20 steps or 4 s."""
    asked = [[*words, f"replicas={slots}", f"runs_dir={runs}", "trainer=cpu", f"seed={seed}"] for seed in range(slots)]
    plans = [planned(OmegaConf.create(composed(each))) for each in asked]
    return 1000 * seconds_a_step(plans) / slots


def steps(real: list[str], runs: Path) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for task, words in TASKS.items():
            for optimizer in OPTIMIZERS if task == "tc" else OPTIMIZERS[:1]:
                asked = [*words, *(real if task == "tc" else ()), f"optimizer={optimizer}"]
                each = {slots: round(milliseconds(asked, slots, runs), 3) for slots in SLOTS}
                found.append({"task": task, "optimizer": optimizer, "threads": threads, "milliseconds": each})
                ratios = "  ".join(f"{slots}: {ms:.2f} ({each[1] / ms:.2f})" for slots, ms in each.items())
                print(f"{task:5} {optimizer:6} {threads} threads, ms of a step and seed (times as fast)  {ratios}")
    return found


def epoch(checkout: Path, optimizer: str, slots: int, real: list[str], runs: Path) -> float:
    """Seconds of training of an epoch and seed of R8, by a checkout; those after a switch, if there is one."""
    words = ["-m", "task=tc", *real, f"optimizer={optimizer}", f"epochs={EPOCHS}", "switch_epoch=0", "trunk=off"]
    words += [f"seed=range(0,{slots})", f"runs_dir={runs}", *([f"replicas={slots}"] if slots > 1 else [])]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tmbench", *words]  # which Python looks for where it runs
    subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True)
    rows = [json.loads(path.read_text()) for path in runs.glob("*/result.json")]
    return sum(row["seconds"] for row in rows) / len(rows) / EPOCHS


def epochs(against: list[str], real: list[str], runs: Path) -> list[dict[str, Any]]:
    here = Path(__file__).parents[1]
    builds = [*((Path(each), each, 1) for each in against), (here, "here, 16 replicas", 16)]
    found = list[dict[str, Any]]()
    for optimizer in OPTIMIZERS:
        times: dict[str, list[float]] = {name: [] for _, name, _ in builds}
        for repeat in range(REPEATS):
            for number, (checkout, name, slots) in enumerate(builds):
                folder = runs / f"{optimizer}-{repeat}-{number}"
                times[name].append(epoch(checkout.resolve(), optimizer, slots, real, folder))
        best = statistics.median(times["here, 16 replicas"])
        for name, each in times.items():
            seconds = statistics.median(each)
            shown = Path(name).name
            found.append({"optimizer": optimizer, "build": shown, "seconds": each, "seeds_an_hour": 3600 / seconds})
            print(
                f"{optimizer:6} {shown:18} {seconds:.3f} s an epoch of R8 and seed; 16 replicas: {seconds / best:.2f}"
            )
    return found


def bench(settings: Values, _: list[str]) -> int:
    real = ["data=full", f"data_dir={Path(settings['data_dir']).resolve()}"] if settings["data_dir"] else []
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        found: dict[str, Any] = {"cpu": cpu_model(), "torch": torch.__version__, "tc": "R8" if real else "tiny data"}
        found["steps"] = steps(real, Path(runs))
        found["epochs"] = epochs(settings["against"], real, Path(runs)) if settings["against"] else []
    (out / "replicas.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, out / "replicas.png")
    return 0


def draw(found: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, threads in zip(axes, (1, 2), strict=True):
        for one in (one for one in found["steps"] if one["threads"] == threads):
            times = {int(slots): ms for slots, ms in one["milliseconds"].items()}
            ax.plot(
                [*times], [times[1] / ms for ms in times.values()], "o-", label=f"{one['task']}, {one['optimizer']}"
            )
        ax.axhline(1, color="grey", linewidth=1)
        ax.set(title=f"{threads} thread{'s' * (threads > 1)}", xlabel="replicas", xscale="log")
        ax.set_xticks(SLOTS, SLOTS)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("seeds an hour, over one at a time")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=110)


main = Verb(
    "bench_replicas", "Says how many seeds a machine trains in an hour, one at a time and stacked.", bench,
    {
        "data_dir": Setting("a folder, or null", "where R8 is; null: tiny data", None),
        "against": Setting("a list", "other checkouts, such as [../older]", []),
        "out": Setting("a folder", "where replicas.json and replicas.png go", "docs/replicas"),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
