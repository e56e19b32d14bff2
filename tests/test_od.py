"""Detection: boxes, priors, losses and metric against independent ones and by hand; both detectors on tiny data."""

import inspect
import json
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, Run, real_data
from helpers import build, count, first_batch
from hydra.utils import get_class
from PIL import Image
from torch import Tensor
from torchvision.models.detection import ssd
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, box_iou
from web import tiny

from tmbench.config.settle import settle
from tmbench.data import open_dataset
from tmbench.errors import ConfigError, DataError
from tmbench.files import digest_of
from tmbench.seeds import seed_all
from tmbench.task import mean
from tmbench.tasks.od import fast_rcnn, rfbnet, selective_search
from tmbench.tasks.od.boxes import VOC0712, Objects, VOCDetection, read_objects
from tmbench.tasks.od.examples import Detections, Pictures, best_of, collate, truth
from tmbench.tasks.od.metric import HIT, IGNORED, MISS, Curve, VOCMeanAP, judge, overlaps
from tmbench.tasks.voc import CLASSES
from tmbench.training.evaluation import Evaluation

MODELS = ["rfbnet", "fast_rcnn"]
PUBLISHED = {"mode": "paper_text", "weights": "none", "width": 1.0, "batch_norm": False, "bn_momentum": 0.01}


def some_boxes(number: int, generator: torch.Generator, size: float = 100) -> Tensor:
    corner = torch.rand(number, 2, generator=generator) * size * 0.6
    return torch.cat([corner, corner + size * (0.05 + 0.35 * torch.rand(number, 2, generator=generator))], dim=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Data


def annotated(tmp_path: Path, text: str, width: int = 50, height: int = 40) -> Objects:
    path = tmp_path / "x.xml"
    path.write_text(text)
    return read_objects(path, width, height)


OBJECT = (
    "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>50</xmax>"
    "<ymax>40</ymax></bndbox><part><name>head</name><bndbox><xmin>99</xmin></bndbox></part></object>"
)


def test_objects_are_read_in_order_in_pixels_from_zero_and_parts_are_not(tmp_path: Path) -> None:
    other = OBJECT.replace("dog", "cat").replace("<difficult>1</difficult>", "").replace(">1<", ">45.7<")
    objects = annotated(tmp_path, f"<annotation>{OBJECT}{other}</annotation>")
    assert objects.boxes.dtype == np.float32
    np.testing.assert_allclose(objects.boxes, [[0, 1, 49, 39], [44.7, 1, 49, 39]], rtol=1e-6)
    assert [CLASSES[label] for label in objects.labels] == ["dog", "cat"]
    assert objects.difficult.tolist() == [True, False]


def test_an_annotation_without_objects_is_an_image_without_objects(tmp_path: Path) -> None:
    objects = annotated(tmp_path, "<annotation/>")
    assert (objects.boxes.shape, objects.labels.shape, objects.difficult.shape) == ((0, 4), (0,), (0,))


def test_tiny_boxes_enclose_their_class_masks(composed: Compose) -> None:
    """One tiny set serves segmentation and detection; of a shape that nothing hides, mask and box are the same."""
    data, _, _ = open_dataset(settle(composed("task=od")), VOCDetection)
    assert isinstance(data, VOCDetection)
    alone = 0
    for image_file, xml in data.split("train") + data.split("test"):
        _, objects = data.read(image_file, xml)
        assert 1 <= len(objects.labels) <= 2
        if len(objects.labels) > 1:
            continue
        mask = np.array(Image.open(data.devkit / "SegmentationClass" / f"{image_file.stem}.png"))
        ys, xs = np.nonzero(mask)
        assert objects.boxes[0].tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        assert mask[mask != 255].max() == objects.labels[0]
        alone += 1
    assert alone > 10


def test_both_years_train_and_2007_alone_is_tested(tmp_path: Path) -> None:
    data, first = tiny(VOC0712, tmp_path), VOCDetection(tmp_path / "voc2007")
    assert (len(data.split("train")), len(data.split("test"))) == (64, 12)
    assert data.split("train")[:32] == first.split("train")
    assert data.split("test") == first.split("test")
    assert {name.split("/")[0] for name in data.digests()} == {"voc2007", "voc2012"}
    assert len(data.digests()) == 2 * (64 + 12) + 3
    assert not data.is_official(data.digests())


def test_both_years_are_official_only_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny(VOC0712, tmp_path)
    for known in (["voc2007"], ["voc2007", "voc2012"]):
        monkeypatch.setattr(VOCDetection, "is_official", lambda self, digests, known=known: self.folder in known)
        assert data.is_official(data.digests()) == (len(known) == 2)


def test_real_subset_has_its_379_boxes() -> None:
    data = VOCDetection(real_data("voc2007"))
    assert data.counts() == {"trainval": 105, "test": 37}
    read = [data.read(*pair)[1] for split in data.splits for pair in data.pairs(split)]
    assert sum(len(objects.labels) for objects in read) == 379
    _, first = data.read(data.devkit / "JPEGImages/000005.jpg", data.devkit / "Annotations/000005.xml")
    assert first.boxes[0].tolist() == [262, 210, 323, 338]
    assert first.difficult.tolist() == [False, False, True, False, True]


# Metric


def verdicts(detections: Any, scores: list[float], objects: Any, difficult: list[bool]) -> list[int]:
    """Of one class."""
    ones = partial(torch.ones, dtype=torch.long)
    boxes, truths = (torch.tensor(each, dtype=torch.float32).view(-1, 4) for each in (detections, objects))
    found = boxes, torch.tensor(scores), ones(len(boxes))
    return judge(*found, truths, ones(len(truths)), torch.tensor(difficult)).tolist()


def test_a_side_counts_its_last_pixel_and_half_an_overlap_is_a_hit() -> None:
    # 10 of 20 columns, by the devkit's count; without its pixel more, 9 of 19 would be less than a half.
    assert overlaps(torch.tensor([[0, 0, 9, 9]]), torch.tensor([[0, 0, 19, 9]])).item() == 0.5
    assert verdicts([[0, 0, 9, 9]], [1.0], [[0, 0, 19, 9]], [False]) == [HIT]
    assert verdicts([[0, 0, 8, 9]], [1.0], [[0, 0, 19, 9]], [False]) == [MISS]


def test_an_object_is_hit_once_by_the_best_score_in_whatever_order_they_come() -> None:
    box = [0, 0, 9, 9]
    assert verdicts([box, box, box], [0.2, 0.9, 0.5], [box], [False]) == [MISS, HIT, MISS]
    assert verdicts([box, box], [0.5, 0.5], [box], [False]) == [HIT, MISS]


def test_a_detection_is_compared_with_the_object_that_it_overlaps_most_alone() -> None:
    """Of two detections nearest to one object, the second does not make do with the other, which it overlaps too."""
    objects = [[0, 0, 9, 9], [0, 0, 9, 12]]
    assert verdicts([objects[0], objects[0]], [0.9, 0.8], objects, [False, False]) == [HIT, MISS]


def test_what_falls_on_a_difficult_object_is_neither_hit_nor_miss() -> None:
    box, other = [0, 0, 9, 9], [50, 50, 59, 59]
    assert verdicts([box, box, other], [0.9, 0.8, 0.7], [box], [True]) == [IGNORED, IGNORED, MISS]


def test_a_detection_of_another_class_hits_nothing() -> None:
    box = torch.tensor([[0.0, 0, 9, 9]])
    one, two, no = torch.tensor([1]), torch.tensor([2]), torch.tensor([False])
    assert judge(box, torch.ones(1), two, box, one, no).tolist() == [MISS]


def test_average_precision_by_hand() -> None:
    """Two objects; hit, miss, hit: precision 1 at recall 1/2, then 2/3 at recall 1."""
    curve = Curve(torch.tensor([0.5, 0.5, 1.0]).double(), torch.tensor([1, 1 / 2, 2 / 3]).double(), 2)
    assert curve.points == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)  # recalls 0 to 0.5, and 0.6 to 1
    assert curve.area == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    nothing = Curve(torch.zeros(0).double(), torch.zeros(0).double(), 3)
    assert (nothing.points, nothing.area) == (0, 0)


