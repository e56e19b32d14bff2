"""What can a person rely on in an optimizer? A battery of short checks that certifies any `torch.optim.Optimizer`.

From a test of one's own, with torch alone:

    from tmbench.certify import certify
    findings = certify(lambda params: MyOptimizer(params, lr=0.1))
    assert not [finding for finding in findings if finding.verdict == "does not"], findings

or `python -m tmbench.certify optimizer=adam`, for everything in conf/optimizer and for a person's own class.

The problem is a set of independent quadratics, one for each parameter tensor, in float64 unless a check is about
another type. Their gradients grow and shrink from step to step, as those of batches do: some defects show only so.
Two paths of weights are `d` apart if they differ by at most d times the distance moved; up to BOUND they agree.
"""

import copy
import difflib
import inspect
import io
import math
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

NewOptimizer = Callable[..., Optimizer]  # of a list of parameters, and of foreach= and fused= where it has them
Verdict = Literal["holds", "does not", "not applicable"]
Outcome = tuple[Verdict, str]

BOUND = 1e-6
SUMS = 1e-4  # where sums over tensors are taken in another order, perhaps in float32, and act on all that follows
STEPS = 20
SWITCH_STEP = 6  # where a YAML leaves switch_step to the run: all phases of a switching method lie within STEPS
MANY = 40
COMPARED = (0, 1, 2, 3, 5, 10, 20, MANY - 1)  # positions among MANY tensors
SHAPES = ((5,), (3, 4), (4,), (2, 6), (2, 3, 2, 2))
BATCHES = (0.1, 1.0, 5.0, 0.3, 2.0)  # the gradients' factor in each step, repeated


@dataclass(frozen=True)
class Finding:
    check: str
    verdict: Verdict
    detail: str
    device: str = "cpu"


@dataclass(frozen=True)
class Bowl:
    """One tensor's own quadratic: curvature / 2 (w - target)^2, summed over its elements."""

    start: Tensor
    target: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class Subject:
    """The optimizer under examination, and how its step wants to be called."""

    new: NewOptimizer
    device: str = "cpu"
    closure: bool = False  # step() insists on one
    graph: bool = False  # it differentiates the gradients again
    reference: NewOptimizer | None = None

    def build(self, weights: list[Any], foreach: bool | None = None, fused: bool | None = None) -> Optimizer:
        """An optimizer of these weights; one that is taken by foreach= or fused= is told in its groups otherwise."""
        path = {key: value for key, value in (("foreach", foreach), ("fused", fused)) if value is not None}
        if not path:
            return self.new(weights)
        try:
            return self.new(weights, **path)
        except TypeError:  # a function of the parameters alone
            optimizer = self.new(weights)
            for group in optimizer.param_groups:
                group.update(path)
            return optimizer


class Walk:
    """An optimizer on its way down: `step` it; `path(i)` is where its i-th tensor has been, one row a step."""

    def __init__(
        self, subject: Subject, bowls: Sequence[Bowl], dtype: torch.dtype = torch.float64, **path: bool | None
    ):
        torch.manual_seed(0)
        self.subject = subject
        place: dict[str, Any] = {"device": subject.device, "dtype": dtype}
        self.bowls = [Bowl(*(getattr(b, k).to(**place) for k in ("start", "target", "curvature"))) for b in bowls]
        self.weights = [bowl.start.clone().requires_grad_() for bowl in self.bowls]
        self.optimizer = subject.build(list(self.weights), **path)
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
        loss = torch.zeros((), dtype=torch.float64, device=self.subject.device, requires_grad=torch.is_grad_enabled())
        used = [i for i in range(len(self.weights)) if i not in none]
        for w, bowl in ((self.weights[i], self.bowls[i]) for i in used):
            loss = loss + 0.5 * factor * (bowl.curvature * (w - bowl.target) ** 2).sum()
        grads = (
            torch.autograd.grad(loss, [self.weights[i] for i in used], create_graph=self.subject.graph) if used else ()
        )
        for w in self.weights:
            w.grad = None
        for i, grad in zip(used, grads, strict=True):
            self.weights[i].grad = grad
        self.grads = [None if w.grad is None else w.grad.detach().clone() for w in self.weights]
        return loss

    def step(self, factor: float | None = None, none: Iterable[int] = ()) -> Any:
        """One step on the next batch; returns what the optimizer's own step returns."""
        factor = BATCHES[self.taken % len(BATCHES)] if factor is None else factor
        step: Any = self.optimizer.step
        if self.subject.closure:
            returned = step(partial(self.evaluate, factor, none))
        else:
            self.evaluate(factor, none)
            returned = step()
        self.taken += 1
        for row, w in zip(self.rows, self.weights, strict=True):
            row.append(w.detach().clone())
        return returned

    def go(self, steps: int = STEPS, factor: float | None = None, none: Iterable[int] = ()) -> "Walk":
        for _ in range(steps):
            self.step(factor, none)
        return self

    def path(self, i: int) -> Tensor:
        return torch.stack(self.rows[i])

    def loss(self) -> float:
        """Where it stands, in the weights that it wants evaluated; it may be stepped on afterwards."""
        self.mode("eval")
        with torch.no_grad():
            wide = [
                (b.curvature.double(), w.double() - b.target.double())
                for w, b in zip(self.weights, self.bowls, strict=True)
            ]
            total = sum(float(0.5 * (c * off**2).sum()) for c, off in wide)
        self.mode("train")
        return total

    def reloaded(self) -> tuple["Walk", bool]:
        """The same walk as a new process would continue it, and whether torch.load took the state as safe."""
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
        other.optimizer = self.subject.build(list(other.weights))
        torch.set_rng_state(random)
        other.optimizer.load_state_dict(state)
        other.mode("train")
        return other, safe


