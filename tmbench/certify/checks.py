"""The checks: of what a step does to weights, gradients and states, and of paths of weights that must agree."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..optim.elementwise import stacked_difference
from ..optim.rows import LazyRows, moves_linearly
from . import CHECKS, Finding, Outcome
from .descent import BOUND, STEPS, SWITCH_STEP, Candidate, Descent, Quadratic, distance, in_words, problem, summary_of
from .reference import agrees_with_a_reference

SUMS = 1e-4  # where sums over tensors are taken in another order, perhaps in float32, and act on all that follows
ROWS = 1e-12  # of the largest weight, in float64
MANY = 40  # tensors
COMPARED = (0, 1, 2, 3, 5, 10, 20, MANY - 1)  # positions among them


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
    descent, without = Descent(candidate, problem(4)).go(none=(3,)), Descent(candidate, problem(3)).go()
    if descent.moved_since(0, [3]):
        return "does not", "a tensor without gradients moved"
    d = without.distance_to(descent)
    if d > BOUND:
        return "does not", f"a tensor without gradients moved the others: {d:.2g} apart"
    moved = Descent(candidate, problem(4)).go(8).go(8, none=(3,)).moved_since(8, [3])
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

    def moved(steps_before: int, has_decay: bool = True) -> float:
        """How far any weight goes in 10 steps on zero gradients."""
        descent = Descent(candidate, problem(4)).go(steps_before)
        for group in descent.optimizer.param_groups if not has_decay else ():
            for key, value in group.items():
                if key.startswith("weight_decay") and isinstance(value, (int, float)) and not isinstance(value, bool):
                    group[key] = type(value)(0)
        return descent.go(10, factor=0.0).moved_since(steps_before)

    at_once, later = moved(0), moved(8)
    if not math.isfinite(at_once):
        return "does not", "zero gradients from the first step make weights that are not finite"
    if at_once and moved(0, has_decay=False):
        return "does not", f"weights move by {at_once:.2g} in 10 steps on zero gradients, weight decay or not"
    if not math.isfinite(later):
        return "does not", "zero gradients after 8 ordinary steps make weights that are not finite"
    start = f"moves by weight decay alone ({at_once:.2g} in 10 steps)" if at_once else "weights stay"
    then = f"moves on by {later:.2g}, as momentum does" if later else "stay too"
    return "holds", f"{start}; after 8 ordinary steps {then}"


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
    if (late := differs.index(True) - at) < 1:
        return "not applicable", "cannot be judged: it does not repeat"
    moved = [sum(float((w.path(i)[-1] - w.path(i)[at]).norm()) for i in range(5)) for w in (descent, same)]
    when = "at once" if late == 1 else f"from the {late}th step on"
    return "holds", f"lr / 10 mid-run acts {when}: {moved[0] / moved[1]:.2g} of the way from there"


def updates_an_added_group(candidate: Candidate) -> Outcome:
    at, refusal, error = STEPS // 2, "", ""
    try:
        candidate.new([{"params": [w]} for w in Descent(candidate, problem(2)).weights])
    except Exception as refused:
        refusal = f"takes no parameter groups: {summary_of(refused)}"
    descent = Descent(candidate, problem(4)).go(at)
    try:
        descent.add_group(Quadratic.of(5))
        descent.go(STEPS - at)
    except Exception as raised:
        error = f"raises {summary_of(raised)}"
    if error or not descent.moved_since(0, [4]):
        why = error or f"does not move in {STEPS - at} steps"
        return ("not applicable", refusal) if refusal else ("does not", f"a group added after step {at} {why}")
    moved, way = (end - descent.path(4)[0] for end in (descent.path(4)[-1], descent.quadratics[4].target))
    if not float((moved * way).sum()) > 0:
        return "does not", f"a group added after step {at} moves away from its target"
    d = Descent(candidate, problem(4)).go().distance_to(descent)
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
    required = "; it is required" if candidate.closure else ""
    return "holds", f"called {calls} in a step, its loss is returned{required}"


def agrees_with_its_other_paths(candidate: Candidate) -> Outcome:
    """The for-loop against foreach and fused, where the constructor takes them."""
    has = [key for key in ("foreach", "fused") if key in Descent(candidate, problem(1)).optimizer.defaults]
    if not has:
        return "not applicable", "has one path: its constructor takes neither foreach nor fused"
    off: dict[str, Any] = dict.fromkeys(has, False)
    loop = Descent(candidate, problem(5), **off).go()
    said, worst = [], 0.0
    for key in has:
        try:
            d = loop.distance_to(Descent(candidate, problem(5), **{**off, key: True}).go())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said.append(f"{key} refuses {candidate.device} ({summary_of(error)})")
            continue
        said.append(f"{key} {in_words(d)}")
        worst = max(worst, d)
    return "holds" if worst <= BOUND else "does not", f"from the for-loop: {', '.join(said)} (bound {BOUND:.0e})"


def repeats(candidate: Candidate) -> Outcome:
    d = Descent(candidate, problem(5)).go().distance_to(Descent(candidate, problem(5)).go())
    return ("holds", f"{STEPS} steps, bitwise") if d == 0 else ("does not", f"two runs from one seed are {d:.2g} apart")


def survives_saving(candidate: Candidate) -> Outcome:
    """A new optimizer of new tensors resumes bitwise from a state_dict that went through torch.save and torch.load."""
    whole = Descent(candidate, problem(5)).go()
    points, unsafe = (1, SWITCH_STEP - 1, SWITCH_STEP, 12), False
    for at in points:
        descent, safe = Descent(candidate, problem(5)).go(at).reloaded()
        unsafe |= not safe
        d = whole.distance_to(descent.go(STEPS - at))
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
        other = Descent(candidate, [Quadratic.of(i) for i in order]).go()
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
    many, last = Descent(candidate, problem(MANY)).go(), MANY - 1
    alone = {i: Descent(candidate, [Quadratic.of(i)]).go().path(0) for i in COMPARED}
    among = {i: distance(many.path(i), alone[i]) for i in COMPARED}
    if max(among.values()) <= BOUND:
        return "holds", f"each of {MANY} tensors as alone: {in_words(max(among.values()))}"
    zeros = {}
    for i in COMPARED:
        crowd = [Quadratic.of(i) if j == i else Quadratic.zero(j) for j in range(MANY)]
        zeros[i] = distance(Descent(candidate, crowd).go().path(i), alone[i])
    if max(zeros.values()) <= BOUND:
        return "not applicable", (
            f"couples tensors by their values, as a global norm or step size does: {max(among.values()):.2g} apart "
            f"from alone, but {in_words(max(zeros.values()))} where the others are zero"
        )
    first = next(i for i in COMPARED if zeros[i] > BOUND)
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
    d = descent.distance_to(Descent(candidate, problem(5)).go())
    return "holds" if d <= BOUND else "does not", f"eval() and train() after every step: {in_words(d)}"


def steps_rows_as_the_whole_table(candidate: Candidate) -> Outcome:
    """An embedding stepped by the rows that are read (LazyRows) against the whole of it, in float64."""
    rows, steps, tables = 12, 8 * SWITCH_STEP, []
    for is_lazy in (True, False):
        table = nn.Embedding(rows, 3, sparse=is_lazy, dtype=torch.float64, device=candidate.device)
        with torch.no_grad():
            table.weight.copy_(torch.arange(3 * rows).sin().view(rows, 3))
        optimizer = candidate.new([table.weight])
        if not moves_linearly(optimizer):
            return "not applicable", "steps the whole table: it does not say that it moves linearly without a gradient"
        if is_lazy:
            LazyRows(optimizer, table)
        for step in range(steps):
            optimizer.zero_grad()
            # Row 0 in every step, others now and then, the last but two once early and once late, the last never.
            read = [0, step % 7, 1 + step**2 % 9, *([rows - 2] if step in (1, steps - 3) else [])]
            (table(torch.tensor(read, device=candidate.device)) - step % 3).square().sum().backward()
            optimizer.step()
        tables.append(table.state_dict()["weight"])
    error = float((tables[0] - tables[1]).abs().max() / tables[1].abs().max())
    return "holds" if error <= ROWS else "does not", f"{error:.1e} apart after {steps} steps (bound {ROWS:.0e})"


def steps_elements_alone(candidate: Candidate) -> Outcome:
    """Two networks stepped as one stack of tensors against each by itself, in float64: what replicas=K needs."""
    if candidate.closure or candidate.graph:
        return "not applicable", "takes its gradients itself; one run at a time"
    difference = stacked_difference(candidate.new)
    if difference <= BOUND:
        return "holds", f"two networks as one stack of tensors: {in_words(difference)}; replicas=K can stack its runs"
    return "not applicable", f"looks at more than single elements: {difference:.2g} apart in a stack; one run at a time"


FUNCTIONS: dict[str, Callable[[Candidate], Outcome]] = {
    "quadratic": lowers_a_quadratic, "reference": agrees_with_a_reference, "paths": agrees_with_its_other_paths,
    "repeats": repeats, "saving": survives_saving, "order": ignores_the_order, "number": ignores_the_number,
    "gradients": leaves_gradients, "none": skips_none_gradients, "zero": rests_on_zero_gradients,
    "float16": partial(works_in, torch.float16), "bfloat16": partial(works_in, torch.bfloat16),
    "lr": takes_a_changed_lr, "group": updates_an_added_group, "closure": returns_the_closures_loss,
    "modes": switches_modes, "rows": steps_rows_as_the_whole_table,
    "elementwise": steps_elements_alone,
}  # fmt: skip


def stepping(candidate: Candidate) -> tuple[Candidate | None, Finding]:
    """The candidate, with how its step must be called; None if it takes no step; and the finding that says so."""
    name, device = "takes a step", candidate.device
    errors: list[Exception] = []
    for closure, graph in ((False, False), (True, False), (False, True), (True, True)):
        candidate = replace(candidate, closure=closure, graph=graph)
        try:
            Descent(candidate, problem(5)).go(2)
        except Exception as error:
            errors.append(error)
            continue
        how = ["step(closure)" if closure else "step()"] + ["gradients that can be differentiated"] * graph
        return candidate, Finding(name, "holds", f"by {' with '.join(how)}", device)
    because = f"step() raises {summary_of(errors[0])}; with a closure {summary_of(errors[1])}"
    return None, Finding(name, "does not", because, device)


def findings(candidate: Candidate, checks: Sequence[str]) -> list[Finding]:
    """One finding for each check, and first of all whether the optimizer takes a step."""
    able, first = stepping(candidate)
    if able is not None:
        return [first, *(_checked(able, key) for key in checks)]
    skipped = (Finding(CHECKS[key], "not applicable", "it takes no step", candidate.device) for key in checks)
    return [first, *skipped]


def _checked(candidate: Candidate, key: str) -> Finding:
    try:
        return Finding(CHECKS[key], *FUNCTIONS[key](candidate), candidate.device)
    except Exception as error:
        return Finding(CHECKS[key], "does not", f"raised {summary_of(error)}", candidate.device)
