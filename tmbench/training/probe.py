"""Looking at the loss of a training between its epochs, without disturbing it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..task import Table, Task


@contextmanager
def undisturbed(task: Task) -> Iterator[None]:
    """In the mode that training sees; then modes, buffers and random numbers are as before."""
    modes = [(module, module.training) for module in task.modules()]
    buffers = [(b, b.clone()) for b in task.buffers()]
    with torch.random.fork_rng(), torch.enable_grad():
        try:
            task.train()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for b, kept in buffers:
                    b.copy_(kept)


@dataclass(frozen=True)
class Rows:
    """The rows of a table that the examples read, as a parameter of their own."""

    rows: Tensor
    weight: nn.Parameter
    l2: float  # of the table's penalty, see Table


@contextmanager
def rows_read(tables: Sequence[Table]) -> Iterator[list[tuple[Table, list[Tensor]]]]:
    """Collects the rows of each table that are read meanwhile."""
    read: list[tuple[Table, list[Tensor]]] = [(table, []) for table in tables]
    hooks = [
        table.embedding.register_forward_pre_hook(lambda _, args, ids=ids: ids.append(args[0].flatten()))
        for table, ids in read
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def rows_alone(read: list[tuple[Table, Tensor]]) -> Iterator[dict[Any, Rows]]:
    """Tables have those rows alone meanwhile: the others have no curvature, and may be millions."""
    found = dict[Any, Rows]()
    try:
        for table, rows_R in read:
            embedding = table.embedding
            own = nn.Parameter(embedding.weight.detach()[rows_R])
            place = torch.full((len(embedding.weight),), -1, device=rows_R.device)
            place[rows_R] = torch.arange(len(rows_R), device=rows_R.device)
            padding = None if embedding.padding_idx is None else int(place[embedding.padding_idx])
            found[embedding.weight] = Rows(rows_R, own, table.l2)
            embedding.forward = partial(_look_up, own, place, None if padding == -1 else padding)  # type: ignore[method-assign]
        yield found
    finally:
        for table, _ in read:
            vars(table.embedding).pop("forward", None)


def _look_up(weight: Tensor, place: Tensor, padding: int | None, ids: Tensor) -> Tensor:
    return nn.functional.embedding(place[ids.long()], weight, padding)


def gradient_norms(
    losses: Sequence[Callable[[], Tensor]], sizes: Sequence[int], params: list[Tensor]
) -> tuple[float, float]:
    """The norm of the gradient over all parts, and the noise scale; nan where the parts cannot tell."""
    total, squares, examples = [torch.zeros_like(p) for p in params], 0.0, sum(sizes)
    for loss, size in zip(losses, sizes, strict=True):
        gradient = torch.autograd.grad(loss(), params, allow_unused=True, materialize_grads=True)
        squares += float(sum(g.double().square().sum() for g in gradient)) * (examples / size) ** 2 * size / examples
        torch._foreach_add_(total, list(gradient))
    square = float(sum(g.double().square().sum() for g in total))
    mean_size = examples / len(sizes)
    if len(sizes) == 1:
        return math.sqrt(square), math.nan
    trace = (squares - square) / (1 / mean_size - 1 / examples)
    signal = (examples * square - mean_size * squares) / (examples - mean_size)
    return math.sqrt(square), trace / signal if signal > 0 else math.nan
