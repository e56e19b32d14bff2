"""What a person types, and what they are told."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, Run, choices
from helpers import tmbench

from tmbench.config.settle import plain
from tmbench.config.table import conf_dir, own_keys
from tmbench.errors import DataError
from tmbench.files import locked
from tmbench.result import Result
from tmbench.sweeps.job import JobOrder, JobRecord, record_of
from tmbench.sweeps.launchers.base import RemoteJob
from tmbench.sweeps.plan import Job, RunFinder, measured_durations
from tmbench.sweeps.show import varied_settings


def swept(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A sweep in the folder X, of runs that take no time."""
    return tmbench("-m", "task=tc", "epochs=1", "batch_size=80", "hydra.sweep.dir=X", *words, cwd=cwd)


def rows(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Of the table of a sweep's jobs."""
    return [line for line in done.stdout.splitlines() if re.match(r"│ +\d", line)]


def test_one_run_ends_in_a_short_table(tmp_path: Path) -> None:
    done = tmbench("task=tc", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", "batch_size=80", f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("tc-tmsgd-0-*")
    expected = [
        "tc tmsgd seed=0",
        r"accuracy +\d+\.\d\d % at the end, best \d+\.\d\d % after epoch [12], on tiny data",
        r"baseline +12\.50 % without looking at the input",
        r"status +completed",
        r"switch +after epoch 1 \(step 4\)",
        r"seconds +\d+\.\d of training \(2 of 2 epochs, [\d,]+ examples/s\)",
        rf"files +{re.escape(str(folder))}",
        r"real data +python -m tmbench task=tc optimizer=tmsgd (?!.*epoch).* data=full data_dir=DIR",
    ]
    for pattern, line in zip(expected, done.stdout.strip().splitlines(), strict=True):
        assert re.fullmatch(pattern, line.strip()), (pattern, line)
    assert "epoch 2/2  switched" in done.stderr
    assert "Warning" not in done.stderr


def test_a_known_run_is_shown_from_its_folder_without_torch(do: Run) -> None:
    _, folder = do("task=tc", "optimizer=tmsgd", "epochs=1", "batch_size=80")
    code = (
        "import sys\nfrom tmbench.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    print('status', done.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "run", str(folder)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "completed before (shown, not repeated" in shown
    assert shown.splitlines()[-1] == "status 0 False"


def test_help_names_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = tmbench("--help")
    assert [line for line in shown.stdout.splitlines() if len(line) > 80 and not line.startswith("optimizer: ")] == []
    assert shown.returncode == 0
    for group in ("task", "optimizer", "data", "protocol", "schedule", "trainer", "logger"):
        assert f"{group}: {', '.join(choices(group))}" in shown.stdout
    assert "  tmbench task=seg optimizer=tmsgd  " in shown.stdout
    assert "$" not in shown.stdout.replace('eval "$(tmbench', "")


def test_help_and_config_import_nothing_heavy() -> None:
    heavy = ("torch", "pytorch_lightning", "wandb", "numpy", "pydantic", "submitit", "ray", "tmbench.sweeps.launchers")
    code = (
        "import sys, tmbench.__main__, tmbench.config.settle, tmbench.runs.show, tmbench.sweeps.sweep; "
        f"print(*(name for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task=sg"], ["task=sg: there is no such choice; did you mean seg?", "possible here: ctr fkpd"]),
        (["optimizer=tmgd"], ["optimizer=tmgd: there is no such choice; did you mean tmsgd?", "adam"]),
        (["optimzer=sgd"], ["optimzer: there is no such setting; did you mean optimizer?", "switch_epoch"]),
        (["sed=2"], ["sed: there is no such setting; did you mean seed?"]),
        (["optimizer.momentm=0.9"], ["optimizer.momentm: there is no such setting; did you mean momentum?", "history"]),
        (["curvature.share=0.5"], ["curvature.share: there is no such setting; it is a setting of curvature=measure"]),
        (["switch_epoch=abc"], ["switch_epoch: expected a whole number >= 0, or never, or stable, got 'abc'"]),
        (["epochs=0"], ["epochs: expected a whole number >= 1, got 0"]),
        (["epochs=1.5"], ["epochs: expected a whole number >= 1, got 1.5"]),
        (["lr=-1"], ["lr: expected a number > 0, got -1"]),
        (["lr=nan"], ["lr: expected a number > 0, got nan"]),
        (["seed=true"], ["seed: expected a whole number >= 0, got True"]),
        (["precision=16"], ["precision: expected one of 32, bf16-mixed, got '16'"]),
        (["optimizer.momentum=x"], ["optimizer.momentum: expected a number >= 0, got 'x'"]),
        (["task.width=-3"], ["task.width: expected a whole number >= 1, got -3"]),
        (["task.variant=cleen"], ["task.variant: expected one of clean, stripped, got 'cleen'"]),
        (["task=seg", "task.weights=foo"], ["task.weights: expected one of none, backbone, coco, got 'foo'"]),
        (["task=ic", "task.dataset=mnist"], ["task.dataset: expected one of cifar10, cifar100, got 'mnist'"]),
        (["data.profile=full"], ["data.profile: this is set by the file that data=... chooses", "say data=full"]),
        (["~seed"], ["seed: expected a setting of this name, got none; leave it in"]),
        (["devices=gpu"], ["devices: expected how many, got 'gpu'; the kind is trainer=cpu, gpu, ddp, ddp_cpu"]),
        (["+foo=1"], ["foo: nothing reads this setting; leave it out"]),
        (["+sed=1"], ["sed: nothing reads this setting; did you mean seed?"]),
        (["lr==0.1"], ["lr==0.1: expected key=value; say lr=0.1"]),
        (["seed=0,", "1,", "2"], ["comma; several values are written without spaces: seed=A,B,C"]),
        (["lr = 0.1"], ["lr = 0.1: expected key=value; say lr=0.1, without spaces"]),
        (["lr=0,1"], ["lr=0,1: several values make a sweep: add -m;"]),
        (["optimizer=signs"], ["optimizer=signs: there is no such choice; your own files need --config-dir DIR"]),
        (["devices=2"], ["devices: trainer=auto uses one, got 2; use trainer=ddp_cpu"]),
        (["data=full", "data_dir=/nowhere"], ["data_dir: no folder /nowhere; to download the data there: mkdir -p"]),
        (["data=full", "data.download=false", "data_dir=/"], ["tc: no /r8/train.txt", "data=tiny"]),
        (["optimizer=sgd,tmgd", "-m"], ["optimizer=tmgd: there is no such choice; did you mean tmsgd?"]),
        (["hydra.sweeper.max_batch_size=2", "-m"], ["hydra.sweeper.max_batch_size: there is no such setting"]),
        (["optimizer=adam", "optimizer.betas.x=1"], ["one of these settings cannot be set like this"]),
        (["+hydra.sweeper.max_batch_size=2", "-m"], ["hydra.sweeper.max_batch_size: there is no such setting"]),
        (["launcher=local", "hydra/sweeper=basic", "-m"], ["launcher: this needs hydra/sweeper=tmbench"]),
        (["launcher=local"], ["launcher: this works for a sweep only; add -m"]),
        (["plan=true"], ["plan: this works for a sweep only; add -m"]),
        (["fail_fast=true"], ["fail_fast: this works for a sweep only; add -m"]),
        (["study=switch"], ["study: this works for a sweep only; add -m"]),
        (["task=seg", "data=full", "data.download=false", "data_dir=/"], ["no /voc2007/VOCdevkit", "tar"]),
        (["task=1"], ["task: expected the name of a file of conf/task (ctr, fkpd, ", "got 1"]),
        (["=1"], ["=1: expected key=value, got no key"]),
        (["optimizer=null"], ["optimizer: expected the name of a file of conf/optimizer", "got null"]),
        (["optimizer={}"], ["optimizer: expected the name of a file of conf/optimizer", "got {}"]),
        (["logger=[csv,wandv]"], ["logger=wandv: there is no such choice; did you mean wandb?"]),
        (["logger=[]"], ["logger: expected the name of a file of conf/logger", "got []"]),
        (["hydra/sweeper=2"], ["hydra/sweeper: expected the name of a file", "got 2"]),
        (["~trunk"], ["trunk: expected a setting of this name, got none"]),
        (["~optimizer"], ["optimizer: expected a setting of this name, got none"]),
        (["data.profile=[]"], ["data.profile: this is set by the file that data=... chooses"]),
        (["optimizer.trunk=-1"], ["optimizer.trunk: this is set by the file"]),
        (["task.data=zzz"], ["task.data: this is set by the file"]),
        (["task._target_=auto"], ["task._target_: this is set by the file"]),
        (["task.name=../../x"], ["task.name: this is set by the file"]),
        (["runs_dir=/dev/null"], ["runs_dir: expected a folder, got /dev/null: /dev/null is a file"]),
        (["runs_dir=/dev/null/x"], ["runs_dir: expected a folder, got /dev/null/x: /dev/null is a file"]),
        (["runs_dir=null"], ["runs_dir: expected a folder, got null"]),
        (
            ["epochs=99999999999999999999"],
            ["epochs: expected a whole number >= 1, at most 2^53, got 99999999999999999999"],
        ),
        (["seed=99999999999999999999"], ["seed: expected a whole number >= 0, at most 2^53, got 9"]),
        (["optimizer.switch_step=inf"], ["optimizer.switch_step: this is set by the file"]),
    ],
)
def test_bad_words_get_one_clear_message_and_leave_nothing(words: list[str], told: list[str], tmp_path: Path) -> None:
    done = tmbench("task=tc", f"runs_dir={tmp_path / 'runs'}", *words)
    assert done.returncode == 1
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr  # Hydra's own words
    assert not list((tmp_path / "runs").glob("*/result.json"))


def test_a_comment_that_is_no_condition_may_have_a_colon(tmp_path: Path) -> None:
    for text in (
        "a number of steps: some",
        "a fraction: of what",
        "one: or two",
        "a list of names: whose",
        "truly: so",
    ):
        (tmp_path / "mine.yaml").write_text(f"lr: 1  # {text}\n")
        assert own_keys("optimizer", tmp_path / "mine.yaml") == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--configdir", "mine"], "--configdir: there is no such option; did you mean --config-dir?"),
        (["--task", "tc"], "--task: there is no such option; a setting is written task=VALUE"),
        (["runs", "lst"], "lst: tmbench runs has no such command; did you mean list?"),
        (
            ["run", "runs/x", "--configdir", "mine"],
            "--configdir: tmbench run has no such word; did",
        ),
    ],
)
def test_words_that_are_no_command_get_a_hint(words: list[str], told: str) -> None:
    done = tmbench(*words)
    assert (done.returncode, told in done.stderr) == (2, True)


