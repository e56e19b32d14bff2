"""Mixed precision is refused where a layer has none, told where a layer stays float32, and tried without a trace."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, choices
from helpers import build
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from tmbench.errors import ConfigError
from tmbench.task import Task
from tmbench.training.loader import TrainLoader
from tmbench.training.precision import PrecisionCheck

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}  # a common processor


def probe(task: Task, batch_size: int = 4) -> list[str]:
    """The notes of a probe of this task on this processor."""
    examples = task.examples("train")
    loader = TrainLoader(examples, task.collate, batch_size, device=torch.device("cpu"), epoch=lambda: 0)
    trainer = SimpleNamespace(precision_plugin=MixedPrecision("bf16-mixed", "cpu"), train_dataloader=loader)
    check = PrecisionCheck()
    training: Any = SimpleNamespace(task=task, transfer_batch_to_device=lambda batch, device, index: batch)
    check.on_train_start(trainer, training)
    return check.notes


class Convolution(nn.Conv2d):
    """One that has no kernel for bf16."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no such kernel\nmore words")
        return super().forward(x)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        if gradient.dtype == torch.bfloat16:
            raise RuntimeError("no such gradient")
        return gradient


class Linear(nn.Linear):
    """One whose gradient has no kernel for bf16."""

    def forward(self, x: Tensor) -> Tensor:
        return Reverse.apply(super().forward(x))


def replace(task: Task, name: str, kind: type[nn.Module]) -> None:
    """Gives a layer of a task another behaviour."""
    task.get_submodule(name).__class__ = kind


@pytest.mark.parametrize("name", choices("task"))
def test_a_probe_changes_nothing_and_takes_no_time(name: str, composed: Compose) -> None:
    task, _ = build(composed, name)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    state, drawn = torch.get_rng_state(), np.random.get_state()[2]
    start = time.perf_counter()
    try:
        notes = probe(task)
        assert all(note.startswith("precision=bf16-mixed: ") for note in notes)
    except ConfigError as error:
        assert "LSTM" in str(error)  # all that a processor without such instructions refuses  # noqa: PT017
    assert time.perf_counter() - start < 5  # on a busy machine; some tenths of a second on a quiet one
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[2] == drawn
    assert all(p.grad is None for p in task.parameters())
    for key, value in task.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.modules())


def test_a_layer_without_bf16_is_named_before_anything_is_trained(composed: Compose) -> None:
    task, _ = build(composed, "ic")
    layers = {type(module): name for name, module in task.named_modules()}
    replace(task, layers[nn.Conv2d], Convolution)
    with pytest.raises(ConfigError) as told:
        probe(task)
    assert f"precision=bf16-mixed: {layers[nn.Conv2d]} (Convolution) does not work in it on this device" in str(
        told.value
    )
    assert "): no such kernel\n  use precision=32, or another device" in str(told.value)
    task, _ = build(composed, "ic")
    replace(task, layers[nn.Linear], Linear)
    with pytest.raises(ConfigError, match=rf"the gradient of {layers[nn.Linear]} \(Linear\) does not work in it"):
        probe(task)


def test_an_error_that_float32_has_as_well_is_told_as_it_is(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = build(composed, "ctr")

    def wrong(batch: Any) -> Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(task, "loss", wrong)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        probe(task)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")
def test_a_layer_that_stays_float32_is_noted_in_the_result(do: Run) -> None:
    with torch.backends.mkldnn.flags(enabled=False):  # torch's own LSTM has no other precision
        result, _ = do("task=tc", "optimizer=sgd", "epochs=1", "batch_size=80", "precision=bf16-mixed")
    assert result.notes == ["precision=bf16-mixed: model.lstm (LSTM) stayed float32 on this device"]


def test_a_bf16_run_is_close_to_float32_and_not_the_same(do: Run) -> None:
    words = ["task=ctr", "optimizer=sgd", "epochs=1", "batch_size=128"]  # linear layers: bf16 anywhere
    full, _ = do(*words)
    half, _ = do(*words, "precision=bf16-mixed")
    assert half.notes == full.notes == []
    assert half.metrics["last"]["train/loss"] != full.metrics["last"]["train/loss"]
    assert half.metrics["last"]["train/loss"] == pytest.approx(full.metrics["last"]["train/loss"], rel=0.02)


@pytest.mark.slow
def test_a_processor_without_bf16_instructions_refuses_an_lstm_in_words(tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=sgd", "epochs=1", "precision=bf16-mixed", f"runs_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "tmbench", *words], env=os.environ | AVX2, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "precision=bf16-mixed: model.lstm (LSTM) does not work in it on this device" in done.stderr
    assert "Traceback" not in done.stderr
    (path,) = tmp_path.glob("*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["epochs"]["trained"]) == ("failed", 0)
