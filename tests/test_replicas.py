"""Replicas: runs trained as one stack of tensors are what each is by itself, and nothing of their neighbours' doing."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from helpers import SHORT, assert_same, curves, results, start, tmbench, wait_for_epochs, weights
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric, MetricCollection

from tmbench import checkpoint
from tmbench.config.replicas import _say_once
from tmbench.config.settle import settle
from tmbench.errors import CannotStackError
from tmbench.optim import TMSGD
from tmbench.optim.elementwise import stacked_difference
from tmbench.plan import Plan, planned
from tmbench.result import Result
from tmbench.run import Asked, run, run_stack
from tmbench.seeds import seed_all
from tmbench.sweeps.job import JobOrder, do_job
from tmbench.sweeps.plan import Job, RunFinder, stacks_of
from tmbench.sweeps.replicas import settle_auto
from tmbench.task import Table, Task
from tmbench.tasks.tc.task import TC
from tmbench.training.build import optimizer_of, task_of
from tmbench.training.capacity import check_memory, seconds_a_step
from tmbench.training.loader import StackLoader, TrainLoader
from tmbench.training.lstm import StackedLSTM
from tmbench.training.module import Training
from tmbench.training.parts import Group
from tmbench.training.stack import Stack
from tmbench.training.step import Gradient
from tmbench.training.vmapped import OwnRandomNumbers, batch_norm

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SLOTS = 4
# Each with what of vmap, random numbers and padding there is in its task.
TASKS = {
    "tc": [], "ctr": ["task.dropout=0.3", "task.l2=1e-4"], "fkpd": ["task.width=1"],
    "ic": ["task.model=resnet18", "task.width=2", "task.preprocess=standard", "batch_size=20"],
    "ig": ["task.width=2", "batch_size=16"], "seg": ["task.preprocess=source", "batch_size=2", "task.crop=33"],
}  # fmt: skip
slow = pytest.mark.slow
each_task = pytest.mark.parametrize("task", [pytest.param(t, marks=[] if t in ("tc", "ctr") else slow) for t in TASKS])


@pytest.fixture
def plans(composed: Compose) -> Callable[..., list[Plan]]:
    def plans(seeds: list[int], *words: str) -> list[Plan]:
        return [planned(composed(*words, f"seed={seed}")) for seed in seeds]

    return plans


def batches(task: Task, plans: list[Plan]) -> Any:
    cfg = plans[0].cfg
    loaders = [
        TrainLoader(
            task.examples("train"), task.collate, cfg.batch_size, device=CPU, seed=p.cfg.seed, epoch=lambda: 0
        ) for p in plans
    ]  # fmt: skip
    loader = StackLoader(loaders, task.of_slot) if isinstance(task, Stack) else loaders[0]
    return (step for block in loader for step in block)


def as_of(dtype: torch.dtype, batch: Any) -> Any:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)


def stepped(
    plans: list[Plan], dtype: torch.dtype, steps: int = 20, clip: float | None = None, poisoned: int | None = None
) -> list[dict[str, Tensor]]:
    """The states of the tasks after some steps of momentum SGD with TM from the tenth on: a stack's, or one alone."""
    task = task_of(plans).to(dtype)
    task.train()
    steps_to_take = [[as_of(dtype, batch) for batch, _ in step] for step in islice(batches(task, plans), steps)]
    if isinstance(task, Stack):
        task.try_once(steps_to_take[0][0])
        task.start_epoch(0)
    else:
        seed_all("epoch", plans[0].cfg.seed, 0, 0)
    players, gradient = task.players(), Gradient(clip_norm=clip)
    optimizers: list[Any] = [
        TMSGD(player.module.parameters(), lr=1e-4, momentum=0.5, weight_decay=1e-3, switch_step=10)
        for player in players.values()
    ]
    for number, [batch] in enumerate(steps_to_take):
        for player, optimizer in zip(players.values(), optimizers, strict=True):
            optimizer.step(lambda o=optimizer, p=player, b=batch: gradient.closure(o, p, [(b, True)]))
        if number == 2 and poisoned is not None:
            for p in task.replicas[poisoned].parameters():
                p.data.fill_(torch.nan)
    return [each.state_dict() for each in (task.replicas if isinstance(task, Stack) else [task])]


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@each_task
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_replica_is_its_solo_run(
    task: str, clip: float | None, plans: Callable[..., list[Plan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: the same batches in the same order, the same random numbers, the same weights up to rounding."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what tasks make of bytes
    words, seeds = [f"task={task}", *TASKS[task]], [0, 3, 5]
    stack = stepped(plans(seeds, *words, f"replicas={SLOTS}"), torch.float64, clip=clip)
    for state, plan in zip(stack, plans(seeds, *words), strict=True):
        (alone,) = stepped([plan], torch.float64, clip=clip)
        assert state.keys() == alone.keys()
        for name, value in alone.items():
            if value.is_floating_point():
                # A bias before batch norm has no gradient but rounding, and starts at 0.
                assert (state[name] - value).norm() <= 1e-9 * value.norm() + 1e-12, name
            else:
                assert torch.equal(state[name], value), name


@each_task
def test_a_replica_depends_on_neither_neighbours_nor_place(task: str, plans: Callable[..., list[Plan]]) -> None:
    """Bitwise; not even on a neighbour whose weights are no numbers."""
    words = [f"task={task}", *TASKS[task], f"replicas={SLOTS}"]
    first = stepped(plans([0, 1, 2, 3], *words), torch.float32)
    other = stepped(plans([7, 3, 0], *words), torch.float32)  # and a spare slot
    spoiled = stepped(plans([0, 1, 2, 3], *words), torch.float32, poisoned=1)
    assert_same(first[3], other[1])
    assert_same(first[0], other[2])
    for k in (0, 2, 3):
        assert_same(first[k], spoiled[k])
    assert any(t.isnan().any() for t in spoiled[1].values() if t.is_floating_point())


def test_the_batches_of_a_stack_are_those_of_each_seed(plans: Callable[..., list[Plan]]) -> None:
    of_stack = plans([0, 3], "task=tc", f"replicas={SLOTS}")
    stack = task_of(of_stack)
    assert isinstance(stack, Stack)
    together = list(batches(stack, of_stack))
    for k, plan in enumerate(plans([0, 3], "task=tc")):
        alone = list(batches(task_of([plan]), [plan]))
        assert len(alone) == len(together)
        for [(mine, _)], [(both, _)] in zip(alone, together, strict=True):
            assert all(torch.equal(t, u[k]) for t, u in zip(mine, both, strict=True))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("places", [1, 7])
def test_the_stacked_lstm_is_torchs(batch_first: bool, bias: bool, places: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=batch_first, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    from tmbench.training.vmapped import lstm

    torch.manual_seed(0)
    nets = [Net().double() for _ in range(3)]
    x_K = torch.randn(3, 2, places, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in nets[0].named_parameters()]
    stacked = {n: torch.stack([net.get_parameter(n).detach() for net in nets]).requires_grad_() for n in names}

    def one(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        module = nets[0].lstm
        weights = {name.removeprefix("lstm."): t for name, t in stacked.items()}
        module.forward = lambda inputs: lstm("lstm", module, weights, inputs)  # type: ignore[method-assign]
        try:
            return torch.func.functional_call(nets[0], tensors, (x,))
        finally:
            del module.forward

    for _ in range(2):  # the second pass uses what the first has left
        y_K = torch.vmap(one)(stacked, x_K)
        weight = torch.randn_like(y_K)
        gradients = torch.autograd.grad((y_K * weight).sum(), [x_K, *stacked.values()])
        for k, net in enumerate(nets):
            x = x_K[k].detach().requires_grad_()
            y = net(x)
            mine = torch.autograd.grad((y * weight[k]).sum(), [x, *net.parameters()])
            torch.testing.assert_close(y_K[k], y, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close([g[k] for g in gradients], list(mine), rtol=1e-11, atol=1e-13)


def test_a_pass_of_the_stacked_lstm_is_differentiated_once() -> None:
    x, w, u, b = torch.randn(2, 1, 3, 2), torch.randn(2, 8, 2), torch.randn(2, 8, 2), torch.randn(2, 8)
    y: Any = StackedLSTM.apply(x.requires_grad_(), w, u, b)  # type: ignore[no-untyped-call]
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        y.sum().backward()


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}])
@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3), (4, 2, 3, 5)])
def test_the_stacked_batch_norm_is_torchs(shape: tuple[int, ...], settings: dict[str, Any], is_trained: bool) -> None:
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    torch.manual_seed(0)
    nets: list[Any] = [kind(2, **settings).double().train(is_trained) for _ in range(3)]
    for net in nets:
        for p in net.parameters():
            nn.init.normal_(p)
    both = [{n: t.detach().clone() for n, t in net.state_dict(keep_vars=True).items()} for net in nets]
    stacked: dict[str, Tensor] = {n: torch.stack([each[n] for each in both]) for n in both[0]}
    weights = [stacked[n].requires_grad_() for n, _ in nets[0].named_parameters()]
    x_K = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    module = nets[0]
    module.forward = lambda x: batch_norm(module, x)
    for _ in range(2):  # the second pass has other statistics to start from
        y_K = torch.vmap(lambda tensors, x: torch.func.functional_call(module, tensors, (x,)))(stacked, x_K)
    del module.forward
    weight = torch.randn_like(y_K)
    gradients = torch.autograd.grad((y_K * weight).sum(), [x_K, *weights])
    for k, net in enumerate(nets):
        x = x_K[k].detach().requires_grad_()
        y = [net(x) for _ in range(2)][-1]
        mine = torch.autograd.grad((y * weight[k]).sum(), [x, *net.parameters()])
        torch.testing.assert_close(y_K[k], y, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close([g[k] for g in gradients], list(mine), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close({n: t[k] for n, t in stacked.items()}, dict(net.state_dict()), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.randn(3), lambda x: torch.rand_like(x), lambda x: nn.functional.dropout(x, 0.5),
        lambda x: torch.randint(9, (2,)), lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x.clone().normal_(), lambda x: x.clone().uniform_(1, 2), lambda x: torch.normal(x, 1.0),
        lambda x: nn.Dropout(0.3)(x) + torch.randn(()),
    ],
)  # fmt: skip
def test_random_numbers_within_a_stack_are_those_of_each_seed(
    draw: Callable[[Tensor], Tensor], plans: Callable[..., list[Plan]]
) -> None:
    stack = task_of(plans([4, 2], "task=tc", "replicas=3"))
    assert isinstance(stack, Stack)
    stack.start_epoch(1)

    def one(slot: Tensor, x: Tensor) -> Tensor:
        with OwnRandomNumbers(slot, 3, stack.own_random_numbers, []):
            return draw(x)

    x = torch.ones(4)
    for _ in range(2):  # the second draw goes on from the first
        drawn_K = torch.vmap(one)(torch.arange(3), x.expand(3, 4))
    for k, seed in enumerate([4, 2, 2]):
        seed_all("epoch", seed, 1, 0)
        draw(x)
        assert torch.equal(drawn_K[k], draw(x))


# Tasks of a person's own

WORDS, WIDTH, LONG, COUNT = 11, 6, 5, 23


class Own(Task):
    """A mean of embeddings and a linear layer; a task below is another one somewhere."""

    headline = "loss"

    def __init__(self, cfg: Any, data: Any) -> None:
        super().__init__(cfg, data)
        generator = torch.Generator().manual_seed(0)
        words_NT = torch.randint(WORDS, (COUNT, LONG), generator=generator)
        self.data_set = TensorDataset(words_NT, torch.randn(COUNT, 4, generator=generator))
        self.metrics = MetricCollection({"loss": MeanMetric()}, compute_groups=False)
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 4)
        self.build()

    def build(self) -> None: ...

    def examples(self, split: str) -> Any:
        return self.data_set

    def evaluate(self, batch: Any) -> None:
        total, count = self.loss(batch)
        self.metrics.update(total / count)

    def hidden(self, words_BT: Tensor) -> Tensor:
        return self.embedding(words_BT).mean(1)

    def loss(self, batch: Any) -> Any:
        words_BT, targets_B4 = batch
        return (self.head(self.hidden(words_BT)) - targets_B4).square().sum(), len(words_BT)


