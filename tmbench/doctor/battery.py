"""Does it work here: tiny trainings whose outcome is known, on each kind of device that there is."""

import csv
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from .. import checkpoint
from ..api import run, sweep
from ..certify import CHECKS, certify
from ..config.compose import composed
from ..config.table import choices
from ..errors import ConfigError
from ..guest import as_guest
from ..optim import TMSGD
from ..result import Result, shown
from ..run import run as run_once
from ..runs.show import size_words
from . import Finding, examined, speed
from .machine import fused_agrees

LEARN = ("tc", "ic", "ctr")  # trained whole: they have a baseline, and take seconds
STEPS = 20  # at least, of every task
CLOSE = 1e-3  # relative, of losses that only rounding tells apart
OTHER_DEVICE, OTHER_PRECISION = 0.02, 0.05  # relative, of the first epoch's mean loss


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


def bitwise(name: str, one: Result, other: Result, how: str) -> Finding:
    """Whether two runs ended in the same bits; if not, which operations of torch's are not deterministic."""
    assert one.folder
    assert other.folder
    a, b = (checkpoint.load(r.folder / "checkpoints" / "last.ckpt")["state_dict"] for r in (one, other) if r.folder)
    differ = [key for key in a if not torch.equal(a[key], b[key])]
    if not differ and one.metrics["last"] == other.metrics["last"]:
        return Finding(name, "green", f"{how}: the same bits after {one.steps} steps")
    what = f"{how}: {differ[0]} and {len(differ) - 1} more tensors differ" if differ else f"{how}: the metrics differ"
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


def tasks(bench: Bench) -> Iterator[Finding]:
    """Every task for three epochs with sgd and with tmsgd, which switches after the first."""
    for task in choices("task"):
        hint = f"tmbench task={task} optimizer=sgd epochs=3 trainer={bench.trainer} shows all of the error"
        yield from examined(task, partial(_trains, bench, task), hint)


def _trains(bench: Bench, task: str) -> Finding:
    told, finite, steps = [], True, 0
    settings: dict[str, dict[str, Any]] = {"sgd": {}, "tmsgd": {"switch_epoch": 1}}
    for optimizer in settings:
        result = bench.run(task, optimizer, epochs=3, **settings[optimizer])
        first, *_, last = losses(result)
        finite &= result.status == "completed" and math.isfinite(last)
        told.append(f"{optimizer} loss {first:.3g} to {last:.3g}")
        steps = result.steps
    found = f"{steps} steps each; {', '.join(told)}; peak {size_words(result.peak_memory_bytes)}"
    if operations := result.nondeterministic:
        found += f"; not deterministic: {', '.join(operations)}"
    if not finite:
        return Finding(task, "red", found, "a tiny run diverges here, and not elsewhere: report it with this page")
    if steps < STEPS:
        return Finding(task, "yellow", found, f"too few steps to tell: expected at least {STEPS}")
    return Finding(task, "green", found)


def learns(bench: Bench) -> Iterator[Finding]:
    """Whole runs with tmsgd: the loss falls, and the metric is better than that of a predictor without input."""
    for task in LEARN:
        result = bench.run(task)
        first, *_, last = losses(result)
        score, key = result.score, result.headline
        without = result.baseline[key]
        is_better = score is not None and (score > without if result.higher_is_better else score < without)
        found = f"loss {first:.3g} to {last:.3g}, {key} {shown(score, key)}; {shown(without, key)} without input"
        if last < first and is_better:
            yield Finding(task, "green", found)
        else:
            yield Finding(task, "red", found, "training does not work on this device: report it with this page")


def repeats(bench: Bench) -> Iterator[Finding]:
    for task in LEARN:
        one, other = (bench.run(task, where=where, epochs=2, switch_epoch=1) for where in ("runs", "again"))
        yield bitwise(task, one, other, "the same seed twice")


