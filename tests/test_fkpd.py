"""fkpd: the network, how images become its input, its metrics, its figures, the files."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, real_data
from helpers import assert_mean_of_examples, assert_same, build, count, curves, first_batch, pairwise, weights
from PIL import Image
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d
from web import tiny

from tmbench.files import read_sealed_text
from tmbench.run import run
from tmbench.runs.__main__ import main
from tmbench.tasks.fkpd.faces import HEADER, Faces
from tmbench.tasks.fkpd.task import NormalisedMeanError, build_model, cut, random_corners, resized
from tmbench.training.evaluation import Evaluation


def test_the_network_has_the_recipe_s_parameters() -> None:
    with torch.device("meta"):
        assert count(build_model()) == 21_342_792
        assert count(build_model(8)) < 21_342_792 / 50


def by_hand(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    """The same network as one expression after the other, from the weights alone."""

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, mean.clone(), var.clone(), weight, bias, training).clamp(min=0)

    x, block = conv2d(images, state["0.weight"], padding=1), 0
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            block += 1
            stride = 2 if i == 0 and stage else 1
            before = norm(x, f"{block}.norm1")
            after = conv2d(before, state[f"{block}.conv1.weight"], stride=stride, padding=1)
            after = conv2d(norm(after, f"{block}.norm2"), state[f"{block}.conv2.weight"], padding=1)
            if i == 0 and stage:
                x = conv2d(before, state[f"{block}.shortcut.weight"], stride=stride)
            x = x + after
    return x.mean((2, 3)) @ state["19.weight"].T + state["19.bias"]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_computes_what_an_independent_construction_does(training: bool) -> None:
    torch.manual_seed(0)
    model = build_model(width=8).train(training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.rand(3, 1, 40, 40)
    got = model(images)
    assert got.shape == (3, 136)
    torch.testing.assert_close(got, by_hand(state, images, training))


# What the network reads


@pairwise(size=[(60, 90), (90, 60), (300, 240)], crop=["none", "center"])
def test_key_points_move_with_the_picture(size: tuple[int, int], crop: str) -> None:
    image = torch.zeros(size, dtype=torch.uint8)
    image[20:30, 40:50] = 200  # its middle, between pixels counted from their corners, is (45, 25)
    small, points = resized(image, torch.tensor([[45.0, 25.0]]), 112, crop)
    assert small.shape == (112, 112) if crop == "none" else min(small.shape) == 125
    assert small.dtype == torch.uint8
    share = small.double() / small.sum()
    middle = [(share.sum(dim) * (torch.arange(small.shape[1 - dim]) + 0.5)).sum() for dim in (0, 1)]
    torch.testing.assert_close(points[0].double(), torch.stack(middle), atol=0.3, rtol=0)


def test_a_cut_takes_its_own_corner_of_each_image_and_moves_the_points() -> None:
    images = torch.randint(0, 256, (4, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    points = torch.rand(4, 68, 2)
    top, left = torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 1, 2])
    small, moved = cut(images, points, top, left, 6)
    for b, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        assert torch.equal(small[b], images[b, y : y + 6, x : x + 6])
        torch.testing.assert_close(moved[b], points[b] - torch.tensor([x, y]))


def test_random_corners_are_uniform_inside_each_image_and_torch_s() -> None:
    sizes = torch.tensor([[6, 9], [8, 6]]).repeat(4000, 1)
    torch.manual_seed(1)
    top, left = random_corners(sizes, 6)
    for which, (tops, lefts) in enumerate([(1, 4), (3, 1)]):
        for corners, places in ((top[which::2], tops), (left[which::2], lefts)):
            counts = torch.bincount(corners, minlength=places)
            assert len(counts) == places
            assert (counts - 4000 / places).abs().max() < 5 * (4000 / places) ** 0.5
    torch.manual_seed(1)
    assert torch.equal(random_corners(sizes, 6)[0], top)


@pytest.mark.slow
def test_random_crops_are_drawn_anew_in_training_and_fixed_in_the_test(composed: Compose) -> None:
    for crop, same in (("none", True), ("center", True), ("random", False)):
        task, cfg = build(composed, "fkpd", f"task.crop={crop}")
        batch = first_batch(task, 16)
        assert (task.loss(batch)[0].item() == task.loss(batch)[0].item()) is same
        torch.manual_seed(5)
        images, points = task.examples("test").tensors
        other, _ = build(composed, "fkpd", f"task.crop={crop}")
        torch.manual_seed(6)
        assert torch.equal(images, other.examples("test").tensors[0])
        assert images.shape == (60, cfg.task.size, cfg.task.size)
        assert points.shape == (60, 68, 2)


@pytest.mark.parametrize("target", ["course", "unit"])
def test_targets_come_back_as_pixels_and_do_not_depend_on_the_size(target: str, composed: Compose) -> None:
    task, _ = build(composed, "fkpd", f"task.target={target}", "task.size=224", "task.width=1")
    points = torch.tensor([[[100.0, 150.0], [0.0, 224.0]]]).repeat(1, 34, 1)
    said = task.target(points)
    expected = {"course": [0, 1, -2, 2.48], "unit": [-12 / 112, 38 / 112, -1, 1]}[target]
    torch.testing.assert_close(said[0, :4], torch.tensor(expected))
    torch.testing.assert_close(task.pixels(said), points)
    task.cfg.size = 56
    torch.testing.assert_close(task.target(points / 4), said)
    torch.testing.assert_close(task.pixels(said), points / 4)


# Metrics


def test_nme_by_hand_over_batches() -> None:
    points = torch.zeros(3, 68, 2)
    points[:, 45, 0] = torch.tensor([10.0, 20.0, 0.5])  # the third face's eyes are less than a pixel apart
    guesses = points + torch.tensor([3.0, 4.0])  # 5 pixels away each
    metric = NormalisedMeanError()
    metric.update(guesses[:1], points[:1])
    metric.update(guesses[1:], points[1:])
    assert float(metric.compute()) == pytest.approx((5 / 10 + 5 / 20 + 5 / 1) / 3)


def test_mse_is_over_all_coordinates_of_all_test_images_and_the_baseline_is_the_mean_s(composed: Compose) -> None:
    task, _ = build(composed, "fkpd")
    task.eval()
    images, points = task.examples("test").tensors
    with torch.no_grad():
        for part in (slice(0, 7), slice(7, 60)):
            task.evaluate((images[part], points[part]))
        guesses = task.guess(images)
    truth = (points.numpy().reshape(60, 136) * (224 / 32) - 100) / 50
    assert Evaluation(task).values()["test/mse"] == pytest.approx(((guesses.numpy() - truth) ** 2).mean(), rel=1e-5)
    mean = (task.examples("train").tensors[1].numpy().reshape(200, 136).mean(0) * (224 / 32) - 100) / 50
    baseline = task.baseline()
    assert baseline.keys() == set(task.metrics)
    assert baseline["mse"] == pytest.approx(((mean - truth) ** 2).mean(), rel=1e-5)


def test_the_baseline_of_random_crops_is_worse_than_of_whole_images(composed: Compose) -> None:
    crops = ("none", "center", "random")
    none, center, random = (build(composed, "fkpd", f"task.crop={crop}")[0].baseline() for crop in crops)
    assert random["mse"] > 1.05 * center["mse"]
    assert random["nme"] > 1.05 * none["nme"]


@pytest.mark.draws
def test_a_result_shows_what_a_constant_guess_reaches(do: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tmbench.runs import show

    result, folder = do("task=fkpd", "optimizer=sgd", "epochs=1", "task.width=1", "batch_size=50")
    assert result.baseline.keys() == {"test/mse", "test/nme"}
    assert_mean_of_examples(result, folder, "test/mse", higher_is_better=False)
    word = f"{result.baseline['test/mse']:.4g}"
    show.one(result, folder, "new", show.console())
    assert re.search(rf"baseline +{re.escape(word)} without looking at the input", capsys.readouterr().out)
    assert main(["--runs-dir", str(folder.parent)]) == 0
    assert word in capsys.readouterr().out


# Figures


@pytest.mark.slow
def test_figures_of_two_runs_stand_side_by_side(do: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=fkpd", "epochs=2", "task.width=1", "batch_size=50"]
    folders = [do(*words, f"optimizer={optimizer}")[1] for optimizer in ("tmsgd", "sgd")]
    assert (folders[0] / "figures" / "predictions.png").is_file()
    where = ["--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["figures", "fkpd", *(folder.name for folder in folders), *where]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out/fkpd-predictions.png\n"
    with Image.open(tmp_path / "out" / "fkpd-predictions.png") as picture:
        both = picture.height
    assert main(["figures", "fkpd", "optimizer=sgd", *where]) == 0
    with Image.open(tmp_path / "out" / "fkpd-predictions.png") as picture:
        assert picture.height < both


def test_a_figure_has_a_row_for_each_run_and_its_points_are_the_run_s(composed: Compose) -> None:
    tasks = {name: build(composed, "fkpd")[0].eval() for name in ("a", "b")}
    with torch.no_grad():
        torch.nn.init.zeros_(tasks["b"].model[-1].weight)
        ((name, figure),) = type(tasks["a"]).compare(tasks)
    assert name == "predictions"
    assert len(figure.axes) == 14
    points = tasks["a"].examples("test").tensors[1]
    for i, ax in enumerate(figure.axes):
        truth, guess = (np.asarray(dots.get_offsets()) for dots in ax.collections)
        np.testing.assert_allclose(truth, points[i % 7])
        task = tasks["a" if i < 7 else "b"]
        with torch.no_grad():
            expected = task.pixels(task.guess(task.examples("test").tensors[0][i % 7 : i % 7 + 1]))[0]
        np.testing.assert_allclose(guess, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_drawn_is_one_message(
    do: Run, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs-dir", str(tmp_path), "--out", str(tmp_path / "out")]
    _, folder = do("task=tc", "optimizer=sgd", "epochs=1", "batch_size=80")
    cases = {
        ("fkpd", "x"): "x: no run in",
        ("fkpd", "optimizer=sgd"): "fkpd: no run in",
        ("tc", "seed=0"): "tc: this task draws nothing side by side",
    }
    for words, told in cases.items():
        assert main(["figures", *words, *where]) == 1
        assert told in capsys.readouterr().err
    config = folder / "config.yaml"
    config.write_text(read_sealed_text(config).replace("width: 50", "width: 40"))
    assert main(["figures", "tc", "seed=0", *where]) == 1
    assert "its weights do not fit the task as it is now" in capsys.readouterr().err
    config.write_text(config.read_text().replace("tmbench.tasks.tc.task.TC", "os.getcwd"))
    assert main(["figures", "tc", "seed=0", *where]) == 1
    assert "names os.getcwd, and what a configuration names is imported" in capsys.readouterr().err
    (folder / "checkpoints" / "last.ckpt").unlink()
    assert main(["figures", "tc", "seed=0", *where]) == 1
    assert "expected a trained run, it has no checkpoints/last.ckpt (completed)" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


# Runs


@pytest.mark.slow
def test_runs_with_random_crops_repeat_and_resume_bitwise(composed: Compose, tmp_path: Path) -> None:
    words = ["task=fkpd", "task.crop=random", "optimizer=tmsgd", "epochs=3", "switch_epoch=2", "task.width=2"]
    folders = []
    for name, stops in (("whole", [None]), ("again", [None]), ("stopped", [1, 2, None])):
        cfg = composed(*words, "batch_size=20", f"runs_dir={tmp_path / name}")
        for until in stops:
            _, folder, _ = run(cfg, until=until)
        folders.append(folder)
    for folder in folders[1:]:
        assert_same(weights(folders[0]), weights(folder))
        assert curves(folders[0]) == curves(folder)


# The files


def test_a_tiny_set_has_the_published_layout(tmp_path: Path) -> None:
    data = tiny(Faces, tmp_path)
    paths = list(data.files())
    assert {path.suffix for path in paths} == {".csv", ".jpg"}
    with Image.open(paths[1]) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGBA")
    first, row = (tmp_path / "data" / "test_frames_keypoints.csv").read_text().splitlines()[:2]
    assert first.split(",") == HEADER
    assert len(row.split(",")) == 137
    for path, points in data.rows("train"):
        assert points.shape == (68, 2)
        assert (points >= 0).all()
        assert (points < data.read(path).shape[::-1]).all()


def test_grey_is_of_the_colours_and_an_opaque_alpha_is_without_effect(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (50, 60, 4), dtype=np.uint8)
    colours[..., 3] = 255  # as in the published files
    Image.fromarray(colours).save(tmp_path / "x.jpg", "PNG")
    grey = Faces.read(tmp_path / "x.jpg")
    assert (grey.dtype, grey.shape) == (np.uint8, (50, 60))
    np.testing.assert_array_equal(grey, np.array(Image.fromarray(colours[..., :3]).convert("L")))
    np.testing.assert_allclose(grey, colours[..., :3] @ (0.299, 0.587, 0.114), atol=1)


def test_a_point_outside_its_image_is_kept(tmp_path: Path) -> None:
    Faces.write_tiny(tmp_path, np.random.default_rng(0))
    table = tmp_path / "data" / "test_frames_keypoints.csv"
    header, first, *rest = table.read_text().splitlines()
    name, _, *values = first.split(",")
    blank = ["", ""]  # at the end
    table.write_text("\n".join([header, ",".join([name, "-7.5", *values]), *rest, *blank]))
    assert float(next(Faces(tmp_path).rows("test"))[1][0, 0]) == -7.5
    assert Faces(tmp_path).counts()["test"] == 60


def test_the_real_subset_is_read_whole() -> None:
    data = Faces(real_data("faces"))
    assert data.counts() == {"train": 240, "test": 60}
    outside = [path for path, points in data.rows("train")
               if (points < 0).any() or (points > data.read(path).shape[::-1]).any()]  # fmt: skip
    assert len(outside) == 1


@pytest.mark.slow
def test_fkpd_learns_the_real_subset(do: Run) -> None:
    root = real_data("faces").parent
    words: list[Any] = ["task=fkpd", "optimizer=sgdm", "data=full", f"data_dir={root}", "task.size=32", "task.width=16"]
    result, _ = do(*words, "epochs=10")
    assert result.profile == "subset"
    assert result.metrics["last"]["test/mse"] < result.baseline["test/mse"]
