"""Shared states: which of a run's states it publishes for others, and how a run starts from one."""

import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from .. import checkpoint
from ..trunks import Trunk
from ..trunks.lock import Reservation
from .module import Training
from .record import ARRIVING, link


class PublishStates(Callback):
    """Publishes the run's states up to its switch that other runs of its trunk request; on rank 0.

    A state is the run's checkpoint with the optimizers as they are before the switch, whichever ran, and with what
    the last steps added to the weights, which a method with a history goes on from.
    """

    def __init__(self, trunk: Trunk, reservation: Reservation | None, folder: Path) -> None:
        self.trunk, self.reservation, self.checkpoints = trunk, reservation, folder / "checkpoints"
        self.notes: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        epoch, steps = trainer.current_epoch, pl_module.steps
        requests = self.trunk.requests().items()
        firsts = (e * steps - count for e, count in requests if epoch < e <= self.trunk.end and count)
        pl_module.history.start_epoch(min(firsts, default=math.inf), epoch * steps, len(trainer.optimizers))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Training)
        epoch = trainer.current_epoch + 1
        if epoch > self.trunk.end:
            return
        differences = self.trunk.unmet_request(epoch)
        first = max(0, epoch * pl_module.steps - (differences or 0))
        if differences is not None and (differences == 0 or pl_module.history.first <= first):
            write = partial(self._write_state, trainer, pl_module, first if differences else None)
            try:
                self.trunk.publish(epoch, differences, write)
            except OSError as error:
                self.notes.append(f"the state after epoch {epoch} is not shared: {error}")
        if self.reservation is not None:
            self.reservation.reached(epoch)
            if epoch == self.trunk.end:
                self.reservation.release()

    def _write_state(self, trainer: Trainer, training: Training, first: int | None, folder: Path) -> None:
        state = checkpoint.load(self.checkpoints / "last.ckpt")
        state["callbacks"]["Record"]["from_trunk"] = 0
        state["optimizer_states"] = [before_switch(optimizer) for optimizer in trainer.optimizers]
        if first is not None:
            state["recorded_from"] = first
            state["recorded"] = [
                [[(step, d.cpu()) for step, d in of_parameter] for of_parameter in recorded]
                for recorded in training.history.since(first)
            ]
        checkpoint.save(state, folder / "state.ckpt")
        best = self.checkpoints / "best.ckpt"
        if best.exists():
            link(best, folder / "best.ckpt")


def before_switch(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer in the form that all have before their switch."""
    state: dict[str, Any] = getattr(optimizer, "before_switch", optimizer.state_dict)()
    return state


def start_from(state: Path, folder: Path, training: Training, epoch: int) -> None:
    """Makes a state that another run published the last checkpoint of the run in `folder`.

    Args:
        state: a folder with state.ckpt and perhaps best.ckpt; it is removed.
        training: with the run's optimizer settings.
        epoch: how many epochs the state has.
    """
    content = checkpoint.load(state / "state.ckpt")
    optimizers: list[Any] = training.new_optimizers()
    recorded = content.get("recorded", [()] * len(optimizers))
    for i, (optimizer, of_optimizer) in enumerate(zip(optimizers, recorded, strict=True)):
        if hasattr(optimizer, "start_after"):
            optimizer.start_after(epoch * training.steps, content["optimizer_states"][i], of_optimizer)
            content["optimizer_states"][i] = optimizer.state_dict()
    content["callbacks"]["Record"]["from_trunk"] = epoch
    checkpoints = folder / "checkpoints"
    if (state / "best.ckpt").exists():
        os.replace(state / "best.ckpt", checkpoints / ARRIVING)  # the best as soon as the state is the last
    checkpoint.save(content, checkpoints / "last.ckpt")
    shutil.rmtree(state)
