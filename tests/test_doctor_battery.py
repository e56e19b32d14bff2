"""The doctor's trainings: each part is green on a sound machine, and finds what is planted."""

import json
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import choices
from omegaconf import OmegaConf
from torch import Tensor, nn

from tmbench import checkpoint
from tmbench.config.compose import composed
from tmbench.doctor import Finding, battery, examined, first_steps, ranks, speed
from tmbench.doctor.__main__ import PARTS, main
from tmbench.doctor.bench import Bench, bitwise, close
from tmbench.doctor.first_steps import Apart, Place, agree
from tmbench.optim import TMSGD, fused
from tmbench.plan import Plan, planned
from tmbench.result import Result
from tmbench.tasks.tc.task import TC
from tmbench.training.loader import Seeded


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, "cpu")


def stub(folder: Path | None = None, **facts: Any) -> Result:
    """A run that ended so."""
    result = Result.__new__(Result)
    usual = {"status": "completed", "steps": 30, "nondeterministic": [], "peak_memory_bytes": 2**30, "split": "test"}
    usual |= {"metric": "accuracy", "metrics": {"last": {"test/accuracy": 0.5}}}
    vars(result).update({**usual, **facts}, folder=folder)
    return result


def plan_of(tmp_path: Path, *words: str) -> Plan:
    return planned(OmegaConf.create(composed([*words, "data=tiny", "trainer=cpu", f"runs_dir={tmp_path}"])))


