"""TMSGD against its theory, torch.optim.SGD and a slow reference; and what every optimizer YAML promises."""

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from conftest import Compose, choices, saved_and_loaded
from helpers import pairwise
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tmbench.config.settle import settle
from tmbench.optim import TMSGD
from tmbench.training.build import optimizer_of

pytestmark = pytest.mark.usefixtures("one_thread")

# All kinds of direction that torch.optim.SGD knows.
DIRECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}

# The phases of a run that switches at step 10: first, one difference recorded, both recorded, TM.
SWITCH = 10
PHASES = {"before": 3, "recording": SWITCH - 1, "switching": SWITCH, "after": 25}


def path(steps: int, gradient: Callable[[Tensor], Tensor] = lambda w: w, **settings: Any) -> list[float]:
    """The weight before the first and after every step, from 1, in float64."""
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD([w], **settings)
    weights = [1.0]
    for _ in range(steps):
        w.grad = gradient(w.detach().clone())
        optimizer.step()
        weights.append(w.item())
    return weights


def mlp_path(
    new_optimizer: Callable[..., Any], steps: int, reload_at: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A small network's weights after each step on random batches, the same each time, one row a step.

    reload_at: the step before which the optimizer is lost, and loaded into a new one.
    """
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    optimizer = new_optimizer(model.parameters())
    rows = []
    for step in range(steps):
        if step == reload_at:
            state = saved_and_loaded(optimizer.state_dict())
            optimizer = new_optimizer(model.parameters())
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        inputs, labels = torch.randn(16, 8, generator=random), torch.randint(4, (16,), generator=random)
        cross_entropy(model(inputs.to(dtype)), labels).backward()
        optimizer.step()
        rows.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    weights = torch.stack(rows)
    assert weights.isfinite().all()
    return weights


class TestTheory:
    """f = w^2 / 2, or many of them, in float64."""

    @pytest.mark.parametrize(("lr", "switch_step", "momentum", "expected"), [
        (0.1, 0, 0.0, [1, 0.9, 0.76, 0.664, 0.6196, 0.58344, 0.529216, 0.4672624, 0.41667136, 0.380685504]),
        (0.1, 2, 0.0, [1, 0.9, 0.81, 0.734, 0.6676, 0.60564, 0.547296, 0.4943744, 0.44764816, 0.405981024]),
        (0.1, 0, 0.9, [1, 0.9, 0.67, 0.376, 0.1003, -0.11991, -0.286598, -0.4061669, -0.47368757]),
        (1.0, 0, 0.0, [1, 0, -0.5, 0.25, 0.625, -0.1875, -0.59375, 0.203125]),
    ], ids=["cold", "after-two-euler-steps", "momentum-cold", "at-the-limit-cold"])  # fmt: skip
    def test_tmsgd_walks_the_path_computed_by_hand(
        self, lr: float, switch_step: int, momentum: float, expected: list[float]
    ) -> None:
        walked = path(len(expected) - 1, lr=lr, switch_step=switch_step, momentum=momentum)
        assert walked == pytest.approx(expected, rel=1e-9, abs=1e-15)

    def test_tmsgd_ends_in_an_undamped_cycle_of_four_at_its_limit(self) -> None:
        weights = path(403, lr=1.0, switch_step=0)
        assert weights[-8:] == pytest.approx([0.6, -0.2, -0.6, 0.2] * 2, rel=1e-9)

    def test_tmsgd_shrinks_just_below_its_limit_and_grows_just_above(self) -> None:
        w = torch.ones(2, dtype=torch.float64, requires_grad=True)
        optimizer, q = TMSGD([w], 1.0, foreach=False), torch.tensor([0.999, 1.001])
        last = []
        for _ in range(20_000):
            w.grad = q * w.detach()
            optimizer.step()
            last = [*last[-3:], w.detach().abs().clone()]
        below, above = torch.stack(last).amax(0).tolist()
        assert 0 < below < 0.0115
        assert 30.75 < above < 30.85

    @pytest.mark.parametrize(
        ("gradient", "exact"), [(lambda x: x, math.exp(-1)), (lambda x: x * x, 0.5)], ids=["linear", "quadratic"]
    )
    @pytest.mark.parametrize(
        ("switch_step", "c", "order"), [(2, 0.5, 2), (2, 1 / 3, 2), (None, 0.5, 1)], ids=["tm", "third", "sgd"]
    )
    def test_global_order_is_two_for_tm_and_one_for_sgd(
        self, gradient: Callable[[Tensor], Tensor], exact: float, switch_step: int | None, c: float, order: int
    ) -> None:
        steps = (40, 80, 160, 320, 640)
        errors = [abs(path(n, gradient, lr=1 / n, switch_step=switch_step, c=c)[-1] - exact) for n in steps]
        for coarse, fine in itertools.pairwise(errors):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)

    @pytest.mark.parametrize(("switch_step", "error"), [(2, 3.02e-7), (None, 5.756e-4)], ids=["tm", "sgd"])
    def test_error_on_the_gradient_flow_is_the_predicted_one(self, switch_step: int | None, error: float) -> None:
        assert abs(path(320, lr=1 / 320, switch_step=switch_step)[-1] - math.exp(-1)) == pytest.approx(error, rel=2e-3)

    @pytest.mark.parametrize(
        ("switch_step", "momentum", "limit"),
        [(0, 0.0, 1.0), (0, 0.5, 0.560660), (0, 0.9, 0.500780), (None, 0.0, 2.0), (None, 0.9, 3.8)],
    )
    def test_stability_limit_is_the_derived_one(self, switch_step: int | None, momentum: float, limit: float) -> None:
        def diverges_at(q: Tensor) -> list[bool]:
            """By the mean square over 200 steps, early and 1000 steps later; one weight for each curvature."""
            w = torch.ones_like(q, requires_grad=True)
            optimizer = TMSGD([w], lr=1.0, momentum=momentum, switch_step=switch_step, foreach=False)
            early, late = torch.zeros_like(q), torch.zeros_like(q)
            for step in range(1500):
                w.grad = q * w.detach()
                optimizer.step()
                if 300 <= step < 500:
                    early += w.detach() ** 2
                elif step >= 1300:
                    late += w.detach() ** 2
            return (~(late <= early) | late.isinf()).tolist()  # what is not finite diverges, too

        stable, unstable = 0.0, 4.2
        for _ in range(3):  # bisection, but into 20 parts
            q = torch.linspace(stable, unstable, 21, dtype=torch.float64)
            diverges = [False, *diverges_at(q[1:-1]), True]
            assert diverges == sorted(diverges), "stable again beyond the limit"
            stable, unstable = q[diverges.index(True) - 1].item(), q[diverges.index(True)].item()
        assert stable == pytest.approx(limit, abs=1e-3)

    def test_tmsgdm_converges_at_049_and_diverges_at_051(self) -> None:
        assert abs(path(2000, lr=0.49, momentum=0.9, switch_step=0)[-1]) < 1e-6
        assert max(map(abs, path(2000, lr=0.51, momentum=0.9, switch_step=0)[-6:])) > 1e6

    @pytest.mark.parametrize(("momentum", "foreach"), [(0.0, True), (0.9, False)])
    def test_a_cold_start_without_gradients_does_not_move(self, momentum: float, foreach: bool) -> None:
        assert path(20, torch.zeros_like, lr=0.1, momentum=momentum, switch_step=0, foreach=foreach) == [1.0] * 21

    @pytest.mark.parametrize(
        ("lr", "history", "deviation"),
        [(0.1, "true", 0.006885), (0.1, "zero", 0.076818), (0.01, "true", 4.096e-5), (0.01, "zero", 0.0075465)],
    )
    @pytest.mark.parametrize("switch", [2, 10])
    def test_true_history_stays_on_the_gradient_flow_where_a_cold_start_overshoots(
        self, lr: float, history: str, deviation: float, switch: int
    ) -> None:
        after = path(switch + 20, lr=lr, switch_step=switch, history=history)[switch:]
        off = [abs(w / after[0] - math.exp(-lr * k)) for k, w in enumerate(after)]
        assert max(off) == pytest.approx(deviation, rel=1e-3)
        assert off.index(max(off)) == 3


@pairwise(
    switch=[0, 1, 2, SWITCH], history=["true", "zero"], momentum=[0.0, 0.9], weight_decay=[0.0, 0.1],
    maximize=[False, True],
)  # fmt: skip
def test_tmsgd_equals_the_weights_form_of_eq_8(
    switch: int, history: str, momentum: float, weight_decay: float, maximize: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    start, *noise = torch.randn(101, 20, generator=random, dtype=torch.float64)
    curvature = torch.linspace(0.1, 5, 20, dtype=torch.float64)
    lrs = [0.05] * 50 + [0.02] * 50

    expected = []
    W, W1, W2, v = start, start, start, torch.zeros_like(start)  # W[k], W[k-1], W[k-2]
    for k, lr in enumerate(lrs):
        if k == switch and history == "zero":
            W1 = W2 = W
        v = momentum * v + curvature * W + noise[k] + weight_decay * W
        W, W1, W2 = (1.5 * W - W1 + 0.5 * W2 if k >= switch else W) - lr * v, W, W1
        expected.append(W)

    w = start.clone().requires_grad_()
    optimizer = TMSGD(
        [w], lrs[0], momentum, weight_decay=weight_decay, switch_step=switch, history=history, maximize=maximize
    )
    weights = []
    for k, lr in enumerate(lrs):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = (curvature * w.detach() + noise[k]) * (-1 if maximize else 1)
        optimizer.step()
        weights.append(w.detach().clone())
    torch.testing.assert_close(torch.stack(weights), torch.stack(expected), rtol=1e-10, atol=1e-12)


@pairwise(
    switch=[0, 1, SWITCH, None], direction=DIRECTIONS, history=["true", "zero"], c=[0.5, 1 / 3, 0.8],
    decoupled=[False, True],
)  # fmt: skip
def test_tmsgd_equals_a_slow_reference_with_every_setting(
    switch: int | None, direction: str, history: str, c: float, decoupled: bool
) -> None:
    """One weight in plain Python floats. Decoupled: W <- (1 - lr decay) W + d, with d driven by gradients alone."""
    given = DIRECTIONS[direction]
    momentum, dampening = given.get("momentum", 0.0), given.get("dampening", 0.0)
    lr, decay, curvature = 0.05, 0.3, 2.0
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()

    expected, W, d, v = [], 1.0, [0.0, 0.0], None
    for k in range(60):
        if k == switch and history == "zero":
            d = [0.0, 0.0]
        g = u = curvature * W + noise[k] + (0 if decoupled else decay * W)
        if momentum:
            v = g if v is None else momentum * v + (1 - dampening) * g
            u = g + momentum * v if given.get("nesterov") else v
        tm = switch is not None and k >= switch
        d = [(3 * c - 1) * d[0] - c * d[1] - (2 - 2 * c) * lr * u if tm else -lr * u, d[0]]
        W = (1 - lr * decay if decoupled else 1) * W + d[0]
        expected.append(W)

    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD(
        [w], lr, **given, c=c, weight_decay=decay, decoupled=decoupled, switch_step=switch, history=history
    )
    weights = []
    for k in range(60):
        w.grad = curvature * w.detach() + noise[k]
        optimizer.step()
        weights.append(w.item())
    assert weights == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_decoupled_decay_shrinks_weights_without_a_gradient_and_leaves_no_trace_in_the_history() -> None:
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD([w], 0.5, 0.9, weight_decay=0.2, decoupled=True, switch_step=3)
    for k in range(1, 10):
        w.grad = torch.zeros_like(w)
        optimizer.step()
        assert w.item() == pytest.approx(0.9**k, rel=1e-12)
    assert optimizer.state[w]["d"].item() == optimizer.state[w]["d_before"].item() == 0


def test_only_lr_and_momentum_may_be_given_by_position() -> None:
    """The order of the others differs from torch.optim.SGD's: silently another method."""
    with pytest.raises(TypeError, match="positional"):
        TMSGD([torch.ones(1, requires_grad=True)], 0.1, 0.9, 1e-4)  # type: ignore[misc]


class TestAgainstTorch:
    @pairwise(
        dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16], direction=DIRECTIONS,
        foreach=[None, True, False], weight_decay=[0.0, 1e-2], maximize=[False, True],
    )  # fmt: skip
    def test_before_the_switch_tmsgd_equals_torch_sgd(
        self, dtype: torch.dtype, direction: str, weight_decay: float, maximize: bool, foreach: bool | None
    ) -> None:
        settings: dict[str, Any] = {
            "lr": 0.01, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach, **DIRECTIONS[direction]
        }  # fmt: skip
        expected = mlp_path(partial(torch.optim.SGD, **settings), 40, dtype=dtype)
        for switch_step in (None, 40):
            weights = mlp_path(partial(TMSGD, switch_step=switch_step, **settings), 40, dtype=dtype)
            assert torch.equal(weights, expected), f"switch_step={switch_step}"

    def test_a_compiled_training_step_is_not_compiled_anew_in_every_step(self) -> None:
        """With the number of the step among what it was compiled for, it was: eight times, then never again."""
        graphs = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
            graphs.append(graph)
            return graph.forward

        w = torch.ones(3, requires_grad=True)
        optimizer = TMSGD([w], 0.1, momentum=0.9, switch_step=4)

        @torch.compile(backend=backend)
        def train(x: Tensor) -> None:
            w.grad = (w.detach() - x) * 2
            optimizer.step()

        counts = []
        for step in range(12):
            train(torch.full((3,), float(step)))
            counts.append(len(graphs))
        assert counts[-1] == counts[1] >= 1
        eager = torch.ones(3, requires_grad=True)
        optimizer = TMSGD([eager], 0.1, momentum=0.9, switch_step=4)
        for step in range(12):
            eager.grad = (eager.detach() - step) * 2
            optimizer.step()
        assert torch.equal(w, eager)

    def test_from_the_switch_on_tmsgd_differs_from_torch_sgd(self) -> None:
        sgd = mlp_path(partial(torch.optim.SGD, lr=0.1), 20)
        tm = mlp_path(partial(TMSGD, lr=0.1, switch_step=SWITCH), 20)
        assert (tm == sgd).all(dim=1).tolist() == [True] * SWITCH + [False] * 10

    @pairwise(
        direction=DIRECTIONS, c=[0.5, 0.3], decoupled=[False, True], maximize=[False, True], history=["true", "zero"]
    )
    def test_one_by_one_equals_all_at_once_across_the_switch(
        self, direction: str, c: float, decoupled: bool, maximize: bool, history: str
    ) -> None:
        def run(foreach: bool | None) -> Tensor:
            def new(params: Iterator[Tensor]) -> TMSGD:
                *hidden, weight, bias = params
                groups = [
                    {"params": hidden, "lr": 0.2, "weight_decay": 0.1},
                    {"params": [weight]},
                    {"params": [bias], "lr": 0.01, "momentum": 0.5, "switch_step": 4, "c": 0.7},
                ]
                return TMSGD(
                    groups, 0.05, **DIRECTIONS[direction], c=c, weight_decay=1e-2, decoupled=decoupled,
                    switch_step=SWITCH, history=history, maximize=maximize, foreach=foreach,
                )  # fmt: skip

            return mlp_path(new, 30)

        one_by_one = run(False)
        assert torch.equal(run(True), one_by_one)
        assert torch.equal(run(None), one_by_one)

    @pytest.mark.parametrize("foreach", [True, False])
    @pytest.mark.parametrize(
        ("dtype", "settings"),
        [
            (torch.float32, {}),
            (torch.float32, {"momentum": 0.9, "nesterov": True}),
            (torch.float64, {"c": 1 / 3, "decoupled": True, "weight_decay": 0.1}),
        ],
    )
    def test_a_tensor_as_lr_walks_the_same_path_as_the_number(
        self, dtype: torch.dtype, settings: dict[str, Any], foreach: bool
    ) -> None:
        """A float32 tensor holds 0.1 rounded; where lr is multiplied first (c, decoupled), as many digits count."""
        settings = {"switch_step": SWITCH, "foreach": foreach, **settings}
        expected = mlp_path(partial(TMSGD, lr=0.1, **settings), 30)
        for shape in ((), (1,)):
            lr = torch.full(shape, 0.1, dtype=dtype)
            assert torch.equal(mlp_path(partial(TMSGD, lr=lr, **settings), 30), expected)
            assert torch.equal(lr, torch.full(shape, 0.1, dtype=dtype))

    def test_a_tensor_as_lr_may_change_during_the_run(self) -> None:
        w, lr = torch.ones(1, requires_grad=True), torch.tensor(0.5)
        optimizer = TMSGD([w], lr, switch_step=None)
        for expected in (0.5, 0.375):
            w.grad = w.detach().clone()
            optimizer.step()
            assert w.item() == expected
            lr.fill_(0.25)


