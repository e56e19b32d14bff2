"""Loggers that record a run beside its folder: Lightning's CSV files, or Weights & Biases."""

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger

hung = False  # a W&B thread did not end: leave without its exit hooks, which would wait for it


def csv_logger(folder: Path, config: dict[str, Any], **about: Any) -> CSVLogger:
    logger = CSVLogger(folder, name="csv", version="")
    logger.log_hyperparams(config)
    return logger


class WandbMirror(Logger):
    """Sends to W&B what the run folder holds, from a thread of its own; W&B's own files go below that folder.

    W&B may be slow, fail or hang; the run goes on, and waits for it `timeout` seconds at its end, no longer. A mode of
    None is WANDB_MODE, else online with an account, else offline.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], run_id: str, tags: list[str], project: str, entity: str | None,
        group: str | None, mode: str | None, timeout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.timeout, self.problem, self.offline_folder = timeout, "", ""
        self._todo: queue.Queue[Callable[[Any], Any] | None] = queue.Queue()
        about: dict[str, Any] = {
            "project": project, "entity": entity, "group": group, "tags": tags, "config": config, "dir": str(folder),
            "name": run_id, "id": self._wandb_id(folder, run_id), "resume": "allow",
        }  # fmt: skip
        self._thread = threading.Thread(target=self._work, args=(about, mode), daemon=True, name="wandb")
        self._thread.start()

    @staticmethod
    def _wandb_id(folder: Path, run_id: str) -> str:
        """One id for a run and its resumptions; a repeated run gets a new one, as its folder was cleared."""
        path = folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{run_id}-{os.urandom(3).hex()}")
        return path.read_text()

    def _work(self, about: dict[str, Any], mode: str | None) -> None:
        run: Any = None
        try:
            import wandb

            def start(mode: Any) -> Any:
                quiet = wandb.Settings(console="off", silent=True, init_timeout=self.timeout / 3, reinit="create_new")
                return wandb.init(**about, mode=mode, settings=quiet)

            mode = mode or os.environ.get("WANDB_MODE")
            try:
                run = start(mode or ("online" if wandb.login(prompt=False) else "offline"))
            except Exception as error:
                if mode not in (None, "online"):
                    raise
                self.problem = f"not online ({error})"
                about["id"] += "-offline"  # W&B's service still holds the first id
                run = start("offline")
            if run.offline and not run.disabled:
                self.offline_folder = str(Path(run.dir).parent)
            while (call := self._todo.get()) is not None:
                call(run)
        except BaseException as error:  # nothing of W&B's may stop the run
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            if run is not None:
                run.finish()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._todo.put(lambda run: run.log(dict(metrics), step=step))

    def log_image(self, key: str, images: list[str]) -> None:
        def send(run: Any) -> None:
            import wandb

            run.log({f"figures/{key}": [wandb.Image(image) for image in images]})

        self._todo.put(send)

    def close(self, summary: dict[str, Any]) -> list[str]:
        """Ends the mirror with the run's summary; returns what a person should know of it."""
        global hung
        self._todo.put(lambda run: run.summary.update(summary))
        self._todo.put(None)
        self._thread.join(self.timeout)
        if self._thread.is_alive():
            hung = True
            self.problem = f"no answer within {self.timeout:.0f} s"
        notes = [f"W&B: {self.problem}; the run folder is complete without it"] if self.problem else []
        if self.offline_folder:
            notes.append(f"W&B offline; to send it: wandb sync {self.offline_folder}")
        return notes

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration was given at the start."""

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""
