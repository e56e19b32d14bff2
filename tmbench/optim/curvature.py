"""How sharp the loss is here: the algebraically largest eigenvalue of the Hessian, for anybody's training loop.

Symbols: n weights, all in one flat vector; m vectors in the basis; H the Hessian of the loss.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

DOUBLE, CENTRAL = "double backward", "central differences"
BASIS_NUMBERS = 2**28  # at most so many numbers in the basis: 1 GiB of float32
BASIS_VECTORS = (4, 32)  # at least, at most
FRESH = 0.5  # the random share of a start: a new top direction may be orthogonal to the last one
FEWEST = 4  # products before a start is trusted, for the same reason
SYMMETRIC = 1e-3  # a product is so exact by double backward, of the largest eigenvalue
STEP = 0.05  # of central differences, in roots of the rounding error times the norm of the weights
SHRINK, SHRINKS = 4, 3  # a step of central differences that proves too long becomes shorter, so often at most
Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Curvature:
    """A measurement of `top_curvature`.

    `top`: the largest eigenvalue of the Hessian plus the weight decay. `error`: the residual |H v - top v|, within
    which an eigenvalue lies; or, if more, by how much the products are not
    symmetric, and what doubling the step of central differences changes. `vector`: the unit eigenvector
    v, a tensor for each parameter. `products`: Hessian-vector products used. `how`: "double backward" or "central
    differences". `gradient_norm`: of the loss without decay.
    """

    top: float
    error: float
    vector: list[Tensor]
    products: int
    how: str
    gradient_norm: float


def top_curvature(
    loss: Closure | Sequence[Closure], params: Iterable[Tensor], *, weight_decay: float | Sequence[float] = 0.0,
    preconditioner: Sequence[Tensor] | None = None, iterations: int = 60, tolerance: float = 0.01,
    start: Sequence[Tensor] | None = None, how: str | None = None,
) -> Curvature:  # fmt: skip
    """The algebraically largest eigenvalue of the Hessian of `loss` plus the weight decay, by thick-restart Lanczos.

    Parameters, their gradients and torch's random states are left as they were, bit for bit. Every call of a closure
    sees the random state that the caller has, so that dropout draws one mask.

    Args:
        loss: returns the scalar loss; or several closures whose sum is meant, backpropagated one after another.
        params: real tensors that require a gradient.
        weight_decay: the L2 penalty, one number or one for each parameter; it is added to the diagonal of H.
        preconditioner: a positive tensor P of each parameter's shape. The eigenvalue is then that of
            P^-1/2 (H + decay) P^-1/2 (Cohen et al. 2022, arXiv 2207.14484), and the vector is in these coordinates.
        iterations: at most so many Hessian-vector products.
        tolerance: stop when the residual is at most this share of the eigenvalue. The eigenvalue's own error goes
            with the residual's square.
        start: the `vector` of an earlier measurement; it saves most of the products.
        how: "double backward", "central differences" (of gradients, for operations that can be differentiated only
            once), or None for the first of these that works. Differences are as exact in smooth networks (LSTM); the
            kinks of ReLU disturb them in float32, and `error` tells how far.

    Raises:
        ValueError: arguments that do not fit; a loss that is no scalar, is not finite or does not depend on the
            parameters; a gradient that is not finite.
    """
    params, losses = list(params), [loss] if callable(loss) else list(loss)
    _check(losses, params, iterations, tolerance, how)
    decay = _decay(weight_decay, params)
    begin = _start(start, params)
    with torch.inference_mode(False), torch.enable_grad():
        products = _Products(losses, params, how)
        scale = None if preconditioner is None else _positive(preconditioner, params).rsqrt()

        def apply(x: Tensor) -> Tensor:
            y = x if scale is None else scale * x
            y = products(y) + decay * y
            return y if scale is None else scale * y

        top, error, vector = _measure(products, apply, begin, iterations, tolerance, how is None)
        how = products.how or DOUBLE
    return Curvature(top, error, _split(vector, params), products.count, how, products.gradient.norm().item())


def _measure(
    products: "_Products", apply: Callable[[Tensor], Tensor], begin: Tensor, iterations: int, tolerance: float,
    choose: bool,
) -> tuple[float, float, Tensor]:  # fmt: skip
    """What `lanczos` finds; by central differences with a step that twice the step agrees with, and extrapolated.

    An operation that cuts the second derivative's graph, silently, leaves a matrix that is not symmetric; `choose`:
    central differences are taken then.

    The third derivative changes the eigenvalue by the square of the step, so twice the step is off by three times more
    than the step. Where a shorter step does not help, kinks (ReLU) or rounding make the two differ.
    """
    best, least = (math.nan, math.inf, begin), math.inf
    for _ in range(SHRINKS + 1):
        top, error, skew, vector = lanczos(apply, begin, max(1, iterations - products.count - 1), tolerance)
        if products.how == DOUBLE:
            if not choose or skew <= SYMMETRIC:
                return top, max(error, skew * abs(top)), vector
            products.how = CENTRAL
            top, error, skew, vector = lanczos(apply, begin, max(1, iterations - products.count - 1), tolerance)
        products.step *= 2
        change = torch.dot(vector, apply(vector)).item() - top
        products.step /= 2 * SHRINK
        helped, least = abs(change) < least / 2, min(least, abs(change))
        if abs(change) == least:
            best = top - change / 3, max(error, abs(change), skew * abs(top)), vector
        if abs(change) <= tolerance * abs(top) or not helped or products.count >= iterations - 1:
            break
        begin = vector
    return best


def lanczos(
    apply: Callable[[Tensor], Tensor], start: Tensor, iterations: int, tolerance: float
) -> tuple[float, float, float, Tensor]:
    """The largest eigenvalue of an operator, its residual's norm, the operator's asymmetry, and the unit vector (n,).

    The asymmetry is a share of the eigenvalue of the largest modulus; rounding and other noise, too, are asymmetric.

    Lanczos with full reorthogonalization, twice. When the basis is full it is restarted from the upper half of its
    Ritz vectors (thick restart: Wu and Simon 2000, doi 10.1137/S0895479898334605).
    """
    n = len(start)
    m = min(n, max(BASIS_VECTORS[0], min(BASIS_VECTORS[1], BASIS_NUMBERS // n)))
    basis_mn = start.new_empty(m, n)
    projected = torch.zeros(m, m, dtype=torch.float64)
    basis_mn[0] = start / start.norm()
    last, skew, coupled = 0, 0.0, torch.zeros(0, dtype=torch.float64)
    for used in range(1, iterations + 1):
        w, column = _orthogonal(apply(basis_mn[last]), basis_mn[: last + 1])
        projected[last, : last + 1] = projected[: last + 1, last] = column = column.double().cpu()
        skew = max(skew, (column[:last] - coupled).norm().item())
        values, vectors = torch.linalg.eigh(projected[: last + 1, : last + 1])
        beta, top = w.norm().item(), values[-1].item()
        error = beta * vectors[-1, -1].abs().item()
        floor = 10 * torch.finfo(start.dtype).eps * values.abs().max().item()
        if beta <= floor or used == iterations or (used >= FEWEST and error <= tolerance * abs(top)):
            break
        last += 1
        coupled = torch.zeros(last, dtype=torch.float64)
        coupled[-1] = beta
        if last == m:
            last = max(1, m // 2)
            basis_mn[:last] = vectors[:, -last:].T.to(basis_mn) @ basis_mn
            projected = torch.zeros_like(projected)
            projected[:last, :last] = values[-last:].diag()
            coupled = beta * vectors[-1, -last:]
        basis_mn[last] = w / beta
    vector = vectors[:, -1].to(basis_mn) @ basis_mn[: last + 1]
    return top, error, skew / (values.abs().max().item() or 1.0), vector / vector.norm()


def _orthogonal(w: Tensor, basis_kn: Tensor) -> tuple[Tensor, Tensor]:
    """What is left of w (n,) beside the basis, and its parts along the basis (k,)."""
    along = basis_kn @ w
    w = w - along @ basis_kn
    again = basis_kn @ w  # what rounding left: without it, eigenvalues come twice
    return w - again @ basis_kn, along + again


class _Products:
    """Hessian-vector products of the sum of losses at the present weights, flat: (n,) -> (n,)."""

    def __init__(self, losses: Sequence[Closure], params: list[Tensor], how: str | None) -> None:
        self.losses, self.params, self.how, self.count = losses, params, how, 0
        self.kept: Sequence[Tensor | None] | None = None  # the gradient with its graph, where there is one part alone
        self.gradient = self._sum(lambda loss: self._dense(self._slopes(loss)))
        if not self.gradient.isfinite().all():
            raise ValueError("top_curvature: the gradient is not finite, though the loss is; expected finite numbers")
        # Rounding changes the quotient by 1 / step, the third derivative by the square of the step. The root of eps,
        # which would balance the two for weights of size 1, is too long beside the norm of a whole embedding.
        size = _flat([p.detach() for p in params]).norm().item() or 1.0
        self.step = STEP * torch.finfo(self.gradient.dtype).eps ** 0.5 * size

    def __call__(self, v: Tensor) -> Tensor:
        self.count += 1
        product = self._double(v) if self.how == DOUBLE else self._central(v) if self.how else self._first(v)
        if not product.isfinite().all():
            raise ValueError("top_curvature: a Hessian-vector product is not finite, though loss and gradient are")
        return product

    def _first(self, v: Tensor) -> Tensor:
        try:
            product, self.how = self._double(v), DOUBLE
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # an operation has no second derivative; anything else comes again below
            product, self.how, self.kept = self._central(v), CENTRAL, None
        return product

    def _sum(self, part: Callable[[Closure], Tensor]) -> Tensor:
        total = part(self.losses[0])
        for loss in self.losses[1:]:
            total += part(loss)
        return total

    def _slopes(self, loss: Closure, twice: bool = True) -> Sequence[Tensor | None]:
        """The gradient of one part; `twice`: with the graph that a second derivative needs."""
        if twice and self.kept is not None:
            return self.kept
        with _same_random(self.params):
            value = _checked(loss())
            slopes = torch.autograd.grad(value, self.params, create_graph=twice, allow_unused=True)
        if all(slope is None for slope in slopes):
            raise ValueError("top_curvature: the loss does not depend on any of params")
        if twice and len(self.losses) == 1:
            self.kept = slopes
        return slopes

    def _dense(self, tensors: Sequence[Tensor | None]) -> Tensor:
        pairs = zip(tensors, self.params, strict=True)
        return _flat([torch.zeros_like(p) if t is None else t.detach().to_dense() for t, p in pairs])

    def _double(self, v: Tensor) -> Tensor:
        def part(loss: Closure) -> Tensor:
            both = zip(self._slopes(loss), _split(v, self.params), strict=True)
            pairs = [(s, x) for s, x in both if s is not None and s.requires_grad]
            slopes, along = [s for s, _ in pairs], [x for _, x in pairs]
            second = torch.autograd.grad(
                slopes, self.params, along, retain_graph=self.kept is not None, allow_unused=True
            )
            if all(x is None for x in second) and (pairs or self.how is None):  # torch says nothing of such cuts
                raise RuntimeError("top_curvature: an operation is differentiable once only; use central differences")
            return self._dense(second)

        return self._sum(part)

    def _central(self, v: Tensor) -> Tensor:
        if any(p.dtype not in (torch.float32, torch.float64) for p in self.params):
            raise ValueError(f"top_curvature: {CENTRAL} need parameters of float32 or float64; others round too much")
        norm = v.norm()
        saved = [p.detach().clone() for p in self.params]
        move = _split(v * (self.step / norm), self.params)
        try:
            ahead, behind = (self._gradient_at(saved, move, sign) for sign in (1, -1))
        finally:
            for p, w in zip(self.params, saved, strict=True):
                p.data.copy_(w)
        return (ahead - behind) * (norm / (2 * self.step))

    def _gradient_at(self, weights: list[Tensor], move: list[Tensor], sign: int) -> Tensor:
        for p, w, d in zip(self.params, weights, move, strict=True):
            p.data.copy_(w).add_(d, alpha=sign)
        return self._sum(lambda loss: self._dense(self._slopes(loss, twice=False)))


@contextmanager
def _same_random(params: Sequence[Tensor]) -> Iterator[None]:
    """Leaves torch's random states as they are, so that every evaluation draws the same."""
    cuda = sorted({p.get_device() for p in params if p.is_cuda})
    with torch.random.fork_rng(devices=cuda):
        yield


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector (n,), of float32 at least."""
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return torch.cat([t.reshape(-1).to(tensors[0].device, dtype) for t in tensors])


def _split(flat: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The vector's parts in the parameters' shapes, types and places."""
    parts = torch.split(flat, [p.numel() for p in params])
    return [x.view(p.shape).to(p) for x, p in zip(parts, params, strict=True)]


