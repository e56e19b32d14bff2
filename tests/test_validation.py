"""The validation split: training examples that judge a run in place of the test split, which is then not read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, choices
from helpers import SHORT, assert_same, weights
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset

import tmbench.plan
from tmbench.config.identity import run_id
from tmbench.config.settle import plain, settle
from tmbench.data import open_dataset
from tmbench.errors import ConfigError
from tmbench.seeds import seed_all
from tmbench.task import Task
from tmbench.training.loader import held_out, hold_out, part

# The files of a tiny set that hold its test split alone; none where one file holds all, or there is no such split.
TEST_FILES = {
    "tc": ["test.txt"], "ic": ["cifar-10-batches-py/test_batch"],
    "fkpd": ["data/test", "data/test_frames_keypoints.csv"],
    "seg": ["VOCdevkit/VOC2007/ImageSets/Segmentation/val.txt"], "od": ["VOCdevkit/VOC2007/ImageSets/Main/test.txt"],
    "ctr": [], "ig": [],
}  # fmt: skip


def move_without_test_files(data: Any, name: str, root: Path) -> None:
    """Lets a data set read a copy of its files, without those of the test split alone."""
    if not root.exists():
        shutil.copytree(data.root, root)
        for file in TEST_FILES[name]:
            shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()
    for one in (data, *getattr(data, "sets", [])):
        one.root = root


def build(composed: Compose, name: str, root: Path, *overrides: str) -> Task:
    """A task on a copy of its tiny data from which the test split's files are gone."""
    cfg = settle(composed(f"task={name}", *overrides))
    data, _, _ = open_dataset(cfg, get_class(cfg.task.data))
    move_without_test_files(data, name, root)
    seed_all("weights", 0)
    return get_class(cfg.task._target_)(cfg.task, data)


@pytest.mark.parametrize("name", choices("task"))
def test_held_out_examples_and_the_others_are_all_training_examples_and_the_test_files_are_not_read(
    name: str, composed: Compose, tmp_path: Path
) -> None:
    task = build(composed, name, tmp_path / "data")
    train, judged = task.examples("train"), task.as_evaluated()
    count = len(train)
    assert len(judged) == count
    hold_out(task, 0.2)
    rest, held = task.examples("train"), task.examples("test")
    assert task.held_out_N is not None
    index = np.setdiff1d(np.arange(count), task.held_out_N)
    assert len(rest) + len(held) == count
    assert len(held) == pytest.approx(0.2 * count, abs=1)
    for some, of, which in ((rest, train, index), (held, judged, task.held_out_N)):
        if isinstance(some, TensorDataset):
            pairs = zip(some.tensors, of.tensors, strict=True)
            assert all(torch.equal(a, b[torch.from_numpy(which)]) for a, b in pairs)
        else:
            assert some.indices == which.tolist()
            assert some.dataset.pairs == of.pairs
    task.baseline()
    assert task.split == "validation"


@pytest.mark.parametrize("count", [2, 7, 320, 1001])
def test_the_held_out_share_is_exact_sorted_and_the_same_each_time(count: int) -> None:
    for share in (0.1, 1 / 3, 0.5, 0.9):
        if not 0 < round(count * share) < count:
            with pytest.raises(ConfigError, match="validation: expected a share that leaves some"):
                held_out(count, share)
            continue
        held = held_out(count, share)
        assert len(held) == int(np.floor(count * share + 0.5))
        assert (np.diff(held) > 0).all()
        assert 0 <= held[0] <= held[-1] < count
        assert (held == held_out(count, share)).all()


def test_every_class_is_held_out_by_its_share() -> None:
    labels = np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.3, 0.1, 0.09, 0.01])
    held = held_out(1000, 0.2, torch.from_numpy(labels))
    for label in range(5):
        assert abs((labels[held] == label).sum() - 0.2 * (labels == label).sum()) <= 1


def test_a_group_is_never_torn_apart() -> None:
    groups = [f"person{i}" for i in np.random.default_rng(0).integers(0, 40, 500)]
    held = held_out(500, 0.25, groups=groups)
    inside = {groups[i] for i in held}
    assert len(inside) == 10
    assert inside.isdisjoint(groups[i] for i in set(range(500)) - set(held.tolist()))


