"""The problem that every check poses, independent quadratics, and an optimizer's descent on it.

There is one quadratic for each parameter tensor, in float64 unless a check is about another type. Gradients grow and
shrink from step to step, as those of batches do: some defects show only then.
"""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

NewOptimizer = Callable[..., Optimizer]  # of a list of parameters, and of foreach= and fused= where it has them

BOUND = 1e-6  # two paths of weights agree if they differ by at most so much of the distance moved
STEPS = 20
SWITCH_STEP = 6  # where a YAML leaves switch_step to the run: all phases of a switching method lie within STEPS
SHAPES = ((5,), (3, 4), (4,), (2, 6), (2, 3, 2, 2))
BATCHES = (0.1, 1.0, 5.0, 0.3, 2.0)  # the gradients' factor in each step, repeated


@dataclass(frozen=True)
class Quadratic:
    """One tensor's own quadratic: curvature / 2 (w - target)^2, summed over its elements."""

    start: Tensor
    target: Tensor
    curvature: Tensor

    @classmethod
    def of(cls, i: int) -> "Quadratic":
        """The i-th one, the same in every set: curvatures 0.1 to 1, about 1 from its start to its target."""
        random, shape = torch.Generator().manual_seed(i), SHAPES[i % len(SHAPES)]
        start, step = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
        curvature = 0.1 + 0.9 * torch.rand(shape, generator=random, dtype=torch.float64)
        return cls(start, start + step.sign() * (0.5 + step.abs()), curvature)

    @classmethod
    def zero(cls, i: int) -> "Quadratic":
        """One of the i-th shape that is zero, with gradients that are zero: it adds nothing to any sum or norm."""
        return cls(*(torch.zeros(SHAPES[i % len(SHAPES)], dtype=torch.float64) for _ in range(3)))

    def to(self, device: str, dtype: torch.dtype) -> "Quadratic":
        return Quadratic(*(tensor.to(device, dtype) for tensor in (self.start, self.target, self.curvature)))


@dataclass(frozen=True)
class Candidate:
    """The optimizer that is examined, and how its step must be called."""

    new: NewOptimizer
    device: str = "cpu"
    closure: bool = False  # step() needs one
    graph: bool = False  # it differentiates the gradients again
    reference: NewOptimizer | None = None

    def build(self, weights: list[Any], **path: bool) -> Optimizer:
        """An optimizer of these weights; foreach= and fused= are set in its groups if its constructor takes neither."""
        try:
            return self.new(weights, **path)
        except TypeError:
            if not path:
                raise
        optimizer = self.new(weights)  # made by a function of the parameters alone
        for group in optimizer.param_groups:
            group.update(path)
        return optimizer


