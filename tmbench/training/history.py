"""What the last steps before a shared state added to the weights, which a method with a history goes on from."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Recorded = list[list[tuple[int, Tensor]]]  # for each parameter, newest first: (step of the run, what it added)


class StepHistory:
    """Records what each optimizer's steps add to the weights, from a given step of the run on."""

    def __init__(self) -> None:
        self.first: float = math.inf  # nothing is recorded before this step
        self.recorded: list[Recorded] = []  # for each optimizer

    def start_epoch(self, first_wanted: float, first_of_epoch: int, optimizers: int) -> None:
        """Keeps what is wanted of the earlier epochs, where they are so short that a history reaches over them."""
        wanted = max(0, first_wanted)
        if wanted < first_of_epoch and self.first <= wanted:
            self.first, self.recorded = wanted, self.since(wanted)
        else:
            self.first, self.recorded = max(wanted, first_of_epoch), [[] for _ in range(optimizers)]

    def since(self, first: float) -> list[Recorded]:
        return [[[(n, d) for n, d in of if n >= first] for of in recorded] for recorded in self.recorded]

    def step(self, number: int, index: int, optimizer: Any, closure: Callable[[], Tensor]) -> Tensor:
        """Takes step `number` of the run by the optimizer of this index, and records it if that is wanted."""
        if number < self.first:
            return optimizer.step(closure)
        # Taken from the weights, so that what is recorded does not depend on which optimizer moves them.
        params = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        loss: Tensor = optimizer.step(closure)
        recorded = self.recorded[index]
        recorded.extend([] for _ in range(len(params) - len(recorded)))
        for p, w, of in zip(params, before, recorded, strict=True):
            if p.grad is not None:  # without a gradient it did not take part
                of.insert(0, (number, p.detach() - w))
        return loss