class Triple(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 3 * super().forward(ids)


class OwnEmbedding(Own):
    def build(self) -> None:
        self.embedding = Triple(WORDS, WIDTH)


class MadeEmbedding(Own):
    def build(self) -> None:
        nn.utils.parametrize.register_parametrization(self.embedding, "weight", nn.Tanh())


class Places(Own):
    """Looks up the same rows for each batch."""

    def build(self) -> None:
        self.places = nn.Embedding(LONG, WIDTH)

    def hidden(self, words_BT: Tensor) -> Tensor:
        return (self.embedding(words_BT) * self.places(torch.arange(LONG))).mean(1)


class NewBuffer(Own):
    """Puts another tensor in the place of a buffer."""

    def build(self) -> None:
        self.register_buffer("center", torch.zeros(WIDTH))

    def hidden(self, words_BT: Tensor) -> Tensor:
        hidden = super().hidden(words_BT)
        self.center = 0.9 * self.center + 0.1 * hidden.detach().mean(0)
        return hidden - self.center


class Steps(Own):
    """Counts its losses."""

    count = 0

    def loss(self, batch: Any) -> Any:
        self.count += 1
        total, count = super().loss(batch)
        return total * self.count, count


class LastState(Own):
    def build(self) -> None:
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def hidden(self, words_BT: Tensor) -> Tensor:
        return self.lstm(self.embedding(words_BT))[1][0][0]


class DropsInPlace(Own):
    """Of one tensor for all."""

    def hidden(self, words_BT: Tensor) -> Tensor:
        factors = nn.functional.dropout(torch.ones(WIDTH).double(), 0.5, training=True, inplace=True)
        return super().hidden(words_BT) * factors


class OwnLSTM(LastState):
    def build(self) -> None:
        self.lstm = type("Mine", (nn.LSTM,), {"forward": lambda self, x: nn.LSTM.forward(self, 2 * x)})(WIDTH, WIDTH)


class Skips(Own):
    def hidden(self, words_BT: Tensor) -> Tensor:
        return nn.functional.embedding(words_BT, self.embedding.weight, padding_idx=0).mean(1)


class Projects(Own):
    def build(self) -> None:
        self.projection = torch.randn(WIDTH, WIDTH)


class OwnData(Own):
    def build(self) -> None:
        self.data_set = TensorDataset(self.data_set.tensors[0], torch.randn(COUNT, 4))


class OwnRates(Own):
    def with_own_rates(self, new: Any) -> Any:
        return lambda params: new(params, lr=0.5)


class OwnTable(OwnEmbedding):
    def tables(self) -> Any:
        return [Table(self.embedding)]


@pytest.fixture
def plans_of(plans: Callable[..., list[Plan]]) -> Callable[..., list[Plan]]:
    """Plans of an own task."""

    def plans_of(task: type[Task], *args: Any) -> list[Plan]:
        found = plans(*args, "task=tc", "batch_size=4")
        for plan in found:
            plan.cfg.task._target_ = f"test_replicas.{task.__name__}"
        return found

    return plans_of


@pytest.mark.parametrize(
    "task", [OwnEmbedding, MadeEmbedding, Places, NewBuffer, Steps, LastState, DropsInPlace],
)  # fmt: skip
def test_a_replica_of_an_own_task_is_its_solo_run(task: type[Task], plans_of: Callable[..., list[Plan]]) -> None:
    stack = stepped(plans_of(task, [0, 3], "replicas=3"), torch.float64, steps=6)
    for state, seed in zip(stack, (0, 3), strict=True):
        (alone,) = stepped(plans_of(task, [seed]), torch.float64, steps=6)
        torch.testing.assert_close(state, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (OwnLSTM, "Batching rule not implemented for aten::lstm"),
        (Skips, "F.embedding with padding_idx, which vmap leaves out"),
        (Projects, "projection depends on the seed, and is neither a parameter nor a buffer"),
        (OwnData, "data_set depends on the seed, and is neither"),
        (OwnRates, "its parameters have rates of their own"),
        (OwnTable, "embedding is a table, and its module does more than to read rows"),
    ],
)
def test_an_own_task_that_would_not_be_its_solo_run_is_refused(
    task: type[Task], why: str, plans_of: Callable[..., list[Plan]]
) -> None:
    with pytest.raises(CannotStackError, match=why):  # noqa: PT012
        stack = task_of(of_stack := plans_of(task, [0, 3], "replicas=3"))
        assert isinstance(stack, Stack)
        stack.try_once(next(batches(stack, of_stack))[0][0])
        stack.with_own_rates(TMSGD)


