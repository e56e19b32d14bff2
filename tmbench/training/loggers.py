"""Loggers that record a run beside its folder: files of Lightning's CSV logger and of TensorBoard, W&B, MLflow."""

import json
import logging
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger

from ..config.settle import flat
from ..errors import ConfigError

hung = False  # a mirror's thread did not end: leave without the exit hooks, which would wait for it
FIGURES = "figures"  # their folder, in the run's and in all that mirrors it


@dataclass(frozen=True)
class RunFacts:
    """What a logger knows of the run from its start."""

    folder: Path
    config: dict[str, Any]  # settled
    tags: dict[str, str]  # its task, optimizer and data

    @property
    def run_id(self) -> str:
        return self.folder.name


def check_installed(name: str, package: str) -> None:
    """Raises ConfigError if a logger's package, which is its extra's name as well, is not installed."""
    if find_spec(package) is None:
        raise ConfigError(f"logger={name}: needs the package {package}; pip install 'tmbench[{name}]'")


class _Csv(CSVLogger):
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds an epoch's row; Lightning would write the epoch over the steps of the optimizer."""
        super().log_metrics(metrics, int(metrics.get("step", step or 0)))


def csv_logger(run: RunFacts, settings: dict[str, Any]) -> CSVLogger:
    shutil.rmtree(run.folder / "csv", ignore_errors=True)  # of a resumed run, which tells all its epochs again
    logger = _Csv(run.folder, name="csv", version="", flush_logs_every_n_steps=1)
    logger.log_hyperparams(run.config)
    return logger


class TensorBoard(TensorBoardLogger):
    """Event files in the run folder's tensorboard/, by Lightning's logger; numbers in them are 32-bit floats."""

    def __init__(self, run: RunFacts, settings: dict[str, Any]) -> None:
        check_installed("tensorboard", "tensorboard")
        # Of a resumed run, which tells all its epochs again; TensorBoard would show them twice.
        shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
        super().__init__(run.folder, name="tensorboard", version="", default_hp_metric=False)
        self._values = flat(run.config)
        table = "\n".join(f"| {key} | {value} |" for key, value in self._values.items())
        self.experiment.add_text("configuration", f"| setting | value |\n|---|---|\n{table}")
        self.experiment.add_text("run", f"{run.run_id}: {', '.join(run.tags.values())}")

    def log_image(self, key: str, images: list[str]) -> None:
        for image in images:
            pixels = np.asarray(Image.open(image).convert("RGB"))
            self.experiment.add_image(f"{FIGURES}/{key}", pixels, dataformats="HWC")

    def close(self, summary: dict[str, Any], last_epoch: int) -> list[str]:
        """Adds the summary, as text and beside the configuration in the tab HParams; returns no notes."""
        self.experiment.add_text("summary", "\n".join(f"    {key}: {value}" for key, value in summary.items()))
        scores = {key: value for key, value in summary.items() if key.startswith("best/")}
        self.log_hyperparams(self._values, scores, last_epoch)
        self.experiment.close()
        return []


