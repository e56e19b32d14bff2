"""One template, many methods: steps along the linear minimisation oracle (LMO) of a norm ball.

    d <- momentum d + (1 - momentum) g,    p <- (1 - lr weight_decay) p + lr radius lmo(d),
    lmo(d) = argmin <d, x> over norm(x) <= 1

Pethick et al. 2025, "Training deep learning models with norm-constrained LMOs" (arXiv 2502.07529): with weight_decay 0
their unconstrained form, with weight_decay 1 their constrained one, whose weights stay within the ball of `radius`; and
"Training Neural Networks at Any Scale" (arXiv 2511.11163), where the template is the common form. Its members:

    l2          -d / |d|       normalised SGD with momentum
    sign        -sign(d)       sign SGD with momentum (the ball of the largest entry)
    spectral    -U V^T         Muon (Jordan 2024), Scion: d = U S V^T, by Newton-Schulz iterations
    auto        spectral for matrices and convolutions, l2 for vectors, sign for tables: Scion
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from .onestep import CommonSettings, OneStep

NORMS = ("auto", "l2", "sign", "spectral")
SCALES = ("scion", "muon", "unit")
# Jordan 2024, https://kellerjordan.github.io/posts/muon: five iterations take singular values to between 0.7 and 1.2.
MUON = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, coefficients: Sequence[float], steps: int, eps: float = 1e-7) -> Tensor:
    """About U V^T of a matrix U S V^T, in bfloat16: `steps` of X <- a X + (b X X^T + c (X X^T)^2) X (Jordan 2024).

    Shapes: (rows, columns) -> the same. The iteration starts at the matrix over its Frobenius norm, at least `eps`.
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).to(torch.bfloat16)
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def steepest(d: Tensor, norm: str, coefficients: Sequence[float] = MUON, steps: int = 5) -> Tensor:
    """argmax <d, x> over the unit ball of `norm` (l2, sign or spectral), which is -lmo(d); 0 where d is 0.

    Shapes: (rows, ...) -> the same; spectral sees (rows, all else).
    """
    if norm == "sign":
        return d.sign()
    if norm == "l2":
        return d / torch.linalg.vector_norm(d).clamp(min=torch.finfo(d.dtype).tiny)
    return orthogonalised(d.flatten(1), coefficients, steps).view_as(d)


def norm_of(norm: str, shape: torch.Size, max_side: int) -> str:
    """Which norm a parameter of this shape has: as Scion where it is `auto`; spectral of a vector, a column, is l2."""
    if len(shape) < 2 and norm != "sign":
        return "l2"
    if norm != "auto":
        return norm
    return "sign" if max(shape) > max_side else "spectral"


def scale_of(scale: str, norm: str, shape: torch.Size) -> float:
    """What multiplies the LMO of the unit ball, so that one rate serves layers of many shapes.

    `scion` (Pethick et al. 2025): the entries of an l2 step have root mean square 1; a spectral step changes outputs by
    at most 1 for inputs of 1, both as root mean squares, and is shared by the places of a kernel; signs are divided by
    the number of inputs (the length of a table's rows). `muon`: sqrt(rows / columns) for a spectral step where that is
    above 1. `unit`: 1.
    """
    inputs, places = (shape[1], math.prod(shape[2:])) if len(shape) > 1 else (1, 1)
    if scale == "scion":
        if norm == "l2":
            return math.sqrt(math.prod(shape))
        return 1 / inputs if norm == "sign" else math.sqrt(shape[0] / inputs) / places
    return math.sqrt(max(1, shape[0] / (inputs * places))) if (scale, norm) == ("muon", "spectral") else 1.0


class LMO(OneStep):
    """Steps of a fixed length in a chosen norm, along the LMO of the running mean of the gradients.

    Args:
        params: parameters or parameter groups, real; a group may have a norm, radius and scale of its own.
        lr: share of `radius` that a step is long.
        norm: one of auto, l2, sign, spectral. auto: spectral for matrices and convolutions, l2 for tensors of less than
            two dimensions, sign for matrices with a side above `max_side`: tables and heads of many words. A shape does
            not tell smaller tables from matrices; a group of their own can say norm="sign".
        momentum: in [0, 1): share of the last mean of the gradients that is kept (1 - alpha in Scion's paper).
        nesterov: the LMO is that of (1 - momentum) g + momentum d, as in Muon.
        radius: > 0: of the ball.
        scale: one of scion, muon, unit: see `scale_of`.
        ns_coefficients: a, b, c of an iteration X <- a X + (b X X^T + c (X X^T)^2) X; the defaults are Muon's.
        ns_steps: >= 1: how many iterations.
        max_side: see norm.
        weight_decay: decoupled: a step shrinks weights by lr weight_decay. 1 is Scion's constrained form.
        maximize, foreach: as in torch.

    Raises: as in `OneStep`.
    """

    name = "lmo"

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor, *, norm: str = "auto", momentum: float = 0.9,
        nesterov: bool = False, radius: float = 1.0, scale: str = "scion", ns_coefficients: Sequence[float] = MUON,
        ns_steps: int = 5, max_side: int = 8192, **common: Unpack[CommonSettings],
    ) -> None:  # fmt: skip
        settings = {
            "norm": norm, "momentum": momentum, "nesterov": nesterov, "radius": radius, "scale": scale,
            "ns_coefficients": tuple(ns_coefficients), "ns_steps": ns_steps, "max_side": max_side,
        }  # fmt: skip
        super().__init__(params, lr, settings, **common)

    def is_decoupled(self, group: dict[str, Any]) -> bool:
        return True

    def update(self, group: dict[str, Any], lr: float, params: list[Tensor], grads: list[Tensor]) -> None:
        momentum = group["momentum"]
        for p in params:
            if not self.state[p]:
                self.state[p]["mean"] = torch.zeros_like(p)
        means = [self.state[p]["mean"] for p in params]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, means, momentum) if group["nesterov"] else means
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, d in zip(params, directions, strict=True):
            norm = norm_of(group["norm"], p.shape, group["max_side"])
            length = lr * group["radius"] * scale_of(group["scale"], norm, p.shape)
            p.add_(steepest(d, norm, group["ns_coefficients"], group["ns_steps"]), alpha=-length)

    def check(self, group: dict[str, Any]) -> None:
        for key, known in (("norm", NORMS), ("scale", SCALES)):
            if group[key] not in known:
                self.refuse(f"{key} must be one of {', '.join(known)}, got {group[key]!r}")
        if not 0 <= group["momentum"] < 1:
            self.refuse(f"momentum must be in [0, 1), got {group['momentum']}")
        if not 0 < group["radius"] < float("inf"):
            self.refuse(f"radius must be > 0 and finite, got {group['radius']}")
        if len(group["ns_coefficients"]) != 3:
            self.refuse(f"ns_coefficients must be three numbers, got {group['ns_coefficients']}")
        for key in ("ns_steps", "max_side"):
            if not isinstance(group[key], int) or group[key] < 1:
                self.refuse(f"{key} must be a whole number >= 1, got {group[key]!r}")
