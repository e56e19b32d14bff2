"""Two processes do one run: the global batch is shared out, metrics are whole, one result is written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Compose, Run, choices

from tmbench.config import settle
from tmbench.errors import ConfigError
from tmbench.result import Result
from tmbench.run import launched, run

PAIR = ["trainer=ddp_cpu", "devices=2"]


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[] if t == "tc" else pytest.mark.slow) for t in choices("task")]
)
def test_two_processes_train_every_task_into_one_result(task: str, composed: Compose, tmp_path: Path) -> None:
    """An odd batch, so that the ranks' shares differ."""
    words = [f"task={task}", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", "batch_size=5", f"runs_dir={tmp_path}"]
    alone, _, _ = run(composed(*words))
    both, folder, _ = run(composed(*words, *PAIR))
    assert both.status == "completed"
    assert both.run_id != alone.run_id
    assert both.steps == alone.steps
    assert both.hardware.startswith("2 x ")
    assert len(list(tmp_path.glob("*/result.json"))) == 2
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert len((folder / "curves.csv").read_text().splitlines()) == 3
    # Without batch norm the two are one computation; with it, each rank normalises its own share.
    close = {"rel": 1e-4, "abs": 1e-3} if task == "tc" else {"rel": 0.5, "abs": 0.3}
    for key, value in alone.metrics["last"].items():
        assert both.metrics["last"][key] == pytest.approx(value, **close)


@pytest.mark.slow
def test_line_search_decides_alike_on_both_ranks(composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=lbfgs", "lr=0.5", "batch_size=321", "epochs=3", f"runs_dir={tmp_path}"]
    alone, _, _ = run(composed(*words))
    both, _, _ = run(composed(*words, *PAIR))
    assert both.metrics["last"]["train/loss"] == pytest.approx(alone.metrics["last"]["train/loss"], rel=1e-3)


@pytest.mark.slow
def test_optimizer_that_differentiates_itself_refuses_what_it_cannot_do(do: Run) -> None:
    with pytest.raises(ConfigError, match="clip_norm: optimizer=newton_cg takes its gradient itself"):
        do("task=tc", "optimizer=newton_cg", "clip_norm=1")
    with pytest.raises(RuntimeError, match="devices: optimizer=newton_cg runs on one"):
        do("task=tc", "optimizer=newton_cg", *PAIR)


@pytest.mark.slow
def test_interrupted_pair_of_processes_resumes(tmp_path: Path) -> None:
    words = ["task=tc", "epochs=30", "batch_size=8", "switch_epoch=1", *PAIR, f"runs_dir={tmp_path}"]
    command = [sys.executable, "-m", "tmbench", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/curves.csv")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    folder = next(tmp_path.glob("tc-*"))
    stopped = Result.load(folder)
    assert stopped is not None
    assert stopped.status == "interrupted"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    whole = Result.load(folder)
    assert whole is not None
    assert (whole.status, whole.epochs["trained"]) == ("completed", 30)
    assert "went on from its last checkpoint" in done.stdout


def ranks(of: int) -> list[int]:
    """The processes that train, of the run that process `of` started, by rank."""
    children = (Path("/proc") / str(of) / "task" / str(of) / "children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks under /proc")
@pytest.mark.parametrize("place", [0, -1])
def test_a_killed_rank_ends_the_run_which_the_same_command_resumes(place: int, tmp_path: Path) -> None:
    words = ["task=tc", "epochs=30", "batch_size=8", "switch_epoch=1", *PAIR, f"runs_dir={tmp_path}"]
    command = [sys.executable, "-m", "tmbench", *words]
    trained = 1
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + 120
        while max([len(path.read_text().splitlines()) for path in tmp_path.glob("*/curves.csv")], default=0) <= trained:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(ranks(process.pid)[place], signal.SIGKILL)
        killed = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert time.monotonic() - killed < 60
        assert process.returncode == 1, output
        assert "SIGKILL" in output
        folder = next(tmp_path.glob("tc-*"))
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
        trained = len((folder / "curves.csv").read_text().splitlines())
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    whole = Result.load(folder)
    assert whole is not None
    assert (whole.status, whole.epochs["trained"]) == ("completed", 30)
    assert "went on from its last checkpoint" in done.stdout


@pytest.mark.slow
def test_divergence_on_two_processes_is_one_result(do: Run) -> None:
    result, _ = do("task=tc", "optimizer=sgd", "lr=1e38", "epochs=2", *PAIR)
    assert result.status == "diverged"


def test_a_failing_rank_fails_the_run_with_its_message(do: Run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"momentum must be in \[0, 1\)"):
        do("task=tc", "optimizer=tmsgd", "optimizer.momentum=1.5", "epochs=1", *PAIR)
    failed = Result.load(next(tmp_path.glob("tc-*")))
    assert failed is not None
    assert failed.status == "failed"


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (PAIR, {}, False),
        (PAIR, {"TORCHELASTIC_RUN_ID": "x"}, True),
        (PAIR, {"SLURM_NTASKS": "2"}, True),
        (PAIR, {"SLURM_NTASKS": "4"}, False),
        ([], {"SLURM_NTASKS": "4"}, False),  # a run that is to be alone, inside a larger job
    ],
)
def test_a_process_knows_whether_it_was_launched_as_a_rank(
    words: list[str], environment: dict[str, str], expected: bool, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched(settle(composed("task=tc", *words))) == expected
