"""What a run reads back: whole after a kill at any moment, and damage to it is noticed and named."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_optimizer
import torch
from conftest import Compose
from helpers import assert_same, curves, tmbench, weights
from matplotlib.figure import Figure

from tmbench import checkpoint
from tmbench.errors import DataError, RunError
from tmbench.result import Result, epochs_done
from tmbench.run import run
from tmbench.runs import Run as OpenRun
from tmbench.runs import figures
from tmbench.trunks import Trunk

WORDS = ["task=tc", "optimizer=tmsgd", "epochs=4", "switch_epoch=2", "batch_size=80", "lr=10"]  # best after 2 epochs


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: None)  # half of the time of such small runs


@pytest.fixture(scope="module")
def made(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, beside the shared states that it published."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *args, **kwargs: None)
        result, folder, _ = run(composed(*WORDS, f"runs_dir={tmp_path_factory.mktemp('made')}"))
    assert result.metrics["best"]["epoch"] == 2
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    shutil.copytree(made.parent, tmp_path / "runs")
    return tmp_path / "runs" / made.name


def ask(composed: Compose, folder: Path, *words: str, until: int | None = None) -> tuple[Result, Path, str]:
    return run(composed(*WORDS, *words, f"runs_dir={folder}"), until=until)


def damaged(path: Path, count: int = 8) -> Iterator[int]:
    """Changes one byte of a file at random places, one after another."""
    whole, chance = path.read_bytes(), random.Random(0)
    for at in chance.sample(range(len(whole)), count):
        path.unlink()  # it may be another name of a file that stays whole
        path.write_bytes(whole[:at] + bytes([whole[at] ^ chance.randrange(1, 256)]) + whole[at + 1 :])
        yield at
    path.write_bytes(whole)


# Checkpoints.


def test_checkpoint_comes_back_torch_reads_it_too_and_copies_keep_its_digest(tmp_path: Path) -> None:
    path, tensor = tmp_path / "last.ckpt", torch.randn(1000)
    checkpoint.save({"epoch": 11, "state_dict": {"w": tensor}}, path)
    shutil.copyfile(path, tmp_path / "copy.ckpt")
    for name in ("last.ckpt", "copy.ckpt"):
        assert torch.equal(checkpoint.load(tmp_path / name)["state_dict"]["w"], tensor)
        assert checkpoint.epochs(tmp_path / name) == 12
    for how in ({}, {"mmap": True}):
        assert torch.equal(torch.load(path, weights_only=True, **how)["state_dict"]["w"], tensor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.ckpt", "last.ckpt"]


def test_every_changed_byte_and_every_cut_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save({"epoch": 11, "state_dict": {"w": torch.arange(4.0)}}, path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(DataError, match=r"last\.ckpt: damaged: .*force=true"):
            checkpoint.load(path)
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged"):
            checkpoint.load(path)
    torch.save({"epoch": 11}, path)
    with pytest.raises(DataError, match="it does not end with its sha256"):
        checkpoint.load(path)
    assert checkpoint.load(path, sealed=False) == {"epoch": 11}  # one of before
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match="torch cannot read it"):
        checkpoint.load(path, sealed=False)


class Touches:
    """Calls a function as it is read back, as pickles may."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def test_nothing_of_a_checkpoint_runs_and_what_could_is_named_by_who_writes_and_by_who_reads(tmp_path: Path) -> None:
    path, marker = tmp_path / "last.ckpt", tmp_path / "marker"
    checkpoint.save({"epoch": 0}, path)
    with pytest.raises(RunError, match=r"got posix.mkdir in the optimizer's.*\n.*add_safe_globals"):
        checkpoint.save({"epoch": 1, "state": Touches(marker)}, path)
    assert checkpoint.load(path) == {"epoch": 0}  # the old one is whole
    with mock.patch.object(checkpoint, "_other_types", return_value=set()):
        checkpoint.save({"epoch": 1, "state": Touches(marker)}, path)
        with pytest.raises(DataError, match="torch cannot read it"):  # torch refuses it, too
            checkpoint.load(path)
    with pytest.raises(DataError, match=r"last\.ckpt: not loaded, since code of its own could run: .* got posix.mkdir"):
        checkpoint.load(path)
    assert not marker.exists()


@pytest.mark.parametrize("graft", range(5))
def test_shampoo_s_blocks_and_grafts_come_back_from_a_checkpoint(graft: int, tmp_path: Path) -> None:
    weights = torch.nn.Parameter(torch.randn(6, 6))
    optimizer = pytorch_optimizer.ScalableShampoo([weights], lr=0.1, block_size=4, graft_type=graft)
    weights.grad = torch.randn(6, 6)
    optimizer.step()
    checkpoint.save({"epoch": 0, "optimizer": optimizer.state_dict()}, tmp_path / "last.ckpt")
    loaded = checkpoint.load(tmp_path / "last.ckpt")["optimizer"]["state"][0]
    (saved,) = optimizer.state.values()
    assert {key: type(value) for key, value in loaded.items()} == {key: type(value) for key, value in saved.items()}
    assert torch.equal(loaded["momentum"], saved["momentum"])


