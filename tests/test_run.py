"""A run's promises: identity, determinism, resuming, divergence, failure and interruption."""

import json
import os
import signal
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run, choices, each_task
from helpers import SHORT, assert_same, build, curves, start, tmbench, wait_for_epochs, weights
from rich.console import Console

from tmbench.config.identity import run_id
from tmbench.config.settle import settle
from tmbench.errors import ConfigError
from tmbench.result import Result, epochs_done
from tmbench.run import run
from tmbench.runs import show
from tmbench.tasks.tc.task import TC
from tmbench.training.module import Training
from tmbench.training.train import StopOnSignal, nondeterministic_operations

QUICK = ["task=tc", "epochs=1", "batch_size=80"]

# What an optimizer needs beside its name, to show that it works on tiny tc.
OPTIMIZER = {
    "any": ["optimizer.name=Adadelta", "lr=1"],
    "apollo": ["optimizer.warmup_steps=50", "lr=0.002"],
    "clars": ["lr=1"],
    "eg": ["lr=0.5"],
    "lamb": ["lr=2e-3"],
    "lars": ["lr=1"],
    "multiplicative": ["lr=0.1"],
    "newton_cg": ["lr=0.5", "batch_size=320"],
    "lbfgs": ["lr=0.5", "batch_size=320"],
    "lion": ["lr=1e-3"],
    "schedule_free_sgd": ["lr=0.5"],
}


@pytest.mark.parametrize("task", each_task("tc", "ctr"))
def test_tmsgd_that_never_switches_equals_sgd_bitwise(task: str, do: Run) -> None:
    _, never = do(f"task={task}", "optimizer=tmsgd", "switch_epoch=never", *SHORT.get(task, []))
    _, sgd = do(f"task={task}", "optimizer=sgd", *SHORT.get(task, []))
    assert never != sgd
    assert_same(weights(never), weights(sgd))
    assert curves(never) == curves(sgd)


