"""Published initial weights, which torchvision downloads."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tmbench.errors import DataError

T = TypeVar("T")


def with_weights(task: str, option: str, chosen: Any, build: Callable[[], T]) -> T:
    """What `build` makes of the weights `chosen` (torchvision's, or None), as asked for by `task.weights=option`.

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
