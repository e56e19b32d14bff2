"""How a run and the terminal that it was started from meet: the progress bar, and the signals that stop it."""

import signal
import threading
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..result import newest, shown
from .module import Stopped
from .record import Record


class Bar(Callback):
    """One line that says where the run is: epoch, method, steps, loss and the last headline metric."""

    def __init__(self, record: Record, switch_epoch: int | None, console: Console) -> None:
        self.record, self.switch_epoch = record, switch_epoch
        news = TextColumn("{task.fields[news]}")
        left = TimeRemainingColumn(elapsed_when_finished=True)
        self.progress = Progress(TextColumn("{task.description}"), BarColumn(24), left, news, console=console)
        self.line: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        blocks = int(trainer.num_training_batches) * trainer.max_epochs  # type: ignore[operator]
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self.line = self.progress.add_task("", total=blocks, completed=done, news="")
        self.progress.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch
        method = "" if self.switch_epoch is None or epoch < self.switch_epoch else "  switched"
        self._update(description=f"epoch {epoch + 1}/{trainer.max_epochs}{method}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self._update(advance=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        row, key = newest(self.record.rows), pl_module.headline
        score = f"  {key} {shown(row[key], key)}" if key in row else ""
        self._update(news=f"loss {shown(row.get('train/loss'), 'train/loss')}{score}")

    def _update(self, **what: Any) -> None:
        assert self.line is not None
        self.progress.update(self.line, **what)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.progress.stop()


class StopOnSignal(Callback):
    """SIGINT and SIGTERM ask the run to stop at the next look; a second SIGINT does not wait for it."""

    def __init__(self, until: int | None = None) -> None:
        self.requested, self.until = False, until
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Here, not before: Lightning puts in its own SIGTERM handler when fit starts, which would end the process.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.requested = self.requested or trainer.current_epoch + 1 == self.until

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise Stopped
        self.requested = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
