"""`tmbench runs`: runs are found, listed, shown, compared, drawn and removed."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Compose
from made_runs import Make

from tmbench.files import locked, sealed_text
from tmbench.result import Result
from tmbench.runs import Run, distinguishing_words, find
from tmbench.runs.__main__ import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, one of them diverged, and one that was stopped before its first result."""
    folder = tmp_path_factory.mktemp("made")
    make = Make(composed, folder)
    words = ["epochs=2", "batch_size=8"]
    make("sgd", 0, 0.8, *words)
    make("tmsgd", 0, 0.7, *words, "switch_epoch=1", switch={"requested": 1, "effective": 1, "step": 100})
    make("sgd", 0, 0.1, *words, "lr=1e38", status="diverged", diverged_at={"epoch": 1, "step": 2})
    make("sgd", 7, None, *words)
    for config in folder.glob("*/config.yaml"):
        config.write_text(sealed_text(config.read_text()))
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of the test's own."""
    return shutil.copytree(made, tmp_path / "runs")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """command(folder, *words) -> exit status, output, errors."""

    def command(folder: Path, *words: str) -> tuple[int, str, str]:
        code = main([*words, f"runs_dir={folder}"])
        return (code, *capsys.readouterr())

    return command


def names(folder: Path, *words: str) -> list[str]:
    return [run.folder.name.rsplit("-", 1)[0] for run in find(folder, list(words))]


def the_tmsgd(folder: Path) -> Path:
    (run,) = find(folder, ["optimizer=tmsgd"])
    return run.folder


