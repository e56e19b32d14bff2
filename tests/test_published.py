"""The optimizers that come from elsewhere, and Apollo, are the published methods, as their YAML has them.

Each is held against the method's own algorithm, written out here from its paper in float64, over a matrix, a
convolution's four dimensions and a vector. What a YAML says of a deviation is in the formula as well.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Compose
from pytorch_optimizer import ApolloDQN
from torch import Tensor

from tmbench.certify.descent import Candidate
from tmbench.certify.reference import FORMULAS, agrees_with_a_reference
from tmbench.config.settle import settle
from tmbench.optim import Apollo
from tmbench.training.build import optimizer_of

SHAPES = ((6, 4), (3, 2, 2, 2), (5,))
LR, DECAY = 0.01, 0.1
State = dict[str, Any]
Rule = Callable[[Tensor, Tensor, int, State], Tensor]  # (w, gradient, step from 1, memory) -> the next w


def start() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    first, *others = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in SHAPES)
    return [20 * first, *others]  # a layer whose norm is far above 10


def gradients(weights: list[Tensor], random: torch.Generator) -> list[Tensor]:
    """Of a quadratic, with noise; so that what differs in a step goes on to the next ones."""
    return [0.5 * w + torch.randn(w.shape, generator=random, dtype=torch.float64) for w in weights]


def walked(composed: Compose, name: str, steps: int, *words: str, decay: float = DECAY) -> list[Tensor]:
    """Where an optimizer's YAML leads to."""
    rate = [] if name == "prodigy" else [f"lr={LR}"]
    cfg = settle(composed("task=tc", f"optimizer={name}", f"task.weight_decay={decay}", *rate, *words))
    weights = [w.requires_grad_() for w in start()]
    optimizer: Any = optimizer_of(cfg, None)(weights)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for w, g in zip(weights, gradients([w.detach() for w in weights], random), strict=True):
            w.grad = g
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return [w.detach() for w in weights]


def followed(rule: Rule, steps: int) -> list[Tensor]:
    """Where a formula leads to from the same weights by the same noise."""
    weights, random = start(), torch.Generator().manual_seed(1)
    states: list[State] = [{} for _ in weights]
    for step in range(1, steps + 1):
        grads = gradients(weights, random)
        weights = [rule(w, g, step, s) for w, g, s in zip(weights, grads, states, strict=True)]
    return [s.get("evaluated", w) for w, s in zip(weights, states, strict=True)]


def mean(s: State, key: str, beta: float, value: Tensor) -> Tensor:
    s[key] = beta * s.get(key, torch.zeros_like(value)) + (1 - beta) * value
    return s[key]


def lamb(w: Tensor, g: Tensor, step: int, s: State, decay: float = 0.0, corrected: bool = True) -> Tensor:
    """You et al. 2020, Algorithm 2, with phi(z) = z; without the correction version 3 of the paper."""
    m, v = mean(s, "m", 0.9, g), mean(s, "v", 0.999, g**2)
    if corrected:
        m, v = m / (1 - 0.9**step), v / (1 - 0.999**step)
    r = m / v.sqrt() + decay * w
    return w - LR * w.norm() / r.norm() * r


