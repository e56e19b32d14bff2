"""Which states of a run other runs may start from."""

import math
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from .. import checkpoint
from ..task import Task
from ..trunks import Claim, Trunk
from .record import ARRIVING, link


class Share(Callback):
    """Publishes the run's states up to its switch, as far as other runs of its trunk ask for them; on rank 0.

    A state is the run's checkpoint with the optimizers as they are before the switch, whichever ran, and with what
    the last steps added to the weights, which a method with a history goes on from.
    """

    def __init__(self, trunk: Trunk, claim: Claim | None, folder: Path) -> None:
        self.trunk, self.claim, self.checkpoints = trunk, claim, folder / "checkpoints"
        self.notes: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epoch, steps = trainer.current_epoch, pl_module.steps
        asked = self.trunk.asked().items()
        starts = (e * steps - needs for e, needs in asked if epoch < e <= self.trunk.end and needs)
        start = max(0, min(starts, default=math.inf))
        if start < epoch * steps and pl_module.record_from <= start:  # a history over short epochs
            kept = [[[(n, d) for n, d in own if n >= start] for own in recorded] for recorded in pl_module.recorded]
        else:
            start, kept = max(start, epoch * steps), [[] for _ in trainer.optimizers]
        pl_module.record_from, pl_module.recorded = start, kept

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epoch = trainer.current_epoch + 1
        if epoch > self.trunk.end:
            return
        needs = self.trunk.lacks(epoch)
        first = max(0, epoch * pl_module.steps - (needs or 0))
        if needs is not None and (needs == 0 or pl_module.record_from <= first):
            try:
                self.trunk.publish(epoch, needs, partial(self._fill, trainer, pl_module, first if needs else None))
            except OSError as error:
                self.notes.append(f"the state after epoch {epoch} is not shared: {error}")
        if self.claim is not None:
            self.claim.reached(epoch)
            if epoch == self.trunk.end:
                self.claim.release()

    def _fill(self, trainer: Trainer, task: Task, first: int | None, folder: Path) -> None:
        state = checkpoint.load(self.checkpoints / "last.ckpt")
        state["callbacks"]["Record"]["from_trunk"] = 0
        state["optimizer_states"] = [before_switch(optimizer) for optimizer in trainer.optimizers]
        if first is not None:
            state["recorded_from"] = first
            state["recorded"] = [
                [[(step, d.cpu()) for step, d in own if step >= first] for own in recorded]
                for recorded in task.recorded
            ]
        checkpoint.save(state, folder / "state.ckpt")
        best = self.checkpoints / "best.ckpt"
        if best.exists():
            link(best, folder / "best.ckpt")


def before_switch(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer as all have it that begin alike."""
    own: dict[str, Any] = getattr(optimizer, "before_switch", optimizer.state_dict)()
    return own


def adopt(state: Path, folder: Path, task: Task, epoch: int) -> None:
    """Makes a state that another run published the last checkpoint of the run in `folder`.

    Args:
        state: a folder with state.ckpt and perhaps best.ckpt; it is used up.
        task: with the run's optimizer settings.
        epoch: how many epochs the state has.
    """
    content = checkpoint.load(state / "state.ckpt")
    optimizers: list[Any] = task.new_optimizers()
    recorded = content.get("recorded", [()] * len(optimizers))
    for i, (optimizer, own) in enumerate(zip(optimizers, recorded, strict=True)):
        if hasattr(optimizer, "start_after"):
            optimizer.start_after(epoch * task.steps, content["optimizer_states"][i], own)
            content["optimizer_states"][i] = optimizer.state_dict()
    content["callbacks"]["Record"]["from_trunk"] = epoch
    checkpoints = folder / "checkpoints"
    if (state / "best.ckpt").exists():
        os.replace(state / "best.ckpt", checkpoints / ARRIVING)  # the best as soon as the state is the last
    checkpoint.save(content, checkpoints / "last.ckpt")
    shutil.rmtree(state)
