"""Runs that begin alike share that part: bitwise the same results, every epoch trained once, whatever happens."""

import errno
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, choices, each_task
from helpers import SHORT, assert_same, curves, results, start, trained, wait_for_epochs, weights
from helpers import tmbench as command
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric, MetricCollection

import tmbench.trunks
from tmbench.config.identity import before_switch
from tmbench.config.settle import settle
from tmbench.folders import size
from tmbench.result import Result
from tmbench.run import run
from tmbench.sweeps.plan import Job, RunFinder, forecast_epochs, states_to_share, words_of_arms
from tmbench.task import Loss, Player, Task
from tmbench.training.step import StepHistory
from tmbench.trunks import Trunk, leftovers, shrink, state_to_start_from, trunk_of

Sweep = Callable[..., dict[str, tuple[Result, Path]]]


@pytest.fixture(autouse=True)
def as_another_process_sees_it() -> None:
    """What is remembered of the machine may be that of a test which set its variables."""
    for remembered in (tmbench.trunks._machine, tmbench.trunks._source):
        remembered.cache_clear()


@pytest.fixture
def sweep(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """sweep("shared", [job, ...], *words) -> the run of each job (its words in a string), in that folder, in order."""
    monkeypatch.setattr(Figure, "savefig", lambda *args, **kwargs: None)  # half of the time of such small runs

    def sweep(folder: str, jobs: list[str], *words: str) -> dict[str, tuple[Result, Path]]:
        where = [*words, f"runs_dir={tmp_path / folder}"]
        cfgs = {job: composed(*where, *job.split()) for job in jobs}
        planned = [Job(i, job.split(), OmegaConf.to_container(cfg)) for i, (job, cfg) in enumerate(cfgs.items())]
        finder = RunFinder(download=False)
        for job in planned:
            finder.find(job)
        forecast_epochs(planned)
        for trunk, epoch, differences in states_to_share(planned):
            trunk.request(epoch, differences)
        done = {job: run(cfg)[:2] for job, cfg in cfgs.items()}
        trained = [r.epochs["trained"] - r.epochs["from_trunk"] for r, _ in done.values()]
        assert trained == [job.epochs_to_train for job in planned], "forecast and done differ"
        return done

    return sweep


def assert_same_runs(shared: dict[str, tuple[Result, Path]], alone: dict[str, tuple[Result, Path]]) -> None:
    """Bitwise: weights at the end and at the best epoch, curves, metrics."""
    assert shared.keys() == alone.keys()
    for job, (result, folder) in shared.items():
        other, elsewhere = alone[job]
        assert (result.run_id, result.metrics, result.status) == (other.run_id, other.metrics, "completed")
        assert curves(folder) == curves(elsewhere)
        for name in ("last.ckpt", "best.ckpt"):
            assert_same(weights(folder, name), weights(elsewhere, name))
        assert other.epochs["from_trunk"] == 0


# Each with the plain optimizer that it begins as; in an unkind order: the plain run first, the late switch before the
# early one. In the opposite order every run goes on from what the one before it published.
FAMILIES = {
    "tmsgd": ["optimizer=sgd", "optimizer=tmsgd switch_epoch=2", "optimizer=tmsgd switch_epoch=1"],
    "tmsgdm": ["optimizer=tmsgdm switch_epoch=2", "optimizer=sgdm", "optimizer=tmsgdm switch_epoch=1"],
    "tmnag": ["optimizer=nag", "optimizer=tmnag switch_epoch=2"],
    "switch": ["optimizer=adam", "optimizer=switch switch_epoch=2", "optimizer=switch switch_epoch=1"],
    "multistep": ["optimizer=multistep switch_epoch=2", "optimizer=tmsgd switch_epoch=1", "optimizer=sgd"],
    "controls": [
        "optimizer=tmsgd switch_epoch=2", "optimizer=sgd_half switch_epoch=2", "optimizer=sgd_to_sgdm switch_epoch=2",
        "optimizer=tmsgd switch_epoch=2 optimizer.history=zero", "optimizer=tmsgd switch_epoch=2 optimizer.c=0.4",
        "optimizer=tmsgd switch_epoch=never", "optimizer=sgd",
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", each_task("tc"))
@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f == "tmsgd" else pytest.mark.slow) for f in FAMILIES])
def test_every_task_shares_its_beginning_bitwise_and_trains_it_once(family: str, task: str, sweep: Sweep) -> None:
    """tc in both orders; of the others, half of a task's families and half of a family's tasks in each."""
    jobs, words = FAMILIES[family], [f"task={task}", *SHORT.get(task, []), "epochs=3"]
    alone = sweep("alone", jobs, *words, "trunk=off")
    switches = [3 - int(found[1]) for job in jobs if (found := re.search(r"switch_epoch=(\d)", job))]
    own = (-1) ** (choices("task").index(task) + [*FAMILIES].index(family))
    for order in (1, -1) if task == "tc" else (own,):
        shared = sweep(f"order {order}", jobs[::order], *words)
        assert_same_runs(shared, alone)
        assert trained(shared) == 3 + sum(switches)  # the plain run once, and each tail


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["schedule=cosine", "ema=0.9", "clip_norm=1", "trainer.accumulate=2"], marks=pytest.mark.slow),
        ["batch_size=320", "lr=0.5"],  # one step an epoch: a history reaches over epochs
        pytest.param(["batch_size=320", "lr=0.5", "schedule=cosine"], marks=pytest.mark.slow),
    ],
)
def test_schedules_averages_clipping_and_full_batches_change_nothing_of_it(words: list[str], sweep: Sweep) -> None:
    jobs = ["optimizer=sgd", "optimizer=tmsgd switch_epoch=3", "optimizer=multistep switch_epoch=4"]
    jobs = [*jobs, "optimizer=tmsgd switch_epoch=2"]
    shared = sweep("shared", jobs, "task=tc", "epochs=5", *words)
    assert_same_runs(shared, sweep("alone", jobs, "task=tc", "epochs=5", *words, "trunk=off"))
    assert trained(shared) == 5 + 2 + 1 + 3


