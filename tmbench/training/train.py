"""Training a planned run from its last checkpoint, or its start, to its end; the part of a run that needs torch."""

import json
import logging
import math
import re
import resource
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..config.identity import reads_switch
from ..config.machine import cpu_model
from ..errors import ConfigError, DataError
from ..files import digest_of, flush
from ..plan import Plan
from ..result import Result, finished
from ..trunks import Reservation, state_to_start_from
from .build import loaders_of, loggers_of, optimizer_of, schedule_of, task_of, trainer_of
from .loggers import WandbMirror
from .module import Diverged, Stopped, Training
from .precision import PrecisionCheck
from .record import PublishStates, Record, start_from
from .terminal import Bar, StopOnSignal


def train(plan: Plan, reservation: Reservation | None = None, until: int | None = None) -> Result:
    """Trains and evaluates a planned run, from its last checkpoint if there is one.

    Args:
        reservation: of its trunk, released when the run leaves it; the state to start from, if any, lies in the run's
            folder (see trunks).
        until: stop after this many epochs, as if interrupted.

    Returns:
        The result, also saved in the folder by rank 0: completed, diverged or interrupted.

    Raises:
        Exception: whatever went wrong; the saved result's status is then `failed`.
    """
    for talkative in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    (plan.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    attempt = _Attempt(plan, reservation, until)
    with nondeterministic_operations() as operations:
        attempt.fit()
    result = attempt.result(started=started, nondeterministic=operations)
    result.overhead_seconds = time.perf_counter() - start - attempt.record.seconds_here
    if attempt.trainer.is_global_zero:
        result.save(plan.folder)  # now, whatever W&B may do
        for logger in attempt.trainer.loggers:
            if isinstance(logger, WandbMirror):
                result.notes += logger.close(_summary(result))
                result.save(plan.folder)
    if attempt.error is not None:
        raise attempt.error
    return result


def _summary(result: Result) -> dict[str, Any]:
    """What W&B shows of a result beside its curves; all of it, for `tmbench report source=wandb`."""
    more = {f"best/{key}": value for key, value in result.metrics["best"].items()}
    more |= {f"baseline/{key}": value for key, value in result.baseline.items()}
    facts = {"status": result.status, "profile": result.profile, "result": json.dumps(asdict(result))}
    return result.metrics["last"] | more | facts


class _Attempt:
    """One attempt at training a run to its end: what works together in it, and how it ended."""

    def __init__(self, plan: Plan, reservation: Reservation | None, until: int | None) -> None:
        self.plan, self.task = plan, task_of(plan)
        cfg, folder, switch = plan.cfg, plan.folder, plan.switch_epoch
        self.record, self.stop, self.precision = Record(folder, switch), StopOnSignal(until), PrecisionCheck()
        callbacks = [self.record, self.stop, self.precision]
        self.trainer = trainer_of(cfg, folder, callbacks, players=len(self.task.players()))
        self.publisher = None
        more: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        if self.trainer.is_global_zero:
            if plan.trunk:
                self.publisher = PublishStates(plan.trunk, reservation, folder)
                more.append(self.publisher)
            more.append(Bar(self.record, switch, Console(stderr=True)))
        self.train_loader, self.test_loader = loaders_of(plan, self.task, self.trainer)
        steps = self.train_loader.steps
        has_switch = reads_switch(cfg) and cfg.switch_epoch != "never"
        self.switch_step = int(cfg.switch_epoch * steps) if has_switch else None  # before it, the method changes
        new_optimizer, factor = optimizer_of(cfg, self.switch_step), schedule_of(cfg, steps)
        self.training = Training(self.task, cfg, new_optimizer, steps, factor, lambda: self.stop.requested)
        if self.trainer.is_global_zero:
            self.trainer.loggers = loggers_of(plan)
        self.status, self.baseline = "completed", dict[str, float]()
        self.diverged: Diverged | None = None
        self.error: BaseException | None = None

    def fit(self) -> None:
        """Checks the data, then trains, from the newest state that there is."""
        last, state = self.plan.folder / "checkpoints" / "last.ckpt", state_to_start_from(self.plan.folder)
        try:
            self._check_examples()
            self.task.check_data()
            if self.trainer.is_global_zero:
                self.baseline = self._finite(self.task.baseline())
                if state:  # the other ranks wait in fit
                    start_from(state, self.plan.folder, self.training, int(state.name))
            self.trainer.fit(
                self.training, self.train_loader, self.test_loader, weights_only=False,
                ckpt_path=str(last) if state or last.exists() else None,
            )  # fmt: skip
            if not self.record.finished:  # stopped after its last epoch: only the figures are missing
                self.trainer.validate(self.training, self.test_loader, verbose=False)
        except Diverged as error:
            self.status, self.diverged = "diverged", error
        except Stopped:
            self.status = "interrupted"
        except BaseException as error:
            self.status, self.error = "failed", error
        finally:
            self.stop.restore()

    def _check_examples(self) -> None:
        """Each split has examples, and each rank has one to evaluate."""
        split, count, world = self.task.split, self.test_loader.count, self.trainer.world_size
        for name, examples in (("train", self.train_loader.count), (split, count)):
            if not examples:
                task, root = self.plan.cfg.task.name, self.plan.data.root
                raise DataError(f"{task}: expected examples in the {name} split of {root}, got none")
        if count < world:
            raise ConfigError(
                f"devices: expected at most {count} processes, one for each example of the {split} split, got {world}"
            )

    def _finite(self, baseline: dict[str, float]) -> dict[str, float]:
        """The constant predictor's metrics by their keys; DataError for one that the split does not allow."""
        task, split = self.plan.cfg.task.name, self.task.split
        for key, value in baseline.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{task}: {split}/{key} of a constant prediction is {value}; the split does not measure it"
                )
        return {f"{split}/{key}": value for key, value in baseline.items()}

    def result(self, **measured: Any) -> Result:
        """The result, whose remaining fields are `measured`."""
        plan, task, record, diverged = self.plan, self.task, self.record, self.diverged
        switched_at = self.switch_step
        if plan.switch_epoch is None:  # perhaps the optimizer itself has decided
            switched_at = getattr(next(iter(self.trainer.optimizers), None), "switched_at", None)
        device, curves = self.trainer.strategy.root_device, plan.folder / "curves.csv"
        if has_curves := self.trainer.is_global_zero and curves.is_file():
            flush(curves)
        return finished(
            plan.cfg, plan.folder, record.rows, steps_an_epoch=self.train_loader.steps,
            examples_an_epoch=self.train_loader.count, from_trunk=record.from_trunk, switched_at=switched_at,
            divergence=str(diverged) if diverged else None,
            notes=self.precision.notes + (self.publisher.notes if self.publisher else []),
            status=self.status, profile=plan.profile, data_digest=plan.data_digest, command=plan.command,
            split=task.split, metric=task.headline, higher_is_better=task.higher_is_better, baseline=self.baseline,
            best=record.best, seconds=record.seconds, evaluation_seconds=record.evaluation_seconds,
            parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
            hardware=hardware(device, self.trainer.world_size), peak_memory_bytes=peak_memory(device),
            git_commit=git_commit(), curves_sha256=digest_of(curves) if has_curves else None,
            diverged_at={"epoch": diverged.epoch, "step": diverged.step} if diverged else None,
            error=f"{type(self.error).__name__}: {self.error}" if self.error else None,
            **measured,
        )  # fmt: skip


@contextmanager
def nondeterministic_operations() -> Iterator[list[str]]:
    """Collects the operations that torch warns of, in place of printing the warnings."""
    operations: list[str] = []
    with warnings.catch_warnings():
        # Lightning 2.6 with torch 2.15; nothing that a person could do about it.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        # On a cluster's machine; a run alone is what was asked for.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        warnings.filterwarnings("always", message=".*does not have a deterministic implementation")
        show = warnings.showwarning

        def note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            found = re.match(r"(\S+) does not have a deterministic implementation", str(message))
            if not found:
                show(message, *args, **kwargs)
            elif found[1] not in operations:
                operations.append(found[1])

        warnings.showwarning = note
        yield operations


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware(device: torch.device, world: int) -> str:
    if device.type == "cuda":
        return f"{world} x {torch.cuda.get_device_name(device)}"
    return f"{world} x {cpu_model()}, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The checkout's commit, with + if it was changed; None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10)
    try:
        commit = git(["git", "rev-parse", "HEAD"], check=True).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"], check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
