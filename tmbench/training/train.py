"""Training a planned run from its last checkpoint, or its start, to its end; the part of a run that needs torch."""

import json
import logging
import math
import re
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback
from rich.console import Console

from .. import signals
from ..config.identity import reads_switch
from ..config.machine import cpu_model, git_commit
from ..config.sparse import why_dense
from ..config.table import NEVER, STABLE, measures_curvature
from ..errors import CannotStackError, ConfigError, DataError
from ..files import digest_of, flush
from ..optim.elementwise import stacked_difference
from ..plan import Plan
from ..result import Result, finished
from ..trunks import Reservation, state_to_start_from
from .build import loaders_of, loggers_of, optimizer_of, schedule_of, task_of, trainer_of
from .capacity import check_memory
from .checkpoints import Checkpoints
from .curvature import CurvatureWatch
from .loader import TrainLoader
from .module import Diverged, Stopped, Training
from .norms import divided_for_norms
from .precision import PrecisionCheck
from .record import Bar, Record, Recorder
from .sharing import PublishStates, Shared, start_from
from .stack import Stack


def train(
    plans: list[Plan], reservations: Sequence[Reservation | None] = (None,), until: int | None = None
) -> list[Result]:
    """Trains and evaluates a planned run, or a stack of several, from their last checkpoints if there are some.

    Args:
        plans: of one run, or of runs that differ by seed or rate alone and are equally far, in the order of rates.
        reservations: of each one's trunk, released when it leaves that; the state to start from, if any, lies in the
            run's folder (see trunks).
        until: stop after this many epochs, as if interrupted.

    Returns:
        The results, also saved in the folders by rank 0: completed, diverged or interrupted.

    Raises:
        Exception: whatever went wrong; the saved results' status is then `failed`.
    """
    for talkative in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    for plan in plans:
        (plan.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    attempt = _Attempt(plans, reservations, until)
    signals.check()
    begun = attempt.records[0].last.exists()
    with signals.listening(lambda *_: None):  # a signal after the last epoch finds the results saved
        with nondeterministic_operations() as operations:
            attempt.fit()
        if begun and isinstance(attempt.error, DataError) and not attempt.recorder.seconds_here:
            raise attempt.error  # what there is of the runs stays as it is
        overhead = (time.perf_counter() - start - attempt.recorder.seconds_here) / len(plans)
        about: dict[str, Any] = {"started": started, "nondeterministic": operations, "overhead_seconds": overhead}
        results = [attempt.result(k, **about) for k in range(len(plans))]
        for result, plan in zip(results, plans, strict=True):
            if attempt.trainer.is_global_zero:
                # Now, whatever loggers do. On a full disk, what went wrong first is more than that this cannot be
                # written.
                with suppress(*[OSError] if attempt.error else []):
                    result.save(plan.folder)
    for result, plan, record in zip(results, plans, attempt.records, strict=True):
        for logger in record.loggers:
            if hasattr(logger, "close"):
                result.notes += logger.close(_summary(result), result.epochs["trained"])
                result.save(plan.folder)
    if attempt.error is not None:
        raise attempt.error
    return results


def _summary(result: Result) -> dict[str, Any]:
    """What loggers show of a result beside its curves; all of it, for `tmbench report source=wandb`."""
    others = {"best": result.metrics["best"], "baseline": result.baseline}
    more = {f"{kind}/{key}": value for kind, values in others.items() for key, value in values.items()}
    facts = {"status": result.status, "profile": result.profile, "result": json.dumps(asdict(result))}
    return result.metrics["last"] | more | facts


class _Attempt:
    """One attempt at training a run, or a stack of runs, to its end: what works together in it, and how it ended."""

    def __init__(self, plans: list[Plan], reservations: Sequence[Reservation | None], until: int | None) -> None:
        self.plans, self.plan, self.task = plans, plans[0], task_of(plans)
        cfg = self.plan.cfg
        self.records = [Record(plan.folder, plan.switch_epoch) for plan in plans]
        self.recorder, self.stop, self.precision = Recorder(self.records), StopOnSignal(until), PrecisionCheck()
        callbacks, checkpoints = [self.recorder, self.stop, self.precision], Checkpoints(self.records)
        self.trainer = trainer_of(cfg, self.plan.folder, callbacks, checkpoints, players=len(self.task.players()))
        runs = enumerate(zip(plans, reservations, strict=True))
        self.publisher = PublishStates([Shared(p.trunk, r, p.folder, k) for k, (p, r) in runs if p.trunk])
        if self.trainer.is_global_zero:
            more: Any = self.trainer.callbacks  # type: ignore[attr-defined]
            more += [self.publisher] if self.publisher.shared else []
            more += [Bar(self.records, Console(stderr=True))]
        place = self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size
        self.train_loader, self.test_loader = loaders_of(plans, self.task, *place, lambda: self.trainer.current_epoch)
        steps = self.train_loader.steps
        has_switch = reads_switch(cfg) and cfg.switch_epoch not in (NEVER, STABLE)
        self.switch_step = int(cfg.switch_epoch * steps) if has_switch else None  # before it, the method changes
        firsts = [part.start for part in self.task.parts] if isinstance(self.task, Stack) else [0]
        makers = [optimizer_of(plans[k].cfg, self.switch_step, steps) for k in firsts]
        if isinstance(self.task, Stack):
            if (apart := stacked_difference(makers[0])) > 1e-9:
                why = f"two networks that it steps as one stack of tensors end {apart:.2g} apart from each by itself"
                raise CannotStackError(f"optimizer={cfg.optimizer.name}: {why}")
            [(batch, _)] = next(iter(next(iter(self.train_loader))))
            batch = tuple(t.to(self.task.device) for t in batch)
            self.task.try_once(batch)
            check_memory(self.task, batch, self.trainer.strategy.root_device)
        self.training = Training(self.task, cfg, makers, steps, schedule_of(cfg, steps), lambda: self.stop.requested)
        self.norms_note: list[str] = []
        if "parts" in cfg.optimizer and isinstance(self.train_loader, TrainLoader):
            self._prepare_norms(self.train_loader, place[0])
        if measures_curvature(cfg) and isinstance(self.train_loader, TrainLoader):  # with it, no run is stacked
            self.training.watch = CurvatureWatch(self.training, cfg, self.train_loader)
        checkpoints.training = self.training
        if self.trainer.is_global_zero:
            for record, plan in zip(self.records, plans, strict=True):
                record.loggers = loggers_of(plan)
            self.trainer.loggers = [logger for record in self.records for logger in record.loggers]
        self.status, self.baseline = "completed", dict[str, float]()
        self.error: BaseException | None = None

    def _prepare_norms(self, loader: TrainLoader, device: torch.device) -> None:
        """Decides which norms an optimizer that wants them gets, and notes it."""
        reason = divided_for_norms(self.task, loader, self.plan.cfg.optimizer.parts, device)
        self.training.gradient.by_examples = reason is None
        count = min(loader.accumulate, loader.batch_size)
        parts = f"{count} parts of each batch" if count > 1 else "whole batches, as of lars"
        of = f"{parts}: {reason}" if reason else "single examples"
        self.norms_note = [f"optimizer={self.plan.cfg.optimizer.name}: the norms are those of the gradients of {of}"]

    def fit(self) -> None:
        """Checks the data, then trains, from the newest state that there is."""
        last, first = self.records[0].last, self.training.replicas[0].task
        if (device := self.trainer.strategy.root_device).type == "cuda":  # or the peak is that of an earlier run, too
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats(device)
        try:
            with signals.listening(self.stop.request):
                self._check_examples()
                first.check_data()
                if self.trainer.is_global_zero:
                    self.baseline = self._finite(first.baseline())
                    for k, plan in enumerate(self.plans):
                        if state := state_to_start_from(plan.folder):  # the other ranks wait in fit
                            start_from(state, plan.folder, self.training, k)
                self.trainer.fit(
                    self.training, self.train_loader, self.test_loader, weights_only=True,
                    ckpt_path=str(last) if state_to_start_from(self.plan.folder) or last.exists() else None,
                )  # fmt: skip
                if not self.recorder.finished:  # stopped after its last epoch: only the figures are missing
                    self.trainer.validate(self.training, self.test_loader, verbose=False)
        except Diverged:
            self.status = "diverged"
        except (Stopped, SystemExit):  # Lightning makes the latter of a SIGTERM that comes before we own it again
            self.status = "interrupted"
        except BaseException as error:
            self.status, self.error = "failed", error

    def _check_examples(self) -> None:
        """Each split has examples, and each rank has one to evaluate."""
        split, count, world = self.task.split, self.test_loader.count, self.trainer.world_size
        for name, examples in (("train", self.train_loader.count), (split, count)):
            if not examples:
                task, root = self.plan.cfg.task.name, self.plan.data.root
                raise DataError(f"{task}: expected examples in the {name} split of {root}, got none")
        if count < world:
            raise ConfigError(f"devices: expected no more than the {split} split has examples, {count}, got {world}")

    def _finite(self, baseline: dict[str, float]) -> dict[str, float]:
        """The constant predictor's metrics by their keys; DataError for one that the split does not allow."""
        task, found = self.plan.cfg.task.name, {f"{self.task.split}/{key}": v for key, v in baseline.items()}
        for key, value in found.items():
            if not math.isfinite(value):
                raise DataError(f"{task}: {key} of a constant prediction is {value}; the split does not measure it")
        return found

    def result(self, k: int, **measured: Any) -> Result:
        """The result of a run, whose remaining fields are `measured`."""
        plan, record, replica = self.plans[k], self.records[k], self.training.replicas[k]
        task, diverged = replica.task, replica.diverged
        switched_at, watch = self.switch_step, self.training.watch
        optimizers = self.training.own(self.trainer.optimizers, k)
        if plan.switch_epoch is None:  # perhaps the optimizer itself has decided, or the curvature
            switched_at = getattr(next(iter(optimizers), None), "switched_at", None)
        if watch and (epoch := watch.switched_after(record.rows)) is not None:
            switched_at = epoch * self.train_loader.steps
        reason = why_dense(plan.cfg)
        notes = [f"task.sparse: every step updates the whole embedding table: {reason}"] if reason else []
        notes += (watch.notes(record.rows) if watch else []) + self.norms_note
        for told in filter(None, (getattr(optimizer, "handed_over", None) for optimizer in optimizers)):
            notes.append(
                f"handover: the first method's mean step was {told['mean_step']:.3g} long, the second's first step "
                f"{told['step']:.3g} at its own rate, which was multiplied by {told['factor']:.3g}"
            )
        device, curves = self.trainer.strategy.root_device, plan.folder / "curves.csv"
        if has_curves := self.trainer.is_global_zero and curves.is_file():
            flush(curves)
        return finished(
            plan.cfg, plan.folder, record.rows, steps_an_epoch=self.train_loader.steps,
            examples_an_epoch=self.train_loader.count, from_trunk=record.from_trunk, switched_at=switched_at,
            divergence=str(diverged) if diverged else None,
            notes=notes + self.precision.notes + self.publisher.notes.get(k, []),
            curvature=watch.about if watch else None,
            status="diverged" if diverged else self.status, profile=plan.profile, data_digest=plan.data_digest,
            command=plan.command, replicas=plan.cfg.replicas,
            split=task.split, metric=task.headline, higher_is_better=task.higher_is_better, baseline=self.baseline,
            best=record.best, seconds=record.seconds, evaluation_seconds=record.evaluation_seconds,
            parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
            git_commit=git_commit(), curves_sha256=digest_of(curves) if has_curves else None,
            diverged_at={"epoch": diverged.epoch + 1, "step": diverged.step + 1} if diverged else None,
            error=f"{type(self.error).__name__}: {self.error}" if self.error else None,
            **_machine(device, self.trainer.world_size), **measured,
        )  # fmt: skip


class StopOnSignal(Callback):
    """SIGINT and SIGTERM ask the run to stop at the next look; a second SIGINT does not wait for it."""

    def __init__(self, until: int | None = None) -> None:
        self.requested, self.until = False, until

    def request(self, number: int, frame: FrameType | None) -> None:
        """Notes the request; a signal handler."""
        if self.requested and number == signal.SIGINT:
            raise Stopped
        self.requested = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning has put a handler of its own before ours, which would end the process after the next batch.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.requested = self.requested or trainer.current_epoch + 1 == self.until


@contextmanager
def nondeterministic_operations() -> Iterator[list[str]]:
    """Collects the operations that torch warns of, in place of printing the warnings."""
    operations: list[str] = []
    with warnings.catch_warnings():
        # Lightning's, of torch 2.15; and on a cluster's machine, where a run alone is what was asked for.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
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


def _machine(device: torch.device, world: int) -> dict[str, Any]:
    """What the result says of the machine; the peak memory in bytes is the GPU's, or on a CPU the process's."""
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    else:
        name = f"{cpu_model()}, {torch.get_num_threads()} threads"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"hardware": f"{world} x {name}", "peak_memory_bytes": peak}
