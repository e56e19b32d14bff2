"""Persistent evolution strategies (Vicol et al. 2021, arXiv 2112.13835, Algorithm 2) for the learned optimizer.

Pairs of copies of a problem are trained side by side with the network's numbers theta + e and theta - e. After every
few steps e is drawn anew and the copies go on, each with the state that it has. What a pair has been perturbed by since
its problem began is added up: times the difference of the pair's losses, that is an unbiased estimate of the gradient
of the whole training's loss, however short the steps in between.

Legend: R copies (two for each pair N: first all +, then all -), P numbers of the network, S... shape of a parameter.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ..optim.learned import OF_TENSOR, SHAPES, accumulated, empty_state, step_of
from ..seeds import derive
from .problems import Problem, problem

KINDS = ("mlp", "mlp", "mlp", "tc", "mlp", "mlp", "mlp", "ctr", "mlp", "mlp", "mlp", "ic")  # of the trainings at once
PAIRS = {"mlp": 8, "tc": 2, "ctr": 2, "ic": 1}
STEPS = 20  # of a training, between two estimates
LENGTHS = (60, 1000)  # shortest and longest training; as many in each octave
SPREAD = 0.01  # standard deviation of the perturbations
WORST = 3.0  # a loss counts as at most so many times the first one; a copy that diverges counts as this
RATE, LAST_RATE = 1e-3, 1e-5  # of Adam, which takes the estimates; a cosine from one to the other
MOMENTUM = 6  # the feature that the start passes on: the fastest momentum over the root mean square gradient


def first_numbers(seed: int) -> Tensor:
    """theta (P,) at the start: small random numbers, and two units that pass that feature on, as Adam would step."""
    random = torch.Generator().manual_seed(derive("learn start", seed))
    weights = {name: torch.randn(shape, generator=random) / math.sqrt(shape[0]) for name, shape in SHAPES.items()}
    for name in ("b0", "b1", "b2"):
        weights[name].zero_()
    weights["w0"][OF_TENSOR:] *= 0.1
    weights["w0"][:, :2] = weights["w1"][:, :2] = 0.0
    weights["w0"][MOMENTUM, 0], weights["w0"][MOMENTUM, 1] = 1.0, -1.0
    weights["w1"][0, 0] = weights["w1"][1, 1] = 1.0
    weights["w2"] *= 0.1
    weights["w2"][:2, 0], weights["w2"][:2, 1] = torch.tensor([1.0, -1.0]), 0.0
    return torch.cat([weights[name].flatten() for name in SHAPES])


def named(theta: Tensor) -> dict[str, Tensor]:
    """The numbers (..., P) as the network's tensors (..., S...)."""
    found, at = {}, 0
    for name, shape in SHAPES.items():
        count = math.prod(shape)
        found[name] = theta[..., at : at + count].reshape(*theta.shape[:-1], *shape)
        at += count
    return found


