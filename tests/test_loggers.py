"""Each logger holds what the run folder holds, by its own project's reader, and can break without breaking a run."""

import csv
import importlib
import math
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, Run
from helpers import read_back
from helpers import tmbench as call
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tmbench.training.loggers
import tmbench.training.record
from tmbench.config.settle import loggers, settle
from tmbench.result import Result
from tmbench.run import run
from tmbench.training.loggers import Mirror, MlflowMirror, RunFacts

ALL = "logger=[wandb,tensorboard,mlflow,csv]"
# SQLAlchemy to MLflow, which is to blame; a thread that only warns elsewhere would end here.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
Curve = list[float]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(tmbench.training.loggers, "hung", False)


@pytest.fixture
def with_nan_and_inf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a run have a curve of NaN, inf, 1."""
    losses = tmbench.training.record.mean_losses

    def and_odd_ones(*args: Any) -> dict[str, float]:
        found = losses(*args)
        return found | {"odd": next(odd)}

    odd = iter([math.nan, math.inf, 1.0])
    monkeypatch.setattr(tmbench.training.record, "mean_losses", and_odd_ones)


def run_that_is_resumed(cfg: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Result, Path]:
    """Three epochs, before whose figures the run fails, and their figures by the same command."""
    from tmbench.tasks.tc.task import TC

    with monkeypatch.context() as patch:
        patch.setattr(TC, "pictures", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(cfg.copy())
    result, folder, how = run(cfg)
    assert how == "resumed"
    return result, folder


def mlflow_client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def check_mlflow(client: Any, result: Result, odd: Curve) -> None:
    """MLflow has one run with the configuration, each epoch once, the figures and the summary."""
    (found,) = client.search_runs([client.get_experiment_by_name("paper").experiment_id])
    assert (found.info.run_name, found.info.status) == (result.run_id, "FINISHED")
    tags = {"task": "tc", "optimizer": "tmsgd", "data": "tiny", "status": "completed"}
    assert found.data.tags.items() >= tags.items()
    assert found.data.params["task.name"] == "tc"
    assert found.data.params["epochs"] == "3"
    history = client.get_metric_history(found.info.run_id, "odd")
    assert [one.step for one in history] == [1, 2, 3]
    assert [one.value for one in history] == pytest.approx(odd, nan_ok=True)
    assert found.data.metrics[result.headline] == pytest.approx(result.metrics["last"][result.headline])
    assert found.data.metrics[f"best/{result.headline}"] == pytest.approx(result.metrics["best"][result.headline])
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"figures", "result.json"}


@pytest.mark.slow
@pytest.mark.draws
def test_resumed_run_is_whole_in_each_logger_and_has_each_epoch_once(
    composed: Compose, tmp_path: Path, with_nan_and_inf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed("task=tc", "epochs=3", "batch_size=80", ALL, "logger.project=paper", f"runs_dir={tmp_path}")
    result, folder = run_that_is_resumed(cfg, monkeypatch)
    name, last = result.headline, result.metrics["last"][result.headline]

    told = read_back(folder)
    rows = [row for row in told["history"] if "odd" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [float(row["odd"]) for row in rows] == pytest.approx([math.nan, math.inf, 1], nan_ok=True)
    assert told["config"]["task"]["name"] == "tc"
    assert told["summary"][name] == pytest.approx(last)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    odd = board.Scalars("odd")
    assert [event.step for event in odd] == [1, 2, 3]
    assert [event.value for event in odd] == pytest.approx([math.nan, math.inf, 1], nan_ok=True)
    assert board.Scalars(name)[-1].value == pytest.approx(last)
    assert board.Scalars(f"best/{name}")[-1].value == pytest.approx(result.metrics["best"][name])
    drawn = {f"figures/{path.stem}" for path in (folder / "figures").glob("*.png")}
    assert set(board.Tags()["images"]) == drawn
    text = {
        tag: board.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("run", "configuration")
    }
    assert result.run_id in text["run"]
    assert "| task.name | tc |" in text["configuration"]

    check_mlflow(mlflow_client(f"sqlite:///{tmp_path}/mlflow.db"), result, [math.nan, math.nan, 1])

    with (folder / "csv" / "metrics.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [row["odd"] for row in told] == ["nan", "inf", "1.0"]
    assert (folder / "csv" / "hparams.yaml").exists()
    with (folder / "curves.csv").open() as file:
        own = list(csv.DictReader(file))
    assert [row["odd"] for row in own] == ["nan", "inf", "1.0"]
    assert [(row["epoch"], row["step"]) for row in told] == [(row["epoch"], row["step"]) for row in own]


@pytest.mark.parametrize("answers", [False, True])
def test_mlflow_server_that_is_down_or_silent_costs_its_timeout_and_nothing_else(answers: bool, do: Run) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:  # takes the connection, and says nothing
            server.listen()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = ("task=tc", "epochs=1", "batch_size=80", "logger=mlflow", f"logger.tracking_uri={uri}")
        began = time.monotonic()
        result, folder = do(*words, "logger.timeout=1")
    assert time.monotonic() - began < 30
    assert result.status == "completed"
    assert [note for note in result.notes if note.startswith("MLflow: ") and "the run folder is complete" in note]
    assert (folder / "curves.csv").exists()


@pytest.mark.parametrize("broken", [False, True])
def test_packages_are_imported_before_the_threads_start_and_a_broken_one_is_told(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlflow-skinny 3.17.2, imported while W&B was in its own thread, once failed as "partially initialized"."""
    name = f"imported_by_{'a_broken' if broken else 'a'}_mirror"
    body = "import threading\nwhere = threading.current_thread()\n" + ("import no_such_package\n" if broken else "")
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    class Other(Mirror):
        title, module = "Other", name

        @contextmanager
        def connected(self) -> Iterator[Any]:
            yield importlib.import_module(name)

        def send_summary(self, to: Any, summary: dict[str, Any], last_epoch: int) -> None:
            seen.append(to.where)

    notes = Other(RunFacts(tmp_path, {}, {}), {"timeout": 20}).close({}, last_epoch=0)
    assert seen == ([] if broken else [threading.current_thread()])
    told = "Other: ModuleNotFoundError: No module named 'no_such_package'; the run folder is complete without it"
    assert notes == ([told] if broken else [])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_logger_whose_package_is_missing_names_the_extra(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tmbench.training.loggers, "find_spec", lambda package: None)
    done = call("task=tc", "epochs=1", "batch_size=80", f"logger={name}", f"runs_dir={tmp_path}")
    assert done.returncode == 1
    assert f"logger={name}: needs the package {name}; pip install 'tmbench[{name}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_of_several_loggers_and_of_an_older_run(composed: Compose) -> None:
    cfg = settle(composed("logger=[mlflow,wandb]", "logger.timeout=7"))
    assert loggers(OmegaConf.to_container(cfg.logger)) == ["mlflow", "wandb"]  # type: ignore[arg-type]
    assert (cfg.logger.name, cfg.logger.timeout) == ("mlflow-wandb", 7)
    assert settle(cfg) == cfg
    older = settle(composed())
    older.logger = {"name": "csv", "_target_": "tmbench.training.loggers.csv_logger", "_partial_": True}
    assert settle(older).logger == settle(composed("logger=csv")).logger


