"""top_curvature: against dense Hessians, closed forms and other packages; and that it leaves everything as it was."""

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Compose
from helpers import build, first_batch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tmbench.numerics import edge
from tmbench.optim import TMSGD, Curvature, preconditioned_limit, stability, top_curvature
from tmbench.optim.curvature import CENTRAL, DOUBLE, lanczos
from tmbench.task import Task, mean

Problem = tuple[Callable[[], Tensor], list[Tensor]]
WAYS = [DOUBLE, CENTRAL]


class Reader(nn.Module):
    """Words, an LSTM, and its last output's class."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding, self.lstm, self.last = nn.Embedding(9, 3, sparse=sparse), nn.LSTM(3, 3), nn.Linear(3, 3)

    def forward(self, words_LB: Tensor) -> Tensor:
        return self.last(self.lstm(self.embedding(words_LB))[0][-1])


def pictures(act: Callable[[], nn.Module], norm: bool) -> nn.Sequential:
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3) if norm else nn.Identity(), act(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3))


NETS: dict[str, Callable[[], nn.Module]] = {
    "lstm": Reader,
    "sparse": lambda: Reader(sparse=True),
    "conv": lambda: pictures(nn.Tanh, False),
    "batch norm": lambda: pictures(nn.Tanh, True),
    "relu": lambda: pictures(nn.ReLU, True),
    "embedding": lambda: nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(21, 3)),
}


def problem(name: str, dtype: torch.dtype = torch.float64) -> Problem:
    """Cross-entropy of 12 examples, a little way down, so that the Hessian is indefinite and has a clear top."""
    torch.manual_seed(0)
    net = NETS[name]().to(dtype)
    words = torch.randint(9, (7, 12))
    x = words if name in ("lstm", "sparse") else words.T if name == "embedding" else torch.randn(12, 1, 6, 6).to(dtype)
    y = torch.randint(3, (12,))
    return lambda: cross_entropy(3 * net(x), y), list(net.parameters())


def dense(loss: Callable[[], Tensor], params: list[Tensor]) -> Tensor:
    """The Hessian, row by row."""
    slopes = torch.autograd.grad(loss(), params, create_graph=True)
    flat_n = torch.cat([slope.reshape(-1) for slope in slopes])
    rows = [torch.autograd.grad(g, params, retain_graph=True, materialize_grads=True) for g in flat_n]
    return torch.stack([torch.cat([x.reshape(-1) for x in row]) for row in rows])


@cache
def spectrum(name: str) -> tuple[Tensor, Tensor]:
    """The eigenvalues, ascending, and vectors of the Hessian of `problem(name)`."""
    return torch.linalg.eigh(dense(*problem("lstm" if name == "sparse" else name)))


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().to_dense().reshape(-1) for t in tensors])


def quadratic(*eigenvalues: float) -> Problem:
    h, w = torch.tensor(eigenvalues, dtype=torch.float64), torch.ones(len(eigenvalues), dtype=torch.float64)
    w.requires_grad_()
    return lambda: (h * w.square()).sum() / 2, [w]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_it_is_the_top_eigenvalue_of_the_dense_hessian(name: str, how: str) -> None:
    loss, params = problem(name)
    values, vectors = spectrum(name)
    assert values[0] < 0, "indefinite"
    found = top_curvature(loss, params, how=how, tolerance=1e-4)
    assert found.top == pytest.approx(values[-1].item(), rel=1e-6)
    assert found.how == how
    assert abs((flat(found.vector) @ vectors[:, -1]).item()) == pytest.approx(1, abs=1e-6)
    assert found.gradient_norm == pytest.approx(flat(torch.autograd.grad(loss(), params)).norm().item())
    assert found.error <= 1e-4 * found.top
    assert not any(v.is_sparse for v in found.vector)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", ["lstm", "sparse", "conv", "batch norm", "embedding"])
def test_it_is_within_one_percent_in_float32_at_the_defaults(name: str, how: str) -> None:
    loss, params = problem(name, torch.float32)
    assert top_curvature(loss, params, how=how).top == pytest.approx(spectrum(name)[0][-1].item(), rel=0.01)


class OnceDifferentiable(torch.autograd.Function):
    """The cube, as a kernel without a second derivative has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


