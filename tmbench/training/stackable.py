"""What a stack needs: tasks that differ by no more than their parameters and buffers, and memory for all."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..errors import CannotStackError
from ..task import Task

COPIES = 4  # of the parameters: weights, gradients, and two of an optimizer's state
GIB = 2**30


def check_alike(tasks: Iterable[nn.Module]) -> None:
    """CannotStackError, with the name, if an attribute of one's modules is of another value in another.

    Compared are numbers, words, arrays and tensors, also within lists, tuples and dictionaries.
    """
    first, *others = ({name: vars(module) for name, module in task.named_modules()} for task in tasks)
    for other in others:
        for prefix, attributes in first.items():
            for name, value in attributes.items():
                # What begins with _ is torch's: parameters, buffers, hooks.
                if not name.startswith("_") and not _same(value, other.get(prefix, {}).get(name)):
                    raise CannotStackError(
                        f"{prefix}{'.' * bool(prefix)}{name} depends on the seed, and is neither a parameter nor a "
                        "buffer (see register_buffer)"
                    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)):
        if not isinstance(b, type(a)) or len(a) != len(b):
            return False
        is_plain = bool(a) and isinstance(a[0], (int, float, str))  # a document of words, say
        return a == b if is_plain else all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, TensorDataset):
        return isinstance(b, TensorDataset) and _same(a.tensors, b.tensors)
    if isinstance(a, Tensor):
        if a.grad_fn is not None:  # made of parameters
            return True
        same_kind = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return same_kind and (
            torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return a == b if isinstance(a, (int, float, str)) else True


def check_fits(task: Task, slots: int, free: int, kept: int = 0) -> None:
    """CannotStackError, with the number that does, if so many slots of a task do not fit into `free` bytes.

    Args:
        kept: bytes of one replica beside its parameters.
    """
    each = COPIES * sum(p.numel() * p.element_size() for p in task.parameters()) + kept
    if slots * each > free:
        why = f"{slots} of them take about {slots * each / GIB:.1f} GiB, and {free / GIB:.1f} are free"
        raise CannotStackError(why, f"replicas={max(1, free // each)}")