def bowl(i: int) -> Bowl:
    """The i-th quadratic, the same in every set: curvatures 0.1 to 1, about 1 from its start to its target."""
    random = torch.Generator().manual_seed(i)
    shape = SHAPES[i % len(SHAPES)]
    start = torch.randn(shape, generator=random, dtype=torch.float64)
    way = torch.randn(shape, generator=random, dtype=torch.float64)
    curvature = 0.1 + 0.9 * torch.rand(shape, generator=random, dtype=torch.float64)
    return Bowl(start, start + way.sign() * (0.5 + way.abs()), curvature)


def bowls(count: int) -> list[Bowl]:
    return [bowl(i) for i in range(count)]


def still(i: int) -> Bowl:
    """A tensor of the i-th shape that is zero, with gradients that are zero: it adds nothing to any sum or norm."""
    zeros = torch.zeros(SHAPES[i % len(SHAPES)], dtype=torch.float64)
    return Bowl(zeros, zeros, zeros)


def apart(one: Tensor, other: Tensor) -> float:
    """How far two paths differ, as a part of the distance moved; infinite where one is not finite."""
    if torch.equal(one, other):
        return 0.0
    moved = max(float((path - path[0]).abs().max()) for path in (one, other))
    share = float((one - other).abs().max()) / moved if moved else math.inf
    return share if math.isfinite(share) else math.inf


def furthest(one: Walk, other: Walk) -> float:
    return max(apart(one.path(i), other.path(i)) for i in range(len(one.weights)))


def amount(d: float) -> str:
    return "bitwise" if d == 0 else f"within {d:.0e}" if d <= BOUND else f"{d:.2g} apart"


# The checks: each is a pure function of the subject.


def lowers_a_quadratic(subject: Subject) -> Outcome:
    """In 300 steps with gradients of an even size; by how much is for the person to judge."""
    walk = Walk(subject, bowls(5))
    before = walk.loss()
    after = walk.go(300, factor=1.0).loss()
    if after < before:
        return "holds", f"to {after / before:.2g} of its start in 300 steps"
    return "does not", f"the loss went from {before:.3g} to {after:.3g} in 300 steps; is lr too large?"


def repeats(subject: Subject) -> Outcome:
    once, again = (Walk(subject, bowls(5)).go() for _ in range(2))
    d = furthest(once, again)
    return ("holds", f"{STEPS} steps, bitwise") if d == 0 else ("does not", f"two runs from one seed are {d:.2g} apart")


