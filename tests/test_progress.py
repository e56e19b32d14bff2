"""What is told while something takes long, where there is no terminal: plain lines, few of them."""

import sys
import time
from pathlib import Path

import pytest
from helpers import tmbench

from tmbench import progress

Told = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_every_thirty_seconds_with_the_time_left(clock: list[float], capfd: Told) -> None:
    for _ in progress.track(range(100), "selective search", 100):
        clock[0] += 10
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 33
    assert told[0] == "selective search: 4 of 100, 0:30 passed, 12:00 left"
    assert told[-1] == "selective search: 100 of 100, 16:30 passed, 0:00 left"


def test_bytes_are_told_of_what_takes_long_alone(clock: list[float], capfd: Told) -> None:
    with progress.progress("train.csv", 0, 4_000_000_000) as advance:
        advance(1_000_000)
        assert capfd.readouterr().err == ""
        clock[0] += 1800
        advance(1_999_000_000)
    assert capfd.readouterr().err == "train.csv: 2,000 of 4,000 MB, 30:00 passed, 30:00 left\n"


def test_a_run_without_a_terminal_tells_of_its_first_and_last_epoch_in_plain_lines(tmp_path: Path) -> None:
    done = tmbench("task=tc", "epochs=4", "batch_size=40", "switch_epoch=2", f"runs_dir={tmp_path}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert [line[:12].strip() for line in lines] == ["epoch 1/4  l", "epoch 4/4  s"]
    assert "loss " in lines[0] and "test/accuracy " in lines[0]  # noqa: PT018
    assert lines[-1].endswith(" passed, 0:00 left")
    assert done.stderr.isprintable() or "\x1b" not in done.stderr
    assert "━" not in done.stderr
    assert max(map(len, lines)) <= 100


def test_torch_is_announced_before_it_is_imported_and_not_after(monkeypatch: pytest.MonkeyPatch, capfd: Told) -> None:
    progress.loading_torch()
    assert capfd.readouterr().err == ""
    monkeypatch.delitem(sys.modules, "torch")
    progress.loading_torch()
    assert capfd.readouterr().err == "loading torch ...\n"
