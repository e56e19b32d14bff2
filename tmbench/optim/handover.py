"""The rate of the second of two methods at a switch: that with which its first step is as long as the first's were."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Handover:
    """Measures the first method's steps in windows of so many, and hands its mean step over to the second.

    Args:
        window: steps; the last whole window before the switch counts, or what there is of the first.

    Attributes:
        told: after the second's first step: `mean_step`, the first's; `step`, the second's at its own rate; `factor`,
            by which that rate was multiplied. Lengths are Euclidean norms over all parameters. Empty before.

    Raises:
        ValueError: the window is not a whole number of steps.
    """

    def __init__(self, window: int) -> None:
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"switch: handover: expected a whole number >= 1 of steps, or None, got {window!r}")
        self.window = window
        self.steps, self.walked, self.mean_step = 0, 0.0, 0.0
        self.told: dict[str, float] = {}

    def watch(self, optimizer: Optimizer, step: Callable[[], Any]) -> Any:
        """Takes a step of the first method, measured."""
        before = _copies(optimizer)
        loss = step()
        if self.steps % self.window == 0:
            self.walked = 0.0
        self.steps += 1
        self.walked += _distance(optimizer, before)
        in_window = (self.steps - 1) % self.window + 1
        if in_window == self.window or self.steps < self.window:
            self.mean_step = self.walked / in_window
        return loss

    def first_step(self, optimizer: Optimizer, step: Callable[[], Any], rescale: Callable[[float], None]) -> Any:
        """Takes the second method's first step, at the rate that makes it as long; it is tried at its own rate before.

        Args:
            step: by the gradients that there are, or that it computes the first time that it is called.
            rescale: multiplies the rate of the following steps.
        """
        before = _copies(optimizer)
        # Not by load_state_dict, which makes new groups.
        state = {p: copy.deepcopy(of_p) for p, of_p in optimizer.state.items()}
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        loss = step()
        length = _distance(optimizer, before)
        factor = self.mean_step / length if length > 0 else math.nan
        if not (math.isfinite(factor) and factor > 0):  # nothing to hand over, or to rescale
            return loss
        self.told = {"mean_step": self.mean_step, "step": length, "factor": factor}
        with torch.no_grad():
            for p, w in zip(_params(optimizer), before, strict=True):
                p.copy_(w)
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group |= settings
        rescale(factor)
        optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "window"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _copies(optimizer: Optimizer) -> list[Tensor]:
    return [p.detach().clone() for p in _params(optimizer)]


@torch.no_grad()
def _distance(optimizer: Optimizer, before: list[Tensor]) -> float:
    """How far the weights are from there."""
    norms = torch._foreach_norm(torch._foreach_sub([p.detach() for p in _params(optimizer)], before))
    return math.sqrt(sum(float(norm) ** 2 for norm in norms))
