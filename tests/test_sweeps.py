"""The jobs of a sweep: which they are, that each is composed as by Hydra alone, and what is said of them before."""

import re
import sys
from io import StringIO
from itertools import product
from pathlib import Path
from time import process_time

import pexpect
import pytest
from conftest import Compose
from helpers import tmbench
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from made_runs import Make
from omegaconf import OmegaConf
from rich.console import Console

from tmbench.config.compose import composed
from tmbench.config.settle import Settings, settle
from tmbench.config.table import conf_dir
from tmbench.errors import ConfigError
from tmbench.result import Result
from tmbench.sweeps.job import JobRecord, command
from tmbench.sweeps.plan import JobComposer, combinations
from tmbench.sweeps.show import print_results

GROUPS = {"task", "optimizer"}


def test_no_private_module_of_hydra_is_imported() -> None:
    root = conf_dir().parent
    files = [*(root / "tmbench").rglob("*.py"), *(root / "hydra_plugins").rglob("*.py")]
    assert [file.name for file in files if "hydra._" in file.read_text()] == []


def jobs(*words: str) -> list[list[str]]:
    return combinations(OverridesParser.create().parse_overrides(list(words)))


def test_jobs_are_all_combinations_of_what_is_listed() -> None:
    assert jobs("task=tc", "lr=0.1,0.2", "seed=range(2)", "task.betas=[1,2]", "~ema") == [
        ["task=tc", f"lr={lr}", f"seed={seed}", "task.betas=[1,2]", "~ema"] for lr in (0.1, 0.2) for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match=r"lr=interval\(0,1\): expected values to list, got an interval"):
        jobs("lr=interval(0,1)")


def resolved(cfg: Settings) -> object:
    return OmegaConf.to_container(OmegaConf.create(cfg), resolve=True)


@pytest.mark.parametrize(
    "sweep",  # the second job is made of the first one's files
    [
        ["optimizer=adam lr=1e-3 seed=2 ema=0.9", "optimizer=adam lr=null seed=3 ema=0.5 switch_epoch=never"],
        [
            "task=seg optimizer.momentum=0.5 data_dir=here",
            "task=seg optimizer.momentum=0.7 data_dir='a,b' precision=16",
        ],
        ["task=seg task.weights=coco force=true", "task=ic task.dataset=cifar100 runs_dir=${task.name}"],
        ["optimizer=adam optimizer.betas=[0.1,0.2]", "optimizer=adam optimizer.betas=[0.1,0.3] seed=1"],
        ["optimizer.momentum=0.5 optimizer={momentum:0.9}", "optimizer={momentum:0.9} optimizer.momentum=0.5"],
        ["+optimizer.note=x lr=${seed}", "~optimizer.history lr=2"],
    ],
)
def test_composed_job_is_what_hydra_composes(sweep: list[str]) -> None:
    """Values that are set by ourselves, against Hydra's own composition of the same words."""
    compose = JobComposer([], GROUPS)
    for job in sweep:
        assert resolved(compose(job.split())) == resolved(composed(job.split()))


@pytest.mark.parametrize("word", ["sed=1", "optimizer.momentm=1", "optimizer.betas.x=1", "seed.x=1", "optimizer=sdg"])
def test_a_word_that_is_no_setting_gets_hydras_own_message(word: str) -> None:
    with pytest.raises(HydraException) as by_hydra:
        composed(["task=tc", word])
    with pytest.raises(HydraException, match=re.escape(str(by_hydra.value))):
        JobComposer([], GROUPS)(["task=tc", word])


def test_jobs_that_differ_in_values_take_little_time() -> None:
    began = process_time()
    for seed in range(5):
        composed(["task=tc", f"seed={seed}"])
    by_hydra = process_time() - began
    compose = JobComposer([], GROUPS)
    for words in jobs("task=tc", "seed=range(125)", "lr=0.1,0.2"):
        compose(words)
    assert process_time() - began < 2 * by_hydra


def test_a_plan_of_many_runs_whose_data_are_not_here(tmp_path: Path) -> None:
    words = ["-m", "task=tc", "optimizer=sgd,tmsgd", "seed=range(0,40)", "lr=0.1,0.2", "plan=true", "epochs=1"]
    done = tmbench(*words, f"runs_dir={tmp_path}", "data=full", "data_dir=/nowhere")
    assert done.returncode == 0, done.stderr
    assert "160 to do" in done.stdout
    assert "the data are not here yet" in done.stdout