@pairwise(phase=PHASES, direction=DIRECTIONS, history=["true", "zero"], decoupled=[False, True])
def test_a_loaded_state_dict_continues_bitwise_in_every_phase(
    phase: str, direction: str, history: str, decoupled: bool
) -> None:
    new = partial(
        TMSGD, lr=0.05, **DIRECTIONS[direction], weight_decay=1e-2, decoupled=decoupled, c=0.4, switch_step=SWITCH,
        history=history,
    )  # fmt: skip
    assert torch.equal(mlp_path(new, 40, PHASES[phase]), mlp_path(new, 40))


def test_a_state_dict_from_before_a_setting_existed_continues_with_the_constructors() -> None:
    w = torch.ones(1, requires_grad=True)
    saved = TMSGD([w], 0.1, 0.9).state_dict()
    for key in ("dampening", "nesterov", "decoupled", "c"):
        del saved["param_groups"][0][key]
    optimizer = TMSGD([w], 7.0, c=0.4)
    optimizer.load_state_dict(saved)
    w.grad = torch.ones(1)
    optimizer.step()
    assert [optimizer.param_groups[0][key] for key in ("lr", "momentum", "c", "nesterov")] == [0.1, 0.9, 0.4, False]


def test_a_loaded_state_dict_brings_its_settings() -> None:
    w = torch.ones(1, requires_grad=True)
    saved = TMSGD(
        [w], 0.1, 0.9, dampening=0.1, weight_decay=1e-2, decoupled=True, c=0.4, switch_step=SWITCH, history="zero",
        maximize=True, foreach=False,
    )  # fmt: skip
    loaded = TMSGD([w], 7.0)
    loaded.load_state_dict(saved_and_loaded(saved.state_dict()))
    assert loaded.param_groups == saved.param_groups


