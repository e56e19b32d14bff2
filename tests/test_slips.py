"""Slips in a person's own classes and YAML files: told in a line, and no run is left that never began."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from tmbench.errors import ConfigError, imported
from tmbench.tasks.tc.task import TC


class Signs(torch.optim.SGD):
    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, nesterov: bool) -> None:
        super().__init__(params, lr)


class NoPair(TC):
    def loss(self, batch: Any) -> Any:
        return super().loss(batch)[0]


class NoHeadline(TC):
    headline = "acuracy"


OWN = ["optimizer=sgd", "optimizer.name=mine", f"optimizer._target_={__name__}.Signs"]
EXPECTED = "expected a class or a function that can be imported, got"


@pytest.mark.parametrize(
    ("words", "told", "began"),
    [
        (OWN, "optimizer=mine: lazy_rows: true says that a step without a gradient is linear in the state; expected "
         "Signs.moves_linearly = True as well; set it if that is so, or say task.sparse=false", True),
        ([*OWN, "+optimizer.beta=1"], f"mine: {__name__}.Signs ({__file__}:15): TypeError: Signs.__init__() got an "
         "unexpected keyword argument 'beta'; expected", True),
        (["optimizer.name=mine", f"optimizer._target_={__name__}.Sign"], f"optimizer/mine.yaml: _target_: {EXPECTED} "
         f"{__name__}.Sign: {__name__} ({__file__}) has no Sign; did you mean Signs?", False),
        ([f"task.data={__name__}.R8"], f"task/tc.yaml: data: {EXPECTED} {__name__}.R8: {__name__} (", False),
        ([f"task.data={__name__}.NoPair"], "task.data: expected a class of tmbench.data.Dataset, got ", False),
        ([f"task._target_={__name__}.NoPair"], "NoPair.loss: expected to return (sum of the loss, number of terms), as "
         "Task.loss says, got a Tensor", True),
        ([f"task._target_={__name__}.NoHeadline"], f"task=tc: {__name__}.NoHeadline: headline: expected a key of its "
         "self.metrics (accuracy), got 'acuracy'", False),
    ],
)  # fmt: skip
def test_a_slip_in_ones_own_class_is_told_and_leaves_no_run_that_never_began(
    words: list[str], told: str, began: bool, do: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        do("task=tc", "epochs=1", "batch_size=80", *words)
    assert len(list(tmp_path.glob("tc-*"))) == began  # its result says that it failed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("signz.Signs", "there is no module signz; install it, or call tmbench in the folder where it is"),
        ("broken.Signs", "{place}/broken.py:2: ModuleNotFoundError: No module named 'nosuch'"),
        ("divides.Signs", "{place}/divides.py:1: ZeroDivisionError: division by zero"),
        ("unreadable.Signs", "{place}/unreadable.py:1: SyntaxError: '(' was never closed"),
        ("torch.optim.SGD.stepp", "torch.optim.SGD has no stepp; did you mean step?"),
        ("torch..SGD", "torch ("),
        ("torch.optim", "it is a module"),
    ],
)  # fmt: skip
def test_why_a_class_cannot_be_imported_is_told(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for module, text in (("broken", "\nimport nosuch"), ("divides", "1 / 0"), ("unreadable", "print(")):
        (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(ConfigError) as refused:
        imported("mine.yaml: _target_", name)
    assert str(refused.value).startswith(f"mine.yaml: _target_: {EXPECTED} {name}: {told.format(place=tmp_path)}")
