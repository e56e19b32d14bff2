"""What a run leaves on disk after every epoch and at its end, and the line on the terminal that says where it is."""

import csv
import io
import math
import os
import shutil
import time
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .. import checkpoint
from ..errors import DataError
from ..figures import curves, save
from ..files import land, link, write
from ..progress import Lines, displayed
from ..result import newest, save_examples, shown
from ..task import Task
from ..trunks import Reservation, Trunk
from .module import Training

KEEP_BEST_UP_TO = 100_000_000  # parameters; larger models keep last.ckpt only
ARRIVING = ".best.ckpt"  # what is the best when last.ckpt is that of the same shared state
STATE = ("rows", "best", "seconds", "evaluation_seconds", "from_trunk")  # of Record, in a checkpoint


class Record(Callback):
    """Curves, best epoch and checkpoints. Its state travels in the checkpoint, so a resumed run's record is whole."""

    def __init__(self, folder: Path, switch_epoch: int | None) -> None:
        self.folder, self.switch_epoch = folder, switch_epoch
        self.rows: list[dict[str, float]] = []  # one an epoch
        self.best: dict[str, float] = {}
        self.seconds, self.evaluation_seconds = 0.0, 0.0
        self.from_trunk = 0  # epochs that another run trained
        self.seconds_here = 0.0  # of both by this process
        self.finished = False

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in STATE})

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._log(trainer, self.rows)  # of a resumed run: a logger starts from nothing
        if trainer.is_global_zero:
            self._settle_best(_keeps_best(pl_module.task))
            if self.rows:  # the file may be older, or not be there
                self.write_curves()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch, task = trainer.current_epoch + 1, pl_module.task
        if not pl_module.evaluates:
            self.on_validation_start(trainer, pl_module)
        now = time.perf_counter()
        self.seconds += self._trained - self._started
        self.evaluation_seconds += now - self._trained
        self.seconds_here += now - self._started
        metrics = pl_module.values() | pl_module.average_values if pl_module.evaluates else {}
        losses = mean_losses(pl_module.losses, list(task.players()), pl_module.measured)
        row: dict[str, float] = {"epoch": epoch, "step": epoch * len(pl_module.losses), **pl_module.last_lrs()}
        headline, sign = pl_module.headline, 1 if task.higher_is_better else -1
        first = {headline: metrics[headline]} if metrics else {}  # for those who do not know which it is
        row |= {"seconds": self.seconds, **losses, **first, **metrics}
        self.rows.append(row)
        improved = bool(metrics) and (not self.best or sign * metrics[headline] > sign * self.best[headline])
        if improved:
            self.best = {key: value for key, value in row.items() if key == "epoch" or "/" in key}
        self._log(trainer, [row])
        last = self.folder / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(last)  # on all ranks; rank 0 writes
        if trainer.is_global_zero:
            # The last first, which tells all: a kill before the others leaves what _settle_best and write_curves mend.
            if improved and _keeps_best(task):
                _become_best(last)
            self.write_curves()

    @staticmethod
    def _log(trainer: Trainer, rows: list[dict[str, float]]) -> None:
        for logger, row in product(trainer.loggers, rows):
            logger.log_metrics(row, step=int(row["epoch"]))

    def _settle_best(self, keeps: bool) -> None:
        """Makes best.ckpt the best epoch's, wherever a kill came between; removes what the kill left.

        Raises:
            DataError: it is not, and the weights are nowhere else.
        """
        checkpoints = self.folder / "checkpoints"
        last, best, arriving = (checkpoints / name for name in ("last.ckpt", "best.ckpt", ARRIVING))
        if not (self.best and keeps):
            best.unlink(missing_ok=True)
        elif wrong := _wrong_with(best, epochs := int(self.best["epoch"])):
            source = next((path for path in (arriving, last) if not _wrong_with(path, epochs)), None)
            if source:
                _become_best(source)
            elif best.exists():
                raise DataError(
                    f"{best}: {wrong}; put back a copy, remove it to continue without the best epoch's weights, "
                    "or repeat the run from its start: force=true"
                )
        for left in (arriving, checkpoints / checkpoint.WRITING):
            left.unlink(missing_ok=True)

    def write_curves(self) -> None:
        text = io.StringIO()
        names = dict.fromkeys(name for row in self.rows for name in row)  # some rows may lack the metrics
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.folder / "curves.csv", text.getvalue(), durable=False)  # the checkpoint has the rows

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draws the figures, on all ranks alike (a metric may ask the others), and keeps rank 0's."""
        pl_module.eval()
        kept = getattr(pl_module.task, "of_examples", None)
        if kept is not None and kept.update_called and trainer.world_size == 1:  # of several, none has the order of all
            save_examples(self.folder, pl_module.headline, kept.compute().tolist())
        figures = self.folder / "figures"
        drawn = ("curves", curves(self.rows, pl_module.headline, self.switch_epoch))
        with torch.no_grad():
            for name, figure in (drawn, *pl_module.task.pictures()):
                if trainer.is_global_zero:
                    figures.mkdir(exist_ok=True)
                    save(figure, path := figures / f"{name}.png")
                    for logger in trainer.loggers:
                        if hasattr(logger, "log_image"):
                            logger.log_image(name, [str(path)])
                plt.close(figure)
        self.finished = True


def _keeps_best(task: Task) -> bool:
    return sum(p.numel() for p in task.parameters()) <= KEEP_BEST_UP_TO


