"""Mu-parametrisation: the learning rate found at one width serves at another (`task.mup=true`).

Yang et al. 2022, "Tensor Programs V" (arXiv 2203.03466), Table 8, by the authors' package `mup`. With m_in and m_out,
how many times larger than at the base width a parameter's inputs and outputs are (1 where they do not grow):

                       first weights, biases, gains    hidden weights     last weights
    times the input    1                               1                  1 / m_in
    first variance     as at the base width            1 / m_in           as at the base width
    rate of SGD        m_out                           m_out / m_in       m_in
    rate of Adam       1                               1 / m_in           1

At the base width all are 1: it is the standard parametrisation, bit for bit.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from ..errors import ConfigError
from ..optim import SwitchOptimizer
from ..optim.base import SGDThenFormula

# The rules hold for all that treat gradients alike (appendix B of the paper): adding them up linearly, as SGD and what
# SGDThenFormula makes of it (see `factors`), or dividing each number by its own size, as these.
ENTRYWISE = (Adam, AdamW, RMSprop, Adagrad)
M = TypeVar("M", bound=nn.Module)


def built(cfg: DictConfig, new: Callable[[int, type[nn.Linear]], M], default: int = 0) -> M:
    """The model of width `task.width`; with `task.mup`, mu-parametrised with `task.mup_base` as the base width.

    Args:
        cfg: the settled `task` section.
        new: (width, class of the last linear layer) -> the model, its weights as torch's layers start.
        default: the width and the base, where they are 0.

    Raises:
        ConfigError: the package `mup` is not installed.
    """
    width: int = cfg.get("width") or default
    if not cfg.get("mup"):
        return new(width, nn.Linear)
    base: int = cfg.mup_base or default
    try:
        from mup import MuReadout, set_base_shapes
    except ImportError:
        raise ConfigError("task.mup=true needs a package: pip install 'tmbench[mup]'") from None
    model = new(width, MuReadout)
    with torch.device("meta"):  # shapes alone: no memory, and nothing is drawn
        shapes, larger = new(base, MuReadout), new(2 * base, MuReadout)
    set_base_shapes(model, shapes, delta=larger)
    for module in model.modules():
        if isinstance(module, nn.RNNBase):  # the package knows none; torch starts all of its weights by the width
            for p in module.parameters():
                if (shape := p.infshape).ninf() == 1:  # type: ignore[attr-defined]
                    p.data *= shape.width_mult() ** 0.5
    return model


def factors(p: Tensor) -> dict[str, float]:
    """What multiplies the learning rate of a parameter of a model that `built` gave, under each rule.

    SGD's rule is that of every method whose steps are a linear filter of lr g[k] with fixed coefficients,
    d[k] = -lr (h[0] g[k] + h[1] g[k-1] + ...): momentum, Nesterov's, TM (d[k+1] = d[k]/2 - d[k-1]/2 - lr g[k], whose
    h is 1, 1/2, -1/4, -3/8, ... and sums to 1) and all multistep formulas. The rule makes lr g[k] of the right size at
    every width; h knows no width, so the filtered sum is of the right size, too. That h sums to 1 says moreover that TM
    needs no factor of its own against SGD. The differences that it keeps are of d, lr included: a switch hands them on.
    """
    shape: Any = p.infshape  # type: ignore[attr-defined]  # which of its dimensions grow, and by how much they have
    if shape.ninf() == 2:
        return {"linear": 1 / shape.fanin_fanout_mult_ratio(), "entrywise": 1 / shape.width_mult()}
    return {"linear": float(shape.width_mult()), "entrywise": 1.0}


def scaled(new: "partial[Optimizer]") -> Callable[[Any], Optimizer]:
    """What makes of parameters the optimizer that `new` is at the base width, with each group's own rate.

    The weight decay is divided by the same factor, so that a step shrinks the weights alike at every width.

    Raises:
        ConfigError: no rule is known for it.
    """
    of_groups = _of_groups(new)
    return lambda params: of_groups(groups(params))


def groups(params: Iterable[Tensor]) -> list[dict[str, Any]]:
    """The parameters in groups of equal `factors`; those that have lr itself first, since a run reports that rate."""
    alike: dict[tuple[float, ...], list[Tensor]] = {}
    for p in params:
        alike.setdefault(tuple(factors(p).values()), []).append(p)
    plain_first = sorted(alike, key=lambda each: each != (1.0, 1.0))
    return [{"params": alike[k], "factors": dict(zip(("linear", "entrywise"), k, strict=True))} for k in plain_first]


def _of_groups(new: "partial[Optimizer]") -> Callable[[Any], Optimizer]:
    kind: Any = new.func
    if kind is SwitchOptimizer and not new.keywords.get("criterion"):
        return partial(new, **{key: _of_groups(new.keywords[key]) for key in ("first", "second")})
    if kind is SGD or (isinstance(kind, type) and issubclass(kind, SGDThenFormula)):
        rule = "linear"
    elif kind in ENTRYWISE:
        rule = "entrywise"
    else:
        known = ", ".join(each.__name__ for each in (SGD, *ENTRYWISE))
        raise ConfigError(
            f"task.mup: expected an optimizer whose rule is known ({known}, the Taylor and multistep methods, a switch "
            f"between them at a given epoch), got {kind.__name__}, whose rate may not carry over; use task.mup=false"
        )
    if new.keywords.get("weight_decay") and rule == "entrywise" and kind is not AdamW:
        raise ConfigError(
            f"task.mup: {kind.__name__} divides an L2 penalty by the gradient's size, and no rule keeps that equal at "
            "all widths; use optimizer=adamw, which decays apart, or task.weight_decay=0"
        )

    def optimizer(params: Any) -> Optimizer:
        made = new(params)
        for group in made.param_groups:
            factor = group.pop("factors")[rule]
            group["lr"] *= factor
            group["weight_decay"] /= factor
        return made

    return optimizer