def test_a_module_that_a_task_holds_in_eval_mode_stays_so(plans_of: Callable[..., list[Plan]]) -> None:
    """As in a run by itself, where Lightning knows the mode of each module."""

    class Frozen(Own):
        def build(self) -> None:
            self.norm = nn.BatchNorm1d(WIDTH).eval()

    stack = Stack([Frozen(None, None)] * 2, [0, 1], 2)  # type: ignore[arg-type]
    for mode in (False, True):
        stack.train(mode)
        assert [(task.training, task.norm.training) for task in stack.replicas] == [(mode, False)] * 2  # type: ignore[union-attr]


# Whole runs

SWEEP = ["-m", "task=tc", "optimizer=sgd,tmsgd", "seed=0,1", "epochs=3", "switch_epoch=2", "batch_size=40"]


def by_job(folder: Path) -> dict[tuple[str, int], tuple[Result, Path]]:
    return {(r.optimizer, r.seed): (r, path) for r, path in results(folder).values()}


@pytest.mark.slow
def test_a_sweep_of_stacks_ends_as_one_run_at_a_time(tmp_path: Path) -> None:
    stacked, alone = tmp_path / "stacked", tmp_path / "alone"
    done = tmbench(*SWEEP, "replicas=3", f"runs_dir={stacked}")
    assert done.returncode == 0, done.stderr
    assert tmbench(*SWEEP, f"runs_dir={alone}").returncode == 0
    mine, others = by_job(stacked), by_job(alone)
    assert mine.keys() == others.keys()
    for job, (result, folder) in mine.items():
        other, elsewhere = others[job]
        assert (result.status, result.replicas, other.replicas) == ("completed", 3, 1)
        assert result.run_id != other.run_id
        assert result.epochs == other.epochs  # those from the trunk, too
        assert {p.relative_to(folder) for p in folder.rglob("*.*")} >= {
            p.relative_to(elsewhere) for p in elsewhere.rglob("*.png")
        }
        for row, theirs in zip(curves(folder), curves(elsewhere), strict=True):
            assert row.keys() == theirs.keys()
            for key in row:
                assert float(row[key]) == pytest.approx(float(theirs[key]), rel=1e-4), key
        torch.testing.assert_close(weights(folder), weights(elsewhere), rtol=1e-3, atol=1e-5)
        assert checkpoint.epochs(folder / "checkpoints" / "best.ckpt") == result.metrics["best"]["epoch"]
    assert len({mine["sgd", seed][0].seconds for seed in (0, 1)}) == 1  # its share of the stack's
    again = tmbench(*SWEEP, "replicas=3", f"runs_dir={stacked}")
    assert (again.returncode, "loading torch" in again.stderr) == (0, False)
    # One of them, by itself: in a stack of spare slots.
    _, folder = mine["tmsgd", 1]
    kept = weights(folder)
    assert tmbench("run", str(folder), "force=true", "trunk=off").returncode == 0
    assert_same(weights(folder), kept)


