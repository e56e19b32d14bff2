"""Checks of what a step does to weights, gradients and states."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from . import Outcome
from .descent import BOUND, STEPS, Candidate, Descent, distance, in_words, problem, quadratic, summary_of


def lowers_a_quadratic(candidate: Candidate) -> Outcome:
    """In 300 steps with gradients of an even size; by how much is for the person to judge."""
    descent = Descent(candidate, problem(5))
    before = descent.loss()
    after = descent.go(300, factor=1.0).loss()
    if after < before:
        return "holds", f"to {after / before:.2g} of its start in 300 steps"
    return "does not", f"the loss went from {before:.3g} to {after:.3g} in 300 steps; is lr too large?"


def leaves_gradients(candidate: Candidate) -> Outcome:
    descent = Descent(candidate, problem(5))
    for step in range(STEPS):
        descent.step()
        for i, (w, grad) in enumerate(zip(descent.weights, descent.grads, strict=True)):
            if w.grad is None or grad is None:
                return "does not", f"step {step + 1} set the gradient of tensor {i + 1} to None"
            if not torch.equal(w.grad, grad):
                changed = float((w.grad - grad).abs().max() / grad.abs().max())
                return "does not", f"step {step + 1} changed p.grad of tensor {i + 1} by {changed:.2g} of its size"
    return "holds", f"{STEPS} steps, bitwise"


def skips_none_gradients(candidate: Candidate) -> Outcome:
    """A tensor that never has one, a tensor that loses it, and a step in which no tensor has one."""
    descent, without = Descent(candidate, problem(4)), Descent(candidate, problem(3))
    descent.go(none=(3,))
    without.go()
    if not torch.equal(descent.path(3)[-1], descent.path(3)[0]):
        return "does not", "a tensor without gradients moved"
    d = max(distance(descent.path(i), without.path(i)) for i in range(3))
    if d > BOUND:
        return "does not", f"a tensor without gradients moved the others: {d:.2g} apart"
    path = Descent(candidate, problem(4)).go(8).go(8, none=(3,)).path(3)[8:]
    moved = float((path - path[0]).abs().max())
    if moved and not candidate.closure:
        return "does not", f"a tensor whose gradient became None moved on by {moved:.2g}"
    if not candidate.closure:
        try:
            Descent(candidate, problem(2)).step(none=(0, 1))
        except Exception as error:
            return "does not", f"a step in which no tensor has a gradient raises {summary_of(error)}"
    after = f"moves on by {moved:.2g} along past directions" if moved else "stays"
    return "holds", f"its weight stays, the others go on {in_words(d)}; one that loses its gradient mid-run {after}"


def rests_on_zero_gradients(candidate: Candidate) -> Outcome:
    """Weights move by weight decay alone, and after ordinary steps perhaps by momentum; they stay finite."""
    moved = _moved(Descent(candidate, problem(4)).go(10, factor=0.0), 0)
    if not math.isfinite(moved):
        return "does not", "zero gradients from the first step make weights that are not finite"
    if moved and _moved(_without_decay(Descent(candidate, problem(4))).go(10, factor=0.0), 0):
        return "does not", f"weights move by {moved:.2g} in 10 steps on zero gradients, weight decay or not"
    start = f"moves by weight decay alone ({moved:.2g} in 10 steps)" if moved else "weights stay"
    later = _moved(Descent(candidate, problem(4)).go(8).go(10, factor=0.0), 8)
    if not math.isfinite(later):
        return "does not", "zero gradients after 8 ordinary steps make weights that are not finite"
    then = f"moves on by {later:.2g}, as momentum does" if later else "stay too"
    return "holds", f"{start}; after 8 ordinary steps {then}"


def _moved(descent: Descent, since: int) -> float:
    """How far any weight was from where it was after so many steps."""
    paths = [descent.path(i)[since:] for i in range(len(descent.weights))]
    return max(float((path - path[0]).abs().max()) for path in paths)


def _without_decay(descent: Descent) -> Descent:
    for group in descent.optimizer.param_groups:
        for key, value in group.items():
            if key.startswith("weight_decay") and isinstance(value, (int, float)) and not isinstance(value, bool):
                group[key] = type(value)(0)
    return descent


def works_in(dtype: torch.dtype, candidate: Candidate) -> Outcome:
    """Parameters of this type go down and stay finite, or are refused."""
    try:
        descent = Descent(candidate, problem(5), dtype)
        before = descent.loss()
        after = descent.go(30, factor=1.0).loss()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return "not applicable", f"refuses such parameters: {summary_of(error)}"
    if not all(bool(w.isfinite().all()) for w in descent.weights):
        return "does not", "weights are not finite after 30 steps"
    if all(torch.equal(w, q.start) for w, q in zip(descent.weights, descent.quadratics, strict=True)):
        return "not applicable", "its steps are too small for the type: no weight moved in 30 steps"
    if not after < before:
        return "does not", f"the loss went from {before:.3g} to {after:.3g} in 30 steps"
    return "holds", f"finite, the loss goes to {after / before:.2g} of its start in 30 steps"


def takes_a_changed_lr(candidate: Candidate) -> Outcome:
    """A tenth of the rate after half the steps, set in the groups, as schedules do."""
    at = STEPS // 2
    same = Descent(candidate, problem(5)).go()
    descent = Descent(candidate, problem(5)).go(at)
    groups = [group for group in descent.optimizer.param_groups if "lr" in group]
    if not groups:
        return "not applicable", "its groups have no lr"
    for group in groups:
        group["lr"] = group["lr"] * 0.1
    descent.go(STEPS - at)
    differs = [any(not torch.equal(descent.path(i)[k], same.path(i)[k]) for i in range(5)) for k in range(STEPS + 1)]
    if True not in differs:
        return "does not", f"lr / 10 after step {at} changes nothing in the next {STEPS - at} steps"
    late = differs.index(True) - at
    if late < 1:
        return "not applicable", "cannot be told: it does not repeat"
    moved = [sum(float((w.path(i)[-1] - w.path(i)[at]).norm()) for i in range(5)) for w in (descent, same)]
    when = "at once" if late == 1 else f"from the {late}th step on"
    return "holds", f"lr / 10 mid-run acts {when}: {moved[0] / moved[1]:.2g} of the way from there"


def updates_an_added_group(candidate: Candidate) -> Outcome:
    at = STEPS // 2
    try:
        candidate.new([{"params": [w]} for w in Descent(candidate, problem(2)).weights])
        refusal = ""
    except Exception as error:
        refusal = f"takes no parameter groups: {summary_of(error)}"
    descent = Descent(candidate, problem(4)).go(at)
    try:
        descent.add_group(quadratic(5))
        descent.go(STEPS - at)
    except Exception as error:
        if refusal:
            return "not applicable", refusal
        return "does not", f"a group added after step {at} raises {summary_of(error)}"
    moved = descent.path(4)[-1] - descent.path(4)[0]
    if not moved.any():
        if refusal:
            return "not applicable", refusal
        return "does not", f"a group added after step {at} does not move in {STEPS - at} steps"
    if not float((moved * (descent.quadratics[4].target - descent.path(4)[0])).sum()) > 0:
        return "does not", f"a group added after step {at} moves away from its target"
    same = Descent(candidate, problem(4)).go()
    d = max(distance(descent.path(i), same.path(i)) for i in range(4))
    return "holds", f"added after step {at}, it goes down; the others go on {in_words(d)}"


def returns_the_closures_loss(candidate: Candidate) -> Outcome:
    descent = Descent(candidate, problem(5))
    seen: list[float] = []

    def closure() -> Tensor:
        loss = descent.evaluate()
        seen.append(float(loss))
        return loss

    step: Any = descent.optimizer.step
    if not candidate.closure and not inspect.signature(step).parameters:
        return "not applicable", "its step takes no closure"
    returned = step(closure)
    if not seen:
        return "does not", "step(closure) never called the closure"
    if returned is None:
        return "does not", "step(closure) returned None"
    if float(returned) not in seen:
        return "does not", f"the closure returned {seen[0]:.6g}, step returned {float(returned):.6g}"
    calls = "once" if len(seen) == 1 else f"{len(seen)} times"
    return "holds", f"called {calls} in a step, its loss is returned" + (
        "; it is required" if candidate.closure else ""
    )