def test_a_recall_of_three_tenths_reaches_the_third_point() -> None:
    """In floating point 3 * 0.1 > 3 / 10; the point would be lost."""
    curve = Curve(torch.tensor([3 / 10]).double(), torch.ones(1).double(), 10)
    assert curve.points == pytest.approx(4 / 11)


Made = tuple[list[Detections], list[dict[str, Tensor]]]


def made(images: int, num_classes: int, *, tied: bool = False) -> Made:
    """Random objects, some classes of an image difficult, and detections near and far from them."""
    g = generator(1)
    detections, targets = [], []
    for number in range(images):
        n = int(torch.randint(0, 6, (1,), generator=g))
        boxes, labels = some_boxes(n, g), torch.randint(1, num_classes + 1, (n,), generator=g)
        difficult = (torch.rand(num_classes + 1, generator=g) < 0.2)[labels]
        found, kinds = some_boxes(14, g), torch.randint(1, num_classes + 1, (14,), generator=g)
        if n:
            near = torch.randint(0, n, (9,), generator=g)
            found[:9], kinds[:9] = boxes[near] + torch.randn(9, 4, generator=g) * 4, labels[near]
        scores = torch.rand(14, generator=g)
        detections.append(Detections(found, (scores * 4).round() / 4 if tied else scores, kinds))
        targets.append({"number": torch.tensor(number), "boxes": boxes, "labels": labels, "difficult": difficult})
    return detections, targets


def test_metric_agrees_with_the_published_package_mean_average_precision() -> None:
    package = "mean_average_precision.mean_average_precision_2d"
    module = pytest.importorskip(package, reason="pip install 'tmbench[test]'")
    detections, targets = made(80, 4)
    metric, oracle = VOCMeanAP(4), module.MeanAveragePrecision2d(4)
    for found, target in zip(detections, targets, strict=True):
        metric.update([found], [target])
        labels, difficult = target["labels"][:, None] - 1, target["difficult"][:, None]
        columns = target["boxes"], labels, difficult, torch.zeros(len(labels), 1)
        rows = found.boxes_D4, found.labels_D[:, None] - 1, found.scores_D[:, None]
        oracle.add(*(torch.cat([part.double() for part in parts], dim=1).numpy() for parts in (rows, columns)))
        for label in target["labels"][target["difficult"]].tolist():
            oracle.class_counter[-1, label - 1] -= 1  # that package counts difficult objects among those to find
    values = metric.compute()
    points = oracle.value(0.5, recall_thresholds=np.arange(11) / 10)
    for label, curve in metric.curves().items():
        assert curve.points == pytest.approx(points[0.5][label - 1]["ap"], rel=1e-6)
        np.testing.assert_allclose(curve.precision_E[-1], points[0.5][label - 1]["precision"][-1])
    assert float(values["map"]) == pytest.approx(points["mAP"], rel=1e-6)
    assert float(values["map_area"]) == pytest.approx(oracle.value(0.5)["mAP"], rel=1e-6)
    assert 0.1 < values["map"] < 0.9