def test_list_shows_status_metric_and_cost(made: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    code, wide, _ = command(made)
    counts = "4 runs: 2 completed, 1 diverged, 1 stopped; 9 s of training"
    words = ("tc-tmsgd-0-", "accuracy", "2/2", "tiny", "lr=1e+38", "baseline", counts)
    assert (code, [word for word in words if word not in wide]) == (0, [])
    monkeypatch.setenv("COLUMNS", "80")
    narrow = command(made)[1]
    assert max(map(len, narrow.splitlines())) <= 80
    words = ("tc-tmsgd-0-", "accuracy", "2/2", "70.00 %", "lr=1e+38", "diverged")
    assert [word for word in words if word not in narrow] == []
    monkeypatch.setenv("COLUMNS", "60")
    narrowest = command(made)[1]
    assert max(map(len, narrowest.splitlines())) <= 60
    assert [word for word in words if word not in narrowest] == []
    for words in (["--json", "status=diverged"], ["list", "status=diverged", "json=true"]):
        (only,) = json.loads(command(made, *words)[1])
        assert only["status"] == "diverged"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer=tmsgd"], ["tc-tmsgd-0"]),
        (["status=completed,diverged", "optimizer=sgd"], ["tc-sgd-0", "tc-sgd-0"]),
        (["lr=1e38"], ["tc-sgd-0"]),
        (["task.width=50", "seed=0", "profile=tiny", "split=test", "optimizer=tmsgd"], ["tc-tmsgd-0"]),
        (["status=stopped"], ["tc-sgd-7"]),
        (["tc-tm"], ["tc-tmsgd-0"]),
        (["seed=9"], []),
        (["switch_epoch=1"], ["tc-tmsgd-0"]),
        (["switch_epoch=never", "status=completed"], ["tc-sgd-0"]),  # whatever its sweep gave
    ],
)
def test_filters_find_by_status_settings_and_names(words: list[str], expected: list[str], made: Path) -> None:
    assert names(made, *words) == expected


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["colour=red"], 1, "colour: expected status, profile or a setting"),
        (["status=complete"], 1, "status: expected one of completed, diverged, failed, interrupted, running, stopped"),
        (["tc-adam"], 1, "tc-adam: no run in"),
        (["show", "optimizer=sgd"], 1, "show: expected one run with a result, got"),
        (["compare", "tc-tmsgd"], 2, "runs compare: expected two runs or more, got 1: tc-tmsgd"),
        (["compare", "tc-tmsgd", "tc-sgd"], 1, "tc-sgd: expected one run, got tc-sgd-0-"),
        (["figures", "optimizer=sgd"], 2, "runs figures: expected a task first"),
        (["figures", "fkpd", "optimizer=sgd"], 1, "fkpd: no run in"),
        (["remove"], 2, "remove: expected run ids or filters"),
        (["remove", "seed=0"], 1, "stdin is not a terminal; to remove these runs, add yes=true"),
        (["gc", "limit=-1"], 2, "limit: expected a number >= 0, got -1"),
    ],
)
def test_wrong_words_are_named_and_change_nothing(
    words: list[str], code: int, message: str, made: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    find(made, [])  # leaves a lock in each
    before = sorted(made.rglob("*"))
    status, _, error = command(made, *words)
    assert (status, message in error) == (code, True), error
    assert sorted(made.rglob("*")) == before


def test_folder_that_is_not_there_is_named(command: Command, tmp_path: Path) -> None:
    for words in ([], ["gc"]):
        code, _, error = command(tmp_path / "none", *words)
        assert (code, "none: expected a folder with runs, there is none" in error) == (1, True)


def test_a_folder_that_is_read_only_can_be_listed_and_shown(here: Path, command: Command) -> None:
    folder = the_tmsgd(here)
    (folder / ".lock").unlink(missing_ok=True)
    folder.chmod(0o555)
    try:
        assert command(here)[0] == command(here, "show", folder.name)[0] == 0
    finally:
        folder.chmod(0o755)


def test_a_run_that_is_named_with_its_folder_is_looked_for_there(made: Path, command: Command, tmp_path: Path) -> None:
    """Not the run of the same name in runs_dir."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for place in (here, elsewhere):
        shutil.copytree(made, place)
    name = the_tmsgd(here).name
    (elsewhere / name / "result.json").unlink()
    for word in (elsewhere / name, f"{elsewhere}/tc-tm", f"{elsewhere}/../elsewhere/{name}/"):
        code, _, error = command(here, "show", str(word))
        assert (code, error) == (1, f"show: expected one run with a result, got 1: {name} (stopped)\n")
    assert command(here, "show", name)[0] == 0
    assert command(here, "remove", f"{elsewhere}/tc-tm", "yes=true")[0] == 0
    assert (len(names(here)), len(names(elsewhere))) == (4, 3)
    code, _, error = command(here, "show", str(tmp_path / "gone" / name))
    assert (code, error.startswith(f"{tmp_path}/gone: expected a folder with runs, there is none")) == (1, True)


def test_remove_takes_what_was_asked_for_and_no_more(here: Path, command: Command) -> None:
    code, output, _ = command(here, "remove", "status=diverged,stopped", "--yes")
    assert (code, "removed 2 runs" in output) == (0, True)
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


def test_a_run_that_a_process_works_on_is_not_removed(here: Path, command: Command) -> None:
    busy = the_tmsgd(here)
    with locked(busy):
        assert Run.open(busy).status == "running"
        code, _, error = command(here, "remove", "task=tc", "yes=true")
    assert (code, "a process is at work on it; not removed" in error) == (1, True)
    assert names(here) == ["tc-tmsgd-0"]
    assert Result.load(busy) is not None


def test_a_process_that_waited_for_a_removed_run_starts_it_anew(here: Path) -> None:
    """It must not work in a folder that is gone."""
    folder = the_tmsgd(here)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tmbench.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print(sorted(p.name for p in Path(sys.argv[1]).iterdir()))"
    )
    with locked(folder):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        waiter = subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, **pipes)
        assert waiter.stderr is not None
        assert "waiting" in waiter.stderr.readline()
        os.replace(folder, folder.with_name(".removing-it"))
    output, _ = waiter.communicate(timeout=30)
    assert output == "['.lock']\n"


def test_broken_result_is_listed_as_such(here: Path, command: Command) -> None:
    (the_tmsgd(here) / "result.json").write_text("{")
    code, output, _ = command(here)
    assert (code, "1 broken" in output) == (0, True)


def test_nothing_that_is_read_from_a_run_commands_the_terminal(
    composed: Compose, tmp_path: Path, command: Command
) -> None:
    """A name with control characters could set the window's title, hide lines, or more."""
    bad, make = "\x1b]0;title\x07\x9b2J\u202eabc", Make(composed, tmp_path / "runs")
    facts = {"error": bad, "notes": [bad], "hardware": bad}
    for seed in (0, 1):
        place = make("sgd", seed, 0.5, "epochs=2", status="failed", **facts)
        config = (place / "config.yaml").read_text()
        (place / "config.yaml").write_text(config.replace("name: sgd", f"name: sgd\n  {json.dumps(bad)}: {seed}"))
    place.rename(place.with_name(bad))
    make("sgd", 1, 0.6, "epochs=2", **facts)
    first, last = (run.folder.name for run in find(tmp_path / "runs", []))
    told = [command(tmp_path / "runs", *words) for words in (["list"], ["show", first], ["compare", first, last])]
    assert [code for code, _, _ in told] == [0, 0, 0]
    assert "x1b]0;title" in told[1][1]
    for text in (text for _, *each in told for text in each):
        assert not {*"\x1b\x07\x9b\u202e"} & set(text)


def test_a_run_of_schema_1_is_listed_and_shown(here: Path, command: Command) -> None:
    path = the_tmsgd(here) / "result.json"
    content = json.loads(path.read_text())
    facts = {key: value for key, value in content.items() if key not in ("sha256", "split", "metric")}
    path.write_text(json.dumps(facts | {"headline": "test/accuracy", "schema_version": 1}))
    assert "1 run: 1 completed" in command(here, "metric=accuracy", "optimizer=tmsgd")[1]
    code, output, _ = command(here, "show", "tc-tmsgd")
    assert (code, bool(re.search("accuracy +70.00 %(.|\n)*switch +after epoch 1", output))) == (0, True)


def test_one_damaged_configuration_leaves_the_other_runs_to_be_found(here: Path, command: Command) -> None:
    config = the_tmsgd(here) / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    for words, count in (([], 4), (["status=completed"], 2), (["task=tc"], 3), (["lr=1e38"], 1)):
        code, output, errors = command(here, *words)
        total = f"\n{count} run{'s' * (count > 1)}: "
        assert (code, total in output, f"{config}: damaged" in errors) == (0, True, True)
    code, _, errors = command(here, "sede=0")
    assert (code, "did you mean seed?" in errors) == (1, True)


def test_gc_removes_leftovers_and_states_beyond_the_limit(here: Path, command: Command) -> None:
    (here / ".removing-x").mkdir()
    (here / ".removing-x" / "file").write_text("x" * 10_000)
    state = here / ".trunks" / "tc-sgd" / "00001"
    state.mkdir(parents=True)
    (state / "state.ckpt").write_text("x" * 1000)
    code, output, _ = command(here, "gc", "--limit", "1")
    assert (code, re.sub(r"[\d.]+", "N", output)) == (0, "freed N kB; shared states now take N kB\n")
    assert not (here / ".removing-x").exists()
    assert state.exists()
    code, output, _ = command(here, "gc")
    assert (code, "shared states now take" in output) == (0, True)
    assert not state.exists()
    assert len(names(here)) == 4


def test_words_distinguish_the_settings_of_a_group() -> None:
    settings = [{"lr": 0.1, "optimizer.lr": 0.1, "ema": 1}, {"lr": 0.2, "optimizer.lr": 0.2, "ema": 1}, {"ema": 2}]
    assert distinguishing_words(["a", "a", "b"], settings) == ["lr=0.1", "lr=0.2", ""]


# Two runs


@pytest.fixture
def make(composed: Compose, tmp_path: Path) -> Make:
    (tmp_path / "runs").mkdir()
    return Make(composed, tmp_path / "runs")


def test_compare_names_what_differs_and_from_which_epoch(make: Make, tmp_path: Path, command: Command) -> None:
    a = make("tmsgd", 0, 0.8, "epochs=4", "switch_epoch=2")
    b = make("tmsgd", 0, 0.8, "epochs=4", "switch_epoch=3", "logger=csv", hardware="1 x another CPU, 1 threads")
    text = (b / "curves.csv").read_text().splitlines()
    (b / "curves.csv").write_text("\n".join([*text[:3], text[3].replace("0.7", "0.71"), *text[4:]]) + "\n")
    code, output, _ = command(tmp_path / "runs", "compare", str(a), b.name)
    assert code == 0
    of_numbers, bookkeeping = output.split("settings that change no number")
    assert ("switch_epoch" in of_numbers, "logger" in of_numbers, "logger.name" in bookkeeping) == (True, False, True)
    assert "1 x another CPU" in output
    assert "differ from epoch 3 on" in output
    assert "batch_size" not in output
    assert "the same, bit by bit" in command(tmp_path, "compare", str(a), str(a))[1]


def test_compare_of_several_runs_shows_only_what_differs(make: Make, tmp_path: Path, command: Command) -> None:
    runs = [make("sgd", seed, 0.8, f"lr={lr}", "epochs=4") for seed, lr in enumerate((0.1, 0.2, 0.3))]
    code, output, _ = command(tmp_path / "runs", "compare", *(run.name for run in runs))
    assert code == 0
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in output.splitlines()
            if len(cells := line.split("│")) == 6}  # fmt: skip
    assert (rows["lr"], rows["seed"]) == (["0.1", "0.2", "0.3"], ["0", "1", "2"])
    assert not {"epochs", "status", "steps"} & rows.keys()
    assert f"curves of {runs[2].name} and {runs[0].name}: the same, bit by bit" in output


