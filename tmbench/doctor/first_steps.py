"""Do a GPU and the CPU compute the same losses and steps? The first 20, each from the same weights and batch.

The same first weights alone are not enough: where a network is not smooth, rounding grows. In ic, whose last layers see
one pixel, the losses of float32 and float64 on one CPU are 1e-7 apart in the first steps and 1e-2 after ten. So before
each step the second place takes over the weights, buffers and optimizer state of the first. What is left is the
rounding of one step, and the bounds need not grow.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from lightning_fabric.utilities import move_data_to_device
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..config.compose import composed
from ..plan import Plan, planned
from ..training.build import optimizer_of, task_of
from ..training.loader import Step, TrainLoader
from ..training.step import Gradient
from . import Finding
from .bench import LEARN, Bench

STEPS, SWITCH_STEP = 20, 10  # tmsgd is plain SGD before
# Relative bounds. Rounding changes a loss by up to 5e-7; TF32 changes that of ic by 1e-4 to 1e-3.
OF_LOSSES = 1e-5
# Rounding changes most steps by 1e-5 to 1e-4. Now and then, an activation that is within rounding of 0 passes its
# gradient on in one place and not in the other, and a single step differs by up to 1e-2.
OF_MOST_STEPS, OF_ANY_STEP = 1e-3, 0.1


class Place(NamedTuple):
    """Where and how numbers are computed."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device}"


class Apart(NamedTuple):
    """How far two places are apart in one step, relative to the first."""

    loss: float
    step: float  # what is added to all weights, by its Euclidean norm


def devices_agree(bench: Bench) -> Iterator[Finding]:
    """float32 on the GPU beside the CPU; on the CPU beside float64."""
    one, other = (Place(), Place("cuda")) if bench.device == "cuda" else (Place(dtype=torch.float64), Place())
    for task in LEARN:
        words = [f"task={task}", "optimizer=tmsgd", "data=tiny", "trainer=cpu", f"runs_dir={bench.folder}"]
        plan = planned(OmegaConf.create(composed(words)))
        yield agree(task, list(first_steps(plan, one, other)), f"{other} and {one}")


def agree(name: str, steps: Sequence[Apart], places: str) -> Finding:
    """Whether two places are as close in these steps as rounding leaves them; not if a number is not finite."""
    apart = torch.tensor(steps, dtype=torch.float64).nan_to_num(nan=torch.inf)
    loss, worst, median = float(apart[:, 0].max()), float(apart[:, 1].max()), float(apart[:, 1].median())
    found = (
        f"{places}, {len(steps)} steps, each from the same weights: losses {loss:.0e} apart at most (bound "
        f"{OF_LOSSES:.0e}); half of the steps {median:.0e} at most (bound {OF_MOST_STEPS:.0e}), the worst {worst:.0e} "
        f"(bound {OF_ANY_STEP:.0e})"
    )
    if loss <= OF_LOSSES and median <= OF_MOST_STEPS and worst <= OF_ANY_STEP:
        return Finding(name, "green", found)
    remedy = "an operation is wrong or imprecise here: try another version of torch; report it with this page"
    return Finding(name, "red", found, remedy)


class Trained:
    """A task at a place, with its optimizer. Dropout is off, since devices draw other masks from one seed."""

    def __init__(self, plan: Plan, place: Place, steps_an_epoch: int) -> None:
        self.place, self.task = place, task_of([plan]).to(place.device, place.dtype)
        for module in self.task.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for child in self.task.children():
            child.register_forward_pre_hook(self._as_here)
        new_optimizer = self.task.with_own_rates(optimizer_of(plan.cfg, SWITCH_STEP, steps_an_epoch))
        self.optimizer: Any = new_optimizer([p for p in self.task.parameters() if p.requires_grad])

    def _as_here(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A child's inputs in the place's type: tasks make float32 of their integers."""
        return tuple(t.to(self.place.dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs)

    def take_over(self, other: "Trained") -> None:
        self.task.load_state_dict(other.task.state_dict())
        self.optimizer.load_state_dict(other.optimizer.state_dict())

    def weights(self) -> list[Tensor]:
        return [p.detach().to("cpu", torch.float64, copy=True) for p in self.task.parameters()]

    def step(self, step: Step) -> tuple[float, Tensor]:
        """Takes a step; returns its loss, and what it added to all weights, flat, in float64 on the CPU."""
        (player,) = self.task.players().values()
        gradient, before = Gradient(self.task.padding), self.weights()
        here = [(move_data_to_device(batch, torch.device(self.place.device)), counts) for batch, counts in step]
        loss = float(self.optimizer.step(lambda: gradient.closure(self.optimizer, player, here)))
        return loss, torch.cat([(new - old).flatten() for new, old in zip(self.weights(), before, strict=True)])


def first_steps(plan: Plan, one: Place, other: Place, steps: int = STEPS) -> Iterator[Apart]:
    """How far two places are apart in each of a planned run's first steps, at its rate, in its first epoch at most.

    On a GPU in float32 as the CPU has it, not in the TF32 that torch lets cuDNN use.

    Raises:
        RuntimeError: the task draws random numbers, which are others on another device.
    """
    task = task_of([plan])
    loader = TrainLoader(
        task.examples("train"), task.collate, plan.cfg.batch_size, seed=plan.cfg.seed, device=torch.device("cpu"),
        epoch=lambda: 0,
    )  # fmt: skip
    first, second = (Trained(plan, place, loader.steps) for place in (one, other))
    random = torch.get_rng_state()
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for step in islice(chain.from_iterable(loader), steps):
            second.take_over(first)
            (loss, added), (other_loss, other_added) = first.step(step), second.step(step)
            yield Apart(abs(other_loss - loss) / abs(loss), float((other_added - added).norm() / added.norm()))
    if not torch.equal(random, torch.get_rng_state()):
        raise RuntimeError(f"task={plan.cfg.task.name} draws random numbers, so its steps cannot be compared")
