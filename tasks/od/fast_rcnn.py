"""Fast R-CNN on VGG16 with proposals of the selective search, after rbgirshick/fast-rcnn@b612190.

Ross Girshick: Fast R-CNN, ICCV 2015. Legend: B batch, C channels, H and W pixels, P proposals and N objects of an
image, R regions of a step, K classes (21, background is 0).
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.models import VGG16_Weights
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import RoIPool, clip_boxes_to_image
from torchvision.transforms import v2

from tmbench.task import Loss, finite

from ..pictures import MEAN, STD
from ..voc import CLASSES
from .boxes import Detection
from .examples import Batch, Detections, Detector, Pictures, Target, best_of, published, random_features, scaled
from .metric import overlaps
from .selective_search import Proposals

FROZEN = 4  # convolutions: conv1_1 to conv2_2
OBJECT, BACKGROUND = 0.5, 0.1  # the least overlap of a region with an object to count as that, or as background
OBJECTS = 0.25  # the most of a step's regions that are on objects
CANDIDATES, NMS = 100, 0.3
POOLED, STRIDE = 7, 16
CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


class FastRCNN(Detector):
    """Images and regions of them to class logits and box codes; 134,690,729 parameters, 134,430,569 of them trained.

    Raises:
        DataError: the initial weights are not here and cannot be downloaded, or a file of the data set is broken.
        ConfigError: there is nothing that finds proposals.
    """

    mean_K4: Tensor
    std_K4: Tensor

    def __init__(self, cfg: DictConfig, data: Detection) -> None:
        super().__init__()
        self.data, self.reader = data, Reader(cfg, data)
        wide = scaled(4096, cfg.width)
        if cfg.weights == "imagenet":
            vgg = published(VGG16_Weights.IMAGENET1K_V1)
            layers, self.fc = list(vgg.features), vgg.classifier[:-1]
        else:
            layers = list(random_features(cfg.width, cfg.batch_norm, cfg.bn_momentum))
            inputs = scaled(512, cfg.width) * POOLED**2
            self.fc = nn.Sequential(
                nn.Linear(inputs, wide), nn.ReLU(True), nn.Dropout(), nn.Linear(wide, wide), nn.ReLU(True), nn.Dropout()
            )
        self.features = nn.Sequential(*layers[:-1])  # what pools last is the pooling of regions
        convolutions = (layer for layer in layers if isinstance(layer, nn.Conv2d))
        for layer in list(convolutions)[: FROZEN if cfg.frozen else 0]:
            layer.requires_grad_(False)
        self.pool = RoIPool(POOLED, 1 / STRIDE)
        self.score, self.codes = nn.Linear(wide, len(CLASSES)), nn.Linear(wide, 4 * len(CLASSES))
        for last, std in ((self.score, 0.01), (self.codes, 0.001)):
            nn.init.normal_(last.weight, std=std)
            nn.init.zeros_(last.bias)
        for name in ("mean_K4", "std_K4"):
            self.register_buffer(name, getattr(self.reader, name), persistent=False)

    def forward(self, images_B3HW: Tensor, rois: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (R, K) and normalised codes (R, K, 4) of the regions, in the input's pixels, of all images in turn."""
        pooled_RCHW = self.pool(self.features(images_B3HW), rois)
        hidden = self.fc(pooled_RCHW.flatten(1))
        return self.score(hidden), self.codes(hidden).unflatten(1, (len(CLASSES), 4))

    def examples(self, split: str, training: bool) -> Dataset[Any]:
        return Pictures(self.data, split, self.reader.training_example if training else self.reader.test_example)

    def loss(self, batch: Batch) -> Loss:
        """Cross-entropy, and smooth L1 of the true class's code, of each region; over the regions that there are.

        As in the source, where both layers divide by the regions of the batch, also those without an object.
        """
        images_B3HW, targets = batch
        logits_RK, codes_RK4 = self(images_B3HW, [target["rois"] for target in targets])
        labels_R, wanted_R4 = (torch.cat([target[key] for target in targets]) for key in ("labels", "codes"))
        on_R = labels_R > 0
        total = nn.functional.cross_entropy(logits_RK, labels_R, reduction="sum")
        total = total + nn.functional.smooth_l1_loss(codes_RK4[on_R, labels_R[on_R]], wanted_R4[on_R], reduction="sum")
        return total, len(labels_R)

    def detect(self, batch: Batch) -> list[Detections]:
        """Of each class the best 100 regions of an image, less those that overlap a better one by 0.3.

        The source then leaves out what is not among the best 40 an image of a class, over the test set.
        """
        images_B3HW, targets = batch
        rois = [target["rois"] for target in targets]
        logits_RK, codes_RK4 = map(finite, ("logits", "boxes"), self(images_B3HW, rois))
        codes_RK4 = codes_RK4 * self.std_K4 + self.mean_K4
        detections = []
        by_image = (torch.split(values, list(map(len, rois))) for values in (logits_RK.softmax(1), codes_RK4))
        for scores_PK, codes_PK4, target in zip(*by_image, targets, strict=True):
            boxes_PK4 = CODER.decode_single(codes_PK4.flatten(1), target["rois"] / target["scale"]).view_as(codes_PK4)
            boxes_PK4 = clip_boxes_to_image(boxes_PK4, tuple(target["size"].tolist()))
            detections.append(best_of(scores_PK, boxes_PK4, CANDIDATES, NMS))
        return detections


