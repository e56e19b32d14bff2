"""Embedding tables stepped by the rows that a batch reads: the cost is the batch's, the result the dense step's.

A row without a gradient still moves, under momentum, a history or decay; but it moves linearly. Its state s (the
weight, then each tensor that the optimizer keeps for it) is multiplied by a small matrix A in every step. So a row is
left alone, and caught up when it is next read: s <- A[k-1] ... A[j] s, of the steps j, ..., k-1 that it missed.

The optimizer itself says what A is: beside the rows it steps a `probe`, whose elements are the unit vectors of the
state, with a gradient of zero. So settings, schedules and switches need no second copy of their equations here.

Legend: R rows, D numbers in a row, S tensors of the state.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .formula import evaluated, summed
from .products import Products

AT_ONCE = 2**12  # rows brought up to date at a time; their states fit a processor's cache


def moves_linearly(optimizer: Optimizer) -> bool:
    """Whether a step without a gradient multiplies an element's state by numbers that are the same for all elements."""
    linear: bool = getattr(optimizer, "moves_linearly", type(optimizer) is torch.optim.SGD)
    return linear


class LazyRows:
    """Steps an embedding's table by the rows that have a gradient; the others are caught up before they are read.

    The result is that of the dense step up to rounding: within 1e-12 of it in float64, and as near to it in float32 as
    two dense steps of other summation orders. `nn.Embedding(sparse=True)` and `EmbeddingBag(mode="sum", sparse=True)`
    read their rows through this; who reads the weights otherwise calls `catch_up` first. State dicts of the module and
    of the optimizer hold what the dense step's would.

    Args:
        optimizer: one whose state moves linearly without a gradient: torch's SGD, TMSGD, MultistepSGD, RescaledSGD, or
            a SwitchOptimizer of two such; others say so by an attribute `moves_linearly`.
        table: the embedding; its weights (float32 or float64) are among the optimizer's parameters.
        l2: adds 2 l2 w to the gradient of every row, read or not, in every step: the penalty l2 sum(w^2).
        ranks: the gradient is a sum over ranks, so that it has rows which this rank has not read.

    Raises:
        ValueError: the optimizer, the table or its type will not do; says why.
        RuntimeError: in a step, if a row was read before it was brought up to date.
    """

    def __init__(
        self, optimizer: Optimizer, table: nn.Embedding | nn.EmbeddingBag, *, l2: float = 0.0, ranks: bool = False
    ) -> None:
        self.table, self.l2, self.ranks = table, l2, ranks
        self.dense = False  # whether to step all rows, as if there were no lazy ones
        self.weight = weight = table.weight
        self._check(optimizer)
        self._state = ["weight"]  # the names of its tensors
        self._products = Products(1, weight.device)
        self._done = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)  # steps that each row has had
        self.optimizer: Any = None  # that moves the rows at present
        self._hooks: list[Any] = []
        self._swapped: tuple[list[Tensor], Tensor, Tensor, Tensor | None] | None = None
        # The rows read last (R,) and their states (S, R, D): the weights are in the table, the rest is to be written.
        self._read: tuple[Tensor, Tensor] | None = None
        self._asked: tuple[Any, ...] | None = None  # what the matrix of the present step depends on
        self._matrix: tuple[Any, Tensor] = None, torch.empty(0)  # of the last step, beside what it depended on
        module: Any = table
        if earlier := getattr(module, "lazy_rows", None):  # of another optimizer
            earlier.detach()
        module.sparse, module.lazy_rows = True, self
        self._of_table = [
            module.register_forward_pre_hook(self._before_reading, with_kwargs=True),
            module.register_state_dict_pre_hook(self._catch_up_all),
            module.register_load_state_dict_pre_hook(self._catch_up_all),
        ]
        self._attached: list[LazyRows] = getattr(optimizer, "attached", [])
        self._attached.append(self)
        self.serve(optimizer)

    def serve(self, optimizer: Optimizer) -> None:
        """Goes over to this optimizer of the same parameters, whose steps move the rows from now on."""
        while hasattr(optimizer, "active"):
            optimizer = optimizer.active
        if self.optimizer is optimizer:
            return
        if self.optimizer is not None:
            self.catch_up()
        for hook in self._hooks:
            hook.remove()
        self.optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._catch_up_all),
            optimizer.register_load_state_dict_pre_hook(self._catch_up_all),
        ]

    def detach(self) -> None:
        """Brings all rows up to date, and leaves table and optimizer; another LazyRows of the table does so, too."""
        self.catch_up()
        for hook in self._hooks + self._of_table:
            hook.remove()
        if self in self._attached:
            self._attached.remove(self)
            del self.table.lazy_rows

    @torch.no_grad()
    def __deepcopy__(self, memo: dict[int, Any]) -> "LazyRows":
        """Of a copied table, whose rows are then up to date; no optimizer steps it."""
        self.catch_up()
        kept = self.optimizer.state.get(self.weight, {}).values()
        for t in (self.weight, *kept):
            if id(t) in memo:  # copied before, when its rows were not up to date
                memo[id(t)].copy_(t)
        copied = object.__new__(LazyRows)
        copied.__dict__ |= self.__dict__ | {"_products": Products(1, self.weight.device)}
        copied._hooks, copied._of_table, copied._attached = [], [], []
        return copied

    def __reduce__(self) -> Any:
        raise RuntimeError("lazy rows: an attached table cannot be pickled; save its state_dict() or detach() it")

    def _catch_up_all(self, *_: Any) -> None:
        self.catch_up()

    @torch.no_grad()
    def catch_up(self, rows: Tensor | None = None) -> None:
        """Brings rows, of any shape and order, up to date; all if None."""
        self._put_back()
        self._write_read()
        now = self._products.count
        if now == 0:
            return
        if rows is not None:
            self._move(torch.unique(rows))
            self._write_read()
            return
        stale_R: Any = (self._done < now).nonzero()[:, 0]
        for part_R in stale_R.split(AT_ONCE):
            self._move(part_R)
            self._write_read()
        self._start()

    def _start(self) -> None:
        """From here on; all rows are up to date."""
        self._read = None
        if self._products.count:
            self._products = Products(1, self.weight.device)
            self._done.zero_()

    def _move(self, rows_R: Tensor) -> None:
        """Brings rows, each given once, up to date; `_write_read` or a step then writes all but their weights."""
        kept = self.optimizer.state.get(self.weight, {})
        tensors = [self.weight, *(kept[name] for name in self._state[1:])]
        # Not in TF32, which a program may have asked for on a GPU; nor in bfloat16, in which the forward pass may be.
        dtype = torch.float64 if self.weight.is_cuda else self.weight.dtype
        matrices_RSS = self._products.from_(self._done.index_select(0, rows_R)).to(dtype)
        states_RSD = torch.stack([t.index_select(0, rows_R).flatten(1) for t in tensors], 1).to(dtype)
        with torch.autocast(self.weight.device.type, enabled=False):
            states_RSD = torch.bmm(matrices_RSS, states_RSD)
        states_SRD = states_RSD.transpose(0, 1).to(self.weight.dtype).contiguous()
        self.weight.index_copy_(0, rows_R, states_SRD[0].view(-1, *self.weight.shape[1:]))
        self._done.index_fill_(0, rows_R, self._products.count)
        self._read = rows_R, states_SRD

    def _write_read(self) -> None:
        if self._read is not None:
            (rows_R, states_SRD), self._read = self._read, None
            for name, state_RD in zip(self._state[1:], states_SRD[1:], strict=True):
                self.optimizer.state[self.weight][name].index_copy_(
                    0, rows_R, state_RD.view(-1, *self.weight.shape[1:])
                )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before_reading(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._products.count:
            with torch.no_grad():
                self._put_back()
                self._write_read()
                self._move(torch.unique(args[0] if args else kwargs["input"]))

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts the rows with a gradient and the probe in the table's place."""
        self._put_back()
        args, kwargs = _evaluated(args, kwargs)
        grad = self.weight.grad
        if grad is None:
            return args, kwargs
        if self.dense or not grad.is_sparse:
            self._write_read()
            if self._products.count and (self._done < self._products.count).any():
                raise RuntimeError(
                    "lazy rows: the gradient is of the whole table, some rows of which were not up to date when it was "
                    "read: call catch_up() before"
                )
            self._start()
            self.weight.grad = grad = summed(grad).to_dense() if grad.is_sparse else grad
            if self.l2:
                grad.add_(self.weight, alpha=self._slope(optimizer))
            return args, kwargs
        if grad.sparse_dim() != 1:
            got = f"{grad.sparse_dim()} sparse dimensions"
            raise RuntimeError(f"lazy rows: expected sparse gradients of whole rows, as of nn.Embedding, got {got}")
        grad = summed(grad)
        rows_R, kept = grad.indices()[0], optimizer.state.get(self.weight, {})
        if self._products.count == 0:
            self._state = ["weight", *(name for name, value in kept.items() if self._is_row_wise(value))]
            self._products = Products(len(self._state), self.weight.device)
        weights_RD, *states = self._states_of(rows_R, kept)
        proxy = nn.Parameter(weights_RD)
        proxy.grad = grad.values().contiguous()  # one value for all, where a sum was of one row
        if self.l2:
            proxy.grad = proxy.grad.add(proxy, alpha=self._slope(optimizer))
        group = self._group(optimizer)
        self._asked = self._depends_on(optimizer, group)
        probe = None if self._asked and self._asked == self._matrix[0] else self._probe(optimizer, kept)
        for name in kept.keys() - {*self._state}:  # such as a count of steps
            optimizer.state[proxy][name] = kept[name]
        optimizer.state[proxy] |= dict(zip(self._state[1:], states, strict=True))
        group["params"][:] = [proxy if p is self.weight else p for p in group["params"]]
        group["params"] += [] if probe is None else [probe]
        self._swapped = group["params"], rows_R, proxy, probe
        return args, kwargs

    def _states_of(self, rows_R: Tensor, kept: dict[str, Any]) -> list[Tensor]:
        """The states of rows with a gradient, copied: those just read, or those in the tables."""
        if self._read is not None and torch.equal(self._read[0], rows_R):
            (_, states_SRD), self._read = self._read, None
            weights_RD = self.weight.index_select(0, rows_R)  # which somebody may have changed since they were read
            return [weights_RD, *(state_RD.view_as(weights_RD) for state_RD in states_SRD[1:])]
        self._write_read()
        self._check_read(rows_R)
        return [t.index_select(0, rows_R) for t in (self.weight, *(kept[name] for name in self._state[1:]))]

    def _probe(self, optimizer: Any, kept: dict[str, Any]) -> nn.Parameter:
        """The unit vectors of the state (S, 1), among the optimizer's states."""
        unit = torch.eye(len(self._state), dtype=torch.float64, device=self.weight.device)[:, :, None]
        probe = nn.Parameter(unit[0])
        probe.grad = probe * self._slope(optimizer)
        for name in kept.keys() - {*self._state}:
            optimizer.state[probe][name] = copy.copy(kept[name])
        optimizer.state[probe] |= dict(zip(self._state[1:], unit[1:], strict=True))
        return probe

    def _slope(self, optimizer: Any) -> float:
        """The penalty's gradient over the weight, times the scale of a GradScaler by which a fused step will divide."""
        scale = getattr(optimizer, "grad_scale", None)
        return 2 * self.l2 * (1.0 if scale is None else float(scale))

    def _group(self, optimizer: Any) -> Any:
        for group in optimizer.param_groups:
            if any(p is self.weight for p in group["params"]):
                return group
        raise RuntimeError(
            "lazy rows: the table's weights are no longer among the optimizer's parameters, or are attached as the "
            "weights of another embedding, too; one embedding of each weight can be attached to one optimizer"
        )

    def _depends_on(self, optimizer: Any, group: dict[str, Any]) -> tuple[Any, ...] | None:
        """All that the matrix of the coming step depends on; None if that is not known."""
        if getattr(optimizer, "found_inf", None) is not None:  # a GradScaler's, with which a fused step may be none
            return None
        if type(optimizer) is torch.optim.SGD:
            settings: Any = [value for key, value in group.items() if key != "params"]
        elif hasattr(optimizer, "settings_of_step"):
            settings = optimizer.settings_of_step(group)
        else:
            return None
        return (self.l2, *self._state, *(float(x) if isinstance(x, Tensor) else x for x in settings))

    @torch.no_grad()
    def _after_step(self, optimizer: Any, *_: Any) -> None:
        """Writes the rows back, and notes what the step did to all others."""
        if self._swapped is None:
            return
        rows_R, probe = self._swapped[1], self._swapped[3]
        basis = dict(optimizer.state[probe]) if probe is not None else {}
        self._put_back()
        if probe is not None:
            matrix = torch.stack([probe.detach(), *(basis[name] for name in self._state[1:])])[:, :, 0]
            self._matrix = self._asked, nn.functional.pad(matrix, (0, len(matrix) - matrix.shape[1]))
        matrix = self._matrix[1]
        if self._products.count or len(matrix) > 1 or matrix.item() != 1:  # else nothing moves without a gradient
            self._products.append(matrix)
            self._done.index_fill_(0, rows_R, self._products.count)

    @torch.no_grad()
    def _put_back(self) -> None:
        """Writes the rows back, and gives the optimizer its table; also after a step that raised an error midway."""
        if self._swapped is None:
            return
        (params, rows_R, proxy, probe), self._swapped = self._swapped, None
        state = self.optimizer.state
        params[:] = [self.weight if p is proxy else p for p in params if p is not probe]  # among those of other tables
        self.weight.index_copy_(0, rows_R, proxy.detach())
        for name, value in state[proxy].items():
            kept = state[self.weight]
            if not (isinstance(value, Tensor) and value.shape == proxy.shape):
                kept[name] = value
                continue
            if name not in kept:
                kept[name] = torch.zeros_like(self.weight)
                self._state.append(name)
            kept[name].index_copy_(0, rows_R, value)
        state.pop(proxy)
        state.pop(probe, None)

    def _check_read(self, rows_R: Tensor) -> None:
        """Notices rows that were read, by another way than through `table`, before they were brought up to date."""
        if self._products.count == 0:
            return
        if self.ranks:  # read by another rank, after it has brought them up to date as we do here
            self.catch_up(rows_R)
            return
        is_stale_R = self._done.index_select(0, rows_R) < self._products.count
        if is_stale_R.any():
            stale_R = rows_R[is_stale_R]
            raise RuntimeError(
                f"lazy rows: {len(stale_R)} rows (the first is {int(stale_R[0])}) were read before they were brought "
                "up to date, so their gradient is that of older weights: read them through the embedding, or call "
                "catch_up(rows) before"
            )

    def _is_row_wise(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.weight.shape

    def _check(self, optimizer: Optimizer) -> None:
        kind = type(optimizer).__name__
        if not moves_linearly(optimizer):
            raise ValueError(f"lazy rows: rows without a gradient do not move linearly under {kind}; use sparse=False")
        if all(p is not self.weight for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(f"lazy rows: the table's weights are not among the parameters of {kind}")
        if self.weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"lazy rows: expected weights in float32 or float64, got {self.weight.dtype}")
        if self.table.max_norm is not None:
            raise ValueError("lazy rows: max_norm changes the weights beside the optimizer; use sparse=False")


def _evaluated(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `step`, with a closure that has been evaluated already: the gradient is wanted now."""
    closure: Callable[[], Any] | None = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        return args, kwargs
    loss = evaluated(closure)
    return (args[0], lambda: loss, *args[2:]), {key: value for key, value in kwargs.items() if key != "closure"}