def lars(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """You et al. 2017, Algorithm 1; vectors by plain momentum."""
    rate = LR
    if w.ndim > 1:
        rate *= 0.001 * w.norm() / (g.norm() + DECAY * w.norm())
        g = g + DECAY * w
    s["v"] = 0.9 * s.get("v", torch.zeros_like(w)) + rate * g
    return w - s["v"]


def lion(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Chen et al. 2023, Algorithm 2."""
    c = 0.9 * s.get("m", torch.zeros_like(w)) + 0.1 * g
    mean(s, "m", 0.99, g)
    return w - LR * (c.sign() + DECAY * w)


def adabelief(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Zhuang et al. 2020, Algorithm 2, and a decay apart."""
    w = w - LR * DECAY * w
    m = mean(s, "m", 0.9, g)
    v = s["v"] = mean(s, "v", 0.999, (g - m) ** 2) + 1e-16
    return w - LR * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-16)


def written_out(name: str, **options: Any) -> Rule:
    """The formula by which certify judges torch's class of this name."""
    formula = FORMULAS[name][0]
    return lambda w, g, step, s: formula(w, g, step - 1, {"lr": LR, "weight_decay": DECAY, **options}, s)


# Duchi et al. 2011, eq. 1 with a diagonal matrix; Hinton 2012, lecture 6e; Loshchilov and Hutter 2019, Algorithm 2.
adagrad = written_out("Adagrad", lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10)
rmsprop = written_out("RMSprop", alpha=0.99, momentum=0.0, eps=1e-8)
apollo = written_out(  # Ma 2020, Algorithm 1
    "Apollo", init_lr=None, beta=0.9, eps=1e-4, rebound="constant", warmup_steps=0, weight_decay_type="l2"
)
adamw_of_muon = written_out("AdamW", betas=(0.9, 0.95), eps=1e-10)


def schedule_free(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Defazio et al. 2024, eqs. 1 to 3: w is y, where the gradient is; evaluated at x."""
    g = g + DECAY * w
    z = s.get("z", w) - LR * g
    x = s["evaluated"] = (1 - 1 / step) * s.get("evaluated", w) + z / step
    s["z"] = z
    return 0.1 * z + 0.9 * x


def muon(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Jordan 2024; its five steps on the singular values, which all end between 0.65 and 1.25."""
    if w.ndim < 2:
        return adamw_of_muon(w, g, step, s)
    m = mean(s, "m", 0.95, g)
    direction = (0.05 * g + 0.95 * m).flatten(1)
    u, sigma, v = torch.linalg.svd(direction / direction.norm(), full_matrices=False)
    for _ in range(5):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    rows, columns = direction.shape
    update = max(1, rows / columns) ** 0.5 * (u * sigma @ v)
    return w - LR * DECAY * w - LR * update.view_as(w)


def shampoo(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Gupta et al. 2018, Algorithm 2: each dimension's statistics to the power -1/(2k); the length from SGD.

    Running means, the decay beside the preconditioned gradient and Nesterov momentum are Anil et al.'s code.
    """
    order, direction = w.ndim, g
    if order > 1:
        for i in range(order):
            unfolded = g.movedim(i, 0).flatten(1)
            own = s.setdefault(f"l{i}", 1e-6 * torch.eye(len(unfolded), dtype=g.dtype))
            own.mul_(0.999).add_(0.001 * unfolded @ unfolded.T)
            value, vector = torch.linalg.eigh(own + 1e-6 * torch.linalg.matrix_norm(own, 2) * torch.eye(len(own)))
            root = vector * value ** (-1 / (2 * order)) @ vector.T
            direction = torch.tensordot(root, direction.movedim(i, 0), 1).movedim(0, i)
        direction = direction * g.norm() / direction.norm()
    direction = direction + DECAY * w
    s["v"] = 0.9 * s.get("v", 0) + direction
    return w - LR * (0.9 * s["v"] + direction)


def soap(w: Tensor, g: Tensor, step: int, s: State) -> Tensor:
    """Vyas et al. 2024, Algorithm 3: Adam in the eigenbasis of Shampoo's statistics, renewed every 10 steps."""

    def turned(x: Tensor, back: bool = False) -> Tensor:
        for i, q in enumerate(s["q"]):
            x = torch.tensordot(q if back else q.T, x.movedim(i, 0), 1).movedim(0, i)
        return x

    statistics = [g.movedim(i, 0).flatten(1) for i in range(g.ndim)] if g.ndim > 1 else []
    if step == 1:
        s["l"] = [0.05 * own @ own.T for own in statistics]
        s["q"] = [torch.linalg.eigh(own)[1].flip(1) for own in s["l"]]
        return w
    m, v = mean(s, "m", 0.95, g), mean(s, "v", 0.95, turned(g) ** 2)
    bias = 1 - 0.95 ** (step - 1)
    w = w - LR * bias**0.5 / bias * turned(turned(m) / (v.sqrt() + 1e-8), back=True)
    w = w - LR * DECAY * w
    s["l"] = [0.95 * own + 0.05 * new @ new.T for own, new in zip(s["l"], statistics, strict=True)]
    if (step - 1) % 10 == 0:
        for i, (own, q) in enumerate(zip(s["l"], s["q"], strict=True)):
            order = (q * (own @ q)).sum(0).argsort(descending=True)
            s["v"] = s["v"].index_select(i, order)
            s["q"][i] = torch.linalg.qr(own @ q[:, order])[0]
    return w


def prodigy(steps: int) -> list[Tensor]:
    """Mishchenko and Defazio 2023, Algorithm 4, with the weight decay of AdamW; one distance for all tensors."""
    weights, random = start(), torch.Generator().manual_seed(1)
    first, d, r = weights, 1e-6, 0.0
    m, v, s = ([torch.zeros_like(w) for w in weights] for _ in range(3))
    beta = 0.999**0.5
    for _ in range(steps):
        grads = gradients(weights, random)
        moved = sum(float((g * (w0 - w)).sum()) for g, w0, w in zip(grads, first, weights, strict=True))
        r = beta * r + (1 - beta) * d**2 * moved
        s = [beta * own + (1 - beta) * d**2 * g for own, g in zip(s, grads, strict=True)]
        m = [0.9 * own + 0.1 * d * g for own, g in zip(m, grads, strict=True)]
        v = [0.999 * own + 0.001 * d**2 * g**2 for own, g in zip(v, grads, strict=True)]
        new = max(d, r / sum(float(own.abs().sum()) for own in s))
        weights = [w - d * DECAY * w - d * a / (b.sqrt() + new * 1e-8) for w, a, b in zip(weights, m, v, strict=True)]
        d = new
    return weights


def assert_same(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for own, other, begun in zip(found, expected, start()[-len(found) :], strict=True):
        moved = (other - begun).abs().max()
        assert moved > 0
        assert float((own - other).abs().max() / moved) < bound, own.shape


WITHOUT_EPS = ["++optimizer.eps=1e-12"]
EVERY_STEP = ["optimizer.start_preconditioning_step=1", "optimizer.preconditioning_compute_steps=1"]


@pytest.mark.parametrize(
    ("name", "rule", "bound", "words", "first"),  # the first of the tensors that are compared
    [
        ("adabelief", adabelief, 1e-10, [], 0), ("adagrad", adagrad, 1e-10, [], 0),
        ("apollo", apollo, 1e-8, ["optimizer.warmup_steps=0"], 0), ("lars", lars, 1e-10, [], 0),
        # Weights decay inside its ratio.
        ("lamb", lambda *state: lamb(*state, decay=DECAY, corrected=False), 1e-8, WITHOUT_EPS, 0),
        ("lion", lion, 1e-10, [], 0), ("muon", muon, 0.05, [], 0), ("rmsprop", rmsprop, 1e-10, [], 0),
        ("muon", adamw_of_muon, 1e-10, [], 2),  # its vectors
        ("schedule_free_sgd", schedule_free, 1e-10, [], 0),
        ("shampoo", shampoo, 0.01, EVERY_STEP, 0),  # every dimension of a small layer too
        # All but the matrix: its first gradient has rank 4 of 6, and the basis of the rest is rounding's choice. The
        # library renews the basis in float32.
        ("soap", soap, 1e-4, [], 1),
    ],
)  # fmt: skip
def test_an_optimizer_takes_the_steps_of_its_paper(
    name: str, rule: Rule, bound: float, words: list[str], first: int, composed: Compose
) -> None:
    assert_same(walked(composed, name, 30, *words)[first:], followed(rule, 30)[first:], bound)


@pytest.mark.parametrize("decay", ["l2", "decoupled", "stable"])
@pytest.mark.parametrize("rebound", ["constant", "belief"])
@pytest.mark.parametrize("foreach", [True, False])
def test_apollo_is_the_library_s_without_a_warm_up(rebound: str, decay: str, foreach: bool) -> None:
    """pytorch_optimizer 4.1.0's."""
    settings: Any = {"lr": LR, "rebound": rebound, "weight_decay": DECAY, "weight_decay_type": decay}
    own, other = ([w.requires_grad_() for w in start()] for _ in range(2))
    methods = (
        Apollo(own, **settings, warmup_steps=0, foreach=foreach),
        ApolloDQN(other, **settings, warmup_steps=1, init_lr=None),
    )
    random = torch.Generator().manual_seed(1)
    for _ in range(40):
        for mine, theirs in zip(own, other, strict=True):
            mine.grad = torch.randn(mine.shape, generator=random, dtype=mine.dtype)
            theirs.grad = mine.grad.clone()
        for method in methods:
            method.step()
    assert_same([w.detach() for w in own], [w.detach() for w in other], 1e-11)


def test_apollo_s_rate_rises_from_init_lr_to_that_of_each_group_at_the_time() -> None:
    """init_lr is a thousandth of the rate unless given, and never above it."""

    def path(rates: Callable[[int, float, float | None], float], **settings: Any) -> list[Tensor]:
        weights = [w.requires_grad_() for w in start()]
        groups = [{"params": [weights[0]]}, {"params": [weights[1]]}, {"params": [weights[2]]}]
        method, random = Apollo(groups, lr=0.5, **settings), torch.Generator().manual_seed(1)
        for done in range(8):
            asked = [(0.5, None), (0.2, 0.1), (0.3 if done < 2 else 0.0, 0.1)]  # the last as a schedule sets it
            for group, w, (lr, first) in zip(method.param_groups, weights, asked, strict=True):
                w.grad = torch.randn(w.shape, generator=random, dtype=w.dtype)
                group.update(lr=rates(done, lr, first), init_lr=first)
            method.step()
        return [w.detach() for w in weights]

    def risen(done: int, lr: float, first: float | None) -> float:
        low = lr / 1000 if first is None else min(first, lr)
        return low + (lr - low) * min(done, 4) / 4

    by_hand = path(risen, warmup_steps=0)
    assert_same(path(lambda done, lr, first: lr, warmup_steps=4), by_hand, 1e-12)


def test_apollo_survives_a_jump_of_its_gradients_in_half_precision() -> None:
    """The factor of B's update is beyond float16 then, its product with small squares is not."""

    def norm(dtype: torch.dtype) -> float:
        random, w = torch.Generator().manual_seed(0), torch.zeros(300_000, dtype=dtype, requires_grad=True)
        method = Apollo([w], lr=0.01, warmup_steps=0)
        for size in (1e-4, 1e-4, 1e-4, 10, 10):
            w.grad = (size * torch.rand(w.shape, generator=random)).to(dtype)
            method.step()
        return w.detach().double().norm().item()

    exact = norm(torch.float64)
    assert exact > 1
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert norm(dtype) == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("rebound", ["constant", "belief"])
def test_apollo_leaves_an_empty_tensor_alone(rebound: str) -> None:
    weights = [torch.ones(0, 3, requires_grad=True), torch.ones(2, requires_grad=True)]
    method = Apollo(weights, lr=0.1, rebound=rebound, warmup_steps=0)
    for w in weights:
        w.grad = torch.ones_like(w)
    method.step()
    assert (weights[1] < 1).all()


@pytest.mark.parametrize("decay", ["l2", "decoupled", "stable"])
@pytest.mark.parametrize("rebound", ["constant", "belief"])
@pytest.mark.parametrize("first", [None, 0.001])
def test_apollo_agrees_with_its_formula(rebound: str, decay: str, first: float | None) -> None:
    settings: Any = {"weight_decay": DECAY, "weight_decay_type": decay, "init_lr": first, "warmup_steps": 7}
    candidate = Candidate(lambda params: Apollo(params, lr=0.02, rebound=rebound, **settings))
    verdict, detail = agrees_with_a_reference(candidate)
    assert verdict == "holds", detail
    assert "Apollo written out" in detail


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"beta": 1.0}, "beta must be in [0, 1), got 1.0"),
        ({"eps": 0.0}, "eps must be > 0 and finite, got 0.0"),
        ({"init_lr": -1.0}, "init_lr must be >= 0 and finite, or None, got -1.0"),
        ({"warmup_steps": 2.5}, "warmup_steps must be a whole number >= 0, got 2.5"),
        ({"rebound": "none"}, "rebound must be one of constant, belief, got 'none'"),
        ({"weight_decay_type": "L2"}, "weight_decay_type must be one of l2, decoupled, stable, got 'L2'"),
    ],
)
def test_apollo_refuses_settings_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Apollo(start(), **settings)


def test_lamb_takes_the_papers_steps_from_the_first_on(composed: Compose) -> None:
    """Only what eps adds differs: the paper's is beside a corrected root, the library's beside the root as it is."""
    for steps in (1, 2, 40):
        own = walked(composed, "lamb", steps, "++optimizer.eps=1e-12", decay=0.0)
        assert_same(own, followed(lamb, steps), 1e-8)


def test_prodigy_finds_the_papers_rate(composed: Compose) -> None:
    assert_same(walked(composed, "prodigy", 50), prodigy(50), 1e-4)  # it adds up its distances in float32
