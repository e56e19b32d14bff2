"""What detectors read and say: examples, batches and detections, the same for all of them.

Legend: B batch, H and W pixels, N objects of an image, P candidates and D detections in it, K classes (0: background).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import batched_nms

from tmbench.task import Loss

from .boxes import Detection, Objects

Target = dict[str, Tensor]  # of one image; what is in it is the detector's affair, see the two below
Batch = tuple[Tensor, list[Target]]


class Detections(NamedTuple):
    """What was found in an image, best first: boxes in its own pixels as in `Objects`."""

    boxes_D4: Tensor
    scores_D: Tensor
    labels_D: Tensor


class Detector(nn.Module, ABC):
    """A network, with all that is particular to it: what it reads, its loss, and what it finds."""

    @abstractmethod
    def examples(self, split: str, training: bool) -> Dataset[Any]:
        """The `train` or `test` examples as they are to train or to be judged by; nothing of the network's device."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch to train on, as Task.loss has it."""

    @abstractmethod
    def detect(self, batch: Batch) -> list[Detections]:
        """What is found in each image of a batch to test on; what the network says passes through `finite` before."""


class Pictures(Dataset[tuple[Tensor, Target]]):
    """The images of a split, each as `transform` makes it of its file, the image (3, H, W) and what is known of it."""

    def __init__(
        self, data: Detection, split: str, transform: Callable[[Path, Tensor, Target], tuple[Tensor, Target]]
    ) -> None:
        self.data, self.pairs, self.transform = data, data.split(split), transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image, objects = self.data.read(*self.pairs[i])
        image_3HW = torch.from_numpy(image).permute(2, 0, 1)
        return self.transform(self.pairs[i][0], image_3HW, truth(i, objects, (image.shape[0], image.shape[1])))


def truth(i: int, objects: Objects, size: tuple[int, int]) -> Target:
    """What is known of image i: boxes (N, 4) in its pixels, labels (N,), difficult (N,), size (H, W), number."""
    return {
        "boxes": torch.from_numpy(objects.boxes), "labels": torch.from_numpy(objects.labels),
        "difficult": torch.from_numpy(objects.difficult), "size": torch.tensor(size), "number": torch.tensor(i),
    }  # fmt: skip


def as_boxes(boxes_N4: Tensor, image_3HW: Tensor) -> tv_tensors.BoundingBoxes:
    """The boxes as torchvision's transforms move them along with the image."""
    height, width = image_3HW.shape[1:]
    return tv_tensors.BoundingBoxes(boxes_N4, format="XYXY", canvas_size=(height, width))


def collate(examples: list[tuple[Tensor, Target]]) -> Batch:
    """Images (B, 3, H, W), padded with 0 (the mean colour) at the right and below to the largest, and their targets."""
    height = max(image.shape[1] for image, _ in examples)
    width = max(image.shape[2] for image, _ in examples)
    images_B3HW = torch.zeros(len(examples), 3, height, width)
    for b, (image, _) in enumerate(examples):
        images_B3HW[b, :, : image.shape[1], : image.shape[2]] = image
    return images_B3HW, [target for _, target in examples]


def best_of(
    scores_PK: Tensor, boxes_PK4: Tensor, candidates: int, overlap: float, least: float = 0.0, limit: int | None = None
) -> Detections:
    """What is left of an image's candidates: of each class those that no better one overlaps too much.

    Args:
        scores_PK: of each class, background included.
        boxes_PK4: a box for each class.
        candidates: so many of a class are looked at, the best.
        overlap: intersection over union with a better one of its class, above which a candidate goes.
        least: only scores above this are looked at.
        limit: at most so many are left, the best.
    """
    best_CK, which_CK = scores_PK[:, 1:].topk(min(candidates, len(scores_PK)), dim=0)
    c, k = (best_CK > least).nonzero(as_tuple=True)
    boxes_D4, scores_D = boxes_PK4[which_CK[c, k], k + 1], best_CK[c, k]
    keep_D = batched_nms(boxes_D4, scores_D, k, overlap)[:limit]
    return Detections(boxes_D4[keep_D], scores_D[keep_D], k[keep_D] + 1)
