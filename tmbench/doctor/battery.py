"""Does it work here: tiny trainings whose outcome is known, on each kind of device that there is."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ..certify import CHECKS, certify
from ..config.compose import composed
from ..config.table import choices
from ..errors import ConfigError
from ..guest import as_guest
from ..optim import TMSGD
from ..result import shown
from ..run import run as run_once
from ..runs.show import size_words
from . import Finding, examined, speed
from .bench import CLOSE, LEARN, Bench, bitwise, close, losses, swept
from .first_steps import devices_agree
from .machine import fused_agrees
from .ranks import ranks

STEPS = 20  # at least, of every task
SHORT: dict[str, Any] = {"epochs": 2, "switch_epoch": 1}  # a run with both phases
OTHER_PRECISION = 0.05  # relative, of the first epoch's mean loss


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
    peak = "peak memory" if bench.device == "cuda" else "peak memory of the process so far"
    found = f"{steps} steps each; {', '.join(told)}; {peak} {size_words(result.peak_memory_bytes)}"
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
        found = f"loss {first:.3g} to {last:.3g}, {key} {shown(score, key)}"
        found += f"; a predictor without input: {shown(without, key)}"
        if last < first and is_better:
            yield Finding(task, "green", found)
        else:
            yield Finding(task, "red", found, "training does not work on this device: report it with this page")


def repeats(bench: Bench) -> Iterator[Finding]:
    for task in LEARN:
        one, other = (bench.run(task, where=where, **SHORT) for where in ("runs", "again"))
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
        whole, resumed = (bench.run(task, where=where, **SHORT) for where in ("runs", "stopped"))
        yield bitwise(task, whole, resumed, "stopped and resumed")


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
    by_kernel: dict[str, Any] = {**SHORT, "+optimizer.fused": True}
    one, other = bench.run("ctr", **by_kernel), bench.run("ctr", **SHORT)
    yield close("ctr", losses(one)[-1], losses(other)[-1], "fused and foreach, two epochs", CLOSE)
    found = certify(partial(TMSGD, lr=0.05, momentum=0.9, switch_step=6), devices=[bench.device])
    if failed := [f"{f.check}: {f.detail}" for f in found if f.verdict == "does not"]:
        yield Finding("certificate", "red", "; ".join(failed), "tmbench certify optimizer=tmsgdm shows all")
    else:
        counts = sum(f.verdict == "holds" for f in found)
        yield Finding(
            "certificate", "green", f"{counts} checks of `tmbench certify` hold for TM-SGD with momentum, none fails"
        )


def rows(bench: Bench) -> Iterator[Finding]:
    """An embedding that is stepped by the rows read, against the whole table."""
    for optimizer, new in (("sgdm", torch.optim.SGD), ("tmsgdm", partial(TMSGD, switch_step=6))):
        (_, found) = certify(partial(new, lr=0.1, momentum=0.9), devices=[bench.device], checks=["rows"])
        holds = found.verdict == "holds"
        remedy = "" if holds else "task.sparse=false steps the whole table"
        yield Finding(optimizer, "green" if holds else "red", f"{CHECKS['rows']}: {found.detail}", remedy)
    words: list[dict[str, Any]] = [{**SHORT, "task.sparse": sparse} for sparse in (True, False)]
    one, other = (bench.run("tc", **each) for each in words)
    yield close("tc", losses(one)[-1], losses(other)[-1], "by rows and dense, two epochs", CLOSE)


def replicas(bench: Bench) -> Iterator[Finding]:
    """Four seeds as one stack of tensors, against the same four by themselves."""
    places: dict[str, Any] = {"runs_dir": bench.folder / bench.device / "replicas", "trainer": bench.trainer}
    for task in ("tc", "ctr"):
        done = swept(task, seed=range(4), replicas=4, **SHORT, **places)
        if any(result.replicas != 4 for result in done):
            yield Finding(task, "red", "the seeds were trained one at a time", f"tmbench -m task={task} replicas=4")
            continue
        pairs = [(losses(one)[-1], losses(bench.run(task, seed=one.seed, **SHORT))[-1]) for one in done]
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
        yield bitwise(f"switch {switch}", result, alone, f"{shared} of 3 epochs taken over from another run, and none")


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