def test_what_can_be_differentiated_once_is_measured_by_central_differences() -> None:
    w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = top_curvature(lambda: OnceDifferentiable.apply(w).square().sum() / 30, [w])
    assert (found.how, found.top) == (CENTRAL, pytest.approx(81, rel=0.01))
    with pytest.raises(RuntimeError, match="differentiable once only; use central differences"):
        top_curvature(lambda: OnceDifferentiable.apply(w).square().sum(), [w], how=DOUBLE)
    found = top_curvature(lambda: OnceDifferentiable.apply(w).sum(), [w])
    assert (found.how, found.top) == (CENTRAL, pytest.approx(18, rel=0.01))


def test_a_graph_that_is_cut_within_the_network_shows_as_a_matrix_that_is_not_symmetric() -> None:
    """Torch says nothing; the weights after the cut keep their second derivatives, those before it do not."""
    torch.manual_seed(0)
    x, a, b = torch.randn(8, 3), nn.Linear(3, 3), nn.Linear(3, 1)
    params = [*a.parameters(), *b.parameters()]
    exact = torch.linalg.eigvalsh(dense(lambda: b(a(x) ** 3).square().mean(), params))[-1].item()
    found = top_curvature(lambda: b(OnceDifferentiable.apply(a(x))).square().mean(), params)
    assert (found.how, found.top) == (CENTRAL, pytest.approx(exact, rel=1e-2))
    forced = top_curvature(lambda: b(OnceDifferentiable.apply(a(x))).square().mean(), params, how=DOUBLE)
    assert forced.error > 0.01 * forced.top


@pytest.mark.parametrize("how", WAYS)
def test_the_step_of_central_differences_fits_where_the_third_derivative_is_large(how: str) -> None:
    """cos(100 x) beside a weight of 1000: a step of a share of the weights would be whole periods."""
    w = torch.tensor([0.01, 1000.0], requires_grad=True)
    found = top_curvature(lambda: -(100 * w[0]).cos() / 1e4 + 0 * w[1], [w], how=how)
    assert found.top == pytest.approx(math.cos(1), rel=0.01)


def test_kinks_that_disturb_central_differences_show_in_the_error() -> None:
    """The slope jumps within the step, so the quotient depends on the step."""
    w = torch.tensor([1e-6, 1.0], requires_grad=True)
    found = top_curvature(lambda: w.relu().sum(), [w], how=CENTRAL)
    assert found.error > 0.3 * found.top > 10
    assert top_curvature(lambda: w.relu().sum(), [w], how=DOUBLE).top == 0


@pytest.mark.parametrize("how", WAYS)
def test_the_largest_is_meant_and_not_the_largest_in_size(how: str) -> None:
    assert top_curvature(*quadratic(-100, -7, 3, 0.5), how=how, tolerance=1e-4).top == pytest.approx(3)
    assert top_curvature(*quadratic(-100, -7, -3), how=how, tolerance=1e-4).top == pytest.approx(-3)
    assert top_curvature(*quadratic(0, 0), how=how).top == 0
    assert top_curvature(*quadratic(5), how=how).top == pytest.approx(5)


@pytest.mark.parametrize("how", WAYS)
def test_several_closures_are_their_sum(how: str) -> None:
    a, params = problem("conv")
    scaled = [lambda factor=factor: factor * a() for factor in (0.25, 0.75)]
    whole, parts = (top_curvature(each, params, how=how, tolerance=1e-4) for each in (a, scaled))
    assert parts.top == pytest.approx(whole.top, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm)


@pytest.mark.parametrize("how", WAYS)
def test_decay_and_preconditioner_are_those_of_the_dense_matrix(how: str) -> None:
    loss, params = problem("conv")
    h, diagonal = dense(loss, params), [torch.rand_like(p) + 0.1 for p in params]
    decay = [0.5 * place for place in range(len(params))]
    h += flat([torch.full_like(p, d) for p, d in zip(params, decay, strict=True)]).diag()
    found = top_curvature(loss, params, how=how, weight_decay=decay, tolerance=1e-4)
    assert found.top == pytest.approx(torch.linalg.eigvalsh(h)[-1].item(), rel=1e-6)
    scale = flat(diagonal).rsqrt()
    found = top_curvature(loss, params, how=how, weight_decay=decay, preconditioner=diagonal, tolerance=1e-4)
    assert found.top == pytest.approx(torch.linalg.eigvalsh(scale[:, None] * h * scale)[-1].item(), rel=1e-6)
    plain, decayed = (top_curvature(loss, params, how=how, weight_decay=d, tolerance=1e-4) for d in (0.0, 0.3))
    assert decayed.top - plain.top == pytest.approx(0.3)
    assert decayed.gradient_norm == plain.gradient_norm