def test_metric_does_not_depend_on_who_saw_which_image_even_where_scores_are_equal() -> None:
    detections, targets = made(40, 3, tied=True)
    whole = VOCMeanAP(3)
    whole.update(detections, targets)
    ranks = [VOCMeanAP(3), VOCMeanAP(3)]
    for rank, metric in enumerate(ranks):
        for i in range(rank, 40, 2):
            metric.update([detections[i]], [targets[i]])
    ranks[1].merge_state(ranks[0])
    assert ranks[1].compute() == whole.compute()
    assert whole.compute()["map"] != whole.compute()["map_area"]


def test_classes_without_objects_do_not_count_but_their_detections_are_no_hits() -> None:
    box, number = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor(0)
    metric = VOCMeanAP(20)
    target = {"number": number, "boxes": box, "labels": torch.tensor([7]), "difficult": torch.tensor([False])}
    metric.update([Detections(box.repeat(2, 1), torch.tensor([0.5, 0.9]), torch.tensor([7, 3]))], [target])
    assert metric.compute()["map"] == 1


# RFBNet


def config(**settings: Any) -> Any:
    return SimpleNamespace(**{**PUBLISHED, "size": 300, "frozen": True, "rois": 64, "proposals": 2000, **settings})


def test_rfbnet_has_the_published_parameters_and_priors() -> None:
    with torch.device("meta"):
        model = rfbnet.RFBNet(config(), None)  # type: ignore[arg-type]
        logits, codes = model(torch.zeros(2, 3, 300, 300))
    assert count(model) == 36_531_296
    assert count(model.conv4_3) + count(model.fc7) == 20_483_904
    assert count(model.norm) == 1_502_016
    assert [count(extra) for extra in model.extras[:3]] == [5_095_296, 4_175_744, 1_045_440]
    assert sum(count(extra) for extra in model.extras[3:]) == 656_896
    assert count(model.head) == 3_572_000
    assert (logits.shape, codes.shape, model.priors_P4.shape) == ((2, 11_620, 21), (2, 11_620, 4), (11_620, 4))


@pytest.mark.parametrize("size", [64, 80, 96, 200, 272, 300])
def test_a_picture_of_any_size_has_as_many_priors_as_outputs(size: int) -> None:
    with torch.device("meta"):
        model = rfbnet.RFBNet(config(size=size, width=0.05), None)  # type: ignore[arg-type]
        logits, _ = model.eval()(torch.zeros(1, 3, size, size))
    assert logits.shape[1] == len(model.priors_P4)


SIDES = (38, 19, 10, 5, 3, 1)


def test_priors_are_those_of_ssd_with_their_centres_in_the_picture() -> None:
    scales = [30 / 300, 60 / 300, 111 / 300, 162 / 300, 213 / 300, 264 / 300, 315 / 300]
    other = DefaultBoxGenerator([[2, 3]] * 4 + [[2]] * 2, scales=scales, steps=[8, 16, 32, 64, 100, 300])
    maps = [torch.zeros(1, 1, side, side) for side in SIDES]
    (corners,) = other(ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)]), maps)
    expected = box_convert(corners / 300, "xyxy", "cxcywh")
    priors_P4 = rfbnet.priors([(side, side) for side in SIDES], 300)
    torch.testing.assert_close(priors_P4, expected.clamp(0, 1), rtol=0, atol=1e-6)
    assert (expected > 1 + 1e-6).any()  # why they are cut
    assert ((priors_P4 >= 0) & (priors_P4 <= 1)).all()


def test_first_priors_by_hand() -> None:
    priors_P4 = rfbnet.priors([(38, 38)], 300)
    assert len(priors_P4) == 38 * 38 * 6
    s, t, r2, r3 = 0.1, (30 * 60) ** 0.5 / 300, 2**0.5, 3**0.5
    shapes = [(s, s), (t, t), (s * r2, s / r2), (s / r2, s * r2), (s * r3, s / r3), (s / r3, s * r3)]
    torch.testing.assert_close(priors_P4[:6, 2:], torch.tensor(shapes))
    torch.testing.assert_close(priors_P4[6 * 39, :2], torch.tensor([1.5 * 8 / 300, 1.5 * 8 / 300]))


@pytest.mark.parametrize("coder", [rfbnet.CODER, fast_rcnn.CODER], ids=MODELS)
def test_decoding_undoes_encoding(coder: Any) -> None:
    boxes, starts = some_boxes(500, generator()), some_boxes(500, generator(1))
    decoded = coder.decode_single(coder.encode_single(boxes, starts), starts)
    torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)
    assert coder.encode_single(boxes, boxes).abs().max() < 1e-5


def test_codes_by_hand() -> None:
    start, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 15, 40]])
    plain = torch.tensor([[0.5, 0.5, 0.0, np.log(2)]], dtype=torch.float32)
    torch.testing.assert_close(fast_rcnn.CODER.encode_single(box, start), plain)
    variances = torch.tensor([0.1, 0.1, 0.2, 0.2])
    torch.testing.assert_close(rfbnet.CODER.encode_single(box, start), plain / variances)


