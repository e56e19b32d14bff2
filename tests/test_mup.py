"""Mu-parametrisation: its rules, nothing but the standard one at the base width, and rates that carry over.

Legend: B batch, T tokens, I inputs.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run
from helpers import assert_same, build, curves, pairwise, weights
from omegaconf import OmegaConf
from torch import Tensor, nn

from tmbench.config.identity import run_id
from tmbench.config.settle import settle
from tmbench.errors import ConfigError
from tmbench.optim import TMSGD, SwitchOptimizer
from tmbench.run import run
from tmbench.task import mean
from tmbench.tasks.ctr.task import WideDeep
from tmbench.tasks.ic.task import build_model
from tmbench.tasks.tc.task import LSTMClassifier
from tmbench.training.build import optimizer_of
from tmbench.training.loader import TrainLoader
from tmbench.training.mup import built, factors, groups, scaled

mup = pytest.importorskip("mup", reason="pip install 'tmbench[mup]'")

BASE, WIDTH = 4, 16


def wide_deep(width: int, readout: type[nn.Linear]) -> WideDeep:
    return WideDeep([9, 7], 3, [2 * width, width], init_std=0.5, readout=readout)


MODELS: dict[str, Callable[[int, type[nn.Linear]], nn.Module]] = {
    "vgg16": partial(build_model, "vgg16", 10),
    "resnet18": partial(build_model, "resnet18", 10),
    "resnet50": partial(build_model, "resnet50", 10),
    "lstm": partial(LSTMClassifier, 30, 6, 5),
    "wide_deep": wide_deep,
}


def made(name: str, width: int = WIDTH, mup: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    cfg = OmegaConf.create({"mup": mup, "width": width, "mup_base": BASE})
    return built(cfg, MODELS[name]).to(dtype)


def rates(optimizer: torch.optim.Optimizer) -> dict[Tensor, tuple[float, float]]:
    return {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("new", "oracle"),
    [(partial(torch.optim.SGD, lr=0.1, weight_decay=0.01), "MuSGD"),
     (partial(TMSGD, lr=0.1, weight_decay=0.01), "MuSGD"),
     (partial(torch.optim.AdamW, lr=0.1, weight_decay=0.01), "MuAdamW"),
     (partial(torch.optim.Adam, lr=0.1), "MuAdam")],
)  # fmt: skip
def test_rate_and_decay_of_every_parameter_are_the_packages(name: str, new: Any, oracle: str) -> None:
    model = made(name)
    ours = rates(scaled(new)(model.parameters()))
    theirs = rates(getattr(mup, oracle)(model.parameters(), **new.keywords))
    assert ours.keys() == theirs.keys() == set(model.parameters())
    for p, each in ours.items():
        assert each == pytest.approx(theirs[p])
    assert len(set(ours.values())) > 1


def test_rules_of_the_lstm_are_table_8() -> None:
    """(4H, I) first weights, (4H, H) hidden ones, biases (4H,), last weights (C, H); all else has no width."""
    model, m = made("lstm"), WIDTH / BASE
    assert {name: tuple(factors(p).values()) for name, p in model.named_parameters()} == {
        "embedding.weight": (1, 1),
        "lstm.weight_ih_l0": (m, 1),
        "lstm.weight_hh_l0": (1, 1 / m),
        "lstm.bias_ih_l0": (m, 1),
        "lstm.bias_hh_l0": (m, 1),
        "head.weight": (m, 1),
        "head.bias": (1, 1),
    }


def test_first_weights_of_the_lstm_start_as_at_the_base_width_and_hidden_ones_by_the_width() -> None:
    torch.manual_seed(0)
    cfg = OmegaConf.create({"mup": True, "width": 256, "mup_base": BASE})
    model = built(cfg, MODELS["lstm"])
    for name, width in (("weight_ih_l0", BASE), ("bias_ih_l0", BASE), ("bias_hh_l0", BASE), ("weight_hh_l0", 256)):
        p = getattr(model.lstm, name).detach()
        assert float(p.abs().max()) == pytest.approx(width**-0.5, rel=0.01)  # uniform up to there
        assert float(p.std()) == pytest.approx((3 * width) ** -0.5, rel=0.05)
    assert float(model.head.weight.detach().abs().max()) == pytest.approx(BASE**-0.5, rel=0.02)


@pytest.mark.parametrize(
    "new",
    [partial(torch.optim.SGD, lr=0.2, momentum=0.9), partial(TMSGD, lr=0.2, switch_step=3),
     partial(torch.optim.AdamW, lr=0.01, eps=1e-300, weight_decay=0.1)],
)  # fmt: skip
def test_training_equals_the_papers_other_form_without_multipliers(new: Any) -> None:
    """Table 3: no 1/m in front of the last weights; they start m times smaller, and have lr/m in both rules."""
    model, m = made("wide_deep", dtype=torch.float64), WIDTH / BASE
    plain = made("wide_deep", mup=False, dtype=torch.float64)
    plain.load_state_dict(model.state_dict())
    last = plain.deep[-1].weight
    last.data /= m
    rule, decay = "entrywise" if new.func is torch.optim.AdamW else "linear", new.keywords.get("weight_decay", 0.0)
    by_hand = []
    for p, ours in zip(plain.parameters(), model.parameters(), strict=True):
        factor = 1 / m if p is last else factors(ours)[rule]
        by_hand.append({"params": [p], "lr": new.keywords["lr"] * factor, "weight_decay": decay / factor})
    optimizer, other = scaled(new)(model.parameters()), new(by_hand)
    indices_BF = torch.randint(0, 7, (40, 2), generator=torch.Generator().manual_seed(1))
    clicks_B = (indices_BF.sum(1) % 2).double()
    start = model(indices_BF).detach()
    for _ in range(12):
        for net, each in ((model, optimizer), (plain, other)):
            each.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(indices_BF), clicks_B).backward()
            each.step()
        torch.testing.assert_close(model(indices_BF), plain(indices_BF), rtol=1e-9, atol=1e-12)
    assert (model(indices_BF) - start).abs().max() > 0.1


def test_tm_steps_are_its_filter_of_gradients_at_each_parameters_sgd_rate() -> None:
    """d[k] = -rate (h[0] g[k] + h[1] g[k-1] + ...), h = 1, 1/2, -1/4, -3/8, ..., by convolution, not recurrence."""
    model = made("lstm", dtype=torch.float64)
    sgd = rates(scaled(partial(torch.optim.SGD, lr=0.3))(model.parameters()))
    optimizer = scaled(partial(TMSGD, lr=0.3))(model.parameters())
    tokens_BT = torch.randint(0, 30, (20, 5), generator=torch.Generator().manual_seed(1))
    response, gradients, began = [1.0, 0.5], [], [p.detach().clone() for p in model.parameters()]
    while len(response) < 10:
        response.append(0.5 * response[-1] - 0.5 * response[-2])
    for _ in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens_BT), tokens_BT[:, 0] % 5).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        optimizer.step()
    for i, p in enumerate(model.parameters()):
        moved = sum(h * gradients[k - n][i] for k in range(10) for n, h in enumerate(response[: k + 1]))
        torch.testing.assert_close(p.detach() - began[i], -sgd[p][0] * moved, rtol=1e-9, atol=1e-13)
    assert {round(rate / 0.3, 9) for rate, _ in sgd.values()} == {1.0, WIDTH / BASE}


def test_switch_between_optimizers_gives_each_its_own_rule_also_under_a_schedule() -> None:
    model, m = made("lstm"), WIDTH / BASE
    first, second = partial(torch.optim.Adam, lr=0.01), partial(torch.optim.SGD, lr=0.1)
    optimizer = scaled(partial(SwitchOptimizer, first=first, second=second, switch_step=2))(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def now() -> dict[str, float]:
        named = {p: name for name, p in model.named_parameters()}
        pairs = zip(optimizer.param_groups, optimizer.lrs, strict=True)
        return {named[p].split(".")[-1]: lr for group, lr in pairs for p in group["params"] if "lstm" in named[p]}

    assert now() == pytest.approx(
        {"weight_ih_l0": 0.01, "weight_hh_l0": 0.01 / m, "bias_ih_l0": 0.01, "bias_hh_l0": 0.01}
    )
    for _ in range(2):
        model(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
        optimizer.step()
        schedule.step()
    assert type(optimizer.active) is torch.optim.SGD
    assert now() == pytest.approx(
        {"weight_ih_l0": 0.025 * m, "weight_hh_l0": 0.025, "bias_ih_l0": 0.025 * m, "bias_hh_l0": 0.025 * m}
    )


@pytest.mark.parametrize("name", MODELS)
def test_model_at_the_base_width_is_the_standard_one_and_draws_nothing_more(name: str) -> None:
    standard = made(name, BASE, mup=False)
    drawn = torch.get_rng_state()
    model = made(name, BASE)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_same(model.state_dict(), standard.state_dict())
    (group,) = groups(model.parameters())
    assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))
    first, *others = groups(made(name).parameters())  # wider: that of the first group is the rate that a run reports
    assert first["factors"] == {"linear": 1, "entrywise": 1}
    assert others


STEPS = {"tc": ["batch_size=16"], "ctr": ["batch_size=256"], "ic": ["batch_size=16", "task.model=resnet18"]}


@pairwise(task=STEPS, optimizer=["sgd", "tmsgd", "adam"])
def test_steps_at_the_base_width_are_the_standard_ones_bitwise(task: str, optimizer: str, composed: Compose) -> None:
    width = 2 if task == "ic" else 16
    words = [f"optimizer={optimizer}", *STEPS[task], f"task.width={width}", "task.weight_decay=0"]
    states = []
    for more in ([], ["task.mup=true", f"task.mup_base={width}"]):
        own, cfg = build(composed, task, *words, *more)
        new = optimizer_of(cfg, 2 if optimizer == "tmsgd" else None)
        one = own.with_own_rates(new)(list(own.parameters()))
        loader = TrainLoader(
            own.examples("train"), own.collate, cfg.batch_size, device=torch.device("cpu"), epoch=lambda: 0
        )
        for step in next(iter(loader))[:5]:
            one.zero_grad()
            mean(*own.loss(step[0][0])).backward()
            one.step()
        states.append(own.model.state_dict())
    assert_same(*states)


def test_run_at_the_base_width_equals_the_standard_run_bitwise(do: Run) -> None:
    words = ["task=tc", "optimizer=tmsgd", "epochs=2", "switch_epoch=1", "batch_size=64", "schedule=cosine"]
    _, standard = do(*words)
    _, ours = do(*words, "task.mup=true")  # the base is the task's own width
    assert ours != standard
    assert_same(weights(ours), weights(standard))
    assert curves(ours) == curves(standard)


SHORT = ["task=tc", "epochs=3", "batch_size=64", "task.mup=true", "task.width=12", "task.mup_base=4", "schedule=cosine"]


@pytest.mark.slow
def test_run_resumes_bitwise_and_shares_its_beginning(composed: Compose, tmp_path: Path) -> None:
    def tm(*words: str, until: int | None = None) -> Any:
        return run(composed(*SHORT, "optimizer=tmsgd", "switch_epoch=2", *words), until=until)

    _, alone, _ = tm("trunk=off", f"runs_dir={tmp_path / 'alone'}")
    stopped, _, _ = tm("trunk=off", f"runs_dir={tmp_path / 'stopped'}", until=1)
    assert stopped.status == "interrupted"
    _, resumed, how = tm("trunk=off", f"runs_dir={tmp_path / 'stopped'}")
    assert how == "resumed"
    assert_same(weights(resumed), weights(alone))
    other, _, _ = tm("optimizer.c=0.4", f"runs_dir={tmp_path / 'shared'}")
    ours, shared, _ = tm(f"runs_dir={tmp_path / 'shared'}")
    assert [other.epochs["from_trunk"], ours.epochs["from_trunk"]] == [0, 2]
    assert_same(weights(shared), weights(alone))


@pytest.mark.slow
@pairwise(task=STEPS, optimizer=["sgd", "tmsgd", "adam", "sgd_to_sgdm"])
def test_every_family_trains_wider_at_the_rate_of_the_base(task: str, optimizer: str, do: Run) -> None:
    width = {"tc": 100, "ctr": 512, "ic": 16}[task]
    own = {"tc": 0.02, "ctr": 0.05, "ic": 0.003}[task]
    words = [f"task={task}", f"optimizer={optimizer}", "task.mup=true", f"task.width={width}", "task.weight_decay=0"]
    result, _ = do(*words, "epochs=6", f"lr={own}")
    key = result.headline
    assert result.status == "completed"
    assert result.metrics["last"][key] > result.baseline[key] + 0.1


def test_its_base_makes_no_other_run_without_it(composed: Compose) -> None:
    def name(*words: str) -> str:
        return run_id(settle(composed(*words, "trainer=cpu")), "x")

    assert name("task=tc", "task.mup_base=7") == name("task=tc")
    assert len({name("task=tc", "task.mup=true", *own) for own in ([], ["task.mup_base=7"])} - {name("task=tc")}) == 2
    assert name("task=ctr") != name("task=ctr", "task.width=64")


def test_width_of_wide_and_deep_keeps_the_layers_in_proportion(composed: Compose) -> None:
    for words, expected in (([], [256, 128]), (["task.width=64"], [64, 32])):
        task, _ = build(composed, "ctr", *words)
        assert [layer.out_features for layer in task.model.deep if isinstance(layer, nn.Linear)] == [*expected, 1]


@pytest.mark.parametrize(
    ("optimizer", "message"), [("lion", "got Lion"), ("muon", "got muon"), ("any", "got find"), ("lbfgs", "got LBFGS")]
)
def test_optimizer_without_a_known_rule_is_refused(optimizer: str, message: str, do: Run) -> None:
    with pytest.raises(ConfigError, match=rf"task\.mup: expected an optimizer whose rule is known \(SGD, .*{message}"):
        do("task=tc", f"optimizer={optimizer}", "task.mup=true")


def test_refused_are_swats_and_an_l2_penalty_that_adam_divides(do: Run) -> None:
    with pytest.raises(ConfigError, match=r"at a given epoch\), got SwitchOptimizer"):
        do("task=tc", "optimizer=switch", "optimizer.criterion=swats", "switch_epoch=never", "task.mup=true")
    with pytest.raises(ConfigError, match=r"Adam divides an L2 penalty .* optimizer=adamw.* task\.weight_decay=0"):
        do("task=ic", "optimizer=adam", "task.mup=true")


@pytest.mark.parametrize(
    ("words", "least"),
    [(["task=ctr", "task.width=1.5"], 0), (["task=ctr", "task.mup_base=-1"], 0), (["task=tc", "task.mup_base=0"], 1),
     (["task=ic", "task.mup_base=x"], 1)],
)  # fmt: skip
def test_widths_must_be_whole_numbers(words: list[str], least: int, composed: Compose) -> None:
    with pytest.raises(ConfigError, match=rf"task\.(width|mup_base): expected a whole number >= {least}, got "):
        settle(composed(*words))


def test_missing_package_is_named(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mup", None)
    with pytest.raises(ConfigError, match=r"task\.mup=true needs a package: pip install 'tmbench\[mup\]'"):
        do("task=tc", "task.mup=true")


@torch.no_grad()
def said(model: Any, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What the LSTM gives at all positions, and the logits."""
    outputs_BTH, _ = model.lstm(model.embedding(tokens_BT))
    return outputs_BTH, model.head(outputs_BTH[:, -1])


