"""Training a planned run from its last checkpoint, or its start, to its end; the part of a run that needs torch."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pytorch_lightning import Trainer
from rich.console import Console

from ..errors import ConfigError, DataError
from ..files import digest_of, flush
from ..plan import Plan
from ..result import Result, finished
from ..task import Task
from ..trunks import state_to_start_from
from ..trunks.lock import Reservation
from .build import loaders_of, loggers_of, optimizer_of, schedule_of, switch_step, task_of, trainer_of
from .environment import git_commit, hardware, nondeterministic_operations, peak_memory
from .loader import TestLoader, TrainLoader
from .loggers import WandbMirror
from .module import Diverged, Stopped, Training
from .precision import PrecisionCheck
from .progress import Bar
from .publish import PublishStates, start_from
from .record import Record
from .stop import StopOnSignal


def train(plan: Plan, reservation: Reservation | None = None, until: int | None = None) -> Result:
    """Trains and evaluates a planned run, from its last checkpoint if there is one.

    Args:
        plan: the run.
        reservation: of its trunk, released when the run leaves it; the state to start from, if any, lies in the run's
            folder (see trunks.py).
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
    parts = _parts(plan, reservation, until)
    end = _fit(plan, parts)
    result = _result(plan, parts, end, started)
    result.overhead_seconds = time.perf_counter() - start - parts.record.seconds_here
    if parts.trainer.is_global_zero:
        result.save(plan.folder)  # now, whatever W&B may do
        _close_mirrors(plan.folder, parts, result)
    if end.error is not None:
        raise end.error
    return result


@dataclass
class _Parts:
    """What works together in a training."""

    task: Task
    training: Training
    trainer: Trainer
    train_loader: TrainLoader
    test_loader: TestLoader
    record: Record
    stop: StopOnSignal
    precision: PrecisionCheck
    publisher: PublishStates | None


def _parts(plan: Plan, reservation: Reservation | None, until: int | None) -> _Parts:
    cfg, task = plan.cfg, task_of(plan)
    record, stop, precision = Record(plan.folder, plan.switch_epoch), StopOnSignal(until), PrecisionCheck()
    trainer = trainer_of(cfg, plan.folder, [record, stop, precision], players=len(task.players()))
    publisher = None
    if trainer.is_global_zero:
        if plan.trunk:
            publisher = PublishStates(plan.trunk, reservation, plan.folder)
            trainer.callbacks.append(publisher)  # type: ignore[attr-defined]
        trainer.callbacks.append(Bar(record, plan.switch_epoch, Console(stderr=True)))  # type: ignore[attr-defined]
    train_loader, test_loader = loaders_of(plan, task, trainer)
    training = Training(
        task, optimizer_of(cfg, switch_step(cfg, train_loader.steps)), optimizer_name=cfg.optimizer.name,
        steps=train_loader.steps, seed=cfg.seed, factor=schedule_of(cfg, train_loader.steps), clip_norm=cfg.clip_norm,
        clip_value=cfg.clip_value, ema=cfg.ema, stop_requested=lambda: stop.requested,
    )  # fmt: skip
    if trainer.is_global_zero:
        trainer.loggers = loggers_of(plan)
    return _Parts(task, training, trainer, train_loader, test_loader, record, stop, precision, publisher)


@dataclass
class _End:
    """How a training ended."""

    status: str
    operations: list[str]  # without a deterministic kernel
    baseline: dict[str, float]
    diverged: Diverged | None = None
    error: BaseException | None = None


def _fit(plan: Plan, parts: _Parts) -> _End:
    """Checks the data, then trains, from the newest state that there is."""
    with nondeterministic_operations() as operations:
        end = _End("completed", operations, {})
        last, state = plan.folder / "checkpoints" / "last.ckpt", state_to_start_from(plan.folder)
        try:
            _check_examples(plan, parts)
            parts.task.check_data()
            if parts.trainer.is_global_zero:
                end.baseline = _finite(parts.task.baseline(), parts.task.split, plan)
                if state:  # the other ranks wait in fit
                    start_from(state, plan.folder, parts.training, int(state.name))
            parts.trainer.fit(
                parts.training, parts.train_loader, parts.test_loader, weights_only=False,
                ckpt_path=str(last) if state or last.exists() else None,
            )  # fmt: skip
            if not parts.record.finished:  # stopped after its last epoch: only the figures are missing
                parts.trainer.validate(parts.training, parts.test_loader, verbose=False)
        except Diverged as error:
            end.status, end.diverged = "diverged", error
        except Stopped:
            end.status = "interrupted"
        except BaseException as error:
            end.status, end.error = "failed", error
        finally:
            parts.stop.restore()
    return end


