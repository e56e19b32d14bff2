"""ic: the networks, the pictures they read, the files they come from."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, real_data
from helpers import assert_same, build, count, curves, first_batch, weights
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2
from web import tiny

from tmbench.config.settle import settle
from tmbench.data import read_pickle
from tmbench.errors import DataError
from tmbench.run import run
from tmbench.tasks.ic.cifar import CIFAR, CIFAR10, CIFAR100, HUES, write_pickle
from tmbench.tasks.ic.task import augmented, build_model, cropped_and_flipped
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader

# With 10 classes, and what each of 90 more adds: a row of the last layer.
PARAMETERS = {
    "vgg16": (14_728_266, 513), "vgg19": (20_040_522, 513), "resnet18": (11_173_962, 513),
    "resnet34": (21_282_122, 513), "resnet50": (23_520_842, 2049),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_model_has_the_recipe_s_parameters(name: str) -> None:
    ten, row = PARAMETERS[name]
    with torch.device("meta"):
        assert count(build_model(name, 10)) == ten
        assert count(build_model(name, 100)) == ten + 90 * row
        assert count(build_model(name, 10, width=8)) < ten / 50


def test_the_choices_are_the_models(composed: Compose) -> None:
    assert set(composed("task=ic").task.choices.model) == set(PARAMETERS)


def vgg_by_hand(depths: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for depth, out in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def torchvisions(name: str) -> nn.Module:
    """The ImageNet network with its stem replaced, as is usual for 32x32 pixels."""
    model = models.get_model(name, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


VGG = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # convolutions of each stage


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ("vgg19", "resnet34") else []) for n in PARAMETERS]
)
def test_every_model_computes_what_an_independent_construction_does(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10)
    with torch.device("meta"):  # without weights of its own
        other = vgg_by_hand(VGG[name]) if name in VGG else torchvisions(name)
    assert count(other) == PARAMETERS[name][0]
    state = [t.clone() for t in model.state_dict().values()]
    other.load_state_dict(dict(zip(other.state_dict(), state, strict=True)), assign=True)  # in the order of the layers
    images = torch.rand(2, 3, 32, 32)
    for mode in (True, False):  # the first leaves running statistics for the second
        outputs = [net.train(mode)(images) for net in (model, other)]
        assert outputs[0].shape == (2, 10)
        torch.testing.assert_close(*outputs)


# What the networks read


def pictures(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_flips_equal_torchvision_s_at_every_offset(flip: bool) -> None:
    image = pictures(1)[0]
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    got = cropped_and_flipped(image.expand(81, -1, -1, -1), *offsets.T, torch.full((81,), flip))
    padded = v2.functional.pad(image, [4])
    for (top, left), one in zip(offsets.tolist(), got, strict=True):
        expected = v2.functional.crop(padded, top, left, 32, 32)
        assert torch.equal(one, v2.functional.horizontal_flip(expected) if flip else expected)


def test_each_image_of_a_batch_is_cropped_and_flipped_by_its_own() -> None:
    images = pictures(3)
    top, left, flip = torch.tensor([4, 0, 8]), torch.tensor([4, 8, 0]), torch.tensor([False, True, False])
    got = cropped_and_flipped(images, top, left, flip)
    assert torch.equal(got[0], images[0])
    assert torch.equal(got[1, :, 4:, 4:], images[1, :, :28, 4:].flip(2))
    assert not got[1, :, :4].any()
    assert torch.equal(got[2, :, :28, 4:], images[2, :, 4:, :28])
    assert not got[2, :, 28:].any()


def test_augmentation_draws_all_offsets_and_flips_half_from_torch_s_generator() -> None:
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, :, 16, 20] = 255  # seen again at (20 - top, 24 - left), mirrored or not
    torch.manual_seed(1)
    got = augmented(image.expand(4000, -1, -1, -1))
    where = got[:, 0].nonzero()
    assert len(where) == 4000
    assert set(where[:, 1].tolist()) == set(range(12, 21))
    assert set(where[:, 2].tolist()) == {*range(16, 25), *range(7, 16)}
    mirrored = int((where[:, 2] < 16).sum())
    assert abs(mirrored - 2000) < 150  # nearly 5 standard deviations
    torch.manual_seed(1)
    assert torch.equal(augmented(image.expand(4000, -1, -1, -1)), got)


def test_paper_preprocessing_scales_and_draws_nothing(composed: Compose) -> None:
    task, _ = build(composed, "ic")
    images = pictures()
    state = torch.get_rng_state()
    for training in (True, False):
        got = task.preprocess(images, training)
        assert got.dtype == torch.float32
        assert torch.equal(got, images.float() / 255)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.dtype == torch.uint8  # and are what they were
    assert torch.equal(images, pictures())


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_standard_preprocessing_equals_torchvision_s(dataset: str, composed: Compose) -> None:
    task, _ = build(composed, "ic", "task.preprocess=standard", f"task.dataset={dataset}")
    published = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }
    normal = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(*published[dataset])])
    images = pictures()
    torch.testing.assert_close(task.preprocess(images, training=False), normal(images))
    torch.manual_seed(5)
    got = task.preprocess(images, training=True)
    torch.manual_seed(5)
    torch.testing.assert_close(got, normal(augmented(images)))


def test_the_training_loss_is_of_augmented_images_under_standard_alone(composed: Compose) -> None:
    for preprocess, same in (("paper", True), ("standard", False)):
        task, _ = build(composed, "ic", f"task.preprocess={preprocess}")
        batch = first_batch(task, 16)
        assert batch[0].dtype == torch.uint8
        losses = [task.loss(batch)[0].item() for _ in range(2)]
        assert (losses[0] == losses[1]) is same


def test_evaluation_is_the_same_each_time_also_under_standard(composed: Compose) -> None:
    task, _ = build(composed, "ic", "task.preprocess=standard")
    task.eval()
    (batch, *_) = TestLoader(task.examples("test"), None, 200, device=torch.device("cpu"))
    logits = [task.model(task.preprocess(batch[0], training=False)) for _ in range(2)]
    assert torch.equal(*logits)


# Metrics and figures


def test_top5_counts_what_is_among_the_five_largest(composed: Compose) -> None:
    task, _ = build(composed, "ic", "task.dataset=cifar100")
    logits = torch.randn(300, 100, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 100
    logits[torch.arange(0, 300, 2), labels[::2]] += 2
    task.model = nn.Identity()
    task.preprocess = lambda images, training: images  # type: ignore[method-assign]
    for part in (slice(0, 100), slice(100, 300)):
        task.evaluate((logits[part], labels[part]))
    order = logits.argsort(1, descending=True)
    values = Evaluation(task).values()
    assert values["test/accuracy"] == pytest.approx(float((order[:, 0] == labels).float().mean()))
    assert values["test/top5_accuracy"] == pytest.approx(float((order[:, :5] == labels[:, None]).any(1).float().mean()))
    assert 0.1 < values["test/accuracy"] < values["test/top5_accuracy"] < 0.9


def test_ten_classes_have_no_top5_and_a_confusion_matrix(composed: Compose) -> None:
    task, _ = build(composed, "ic")
    task.eval()
    with torch.no_grad():
        for batch in TestLoader(task.examples("test"), None, 64, device=torch.device("cpu")):
            task.evaluate(batch)
        figures = dict(task.pictures())
    assert set(Evaluation(task).values()) == {"test/accuracy"}
    assert set(figures) == {"predictions", "confusion"}
    assert int(task.confusion.compute().sum()) == 200
    images, labels = task.examples("test").tensors
    guesses = task.model(task.preprocess(images, False)).argmax(1)
    (ax,) = figures["predictions"].axes
    assert len(ax.texts) == len(ax.images) == 40
    for text, label, guess in zip(ax.texts, labels, guesses, strict=False):
        right = label == guess
        expected = HUES[label] if right else f"{HUES[guess]}\nis {HUES[label]}"
        assert (text.get_text(), text.get_color() == "crimson") == (expected, not right)
    assert any(text.get_color() == "crimson" for text in ax.texts)
    np.testing.assert_array_equal(ax.images[7].get_array(), images[7].permute(1, 2, 0))


# Which data set


def test_the_data_set_chosen_is_the_one_read(composed: Compose) -> None:
    for name, cls in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        task, cfg = build(composed, "ic", f"task.dataset={name}")
        assert type(task.data) is cls
        assert cfg.task.data == f"tmbench.tasks.ic.cifar.{cls.__name__}"
        assert task.model[-1].out_features == len(task.names) == cls.num_classes
        assert settle(cfg) == cfg


def test_another_data_set_is_another_run(do: Run) -> None:
    short = ["task=ic", "optimizer=sgd", "epochs=1", "batch_size=200", "task.width=1"]
    ten, _ = do(*short)
    hundred, _ = do(*short, "task.dataset=cifar100")
    assert ten.run_id != hundred.run_id
    assert ten.data_digest != hundred.data_digest
    assert set(hundred.metrics["last"]) == {*ten.metrics["last"], "test/top5_accuracy"}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_augmented_runs_repeat_and_resume_bitwise(dataset: str, composed: Compose, tmp_path: Path) -> None:
    words = ["task=ic", f"task.dataset={dataset}", "task.preprocess=standard", "optimizer=tmsgd", "epochs=3",
             "switch_epoch=2", "task.width=2", "batch_size=50"]  # fmt: skip
    folders = []
    for name, stops in (("whole", [None]), ("again", [None]), ("stopped", [1, 2, None])):
        cfg = composed(*words, f"runs_dir={tmp_path / name}")
        for until in stops:
            result, folder, how = run(cfg, until=until)
        assert (result.status, how) == ("completed", "resumed" if len(stops) > 1 else "new")
        folders.append(folder)
    for folder in folders[1:]:
        assert_same(weights(folders[0]), weights(folder))
        assert curves(folders[0]) == curves(folder)


# The files


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_a_tiny_set_is_read_by_pickle_and_by_torchvision_alike(cls: type[CIFAR], tmp_path: Path) -> None:
    from torchvision import datasets

    theirs: Any = getattr(datasets, cls.__name__)

    class Unchecked(theirs):  # not the published files
        train_list = [[name, None] for name, _ in theirs.train_list]
        test_list = [[name, None] for name, _ in theirs.test_list]
        meta = theirs.meta | {"md5": None}

    data = tiny(cls, tmp_path)
    assert data.counts() == cls.tiny_counts
    for split in ("train", "test"):
        images, labels = data.read(split)
        other = Unchecked(tmp_path, train=split == "train")
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), other.data)
        assert labels.tolist() == other.targets
        assert set(np.bincount(labels)) == {cls.tiny_counts[split] // cls.num_classes}
    assert data.names() == other.classes
    assert len(set(data.names())) == cls.num_classes


def test_a_written_batch_has_the_opcodes_of_the_published(tmp_path: Path) -> None:
    """A batch of Python 2's pickle: protocol 2, byte strings, numpy.core.multiarray."""
    path = tmp_path / "data_batch_1"
    CIFAR10.write_batch(path, pictures(2).numpy(), np.array([3, 9]))
    with path.open("rb") as f:
        values = pickle.load(f, encoding="bytes")
    assert list(values) == [b"batch_label", b"labels", b"data", b"filenames"]
    assert values[b"labels"] == [3, 9]
    np.testing.assert_array_equal(values[b"data"].reshape(2, 3, 32, 32), pictures(2).numpy())
    got = read_pickle(path)
    assert got.keys() == values.keys()


