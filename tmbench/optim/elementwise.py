"""Whether an optimizer steps each element of a tensor by the element's own gradients and state alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

SHAPES = ((3, 4), (5,), (2, 3, 2, 2))  # of a matrix, a bias and a convolution
STEPS = 64  # some precondition from the 25th on


def stacked_difference(new: Callable[[Any], Optimizer]) -> float:
    """How far the weights of two networks stepped as one stack of tensors end from those of each by itself.

    0 for an optimizer that looks at each element alone; one that looks at a norm, a matrix or a mean differs at once.

    Args:
        new: parameters -> a fresh optimizer.

    Returns:
        The largest difference over the largest weight, after some steps of float64 with random gradients.
    """
    generator = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in SHAPES]

    starts, gradients = random(), [random() for _ in range(STEPS)]
    both = _stepped(new, starts, gradients)
    alone = [_stepped(new, [t[k] for t in starts], [[t[k] for t in step] for step in gradients]) for k in range(2)]
    pairs = [(t, torch.stack(each)) for t, each in zip(both, zip(*alone, strict=True), strict=True)]
    return max(float((t - u).abs().max() / u.abs().max()) for t, u in pairs)


def _stepped(new: Callable[[Any], Optimizer], starts: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    params = [nn.Parameter(t.clone()) for t in starts]
    optimizer: Any = new(params)
    if hasattr(optimizer, "train"):  # a schedule-free one
        optimizer.train()
    for step in gradients:
        for p, grad in zip(params, step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach() for p in params]