def _check_examples(plan: Plan, parts: _Parts) -> None:
    """Each split has examples, and each rank has one to evaluate."""
    task, world = parts.task, parts.trainer.world_size
    for split, loader in (("train", parts.train_loader), (task.split, parts.test_loader)):
        if not loader.count:
            name = plan.cfg.task.name
            raise DataError(f"{name}: expected examples in the {split} split of {plan.data.root}, got none")
    if parts.test_loader.count < world:
        raise ConfigError(
            f"devices: expected at most {parts.test_loader.count} processes, one for each example of the "
            f"{task.split} split, got {world}"
        )


def _finite(baseline: dict[str, float], split: str, plan: Plan) -> dict[str, float]:
    """The constant predictor's metrics by their keys; DataError for one that the split does not allow."""
    for key, value in baseline.items():
        if not math.isfinite(value):
            raise DataError(
                f"{plan.cfg.task.name}: {split}/{key} of a constant prediction is {value}; "
                "the split does not measure it"
            )
    return {f"{split}/{key}": value for key, value in baseline.items()}


def _result(plan: Plan, parts: _Parts, end: _End, started: str) -> Result:
    task, trainer, record, diverged = parts.task, parts.trainer, parts.record, end.diverged
    curves = plan.folder / "curves.csv"
    if has_curves := trainer.is_global_zero and curves.is_file():
        flush(curves)
    return finished(
        plan.cfg,
        plan.folder,
        record.rows,
        steps_an_epoch=parts.train_loader.steps,
        examples_an_epoch=parts.train_loader.count,
        from_trunk=record.from_trunk,
        switched_at=_switched_at(plan, parts),
        divergence=str(diverged) if diverged else None,
        notes=parts.precision.notes + (parts.publisher.notes if parts.publisher else []),
        status=end.status,
        profile=plan.profile,
        split=task.split,
        metric=task.headline,
        higher_is_better=task.higher_is_better,
        best=record.best,
        seconds=record.seconds,
        evaluation_seconds=record.evaluation_seconds,
        peak_memory_bytes=peak_memory(trainer.strategy.root_device),
        parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
        hardware=hardware(trainer),
        git_commit=git_commit(),
        data_digest=plan.data_digest,
        command=plan.command,
        started=started,
        diverged_at={"epoch": diverged.epoch, "step": diverged.step} if diverged else None,
        nondeterministic=end.operations,
        error=f"{type(end.error).__name__}: {end.error}" if end.error else None,
        baseline=end.baseline,
        curves_sha256=digest_of(curves) if has_curves else None,
    )


def _switched_at(plan: Plan, parts: _Parts) -> int | None:
    """The step at which the method changed: as asked, or as the optimizer itself decided."""
    if plan.switch_epoch is not None:
        return switch_step(plan.cfg, parts.train_loader.steps)
    optimizers = parts.trainer.optimizers
    return getattr(optimizers[0], "switched_at", None) if optimizers else None


def _close_mirrors(folder: Path, parts: _Parts, result: Result) -> None:
    """Sends the result to W&B, which `tmbench report source=wandb` reads, and notes what a person should know of it."""
    for logger in parts.trainer.loggers:
        if isinstance(logger, WandbMirror):
            more = {f"best/{key}": value for key, value in result.metrics["best"].items()}
            more |= {f"baseline/{key}": value for key, value in result.baseline.items()}
            facts = {"status": result.status, "profile": result.profile, "result": json.dumps(asdict(result))}
            result.notes += logger.close(result.metrics["last"] | more | facts)
            result.save(folder)
