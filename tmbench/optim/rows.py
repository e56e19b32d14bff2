"""Steps for sparse gradients, as of nn.Embedding(sparse=True): only the rows that have a gradient or still move.

Legend: R rows with a gradient, L rows that move, D what a row holds (any number of dimensions).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .formula import as_number, difference_names, differences_of, multistep_update, phase, rotate


def check_sparse(name: str, group: dict[str, Any], p: Tensor) -> None:
    """Refuses a sparse gradient that the optimizer `name` cannot step by rows.

    Raises:
        RuntimeError: the group has momentum or weight decay, or the gradient is not of whole rows.
    """
    assert p.grad is not None
    if group["momentum"] != 0 or group["weight_decay"] != 0:
        got = f"momentum {group['momentum']}, weight_decay {group['weight_decay']}"
        raise RuntimeError(
            f"{name}: sparse gradients need momentum 0 and weight_decay 0, with which rows without a gradient "
            f"stay where they are; got {got}: build the embedding with sparse=False"
        )
    if p.grad.sparse_dim() != 1:
        raise RuntimeError(
            f"{name}: expected sparse gradients of whole rows, as of nn.Embedding(sparse=True), "
            f"got {p.grad.sparse_dim()} sparse dimensions"
        )


def step_rows(p: Tensor, state: dict[str, Any], group: dict[str, Any], factors: Sequence[float], b: float) -> None:
    """Steps the rows that have a gradient or are still moving.

    A row's differences shrink by sqrt(c) a step once it has no gradient. It rests when they can't change its
    weights any more, which in float32 takes some 30 steps (until they are exactly 0: 280). Resting weights
    are those of the dense path, bit for bit; its next gradient finds no history in place of such a small one.

    Args:
        p: shape (rows, ...), with a sparse gradient.
        state: what the optimizer keeps for p; `live` says which rows move, shape (rows,).
        factors: of the differences, newest first.
        b: what multiplies lr times the gradient once the formula acts.
    """
    assert p.grad is not None
    lr, grad = as_number(group["lr"]), p.grad.coalesce()
    rows, grad_RD = grad.indices()[0], grad.values()
    grad_RD = -grad_RD if group["maximize"] else grad_RD
    names = difference_names(len(factors))
    acts, recording = phase(group, names)
    if not names or not (acts or recording):
        moved_RD = p[rows].add_(grad_RD, alpha=-lr * (b if acts else 1))
        p.index_copy_(0, rows, moved_RD)
        return
    known = [d for (d,) in differences_of({p: state}, [p], names)]
    if "live" not in state:
        state["live"] = _moving(p, known, factors)
    state["live"][rows] = True
    live = state["live"].nonzero()[:, 0]
    weights_LD, grads_LD = p[live], p.new_zeros(len(live), *p.shape[1:])
    grads_LD.index_copy_(0, torch.searchsorted(live, rows), grad_RD)
    differences = [[state[name][live]] for name in names]
    if acts:
        multistep_update([weights_LD], [grads_LD], differences, factors, b * lr, foreach=False)
    else:
        before_LD = weights_LD.clone()
        torch.sub(weights_LD.add_(grads_LD, alpha=-lr), before_LD, out=differences[-1][0])
    p.index_copy_(0, live, weights_LD)
    state[names[-1]].index_copy_(0, live, differences[-1][0])
    state["live"][live] = _moving(weights_LD, [d for (d,) in differences], factors)
    rotate([state], names)


def _moving(weights: Tensor, differences: list[Tensor], factors: Sequence[float]) -> Tensor:
    """Which rows will still change without a gradient; shape (rows,)."""
    # Below half a unit in the last place, and no later difference will be larger than these.
    share = torch.finfo(weights.dtype).eps / 8 if sum(map(abs, factors)) <= 1 else 0.0
    least = weights.abs() * share
    return torch.stack([(d.abs() > least).flatten(1).any(1) for d in differences]).any(0)
