"""Tasks that ranks import.

seg as a sum over pixels alone: norms as in evaluation, and pictures that differ in how much of them is labelled; and tc
that fails on the second rank.
"""

import os
from typing import Any

import torch
from torch.utils.data import Dataset

from tmbench.errors import DataError
from tmbench.task import Loss
from tmbench.tasks.seg.task import Seg
from tmbench.tasks.tc.task import TC
from tmbench.tasks.voc import BORDER


class Uneven(Dataset[Any]):
    """The pictures, of several sizes; of every other one two rows are labelled, of every eighth nothing."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = (t.clone() for t in self.examples[i])
        if i % 2:
            mask[0 if i % 8 == 1 else 2 :] = BORDER
        return image, mask


class StillSeg(Seg):
    def loss(self, batch: Any) -> Loss:
        self.eval()  # here, since the trainer sets the mode of each module by itself
        return super().loss(batch)

    def examples(self, split: str) -> Any:
        return Uneven(super().examples(split))


class WrongFromTheStart(TC):
    def __init__(self, *args: Any) -> None:
        if os.environ["RANK"] == "1":
            raise DataError("it is wrong here")
        super().__init__(*args)


class WrongInTraining(TC):
    def loss(self, batch: Any) -> Loss:
        if os.environ["RANK"] == "1":
            raise ArithmeticError("it is wrong here")
        return super().loss(batch)
