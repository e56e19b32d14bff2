"""Signals that ask a process to stop: whenever they come, nothing is lost, and the same command completes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from helpers import results, tmbench

from tmbench.training import train
from tmbench.training.record import Recorder

TINY = ["task=tc", "epochs=2", "batch_size=40", "trunk=off"]
STOPS = [signal.SIGINT, signal.SIGTERM]
stops = pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)


def statuses(folder: Path) -> list[str]:
    return [result.status for result, _ in results(folder).values()]


@pytest.fixture
def signal_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """signal_after(owner, name, number) lets the first call of a function be followed by a signal to this process."""

    def signal_after(owner: Any, name: str, number: int, swallowed: bool = False) -> None:
        original, left = getattr(owner, name), [number]

        def signalling(*args: Any, **more: Any) -> Any:
            answer = original(*args, **more)
            with suppress(KeyboardInterrupt if swallowed else ()):
                while left:
                    os.kill(os.getpid(), left.pop())
            return answer

        monkeypatch.setattr(owner, name, signalling)

    return signal_after


@pytest.mark.parametrize(("number", "swallowed"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_in_set_up_interrupts(
    number: int, swallowed: bool, signal_after: Callable[..., None], tmp_path: Path
) -> None:
    """Also if a library swallows what the signal raises, as a destructor does."""
    command = [*TINY, "optimizer=sgd", f"runs_dir={tmp_path}"]
    signal_after(train, "task_of", number, swallowed)
    ended = tmbench(*command)
    (folder,) = tmp_path.glob("tc-*")
    said = f"interrupted: 0 of 2 epochs are saved in {folder}; the same command continues\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", said)
    assert tmbench(*command).returncode == 0
    assert statuses(tmp_path) == ["completed"]


@pytest.mark.parametrize(
    ("number", "place"),
    [(signal.SIGINT, "on_fit_start"), (signal.SIGTERM, "on_fit_start"), (signal.SIGTERM, "on_train_start")],
)
def test_a_signal_when_training_starts_interrupts(
    number: int, place: str, signal_after: Callable[..., None], tmp_path: Path
) -> None:
    command = [*TINY, "optimizer=sgd", f"runs_dir={tmp_path}"]
    signal_after(Recorder, place, number)
    ended = tmbench(*command)
    assert (ended.returncode, statuses(tmp_path)) == (130, ["interrupted"])
    assert "interrupted; 0 of 2 epochs are saved, and the same command continues\n" in ended.stdout
    assert tmbench(*command).returncode == 0
    assert statuses(tmp_path) == ["completed"]


def test_a_signal_after_the_last_epoch_of_a_job_ends_the_sweep(
    signal_after: Callable[..., None], tmp_path: Path
) -> None:
    command = ["-m", *TINY, "optimizer=sgd,adam", f"runs_dir={tmp_path}"]
    signal_after(Recorder, "on_train_end", signal.SIGINT)
    ended = tmbench(*command)
    assert (ended.returncode, statuses(tmp_path)) == (130, ["completed"])
    assert ended.stderr.endswith(
        "interrupted: 1 of 2 jobs are done, and each whole epoch of the others is saved; the same command continues\n"
    )
    assert tmbench(*command).returncode == 0
    assert statuses(tmp_path) == ["completed"] * 2


def test_a_signal_after_the_last_epoch_of_a_trial_ends_the_study(
    signal_after: Callable[..., None], tmp_path: Path
) -> None:
    command = ["tune", *TINY, "optimizer=sgd", "trials=2", "seeds=1", "name=study", f"runs_dir={tmp_path}"]
    signal_after(Recorder, "on_train_end", signal.SIGTERM)
    ended = tmbench(*command)
    assert (ended.returncode, statuses(tmp_path)) == (130, ["completed"])
    where = tmp_path / ".tune" / "study"
    said = f"interrupted: 1 of 2 trials are done, and noted in {where}; the same command continues\n"
    assert ended.stderr.endswith(said)


def test_a_run_that_a_signal_finds_complete_is_complete(signal_after: Callable[..., None], tmp_path: Path) -> None:
    signal_after(Recorder, "on_train_end", signal.SIGTERM)
    ended = tmbench(*TINY, "optimizer=sgd", f"runs_dir={tmp_path}")
    assert (ended.returncode, statuses(tmp_path)) == (0, ["completed"])


def asks_for_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM; True if it has ended."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text()
    except OSError:
        return True
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def program(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tmbench", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


Start = Callable[..., "subprocess.Popen[str] | Forked"]


def signalled(
    words: list[str], number: int | None, delay: float = 0.0, start: Start = program
) -> tuple[int | None, str, float]:
    """Status, output and seconds of `tmbench WORDS` that gets a signal so long after its first import."""
    process = start(*words)
    while not asks_for_signals(process.pid):
        time.sleep(0.001)
    begun = time.monotonic()
    if number:
        time.sleep(delay)
        process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output, time.monotonic() - begun


linux = pytest.mark.skipif(sys.platform != "linux", reason="sees under /proc when a process is ours")


@linux
@stops
def test_a_signal_at_the_first_import_interrupts(number: int) -> None:
    status, output, _ = signalled(["task=tc"], number)
    assert (status, output) == (130, "interrupted; the same command continues\n")


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    ("words", "runs", "count", "start"),
    [
        ([*TINY, "optimizer=tmsgd"], 1, 6, program),
        (["-m", *TINY, "optimizer=sgd,tmsgd", "seed=0,1", "trunk=auto"], 4, 4, Forked),
        (["-m", *TINY, "optimizer=sgd,adam", "launcher=local", "launcher.n_jobs=2"], 2, 2, program),
        ([*TINY, "optimizer=sgd", "trainer=ddp_cpu", "devices=2"], 1, 2, program),
        (["tune", *TINY, "optimizer=sgd", "trials=2", "seeds=1", "name=study"], 3, 2, Forked),
    ],
    ids=["run", "sweep", "local", "ranks", "tune"],
)
def test_signals_at_any_moment_end_as_interrupted_and_the_same_command_completes(
    words: list[str], runs: int, count: int, start: Start, tmp_path: Path
) -> None:
    """One run also while it imports; others, whose imports are the same, are forked where these are done."""
    status, output, seconds = signalled([*words, f"runs_dir={tmp_path / 'whole'}"], None, start=start)
    assert status == 0, output
    draw = random.Random(count)
    folders = [tmp_path / str(i) for i in range(count)]
    commands = [[*words, f"runs_dir={folder}"] for folder in folders]
    moments = [(draw.choice(STOPS), draw.uniform(0, seconds)) for _ in commands]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda command, moment: signalled(command, *moment, start=start), commands, moments))
    for folder, command, moment, (status, output, _) in zip(folders, commands, moments, ends, strict=True):
        said = f"{moment}: {status} {statuses(folder)}\n{output}"
        assert "Traceback" not in output, said
        if status == 0:  # it came too late
            assert statuses(folder) == ["completed"] * runs, said
        else:
            assert status == 130, said
            assert set(statuses(folder)) <= {"completed", "interrupted"}, said
            assert output.count("the same command continues") == 1, said
        again = tmbench(*command)
        assert again.returncode == 0, said + again.stdout + again.stderr
        assert statuses(folder) == ["completed"] * runs, said


@pytest.mark.parametrize("during", ["import slow_module", "raise SystemExit(stop_twice())"])
def test_the_cursor_is_shown_again_whatever_ends_a_table(during: str, tmp_path: Path) -> None:
    """A signal during an import ends the process at once; a second one may come while the table ends for the first."""
    (tmp_path / "slow_module.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    code = f"""
import os, sys
from tmbench import signals
signals.own()
from rich.console import Console
from tmbench.sweeps.live import JobTable
from tmbench.verbs import guarded, leave

class Interrupted(Console):
    def show_cursor(self, show=True):
        if show:
            os.kill(os.getpid(), 2)
        return super().show_cursor(show)

def stop_twice():
    os.kill(os.getpid(), 2)

def do():
    console = (Console if "import" in {during!r} else Interrupted)(stderr=True, force_terminal=True)
    with JobTable([], set, console):
        {during}

leave(guarded(do))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr.rfind("\x1b[?25h") > done.stderr.rfind("\x1b[?25l") >= 0
    assert done.stderr.endswith("interrupted; the same command continues\n")
