"""Two processes do one run: the global batch is shared out, metrics are whole, one result is written."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Compose, Run, each_task
from helpers import build, curves, start, wait_for_epochs, weights
from torch.testing import assert_close

import tmbench
from tmbench import training
from tmbench.config.settle import settle
from tmbench.errors import ConfigError, RunError
from tmbench.result import Result
from tmbench.run import run
from tmbench.runs import Run as Record
from tmbench.runs.figures import restored
from tmbench.task import Task
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader
from tmbench.training.ranks import is_rank

PAIR = ["trainer=ddp_cpu", "devices=2"]
LONG = 16  # epochs, so that a signal comes before the end
BATCHES = {"ctr": 161, "ic": 25, "fkpd": 13, "ig": 13}  # of the larger tiny sets; odd, so that the ranks' shares differ


def evaluated(task: Task) -> dict[str, float]:
    """The metrics of a trained task, over its test split in one process."""
    evaluation = Evaluation(task)
    evaluation.start()
    loader = TestLoader(task.examples("test"), task.collate, task.cfg.eval_batch_size, device=torch.device("cpu"))
    with torch.no_grad():
        for batch in loader:
            evaluation.update(batch)
    return evaluation.values()


@pytest.mark.parametrize("task", each_task("tc"))
def test_two_processes_train_every_task_into_one_result(task: str, composed: Compose, tmp_path: Path) -> None:
    """Two ranks are two parts of a batch in one process."""
    words = [f"task={task}", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", f"batch_size={BATCHES.get(task, 5)}"]
    words.append(f"runs_dir={tmp_path}")
    alone, _, _ = run(composed(*words))
    parts, elsewhere, _ = run(composed(*words, "trainer.accumulate=2"))
    both, folder, _ = run(composed(*words, *PAIR))
    assert both.status == "completed"
    assert both.run_id != alone.run_id
    assert both.steps == alone.steps
    assert both.hardware.startswith("2 x ")
    assert len(list(tmp_path.glob("*/result.json"))) == 3
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert len((folder / "curves.csv").read_text().splitlines()) == 3
    if task == "ig":  # each rank draws noise of its own, and what is evaluated are pictures drawn anew
        return
    # What is told is what the weights that are kept are worth, in one process too: each test example counted once.
    trained = restored(Record.open(folder))
    values = {key: value for key, value in both.metrics["last"].items() if not key.startswith("train/")}
    assert values == pytest.approx(evaluated(trained), rel=1e-4, abs=1e-5)
    own, others = weights(folder), weights(elsewhere)
    for name, _ in trained.named_parameters():
        assert_close(own[name], others[name], rtol=1e-3, atol=1e-3)
    assert both.metrics["last"]["train/loss"] == pytest.approx(parts.metrics["last"]["train/loss"], rel=1e-3)
    if not any("running_mean" in name for name in own):  # without batch norm, all are one computation
        assert both.metrics["last"] == pytest.approx(alone.metrics["last"], rel=1e-4, abs=1e-3)


@pytest.mark.slow
def test_batch_norm_averages_are_those_of_both_ranks(composed: Compose, tmp_path: Path) -> None:
    """After one step on all examples, the first layer's running mean is that of the batch, as in one process."""
    task, _ = build(composed, "ic")
    averaged = [*task.named_parameters(), *((name, t) for name, t in task.named_buffers() if t.is_floating_point())]
    names = [name for name, _ in averaged]
    first = next(name for name in names if name.endswith("running_mean"))
    found = []
    for more in ([], PAIR):
        whole = f"batch_size={len(task.examples('train'))}"
        _, folder, _ = run(composed("task=ic", "epochs=1", "ema=0.5", whole, f"runs_dir={tmp_path}", *more))
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        found.append((state["state_dict"][first], state["average"][names.index(first)]))
    assert float(found[0][0].abs().max()) > 1e-2
    assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["trainer.accumulate=3"], [*PAIR, "trainer.accumulate=2"]])
