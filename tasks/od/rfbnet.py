"""RFBNet300: a single-shot detector with receptive-field blocks on VGG16, after GOATmessi8/RFBNet@88d5850.

Songtao Liu, Di Huang, Yunhong Wang: Receptive Field Block Net for Accurate and Fast Object Detection, ECCV 2018.
Matching, losses and augmentation are SSD's (Liu et al., ECCV 2016).
Legend: B batch, C channels, H and W pixels, P priors, K classes (21, background is 0), N objects of an image.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models import VGG16_Weights
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.ssd import SSDHead
from torchvision.ops import Conv2dNormActivation, box_convert, box_iou, clip_boxes_to_image
from torchvision.transforms import InterpolationMode, v2

from tmbench.task import Loss, finite

from ..voc import CLASSES
from .boxes import Detection
from .examples import Batch, Detections, Detector, Pictures, Target, best_of, published, random_features, scaled, start

MEAN = (123, 117, 104)  # of red, green and blue in 0-255; the pixels are not divided
SIZE = 300
STEPS = (8, 16, 32, 64, 100, 300)  # pixels between the priors' centres, in a picture of 300
MIN_SIZES, MAX_SIZES = (30, 60, 111, 162, 213, 264), (60, 111, 162, 213, 264, 315)  # pixels, of 300
RATIOS = ((2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,))
OVERLAP = 0.5  # of a prior with an object, from which on it has to find it
NEGATIVES = 3  # for each positive prior
MIN_SCORE, CANDIDATES, NMS, DETECTIONS = 0.01, 400, 0.45, 200
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # SSD's variances, 0.1 and 0.2


def priors(maps: list[tuple[int, int]], size: int) -> Tensor:
    """The boxes that the network starts from, (P, 4): centre x and y, width, height, as fractions of the picture.

    At each cell of each map: a square of the smallest side, one between this map's and the next one's, and the ratios
    with their inverses: 11,620 with 300 pixels. As in the source, all four numbers are cut to [0, 1], which moves the
    centres of the 10x10 map's last row and column; torchvision's DefaultBoxGenerator leaves those outside.

    Args:
        maps: (height, width) of the network's feature maps; fewer than six in a small picture.
        size: pixels; other than 300, the centres are spread evenly, since the source's steps are for 300.
    """
    boxes = []
    for (height, width), step, least, most, ratios in zip(maps, STEPS, MIN_SIZES, MAX_SIZES, RATIOS, strict=False):
        per_x, per_y = (size / step, size / step) if size == SIZE else (width, height)
        small, large = least / SIZE, math.sqrt(least * most) / SIZE
        shapes = [(small, small), (large, large)]
        for root in map(math.sqrt, ratios):
            shapes += [(small * root, small / root), (small / root, small * root)]
        for y in range(height):
            for x in range(width):
                boxes += [((x + 0.5) / per_x, (y + 0.5) / per_y, w, h) for w, h in shapes]
    return torch.tensor(boxes).clamp_(0, 1)


def conv(i: int, o: int, kernel: int | tuple[int, int], *, momentum: float, relu: bool = True, **settings: Any) -> Any:
    """A convolution without bias, batch norm, and perhaps ReLU."""
    norm = partial(nn.BatchNorm2d, momentum=momentum)
    return Conv2dNormActivation(i, o, kernel, norm_layer=norm, activation_layer=nn.ReLU if relu else None, **settings)


class Branches(nn.Module):
    """A receptive-field block: branches of different reach side by side, mixed, with a shortcut; the scale is 1."""

    def __init__(self, branches: list[nn.Module], mix: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branches, self.mix, self.shortcut = nn.ModuleList(branches), mix, shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mixed_BCHW = self.mix(torch.cat([branch(x_BCHW) for branch in self.branches], dim=1))
        return torch.relu(mixed_BCHW + self.shortcut(x_BCHW))


def rfb(i: int, o: int, stride: int, momentum: float) -> Branches:
    """The block with 3x3 convolutions of dilation 2, 3 and 5 on i channels."""
    unit, linear, n = partial(conv, momentum=momentum), partial(conv, momentum=momentum, relu=False), i // 8
    m, last = n // 2 * 3, partial(linear, 2 * n, 2 * n, 3)
    branches: list[nn.Module] = [
        nn.Sequential(unit(i, 2 * n, 1, stride=stride), last(dilation=2)),
        nn.Sequential(unit(i, n, 1), unit(n, 2 * n, 3, stride=stride), last(dilation=3)),
        nn.Sequential(unit(i, n, 1), unit(n, m, 3), unit(m, 2 * n, 3, stride=stride), last(dilation=5)),
    ]
    return Branches(branches, linear(6 * n, o, 1), linear(i, o, 1, stride=stride))


def rfb_a(i: int, o: int, momentum: float) -> Branches:
    """The block for the finest map, with smaller kernels: dilation 1, 3, 3 and 5."""
    unit, linear, n = partial(conv, momentum=momentum), partial(conv, momentum=momentum, relu=False), i // 4
    half, more, last = n // 2, n // 4 * 3, partial(linear, n, n, 3)
    branches: list[nn.Module] = [
        nn.Sequential(unit(i, n, 1), last()),
        nn.Sequential(unit(i, n, 1), unit(n, n, (3, 1)), last(dilation=3)),
        nn.Sequential(unit(i, n, 1), unit(n, n, (1, 3)), last(dilation=3)),
        nn.Sequential(unit(i, half, 1), unit(half, more, (1, 3)), unit(more, n, (3, 1)), last(dilation=5)),
    ]
    return Branches(branches, linear(4 * n, o, 1), linear(i, o, 1))


class RFBNet(Detector):
    """Images (B, 3, 300, 300) to class logits and box codes of 11,620 priors; 36,531,296 parameters.

    Weights start from VGG16's convolutions, converted from the file that the source starts from, or at random. That
    file's fc6 and fc7, sub-sampled from VGG's, torchvision does not have: they start anew, as all other layers do.

    Raises:
        DataError: the initial weights are not here and cannot be downloaded.
    """

    priors_P4: Tensor

    def __init__(self, cfg: DictConfig, data: Detection) -> None:
        super().__init__()
        self.data = data
        self.size, self.augments = cfg.size, cfg.mode == "paper_number"
        c128, c256, c512, c1024 = (scaled(c, cfg.width) for c in (128, 256, 512, 1024))
        if cfg.weights == "imagenet":
            layers = list(published(VGG16_Weights.IMAGENET1K_FEATURES).features)
        else:
            layers = list(random_features(cfg.width, cfg.batch_norm, cfg.bn_momentum))
        pools = [k for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True
        layers[pools[4]] = nn.MaxPool2d(3, stride=1, padding=1)
        fc6, fc7 = nn.Conv2d(c512, c1024, 3, padding=6, dilation=6), nn.Conv2d(c1024, c1024, 1)
        self.conv4_3 = nn.Sequential(*layers[: pools[3]])
        self.fc7 = nn.Sequential(*layers[pools[3] :], fc6, nn.ReLU(True), fc7, nn.ReLU(True))
        self.norm = rfb_a(c512, c512, cfg.bn_momentum)  # the source's name, though it is none
        block, unit = partial(rfb, momentum=cfg.bn_momentum), partial(conv, momentum=cfg.bn_momentum)
        self.extras = nn.ModuleList([block(c1024, c1024, 1), block(c1024, c512, 2), block(c512, c256, 2)])
        maps, first = [c512, c1024, c512, c256], math.ceil(cfg.size // 4 / 2)
        sides = [first, first // 2, (first // 2 + 1) // 2, (first // 2 + 3) // 4]
        while sides[-1] > 2 and len(sides) < len(RATIOS):  # a small picture has fewer maps
            self.extras.append(nn.Sequential(unit(c256, c128, 1), unit(c128, c256, 3, padding=0)))
            maps.append(c256)
            sides.append(sides[-1] - 2)
        self.head = SSDHead(maps, [2 + 2 * len(ratios) for ratios in RATIOS[: len(maps)]], len(CLASSES))
        self.register_buffer("priors_P4", priors([(side, side) for side in sides], cfg.size), persistent=False)
        for part in (fc6, fc7, self.norm, self.extras):
            part.apply(start)
        for module in self.head.modules():
            if isinstance(module, nn.Conv2d):  # the source's rule for the others misses them: torch's own weights
                module.reset_parameters()
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, P, K) and box codes (B, P, 4)."""
        x_BCHW = self.conv4_3(images_B3HW)
        maps = [self.norm(x_BCHW)]
        x_BCHW = self.fc7(x_BCHW)
        for extra in self.extras:
            x_BCHW = extra(x_BCHW)
            maps.append(x_BCHW)
        found = self.head(maps)
        return found["cls_logits"], found["bbox_regression"]

    def examples(self, split: str, training: bool) -> Dataset[Any]:
        read = partial(training_example, augments=self.augments) if training else test_example
        return Pictures(self.data, split, partial(read, size=self.size))

    def loss(self, batch: Batch) -> Loss:
        """The multibox loss: smooth L1 of the matched priors' codes and cross-entropy, over the matches."""
        images_B3HW, targets = batch
        logits_BPK, codes_BP4 = self(images_B3HW)
        corners_P4 = box_convert(self.priors_P4, "cxcywh", "xyxy")
        found = zip(*(assign(target["boxes"], target["labels"], corners_P4) for target in targets), strict=True)
        labels_BP, boxes_BP4 = map(torch.stack, found)
        is_object_BP = labels_BP > 0
        wanted_BP4 = CODER.encode_single(boxes_BP4.view(-1, 4), corners_P4.repeat(len(targets), 1)).view_as(boxes_BP4)
        box_loss = nn.functional.smooth_l1_loss(codes_BP4[is_object_BP], wanted_BP4[is_object_BP], reduction="sum")
        losses_BP = nn.functional.cross_entropy(logits_BPK.transpose(1, 2), labels_BP, reduction="none")
        counted_BP = is_object_BP | hard_negatives(losses_BP.detach(), is_object_BP)
        return box_loss + losses_BP[counted_BP].sum(), is_object_BP.sum()

    def detect(self, batch: Batch) -> list[Detections]:
        """At most 200 boxes of an image, with a score above 0.01, that overlap none better of their class by 0.45."""
        images_B3HW, targets = batch
        logits_BPK, codes_BP4 = map(finite, ("logits", "boxes"), self(images_B3HW))
        scores_BPK = logits_BPK.softmax(2)
        corners_P4 = box_convert(self.priors_P4, "cxcywh", "xyxy")
        detections = []
        for scores_PK, codes_P4, target in zip(scores_BPK, codes_BP4, targets, strict=True):
            height, width = target["size"].tolist()
            sides_4 = torch.tensor([width, height, width, height], device=codes_P4.device)
            boxes_P4 = clip_boxes_to_image(CODER.decode_single(codes_P4, corners_P4) * sides_4, (height, width))
            boxes_PK4 = boxes_P4[:, None].expand(-1, scores_PK.shape[1], -1)
            # Of each class the best 400, as in SSD (the source takes all): an untrained network finds every prior.
            detections.append(best_of(scores_PK, boxes_PK4, CANDIDATES, NMS, MIN_SCORE, DETECTIONS))
        return detections