class Descent:
    """An optimizer that descends: `path(i)` holds the weights of its i-th tensor, one row for each step."""

    def __init__(
        self, candidate: Candidate, problem: Sequence[Quadratic], dtype: torch.dtype = torch.float64, **path: bool
    ) -> None:
        torch.manual_seed(0)
        self.candidate = candidate
        self.quadratics = [q.to(candidate.device, dtype) for q in problem]
        self.weights = [q.start.clone().requires_grad_() for q in self.quadratics]
        self.optimizer = candidate.build(list(self.weights), **path)
        self.taken = 0
        self.rows = [[w.detach().clone()] for w in self.weights]
        self.grads: list[Tensor | None] = []
        self.mode("train")

    def mode(self, name: Literal["train", "eval"]) -> bool:
        """Switches a method that keeps other weights for evaluation; returns whether it is one."""
        if not callable(getattr(self.optimizer, name, None)):
            return False
        getattr(self.optimizer, name)()
        return True

    def evaluate(self, factor: float = 1.0, none: Iterable[int] = ()) -> Tensor:
        """The loss; sets the gradients as backward() would. The tensors of `none` have no part in it, and get none."""
        if not torch.is_grad_enabled():
            raise RuntimeError("step() calls its closure with gradients switched off (torch.enable_grad is missing)")
        terms = [pair for i, pair in enumerate(zip(self.weights, self.quadratics, strict=True)) if i not in none]
        with torch.set_grad_enabled(self.candidate.graph):
            loss = torch.zeros((), dtype=torch.float64, device=self.candidate.device)
            for w, q in terms:
                loss = loss + 0.5 * factor * (q.curvature * (w - q.target) ** 2).sum()
        weights = [w for w, _ in terms]
        if self.candidate.graph and terms:
            gradients = [*torch.autograd.grad(loss, weights, create_graph=True)]
        else:  # bitwise the same, in a fraction of the time
            gradients = [factor * q.curvature * (w.detach() - q.target) for w, q in terms]
        for w in self.weights:
            w.grad = None
        for w, gradient in zip(weights, gradients, strict=True):
            w.grad = gradient
        self.grads = [None if w.grad is None else w.grad.detach().clone() for w in self.weights]
        return loss

    def step(self, factor: float | None = None, none: Iterable[int] = ()) -> Any:
        """One step on the next batch; returns what the optimizer's own step returns."""
        factor = BATCHES[self.taken % len(BATCHES)] if factor is None else factor
        step: Any = self.optimizer.step
        if self.candidate.closure:
            returned = step(partial(self.evaluate, factor, none))
        else:
            self.evaluate(factor, none)
            returned = step()
        self.taken += 1
        for row, w in zip(self.rows, self.weights, strict=True):
            row.append(w.detach().clone())
        return returned

    def go(self, steps: int = STEPS, factor: float | None = None, none: Iterable[int] = ()) -> "Descent":
        for _ in range(steps):
            self.step(factor, none)
        return self

    def add_group(self, q: Quadratic) -> None:
        """Gives the optimizer one more tensor, in a parameter group of its own."""
        self.quadratics.append(q.to(self.candidate.device, q.start.dtype))
        self.weights.append(self.quadratics[-1].start.clone().requires_grad_())
        self.rows.append([self.quadratics[-1].start.clone()])
        self.optimizer.add_param_group({"params": self.weights[-1:]})

    def path(self, i: int) -> Tensor:
        return torch.stack(self.rows[i])

    def moved_since(self, step: int, tensors: Iterable[int] | None = None) -> float:
        """How far any weight of these tensors, or of all, was from where it was after so many steps."""
        paths = [self.path(i)[step:] for i in (range(len(self.rows)) if tensors is None else tensors)]
        return max(float((path - path[0]).abs().max()) for path in paths)

    def distance_to(self, other: "Descent") -> float:
        """The largest distance of two paths of one tensor, over this one's tensors."""
        return max(distance(self.path(i), other.path(i)) for i in range(len(self.weights)))

    def loss(self) -> float:
        """The loss in the weights that the optimizer wants evaluated; more steps may follow."""
        self.mode("eval")
        with torch.no_grad():
            total = sum(
                float(0.5 * (q.curvature.double() * (w.double() - q.target.double()) ** 2).sum())
                for w, q in zip(self.weights, self.quadratics, strict=True)
            )
        self.mode("train")
        return total

    def reloaded(self) -> tuple["Descent", bool]:
        """The descent as a new process would resume it, and whether torch.load accepted the state as safe."""
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        safe = True
        try:
            state = torch.load(file)
        except pickle.UnpicklingError:
            safe = False
            file.seek(0)
            state = torch.load(file, weights_only=False)
        other = copy.copy(self)
        other.weights = [w.detach().clone().requires_grad_() for w in self.weights]
        other.rows = [list(row) for row in self.rows]
        random = torch.get_rng_state()
        other.optimizer = self.candidate.build(list(other.weights))
        torch.set_rng_state(random)
        other.optimizer.load_state_dict(state)
        other.mode("train")
        return other, safe


def problem(count: int) -> list[Quadratic]:
    return [Quadratic.of(i) for i in range(count)]


def distance(one: Tensor, other: Tensor) -> float:
    """How far two paths differ, as a part of the distance moved; infinite where one is not finite."""
    if torch.equal(one, other):
        return 0.0
    moved = max(float((path - path[0]).abs().max()) for path in (one, other))
    share = float((one - other).abs().max()) / moved if moved else math.inf
    return share if math.isfinite(share) else math.inf


def in_words(d: float) -> str:
    return "bitwise" if d == 0 else f"within {d:.0e}" if d <= BOUND else f"{d:.2g} apart"


def summary_of(error: BaseException) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"
