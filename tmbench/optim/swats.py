"""When to switch from Adam to SGD, and at which rate: the criterion of SWATS.

Algorithm 1 of Keskar and Socher 2017, "Improving Generalization Performance by Switching from Adam to SGD" (arXiv
1712.07628), whose symbols (p, g, gamma, lambda, Lambda, k) are used here.
"""

import math
from typing import Any

import torch
from torch import Tensor

CRITERIA = ("swats",)


def check_criterion(criterion: Any, switch_step: int | None, tolerance: Any) -> None:
    """Raises ValueError for one that there is not, one beside a given step, or a tolerance that is no number > 0."""
    if criterion is not None and criterion not in CRITERIA:
        raise ValueError(f"switch: criterion: expected one of {', '.join(CRITERIA)} or None, got {criterion!r}")
    if switch_step is not None and criterion is not None:
        raise ValueError(f"switch: expected switch_step or criterion, got both: {switch_step} and {criterion!r}")
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0 < tolerance < math.inf:
        raise ValueError(f"switch: tolerance: expected a finite number > 0, got {tolerance!r}")


def swats_update(average: float, gamma: float, beta2: float, k: int, tolerance: float) -> tuple[float, float | None]:
    """The new lambda_k, and Lambda once it is time to switch, else None; Algorithm 1.

    Ours: no switch to a Lambda <= 0, with which SGD would ascend.
    """
    average = beta2 * average + (1 - beta2) * gamma
    corrected = average / (1 - beta2**k)
    due = k > 1 and corrected > 0 and abs(corrected - gamma) < tolerance
    return average, corrected if due else None


@torch.no_grad()
def swats_gamma(param_groups: list[dict[str, Any]], before: list[Tensor]) -> float:
    """gamma_k = p.p / -p.g over all parameters together, of the step from the weights `before`; nan if p.g is 0."""
    pp: Any = 0.0
    pg: Any = 0.0
    weights = iter(before)
    for group in param_groups:
        for w in group["params"]:
            old = next(weights)
            if w.grad is None:
                continue
            g = w.grad.to_dense() if w.grad.is_sparse else w.grad
            if group.get("maximize"):
                g = -g
            if group.get("weight_decay") and not group.get("decoupled_weight_decay"):
                g = g.add(old, alpha=group["weight_decay"])
            p, g = _flat(w) - _flat(old), _flat(g)
            pp, pg = pp + p.dot(p), pg + p.dot(g)
    pp, pg = float(pp), float(pg)
    return pp / -pg if pg != 0 else math.nan


def _flat(tensor: Tensor) -> Tensor:
    """All its real numbers, in float64."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()
