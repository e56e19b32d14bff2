"""Training a planned run from its last checkpoint, or its start, to its end; the part of a run that needs torch."""

import inspect
import json
import logging
import math
import re
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning_fabric.plugins import CheckpointIO
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from .. import signals
from ..checkpoint import load, save
from ..config.identity import reads_switch, world_size
from ..config.machine import cpu_model, git_commit
from ..config.settle import loggers
from ..config.sparse import why_dense
from ..config.table import FOR_THE_RUN
from ..config.trust import classes_in
from ..errors import ConfigError, DataError, imported, making
from ..files import digest_of, flush
from ..plan import Plan
from ..result import Result, finished
from ..seeds import seed_all
from ..task import Task
from ..trunks import Reservation, state_to_start_from
from .loader import TestLoader, TrainLoader, hold_out
from .loggers import RunFacts
from .module import Diverged, Stopped, Training
from .precision import PrecisionCheck
from .record import Bar, PublishStates, Record, start_from


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
    signals.check()
    begun = (plan.folder / "checkpoints" / "last.ckpt").exists()
    with signals.listening(lambda *_: None):  # a signal after the last epoch finds the result saved
        with nondeterministic_operations() as operations:
            attempt.fit()
        if begun and isinstance(attempt.error, DataError) and not attempt.record.seconds_here:
            raise attempt.error  # what there is of the run stays as it is
        result = attempt.result(started=started, nondeterministic=operations)
        result.overhead_seconds = time.perf_counter() - start - attempt.record.seconds_here
        if attempt.trainer.is_global_zero:
            # Now, whatever loggers do. On a full disk, what went wrong first is more than that this cannot be written.
            with suppress(*[OSError] if attempt.error else []):
                result.save(plan.folder)
    if attempt.trainer.is_global_zero:
        for logger in attempt.trainer.loggers:
            if hasattr(logger, "close"):
                result.notes += logger.close(_summary(result), result.epochs["trained"])
                result.save(plan.folder)
    if attempt.error is not None:
        raise attempt.error
    return result


