"""Training itself, and the result that comes of it; the part of a run that needs torch."""

import inspect
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
from hydra.utils import get_class, instantiate
from lightning_fabric.plugins import CheckpointIO
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import load, save
from ..config.identity import effective_switch, reads_switch, world_size
from ..config.machine import cpu_model
from ..data import Dataset
from ..errors import ConfigError, DataError
from ..files import digest_of, flush
from ..result import Result, versions
from ..seeds import seed_all
from ..task import Diverged, Stopped, Task
from ..trunks import Claim, Trunk, fetched_state
from .loader import TestLoader, TrainLoader
from .loggers import WandbMirror
from .mup import scaled
from .precision import Probe
from .progress import Bar
from .record import Record
from .share import Share, adopt
from .stop import StopOnSignal


def train(
    cfg: DictConfig, data: Dataset, label: str, digest: str, folder: Path, command: str, *,
    trunk: Trunk | None = None, claim: Claim | None = None, until: int | None = None,
) -> Result:  # fmt: skip
    """Trains and evaluates what a settled configuration asks for, from the run's last checkpoint if there is one.

    Args:
        cfg: settled.
        data, label, digest: as open_dataset gives them.
        folder: the run's.
        command: what a person would type for it.
        trunk: where states are shared; the one to start from, if any, lies in the run's folder (see run.run).
        claim: what is to be released when the run leaves the trunk.
        until: stop after this many epochs, as if interrupted.

    Returns:
        The result, also saved in the folder by rank 0: completed, diverged or interrupted.

    Raises:
        Exception: whatever went wrong; the saved result's status is then `failed`.
    """
    for talkative in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    started, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    seed_all("weights", cfg.seed)
    task: Task = get_class(cfg.task._target_)(cfg.task, data)
    if cfg.validation:
        task.hold_out(cfg.validation)
    record = Record(folder, effective_switch(cfg))
    stop, probe = StopOnSignal(until), Probe()
    trainer = _trainer(cfg, folder, [record, stop, probe], players=len(task.players()))
    first = trainer.is_global_zero
    share = Share(trunk, claim, folder) if trunk and first else None
    if share:
        trainer.callbacks.append(share)  # type: ignore[attr-defined]
    if first:
        trainer.callbacks.append(Bar(record, effective_switch(cfg), Console(stderr=True)))  # type: ignore[attr-defined]

    def loader(cls: Any, split: str, batch_size: int, **extra: Any) -> Any:
        return cls(
            task.examples(split), task.collate, batch_size, device=trainer.strategy.root_device, seed=cfg.seed,
            rank=trainer.global_rank, world=trainer.world_size, num_workers=cfg.trainer.num_workers, **extra,
        )  # fmt: skip

    train_loader = loader(
        TrainLoader, "train", cfg.batch_size, accumulate=cfg.trainer.accumulate, epoch=lambda: trainer.current_epoch
    )
    test_loader = loader(TestLoader, "test", cfg.task.eval_batch_size)

    switch_step = None
    if reads_switch(cfg) and cfg.switch_epoch != "never":
        switch_step = cfg.switch_epoch * train_loader.steps
    task.seed = cfg.seed
    task.stop_requested = stop.requested
    task.optimizer_name = cfg.optimizer.name
    task.new_optimizer = _optimizer(cfg, switch_step)
    task.clip_norm, task.clip_value, task.ema = cfg.clip_norm, cfg.clip_value, cfg.ema
    task.factor, task.steps = _schedule(cfg, train_loader.steps), train_loader.steps

    trivial: dict[str, float] = {}
    trainer.loggers = _loggers(cfg, folder, label) if first else []
    diverged: Diverged | None = None
    error: BaseException | None = None
    last, fetched = folder / "checkpoints" / "last.ckpt", fetched_state(folder)
    with _nondeterministic_operations() as operations:
        try:
            for split, some in (("train", train_loader), (task.split, test_loader)):
                if not some.count:
                    raise DataError(f"{cfg.task.name}: expected examples in the {split} split of {data.root}, got none")
            if test_loader.count < trainer.world_size:
                raise ConfigError(
                    f"devices: expected at most {test_loader.count} processes, one for each example of the "
                    f"{task.split} split, got {trainer.world_size}"
                )
            task.check_data()
            if first:
                trivial = _finite(task.baseline(), cfg.task.name, task.split)
            if fetched and first:  # the other ranks wait in fit
                adopt(fetched, folder, task, int(fetched.name))
            trainer.fit(
                task, train_loader, test_loader, weights_only=False,
                ckpt_path=str(last) if fetched or last.exists() else None,
            )  # fmt: skip
            if not record.finished:  # stopped after its last epoch: only the figures are missing
                trainer.validate(task, test_loader, verbose=False)
            status = "completed"
        except Diverged as event:
            status, diverged = "diverged", event
        except Stopped:
            status = "interrupted"
        except BaseException as event:
            status, error = "failed", event
        finally:
            stop.restore()

    rows, curves = record.rows, folder / "curves.csv"
    kept = first and curves.is_file()
    if kept:
        flush(curves)
    examples = len(rows) * train_loader.count
    result = Result(
        run_id=folder.name,
        status=status,
        task=cfg.task.name,
        optimizer=cfg.optimizer.name,
        seed=cfg.seed,
        profile=label,
        protocol=cfg.protocol.name,
        split=task.split,
        metric=task.headline,
        higher_is_better=task.higher_is_better,
        metrics={"last": _metrics(record.newest()), "best": record.best},
        seconds=record.seconds,
        epochs={"asked": cfg.epochs, "trained": len(rows), "from_trunk": record.from_trunk},
        steps=len(rows) * train_loader.steps,
        examples_per_second=examples / record.seconds if record.seconds else 0.0,
        peak_memory_bytes=_peak_memory(trainer.strategy.root_device),
        parameters=sum(p.numel() for p in task.parameters() if p.requires_grad),
        switch={
            "requested": cfg.switch_epoch if reads_switch(cfg) else None,
            **_switched(cfg, trainer, switch_step, train_loader.steps),
        },
        versions=versions(),
        hardware=_hardware(trainer),
        git_commit=_git_commit(),
        data_digest=digest,
        command=command,
        started=started,
        diverged_at={"epoch": diverged.epoch, "step": diverged.step} if diverged else None,
        nondeterministic=operations,
        notes=_notes(cfg, label) + probe.notes + (share.notes if share else []) + _endings(diverged, record, task),
        error=f"{type(error).__name__}: {error}" if error else None,
        baseline={f"{task.split}/{key}": value for key, value in trivial.items()},
        evaluation_seconds=record.evaluation_seconds,
        overhead_seconds=time.perf_counter() - start - record.here,
        curves_sha256=digest_of(curves) if kept else None,
    )
    if first:
        result.save(folder)  # now, whatever W&B may do
        for logger in trainer.loggers:
            if isinstance(logger, WandbMirror):
                more: dict[str, Any] = {f"best/{key}": value for key, value in record.best.items()}
                more |= {f"baseline/{key}": value for key, value in result.baseline.items()}
                more |= {"status": status, "profile": label, "result": json.dumps(asdict(result))}  # for source=wandb
                result.notes += logger.close(result.metrics["last"] | more)
                result.save(folder)
    if error is not None:
        raise error
    return result


