"""What a run leaves on disk after every epoch and at its end, and the line on the terminal that says where it is."""

import csv
import io
import time
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from .. import checkpoint
from ..errors import DataError
from ..figures import curvature, curves, save
from ..files import land, link, write
from ..progress import Lines, displayed
from ..result import newest, save_examples, shown, uses_of_limit
from ..task import Task
from .module import Training

KEEP_BEST_UP_TO = 100_000_000  # parameters; larger models keep last.ckpt only
MOST_EXAMPLES = 1_000_000  # of which a run keeps a score each, of up to 5 bytes
ARRIVING = ".best.ckpt"  # what is the best when last.ckpt is that of the same shared state
STATE = ("rows", "best", "seconds", "evaluation_seconds", "from_trunk")  # of Record, in a checkpoint


class Record:
    """Curves, best epoch and checkpoints of one run. Its state travels in the checkpoint, so a resumed one is whole."""

    def __init__(self, folder: Path, switch_epoch: int | None, loggers: Iterable[Logger] = ()) -> None:
        self.folder, self.switch_epoch, self.loggers = folder, switch_epoch, list(loggers)
        self.rows: list[dict[str, float]] = []  # one an epoch
        self.best: dict[str, float] = {}
        self.seconds, self.evaluation_seconds = 0.0, 0.0  # its share of those of all that are trained with it
        self.from_trunk = 0  # epochs that another run trained
        self.improved = False  # whether the last epoch is the best

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in STATE})

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def begin(self, task: Task, writes: bool) -> None:
        """Mends what a kill has left, where this process writes; tells the loggers, which start from nothing."""
        self._log(self.rows)
        if writes:
            self._settle_best(_keeps_best(task))
            if self.rows:  # the file may be older, or not be there
                self.write_curves()

    def add(self, row: dict[str, float], headline: str, higher_is_better: bool) -> None:
        """Adds an epoch."""
        sign = 1 if higher_is_better else -1
        self.rows.append(row)
        self.improved = headline in row and (not self.best or sign * row[headline] > sign * self.best[headline])
        if self.improved:
            self.best = {key: value for key, value in row.items() if key == "epoch" or "/" in key}
        self._log([row])

    def settle(self, task: Task) -> None:
        """Writes what follows from the last checkpoint: a kill before this leaves what `begin` mends."""
        if self.improved and _keeps_best(task):
            _become_best(self.last)
        self.write_curves()

    def _log(self, rows: list[dict[str, float]]) -> None:
        for logger, row in product(self.loggers, rows):
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

    def keep_examples(self, task: Task) -> None:
        """Keeps the last evaluation's score of each example, if the task has them, and not too many."""
        kept = getattr(task, "of_examples", None)
        if kept is not None and kept.update_called:
            metric, higher_is_better = task.metric_of_examples or (task.headline, task.higher_is_better)
            if len(scores := kept.compute().tolist()) <= MOST_EXAMPLES:
                save_examples(self.folder, f"{task.split}/{metric}", higher_is_better, scores)

    def draw(self, task: Task, headline: str, writes: bool) -> None:
        """Draws the figures, on all ranks alike (a metric may ask the others), and keeps rank 0's."""
        drawn = [("curves", curves(self.rows, headline, self.switch_epoch))]
        if any(key.startswith("curvature/used") for row in self.rows for key in row):
            drawn.append(("curvature", curvature(self.rows, self.switch_epoch)))
        for name, figure in (*drawn, *task.pictures()):
            if writes:
                path = self.folder / "figures" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                save(figure, path)
                for logger in self.loggers:
                    if hasattr(logger, "log_image"):
                        logger.log_image(name, [str(path)])
            plt.close(figure)