def agrees_with_its_other_paths(subject: Subject) -> Outcome:
    """The for-loop against foreach and fused, as far as there are any."""
    defaults = Walk(subject, bowls(1)).optimizer.defaults
    has = [key for key in ("foreach", "fused") if key in defaults]
    if not has:
        return "not applicable", "has one path: its constructor takes neither foreach nor fused"
    off: dict[str, Any] = dict.fromkeys(has, False)
    loop = Walk(subject, bowls(5), **off).go()
    said, worst = [], 0.0
    for key in has:
        try:
            d = furthest(loop, Walk(subject, bowls(5), **{**off, key: True}).go())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            said.append(f"{key} refuses {subject.device} ({first_line(error)})")
            continue
        said.append(f"{key} {amount(d)}")
        worst = max(worst, d)
    return "holds" if worst <= BOUND else "does not", f"from the for-loop: {', '.join(said)} (bound {BOUND:.0e})"


def survives_saving(subject: Subject) -> Outcome:
    """A new optimizer of new tensors, with the state_dict through torch.save and torch.load, goes on bitwise."""
    whole = Walk(subject, bowls(5)).go()
    points, unsafe = (1, SWITCH_STEP - 1, SWITCH_STEP, 12), False
    for at in points:
        walk, safe = Walk(subject, bowls(5)).go(at).reloaded()
        unsafe |= not safe
        d = furthest(whole, walk.go(STEPS - at))
        if d:
            return "does not", f"saved after step {at} and loaded, it ends {d:.2g} apart from the run that went through"
    note = "; torch.load needs weights_only=False" if unsafe else ""
    return "holds", f"saved after step {', '.join(map(str, points))}: bitwise{note}"


def ignores_the_order(subject: Subject) -> Outcome:
    """The same tensors backwards and shuffled; sums over them may round differently."""
    count = 12
    plain = Walk(subject, bowls(count)).go()
    worst = 0.0
    for order in ([*range(count)][::-1], [i * 5 % count for i in range(count)]):
        other = Walk(subject, [bowl(i) for i in order]).go()
        worst = max(worst, *(apart(plain.path(i), other.path(order.index(i))) for i in range(count)))
    if worst <= SUMS:
        why = "" if worst <= BOUND else f": rounding of sums over tensors (bound {SUMS:.0e})"
        return "holds", f"{count} tensors backwards and shuffled: {amount(worst)}{why}"
    return "does not", f"{count} tensors in another order end {amount(worst)}"


def ignores_the_number(subject: Subject) -> Outcome:
    """Each of many tensors goes where it goes alone.

    A method may couple its tensors on purpose: by a global norm, step size or inner product. Such a coupling goes by
    the tensors' values, so that tensors which are and stay zero take no part in it. If that is all that is seen, the
    check is not applicable. If the mere presence of zeros changes where another tensor goes, then a count or a position
    does so, and the check fails.
    """
    many = Walk(subject, bowls(MANY)).go()
    alone = {i: Walk(subject, [bowl(i)]).go().path(0) for i in COMPARED}
    among = {i: apart(many.path(i), alone[i]) for i in COMPARED}
    if max(among.values()) <= BOUND:
        return "holds", f"each of {MANY} tensors as alone: {amount(max(among.values()))}"
    zeros = {}
    for i in COMPARED:
        crowd = [bowl(i) if j == i else still(j) for j in range(MANY)]
        zeros[i] = apart(Walk(subject, crowd).go().path(i), alone[i])
    if max(zeros.values()) <= BOUND:
        return "not applicable", (
            f"couples tensors by their values, as a global norm or step size does: {max(among.values()):.2g} apart "
            f"from alone, but {amount(max(zeros.values()))} where the others are zero"
        )
    first = next(i for i in COMPARED if zeros[i] > BOUND)
    last = MANY - 1
    return "does not", (
        f"tensor {first + 1} of {MANY} ends {zeros[first]:.2g} apart from where it goes alone, tensor {last + 1} "
        f"{zeros[last]:.2g}, though the others are zero: their number or position counts"
    )


def leaves_gradients(subject: Subject) -> Outcome:
    walk = Walk(subject, bowls(5))
    for step in range(STEPS):
        walk.step()
        for i, (w, grad) in enumerate(zip(walk.weights, walk.grads, strict=True)):
            if w.grad is None or grad is None:
                return "does not", f"step {step + 1} set the gradient of tensor {i + 1} to None"
            if not torch.equal(w.grad, grad):
                changed = float((w.grad - grad).abs().max() / grad.abs().max())
                return "does not", f"step {step + 1} changed p.grad of tensor {i + 1} by {changed:.2g} of its size"
    return "holds", f"{STEPS} steps, bitwise"


