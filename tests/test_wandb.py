"""W&B holds what the run folder holds, and can break without breaking a run."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, choices
from helpers import SHORT, read_back

import tmbench.training.loggers
from tmbench.training.loggers import RunFacts, WandbMirror


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


@pytest.mark.slow
@pytest.mark.draws
@pytest.mark.parametrize("task", choices("task"))
def test_offline_file_of_every_task_holds_config_curves_headline_and_images(task: str, do: Run) -> None:
    words = [f"task={task}", *SHORT.get(task, []), "epochs=2"]
    result, folder = do(*words, "logger=wandb", "logger.group=some-sweep")
    told = read_back(folder)
    assert told["about"].run_group == "some-sweep"
    assert set(told["about"].tags) == {task, result.optimizer, "tiny"}
    assert told["about"].display_name == result.run_id
    assert told["config"]["task"]["name"] == task
    assert told["config"]["epochs"] == 2
    curve = [row for row in told["history"] if "train/loss" in row]
    assert [row["epoch"] for row in curve] == [1, 2]
    assert curve[-1][result.headline] == pytest.approx(result.metrics["last"][result.headline])
    summary = told["summary"]
    assert summary[result.headline] == pytest.approx(result.metrics["last"][result.headline])
    assert summary[f"best/{result.headline}"] == pytest.approx(result.metrics["best"][result.headline])
    assert summary["status"] == "completed"
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {name.split("/")[1] for row in told["history"] for name in row if name.startswith("figures/")} == drawn
    images = [name for name in told["files"] if name.endswith(".png")]
    assert len(images) == len(drawn)
    assert all(list((folder / "wandb").glob(f"offline-run-*/files/{name}")) for name in images)
    assert any(note.startswith("W&B offline; to send it: wandb sync ") for note in result.notes)


@pytest.mark.slow
def test_run_without_wandb_has_the_same_numbers(do: Run) -> None:
    with_it, _ = do("task=tc", "epochs=2", "logger=wandb", "force=true")
    without, _ = do("task=tc", "epochs=2", "force=true")
    assert with_it.run_id == without.run_id
    assert with_it.metrics == without.metrics


@pytest.mark.parametrize("broken", [pytest.param("init", marks=pytest.mark.slow), "log"])
def test_failing_wandb_costs_a_note_and_nothing_else(broken: str, do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the server is on fire")

    monkeypatch.setattr(wandb if broken == "init" else wandb.Run, broken, fail)
    result, folder = do("task=tc", "epochs=1", "batch_size=80", "logger=wandb")
    assert result.status == "completed"
    assert any("the server is on fire" in note for note in result.notes)
    assert (folder / "curves.csv").exists()


@pytest.mark.slow
def test_hanging_wandb_costs_its_timeout_and_nothing_else(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **about: time.sleep(3600))
    monkeypatch.setattr(tmbench.training.loggers, "hung", False)
    started = time.monotonic()
    result, folder = do("task=tc", "epochs=1", "logger=wandb", "logger.timeout=2")
    assert time.monotonic() - started < 60
    assert result.status == "completed"
    assert any("no answer within 2 s" in note for note in result.notes)
    assert (folder / "figures" / "curves.png").exists()
    assert tmbench.training.loggers.hung


@pytest.mark.slow
def test_unreachable_server_falls_back_to_offline(tmp_path: Path) -> None:
    """In a process of its own: W&B reads its environment once."""
    account = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    words = ["task=tc", "epochs=1", "logger=wandb", "logger.timeout=24", f"runs_dir={tmp_path}"]
    command = [sys.executable, "-m", "tmbench", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **account})
    assert done.returncode == 0, done.stderr
    assert "W&B: not online" in done.stdout
    assert "to send it: wandb sync " in done.stdout
    assert read_back(next(tmp_path.glob("tc-*")))["summary"]["status"] == "completed"


@pytest.mark.parametrize(
    ("account", "environment", "setting", "expected"),
    [
        (False, None, None, "offline"), (True, None, None, "online"), (True, "offline", None, "offline"),
        (True, None, "offline", "offline"), (False, "disabled", "online", "online"),
    ],
)  # fmt: skip
def test_mode_is_the_setting_else_the_environment_else_whether_there_is_an_account(
    account: bool, environment: str | None, setting: str | None, expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import wandb

    modes = []

    def init(**about: Any) -> None:
        modes.append(about["mode"])
        raise RuntimeError("seen enough")

    monkeypatch.setattr(wandb, "login", lambda prompt: account)
    monkeypatch.setattr(wandb, "init", init)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    settings = {"project": "project", "entity": None, "group": None, "mode": setting, "timeout": 10}
    WandbMirror(RunFacts(tmp_path, {}, {}), settings).close({}, last_epoch=0)
    assert modes[0] == expected


@pytest.mark.slow
def test_wandb_is_imported_only_when_asked_for() -> None:
    """In a process of its own: this one has it by now."""
    code = "import sys, tmbench.training.train; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