def test_full_disk_leaves_the_old_checkpoint_and_says_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save({"epoch": 0}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save({"epoch": 1, "w": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(path) == {"epoch": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_run_writes_its_checkpoints_beside_their_place_not_where_temporary_files_go(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another file system no rename lands a file: it is copied over the old one, and a kill leaves half of it."""
    run(composed(*WORDS, "epochs=1", f"runs_dir={tmp_path}"))  # so that the data are there
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    result, _, _ = run(composed(*WORDS, "epochs=1", "seed=1", f"runs_dir={tmp_path}"))
    assert result.status == "completed"


# Damage.


def test_damaged_last_checkpoint_stops_the_run_and_nothing_is_written_over(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, _ = ask(composed, tmp_path, until=2)
    last = folder / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path != last}
    for _ in damaged(last):
        with pytest.raises(DataError, match=r"checkpoints/last\.ckpt: damaged: .*force=true"):
            ask(composed, tmp_path)
        assert all(path.read_bytes() == content for path, content in before.items())
    last.write_bytes(b"")
    with pytest.raises(DataError, match=r"last\.ckpt: damaged"):
        ask(composed, tmp_path)
    last.write_bytes(whole)
    assert ask(composed, tmp_path)[2] == "resumed"
    assert f"{folder.name}: resumes after epoch 2\n" in capsys.readouterr().err
    last.write_bytes(b"")
    result, _, how = ask(composed, tmp_path, "force=true")
    assert (result.status, how) == ("completed", "new")


def test_damaged_best_checkpoint_is_named_unless_the_last_is_the_best(composed: Compose, tmp_path: Path) -> None:
    _, folder, _ = ask(composed, tmp_path, until=2)
    best, last = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    whole = best.read_bytes()
    best.unlink()
    best.write_bytes(whole[:-1])
    assert ask(composed, tmp_path, until=3)[0].status == "interrupted"  # the last was the best: it is mended
    assert best.read_bytes() == whole
    for _ in damaged(best, 3):
        with pytest.raises(DataError, match=r"best\.ckpt: damaged: .*remove it to continue without.*force=true"):
            ask(composed, tmp_path)
        assert (known := Result.load(folder))
        assert known.status == "interrupted"  # not failed
    shutil.copyfile(last, best)
    with pytest.raises(
        DataError, match=r"best\.ckpt: expected the weights after 2 epochs, the best; got those after 3"
    ):
        ask(composed, tmp_path)
    best.unlink()
    assert ask(composed, tmp_path)[0].status == "completed"
    assert not best.exists()


def test_one_changed_byte_of_a_result_configuration_or_curve_is_noticed(mine: Path) -> None:
    readers: dict[str, Callable[[], Any]] = {
        "result.json": lambda: Result.load(mine),
        "config.yaml": lambda: OpenRun.open(mine).config,
        "curves.csv": lambda: OpenRun.open(mine).curves,
        "checkpoints/best.ckpt": lambda: checkpoint.load(mine / "checkpoints" / "best.ckpt"),
    }
    for name, reader in readers.items():
        whole = reader()
        for at in damaged(mine / name):
            with pytest.raises(DataError, match=f"{mine / name}: damaged"):
                raise AssertionError(f"{name}: byte {at} may change: {reader()}")
        assert str(reader()) == str(whole)


def test_every_bit_of_a_configuration_counts_and_one_without_a_digest_is_taken(mine: Path) -> None:
    path = mine / "config.yaml"
    whole = path.read_bytes()
    config = OpenRun.open(mine).config
    for at in [*range(80), *range(len(whole) - 10, len(whole))]:
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(DataError, match=r"config\.yaml: damaged"):
                raise AssertionError(f"byte {at} bit {bit}: {OpenRun.open(mine).config}")
    path.write_bytes(whole.partition(b"\n")[2])  # as older versions wrote it
    assert OpenRun.open(mine).config == config
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"config\.yaml: damaged: it is empty"):
        OpenRun.open(mine).config  # noqa: B018
    done = tmbench("run", str(path))
    assert (done.returncode, "config.yaml: damaged: it is empty" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_one_changed_byte_of_a_shared_state_drops_it(mine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (state,) = mine.parent.glob(".trunks/*/00002")
    trunk = Trunk(state.parent.parent, state.parent.name, 9)
    shutil.copytree(state, mine / "kept")
    for name in ("state.ckpt", "best.ckpt", "about.json"):
        for _ in damaged(state / name):
            assert not trunk.fetch(2, mine / "fetched")
            told = capfd.readouterr().err
            assert f"{state / name}: damaged" in told
            assert "this shared state is removed" in told
            assert not state.exists()
            shutil.copytree(mine / "kept", state)
    assert trunk.fetch(2, mine / "fetched")
    next(damaged(state / "about.json"))
    assert trunk.states() == {}  # and it does not stand in the way of a new one
    trunk.publish(2, 0, lambda folder: (folder / "state.ckpt").write_text("new"))
    assert trunk.states() == {2: 0}


def test_figures_refuse_damaged_weights_and_read_those_of_before(mine: Path) -> None:
    last = mine / "checkpoints" / "last.ckpt"
    for _ in damaged(last, 3):
        with pytest.raises(DataError, match=r"last\.ckpt: damaged"):
            figures.restored(OpenRun.open(mine))
    torch.save(torch.load(last, weights_only=True), last)  # without a digest
    with pytest.raises(DataError, match=r"last\.ckpt: damaged"):
        figures.restored(OpenRun.open(mine))
    content = json.loads((mine / "result.json").read_text())
    del content["sha256"]
    (mine / "result.json").write_text(json.dumps(content | {"schema_version": 1}))
    figures.restored(OpenRun.open(mine))


# Recovery.


def test_damaged_result_is_not_believed_and_comes_again_from_the_checkpoint(
    made: Path, mine: Path, composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mine / "result.json"
    content = path.read_text()
    for broken in (content.replace('"status": "completed"', '"status": "diverged"'), content[:300], ""):
        path.write_text(broken)
        assert OpenRun.open(mine).status == "broken"
        result, folder, how = ask(composed, mine.parent)
        assert (folder, how, result.status) == (mine, "resumed", "completed")
        assert "result.json: damaged" in capsys.readouterr().err
        expected = Result.load(made)
        assert expected
        assert (result.metrics, result.epochs["trained"]) == (expected.metrics, 4)
        assert_same(weights(mine), weights(made))
        assert curves(mine) == curves(made)
    assert ask(composed, mine.parent)[2] == "shown"


def test_empty_files_of_a_power_cut_do_not_block_the_run(composed: Compose, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / made.name
    (folder / "checkpoints").mkdir(parents=True)
    scratch = ("checkpoints/.writing.ckpt", ".curves.csv-abcd_123")
    for name in ("config.yaml", "curves.csv", "result.json", ".lock", *scratch):
        (folder / name).touch()
    result, same_folder, how = ask(composed, tmp_path)
    assert (same_folder, how, result.status) == (folder, "new", "completed")
    assert_same(weights(folder), weights(made))
    kept = [sorted(str(p.relative_to(place)) for p in place.rglob("*")) for place in (folder, made)]
    assert kept[0] == kept[1]


def test_epochs_are_told_by_the_checkpoint_whatever_the_curves_say(mine: Path) -> None:
    for text in ("epoch\n0\n", "", None):
        (mine / "curves.csv").unlink() if text is None else (mine / "curves.csv").write_text(text)
        assert epochs_done(mine) == 4
    (mine / "checkpoints" / "last.ckpt").unlink()
    assert epochs_done(mine) == 0


def killed_everywhere(folder: Path, pattern: str, *words: str) -> int:
    """Asks again for a run that ended before any of its operations on paths that the pattern fits; returns how many."""
    script = Path(__file__).parent / "kill_points.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), pattern, *WORDS, *words],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (whole,) = (path.parent for path in (folder / "whole").glob("tc-tmsgd-*/result.json"))
    known = Result.load(whole)
    count = int(done.stdout)
    for number in range(1, count + 1):
        place = folder / str(number) / whole.name
        result = Result.load(place)
        assert result
        assert known
        assert (result.status, result.metrics) == ("completed", known.metrics), number
        assert curves(place) == curves(whole), number
        for name in ("last.ckpt", "best.ckpt"):
            assert_same(weights(place, name), weights(whole, name))
        kept = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in (place, whole)]
        assert kept[0] == kept[1], f"{number}: left over or missing"
        left = [p for p in place.parent.rglob(".*-*") if ".tiny" not in p.parts]
        assert not left, number
    return count


@pytest.mark.slow
def test_best_checkpoint_is_the_best_epochs_whenever_the_kill_comes(tmp_path: Path) -> None:
    assert killed_everywhere(tmp_path, r"/best\.ckpt", "trunk=off") >= 2  # it improves twice


@pytest.mark.slow
def test_run_killed_before_any_of_its_file_operations_ends_like_one_never_stopped(tmp_path: Path) -> None:
    assert killed_everywhere(tmp_path, "") > 40


@pytest.mark.slow
def test_run_killed_while_it_takes_over_a_shared_state_ends_like_one_never_stopped(tmp_path: Path) -> None:
    words = ["switch_epoch=3", "--after", *(word for word in WORDS if "tmsgd" not in word), "optimizer=sgd"]
    assert killed_everywhere(tmp_path, "", *words) > 20