def assign(boxes_N4: Tensor, labels_N: Tensor, corners_P4: Tensor) -> tuple[Tensor, Tensor]:
    """The class (P,), 0 for none, and the box (P, 4) that each prior has to find.

    A prior takes the object that it overlaps most, if by 0.5; and each object has the prior that it overlaps most.
    """
    if not len(labels_N):
        return torch.zeros(len(corners_P4), dtype=torch.long, device=corners_P4.device), corners_P4
    match_P = SSDMatcher(OVERLAP)(box_iou(boxes_N4, corners_P4))
    matched_P = match_P.clamp(min=0)
    return torch.where(match_P >= 0, labels_N[matched_P], 0), boxes_N4[matched_P]


def hard_negatives(losses_BP: Tensor, is_object_BP: Tensor) -> Tensor:
    """The priors without object, three for each with one in the same image, whose loss is largest; bool (B, P)."""
    losses_BP = losses_BP.masked_fill(is_object_BP, 0)
    rank_BP = losses_BP.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank_BP < NEGATIVES * is_object_BP.sum(1, keepdim=True)) & ~is_object_BP


class PhotometricDistort(v2.RandomPhotometricDistort):  # type: ignore[misc]
    """SSD's, without the exchange of colour channels, which the source does not do."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = super().make_params(flat_inputs)
        return params | {"channel_permutation": None}


def augmentation(size: int) -> v2.Compose:
    """Image, boxes and labels as the source augments them: crop, colours, expansion, mirror, interpolation.

    What is torchvision's and not the source's: a crop has to hold one object's share that its draw asks for, not
    each object's; brightness is multiplied, not added to; an expansion keeps the image's shape; of the five
    interpolations tensors know three. Boxes thinner than a hundredth of the picture are left out, as there.
    """
    modes = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC, InterpolationMode.NEAREST)
    return v2.Compose([
        v2.RandomIoUCrop(trials=50),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(labels_getter=lambda inputs: inputs[2]),
        PhotometricDistort(hue=(-0.1, 0.1)),  # 18 of 180
        v2.RandomZoomOut(fill=MEAN, side_range=(1.0, 4.0), p=0.6),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomChoice([v2.Resize((size, size), interpolation=mode, antialias=False) for mode in modes]),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(min_size=max(1.0, size / 100), labels_getter=lambda inputs: inputs[2]),
    ])  # fmt: skip


def training_example(
    file: Path, image_3HW: Tensor, target: Target, *, size: int, augments: bool
) -> tuple[Tensor, Target]:
    """The image (3, S, S) as the network reads it; its objects' boxes, as fractions of the image, and labels.

    Objects marked difficult are trained on like any other, as in the source.
    """
    height, width = image_3HW.shape[1:]
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
    image, labels = tv_tensors.Image(image_3HW), target["labels"]
    original = image, boxes, labels
    if augments and len(labels):  # a crop looks for an object until it has one
        image, boxes, labels = augmentation(size)(*original)
    if not augments or not len(labels):  # also if none is left
        image, boxes, labels = v2.Resize((size, size), antialias=False)(*original)
    return as_read(image), {"boxes": boxes.as_subclass(Tensor) / size, "labels": labels}


def test_example(file: Path, image_3HW: Tensor, target: Target, *, size: int) -> tuple[Tensor, Target]:
    """The image (3, S, S) as the network reads it, and all that is known of it."""
    return as_read(v2.functional.resize(image_3HW, [size, size], antialias=False)), target


def as_read(image_3HW: Tensor) -> Tensor:
    """uint8 pixels as the network reads them: float, the mean colour subtracted."""
    return image_3HW.as_subclass(Tensor).float() - torch.tensor(MEAN, dtype=torch.float32)[:, None, None]