def test_a_start_saves_products_and_yet_a_new_top_is_found() -> None:
    many = torch.linspace(-8, 8, 3000).tolist()
    cold = top_curvature(*quadratic(5, 10, *many))
    warm = top_curvature(*quadratic(5, 10, *many), start=cold.vector)
    assert warm.top == pytest.approx(10, rel=1e-3)
    assert warm.products < 0.6 * cold.products
    former = [torch.eye(3002, dtype=torch.float64)[0]]
    assert top_curvature(*quadratic(5, 10, *many), start=former).top == pytest.approx(10, rel=1e-3)


@pytest.mark.slow
def test_lanczos_converges_through_restarts() -> None:
    """A top that is 1e-3 apart takes more vectors than the basis has."""
    h = torch.cat([torch.linspace(-1, 1, 2000, dtype=torch.float64), torch.tensor([1.001, 1.003], dtype=torch.float64)])
    start = torch.randn(2002, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    top, error, skew, vector = lanczos(lambda x: h * x, start, 600, 1e-6)
    assert top == pytest.approx(1.003, rel=1e-10)
    assert (h * vector - top * vector).norm().item() == pytest.approx(error, rel=0.01)
    assert error <= 1.003e-6
    assert skew < 1e-10


def test_the_number_of_products_is_bounded_and_two_measurements_agree_bitwise() -> None:
    loss, params = problem("lstm")
    for how in WAYS:
        one, two = (top_curvature(loss, params, iterations=3, tolerance=1e-9, how=how) for _ in range(2))
        assert 2 <= one.products <= 3
        assert one.error > 1e-9
        assert (one.top, one.error, one.gradient_norm) == (two.top, two.error, two.gradient_norm)
        assert torch.equal(flat(one.vector), flat(two.vector))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("fails_at", [None, 1, 2, 4])
def test_weights_gradients_and_random_states_are_left_as_they_were(how: str, fails_at: int | None) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).float()
    params, x, calls = list(net.parameters()), torch.randn(6, 4), []
    for p in params[1:]:
        p.grad = torch.randn_like(p)
    before = [(p.detach().clone(), p.grad if p.grad is None else p.grad.clone(), p.data_ptr()) for p in params]
    kept, random = net(x).square().sum(), torch.get_rng_state()  # a graph of the caller's, to be used after

    def loss() -> Tensor:
        calls.append(None)
        if len(calls) == fails_at:
            raise KeyError("data")
        return net(x).square().mean()

    parts = [loss, loss] if how == DOUBLE else loss
    if fails_at is None:
        one, two = (top_curvature(parts, params, how=how) for _ in range(2))
        assert one.top == two.top, "one dropout mask"
    else:
        with pytest.raises(KeyError, match="data"):
            top_curvature(parts, params, how=how)
    assert torch.equal(random, torch.get_rng_state())
    for p, (weight, grad, place) in zip(params, before, strict=True):
        assert p.data_ptr() == place
        assert torch.equal(p, weight)
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)
        assert p.requires_grad
    kept.backward()


@pytest.mark.parametrize("how", WAYS)
def test_a_parameter_that_the_loss_does_not_use_counts_as_zero(how: str) -> None:
    loss, params = quadratic(1, 4)
    unused = torch.ones(2, 3, requires_grad=True)
    found = top_curvature(loss, [unused, *params], how=how, tolerance=1e-4)
    assert found.top == pytest.approx(4)
    assert found.vector[0].shape == (2, 3)
    assert found.vector[0].abs().max() < 1e-3


def test_it_measures_under_no_grad_and_among_tensors_of_several_types() -> None:
    w, v = torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        found = top_curvature(lambda: w.square().sum() + 3 * v.square().sum(), [w, v])
    assert found.top == pytest.approx(6)
    assert [x.dtype for x in found.vector] == [torch.float32, torch.float64]


