"""CLARS: LARS whose rates come from the gradients of single examples, for large batches without warm-up.

Huo, Gu and Huang 2020, "Large Batch Training Does Not Need Warmup" (arXiv 2002.01576), Algorithm 1: the rate of layer k
is in proportion to

    |w_k| / mean over the batch's examples of |grad_k f_i(w)|

where LARS divides by the norm of the mean gradient. Examples whose gradients disagree make the step shorter.

Legend: B examples of a batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .onestep import CommonSettings, OneStep

Loss = Callable[[Any], tuple[Tensor, Tensor | int]]
"""A batch -> the sum of its terms' losses, which reads the module's parameters, and the number of terms."""

AT_ONCE = 2**24  # numbers in the gradients of the examples that are differentiated together


@dataclass
class Sums:
    """Of a batch, or of examples one by one: the loss, its terms, and of each parameter the gradient and its norm."""

    total: Tensor
    weight: Tensor
    grads: list[Tensor]
    norms: list[Tensor]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters that have gradients, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def why_not_by_examples(module: nn.Module) -> str | None:
    """What in a module keeps examples from having gradients of their own, or vmap from finding them; None: nothing."""
    for name, m in module.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            return f"{name} normalises over the batch"
        if isinstance(m, nn.RNNBase):
            return f"torch.func.vmap has no rule for {name}, a recurrent layer"
        if isinstance(m, nn.Embedding) and (m.padding_idx is not None or m.sparse):
            return f"torch.func.vmap has no rule for {name}, with padding_idx or sparse gradients"
    return None


def of_examples(module: nn.Module, loss: Loss, batch: Sequence[Tensor]) -> Sums:
    """The sums over the examples of a batch, each a batch of one; their gradients are never all in memory.

    Args:
        batch: tensors of shape (B, ...).

    Raises:
        RuntimeError, ValueError, NotImplementedError: by vmap, which cannot do what the loss does.
    """
    params = trained(module)
    reader = _Reader(module, loss)

    def of_one(values: dict[str, Tensor], *example: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        total, weight = functional_call(reader, values, (tuple(t[None] for t in example),))
        return total, (total.detach(), torch.as_tensor(weight, device=total.device))

    values = {f"module.{name}": p.detach() for name, p in params.items()}
    each = vmap(grad(of_one, has_aux=True), (None, *[0] * len(batch)), randomness="different")
    size = max(1, AT_ONCE // max(1, sum(p.numel() for p in params.values())))
    found: Sums | None = None
    for some in zip(*(torch.split(t, size) for t in batch), strict=True):
        grads, (total_B, weight_B) = each(values, *some)
        norms = [g.flatten(1).norm(dim=1).sum() for g in grads.values()]
        sums = Sums(total_B.sum(), weight_B.sum(), [g.sum(0) for g in grads.values()], norms)
        found = sums if found is None else added(found, sums)
    assert found is not None
    return found


def of_batch(module: nn.Module, loss: Loss, batch: Any) -> Sums:
    """The same of a batch that counts as one example."""
    total, weight = loss(batch)
    grads = torch.autograd.grad(total, list(trained(module).values()), allow_unused=True, materialize_grads=True)
    return Sums(total.detach(), torch.as_tensor(weight, device=total.device), list(grads), [g.norm() for g in grads])


def added(a: Sums, b: Sums) -> Sums:
    grads, norms = (torch._foreach_add(x, y) for x, y in ((a.grads, b.grads), (a.norms, b.norms)))
    return Sums(a.total + b.total, a.weight + b.weight, list(grads), list(norms))


def example_norms(
    module: nn.Module, loss: Loss, parts: Sequence[Any], by_examples: bool = True
) -> tuple[Tensor, Tensor, dict[Tensor, Tensor]]:
    """Differentiates the mean loss of a batch, into `p.grad`; returns it, what it is over, and `CLARS.norms`.

    Args:
        parts: of the batch; their division does not matter if `by_examples`.
        by_examples: the norms are those of the gradients of single examples; False: of each part's mean gradient. A
            norm is weighted by the terms of the loss that it is of.

    Example:
        >>> import torch
        >>> from tmbench.optim import CLARS, example_norms
        >>> model, x, y = torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randint(2, (8,))
        >>> optimizer = CLARS(model.parameters(), lr=1.0)
        >>> def loss(batch):
        ...     return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[0])
        >>> mean_loss, _, optimizer.norms = example_norms(model, loss, [(x, y)])
        >>> optimizer.step()
    """
    sums = (of_examples if by_examples else of_batch)(module, loss, parts[0])
    for part in parts[1:]:
        sums = added(sums, (of_examples if by_examples else of_batch)(module, loss, part))
    over = sums.weight.where(sums.weight > 0, 1)
    norms = dict[Tensor, Tensor]()
    for p, g, norm in zip(trained(module).values(), sums.grads, sums.norms, strict=True):
        p.grad, norms[p] = g / over, norm / over
    return sums.total / over, sums.weight, norms


class _Reader(nn.Module):
    """The loss as the forward pass of a module, in which functional_call puts other parameters."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | int]:
        return self.loss(batch)


class CLARS(OneStep):
    """Momentum whose rate is scaled for each tensor by trust_coefficient |w| / (mean of the examples' |g| + decay |w|).

    Tensors of less than two dimensions (biases, gains of norms) take plain steps without decay, as in LARS, and so do
    tensors of zeros. A step without `norms` counts the batch as one example: it is LARS's.

    Args:
        params: parameters or parameter groups, real.
        lr: the rate, which multiplies the buffer.
        momentum: in [0, 1): share of the buffer that is kept.
        trust_coefficient: > 0: largest change of a tensor in one step, as a share of its norm, without momentum.
        weight_decay: L2 penalty.
        maximize, foreach: as in torch.

    Attributes:
        norms: of each parameter, the mean norm of the examples' gradients, as `example_norms` returns them. A step uses
            up those of the parameters that it moves.

    Raises: as in `OneStep`.
    """

    name = "clars"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, *, momentum: float = 0.9, trust_coefficient: float = 0.001,
        **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        self.norms: dict[Tensor, Tensor] = {}
        super().__init__(params, lr, {"momentum": momentum, "trust_coefficient": trust_coefficient}, **common)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "norms": {}}

    def is_decoupled(self, group: dict[str, Any]) -> bool:
        return True  # the decay has a place of its own in the rate

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        decay = group["weight_decay"]
        for p, g in zip(params, grads, strict=True):
            norm = self.norms.pop(p, None)
            if p.ndim > 1:
                wide = torch.promote_types(p.dtype, torch.float32)  # norms of float16 soon overflow
                size = torch.linalg.vector_norm(p, dtype=wide)
                below = (torch.linalg.vector_norm(g, dtype=wide) if norm is None else norm) + decay * size
                rate = torch.where((size > 0) & (below > 0), group["trust_coefficient"] * size / below, 1.0).to(p.dtype)
                g = rate * torch.add(g, p, alpha=decay)
            if group["momentum"]:
                state = self.state[p]
                state["buffer"] = state["buffer"].mul_(group["momentum"]).add_(g) if state else g.clone()
                g = state["buffer"]
            p.add_(g, alpha=-lr)

    def check(self, group: dict[str, Any]) -> None:
        if not 0 <= group["momentum"] < 1:
            self.refuse(f"momentum must be in [0, 1), got {group['momentum']}")
        if not 0 < group["trust_coefficient"] < float("inf"):
            self.refuse(f"trust_coefficient must be > 0 and finite, got {group['trust_coefficient']}")
