"""Which examples make which batch: each once, decided by (seed, epoch) alone, shared out without changing the sum."""

import random
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from helpers import pairwise
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from tmbench.seeds import derive, seed_all
from tmbench.training.loader import STEPS_A_BLOCK, Step, TestLoader, TrainLoader

CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["tensors", "map-style"])


class Noisy(Dataset[tuple[int, Tensor]]):
    """Map-style examples with randomness of their own: example i is (i, a random number)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[int, Tensor]:
        return i, torch.rand(())


def examples(kind: str, count: int) -> Any:
    return TensorDataset(torch.arange(count), torch.arange(count) * 0.5) if kind == "tensors" else Noisy(count)


def train_loader(data: Any, batch_size: int, *, epoch: int = 0, **settings: Any) -> TrainLoader:
    return TrainLoader(data, None, batch_size, device=CPU, epoch=lambda: epoch, **settings)


def steps(loader: TrainLoader) -> list[Step]:
    return list(chain.from_iterable(loader))


def ids(step: Step) -> list[int]:
    """The examples of a step, but not what a rank without a share computes for nothing."""
    return [i for batch, counts in step if counts for i in batch[0].tolist()]


def order(loader: TrainLoader) -> list[int]:
    return [i for step in steps(loader) for i in ids(step)]


def flat(loader: TrainLoader) -> list[tuple[list[list[float]], bool]]:
    """All that a loader yields in an epoch, as comparable numbers."""
    return [([t.tolist() for t in batch], counts) for step in steps(loader) for batch, counts in step]


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


# Each example once


@KINDS
@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 4), (7, 3), (12, 4), (13, 4), (70, 1), (321, 5)])
def test_training_sees_each_example_once_an_epoch_and_the_last_batch_is_the_rest(
    kind: str, count: int, batch_size: int
) -> None:
    loader = train_loader(examples(kind, count), batch_size, seed=3)
    for _ in range(2):
        assert sorted(order(loader)) == list(range(count))
    sizes = [len(ids(step)) for step in steps(loader)]
    assert len(sizes) == loader.steps == -(-count // batch_size)
    assert set(sizes[:-1]) <= {batch_size}


@KINDS
@pytest.mark.parametrize("count_of_steps", [1, 31, 33, 64, 100])
def test_tensors_come_in_blocks_of_many_steps_and_others_one_by_one(kind: str, count_of_steps: int) -> None:
    loader = train_loader(examples(kind, 3 * count_of_steps - 1), 3)
    sizes, most = [len(block) for block in loader], STEPS_A_BLOCK if kind == "tensors" else 1
    assert len(sizes) == len(loader)
    assert sum(sizes) == count_of_steps
    assert set(sizes[:-1]) <= {most}
    assert 0 < sizes[-1] <= most


@pairwise(kind=("tensors", "map-style"), accumulate=(1, 2), world=(1, 2, 3))
def test_the_length_is_that_of_every_rank(kind: str, accumulate: int, world: int) -> None:
    for rank in range(world):
        loader = train_loader(examples(kind, 211), 3, rank=rank, world=world, accumulate=accumulate)
        assert len(list(loader)) == len(loader)
        assert [len(step) for step in steps(loader)] == [accumulate] * loader.steps


def test_the_tensors_of_a_data_set_stay_together_and_keep_their_kinds() -> None:
    data = TensorDataset(
        torch.arange(50), torch.arange(100, dtype=torch.float64).view(50, 2), torch.arange(50) % 2 == 0
    )
    seen = 0
    for step in steps(train_loader(data, 4, accumulate=2)):
        for (whole, pairs, even), _ in step:
            assert (whole.dtype, pairs.dtype, even.dtype) == (torch.int64, torch.float64, torch.bool)
            assert torch.equal(pairs, torch.stack([2.0 * whole, 2.0 * whole + 1], 1))
            assert torch.equal(even, whole % 2 == 0)
            seen += len(whole)
    assert seen == 50


def test_a_collate_function_makes_the_batches() -> None:
    loader = TrainLoader(Noisy(7), lambda batch: [i for i, _ in batch], 3, device=CPU, epoch=lambda: 0)
    batches = [batch for step in steps(loader) for batch, _ in step]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(chain.from_iterable(batches)) == list(range(7))


# The order


@KINDS
def test_the_order_follows_from_seed_and_epoch_alone(kind: str) -> None:
    def at(seed: int, epoch: int, **settings: Any) -> list[int]:
        return order(train_loader(examples(kind, 60), 7, seed=seed, epoch=epoch, **settings))

    torch.manual_seed(1)
    reference = at(0, 0)
    torch.manual_seed(2)
    assert at(0, 0) == reference
    assert at(0, 0, accumulate=2) == reference
    orders = {(seed, epoch): tuple(at(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert tuple(range(60)) not in orders.values()


def test_the_order_does_not_depend_on_the_kind_of_data_set_or_the_batch_size() -> None:
    orders = [
        order(train_loader(examples(kind, 60), n, seed=5)) for kind in ("tensors", "map-style") for n in (1, 7, 60)
    ]
    assert orders == [orders[0]] * 6


@KINDS
def test_the_epoch_is_asked_for_anew_each_time(kind: str) -> None:
    now = [0]
    loader = TrainLoader(examples(kind, 30), None, 4, device=CPU, epoch=lambda: now[0])
    first = order(loader)
    now[0] = 1
    second = order(loader)
    now[0] = 0
    assert first != second
    assert order(loader) == first


def test_every_place_in_the_order_is_open_to_every_example() -> None:
    first = {order(train_loader(examples("tensors", 5), 5, epoch=epoch))[0] for epoch in range(60)}
    assert first == set(range(5))


def test_worker_processes_change_no_number() -> None:
    alone, with_two = (flat(train_loader(Noisy(9), 4, seed=1, epoch=2, num_workers=n, accumulate=2)) for n in (0, 2))
    assert len(alone) == 3 * 2
    assert alone == with_two


def test_an_example_s_randomness_follows_from_seed_epoch_and_example_alone() -> None:
    def draws(seed: int, epoch: int, **settings: Any) -> dict[float, float]:
        batches = [
            batch for step in steps(train_loader(Noisy(24), seed=seed, epoch=epoch, **settings)) for batch, _ in step
        ]
        return {i: u for who, what in batches for i, u in zip(who.tolist(), what.tolist(), strict=True)}

    reference = draws(0, 0, batch_size=5)
    assert len(set(reference.values())) == 24
    torch.manual_seed(99)
    assert draws(0, 0, batch_size=3) == reference
    assert {**draws(0, 0, batch_size=6, rank=0, world=2), **draws(0, 0, batch_size=6, rank=1, world=2)} == reference
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        other = draws(seed, epoch, batch_size=5)
        assert not set(other.values()) & set(reference.values())


@pytest.mark.parametrize(("kind", "num_workers"), [("tensors", 0), ("map-style", 0), ("map-style", 1)])
def test_loading_leaves_the_global_generators_alone(kind: str, num_workers: int) -> None:
    before = generators()
    data = examples(kind, 9)
    train = train_loader(data, 2, num_workers=num_workers)
    test = TestLoader(data, None, 2, device=CPU, num_workers=num_workers)
    assert generators() == before
    for _ in chain(train, test):
        assert generators() == before
    assert generators() == before


def test_loading_does_not_reseed_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, reseeded.append)
    assert len(steps(train_loader(Noisy(6), 2))) == 3
    assert reseeded == []


# Shared out over ranks and parts


@pairwise(
    kind=("tensors", "map-style"), sizes=((24, 6), (23, 5), (22, 7), (5, 1), (9, 4), (3, 8)), accumulate=(1, 2),
    world=(2, 3),
)  # fmt: skip
def test_the_ranks_share_every_batch_without_overlap(
    kind: str, sizes: tuple[int, int], accumulate: int, world: int
) -> None:
    count, batch_size = sizes
    data = examples(kind, count)
    whole = steps(train_loader(data, batch_size, seed=4))
    ranks = [
        steps(train_loader(data, batch_size, seed=4, rank=r, world=world, accumulate=accumulate)) for r in range(world)
    ]
    for batch, *shares in zip(whole, *ranks, strict=True):
        parts = [(part[0].tolist(), counts) for share in shares for part, counts in share]
        assert len(parts) == world * accumulate
        assert all(who for who, _ in parts)  # no network takes an empty batch
        assert sorted(chain.from_iterable(ids(share) for share in shares)) == sorted(ids(batch))
        counted = [len(who) if counts else 0 for who, counts in parts]
        assert max(counted) - min(counted) <= 1


@pytest.mark.parametrize("world", [2, 3])
def test_a_rank_without_a_share_has_a_stand_in_that_does_not_count(world: int) -> None:
    ranks = [steps(train_loader(examples("tensors", 9), 4, rank=rank, world=world)) for rank in range(world)]
    last = [share[-1] for share in ranks]  # one example is left for it
    assert [len(batch[0]) for ((batch, _),) in last] == [1] * world
    assert [counts for ((_, counts),) in last] == [False] * (world - 1) + [True]
    assert all(counts for share in ranks for step in share[:-1] for _, counts in step)


# The evaluated examples


@pairwise(kind=("tensors", "map-style"), world=(1, 2, 3), sizes=((12, 4), (13, 4), (2, 5), (70, 1), (1, 1)))
def test_evaluation_sees_every_example_once_over_all_ranks_and_in_order(
    kind: str, world: int, sizes: tuple[int, int]
) -> None:
    seen: list[int] = []
    count, batch_size = sizes
    for rank in range(world):
        loader = TestLoader(examples(kind, count), None, batch_size, device=CPU, rank=rank, world=world)
        batches = [batch[0].tolist() for batch in loader]
        assert len(batches) == len(loader)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert all(batches)
        mine = list(chain.from_iterable(batches))
        assert mine == sorted(mine)
        assert abs(len(mine) - count / world) < 1
        seen += mine
    assert sorted(seen) == list(range(count))


def test_evaluation_is_the_same_each_time() -> None:
    loaders = [TestLoader(Noisy(11), None, 4, device=CPU, seed=2, num_workers=n) for n in (0, 1)]
    alone, again, by_a_worker = ([[t.tolist() for t in batch] for batch in loaders[n]] for n in (0, 0, 1))
    assert alone == again == by_a_worker


# Seeds


def test_derived_seeds_differ_in_every_place() -> None:
    keys = [(a, b, c) for a in range(5) for b in range(5) for c in range(5)]
    assert len({derive("test", *key) for key in keys}) == len(keys)
    assert all(0 <= derive("test", *key) < 2**32 for key in keys)
    assert derive("test", 1, 2, 3) == derive("test", 1, 2, 3)
    assert derive("other", 1, 2, 3) != derive("test", 1, 2, 3)
    for key in ((0,), (5,), (5, 3)):
        assert derive("test", *key) != derive("test", *key, 0)


def test_seed_all_starts_every_generator() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_all("test", 1, 2)
        first = draws()
        other = draws()
        seed_all("test", 1, 2)
        assert draws() == first
        seed_all("test", 1, 3)
        another = draws()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
    for changed in (other, another):
        assert all(a != b for a, b in zip(first, changed, strict=True))