W = torch.ones(2, requires_grad=True)
H = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "params", "settings", "text"),
    [
        (lambda: W.sum() * math.inf, [W], {}, "the loss is inf, expected a finite number"),
        (lambda: (W - 1).sqrt().sum(), [W], {}, "the gradient is not finite, though the loss is"),
        (lambda: W, [W], {}, r"a real tensor of one number, got torch.float32 of shape \(2,\)"),
        (lambda: 1.0, [W], {}, "a real tensor of one number, got float"),
        (lambda: W.detach().sum(), [W], {}, "the loss does not depend on params"),
        (lambda: torch.ones(1, requires_grad=True).sum(), [W], {}, "the loss does not depend on any of params"),
        (W.sum, [], {}, "params is empty; pass"),
        ([], [W], {}, "loss must be a closure, or a sequence of at least one"),
        (W.sum, [W, W], {}, "params has a tensor twice"),
        (W.sum, [torch.ones(1)], {}, "parameter 0 does not require a gradient; leave it out"),
        (W.sum, [torch.ones(1, dtype=torch.complex64)], {}, "parameter 0 is torch.complex64, expected real"),
        (W.sum, [W], {"iterations": 0}, "iterations must be at least 1, got 0"),
        (W.sum, [W], {"tolerance": 0}, r"tolerance must be in \(0, 1\), got 0"),
        (W.sum, [W], {"how": "guess"}, 'how must be "double backward", "central differences" or None, got \'guess\''),
        (W.sum, [W], {"weight_decay": -1.0}, "weight_decay must be a finite number >= 0, or one for each of 1"),
        (W.sum, [W], {"weight_decay": [0, 0]}, r"or one for each of 1 parameters, got \[0, 0\]"),
        (W.sum, [W], {"preconditioner": [torch.ones(3)]}, r"preconditioner must have .* \[\(2,\)\], got \[\(3,\)\]"),
        (W.sum, [W], {"preconditioner": [torch.zeros(2)]}, "preconditioner must be positive and finite"),
        (W.sum, [W], {"start": [torch.zeros(2)]}, "start must be finite and not zero"),
        (W.sum, [W], {"start": []}, r"start must have the parameters' shapes \[\(2,\)\], got \[\]"),
        (H.sum, [H], {"how": CENTRAL}, "central differences need parameters of float32 or float64"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(
    loss: Any, params: list[Tensor], settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=f"^top_curvature: .*{text}"):
        top_curvature(loss, params, **settings)


# The limit of Adam


@pytest.mark.parametrize(
    ("make", "settings", "limit"),
    [
        (torch.optim.Adam, {}, 38),
        (torch.optim.Adam, {"betas": (0.5, 0.999), "amsgrad": True}, 6),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}, 38),
        (torch.optim.AdamW, {"lr": 0.5, "weight_decay": 0.4}, 34.2),
    ],
)
def test_adam_shrinks_at_098_and_grows_at_102_of_its_limit(make: Any, settings: dict[str, Any], limit: float) -> None:
    """With an eps beside which v is nothing, P stands still."""
    settings = {"lr": 1.0, "eps": 1e9, **settings}
    w = torch.full((3,), 1e-60, dtype=torch.float64, requires_grad=True)
    optimizer = make([w], **settings)
    q = torch.tensor([0.5, 0.98, 1.02], dtype=torch.float64) * limit * settings["eps"] / settings["lr"]
    sizes = []
    for _ in range(300):
        w.grad = q * w.detach()
        optimizer.step()
        sizes.append(w.detach().abs())
    found = preconditioned_limit(optimizer)
    assert found is not None
    assert found[0] == pytest.approx(limit)
    assert (torch.stack(sizes[-50:]).amax(0) > torch.stack(sizes[100:150]).amax(0)).tolist() == [False, False, True]


def test_adams_preconditioner_is_what_divides_its_step() -> None:
    """With the momentum off, a step of Adam is lr g / P."""
    w, unused = torch.randn(5, dtype=torch.float64).requires_grad_(), torch.ones(2, requires_grad=True)
    optimizer = torch.optim.Adam([w, unused], lr=0.1, betas=(0.0, 0.9), eps=0.01)
    for _ in range(4):
        before, w.grad = w.detach().clone(), torch.randn(5, dtype=torch.float64)
        optimizer.step()
    limit, (p, other) = preconditioned_limit(optimizer) or (math.nan, (w, w))
    assert limit == 2
    assert torch.allclose(before - w, 0.1 * w.grad / p, rtol=1e-12, atol=0)
    assert torch.equal(other, torch.ones(2))
    assert not p.requires_grad


def test_the_limit_of_adam_is_not_defined_for_others_nor_before_a_step_nor_of_uneven_groups() -> None:
    w, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    w.grad, v.grad = torch.ones(1), torch.ones(1)
    uneven = torch.optim.Adam([{"params": [w]}, {"params": [v], "lr": 0.5}], lr=0.1)
    uneven.step()
    for optimizer in (uneven, torch.optim.Adam([w]), torch.optim.SGD([w], 0.1), torch.optim.RMSprop([w])):
        assert preconditioned_limit(optimizer) is None