def test_faces_of_a_person_are_on_one_side(composed: Compose, tmp_path: Path) -> None:
    task = build(composed, "fkpd", tmp_path / "data")
    assert task.groups()[:11] == ["Face_0"] * 10 + ["Face_1"]
    hold_out(task, 0.2)
    assert task.held_out_N is not None
    assert len({i // 10 for i in task.held_out_N}) * 10 == len(task.held_out_N)


def test_augmented_training_examples_are_judged_as_they_are(composed: Compose, tmp_path: Path) -> None:
    task = build(composed, "seg", tmp_path / "seg", "task.preprocess=source")
    hold_out(task, 0.2)
    first, again = (task.examples("test")[0][0] for _ in range(2))
    assert min(first.shape[1:]) == 64  # the short side, not a crop of 56
    assert torch.equal(first, again)
    cropped = build(composed, "fkpd", tmp_path / "fkpd", "task.crop=random")
    hold_out(cropped, 0.2)
    assert len(cropped.examples("train").tensors) == 3  # with their sizes, to be cut
    assert len(cropped.examples("test").tensors) == 2


def test_generated_pictures_are_judged_by_real_ones_that_were_not_trained_on(composed: Compose, tmp_path: Path) -> None:
    task: Any = build(composed, "ig", tmp_path / "data")
    hold_out(task, 0.25)
    (trained,) = task.examples("train").tensors
    assert len(task.real_N3HW) == len(task.examples("test")) == 48
    assert not any((trained == own).flatten(1).all(1).any() for own in task.real_N3HW)


def test_part_of_a_map_style_set_is_one() -> None:
    assert [part(list("abcde"), np.array([1, 4]))[i] for i in range(2)] == ["b", "e"]


def test_validation_makes_another_run_and_a_share_that_is_none_is_refused(composed: Compose) -> None:
    raw = plain(composed("task=tc"))
    cfgs = [settle(OmegaConf.create(raw | {"validation": value})) for value in (None, 0.1, 0.2)]
    assert len({run_id(cfg, "0") for cfg in cfgs}) == 3
    for value in (0, 1, -0.1, "yes", True, [0.1]):
        with pytest.raises(ConfigError, match="validation: expected a number between 0 and 1"):
            settle(OmegaConf.create(raw | {"validation": value}))


def test_the_sources_vocabulary_reads_test_documents_and_is_refused(do: Run) -> None:
    with pytest.raises(ConfigError, match=r"validation: task\.vocabulary=train_test reads the test documents"):
        do("task=tc", "task.vocabulary=train_test", "validation=0.2", "epochs=1")


def without_test_files(monkeypatch: pytest.MonkeyPatch, name: str, root: Path) -> None:
    """Lets runs open a data set and then takes the files of its test split away."""
    opened = open_dataset

    def open_and_remove(cfg: Any, cls: Any) -> Any:
        data, label, digest = opened(cfg, cls)
        move_without_test_files(data, name, root)
        return data, label, digest

    monkeypatch.setattr(tmbench.plan, "open_dataset", open_and_remove)


@pytest.mark.parametrize("name", [n if n == "tc" else pytest.param(n, marks=pytest.mark.slow) for n in choices("task")])
def test_a_run_with_validation_reads_no_test_file_and_knows_only_validation_metrics(
    name: str, do: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_test_files(monkeypatch, name, tmp_path / "elsewhere")
    result, folder = do(f"task={name}", "optimizer=tmsgd", "validation=0.25", "ema=0.9", *SHORT.get(name, []))
    assert result.status == "completed"
    assert result.headline.startswith("validation/")
    keys = [*result.metrics["last"], *result.metrics["best"], *result.baseline]
    assert result.headline in result.metrics["last"]
    assert not [key for key in keys if key.startswith("test")]
    assert (folder / "figures" / "curves.png").exists()
    assert "test" not in (folder / "curves.csv").read_text()


def test_switched_runs_with_validation_share_what_comes_before_the_switch(do: Run, tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=tmsgd", "validation=0.25", "epochs=3", "batch_size=64"]
    do(*words, "switch_epoch=1")
    shared, folder = do(*words, "switch_epoch=2")
    assert shared.epochs["from_trunk"] == 1
    alone, other = do(*words, "switch_epoch=2", "trunk=off", f"runs_dir={tmp_path / 'alone'}")
    assert alone.metrics == shared.metrics
    assert_same(weights(folder), weights(other))