def test_priors_take_the_object_they_overlap_most_and_each_object_has_its_best_prior() -> None:
    g = generator(2)
    for _ in range(30):
        corners, boxes = some_boxes(60, g, 1), some_boxes(int(torch.randint(1, 5, (1,), generator=g)), g, 1)
        labels = torch.arange(1, len(boxes) + 1)
        kinds, taken = rfbnet.assign(boxes, labels, corners)
        table = box_iou(boxes, corners)
        forced = {int(table[n].argmax()): n for n in range(len(boxes))}  # of two with one best prior, the later
        for p in range(60):
            best = forced.get(p, int(table[:, p].argmax()))
            expected = best + 1 if p in forced or table[best, p] >= 0.5 else 0
            assert kinds[p] == expected
            if expected:
                assert taken[p].tolist() == boxes[best].tolist()


def test_hard_negatives_are_the_worst_three_for_each_object_of_the_image() -> None:
    losses = torch.rand(5, 50, generator=generator())
    is_object = torch.zeros(5, 50, dtype=torch.bool)
    for b, number in enumerate((0, 1, 4, 12, 20)):
        is_object[b, torch.randperm(50, generator=generator(b))[:number]] = True
    chosen = rfbnet.hard_negatives(losses, is_object)
    assert chosen.sum(1).tolist() == [0, 3, 12, 36, 30]
    assert not (chosen & is_object).any()
    for b in (1, 2, 3):
        assert losses[b, chosen[b]].min() > losses[b, ~chosen[b] & ~is_object[b]].max()


def test_multibox_loss_is_that_of_torchvisions_ssd(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = build(composed, "od")
    model = task.model
    images, targets = first_batch(task, 4)
    logits, codes = torch.randn(4, len(model.priors_P4), 21), torch.randn(4, len(model.priors_P4), 4)
    monkeypatch.setattr(type(model), "forward", lambda self, images: (logits, codes))
    corners = box_convert(model.priors_P4, "cxcywh", "xyxy")
    matches = [ssd.det_utils.SSDMatcher(0.5)(box_iou(target["boxes"], corners)) for target in targets]
    stub = SimpleNamespace(box_coder=ssd.det_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)), neg_to_pos_ratio=3)
    found = {"bbox_regression": codes, "cls_logits": logits}
    expected = ssd.SSD.compute_loss(stub, targets, found, [corners] * 4, matches)
    torch.testing.assert_close(mean(*task.loss((images, targets))), sum(expected.values()))


def test_objects_of_all_sizes_give_a_gradient_to_every_parameter(composed: Compose) -> None:
    task, _ = build(composed, "od")
    boxes = torch.tensor([[0.1, 0.1, 0.1 + side, 0.1 + side] for side in (0.08, 0.12, 0.25, 0.4, 0.6, 0.85)])
    target = {"boxes": boxes, "labels": torch.arange(1, 7)}
    task.loss((torch.randn(2, 3, 96, 96, generator=generator()) * 50, [target, target]))[0].backward()
    assert [key for key, p in task.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_without_objects_give_a_multibox_loss_of_zero(composed: Compose) -> None:
    task, _ = build(composed, "od")
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    total, weight = task.loss((torch.randn(2, 3, 96, 96), [nothing, nothing]))
    total.backward()
    assert (total.item(), weight) == (0, 0)
    assert not any(p.grad.any() for p in task.parameters() if p.grad is not None)


def test_augmented_boxes_stay_on_their_objects(composed: Compose) -> None:
    """The tiny set's cars are red: red is in their boxes, more than around them."""
    cfg = settle(composed("task=od", "task.mode=paper_number"))
    data, _, _ = open_dataset(cfg, get_class(cfg.task.data))
    assert isinstance(data, VOC0712)
    seen, sizes = 0, set()
    for i, pair in enumerate(data.split("train")):
        image, objects = data.read(*pair)
        known = truth(i, objects, image.shape[:2])
        image_3HW = torch.from_numpy(image).permute(2, 0, 1)
        for plain in (True, False):
            seed_all("test", i)
            read, target = rfbnet.training_example(pair[0], image_3HW, known, size=96, augments=not plain)
            assert read.shape == (3, 96, 96)
            boxes = target["boxes"]
            assert len(boxes) == len(target["labels"]) > 0
            assert ((boxes >= 0) & (boxes <= 1)).all()
            assert (boxes[:, 2:] - boxes[:, :2]).min() >= 0.01
            if plain and target["labels"].tolist() == [7]:
                x1, y1, x2, y2 = (boxes[0] * 96).round().int().tolist()
                red = read[0] - read[1]
                assert red[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean() > red.mean() + 30
                seen += 1
            if not plain:
                sizes.add(round(float((boxes[0, 2:] - boxes[0, :2]).prod()), 3))
    assert seen > 3
    assert len(sizes) > 40


def test_a_crop_is_not_looked_for_in_an_image_without_objects() -> None:
    """torchvision's would look for ever."""
    nothing = truth(0, Objects(np.zeros((0, 4), "f4"), np.zeros(0, "i8"), np.zeros(0, bool)), (40, 50))
    image = torch.zeros(3, 40, 50, dtype=torch.uint8)
    read, target = rfbnet.training_example(Path("x"), image, nothing, size=96, augments=True)
    assert (read.shape, target["boxes"].shape) == ((3, 96, 96), (0, 4))
    assert read[:, 0, 0].tolist() == [-123, -117, -104]


def test_candidates_are_cut_by_score_number_and_overlap_of_one_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [20, 20, 30, 30]])
    scores = torch.tensor([[0.1, 0.8, 0.1], [0.0, 0.7, 0.3], [0.9, 0.005, 0.095], [0.1, 0.5, 0.4]])
    found = best_of(scores, boxes[:, None].expand(-1, 3, -1), 3, 0.45, 0.01)
    # The second box of class 1 overlaps the first; of class 2, only the best three are looked at.
    torch.testing.assert_close(found.scores_D, torch.tensor([0.8, 0.5, 0.4, 0.3]))
    assert found.labels_D.tolist() == [1, 1, 2, 2]
    torch.testing.assert_close(found.boxes_D4, boxes[[0, 3, 3, 1]])
    assert len(best_of(scores, boxes[:, None].expand(-1, 3, -1), 3, 0.45, 0.01, 2).scores_D) == 2


