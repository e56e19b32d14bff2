"""What all commands share: their words, their messages, their help and their exit status."""

import re
import subprocess
import sys
from typing import Any

import pytest

from tmbench.config.values import Setting, check_of
from tmbench.errors import ConfigError, DataError, UsageError
from tmbench.verbs import JSON, RUNS_DIR, Verb

SETTINGS = {
    "runs_dir": RUNS_DIR,
    "json": JSON,
    "seeds": Setting("a whole number >= 1", "runs of each", 3),
    "data_dir": Setting("a folder, or null", "where the data are"),
    "margin": Setting("settings", "least difference of a metric", {"accuracy": 0.01}),
}


TAKES = "[RUN | KEY=VALUE ...]"
OPEN = Verb("open", "Opens something.", lambda values, others: 0, SETTINGS, TAKES, examples="tmbench open it")
CLOSED = Verb("closed", "Takes settings alone.", lambda values, others: 0, SETTINGS)
PARENT = Verb("parent", "Has commands.", None, choices={"open": OPEN, "closed": CLOSED})


@pytest.mark.parametrize(
    ("words", "expected", "others"),
    [
        ([], {"runs_dir": "./runs", "json": False, "seeds": 3, "data_dir": None}, []),
        (["runs_dir=x=y", "json=true", "seeds=5"], {"runs_dir": "x=y", "json": True, "seeds": 5}, []),
        (["--runs-dir", "x", "--json", "--seeds=5"], {"runs_dir": "x", "json": True, "seeds": 5}, []),
        (["--json=false", "runs_dir=2026", "data_dir=null"], {"json": False, "runs_dir": "2026", "data_dir": None}, []),
        (["--data_dir", "null"], {"data_dir": None}, []),
        (["tc-sgd", "lr=0.1", "json=true", "seeds.x=1"], {"json": True}, ["tc-sgd", "lr=0.1", "seeds.x=1"]),
        (["margin.miou=1e-3"], {"margin": {"accuracy": 0.01, "miou": 0.001}}, []),
    ],
)  # fmt: skip
def test_words_give_settings_their_values(words: list[str], expected: dict[str, Any], others: list[str]) -> None:
    values, rest = OPEN.parse(words)
    assert {key: values[key] for key in expected} == expected
    assert rest == others


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        (CLOSED, ["sed=5"], "sed=5: tmbench closed has no such word; did you mean seeds?\n  possible here: runs_dir"),
        (CLOSED, ["tc-sgd"], "tc-sgd: tmbench closed has no such word\n"),
        (OPEN, ["--jsn"], "--jsn: tmbench open has no such word; did you mean json?"),
        (OPEN, ["-x"], "-x: tmbench open has no such word"),
        (OPEN, ["seeds=0"], "seeds: expected a whole number >= 1, got 0"),
        (OPEN, ["json=yess"], "json: expected true or false, got 'yess'"),
        (OPEN, ["--runs-dir", "--json"], "runs_dir: expected a folder, got ''"),
        (OPEN, ["margin.miou=much"], "margin.miou: expected a number, got 'much'"),
        (PARENT, ["opn"], "opn: tmbench parent has no such word; did you mean open?"),
    ],
)
def test_wrong_words_are_named_with_what_is_possible(
    verb: Verb, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb(words) == 2
    output, errors = capsys.readouterr()
    assert (output, errors[: len(message)]) == ("", message)


def raising(error: BaseException | None) -> Verb:
    def do(values: dict[str, Any], others: list[str]) -> int:
        if error:
            raise error
        return 0

    return Verb("x", "Fails.", do)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ConfigError("lr: expected a number > 0"), 1, "lr: expected a number > 0\n"),
        (DataError("a.txt: damaged"), 1, "a.txt: damaged\n"),
        (UsageError("expected a file"), 2, "expected a file\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues\n"),
    ],
)
def test_exit_status_and_message(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error)([]) == code
    assert capsys.readouterr() == ("", message)


def test_a_mistake_of_the_program_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ZeroDivisionError("of nothing"))([]) == 1
    assert re.match(r"Traceback .*\nZeroDivisionError: of nothing\n", capsys.readouterr().err, re.DOTALL)


def test_help_lists_commands_settings_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert PARENT(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: tmbench parent COMMAND\n\nHas commands.\n")
    assert "  open    Opens something.\n" in shown
    assert PARENT(["open", "seeds=0", "-h"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: tmbench open [RUN | KEY=VALUE ...] [key=value ...]\n")
    assert "runs_dir=./runs" in shown
    assert "runs of each (a whole number >= 1)" in shown
    assert shown.endswith("Examples:\n  tmbench open it\n")
    assert PARENT([]) == 2
    assert "usage: tmbench parent COMMAND" in capsys.readouterr().err


def test_help_fits_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    examples = "tmbench x of=this      does one thing or another, as long as there is one\ntmbench x"
    verb = Verb(
        "x",
        "Says in some words, more than a line of them has room for, what it does.\n\n  a  b",
        None,
        examples=examples,
    )
    assert verb(["--help"]) == 0
    assert capsys.readouterr().out == (
        "usage: tmbench x\n\nSays in some words, more than a line of them has room for,\nwhat it does.\n\n  a  b\n\n"
        "Examples:\n  tmbench x of=this  does one thing or another, as long as\n"
        "                     there is one\n  tmbench x\n"
    )


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    code = (
        "from tmbench.verbs import Verb, leave\n"
        "leave(Verb('x', 'Prints much.', lambda values, others: print('line\\n' * 100_000) or 0)([]))"
    )
    command = f'{sys.executable} -c "{code}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("line\n", "")


@pytest.mark.parametrize(
    ("expects", "right", "wrong"),
    [
        ("a number", [1, -0.5], [True, "1", float("nan"), None]),
        ("a number > 0, or null", [0.1, None], [0, -1]),
        ("a whole number >= 0, or never", [0, 7, "never"], [-1, 1.0, "ever", None]),
        ("a number >= 0 and < 1", [0, 0.9], [1, -0.1]),
        ("a number between 0 and 1", [0.5], [0, 1]),
        ("one of a, b c", ["a", "b c"], ["b", None, 1]),
        ("a folder", ["x"], ["", 1, None]),
        ("true or false", [True, False], [0, "true"]),
        ("settings", [{}], [[]]),
    ],
)
def test_a_check_is_what_its_words_say(expects: str, right: list[Any], wrong: list[Any]) -> None:
    check = check_of(expects)
    assert [value for value in right if not check(value)] == []
    assert [value for value in wrong if check(value)] == []


def test_words_without_a_check_are_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="no check for 'something nice'"):
        check_of("something nice")
