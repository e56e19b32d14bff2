"""Whether an optimizer agrees with a reference; well-known methods are written out, slow and close to their papers."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from . import Outcome
from .descent import BATCHES, BOUND, STEPS, Candidate, Descent, distance, in_words, problem

Options = dict[str, Any]
Formula = Callable[[Tensor, Tensor, int, Options, Options], Tensor]
"""(weights, gradient, step from 0, options of the parameter group, state that it keeps) -> the next weights"""


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


def _madam(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Bernstein et al. 2020, Algorithm 1, with the authors' bias correction."""
    g = g + o["weight_decay"] * w
    s.setdefault("bound", o["p_scale"] * (w**2).mean() ** 0.5)
    s["v"] = o["beta"] * s.get("v", torch.zeros_like(w)) + (1 - o["beta"]) * g**2
    u = (g / (s["v"] / (1 - o["beta"] ** (step + 1))).sqrt()).nan_to_num(0).clamp(-o["g_bound"], o["g_bound"])
    if o["additive_for_1d"] and w.ndim < 2:
        return w - o["lr"] * u
    return (w * torch.exp(-o["lr"] * u * w.sign())).clamp(-s["bound"], s["bound"])


def _eg(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Kivinen and Warmuth 1997: two positive parts that are kept and multiplied."""
    root = (w**2 + o["beta"] ** 2).sqrt()
    plus, minus = s.get("plus", (root + w) / 2), s.get("minus", (root - w) / 2)
    factor = torch.exp(-o["lr"] * (g + o["weight_decay"] * w))
    s["plus"], s["minus"] = plus * factor, minus / factor
    return cast(Tensor, s["plus"] - s["minus"])


def _multiplicative(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Kirtas et al. 2023, with SGD's or RMSprop's direction."""
    g = g + o["weight_decay"] * w
    s["m"] = o["momentum"] * s.get("m", torch.zeros_like(w)) + g
    u = s["m"]
    if o["alpha"] is not None:
        s["v"] = o["alpha"] * s.get("v", torch.zeros_like(w)) + (1 - o["alpha"]) * g**2
        u = (u / s["v"].sqrt()).nan_to_num(0)
    size = torch.ones_like(w) if o["additive_for_1d"] and w.ndim < 2 else w.abs()
    return cast(Tensor, w - o["lr"] * size * torch.tanh(o["inner_lr"] * u))


def _clars(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Huo et al. 2020, Algorithm 1, of batches of one example: You et al. 2017, Algorithm 1, at a constant rate."""
    rate = o["lr"]
    if w.ndim > 1:
        rate = rate * o["trust_coefficient"] * w.norm() / (g.norm() + o["weight_decay"] * w.norm())
        g = g + o["weight_decay"] * w
    s["v"] = o["momentum"] * s.get("v", torch.zeros_like(w)) + rate * g
    return w - s["v"]


def _apollo(w: Tensor, g: Tensor, step: int, o: Options, s: Options) -> Tensor:
    """Ma 2020, Algorithm 1 as in the authors' code; with the constant rebound eps is relative to the bound, 0.01."""
    kind, is_belief = o["weight_decay_type"], o["rebound"] == "belief"
    g = g + o["weight_decay"] * w * (kind == "l2")
    m, b, d = (s.get(key, torch.zeros_like(w)) for key in "mbd")
    alpha = (1 - o["beta"]) / (1 - o["beta"] ** (step + 1))
    y = g - m
    m = m + alpha * y
    size = (d**4).sum() ** 0.25 + o["eps"] / (1 if is_belief else 0.01)
    u = d / size
    b = b - (alpha * (u * y).sum() / size + (b * u**2).sum()) * u**2
    bounded = torch.maximum(b.abs(), y.abs().max()) + o["eps"] / alpha if is_belief else b.abs().clamp(min=0.01)
    share = {"l2": 0, "decoupled": 1, "stable": 1 / bounded.mean()}[kind]
    s.update(m=m, b=b, d=m / bounded + share * o["weight_decay"] * w)
    first = o["lr"] / 1000 if o["init_lr"] is None else min(o["init_lr"], o["lr"])
    rate = first + (o["lr"] - first) * step / o["warmup_steps"] if step < o["warmup_steps"] else o["lr"]
    return cast(Tensor, w - rate * s["d"])


FORMULAS: dict[str, tuple[Formula, str, tuple[str, ...]]] = {  # and the options it does not know
    "SGD": (_sgd, "SGD written out", ()),
    "Adam": (_adam, "Adam written out", ("amsgrad", "decoupled_weight_decay")),
    "AdamW": (partial(_adam, decoupled=True), "AdamW written out", ("amsgrad",)),
    "RMSprop": (_rmsprop, "RMSprop written out", ("centered",)),
    "Adagrad": (_adagrad, "Adagrad written out", ()),
    "Madam": (_madam, "Madam written out", ()),
    "Multiplicative": (_multiplicative, "the multiplicative rule written out", ()),
    "EG": (_eg, "two parts, written out", ()),
    "Apollo": (_apollo, "Apollo written out", ()),
    "CLARS": (_clars, "CLARS written out, for one example", ()),
    "TMSGD": (_tmsgd, "eq. 8 in its weights form", ("decoupled",)),
}


def agrees_with_a_reference(candidate: Candidate) -> Outcome:
    """The given reference; else, of torch's classes and ours, the formula; else torch's own class of that name."""
    descent = Descent(candidate, problem(5)).go()
    optimizer, group = descent.optimizer, dict(descent.optimizer.param_groups[0])
    group.pop("params")
    name = type(optimizer).__name__
    if candidate.reference is not None:
        other = Descent(replace(candidate, new=candidate.reference), problem(5)).go()
        d, what = descent.distance_to(other), f"the given {type(other.optimizer).__name__}"
    elif name in FORMULAS and type(optimizer).__module__.split(".")[0] in ("torch", "tmbench"):
        _, what, unknown = FORMULAS[name]
        if unsupported := [key for key in unknown if group.get(key)]:
            return "not applicable", f"no formula here for {', '.join(unsupported)}"
        d = _distance_from_formula(descent, name, group)
    elif name in FORMULAS and hasattr(torch.optim, name):
        cls = getattr(torch.optim, name)
        shared = {key: group[key] for key in inspect.signature(cls).parameters if key in group}
        other = Descent(replace(candidate, new=lambda params: cls(params, **shared)), problem(5)).go()
        d, what = descent.distance_to(other), f"torch.optim.{name}"
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
