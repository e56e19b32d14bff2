"""A learned optimizer: a small network reads 39 features of each weight and says how far to move it.

The form is small_fc_lopt of Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in learned
optimizers" (arXiv 2203.11860): 28 features from the weight, its gradient and running means of these, each divided by
its root mean square over the tensor, and 11 of the step's number; 39 -> 32 -> 32 -> 2 with ReLU, 2,402 numbers. The
two outputs d and m move a weight by -0.001 d exp(0.001 m). The constants are those of the authors' code.

Legend: F features, K rates of decay, S... the shape of a parameter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep

DECAYS = (0.9, 0.99, 0.999)  # of the momenta, and of the factored second moments
SQUARE_DECAY = 0.999
TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)  # steps
SIZE, OF_TENSOR = 0.001, 28  # a step for d = 1, m = 0; features that are not of the step's number
HIDDEN = 32
SHAPES = {
    "w0": (OF_TENSOR + len(TIMES), HIDDEN), "b0": (HIDDEN,), "w1": (HIDDEN, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, 2),
    "b2": (2,),
}  # fmt: skip
AT_ONCE = 2**15  # weights whose features are in memory at a time; they fit a processor's cache

State = dict[str, Tensor]  # momenta (K, S...), square (S...), and either row and column, or full: see `empty_state`


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second longest axis and the longest, of equally long ones the last; None below two axes."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (order[-2], order[-1]) if len(shape) > 1 else None


def empty_state(p: Tensor) -> State:
    """Zeros: `row` lacks the longest axis of p, and `column` the second longest; `full` is for less than two axes."""
    state = {"momenta": p.new_zeros(len(DECAYS), *p.shape), "square": torch.zeros_like(p)}
    axes = factored_axes(p.shape)
    if axes is None:
        return state | {"full": p.new_zeros(len(DECAYS), *p.shape)}
    lacking = [[n for axis, n in enumerate(p.shape) if axis != out] for out in axes]
    return state | {key: p.new_zeros(len(DECAYS), *lacking[i]) for key, i in (("row", 1), ("column", 0))}


def accumulated(g: Tensor, state: State) -> State:
    """The state after this gradient; nothing is changed in place, so that vmap can take it."""

    def means(old_K: Tensor, new: Tensor) -> Tensor:
        decay_K = _rates(new).view(-1, *[1] * new.dim())
        return decay_K * old_K + (1 - decay_K) * new

    square = g.square()
    new = {"momenta": means(state["momenta"], g),
           "square": SQUARE_DECAY * state["square"] + (1 - SQUARE_DECAY) * square}  # fmt: skip
    axes, square = factored_axes(g.shape), square + 1e-30
    if axes is None:
        return new | {"full": means(state["full"], square)}
    short, long = axes
    return new | {"row": means(state["row"], square.mean(long)), "column": means(state["column"], square.mean(short))}


def step_of(p: Tensor, g: Tensor, state: State, step: int, weights: Mapping[str, Tensor]) -> Tensor:
    """What the network would subtract from the parameter (S...), by the state after the gradient.

    Args:
        step: steps before this one.
        weights: of the network, by the names and shapes of `SHAPES`.
    """
    parts = list(_parts(p, g, state))
    squares_PF = torch.stack([_features(*part).square().sum(1) for part in parts])
    scale_F = torch.rsqrt(1e-5 + squares_PF.sum(0) / p.numel())
    time = torch.tanh(step / torch.tensor(TIMES, dtype=p.dtype, device=p.device) - 1)
    first = weights["w0"][:OF_TENSOR] * scale_F[:, None]
    constant = (time @ weights["w0"][OF_TENSOR:] + weights["b0"])[:, None]
    moves = []
    for part in parts:
        x_HN = torch.relu(first.T @ _features(*part) + constant)
        x_HN = torch.relu(weights["w1"].T @ x_HN + weights["b1"][:, None])
        out_2N = weights["w2"].T @ x_HN + weights["b2"][:, None]
        moves.append(SIZE * out_2N[0] * torch.exp(SIZE * out_2N[1]))
    return (torch.cat(moves) if len(moves) > 1 else moves[0]).view(p.shape)


Part = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _parts(p: Tensor, g: Tensor, state: State) -> Iterator[Part]:
    """The tensors that the features are made of, for as many weights as fit into memory at a time.

    p, g, square (S...); momenta, row, column and their factor (K, S...), the last three up to broadcasting.
    """
    axes = factored_axes(p.shape)
    if axes is None:
        full = state["full"]
        yield p, g, state["square"], state["momenta"], full, full, torch.rsqrt((full + 1e-9).clamp_min(1e-9))
        return
    short, long = axes
    row, column = state["row"], state["column"]
    of_row = row / (row.mean(1 + (short - 1 if short > long else short), keepdim=True) + 1e-9)
    row, of_row, column = row.unsqueeze(1 + long), of_row.unsqueeze(1 + long), column.unsqueeze(1 + short)
    factor_r, factor_c = torch.rsqrt(of_row.clamp_min(1e-9)), torch.rsqrt(column.clamp_min(1e-9))
    count = max(1, AT_ONCE // max(1, p[:1].numel()))
    for first in range(0, max(1, len(p)), count):
        cut = slice(first, first + count)

        def of(t_KS: Tensor, cut: slice = cut) -> Tensor:
            return t_KS if t_KS.shape[1] == 1 else t_KS[:, cut]

        yield (p[cut], g[cut], state["square"][cut], state["momenta"][:, cut], of(row), of(column),
               of(factor_r) * of(factor_c))  # fmt: skip


def _features(
    p: Tensor, g: Tensor, square: Tensor, momenta: Tensor, row: Tensor, column: Tensor, factor: Tensor
) -> Tensor:
    """The features of a part (F, N), before they are divided by their root mean square."""
    k = momenta.shape
    root = torch.rsqrt(square + 1e-6)
    # Without axes to factor, the authors' momenta have another constant than their gradients.
    factor_m = factor if row is not column else (row + 1e-6) ** -0.5
    found = [
        g[None], p[None], momenta, square[None], momenta * root, root[None], g * factor, row.expand(k),
        column.expand(k), torch.rsqrt(row + 1e-8).expand(k), torch.rsqrt(column + 1e-8).expand(k), momenta * factor_m,
    ]  # fmt: skip
    return torch.cat([x.reshape(len(x), -1) for x in found])


def _rates(like: Tensor) -> Tensor:
    return torch.tensor(DECAYS, dtype=like.dtype, device=like.device)


def check_form(weights: Mapping[str, Tensor]) -> None:
    """ValueError if they are not of the network: names, shapes, floating point."""
    got = {name: tuple(t.shape) for name, t in weights.items()}
    if got != SHAPES:
        raise ValueError(f"weights: expected {SHAPES}, got {got}")
    for name, t in weights.items():
        if not t.is_floating_point():
            raise ValueError(f"weights: {name} must hold floating point numbers, got {t.dtype}")


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """The same, and ValueError if a number is not finite in float32."""
    check_form(weights)
    for name, t in weights.items():
        if not t.float().isfinite().all():
            raise ValueError(f"weights: {name} must hold numbers that are finite in float32")


class Learned(OneStep):
    """Moves each weight by what a network makes of its gradients so far; it has no rate to tune.

    A tensor whose gradients have all been zero stays, which the published form would move.

    The state is 4 numbers a weight, and 3 for each row and column of a tensor of two axes or more, or 3 more a weight
    in others; it works in float32 at least.

    Args:
        params: parameters or parameter groups, real.
        weights: of the network, by the names and shapes of `SHAPES`.
        lr: multiplies what the network proposes.
        weight_decay: L2 penalty, added to the gradient; the published form has none.
        maximize, foreach: as in torch; tensors are stepped one by one.

    Raises: as in `OneStep`; ValueError if the weights do not fit.
    """

    name = "learned"

    def __init__(
        self, params: Iterable[Any], weights: Mapping[str, Tensor], lr: float | Tensor = 1.0,
        **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        check_form(weights)
        self.weights = dict(weights)
        super().__init__(params, lr, {}, **common)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, which would round the state of half-precision parameters to their type."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, params, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    wide = torch.promote_types(p.dtype, torch.float32)
                    self.state[p][key] = value.detach().to(p.device, wide, copy=True)

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        placed: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}  # a copy to a GPU once, not for each p
        for p, grad in zip(params, grads, strict=True):
            dtype = torch.promote_types(p.dtype, torch.float32)
            state, wide, g = self.state[p], p.detach().to(dtype), grad.to(dtype)
            if not state:
                state.update(step=0, **empty_state(wide))
            after = accumulated(g, {key: t for key, t in state.items() if key != "step"})
            if (place := (p.device, dtype)) not in placed:
                placed[place] = {name: t.to(*place) for name, t in self.weights.items()}
            if p.numel():  # a tensor that has seen zeros alone stays, though the network would move it
                move = step_of(wide, g, after, state["step"], placed[place]) * (after["square"].amax() > 0)
                p.sub_(move, alpha=lr)
            state.update(after, step=state["step"] + 1)