def exponents(new: Any, mup: bool) -> list[float]:
    """How what three steps add to the outputs of the LSTM, and to the logits, grows with the width."""
    widths, changes = (16, 256), []
    tokens_BT = torch.randint(0, 30, (16, 6), generator=torch.Generator().manual_seed(1))
    for width in widths:
        model = made("lstm", width, mup)
        optimizer = scaled(new)(model.parameters()) if mup else new(model.parameters())
        before = said(model, tokens_BT)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens_BT), tokens_BT[:, 0] % 5).backward()
            optimizer.step()
        after = said(model, tokens_BT)
        changes.append([float((b - a).square().mean().sqrt()) for a, b in zip(before, after, strict=True)])
    return [math.log(b / a) / math.log(widths[-1] / widths[0]) for a, b in zip(changes[0], changes[-1], strict=True)]


@pytest.mark.parametrize("new", [partial(torch.optim.SGD, lr=0.3), partial(TMSGD, lr=0.3)])
def test_sgd_and_tm_change_what_the_lstm_says_by_less_at_larger_widths_but_not_with_it(new: Any) -> None:
    """Without it the LSTM's change falls as width^-1/2, and only the last layer learns."""
    assert max(map(abs, exponents(new, mup=True))) < 0.15
    assert exponents(new, mup=False)[0] < -0.35


def test_adam_changes_logits_by_more_at_larger_widths_but_not_with_it() -> None:
    new = partial(torch.optim.Adam, lr=0.003)
    assert max(map(abs, exponents(new, mup=True))) < 0.15
    assert exponents(new, mup=False)[1] > 0.6
