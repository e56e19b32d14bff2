"""A disk that is full, read-only or gone: one line, exit status 1, and nothing lost. What a kill leaves is removed."""

import errno
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same, tmbench, weights

import tmbench as package
from tmbench.__main__ import main
from tmbench.files import locked
from tmbench.training.record import Recorder

RUN = ("task=tc", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", "batch_size=80")
FULL = "No space left on device; free some space and give the same command again"


@contextmanager
def full_after(count: int) -> Iterator[None]:
    """The disk is full after so many files have reached it."""
    fsync, calls = os.fsync, itertools.count()

    def no_space(file: int) -> None:
        if next(calls) >= count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody may write under a folder, not even root."""
    paths = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in paths:
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            for path in [p for p in folder.parents if p.name.startswith(("pytest-", "popen-", "test_"))]:
                path.chmod(0o755)  # else for root alone
            os.seteuid(65534)
            if not os.access(package.__file__, os.R_OK, effective_ids=True):
                pytest.skip("only root may read this checkout")
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a command that an error has ended."""
    assert (done.returncode, "Traceback" in done.stderr + done.stdout) == (1, False), done.stderr
    return done.stderr.rstrip().splitlines()[-1]


def test_a_run_on_a_full_disk_says_so_and_goes_on_where_there_is_space(tmp_path: Path) -> None:
    assert tmbench(*RUN, "runs_dir=undisturbed", cwd=tmp_path).returncode == 0
    for count in itertools.count(step=18):
        runs = tmp_path / f"runs-{count}"
        with full_after(count):
            done = tmbench(*RUN, f"runs_dir={runs}")
        if done.returncode == 0:
            assert count > 15
            return
        assert (line := told(done)).startswith(str(runs)), line
        assert line.endswith(FULL)
        assert not [*runs.rglob(".?*-????????"), *runs.rglob(".writing.ckpt")], count
        assert tmbench(*RUN, f"runs_dir={runs}").returncode == 0
        (folder,) = runs.glob("tc-*")
        assert_same(weights(folder), weights(tmp_path / "undisturbed" / folder.name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert tmbench(*RUN, "runs_dir=runs", cwd=folder).returncode == 0
    return folder / "runs"


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A runs_dir with one run."""
    return shutil.copytree(made, tmp_path / "runs")


@pytest.mark.parametrize(
    "words",
    [
        ["-m", *RUN, "hydra.sweep.dir=sweep"], ["tune", *RUN[:2], "epochs=2", "trials=1", "seeds=1"],
        ["report", "out=report"], ["numerics", "start", "out=numbers"],
        ["certify", "optimizer=sgd", "checks=repeats", "out=certificate"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_each_verb_says_that_the_disk_is_full(words: list[str], runs: Path, tmp_path: Path) -> None:
    with full_after(0):
        assert told(tmbench(*words, cwd=tmp_path)).endswith(FULL)
    assert not list(tmp_path.rglob(".?*-????????"))


@pytest.mark.parametrize(
    "words",
    [
        ["-m", *RUN, "hydra.sweep.dir=there/x"], ["report", "out=there/x"],
        ["numerics", "order", "out=there/x"], ["certify", "optimizer=sgd", "out=there/x"],
        ["runs", "figures", "tc", "runs_dir=runs", "out=there/x"],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_named_with_its_setting(words: list[str], runs: Path, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    setting = next(word for word in words if "there/x" in word).partition("=")[0]
    line = told(tmbench(*words, cwd=tmp_path))
    assert line == f"{setting}: expected a folder to write to, got there/x (Not a directory)"


def test_a_read_only_folder_shows_its_runs_and_tells_what_cannot_be(runs: Path, tmp_path: Path) -> None:
    (folder,) = runs.glob("tc-*")
    (folder / ".curves.csv-abcdefgh").touch()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep").chmod(0o777)
    with read_only(runs):
        for words in (RUN, [str(folder)], ["-m", *RUN, f"hydra.sweep.dir={tmp_path}/sweep"]):
            done = tmbench(*words, *([f"runs_dir={runs}"] if words != [str(folder)] else []))
            assert (done.returncode, "completed" in done.stdout) == (0, True), done.stderr
        for words in (["seed=1"], ["force=true"], ["task=ic"]):
            assert told(tmbench(*RUN, *words, f"runs_dir={runs}")).endswith(": Permission denied")
        done = tmbench("runs", "gc", f"runs_dir={runs}")
        assert (done.returncode, "freed 0 B" in done.stdout) == (1, True), done
        assert f"{folder}/.curves.csv-abcdefgh: Permission denied; not removed" in done.stderr
        assert ".trunks" in done.stderr
        assert "removed 0 runs" in tmbench("runs", "remove", "tc", "yes=true", f"runs_dir={runs}").stdout
    assert tmbench("runs", "gc", f"runs_dir={runs}").returncode == 0


@pytest.mark.parametrize("gone", ["runs", "runs/.trunks"])
def test_a_folder_that_vanishes_from_a_run(gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a run needs the states that it shares."""
    save = Recorder.on_train_epoch_end

    def vanish(record: Recorder, trainer: Any, module: Any) -> None:
        save(record, trainer, module)
        shutil.rmtree(tmp_path / gone, ignore_errors=True)

    monkeypatch.setattr(Recorder, "on_train_epoch_end", vanish)
    done = tmbench(*RUN, "runs_dir=runs", cwd=tmp_path)
    if gone == "runs":
        assert told(done).endswith(": No such file or directory")
    else:
        assert (done.returncode, "completed" in done.stdout) == (0, True), done.stderr


def test_a_working_directory_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tmbench", "runs"])
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr().err == "the folder that tmbench was called in is gone; change to one that is there\n"


def test_a_sweep_whose_folder_vanishes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "sweep/job-00000.json")

    monkeypatch.setattr("tmbench.sweeps.job._save", gone)
    line = told(tmbench("-m", *RUN, "hydra.sweep.dir=sweep", cwd=tmp_path))
    assert line == "sweep/job-00000.json: No such file or directory"


def test_what_a_kill_left_goes_with_the_next_holder_of_the_lock_and_with_gc(runs: Path) -> None:
    (folder,) = runs.glob("tc-*")
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine, other = (f".writing-{socket.gethostname()}-{pid}-abcdefgh" for pid in (os.getpid(), dead.pid))
    names = {  # of folders, in which a file is
        folder: [".curves.csv-abcdefgh", "checkpoints/.writing.ckpt", ".trunk/00001"],
        runs: [f"{place}/{other}" for place in (".tiny", ".prepared", ".trunks/x")] + [".tune/x/.trials.json-abcdefgh"],
    }

    def leave(*roots: Path) -> list[Path]:
        left = [root / name for root in roots for name in names[root]]
        for path in left:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent in (folder, folder / "checkpoints"):
                path.write_bytes(b"x" * 8192)
            else:
                path.mkdir(exist_ok=True)
                (path / "file").write_bytes(b"x" * 8192)
        return left

    left = leave(folder)
    assert tmbench(*RUN, f"runs_dir={runs}").returncode == 0
    assert not [path for path in left if path.exists()]
    left = leave(folder, runs)
    (living := runs / ".prepared" / mine).mkdir()
    with locked(folder):  # a process is at work
        assert tmbench("runs", "gc", "limit=1", f"runs_dir={runs}").returncode == 0
    assert [path.exists() for path in left] == [True] * 3 + [False] * 4
    done = tmbench("runs", "gc", "limit=1", f"runs_dir={runs}")
    assert (done.returncode, "freed 24.6 kB;" in done.stdout) == (0, True), done.stdout
    assert not [path for path in left if path.exists()]
    assert living.exists()


def test_gc_claims_no_bytes_that_a_run_still_has(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert tmbench(*RUN, f"runs_dir={runs}").returncode == 0
    (state,) = runs.glob(".trunks/*/00001")
    (folder,) = runs.glob("tc-*")
    (state / "state.ckpt").unlink()
    os.link(folder / "checkpoints" / "last.ckpt", state / "state.ckpt")
    own = (state / "about.json").stat().st_size
    assert f"freed {own} B;" in tmbench("runs", "gc", f"runs_dir={runs}").stdout
