"""What the detectors share: examples, batches, detections, and VGG16 (Simonyan and Zisserman 2014) to start from.

Legend: B batch, H and W pixels, N objects of an image, P candidates and D detections in it, K classes (0: background).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import VGG16_Weights, vgg16
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import batched_nms

from tmbench.task import Loss

from ..pictures import padded, weights_file
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
        target = truth(i, objects, image.shape[:2])
        return self.transform(self.pairs[i][0], torch.from_numpy(image).permute(2, 0, 1), target)


def truth(i: int, objects: Objects, size: tuple[int, ...]) -> Target:
    """What is known of image i: boxes (N, 4) in its pixels, labels (N,), difficult (N,), size (H, W), number."""
    known = {name: torch.from_numpy(getattr(objects, name)) for name in ("boxes", "labels", "difficult")}
    return known | {"size": torch.tensor(size), "number": torch.tensor(i)}


def collate(examples: list[tuple[Tensor, Target]]) -> Batch:
    """Images (B, 3, H, W), padded with 0 (the mean colour) at the right and below to the largest, and their targets."""
    images, targets = zip(*examples, strict=True)
    return padded(images, 0), list(targets)


def best_of(
    scores_PK: Tensor, boxes_PK4: Tensor, candidates: int, overlap: float, least: float = 0.0, limit: int | None = None
) -> Detections:
    """What is left of an image's candidates: of each class those that no better one overlaps too much.

    Args:
        scores_PK: of each class, background included.
        boxes_PK4: a box for each class.
        candidates: so many of a class are looked at, the best.
        overlap: intersection over union with a better one of its class, above which a candidate goes.
        least, limit: only scores above this are looked at; at most so many are left, the best.
    """
    best_CK, which_CK = scores_PK[:, 1:].topk(min(candidates, len(scores_PK)), dim=0)
    c, k = (best_CK > least).nonzero(as_tuple=True)
    boxes_D4, scores_D = boxes_PK4[which_CK[c, k], k + 1], best_CK[c, k]
    keep_D = batched_nms(boxes_D4, scores_D, k, overlap)[:limit]
    return Detections(boxes_D4[keep_D], scores_D[keep_D], k[keep_D] + 1)


def published(chosen: VGG16_Weights) -> Any:
    """torchvision's VGG16 with these weights; raises DataError as `weights_file`."""
    weights_file("od", chosen.url)
    return vgg16(weights=chosen)


def scaled(channels: int, width: float) -> int:
    """How many channels a layer of so many has in a network of this width."""
    return max(8, round(channels * width))


def random_features(width: float, batch_norm: bool, bn_momentum: float) -> nn.Sequential:
    """The 13 convolutions with ReLU and the 5 poolings, with random weights."""
    stages = [v if isinstance(v, str) else scaled(v, width) for v in cfgs["D"]]
    layers: nn.Sequential = make_layers(stages, batch_norm=batch_norm)
    for module in layers:
        if isinstance(module, nn.Conv2d):
            start(module)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return layers


def start(module: nn.Module) -> None:
    """Kaiming-normal weights by what a convolution gives out, zero biases; other layers stay as they are."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
