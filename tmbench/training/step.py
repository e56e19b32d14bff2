"""One optimizer step: its loss and gradient over all parts and ranks of its batch, and a record of what it adds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..optim.clars import example_norms
from ..optim.exchange import average_over_ranks
from ..optim.formula import summed
from ..task import Player, checked_loss, mean
from .loader import Step
from .parts import Group

Recorded = list[list[tuple[int, Tensor]]]  # for each parameter, newest first: (step of the run, what it added)


@dataclass
class Gradient:
    """Computes what an optimizer's `step` takes as its closure."""

    padding: tuple[float, ...] = ()  # the task's
    clip_norm: float | None = None  # a limit on the gradient's norm
    clip_value: float | None = None  # and on each of its elements
    world: int = 1  # ranks
    device: torch.device | None = None  # where sums over ranks are kept
    backward: Callable[[Tensor], Any] = Tensor.backward  # of several ranks, it starts their exchange of gradients
    tables: Sequence[nn.Embedding | nn.EmbeddingBag] = ()  # whose gradients of some rows that exchange leaves out
    by_examples: bool = False  # for an optimizer that wants norms: of single examples' gradients, not of parts'
    weight: Any = 0  # what the last loss is over

    def closure(self, optimizer: Optimizer, player: Player, step: Step) -> Tensor:
        """The step's loss, with its gradient left in the module's parameters: those of the whole batch on all ranks."""
        optimizer.zero_grad()
        loss: Tensor
        alone, differentiates = self.world == 1, hasattr(optimizer, "differentiates")
        if alone:  # there is no exchange to take part in
            step = [part for part in step if part[1]]
        if self.padding and (len(step) > 1 or not alone):
            step = self._padded_alike(step)
        if hasattr(optimizer, "norms"):
            loss, self.weight, optimizer.norms = example_norms(
                player.module, partial(checked_loss, player), [batch for batch, _ in step], self.by_examples
            )
        elif alone and (differentiates or len(step) == 1):
            totals, weights = zip(*(checked_loss(player, batch) for batch, _ in step), strict=True)
            self.weight = sum(weights[1:], weights[0])
            loss = mean(sum(totals[1:], totals[0]), self.weight)
            if differentiates:  # the optimizer takes the gradient, and more, itself
                return loss
            # Without Lightning's hooks, a twentieth of a small step. A stack has a loss for each replica.
            (loss.sum() if loss.dim() else loss).backward()  # type: ignore[no-untyped-call]
        else:
            loss, self.weight = self._in_parts(player, step)
        if self.clip_norm is not None:
            if isinstance(player.module, Group):
                player.module.clip_grad_norm_(self.clip_norm)
            else:
                nn.utils.clip_grad_norm_(_with_gradient(player.module), self.clip_norm)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(_with_gradient(player.module), self.clip_value)
        return loss.detach()

    def _padded_alike(self, step: Step) -> Step:
        """A step's parts with pictures as large as the largest of the whole batch, as if it were padded whole."""
        largest_2 = torch.tensor([batch[0].shape[-2:] for batch, _ in step], device=self.device).amax(0)
        if self.world > 1:
            torch.distributed.all_reduce(largest_2, op=torch.distributed.ReduceOp.MAX)
        height, width = largest_2.tolist()

        def padded(t: Tensor, value: float) -> Tensor:
            return nn.functional.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=value)

        first = len(self.padding)
        return [((*map(padded, batch[:first], self.padding), *batch[first:]), counts) for batch, counts in step]

    def _in_parts(self, player: Player, step: Step) -> tuple[Tensor, Tensor]:
        """The step's loss and weight over all parts and ranks, whose gradients are added up and then divided once."""
        sums_2 = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch, counts in step:
            total, weight = checked_loss(player, batch)
            if not counts:
                total, weight = 0 * total, 0
            self.backward(total)  # which averages gradients over the ranks
            sums_2[0] += total.detach()
            sums_2[1] += weight
        if self.world > 1:  # the whole batch's loss: a line search must decide alike on all ranks
            torch.distributed.all_reduce(sums_2)
            for table in self.tables:
                average_over_ranks(table)
        total, weight = sums_2
        gradients: Any = [p.grad for p in _with_gradient(player.module)]
        torch._foreach_mul_(gradients, mean(self.world, weight))
        return mean(total, weight), weight


def _with_gradient(module: nn.Module) -> list[nn.Parameter]:
    """Its parameters with a gradient; for one whose gradient is of some rows, those rows, each once, and no others."""
    found = []
    for p in module.parameters():
        if p.grad is not None and p.grad.is_sparse:
            p.grad = summed(p.grad)
            values = p.grad.values()
            p = nn.Parameter(values)  # the same memory, where it is changed in place
            p.grad = values
        if p.grad is not None:
            found.append(p)
    return found


class StepHistory:
    """Records what steps add to the weights, which a method with a history goes on from, from a given step on."""

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
        recorded = self.recorded[index] = self.recorded[index] or [[] for _ in params]
        for p, w, of in zip(params, before, recorded, strict=True):
            if p.grad is not None:  # without a gradient it did not take part
                of.insert(0, (number, p.detach() - w))
        return loss
