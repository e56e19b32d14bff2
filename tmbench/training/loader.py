"""Loaders: (seed, epoch) alone decides which examples make which batch, whatever the number of ranks and parts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, tee
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from ..errors import CannotStackError, ConfigError
from ..seeds import derive
from ..task import Task

Part = tuple[Any, bool]  # a batch, and whether it counts; if not, it stands in for a share that is empty
Step = list[Part]  # what one optimizer step sees on one rank: one part, or `accumulate` of them
STEPS_A_BLOCK = 64


def held_out(count: int, share: float, labels: Any = None, groups: Any = None) -> np.ndarray:
    """The sorted indices (N,) of the examples, of `count`, that are for validation; the same in every run.

    Args:
        labels: a class for each example, to be represented as in all of them; None: there are none.
        groups: what each example belongs to, such as a person; a group stays together, and labels do not matter.

    Raises:
        ConfigError: no example, or each, would be held out.
    """
    rng = np.random.default_rng(derive("validation"))
    units = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    order = rng.permutation(int(units.max()) + 1)
    if labels is not None and groups is None:
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    # An example (or group) is held out each time that the share of those passed is one more: so of every class alike.
    passed = np.floor(np.arange(len(order) + 1) * share + 0.5)
    held = np.flatnonzero(np.isin(units, order[passed[1:] > passed[:-1]]))
    if not 0 < len(held) < count:
        what = f"{count} training examples" + (f" in {len(order)} groups" if groups is not None else "")
        raise ConfigError(f"validation: expected a share that leaves some of {what} on either side, got {share}")
    return held


def part(examples: Any, index: np.ndarray) -> Any:
    """Some of the examples, of the same kind as all of them."""
    if isinstance(examples, TensorDataset):
        return TensorDataset(*(t[torch.from_numpy(index)] for t in examples.tensors))
    return Subset(examples, index.tolist())


def hold_out(task: Task, share: float) -> None:
    """Makes a share of a task's training examples, the same in every run (see held_out), its `test` split.

    What a constructor has learned of the training examples, such as a vocabulary, includes those that are held out.

    Raises:
        ConfigError: no example would be left to train on, or to evaluate; or the task refuses.
    """
    train, judged = task.examples("train"), task.as_evaluated()
    last = train.tensors[-1] if isinstance(train, TensorDataset) else None
    labels = last if last is not None and last.dim() == 1 and not last.is_floating_point() else None
    held_N = held_out(len(train), share, labels, task.groups())
    task.hold_out(held_N)
    rest_N = np.setdiff1d(np.arange(len(train)), held_N, assume_unique=True)
    splits = {"train": part(train, rest_N), "test": part(judged, held_N)}
    task.examples = splits.__getitem__  # type: ignore[method-assign, assignment]
    task.as_evaluated = partial(part, judged, rest_N)  # type: ignore[method-assign]


class Seeded(Dataset[Any]):
    """A map-style data set whose example (epoch, i) draws from torch as (seed, epoch, i) alone says, in any process."""

    def __init__(self, examples: Any, seed: int) -> None:
        self.examples, self.seed = examples, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would start the GPUs' generators anew as well.
            torch.default_generator.manual_seed(derive("example", self.seed, *key))
            return self.examples[key[1]]


class Loader:
    """Batches of a data set: a TensorDataset is kept on the device and cut there, others go through a DataLoader.

    Those are map-style, and `collate` makes a batch of their examples. Each rank takes its share of every batch.
    """

    def __init__(
        self, examples: Any, collate: Callable[[list[Any]], Any] | None, batch_size: int, *, device: torch.device,
        seed: int = 0, rank: int = 0, world: int = 1, num_workers: int = 0,
    ) -> None:  # fmt: skip
        self.count, self.batch_size = len(examples), batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.tensors: tuple[Tensor, ...] | None = None
        if isinstance(examples, TensorDataset):
            self.tensors = tuple(t.to(device) for t in examples.tensors)
        else:
            self.examples, self.collate, self.num_workers = Seeded(examples, seed), collate, num_workers

    def gather(self, batches: Iterable[np.ndarray], epoch: int) -> Iterator[Any]:
        """The batches of these examples."""
        if self.tensors is None:
            keys = [[(epoch, i) for i in batch.tolist()] for batch in batches]
            # The generator is given so that the loader draws nothing from the global one.
            yield from DataLoader(
                self.examples, batch_sampler=keys, collate_fn=self.collate, num_workers=self.num_workers,
                generator=torch.Generator(),
            )  # fmt: skip
            return
        batches = iter(batches)
        while some := list(islice(batches, STEPS_A_BLOCK)):
            # One gather for many batches: cutting views off it costs next to nothing. index_select copies whole
            # examples, where t[index] goes over their elements: 20 times faster for images.
            index = torch.from_numpy(np.concatenate(some)).to(self.tensors[0].device)
            sizes = [len(batch) for batch in some]
            yield from zip(*(torch.split(t.index_select(0, index), sizes) for t in self.tensors), strict=True)


class TrainLoader(Loader):
    """One epoch of training as blocks of steps, shuffled by (seed, epoch).

    A block holds many small steps, so that what Lightning does around a batch is done once for all of them.
    The last batch may be smaller. Where a batch has fewer examples than there are ranks and parts, one of them stands
    in for each share that is empty: all ranks take part in the exchange of gradients, but stand-ins do not count.
    """

    def __init__(self, *args: Any, accumulate: int = 1, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accumulate, self.epoch = accumulate, epoch
        self.steps = -(-self.count // self.batch_size)
        self.steps_a_block = 1 if self.tensors is None else STEPS_A_BLOCK

    def __len__(self) -> int:
        return -(-self.steps // self.steps_a_block)

    def __iter__(self) -> Iterator[list[Step]]:
        epoch = self.epoch()
        shuffle = torch.Generator().manual_seed(derive("order", self.seed, epoch))
        # As an array, and cut as it is used: of millions of examples, a list would take gigabytes.
        order = torch.randperm(self.count, generator=shuffle).numpy()
        indices, counts = tee(self._parts(order))
        batches = self.gather((index for index, _ in indices), epoch)
        parts = zip(batches, (is_share for _, is_share in counts), strict=True)
        steps = ([part, *islice(parts, self.accumulate - 1)] for part in parts)
        while block := list(islice(steps, self.steps_a_block)):
            yield block

    def _parts(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
        """This rank's parts of each step's batch, one for each accumulation step: the examples, and if they count."""
        cuts = self.accumulate * self.world
        for first in range(0, self.count, self.batch_size):
            whole = order[first : first + self.batch_size]
            for k in range(self.rank, cuts, self.world):
                share = whole[len(whole) * k // cuts : len(whole) * (k + 1) // cuts]
                yield (share, True) if len(share) else (whole[:1], False)


class StackLoader:
    """The steps of several runs at once: each a batch whose tensors are stacked, (K, B, ...), one run's in each slot.

    Raises:
        CannotStackError: while it is read, if the batches of a step are of different shapes.
    """

    def __init__(self, loaders: Sequence[TrainLoader], of_slot: Sequence[int]) -> None:
        self.loaders, self.of_slot = loaders, of_slot
        self.count, self.steps = loaders[0].count, loaders[0].steps

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[Iterator[Step]]:
        for blocks in zip(*self.loaders, strict=True):
            # Stacked when it is its turn: a block's batches all at once would be in memory twice.
            yield (self._stacked([step[0][0] for step in steps]) for steps in zip(*blocks, strict=True))

    def _stacked(self, batches: Sequence[Any]) -> Step:
        if not all(isinstance(t, Tensor) for batch in batches for t in batch):
            raise CannotStackError("expected batches of tensors alone")
        tensors = list(zip(*batches, strict=True))
        if odd := next((each for each in tensors if len({t.shape for t in each}) > 1), None):
            shapes = " and ".join(sorted({str(tuple(t.shape)) for t in odd})[:2])
            raise CannotStackError(f"the batches of a step are of different shapes, such as {shapes}")
        return [(tuple(torch.stack([each[k] for k in self.of_slot]) for each in tensors), True)]


class TestLoader(Loader):
    """The evaluated examples in order, each once over all ranks."""

    __test__ = False  # no pytest class

    def __len__(self) -> int:
        return -(-len(range(self.rank, self.count, self.world)) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        mine = np.arange(self.rank, self.count, self.world)
        yield from self.gather((mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)), 0)
