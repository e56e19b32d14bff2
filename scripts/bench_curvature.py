"""What curvature=measure costs, beside an epoch of training: the median of five epochs of each, in one run.

    python scripts/bench_curvature.py data_dir=DIR [runs_dir=./runs]

`tc` on R8, and `ic` (ResNet-18 of width 8) on CIFAR-10 or a subset of it, under DIR, at the defaults, on one thread.
The first measurement, which starts at random, is left out.
"""

import csv
import statistics
import sys
import time
from itertools import pairwise
from unittest import mock

import torch

import tmbench
from tmbench.training.curvature import CurvatureWatch
from tmbench.verbs import DATA_DIR, RUNS_DIR, Values, Verb

CASES = {"tc": {}, "ic": {"task.model": "resnet18", "task.width": 8, "batch_size": 32}}
EPOCHS = 6


def bench(settings: Values, words: list[str]) -> int:
    torch.set_num_threads(1)
    measure = CurvatureWatch.measured
    for task, more in CASES.items():
        took = list[float]()

        def timed(watch: CurvatureWatch, *args: bool, took: list[float] = took) -> dict[str, float]:
            started = time.perf_counter()
            found = measure(watch, *args)
            took.append(time.perf_counter() - started)
            return found

        with mock.patch.object(CurvatureWatch, "measured", timed):
            result = tmbench.run(
                task, "sgd", epochs=EPOCHS, data="full", curvature="measure", force=True, **settings, **more
            )
        assert result.folder is not None
        with (result.folder / "curves.csv").open() as f:
            ends = [float(row["seconds"]) for row in csv.DictReader(f)]
        epochs = [b - a for a, b in pairwise(ends)]
        epoch, measured = statistics.median(epochs), statistics.median(took[1:])
        print(
            f"{task}: an epoch {epoch:.2f} s, a measurement {measured:.3f} s, {100 * measured / epoch:.1f} % "
            f"(the first {took[0]:.2f} s; {result.curvature})"
        )
    return 0


main = Verb(
    "bench_curvature",
    "What curvature=measure costs, beside an epoch of training.",
    bench,
    {"runs_dir": RUNS_DIR, "data_dir": DATA_DIR},
)

if __name__ == "__main__":
    sys.exit(main())