@pytest.mark.parametrize(
    ("task", "number"),
    [
        ("tc", signal.SIGINT),
        pytest.param("tc", signal.SIGTERM, marks=pytest.mark.slow),
        *(pytest.param(task, signal.SIGINT, marks=pytest.mark.slow) for task in choices("task") if task != "tc"),
    ],
)
def test_killed_and_then_interrupted_run_ends_by_the_same_command_bitwise_like_one_never_stopped(
    task: str, number: signal.Signals, do: Run, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Enough epochs that the kill comes before the end; the first two tasks take little time for one.
    epochs = 12 if task in ("tc", "ctr") else 7
    words = [f"task={task}", "optimizer=tmsgd", "switch_epoch=2", *SHORT.get(task, []), f"epochs={epochs}"]
    process = start(tmp_path / "stopped", *words)
    folder = wait_for_epochs(tmp_path / "stopped", 1)
    process.kill()
    process.communicate()
    assert not (folder / "result.json").exists()
    killed_after, step = epochs_done(folder), Training.training_step

    def signalled(self: Training, *args: Any) -> None:
        if self.current_epoch == killed_after + 1:
            os.kill(os.getpid(), number)
        step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", signalled)
        done = tmbench(*words, f"runs_dir={tmp_path / 'stopped'}")
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stdout
    assert "resumed from its last checkpoint" in done.stdout
    stopped = Result.load(folder)
    assert stopped
    assert (stopped.status, stopped.epochs["trained"]) == ("interrupted", killed_after + 1)
    resumed, same_folder, how = run(composed(*words, f"runs_dir={tmp_path / 'stopped'}"))
    assert (same_folder, how, resumed.status) == (folder, "resumed", "completed")
    assert resumed == Result.load(folder)
    result, whole = do(*words)
    assert folder.name == whole.name
    assert_same(weights(folder), weights(whole))
    assert curves(folder) == curves(whole)
    assert resumed.metrics == result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimizer_lowers_the_loss_repeats_and_resumes_bitwise(
    optimizer: str, do: Run, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["task=tc", f"optimizer={optimizer}", "epochs=4", "batch_size=8", "switch_epoch=1"]
    words += OPTIMIZER.get(optimizer, [])
    _, whole = do(*words)
    losses = [float(row["train/loss"]) for row in curves(whole)]
    assert losses[-1] < losses[0]

    def after_two_epochs(self: StopOnSignal) -> bool:
        return any(len(curves(path.parent)) == 2 for path in tmp_path.glob("stopped/*/curves.csv"))

    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "requested", property(after_two_epochs, lambda self, value: None), raising=False)
        stopped, folder, _ = run(composed(*words, f"runs_dir={tmp_path / 'stopped'}"))
    assert (stopped.status, stopped.epochs["trained"]) == ("interrupted", 2)
    _, _, how = run(composed(*words, f"runs_dir={tmp_path / 'stopped'}"))
    assert how == "resumed"
    assert_same(weights(folder), weights(whole))
    assert curves(folder) == curves(whole)


def test_completed_run_is_shown_not_repeated_unless_forced(composed: Compose, tmp_path: Path) -> None:
    cfg = composed(*QUICK, f"runs_dir={tmp_path}")
    first, folder, how = run(cfg)
    assert how == "new"
    before = (folder / "result.json").stat().st_mtime_ns
    shown, same_folder, how = run(cfg)
    assert (how, same_folder, shown) == ("shown", folder, first)
    assert (folder / "result.json").stat().st_mtime_ns == before
    cfg.force = True
    repeated, same_folder, how = run(cfg)
    assert (how, same_folder) == ("new", folder)
    assert (folder / "result.json").stat().st_mtime_ns > before
    assert repeated.metrics == first.metrics


def test_force_is_refused_where_others_have_started_the_ranks(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank would clear what another has begun; it used to repeat nothing, and to say that it had."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.delenv("TMBENCH_COMMAND", raising=False)
    with pytest.raises(ConfigError, match="force: not with torchrun"):
        run(composed("task=tc", "trainer=ddp_cpu", "devices=2", "force=true", f"runs_dir={tmp_path}"))
    assert not list(tmp_path.glob("tc-*"))


def test_run_of_another_version_says_so_when_shown(composed: Compose, tmp_path: Path) -> None:
    result, folder, _ = run(composed(*QUICK, f"runs_dir={tmp_path}"))
    for torch_version, told in ((result.versions["torch"], False), ("1.0", True)):
        result.versions["torch"] = torch_version
        text = StringIO()
        show.one(result, folder, "shown", Console(file=text))
        assert ("made with torch 1.0; here are other versions" in text.getvalue()) == told


@pytest.mark.slow
def test_saved_configuration_asks_for_the_same_run(composed: Compose, tmp_path: Path) -> None:
    words = [*QUICK, f"runs_dir={tmp_path}"]
    _, folder, _ = run(composed(*words), words=words)
    command = ["run", str(folder / "config.yaml")]
    shown = tmbench(*command)
    assert shown.returncode == 0
    assert "completed before" in shown.stdout
    other = tmbench(*command, "epochs=2")
    assert other.returncode == 0, other.stderr
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 2
    typo = tmbench(*command, "epoch=2")
    assert typo.returncode == 1
    assert "epoch: there is no such setting; did you mean epochs?" in typo.stderr


def test_diverged_run_is_a_result_with_its_epoch_and_step(do: Run) -> None:
    result, folder = do("task=tc", "optimizer=sgd", "lr=1e38", "epochs=2")
    assert result.status == "diverged"
    assert result.diverged_at is not None
    assert result.diverged_at["epoch"] == 1
    assert 0 < (step := result.diverged_at["step"]) <= 10
    assert result.notes == [f"diverged: the loss is not finite in epoch 1, step {step}"]
    assert json.loads((folder / "result.json").read_text())["status"] == "diverged"
    again, _ = do("task=tc", "optimizer=sgd", "lr=1e38", "epochs=2")
    assert again == result


def test_failed_run_keeps_its_error_and_is_tried_again(
    do: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TC, "evaluate", lambda self, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            do(*QUICK)
    folder = next(path for path in tmp_path.iterdir() if (path / "result.json").exists())
    failed = Result.load(folder)
    assert failed is not None
    assert (failed.status, failed.error) == ("failed", "ZeroDivisionError: division by zero")
    result, same = do(*QUICK)
    assert (result.status, same) == ("completed", folder)


def test_optimizer_argument_out_of_range_is_told_at_construction(do: Run) -> None:
    with pytest.raises(ConfigError, match=r"tmsgd: momentum must be in \[0, 1\), got 1.2"):
        do("task=tc", "optimizer=tmsgd", "optimizer.momentum=1.2", "epochs=1")


@pytest.mark.parametrize("task", each_task("tc", "ic"))
def test_same_seed_gives_the_same_beginning_to_every_optimizer(task: str, composed: Compose, do: Run) -> None:
    """Comparisons are paired: the first epoch's first loss is one number for all optimizers."""
    short = [f"task={task}", "seed=3", *SHORT.get(task, []), "epochs=1", "lr=1e-30", "schedule=constant"]
    if task == "ig":
        short.append("task.lr_d=0")  # the run's
    losses = set()
    for optimizer in ("sgd", "tmsgdm"):
        _, folder = do(*short, f"optimizer={optimizer}")
        losses.add(curves(folder)[0]["train/loss"])
    assert len(losses) == 1


def test_identity_ignores_what_cannot_change_the_numbers(composed: Compose) -> None:
    def name(*overrides: str) -> str:
        return run_id(settle(composed("task=tc", *overrides)), "digest")

    sgd = name("optimizer=sgd")
    assert name("optimizer=sgd", "switch_epoch=1") == sgd
    assert name("optimizer=sgd", "logger=wandb", "data_dir=/elsewhere", "runs_dir=/tmp", "force=true") == sgd
    assert name("optimizer=sgd", "trainer=cpu", "trainer.num_workers=2", "epochs=16") == sgd
    assert name("optimizer=sgd", "protocol=as_printed") == sgd  # tc's two readings are the same numbers
    different = [
        "optimizer=tmsgd", "seed=1", "epochs=3", "batch_size=4", "lr=0.5", "task.width=8", "optimizer.momentum=0.5",
        "schedule=cosine", "precision=bf16-mixed", "trainer.accumulate=2",
    ]  # fmt: skip
    names = [name("optimizer=sgd", override) for override in different]
    names += [name("optimizer=sgd", "trainer=ddp_cpu"), name("optimizer=tmsgd", "switch_epoch=1")]
    assert len({sgd, *names}) == len(names) + 1
    assert run_id(settle(composed("task=tc", "optimizer=sgd")), "other data") != sgd


def test_switch_beyond_the_end_is_legal_noted_and_recorded(do: Run) -> None:
    result, _ = do(*QUICK, "optimizer=tmsgd", "switch_epoch=5")
    assert result.switch == {"requested": 5, "effective": None, "step": None}
    assert any("it never switched" in note for note in result.notes)


@pytest.mark.draws
def test_result_holds_what_a_reader_needs(do: Run) -> None:
    result, folder = do("task=tc", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", "batch_size=80")
    saved = json.loads((folder / "result.json").read_text())
    assert saved["metrics"]["last"].keys() == {"train/loss", "test/accuracy"}
    assert saved["metrics"]["best"].keys() == {"epoch", "train/loss", "test/accuracy"}
    assert saved["epochs"] == {"asked": 2, "trained": 2, "from_trunk": 0}
    assert saved["steps"] == 2 * 4  # 320 documents, 80 a batch
    assert saved["switch"] == {"requested": 1, "effective": 1, "step": 4}
    assert saved["profile"] == "tiny"
    assert saved["parameters"] == sum(w.numel() for w in weights(folder).values())
    assert saved["versions"]["torch"] == torch.__version__.split("+")[0]
    assert saved["seconds"] > 0
    assert (folder / "figures" / "curves.png").stat().st_size > 1000
    assert weights(folder, "best.ckpt").keys() == weights(folder).keys()
    assert [row["step"] for row in curves(folder)] == ["4", "8"]
    assert not [path for path in folder.rglob("*") if "writing" in path.name]
    assert result == Result.load(folder)


def test_checkpoints_of_a_model_above_the_limit_keep_the_last_only(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmbench.training.record.KEEP_BEST_UP_TO", 10)
    _, folder = do(*QUICK)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_two_processes_asking_for_one_run_train_it_once(tmp_path: Path) -> None:
    both = [start(tmp_path, "task=tc", "epochs=8") for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("completed before" in output for output in outputs) == 1
    assert sum("is in use by another process" in output for output in outputs) == 1


@pytest.mark.slow
def test_accumulation_gives_the_same_steps_up_to_rounding(do: Run) -> None:
    whole, _ = do("task=tc", "optimizer=sgd", "epochs=2", "batch_size=7")
    parts, _ = do("task=tc", "optimizer=sgd", "epochs=2", "batch_size=7", "trainer.accumulate=3")
    assert parts.steps == whole.steps
    assert parts.metrics["last"]["train/loss"] == pytest.approx(whole.metrics["last"]["train/loss"], rel=1e-5)


def test_weight_average_is_evaluated_beside_the_weights_and_resumes(do: Run, tmp_path: Path) -> None:
    # An average is of the whole table, which every step updates then.
    words = ["task=tc", "optimizer=sgd", "epochs=2", "batch_size=16", "lr=0.1", "task.sparse=false"]
    plain, plain_folder = do(*words)
    averaged, folder = do(*words, "ema=0.9")
    assert_same(weights(folder), weights(plain_folder))  # it looks on, and changes nothing
    assert averaged.metrics["last"]["test/accuracy"] == plain.metrics["last"]["test/accuracy"]
    assert {"test_ema/accuracy", "test/accuracy"} <= averaged.metrics["last"].keys()
    average = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["average"]
    last = list(weights(folder).values())
    away = torch.cat([(a - w).flatten() for a, w in zip(average, last, strict=True)]).norm()
    assert 0 < float(away / torch.cat([w.flatten() for w in last]).norm()) < 0.01
    none, _ = do(*words, "ema=1e-7")  # forgets all but the last step
    assert none.metrics["last"]["test_ema/accuracy"] == none.metrics["last"]["test/accuracy"]


@pytest.mark.parametrize("clip", ["clip_norm=0.001", "clip_value=0.0001"])
def test_clipping_bounds_what_the_optimizer_sees(clip: str, composed: Compose, do: Run) -> None:
    """One step of SGD moves the weights by at most lr times the bound."""
    before = build(composed, "tc")[0].state_dict()
    _, folder = do("task=tc", "optimizer=sgd", "epochs=1", "batch_size=320", "lr=1", clip)
    moved = torch.cat([(after - before[name]).flatten() for name, after in weights(folder).items()])
    if clip.startswith("clip_norm"):
        assert float(moved.norm()) == pytest.approx(0.001, rel=0.01)
    else:
        assert float(moved.abs().max()) == pytest.approx(0.0001, rel=0.01)


def test_optimizer_of_any_name_is_found_and_a_wrong_one_names_the_nearest(do: Run) -> None:
    result, _ = do(*QUICK, "optimizer=any", "optimizer.name=Adadelta", "+optimizer.options.rho=0.8")
    assert (result.status, result.optimizer) == ("completed", "Adadelta")
    with pytest.raises(ConfigError, match=r"expected a class of torch.optim or pytorch_optimizer, like Adadelta"):
        do("task=tc", "optimizer=any", "optimizer.name=Adadleta", "epochs=1")


def test_operations_without_deterministic_kernel_are_named() -> None:
    with nondeterministic_operations() as operations:
        for _ in range(2):
            warnings.warn(
                "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True, warn_only=True)'.",
                stacklevel=1,
            )
    assert operations == ["nll_loss2d_forward_out_cuda_template"]