class Reader:
    """Makes the examples; all on the CPU, in whatever process reads them."""

    def __init__(self, cfg: DictConfig, data: Detection) -> None:
        self.root, self.size, self.rois, self.limit = data.root, cfg.size, cfg.rois, cfg.proposals
        self.flips = cfg.mode == "paper_number"
        self.proposals = Proposals(data.regions(cfg.regions))
        self.mean_K4, self.std_K4 = self.target_statistics(data)

    def regions(self, file: Path) -> Tensor:
        """The proposals in an image, (P, 4), in its pixels."""
        return torch.from_numpy(self.proposals.of(file.relative_to(self.root).as_posix(), self.limit))

    def target_statistics(self, data: Detection) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each class's codes over all regions on objects to train with; (K, 4) each."""
        codes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
        for pair in data.split("train"):
            _, objects = data.read(*pair)
            boxes_N4 = torch.from_numpy(objects.boxes)
            rois_R4 = torch.cat([boxes_N4, self.regions(pair[0])])
            labels_R, codes_R4, _ = assigned(rois_R4, boxes_N4, torch.from_numpy(objects.labels))
            codes.append(codes_R4[labels_R > 0])
            labels.append(labels_R[labels_R > 0])
        return statistics(torch.cat(codes), torch.cat(labels))

    def training_example(self, file: Path, image_3HW: Tensor, target: Target) -> tuple[Tensor, Target]:
        """The image, normalised; `rois` (R, 4) in its pixels, drawn from the proposals and the objects' own boxes,
        `labels` (R,) and normalised `codes` (R, 4).

        Objects marked difficult are trained on like any other, as in the source.
        """
        boxes_N4, labels_N = target["boxes"], target["labels"]
        rois_R4 = torch.cat([boxes_N4, self.regions(file)])
        if self.flips and torch.rand(()) < 0.5:
            image_3HW = image_3HW.flip(2)
            boxes_N4, rois_R4 = (mirrored(boxes, image_3HW.shape[2]) for boxes in (boxes_N4, rois_R4))
        labels_R, codes_R4, overlap_R = assigned(rois_R4, boxes_N4, labels_N)
        drawn = draw(overlap_R, self.rois)
        labels_R, codes_R4 = labels_R[drawn], codes_R4[drawn]
        codes_R4 = (codes_R4 - self.mean_K4[labels_R]) / self.std_K4[labels_R]
        image, scale = self.as_read(image_3HW)
        return image, {"rois": rois_R4[drawn] * scale, "labels": labels_R, "codes": codes_R4}

    def test_example(self, file: Path, image_3HW: Tensor, target: Target) -> tuple[Tensor, Target]:
        """The image, normalised, all that is known of it, its proposals as `rois` (P, 4), and its `scale`."""
        image, scale = self.as_read(image_3HW)
        return image, target | {"rois": self.regions(file) * scale, "scale": torch.tensor(scale)}

    def as_read(self, image_3HW: Tensor) -> tuple[Tensor, float]:
        """The image with its shorter side scaled to `size`, or its longer to 5/3 of that, normalised; and the scale."""
        sides = image_3HW.shape[1:]
        scale = min(self.size / min(sides), self.size * 5 / 3 / max(sides))
        image_3HW = v2.functional.resize(image_3HW, [round(side * scale) for side in sides], antialias=False)
        # As torchvision's VGG16 wants it; the source's weights read BGR pixels less their mean.
        return v2.functional.normalize(image_3HW.float() / 255, list(MEAN), list(STD)), scale


def assigned(rois_R4: Tensor, boxes_N4: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The class (R,), 0 below an overlap of 0.5, of each region; the code (R, 4) of its object; their overlap (R,)."""
    if not len(labels_N):
        return torch.zeros(len(rois_R4), dtype=torch.long), torch.zeros(len(rois_R4), 4), torch.zeros(len(rois_R4))
    overlap_R, which_R = overlaps(rois_R4, boxes_N4).max(1)
    labels_R = torch.where(overlap_R >= OBJECT, labels_N[which_R], 0)
    # A region one pixel wide has no width between its corners; it is far from any object's half, so any code will do.
    sound_R4 = torch.cat([rois_R4[:, :2], torch.maximum(rois_R4[:, 2:], rois_R4[:, :2] + 1)], dim=1)
    return labels_R, CODER.encode_single(boxes_N4[which_R], sound_R4), overlap_R.float()


def draw(overlap_R: Tensor, count: int) -> Tensor:
    """Which regions to train on, at random: at most `count`, up to a quarter on objects, the rest near them."""
    on_R, near_R = overlap_R >= OBJECT, (overlap_R >= BACKGROUND) & (overlap_R < OBJECT)
    on, near = (which[torch.randperm(len(which))] for which in (on_R.nonzero()[:, 0], near_R.nonzero()[:, 0]))
    on = on[: round(count * OBJECTS)]
    return torch.cat([on, near[: count - len(on)]])


def statistics(codes_R4: Tensor, labels_R: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the codes of each class, (K, 4) each; 0 and 1 where that says nothing."""
    mean_K4, std_K4 = torch.zeros(len(CLASSES), 4), torch.ones(len(CLASSES), 4)
    for label in sorted(set(labels_R.tolist())):
        codes_of_label_R4 = codes_R4[labels_R == label].double()
        mean_K4[label] = codes_of_label_R4.mean(0)
        std = codes_of_label_R4.std(0, correction=0)
        std_K4[label] = torch.where(std > 1e-6, std, 1)
    return mean_K4, std_K4


def mirrored(boxes_N4: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes_N4.unbind(1)
    return torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=1)