def _switched(cfg: DictConfig, trainer: Trainer, switch_step: int | None, steps: int) -> dict[str, int | None]:
    """The epoch and step at which the method changed: as asked, or as the optimizer itself decided."""
    if effective_switch(cfg) is not None:
        return {"effective": effective_switch(cfg), "step": switch_step}
    step: int | None = getattr(trainer.optimizers[0], "switched_at", None) if trainer.optimizers else None
    return {"effective": None if step is None else step // steps, "step": step}


def _finite(trivial: dict[str, float], name: str, split: str) -> dict[str, float]:
    """The trivial predictor's metrics; raises DataError for one that the split does not allow."""
    for key, value in trivial.items():
        if not math.isfinite(value):
            raise DataError(f"{name}: {split}/{key} of a constant prediction is {value}; the split does not measure it")
    return trivial


def _endings(diverged: Diverged | None, record: Record, task: Task) -> list[str]:
    """What diverged, and of which epoch the last metrics are where that is not the last epoch that was begun."""
    notes = [f"diverged: {diverged}"] if diverged else []
    evaluated = [int(row["epoch"]) + 1 for row in record.rows if task.headline_key in row]
    if evaluated and (diverged or evaluated[-1] < len(record.rows)):
        notes.append(f"the last metrics are those after epoch {evaluated[-1]}")
    return notes


def _metrics(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if "/" in key}


def _trainer(cfg: DictConfig, folder: Path, callbacks: list[Callback], players: int = 1) -> Trainer:
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
            accelerator=cfg.trainer.accelerator,
            strategy="auto" if alone else DDPStrategy(**settings),
            devices=cfg.trainer.devices,
            num_nodes=cfg.trainer.num_nodes,
            precision="32-true" if precision == "32" else precision,
            max_epochs=cfg.epochs,
            callbacks=callbacks,
            logger=False,
            default_root_dir=folder,
            deterministic="warn" if on_gpu else None,
            log_every_n_steps=1,  # we log by epoch; this silences a warning
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            sync_batchnorm=on_gpu and not alone,  # torch has it for GPUs only
            # A lone run inside a Slurm job is still alone.
            plugins=[Checkpoints(), *([LightningEnvironment()] if alone else [])],
        )