def test_less_than_one_example_a_second_is_not_none(make: Make, tmp_path: Path, command: Command) -> None:
    slow, fast = (make("sgd", seed, 0.8, examples_per_second=rate) for seed, rate in enumerate((0.374, 12345.6)))
    for run, rate in ((slow, "0.374"), (fast, "12,346")):
        assert f"epochs, {rate} examples/s)" in command(tmp_path / "runs", "show", run.name)[1]
    assert re.search(r"examples/s .* 0\.374 .* 12350", command(tmp_path, "compare", str(slow), str(fast))[1])


@pytest.mark.parametrize("split", ["test", "validation"])
def test_compare_gives_differences_in_points(split: str, make: Make, tmp_path: Path, command: Command) -> None:
    a, b = (make("sgd", seed, score, split=split) for seed, score in enumerate((0.8, 0.8225)))
    assert "+2.25 points" in command(tmp_path, "compare", str(a), str(b))[1]


# Figures: see also test_fkpd


def test_a_run_whose_task_is_no_longer_here_cannot_be_drawn(make: Make, tmp_path: Path, command: Command) -> None:
    folder = make("sgd", 0, 0.8)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("tmbench.tasks.", "tmbench.tasks.of_before."))
    code, _, error = command(tmp_path / "runs", "figures", "tc")
    assert (code, "made by another version of tmbench; this one has no tmbench.tasks.of_before" in error) == (1, True)


def test_a_narrow_list_has_settings_line_by_line_in_few_digits(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for lr in (0.00052486898223, 0.5):
        make("adam", 0, 0.7, f"optimizer.lr={lr}", "optimizer.betas=[0.9,0.95]" if lr == 0.5 else "epochs=9")
    monkeypatch.setenv("COLUMNS", "80")
    assert main([f"runs_dir={make.folder}"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "lr=0.0005249" in lines
    assert "lr=0.5" in lines
    assert any(line.startswith("betas=[0.9, 0.95]") for line in lines)
    assert max(map(len, lines)) <= 80


def test_curves_that_count_from_0_equal_those_that_count_from_1(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tc-sgd-0-00000000000a", "tc-sgd-0-00000000000b"):
        make("sgd", 0, 0.7, "epochs=2", name=name)
    older = make.folder / "tc-sgd-0-00000000000b" / "curves.csv"
    head, *rows = older.read_text().splitlines()
    older.write_text("\n".join([head, *(f"{int(row[0]) - 1}{row[1:]}" for row in rows)]) + "\n")
    assert main(["compare", *sorted(path.name for path in make.folder.iterdir()), f"runs_dir={make.folder}"]) == 0
    assert "curves: the same, bit by bit" in capsys.readouterr().out
