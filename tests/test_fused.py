"""The three paths of the step: one by one, foreach, fused, against each other and against float64."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from helpers import pairwise
from torch import Tensor, nn

from tmbench.optim import TMSGD, MultistepSGD, RescaledSGD, fused
from tmbench.optim.fused import fused_update

PATHS: tuple[dict[str, Any], ...] = ({"foreach": False}, {"foreach": True}, {"fused": True})
BOUND = 2e-6  # after 40 steps in float32, in units of the largest weight; TMSGD's docstring tells it
SHAPES = ((), (0,), (1,), (7,), (3, 5), (64, 33), (5, 3, 3, 3), (70_001,))
DIRECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled": True},
    "momentum": {"momentum": 0.7},
    "dampening": {"momentum": 0.7, "dampening": 0.4, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "momentum": 0.5, "weight_decay": 0.1},
}
METHODS: dict[str, Callable[..., Any]] = {
    "tmsgd": TMSGD,
    "third": lambda params, **settings: TMSGD(params, c=1 / 3, **settings),
    "six_point": lambda params, **settings: MultistepSGD(params, preset="six_point", **settings),
    "five_point": lambda params, **settings: MultistepSGD(params, preset="five_point", **settings),
    "euler": lambda params, **settings: MultistepSGD(params, preset="euler", **settings),
    "rescaled": lambda params, **settings: RescaledSGD(params, **settings),
}


@pytest.fixture(autouse=True)
def _forget_what_was_said() -> Iterator[None]:
    yield
    fused._say_once.cache_clear()
    fused._compiled.cache_clear()


def parameters(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=random).to(dtype) for shape in SHAPES]
    weights[-2] = weights[-2].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(w) for w in weights]


@cache
def noise(steps: int) -> list[list[Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [[torch.randn(shape, generator=random) for shape in SHAPES] for _ in range(steps)]


def walk(
    new_optimizer: Callable[..., Any], steps: int = 40, dtype: torch.dtype = torch.float32, **settings: Any
) -> list[Tensor]:
    """Weights after noisy steps down a bowl, in two groups with rates of their own; the same noise for all types."""
    weights = parameters(dtype)
    groups = [{"params": weights[::2]}, {"params": weights[1::2], "lr": 0.07}]
    optimizer = new_optimizer(groups, lr=0.05, **settings)
    ascends = -1.0 if settings.get("maximize") else 1.0
    for noises in noise(steps):
        for w, n in zip(weights, noises, strict=True):
            w.grad = ascends * (w.detach() + 0.5 * n.to(dtype))
        optimizer.step()
    return [w.detach() for w in weights]


def worst(walked: list[Tensor], reference: list[Tensor]) -> float:
    """The largest error of any weight, in units of the largest weight."""
    walked_N, reference_N = (torch.cat([t.double().flatten() for t in each]) for each in (walked, reference))
    return float((walked_N - reference_N).abs().max() / reference_N.abs().max())


@pytest.mark.parametrize(
    ("method", "direction"),
    # Every direction with one formula, every formula with one or two directions: the two do not meet in a kernel.
    [*(("tmsgd", direction) for direction in DIRECTIONS), ("third", "decoupled"), ("six_point", "nesterov"),
     ("six_point", "plain"), ("five_point", "dampening"), ("euler", "maximize"), ("rescaled", "decay")],
)  # fmt: skip
def test_all_paths_stay_within_rounding_of_the_float64_for_loop(method: str, direction: str) -> None:
    settings = {"switch_step": 7, **DIRECTIONS[direction]}
    reference = walk(METHODS[method], dtype=torch.float64, foreach=False, **settings)
    for path in PATHS:
        assert worst(walk(METHODS[method], dtype=torch.float64, **path, **settings), reference) < 1e-14
        assert worst(walk(METHODS[method], **path, **settings), reference) < BOUND


def test_the_bound_would_notice_one_wrong_factor() -> None:
    reference = walk(TMSGD, dtype=torch.float64, foreach=False, switch_step=7)
    assert worst(walk(TMSGD, fused=True, switch_step=7, c=0.5 + 1e-5), reference) > BOUND


@pairwise(history=["true", "zero"], switch_step=[0, 1, 2, None])
def test_fused_takes_the_same_history_at_any_switch(switch_step: int | None, history: str) -> None:
    settings = {"switch_step": switch_step, "history": history, "momentum": 0.5}
    reference = walk(TMSGD, dtype=torch.float64, foreach=False, **settings)
    assert worst(walk(TMSGD, fused=True, **settings), reference) < BOUND


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "nesterov": True}])
def test_until_the_switch_fused_is_torchs_fused_sgd_bit_for_bit(settings: dict[str, Any]) -> None:
    ours = walk(TMSGD, fused=True, switch_step=40, **settings)
    torchs = walk(torch.optim.SGD, fused=True, **settings)
    assert all(torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))


def test_fused_does_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = walk(TMSGD, fused=True, momentum=0.5)
        torch.set_num_threads(3)
        shared = walk(TMSGD, fused=True, momentum=0.5)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_kernel_in_c_is_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        fused, "fused_update", lambda rows, *rest, **more: calls.append(len(rows)) or fused_update(rows, *rest, **more)
    )
    walk(TMSGD, fused=True, steps=5, switch_step=2)
    assert sum(calls) == 3 * len(SHAPES)


def test_addresses_that_no_vector_is_aligned_to_are_fine() -> None:
    base = torch.linspace(-1, 1, 1001, dtype=torch.float32)
    walked = []
    for path in PATHS:
        weight = nn.Parameter(base.clone()[1:])
        optimizer = TMSGD([weight], lr=0.1, **path)
        for _ in range(10):
            weight.grad = torch.cat([weight.detach(), torch.zeros(1)])[:-1] * 2
            optimizer.step()
        walked.append(weight.detach())
    assert all(torch.allclose(w, walked[0], rtol=1e-6, atol=1e-7) for w in walked)


def falls_back(weight: nn.Parameter, grad: Tensor, text: str, **settings: Any) -> None:
    """Warns once, over all steps, and then does what foreach does."""
    other = nn.Parameter(weight.detach().clone(memory_format=torch.preserve_format))
    optimizer = TMSGD([weight], lr=0.1, momentum=0.5, fused=True)
    foreach = TMSGD([other], lr=0.1, momentum=0.5, foreach=True)
    weight.grad, other.grad = grad, grad.clone(memory_format=torch.preserve_format)
    with pytest.warns(UserWarning, match=text):
        optimizer.step()
    foreach.step()
    for _ in range(3):  # any further warning would be an error
        optimizer.step()
        foreach.step()
    assert torch.equal(weight, other)


def test_a_type_without_a_kernel_falls_back_with_a_warning() -> None:
    weight, grad = torch.ones(9, dtype=torch.bfloat16), torch.full((9,), 0.5, dtype=torch.bfloat16)
    falls_back(nn.Parameter(weight), grad, "CPU's kernel knows float32 and float64, not bfloat16")


def test_a_gradient_that_is_laid_out_otherwise_falls_back_with_a_warning() -> None:
    falls_back(nn.Parameter(torch.ones(4, 6)), torch.randn(6, 4).t(), "laid out in memory otherwise")


@pytest.mark.parametrize(
    ("compiler", "text"),
    [("no-such-compiler", "could not be built.*no-such-compiler"), ("false", "the C compiler false failed")],
)
def test_without_a_compiler_it_falls_back_with_a_warning(
    compiler: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    fused._compiled.cache_clear()
    falls_back(nn.Parameter(torch.ones(9)), torch.full((9,), 0.5), text)


def test_a_formula_longer_than_the_kernels_falls_back_with_a_warning() -> None:
    weight = nn.Parameter(torch.ones(3))
    seven = [1, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1]
    optimizer = MultistepSGD([weight], lr=0.1, coefficients=seven, fused=True)
    weight.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="up to 4 differences, not 6"):
        optimizer.step()


def test_a_saved_fused_state_continues_bitwise() -> None:
    def run(reload_at: int | None) -> Tensor:
        weight = nn.Parameter(torch.linspace(-1, 1, 101))
        optimizer = TMSGD([weight], lr=0.1, momentum=0.5, switch_step=3, fused=True)
        for step in range(12):
            if step == reload_at:
                state = optimizer.state_dict()
                optimizer = TMSGD([weight], lr=9.0, switch_step=0)
                optimizer.load_state_dict(state)
                assert optimizer.param_groups[0]["fused"]
            weight.grad = weight.detach() * 1.5
            optimizer.step()
        return weight.detach()

    assert all(torch.equal(run(None), run(at)) for at in (1, 2, 3, 7))


def test_foreach_and_fused_together_are_refused() -> None:
    for method in METHODS.values():
        with pytest.raises(ValueError, match="expected one of foreach and fused, got both"):
            method([nn.Parameter(torch.ones(1))], lr=0.1, fused=True, foreach=True)


INTERPRETED = """
import contextlib, itertools, torch
from tmbench.optim import fused_cuda
from tmbench.optim.fused import Coefficients, fused_update

torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
for count, buffered, dtype in itertools.product(range(5), (False, True), (torch.float32, torch.bfloat16)):
    random = torch.Generator().manual_seed(count)
    draw = lambda: [torch.randn(n, generator=random) for n in (1, 4096, 5000)]
    params, grads, buffers, differences = draw(), draw(), draw(), [draw() for _ in range(count)]
    by = Coefficients(
        [0.5, -0.5, 0.25, 0.125][:count], 0.1, sign=-1.0, decay=0.2, momentum=0.7, fresh=0.6, nesterov=True, shrink=0.9
    )
    lists = [params, grads, buffers, *differences]
    lists = [[t.to(dtype) for t in ts] for ts in lists]
    exact = [[t.double() for t in ts] for ts in lists]
    fused_update([list(row) for row in zip(*exact[:2], *exact[2 : 2 + buffered], *exact[3:])], by, buffered)
    rows = list(zip(*([*lists[:2], lists[2] if buffered else [None] * 3, *lists[3:]])))
    pointers = [0 if t is None else t.data_ptr() for row in rows for t in row]
    fused_cuda.launch(lists[0][0], pointers, [t.numel() for t in lists[0]], buffered, by.scalars, by.factors)
    bound = 1e-6 if dtype == torch.float32 else 2**-7  # bfloat16 has 8 bits
    for ours, theirs in zip(itertools.chain(*lists), itertools.chain(*exact)):
        torch.testing.assert_close(ours.double(), theirs, rtol=bound, atol=bound)
print("agrees")
"""


@pytest.mark.slow
def test_tritons_kernel_agrees_with_the_c_kernel_in_tritons_interpreter() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.stdout == "agrees\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_fused_stays_within_rounding_of_float64(dtype: torch.dtype) -> None:
    weights = [nn.Parameter(w.detach().cuda().to(dtype)) for w in parameters()]
    reference = [nn.Parameter(w.detach().double().cpu()) for w in weights]
    optimizers = [TMSGD(ws, lr=0.05, momentum=0.5, weight_decay=0.1, switch_step=3, **path)
                  for ws, path in ((weights, {"fused": True}), (reference, {"foreach": False}))]  # fmt: skip
    for _, optimizer in itertools.product(range(20), optimizers):
        for w in (w for group in optimizer.param_groups for w in group["params"]):
            w.grad = w.detach() * 0.5
        optimizer.step()
    bound = 1e-6 if dtype == torch.float32 else 5e-2
    assert worst([w.detach().cpu() for w in weights], [w.detach() for w in reference]) < bound
