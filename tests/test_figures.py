"""What the figures of runs show: axes that fit what is measured, labels that can be read."""

from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tmbench.figures import curves
from tmbench.tasks.classification import Classifier
from tmbench.tasks.ctr.task import CTR
from tmbench.tasks.od.metric import Curve
from tmbench.tasks.od.task import classes_figure, curves_figure, draw_box


@pytest.fixture(autouse=True)
def close_figures() -> Any:
    yield
    plt.close("all")


def test_one_epoch_has_one_whole_tick() -> None:
    figure = curves([{"epoch": 1, "train/loss": 1.0, "test/accuracy": 0.5}], "test/accuracy", None)
    figure.canvas.draw()
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]


def test_a_rare_class_is_coloured_by_the_share_of_its_row() -> None:
    task: Any = SimpleNamespace(
        confusion=SimpleNamespace(compute=lambda: torch.tensor([[90, 10], [1, 3]])), names=["often", "rare"]
    )
    ((_, figure),) = Classifier.confusion_figure(task, "test documents by class", (4, 4))
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.9, 0.1], [0.25, 0.75]], atol=1e-6)
    assert [text.get_text() for text in ax.texts] == ["90", "10", "1", "3"]


def test_calibration_begins_at_0_and_holds_the_largest_share() -> None:
    logits_N, clicks_N = torch.linspace(-6, 2, 400), (torch.arange(400) > 300).float()
    ((_, figure),) = CTR.compare({"run": SimpleNamespace(said=lambda: (logits_N, clicks_N))})
    ax = next(ax for ax in figure.axes if ax.get_title() == "Calibration")
    assert ax.get_xlim()[0] == ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] >= max(ax.lines[0].get_ydata()) == 1


def test_average_precision_ends_at_1() -> None:
    curve = Curve(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]), 2)
    (ax,) = classes_figure({"run": {"cat": curve}}).axes
    assert ax.get_xlim() == (0, 1)
    (ax,) = curves_figure({"run": {"cat": curve}}).axes
    assert ax.get_xlim()[1] < 1.1
    assert ax.get_ylim()[1] < 1.1


def test_labels_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    figure, ax = plt.subplots(figsize=(3, 3), dpi=110)
    ax.imshow(np.zeros((300, 300, 3)))
    for label in range(4):
        draw_box(ax, (20, 20 + label, 200, 200), label, f"class {label} 0.9{label}")
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