@pytest.mark.slow
def test_a_report_says_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (battery, first_steps):
        monkeypatch.setattr(module, "LEARN", ("tc",))
    words = ["train=true", "parts=resumes,devices", f"out={tmp_path}", f"runs_dir={tmp_path}"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(words) == 0
    content = json.loads((tmp_path / "doctor.json").read_text())
    findings = {finding["name"]: finding for finding in content["findings"]}
    assert findings["resumes: tc (cpu)"]["state"] == findings["devices: tc (cpu)"]["state"] == "green"
    assert "the same bits after 320 steps" in findings["resumes: tc (cpu)"]["found"]
    page = (tmp_path / "doctor.md").read_text()
    assert all(f"| {name} |" in page for name in findings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["doctor.json", "doctor.md"]


# Tasks.


def test_a_tensor_on_the_wrong_device_is_red(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TC.loss

    def elsewhere(task: TC, batch: Any) -> Any:
        total, weight = loss(task, batch)
        return total * torch.ones(1, device="meta"), weight

    monkeypatch.setattr(TC, "loss", elsewhere)
    monkeypatch.setattr(battery, "choices", lambda group: ["tc"])
    (finding,) = battery.tasks(bench)
    assert finding.state == "red"
    assert "meta" in finding.found
    assert "tmbench task=tc optimizer=sgd epochs=3 trainer=cpu" in finding.remedy


@pytest.mark.slow
def test_every_task_takes_20_steps_with_both_optimizers_and_tells_its_peak_memory(bench: Bench) -> None:
    findings = list(battery.tasks(bench))
    assert [finding.name for finding in findings] == choices("task")
    for finding in findings:
        assert finding.state == "green", finding
        assert int(finding.found.split(" steps each")[0]) >= 20
        assert all(words in finding.found for words in ("; sgd loss", ", tmsgd loss", "; peak memory"))


def test_too_few_steps_a_divergence_and_operations_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {"nondeterministic": ["scatter_add_cuda"], "steps": 20}
    monkeypatch.setattr(battery, "losses", lambda result: [1.0, 0.5])
    monkeypatch.setattr(Bench, "run", lambda *args, **settings: stub(**ended))
    finding = battery._trains(bench, "tc")
    assert (finding.state, finding.found.endswith("not deterministic: scatter_add_cuda")) == ("green", True)
    ended["steps"] = 19
    finding = battery._trains(bench, "tc")
    assert (finding.state, "too few steps" in finding.remedy) == ("yellow", True)
    monkeypatch.setattr(battery, "losses", lambda result: [1.0, math.nan])
    assert battery._trains(bench, "tc").state == "red"


@pytest.mark.slow
def test_a_network_that_does_not_learn_is_red(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TC.loss
    monkeypatch.setattr(TC, "loss", lambda task, batch: (loss(task, batch)[0] * 1e-9, len(batch[0])))
    monkeypatch.setattr(battery, "LEARN", ("tc",))
    assert [finding.state for finding in battery.learns(bench)] == ["red"]


# The same bits, or nearly the same loss.


def test_runs_that_end_in_other_bits_are_red_unless_their_operations_are_not_deterministic(tmp_path: Path) -> None:
    def ended(name: str, weight: float, **facts: Any) -> Result:
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        state = {"w": torch.tensor(weight), "b": torch.ones(2)}
        checkpoint.save({"epoch": 0, "state_dict": state}, folder / "last.ckpt")
        return stub(folder.parent, **facts)

    one = ended("one", 1.0)
    assert bitwise("x", one, ended("same", 1.0), "twice") == Finding(
        "x", "green", "twice: the same bits after 30 steps"
    )
    finding = bitwise("x", one, ended("near", 1.0 + 2**-23), "twice")
    assert (finding.state, finding.found) == ("red", "twice: w differs")
    finding = bitwise("x", one, ended("other", 2.0, nondeterministic=["cumsum_cuda_kernel"]), "twice")
    assert (finding.state, finding.found.endswith("not deterministic: cumsum_cuda_kernel")) == ("yellow", True)
    judged = ended("judged", 1.0, metrics={"last": {"test/accuracy": 0.5000001}})
    assert bitwise("x", one, judged, "twice").found == "twice: the metrics differ"


@pytest.mark.parametrize(("loss", "state"), [(1.0009, "green"), (1.0011, "red"), (math.nan, "red"), (math.inf, "red")])
def test_losses_are_close_up_to_a_bound(loss: float, state: str) -> None:
    assert close("x", loss, 1.0, "twice", 1e-3).state == state


def test_metrics_that_differ_are_red() -> None:
    one, other = stub(), stub(metrics={"last": {"test/accuracy": 0.52}})
    assert ranks.same_metric("x", other, one, 0.0125).state == "red"
    assert ranks.same_metric("x", one, one, 0.0125).state == "green"


@pytest.mark.slow
def test_a_seed_that_does_not_decide_everything_is_red(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = TC.loss

    def noisy(task: TC, batch: Any) -> Any:
        total, weight = loss(task, batch)
        return total * (1 + 1e-3 * os.urandom(1)[0]), weight

    monkeypatch.setattr(TC, "loss", noisy)
    for part in ("repeats", "resumes"):
        monkeypatch.setattr(battery, "LEARN", ("tc",))
        assert [finding.state for finding in battery.PARTS[part](bench)] == ["red"]


# Two places.


def devices_of(*tasks: str) -> Callable[[Bench], list[Finding]]:
    def found(bench: Bench) -> list[Finding]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(first_steps, "LEARN", tasks)
            return list(first_steps.devices_agree(bench))

    return found


def test_first_steps_agree_where_only_rounding_differs(bench: Bench) -> None:
    findings = devices_of("tc", "ctr")(bench)
    assert [finding.state for finding in findings] == ["green", "green"], findings
    assert findings[0].found.startswith(
        "float32 on cpu and float64 on cpu, 20 steps, each from the same weights: losses"
    )


@pytest.mark.slow
def test_first_steps_of_a_network_that_is_not_smooth_agree(bench: Bench) -> None:
    (finding,) = devices_of("ic")(bench)
    assert finding.state == "green", finding


def test_first_steps_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    plan, threads = plan_of(tmp_path, "task=ctr", "optimizer=tmsgd"), torch.get_num_threads()
    one = first_steps.Trained(plan, Place(), 300)
    losses: list[list[float]] = []
    loader = first_steps.TrainLoader(
        one.task.examples("train"), None, plan.cfg.batch_size, device=torch.device("cpu"), epoch=lambda: 0
    )
    steps = next(iter(loader))[:5]
    for count in (1, 2):
        torch.set_num_threads(count)
        trained = first_steps.Trained(plan, Place(), 300)
        losses.append([trained.step(step)[0] for step in steps])
    torch.set_num_threads(threads)
    assert losses[0] == pytest.approx(losses[1], rel=first_steps.OF_LOSSES)


class Louder(torch.autograd.Function):
    """The identity, whose gradient is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return 1.01 * gradient


@pytest.mark.parametrize("fault", ["imprecise forward", "backward", "step"])
def test_a_wrong_kernel_is_found_by_the_first_steps(fault: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes wrongly in float32 alone."""
    forward, take = nn.Linear.forward, TMSGD.step

    def wrong(layer: nn.Linear, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            x = x.bfloat16().float() if fault == "imprecise forward" else Louder.apply(x)
        return forward(layer, x)

    def half(optimizer: TMSGD, closure: Any = None) -> Any:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.dtype == torch.float32]
        before = [p.detach().clone() for p in params]
        loss = take(optimizer, closure)
        for p, old in zip(params, before, strict=True):
            p.data.copy_((p.data + old) / 2)
        return loss

    if fault == "step":
        monkeypatch.setattr(TMSGD, "step", half)
    else:
        monkeypatch.setattr(nn.Linear, "forward", wrong)
    (finding,) = devices_of("tc")(bench)
    assert finding.state == "red", finding
    assert "try another version of torch" in finding.remedy


@pytest.mark.parametrize(
    ("wrong", "state"),
    [
        ({}, "green"),
        ({3: Apart(1e-7, 0.09)}, "green"),  # an activation at 0
        ({3: Apart(1e-7, 0.11)}, "red"),
        ({3: Apart(2e-5, 1e-5)}, "red"),
        (dict.fromkeys(range(11), Apart(1e-7, 2e-3)), "red"),
        ({0: Apart(math.nan, 1e-5)}, "red"),
        ({19: Apart(1e-7, math.nan)}, "red"),
    ],
)
def test_bounds_of_the_first_steps(wrong: dict[int, Apart], state: str) -> None:
    steps = [wrong.get(i, Apart(1e-7, 1e-5)) for i in range(20)]
    assert agree("x", steps, "here and there").state == state


def test_a_task_that_draws_random_numbers_is_not_compared(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "task=ic", "optimizer=tmsgd", "task.preprocess=standard", "task.width=1", "batch_size=8")
    with pytest.raises(RuntimeError, match="task=ic draws random numbers"):
        list(first_steps.first_steps(plan, Place(), Place(), steps=1))


# Speed.


def test_a_kernel_that_does_nothing_is_not_fast(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    if fused.no_kernel(torch.zeros(1), 1):
        pytest.skip("no C compiler")
    speed.timed([(8, 8)], "cpu", 2)
    monkeypatch.setattr(fused, "fused_update", lambda *args, **settings: None)
    monkeypatch.setattr(fused, "fused_sgd", lambda *args, **settings: None)
    with pytest.raises(RuntimeError, match="tmsgd fused: a tensor did not move in 2 steps"):
        speed.timed([(8, 8)], "cpu", 2)
    assert next(battery.fused(bench)).state == "red"


@pytest.mark.parametrize(
    ("bandwidth", "sgd", "state"), [(28e9, 1e-3, "green"), (40e9, 1e-3, "yellow"), (28e9, 0.7e-3, "yellow")]
)
def test_a_slow_step_on_a_gpu_is_yellow(
    bandwidth: float, sgd: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 bytes for each of a million parameters in 1 ms are 24 GB/s."""
    taken = {path: [sgd if path == "sgdm fused" else 1e-3] * 3 for path in speed.PATHS}
    monkeypatch.setattr(speed, "timed", lambda *args: (taken, 1_000_000))
    monkeypatch.setattr(speed, "copy_bandwidth", lambda *args: bandwidth)
    (finding,) = speed.step("cuda")
    assert (finding.state, bool(finding.remedy)) == (state, state == "yellow")


@pytest.mark.slow
def test_a_loader_that_training_waits_for_is_yellow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path, "task=seg", "task.short_side=32")
    assert speed._loads("seg", plan, "cpu").state == "green"
    get = Seeded.__getitem__

    def late(examples: Seeded, key: tuple[int, int]) -> Any:
        time.sleep(0.1)
        return get(examples, key)

    monkeypatch.setattr(Seeded, "__getitem__", late)
    finding = speed._loads("seg", plan, "cpu")
    assert (finding.state, "trainer.num_workers" in finding.remedy) == ("yellow", True), finding


# On a GPU.


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_battery_works_on_a_gpu(part: str, tmp_path: Path) -> None:
    findings = list(examined(part, partial(battery.PARTS[part], Bench(tmp_path, "cuda"))))
    assert findings
    assert not [finding for finding in findings if finding.state == "red"]
    if skipped := [finding.found for finding in findings if finding.state == "skipped"]:
        pytest.skip("; ".join(skipped))
