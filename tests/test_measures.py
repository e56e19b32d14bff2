"""What a run measures is finite, or it says what was not; data that measure nothing are refused before training."""

import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, choices
from helpers import SHORT, build, curves
from PIL import Image
from rich.console import Console
from torch import nn

from tmbench.errors import ConfigError, DataError
from tmbench.result import Result
from tmbench.runs import show
from tmbench.task import NotFinite
from tmbench.tasks import classification
from tmbench.tasks.ic.task import IC
from tmbench.tasks.ig.distances import Frechet, Kernel, PrecisionRecall, spaces
from tmbench.tasks.ig.sneakers import Sneakers
from tmbench.tasks.od.boxes import VOCDetection
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.task import TC, LSTMClassifier
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader, hold_out
from tmbench.training.record import mean_losses

TC_RUN = ["task=tc", "optimizer=sgd", *SHORT["tc"]]


def spoiled(output: Any) -> Any:
    """What a network says, one number of it not finite."""
    if isinstance(output, torch.Tensor):
        output = output.clone()
        output.view(-1)[-1] = torch.nan
        return output
    if isinstance(output, dict):
        return {key: spoiled(value) for key, value in output.items()}
    return (output[0], spoiled(output[1]))


def strict(folder: Path) -> dict[str, Any]:
    """result.json as other languages read it: without nan and infinity."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads((folder / "result.json").read_text(), parse_constant=refuse)


# Predictions


@pytest.mark.parametrize("name", [*choices("task"), "od/fast_rcnn"])
def test_a_prediction_that_is_not_finite_reaches_no_metric(name: str, composed: Compose) -> None:
    more = ["task.model=fast_rcnn", "task.size=64", "task.width=0.05"] if "/" in name else []
    task, _ = build(composed, name.partition("/")[0], *more)
    task.eval()
    network = task.generator if name == "ig" else task.model
    network.register_forward_hook(lambda module, args, output: spoiled(output))
    batch = next(iter(TestLoader(task.examples("test"), task.collate, 2, device=torch.device("cpu"))))
    updates: list[Any] = []
    for metric in task.metrics.values():
        metric.update = lambda *args, **kwargs: updates.append(kwargs.get("real"))
    with torch.no_grad(), pytest.raises(NotFinite, match=r"logits|boxes|pictures|key points"):
        task.evaluate(batch)
    assert set(updates) <= {True}  # the real pictures, which nobody predicts


def after_epochs(monkeypatch: pytest.MonkeyPatch, count: int, spoil: Callable[[Any], Any]) -> None:
    """From so many evaluations on, what tc's network predicts is spoiled."""
    forward, start, seen = LSTMClassifier.forward, Evaluation.start, [0]

    def evaluated(self: Evaluation) -> None:
        seen[0] += 1
        start(self)

    def predict(self: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        logits = forward(self, tokens)
        return logits if self.training or seen[0] <= count else spoil(logits)

    monkeypatch.setattr(Evaluation, "start", evaluated)
    monkeypatch.setattr(LSTMClassifier, "forward", predict)


def test_predictions_that_are_not_finite_end_the_run_by_name_and_leave_finite_numbers(
    do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_epochs(monkeypatch, 2, spoiled)
    result, folder = do(*TC_RUN)
    assert (result.status, result.epochs["trained"]) == ("diverged", 2)
    assert result.diverged_at == {"epoch": 3, "step": 40}  # the last step
    assert "diverged: test: the logits are not finite after epoch 3" in result.notes
    assert "the last metrics are those after epoch 2" in result.notes
    assert strict(folder)["metrics"] == result.metrics
    assert result.metrics["last"]["test/accuracy"] == float(curves(folder)[1]["test/accuracy"])
    text = StringIO()
    show.one(result, folder, "new", Console(file=text))
    told = " ".join(text.getvalue().split())
    assert "before it diverged" in told
    assert "at the end" not in told
    assert "note diverged: test: the logits are not finite after epoch 3" in told


def test_a_run_whose_first_predictions_are_not_finite_has_no_best_and_no_last(
    do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_epochs(monkeypatch, 0, spoiled)
    result, folder = do(*TC_RUN)
    assert (result.status, result.metrics) == ("diverged", {"last": {}, "best": {}})
    assert not list((folder / "checkpoints").glob("*.ckpt"))
    text = StringIO()
    show.one(result, folder, "new", Console(file=text))
    assert re.search(r"accuracy +-, on tiny data", text.getvalue())


def test_a_weight_average_that_is_not_finite_ends_the_run_by_name(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(average: list[torch.Tensor], live: Any, steps: Any) -> None:
        average[0].fill_(torch.nan)

    monkeypatch.setattr("tmbench.training.evaluation.get_ema_multi_avg_fn", lambda decay: spoil)
    result, _ = do(*TC_RUN, "ema=0.9")
    assert result.status == "diverged"
    assert "diverged: test_ema: the logits are not finite after epoch 1" in result.notes


def test_an_update_that_is_not_finite_is_told_before_anything_is_evaluated(do: Run) -> None:
    result, _ = do("task=tc", "optimizer=sgd", "epochs=1", "batch_size=320", "lr=1e38")
    assert (result.status, result.diverged_at) == ("diverged", {"epoch": 1, "step": 1})
    assert result.notes == ["diverged: the weights' norm is not finite after epoch 1"]


# Metrics


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_metric_that_is_not_finite_ends_the_run_by_its_key_and_is_never_best(
    value: float, do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(classification.MulticlassAccuracy):
        computed = 0

        def compute(self) -> torch.Tensor:
            Broken.computed += 1
            return super().compute() if Broken.computed < 3 else torch.tensor(value)

    monkeypatch.setattr(classification, "MulticlassAccuracy", Broken)
    result, folder = do(*TC_RUN)
    assert (result.status, result.epochs["trained"]) == ("diverged", 2)
    assert f"diverged: test/accuracy is {value} after epoch 3" in result.notes
    assert 0 <= strict(folder)["metrics"]["best"]["test/accuracy"] <= 1
    assert len(curves(folder)) == 2


def test_a_constant_prediction_that_a_split_cannot_judge_is_a_data_error(
    do: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TC, "baseline", lambda self: {"accuracy": np.nan})
    with pytest.raises(DataError, match=r"tc: test/accuracy of a constant prediction is nan"):
        do(*TC_RUN)


def test_the_mean_training_loss_of_huge_finite_losses_is_finite() -> None:
    assert mean_losses(torch.full((4, 1), 3e38), [""], [4]) == {"train/loss": pytest.approx(3e38)}


def test_steps_with_nothing_to_learn_from_are_left_out_of_the_mean_training_loss() -> None:
    assert mean_losses(torch.tensor([[1.0], [0.0], [3.0]]), [""], [2]) == {"train/loss": 2.0}
    assert mean_losses(torch.zeros(1, 1), [""], [0]) == {}


# Data that measure nothing


def made(data: Any, place: Path) -> Path:
    """A tiny set in its real layout, to be spoiled."""
    folder = place / "data" / data.folder
    folder.mkdir(parents=True)
    data.write_tiny(folder, np.random.default_rng(0))
    return folder


def void(folder: Path, split: str, keep: int = 0) -> None:
    """Makes all masks of a split void but the first few."""
    devkit = folder / "VOCdevkit" / "VOC2007"
    for name in (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()[keep:]:
        path = devkit / "SegmentationClass" / f"{name}.png"
        mask = Image.open(path)
        mask.paste(255, (0, 0, *mask.size))
        mask.save(path)


SEG = ["task=seg", "data=full", "task.weights=none", "optimizer=sgd", "epochs=1", "batch_size=2", "task.short_side=32"]
OD = ["task=od", "data=full", "task.weights=none", "optimizer=sgd", "task.mode=paper_text", "epochs=1", "batch_size=8",
      "task.size=64", "task.width=0.05", "task.batch_norm=true"]  # fmt: skip


def refused(do: Run, place: Path, words: list[str], error: type[Exception], told: str) -> None:
    """The run on the data that were made there is refused before it has trained."""
    with pytest.raises(error, match=told):
        do(*words, f"data_dir={place / 'data'}")
    assert not list(place.glob("*/curves.csv"))
    assert not list(place.glob("*/checkpoints/*"))


@pytest.mark.parametrize(
    ("split", "more", "told"),
    [
        ("val", [], r"seg: expected a labelled pixel in the test split of .*voc2007, its 12 masks are void"),
        ("train", [], r"seg: expected a labelled pixel in the train split of .*voc2007, its 32 masks are void"),
        ("train", ["validation=0.25"], r"seg: expected a labelled pixel in the train split .* its 24 masks are void"),
    ],
)
def test_seg_refuses_a_split_without_a_labelled_pixel(
    split: str, more: list[str], told: str, do: Run, tmp_path: Path
) -> None:
    void(made(VOCSegmentation, tmp_path), split)
    refused(do, tmp_path, [*SEG, *more], DataError, told)


def test_seg_refuses_a_validation_part_without_a_labelled_pixel(composed: Compose) -> None:
    task, _ = build(composed, "seg")
    hold_out(task, 0.25)
    held = set(task.held_out_N.tolist())
    pairs = task.data.pairs("train")
    masks = {pairs[i][1] for i in held}
    read = task.data.read
    task.data.read = lambda image, mask: (read(image, mask)[0], read(image, mask)[1] | (255 * (mask in masks)))
    with pytest.raises(DataError, match=r"in the validation split .* its 8 masks are void"):
        task.check_data()


def test_pictures_without_a_label_add_nothing_and_are_no_divergence(do: Run, tmp_path: Path) -> None:
    void(made(VOCSegmentation, tmp_path), "train", keep=20)  # of 32: whole batches are void
    result, run = do(*SEG, f"data_dir={tmp_path / 'data'}", "seed=1")
    assert (result.status, result.steps) == ("completed", 16)
    assert 0 < float(curves(run)[0]["train/loss"]) < 10


def emptied(folder: Path, split: str, how: Callable[[str], str]) -> None:
    devkit = folder / "VOCdevkit" / "VOC2007"
    for name in (devkit / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        path = devkit / "Annotations" / f"{name}.xml"
        path.write_text(how(path.read_text()))


def without_objects(xml: str) -> str:
    return re.sub(r"\s*<object>.*</object>", "", xml, flags=re.DOTALL)


def difficult(xml: str) -> str:
    return xml.replace("<difficult>0<", "<difficult>1<")


@pytest.mark.parametrize(
    ("split", "how", "told"),
    [
        ("test", without_objects, "od: expected an object that is not marked difficult in the test split"),
        ("test", difficult, "od: expected an object that is not marked difficult in the test split"),
        ("trainval", without_objects, "od: expected an object in the train split"),
    ],
)
def test_od_refuses_a_split_without_an_object_to_learn_or_to_find(
    split: str, how: Callable[[str], str], told: str, do: Run, tmp_path: Path
) -> None:
    emptied(made(VOCDetection, tmp_path), split, how)
    refused(do, tmp_path, OD, DataError, told)


def test_ig_refuses_one_picture_and_one_sample(do: Run, tmp_path: Path) -> None:
    folder = made(Sneakers, tmp_path)
    words = ["task=ig", "data=full", "task.features=random", "task.width=1", "epochs=1"]
    refused(do, tmp_path, [*words, "task.samples=1"], ConfigError, "task.samples: expected at least 2")
    for path in sorted(folder.glob("images/*.jpg"))[1:]:
        path.unlink()
    refused(do, tmp_path, words, DataError, "ig: expected at least 2 real pictures in the test split")


@pytest.mark.parametrize("features", ["random", "given"])
def test_two_pictures_are_enough_for_every_distance(features: str) -> None:
    """What check_data asks for is what the metrics need."""
    kinds = [metric for _, metric in spaces("random", False)[1].values()] if features == "random" else []
    generator = torch.Generator().manual_seed(0)
    for metric in kinds or [Frechet(64), Kernel(64), PrecisionRecall()]:
        for real in (True, False):
            metric.update(torch.rand(2, 64, generator=generator), real=real)
        values = metric.compute()
        assert all(float(v) == float(v) for v in (values.values() if isinstance(values, dict) else [values]))


@pytest.mark.parametrize(("split", "click"), [("test", 0), ("train", 1)])
def test_ctr_refuses_a_split_with_one_kind_of_rows(split: str, click: int, composed: Compose) -> None:
    task, _ = build(composed, "ctr")
    whole = {name: task.examples(name) for name in ("train", "test")}
    clicks = whole[split].tensors[-1]
    whole[split] = torch.utils.data.TensorDataset(*whole[split].tensors[:-1], torch.full_like(clicks, click))
    task.examples = whole.__getitem__
    with pytest.raises(DataError, match=rf"in the {split} split of .* in its [\d,]+ rows click is always {click}"):
        task.check_data()


@pytest.mark.parametrize("name", choices("task"))
def test_every_tiny_set_has_something_to_measure(name: str, composed: Compose) -> None:
    build(composed, name)[0].check_data()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_examples_is_refused_by_name(
    split: str, do: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    examples = IC.examples

    def none(self: IC, asked: str) -> Any:
        whole = examples(self, asked)
        return torch.utils.data.TensorDataset(*(t[:0] for t in whole.tensors)) if asked == split else whole

    monkeypatch.setattr(IC, "examples", none)
    words = ["task=ic", "optimizer=tmsgd", *SHORT["ic"]]
    refused(do, tmp_path, words, DataError, rf"ic: expected examples in the {split} split of .*, got none")
    failed = Result.load(next(path.parent for path in tmp_path.glob("ic-*/result.json")))
    assert failed is not None
    assert failed.status == "failed"


def test_more_processes_than_examples_to_evaluate_are_refused(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TC.examples

    def one_to_test(self: TC, split: str) -> Any:
        return torch.utils.data.TensorDataset(
            *(t[: None if split == "train" else 1] for t in whole(self, split).tensors)
        )

    monkeypatch.setattr(TC, "examples", one_to_test)
    monkeypatch.setattr("pytorch_lightning.Trainer.world_size", 2)
    with pytest.raises(ConfigError, match=r"devices: expected no more than the test split has examples, 1, got 2"):
        do(*TC_RUN)
