"""What a stack of replicas does in another way than `torch.func.vmap` would, within vmap.

Embeddings read one table of K x N rows, so that those that a batch reads stay few. An LSTM, for which vmap has no rule,
is written out in lstm.py. Batch norm is one of K x C channels: vmap's rule multiplies by the weights in a step of its
own, for which the activations are kept once more. Random numbers are drawn for each replica from a generator of its
own, as a run by itself draws them.

Legend: K slots, N rows of a table, B batch, C channels.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CannotStackError
from .lstm import StackedLSTM

F = nn.functional
RANDOM = {
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like,
    torch.normal, torch.bernoulli, torch.poisson, torch.multinomial, torch.dropout, F.dropout, F.dropout1d, F.dropout2d,
    F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu, F.gumbel_softmax,
}  # fmt: skip
RANDOM_IN_PLACE = {
    Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.random_, Tensor.exponential_, Tensor.log_normal_,
    Tensor.cauchy_, Tensor.geometric_,
}  # fmt: skip


class _OnStack(torch.autograd.Function):
    """Calls a function within vmap with the stacked tensors themselves."""

    @staticmethod
    def forward(call: Any, *tensors: Tensor) -> Tensor:
        raise CannotStackError("an LSTM reads the same values in all replicas")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: what vmap calls is differentiated by itself."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Any, *tensors: Tensor) -> tuple[Tensor, int]:
        slots = info.batch_size
        return call(
            *(
                t.expand(slots, *t.shape).clone() if dim is None else t.movedim(dim, 0)
                for t, dim in zip(tensors, in_dims[1:], strict=True)
            )
        ), 0


def on_stack(call: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Within vmap: what `call` makes of these tensors of all slots, whose first axis, and the result's, is K."""
    result: Tensor = _OnStack.apply(call, *tensors)
    return result


class OwnRandomNumbers(TorchFunctionMode):
    """Within vmap: random numbers are drawn for each slot from its own generator.

    Args:
        slot: the slot's number, as vmap sees it.
        slots: K.
        own: the context in which they come from a slot's generator.
        drawn: gets the names of the functions that draw.
    """

    def __init__(
        self, slot: Tensor, slots: int, own: Callable[[int], AbstractContextManager[None]], drawn: list[str]
    ) -> None:
        super().__init__()
        self.slot, self.slots, self.own, self.drawn = slot, slots, own, drawn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and (args[2:3] or (kwargs.get("padding_idx"),))[0] is not None:
            raise CannotStackError("F.embedding with padding_idx, which vmap leaves out")
        if kwargs.get("generator") is None and kwargs.get("training", True):
            if func in RANDOM:
                return self._drawn(func, args, kwargs)
            if func in RANDOM_IN_PLACE:
                return args[0].copy_(
                    self._drawn(lambda t, *more, **named: func(t.clone(), *more, **named), args, kwargs)
                )
        return func(*args, **kwargs)

    def _drawn(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensors = [x for x in args if isinstance(x, Tensor)]
        self.drawn.append(getattr(func, "__name__", str(func)))

        def of_all(_: Tensor, *tensors_K: Tensor) -> Tensor:
            results = []
            for slot in range(self.slots):
                mine = iter([t[slot] for t in tensors_K])
                with self.own(slot):
                    results.append(func(*(next(mine) if isinstance(x, Tensor) else x for x in args), **kwargs))
            return torch.stack(results)

        return on_stack(of_all, self.slot, *tensors)


def forwards_as(kind: type[nn.Module], module: nn.Module) -> bool:
    """Whether a module's forward is that of torch's class, not one of a subclass or its own."""
    return type(module).forward is kind.forward and "forward" not in vars(module)


def look_up(embedding: nn.Embedding, module: nn.Embedding, ids: Tensor) -> Tensor:
    """Within vmap: the rows of one slot's table, in place of what the first task's module reads."""

    def of_all(ids_K: Tensor, _: Tensor) -> Tensor:
        first_K = torch.arange(len(ids_K), device=ids_K.device) * (embedding.num_embeddings // len(ids_K))
        rows: Tensor = embedding(ids_K + first_K.view(-1, *[1] * (ids_K.dim() - 1)))
        return rows

    return on_stack(of_all, ids, module.weight)  # the weights, since the ids may be the same in all slots


def lstm(
    name: str, module: Any, weights: Mapping[str, Tensor], inputs: Tensor, state: None = None
) -> tuple[Tensor, tuple[Tensor, None]]:
    """Within vmap: the outputs of one slot's LSTM, whose weights are given for all slots, and its last one.

    The last cell state is missing.
    """
    if not {"weight_ih_l0", "weight_hh_l0"} <= weights.keys():
        raise CannotStackError(f"{name}: its weights are made of other parameters")
    if module.num_layers != 1 or module.bidirectional or module.proj_size or state is not None:
        raise CannotStackError(f"{name}: expected one layer in one direction, from a state of zeros")
    if not isinstance(inputs, Tensor) or inputs.dim() != 3:
        raise CannotStackError(f"{name}: expected a batch of sequences as one tensor")
    if not module.batch_first:
        inputs = inputs.transpose(0, 1)

    def of_all(inputs_K: Tensor) -> Tensor:
        w_KGE, u_KGH = weights["weight_ih_l0"], weights["weight_hh_l0"]
        b_KG = weights["bias_ih_l0"] + weights["bias_hh_l0"] if module.bias else w_KGE.new_zeros(w_KGE.shape[:2])
        outputs_K: Tensor = StackedLSTM.apply(inputs_K, w_KGE, u_KGH, b_KG)
        return outputs_K

    outputs = on_stack(of_all, inputs)
    return outputs if module.batch_first else outputs.transpose(0, 1), (outputs[:, -1][None], None)


def batch_norm(module: Any, inputs: Tensor) -> Tensor:
    """Within vmap: one slot's inputs, normalized by its own statistics; its running ones are updated."""
    module._check_input_dim(inputs)
    if module.training and module.track_running_stats:
        module.num_batches_tracked.add_(1)
    has_statistics = module.running_mean is not None and (not module.training or module.track_running_stats)
    used = {"weight": module.weight, "bias": module.bias} if module.affine else {}
    used |= {"running_mean": module.running_mean, "running_var": module.running_var} if has_statistics else {}

    def of_all(inputs_KBC: Tensor, *used_KC: Tensor) -> Tensor:
        flat = {"running_mean": None, "running_var": None} | {
            name: t.flatten() for name, t in zip(used, used_KC, strict=True)
        }
        inputs_BKC = inputs_KBC.transpose(0, 1)
        outputs = F.batch_norm(
            inputs_BKC.flatten(1, 2), training=module.training or module.running_mean is None,
            momentum=module.momentum, eps=module.eps, **flat,
        )  # fmt: skip
        return outputs.view_as(inputs_BKC).transpose(0, 1)

    return on_stack(of_all, inputs, *used.values())
