"""What happens around the training: the record on disk after every epoch, and the progress bar."""

import csv
import io
import math
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from . import checkpoint
from .errors import DataError
from .figures import curves, save
from .files import land, write
from .result import shown
from .task import Task
from .trunks import Claim, Trunk

KEEP_BEST_UP_TO = 100_000_000  # parameters; larger models keep last.ckpt only
ARRIVING = ".best.ckpt"  # what is the best when last.ckpt is that of the same shared state
STATE = ("rows", "best", "seconds", "evaluation_seconds", "from_trunk")  # of Record, in a checkpoint


class Record(Callback):
    """Curves, best epoch and checkpoints. Its state travels in the checkpoint, so a resumed run's record is whole."""

    def __init__(self, folder: Path, switch_epoch: int | None) -> None:
        self.folder, self.switch_epoch = folder, switch_epoch
        self.rows: list[dict[str, float]] = []  # one an epoch
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.evaluation_seconds = 0.0
        self.from_trunk = 0  # epochs that another run trained
        self.here = 0.0  # seconds of both by this process
        self.finished = False

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for row in self.rows:  # of a resumed run: a logger starts from nothing
            self._log(trainer, row)
        if trainer.is_global_zero:
            self._settle_best(_keeps_best(pl_module))
            if self.rows:  # the file may be older, or not be there
                self.write_curves()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        self._trained: float | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING:
            self._note_trained(pl_module)

    def _note_trained(self, pl_module: LightningModule) -> float:
        if self._trained is None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self._trained = time.perf_counter()
        return self._trained

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epoch = trainer.current_epoch
        trained, now = self._note_trained(pl_module), time.perf_counter()
        self.seconds += trained - self._started
        self.evaluation_seconds += now - trained
        self.here += now - self._started
        metrics = pl_module.values() | pl_module.average_values if pl_module.evaluated else {}
        row: dict[str, float] = {
            "epoch": epoch,
            "step": (epoch + 1) * len(pl_module._losses),
            **pl_module.last_lrs(),
            "seconds": self.seconds,
            **pl_module.epoch_losses(),
            **metrics,
        }
        self.rows.append(row)
        headline = pl_module.headline_key
        sign = 1 if pl_module.higher_is_better else -1
        improved = bool(metrics) and (not self.best or sign * metrics[headline] > sign * self.best[headline])
        if improved:
            self.best = {key: value for key, value in row.items() if key == "epoch" or "/" in key}
        self._log(trainer, row)
        self._save(trainer, improved and _keeps_best(pl_module))

    @staticmethod
    def _log(trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["epoch"]))

    def _save(self, trainer: Trainer, is_best: bool) -> None:
        last = self.folder / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(last)  # on all ranks; rank 0 writes
        if not trainer.is_global_zero:
            return
        # The last first, which tells all else: a kill before the others leaves what _settle_best and write_curves mend.
        if is_best:
            _become_best(last)
        self.write_curves()

    def _settle_best(self, keeps: bool) -> None:
        """Makes best.ckpt the best epoch's, wherever a kill came between; removes what the kill left.

        Raises:
            DataError: it is not, and the weights are nowhere else.
        """
        checkpoints = self.folder / "checkpoints"
        last, best, arriving = (checkpoints / name for name in ("last.ckpt", "best.ckpt", ARRIVING))
        if not (self.best and keeps):
            best.unlink(missing_ok=True)
        elif wrong := _wrong_with(best, epochs := int(self.best["epoch"]) + 1):
            source = next((path for path in (arriving, last) if not _wrong_with(path, epochs)), None)
            if source:
                _become_best(source)
            elif best.exists():
                raise DataError(
                    f"{best}: {wrong}; bring back a copy of it, remove it to go on without the best epoch's weights, "
                    "or repeat the run from its start: force=true"
                )
        for left in (arriving, checkpoints / checkpoint.WRITING):
            left.unlink(missing_ok=True)

    def newest(self) -> dict[str, float]:
        """The last value of everything in the rows; that of a metric may be from an earlier epoch."""
        return {name: value for row in self.rows for name, value in row.items()}

    def write_curves(self) -> None:
        text = io.StringIO()
        names = dict.fromkeys(name for row in self.rows for name in row)  # some rows may lack the metrics
        writer = csv.DictWriter(text, fieldnames=list(names))
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.folder / "curves.csv", text.getvalue(), durable=False)  # the checkpoint has the rows

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the figures, on all ranks alike (a metric may ask the others), and keeps rank 0's."""
        assert isinstance(pl_module, Task)
        pl_module.eval()
        figures = self.folder / "figures"
        own = ("curves", curves(self.rows, pl_module.headline_key, self.switch_epoch))
        with torch.no_grad():
            for name, figure in (own, *pl_module.pictures()):
                if trainer.is_global_zero:
                    figures.mkdir(exist_ok=True)
                    save(figure, figures / f"{name}.png")
                    for logger in trainer.loggers:
                        if hasattr(logger, "log_image"):
                            logger.log_image(name, [str(figures / f"{name}.png")])
                plt.close(figure)
        self.finished = True


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


def _keeps_best(task: LightningModule) -> bool:
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


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, once on disk where that is possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Bar(Callback):
    """One line that says where the run is: epoch, method, steps, loss and the last headline metric."""

    def __init__(self, record: Record, switch_epoch: int | None, console: Console) -> None:
        self.record, self.switch_epoch = record, switch_epoch
        news = TextColumn("{task.fields[news]}")
        left = TimeRemainingColumn(elapsed_when_finished=True)
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(24), left, news, console=console)
        self.line: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        blocks = int(trainer.num_training_batches) * trainer.max_epochs  # type: ignore[operator]
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self.line = self.progress.add_task("", total=blocks, completed=done, news="")
        self.progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        method = "" if self.switch_epoch is None or epoch < self.switch_epoch else "  switched"
        self._update(description=f"epoch {epoch + 1}/{trainer.max_epochs}{method}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._update(advance=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        row, key = self.record.newest(), pl_module.headline_key
        told = f"  {key} {shown(row[key], key)}" if key in row else ""
        self._update(news=f"loss {shown(row.get('train/loss'), 'train/loss')}{told}")

    def _update(self, **what: Any) -> None:
        assert self.line is not None
        self.progress.update(self.line, **what)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.stop()
