"""Rows that are caught up when they are read end where the dense step takes them."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, real_data
from helpers import pairwise, tmbench, weights
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tmbench.config.identity import run_id
from tmbench.config.settle import settle
from tmbench.errors import ConfigError
from tmbench.optim import (
    TMSGD,
    LazyRows,
    MultistepSGD,
    RescaledSGD,
    SwitchOptimizer,
    average_over_ranks,
    products,
)  # fmt: skip

New = Callable[[Any], Optimizer]
ROWS, SWITCH, STEPS = 200, 1000, 2000

METHODS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "sgdm": partial(SGD, momentum=0.9),
    "dampened": partial(SGD, momentum=0.9, dampening=0.5),
    "nag": partial(SGD, momentum=0.9, nesterov=True),
    "tmsgd": partial(TMSGD, switch_step=SWITCH),
    "cold": partial(TMSGD, switch_step=SWITCH, history="zero"),
    "third": partial(TMSGD, switch_step=0, c=1 / 3),
    "tmsgdm": partial(TMSGD, momentum=0.9, switch_step=SWITCH),
    "tmnag": partial(TMSGD, momentum=0.9, nesterov=True, switch_step=SWITCH),
    "six_point": partial(MultistepSGD, preset="six_point", switch_step=SWITCH),
    "half": partial(RescaledSGD, momentum=0.5, switch_step=SWITCH),
    "foreach": partial(TMSGD, momentum=0.9, switch_step=SWITCH, foreach=True),
    "fused": partial(TMSGD, momentum=0.9, switch_step=SWITCH, fused=True),
}
DECAYS = {"none": {}, "l2": {"weight_decay": 0.01}, "decoupled": {"weight_decay": 0.01, "decoupled": True}}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda at: 1.0,
    "linear": lambda at: 1 - at,
    "steps": lambda at: 0.3 ** int(3 * at),
}


def batches(steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (20) by Zipf's law, the last row at the steps 20 and 1,600 alone; and noise (20, 3)."""
    random = torch.Generator().manual_seed(seed)
    chances = 1 / torch.arange(1.0, ROWS)
    for step in range(steps):
        read = torch.multinomial(chances, 20, replacement=True, generator=random)
        if step in (20, 1600):
            read[0] = ROWS - 1
        yield read, torch.randn(20, 3, dtype=torch.float64, generator=random)


def walk(
    new: New, schedule: str = "constant", sparse: bool = True, dtype: torch.dtype = torch.float64, l2: float = 0.0,
    steps: int = STEPS,
) -> Tensor:  # fmt: skip
    """The table after noisy steps; the dense walk has the penalty in its loss."""
    table = nn.Embedding(ROWS, 3, dtype=dtype, sparse=sparse)
    with torch.no_grad():
        table.weight.copy_(torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = new(table.parameters())
    if sparse:
        LazyRows(optimizer, table, l2=l2)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: SCHEDULES[schedule](step / steps))
    for read, noise in batches(steps):
        optimizer.zero_grad()
        read_rows = table(read)
        loss = (read_rows * noise.to(dtype)).sum() + 0.05 * read_rows.square().sum()
        if l2 and not sparse:
            loss = loss + l2 * table.weight.square().sum()
        loss.backward()
        optimizer.step()
        rate.step()
    weight: Tensor = table.state_dict()["weight"]
    return weight.double()


def error(lazy: Tensor, dense: Tensor) -> float:
    return float((lazy - dense).abs().max() / dense.abs().max())


def assert_as_dense(new: New, schedule: str = "constant", l2: float = 0.0, steps: int = STEPS) -> None:
    dense = walk(new, schedule, sparse=False, l2=l2, steps=steps)
    assert error(walk(new, schedule, l2=l2, steps=steps), dense) <= 1e-12
    assert error(walk(new, schedule, dtype=torch.float32, l2=l2, steps=steps), dense) <= 2e-6


def method(name: str, decay: str = "none") -> New:
    new = METHODS[name]
    while isinstance(new, partial):
        new = new.func
    if decay == "decoupled" and new is SGD:
        pytest.skip("torch's SGD has no decoupled decay")
    return partial(METHODS[name], lr=0.03, **DECAYS[decay])