def skips_none_gradients(subject: Subject) -> Outcome:
    """A tensor that never has one, one that has none any more, and a step without any."""
    walk, without = Walk(subject, bowls(4)), Walk(subject, bowls(3))
    walk.go(none=(3,))
    without.go()
    if not torch.equal(walk.path(3)[-1], walk.path(3)[0]):
        return "does not", "a tensor without gradients moved"
    d = max(apart(walk.path(i), without.path(i)) for i in range(3))
    if d > BOUND:
        return "does not", f"a tensor without gradients moved the others: {d:.2g} apart"
    late = Walk(subject, bowls(4)).go(8)
    late.go(8, none=(3,))
    moved = float((late.path(3)[8:] - late.path(3)[8]).abs().max())
    if moved and not subject.closure:
        return "does not", f"a tensor whose gradient became None moved on by {moved:.2g}"
    if not subject.closure:
        try:
            Walk(subject, bowls(2)).step(none=(0, 1))
        except Exception as error:
            return "does not", f"a step in which no tensor has a gradient raises {first_line(error)}"
    after = f"moves on by {moved:.2g} along past directions" if moved else "stays"
    return "holds", f"its weight stays, the others go on {amount(d)}; one that loses its gradient mid-run {after}"


def rests_on_zero_gradients(subject: Subject) -> Outcome:
    def resting(decay: bool) -> Walk:
        walk = Walk(subject, bowls(4))
        if not decay:
            for group in walk.optimizer.param_groups:
                group.update(
                    {
                        key: type(group[key])(0)
                        for key in group
                        if key.startswith("weight_decay") and is_number(group[key])
                    }
                )
        return walk.go(10, factor=0.0)

    walk = resting(decay=True)
    moved = max(float((walk.path(i) - walk.path(i)[0]).abs().max()) for i in range(4))
    if not math.isfinite(moved):
        return "does not", "zero gradients from the first step make weights that are not finite"
    if moved:
        without = resting(decay=False)
        if any(not torch.equal(without.path(i)[-1], without.path(i)[0]) for i in range(4)):
            return "does not", f"weights move by {moved:.2g} in 10 steps on zero gradients, weight decay or not"
    said = f"moves by weight decay alone ({moved:.2g} in 10 steps)" if moved else "weights stay"
    late = Walk(subject, bowls(4)).go(8).go(10, factor=0.0)
    on = max(float((late.path(i)[8:] - late.path(i)[8]).abs().max()) for i in range(4))
    if not math.isfinite(on):
        return "does not", "zero gradients after 8 ordinary steps make weights that are not finite"
    return "holds", f"{said}; after 8 ordinary steps " + (
        f"moves on by {on:.2g}, as momentum does" if on else "stay too"
    )


def works_in(dtype: torch.dtype, subject: Subject) -> Outcome:
    """Parameters of this type go down and stay finite, or are refused."""
    try:
        walk = Walk(subject, bowls(5), dtype)
        before = walk.loss()
        after = walk.go(30, factor=1.0).loss()
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return "not applicable", f"refuses such parameters: {first_line(error)}"
    if not all(bool(w.isfinite().all()) for w in walk.weights):
        return "does not", "weights are not finite after 30 steps"
    if all(torch.equal(w, b.start) for w, b in zip(walk.weights, walk.bowls, strict=True)):
        return "not applicable", "its steps are too small for the type: no weight moved in 30 steps"
    if not after < before:
        return "does not", f"the loss went from {before:.3g} to {after:.3g} in 30 steps"
    return "holds", f"finite, the loss goes to {after / before:.2g} of its start in 30 steps"


def takes_a_changed_lr(subject: Subject) -> Outcome:
    """A tenth of the rate after half the steps, set in the groups, as schedules do."""
    at = STEPS // 2
    same = Walk(subject, bowls(5)).go()
    walk = Walk(subject, bowls(5)).go(at)
    groups = [group for group in walk.optimizer.param_groups if "lr" in group]
    if not groups:
        return "not applicable", "its groups have no lr"
    for group in groups:
        group["lr"] = group["lr"] * 0.1
    walk.go(STEPS - at)
    differs = [any(not torch.equal(walk.path(i)[k], same.path(i)[k]) for i in range(5)) for k in range(STEPS + 1)]
    if True not in differs:
        return "does not", f"lr / 10 after step {at} changes nothing in the next {STEPS - at} steps"
    late = differs.index(True) - at
    if late < 1:
        return "not applicable", "cannot be told: it does not repeat"
    moved = [sum(float((w.path(i)[-1] - w.path(i)[at]).norm()) for i in range(5)) for w in (walk, same)]
    when = "at once" if late == 1 else f"from the {late}th step on"
    return "holds", f"lr / 10 mid-run acts {when}: {moved[0] / moved[1]:.2g} of the way from there"