@dataclass
class Training:
    """The trainings of the copies of one problem; it begins another when they have had their steps."""

    kind: str
    number: int  # which of KINDS it is
    seed: int
    problem: Problem | None = None
    begun: int = 0  # problems so far
    step: int = 0
    length: int = 0
    first_loss: float = math.nan
    params_R: list[Tensor] = field(default_factory=list)
    states_R: list[dict[str, Tensor]] = field(default_factory=list)
    perturbed_NP: Tensor = field(default_factory=lambda: torch.empty(0))  # since the problem began

    def estimate(self, theta: Tensor, update: int) -> tuple[Tensor, float]:
        """Goes on for some steps; returns an estimate of the gradient (P,), and the mean loss over the first one's."""
        if self.step >= self.length:
            self._begin(len(theta))
        pairs = len(self.perturbed_NP)
        random = torch.Generator().manual_seed(derive("learn spread", self.seed, update, self.number))
        e_NP = SPREAD * torch.randn(pairs, len(theta), generator=random)
        weights_R = named(torch.cat([theta + e_NP, theta - e_NP]))
        total_R = torch.zeros(2 * pairs)
        for _ in range(STEPS):
            total_R += self._step(weights_R)
        self.perturbed_NP += e_NP
        plus_N, minus_N = total_R[:pairs] / STEPS, total_R[pairs:] / STEPS
        gradient = ((plus_N - minus_N)[:, None] * self.perturbed_NP).mean(0) / (2 * SPREAD**2)
        return gradient, float(total_R.mean() / STEPS)

    def _begin(self, numbers: int) -> None:
        self._set_problem(self.begun)
        assert self.problem is not None
        copies = 2 * PAIRS[self.kind]
        params = self.problem.parameters()
        self.params_R = [p.expand(copies, *p.shape).clone() for p in params]
        self.states_R = [{key: t.expand(copies, *t.shape).clone() for key, t in empty_state(p).items()} for p in params]
        self.perturbed_NP = torch.zeros(PAIRS[self.kind], numbers)
        random = torch.Generator().manual_seed(derive("learn length", self.seed, self.number, self.begun))
        low, high = map(math.log, LENGTHS)
        self.length = round(math.exp(low + (high - low) * float(torch.rand((), generator=random))))
        self.step, self.begun, self.first_loss = 0, self.begun + 1, math.nan

    def _set_problem(self, begun: int) -> None:
        self.problem = problem(self.kind, derive("learn problem", self.seed, self.number, begun))

    def _step(self, weights_R: dict[str, Tensor]) -> Tensor:
        """A step of each copy; returns their losses before it, over that at the beginning (R,)."""
        assert self.problem is not None
        losses_R, gradients_R = self.problem.losses(self.params_R, self.step)
        if self.step == 0:
            self.first_loss = float(losses_R.mean())
        for i, (p_R, g_R) in enumerate(zip(self.params_R, gradients_R, strict=True)):
            after_R = vmap(accumulated)(g_R, self.states_R[i])
            move_R = vmap(step_of, in_dims=(0, 0, 0, None, 0))(p_R, g_R, after_R, self.step, weights_R)
            self.params_R[i], self.states_R[i] = p_R - move_R, after_R
        self.step += 1
        return torch.nan_to_num(losses_R / self.first_loss, WORST).clamp_max(WORST)

    def state(self) -> dict[str, Any]:
        """What `load` goes on from; the problem itself follows from its seed."""
        return {key: value for key, value in vars(self).items() if key not in ("problem", "kind", "number", "seed")}

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.begun:
            self._set_problem(self.begun - 1)


class MetaTraining:
    """theta (P,), Adam's state and all trainings, from update to update.

    Args:
        seed: of everything that is drawn.
        updates: of theta in all, for the schedule of the rate.
        kinds: of the trainings.
    """

    def __init__(self, seed: int, updates: int, kinds: tuple[str, ...] = KINDS) -> None:
        self.theta = torch.nn.Parameter(first_numbers(seed))
        self.updates, self.update = updates, 0
        self.trainings = [Training(kind, number, seed) for number, kind in enumerate(kinds)]
        self.adam = torch.optim.Adam([self.theta], lr=RATE, betas=(0.9, 0.99))

    def step(self) -> tuple[str, float]:
        """One update, by one training after the other; returns its kind and its mean loss over the first one's."""
        training = self.trainings[self.update % len(self.trainings)]
        gradient, loss = training.estimate(self.theta.detach(), self.update)
        if gradient.isfinite().all():
            # A training's estimate grows with its length, another's may be far larger: none is to rule Adam's moments.
            self.theta.grad = gradient / max(1.0, float(gradient.norm()))
            share = (1 + math.cos(math.pi * self.update / self.updates)) / 2
            self.adam.param_groups[0]["lr"] = LAST_RATE + (RATE - LAST_RATE) * share
            self.adam.step()
        self.update += 1
        return training.kind, loss

    def state(self) -> dict[str, Any]:
        return {
            "update": self.update, "theta": self.theta.detach().clone(), "adam": self.adam.state_dict(),
            "trainings": [training.state() for training in self.trainings],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave; bitwise as if there had been no break."""
        self.update = state["update"]
        self.theta.data.copy_(state["theta"])
        self.adam.load_state_dict(state["adam"])
        for training, of in zip(self.trainings, state["trainings"], strict=True):
            training.load(of)
