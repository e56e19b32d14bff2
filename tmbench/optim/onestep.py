"""What optimizers share whose step follows from the weights, the gradients and a state of their own."""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypedDict, Unpack

import torch
from torch import Tensor

from .base import all_at_once, check_rates
from .formula import add, as_number, evaluated


class CommonSettings(TypedDict, total=False):
    """The keyword arguments that every subclass of OneStep takes in addition to its own."""

    weight_decay: float
    maximize: bool
    foreach: bool | None


class OneStep(torch.optim.Optimizer):
    """An optimizer of real, dense parameters; a subclass gives `name`, `update` and, if it has settings, `check`.

    Every group has `lr`, `weight_decay`, `maximize` and `foreach`. A parameter whose gradient is None stays.

    Raises:
        ValueError: an argument out of its range, of any group, or a complex parameter.
        RuntimeError: a sparse gradient; no weight has moved then.
    """

    name: str  # how messages call it

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, settings: dict[str, Any], **common: Unpack[CommonSettings]
    ) -> None:
        super().__init__(
            params, {"lr": lr, "weight_decay": 0.0, "maximize": False, "foreach": None, **common, **settings}
        )

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        """Steps parameters of a group, all of them additive or none, in place; leaves their gradients as they are."""
        raise NotImplementedError

    def is_decoupled(self, group: dict[str, Any]) -> bool:
        """Whether `update` applies the weight decay; otherwise it is an L2 penalty, part of the gradient."""
        return False

    def is_additive(self, group: dict[str, Any], p: Tensor) -> bool:
        """Whether a multiplicative method adds to this tensor instead: a bias or gain, under `additive_for_1d`."""
        return p.ndim < 2 and group.get("additive_for_1d", False)

    def check(self, group: dict[str, Any]) -> None:
        """Refuses settings of a group that are out of range."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group that is refused is not kept."""
        super().add_param_group(param_group)
        try:
            self._check_common(self.param_groups[-1])
            self.check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does one step; returns the closure's loss, if there is a closure to evaluate first."""
        loss = evaluated(closure)
        if any(p.grad is not None and p.grad.is_sparse for group in self.param_groups for p in group["params"]):
            raise RuntimeError(f"{self.name}: expected dense gradients, got a sparse one; use sparse=False")
        for group in self.param_groups:
            having = [p for p in group["params"] if p.grad is not None]
            at_once = bool(having) and all_at_once(group["foreach"], having)
            vectors = [p for p in having if self.is_additive(group, p)]
            others = [p for p in having if not self.is_additive(group, p)]
            for params in filter(None, (others, vectors) if at_once else ([p] for p in having)):
                grads: list[Tensor] = [-p.grad if group["maximize"] else p.grad for p in params]
                if group["weight_decay"] and not self.is_decoupled(group):
                    grads = add(grads, params, group["weight_decay"], at_once)
                self.update(group, as_number(group["lr"]), params, grads)
        return loss

    def _check_common(self, group: dict[str, Any]) -> None:
        check_rates(group, self.refuse)
        if any(p.is_complex() for p in group["params"]):
            self.refuse("complex parameters are not supported; use their real view")

    def refuse(self, message: str) -> NoReturn:
        raise ValueError(f"{self.name}: {message}")