# Fast R-CNN


def test_fast_rcnn_has_the_published_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = SimpleNamespace(mean_K4=torch.zeros(21, 4), std_K4=torch.ones(21, 4))
    monkeypatch.setattr(fast_rcnn, "Reader", lambda cfg, data: stub)
    with torch.device("meta"):
        model = fast_rcnn.FastRCNN(config(size=600), None)  # type: ignore[arg-type]
    assert count(model) == 134_690_729
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 134_430_569
    still = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert still == [f"features.{k}.{kind}" for k in (0, 2, 5, 7) for kind in ("weight", "bias")]


def test_regions_are_assigned_by_hand() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 9, 9], [20, 20, 39, 39]]), torch.tensor([3, 5])
    rois = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 19], [0, 0, 9, 20], [20, 20, 29, 39], [60, 60, 61, 61]])
    kinds, codes, overlap = fast_rcnn.assigned(rois, boxes, labels)
    assert kinds.tolist() == [3, 3, 0, 5, 0]
    torch.testing.assert_close(overlap, torch.tensor([1, 0.5, 10 / 21, 0.5, 0]))
    assert codes[0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(codes[3], torch.tensor([5 / 9, 0, np.log(19 / 9), 0], dtype=torch.float32))


@pytest.mark.parametrize(
    ("on", "near", "expected"), [(50, 300, (16, 48)), (5, 300, (5, 59)), (9, 20, (9, 20)), (0, 0, (0, 0))]
)
def test_a_quarter_of_the_regions_is_on_objects_at_most_the_rest_near_them(on: int, near: int, expected: Any) -> None:
    overlap = torch.cat([torch.linspace(0.5, 1, on), torch.linspace(0.1, 0.49, near), torch.full((99,), 0.09)])
    overlap = overlap[torch.randperm(len(overlap), generator=generator())]
    drawn = [fast_rcnn.draw(overlap, 64) for _ in (torch.manual_seed(1), torch.manual_seed(1), torch.manual_seed(2))]
    chosen = overlap[drawn[0]]
    assert ((chosen >= 0.5).sum(), ((chosen >= 0.1) & (chosen < 0.5)).sum()) == expected
    assert len(chosen) == sum(expected)
    assert drawn[0].unique().numel() == len(drawn[0])
    assert near < 64 or not torch.equal(drawn[0], drawn[2])


def test_normalised_codes_have_mean_0_and_deviation_1_and_come_back(composed: Compose) -> None:
    task, _ = build(composed, "od", "task.model=fast_rcnn")
    reader, data = task.model.reader, task.data
    codes, labels = [], []
    for image_file, xml in data.split("train"):
        _, objects = data.read(image_file, xml)
        boxes = torch.from_numpy(objects.boxes)
        rois = torch.cat([boxes, reader.regions(image_file)])
        kinds, own, _ = fast_rcnn.assigned(rois, boxes, torch.from_numpy(objects.labels))
        codes.append(own[kinds > 0])
        labels.append(kinds[kinds > 0])
    codes_R4, labels_R = torch.cat(codes), torch.cat(labels)
    normal = (codes_R4 - reader.mean_K4[labels_R]) / reader.std_K4[labels_R]
    for label in (1, 7, 15):
        own = normal[labels_R == label]
        assert len(own) > 20
        torch.testing.assert_close(own.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(own.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal * task.model.std_K4[labels_R] + task.model.mean_K4[labels_R], codes_R4)
    absent = [k for k in range(21) if k not in (1, 7, 15)]
    assert (reader.mean_K4[absent] == 0).all()
    assert (reader.std_K4[absent] == 1).all()


def test_statistics_of_one_or_of_equal_codes_divide_by_no_zero() -> None:
    codes = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 5], [9, 9, 9, 9]])
    mean, std = fast_rcnn.statistics(codes, torch.tensor([2, 2, 4]))
    assert mean[2].tolist() == [1, 2, 3, 4.5]
    assert std[2].tolist() == [1, 1, 1, 0.5]
    assert std[4].tolist() == [1, 1, 1, 1]


def test_boxes_are_found_as_with_weights_into_which_the_normalisation_is_folded(composed: Compose) -> None:
    """As the source does it when it saves the final network."""
    task, _ = build(composed, "od", "task.model=fast_rcnn")
    model, batch = task.model.eval(), collate([task.examples("test")[0]])
    torch.nn.init.normal_(model.codes.weight, std=0.02)
    with torch.no_grad():
        before = model.detect(batch)[0]
        model.codes.weight *= model.std_K4.view(-1, 1)
        model.codes.bias.mul_(model.std_K4.view(-1)).add_(model.mean_K4.view(-1))
        model.mean_K4, model.std_K4 = torch.zeros(21, 4), torch.ones(21, 4)
        after = model.detect(batch)[0]
    assert len(before.scores_D) == len(after.scores_D) > 20
    torch.testing.assert_close(before.boxes_D4, after.boxes_D4, rtol=1e-4, atol=1e-3)


