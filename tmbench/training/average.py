"""The exponential moving average of the weights (`ema`), evaluated beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Averages parameters and batch norm's running statistics.

    Args:
        module: whose weights; on the device where it is trained.
        decay: of the average at each step, between 0 and 1.
        known: the average so far, of a resumed run.
    """

    def __init__(self, module: nn.Module, decay: float, known: list[Tensor]) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self._live = [t.detach() for t in tensors if t.is_floating_point()]
        devices = [t.device for t in self._live]
        self.tensors = [t.to(at, copy=True) for t, at in zip(known or self._live, devices, strict=True)]
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