@pairwise(name=METHODS, decay=DECAYS, schedule=SCHEDULES)
@pytest.mark.slow
def test_the_table_after_2000_noisy_steps_is_that_of_the_dense_run(name: str, decay: str, schedule: str) -> None:
    assert_as_dense(method(name, decay), schedule)


@pytest.mark.parametrize(
    ("name", "decay", "schedule"),
    [("sgdm", "l2", "linear"), ("tmsgd", "none", "constant"), ("tmsgdm", "decoupled", "steps"),
     ("six_point", "l2", "linear")],
)  # fmt: skip
def test_a_walk_over_the_switch_is_that_of_the_dense_run(
    name: str, decay: str, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With products over many closed blocks, whatever their length."""
    monkeypatch.setattr(products, "BLOCK", 7)
    new = method(name, decay)
    assert isinstance(new, partial)
    assert_as_dense(
        partial(new, **({"switch_step": 150} if "switch_step" in new.keywords else {})), schedule, steps=300
    )


@pytest.mark.parametrize("name", ["sgd", "nag", "tmsgd"])
def test_a_penalty_on_the_whole_table_is_that_of_the_loss(name: str) -> None:
    assert_as_dense(method(name), "linear", l2=0.01, steps=400)


def test_one_lazy_optimizer_after_another() -> None:
    first, second = partial(SGD, lr=0.1, momentum=0.5), partial(TMSGD, lr=0.05, switch_step=60)
    assert_as_dense(lambda params: SwitchOptimizer(params, first, second, 120), "linear", steps=300)


VECTORS = {  # from the equations, in float64; see the mathematics in docs/lazy-rows.md
    "SGD": (partial(SGD, weight_decay=0.02), "constant", (0.919311592, 0.911979133339, 0.830155175072, 0.823533830844)),
    "SGD-M": (
        partial(SGD, momentum=0.9, weight_decay=0.02), "linear",
        (0.803076605, 0.665154366378, 0.613137944408, 0.526595440320),
    ),
    "NAG": (
        partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.02), "constant",
        (0.729753433528, 0.530568118194, 0.338051449280, -0.012329883056),
    ),
    "dampened": (
        partial(SGD, momentum=0.9, dampening=0.5, weight_decay=0.02), "constant",
        (0.756043498, 0.519978139830, 0.433589667751, 0.162992784575),
    ),
    "TM": (TMSGD, "linear", (0.922916666667, 0.919661458333, 0.890429687500, 0.896993001302)),
    "third": (
        partial(TMSGD, c=1 / 3, weight_decay=0.02), "constant",
        (0.937887032889, 0.913316363048, 0.802359886568, 0.819842860125),
    ),
    "TM-M": (
        partial(TMSGD, momentum=0.9, weight_decay=0.02), "linear",
        (0.757680105, 0.650502672277, 0.600464352523, 0.525665451844),
    ),
    "decoupled": (
        partial(TMSGD, weight_decay=0.02, decoupled=True), "linear",
        (0.917783355, 0.909916222804, 0.879926188452, 0.885031450485),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_a_row_with_a_few_gradients_is_where_the_equations_say(name: str) -> None:
    """A weight of 1 has gradients at the steps 0, 1, 2 and 7; a row beside it in all others."""
    new, schedule, expected = VECTORS[name]
    table = nn.Embedding(2, 1, dtype=torch.float64, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = new(table.parameters(), lr=0.1)
    lazy = LazyRows(optimizer, table)
    gradients = {0: 1.0, 1: -0.5, 2: 0.25, 7: 0.8}
    found = []
    for step in range(12):
        if step in (3, 7, 8):
            lazy.catch_up(torch.tensor([0]))
            found.append(float(table.weight.detach()[0]))
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 12 if schedule == "linear" else 1)
        optimizer.zero_grad()
        (gradients.get(step, 1.0) * table(torch.tensor([0 if step in gradients else 1]))).sum().backward()
        optimizer.step()
    lazy.catch_up()
    assert [*found, float(table.weight.detach()[0])] == pytest.approx(expected, abs=1e-12)


def test_products_of_many_steps_whose_state_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BLOCK", 4)
    random = torch.Generator().manual_seed(0)
    made, matrices = products.Products(1, torch.device("cpu")), []
    for step in range(40):
        size = 1 if step < 3 else 2 if step < 21 else 3
        matrices.append(torch.rand(size, size, dtype=torch.float64, generator=random) / size)
        made.append(matrices[-1])
        for from_step in range(step + 1):
            expected = torch.eye(size, dtype=torch.float64)
            for matrix in reversed(matrices[from_step:]):
                expected = expected[:, : len(matrix)] @ matrix
            found = made.from_(torch.tensor([from_step]))[0, :, : expected.shape[1]]
            assert torch.allclose(found, expected, rtol=1e-13, atol=0)


MOMENTUM = partial(TMSGD, lr=0.1, momentum=0.5)


class TestATable:
    """What a person may do with an embedding that is attached to an optimizer."""

    def table(self, cls: Any = nn.Embedding, **settings: Any) -> Any:
        table = cls(6, 2, dtype=torch.float64, sparse=True, **settings)
        with torch.no_grad():
            table.weight.copy_(torch.arange(12.0).view(6, 2) / 10)
        return table

    def step(self, table: Any, optimizer: Optimizer, *read: int) -> None:
        optimizer.zero_grad()
        indices = torch.tensor(read)
        (table(indices) if isinstance(table, nn.Embedding) else table(indices[None])).square().sum().backward()
        optimizer.step()

    def begun(self, sparse: bool, new: New = MOMENTUM, dtype: Any = torch.float64, **more: Any) -> tuple[Any, Any]:
        """A table and its optimizer, by rows or dense."""
        table = self.table().to(dtype)
        table.sparse = sparse
        optimizer = new(table.parameters())
        if sparse:
            LazyRows(optimizer, table, **more)
        return table, optimizer

    def assert_alike(self, walk: Callable[[bool], list[Tensor]], rtol: float = 1e-13, atol: float = 0.0) -> None:
        """What a walk returns by rows (True) and dense (False)."""
        for lazy, dense in zip(walk(True), walk(False), strict=True):
            assert torch.allclose(lazy, dense, rtol=rtol, atol=atol)

    def dense(self, steps: list[tuple[int, ...]], cls: Any = nn.Embedding, **settings: Any) -> tuple[Any, Any]:
        table = self.table(cls, **settings)
        table.sparse = False
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        for read in steps:
            self.step(table, optimizer, *read)
        return table.state_dict(), optimizer.state_dict()

    STEPS = [(0, 1), (2, 2), (3,), (0, 3), (1,)]

    def assert_states(self, table: Any, optimizer: Optimizer, expected: tuple[Any, Any]) -> None:
        assert torch.allclose(table.state_dict()["weight"], expected[0]["weight"], rtol=1e-13, atol=0)
        found = optimizer.state_dict()
        assert found["param_groups"] == expected[1]["param_groups"]
        assert found["state"][0].keys() == expected[1]["state"][0].keys()
        for name, value in expected[1]["state"][0].items():
            assert torch.allclose(found["state"][0][name], value, rtol=1e-13, atol=1e-16), name

    def test_state_dicts_are_those_of_the_dense_step_in_either_order(self) -> None:
        for weights_first in (True, False):
            table = self.table()
            optimizer = TMSGD(table.parameters(), 0.1, 0.5)
            optimizer.attach(table)
            for read in self.STEPS:
                self.step(table, optimizer, *read)
            states = (table, optimizer) if weights_first else (optimizer, table)
            first = [part.state_dict() for part in states]
            self.assert_states(table, optimizer, self.dense(self.STEPS))
            assert torch.equal(first[0 if weights_first else 1]["weight"], table.weight)

    @pytest.mark.parametrize("weights_first", [True, False])
    def test_a_run_goes_on_from_a_saved_state(self, weights_first: bool) -> None:
        """Loaded into objects that are in the midst of another run."""
        table = self.table()
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        optimizer.attach(table)
        for read in self.STEPS[:3]:
            self.step(table, optimizer, *read)
        file = io.BytesIO()
        torch.save([table.state_dict(), optimizer.state_dict()], file)
        for read in [(4,), (5, 1)]:
            self.step(table, optimizer, *read)
        file.seek(0)
        of_table, of_optimizer = torch.load(file, weights_only=True)
        loads = [lambda: table.load_state_dict(of_table), lambda: optimizer.load_state_dict(of_optimizer)]
        for load in loads if weights_first else loads[::-1]:
            load()
        for read in self.STEPS[3:]:
            self.step(table, optimizer, *read)
        self.assert_states(table, optimizer, self.dense(self.STEPS))

    def test_bags_sums_of_parts_and_dense_gradients(self) -> None:
        bag = partial(nn.EmbeddingBag, mode="sum")
        table = self.table(bag)
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        lazy = optimizer.attach(table)
        for place, read in enumerate(self.STEPS):
            optimizer.zero_grad()
            for row in read:  # a part for each
                table(torch.tensor([[row]])).square().sum().backward()
            if place == 2:
                table.weight.grad = table.weight.grad.to_dense()
                with pytest.raises(RuntimeError, match=r"^lazy rows: the gradient is of the whole table"):
                    optimizer.step()
                lazy.catch_up()
            optimizer.step()
        self.assert_states(table, optimizer, self.dense(self.STEPS))

    def test_a_copy_of_the_optimizer_has_the_dense_state(self) -> None:
        first, second = partial(SGD, lr=0.1), partial(TMSGD, lr=0.1, momentum=0.5)
        for new in (
            partial(TMSGD, lr=0.1, momentum=0.5),
            partial(SwitchOptimizer, first=first, second=second, switch_step=0),
        ):
            table = self.table()
            optimizer: Any = new(table.parameters())
            optimizer.attach(table)
            for read in self.STEPS:
                self.step(table, optimizer, *read)
            (state,) = copy.deepcopy(optimizer).state.values()
            for name, value in self.dense(self.STEPS)[1]["state"][0].items():
                assert torch.allclose(state[name], value, rtol=1e-13, atol=1e-16), name

    def test_a_closure_is_called_once_and_its_loss_returned(self) -> None:
        table = self.table()
        optimizer = SGD(table.parameters(), 0.1, 0.5)
        LazyRows(optimizer, table)
        calls = []

        def closure() -> Tensor:
            calls.append(1)
            optimizer.zero_grad()
            loss = table(torch.tensor([1])).sum()
            loss.backward()
            return loss.detach()

        assert optimizer.step(closure).item() == pytest.approx(0.5)
        assert len(calls) == 1
        assert table.weight[1].tolist() == pytest.approx([0.1, 0.2])

    def test_an_evaluation_reads_rows_that_are_up_to_date(self) -> None:
        table = self.table()
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        optimizer.attach(table)
        for read in self.STEPS:
            self.step(table, optimizer, *read)
        with torch.no_grad():
            found = table(torch.arange(6))
        assert torch.allclose(found, self.dense(self.STEPS)[0]["weight"], rtol=1e-13, atol=0)

    def test_a_new_optimizer_takes_the_table_over(self) -> None:
        """As when a cell of a notebook is run again."""

        def walk(sparse: bool) -> list[Tensor]:
            table, optimizer = self.begun(sparse)
            for again in (True, False):
                for read in self.STEPS:
                    self.step(table, optimizer, *read)
                if again:
                    optimizer = TMSGD(table.parameters(), 0.1, 0.5)
                    if sparse:
                        optimizer.attach(table)
            return [table.state_dict()["weight"]]

        self.assert_alike(walk)

    def test_a_stale_row_that_was_read_past_the_embedding_is_noticed(self) -> None:
        table = self.table()
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        lazy = optimizer.attach(table)
        self.step(table, optimizer, 0, 1)
        self.step(table, optimizer, 2)

        def read_past() -> None:
            optimizer.zero_grad()
            nn.functional.embedding(torch.tensor([1]), table.weight, sparse=True).sum().backward()

        read_past()
        before = table.weight.detach().clone()
        with pytest.raises(RuntimeError, match=r"^lazy rows: 1 rows \(the first is 1\) were read before"):
            optimizer.step()
        assert torch.equal(table.weight, before)
        lazy.catch_up(torch.tensor([1]))
        read_past()
        optimizer.step()

    def test_a_step_that_fails_leaves_the_optimizer_its_table(self) -> None:
        table = self.table()
        optimizer = SGD(table.parameters(), 0.1, 0.5)
        lazy = LazyRows(optimizer, table)
        self.step(table, optimizer, 0)
        optimizer.param_groups[0]["lr"] = "fast"
        with pytest.raises((TypeError, ValueError)):
            self.step(table, optimizer, 1)
        lazy.catch_up()
        assert optimizer.param_groups[0]["params"] == [table.weight]
        assert [*optimizer.state] == [table.weight]

    def test_several_tables_of_one_group_step_as_the_dense_ones(self) -> None:
        def walk(sparse: bool) -> list[Tensor]:
            tables = [self.table() for _ in range(3)]
            head = nn.Parameter(torch.ones(2, dtype=torch.float64))
            optimizer = TMSGD([tables[0].weight, head, tables[1].weight, tables[2].weight], 0.1, 0.5)
            for table in tables:
                table.sparse = sparse
                if sparse:
                    optimizer.attach(table)
            for step, read in enumerate(self.STEPS * 3):
                optimizer.zero_grad()
                sums = [table(torch.tensor(read[i % len(read) :])) * (i + 1) for i, table in enumerate(tables)]
                loss = sum(((x * head - step % 2) ** 2).sum() for x in sums)
                loss.backward()  # type: ignore[union-attr]
                optimizer.step()
            assert [len(group["params"]) for group in optimizer.param_groups] == [4]
            return [table.state_dict()["weight"] for table in tables] + [head.detach()]

        self.assert_alike(walk, rtol=1e-12)

    @pytest.mark.parametrize("new", [partial(SGD, lr=0.1, momentum=0.5), partial(TMSGD, lr=0.1, momentum=0.5)])
    def test_a_deep_copy_of_the_table_is_up_to_date(self, new: Any) -> None:
        """And trains by itself, with an optimizer of its own; whichever of the two is copied first."""

        def walk(sparse: bool) -> list[Tensor]:
            table, optimizer = self.begun(sparse, new)
            for read in self.STEPS:
                self.step(table, optimizer, *read)
            (first,) = copy.deepcopy(nn.Sequential(table))
            of_optimizer, second = copy.deepcopy((optimizer, table))
            third: Any = copy.deepcopy(second)
            mine = new(second.parameters())
            states = [*of_optimizer.state[second.weight].values()]
            if sparse:
                LazyRows(mine, second)
            for read in self.STEPS:
                self.step(second, mine, *read)
                self.step(table, optimizer, *read[:1])
            return [each.state_dict()["weight"] for each in (first, third, second, table)] + states

        self.assert_alike(walk, rtol=1e-12, atol=1e-16)

    def test_an_attached_table_is_pickled_once_it_is_detached(self) -> None:
        table = self.table()
        optimizer = SwitchOptimizer(table.parameters(), partial(SGD, lr=0.1), partial(TMSGD, lr=0.1), 2)
        optimizer.attach(table)
        lazy = optimizer.attach(table)  # again, as in a notebook
        for read in self.STEPS:
            self.step(table, optimizer, *read)
        with pytest.raises(RuntimeError, match=r"^lazy rows: an attached table cannot .* detach\(\) it"):
            pickle.dumps(table)
        lazy.detach()
        assert torch.equal(pickle.loads(pickle.dumps(table)).weight, table.weight)

    def test_weights_that_are_changed_between_reading_and_stepping_keep_the_change(self) -> None:
        """As by sharpness-aware minimization, which goes there and back."""

        def walk(sparse: bool) -> list[Tensor]:
            table, optimizer = self.begun(sparse)
            for read in self.STEPS:
                optimizer.zero_grad()
                table(torch.tensor(read)).square().sum().backward()
                with torch.no_grad():
                    table.weight[list(read)] += 0.5
                optimizer.step()
            return [table.state_dict()["weight"]]

        self.assert_alike(walk)

    def test_a_fused_step_that_a_scaler_leaves_out_moves_no_row(self) -> None:
        def walk(sparse: bool) -> list[Tensor]:
            more = {"l2": 0.1} if sparse else {}
            table, optimizer = self.begun(sparse, partial(SGD, lr=0.1, momentum=0.5, fused=True), **more)
            scaler = torch.amp.GradScaler("cpu", 4.0)
            for step, read in enumerate(self.STEPS * 2):
                optimizer.zero_grad()
                loss = table(torch.tensor(read)).square().sum() + (0.0 if sparse else 0.1 * table.weight.square().sum())
                scaler.scale(loss * (float("inf") if step in (2, 3, 7) else 1)).backward()
                scaler.step(optimizer)
                scaler.update()
            return [table.state_dict()["weight"]]

        self.assert_alike(walk)

    def test_a_forward_pass_in_bfloat16_catches_rows_up_in_their_own_type(self) -> None:
        def walk(sparse: bool) -> list[Tensor]:
            table, optimizer = self.begun(sparse, dtype=torch.float32)
            with torch.autocast("cpu", torch.bfloat16):
                for read in self.STEPS:
                    self.step(table, optimizer, *read)
            return [table.state_dict()["weight"]]

        self.assert_alike(walk, rtol=1e-6)

    def test_weights_of_two_attached_embeddings_are_refused(self) -> None:
        table, other = self.table(), self.table()
        other.weight = table.weight
        optimizer = TMSGD(table.parameters(), 0.1, 0.5)
        optimizer.attach(table)
        optimizer.attach(other)
        (table(torch.tensor([1])) + other(torch.tensor([2]))).sum().backward()
        with pytest.raises(RuntimeError, match=r"^lazy rows: the table's weights are no longer among .* attached"):
            optimizer.step()

    def test_what_cannot_be_lazy_is_refused(self) -> None:
        table = self.table()
        for optimizer, text in (
            (torch.optim.Adam(table.parameters()), "rows without a gradient do not move linearly under Adam"),
            (SGD([nn.Parameter(torch.ones(1))]), "the table's weights are not among the parameters of SGD"),
        ):
            with pytest.raises(ValueError, match=f"^lazy rows: {text}"):
                LazyRows(optimizer, table)
        for other, text in (
            (self.table(max_norm=1.0), "max_norm changes"), (self.table().bfloat16(), "expected weights in float32"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"^lazy rows: {text}"):
                LazyRows(SGD(other.parameters()), other)

    def test_a_sparse_gradient_without_lazy_rows_is_refused(self) -> None:
        table, other = self.table(), torch.ones(1, requires_grad=True)
        optimizer = TMSGD([other, *table.parameters()], 0.1)
        other.grad = torch.ones(1)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match=r"^tmsgd: expected dense gradients.*optimizer.attach\(embedding\)"):
            optimizer.step()
        assert other.tolist() == [1]
        numbers = torch.ones(6, 2, dtype=torch.float64).to_sparse()
        optimizer.attach(table)
        table.weight.grad = numbers
        with pytest.raises(RuntimeError, match=r"^lazy rows: expected sparse gradients of whole rows"):
            optimizer.step()


def weights_of(sparse: str, folder: Path, *words: str) -> dict[str, Tensor]:
    """The weights at the end of a run by the command line."""
    done = tmbench(*words, f"task.sparse={sparse}", f"runs_dir={folder / sparse}")
    assert done.returncode == 0, done.stderr
    return weights(next((folder / sparse).glob("*/result.json")).parent)


class TestRuns:
    def test_what_task_sparse_comes_to(self, composed: Compose) -> None:
        def sparse(*words: str) -> Any:
            return settle(composed(*words)).task.sparse

        lazy = ("sgd", "sgdm", "nag", "tmsgd", "tmsgdm", "tmnag", "tmsgd_third", "multistep", "sgd_half", "sgd_to_sgdm")
        assert all(sparse("task=tc", f"optimizer={name}") is True for name in lazy)
        assert not any(sparse("task=ctr", f"optimizer={name}") for name in ("adam", "apollo", "switch", "lars", "lion"))
        first = "optimizer.first={_target_: torch.optim.SGD, _partial_: true, lr: 0.1}"
        assert sparse("task=tc", "optimizer=switch", first) is True
        assert sparse("task=tc", "optimizer=sgd", "task.sparse=false") is False
        assert sparse("task=tc", "optimizer=sgd", "ema=0.9") is False
        assert sparse("task=tc", "optimizer=sgd", "trainer=ddp_cpu", "devices=2") is True
        assert sparse("task=tc", "optimizer=sgd", "clip_norm=1") is True
        assert sparse("task=ctr", "optimizer=sgd", "clip_norm=1") is False  # its penalty is of the whole table
        assert sparse("task=ctr", "optimizer=sgd", "clip_norm=1", "task.l2=0") is True
        ids = {run_id(settle(composed("task=tc", f"task.sparse={value}")), "") for value in ("auto", "true", "false")}
        assert len(ids) == 2  # auto is one of the others
        with pytest.raises(ConfigError, match=r"^task.sparse=true: optimizer=adam has no exact step by rows; use"):
            sparse("task=tc", "optimizer=adam", "task.sparse=true")
        with pytest.raises(ConfigError, match=r"^task.sparse: expected true or false, or auto, got 'some'"):
            sparse("task=tc", "task.sparse=some")

    @pytest.mark.parametrize(
        "words",
        [("task=ctr", "optimizer=tmsgd"),
         ("task=tc", "optimizer=sgdm", "trainer.accumulate=2", "clip_value=0.001", "schedule=cosine"),
         pytest.param(("task=ctr", "optimizer=tmsgdm", "trainer=ddp_cpu", "devices=2"), marks=pytest.mark.slow),
         pytest.param(("task=ctr", "optimizer=tmsgdm", "task.l2=0", "clip_norm=0.01"), marks=pytest.mark.slow),
         pytest.param(("task=tc", "optimizer=sgd_to_sgdm", "task.weight_decay=0.01"), marks=pytest.mark.slow)],
    )  # fmt: skip
    def test_a_run_by_rows_ends_where_the_dense_one_does(self, words: tuple[str, ...], tmp_path: Path) -> None:
        short = ("epochs=3", "batch_size=64" if "task=ctr" in words else "batch_size=8")
        by_rows, dense = (weights_of(sparse, tmp_path, *words, *short) for sparse in ("true", "false"))
        assert by_rows.keys() == dense.keys()
        for key, weight in dense.items():
            assert torch.allclose(by_rows[key], weight, rtol=1e-4, atol=1e-6), key

    def test_a_dense_run_says_why(self, tmp_path: Path) -> None:
        done = tmbench("task=tc", "optimizer=adam", "epochs=1", f"runs_dir={tmp_path}")
        said = "task.sparse: every step updates the whole embedding table: optimizer=adam has no exact step by rows"
        assert said in done.stdout

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("optimizer", "lr", "switch"),
        [("sgd", 0.01, ""), ("tmsgd", 0.01, "0"), ("sgdm", 0.001, ""), ("tmsgdm", 0.001, "0")],
    )
    def test_an_epoch_of_r8_in_float64_is_the_dense_one(
        self, optimizer: str, lr: float, switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With momentum at a tenth of the rate: at the whole one, training makes 1e-16 a millionth."""
        words = ["task=tc", "data=full", f"data_dir={real_data('r8').parent}", "epochs=1", f"lr={lr}"]
        words += [f"switch_epoch={switch}"] if switch else []
        torch.set_default_dtype(torch.float64)
        try:
            words += [f"optimizer={optimizer}"]
            by_rows, dense = (weights_of(sparse, tmp_path, *words) for sparse in ("true", "false"))
        finally:
            torch.set_default_dtype(torch.float32)
        for key, weight in dense.items():
            assert weight.dtype == torch.float64
            assert float((by_rows[key] - weight).abs().max() / weight.abs().max()) <= 1e-9, key


def train_as_rank(rank: int, folder: str) -> None:
    """Reads rows of its own, and steps by the gradients of both ranks."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for sparse in (True, False):
        table = nn.Embedding(ROWS, 3, padding_idx=7, sparse=sparse)
        with torch.no_grad():
            table.weight.copy_(torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0)))
        optimizer = TMSGD(table.parameters(), 0.03, 0.9, weight_decay=0.01, switch_step=100)
        if sparse:
            LazyRows(optimizer, table, ranks=True)
        for step, (read, noise) in enumerate(batches(200, seed=rank)):
            optimizer.zero_grad()
            count = 20 if step % 5 else 4 * rank  # at times this rank has few rows, and rank 0 none
            (table(read[:count]) * noise[:count].float()).sum().backward()
            if sparse:
                average_over_ranks(table)
            else:
                grad: Any = table.weight.grad
                torch.distributed.all_reduce(grad)
                grad /= 2
            optimizer.step()
        found.append(table.state_dict()["weight"])
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_ranks_that_read_other_rows_agree_bitwise_and_with_the_dense_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_as_rank, (str(tmp_path),), nprocs=2)
    (by_rows, dense), (others, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(by_rows, others)
    assert error(by_rows, dense) < 1e-5
