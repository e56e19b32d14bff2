"""Checks that compare the paths of weights of two descents, which must agree."""

import inspect
from dataclasses import replace
from typing import Any

import torch

from . import Outcome
from .descent import (
    BATCHES,
    BOUND,
    STEPS,
    SWITCH_STEP,
    Candidate,
    Descent,
    distance,
    in_words,
    largest_distance,
    problem,
    quadratic,
    summary_of,
    zero_quadratic,
)  # fmt: skip
from .formulas import FORMULAS, Options

SUMS = 1e-4  # where sums over tensors are taken in another order, perhaps in float32, and act on all that follows
MANY = 40  # tensors
COMPARED = (0, 1, 2, 3, 5, 10, 20, MANY - 1)  # positions among them


def agrees_with_a_reference(candidate: Candidate) -> Outcome:
    """The given reference; else, of torch's classes and ours, the formula; else torch's own class of that name."""
    descent = Descent(candidate, problem(5)).go()
    optimizer, group = descent.optimizer, dict(descent.optimizer.param_groups[0])
    group.pop("params")
    name = type(optimizer).__name__
    if candidate.reference is not None:
        other = Descent(replace(candidate, new=candidate.reference), problem(5)).go()
        d, what = largest_distance(descent, other), f"the given {type(other.optimizer).__name__}"
    elif name in FORMULAS and type(optimizer).__module__.split(".")[0] in ("torch", "tmbench"):
        _, what, unknown = FORMULAS[name]
        if unsupported := [key for key in unknown if group.get(key)]:
            return "not applicable", f"no formula here for {', '.join(unsupported)}"
        d = _distance_from_formula(descent, name, group)
    elif name in FORMULAS and hasattr(torch.optim, name):
        cls = getattr(torch.optim, name)
        shared = {key: group[key] for key in inspect.signature(cls).parameters if key in group}
        other = Descent(replace(candidate, new=lambda params: cls(params, **shared)), problem(5)).go()
        d, what = largest_distance(descent, other), f"torch.optim.{name}"
    else:
        return "not applicable", "none is known; give one with reference="
    return "holds" if d <= BOUND else "does not", f"{what}, {STEPS} steps: {in_words(d)}"


def _distance_from_formula(descent: Descent, name: str, group: Options) -> float:
    formula, largest = FORMULAS[name][0], 0.0
    for i, q in enumerate(descent.quadratics):
        w, rows = q.start.clone(), [q.start]
        state: Options = {}
        for step in range(STEPS):
            grad = BATCHES[step % len(BATCHES)] * q.curvature * (w - q.target)
            w = formula(w, -grad if group.get("maximize") else grad, step, group, state)
            rows.append(w)
        largest = max(largest, distance(descent.path(i), torch.stack(rows)))
    return largest


def agrees_with_its_other_paths(candidate: Candidate) -> Outcome:
    """The for-loop against foreach and fused, where the constructor takes them."""
    defaults = Descent(candidate, problem(1)).optimizer.defaults
    has = [key for key in ("foreach", "fused") if key in defaults]
    if not has:
        return "not applicable", "has one path: its constructor takes neither foreach nor fused"
    off: dict[str, Any] = dict.fromkeys(has, False)
    loop = Descent(candidate, problem(5), **off).go()
    said, worst = [], 0.0
    for key in has:
        try:
            d = largest_distance(loop, Descent(candidate, problem(5), **{**off, key: True}).go())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said.append(f"{key} refuses {candidate.device} ({summary_of(error)})")
            continue
        said.append(f"{key} {in_words(d)}")
        worst = max(worst, d)
    return "holds" if worst <= BOUND else "does not", f"from the for-loop: {', '.join(said)} (bound {BOUND:.0e})"


def repeats(candidate: Candidate) -> Outcome:
    once, again = (Descent(candidate, problem(5)).go() for _ in range(2))
    d = largest_distance(once, again)
    return ("holds", f"{STEPS} steps, bitwise") if d == 0 else ("does not", f"two runs from one seed are {d:.2g} apart")


def survives_saving(candidate: Candidate) -> Outcome:
    """A new optimizer of new tensors resumes bitwise from a state_dict that went through torch.save and torch.load."""
    whole = Descent(candidate, problem(5)).go()
    points, unsafe = (1, SWITCH_STEP - 1, SWITCH_STEP, 12), False
    for at in points:
        descent, safe = Descent(candidate, problem(5)).go(at).reloaded()
        unsafe |= not safe
        d = largest_distance(whole, descent.go(STEPS - at))
        if d:
            return "does not", f"saved after step {at} and loaded, it ends {d:.2g} apart from the run that went through"
    note = "; torch.load needs weights_only=False" if unsafe else ""
    return "holds", f"saved after step {', '.join(map(str, points))}: bitwise{note}"


def ignores_the_order(candidate: Candidate) -> Outcome:
    """The same tensors backwards and shuffled; sums over them may round differently."""
    count = 12
    plain = Descent(candidate, problem(count)).go()
    worst = 0.0
    for order in ([*range(count)][::-1], [i * 5 % count for i in range(count)]):
        other = Descent(candidate, [quadratic(i) for i in order]).go()
        worst = max(worst, *(distance(plain.path(i), other.path(order.index(i))) for i in range(count)))
    if worst <= SUMS:
        why = "" if worst <= BOUND else f": rounding of sums over tensors (bound {SUMS:.0e})"
        return "holds", f"{count} tensors backwards and shuffled: {in_words(worst)}{why}"
    return "does not", f"{count} tensors in another order end {in_words(worst)}"


def ignores_the_number(candidate: Candidate) -> Outcome:
    """Each of many tensors goes where it goes alone.

    A method may couple its tensors on purpose: by a global norm, step size or inner product. Such a coupling depends on
    the tensors' values, so tensors that are zero and stay zero take no part in it. If nothing else is seen, the check
    is not applicable. If zeros change where another tensor goes, it depends on a count or a position: the check fails.
    """
    many = Descent(candidate, problem(MANY)).go()
    alone = {i: Descent(candidate, [quadratic(i)]).go().path(0) for i in COMPARED}
    among = {i: distance(many.path(i), alone[i]) for i in COMPARED}
    if max(among.values()) <= BOUND:
        return "holds", f"each of {MANY} tensors as alone: {in_words(max(among.values()))}"
    zeros = {}
    for i in COMPARED:
        crowd = [quadratic(i) if j == i else zero_quadratic(j) for j in range(MANY)]
        zeros[i] = distance(Descent(candidate, crowd).go().path(i), alone[i])
    if max(zeros.values()) <= BOUND:
        return "not applicable", (
            f"couples tensors by their values, as a global norm or step size does: {max(among.values()):.2g} apart "
            f"from alone, but {in_words(max(zeros.values()))} where the others are zero"
        )
    first = next(i for i in COMPARED if zeros[i] > BOUND)
    last = MANY - 1
    return "does not", (
        f"tensor {first + 1} of {MANY} ends {zeros[first]:.2g} apart from where it goes alone, tensor {last + 1} "
        f"{zeros[last]:.2g}, though the others are zero: their number or position counts"
    )


def switches_modes(candidate: Candidate) -> Outcome:
    """Evaluating in between, as at the end of an epoch, leaves no trace but rounding."""
    if not Descent(candidate, problem(1)).mode("eval"):
        return "not applicable", "has no train() and eval()"
    descent = Descent(candidate, problem(5))
    for _ in range(STEPS):
        descent.step()
        descent.loss()
    d = largest_distance(descent, Descent(candidate, problem(5)).go())
    return "holds" if d <= BOUND else "does not", f"eval() and train() after every step: {in_words(d)}"