SMALL = ["task=tc", "batch_size=40", "epochs=3", "optimizer=sgdm"]
EXTRAS = ["ema=0.9", "clip_norm=0.5", "schedule=cosine", "optimizer=adam"]


@pytest.mark.parametrize("task", ["tc", pytest.param("ctr", marks=slow), pytest.param("fkpd", marks=slow)])
def test_a_resumed_stack_is_bitwise_the_one_that_was_not_stopped(task: str, composed: Compose, tmp_path: Path) -> None:
    """With all that may have a state of its own: average, optimizer, schedule."""

    def asked(folder: str) -> list[Asked]:
        words = [
            f"task={task}",
            *SHORT.get(task, []),
            *(["batch_size=40"] if task == "tc" else []),
            "epochs=3",
            "replicas=3",
            *EXTRAS,
            f"runs_dir={tmp_path / folder}",
        ]
        return [Asked(composed(*words, f"seed={seed}")) for seed in (0, 1)]

    whole = run_stack(asked("whole"))
    assert [(r.status, how) for r, _, how in run_stack(asked("parts"), until=1)] == [("interrupted", "new")] * 2
    parts = run_stack(asked("parts"))
    for (result, folder, _), (other, elsewhere, how) in zip(whole, parts, strict=True):
        assert (result.metrics, result.run_id, how) == (other.metrics, other.run_id, "resumed")
        assert curves(folder) == curves(elsewhere)
        for name in ("last.ckpt", "best.ckpt"):
            assert_same(weights(folder, name), weights(elsewhere, name))
        average = checkpoint.load(folder / "checkpoints" / "last.ckpt")["average"]
        assert sorted(t.shape for t in average) == sorted(
            t.shape for t in weights(folder).values() if t.is_floating_point()
        )


@pytest.mark.parametrize("task", ["tc", pytest.param("fkpd", marks=slow)])
def test_extras_of_a_stack_are_those_of_a_run_by_itself(task: str, composed: Compose, tmp_path: Path) -> None:
    words = [f"task={task}", *SHORT.get(task, []), "epochs=2", *EXTRAS, "seed=1"]
    one, _, _ = run(composed(*words, "replicas=2", f"runs_dir={tmp_path}"))
    other, _, _ = run(composed(*words, f"runs_dir={tmp_path}"))
    assert one.metrics["last"] == pytest.approx(other.metrics["last"], rel=2e-3)
    assert "test_ema/" in "".join(one.metrics["last"])


def test_a_stack_that_a_kill_left_uneven_goes_on(composed: Compose, tmp_path: Path) -> None:
    """A kill between two of the files that one epoch of a stack writes."""

    def asked(folder: str) -> list[Asked]:
        words = [*SMALL, "replicas=2", f"runs_dir={tmp_path / folder}"]
        return [Asked(composed(*words, f"seed={seed}")) for seed in (0, 1)]

    whole = run_stack(asked("whole"))
    run_stack(asked("uneven"), until=1)
    (run_stack([asked("uneven")[1]], until=2))
    uneven = run_stack(asked("uneven"))
    for (result, folder, _), (other, elsewhere, _) in zip(whole, uneven, strict=True):
        assert result.metrics == other.metrics
        assert_same(weights(folder), weights(elsewhere))


class Guesses(Own):
    """Has a matrix of the same shape as its table."""

    def build(self) -> None:
        self.guess = nn.Linear(WIDTH, WORDS)

    def loss(self, batch: Any) -> Any:
        words_BT, _ = batch
        return nn.functional.cross_entropy(self.guess(self.hidden(words_BT)), words_BT[:, -1], reduction="sum"), COUNT


@pytest.mark.slow
def test_a_stack_whose_tensors_are_of_equal_shapes_is_resumed(composed: Compose, tmp_path: Path) -> None:
    def asked(folder: str) -> list[Asked]:
        words = ["task=tc", "epochs=2", "replicas=2", "optimizer=adam", "ema=0.9", f"runs_dir={tmp_path / folder}"]
        found = [Asked(composed(*words, f"seed={seed}")) for seed in (0, 1)]
        for each in found:
            each.cfg.task._target_ = "test_replicas.Guesses"
        return found

    whole = run_stack(asked("whole"))
    run_stack(asked("parts"), until=1)
    for (one, _, _), (other, _, how) in zip(whole, run_stack(asked("parts")), strict=True):
        assert (one.metrics, how) == (other.metrics, "resumed")


@slow
@pytest.mark.parametrize("rates", [[0.1], [0.05, 0.1]])
def test_a_stack_shares_steps_that_it_has_from_its_trunk(rates: list[float], composed: Compose, tmp_path: Path) -> None:
    """With epochs of one step, a method's history reaches over those that another stack has trained."""

    def done(method: str, switch: int, *words: str) -> list[Path]:
        asked = ["task=tc", "batch_size=1000", "epochs=4", "replicas=2", f"runs_dir={tmp_path}", *words]
        cfgs = [composed(*asked, f"optimizer={method}", f"switch_epoch={switch}", f"lr={lr}") for lr in rates]
        outcomes = run_stack([Asked(cfg, requests=[(switch, 4)] if not words else []) for cfg in cfgs])
        return [folder for _, folder, _ in outcomes]

    done("tmsgd", 2)
    done("tmsgd", 3)
    shared = done("multistep", 3)
    assert {Result.load(folder).epochs["from_trunk"] for folder in shared} == {3}  # type: ignore[union-attr]
    kept = [weights(folder) for folder in shared]
    for one, folder in zip(kept, done("multistep", 3, "trunk=off", "force=true"), strict=True):
        assert_same(one, weights(folder))