@pairwise(
    direction=DIRECTIONS, switch_step=[0, 4], weight_decay=[0.0, 0.1], maximize=[False, True], foreach=[True, False]
)
def test_gradients_are_left_unchanged_in_every_phase(
    direction: str, switch_step: int, weight_decay: float, maximize: bool, foreach: bool
) -> None:
    params = [torch.randn(3, 2).requires_grad_(), torch.randn(4).requires_grad_()]
    optimizer = TMSGD(
        params, 0.1, **DIRECTIONS[direction], weight_decay=weight_decay, switch_step=switch_step, maximize=maximize,
        foreach=foreach,
    )  # fmt: skip
    given, copies = [], []
    for _ in range(8):
        for p in params:
            p.grad = torch.randn_like(p)
            given.append(p.grad)
            copies.append(p.grad.clone())
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, given[-2:], strict=True))
        assert all(map(torch.equal, given, copies)), "this step's gradients, and those of all steps before"


@pairwise(phase=PHASES, foreach=[True, False], momentum=[0.0, 0.9])
def test_a_parameter_without_gradient_keeps_its_weight_and_history(phase: str, foreach: bool, momentum: float) -> None:
    """Two weights in one group; the second one's gradient is None for three steps."""
    w, idle = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    alone = torch.ones(2, requires_grad=True)
    settings: dict[str, Any] = {
        "lr": 0.1, "momentum": momentum, "weight_decay": 0.1, "switch_step": SWITCH, "foreach": foreach
    }  # fmt: skip
    optimizer, alone_optimizer = TMSGD([w, idle], **settings), TMSGD([alone], **settings)
    pause = range(PHASES[phase], PHASES[phase] + 3)
    for k in range(40):
        w.grad, alone.grad, idle.grad = w.detach() + 0, alone.detach() + 0, None if k in pause else idle.detach() + 0
        before = [idle.detach().clone(), *(t.clone() for t in optimizer.state[idle].values())]
        optimizer.step()
        alone_optimizer.step()
        if k in pause:
            after = [idle.detach(), *optimizer.state[idle].values()]
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        assert torch.equal(w, alone), "the other weight must not notice"
    assert not torch.equal(idle, w)