class Recorder(Callback):
    """Keeps the records of the runs that are trained together."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.seconds_here = 0.0  # of training and evaluation by this process
        self.finished = False

    @property
    def state_key(self) -> str:
        return "Record"

    def state_dict(self) -> dict[str, Any]:
        states = [record.state_dict() for record in self.records]
        return states[0] if len(states) == 1 else {"records": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for record, state in zip(self.records, state_dict.get("records", [state_dict]), strict=True):
            record.load_state_dict(state)

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        for record, replica in zip(self.records, pl_module.replicas, strict=True):
            record.begin(replica.task, trainer.is_global_zero)
            if pl_module.watch and pl_module.watch.waits:
                record.switch_epoch = pl_module.watch.switched_after(record.rows)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.watch:
            pl_module.watch.start_epoch(trainer.current_epoch, self.records[0].rows)
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not pl_module.evaluates:
            self.on_validation_start(trainer, pl_module)
        now = time.perf_counter()
        self.seconds_here += now - self._started
        for k, replica in pl_module.live:
            record, metrics = self.records[k], pl_module.values(replica) if pl_module.evaluates else {}
            if replica.diverged is None:
                record.seconds += (self._trained - self._started) / len(self.records)
                record.evaluation_seconds += (now - self._trained) / len(self.records)
                averages = replica.average_values if pl_module.evaluates else {}
                self._add_row(record, trainer, pl_module, k, metrics | averages)
        trainer.save_checkpoint(self.records[0].last)  # of all, on all ranks; rank 0 writes
        for k, replica in pl_module.live if trainer.is_global_zero else ():
            self.records[k].settle(replica.task)

    @staticmethod
    def _add_row(record: Record, trainer: Trainer, pl_module: Any, k: int, metrics: dict[str, float]) -> None:
        epoch, headline = trainer.current_epoch + 1, pl_module.headline
        row: dict[str, float] = {"epoch": epoch, "step": epoch * len(pl_module.losses), **pl_module.last_lrs(k)}
        first = {headline: metrics[headline]} if metrics else {}  # for those who do not know which it is
        row |= {"seconds": record.seconds, **_losses(pl_module, k), **first, **metrics}
        if pl_module.watch:
            pl_module.watch.end_epoch(row, record.rows)
            if pl_module.watch.waits:
                record.switch_epoch = pl_module.watch.switched_after([*record.rows, row])
        record.add(row, headline, pl_module.task.higher_is_better)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.eval()
        with torch.no_grad():
            for k, replica in pl_module.live:
                if trainer.world_size == 1:  # of several, none has the order of all
                    self.records[k].keep_examples(replica.task)
                self.records[k].draw(replica.task, pl_module.headline, trainer.is_global_zero)
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

    def __init__(self, records: list[Record], console: Console) -> None:
        self.record, self.console = records[0], console
        self.of = "" if len(records) == 1 else f"{len(records)} runs  "
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
        switch = self.record.switch_epoch
        method = "" if switch is None or epoch < switch else "  switched"
        self.update(description=f"{self.of}epoch {epoch + 1}/{trainer.max_epochs}{method}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.update(advance=1)
        if not self.console.is_terminal:
            self.lines.say(self._where)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        row, key = newest(self.record.rows), pl_module.headline  # of several, the first's
        score = f"  {key} {shown(row[key], key)}" if key in row else ""
        uses = uses_of_limit(row)
        edge = f"  {max(uses):.2g} of the stability limit" if uses else ""
        news = f"loss {shown(row.get('train/loss'), 'train/loss')}{score}{edge}"
        self.update(news=news)
        if not self.console.is_terminal:
            ends = len(self.record.rows) in (1, trainer.max_epochs)
            self.lines.say(lambda: self._where(f"  {news}"), must=ends)

    def _where(self, news: str = "") -> str:
        done, total = self.task.completed - self.first, (self.task.total or 0) - self.first
        return f"{self.task.description}{news}  {self.lines.time_left(done, total)}"

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.display.close()


def _losses(training: Training, k: int) -> dict[str, float]:
    """The mean losses of one replica over the epoch's steps."""
    measured = [each[k] if isinstance(each, Tensor) and each.dim() else each for each in training.measured]
    return mean_losses(training.by_replica(training.losses)[..., k], list(training.task.players()), measured)


def mean_losses(losses: Tensor, players: list[str], measured: list[Any]) -> dict[str, float]:
    """The mean training loss over an epoch's steps, `train/loss`; of several players, their sum and each.

    Left out are steps with nothing to learn from: `measured` counts the others of each player. The losses have shape
    (step, player).
    """
    sums_P = losses.double().sum(0)  # float32 may not hold the sum
    known = [(name, s, n) for name, s, n in zip(players, sums_P, measured, strict=True) if n]
    each = {f"train/loss_{name}": float(s / n) for name, s, n in known}
    return ({"train/loss": sum(each.values())} if each else {}) | (each if len(each) > 1 else {})