def test_ranks_and_parts_take_the_whole_batch_s_steps_where_void_areas_differ(
    more: list[str], composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding; the last batch has fewer pictures than there are parts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    words = ["task=seg", "task._target_=still_task.StillSeg", "optimizer=sgd", "epochs=1", "batch_size=31", "lr=0.01"]
    words += ["task.short_side=32", "task.weight_decay=0", "schedule=constant", f"runs_dir={tmp_path}"]
    alone, folder, _ = run(composed(*words))
    other, elsewhere, _ = run(composed(*words, *more))
    begun, _ = build(composed, "seg", *words[1:])
    whole, shared = weights(folder), weights(elsewhere)
    start = {name: p.detach() for name, p in begun.named_parameters()}
    pairs = ((whole, start), (shared, whole))
    step, apart = (torch.cat([(a[name] - b[name]).flatten() for name in start]).norm() for a, b in pairs)
    assert float(step) > 1e-4
    assert float(apart) < 1e-5 * float(step)
    assert other.metrics["last"]["train/loss"] == pytest.approx(alone.metrics["last"]["train/loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ic", "seg"])
def test_batch_norm_of_two_ranks_is_worth_what_that_of_two_parts_is(
    task: str, composed: Compose, tmp_path: Path
) -> None:
    """The same training, a whole tiny run of ic, evaluated with running averages that differ by when they are taken.

    Those of seg are of two pictures at a time: its mIoU moves by tenths from epoch to epoch, and is not compared.
    """
    words = [f"task={task}", "optimizer=tmsgd", *(["epochs=4"] if task == "seg" else []), f"runs_dir={tmp_path}"]
    parts, both = (run(composed(*words, *more))[0] for more in (["trainer.accumulate=2"], PAIR))
    assert both.metrics["last"]["train/loss"] == pytest.approx(parts.metrics["last"]["train/loss"], rel=1e-3)
    if task == "ic":
        key = both.headline
        assert both.metrics["last"][key] == pytest.approx(parts.metrics["last"][key], abs=0.03)


@pytest.mark.slow
def test_line_search_decides_alike_on_both_ranks(composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=lbfgs", "lr=0.5", "batch_size=321", "epochs=3", f"runs_dir={tmp_path}"]
    alone, _, _ = run(composed(*words))
    both, _, _ = run(composed(*words, *PAIR))
    assert both.metrics["last"]["train/loss"] == pytest.approx(alone.metrics["last"]["train/loss"], rel=1e-3)


@pytest.mark.slow
def test_optimizer_that_differentiates_itself_refuses_what_it_cannot_do(do: Run) -> None:
    with pytest.raises(ConfigError, match="clip_norm: optimizer=newton_cg takes its gradient itself"):
        do("task=tc", "optimizer=newton_cg", "clip_norm=1")
    with pytest.raises(RuntimeError, match="devices: optimizer=newton_cg runs on one"):
        do("task=tc", "optimizer=newton_cg", *PAIR)


def ranks(of: int) -> list[int]:
    """The processes that train, of the run that process `of` started, by rank."""
    children = (Path("/proc") / str(of) / "task" / str(of) / "children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks under /proc")
def test_killed_and_interrupted_ranks_end_the_run_which_the_same_command_resumes(tmp_path: Path) -> None:
    """First the one that writes the files is killed, then the other; then both are asked to stop."""
    trained, words = 1, ["task=tc", f"epochs={LONG}", "batch_size=8", "switch_epoch=1", *PAIR]
    for place in (0, -1):
        process = start(tmp_path, *words)
        folder = wait_for_epochs(tmp_path, trained)
        os.kill(ranks(process.pid)[place], signal.SIGKILL)
        killed = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert time.monotonic() - killed < 60
        assert process.returncode == 1, output
        assert "SIGKILL" in output
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        trained = len(curves(folder)) + 1
    process = start(tmp_path, *words)
    wait_for_epochs(tmp_path, trained)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    stopped = Result.load(folder)
    assert stopped is not None
    assert stopped.status == "interrupted"
    process = start(tmp_path, *words)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "resumed from its last checkpoint" in output
    whole = Result.load(folder)
    assert whole is not None
    assert (whole.status, whole.epochs["trained"]) == ("completed", LONG)


@pytest.mark.slow
def test_two_processes_print_nothing_for_who_asks_for_that(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tmbench.run("tc", "sgd", epochs=1, trainer="ddp_cpu", devices=2, runs_dir=tmp_path, progress=False)
    assert capfd.readouterr() == ("", "")
    tmbench.run("tc", "sgd", seed=1, epochs=1, trainer="ddp_cpu", devices=2, runs_dir=tmp_path)
    assert "epoch 1/1" in capfd.readouterr().err


@pytest.mark.slow
def test_divergence_on_two_processes_is_one_result(do: Run) -> None:
    result, _ = do("task=tc", "optimizer=sgd", "lr=1e38", "epochs=2", *PAIR)
    assert result.status == "diverged"


@pytest.mark.parametrize(
    ("task", "said", "shown"),
    [
        ("WrongFromTheStart", "rank 1 of 2: it is wrong here", 0),
        ("WrongInTraining", "rank 1 of 2: ArithmeticError: it is wrong here", 1),
    ],
)
@pytest.mark.slow
def test_the_rank_that_fails_first_is_named_and_has_a_traceback_only_where_nobody_can_mend_it(
    task: str, said: str, shown: int, do: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Meanwhile the other one waits for it, and is killed, or misses it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(training.ranks, "PATIENCE", 1.0)
    monkeypatch.setattr(training.ranks, "GRACE", 1.0)
    with pytest.raises(RunError, match=f"^{said}$"):
        do("task=tc", f"task._target_=still_task.{task}", "epochs=1", *PAIR)
    errors = capfd.readouterr().err
    assert (errors.count("still_task.py"), errors.count("SIG")) == (shown, 0)


@pytest.mark.slow
def test_fewer_examples_to_evaluate_than_ranks_are_told_once(
    do: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "r8").mkdir(parents=True)
    for name, count in (("train", 8), ("test", 1)):
        lines = [f"{label}\tsome words on {label} number {i}\n" for i, label in enumerate(["earn", "acq"] * count)]
        (tmp_path / "data" / "r8" / f"{name}.txt").write_text("".join(lines[:count]))
    told = "devices: expected no more than the test split has examples, 1, got 2"
    with pytest.raises(RunError, match=f"^{told}$"):
        do("task=tc", "optimizer=sgd", "data=full", f"data_dir={tmp_path / 'data'}", "epochs=1", *PAIR)
    assert capfd.readouterr() == ("", "")
    failed = Result.load(next(tmp_path.glob("tc-*")))
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", told)


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (PAIR, {}, False),
        (PAIR, {"TORCHELASTIC_RUN_ID": "x"}, True),
        (PAIR, {"SLURM_NTASKS": "2"}, True),
        (PAIR, {"SLURM_NTASKS": "4"}, False),
        ([], {"SLURM_NTASKS": "4"}, False),  # a run that is to be alone, inside a larger job
    ],
)
def test_a_process_knows_whether_it_was_launched_as_a_rank(
    words: list[str], environment: dict[str, str], expected: bool, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_rank(settle(composed("task=tc", *words))) == expected
