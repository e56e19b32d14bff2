"""Whether an optimizer steps each element of a tensor by the element's own gradients and state alone."""

import math
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
        The largest difference over the largest distance moved, after some steps of float64 with random gradients:
        weights that hardly move hardly differ. Infinite if none moves.
    """
    generator = torch.Generator().manual_seed(0)

    def random() -> list[Tensor]:
        return [torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in SHAPES]

    # With a drift, and with a large rate in the end: else a method that estimates its rate (Prodigy) hardly moves.
    starts, drift = random(), random()
    gradients = [[g + d for g, d in zip(random(), drift, strict=True)] for _ in range(STEPS)]
    both = _stepped(new, starts, gradients)
    alone = [_stepped(new, [t[k] for t in starts], [[t[k] for t in step] for step in gradients]) for k in range(2)]
    apart = max(float((t - torch.stack(u)).abs().max()) for t, u in zip(both, zip(*alone, strict=True), strict=True))
    moved = max(float((t - start).abs().max()) for t, start in zip(both, starts, strict=True))
    return apart / moved if moved else math.inf


def _stepped(new: Callable[[Any], Optimizer], starts: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    params = [nn.Parameter(t.clone()) for t in starts]
    optimizer: Any = new(params)
    if hasattr(optimizer, "train"):  # a schedule-free one
        optimizer.train()
    for number, step in enumerate(gradients):
        for group in optimizer.param_groups if number == STEPS // 2 else ():
            group["lr"] = max(1.0, float(group.get("lr", 1.0)))
        for p, grad in zip(params, step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return [p.detach() for p in params]