def resumes(bench: Bench) -> Iterator[Finding]:
    """A run that is stopped after its first epoch and resumed, against one that is not."""
    for task in LEARN:
        words = [f"task={task}", "optimizer=tmsgd", "seed=0", "data=tiny", "epochs=2", "switch_epoch=1"]
        words += [f"trainer={bench.trainer}", f"runs_dir={bench.folder / bench.device / 'stopped'}"]
        with as_guest(progress=False):
            stopped, _, _ = run_once(OmegaConf.create(composed(words)), until=1)
        if stopped.epochs["trained"] != 1:
            raise RuntimeError(f"stopped after 1 epoch, {task} had trained {stopped.epochs['trained']}")
        settings: dict[str, Any] = {"epochs": 2, "switch_epoch": 1}
        whole, resumed = (bench.run(task, where=where, **settings) for where in ("runs", "stopped"))
        yield bitwise(task, whole, resumed, "stopped and resumed")


def devices_agree(bench: Bench) -> Iterator[Finding]:
    """The first epoch on the GPU against the same on the CPU: other kernels, the same mathematics."""
    if bench.device == "cpu":
        yield Finding("losses", "skipped", "a GPU would be compared with this CPU")
        return
    for task in LEARN:
        one, other = (losses(each.run(task, "sgd", epochs=1))[0] for each in (bench, Bench(bench.folder, "cpu")))
        yield close(task, one, other, "first epoch on the GPU and the CPU", OTHER_DEVICE)


def bf16(bench: Bench) -> Iterator[Finding]:
    for task in LEARN:
        try:
            mixed = bench.run(task, "sgd", epochs=1, precision="bf16-mixed")
        except ConfigError as error:  # what the check before the first epoch says
            yield Finding(task, "yellow", str(error).splitlines()[0], "use precision=32 for this task")
            continue
        full = bench.run(task, "sgd", epochs=1)
        found = close(task, losses(mixed)[0], losses(full)[0], "bf16-mixed and float32", OTHER_PRECISION)
        yield Finding(task, found.state, "; ".join([found.found, *mixed.notes]), found.remedy)


def fused(bench: Bench) -> Iterator[Finding]:
    """One step in one pass, by the kernel and in whole runs; and all else that `tmbench certify` knows of TM-SGD."""
    yield fused_agrees("kernel", bench.device)
    settings: dict[str, Any] = {"epochs": 2, "switch_epoch": 1}
    by_kernel: dict[str, Any] = {**settings, "+optimizer.fused": True}
    one, other = bench.run("ctr", **by_kernel), bench.run("ctr", **settings)
    yield close("ctr", losses(one)[-1], losses(other)[-1], "fused and foreach, two epochs", CLOSE)
    found = certify(partial(TMSGD, lr=0.05, momentum=0.9, switch_step=6), devices=[bench.device])
    if failed := [f"{f.check}: {f.detail}" for f in found if f.verdict == "does not"]:
        yield Finding("certificate", "red", "; ".join(failed), "tmbench certify optimizer=tmsgdm shows all")
    else:
        counts = sum(f.verdict == "holds" for f in found)
        yield Finding("certificate", "green", f"{counts} checks of TM-SGD with momentum hold, none fails")


def rows(bench: Bench) -> Iterator[Finding]:
    """An embedding that is stepped by the rows read, against the whole table."""
    for optimizer, new in (("sgdm", torch.optim.SGD), ("tmsgdm", partial(TMSGD, switch_step=6))):
        (_, found) = certify(partial(new, lr=0.1, momentum=0.9), devices=[bench.device], checks=["rows"])
        is_wrong = found.verdict == "does not"
        remedy = "task.sparse=false steps the whole table" if is_wrong else ""
        yield Finding(optimizer, "red" if is_wrong else "green", f"{CHECKS['rows']}: {found.detail}", remedy)
    settings: dict[str, Any] = {"epochs": 2, "switch_epoch": 1}
    words: list[dict[str, Any]] = [{**settings, "task.sparse": sparse} for sparse in (True, False)]
    one, other = (bench.run("tc", **each) for each in words)
    yield close("tc", losses(one)[-1], losses(other)[-1], "by rows and dense, two epochs", CLOSE)


