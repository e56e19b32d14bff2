"""What belongs to some of a stack's slots: the tensors that an optimizer of its own steps, and a replica's states.

A stack's slots are divided into parts, one for each learning rate, mostly one in all. Each part has an optimizer of its
own, for which it is the whole stack. So what is exact for one rate is so for several.

Legend: K slots, N rows of a table.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..optim.formula import summed


class Group(nn.Module):
    """The stacked parameters that one player's optimizers step.

    Args:
        parameters: each of shape (K, ...), or (K x N, ...) of a table.
        tables: the ids of the tables among them.
        parts: the slots of each part, in order.

    Attributes:
        of_part: the tensors that each part's optimizer steps. Of one part they are the stacked parameters; of several,
            leaves that are slices of those, in the same memory.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], tables: set[int], parts: Sequence[range]) -> None:
        super().__init__()
        self.stacked, self.tables = nn.ParameterList(parameters), tables
        self.parts, self.slots = parts, parts[-1].stop
        self.of_part = [list(parameters)]
        if len(parts) > 1:
            self.of_part = [[nn.Parameter(p.data, requires_grad=p.requires_grad) for p in parameters] for _ in parts]
            self.link()

    def link(self) -> None:
        """Makes the leaves parts of the stacked parameters, wherever those are now."""
        for part, leaves in zip(self.parts, self.of_part, strict=True) if len(self.parts) > 1 else ():
            for p, leaf in zip(self.stacked, leaves, strict=True):
                leaf.data = _cut(p.data, part, len(p) // self.slots)

    def leaves(self, parameter: nn.Parameter) -> list[nn.Parameter]:
        """The tensors that are stepped of a stacked one, for each part; none if it is not the group's."""
        places = [place for place, p in enumerate(self.stacked) if p is parameter]
        return [leaves[place] for place in places for leaves in self.of_part]

    def shared(self, closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A closure for each part's optimizer in turn, which gives the loss of all; its gradient is computed once."""
        if len(self.parts) == 1:
            return closure
        for p in [*self.stacked, *(leaf for leaves in self.of_part for leaf in leaves)]:
            p.grad = None
        loss = closure()
        for place, p in enumerate(self.stacked):
            if p.grad is not None and p.grad.is_sparse:
                p.grad = summed(p.grad)
            for part, leaves in zip(self.parts, self.of_part, strict=True) if p.grad is not None else ():
                leaves[place].grad = _cut(p.grad, part, len(p) // self.slots)
        return lambda: loss

    @torch.no_grad()
    def clip_grad_norm_(self, limit: float) -> None:
        """As torch's function of that name, for each slot by itself."""
        gradients = [(p, summed(p.grad) if p.grad.is_sparse else p.grad) for p in self.stacked if p.grad is not None]
        squares_K: Any = 0
        for p, grad in gradients:
            values, slot = self._by_slot(p, grad)
            each = values.flatten(1).square().sum(1)
            squares_K = squares_K + (each if slot is None else each.new_zeros(self.slots).index_add_(0, slot, each))
        factor_K = (limit / (squares_K.sqrt() + 1e-6)).clamp(max=1.0)
        for p, grad in gradients:
            values, slot = self._by_slot(p, grad)
            factor = factor_K if slot is None else factor_K[slot]
            values *= factor.view(-1, *[1] * (values.dim() - 1))
            p.grad = grad

    def _by_slot(self, p: Tensor, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient's values with the slots, or rows, first; and the slot of each row."""
        if grad.is_sparse:
            return grad.values(), grad.indices()[0] // (len(p) // self.slots)
        return (grad.view(self.slots, -1) if id(p) in self.tables else grad), None


def _cut(t: Tensor, part: range, rows: int) -> Tensor:
    """The part of a stacked tensor, or of a sparse one whose rows are in order, that belongs to some slots."""
    first, end = part.start * rows, part.stop * rows
    if not t.is_sparse:
        return t[first:end]
    ids_R = t.indices()[0]
    start, stop = torch.searchsorted(ids_R, ids_R.new_tensor([first, end])).tolist()
    ids_1R, values, shape = (ids_R[start:stop] - first)[None], t.values()[start:stop], (end - first, *t.shape[1:])
    return torch.sparse_coo_tensor(ids_1R, values, shape, is_coalesced=True, check_invariants=False)


def tables_of_parts(
    embedding: nn.Embedding, weights: Sequence[nn.Parameter], parts: Sequence[range]
) -> list[nn.Embedding]:
    """Each part's table, which may be stepped by rows; those are then caught up before `embedding` reads rows of all.

    Args:
        embedding: has the K x N rows of all; it is called with ids of shape (K, ...).
        weights: of each part; `embedding.weight` itself if there is but one, and none if nobody steps them.
    """
    if len(weights) <= 1:
        return [embedding]
    tables = [nn.Embedding(1, 1) for _ in parts]
    for table, weight in zip(tables, weights, strict=True):
        table.weight = weight
        table.num_embeddings, table.embedding_dim = weight.shape

    def before_reading(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = len(embedding.weight) // parts[-1].stop
        for part, table in zip(parts, tables, strict=True):
            if lazy_rows := getattr(table, "lazy_rows", None):
                lazy_rows.catch_up(args[0][part.start : part.stop] - part.start * rows)
                embedding.sparse = True

    embedding.register_forward_pre_hook(before_reading)
    return tables


def sliced(state: Any, slot: int, slots: int) -> Any:
    """One slot's part of nested dictionaries and lists of stacked tensors, with tensors of its own; as by itself."""
    if not isinstance(state, Tensor):
        return _mapped(partial(sliced, slot=slot, slots=slots), state)
    if state.dim() and len(state) != slots:  # of a table
        state = state.view(slots, -1, *state.shape[1:])
    return (state[slot] if state.dim() else state).clone()  # a count of steps is that of all slots


def joined(*states: Any) -> Any:
    """One state from those of the slots, whose tensors get a first axis K, those of tables as well."""
    first = states[0]
    if not isinstance(first, Tensor):
        return _mapped(joined, *states)
    return torch.stack(states) if first.dim() else first


def _mapped(call: Callable[..., Any], *trees: Any) -> Any:
    """`call` of the children of nested dictionaries and lists; what is neither is the same in all."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: call(*(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(call(*children) for children in zip(*trees, strict=True))
    return first