@pytest.mark.slow
def test_a_schedule_and_any_first_optimizer(sweep: Sweep) -> None:
    jobs = ["optimizer=switch switch_epoch=2", "optimizer=adam", "optimizer=switch switch_epoch=1"]
    shared = sweep("shared", jobs, "task=tc", "epochs=3", "schedule=cosine")
    assert_same_runs(shared, sweep("alone", jobs, "task=tc", "epochs=3", "schedule=cosine", "trunk=off"))
    assert trained(shared) == 3 + 1 + 2


class Duel(Task):
    """Two players on points, as in a GAN: one tells the true from the made, the other makes them."""

    headline = "distance"
    higher_is_better = False

    def __init__(self, cfg: Any, data: Any) -> None:
        super().__init__(cfg, data)
        self.judge = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        self.maker = nn.Linear(2, 2)
        self.metrics = MetricCollection({"distance": MeanMetric()}, compute_groups=False)

    def players(self) -> dict[str, Player]:
        return {"judge": Player(self.judge, self.judge_loss), "maker": Player(self.maker, self.loss, lr=0.003)}

    def examples(self, split: str) -> TensorDataset:
        return TensorDataset(torch.randn(64, 2, generator=torch.Generator().manual_seed(len(split))) + 3)

    def judge_loss(self, batch: Any) -> Loss:
        true, made = self.judge(batch[0]), self.judge(self.maker(torch.randn_like(batch[0])).detach())
        return nn.functional.softplus(-true).sum() + nn.functional.softplus(made).sum(), len(true)

    def loss(self, batch: Any) -> Loss:
        made = self.maker(torch.randn_like(batch[0]))
        return nn.functional.softplus(-self.judge(made)).sum(), len(made)

    def evaluate(self, batch: Any) -> None:
        self.metrics.update((self.maker(batch[0]) - batch[0]).norm(dim=1))


def test_two_players_have_an_optimizer_each_and_share_a_trunk(sweep: Sweep) -> None:
    words = ["task=tc", "task._target_=test_trunks.Duel", "task.eval_batch_size=64", "batch_size=8", "epochs=4"]
    jobs = ["optimizer=sgdm", "optimizer=tmsgdm switch_epoch=3", "optimizer=tmsgdm switch_epoch=1"]
    shared = sweep("shared", jobs, *words)
    assert_same_runs(shared, sweep("alone", jobs, *words, "trunk=off"))
    assert trained(shared) == 4 + 1 + 3
    result, folder = shared[jobs[1]]
    row = result.metrics["last"]
    assert row["train/loss"] == pytest.approx(row["train/loss_judge"] + row["train/loss_maker"])
    states = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"]
    assert [len(state["state"]) for state in states] == [4, 2]  # weights and biases of each
    assert all("d_before" in own and "momentum_buffer" in own for state in states for own in state["state"].values())