def test_a_plan_measures_a_whole_stack(tmp_path: Path) -> None:
    words = ["-m", "task=tc", "optimizer=sgd", "seed=0,1,2", "epochs=2", "batch_size=40", "replicas=3"]
    done = tmbench(*words, "plan=true", f"runs_dir={tmp_path}")
    assert "measuring an epoch of jobs 0, 1, 2 (" in done.stderr
    assert done.stdout.count("resumes after epoch 1") == 3


def test_a_replica_that_diverges_leaves_the_others_as_they_are(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack(folder: str) -> list[Any]:
        words = [*SMALL, "replicas=3", f"runs_dir={tmp_path / folder}"]
        return run_stack([Asked(composed(*words, f"seed={seed}")) for seed in (0, 1, 2)])

    well, original = stack("well"), Training.on_train_epoch_start

    def spoil(self: Training) -> None:
        original(self)
        if self.current_epoch == 1:
            next(self.replicas[1].task.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(Training, "on_train_epoch_start", spoil)
    ill = stack("ill")
    assert [r.status for r, _, _ in ill] == ["completed", "diverged", "completed"]
    spoiled = ill[1][0]
    assert (spoiled.diverged_at, spoiled.epochs["trained"]) == ({"epoch": 2, "step": 1}, 1)
    for k in (0, 2):
        assert ill[k][0].metrics == well[k][0].metrics
        assert_same(weights(ill[k][1]), weights(well[k][1]))


def test_a_stack_of_which_all_diverge_has_diverged(composed: Compose, tmp_path: Path) -> None:
    words = ["task=ctr", "batch_size=512", "replicas=2", "lr=1e30", f"runs_dir={tmp_path}"]
    outcomes = run_stack([Asked(composed(*words, f"seed={seed}")) for seed in (0, 1)])
    assert [r.status for r, _, _ in outcomes] == ["diverged"] * 2


# Of each, whole runs that take seconds.
TINY = SHORT | {"tc": ["epochs=3", "batch_size=40"], "seg": ["task.preprocess=source", "epochs=2", "batch_size=16",
                                                           "task.short_side=32"]}  # fmt: skip


@slow
@pytest.mark.parametrize("task", TASKS)
def test_metrics_of_a_stack_are_within_the_spread_of_threads(task: str, composed: Compose, tmp_path: Path) -> None:
    """In float32, over whole runs of 4 seeds, in units of a metric's standard deviation between seeds.

    The largest difference of any metric between a stack and single runs is at most ten times that between single runs
    on one and on two threads: either is a draw of few from what training makes of rounding. Where threads do not round
    apart at all, it is at most 1e-4.
    """

    def metrics(folder: str, threads: int, *words: str) -> Tensor:
        torch.set_num_threads(threads)
        asked = [f"task={task}", *TINY[task], f"runs_dir={tmp_path / folder}", *words]
        runs = [Asked(composed(*asked, f"seed={seed}")) for seed in range(4)]
        outcomes = run_stack(runs) if words else [run_stack([each])[0] for each in runs]
        return torch.tensor([list(result.metrics["last"].values()) for result, _, _ in outcomes], dtype=torch.float64)

    try:
        one, two, stack = metrics("one", 1), metrics("two", 2), metrics("stack", 1, "replicas=4")
    finally:
        torch.set_num_threads(1)
    sd = one.std(0)
    sd[sd == 0] = 1
    of_threads, of_stack = (float(((other - one).abs() / sd).max()) for other in (two, stack))
    print(f"{task}: {of_threads:.2g} between threads, {of_stack:.2g} between stack and alone")
    assert of_stack <= 10 * of_threads + 1e-4


# Different rates

RATES = (0.02, 0.002)  # larger ones enlarge rounding, by itself as in a stack
OF_RATES = [  # a method with what acts on its rate
    ["optimizer=tmsgd", "switch_epoch=1"],
    pytest.param(["optimizer=sgdm", "optimizer.weight_decay=0.01"], marks=slow),
    pytest.param(["optimizer=adam", "schedule=cosine"], marks=slow),
    pytest.param(["optimizer=sgdm", "optimizer.weight_decay=0.01", "schedule=one_cycle", "ema=0.9"], marks=slow),
    pytest.param(["optimizer=sgd_to_sgdm", "switch_epoch=1", "schedule=cosine", "clip_norm=0.5"], marks=slow),
    pytest.param(["optimizer=schedule_free_sgd", "clip_value=0.1"], marks=slow),
    pytest.param(["task=ctr", "optimizer=tmsgd", "switch_epoch=1", "batch_size=128", "task.l2=1e-4"], marks=slow),
    pytest.param(["task=fkpd", *SHORT["fkpd"], "optimizer=sgdm"], marks=slow),
    pytest.param(["task=ig", *SHORT["ig"], "optimizer=adam", "task.lr_d=0.001"], marks=slow),
]  # fmt: skip


@pytest.fixture
def of_rates(composed: Compose, tmp_path: Path) -> Callable[..., list[Any]]:
    def of_rates(folder: str, words: list[str], *runs: tuple[float, int], until: int | None = None) -> list[Any]:
        common = ["task=tc", "batch_size=32", *words, "epochs=2", f"runs_dir={tmp_path / folder}"]
        return run_stack([Asked(composed(*common, f"lr={lr}", f"seed={seed}")) for lr, seed in runs], until)

    return of_rates


@pytest.mark.parametrize("words", OF_RATES[:-1])  # ig's distances are of float32
def test_a_replica_of_one_rate_among_others_is_its_solo_run(
    words: list[str], of_rates: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, in_float64: None
) -> None:
    """In float64, after 20 steps or so; each run has its own rates in its curves."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    runs = [(RATES[0], 1), (RATES[1], 0)]
    for (_, folder, _), one in zip(of_rates("stack", [*words, "replicas=4"], *runs), runs, strict=True):
        ((_, alone, _),) = of_rates("alone", words, one)
        for name, value in weights(alone).items():
            assert (weights(folder)[name] - value).double().norm() <= 1e-9 * value.double().norm() + 1e-12, name
        rates = [[{k: v for k, v in row.items() if k.startswith("lr")} for row in curves(f)] for f in (folder, alone)]
        assert rates[0] == rates[1]


@pytest.mark.parametrize("words", OF_RATES)
def test_the_bits_of_a_replica_depend_on_no_other_rate(words: list[str], of_rates: Callable[..., list[Any]]) -> None:
    """Not on one that diverges either; and a stack of several rates that was stopped is bitwise one that was not."""
    words = [*words, "replicas=4"]
    pure = of_rates("pure", words, (RATES[0], 0), (RATES[0], 1)) + of_rates("pure", words, (RATES[1], 1))
    mixed = [(RATES[1], 1), (1e30, 0), (RATES[0], 1), (RATES[0], 0)]
    assert {r.status for r, _, _ in of_rates("mixed", words, *mixed, until=1)} == {"interrupted", "diverged"}
    low, wild, second, first = of_rates("mixed", words, *mixed)
    assert wild[0].status == "diverged"
    for (result, folder, _), (other, elsewhere, _) in zip(pure, (first, second, low), strict=True):
        assert (result.metrics, result.run_id) == (other.metrics, other.run_id)
        assert curves(folder) == curves(elsewhere)
        kept, found = (checkpoint.load(f / "checkpoints" / "last.ckpt") for f in (folder, elsewhere))
        assert_same(kept["state_dict"], found["state_dict"])
        assert kept["lr_schedulers"] == found["lr_schedulers"]
        for of_one, of_other in zip(kept["optimizer_states"], found["optimizer_states"], strict=True):
            assert of_one["param_groups"] == of_other["param_groups"]
            torch.testing.assert_close(of_one["state"], of_other["state"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_stack_that_is_killed_twice_goes_on(tmp_path: Path) -> None:
    """At the end the same as one that was not."""
    words = ["-m", "task=tc", "optimizer=sgd,tmsgd", "seed=range(0,4)", "epochs=6", "switch_epoch=3", "replicas=4"]
    assert tmbench(*words, f"runs_dir={tmp_path / 'whole'}").returncode == 0
    for epochs, number in ((1, signal.SIGKILL), (4, signal.SIGKILL)):
        process = start(tmp_path / "killed", *words)
        wait_for_epochs(tmp_path / "killed", epochs)
        os.kill(process.pid, number)
        process.communicate()
    assert tmbench(*words, f"runs_dir={tmp_path / 'killed'}").returncode == 0
    whole, killed = by_job(tmp_path / "whole"), by_job(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for job, (result, folder) in whole.items():
        other, elsewhere = killed[job]
        assert (result.metrics, result.status, other.status) == (other.metrics, "completed", "completed")
        assert_same(weights(folder), weights(elsewhere))


def table_of(printed: str) -> dict[str, list[float]]:
    """By job, the percentages in its row of a sweep's table."""
    rows = (line.split("│") for line in printed.splitlines() if re.match(r"│ +\d", line))
    return {cells[1].strip(): [float(x) for x in re.findall(r"([\d.]+) %", " ".join(cells))] for cells in rows}


@slow
def test_a_killed_sweep_of_stacks_ends_in_the_table_and_report_of_one_run_at_a_time(tmp_path: Path) -> None:
    """Up to two of the 160 test documents, each 0.625 points, that rounding may have put on the other side."""
    words = ["-m", "task=tc", "optimizer=sgd,tmsgd", "seed=range(0,16)", "lr=0.1", "epochs=4", "switch_epoch=2",
             "batch_size=8"]  # fmt: skip
    alone, stacks = tmp_path / "alone", tmp_path / "stacks"
    for epochs in (10, 67):  # of 128: in the first stack, and in the third, which starts from its trunk
        process, deadline = start(stacks, *words, "replicas=8"), time.monotonic() + 120
        while sum(len(path.read_text().splitlines()) - 1 for path in stacks.glob("*/curves.csv")) < epochs:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert any(checkpoint.epochs(path) < 4 for path in stacks.glob("*/checkpoints/last.ckpt"))
    ends = [tmbench(*words, f"runs_dir={alone}"), tmbench(*words, "replicas=8", f"runs_dir={stacks}")]
    assert [done.returncode for done in ends] == [0, 0]
    one_by_one, together = (table_of(done.stdout) for done in ends)
    assert one_by_one.keys() == together.keys() == set(map(str, range(32)))
    for job, percentages in together.items():
        assert len(percentages) == 3  # last, best, and the trivial predictor's
        assert percentages == pytest.approx(one_by_one[job], abs=1.3)
    tables = []
    for folder in (alone, stacks):
        assert tmbench("report", str(folder), f"out={folder / 'report'}").returncode == 0
        content = json.loads((folder / "report" / "report.json").read_text())
        tables.append({table["key"]: table for table in content["tables"]})
    (mine, other), (verdict, another) = ([t[key] for t in tables] for key in ("results-0-tc-tiny", "comparisons"))
    assert [row[0] for row in mine["rows"]] == ["sgd", "tmsgd"]
    for row, theirs in zip(mine["rows"], other["rows"], strict=True):
        assert row[1] == pytest.approx(theirs[1], abs=0.0015)  # means of 16
        first = mine["columns"].index("n")
        assert mine["columns"][first : first + 5] == ["n", "completed", "diverged", "failed", "unfinished"]
        assert row[first : first + 5] == theirs[first : first + 5] == [16, 16, 0, 0, 0]
    row, theirs = ([t["rows"][0][t["columns"].index(c)] for c in ("verdict", "n", "difference")] for t in
                   (verdict, another))  # fmt: skip
    assert row[:2] == theirs[:2]
    assert row[2] == pytest.approx(theirs[2], abs=0.0015)


@slow
def test_launchers_take_a_stack_as_one_job(tmp_path: Path) -> None:
    words = ["-m", "task=tc", "batch_size=40", "epochs=2", "optimizer=sgd", "seed=0,1,2", "replicas=2"]
    done = tmbench(*words, "launcher=local", "launcher.n_jobs=2", f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert [r.status for r, _ in results(tmp_path).values()] == ["completed"] * 3
    (sweep,) = (tmp_path / ".sweeps").iterdir()
    assert len(list(sweep.glob("launch-*.json"))) == 2
    assert len(list(sweep.glob("job-*.json"))) == 3


# What cannot be stacked


def stacked(composed: Compose, *jobs: str) -> list[list[int]]:
    """The numbers of the jobs that are trained together."""
    found = [Job(i, w.split(), OmegaConf.to_container(composed("task=tc", *w.split()))) for i, w in enumerate(jobs)]
    RunFinder(download=False).find_all(found)
    return [[job.number for job in stack] for stack in stacks_of(found)]


def test_the_jobs_of_a_stack_differ_by_their_seed_alone(composed: Compose) -> None:
    words = ["seed=0", "seed=0 batch_size=5", "seed=1", "seed=2 replicas=1", "seed=3", "seed=4 lr=0.5"]
    assert stacked(composed, *(f"replicas=2 {w}" for w in words)) == [[0, 2], [1], [3], [4, 5]]


@pytest.mark.parametrize(
    ("slots", "rates", "seeds", "expected"),
    [
        (4, 2, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),  # full as they are
        (4, 2, 2, [[0, 1, 2, 3]]),
        (4, 2, 6, [[0, 1, 2, 3], [4, 5, 10, 11], [6, 7, 8, 9]]),
        (4, 2, 3, [[0, 1, 2], [3, 4, 5]]),  # two stacks either way
        (2, 4, 1, [[0, 1], [2, 3]]),
    ],
)
def test_stacks_that_lack_seeds_are_filled_with_other_rates(
    slots: int, rates: int, seeds: int, expected: list[list[int]], composed: Compose
) -> None:
    words = [f"replicas={slots} lr={0.1 * (r + 1)} seed={seed}" for r in range(rates) for seed in range(seeds)]
    assert stacked(composed, *words) == expected


def test_a_rate_that_is_not_the_runs_alone_is_not_mixed(composed: Compose) -> None:
    words = ["lr=0.1 optimizer.weight_decay=0.1", "lr=0.2 optimizer.weight_decay=0.2", "lr=0.3 optimizer.momentum=0.5"]
    assert stacked(composed, *(f"replicas=2 optimizer=sgdm {w}" for w in words)) == [[0], [1], [2]]


ELEMENTWISE = ("sgd", "sgdm", "nag", "tmsgd", "tmsgdm", "tmnag", "tmsgd_third", "multistep", "sgd_half", "sgd_to_sgdm",
               "switch", "adam", "adamw", "adagrad", "rmsprop", "adabelief", "lion", "eg", "multiplicative",
               "schedule_free_sgd")  # fmt: skip
OTHERS = ("clars", "lamb", "lars", "learned", "lmo", "madam", "muon", "shampoo", "soap", "apollo", "prodigy")


@pytest.mark.parametrize("optimizer", [*ELEMENTWISE, *OTHERS])
def test_which_optimizers_look_at_single_elements(optimizer: str, composed: Compose) -> None:
    is_elementwise = optimizer in ELEMENTWISE
    words = ["task=tc", f"optimizer={optimizer}", "replicas=4", "lr=0.01"]
    cfg = planned(composed(*words)).cfg
    assert (cfg.replicas == 4) == is_elementwise
    difference = stacked_difference(optimizer_of(cfg, 3 if "switch_step" in cfg.optimizer else None))
    assert (difference <= 1e-12) == is_elementwise, difference


def _backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("optimizer", [pytest.param(o, marks=[] if o == "adam" else slow) for o in ELEMENTWISE])
def test_an_optimizer_steps_parts_of_a_stack_bitwise_as_the_whole(optimizer: str, composed: Compose) -> None:
    """In float32, whatever the places of vectors of numbers in their tensors."""
    cfg = planned(composed("task=tc", f"optimizer={optimizer}", "lr=0.01")).cfg
    new = optimizer_of(cfg, 3 if "switch_step" in cfg.optimizer else None)
    ends = []
    for parts in ([range(5)], [range(2), range(2, 3), range(3, 5)]):
        generator = torch.Generator().manual_seed(0)
        stacked = [nn.Parameter(torch.randn(5, *shape, generator=generator)) for shape in ((37, 3), (11,), (1,))]
        group = Group(stacked, set(), parts)
        optimizers: list[Any] = [new(params) for params in group.of_part]
        for _ in range(8):
            gradients = [torch.randn(p.shape, generator=generator) for p in stacked]
            loss = torch.stack([(p * grad).sum() for p, grad in zip(stacked, gradients, strict=True)]).sum()
            for p in stacked:
                p.grad = None
            shared = group.shared(partial(_backward, loss))
            for each in optimizers:
                if hasattr(each, "train"):
                    each.train()
                each.step(shared)
        ends.append({str(place): p.detach() for place, p in enumerate(stacked)})
    assert_same(*ends)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["optimizer=muon"], "optimizer=muon is not known to treat each element of a tensor alone"),
        (["task=od"], "task=od: its batches hold as many boxes as there are in the pictures"),
        (["trainer.accumulate=2"], "trainer.accumulate=2"),
    ],
)
def test_what_is_known_to_be_no_stack_is_trained_by_itself(
    words: list[str], why: str, composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_once.cache_clear()
    cfgs = [settle(composed("task=tc", *words, "replicas=4", f"seed={seed}")) for seed in (0, 1)]
    assert [cfg.replicas for cfg in cfgs] == [1, 1]
    assert capsys.readouterr().err.count(f"replicas: {why}; its runs are trained one at a time") == 1


class Counts(TC):
    """A task whose loss looks at a number, which no stack can."""

    def loss(self, batch: Any) -> Any:
        total, count = super().loss(batch)
        return (total, count) if float(total.detach()) < 1e9 else (2 * total, count)


def test_a_loss_that_cannot_be_stacked_is_said_and_trained_one_at_a_time(
    tmp_path: Path, composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=tc", "epochs=1", "batch_size=40", "replicas=2", "optimizer=sgd", f"runs_dir={tmp_path}"]
    cfgs: list[Any] = [OmegaConf.to_container(composed(*words, f"seed={seed}")) for seed in (0, 1)]
    for cfg in cfgs:
        cfg["task"]["_target_"] = "test_replicas.Counts"
    with pytest.raises(CannotStackError, match=r"replicas: the loss cannot be that of a stack: .*; use replicas=1"):
        run(OmegaConf.create(cfgs[0]))
    assert not list(tmp_path.glob("tc-*"))
    orders = [JobOrder(seed, "", [f"seed={seed}"], [], cfg, []) for seed, cfg in enumerate(cfgs)]
    ended = do_job(tmp_path, replace(orders[0], others=orders[1:]))
    assert [(r.status, r.seed, r.replicas) for r in ended if r] == [("completed", 0, 1), ("completed", 1, 1)]
    assert "replicas: the loss cannot be that of a stack: " in (said := capsys.readouterr().err)
    assert "these runs are trained one at a time" in said
    assert len(list(tmp_path.glob("job-*.json"))) == 2
    for _, folder in results(tmp_path).values():  # as it was trained, it can be repeated
        assert "replicas=1" in (folder / "overrides.yaml").read_text()


def test_what_does_not_fit_is_refused_with_the_number_that_does(
    plans: Callable[..., list[Plan]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = task_of(of_stack := plans([0, 1], "task=tc", "replicas=6"))
    assert isinstance(stack, Stack)
    [(batch, _)] = next(batches(stack, of_stack))
    parameters = sum(p.numel() * p.element_size() for p in stack.first.parameters())
    monkeypatch.setattr("tmbench.training.capacity.free_memory", lambda: 10**12)
    check_memory(stack, batch, CPU)
    # The activations of two documents of 32 words and 50 units are some 300 KiB.
    monkeypatch.setattr("tmbench.training.capacity.free_memory", lambda: 6 * 4 * parameters)
    with pytest.raises(CannotStackError, match=r"6 of them take about .* GiB, and .* are free; use replicas=[345]$"):
        check_memory(stack, batch, CPU)
    monkeypatch.setattr("tmbench.training.build.free_memory", lambda: 5 * 4 * parameters)
    with pytest.raises(CannotStackError, match=r"use replicas=5$"):
        task_of(of_stack)


def peak_bytes(plans: list[Plan]) -> int:
    """The most that torch's tensors take while a task is made and steps three times by the method of its plans."""
    cfg = plans[0].cfg
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task = task_of(plans)
        task.train()
        training = Training(task, cfg, [optimizer_of(cfg, None)], 1, None, lambda: False)
        optimizers: list[Any] = training.new_optimizers()
        training.step_by_rows(optimizers)
        for step in islice(batches(task, plans), 3):
            for player, optimizer in zip(task.players().values(), optimizers, strict=True):
                optimizer.step(lambda o=optimizer, p=player, s=step: training.gradient.closure(o, p, s))
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@slow
@pytest.mark.parametrize(
    "words",
    [
        ["task=tc", "batch_size=32", "task.width=100"], ["task=ctr", "batch_size=256"],
        ["task=fkpd", "batch_size=16", "task.width=4"], ["task=fkpd", "batch_size=8", "task.size=64", "task.width=4"],
    ],
)  # fmt: skip
def test_a_stack_takes_no_more_memory_than_its_replicas(words: list[str], plans: Callable[..., list[Plan]]) -> None:
    """Weights, gradients, momentum, activations and batches; 10 % more at most."""
    one = peak_bytes(plans([0], *words, "optimizer=sgdm"))
    stack = peak_bytes(plans(list(range(8)), *words, "optimizer=sgdm", "replicas=8"))
    print(f"{words}: {one / 2**20:.2f} MiB alone, {stack / 2**20:.2f} as 8: {stack / one / 8:.3f}")
    assert stack <= 1.1 * 8 * one


@pytest.mark.parametrize("words", [["task=tc"], ["task=ig", "task.width=1"]])
def test_replicas_share_what_is_read(words: list[str], plans: Callable[..., list[Plan]]) -> None:
    stack: Any = task_of(plans([0, 1], *words, "replicas=2"))
    first, second = stack.replicas
    assert second.examples("train") is not None
    assert second.examples == first.examples
    if "task=tc" in words:
        assert second.documents["train"] is first.documents["train"]
    else:
        assert second.real_N3HW.data_ptr() == first.real_N3HW.data_ptr()


def test_auto_takes_the_fastest_and_remembers_it(
    tmp_path: Path, composed: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, measured = {1: 1.0, 4: 3.0, 8: 5.0, 16: 17.0}, []

    def seconds_a_step(plans: list[Plan]) -> float:
        measured.append(plans[0].cfg.replicas)
        return seconds[plans[0].cfg.replicas]

    monkeypatch.setattr("tmbench.training.capacity.seconds_a_step", seconds_a_step)

    def slots(seeds: int, *words: str) -> set[Any]:
        cfgs: list[Any] = [composed("replicas=auto", f"runs_dir={tmp_path}", *words, f"seed={s}") for s in range(seeds)]
        jobs = [Job(i, ["replicas=auto"], OmegaConf.to_container(cfg)) for i, cfg in enumerate(cfgs)]
        settle_auto(jobs, False)
        assert all(job.overrides == [f"replicas={job.raw['replicas']}"] for job in jobs)
        return {job.raw["replicas"] for job in jobs}

    assert slots(16) == {8}
    assert measured == [1, 4, 8, 16]
    assert slots(16) == {8}
    assert slots(10) == {4}  # three stacks of four are faster than two of eight
    assert slots(5) == {1}  # and two of four slower than five alone
    assert slots(1) == {1}
    assert slots(16, "optimizer=muon") == {1}
    assert measured == [1, 4, 8, 16]
    assert "replicas=auto: 8 for 16 seeds" in capsys.readouterr().err


def test_a_step_of_a_stack_is_measured(plans: Callable[..., list[Plan]], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["task=tc", "optimizer=tmsgd"], ["task=tc", "optimizer=adam"]):
        for slots in (1, 4):
            assert 0 < seconds_a_step(plans(list(range(slots)), *words, f"replicas={slots}")) < 10


@pytest.mark.parametrize("value", ["0", "-2", "many", "1.5"])
def test_replicas_is_a_number_or_auto(value: str, tmp_path: Path) -> None:
    done = tmbench("task=tc", f"replicas={value}", f"runs_dir={tmp_path}")
    assert done.returncode == 1
    assert "replicas: expected a whole number >= 1, or auto, got" in done.stderr


def test_pictures_of_different_sizes_are_no_stack(composed: Compose, tmp_path: Path) -> None:
    words = ["task=seg", *SHORT["seg"], "replicas=2", f"runs_dir={tmp_path}"]
    with pytest.raises(CannotStackError, match="the batches of a step are of different shapes, such as"):
        run_stack([Asked(composed(*words, f"seed={seed}")) for seed in (0, 1)])
