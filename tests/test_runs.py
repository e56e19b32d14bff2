"""`python -m tmbench.runs`: what is here, found, shown, removed and tidied up."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Compose

from tmbench.errors import ConfigError
from tmbench.files import locked
from tmbench.result import Result
from tmbench.run import run
from tmbench.runs import __main__ as runs

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one diverged, and one that was stopped before its first result."""
    folder = tmp_path_factory.mktemp("here")
    for words in (["optimizer=sgd"], ["optimizer=tmsgd", "switch_epoch=1"], ["optimizer=sgd", "lr=1e38"]):
        run(composed("task=tc", "epochs=2", "batch_size=8", *words, f"runs_dir={folder}"))
    stopped = folder / "tc-sgd-7-0123456789ab"
    stopped.mkdir()
    config = next(text for path in folder.glob("tc-sgd-0-*/config.yaml") if "e+38" not in (text := path.read_text()))
    (stopped / "config.yaml").write_text(config)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    subprocess.run(["cp", "-r", made, tmp_path / "runs"], check=True)
    return tmp_path / "runs"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """command(folder, *words) -> exit code, output, errors."""

    def command(folder: Path, *words: str) -> tuple[int, str, str]:
        code = runs.main([*words, "--runs-dir", str(folder)])
        return (code, *capsys.readouterr())

    return command


def names(folder: Path, *words: str) -> list[str]:
    return [run.folder.name.rsplit("-", 1)[0] for run in runs.find(folder, list(words))]


def test_list_tells_status_metric_and_cost(made: Path, command: Command) -> None:
    code, told, _ = command(made)
    assert code == 0
    assert "4 runs: 2 completed, 1 diverged, 1 stopped" in told
    assert "of training here" in told
    for word in ("tc-tmsgd-0-", "accuracy", "2/2", "tiny", "lr=1e+38"):
        assert word in told
    code, told, _ = command(made, "status=diverged", "--json")
    (only,) = json.loads(told)
    assert only["status"] == "diverged"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer=tmsgd"], ["tc-tmsgd-0"]),
        (["status=completed,diverged", "optimizer=sgd"], ["tc-sgd-0", "tc-sgd-0"]),
        (["lr=1e38"], ["tc-sgd-0"]),
        (["task.width=50", "seed=0", "profile=tiny", "optimizer=tmsgd"], ["tc-tmsgd-0"]),
        (["status=stopped"], ["tc-sgd-7"]),
        (["tc-tm"], ["tc-tmsgd-0"]),
        (["seed=9"], []),
    ],
)
def test_filters_find_by_status_settings_and_names(words: list[str], expected: list[str], made: Path) -> None:
    assert names(made, *words) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["colour=red"], "colour: expected status, profile or a setting"),
        (["tc-adam"], "tc-adam: no run in"),
        (["show", "optimizer=sgd"], "show: expected one run with a result, got"),
        (["remove"], "remove: expected run ids or filters"),
        (["remove", "seed=0"], "nobody to ask; say --yes"),
    ],
)
def test_wrong_words_are_told_and_change_nothing(
    words: list[str], told: str, made: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = sorted(made.rglob("*"))
    code, _, error = command(made, *words)
    assert code == 1
    assert told in error
    assert sorted(made.rglob("*")) == before


def test_folder_that_is_not_there_is_told(command: Command, tmp_path: Path) -> None:
    code, _, error = command(tmp_path / "none")
    assert code == 1
    assert "no such folder; say --runs-dir DIR" in error


def test_show_prints_a_runs_result(made: Path, command: Command) -> None:
    code, told, _ = command(made, "show", "tc-tmsgd")
    assert code == 0
    assert re.search(r"switch +at epoch 1", told)


def test_remove_takes_what_was_asked_for_and_no_more(here: Path, command: Command) -> None:
    code, told, _ = command(here, "remove", "status=diverged,stopped", "--yes")
    assert code == 0
    assert "removed 2 runs" in told
    assert names(here) == ["tc-sgd-0", "tc-tmsgd-0"]
    assert not list(here.glob(".removing-*"))


@pytest.mark.parametrize(("answer", "left"), [("n", 4), ("", 4), ("y", 3)])
def test_remove_asks_first(
    answer: str, left: int, here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    command(here, "remove", "status=stopped")
    assert len(names(here)) == left


def test_a_run_that_somebody_is_at_is_left_alone(here: Path, command: Command) -> None:
    (busy,) = (run.folder for run in runs.find(here, ["optimizer=tmsgd"]))
    with locked(busy):
        assert runs.Run.open(busy).status == "running"
        code, _, error = command(here, "remove", "seed=0", "--yes")
    assert code == 1
    assert "a process is at it; left alone" in error
    assert names(here) == ["tc-tmsgd-0"]
    assert Result.load(busy) is not None


def test_who_waited_for_a_run_that_was_removed_starts_it_anew(here: Path) -> None:
    """The waiter must not work in a folder that is gone."""
    (folder,) = (run.folder for run in runs.find(here, ["optimizer=tmsgd"]))
    code = (
        "import sys\nfrom pathlib import Path\nfrom tmbench.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print(sorted(p.name for p in Path(sys.argv[1]).iterdir()))"
    )
    with locked(folder):
        waiter = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert waiter.stderr is not None
        assert "waiting" in waiter.stderr.readline()
        os.replace(folder, folder.with_name(".removing-it"))
    output, _ = waiter.communicate(timeout=30)
    assert output == "['.lock']\n"


def test_broken_result_is_listed_as_such(here: Path, command: Command) -> None:
    (folder,) = (run.folder for run in runs.find(here, ["optimizer=tmsgd"]))
    (folder / "result.json").write_text("{")
    code, told, _ = command(here)
    assert code == 0
    assert "1 broken" in told


def test_one_damaged_configuration_leaves_the_other_runs_to_be_found(here: Path, command: Command) -> None:
    (folder,) = (run.folder for run in runs.find(here, ["optimizer=tmsgd"]))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    for words, count in (([], 4), (["status=completed"], 2), (["task=tc"], 3), (["lr=1e38"], 1)):
        code, told, errors = command(here, *words)
        assert code == 0
        assert f"\n{count} runs: " in told
        assert f"{config}: damaged" in errors


def test_gc_removes_leftovers_and_states_beyond_the_limit(here: Path, command: Command) -> None:
    (here / ".removing-x").mkdir()
    (here / ".removing-x" / "file").write_text("x" * 10_000)
    assert len(list(here.glob(".trunks/*/0*"))) == 1
    code, told, _ = command(here, "gc", "--limit", "1")
    assert code == 0
    assert not (here / ".removing-x").exists()
    assert len(list(here.glob(".trunks/*/0*"))) == 1
    code, told, _ = command(here, "gc")
    assert "shared states now take" in told
    assert not list(here.glob(".trunks/*/0*"))
    assert len(names(here)) == 4


def test_list_of_wrong_filter_raises_for_callers_too(made: Path) -> None:
    with pytest.raises(ConfigError, match="no run in"):
        runs.find(made, ["nothing"])
