"""What training needs, made as a plan says: the task, Lightning's trainer, loaders, optimizer, schedule, loggers."""

import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import get_class, instantiate
from lightning_fabric.plugins import CheckpointIO
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import load, save
from ..config.identity import reads_switch, world_size
from ..plan import Plan
from ..seeds import seed_all
from ..task import Task
from .evaluation import hold_out
from .loader import TestLoader, TrainLoader


def task_of(plan: Plan) -> Task:
    """The run's task, with the initial weights of its seed."""
    cfg = plan.cfg
    seed_all("weights", cfg.seed)
    task: Task = get_class(cfg.task._target_)(cfg.task, plan.data)
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
    train, test = task.examples("train"), task.examples("test")
    parts = {"accumulate": cfg.trainer.accumulate, "epoch": lambda: trainer.current_epoch}
    return (
        TrainLoader(train, task.collate, cfg.batch_size, **parts, **common),
        TestLoader(test, task.collate, cfg.task.eval_batch_size, **common),
    )


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

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def optimizer_of(cfg: DictConfig, switch_step: int | None) -> "partial[Any]":
    """What makes the run's optimizer of parameters."""
    settings = _settings(cfg.optimizer)
    if reads_switch(cfg):
        settings["switch_step"] = switch_step
    return instantiate(settings, _convert_="all")


def schedule_of(cfg: DictConfig, steps_an_epoch: int) -> "partial[float] | None":
    """The factor on the learning rate at each step of the run; None if it is always 1."""
    if "_target_" not in cfg.schedule:
        return None
    factor: partial[float] = instantiate(_settings(cfg.schedule))
    return partial(factor, steps=cfg.epochs * steps_an_epoch, epoch=steps_an_epoch)


def loggers_of(plan: Plan) -> list[Logger]:
    """The loggers that the run was asked for, beside its own folder."""
    cfg = plan.cfg
    if "_target_" not in cfg.logger:
        return []
    tags = [cfg.task.name, cfg.optimizer.name, plan.profile]
    config = OmegaConf.to_container(cfg)
    new = instantiate(_settings(cfg.logger))
    return [new(folder=plan.folder, config=config, run_id=plan.folder.name, tags=tags)]


def _settings(group: DictConfig) -> dict[str, Any]:
    """What a group's YAML gives to its `_target_`."""
    settings: Any = OmegaConf.to_container(group)
    return {key: value for key, value in settings.items() if key not in ("name", "trunk")}