def updates_an_added_group(subject: Subject) -> Outcome:
    at = STEPS // 2
    walk = Walk(subject, bowls(4)).go(at)
    extra = bowl(5)
    try:
        subject.new([{"params": [w]} for w in Walk(subject, bowls(2)).weights])
        alone = ""
    except Exception as error:
        alone = first_line(error)
    new = extra.start.to(subject.device).clone().requires_grad_()
    try:
        walk.optimizer.add_param_group({"params": [new]})
        walk.weights.append(new)
        walk.bowls.append(Bowl(*(t.to(subject.device) for t in (extra.start, extra.target, extra.curvature))))
        walk.rows.append([new.detach().clone()])
        walk.go(STEPS - at)
    except Exception as error:
        if alone:
            return "not applicable", f"takes no parameter groups: {alone}"
        return "does not", f"a group added after step {at} raises {first_line(error)}"
    moved = walk.path(4)[-1] - walk.path(4)[0]
    if not moved.any():
        if alone:
            return "not applicable", f"takes no parameter groups: {alone}"
        return "does not", f"a group added after step {at} does not move in {STEPS - at} steps"
    if not float((moved * (walk.bowls[4].target - walk.path(4)[0])).sum()) > 0:
        return "does not", f"a group added after step {at} moves away from its target"
    same = Walk(subject, bowls(4)).go()
    d = max(apart(walk.path(i), same.path(i)) for i in range(4))
    return "holds", f"added after step {at}, it goes down; the others go on {amount(d)}"


def returns_the_closures_loss(subject: Subject) -> Outcome:
    walk = Walk(subject, bowls(5))
    seen: list[float] = []

    def closure() -> Tensor:
        if not torch.is_grad_enabled():
            raise RuntimeError("step() calls its closure with gradients switched off (torch.enable_grad is missing)")
        loss = walk.evaluate()
        seen.append(float(loss))
        return loss

    step: Any = walk.optimizer.step
    if not subject.closure and not inspect.signature(step).parameters:
        return "not applicable", "its step takes no closure"
    returned = step(closure)
    if not seen:
        return "does not", "step(closure) never called the closure"
    if returned is None:
        return "does not", "step(closure) returned None"
    if float(returned) not in seen:
        return "does not", f"the closure returned {seen[0]:.6g}, step returned {float(returned):.6g}"
    calls = "once" if len(seen) == 1 else f"{len(seen)} times"
    return "holds", f"called {calls} in a step, its loss is returned" + ("; it is required" if subject.closure else "")


def switches_modes(subject: Subject) -> Outcome:
    """Evaluating in between, as at the end of an epoch, leaves no trace but rounding."""
    if not Walk(subject, bowls(1)).mode("eval"):
        return "not applicable", "has no train() and eval()"
    walk = Walk(subject, bowls(5))
    for _ in range(STEPS):
        walk.step()
        walk.loss()
    d = furthest(walk, Walk(subject, bowls(5)).go())
    return "holds" if d <= BOUND else "does not", f"eval() and train() after every step: {amount(d)}"


