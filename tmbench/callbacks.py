"""What happens around the training: the record on disk after every epoch, and the progress bar."""

import csv
import io
import os
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .figures import curves
from .result import shown, write
from .task import Diverged, Task

KEEP_BEST_UP_TO = 100_000_000  # parameters; larger models keep last.ckpt only


class Record(Callback):
    """Curves, best epoch and checkpoints. Its state travels in the checkpoint, so a resumed run's record is whole."""

    def __init__(self, folder: Path, switch_epoch: int | None) -> None:
        self.folder, self.switch_epoch = folder, switch_epoch
        self.rows: list[dict[str, float]] = []  # one an epoch
        self.best: dict[str, float] = {}
        self.seconds = 0.0
        self.finished = False

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.best, self.seconds = state_dict["rows"], state_dict["best"], state_dict["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for row in self.rows:  # of a resumed run: a logger starts from nothing
            self._log(trainer, row)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self._epoch_seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        epoch = trainer.current_epoch
        norms = torch._foreach_norm([p.detach() for p in pl_module.parameters()])
        if not torch.stack([n.float() for n in norms]).isfinite().all():
            # The last step's loss was finite and its update was not.
            raise Diverged(epoch, len(pl_module._losses) - 1)
        self.seconds += self._epoch_seconds
        metrics = pl_module.values() | pl_module.average_values
        row: dict[str, float] = {
            "epoch": epoch,
            "step": (epoch + 1) * len(pl_module._losses),
            "lr": pl_module.last_lr(),
            "seconds": self.seconds,
            "train/loss": pl_module.epoch_loss(),
            **metrics,
        }
        self.rows.append(row)
        headline = f"test/{pl_module.headline}"
        sign = 1 if pl_module.higher_is_better else -1
        improved = not self.best or sign * metrics[headline] > sign * self.best[headline]
        if improved:
            self.best = {key: value for key, value in row.items() if key == "epoch" or "/" in key}
        self._log(trainer, row)
        self._save(trainer, improved and sum(p.numel() for p in pl_module.parameters()) <= KEEP_BEST_UP_TO)

    @staticmethod
    def _log(trainer: Trainer, row: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(row, step=int(row["epoch"]))

    def _save(self, trainer: Trainer, is_best: bool) -> None:
        checkpoints = self.folder / "checkpoints"
        scratch, last, best = (checkpoints / name for name in (".writing.ckpt", "last.ckpt", "best.ckpt"))
        trainer.save_checkpoint(scratch)  # on all ranks; rank 0 writes
        if not trainer.is_global_zero:
            return
        os.replace(scratch, last)
        if is_best:
            scratch.unlink(missing_ok=True)
            try:
                os.link(last, scratch)  # the same bytes, once on disk
            except OSError:
                shutil.copyfile(last, scratch)
            os.replace(scratch, best)
        self.write_curves()

    def write_curves(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        write(self.folder / "curves.csv", text.getvalue())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the figures, on all ranks alike (a metric may ask the others), and keeps rank 0's."""
        assert isinstance(pl_module, Task)
        pl_module.eval()
        figures = self.folder / "figures"
        own = ("curves", curves(self.rows, pl_module.headline, self.switch_epoch))
        with torch.no_grad():
            for name, figure in (own, *pl_module.pictures()):
                if trainer.is_global_zero:
                    figures.mkdir(exist_ok=True)
                    figure.savefig(figures / f"{name}.png", dpi=110, bbox_inches="tight")
                    for logger in trainer.loggers:
                        if hasattr(logger, "log_image"):
                            logger.log_image(name, [str(figures / f"{name}.png")])
                plt.close(figure)
        self.finished = True


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
        row, key = self.record.rows[-1], f"test/{pl_module.headline}"
        self._update(news=f"loss {row['train/loss']:.3f}  {key} {shown(row[key], key)}")

    def _update(self, **what: Any) -> None:
        assert self.line is not None
        self.progress.update(self.line, **what)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.progress.stop()
