"""Evaluating a task: its metrics over a split, and the average of its weights that may be evaluated as well."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import Metric, MetricCollection

from ..task import NotFinite, Task


class Evaluation:
    """One evaluation of a task after the other: `start`, `update` with each batch, then `values`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._not_finite: str | None = None  # the first prediction that was not finite

    def start(self) -> None:
        self._not_finite = None
        for child in self.task.children():
            if isinstance(child, (Metric, MetricCollection)):
                child.reset()

    def update(self, batch: Any) -> None:
        try:
            self.task.evaluate(batch)
        except NotFinite as error:  # kept for `values`, since the other ranks would wait for this one
            self._not_finite = self._not_finite or str(error)

    def values(self, split: str | None = None) -> dict[str, float]:
        """The metrics' values over all ranks, as `<split>/<key>`; of what is evaluated by default.

        Raises:
            NotFinite: a prediction or a value is not finite; on all ranks alike.
        """
        split = split or self.task.split
        names = [self._not_finite]
        if torch.distributed.is_initialized():
            names *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(names, self._not_finite)
        for name in filter(None, names):
            raise NotFinite(f"{split}: the {name} are not finite")
        values = {f"{split}/{key}": float(value) for key, value in self.task.metrics.compute().items()}
        for key, value in values.items():
            if not math.isfinite(value):
                raise NotFinite(f"{key} is {value}")
        return values


class WeightAverage:
    """Averages a module's parameters and batch norm's running statistics; `known`: so far, of a resumed run."""

    def __init__(self, module: nn.Module, decay: float, known: list[Tensor]) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self._live = [t.detach() for t in tensors if t.is_floating_point()]
        starts = zip(known or self._live, self._live, strict=True)
        self.tensors = [start.to(t.device, copy=True).view_as(t) for start, t in starts]
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        self._blend(self.tensors, self._live, 0)

    def of(self, live: Tensor) -> Tensor:
        """The average of one of the module's tensors."""
        return next(mine for t, mine in zip(self._live, self.tensors, strict=True) if t.data_ptr() == live.data_ptr())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the module its average weights for a while."""
        kept = [t.clone() for t in self._live]
        torch._foreach_copy_(self._live, self.tensors)
        yield
        torch._foreach_copy_(self._live, kept)
