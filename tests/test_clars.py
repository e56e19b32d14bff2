"""CLARS: the norms are those of a loop over examples, its steps the paper's, and a run says which norms it has."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run
from helpers import assert_same, build, first_batch, weights
from pytorch_optimizer import LARS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tmbench.errors import ConfigError
from tmbench.optim import CLARS, clars, example_norms
from tmbench.optim.clars import Loss, why_not_by_examples
from tmbench.run import run
from tmbench.task import checked_loss
from tmbench.training import norms

pytestmark = pytest.mark.usefixtures("one_thread")


def small(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Loss, tuple[Tensor, Tensor]]:
    """A convolutional network, its loss over labelled pixels, and a batch of 12, one of them without a label."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(True), nn.Conv2d(4, 3, 1)).to(dtype)
    inputs, labels = torch.randn(12, 2, 6, 6, dtype=dtype), torch.randint(-1, 3, (12, 4, 4))
    labels[5] = -1

    def loss(batch: Any) -> tuple[Tensor, Tensor]:
        images, targets = batch
        return cross_entropy(model(images), targets, ignore_index=-1, reduction="sum"), (targets >= 0).sum()

    return model, loss, (inputs, labels)


def looped(model: nn.Module, loss: Loss, parts: Sequence[Any]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """By autograd, a part at a time: the mean loss, its gradient, and the weighted mean of the gradients' norms."""
    params = list(model.parameters())
    total, terms = torch.zeros(()), 0.0
    grads, norms = [torch.zeros_like(p) for p in params], [torch.zeros(()) for _ in params]
    for part in parts:
        value, weight = loss(part)
        own = torch.autograd.grad(value, params)
        total, terms = total + value.detach(), terms + float(weight)
        grads = [g + each for g, each in zip(grads, own, strict=True)]
        norms = [n + each.norm() for n, each in zip(norms, own, strict=True)]
    return total / terms, [g / terms for g in grads], [n / terms for n in norms]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], bound: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b.to(a), rtol=bound, atol=bound * float(b.abs().max()))