def agrees_with_a_reference(subject: Subject) -> Outcome:
    """torch's own class of that name, or, for torch's classes and TMSGD, the formula written out below."""
    walk = Walk(subject, bowls(5))
    optimizer, group = walk.optimizer, dict(walk.optimizer.param_groups[0])
    group.pop("params")
    name = type(optimizer).__name__
    if subject.reference is not None:
        other = Walk(Subject(subject.reference, subject.device, subject.closure, subject.graph), bowls(5)).go()
        d, what = furthest(walk.go(), other), f"the given {type(other.optimizer).__name__}"
    elif name in FORMULAS and type(optimizer).__module__.split(".")[0] in ("torch", "tmbench"):
        formula, what, refused = FORMULAS[name]
        if odd := [key for key in refused if group.get(key)]:
            return "not applicable", f"no formula here for {', '.join(odd)}"
        walk.go()
        d = 0.0
        for i, b in enumerate(walk.bowls):
            w, rows = b.start.clone(), [b.start]
            state: Options = {}
            for step in range(STEPS):
                grad = BATCHES[step % len(BATCHES)] * b.curvature * (w - b.target)
                w = formula(w, -grad if group.get("maximize") else grad, step, group, state)
                rows.append(w)
            d = max(d, apart(walk.path(i), torch.stack(rows)))
    elif name in FORMULAS and hasattr(torch.optim, name):
        cls = getattr(torch.optim, name)
        shared = {key: group[key] for key in inspect.signature(cls).parameters if key in group}
        d = furthest(walk.go(), Walk(replace(subject, new=lambda params: cls(params, **shared)), bowls(5)).go())
        what = f"torch.optim.{name}"
    else:
        return "not applicable", "none is known; give one with reference="
    return "holds" if d <= BOUND else "does not", f"{what}, {STEPS} steps: {amount(d)}"


# Formulas: (w, gradient, step from 0, options, state) -> the next w; slow, and close to the papers.

Options = dict[str, Any]