@pytest.fixture(scope="module")
def mlflow_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole MLflow: the program TMBENCH_MLFLOW, else installed for the test into a folder over this environment."""
    if given := os.environ.get("TMBENCH_MLFLOW"):
        return Path(given)
    folder = tmp_path_factory.mktemp("mlflow")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "below.pth").write_text(sysconfig.get_path("purelib"))  # most of what MLflow needs is there
    install = [folder / "bin" / "pip", "install", "-q", f"mlflow=={version('mlflow-skinny')}"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install the whole mlflow: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "mlflow"


@pytest.fixture
def mlflow_server(mlflow_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Its address, and functions that start and kill it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        tmp_path / "artifacts",
    ]
    command = [mlflow_program, "server", "--port", str(port), "--workers", "1", *store]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (tmp_path / "server.log").open("ab") as log:
            running.append(subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=log, stderr=log))
        deadline = time.monotonic() + 90
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)

    def kill() -> None:
        while running:
            process = running.pop()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    start()
    yield f"http://127.0.0.1:{port}", start, kill
    kill()


@pytest.mark.slow
@pytest.mark.draws
def test_mlflow_server_that_dies_and_returns_has_the_whole_run(
    composed: Compose, tmp_path: Path, mlflow_server: Any, with_nan_and_inf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, start, kill = mlflow_server
    log = MlflowMirror.log_metrics

    def log_metrics(self: MlflowMirror, row: dict[str, float], step: int | None = None) -> None:
        if step == 2:
            kill()
        log(self, row, step)
        if step == 3:
            start()

    monkeypatch.setattr(MlflowMirror, "log_metrics", log_metrics)
    words = ["task=tc", "epochs=3", "batch_size=80", "logger=mlflow", "logger.project=paper"]
    result, _, _ = run(composed(*words, f"logger.tracking_uri={uri}", f"runs_dir={tmp_path}"))
    assert result.notes == []
    check_mlflow(mlflow_client(uri), result, [math.nan, math.nan, 1])