def test_parts_of_a_fast_rcnn_batch_add_up_to_the_whole(composed: Compose) -> None:
    """What trainer.accumulate takes apart; but for dropout and batch norm, which the evaluated network has not."""
    task, _ = build(composed, "od", "task.model=fast_rcnn")
    task.eval()
    examples = [task.examples("train")[i] for i in range(3)]
    whole = task.loss(collate(examples))
    totals, weights = zip(*(task.loss(collate([example])) for example in examples), strict=True)
    assert whole[1] == sum(weights) == sum(len(target["labels"]) for _, target in examples)
    torch.testing.assert_close(whole[0], sum(totals), rtol=1e-4, atol=1e-5)


def test_gradients_reach_all_of_fast_rcnn_but_frozen_convolutions(composed: Compose) -> None:
    for more, still in ([], []), (["task.frozen=true", "task.batch_norm=false"], [0, 2, 5, 7]):
        task, cfg = build(composed, "od", "task.model=fast_rcnn", *more)
        loss, _ = task.loss(first_batch(task, cfg.batch_size))
        assert loss.isfinite()
        loss.backward()
        without = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == [f"model.features.{k}.{kind}" for k in still for kind in ("weight", "bias")]


def test_an_image_without_regions_gives_a_loss_of_zero_and_no_detections(composed: Compose) -> None:
    task, _ = build(composed, "od", "task.model=fast_rcnn")
    none = torch.zeros(0, 4)
    target = {"rois": none, "codes": none, "labels": torch.zeros(0, dtype=torch.long)}
    total, weight = task.loss((torch.randn(1, 3, 96, 96), [target]))
    total.backward()
    assert (total.item(), weight) == (0, 0)
    task.eval()
    about = {"size": torch.tensor([96, 96]), "scale": torch.tensor(1.0)}
    assert len(task.model.detect((torch.randn(1, 3, 96, 96), [target | about]))[0].scores_D) == 0


# Proposals


def test_regions_are_the_same_whatever_was_searched_before_and_find_the_tiny_objects(composed: Compose) -> None:
    data, _, _ = open_dataset(settle(composed("task=od")), VOCDetection)
    assert isinstance(data, VOCDetection)
    pairs = data.split("test")[:5]
    first = [selective_search.search(pair[0]) for pair in pairs]
    again = [selective_search.search(pair[0]) for pair in reversed(pairs)][::-1]
    hits = []
    for pair, boxes, other in zip(pairs, first, again, strict=True):
        np.testing.assert_array_equal(boxes, other)
        image, objects = data.read(*pair)
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        assert (boxes.max(0)[2:] < (image.shape[1], image.shape[0])).all()
        assert len(np.unique(boxes, axis=0)) == len(boxes)
        hits += overlaps(torch.from_numpy(objects.boxes), torch.from_numpy(boxes.astype("f4"))).max(1).values.tolist()
    assert np.mean(np.array(hits) > 0.7) > 0.8


def test_regions_are_searched_once_and_read_by_other_processes_from_the_folder(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, _ = open_dataset(settle(composed("task=od")), VOCDetection)
    assert isinstance(data, VOCDetection)
    folder = data.regions("opencv")
    monkeypatch.setattr(selective_search, "search", lambda path: 1 / 0)
    assert data.regions("opencv") == folder
    proposals = selective_search.Proposals(folder)
    other = pickle.loads(pickle.dumps(proposals))
    name = "VOCdevkit/VOC2007/JPEGImages/000040.jpg"
    np.testing.assert_array_equal(proposals.of(name, 50), other.of(name, 50))
    assert proposals.of(name, 5).shape == (5, 4)
    assert len(pickle.dumps(proposals)) < 1000
    assert len(json.loads((folder / "images.json").read_text())) == 44


def test_a_stopped_search_goes_on_from_the_images_it_has_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, searched = [tmp_path / f"{n}.png" for n in range(4)], []
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]))

    def search(path: Path) -> np.ndarray:
        searched.append(path)
        if len(searched) == 3:
            raise KeyboardInterrupt
        return np.full((n := int(path.stem), 4), n, np.uint16)  # of the first image none

    monkeypatch.setattr(selective_search, "search", search)
    monkeypatch.setattr(inspect, "getsource", lambda function: "how it is searched")
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        selective_search.write(tmp_path / "out", tmp_path, paths)
    (kept,) = tmp_path.glob(".unfinished-*")
    damaged = kept / f"{digest_of(paths[0])}.json"
    damaged.write_text(damaged.read_text().replace("[]", "[[1, 2, 3, 4]]"))
    selective_search.write(tmp_path / "out", tmp_path, paths)
    assert searched == [*paths[:3], paths[0], *paths[2:]]
    proposals = selective_search.Proposals(tmp_path / "out")
    for n, path in enumerate(paths):
        np.testing.assert_array_equal(proposals.of(path.name, 99), np.full((n, 4), n))
    assert not kept.exists()


def test_many_images_are_searched_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_search, "INLINE", 0)
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        image = np.full((30, 40, 3), 90, np.uint8)
        image[5:15, 5 + n : 20] = 200
        Image.fromarray(image).save(path)
    (tmp_path / "out").mkdir()
    selective_search.write(tmp_path / "out", tmp_path, paths)
    proposals = selective_search.Proposals(tmp_path / "out")
    for path in paths:
        np.testing.assert_array_equal(proposals.of(path.name, 99), selective_search.search(path))


