"""Two processes that train one model: are they one, and what becomes of the run if one of them is killed?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..config.overrides import word_of
from ..result import Result, shown
from . import Finding
from .bench import CLOSE, Bench, bitwise, close, losses, swept, weights
from .command import ENDS_WITHIN, Command, can_find_children

# Relative, of ic on GPUs, where batch norm's rounding grows (see first_steps), and one process has other kernels.
OF_IC = 0.05
# Absolute, of accuracies: two of tc's 160 test documents; of ic, whose statistics are taken at other moments, more.
OF_METRIC = {"tc": 0.0125, "ic": 0.05}
# Relative, of batch norm's running statistics after one step. One process that computes the shares in turn gives them
# the weights 0.53 and 0.47, which comes to 1e-3; two that do not exchange their statistics are 20 times as far apart.
OF_STATISTICS = 5e-3
KEPT = 0.9  # of running statistics in one update: 1 - torch's momentum


def ranks(bench: Bench) -> Iterator[Finding]:
    """Two processes train one model; one of them is killed; two runs at once."""
    count, on_gpu = torch.cuda.device_count(), bench.device == "cuda"
    if on_gpu and count < 2:
        yield Finding("tc", "skipped", f"{count} GPU: ranks over NCCL, and one run a GPU, need two")
        return
    yield from same_training(bench)
    yield killed(bench)
    yield from two_at_once(bench)


def pair(bench: Bench, where: str, task: str, optimizer: str, **settings: Any) -> Command:
    """The command of a run on two devices, or two processes on the CPU."""
    trainer = "ddp" if bench.device == "cuda" else "ddp_cpu"
    settings = {"task": task, "optimizer": optimizer, "data": "tiny", "trainer": trainer, "devices": 2, **settings}
    return Command([word_of(*each) for each in settings.items()], bench.folder / bench.device / "ranks" / where)


def same_training(bench: Bench) -> Iterator[Finding]:
    """Loss, metric and batch norm's running statistics of two processes beside those of one.

    On GPUs batch norm is synchronised, as if one process saw the whole batch. On CPUs torch cannot: each process
    normalises its share, as one process does that takes the batch in two parts.
    """
    on_gpu = bench.device == "cuda"
    parts: dict[str, Any] = {"trainer.accumulate": 2}
    of_ic: dict[str, Any] = {} if on_gpu else parts
    cases: list[tuple[str, dict[str, Any], dict[str, Any], float]] = [
        ("tc", {"epochs": 2, "lr": 0.1}, parts, CLOSE), ("ic", {}, of_ic, OF_IC if on_gpu else CLOSE),
    ]  # fmt: skip
    for task, more, alone, bound in cases:
        both, one = pair(bench, task, task, "sgd", **more).result(), bench.run(task, "sgd", **more, **alone)
        how = "first epoch of two processes and of one"
        yield close(f"{task} loss", losses(both)[0], losses(one)[0], how, bound)
        yield same_metric(f"{task} metric", both, one, OF_METRIC[task])
    one_step: dict[str, Any] = {"epochs": 1, "batch_size": 400}  # all pictures, before the weights can differ
    both = pair(bench, "statistics", "ic", "sgd", **one_step).result()
    one = bench.run("ic", "sgd", **one_step, **of_ic)
    yield same_statistics(*map(weights, (both, one)))


def same_metric(name: str, both: Result, one: Result, bound: float) -> Finding:
    key = both.headline
    a, b = both.metrics["last"][key], one.metrics["last"][key]
    found = f"last epoch of two processes and of one: {key} {shown(a, key)} against {shown(b, key)}"
    found += f" (bound {shown(bound, key)})"
    if abs(a - b) <= bound:
        return Finding(name, "green", found)
    return Finding(name, "red", found, "train on one device (devices=1); report it with this page")


def same_statistics(both: dict[str, Tensor], one: dict[str, Tensor]) -> Finding:
    """Whether batch norm's running statistics, in the states of two networks, are of the same batches."""
    seen, expected = _statistics(both), _statistics(one)
    apart = {name: float((seen[name] - t).norm() / t.norm()) for name, t in expected.items()}
    worst = max(apart, key=apart.__getitem__)
    found = f"ic, one step: {len(apart)} running statistics of two processes and one, {apart[worst]:.0e} apart at most"
    found += f", in {worst} (bound {OF_STATISTICS:.0e})"
    if apart[worst] <= OF_STATISTICS:
        return Finding("batch norm", "green", found)
    remedy = "batch norm would be evaluated wrongly: train on one device (devices=1); report it with this page"
    return Finding("batch norm", "red", found, remedy)


def _statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What running statistics say of the batches alone, without what is left of the 0 or 1 that they start from."""
    found = {}
    for name, t in state.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("running_mean", "running_var"):
            left = KEPT ** int(state[f"{layer}.num_batches_tracked"])
            found[name] = (t - left * (kind == "running_var")) / (1 - left)
    return found


def killed(bench: Bench) -> Finding:
    """A run on two processes of which one is killed, and that is resumed, beside the same run left alone."""
    name, settings = "killed", {"epochs": 4, "switch_epoch": 2}
    if not can_find_children():
        return Finding(name, "skipped", "this system does not say which processes a process has started")
    once, alone = (pair(bench, where, "tc", "tmsgd", **settings) for where in (name, "alone"))
    status, seconds = once.kill_a_rank()
    found = f"one process of two killed after an epoch, the run ended {seconds:.0f} s later with status {status}"
    if status is None:
        found = f"one process of two killed after an epoch, the run still waited for it {ENDS_WITHIN:.0f} s later"
        remedy = "a run that loses a process has to be ended by hand here; report it with this page"
        return Finding(name, "red", found, remedy)
    if status == 0:
        return Finding(name, "red", found, "a lost process goes unnoticed here; report it with this page")
    how = f"{found} (expected: within {ENDS_WITHIN:.0f} s, not 0); resumed, beside a run left alone"
    return bitwise(name, once.result(), alone.result(), how)


def two_at_once(bench: Bench) -> Iterator[Finding]:
    """Two runs by `launcher=local` (or `joblib`), a GPU each, beside each by itself."""
    places: dict[str, Any] = {"runs_dir": bench.folder / bench.device / "local", "trainer": bench.trainer}
    several: dict[str, Any] = {"launcher": "local", "launcher.n_jobs": 2}
    for each in swept("tc", optimizer="sgd", seed=[0, 1], epochs=1, **places, **several):
        alone = bench.run("tc", "sgd", seed=each.seed, epochs=1)
        how = f"two runs at once{', one a GPU' if bench.device == 'cuda' else ''}, and each by itself"
        yield close(f"local, seed {each.seed}", losses(each)[0], losses(alone)[0], how, CLOSE)
