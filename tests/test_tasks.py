"""Contracts of every task in conf/task, and what is particular to one of them."""

import re
from collections.abc import Callable
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run, choices, each_task, real_data
from helpers import build, first_batch

from tmbench.result import Result
from tmbench.run import run
from tmbench.seeds import seed_all
from tmbench.task import Task, mean
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader
from tmbench.training.step import Gradient


@pytest.mark.parametrize("name", choices("task"))
def test_loss_is_one_finite_number_whose_gradient_reaches_every_parameter(name: str, composed: Compose) -> None:
    task, cfg = build(composed, name)
    total, weight = task.loss(first_batch(task, cfg.batch_size))
    assert total.shape == ()
    assert total.isfinite()
    assert weight > 0
    total.backward()
    # No object of the tiny set is as small as the priors of the finest map, so none has a box to give there.
    spared = "model.head.regression_head.module_list.0." if name == "od" else "nothing"
    unreached = [key for key, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    unreached = [key for key in unreached if not key.startswith(spared)]
    assert unreached == []


@pytest.mark.parametrize("name", each_task("tc", "ctr", "ic", "fkpd"))
def test_one_batch_can_be_overfitted(name: str, composed: Compose) -> None:
    """By each of several players while the others stand still: against each other no loss need fall."""
    task, cfg = build(composed, name)
    batch = first_batch(task, cfg.batch_size)
    for player in task.players().values():
        optimizer = torch.optim.Adam(player.module.parameters(), lr=0.01)
        first = mean(*player.loss(batch)).item()
        for _ in range(60):
            optimizer.zero_grad()
            loss = mean(*player.loss(batch))
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1 * first


# A loss and its weight


class Grads(torch.optim.SGD):
    """Does nothing: what it would have taken stays in the parameters' grad."""

    def step(self, closure: Any = None) -> Any:
        return closure()


STILL = {"tc": [], "ctr": ["task.l2=0.1"], "ic": ["task.width=4", "task.preprocess=paper"],
         "fkpd": ["task.width=4"], "seg": ["task.short_side=64"], "ig": ["task.width=4"],
         "od": ["task.size=96", "task.width=0.05"],
         "od/fast_rcnn": ["task.model=fast_rcnn", "task.size=64", "task.width=0.02"]}  # fmt: skip


def uneven(name: str, task: Task) -> tuple[list[Any], Any]:
    """Seven training examples, pictures of several sizes, the first of which have little to learn from."""
    examples = task.examples("train")
    some = [examples[i] for i in range(7)]
    if name == "seg":
        for _, mask in some[:3]:
            mask[2:] = 255
        some[0][1][:] = 255
    if name == "od":
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        some[:3] = [(image, target | nothing) for image, target in some[:3]]
    if name == "od/fast_rcnn":
        some[:3] = [(image, {key: t[:k] for key, t in target.items()}) for k, (image, target) in enumerate(some[:3])]

    def batch(part: list[Any]) -> Any:
        if task.collate is not None:
            images, targets = task.collate(part)
            if isinstance(targets, list):
                targets = [{k: t.double() if t.is_floating_point() else t for k, t in own.items()} for own in targets]
            return images.double(), targets
        return [
            torch.stack(t).double() if t[0].is_floating_point() else torch.stack(t) for t in zip(*part, strict=True)
        ]

    return some, batch


def still(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64, norms and dropout as in evaluation, noise that follows from its example: a loss is then a plain sum."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    task.double().eval()
    if hasattr(task, "imitations"):
        noise = torch.randn(3 * 64 * 64, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        monkeypatch.setattr(
            task, "imitations", lambda real: task.generate((real.double() / 255 - 0.5).flatten(1) @ noise / 50)
        )


def step_of(task: Task, player: Any, parts: list[Any]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The loss of a step in these parts, its gradient as the optimizer finds it, and what the loss is over."""
    optimizer, gradient = Grads(player.module.parameters(), lr=1.0), Gradient(task.padding)
    loss = optimizer.step(partial(gradient.closure, optimizer, player, [(p, True) for p in parts]))
    grads = [p.grad.flatten() for p in player.module.parameters() if p.grad is not None]
    return loss, torch.cat(grads).clone(), float(gradient.weight)


@pytest.mark.parametrize("name", STILL)
def test_a_step_in_parts_is_that_of_the_whole_batch_however_uneven_they_are(
    name: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = build(composed, name.partition("/")[0], *STILL[name])
    some, batch = uneven(name, task)
    if task.padding:
        assert len({image.shape for image, _ in some}) > (name != "od")  # RFBNet's are all of one size
    still(task, monkeypatch)
    torch.set_default_dtype(torch.float64)
    try:
        for player in task.players().values():
            loss, whole, _ = step_of(task, player, [batch(some)])
            assert whole.dtype == torch.float64
            assert float(whole.norm()) > 1e-9
            for cuts in ([0, 3, 7], [0, 1, 3, 7]):
                parts = [batch(some[a:b]) for a, b in pairwise(cuts)]
                together, grad, _ = step_of(task, player, parts)
                assert float((grad - whole).norm()) < 1e-10 * float(whole.norm())
                assert float(together) == pytest.approx(float(loss), rel=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["seg", "od", "od/fast_rcnn"])
def test_a_step_with_nothing_to_learn_from_has_no_gradient_and_no_loss(
    name: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = build(composed, name.partition("/")[0], *STILL[name])
    some, batch = uneven(name, task)
    still(task, monkeypatch)
    for parts in ([some[:1]], [some[:1], some[:1]]):
        loss, grad, weight = step_of(task, task.players()[""], [batch(part) for part in parts])
        assert (float(loss), weight) == (0, 0)
        assert len(grad) > 100
        assert not grad.any()


@pytest.mark.parametrize("name", choices("task"))
def test_metrics_start_anew_each_time_the_test_split_is_evaluated(name: str, composed: Compose) -> None:
    task, _ = build(composed, name)
    assert task.headline in task.metrics
    # torchmetrics 1.9.0 replaces a metric by another if their states agree after the first batch, see findings/.
    assert not task.metrics._enable_compute_groups
    task.eval()
    loader = TestLoader(task.examples("test"), task.collate, 4, device=torch.device("cpu"))
    values, evaluation, some = [], Evaluation(task), list(islice(loader, 3))
    for _ in range(2):
        evaluation.start()
        with torch.no_grad():
            for batch in some:
                evaluation.update(batch)
        values.append(float(task.metrics.compute()[task.headline]))
    assert values[0] == values[1]


@pytest.fixture(scope="module")
def untrained(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """The result of a task whose weights do not move."""
    words = ["optimizer=sgd", "lr=1e-30", "epochs=1", "schedule=constant"]
    return cache(lambda name: run(composed(f"task={name}", *words, f"runs_dir={tmp_path_factory.mktemp('still')}"))[0])


@pytest.mark.draws
@pytest.mark.parametrize("name", choices("task"))
@pytest.mark.parametrize("optimizers", ["tmsgd sgd", "sgdm", "adam"])
@pytest.mark.slow
def test_tiny_training_visibly_works(name: str, optimizers: str, do: Run, untrained: Callable[[str], Result]) -> None:
    """Clearly above the untrained model and the trivial answer, for every optimizer at the task's one tiny rate."""
    for optimizer in optimizers.split():  # sgd goes on from what tmsgd was before its switch
        trained, _ = do(f"task={name}", f"optimizer={optimizer}")
        key, last = trained.headline, trained.metrics["last"][trained.headline]
        for other in (untrained(name).metrics["last"][key], trained.baseline.get(key)):
            assert other is None or (last > other + 0.2 if trained.higher_is_better else last < 0.7 * other), optimizer


def test_lstm_has_the_source_recipes_parameters() -> None:
    from tmbench.tasks.tc.task import LSTMClassifier

    model = LSTMClassifier(num_words=23_590, embedding=100, width=50, num_classes=8)
    assert sum(p.numel() for p in model.parameters()) == 2_389_808


def test_lraspp_has_the_recipes_parameters_and_batch_norm() -> None:
    from tmbench.tasks.seg.task import build_model

    model = build_model("none", bn_momentum=0.01)
    assert sum(p.numel() for p in model.parameters()) == 3_221_538
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}
    assert {norm.eps for norm in norms if norm in list(model.backbone.modules())} == {1e-3}


def test_tc_pads_with_zero_cuts_at_the_length_and_marks_unknown_words(composed: Compose) -> None:
    task, _ = build(composed, "tc", "task.tokens=4")
    task.documents["test"] = [(0, ["word1", "never-seen"]), (3, ["word1"] * 9)]
    tokens, labels = task.examples("test").tensors
    word = task.words["word1"]
    assert tokens.tolist() == [[word, 1, 0, 0], [word] * 4]
    assert labels.tolist() == [0, 3]


def test_tc_vocabulary_of_the_source_counts_test_words_and_eos(composed: Compose) -> None:
    from tmbench.tasks.tc.task import vocabulary

    train, test = [(0, ["a", "b"]), (1, ["a", "c"])], [(0, ["d"])]
    assert vocabulary(train, test, "train_test") == {"a": 0, "b": 1, "<eos>": 2, "c": 3, "d": 4}
    assert vocabulary(train, test, "train") == {"<pad>": 0, "<unk>": 1, "a": 2, "b": 3, "c": 4}


def test_miou_by_hand_and_against_jaccard_index() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    from tmbench.tasks.seg.task import MeanIoU

    truth = torch.tensor([[0, 0, 1, 255]])
    guess = torch.tensor([[0, 1, 1, 1]])
    metric = MeanIoU(3, ignore_index=255)
    metric.update(guess, truth)
    assert float(metric.compute()) == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 neither there nor predicted
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 21, (2, 40, 40), generator=generator)
    guess = torch.randint(0, 21, (2, 40, 40), generator=generator)
    truth[0, :5] = 255
    metric, oracle = MeanIoU(21, ignore_index=255), MulticlassJaccardIndex(21, ignore_index=255)
    for part in range(2):  # one confusion matrix over the split, not a mean over images
        metric.update(guess[part : part + 1], truth[part : part + 1])
    assert float(metric.compute()) == pytest.approx(float(oracle(guess, truth)), abs=1e-6)


def test_seg_batch_is_padded_with_black_and_border(composed: Compose) -> None:
    from tmbench.tasks.seg.task import collate

    images = [torch.ones(3, 4, 6), torch.ones(3, 5, 3)]
    masks = [torch.ones(4, 6, dtype=torch.long), torch.ones(5, 3, dtype=torch.long)]
    images_B3HW, masks_BHW = collate(list(zip(images, masks, strict=True)))
    assert images_B3HW.shape == (2, 3, 5, 6)
    assert masks_BHW.shape == (2, 5, 6)
    assert float(images_B3HW.sum()) == 3 * (24 + 15)
    assert int((masks_BHW == 255).sum()) == 60 - 24 - 15


@pytest.mark.parametrize("preprocess", ["paper", "source"])
def test_seg_transform_keeps_masks_to_class_ids_and_pictures_aligned(preprocess: str, composed: Compose) -> None:
    task, cfg = build(composed, "seg", f"task.preprocess={preprocess}")
    for i in range(6):
        seed_all("test", i)
        image, mask = task.examples("train")[i]
        assert image.shape[1:] == mask.shape
        if preprocess == "source":
            assert tuple(mask.shape) == (cfg.task.crop, cfg.task.crop)
        else:
            assert min(mask.shape) == cfg.task.short_side
        assert set(mask.unique().tolist()) <= {0, 1, 7, 15, 255}
        red = (image[0] * 0.229 + 0.485) - (image[2] * 0.225 + 0.406)
        if (mask == 7).sum() > 100:  # the tiny set's cars are red
            assert red[mask == 7].mean() > 0.3


def test_missing_weights_name_the_file_and_the_way_out_and_damaged_ones_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    from tmbench.errors import DataError
    from tmbench.tasks.seg import task as seg

    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for weights, file in (("coco", "lraspp_mobilenet_v3_large-d234d4ea.pth"), ("backbone", "mobilenet_v3_large-")):
        with pytest.raises(DataError, match=r"task\.weights=none") as caught:
            seg.build_model(weights, 0.01)
        assert file in str(caught.value)
        (damaged,) = re.findall(r"no (\S+), and", str(caught.value))
        Path(damaged).write_bytes(b"half of it")
        with pytest.raises(DataError, match=rf"^{damaged}: not the published weights .*remove it"):
            seg.build_model(weights, 0.01)


@pytest.mark.slow
def test_seg_trains_on_the_real_subset_and_says_so(do: Run) -> None:
    root = real_data("voc2007").parent
    words = ["task=seg", "optimizer=tmsgd", "data=full", f"data_dir={root}", "task.weights=none", "lr=0.05"]
    result, folder = do(*words, "epochs=3", "switch_epoch=1", "task.short_side=96")
    assert result.profile == "subset"
    rows = (Path(folder) / "curves.csv").read_text().splitlines()
    losses = [float(row.split(",")[4]) for row in rows[1:]]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_tc_learns_the_real_r8(do: Run) -> None:
    root = real_data("r8").parent
    result, _ = do("task=tc", "optimizer=sgd", "data=full", f"data_dir={root}", "epochs=10")
    assert result.profile == "full"
    assert result.metrics["best"]["test/accuracy"] > 0.78
