"""What a planned run is made of: its task, its loaders, its trainer, its optimizer and schedule, its loggers."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning_fabric.plugins import CheckpointIO
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from ..config.identity import reads_switch, world_size
from ..config.machine import free_memory
from ..config.settle import loggers
from ..config.table import FOR_THE_RUN
from ..config.trust import classes_in
from ..data import Dataset
from ..errors import ConfigError, imported, making
from ..plan import Plan
from ..seeds import seed_all
from ..task import Task
from .loader import StackLoader, TestLoader, TrainLoader, hold_out
from .loggers import RunFacts
from .stack import Stack
from .stackable import check_fits


def task_of(plans: Sequence[Plan]) -> Task:
    """The task of a run, with the initial weights of its seed; of runs with replicas, the stack of theirs.

    Runs of one learning rate are next to each other.
    """
    first, slots = _task(plans[0], plans[0].data), plans[0].cfg.replicas
    if slots == 1:
        return first
    check_fits(first, slots, free_memory())
    rates = [len(list(of_rate)) for _, of_rate in groupby(plan.cfg.lr for plan in plans)]
    tasks = [first, *(_task(plan, plans[0].data) for plan in plans[1:])]  # what one has read serves all
    return Stack(tasks, [plan.cfg.seed for plan in plans], slots, rates)


def _task(plan: Plan, data: Dataset) -> Task:
    cfg = plan.cfg
    seed_all("weights", cfg.seed)
    task_class = imported(f"task/{cfg.task.name}.yaml: _target_", cfg.task._target_)
    with making(cfg.task._target_):
        task: Task = task_class(cfg.task, data)
    metrics, headline = list(getattr(task, "metrics", ())), getattr(task, "headline", None)
    if headline not in metrics:
        expected = f"a key of its self.metrics ({', '.join(metrics) or 'which has none'})"
        raise ConfigError(f"task={cfg.task.name}: {cfg.task._target_}: headline: expected {expected}, got {headline!r}")
    if cfg.validation:
        hold_out(task, cfg.validation)
    return task


def loaders_of(
    plans: Sequence[Plan], task: Task, device: torch.device, rank: int = 0, world: int = 1,
    epoch: Callable[[], int] = lambda: 0,
) -> tuple[TrainLoader | StackLoader, TestLoader]:  # fmt: skip
    """What a rank trains on, and what it evaluates."""
    cfg, train = plans[0].cfg, task.examples("train")
    common: Any = {"device": device, "rank": rank, "world": world, "num_workers": cfg.trainer.num_workers}
    parts: Any = {"accumulate": cfg.trainer.accumulate, "epoch": epoch}
    loaders = list[TrainLoader]()
    for plan in plans:
        loaders.append(TrainLoader(train, task.collate, cfg.batch_size, seed=plan.cfg.seed, **parts, **common))
        if loaders[0].tensors is not None:  # on the device, where all share them
            train = TensorDataset(*loaders[0].tensors)
    test = TestLoader(task.examples("test"), task.collate, cfg.task.eval_batch_size, seed=cfg.seed, **common)
    return StackLoader(loaders, task.of_slot) if isinstance(task, Stack) else loaders[0], test


def trainer_of(
    cfg: DictConfig, folder: Path, callbacks: list[Callback], checkpoints: CheckpointIO, players: int = 1
) -> Trainer:
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
            plugins=[checkpoints, *([LightningEnvironment()] if alone else [])],
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            num_sanity_val_steps=0, use_distributed_sampler=False,
        )  # fmt: skip


def optimizer_of(cfg: DictConfig, switch_step: int | None, steps: int = 1) -> "partial[Any]":
    """What makes the run's optimizer of parameters; `steps`: of an epoch."""
    more: dict[str, Any] = {"switch_step": switch_step} if reads_switch(cfg) else {}
    if "handover" in cfg.optimizer:
        more["handover"] = steps if cfg.optimizer.handover else None
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