def test_rows_are_red_green_and_blue_planes_of_32_lines(tmp_path: Path) -> None:
    row = np.zeros(3072, np.uint8)
    row[0], row[1024 + 33], row[3071] = 1, 2, 3
    path = tmp_path / "cifar-100-python" / "test"
    path.parent.mkdir()
    write_pickle(path, {b"data": row[None], b"fine_labels": [99], b"coarse_labels": [4]})
    images, labels = CIFAR100(tmp_path).read("test")
    assert [tuple(at) for at in np.argwhere(images[0])] == [(0, 0, 0), (1, 1, 1), (2, 31, 31)]
    assert labels.tolist() == [99]  # the fine label, not the coarse one


@pytest.mark.parametrize("cls", [CIFAR10, CIFAR100])
def test_a_missing_file_tells_the_data_set_and_how_to_get_it(cls: type[CIFAR], tmp_path: Path) -> None:
    tiny(cls, tmp_path)
    path = tmp_path / cls.batches["test"][0]
    path.unlink()
    with pytest.raises(DataError, match=f"^{cls.folder}: no {path}\n") as error:
        list(cls(tmp_path).files())
    assert f"tmbench data get {cls.folder} data_dir=" in str(error.value)
    assert cls.folder == cls.entry.name


def test_the_real_subset_is_read_whole() -> None:
    data = CIFAR10(real_data("cifar10"))
    assert data.names()[:3] == ["airplane", "automobile", "bird"]
    images, labels = data.read("train")
    assert images.shape == (5000, 3, 32, 32)
    assert set(np.bincount(labels)) == {500}
    assert data.counts() == {"train": 5000, "test": 1000}
    # The published statistics are those of all 50,000; the std that the source uses is the mean of the images' own.
    np.testing.assert_allclose(images.mean((0, 2, 3)) / 255, CIFAR10.mean, atol=0.01)
    np.testing.assert_allclose(images.std((2, 3)).mean(0) / 255, CIFAR10.std, atol=0.01)


@pytest.mark.slow
def test_ic_learns_the_real_subset_under_both_preprocessings(do: Run) -> None:
    root = real_data("cifar10").parent
    for preprocess in ("paper", "standard"):
        words = ["task=ic", "optimizer=sgdm", "data=full", f"data_dir={root}", f"task.preprocess={preprocess}"]
        result, _ = do(*words, "task.width=8", "lr=0.05", "batch_size=64", "epochs=5")
        assert result.profile == "subset"
        assert result.metrics["best"]["test/accuracy"] > 0.2
