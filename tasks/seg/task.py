"""seg: VOC-2007 segmentation with LR-ASPP on MobileNetV3-Large, after WZMIAOMIAO's pytorch_segmentation/lraspp@2ecf2ee.

Legend: B batch, H and W pixels, K classes (21, background included).
"""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from torchvision.models import MobileNet_V3_Large_Weights
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights, lraspp_mobilenet_v3_large
from torchvision.transforms import v2

from tmbench.errors import DataError
from tmbench.task import Figures, Loss, Task, finite

from ..pictures import MEAN, STD, padded, weights_file
from ..voc import BORDER, CLASSES, palette
from .masks import VOCSegmentation

PICTURES = 6


def transform(split: str, preprocess: str, short_side: int, crop: int) -> v2.Transform:
    """uint8 image and mask to what the network reads: float image (3, H, W), mask (H, W) of class ids."""
    if split == "train" and preprocess == "source":
        geometry: list[v2.Transform] = [
            v2.RandomResize(short_side // 2, short_side * 2 + 1, antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: BORDER}),
        ]
    else:
        geometry = [v2.Resize(short_side, antialias=True)]
    types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    return v2.Compose([*geometry, v2.ToDtype(types, scale=True), v2.Normalize(MEAN, STD)])


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """The (image, mask) pairs of a split, read when asked for, to be trained or evaluated on."""

    def __init__(self, data: VOCSegmentation, split: str, cfg: DictConfig, training: bool) -> None:
        self.data, self.pairs = data, data.pairs("train" if split == "train" else "val")
        self.transform = transform("train" if training else "test", cfg.preprocess, cfg.short_side, cfg.crop)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image, mask = self.data.read(*self.pairs[i])
        image_3HW = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))
        image_3HW, mask_HW = self.transform(image_3HW, tv_tensors.Mask(torch.from_numpy(mask)))
        return image_3HW.as_subclass(Tensor), mask_HW.as_subclass(Tensor)


def collate(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) padded with 0 and masks (B, H, W) padded with the border, to the largest of the batch."""
    images, masks = zip(*examples, strict=True)
    return padded(images, 0), padded(masks, BORDER)


def build_model(weights: str, bn_momentum: float) -> nn.Module:
    """torchvision's LR-ASPP with 21 classes; 3,221,538 parameters. Raises DataError as `weights_file`."""
    coco = LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1 if weights == "coco" else None
    backbone = MobileNet_V3_Large_Weights.IMAGENET1K_V1 if weights == "backbone" else None
    if chosen := coco or backbone:
        weights_file("seg", chosen.url)
    model: nn.Module = lraspp_mobilenet_v3_large(weights=coco, weights_backbone=backbone, num_classes=len(CLASSES))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return model


def iou(confusion_KK: Tensor) -> Tensor:
    """Intersection over union of each class, (K,); nan for a class that is neither there nor predicted."""
    hits_K = confusion_KK.diag().double()
    return hits_K / (confusion_KK.sum(0) + confusion_KK.sum(1) - hits_K)


class MeanIoU(MulticlassConfusionMatrix):
    """Mean IoU over the classes from one confusion matrix of the whole split, border pixels left out."""

    def compute(self) -> Tensor:
        return iou(super().compute()).nanmean()


class Seg(Task):
    data: VOCSegmentation
    headline = "miou"
    collate = staticmethod(collate)
    padding = (0, BORDER)

    def __init__(self, cfg: DictConfig, data: VOCSegmentation) -> None:
        super().__init__(cfg, data)
        self.model = build_model(cfg.weights, cfg.bn_momentum)
        self.metrics = MetricCollection({"miou": MeanIoU(len(CLASSES), ignore_index=BORDER)}, compute_groups=False)

    def examples(self, split: str) -> Pictures:
        return Pictures(self.data, split, self.cfg, training=split == "train")

    def as_evaluated(self) -> Pictures:
        return Pictures(self.data, "train", self.cfg, training=False)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Loss:
        """Cross-entropy, over the labelled pixels."""
        images_B3HW, masks_BHW = batch
        logits_BKHW = self.model(images_B3HW)["out"]
        total = nn.functional.cross_entropy(logits_BKHW, masks_BHW, ignore_index=BORDER, reduction="sum")
        return total, (masks_BHW != BORDER).sum()

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        images_B3HW, masks_BHW = batch
        self.metrics.update(finite("logits", self.model(images_B3HW)["out"]), masks_BHW)

    def check_data(self) -> None:
        """Each split needs a labelled pixel; the first mask that has one is the last that is read."""
        for split, examples in (("train", self.as_evaluated()), (self.split, self.examples("test"))):
            if not any(bool((examples[i][1] != BORDER).any()) for i in range(len(examples))):
                where = f"the {split} split of {self.data.root}, its {len(examples)} masks are void ({BORDER})"
                fix = "label some of them, or list other pictures"
                raise DataError(f"seg: expected a labelled pixel in {where} everywhere; {fix}")

    def baseline(self) -> dict[str, float]:
        """Background everywhere."""
        metric, examples = MeanIoU(len(CLASSES), ignore_index=BORDER, sync_on_compute=False), self.examples("test")
        for i in range(len(examples)):
            mask_HW = examples[i][1]
            metric.update(torch.zeros_like(mask_HW), mask_HW)
        return {"miou": float(metric.compute())}

    @classmethod
    def compare(cls, tasks: Mapping[str, Any]) -> Figures:
        import matplotlib.pyplot as plt
        from matplotlib.patches import Patch

        colours = torch.from_numpy(palette())
        seen: set[int] = set()
        examples = next(iter(tasks.values())).examples("test")
        rows = [examples[i] for i in range(min(PICTURES, len(examples)))]
        names = ["image", "truth", *tasks]
        size = (2.5 * len(names), 2.3 * len(rows))
        figure, axes = plt.subplots(len(rows), len(names), figsize=size, squeeze=False, layout="constrained")
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title(name)
        for row, (image_3HW, mask_HW) in zip(axes, rows, strict=True):
            shown = image_3HW.permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)
            panels: list[Tensor] = [shown.clip(0, 1), colours[mask_HW]]
            for task in tasks.values():
                logits_BKHW = task.model(image_3HW[None].to(task.device))["out"]
                guess_HW = logits_BKHW[0].argmax(0).cpu()
                guess_HW[mask_HW == BORDER] = BORDER  # not judged there
                seen |= set(torch.unique(guess_HW).tolist())
                panels.append(colours[guess_HW])
            seen |= set(torch.unique(mask_HW).tolist())
            for ax, panel in zip(row, panels, strict=True):
                ax.imshow(panel.numpy())
                ax.set_axis_off()
        handles = [Patch(color=palette()[k] / 255, label=CLASSES[k]) for k in sorted(seen - {BORDER})]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize="small", frameon=False)
        yield "predictions", figure
