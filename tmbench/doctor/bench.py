"""What the trainings share: where they go, and whether two of them are the same."""

import csv
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import checkpoint
from ..api import run, sweep
from ..result import Result
from . import Finding

LEARN = ("tc", "ic", "ctr")  # trained more than others: they have a baseline, and take seconds
CLOSE = 1e-3  # relative, of losses that only rounding tells apart


@dataclass(frozen=True)
class Bench:
    """Where a part works: a folder of its own, and one kind of device (`cpu` or `cuda`)."""

    folder: Path
    device: str

    @property
    def trainer(self) -> str:
        return "gpu" if self.device == "cuda" else "cpu"

    def run(self, task: str, optimizer: str = "tmsgd", where: str = "runs", **settings: Any) -> Result:
        """A run on tiny data; those with the same settings are one run in each folder `where`."""
        places: dict[str, Any] = {"runs_dir": self.folder / self.device / where, "data": "tiny"}
        return run(task, optimizer, progress=False, **{"trainer": self.trainer} | places | settings)


def swept(task: str, **settings: Any) -> list[Result]:
    """The results of a sweep; RuntimeError with the first failure, if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of failures
        done = sweep(task, data="tiny", progress=False, **settings)
    for failure in done.failures.values():
        raise RuntimeError(failure)
    return done.results


def losses(result: Result) -> list[float]:
    """The mean training loss of each epoch."""
    assert result.folder
    with (result.folder / "curves.csv").open() as f:
        return [float(row["train/loss"]) for row in csv.DictReader(f)]


def weights(result: Result) -> dict[str, Tensor]:
    """Its weights and buffers after the last epoch."""
    assert result.folder
    state: dict[str, Tensor] = checkpoint.load(result.folder / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def bitwise(name: str, one: Result, other: Result, how: str) -> Finding:
    """Whether two runs ended in the same bits; if not, which operations of torch's are not deterministic."""
    a, b = weights(one), weights(other)
    differ = [key for key in a if not torch.equal(a[key], b[key])]
    if not differ and one.metrics["last"] == other.metrics["last"]:
        return Finding(name, "green", f"{how}: the same bits after {one.steps} steps")
    others = f" and {len(differ) - 1} more tensors differ" if len(differ) > 1 else " differs"
    what = f"{how}: {differ[0]}{others}" if differ else f"{how}: the metrics differ"
    operations = sorted({*one.nondeterministic, *other.nondeterministic})
    if operations:
        found = f"{what}; not deterministic: {', '.join(operations)}"
        return Finding(name, "yellow", found, "compare runs by their spread over seeds, not by bits")
    return Finding(name, "red", what, "runs here cannot be repeated or resumed exactly: report it with this page")


def close(name: str, one: float, other: float, how: str, bound: float) -> Finding:
    """Whether two losses are the same but for rounding."""
    apart = abs(one - other) / abs(other) if math.isfinite(one) else math.inf
    found = f"{how}: loss {one:.6g} against {other:.6g}, {apart:.1e} apart (bound {bound:.0e})"
    if apart <= bound:
        return Finding(name, "green", found)
    return Finding(name, "red", found, "do not compare runs of the two; report it with this page")