def replicas(bench: Bench) -> Iterator[Finding]:
    """Four seeds as one stack of tensors, against the same four by themselves."""
    settings: dict[str, Any] = {"epochs": 2, "switch_epoch": 1}
    places: dict[str, Any] = {"runs_dir": bench.folder / bench.device / "replicas", "trainer": bench.trainer}
    for task in ("tc", "ctr"):
        done = swept(task, seed=range(4), replicas=4, **settings, **places)
        if any(result.replicas != 4 for result in done):
            yield Finding(task, "red", "the seeds were trained one at a time", f"tmbench -m task={task} replicas=4")
            continue
        pairs = [(losses(one)[-1], losses(bench.run(task, seed=one.seed, **settings))[-1]) for one in done]
        worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        yield close(task, *worst, "4 seeds in a stack and alone, the pair furthest apart", CLOSE)


def trunks(bench: Bench) -> Iterator[Finding]:
    """Two runs that share their beginning, against the same two without that."""
    places: dict[str, Any] = {"runs_dir": bench.folder / bench.device / "trunks", "trainer": bench.trainer}
    done = swept("tc", switch_epoch=[1, 2], epochs=3, **places)
    if not any(result.epochs["from_trunk"] for result in done):
        yield Finding("tc", "red", "no run took over another's beginning", "check the file locks of runs_dir")
    for result in done:
        assert result.switch is not None
        switch, shared = result.switch["effective"], result.epochs["from_trunk"]
        alone = bench.run("tc", where="alone", epochs=3, switch_epoch=switch, trunk="off")
        yield bitwise(f"switch {switch}", result, alone, f"{shared} of 3 epochs shared, and none")


def ranks(bench: Bench) -> Iterator[Finding]:
    """Two processes that train one model, against one process with its batches in two parts."""
    count, on_gpu = torch.cuda.device_count(), bench.device == "cuda"
    if on_gpu and count < 2:
        yield Finding("tc", "skipped", f"{count} GPU: ranks over NCCL, and one run a GPU, need two")
        return
    for task in ("tc", "ic") if on_gpu else ("tc",):  # ic has batch norm, which is synchronised on GPUs
        both = bench.run(task, "sgd", epochs=1, trainer="ddp" if on_gpu else "ddp_cpu", devices=2)
        accumulate: dict[str, Any] = {"trainer.accumulate": 2}
        parts = bench.run(task, "sgd", epochs=1, **accumulate)
        how, bound = "two processes and one", CLOSE if task == "tc" else OTHER_DEVICE
        yield close(task, losses(both)[-1], losses(parts)[-1], how, bound)
    if on_gpu:
        places: dict[str, Any] = {"runs_dir": bench.folder / "local", "trainer": "gpu", "launcher": "local"}
        swept("tc", optimizer="sgd", seed=[0, 1], epochs=1, **places)
        yield Finding("local", "green", "two runs at once, one a GPU")


PARTS: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    "tasks": tasks, "learns": learns, "repeats": repeats, "resumes": resumes, "devices": devices_agree, "bf16": bf16,
    "fused": fused, "rows": rows, "replicas": replicas, "trunks": trunks, "ranks": ranks,
    "step": lambda bench: speed.step(bench.device), "loader": lambda bench: speed.loader(bench.folder, bench.device),
}  # fmt: skip


def battery(folder: Path, parts: list[str], say: Callable[[str], object]) -> Iterator[Finding]:
    """The findings of these parts, each on every kind of device, named `part: what (device)`.

    Args:
        folder: where runs go.
        say: called before each part.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device, part in product(devices, parts):
        say(f"{part} on {device} ...")
        for finding in examined(part, partial(PARTS[part], Bench(folder, device))):
            what = f"{part}: {finding.name}" if finding.name != part else part
            yield Finding(f"{what} ({device})", finding.state, finding.found, finding.remedy)
