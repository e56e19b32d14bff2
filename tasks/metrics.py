"""Metrics that several tasks build on."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Ratio(Metric):
    """A sum over all examples divided by another, in float64, which is exact enough for any number of them.

    Args:
        bins: of the sum above, whose absolute values are added up at the end; 0: it is one number, and keeps its sign.
    """

    above: Tensor
    below: Tensor

    def __init__(self, bins: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("above", torch.zeros(bins or (), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("below", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return (self.above.abs().sum() if self.above.dim() else self.above) / self.below