class Checkpoints(CheckpointIO):
    """Lightning's checkpoints are ours. Its own way goes through TMPDIR, from where no rename lands a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _optimizer(cfg: DictConfig, switch_step: int | None) -> Any:
    settings = _settings(cfg.optimizer)
    if reads_switch(cfg):
        settings["switch_step"] = switch_step
    new = instantiate(settings, _convert_="all")
    return scaled(new) if cfg.task.get("mup") else new


def _settings(group: DictConfig) -> dict[str, Any]:
    """What a group's YAML gives to its `_target_`."""
    settings: dict[str, Any] = OmegaConf.to_container(group)  # type: ignore[assignment]
    for ours in ("name", "trunk"):
        settings.pop(ours, None)
    return settings


def _schedule(cfg: DictConfig, steps_an_epoch: int) -> "partial[float] | None":
    if "_target_" not in cfg.schedule:
        return None
    factor: partial[float] = instantiate(_settings(cfg.schedule))
    return partial(factor, steps=cfg.epochs * steps_an_epoch, epoch=steps_an_epoch)


def _loggers(cfg: DictConfig, folder: Path, label: str) -> list[Any]:
    if "_target_" not in cfg.logger:
        return []
    tags = [cfg.task.name, cfg.optimizer.name, label]
    config = OmegaConf.to_container(cfg)
    return [instantiate(_settings(cfg.logger))(folder=folder, config=config, run_id=folder.name, tags=tags)]


@contextmanager
def _nondeterministic_operations() -> Iterator[list[str]]:
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


def _notes(cfg: DictConfig, label: str) -> list[str]:
    notes = []
    if label == "subset":
        notes.append("the data files are not the published set: labelled subset, not comparable with full")
    if reads_switch(cfg) and cfg.switch_epoch != "never" and cfg.switch_epoch >= cfg.epochs:
        notes.append(f"switch_epoch={cfg.switch_epoch} is not before the end ({cfg.epochs} epochs): it never switched")
    return notes


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _hardware(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name(device)}"
    return f"{trainer.world_size} x {cpu_model()}, {torch.get_num_threads()} threads"


def _git_commit() -> str | None:
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