def test_a_pause_after_the_switch_only_delays_a_parameter() -> None:
    expected = path(20, lr=0.1, switch_step=2)
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD([w], 0.1, switch_step=2)
    weights = [1.0]
    for k in range(25):
        w.grad = None if 8 <= k < 13 else w.detach().clone()
        optimizer.step()
        weights.append(w.item())
    assert weights[:8] + weights[13:] == expected
    assert weights[8:13] == [expected[8]] * 5


def test_a_switch_that_is_put_off_forgets_the_history_recorded_for_it() -> None:
    expected = path(20, lr=0.1, switch_step=12)
    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = TMSGD([w], 0.1, switch_step=3)
    for k in range(20):
        if k == 3:
            optimizer.param_groups[0]["switch_step"] = 12
        w.grad = w.detach().clone()
        optimizer.step()
        assert w.item() == pytest.approx(expected[k + 1], rel=1e-14)


@pytest.mark.parametrize("switch_step", [None, 0, 1])
def test_the_closures_loss_is_returned_and_its_gradient_used(switch_step: int | None) -> None:
    w = torch.ones(1, requires_grad=True)
    optimizer = TMSGD([w], 0.1, switch_step=switch_step)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (w**2 / 2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 0.5
    assert w.item() == pytest.approx(0.9)
    assert w.grad is not None
    assert optimizer.step() is None


NESTEROV = "nesterov needs momentum > 0 and dampening 0, got momentum {} and dampening {}"
MUST_BE: dict[str, tuple[str, list[Any]]] = {
    "lr": (">= 0 and finite", [-0.1, math.nan, math.inf]), "momentum": ("in [0, 1)", [-0.1, 1.0, 1.2, math.nan]),
    "dampening": ("in [0, 1)", [-0.1, 1.0]), "weight_decay": (">= 0 and finite", [-1e-4, math.nan]),
    "c": ("in (0, 1), where the family is zero-stable", [0.0, 1.0, -0.5, math.nan]),
    "switch_step": ("a whole number >= 0 or None (never)", [-1, 1.5, True, "never"]),
    "history": ("one of true, zero", ["none", True]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        *(({key: v}, f"{key} must be {what}, got {v!r}") for key, (what, bad) in MUST_BE.items() for v in bad),
        ({"lr": torch.ones(2)}, "lr must be a number or a tensor of one, got shape (2,)"),
        ({"nesterov": True}, NESTEROV.format(0.0, 0.0)),
        ({"nesterov": True, "momentum": 0.5, "dampening": 0.5}, NESTEROV.format(0.5, 0.5)),
    ],
    ids=repr,
)
def test_a_value_out_of_range_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    w = torch.ones(1, requires_grad=True)
    for params, given in (([w], {"lr": 0.1, **settings}), ([{"params": [w], **settings}], {"lr": 0.1})):
        with pytest.raises(ValueError, match=f"^tmsgd: {re.escape(text)}$"):
            TMSGD(params, **given)


def test_a_group_added_later_switches_with_the_others_and_a_refused_one_is_not_kept() -> None:
    early, late = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = TMSGD([early], lr=0.1, switch_step=2)
    early.grad, late.grad = torch.ones(1), torch.ones(1)
    for _ in range(2):
        optimizer.step()
    with pytest.raises(ValueError, match="momentum must be in"):
        optimizer.add_param_group({"params": [late], "momentum": 2.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [late]})
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [3, 3]
    assert "d" in optimizer.state[late]


@pytest.mark.parametrize("switch_step", [None, 0, 1])
class TestUnsupportedTensors:
    def test_a_complex_parameter_is_refused(self, switch_step: int | None) -> None:
        w = torch.ones(2, dtype=torch.complex64, requires_grad=True)
        text = "tmsgd: complex parameters are not supported; use their real view"
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            TMSGD([w], 0.1, switch_step=switch_step)


@pytest.mark.parametrize("name", choices("optimizer"), scope="class")
class TestEveryOptimizerYaml:
    """Over 100 steps of a noisy quadratic, with the switch, if the optimizer has one, at step 50."""

    CURVATURE = torch.linspace(0.5, 5, 20)
    # A rate that suits the quadratic, where the task's does not.
    SETTINGS = {
        "adagrad": ["lr=0.5"],
        "any": ["optimizer.name=RAdam", "lr=0.1"],
        "lbfgs": ["lr=0.5"],
        "learned": ["optimizer.lr=4"],
        "newton_cg": ["lr=0.5"],
    }

    @pytest.fixture(scope="class")
    @classmethod
    def cfg(cls, composed: Compose, name: str) -> DictConfig:
        return settle(composed("task=tc", f"optimizer={name}", *cls.SETTINGS.get(name, [])))

    @classmethod
    def closure(cls, optimizer: torch.optim.Optimizer, w: Tensor, noise: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (0.5 * cls.CURVATURE * w * w + noise * w).sum()
        if not hasattr(optimizer, "differentiates"):
            loss.backward()
        return loss

    @classmethod
    def quadratic(
        cls, cfg: DictConfig, seed: int = 0, switch_step: int | None = 50, reload_at: int | None = None
    ) -> Tensor:
        """The weights before the first and after every step, one row each; reload_at as in mlp_path."""
        new_optimizer = optimizer_of(cfg, switch_step)
        random = torch.Generator().manual_seed(seed)
        weights = [torch.randn(20, generator=random)]
        w = weights[0].clone().requires_grad_()
        optimizer = new_optimizer([w])
        for step in range(100):
            if step == reload_at:
                state = saved_and_loaded(optimizer.state_dict(), weights_only=False)  # shampoo's holds objects
                optimizer = new_optimizer([w])
                optimizer.load_state_dict(state)
            noise = 0.1 * torch.randn(20, generator=random)
            before = w.detach().clone()
            optimizer.step(partial(cls.closure, optimizer, w, noise))
            if cfg.optimizer._target_.startswith("tmbench.optim."):
                assert torch.allclose(w.grad, cls.CURVATURE * before + noise), "step() must leave p.grad unchanged"
            weights.append(w.detach().clone())
        return torch.stack(weights)

    @pytest.fixture(scope="class")
    @classmethod
    def once(cls, cfg: DictConfig) -> Tensor:
        return cls.quadratic(cfg)

    def test_lowers_a_quadratic_and_leaves_gradients_unchanged(self, once: Tensor) -> None:
        losses = (self.CURVATURE * once**2).sum(dim=1)
        assert losses[-1] < 0.1 * losses[0]

    def test_repeats_bitwise_with_a_seed(self, cfg: DictConfig, once: Tensor) -> None:
        assert torch.equal(once, self.quadratic(cfg))
        assert not torch.equal(once, self.quadratic(cfg, seed=2))

    @pytest.mark.parametrize("reload_at", [30, 50])
    def test_resumes_identically_from_its_state_dict(self, cfg: DictConfig, once: Tensor, reload_at: int) -> None:
        assert torch.equal(self.quadratic(cfg, reload_at=reload_at), once)

    def test_changes_at_the_switch_exactly_if_it_has_one(self, cfg: DictConfig, once: Tensor) -> None:
        same = (once == self.quadratic(cfg, switch_step=None)).all(dim=1)
        assert same[:51].all()
        assert same[52:].tolist() == ["switch_step" not in cfg.optimizer] * 49  # a new momentum begins as SGD


def test_the_optimizers_need_torch_alone() -> None:
    code = "import sys, tmbench.optim; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    modules = done.stdout.split()
    assert "tmbench.optim.tmsgd" in modules
    packages = {module.split(".")[0] for module in modules}
    assert not packages & {"pytorch_lightning", "lightning_fabric", "hydra", "omegaconf", "wandb", "torchmetrics"}
    ours = {module for module in modules if module.split(".")[0] == "tmbench"}
    assert all(module == "tmbench" or module.startswith("tmbench.optim") for module in ours), ours


def test_a_state_of_parameters_in_another_order_is_refused_and_changes_nothing() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    saved = TMSGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    a.grad, b.grad = torch.ones(2), torch.ones(3)
    saved.step()
    other = TMSGD([{"params": [b]}, {"params": [a]}], lr=0.1)
    with pytest.raises(ValueError, match=r"another order: parameter 0 has shape \(3,\), its saved d has \(2,\)"):
        other.load_state_dict(saved.state_dict())
    assert not other.state
    with pytest.raises(ValueError, match="different number of parameter groups"):
        TMSGD([a, b], lr=0.1).load_state_dict(saved.state_dict())