def _wrong_with(path: Path, epochs: int) -> str | None:
    """Why a file is not the whole checkpoint after so many epochs; None if it is."""
    try:
        checkpoint.check(path)
    except FileNotFoundError:
        return "not there"
    except DataError:
        return "damaged: its content does not match its sha256"
    found = checkpoint.epochs(path)
    return None if found == epochs else f"expected the weights after {epochs} epochs, the best; got those after {found}"


def _become_best(source: Path) -> None:
    """Makes a checkpoint also best.ckpt, which is never missing meanwhile."""
    scratch = source.with_name(checkpoint.WRITING)
    scratch.unlink(missing_ok=True)
    link(source, scratch)
    land(scratch, source.with_name("best.ckpt"))


class Bar(Callback):
    """Says where the run is: epoch, method, loss and the last headline metric; on a terminal in one line with a bar.

    Without a terminal it is a line at the end of the first and the last epoch, and one every 30 seconds.
    """

    def __init__(self, record: Record, switch_epoch: int | None, console: Console) -> None:
        self.record, self.switch_epoch, self.console = record, switch_epoch, console
        news = TextColumn("{task.fields[news]}")
        left = TimeRemainingColumn(elapsed_when_finished=True)
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(24), left, news, console=console)
        self.display = ExitStack()
        self.update = partial(self.progress.update, self.progress.add_task("", news=""))
        (self.task,) = self.progress.tasks

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        blocks = int(trainer.num_training_batches)
        self.first, self.lines = blocks * trainer.current_epoch, Lines()
        self.update(total=blocks * int(trainer.max_epochs or 0), completed=self.first)
        if self.console.is_terminal:
            self.display.enter_context(displayed(self.progress))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        method = "" if self.switch_epoch is None or epoch < self.switch_epoch else "  switched"
        self.update(description=f"epoch {epoch + 1}/{trainer.max_epochs}{method}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.update(advance=1)
        if not self.console.is_terminal:
            self.lines.say(self._where)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        row, key = newest(self.record.rows), pl_module.headline
        score = f"  {key} {shown(row[key], key)}" if key in row else ""
        news = f"loss {shown(row.get('train/loss'), 'train/loss')}{score}"
        self.update(news=news)
        if not self.console.is_terminal:
            ends = len(self.record.rows) in (1, trainer.max_epochs)
            self.lines.say(lambda: self._where(f"  {news}"), must=ends)

    def _where(self, news: str = "") -> str:
        done, total = self.task.completed - self.first, (self.task.total or 0) - self.first
        return f"{self.task.description}{news}  {self.lines.time_left(done, total)}"

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.display.close()


class PublishStates(Callback):
    """Publishes the run's states up to its switch that other runs of its trunk request; on rank 0.

    A state is the run's checkpoint with the optimizers as they are before the switch, whichever ran, and with what
    the last steps added to the weights, which a method with a history goes on from.
    """

    def __init__(self, trunk: Trunk, reservation: Reservation | None, folder: Path) -> None:
        self.trunk, self.reservation, self.checkpoints = trunk, reservation, folder / "checkpoints"
        self.notes: list[str] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        epoch, steps = trainer.current_epoch, pl_module.steps
        requests = self.trunk.requests().items()
        firsts = (e * steps - count for e, count in requests if epoch < e <= self.trunk.end and count)
        pl_module.history.start_epoch(min(firsts, default=math.inf), epoch * steps, len(trainer.optimizers))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        if epoch > self.trunk.end:
            return
        differences = self.trunk.unmet_request(epoch)
        first = max(0, epoch * pl_module.steps - (differences or 0))
        if differences is not None and (differences == 0 or pl_module.history.first <= first):
            write_state = partial(self._write_state, trainer, pl_module, first if differences else None)
            try:
                self.trunk.publish(epoch, differences, write_state)
            except OSError as error:
                self.notes.append(f"the state after epoch {epoch} is not shared: {error}")
        if self.reservation is not None:
            self.reservation.reached(epoch)
            if epoch == self.trunk.end:
                self.reservation.release()

    def _write_state(self, trainer: Trainer, training: Training, first: int | None, folder: Path) -> None:
        state = checkpoint.load(self.checkpoints / "last.ckpt")
        state["callbacks"]["Record"]["from_trunk"] = 0
        # In the form that all optimizers have before their switch.
        state["optimizer_states"] = [getattr(o, "before_switch", o.state_dict)() for o in trainer.optimizers]
        if first is not None:
            state["recorded_from"], recorded = first, training.history.since(first)
            state["recorded"] = [[[(n, d.cpu()) for n, d in parameter] for parameter in each] for each in recorded]
        checkpoint.save(state, folder / "state.ckpt")
        if (best := self.checkpoints / "best.ckpt").exists():
            link(best, folder / best.name)


def start_from(state: Path, folder: Path, training: Training, epoch: int) -> None:
    """Makes a state that another run published the last checkpoint of the run in `folder`.

    Args:
        state: a folder with state.ckpt, of so many epochs, and perhaps best.ckpt; it is removed.
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


def mean_losses(losses: list[Tensor], players: list[str], measured: list[Any]) -> dict[str, float]:
    """The mean training loss over an epoch's steps, `train/loss`; of several players, their sum and each.

    Left out are steps with nothing to learn from: `measured` counts the others of each player. A step's losses have
    shape (), or (player,) if there are several.
    """
    sums_P = torch.stack(losses).double().sum(0).view(-1)  # float32 may not hold the sum
    known = [(name, s, n) for name, s, n in zip(players, sums_P, measured, strict=True) if n]
    each = {f"train/loss_{name}": float(s / n) for name, s, n in known}
    return ({"train/loss": sum(each.values())} if each else {}) | (each if len(each) > 1 else {})
