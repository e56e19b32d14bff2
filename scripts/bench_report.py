"""How long and how much memory a report on thousands of runs takes.

    python scripts/bench_report.py [runs=5000] [epochs=100]

Writes the folders of that many runs (5 optimizers, some of them diverged; a tenth of the rates and every seed another)
on 2 tasks, and reports on them in a process of its own. Exits with 1 if that takes 20 s or 2 GiB or more.
"""

import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from tmbench.config.compose import composed
from tmbench.config.settle import settled
from tmbench.config.values import Setting
from tmbench.errors import RunError
from tmbench.result import Result, versions
from tmbench.verbs import Values, Verb

OPTIMIZERS, RATES, TASKS = ("sgd", "tmsgd", "sgdm", "adam", "apollo"), 10, ("tc", "ic")
SECONDS, GIB = 20, 2


def write(folder: Path, runs: int, epochs: int) -> None:
    """Run folders with made-up results, as large as real ones."""
    rng = np.random.default_rng(0)
    seeds = max(1, runs // (len(OPTIMIZERS) * RATES * len(TASKS)))
    rates = np.geomspace(1e-3, 1, RATES).round(5).tolist()
    for task, optimizer, rate in itertools.product(TASKS, OPTIMIZERS, rates):
        config = settled(composed([f"task={task}", f"optimizer={optimizer}", f"epochs={epochs}", f"lr={rate}"]))
        for seed in range(seeds):
            name = f"{task}-{optimizer}-{seed}-{rng.bytes(6).hex()}"
            place = folder / name
            place.mkdir()
            text = yaml.dump(config | {"seed": seed}, Dumper=yaml.CSafeDumper, sort_keys=False)
            (place / "config.yaml").write_text(text)
            curve = 0.9 - 0.5 * np.exp(-np.arange(1, epochs + 1) / 20) + rng.normal(0, 0.01, epochs)
            lines = [f"{e},{e * 1097},{rate},{2.3 * e},{1 - a},{a}" for e, a in enumerate(curve, 1)]
            lines.insert(0, "epoch,step,lr,seconds,train/loss,test/accuracy")
            (place / "curves.csv").write_text("\n".join(lines) + "\n")
            best = int(curve.argmax())
            status = "diverged" if rng.random() < 0.02 else "completed"
            result = Result(
                name, status, task, optimizer, seed, "full", "reconciled", "test", "accuracy", True,
                {"last": {"test/accuracy": curve[-1]}, "best": {"epoch": best + 1, "test/accuracy": curve[best]}},
                230.0,
                {"asked": epochs, "trained": epochs, "from_trunk": 0}, epochs * 1097, 2400.0, 10**9, 10**6,
                {"requested": None, "effective": None, "step": None}, versions(), "1 x a CPU, 1 threads", "0" * 40,
                "0" * 16, f"python -m tmbench task={task} optimizer={optimizer} seed={seed} lr={rate}",
                "2026-01-01T00:00:00Z", baseline={"test/accuracy": 0.1},
            )  # fmt: skip
            result.save(place)


def bench(values: Values, _: list[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch) / "runs"
        runs.mkdir()
        write(runs, values["runs"], values["epochs"])
        command = [sys.executable, "-m", "tmbench.report", str(runs), f"out={scratch}/report"]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RunError(done.stderr[-2000:])
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        gib = used.ru_maxrss / 2**20
        page = (Path(scratch) / "report" / "report.html").stat().st_size / 1e6
        cpu = used.ru_utime + used.ru_stime
        cores, n = len(os.sched_getaffinity(0)), len(list(runs.iterdir()))
        print(f"{n:,} runs of {values['epochs']} epochs: {seconds:.1f} s ({cpu:.1f} s of processor), {gib:.2f} GiB, "
              f"a page of {page:.1f} MB (on {cores} cores)")  # fmt: skip
        print(done.stdout[-600:])
        if seconds >= SECONDS or gib >= GIB:
            raise RunError(f"expected less than {SECONDS} s and {GIB} GiB")
    return 0


main = Verb(
    "bench_report", "Says how long and how much memory a report on thousands of runs takes.", bench,
    {
        "runs": Setting("a whole number > 0", "how many, about", 5000),
        "epochs": Setting("a whole number > 0", "of each run", 100),
    },
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