def test_what_is_published_does_not_depend_on_who_published_it(sweep: Sweep, tmp_path: Path) -> None:
    def published(folder: str, *jobs: str) -> dict[str, Any]:
        sweep(folder, list(jobs), "task=tc", "epochs=3", "batch_size=32")
        (state,) = (tmp_path / folder / ".trunks").glob("*/00002/state.ckpt")
        return torch.load(state, weights_only=True)

    by_sgd = published("a", "optimizer=sgd", "optimizer=tmsgd switch_epoch=2")
    by_tm = published("b", "optimizer=tmsgd switch_epoch=2")
    by_half = published("c", "optimizer=sgd_half switch_epoch=2 epochs=3", "optimizer=tmsgd switch_epoch=2")

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if "seconds" not in str(k))
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(same, a, b))
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    for other in (by_tm, by_half):
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "recorded", "recorded_from", "average", "loops"):
            assert same(by_sgd[key], other[key]), key


def test_only_the_steps_that_a_history_needs_are_recorded(sweep: Sweep, tmp_path: Path) -> None:
    """Each costs a copy of the weights: two for each state that TM goes on from, none else."""
    jobs = ["optimizer=sgd", "optimizer=sgd_half switch_epoch=1", "optimizer=tmsgd switch_epoch=2"]
    sweep("shared", [*jobs, "optimizer=tmsgd switch_epoch=4"], "task=tc", "epochs=5", "batch_size=32")
    for epoch, steps in (("00002", {19, 18}), ("00004", {39, 38})):  # 10 an epoch
        (state,) = (tmp_path / "shared" / ".trunks").glob(f"*/{epoch}/state.ckpt")
        ((*recorded,),) = torch.load(state, weights_only=True)["recorded"]
        assert {step for of_parameter in recorded for step, _ in of_parameter} == steps
    weight, history = nn.Parameter(torch.ones(1)), StepHistory()
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for epoch, first in enumerate((math.inf, 5, math.inf)):  # of three steps each; the second's last is wanted
        history.start_epoch(first, 3 * epoch, 1)
        for number in range(3 * epoch, 3 * epoch + 3):
            weight.grad = torch.ones(1)
            history.step(number, 0, optimizer, lambda: torch.zeros(()))
        assert history.recorded == ([[[(5, torch.tensor([-0.5]))]]] if epoch == 1 else [[]])


# Identity.


def name(composed: Compose, *words: str) -> str | None:
    trunk = trunk_of(settle(composed("task=tc", "epochs=4", *words)), "digest")
    return trunk.folder.name if trunk else None


def test_trunk_is_the_same_for_all_that_begin_alike(composed: Compose) -> None:
    sgd = name(composed, "optimizer=sgd")
    alike = [
        "optimizer=tmsgd", "optimizer=tmsgd switch_epoch=1", "optimizer=tmsgd switch_epoch=never",
        "optimizer=tmsgd optimizer.c=0.4 optimizer.history=zero", "optimizer=tmsgd_third", "optimizer=multistep",
        "optimizer=sgd_half", "optimizer=sgd_to_sgdm", "optimizer=tmsgdm optimizer.momentum=0", "logger=csv force=true",
    ]  # fmt: skip
    for words in alike:
        assert name(composed, *("optimizer=tmsgd", *words.split())[-len(words.split()) - 1 :]) == sgd, words
    assert name(composed, "optimizer=sgdm") == name(composed, "optimizer=tmsgdm") != sgd
    assert name(composed, "optimizer=nag") == name(composed, "optimizer=tmnag") != sgd
    assert name(composed, "optimizer=adam") == name(composed, "optimizer=switch") != sgd
    others = ["seed=1", "lr=0.3", "batch_size=3", "schedule=cosine", "ema=0.9", "optimizer.weight_decay=0.1"]
    assert len({sgd, *(name(composed, "optimizer=tmsgd", word) for word in others)}) == 1 + len(others)