@pytest.mark.parametrize("at_once", [1, 500, 2**24])
@pytest.mark.parametrize("cuts", [[12], [5, 7]])
def test_norms_of_examples_are_those_of_a_loop_over_them(
    cuts: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loss, batch = small()
    monkeypatch.setattr(clars, "AT_ONCE", at_once)
    parts = list(zip(*(t.split(cuts) for t in batch), strict=True))
    value, weight, norms = example_norms(model, loss, parts)
    mean, grads, expected = looped(model, loss, [tuple(t[i : i + 1] for t in batch) for i in range(12)])
    assert_near([value], [mean])
    assert weight == (batch[1] >= 0).sum()
    assert_near([p.grad for p in model.parameters() if p.grad is not None], grads)
    assert_near([norms[p] for p in model.parameters()], expected)


@pytest.mark.parametrize("cuts", [[12], [5, 7], [4, 4, 4]])
def test_norms_of_parts_are_those_of_a_loop_over_parts_also_where_batch_norm_is(cuts: list[int]) -> None:
    model, loss, batch = small()
    model[1] = nn.BatchNorm2d(4).double()  # type: ignore[operator]
    parts = list(zip(*(t.split(cuts) for t in batch), strict=True))
    value, _, norms = example_norms(model, loss, parts, by_examples=False)
    mean, grads, expected = looped(model, loss, parts)
    assert_near([value], [mean])
    assert_near([p.grad for p in model.parameters() if p.grad is not None], grads)
    assert_near([norms[p] for p in model.parameters()], expected)


def path(optimizer: Any, model: nn.Module, loss: Loss, batches: Sequence[Any], norms: bool) -> list[Tensor]:
    """The weights after a step on each batch."""
    for batch in batches:
        value, _, optimizer_norms = example_norms(model, loss, [batch])
        if norms:
            optimizer.norms = optimizer_norms
        optimizer.step()
        assert value.isfinite()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("examples", [1, 6])
def test_where_all_examples_are_alike_it_is_lars(examples: int, decay: float) -> None:
    """The library's LARS, over batches of one example, and of six copies of one."""
    ends = []
    for new in (CLARS, LARS):
        model, loss, (inputs, labels) = small()
        optimizer: Any = new(model.parameters(), lr=2.0, momentum=0.9, trust_coefficient=0.01, weight_decay=decay)
        batches = [(inputs[i : i + 1].repeat(examples, 1, 1, 1), labels[i : i + 1].repeat(examples, 1, 1))
                   for i in range(4)]  # fmt: skip
        ends.append(path(optimizer, model, loss, batches, norms=new is CLARS))
    assert_near(*ends, bound=1e-9)


def test_examples_that_disagree_shorten_the_step_of_matrices_alone() -> None:
    """By exactly the mean gradient's norm over the mean of the norms, in the first step; vectors take SGD's."""
    moved = []
    for has_norms in (True, False):
        model, loss, batch = small()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = CLARS(model.parameters(), lr=0.5, momentum=0.9)
        path(optimizer, model, loss, [batch], norms=has_norms)
        moved.append([p.detach() - w for p, w in zip(model.parameters(), before, strict=True)])
        assert not optimizer.norms  # they are of one step
    _, _, norms = example_norms(*small()[:2], [batch])
    model, loss, _ = small()
    _, grads, means = looped(model, loss, [tuple(t[i : i + 1] for t in batch) for i in range(12)])
    assert len(norms) == len(means)
    for with_norms, without, g, mean in zip(*moved, grads, means, strict=True):
        factor = g.norm() / mean if g.ndim > 1 else torch.ones(())
        assert torch.allclose(with_norms, factor * without, rtol=1e-9)
        assert g.ndim < 2 or factor < 0.9


def test_what_keeps_a_module_from_gradients_of_examples_is_named() -> None:
    assert why_not_by_examples(small()[0]) is None
    for module, reason in (
        (nn.BatchNorm1d(3), "0 normalises over the batch"),
        (nn.LSTM(3, 2), "no rule for 0, a recurrent layer"),
        (nn.Embedding(5, 2, padding_idx=0), "no rule for 0, with padding_idx or sparse gradients"),
    ):
        assert reason in str(why_not_by_examples(nn.Sequential(module)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
     ({"trust_coefficient": 0.0}, "trust_coefficient must be > 0 and finite, got 0.0"),
     ({"lr": -1.0}, "lr must be >= 0 and finite, got -1.0")],
)  # fmt: skip
def test_a_value_out_of_range_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^clars: {re.escape(text)}$"):
        CLARS([torch.ones(2, 2, requires_grad=True)], **{"lr": 0.1, **settings})


CTR, TC = ["task=ctr", "batch_size=512", "lr=1"], ["task=tc", "batch_size=80", "lr=1"]
OF = "optimizer=clars: the norms are those of the gradients of "


def test_ctr_has_the_norms_of_a_loop_over_its_examples(composed: Compose) -> None:
    task, _ = build(composed, "ctr", "task.sparse=false", "optimizer=clars")
    (player,) = task.double().players().values()
    batch = tuple(t.double() if t.is_floating_point() else t for t in first_batch(task, 6))
    examples = [tuple(t[i : i + 1] for t in batch) for i in range(6)]
    _, _, norms = example_norms(task, partial(checked_loss, player), [batch])
    _, grads, expected = looped(task, partial(checked_loss, player), examples)
    assert_near([p.grad for p in task.parameters() if p.grad is not None], grads)
    assert_near([norms[p] for p in task.parameters()], expected)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        pytest.param(CTR, "single examples", marks=pytest.mark.slow),
        (TC, "8 parts of each batch: torch.func.vmap has no rule for model.lstm, a recurrent layer"),
        pytest.param([*TC, "optimizer.parts=5"], "5 parts of each batch: ", marks=pytest.mark.slow),
        pytest.param([*TC, "trainer.accumulate=2"], "2 parts of each batch: ", marks=pytest.mark.slow),
        pytest.param([*TC, "batch_size=1"], "whole batches, as of lars: ", marks=pytest.mark.slow),
    ],
)
def test_a_run_says_which_norms_it_has_and_resumes_bitwise(
    words: list[str], note: str, composed: Compose, do: Run, tmp_path: Path
) -> None:
    words = [*words, "optimizer=clars", "epochs=2"]
    result, whole = do(*words)
    assert any(each.startswith(OF + note) for each in result.notes), result.notes
    stopped = composed(*words, f"runs_dir={tmp_path / 'stopped'}")
    assert run(stopped, until=1)[0].status == "interrupted"
    _, resumed, how = run(stopped)
    assert how == "resumed"
    assert_same(weights(resumed), weights(whole))


@pytest.mark.slow
def test_a_model_with_too_many_parameters_has_parts(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "MOST", 1000)
    result, _ = do(*CTR, "optimizer=clars", "epochs=1")
    assert f"{OF}8 parts of each batch: an example's has 69,372 numbers" in result.notes


@pytest.mark.slow
def test_parts_of_the_loader_do_not_matter_to_norms_of_examples(do: Run) -> None:
    ends = [weights(do(*CTR, "optimizer=clars", "epochs=1", *more)[1]) for more in ([], ["trainer.accumulate=3"])]
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=1e-5) for key in ends[0])


def test_clars_as_a_part_of_a_switch_is_refused(do: Run) -> None:
    with pytest.raises(ConfigError, match="optimizer=switch: CLARS cannot be a part of it"):
        do("task=tc", "optimizer=switch", "epochs=2", "switch_epoch=1", "optimizer.second._target_=tmbench.optim.CLARS")


@pytest.mark.slow
def test_two_ranks_are_refused(do: Run) -> None:
    with pytest.raises(RuntimeError, match="devices: optimizer=clars runs on one"):
        do("task=tc", "optimizer=clars", "trainer=ddp_cpu", "devices=2")