def _start(start: Sequence[Tensor] | None, params: list[Tensor]) -> Tensor:
    """A unit vector to begin with: random, by a generator of its own, and with as much of the given one."""
    n = sum(p.numel() for p in params)
    zeros = _flat([torch.zeros_like(p, requires_grad=False) for p in params])
    fresh = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(zeros)
    fresh /= fresh.norm()
    if start is None:
        return fresh
    given = _flat(_fitting("start", start, params))
    if not (given.isfinite().all() and given.norm() > 0):
        raise ValueError("top_curvature: start must be finite and not zero; pass the vector of an earlier measurement")
    return given / given.norm() + FRESH * fresh


def _positive(preconditioner: Sequence[Tensor], params: list[Tensor]) -> Tensor:
    flat = _flat(_fitting("preconditioner", preconditioner, params))
    if not (flat.isfinite() & (flat > 0)).all():
        raise ValueError("top_curvature: preconditioner must be positive and finite in every entry")
    return flat


def _fitting(name: str, tensors: Sequence[Tensor], params: list[Tensor]) -> list[Tensor]:
    got, expected = [tuple(t.shape) for t in tensors], [tuple(p.shape) for p in params]
    if got != expected:
        raise ValueError(f"top_curvature: {name} must have the parameters' shapes {expected}, got {got}")
    return [t.detach() for t in tensors]