def test_trunk_is_another_on_other_machines_versions_and_code(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name(composed)}
    for what, value in (
        ("versions", lambda: {"torch": "0.1"}),
        ("_source", lambda *targets: "changed"),
        ("_machine", lambda accelerator: ["another"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tmbench.trunks, what, value)
            names.add(name(composed))
    names.add(name(composed, "precision=bf16-mixed"))
    assert len(names) == 5


def test_optimizers_whose_beginning_cannot_be_told_do_without(composed: Compose) -> None:
    assert name(composed, "optimizer=switch", "switch_epoch=never", "optimizer.criterion=swats") is None
    assert name(composed, "optimizer=tmsgd", "+optimizer.decoupled=true") is None
    own = ["optimizer.preset=null", "optimizer.coefficients=[0.5,0.1,0.1,0.1,0.1,0.05,0.05]"]  # needs 6 differences
    assert name(composed, "optimizer=multistep", *own) is None
    assert before_switch(settle(composed("optimizer=tmsgd", "~optimizer.trunk"))) is None


# The store.


def published(store: Path, *epochs: int, end: int = 9, needs: int = 0) -> Trunk:
    trunk = Trunk(store, "t", end, differences=needs)
    for epoch in epochs:
        trunk.publish(epoch, needs, lambda folder, e=epoch: (folder / "state.ckpt").write_text(f"state {e}"))
    return trunk


def test_state_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    trunk = published(tmp_path / "store", 3)
    assert trunk.fetch(3, tmp_path / "run")
    state = state_to_start_from(tmp_path)
    assert state is None
    assert (tmp_path / "run" / "00003" / "state.ckpt").read_text() == "state 3"
    damaged = tmp_path / "store" / "t" / "00003" / "state.ckpt"
    damaged.unlink()
    damaged.write_text("state 4")
    assert not trunk.fetch(3, tmp_path / "other")
    assert trunk.states() == {}  # and it is gone, so that it is made anew
    assert not trunk.fetch(5, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_state_with_more_history_takes_the_place_of_one_with_less(tmp_path: Path) -> None:
    trunk = published(tmp_path, 3)
    trunk.request(3, 2)
    assert trunk.unmet_request(3) == 2
    trunk.publish(3, 2, lambda folder: (folder / "state.ckpt").write_text("richer"))
    assert (trunk.states(), trunk.requests(), trunk.unmet_request(3)) == ({3: 2}, {}, None)
    trunk.publish(3, 0, lambda folder: (folder / "state.ckpt").write_text("poorer"))
    assert (trunk.folder / "00003" / "state.ckpt").read_text() == "richer"


def test_failed_publication_leaves_nothing(tmp_path: Path) -> None:
    trunk = Trunk(tmp_path, "t", 9)

    def full(folder: Path) -> None:
        (folder / "state.ckpt").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        trunk.publish(3, 0, full)
    assert [path.name for path in trunk.folder.iterdir()] == []


def test_full_disk_is_noted_and_the_run_goes_on(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Trunk, "publish", full)
    result, _, _ = run(composed("task=tc", "epochs=2", "batch_size=8", "switch_epoch=1", f"runs_dir={tmp_path}"))
    assert result.status == "completed"
    assert "the state after epoch 1 is not shared: No space left on device" in result.notes


def test_limit_removes_the_least_recently_used(tmp_path: Path) -> None:
    trunk = published(tmp_path / "store", 1, 2, 3, 4)
    for age, epoch in ((40, 2), (30, 1), (20, 4), (10, 3)):
        then = time.time() - age
        os.utime(trunk.folder / f"{epoch:05d}", (then, then))
    each = size(trunk.folder / "00001")
    trunk.fetch(2, tmp_path / "run")  # used now
    for _ in range(2):
        assert shrink(trunk.store, 2 * each) == []
        assert sorted(trunk.states()) == [2, 3]
    Trunk(trunk.store, "u", 9, limit=each).publish(1, 0, lambda folder: (folder / "state.ckpt").write_text("new"))
    assert len(list(trunk.store.glob("*/0*"))) == 1


def test_leftovers_of_the_dead_are_swept_up_and_those_of_the_living_stay(tmp_path: Path) -> None:
    trunk = published(tmp_path, 1)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (trunk.folder / f".writing-{socket.gethostname()}-{pid}-abc").mkdir()
    for path in leftovers(tmp_path):
        path.rmdir()
    assert [path.name.split("-")[-2] for path in trunk.folder.glob(".writing-*")] == [str(os.getpid())]
    assert trunk.states() == {1: 0}


HOLDER = """
import sys, time
from pathlib import Path
from tmbench.trunks import Trunk
trunk = Trunk(Path(sys.argv[1]), "t", 9)
with trunk.reserve(0, Path(sys.argv[1]) / "holder") as reservation:
    reservation.reached(int(sys.argv[2]))
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """holder(epoch) -> a process that holds the trunk's lock and has come that far."""
    processes = []

    def holder(epoch: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), str(epoch)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "holding\n"
        return processes[-1]

    yield holder
    for process in processes:
        process.kill()
        process.communicate()


def test_waiter_takes_the_state_as_soon_as_it_is_published(tmp_path: Path, holder: Any) -> None:
    holder(0)
    timer = threading.Timer(0.5, lambda: published(tmp_path, 4))
    timer.start()
    with Trunk(tmp_path, "t", 4).reserve(0, tmp_path / "run") as reservation:
        assert reservation.start == 4
    timer.join()


def test_waiter_goes_on_when_the_holder_dies(tmp_path: Path, holder: Any) -> None:
    process = holder(0)
    published(tmp_path, 2)
    process.kill()
    with Trunk(tmp_path, "t", 4).reserve(0, tmp_path / "run") as reservation:
        assert reservation.start == 2
        assert reservation.lock


def test_waiter_does_not_wait_for_what_will_not_come(tmp_path: Path, holder: Any) -> None:
    holder(5)  # has passed 4 before anybody asked
    published(tmp_path, 3)
    with Trunk(tmp_path, "t", 4).reserve(0, tmp_path / "run") as reservation:
        assert (reservation.start, reservation.lock) == (3, None)


def test_frozen_holder_is_overtaken(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tmbench.trunks, "PATIENCE", 0.5)
    holder(1).send_signal(signal.SIGSTOP)
    with Trunk(tmp_path, "t", 4).reserve(0, tmp_path / "run") as reservation:
        assert (reservation.start, reservation.lock) == (None, None)
    assert "has not been heard from" in capsys.readouterr().err


def test_file_system_without_locks_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    published(tmp_path, 3)
    with Trunk(tmp_path, "t", 4).reserve(0, tmp_path / "run") as reservation:
        assert (reservation.start, reservation.lock) == (3, None)


@pytest.mark.slow
def test_eight_processes_on_one_store_with_random_kills(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "trunk_workers.py"), str(tmp_path), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "all right\n"), done.stderr[-2000:]


# Whole runs and sweeps.


@pytest.mark.slow
def test_killed_run_goes_on_from_its_own_epoch_or_a_later_shared_one(composed: Compose, tmp_path: Path) -> None:
    """It has two epochs of the trunk when it dies; meanwhile another publishes the state at its switch."""
    words = ["task=tc", "batch_size=4", "epochs=8"]
    process = start(tmp_path, *words, "optimizer=tmsgd", "switch_epoch=6")
    folder = wait_for_epochs(tmp_path, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "result.json").exists()
    run(composed(*words, "optimizer=sgd", f"runs_dir={tmp_path}"))
    result, again, how = run(composed(*words, "optimizer=tmsgd", "switch_epoch=6", f"runs_dir={tmp_path}"))
    assert (again, how, result.epochs) == (folder, "resumed", {"asked": 8, "trained": 8, "from_trunk": 6})
    _, elsewhere, _ = run(
        composed(*words, "optimizer=tmsgd", "switch_epoch=6", "trunk=off", f"runs_dir={tmp_path / 'alone'}")
    )
    assert_same(weights(folder), weights(elsewhere))
    assert curves(folder) == curves(elsewhere)


@pytest.mark.slow
def test_two_processes_of_one_run_share_a_trunk_with_the_others(sweep: Sweep) -> None:
    words = ["task=tc", "epochs=3", "batch_size=5", "trainer=ddp_cpu", "devices=2"]
    jobs = ["optimizer=tmsgd switch_epoch=2", "optimizer=sgd", "optimizer=tmsgd switch_epoch=1"]
    shared = sweep("shared", jobs, *words)
    assert_same_runs(shared, sweep("alone", jobs, *words, "trunk=off"))
    assert trained(shared) == 3 + 1 + 2


def ordered(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command("-m", *words, f"runs_dir={folder}")


@pytest.mark.slow
def test_killed_sweep_does_only_what_is_missing_when_started_again(tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=sgd,tmsgd", "seed=0,1", "switch_epoch=1", "epochs=4", "batch_size=4"]
    process = start(tmp_path, "-m", *words)
    deadline = time.monotonic() + 120
    while len(results(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = {name: (path / "result.json").stat().st_mtime_ns for name, (_, path) in results(tmp_path).items()}
    assert 2 <= len(before) < 4
    done = ordered(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    after = results(tmp_path)
    assert len(after) == 4
    assert all((after[name][1] / "result.json").stat().st_mtime_ns == then for name, then in before.items())
    assert done.stdout.count("completed, known") == len(before)


@pytest.mark.slow
def test_study_adds_the_controls_from_the_same_trunk(tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=tmsgd", "switch_epoch=2", "epochs=3", "batch_size=8", "study=switch"]
    planned = ordered(tmp_path, *words, "plan=true")
    assert planned.returncode == 0, planned.stderr
    assert "measuring an epoch of job 0" in planned.stderr
    assert re.search(r"7 to do, 0 known, 0 the same", planned.stdout)
    assert re.search(r"8 to train; \d+ more come from shared trunks", planned.stdout)  # one of 3 is done; six tails
    assert re.search(r"time +\d+ s one after another, \d+ s with trunk=off", planned.stdout)
    done = ordered(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    for arm in ("no switch", "half lr", "SGD-M", "no history", "c = 1/3", "half lr, TM"):
        assert f"{arm} (job 0)" in done.stdout
    found = [result for result, _ in results(tmp_path).values()]
    assert len(found) == 7
    assert sum(r.epochs["trained"] - r.epochs["from_trunk"] for r in found) == 3 + 6 * 1
    assert len({r.metrics["last"]["train/loss"] for r in found}) == 7  # every arm does something else
    again = ordered(tmp_path, *words, "plan=true")
    assert "0 to do, 7 known" in again.stdout


def test_arms_are_only_those_that_begin_as_the_run_does(composed: Compose, tmp_path: Path) -> None:
    def of(*words: str) -> dict[str, list[str]]:
        cfg = composed("task=tc", "study=switch", *words)
        job = Job(0, ["task=tc", *words], OmegaConf.to_container(cfg))
        RunFinder(download=False).find(job)
        return words_of_arms(job)

    assert list(of("optimizer=tmsgd")) == ["no switch", "half lr", "SGD-M", "no history", "c = 1/3", "half lr, TM"]
    momentum = of("optimizer=tmsgdm", "optimizer.momentum=0.8", "seed=3")
    assert "optimizer.momentum=0.8" in momentum["half lr"]
    assert "optimizer.first.momentum=0.8" in momentum["SGD-M"]
    assert "seed=3" in momentum["SGD-M"]
    assert "optimizer.momentum=0.8" not in momentum["SGD-M"]
    assert list(of("optimizer=tmsgd", "switch_epoch=never")) == []
    assert list(of("optimizer=sgd")) == []


@pytest.mark.slow
def test_switch_study_of_five_points_and_two_seeds_is_at_the_lower_bound(tmp_path: Path) -> None:
    """Unkind order: sgd first, large switches before small."""
    words = ["task=tc", "optimizer=sgd,tmsgd", "switch_epoch=5,4,3,2,1", "seed=0,1", "epochs=7", "batch_size=20"]
    for folder, trunk in (("shared", "auto"), ("alone", "off")):
        done = ordered(tmp_path / folder, *words, f"trunk={trunk}")
        assert done.returncode == 0, done.stderr
    shared, alone = results(tmp_path / "shared"), results(tmp_path / "alone")
    assert len(shared) == 12
    assert_same_runs(shared, alone)
    assert trained(shared) == 2 * (7 + sum(7 - e for e in range(1, 6)))
    assert trained(alone) == 12 * 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_sweeps_on_one_folder_with_random_kills(tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=sgd,tmsgd,tmsgdm", "switch_epoch=2,1", "epochs=3", "batch_size=4"]
    assert ordered(tmp_path / "alone", *words, "trunk=off").returncode == 0
    alone = results(tmp_path / "alone")
    chance = random.Random(0)
    for number in range(2):
        folder = tmp_path / str(number)
        orders = [words, [w.replace("2,1", "1,2").replace("sgd,tmsgd,tmsgdm", "tmsgdm,tmsgd,sgd") for w in words]]
        sweeps = [start(folder, "-m", *orders[k % 2]) for k in range(8)]
        for process in chance.sample(sweeps, 6):
            time.sleep(chance.random() * 2)
            process.send_signal(signal.SIGKILL)
        codes = [process.wait(timeout=300) for process in sweeps]
        assert set(codes) <= {0, -signal.SIGKILL}, codes
        last = ordered(folder, *words)
        assert last.returncode == 0, last.stderr
        assert_same_runs(results(folder), alone)
        shutil.rmtree(folder)


@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimizer_with_a_switch_says_what_it_is_before(optimizer: str, composed: Compose) -> None:
    cfg = settle(composed("task=tc", f"optimizer={optimizer}"))
    assert ("switch_step" in cfg.optimizer) == ("trunk" in cfg.optimizer)
    assert before_switch(cfg) is not None