def test_a_run_is_repeated_by_its_id_alone(do: Run, tmp_path: Path) -> None:
    _, folder = do("task=tc", "epochs=1", "batch_size=80")
    (tmp_path / "runs").mkdir()
    folder.rename(tmp_path / "runs" / folder.name)
    assert "completed before" in tmbench("run", folder.name, cwd=tmp_path).stdout
    done = tmbench("run", "tc-x", cwd=tmp_path)
    assert (done.returncode, "tc-x: no run in runs has an id that starts so" in done.stderr) == (1, True)


def test_configuration_can_be_shown_without_a_run() -> None:
    shown = tmbench("task=seg", "optimizer=adam", "--cfg", "job")
    assert shown.returncode == 0
    assert "_target_: torch.optim.Adam" in shown.stdout
    assert "name: poly" in shown.stdout  # seg's own schedule
    chosen = tmbench("task=seg", "schedule=cosine", "--cfg", "job")
    assert "name: cosine" in chosen.stdout


def test_tab_completion_knows_groups_and_choices() -> None:
    command = [sys.executable, "-m", "tmbench", "-sc", "query=bash"]
    asked = {"COMP_LINE": "tmbench task=", "COMP_POINT": "13", "COMP_CWORD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **asked})
    assert set(done.stdout.split()) == {f"task={name}" for name in choices("task")}


def test_sweep_goes_on_past_a_failed_job_and_says_so(tmp_path: Path) -> None:
    """A diverged run is a result."""
    words = ["optimizer=tmsgd", "optimizer.momentum=1.1,0.5", "lr=1e38,0.1", "switch_epoch=0"]
    done = swept(tmp_path, *words)
    assert done.returncode == 1
    statuses = [re.findall("completed|diverged|failed", row) for row in rows(done)]
    assert statuses == [["failed"], ["failed"], ["diverged"], ["completed"]]
    assert "job 0 optimizer=tmsgd: tmsgd: momentum must be in [0, 1), got 1.1" in done.stdout
    assert "Traceback" not in done.stderr


def test_sweep_with_a_diverged_job_exits_zero_and_knows_its_runs_again(tmp_path: Path) -> None:
    words = ["optimizer=sgd", "lr=0.1,1e38", "switch_epoch=1,2"]
    done = swept(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    found = [("diverged" in row, "known" in row) for row in rows(done)]
    assert found == [(False, False), (False, True), (True, False), (True, True)]
    again = swept(tmp_path, *words)
    assert again.returncode == 0
    assert again.stdout.count("known") == 4


def test_hydras_own_sweeper_does_runs(tmp_path: Path) -> None:
    done = swept(tmp_path, "seed=0,1", "hydra/sweeper=basic")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^tc tmsgd seed=\d", done.stdout, re.MULTILINE) == ["tc tmsgd seed=0", "tc tmsgd seed=1"]


def test_a_launcher_of_hydra_is_refused_where_it_would_have_no_effect(tmp_path: Path) -> None:
    (tmp_path / "mine" / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "mine" / "hydra" / "launcher" / "other.yaml").write_text("_target_: hydra.plugins.launcher.Launcher")
    done = swept(tmp_path, "hydra/launcher=other", "--config-dir", "mine")
    assert done.returncode == 1
    assert "hydra/launcher: expected none for hydra/sweeper=tmbench, got other; say launcher=local" in done.stderr


_OWN = "name: mine\n_target_: torch.optim.SGD\n_partial_: true\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name: mine\n_partial_: true\n", "mine.yaml: expected the keys _target_, name, got no _target_"),
        ("_target_: torch.optim.SGD\n_partial_: true\n", "mine.yaml: expected the keys _target_, name, got no name"),
        ("- 1\n- 2\n", "mine.yaml: expected lines such as lr: 0.1, got [1, 2]"),
        ("", "mine.yaml: expected lines such as lr: 0.1, got an empty file"),
        ("a: [1\n", "mine.yaml, line 2: not YAML that can be read: expected ',' or ']', but got '<stream end>'"),
        (f"{_OWN}lr: 1\nlr: 2\n", "mine.yaml, line 5: not YAML that can be read: found duplicate key lr"),
        (f"{_OWN}1: 2\n", "mine.yaml: expected names as keys, such as lr, got 1"),
        (f"{_OWN}defaults: sgd\n", "mine.yaml: defaults: expected a list of names of other files of optimizer/"),
        (f"{_OWN}defaults: [3]\n", "mine.yaml: defaults: expected a list of names of other files of optimizer/"),
        (f"{_OWN}defaults: [sdg]\n", "optimizer/mine.yaml: defaults: optimizer=sdg: there is no such choice; did you"),
        (f"{_OWN}defaults: [other]\n", "other.yaml, line 2: not YAML that can be read: found duplicate key a"),
        ("name: mine\n_target_: torch.optim.SGD\n", "optimizer._partial_: expected true, since the run gives the"),
        ("name: mine\n_target_: os.getcwd\n_partial_: true\n", "os.getcwd to make a torch.optim.Optimizer of param"),
        ("name: mine\n_target_: builtins.list\n_partial_: true\n", "list: expected a torch.optim.Optimizer, got [P"),
        (f"{_OWN}lr: 1  # a numer > 0: rate", "mine.yaml: lr: expected before the colon of its comment a condition"),
        (f"{_OWN}lr: 1  # one off a, b: rate", "`one of`, got `one off a, b`"),
        ("name: ../x\n_target_: torch.optim.SGD\n", "optimizer.name: expected a name of letters, digits,"),
        ("name: mine\n_target_: 3\n", "_target_: expected the name of a class, such as torch.optim.SGD"),
        ("name: mine\n_target_: torch.optim.SGDD\n_partial_: true\n", "imported, got torch.optim.SGDD: torch.optim ("),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_persons_own_yaml_is_told(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "mine.yaml").write_text(content)
    (tmp_path / "mine" / "optimizer" / "other.yaml").write_text("a: 1\na: 2\n")
    done = tmbench("task=tc", "optimizer=mine", f"runs_dir={tmp_path / 'runs'}", "--config-dir", str(tmp_path / "mine"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert told in done.stderr


_RAISES = """import torch
class Mine(torch.optim.SGD):
    def __init__(self, params, lr):
        raise KeyError(f"no rate {lr}")
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lr=0.1"], "lr: optimizer=mine does not read it, since its YAML file has no ${lr}; say optimizer.lr=0.1, or"),
        (["optimizer.momentum=1.5"], "optimizer.momentum: expected a number between 0 and 1, got 1.5"),
        (["-m", "optimizer.momentum=0.5,2"], "optimizer.momentum: expected a number between 0 and 1, got 2"),
        (["optimizer=raises"], "raises: raising.Mine ({place}/raising.py:4): KeyError: 'no rate 0.5'"),
        (["optimizer=wrong"], "wrong.yaml: momentum: expected a number between 0 and 1, got 3"),
    ],
)
def test_values_of_ones_own_optimizer_are_checked_by_its_comments_and_its_class(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine" / "optimizer"
    folder.mkdir(parents=True)
    (tmp_path / "raising.py").write_text(_RAISES)
    monkeypatch.syspath_prepend(tmp_path)
    for name, target, others in (
        ("mine", "torch.optim.SGD", "momentum: 0.5  # a number between 0 and 1: kept\n"),
        ("wrong", "torch.optim.SGD", "momentum: 3  # a number between 0 and 1: kept\n"),
        ("raises", "raising.Mine", ""),
    ):
        text = f"name: {name}\n_target_: {target}\n_partial_: true\nlr: 0.5  # a number > 0: rate\n{others}"
        (folder / f"{name}.yaml").write_text(text)
    done = tmbench("task=tc", "optimizer=mine", "epochs=1", *words, "--config-dir", "mine", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert told.format(place=tmp_path, lr="{lr}") in done.stderr


@pytest.mark.parametrize("words", [["--config-dir", "mine"], ["hydra.searchpath=[file://mine]"]])
def test_ones_own_yaml_with_the_name_of_a_built_in_is_refused_since_it_would_not_be_read(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "tiny.yaml").write_text("profile: tiny\nexamples: 3\n")
    done = tmbench("task=tc", *words, cwd=tmp_path)
    told = "mine/data/tiny.yaml: data=tiny is built in, and this file would not be read; rename it\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_home_folder_is_meant_by_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = tmbench("task=tc", "epochs=1", "switch_epoch=5", "runs_dir=~/mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "switch_epoch=5 is not within the 1 epochs: this run never switches" in done.stderr
    assert len(list((tmp_path / "mine").glob("tc-*"))) == 1
    assert "1 run: 1 completed" in tmbench("runs", "list", "--runs-dir", "~/mine").stdout


def test_a_persons_own_yaml_files_are_found_elsewhere(tmp_path: Path) -> None:
    """Another folder, no copy of ours, nothing of ours changed; by every job of a sweep."""
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    text = (conf_dir() / "optimizer" / "sgd.yaml").read_text().replace("name: sgd", "name: mine")
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text(text)
    done = swept(tmp_path, "optimizer=mine", "seed=0,1", "--config-dir", "conf")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs").glob("tc-mine-*/result.json"))) == 2


def test_jobs_differ_also_beside_words_that_take_a_setting_away() -> None:
    jobs = [(["task=tc", f"lr={lr}", "~optimizer.trunk", "++note=a=b"], "") for lr in (0.1, 0.2)]
    settings, varied, common = varied_settings(jobs)
    assert [own["lr"] for own in settings] == ["0.1", "0.2"]
    assert (varied, common) == (["lr"], "task=tc ~optimizer.trunk ++note=a=b")


def test_a_sweep_in_the_folder_of_an_earlier_one_tells_of_its_own_jobs_alone(tmp_path: Path) -> None:
    """Fewer jobs than before, one of them known, beside what a power cut left and what is somebody else's."""
    first = swept(tmp_path, "optimizer=tmsgd", "optimizer.momentum=0.5,1.1")
    assert first.returncode == 1
    assert "2 jobs" in first.stdout
    folder = tmp_path / "X"
    (folder / "job-00000.json").write_text("")
    (folder / "job-00007.json").write_text('{"overr')
    for name in ("stopping", "job-00000.log", "launch-00003.json", "notes.txt", "job-notes.json"):
        (folder / name).write_text("before")
    again = swept(tmp_path, "optimizer=tmsgd", "optimizer.momentum=0.5")
    assert (again.returncode, again.stderr) == (0, "")
    assert "1 job: " in again.stdout
    assert again.stdout.count("completed, known") == 1
    left = {path.name for path in folder.iterdir() if path.is_file()}
    assert left == {".lock", "sweep.txt", "multirun.yaml", "notes.txt", "job-notes.json"}
    assert {(folder / name).read_text() for name in ("notes.txt", "job-notes.json")} == {"before"}


def test_two_sweeps_at_a_time_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    with locked(tmp_path / "X"):
        (tmp_path / "X" / "job-00000.json").write_text("the other's")
        second = swept(tmp_path)
    assert second.returncode == 1
    told = "hydra.sweep.dir: another sweep is at work in X; wait for its end, or say another folder"
    assert second.stderr.strip() == told
    assert (tmp_path / "X" / "job-00000.json").read_text() == "the other's"
    assert not list(tmp_path.glob("runs/tc-*"))


@pytest.mark.parametrize("more", [[], ["-m"]])
def test_a_primary_configuration_of_ones_own_is_refused_since_no_word_would_keep_it(
    more: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nlr: 3\n")
    done = tmbench("--config-dir", ".", "--config-name", "mine", "task=tc", *more, cwd=tmp_path)
    assert done.returncode == 1
    assert "--config-name: not supported" in done.stderr
    assert not list(tmp_path.glob("runs/tc-*"))


def test_a_sweep_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "X").touch()
    done = swept(tmp_path)
    assert done.returncode == 1
    assert "hydra.sweep.dir: expected a folder to write to, got X" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_result_is_named_and_made_again_by_a_sweep(do: Run, tmp_path: Path) -> None:
    """Of two jobs that are one run, the second is not begun, and shows what the first has left."""
    result, folder = do("task=tc", "epochs=1", "batch_size=80", "optimizer=sgd")
    (folder / "result.json").write_text('{"status": ')
    done = swept(tmp_path, "optimizer=sgd", "switch_epoch=1,2", f"runs_dir={tmp_path}")
    assert done.returncode == 0
    assert "result.json: damaged" in done.stderr
    assert "Traceback" not in done.stderr
    again = Result.load(folder)
    assert again is not None
    assert again.metrics == result.metrics


def test_a_job_that_outlives_its_sweep_leaves_the_next_ones_table_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, which a killed sweep cannot end."""
    owner = tmp_path / "sweep.txt"
    owner.write_text("old")
    job = RemoteJob(JobOrder(0, "", [], [], {}, [], environment={"TMBENCH_SWEEP": "old"}).save(tmp_path))
    monkeypatch.setenv("TMBENCH_SWEEP", "old")
    record = JobRecord(0, ["seed=0"], "", error="as long as it is the only one")
    record.save(tmp_path)
    assert not job.must_stop()
    assert record_of(tmp_path, 0) == record
    owner.write_text("new")
    assert job.must_stop()
    JobRecord(0, ["seed=0"], "", error="too late", sweep="old").save(tmp_path)
    assert record_of(tmp_path, 0) == record
    monkeypatch.setenv("TMBENCH_SWEEP", "new")
    assert record_of(tmp_path, 0) is None


def test_a_record_that_a_power_cut_damaged_has_a_line_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(folder: Path, order: JobOrder) -> Any:
        (folder / "job-00000.json").write_text(damaged)
        return [Result.__new__(Result)]

    for damaged in ("", "[]", '{"sweep": "new"', '{"sweep": "new", "number": "x"}'):
        (tmp_path / "job-00000.json").write_text(damaged)
        with pytest.raises(DataError, match=r"job-00000.json: .*; give the same command again"):
            record_of(tmp_path, 0)
    monkeypatch.setattr(Result, "status", "completed", raising=False)
    monkeypatch.setattr("tmbench.sweeps.sweep.do_job", torn)
    done = swept(tmp_path)
    assert done.returncode == 1
    assert re.search(r"job 0 X/job-00000.json: .*; give the same command again", done.stdout)


def test_a_damaged_configuration_tells_a_plan_nothing_and_does_not_stop_it(
    do: Run, composed: Compose, tmp_path: Path
) -> None:
    words = ["task=tc", "epochs=1", "batch_size=80", f"runs_dir={tmp_path}"]
    result, folder = do(*words)
    job = Job(0, [], plain(composed(*words, "seed=1")))
    RunFinder(download=False).find(job)
    assert measured_durations([job])[0].run == result.run_id
    for damaged in ("", "{", "\0", "task: tc"):
        (folder / "config.yaml").write_text(damaged)
        assert measured_durations([job]) == {}