def _summary(result: Result) -> dict[str, Any]:
    """What loggers show of a result beside its curves; all of it, for `tmbench report source=wandb`."""
    others = {"best": result.metrics["best"], "baseline": result.baseline}
    more = {f"{kind}/{key}": value for kind, values in others.items() for key, value in values.items()}
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
        self.publisher = PublishStates(plan.trunk, reservation, folder) if plan.trunk else None
        if self.trainer.is_global_zero:
            more: Any = self.trainer.callbacks  # type: ignore[attr-defined]
            more += [*filter(None, [self.publisher]), Bar(self.record, switch, Console(stderr=True))]
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
            with signals.listening(self.stop.request):
                self._check_examples()
                self.task.check_data()
                if self.trainer.is_global_zero:
                    self.baseline = self._finite(self.task.baseline())
                    if state:  # the other ranks wait in fit
                        start_from(state, self.plan.folder, self.training, int(state.name))
                self.trainer.fit(
                    self.training, self.train_loader, self.test_loader, weights_only=True,
                    ckpt_path=str(last) if state or last.exists() else None,
                )  # fmt: skip
                if not self.record.finished:  # stopped after its last epoch: only the figures are missing
                    self.trainer.validate(self.training, self.test_loader, verbose=False)
        except Diverged as error:
            self.status, self.diverged = "diverged", error
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

    def result(self, **measured: Any) -> Result:
        """The result, whose remaining fields are `measured`."""
        plan, task, record, diverged = self.plan, self.task, self.record, self.diverged
        switched_at = self.switch_step
        if plan.switch_epoch is None:  # perhaps the optimizer itself has decided
            switched_at = getattr(next(iter(self.trainer.optimizers), None), "switched_at", None)
        reason = why_dense(plan.cfg)
        notes = [f"task.sparse: every step updates the whole embedding table: {reason}"] if reason else []
        device, curves = self.trainer.strategy.root_device, plan.folder / "curves.csv"
        if has_curves := self.trainer.is_global_zero and curves.is_file():
            flush(curves)
        return finished(
            plan.cfg, plan.folder, record.rows, steps_an_epoch=self.train_loader.steps,
            examples_an_epoch=self.train_loader.count, from_trunk=record.from_trunk, switched_at=switched_at,
            divergence=str(diverged) if diverged else None,
            notes=notes + self.precision.notes + (self.publisher.notes if self.publisher else []),
            status=self.status, profile=plan.profile, data_digest=plan.data_digest, command=plan.command,
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


def task_of(plan: Plan) -> Task:
    """The run's task, with the initial weights of its seed."""
    cfg = plan.cfg
    seed_all("weights", cfg.seed)
    task_class = imported(f"task/{cfg.task.name}.yaml: _target_", cfg.task._target_)
    with making(cfg.task._target_):
        task: Task = task_class(cfg.task, plan.data)
    metrics, headline = list(getattr(task, "metrics", ())), getattr(task, "headline", None)
    if headline not in metrics:
        expected = f"a key of its self.metrics ({', '.join(metrics) or 'which has none'})"
        raise ConfigError(f"task={cfg.task.name}: {cfg.task._target_}: headline: expected {expected}, got {headline!r}")
    if cfg.validation:
        hold_out(task, cfg.validation)
    return task


def loaders_of(plan: Plan, task: Task, trainer: Trainer) -> tuple[TrainLoader, TestLoader]:
    """What a rank trains on, and what it evaluates."""
    cfg = plan.cfg
    common = {
        "device": trainer.strategy.root_device, "rank": trainer.global_rank, "world": trainer.world_size,
        "seed": cfg.seed, "num_workers": cfg.trainer.num_workers,
    }  # fmt: skip
    parts = {"accumulate": cfg.trainer.accumulate, "epoch": lambda: trainer.current_epoch}
    train = TrainLoader(task.examples("train"), task.collate, cfg.batch_size, **parts, **common)
    return train, TestLoader(task.examples("test"), task.collate, cfg.task.eval_batch_size, **common)


def trainer_of(cfg: DictConfig, folder: Path, callbacks: list[Callback], players: int = 1) -> Trainer:
    alone = world_size(cfg) == 1
    # One player's loss does not reach the others' parameters, whose gradients nobody then waits for. Buffers are not
    # taken from rank 0 at each batch: batch norm's running averages are averaged over the ranks after each epoch.
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # in older torch
    settings: dict[str, Any] = {"find_unused_parameters": players > 1, buffers: False}
    on_gpu = cfg.trainer.accelerator == "cuda"
    precision = cfg.trainer.precision
    with warnings.catch_warnings():
        # A GPU that trainer=cpu leaves unused is what was asked for.
        warnings.filterwarnings("ignore", message="GPU available but not used")
        return Trainer(
            accelerator=cfg.trainer.accelerator, devices=cfg.trainer.devices, num_nodes=cfg.trainer.num_nodes,
            strategy="auto" if alone else DDPStrategy(**settings), default_root_dir=folder, callbacks=callbacks,
            precision="32-true" if precision == "32" else precision, max_epochs=cfg.epochs,
            deterministic="warn" if on_gpu else None,
            log_every_n_steps=1,  # we log by epoch; this silences a warning
            sync_batchnorm=on_gpu and not alone,  # torch has it for GPUs only
            # A lone run inside a Slurm job is still alone.
            plugins=[Checkpoints(), *([LightningEnvironment()] if alone else [])],
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            num_sanity_val_steps=0, use_distributed_sampler=False,
        )  # fmt: skip


class Checkpoints(CheckpointIO):
    """Lightning's checkpoints are ours. Its own way goes through TMPDIR, from where no rename lands a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def optimizer_of(cfg: DictConfig, switch_step: int | None) -> "partial[Any]":
    """What makes the run's optimizer of parameters."""
    more = {"switch_step": switch_step} if reads_switch(cfg) else {}
    return _made(cfg, "optimizer", **more)


def schedule_of(cfg: DictConfig, steps_an_epoch: int) -> "partial[float] | None":
    """The factor on the learning rate at each step of the run; None if it is always 1."""
    if "_target_" not in cfg.schedule:
        return None
    return partial(_made(cfg, "schedule"), steps=cfg.epochs * steps_an_epoch, epoch=steps_an_epoch)


def loggers_of(plan: Plan) -> list[Logger]:
    """The loggers that the run was asked for, beside its own folder."""
    cfg = plan.cfg
    tags = {"task": cfg.task.name, "optimizer": cfg.optimizer.name, "data": plan.profile}
    config: Any = OmegaConf.to_container(cfg)
    facts, settings = RunFacts(plan.folder, config, tags), config["logger"]
    return [get_object(settings[name]["_target_"])(facts, settings) for name in loggers(settings)]


def _made(cfg: DictConfig, group: str, **more: Any) -> Any:
    """What a group's YAML makes: its `_target_`, with its settings and more."""
    settings: Any = OmegaConf.to_container(cfg[group])
    for name in classes_in(settings):
        imported(f"{group}/{settings['name']}.yaml: _target_", name)
    return instantiate({k: v for k, v in (settings | more).items() if k not in FOR_THE_RUN}, _convert_="all")


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
