"""The progress bar."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..result import shown
from .module import Training
from .record import Record


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
        assert isinstance(pl_module, Training)
        row, key = self.record.newest(), pl_module.headline
        score = f"  {key} {shown(row[key], key)}" if key in row else ""
        self._update(news=f"loss {shown(row.get('train/loss'), 'train/loss')}{score}")

    def _update(self, **what: Any) -> None:
        assert self.line is not None
        self.progress.update(self.line, **what)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.stop()
