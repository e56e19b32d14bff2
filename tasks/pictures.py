"""What the tasks that look at pictures share: published initial weights and their pixels, batches of unequal sizes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tmbench.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue in [0, 1]
T = TypeVar("T")


def with_weights(task: str, option: str, chosen: Any, build: Callable[[], T]) -> T:
    """What `build` makes of the weights `chosen` (torchvision's, or None), as `task.weights=option` asks for.

    Raises:
        DataError: the weights are not here and cannot be downloaded.
    """
    try:
        return build()
    except OSError as error:
        assert chosen is not None
        folder = torch.hub.get_dir() + "/checkpoints"
        raise DataError(
            f"{task}: the initial weights (task.weights={option}) could not be downloaded: {error}\n"
            f"  put {chosen.url}\n  into {folder}\n"
            "  or train from random weights with task.weights=none (and a larger lr)"
        ) from None


def padded(pictures: Sequence[Tensor], value: float) -> Tensor:
    """One tensor of all pictures (..., H, W), padded with `value` at the right and below to the largest of them."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (-2, -1))
    batch = pictures[0].new_full((len(pictures), *pictures[0].shape[:-2], height, width), value)
    for into, picture in zip(batch, pictures, strict=True):
        into[..., : picture.shape[-2], : picture.shape[-1]] = picture
    return batch