@pytest.mark.parametrize("width", [150, 100, 80, 60])
def test_no_number_of_a_sweeps_table_is_cut(width: int, composed: Compose, tmp_path: Path) -> None:
    make, outcomes = Make(composed, tmp_path), []
    for number, words in enumerate(product(("sgd", "tmsgd"), ("lr=0.0123456", "lr=0.1"), ("task.betas=[a,b]", ""))):
        folder = make(words[0], 0, 0.7123, "epochs=2", words[1], seconds=1234.5)
        record = JobRecord(number, ["task=tc", f"optimizer={words[0]}", *filter(None, words[1:])], "", str(folder))
        outcomes.append((record, Result.load(folder)))
    console = Console(file=StringIO(), width=width)
    print_results(outcomes, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert [text.count(number) for number in ("71.23 %", "1234.5", "…")] == [16, 8, 0]
    if width >= 80:
        assert (text.count("0.0123456"), text.count("[a,b]"), text.count("completed")) == (4, 4, 8)


FAILING = ["task=tc", "epochs=2", "batch_size=80", "optimizer.momentum=0.5,1.1,0.6", "switch_epoch=1"]


def test_fail_fast_starts_no_job_after_a_failed_one(tmp_path: Path) -> None:
    done = tmbench("-m", *FAILING, "fail_fast=true", f"runs_dir={tmp_path}")
    assert done.returncode == 1
    states = re.findall(r"^│ +\d │ [\d.]+ +│ ([a-z ]+?) +│", done.stdout, re.MULTILINE)
    assert states == ["completed", "failed", "not started"]
    assert "momentum must be in [0, 1), got 1.1" in done.stdout
    assert len(list(tmp_path.glob("tc-*"))) == 2
    done = tmbench("-m", *FAILING, "fail_fast=true", "epochs=0", f"runs_dir={tmp_path}/wrong")  # all jobs
    assert done.returncode == 1
    assert not list(tmp_path.glob("wrong/tc-*"))


@pytest.mark.parametrize(
    ("words", "got"),
    [("fail_fast=true,false", "true and false"), ("plan=false,true", "false and true"), ("fail_fast=1", "1"),
     ("plan='true'", '"true"'), ("plan=[true,false]", "[true, false]"), ("plan=null", "null")],
)  # fmt: skip
def test_a_setting_of_the_whole_sweep_has_one_value(words: str, got: str, tmp_path: Path) -> None:
    done = tmbench("-m", "task=tc", words, f"runs_dir={tmp_path}")
    key = words.partition("=")[0]
    told = f"{key}: expected true or false, one value for the whole sweep, got {got}\n"
    assert (done.returncode, done.stderr) == (1, told)
    assert not list(tmp_path.glob("tc-*"))


def test_fail_fast_is_no_part_of_a_run(composed: Compose) -> None:
    assert settle(composed()).fail_fast is False
    older = settle(composed())
    del older["fail_fast"]
    assert settle(older) == settle(composed())
    assert command(["task=tc", "fail_fast=true"]).endswith(" task=tc")


def test_serial_sweep_on_a_terminal_shows_its_table_and_every_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were one
    monkeypatch.setenv("COLUMNS", "80")
    done = tmbench("-m", *FAILING, f"runs_dir={tmp_path}")
    assert done.returncode == 1
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", done.stderr)
    assert re.search(r"job +momentum +status +epoch +loss +metric +time left", text)
    assert re.search(r"0 +0.5 +completed +2/2 +\S+ +\d+\.\d\d %", text)
    assert "momentum must be in [0, 1), got 1.1" in text
    assert "job 1  optimizer.momentum=1.1: failed" in text
    assert "3 jobs: " in text
    assert max(map(len, text.replace("\r", "\n").splitlines())) <= 80


@pytest.mark.slow
def test_table_is_redrawn_in_place_on_a_terminal_and_gone_at_the_end(tmp_path: Path) -> None:
    """In a pseudo-terminal of 80 columns, by the process that a person starts."""
    words = ["-m", "tmbench", "-m", *FAILING, f"runs_dir={tmp_path}", "launcher=local"]
    child = pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=120, encoding="utf-8")
    told = child.read()
    child.close()
    assert child.exitstatus == 1
    table, erased, last = told.rindex("time left"), told.rindex("\x1b[2K"), told.rindex("seconds")
    assert table < erased < last
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", told)
    assert re.search(r"job 1 +optimizer.momentum=1.1: failed.*momentum must be in \[0, 1\), got 1.1", plain, re.DOTALL)