def _sgd_direction(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    g = g + o["weight_decay"] * w
    if o["momentum"]:
        s["v"] = o["momentum"] * s["v"] + (1 - o.get("dampening", 0)) * g if "v" in s else g
        return g + o["momentum"] * s["v"] if o.get("nesterov") else s["v"]
    return g


def _sgd(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    return w - o["lr"] * _sgd_direction(w, g, step, o, s)


def _tmsgd(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Eq. 8 in the weights: w+ = 3c w + (1 - 4c) w1 + c w2 - (2 - 2c) lr v, with c = 1/2; SGD before the switch."""
    v = _sgd_direction(w, g, step, o, s)
    w1, w2, c = s.get("w1", w), s.get("w2", s.get("w1", w)), o.get("c", 0.5)
    switch = o["switch_step"]
    if switch is not None and step == switch and o["history"] == "zero":
        w1 = w2 = w
    s["w1"], s["w2"] = w, w1
    if switch is None or step < switch:
        return w - o["lr"] * v
    return 3 * c * w + (1 - 4 * c) * w1 + c * w2 - (2 - 2 * c) * o["lr"] * v


def _adam(w: Tensor, g: Tensor, step: int, o: Options, s: Options, decoupled: bool = False) -> Tensor:
    if decoupled:
        w = w - o["lr"] * o["weight_decay"] * w
    else:
        g = g + o["weight_decay"] * w
    one, two = o["betas"]
    s["m"] = one * s.get("m", torch.zeros_like(w)) + (1 - one) * g
    s["v"] = two * s.get("v", torch.zeros_like(w)) + (1 - two) * g**2
    m, v = s["m"] / (1 - one ** (step + 1)), s["v"] / (1 - two ** (step + 1))
    return w - o["lr"] * m / (v.sqrt() + o["eps"])


def _rmsprop(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    g = g + o["weight_decay"] * w
    s["v"] = o["alpha"] * s.get("v", torch.zeros_like(w)) + (1 - o["alpha"]) * g**2
    s["b"] = o["momentum"] * s.get("b", torch.zeros_like(w)) + g / (s["v"].sqrt() + o["eps"])
    return w - o["lr"] * s["b"]


def _adagrad(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    g = g + o["weight_decay"] * w
    s["v"] = s.get("v", torch.full_like(w, o["initial_accumulator_value"])) + g**2
    return w - o["lr"] / (1 + step * o["lr_decay"]) * g / (s["v"].sqrt() + o["eps"])


Formula = Callable[[Tensor, Tensor, int, Options, Options], Tensor]
FORMULAS: dict[str, tuple[Formula, str, tuple[str, ...]]] = {  # and the options it does not know
    "SGD": (_sgd, "SGD written out", ()),
    "Adam": (_adam, "Adam written out", ("amsgrad", "decoupled_weight_decay")),
    "AdamW": (partial(_adam, decoupled=True), "AdamW written out", ("amsgrad",)),
    "RMSprop": (_rmsprop, "RMSprop written out", ("centered",)),
    "Adagrad": (_adagrad, "Adagrad written out", ()),
    "TMSGD": (_tmsgd, "eq. 8 in its weights form", ("decoupled",)),
}

CHECKS: list[tuple[str, Callable[[Subject], Outcome]]] = [
    ("lowers a quadratic", lowers_a_quadratic),
    ("agrees with a reference", agrees_with_a_reference),
    ("for-loop, foreach and fused agree", agrees_with_its_other_paths),
    ("repeats bitwise", repeats),
    ("state_dict continues bitwise", survives_saving),
    ("order of tensors does not matter", ignores_the_order),
    ("number of tensors does not matter", ignores_the_number),
    ("leaves gradients as they were", leaves_gradients),
    ("None gradients are skipped", skips_none_gradients),
    ("zero gradients are harmless", rests_on_zero_gradients),
    ("float16 parameters", partial(works_in, torch.float16)),
    ("bfloat16 parameters", partial(works_in, torch.bfloat16)),
    ("a changed lr takes effect", takes_a_changed_lr),
    ("an added group is updated", updates_an_added_group),
    ("a closure's loss is returned", returns_the_closures_loss),
    ("train() and eval() leave no trace", switches_modes),
]


def certify(
    new_optimizer: NewOptimizer,
    reference: NewOptimizer | None = None,
    devices: Sequence[str] | None = None,
) -> list[Finding]:
    """What the battery finds: one finding for each check and device.

    Args:
        new_optimizer: makes the optimizer from a list of parameters. If it is a `functools.partial` of the class, its
            foreach= and fused= are given to the constructor, else they are set in the parameter groups.
        reference: makes an optimizer that it must agree with; without it, a known formula where there is one.
        devices: the CPU, and CUDA if there is a GPU.

    A check that raises has failed, and stops no other. Threads, warnings and random state are left as they were.
    """
    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    findings: list[Finding] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more only wait for each other
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            for device in devices:
                findings += _certify_on(Subject(new_optimizer, device, reference=reference))
    finally:
        torch.set_num_threads(threads)
    return findings


def _certify_on(subject: Subject) -> list[Finding]:
    name = "takes a step"
    errors: list[Exception] = []
    for closure, graph in ((False, False), (True, False), (False, True), (True, True)):
        candidate = replace(subject, closure=closure, graph=graph)
        try:
            Walk(candidate, bowls(5)).go(2)
        except Exception as error:
            errors.append(error)
            continue
        how = ["step(closure)" if closure else "step()"] + ["gradients that can be differentiated"] * graph
        first = Finding(name, "holds", f"by {' with '.join(how)}", subject.device)
        return [first, *(_look(candidate, check, function) for check, function in CHECKS)]
    because = f"step() raises {first_line(errors[0])}; with a closure {first_line(errors[1])}"
    skipped = (Finding(check, "not applicable", "it takes no step", subject.device) for check, _ in CHECKS)
    return [Finding(name, "does not", because, subject.device), *skipped]


def _look(subject: Subject, check: str, function: Callable[[Subject], Outcome]) -> Finding:
    try:
        return Finding(check, *function(subject), subject.device)
    except Exception as error:
        return Finding(check, "does not", f"raised {first_line(error)}", subject.device)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# The command line; Hydra and Rich are imported for it alone.

USAGE = """usage: python -m tmbench.certify optimizer=NAME [optimizer.key=value ...] [lr=...] [reference=NAME]
       python -m tmbench.certify target=my.module.Class [key=value ...] [reference=NAME]

Says what a person can rely on in an optimizer: about 20 short checks, some seconds.
Exit code: 0 if none failed, 1 if one did, 2 if the optimizer could not be made.

  optimizer=NAME        a file of conf/optimizer, with any setting changed as for a run
  target=my.module.Cls  any class, from the current folder too; key=value are its arguments
  reference=NAME        a file of conf/optimizer that it must agree with, at the same lr
  --config-dir DIR      a folder with your own optimizer/NAME.yaml"""


def main(words: list[str] | None = None) -> int:
    """Certifies what the words ask for and prints it; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0 if words else 2
    from .errors import ConfigError
    from .verbs import EXPECTED, explain

    try:
        title, new, reference = _asked_for(words)
        try:
            probe = new([torch.zeros(2, requires_grad=True)])
        except Exception as error:
            raise ConfigError(f"{title} cannot be made: {first_line(error)}") from None
        if not isinstance(probe, Optimizer):
            raise ConfigError(f"{title}: expected a torch.optim.Optimizer, got a {type(probe).__name__}")
    except EXPECTED as error:
        print(explain(error), file=sys.stderr)
        return 2
    findings = certify(new, reference)
    _show(title, probe, findings)
    return int(any(finding.verdict == "does not" for finding in findings))


def _asked_for(words: list[str]) -> tuple[str, NewOptimizer, NewOptimizer | None]:
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from .config.identity import reads_switch
    from .config.table import conf_dir
    from .errors import ConfigError

    rest, folder, target, reference = [], None, "", ""
    queue = list(words)
    while queue:
        word = queue.pop(0)
        key, equals, value = word.partition("=")
        if key == "--config-dir":
            folder = value if equals else queue.pop(0) if queue else ""
            if not Path(folder).is_dir():
                raise ConfigError(f"--config-dir: expected a folder, got {folder or 'nothing'}")
        elif not equals:
            raise ConfigError(f"expected key=value, got {word}; --help tells more")
        elif key == "target":
            target = value
        elif key == "reference":
            reference = value
        else:
            rest.append(word)

    def made(overrides: list[str]) -> tuple[str, NewOptimizer]:
        cfg = _composed(overrides, folder)
        settings: Any = OmegaConf.to_container(cfg.optimizer)
        name = settings.pop("name") if "_target_" in settings else ""
        settings.pop("trunk", None)  # for the run alone
        if reads_switch(cfg) and settings["switch_step"] is None and cfg.switch_epoch != "never":
            settings["switch_step"] = SWITCH_STEP
        return name, located(settings)

    def located(settings: dict[str, Any]) -> NewOptimizer:
        try:
            new: NewOptimizer = instantiate(settings, _convert_="all")
        except HydraException as error:
            raise ConfigError(f"{settings['_target_']} cannot be used: {error.__cause__ or error}") from None
        return new

    common = [word for word in rest if word.startswith("lr=") or not (target or word.startswith("optimizer"))]
    compared = made([f"optimizer={reference}", *common])[1] if reference else None
    if target:
        arguments: Any = OmegaConf.to_container(OmegaConf.from_dotlist(rest))
        return target, located({"_target_": target, "_partial_": True, **arguments}), compared
    if not any(word.startswith("optimizer=") for word in rest):
        names = sorted(path.stem for path in (conf_dir() / "optimizer").glob("*.yaml"))
        given = words[0].partition("=")[0]
        hint = "; did you mean optimizer?" if difflib.get_close_matches(given, ["optimizer"]) else ""
        raise ConfigError(
            f"which optimizer? give optimizer=NAME or target=my.module.Class{hint}\n  names: {' '.join(names)}"
        )
    return *made(rest), compared


def _composed(overrides: list[str], folder: str | None) -> Any:
    from omegaconf import OmegaConf

    from .config.compose import composed
    from .config.settle import settled

    own = [f"hydra.searchpath=[file://{Path(folder).resolve()}]"] if folder else []
    return OmegaConf.create(settled(composed([*own, *overrides])))


def _show(title: str, optimizer: Optimizer, findings: list[Finding]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from .runs.show import console

    out = console()
    group = optimizer.param_groups[0]
    told = ", ".join(f"{k}={v}" for k, v in group.items() if k not in ("params", "step") and v is not None)
    cls = type(optimizer)
    out.print(f"\n[bold]{escape(title)}[/bold]  {cls.__module__}.{cls.__qualname__}", highlight=False)
    out.print(escape(told), style="dim", highlight=False)
    colours = {"holds": "green", "does not": "bold red", "not applicable": "dim"}
    for device in dict.fromkeys(finding.device for finding in findings):
        table = Table("check", "verdict", "detail", title=f"on {device}", title_justify="left", box=box.SIMPLE_HEAD)
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for finding in (f for f in findings if f.device == device):
            colour = colours[finding.verdict]
            table.add_row(finding.check, f"[{colour}]{finding.verdict}[/{colour}]", escape(finding.detail))
        out.print(table)
    counts = [sum(f.verdict == verdict for f in findings) for verdict in colours]
    out.print(f"{counts[0]} hold, {counts[1]} do not, {counts[2]} not applicable", highlight=False)


if __name__ == "__main__":
    # As the module that others import, so that there is one of each class.
    from tmbench.certify import main as run

    sys.exit(run())
