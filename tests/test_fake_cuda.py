"""Tasks and optimizers on fake CUDA tensors, which have a device and a shape, but no numbers: no GPU is needed.

A tensor that a task or an optimizer leaves on another device raises here as it would on a GPU. What fake tensors cannot
carry is in NOT_CARRIED and docs/doctor.md. There is no backward pass, which needs a driver. cuDNN is off: its LSTM asks
the driver. torch has no public way to them, so a new version may break this file alone.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, choices, each_task
from helpers import build, first_batch
from pytorch_lightning.utilities import move_data_to_device
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from tmbench.config.settle import settle
from tmbench.optim.learned import SHAPES, Learned
from tmbench.task import Task
from tmbench.tasks.ctr.task import CTR
from tmbench.training.train import optimizer_of

CUDA = torch.device("cuda")
NEEDS_NUMBERS = (DataDependentOutputException, GuardOnDataDependentSymNode)
NOT_CARRIED = {  # what asks for a number, so that all after it is not tried
    "task=ctr": "its metrics: torchmetrics looks which labels there are",
    "task=od": "its metrics: how many boxes are found decides what follows",
    "optimizer=lbfgs": "its search compares losses",
    "optimizer=newton_cg": "it takes gradients itself, by a backward pass",
    "optimizer=prodigy": "it asks whether its estimate of the distance is 0",
    "optimizer=switch optimizer.handover=true": "it measures the lengths of steps",
}
OURS = ("tmsgd", "multistep", "switch")  # the other optimizers are slow tests


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Within it, every tensor is a fake one."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("tmbench") and hasattr(module, "finite"):
            monkeypatch.setattr(module, "finite", lambda name, prediction: prediction)  # it asks whether all are
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with torch.backends.cudnn.flags(enabled=False):
        yield FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def assert_on_cuda(task: Task, batch: Any) -> None:
    """The loss of each player is on the GPU, as the task's parameters are."""
    task.to(CUDA)
    assert {p.device.type for p in task.parameters()} == {"cuda"}
    for player in task.players().values():
        total, _ = player.loss(move_data_to_device(batch, CUDA))
        assert (total.device.type, total.shape) == ("cuda", ())


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", each_task("tc", "ctr"))
def test_loss_and_metrics_of_a_task_stay_on_its_device(name: str, composed: Compose, fake: FakeTensorMode) -> None:
    task, _ = build(composed, name)
    test = [task.examples("test")[i] for i in range(2)]
    batch = first_batch(task, 4)
    judged = task.collate(test) if task.collate else tuple(torch.stack(column) for column in zip(*test, strict=True))
    with fake:
        assert_on_cuda(task, batch)
        task.eval()
        with torch.no_grad():
            try:
                task.evaluate(move_data_to_device(judged, CUDA))
            except NEEDS_NUMBERS:
                assert f"task={name}" in NOT_CARRIED
            else:
                assert f"task={name}" not in NOT_CARRIED, "it is carried now: remove it from the list"


def test_a_tensor_left_on_the_cpu_is_found(
    composed: Compose, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = CTR.loss
    monkeypatch.setattr(CTR, "loss", lambda task, batch: (loss(task, batch)[0] * torch.ones(1), 1))
    task, _ = build(composed, "ctr")
    batch = first_batch(task, 4)
    with fake, pytest.raises(RuntimeError, match="same device"):
        assert_on_cuda(task, batch)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(f"optimizer={name}", marks=[] if name in OURS else pytest.mark.slow)
        for name in [*choices("optimizer"), "switch optimizer.handover=true"]
    ],
)
def test_step_of_an_optimizer_stays_on_the_device_of_its_parameters(
    words: str, composed: Compose, fake: FakeTensorMode
) -> None:
    more = ["optimizer.name=Adadelta"] if words == "optimizer=any" else []
    new = optimizer_of(settle(composed("task=ic", *words.split(), *more)), switch_step=2)
    if words not in NOT_CARRIED:
        new([nn.Parameter(torch.ones(2))])  # its formula is computed once, by numbers
    with fake:
        params = [nn.Parameter(torch.randn(shape, device=CUDA)) for shape in ((4, 3), (4,))]
        if words == "optimizer=learned":  # whose network comes from a file, as numbers
            network = {name: torch.randn(shape) for name, shape in SHAPES.items()}
            new = partial(Learned, weights=network)
        optimizer = new(params)

        def closure() -> torch.Tensor:
            for p in params:
                p.grad = torch.ones_like(p)
            return sum((p.sum() for p in params), torch.zeros((), device=CUDA))

        try:
            for _ in range(4):
                closure()
                optimizer.step(closure)
        except (RuntimeError, *NEEDS_NUMBERS):
            if words not in NOT_CARRIED:
                raise
        else:
            assert words not in NOT_CARRIED, "it is carried now: remove it from the list"
            states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
            assert {t.device.type for t in (*params, *states) if t.dim()} == {"cuda"}


def test_the_page_lists_what_is_not_carried() -> None:
    page = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text()
    rows = [f"| `{words}` | {why} |" for words, why in NOT_CARRIED.items()]
    assert [row for row in rows if row not in page] == []