class Mirror(Logger):
    """Sends to another program what the run folder holds, from a thread of its own.

    That program may be slow, fail or hang; the run continues, and at its end waits for it at most `timeout` seconds.
    What could not be sent is tried again with what comes next. A subclass says what connecting and sending are; what
    it does there may take long, and may raise anything.
    """

    title = ""  # of the program, for people
    module = ""  # what connecting imports

    def __init__(self, run: RunFacts, settings: dict[str, Any]) -> None:
        super().__init__()
        # Here and not in the thread: packages that import each other in circles fail, now and then, when two threads
        # import at once. What fails here fails again in the thread, which tells it.
        with suppress(Exception):
            import_module(self.module)
        self.run, self.settings, self.timeout = run, settings, float(settings["timeout"])
        self.problem, self._notes = "", list[str]()
        self._todo: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=self.name)
        self._thread.start()

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """What the others send with, until all is sent."""
        raise NotImplementedError

    def send_row(self, to: Any, row: dict[str, float], epoch: int) -> None:
        raise NotImplementedError

    def send_image(self, to: Any, key: str, image: str) -> None:
        raise NotImplementedError

    def send_summary(self, to: Any, summary: dict[str, Any], last_epoch: int) -> None:
        raise NotImplementedError

    def _work(self) -> None:
        unsent: dict[Callable[[Any], None], str] = {}  # and why
        try:
            with self.connected() as to:
                for call in iter(self._todo.get, None):
                    unsent = {one: error for one in (*unsent, call) if (error := _error(one, to))}
        except BaseException as error:  # nothing there may stop the run
            self.problem = f"{type(error).__name__}: {error}"
        self.problem = next(iter(unsent.values()), self.problem)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row, epoch = dict(metrics), int(step or 0)
        self._todo.put(lambda to: self.send_row(to, row, epoch))

    def log_image(self, key: str, images: list[str]) -> None:
        for image in images:
            self._todo.put(lambda to, image=image: self.send_image(to, key, image))  # type: ignore[misc]

    def close(self, summary: dict[str, Any], last_epoch: int) -> list[str]:
        """Ends the mirror with the run's summary; returns what a person should know of it."""
        global hung
        self._todo.put(lambda to: self.send_summary(to, summary, last_epoch))
        self._todo.put(None)
        self._thread.join(self.timeout)
        if self._thread.is_alive():
            hung = True
            self.problem = f"no answer within {self.timeout:.0f} s"
        problem = f"{self.title}: {self.problem}; the run folder is complete without it"
        return [*([problem] if self.problem else []), *self._notes]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration was given at the start."""

    @property
    def name(self) -> str:
        return self.title

    @property
    def version(self) -> str:
        return ""


def _error(call: Callable[[Any], None], to: Any) -> str:
    """What the call raises; empty if nothing."""
    try:
        call(to)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class WandbMirror(Mirror):
    """Weights & Biases, whose own files go below the run folder.

    A mode of None is WANDB_MODE, else online with an account, else offline.
    """

    title = "W&B"
    module = "wandb"

    @contextmanager
    def connected(self) -> Iterator[Any]:
        import wandb

        about: dict[str, Any] = {key: self.settings[key] for key in ("project", "entity", "group")} | {
            "tags": list(self.run.tags.values()), "config": self.run.config, "dir": str(self.run.folder),
            "name": self.run.run_id, "id": self._id(), "resume": "allow",
        }  # fmt: skip

        def start(mode: Any) -> Any:
            quiet = wandb.Settings(console="off", silent=True, init_timeout=self.timeout / 3, reinit="create_new")
            return wandb.init(**about, mode=mode, settings=quiet)

        mode = self.settings["mode"] or os.environ.get("WANDB_MODE")
        try:
            run = start(mode or ("online" if wandb.login(prompt=False) else "offline"))
        except Exception as error:
            if mode not in (None, "online"):
                raise
            self.problem = f"not online ({error})"
            about["id"] += "-offline"  # W&B's service still holds the first id
            run = start("offline")
        if run.offline and not run.disabled:
            self._notes.append(f"W&B offline; to send it: wandb sync {Path(run.dir).parent}")
        try:
            yield run
        finally:
            run.finish()

    def _id(self) -> str:
        """One id for a run and its resumptions; a repeated run gets a new one, as its folder was cleared."""
        path = self.run.folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{self.run.run_id}-{os.urandom(3).hex()}")
        return path.read_text()

    def send_row(self, to: Any, row: dict[str, float], epoch: int) -> None:
        to.log(row, step=epoch)

    def send_image(self, to: Any, key: str, image: str) -> None:
        import wandb

        to.log({f"{FIGURES}/{key}": [wandb.Image(image)]})

    def send_summary(self, to: Any, summary: dict[str, Any], last_epoch: int) -> None:
        to.summary.update(summary)


class MlflowMirror(Mirror):
    """MLflow: a tracking server, or a SQLite file for all runs of a runs_dir.

    A tracking_uri of None is MLFLOW_TRACKING_URI, else the file. MLflow keeps an infinity as 1.8e308, so it is sent
    as NaN, which MLflow keeps.
    """

    title = "MLflow"
    module = "mlflow.tracking"
    _known: tuple[str, int] | None = None  # MLflow's id of the run, and the last epoch that it had

    def __init__(self, run: RunFacts, settings: dict[str, Any]) -> None:
        check_installed("mlflow", "mlflow")
        # MLflow would wait for two minutes, seven times, and send its makers what is done with it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(max(1, int(settings["timeout"] / 3))))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would print each retry
        super().__init__(run, settings)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        from mlflow.tracking import MlflowClient

        runs_dir = self.run.folder.absolute().parent
        uri = self.settings["tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI")
        self._artifacts = None if uri else (runs_dir / "mlflow").as_uri()
        yield MlflowClient(uri or f"sqlite:///{runs_dir}/mlflow.db")

    def _id(self, to: Any) -> str:
        """MLflow's id of the run, which is created first; a resumed run keeps the one in its folder."""
        if self._known is None:
            path = self.run.folder / "mlflow"
            found = self._found(to, path.read_text()) if path.exists() else None
            self._known = found or (self._created(to), 0)
            path.write_text(self._known[0])
        return self._known[0]

    def _found(self, to: Any, run_id: str) -> tuple[str, int] | None:
        from mlflow.exceptions import MlflowException

        try:
            to.update_run(run_id, status="RUNNING")
            return run_id, max((one.step for one in to.get_metric_history(run_id, "seconds")), default=0)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it does not, of another server
                raise
            return None

    def _created(self, to: Any) -> str:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        name, group = self.settings["project"], self.settings["group"]
        try:
            experiment = to.create_experiment(name, artifact_location=self._artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = to.get_experiment_by_name(name).experiment_id
        tags = self.run.tags | ({"group": group} if group else {})
        run_id: str = to.create_run(experiment, run_name=self.run.run_id, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in flat(self.run.config).items()]
        for first in range(0, len(params), 100):  # it takes no more at once
            to.log_batch(run_id, params=params[first : first + 100])
        return run_id

    def send_row(self, to: Any, row: dict[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        run_id, now = self._id(to), int(time.time() * 1000)
        if self._known and epoch > self._known[1]:
            values = {key: value if math.isfinite(value) else math.nan for key, value in row.items()}
            to.log_batch(run_id, [Metric(key, value, now, epoch) for key, value in values.items()])

    def send_image(self, to: Any, key: str, image: str) -> None:
        to.log_artifact(self._id(to), image, FIGURES)

    def send_summary(self, to: Any, summary: dict[str, Any], last_epoch: int) -> None:
        from mlflow.entities import Metric, RunTag

        run_id, now = self._id(to), int(time.time() * 1000)
        numbers = {key: value for key, value in summary.items() if key.startswith(("best/", "baseline/"))}
        metrics = [Metric(key, value, now, last_epoch) for key, value in numbers.items()]
        to.log_batch(run_id, metrics, tags=[RunTag("status", summary["status"])])
        ended = {"failed": "FAILED", "interrupted": "KILLED"}
        to.set_terminated(run_id, ended.get(summary["status"], "FINISHED"))
        to.log_dict(run_id, json.loads(summary["result"]), "result.json")
