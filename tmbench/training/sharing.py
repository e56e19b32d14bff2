"""What runs share up to their switch: a run publishes its states for those of its trunk, or starts from one."""

import math
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, Trainer

from .. import checkpoint
from ..files import link
from ..trunks import Reservation, Trunk
from .module import Training
from .record import ARRIVING


@dataclass
class Shared:
    """What one run shares with others, up to its switch."""

    trunk: Trunk
    reservation: Reservation | None
    folder: Path  # the run's
    replica: int  # its number


class PublishStates(Callback):
    """Publishes the runs' states up to their switch that other runs of their trunks request; on rank 0.

    A state is a run's checkpoint with the optimizers as they are before the switch, whichever ran, and with what
    the last steps added to the weights, which a method with a history goes on from.
    """

    def __init__(self, shared: list[Shared]) -> None:
        self.shared = shared
        self.notes: dict[int, list[str]] = {each.replica: [] for each in shared}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        epoch, steps = trainer.current_epoch, pl_module.steps
        requests = [(e, n) for each in self.shared for e, n in each.trunk.requests().items() if e <= each.trunk.end]
        firsts = (e * steps - count for e, count in requests if epoch < e and count)
        pl_module.history.start_epoch(min(firsts, default=math.inf), epoch * steps, len(trainer.optimizers))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch, live = trainer.current_epoch + 1, {k for k, _ in pl_module.live}
        has_switched = any(getattr(optimizer, "has_switched", False) for optimizer in trainer.optimizers)
        for each in self.shared:
            if epoch > each.trunk.end or each.replica not in live or (each.trunk.is_open and has_switched):
                continue
            differences = each.trunk.unmet_request(epoch)
            first = max(0, epoch * pl_module.steps - (differences or 0))
            if differences is not None and (differences == 0 or pl_module.history.first <= first):
                write_state = partial(self._write_state, trainer, pl_module, first if differences else None, each)
                try:
                    each.trunk.publish(epoch, differences, write_state)
                except OSError as error:
                    self.notes[each.replica].append(f"the state after epoch {epoch} is not shared: {error}")
            if each.reservation is not None:
                each.reservation.reached(epoch)
                if epoch == each.trunk.end:
                    each.reservation.release()

    @staticmethod
    def _write_state(trainer: Trainer, training: Training, first: int | None, each: Shared, folder: Path) -> None:
        checkpoints = each.folder / "checkpoints"
        state = checkpoint.load(checkpoints / "last.ckpt")
        state["callbacks"]["Record"]["from_trunk"] = 0
        # In the form that all optimizers have before their switch.
        before = [getattr(o, "before_switch", o.state_dict)() for o in trainer.optimizers]
        state["optimizer_states"] = training.own_states(before, each.replica)
        if first is not None:
            state["recorded_from"], recorded = first, training.own_states(training.history.since(first), each.replica)
            state["recorded"] = [[[(n, d.cpu()) for n, d in parameter] for parameter in each] for each in recorded]
        checkpoint.save(state, folder / "state.ckpt")
        if (best := checkpoints / "best.ckpt").exists():
            link(best, folder / best.name)


def start_from(state: Path, folder: Path, training: Training, replica: int) -> None:
    """Makes a state that another run published the last checkpoint of the run in `folder`.

    Args:
        state: a folder, called like its number of epochs, with state.ckpt and perhaps best.ckpt; it is removed.
        replica: the run's number.
    """
    content, epoch = checkpoint.load(state / "state.ckpt"), int(state.name)
    optimizers: list[Any] = training.new_optimizers(replica)
    recorded = content.get("recorded", [()] * len(optimizers))
    for i, (optimizer, of_optimizer) in enumerate(zip(optimizers, recorded, strict=True)):
        if hasattr(optimizer, "start_after"):
            optimizer.start_after(epoch * training.steps, content["optimizer_states"][i], of_optimizer)
            content["optimizer_states"][i] = optimizer.state_dict()
    record = content["callbacks"]["Record"]
    record["from_trunk"] = epoch
    if not training.watch:  # what another run has measured beside its training
        record["rows"] = [{k: v for k, v in row.items() if not k.startswith("curvature/")} for row in record["rows"]]
        record["best"] = {k: v for k, v in record["best"].items() if not k.startswith("curvature/")}
    checkpoints = folder / "checkpoints"
    if (state / "best.ckpt").exists():
        os.replace(state / "best.ckpt", checkpoints / ARRIVING)  # the best as soon as the state is the last
    checkpoint.save(content, checkpoints / "last.ckpt")
    shutil.rmtree(state)