def _decay(weight_decay: float | Sequence[float], params: list[Tensor]) -> float | Tensor:
    each = [weight_decay] * len(params) if isinstance(weight_decay, int | float) else list(weight_decay)
    if len(each) != len(params) or not all(0 <= d < math.inf for d in each):
        raise ValueError(
            f"top_curvature: weight_decay must be a finite number >= 0, or one for each of {len(params)} parameters, "
            f"got {weight_decay}"
        )
    if len(set(each)) == 1:
        return float(each[0])
    return _flat([torch.full_like(p, d, requires_grad=False) for p, d in zip(params, each, strict=True)])


def _checked(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"top_curvature: loss must return a real tensor of one number, got {got}")
    if not value.isfinite():
        raise ValueError(f"top_curvature: the loss is {value.item()}, expected a finite number")
    if not value.requires_grad:
        raise ValueError("top_curvature: the loss does not depend on params; was it detached, or taken under no_grad?")
    return value.reshape(())


def _check(losses: list[Closure], params: list[Tensor], iterations: int, tolerance: float, how: str | None) -> None:
    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(f"top_curvature: {message}")

    require(bool(losses) and all(map(callable, losses)), "loss must be a closure, or a sequence of at least one")
    require(bool(params), "params is empty; pass the parameters of the loss")
    require(len({id(p) for p in params}) == len(params), "params has a tensor twice; pass each once")
    for place, p in enumerate(params):
        require(p.is_floating_point(), f"parameter {place} is {p.dtype}, expected real floating point numbers")
        require(p.requires_grad, f"parameter {place} does not require a gradient; leave it out")
    require(iterations >= 1, f"iterations must be at least 1, got {iterations}")
    require(0 < tolerance < 1, f"tolerance must be in (0, 1), got {tolerance}")
    require(how in (None, DOUBLE, CENTRAL), f'how must be "{DOUBLE}", "{CENTRAL}" or None, got {how!r}')
