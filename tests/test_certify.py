"""The certificate: each defect is caught by the check that is about it, and sound optimizers get a clean bill."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import choices
from torch import Tensor
from torch.optim import Optimizer

from tmbench.certify import CHECKS, Finding, certify
from tmbench.certify.__main__ import main
from tmbench.certify.checks import FUNCTIONS
from tmbench.optim import TMSGD

torch_sgd, torch_adam = torch.optim.SGD, torch.optim.Adam


class Heavy(Optimizer):
    """Momentum as it should be; each class below spoils one thing."""

    def __init__(self, params: Any, lr: float = 0.05, foreach: bool | None = None) -> None:
        super().__init__(params, {"lr": lr, "foreach": foreach})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.groups():
            having = [p for p in group["params"] if p.grad is not None]
            for i, p in enumerate(having):
                buffer = self.buffers(p)
                buffer.mul_(0.5).add_(self.direction(having, i))
                p.add_(buffer, alpha=-self.rate(group, having, i))
        return loss

    def groups(self) -> list[dict[str, Any]]:
        return self.param_groups

    def buffers(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "v" not in state:
            state["v"] = torch.zeros_like(p)
        return state["v"]

    def direction(self, tensors: list[Tensor], i: int) -> Any:
        return tensors[i].grad

    def rate(self, group: dict[str, Any], tensors: list[Tensor], i: int) -> float:
        return group["lr"]


def spoiled(**methods: Any) -> type[Heavy]:
    """Heavy with other methods."""
    return type("Spoiled", (Heavy,), methods)


class BlowsUpLater(Heavy):
    def rate(self, group: dict[str, Any], tensors: list[Tensor], i: int) -> float:
        group["step"] = group.get("step", 0) + (i == 0)
        return group["lr"] * (1000 if group["step"] > 100 else 1)


class Adam(torch_adam):
    def __init__(self, params: Any, lr: float = 0.05) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.998))
        self.param_groups[0]["betas"] = (0.9, 0.999)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        before = [p.clone() for group in self.param_groups for p in group["params"]]
        loss = super().step(closure)
        for p, w in zip((p for group in self.param_groups for p in group["params"]), before, strict=True):
            p.add_(p - w, alpha=0.01)
        return loss


class Unseeded(Heavy):
    random = torch.Generator().manual_seed(0)

    def direction(self, tensors: list[Tensor], i: int) -> Any:
        return tensors[i].grad * (1 + 1e-9 * torch.rand((), generator=self.random).item())


class ForgetsItsBuffers(Heavy):
    def buffers(self, p: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept: dict[Tensor, Tensor] = {}
        return self.kept.setdefault(p, torch.zeros_like(p))


class MixesNeighbours(Heavy):
    def direction(self, tensors: list[Tensor], i: int) -> Any:
        before = tensors[i - 1].grad if i else None
        return tensors[i].grad if before is None else tensors[i].grad + 0.1 * before.mean()


class ScalesTheGradient(Heavy):
    def direction(self, tensors: list[Tensor], i: int) -> Any:
        return tensors[i].grad.mul_(0.5)


class TakesNoneForZero(Heavy):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None and "v" in self.state[p]:
                    p.add_(self.state[p]["v"].mul_(0.5), alpha=-group["lr"])
        return loss


class NeedsAGradient(Heavy):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None])
        return loss


class DropsTheLoss(Heavy):
    def step(self, closure: Any = None) -> Any:
        super().step(closure)


class EvaluatesWithoutGradients(Heavy):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        super().step()
        return loss


def shrink(self: Heavy) -> None:
    with torch.no_grad():
        for p in self.param_groups[0]["params"]:
            p.mul_(0.999)


def cannot_load(self: Heavy, state_dict: Any) -> None:
    raise KeyError("v")


class ClaimsToBeLinear(torch.optim.Adam):
    moves_linearly = True

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)


foreach_is_another = spoiled(rate=lambda self, group, tensors, i: group["lr"] * (1.01 if group["foreach"] else 1))


def failed(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.verdict == "does not"}


def not_applicable(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.verdict == "not applicable"}


REFERENCE, PATHS, SAVED = "agrees with a reference", "for-loop, foreach and fused agree", "state_dict continues bitwise"
ORDER, NUMBER = "order of tensors does not matter", "number of tensors does not matter"
GRADIENTS, NONE, ZERO = "leaves gradients as they were", "None gradients are skipped", "zero gradients are harmless"
LINEAR, STACKED = "sparse rows = dense", "stacked = each by itself"
GROUP, CLOSURE, MODES = "an added group is updated", "a closure's loss is returned", "train() and eval() leave no trace"


DEFECTS: dict[str, tuple[type[Optimizer], set[str]]] = {
    "none": (Heavy, set()),
    "it blows up later": (BlowsUpLater, {"lowers a quadratic"}),
    "it is not the Adam of its name": (Adam, {REFERENCE}),
    "foreach is another": (foreach_is_another, {PATHS}),
    "it is unseeded": (Unseeded, {"repeats bitwise", SAVED}),  # what does not repeat cannot continue bitwise
    "it forgets its buffers": (ForgetsItsBuffers, {SAVED}),
    "it cannot be saved": (spoiled(load_state_dict=cannot_load), {SAVED}),
    "it mixes neighbours": (MixesNeighbours, {ORDER}),
    "it counts tensors": (spoiled(rate=lambda self, group, tensors, i: group["lr"] / len(tensors)), {NUMBER}),
    # Alone, every tensor is the first.
    "it counts positions": (spoiled(rate=lambda self, group, tensors, i: group["lr"] / (1 + i)), {ORDER, NUMBER}),
    "it scales the gradient": (ScalesTheGradient, {GRADIENTS}),
    "it takes None for zero": (TakesNoneForZero, {NONE}),
    "it needs a gradient": (NeedsAGradient, {NONE}),
    "0 / 0": (spoiled(direction=lambda self, tensors, i: tensors[i].grad / tensors[i].grad.norm()), {ZERO}),
    "half overflows": (spoiled(direction=lambda self, tensors, i: tensors[i].grad * 1e6 / 1e6), {"float16 parameters"}),
    "it ascends in bfloat16": (
        spoiled(rate=lambda self, group, tensors, i: group["lr"] * (-1 if tensors[i].dtype == torch.bfloat16 else 1)),
        {"bfloat16 parameters"},
    ),
    "it keeps its first rate": (
        spoiled(rate=lambda self, group, tensors, i: self.defaults["lr"]), {"a changed lr takes effect"},
    ),
    "it knows one group": (spoiled(groups=lambda self: self.param_groups[:1]), {GROUP}),
    "it drops the loss": (DropsTheLoss, {CLOSURE}),
    "it evaluates without gradients": (EvaluatesWithoutGradients, {CLOSURE}),
    "eval() has no way back": (spoiled(eval=shrink, train=lambda self: None), {MODES}),
    "it is not linear as it says": (ClaimsToBeLinear, {LINEAR}),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_caught_by_the_check_that_is_about_it(defect: str) -> None:
    broken, caught = DEFECTS[defect]
    findings = certify(broken, devices=["cpu"])
    assert failed(findings) == caught, findings


def test_every_check_is_seen_to_catch_something() -> None:
    # The last is no defect: such an optimizer is trained one run at a time.
    assert set.union(*(caught for _, caught in DEFECTS.values())) == {*CHECKS.values()} - {CHECKS["elementwise"]}
    assert list(FUNCTIONS) == list(CHECKS)


SOUND: list[tuple[Callable[..., Optimizer], set[str]]] = [
    (partial(torch_sgd, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1), {MODES}),
    (partial(torch_adam, lr=0.1), {MODES, LINEAR}),
    (partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1), {MODES, LINEAR}),
    (partial(torch.optim.RMSprop, lr=0.01), {MODES, LINEAR}),
    (partial(torch.optim.LBFGS, lr=0.02, max_iter=3, history_size=10, line_search_fn="strong_wolfe"),
     {REFERENCE, PATHS, NUMBER, GROUP, MODES, LINEAR, STACKED}),
    (partial(TMSGD, lr=0.1, switch_step=6), {MODES}),
    (partial(TMSGD, lr=0.05, momentum=0.9, weight_decay=0.01, switch_step=6, history="zero"), {MODES}),
    (lambda params: TMSGD(params, lr=0.1, switch_step=None), {MODES}),
]  # fmt: skip


@pytest.mark.parametrize(("sound", "without"), SOUND)
def test_sound_optimizers_get_a_clean_bill(sound: Callable[..., Optimizer], without: set[str]) -> None:
    findings = certify(sound, devices=["cpu"])
    assert not failed(findings), findings
    assert not_applicable(findings) == without
    if NUMBER in without:
        detail = {finding.check: finding.detail for finding in findings}
        assert detail["takes a step"] == "by step(closure)"
        assert detail[NUMBER].startswith("couples tensors by their values")
        assert "LBFGS doesn't support per-parameter options" in detail[GROUP]


@pytest.mark.slow
@pytest.mark.parametrize(
    "new",
    [
        partial(torch_adam, lr=0.1, weight_decay=0.1),  # decay and gradient nearly cancel; their square and eps are 0
        partial(torch.optim.LBFGS, lr=0.1, max_iter=4),  # without a line search 1 / (y s) overflows
    ],
    ids=["adam", "lbfgs"],
)
def test_limits_of_torchs_own_in_float16_are_found(new: Callable[..., Optimizer]) -> None:
    assert failed(certify(new, devices=["cpu"])) == {"float16 parameters"}


def test_a_function_of_the_parameters_alone_has_its_paths_compared_too() -> None:
    findings = certify(lambda params: foreach_is_another(params, lr=0.1), devices=["cpu"], checks=["paths"])
    assert failed(findings) == {PATHS}


def test_tmsgd_that_never_switches_agrees_bitwise_with_torchs_sgd() -> None:
    new, reference = partial(TMSGD, lr=0.1, momentum=0.9, switch_step=None), partial(torch_sgd, lr=0.1, momentum=0.9)
    findings = {f.check: f.detail for f in certify(new, reference, ["cpu"], ["reference"])}
    assert findings[REFERENCE] == "the given SGD, 20 steps: bitwise"
    switching = certify(partial(TMSGD, lr=0.1, switch_step=6), reference, ["cpu"], ["reference"])
    assert failed(switching) == {REFERENCE}


def test_an_optimizer_that_takes_no_step_fails_once_and_says_why() -> None:
    class Refuses(Heavy):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("not today")

    findings = certify(Refuses, devices=["cpu"])
    assert failed(findings) == {"takes a step"}
    assert "RuntimeError: not today" in findings[0].detail
    assert len(findings) == len(CHECKS) + 1


def test_certify_leaves_random_state_and_threads_as_they_were() -> None:
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    certify(Unseeded, devices=["cpu"], checks=["repeats", "modes"])
    assert torch.equal(random, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def packages_after(code: str) -> tuple[str, set[str]]:
    """What a new process prints, and which packages it has loaded then."""
    code += "; import sys; print('\\n--', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    printed, _, modules = done.stdout.rpartition("\n-- ")
    return printed, {module.split(".")[0] for module in modules.split()}


def test_certify_needs_torch_alone() -> None:
    code = "import torch; from tmbench.certify import certify; print(certify(torch.optim.SGD, checks=['repeats']))"
    printed, packages = packages_after(code)
    assert "20 steps, bitwise" in printed
    assert not packages & {"hydra", "omegaconf", "rich", "pytorch_lightning", "wandb", "torchmetrics"}


def test_help_lists_optimizers_and_checks_without_torch() -> None:
    printed, packages = packages_after("from tmbench.certify.__main__ import main; main(['--help'])")
    assert printed.startswith("usage: tmbench certify")
    printed = " ".join(printed.split())  # lines are as wide as the terminal
    assert " ".join(choices("optimizer")) in printed
    assert all(key in printed and sentence in printed for key, sentence in CHECKS.items())
    assert not packages & {"torch", "numpy", "rich"}


class TestCommandLine:
    def test_prints_a_table_and_exits_zero(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["optimizer=tmsgdm", "lr=0.01"]) == 0
        shown = capsys.readouterr()
        assert not shown.err
        assert "tmsgdm  tmbench.optim.tmsgd.TMSGD\nlr=0.01, momentum=0.9" in shown.out
        assert all(name in shown.out for name in CHECKS.values())
        assert "eq. 8 in its weights form" in shown.out
        assert shown.out.strip().endswith("18 hold, 0 do not, 1 not applicable")

    def test_does_the_named_checks_and_writes_what_it_prints(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["optimizer=sgd", "checks=none,order", f"out={tmp_path / 'new'}", "json=true"]) == 0
        printed = capsys.readouterr().out
        content = json.loads(printed)
        names = ["takes a step", CHECKS["none"], CHECKS["order"]]
        assert [finding["check"] for finding in content["findings"]] == names
        assert {finding["verdict"] for finding in content["findings"]} == {"holds"}
        assert content["class"] == "torch.optim.sgd.SGD"
        assert (tmp_path / "new" / "certificate.json").read_text() == printed

    def test_takes_any_class_by_its_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([f"target={__name__}.ScalesTheGradient", "lr=0.1", "checks=gradients"]) == 1
        assert "changed p.grad of tensor 1 by 0.5 of its size" in capsys.readouterr().out

    def test_takes_a_class_in_place_of_a_yamls(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["optimizer=adam", "optimizer._target_=torch.optim.AdamW", "checks=reference"]) == 0
        assert "AdamW written out, 20 steps" in capsys.readouterr().out

    def test_takes_a_persons_own_yaml(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "optimizer").mkdir()
        yaml = f"name: mine\n_target_: {__name__}.DropsTheLoss\n_partial_: true\nlr: ${{lr}}\n"
        (tmp_path / "optimizer" / "mine.yaml").write_text(yaml)
        assert main(["--config-dir", str(tmp_path), "optimizer=mine", "checks=closure"]) == 1
        assert "step(closure) returned None" in capsys.readouterr().out

    def test_compares_with_another_yaml(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["optimizer=tmsgd", "switch_epoch=never", "reference=sgd", "lr=0.3", "checks=reference"]) == 0
        assert "the given SGD, 20 steps: bitwise" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "expected optimizer=NAME or target=my.module.Class, got neither"),
            (["optimizer=tmgd"], "optimizer=tmgd: there is no such choice; did you mean tmsgd?"),
            (["optimizer=sgd", "optimizer.momentm=1"], "there is no such setting; did you mean momentum?"),
            (["optimzer=sgd"], "got optimzer=sgd; did you mean optimizer?"),
            (["optimizer=sgd", "target=torch.optim.SGD"], "got both"),
            (["optimizer=sgd", "adam"], "adam"),
            (["optimizer=sgd", "checks=order,colour"], "checks: expected names among quadratic, "),
            (["--optimzer", "sgd"], "did you mean optimizer?"),
            (["optimizer=sgd", "lr=x"], "lr: expected a number > 0, got 'x'"),
            (["optimizer=tmsgd", "optimizer.momentum=1.1"], "momentum must be in [0, 1), got 1.1"),
            (["target=torch.optim.Adm"], "torch.optim.Adm cannot be used"),
            (["target=torch.optim.Adam", "rate=1"], "unexpected keyword argument 'rate'"),
            (["target=torch.nn.ParameterList"], "expected a torch.optim.Optimizer, got a ParameterList"),
            (["optimizer=sgd", "reference=nobody"], "optimizer=nobody: there is no such choice"),
            (["--config-dir", "no/such", "optimizer=sgd"], "no/such: no such folder"),
        ],
    )
    def test_bad_words_get_one_clear_message(
        self, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(words) == 2
        shown = capsys.readouterr()
        assert told in shown.out + shown.err
        assert "Traceback" not in shown.err


@pytest.mark.slow
@pytest.mark.parametrize(("version", "code", "verdict"), [("4.0.0", 1, "does not"), ("4.1.0", 0, "holds")])
def test_apollo_whose_eps_grows_with_the_number_of_tensors_is_caught(
    version: str, code: int, verdict: str, tmp_path: Path
) -> None:
    """pytorch_optimizer 3.9 to 4.0 multiplied ApolloDQN's eps by 100 for every parameter; 4.1.0 does not."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*install, f"pytorch_optimizer=={version}"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip cannot install pytorch_optimizer {version}: {done.stderr.strip().splitlines()[-1]}")
    # The warm-up hides lr (the class ignores its groups' until that ends), which another check would report.
    words = ["optimizer=any", "optimizer.name=ApolloDQN", "+optimizer.options.warmup_steps=1"]
    command = [sys.executable, "-m", "tmbench.certify", *words]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith(NUMBER))
    assert verdict in row