def published(path: Path, names: list[str], boxes: list[np.ndarray], **changes: Any) -> Path:
    from scipy.io import savemat

    path.parent.mkdir(exist_ok=True)
    cells, own = np.empty((1, len(boxes)), object), np.empty((len(names), 1), object)
    for n, each in enumerate(boxes):
        cells[0, n] = each
    for n, name in enumerate(names):
        own[n, 0] = name
    savemat(path, {"boxes": cells, "images": own} | changes)
    return path


def test_published_regions_are_found_by_name_and_turned_round(tmp_path: Path) -> None:
    boxes = [np.array([[11, 21, 31, 41], [1, 1, 2, 2]], "f8"), np.array([[5, 6, 7, 8]], "f8")]
    path = published(tmp_path / "x.mat", ["000007", "000005"], boxes)
    first, second = selective_search.read_published(path, ["000005", "000007"])
    assert first.tolist() == [[5, 4, 7, 6]]
    assert second.tolist() == [[20, 10, 40, 30], [0, 0, 1, 1]]


def test_broken_published_regions_are_named(tmp_path: Path) -> None:
    path = published(tmp_path / "x.mat", ["000005"], [np.array([[5, 6, 7, 8]], "f8")])
    with pytest.raises(DataError, match=f"^{path}: expected regions of each image, there are none of 000009"):
        selective_search.read_published(path, ["000005", "000009"])
    for bad in (
        [0, 6, 7, 8], [1, 2, 3], [5.5, 6, 7, 8], [9, 6, 7, 8], [5, 9, 7, 8], [5, 6, np.nan, 8], [1, 1, 2, 2**16],
    ):  # fmt: skip
        told = r"\(1, 3\)" if len(bad) == 3 else ", ".join(f"{value:g}" for value in bad)
        published(path, ["000005"], [np.array([bad], "f8")])
        with pytest.raises(DataError, match=f"x.mat, 000005: expected rows .* whole pixels from 1, got {told}"):
            selective_search.read_published(path, ["000005"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"^{path}: not a file of regions"):
        selective_search.read_published(path, ["000005"])


def test_a_run_takes_published_regions_if_asked_and_says_what_is_missing(composed: Compose, tmp_path: Path) -> None:
    data = tiny(VOCDetection, tmp_path / "voc2007")
    data.opened = tmp_path / "runs", data.digests()
    told = r"od: no .*voc_2007_trainval.mat\n.*selective_search_data.tgz.*\n.*regions=opencv"
    with pytest.raises(DataError, match=told):
        data.regions("published")
    for split in data.splits:
        names = [image.stem for image, _ in data.pairs(split)]
        published(data.regions_file(split), names, [np.array([[1, 1, 9, 9 + n]], "f8") for n in range(len(names))])
    folder = data.regions("published")
    regions = selective_search.Proposals(folder).of("VOCdevkit/VOC2007/JPEGImages/000003.jpg", 9)
    assert regions.tolist() == [[0, 0, 10, 8]]
    published(data.regions_file("test"), names, [np.array([[1, 1, 9, 9]], "f8")] * len(names))
    assert data.regions("published") != folder


# Both


@pytest.mark.parametrize("model", MODELS)
def test_one_forward_on_fixed_weights_repeats_bitwise(model: str, composed: Compose) -> None:
    found = []
    for _ in range(2):
        task, _ = build(composed, "od", f"task.model={model}")
        batch = first_batch(task, 2)
        loss, _ = task.loss(batch)
        task.eval()
        found.append((loss, *task.detect(0)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(found[0][1]) > 0


@pytest.mark.parametrize("model", MODELS)
def test_an_example_depends_on_its_seed_alone(model: str, composed: Compose) -> None:
    mode = "paper_number" if model == "rfbnet" else "paper_text"
    task, _ = build(composed, "od", f"task.model={model}", f"task.mode={mode}")
    examples = task.examples("train")
    assert isinstance(examples, Pictures)
    read = []
    for seed in (1, 1, 2):
        seed_all("test", seed)
        read.append([examples[i] for i in (3, 5, 8, 9)])
    flat = [[image for image, _ in each] + [t for _, target in each for t in target.values()] for each in read]
    assert all(torch.equal(a, b) for a, b in zip(flat[0], flat[1], strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(flat[0], flat[2], strict=True))


def test_images_are_padded_with_the_mean_colour() -> None:
    images, targets = collate([(torch.ones(3, 4, 6), {}), (torch.ones(3, 5, 3), {})])
    assert images.shape == (2, 3, 5, 6)
    assert float(images.sum()) == 3 * (24 + 15)
    assert len(targets) == 2


def test_fast_rcnn_reads_the_shorter_side_at_its_size_unless_the_longer_is_too_long(composed: Compose) -> None:
    task, _ = build(composed, "od", "task.model=fast_rcnn", "task.size=60")
    for shape, expected in (((30, 40), (60, 80)), ((40, 30), (80, 60)), ((20, 40), (50, 100)), ((120, 120), (60, 60))):
        image, scale = task.model.reader.as_read(torch.zeros(3, *shape, dtype=torch.uint8))
        assert image.shape[1:] == expected
        assert scale == pytest.approx(expected[0] / shape[0])


def test_mirrored_images_have_their_regions_mirrored_too(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they overlap, and with which object, stays; the codes' first number changes its sign."""
    task, _ = build(composed, "od", "task.model=fast_rcnn")
    reader = task.model.reader
    image_file, xml = task.data.split("train")[0]
    image, objects = task.data.read(image_file, xml)
    image_3HW, known = torch.from_numpy(image).permute(2, 0, 1), truth(0, objects, image.shape[:2])
    read = []
    monkeypatch.setattr(fast_rcnn, "draw", lambda overlap_R, count: torch.arange(len(overlap_R)))
    for flips in (False, True):
        reader.flips = flips
        monkeypatch.setattr(torch, "rand", lambda *shape: torch.zeros(*shape))
        read.append(reader.training_example(image_file, image_3HW, known))
    (plain, target), (turned, other) = read
    torch.testing.assert_close(turned, plain.flip(2), rtol=1e-3, atol=1e-3)
    assert torch.equal(other["labels"], target["labels"])
    rois, codes, labels = other["rois"], other["codes"], other["labels"]
    width = image.shape[1] - 1
    scale = plain.shape[2] / image.shape[1]
    torch.testing.assert_close(rois[:, [2, 0]], width * scale - target["rois"][:, [0, 2]], rtol=1e-2, atol=0.5)
    mean, std = reader.mean_K4[labels], reader.std_K4[labels]
    signs = torch.tensor([-1.0, 1, 1, 1])
    on = labels > 0
    torch.testing.assert_close(
        (codes * std + mean)[on], (target["codes"] * std + mean)[on] * signs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("model", MODELS)
def test_figures_show_one_or_several_runs(model: str, composed: Compose) -> None:
    import matplotlib.pyplot as plt

    task, _ = build(composed, "od", f"task.model={model}")
    task.data.pairs = lambda split, pairs=task.data.pairs: pairs(split)[:4]
    task.eval()
    with torch.no_grad():
        drawn = dict(type(task).compare({"a": task, "b": task}))
    assert list(drawn) == ["detections", "precision_recall", "average_precision"]
    assert [ax.get_title() for ax in drawn["detections"].axes[:3]] == ["truth", "a", "b"]
    assert [ax.get_title().split()[0] for ax in drawn["precision_recall"].axes] == ["aeroplane", "car", "person"]
    for figure in drawn.values():
        plt.close(figure)


@pytest.mark.parametrize(
    ("model", "file"), [("rfbnet", "vgg16_features-amdegroot-88682ab5"), ("fast_rcnn", "vgg16-397923af")]
)
def test_missing_vgg_offline_names_the_file_and_the_way_out(
    model: str, file: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    from urllib.error import URLError

    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models.vgg.VGG", lambda *args, **kwargs: SimpleNamespace(load_state_dict=None))
    words = [f"task.model={model}", "task.weights=imagenet", "task.width=1.0", "task.batch_norm=false"]
    with pytest.raises(DataError, match=r"task\.weights=none") as caught:
        build(composed, "od", *words)
    assert file in str(caught.value)


def test_settings_that_do_not_go_together_are_told(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"weights=imagenet: these are for task.width=1 and task.batch_norm=false"):
        build(composed, "od", "task.weights=imagenet")


def test_cocos_map_is_beside_vocs_if_asked(composed: Compose) -> None:
    pytest.importorskip("faster_coco_eval", reason="pip install 'tmbench[od]'")
    task, _ = build(composed, "od", "task.coco=true")
    box = torch.tensor([[10.0, 10, 49, 49], [60, 60, 89, 89]])
    labels, difficult = torch.tensor([7, 7]), torch.tensor([False] * 2)
    target = {"number": torch.tensor(0), "boxes": box, "labels": labels, "difficult": difficult}
    task.model.detect = lambda batch: [Detections(box[:1], torch.tensor([0.9]), torch.tensor([7]))]
    task.evaluate((torch.zeros(1, 3, 96, 96), [target]))
    values = Evaluation(task).values()
    assert values["test/map"] == pytest.approx(6 / 11)
    assert values["test/map_area"] == pytest.approx(0.5)
    assert values["test/coco_map"] == pytest.approx(51 / 101)  # recall 0 to 0.5 of 101 points
    assert values["test/coco_map_50"] == pytest.approx(51 / 101)


@pytest.mark.slow
@pytest.mark.parametrize("optimizers", ["tmsgd sgd", "sgdm", "adam"])
def test_tiny_fast_rcnn_visibly_works(optimizers: str, do: Run) -> None:
    words = ["task=od", "task.model=fast_rcnn"]
    untrained, _ = do(*words, "optimizer=sgd", "lr=1e-30", "epochs=1", "schedule=constant")
    for optimizer in optimizers.split():  # sgd goes on from what tmsgd was before its switch
        trained, _ = do(*words, f"optimizer={optimizer}")
        assert trained.metrics["last"]["test/map"] > untrained.metrics["last"]["test/map"] + 0.2, optimizer


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_detectors_train_on_the_real_subset_and_say_so(model: str, do: Run) -> None:
    root = real_data("voc2007").parent
    small = ["task.mode=paper_text", "task.weights=none", "task.width=0.1", "task.size=96", "task.batch_norm=true"]
    words = ["task=od", f"task.model={model}", "optimizer=tmsgd", "data=full", f"data_dir={root}", *small]
    result, _ = do(*words, "epochs=2", "switch_epoch=1", "batch_size=8", "lr=0.01", "task.bn_momentum=0.1")
    assert result.profile == "subset"
    assert result.metrics["last"]["train/loss"] > 0
