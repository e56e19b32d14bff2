"""Optimizers of torch.optim and pytorch_optimizer that a YAML alone does not reach."""

import difflib
import inspect
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def classes() -> dict[str, type[Optimizer]]:
    """The optimizers of torch.optim and pytorch_optimizer by name; torch's own win."""
    import pytorch_optimizer

    known = {**vars(pytorch_optimizer), **vars(torch.optim)}
    return {k: v for k, v in known.items() if inspect.isclass(v) and issubclass(v, Optimizer) and v is not Optimizer}


def find(params: Iterable[Tensor], method: str, lr: float, weight_decay: float, options: dict[str, Any]) -> Optimizer:
    """The optimizer of this class name, looked for in torch.optim, then in pytorch_optimizer.

    `lr` and `weight_decay` are given to those that take them.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    kind = named(method)
    takes = inspect.signature(kind).parameters
    common = {key: value for key, value in (("lr", lr), ("weight_decay", weight_decay)) if key in takes}
    made: Any = kind
    return made(params, **{**common, **options})


def named(method: str) -> type[Optimizer]:
    """The class of this name; ValueError if there is none."""
    known = classes()
    if method not in known:
        near = difflib.get_close_matches(method, known, 3, 0.4)
        expected = f"a class of torch.optim or pytorch_optimizer, like {', '.join(near or known)}"
        raise ValueError(f"optimizer.name: expected {expected}; got {method!r}")
    return known[method]


def lamb(params: Iterable[Tensor], clamp: float | None, **settings: Any) -> Optimizer:
    """LAMB; a layer's norm counts up to `clamp` in its ratio, which the library does not take as an argument."""
    import pytorch_optimizer

    optimizer = pytorch_optimizer.Lamb(params, **settings)
    optimizer.clamp = math.inf if clamp is None else clamp
    return optimizer


def muon(params: Iterable[Tensor], max_side: int, **settings: Any) -> Optimizer:
    """Muon for matrices (convolutions are flattened), AdamW for all else and for tables with a side above max_side.

    The authors leave embeddings and heads to AdamW; a list of tensors does not say which those are, size does nearly.
    """
    import pytorch_optimizer

    params = list(params)
    if not all(isinstance(p, Tensor) for p in params):
        raise ValueError("muon: expected a list of tensors, got groups; it makes groups of its own, by shape")
    fits = [p.ndim >= 2 and max(p.shape) <= max_side for p in params]
    of = {use: [p for p, fit in zip(params, fits, strict=True) if fit is use] for use in (True, False)}
    groups = [{"params": of[use], "use_muon": use} for use in of if of[use]]
    return pytorch_optimizer.Muon(groups, **settings)


def newton_cg(params: Iterable[Tensor], lr: float, cg_iterations: int, line_search: str) -> Optimizer:
    """One step of Hessian-free Newton a batch: conjugate gradients on Hessian-vector products (pytorch-minimize).

    Its closure only evaluates: the method differentiates, twice, itself.

    Raises:
        ValueError: pytorch-minimize is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its own, of torch.jit
            from torchmin import Minimizer
    except ImportError:
        raise ValueError("needs pytorch-minimize: pip install 'tmbench[newton]'") from None

    class NewtonCG(Minimizer):  # type: ignore[misc]
        differentiates = True

        def step(self, closure: Any) -> Any:
            # Minimizer gives all of the group to its solver; a schedule wants the rate in the group.
            (group,) = self.param_groups
            rates = {key: group.pop(key) for key in ("lr", "initial_lr") if key in group}
            group["options"]["lr"] = rates["lr"]
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Using backward.. with create_graph=True")
                    return super().step(closure)
            finally:
                group.update(rates)
                self.zero_grad()  # a gradient with a graph holds on to itself

    options = {"cg_max_iter": cg_iterations, "line_search": line_search, "xtol": 0.0}
    optimizer = NewtonCG(params, method="newton-cg", max_iter=1, options=options)
    optimizer.param_groups[0]["lr"] = lr
    return optimizer
