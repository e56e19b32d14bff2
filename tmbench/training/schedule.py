"""How the learning rate changes over a run: each function gives the factor on it at one step.

Steps count from 0; `steps` is the whole run's number and `epoch` an epoch's. Each factor starts with a
linear warm-up of `warmup_epochs` from `warmup_from` (a factor) to 1.
"""

import math
from collections.abc import Callable, Sequence


def cosine(step: int, *, steps: int, epoch: int, warmup_epochs: float, warmup_from: float) -> float:
    """Half a cosine from 1 to 0 after the warm-up."""
    return _warm(step, steps, warmup_epochs * epoch, warmup_from, lambda t: 0.5 * (1 + math.cos(math.pi * t)))


def poly(step: int, *, steps: int, epoch: int, warmup_epochs: float, warmup_from: float, power: float) -> float:
    """(1 - t) ** power after the warm-up (WZMIAOMIAO's LR-ASPP and torchvision's segmentation reference)."""
    return _warm(step, steps, warmup_epochs * epoch, warmup_from, lambda t: (1 - t) ** power)


def warmup(step: int, *, steps: int, epoch: int, warmup_epochs: float, warmup_from: float) -> float:
    """Constant after the warm-up."""
    return _warm(step, steps, warmup_epochs * epoch, warmup_from, lambda t: 1.0)


def step(
    step: int, *, steps: int, epoch: int, warmup_epochs: float, warmup_from: float,
    milestones: Sequence[float], gamma: float,
) -> float:  # fmt: skip
    """gamma ** (how many milestones, as fractions of the whole run, are behind)."""
    passed = sum(step >= milestone * steps for milestone in milestones)
    return _warm(step, steps, warmup_epochs * epoch, warmup_from, lambda t: gamma**passed)


def one_cycle(step: int, *, steps: int, epoch: int, peak: float, start: float, end: float) -> float:
    """Half a cosine from `start` up to 1 at `peak` of the run, and another down to `end` (Smith and Topin 2017)."""
    last = max(1, steps - 1)
    top = max(1.0, peak * steps - 1)
    low, high, t = (start, 1.0, step / top) if step <= top else (1.0, end, (step - top) / max(1.0, last - top))
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


def wsd(step: int, *, steps: int, epoch: int, warmup_epochs: float, warmup_from: float, decay: float) -> float:
    """Constant after the warm-up, and linear to 0 over the last `decay` of the run."""
    left = max(0.0, (steps - step) / max(1.0, decay * steps))
    return _warm(step, steps, warmup_epochs * epoch, warmup_from, lambda t: min(1.0, left))


def _warm(step: int, steps: int, warm: float, start: float, after: Callable[[float], float]) -> float:
    """The linear beginning over `warm` steps, then `after` of the fraction t of the remaining steps."""
    if step < warm:
        return start + (1 - start) * step / warm
    return after(min(1.0, (step - warm) / max(1.0, steps - warm)))
