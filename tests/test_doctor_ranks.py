"""The doctor's runs on two processes: one training, and what is planted in them is found."""

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tmbench.doctor import command, ranks
from tmbench.doctor.bench import Bench, weights
from tmbench.doctor.command import Command, can_find_children


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "cpu")


# Does what a run on two ranks does, but trains nothing: starts a child, and has an epoch.
STAND_IN = """
import subprocess, sys, time
from pathlib import Path
kind, runs_dir = sys.argv[1], Path(sys.argv[2].removeprefix("runs_dir="))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
last = runs_dir / "run" / "checkpoints" / "last.ckpt"
if kind != "nothing":
    last.parent.mkdir(parents=True)
    last.touch()
    child.wait()
    print("rank 1 of 2 was ended by SIGKILL")
if kind == "hangs":
    time.sleep(60)
child.kill()
sys.exit(kind == "tells")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Command]:
    if not can_find_children():
        pytest.skip("finds the ranks under /proc")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(command, "PROGRAM", [sys.executable, str(tmp_path / "stand_in.py")])
    for module in (command, ranks):
        monkeypatch.setattr(module, "ENDS_WITHIN", 0.6)
    return lambda kind: Command([kind], tmp_path / "runs")


@pytest.mark.parametrize(("kind", "said"), [("unnoticed", "with status 0"), ("hangs", "still waited for it 1 s later")])
def test_a_killed_rank_that_is_not_noticed_is_red(
    kind: str, said: str, stand_in: Callable[[str], Command], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "pair", lambda *args, **settings: stand_in(kind))
    finding = ranks.killed(bench)
    assert (finding.state, said in finding.found) == ("red", True)


def test_a_rank_is_killed_after_an_epoch(stand_in: Callable[[str], Command]) -> None:
    status, seconds = stand_in("tells").kill_a_rank()
    assert (status, seconds < 0.6) == (1, True)
    with pytest.raises(RuntimeError, match="tmbench nothing: it saved no epoch"):
        replace(stand_in("nothing"), runs_dir=stand_in("nothing").runs_dir / "other").kill_a_rank()


def test_a_command_that_fails_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="tmbench lr=-1: exit status 1: lr: expected a number > 0, got -1"):
        Command(["lr=-1"], tmp_path).result()


@pytest.mark.slow
def test_ranks_are_one_training_and_survive_a_kill(bench: Bench) -> None:
    findings = {finding.name: finding for finding in ranks.ranks(bench)}
    assert all(finding.state == "green" for finding in findings.values()), findings
    names = ["tc loss", "tc metric", "ic loss", "ic metric", "batch norm", "killed", "local, seed 0", "local, seed 1"]
    assert list(findings) == names
    assert "the same bits after 640 steps" in findings["killed"].found
    assert "26 running statistics" in findings["batch norm"].found


@pytest.mark.slow
def test_batch_norm_that_ranks_do_not_share_is_red(bench: Bench, tmp_path: Path) -> None:
    """Planted in a task that the ranks import: each keeps the statistics of its own share."""
    (tmp_path / "task").mkdir()
    task = (Path(__file__).parents[1] / "conf" / "task" / "ic.yaml").read_text()
    target = "tmbench.tasks.ic.task.IC"
    assert task.count(f"_target_: {target}\n") == 1
    (tmp_path / "task" / "unshared.yaml").write_text(
        task.replace(target, "unshared.IC").replace("name: ic", "name: unshared")
    )
    (tmp_path / "unshared.py").write_text(
        textwrap.dedent("""
        from tmbench.tasks.ic.task import IC
        from tmbench.training.module import Training
        Training._share_statistics = lambda training: None
        """)
    )
    one_step: dict[str, Any] = {"epochs": 1, "batch_size": 400}
    whole = ranks.pair(bench, "unshared", "unshared", "sgd", **one_step)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        both = replace(whole, words=["--config-dir", str(tmp_path), *whole.words]).result()
    alone = bench.run("ic", "sgd", **one_step, **{"trainer.accumulate": 2})
    finding = ranks.same_statistics(weights(both), weights(alone))
    assert (finding.state, "devices=1" in finding.remedy) == ("red", True), finding