# The edge of stability


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "limit"), [({"switch_step": None}, 2), ({"switch_step": 2}, 1)])
def test_full_batch_training_at_a_constant_rate_climbs_to_the_edge(settings: dict[str, Any], limit: float) -> None:
    """Progressive sharpening (Cohen et al. 2021, arXiv 2103.00065): to 2/lr with SGD, to 1/lr with TM-SGD."""
    params = edge.initial(1, edge.HIDDEN)
    losses, optimizer = edge.regression(params, edge.EXAMPLES), TMSGD(params, edge.LR, **settings)
    assert stability(TMSGD, **settings).limit == pytest.approx(limit)
    used, vector = [], None
    for step in range(6000):
        if step % 50 == 0:
            found = top_curvature(lambda: losses().sum(), params, start=vector)
            vector = found.vector
            used.append(edge.LR * found.top / limit)
        optimizer.zero_grad()
        torch.autograd.backward(losses().sum())
        optimizer.step()
    powers, _ = edge.top_eigenvalues(losses(), params, vector, tolerance=1e-6)
    assert top_curvature(lambda: losses().sum(), params).top == pytest.approx(powers.item(), rel=1e-3)
    assert used[0] < 0.5
    assert sum(used[-20:]) / 20 == pytest.approx(1, abs=0.05)


# The networks of the tasks, beside other packages


def other(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"no {name}: pip install 'tmbench[test]'")


def in_double(task: Task) -> None:
    def hook(module: nn.Module, inputs: Any) -> Any:
        return tuple(x.double() if x.is_floating_point() else x for x in inputs)

    task.double().model.register_forward_pre_hook(hook)


def by_eigenthings(task: Task, batch: Any) -> float:
    package = other("hessian_eigenthings")
    operator = package.HessianOperator(task, [batch], lambda task, batch: mean(*task.loss(batch)))
    return package.lanczos(operator, k=1, which="LA", max_iter=60, seed=0).eigenvalues[0].item()


class Whole(nn.Module):
    """The loss as a model's prediction, since packages want the two apart."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: dict[int, Tensor]) -> Tensor:
        return mean(*self.task.loss(tuple(batch.values()))).reshape(1, 1)


class Mean(nn.Module):
    reduction = "mean"

    def forward(self, prediction: Tensor, _: Tensor) -> Tensor:
        return prediction.mean()


def by_curvlinops(task: Task, batch: Any) -> float:
    from scipy.sparse.linalg import eigsh

    package, size = other("curvlinops"), len(batch[0])
    data = [(dict(enumerate(batch)), torch.zeros(size, 1))]
    operator = package.HessianLinearOperator(
        Whole(task), Mean(), list(task.parameters()), data, batch_size_fn=lambda x: len(x[0])
    )
    return float(eigsh(operator.to_scipy(), k=1, which="LA", tol=1e-6, return_eigenvectors=False)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of their dependencies, which use what torch has deprecated
@pytest.mark.parametrize("when", ["start", "end"])
@pytest.mark.parametrize("name", ["tc", "ic", "ctr", "fkpd"])
@pytest.mark.parametrize("package", ["hessian_eigenthings", "curvlinops"])
def test_it_agrees_with_other_packages_on_the_tasks(package: str, name: str, when: str, composed: Compose) -> None:
    other(package)
    task, cfg = build(composed, name)
    batch = first_batch(task, cfg.batch_size)
    optimizer = torch.optim.SGD(task.parameters(), cfg.lr, momentum=0.9)
    for _ in range(40 if when == "end" else 0):
        optimizer.zero_grad()
        mean(*task.loss(batch)).backward()
        optimizer.step()
    in_double(task)
    if package == "curvlinops":
        task.eval()  # its functional calls cannot move the running statistics of batch norm
    found = top_curvature(lambda: mean(*task.loss(batch)), list(task.parameters()), tolerance=1e-4, iterations=200)
    expected = by_curvlinops(task, batch) if package == "curvlinops" else by_eigenthings(task, batch)
    assert found.top == pytest.approx(expected, rel=1e-4)


def test_a_measurement_is_a_value() -> None:
    assert isinstance(top_curvature(*quadratic(1.0)), Curvature)
