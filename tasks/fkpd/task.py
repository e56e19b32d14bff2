"""fkpd: 68 facial key points with PreActResNet34, the network of kuangliu/pytorch-cifar@49b7aa9 on grey images.

Legend: B batch, N images, S pixels of the square input, H and W of the images it is cut from, K key points (68).
"""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import CatMetric, MeanSquaredError, MetricCollection
from torchvision.transforms import v2

from tmbench.seeds import derive
from tmbench.task import Figures, Loss, Task, finite

from ..metrics import Ratio
from ..pictures import padded
from .faces import EYES, POINTS, Faces

FRAME = 224  # pixels of the input that the course's numbers are for
ENLARGED = 250 / 224  # what crops are cut out of, to the input's size
PICTURES = 7


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each 3x3 convolution; the shortcut, where shapes differ, starts after the first."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(planes)
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        differs = stride != 1 or channels != planes
        self.shortcut = nn.Conv2d(channels, planes, 1, stride, bias=False) if differs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(x).relu()
        passed = x if self.shortcut is None else self.shortcut(out)
        return passed + self.conv2(self.norm2(self.conv1(out)).relu())


def build_model(width: int = 64) -> nn.Sequential:
    """Images (B, 1, S, S) to (B, 2 K); with 64 channels in the first stage 21,342,792 parameters.

    The source's 3x3 stem of stride 1, its blocks, and no norm after the last; global pooling in place of its 4x4,
    which is the same for 32x32 pixels.
    """
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False)]
    channels = width
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            layers.append(PreActBlock(channels, width * 2**stage, stride=2 if stage > 0 and i == 0 else 1))
            channels = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2 * POINTS))


def resized(image_HW: Tensor, points_K2: Tensor, size: int, crop: str) -> tuple[Tensor, Tensor]:
    """A uint8 image and its key points at the input's size, or, for a crop, with a short side of 250/224 of it."""
    height, width = image_HW.shape
    scale = round(size * ENLARGED) / min(height, width)
    new = (size, size) if crop == "none" else (round(height * scale), round(width * scale))
    factors = torch.tensor([new[1] / width, new[0] / height])
    return v2.functional.resize(image_HW[None], list(new), antialias=True)[0], points_K2 * factors


def cut(images_BHW: Tensor, points_BK2: Tensor, top_B: Tensor, left_B: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each image cut to S x S pixels from its (top, left) on, and its key points as they then are."""
    rows_BS, columns_BS = (first_B[:, None] + torch.arange(size, device=first_B.device) for first_B in (top_B, left_B))
    b_B11 = torch.arange(len(images_BHW), device=images_BHW.device)[:, None, None]
    images_BSS = images_BHW[b_B11, rows_BS[:, :, None], columns_BS[:, None, :]]
    return images_BSS, points_BK2 - torch.stack([left_B, top_B], 1)[:, None]


def random_corners(sizes_B2: Tensor, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Where to cut images of these heights and widths: tops and lefts, (B,) each, every place equally likely."""
    shares_B2 = torch.rand(sizes_B2.shape, device=sizes_B2.device, generator=generator)
    top_B, left_B = (shares_B2 * (sizes_B2 - size + 1)).long().clamp(max=sizes_B2 - size).unbind(1)
    return top_B, left_B


class NormalisedMeanError(Ratio):
    """Mean distance of key points over the distance of the outer eye corners, averaged over faces (as for 300-W)."""

    def update(self, guesses_BK2: Tensor, points_BK2: Tensor) -> None:
        """Both in pixels; eyes less than a pixel apart count as one pixel apart."""
        eyes_B = (points_BK2[:, EYES[0]] - points_BK2[:, EYES[1]]).norm(dim=1).clamp(min=1)
        self.above += ((guesses_BK2 - points_BK2).norm(dim=2).mean(1) / eyes_B).sum().to(self.above)
        self.below += len(points_BK2)


class FKPD(Task):
    data: Faces
    headline = "mse"
    higher_is_better = False

    def __init__(self, cfg: DictConfig, data: Faces) -> None:
        super().__init__(cfg, data)
        self.model = build_model(cfg.width)
        self.metrics = MetricCollection({"mse": MeanSquaredError(), "nme": NormalisedMeanError()}, compute_groups=False)
        self.of_examples = CatMetric(nan_strategy="disable")
        self._examples: dict[str, TensorDataset] = {}

    def examples(self, split: str) -> TensorDataset:
        """Images (N, S, S), uint8, and key points (N, K, 2) in their pixels.

        To be cut at random in training: images (N, H, W), padded with black, key points, heights and widths (N, 2).
        """
        if split not in self._examples:
            self._examples[split] = self._read(split, training=split == "train")
        return self._examples[split]

    def as_evaluated(self) -> TensorDataset:
        return self._read("train", training=False) if self.cfg.crop == "random" else self.examples("train")

    def groups(self) -> list[str]:
        """Whose face it is, of the image's name: frames of one film are nearly the same."""
        return [path.stem.rpartition("_")[0] for path, _ in self.data.rows("train")]

    def _read(self, split: str, training: bool) -> TensorDataset:
        size, crop = self.cfg.size, self.cfg.crop
        read = ((torch.from_numpy(self.data.read(path)), torch.from_numpy(k)) for path, k in self.data.rows(split))
        images, points = zip(*(resized(image_HW, points_K2, size, crop) for image_HW, points_K2 in read), strict=True)
        sizes_N2 = torch.tensor([image_HW.shape for image_HW in images])
        images_NHW, points_NK2 = padded(images, 0), torch.stack(points)
        if crop == "random" and training:
            return TensorDataset(images_NHW, points_NK2, sizes_N2)
        if crop == "random":  # the same places each time, or results could not be compared
            corners = random_corners(sizes_N2, size, torch.Generator().manual_seed(derive("crops of the test images")))
        else:
            corners = tuple(((sizes_N2 - size) // 2).unbind(1))
        return TensorDataset(*cut(images_NHW, points_NK2, *corners, size))

    def target(self, points_BK2: Tensor) -> Tensor:
        """Key points in pixels as the network is to say them; (B, 2 K)."""
        if self.cfg.target == "unit":
            return (points_BK2 * (2 / self.cfg.size) - 1).flatten(1)
        return ((points_BK2 * (FRAME / self.cfg.size) - 100) / 50).flatten(1)

    def pixels(self, target_BD: Tensor) -> Tensor:
        """The inverse of `target`; (B, K, 2)."""
        points_BK2 = target_BD.view(-1, POINTS, 2)
        if self.cfg.target == "unit":
            return (points_BK2 + 1) * (self.cfg.size / 2)
        return (points_BK2 * 50 + 100) * (self.cfg.size / FRAME)

    def guess(self, images_BSS: Tensor) -> Tensor:
        return self.model(images_BSS[:, None].float().div_(255))

    def loss(self, batch: tuple[Tensor, ...]) -> Loss:
        """Squared errors, over the coordinates of all key points."""
        images_BSS, points_BK2, *sizes = batch
        if sizes:
            corners = random_corners(sizes[0], self.cfg.size)
            images_BSS, points_BK2 = cut(images_BSS, points_BK2, *corners, self.cfg.size)
        target_BD = self.target(points_BK2)
        return nn.functional.mse_loss(self.guess(images_BSS), target_BD, reduction="sum"), target_BD.numel()

    def evaluate(self, batch: tuple[Tensor, Tensor]) -> None:
        images_BSS, points_BK2 = batch
        guess_BD = finite("key points", self.guess(images_BSS).float())
        self._judge(self.metrics, guess_BD, points_BK2)
        self.of_examples.update((guess_BD - self.target(points_BK2)).square().mean(1))

    def _judge(self, metrics: MetricCollection, guess_BD: Tensor, points_BK2: Tensor) -> None:
        metrics["mse"].update(guess_BD, self.target(points_BK2))
        metrics["nme"].update(self.pixels(guess_BD), points_BK2)

    def baseline(self) -> dict[str, float]:
        """The training images' mean key points, whatever the image."""
        _, points_NK2, *sizes = self.examples("train").tensors
        if sizes:  # in the middle, where random crops are on average
            points_NK2 = points_NK2 - ((sizes[0] - self.cfg.size) / 2).flip(1)[:, None]
        points_MK2 = self.examples("test").tensors[1]
        alone = {"sync_on_compute": False}
        metrics = MetricCollection({"mse": MeanSquaredError(**alone), "nme": NormalisedMeanError(**alone)})
        self._judge(metrics, self.target(points_NK2.mean(0, keepdim=True)).repeat(len(points_MK2), 1), points_MK2)
        return {key: float(value) for key, value in metrics.compute().items()}

    @classmethod
    def compare(cls, tasks: Mapping[str, Any]) -> Figures:
        """The first test faces, one row a run: what it says over the truth."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            len(tasks), PICTURES, figsize=(1.7 * PICTURES, 0.3 + 2 * len(tasks)), squeeze=False, layout="constrained"
        )
        for row, (label, task) in zip(axes, tasks.items(), strict=True):
            images_BSS, points_BK2 = (t[:PICTURES] for t in task.examples("test").tensors)
            guesses_BK2 = task.pixels(task.guess(images_BSS.to(task.device)).float()).cpu()
            if len(tasks) > 1:
                row[0].set_title(label, loc="left", fontsize="medium")
            for ax in row:
                ax.set_axis_off()
            for ax, image_SS, true_K2, guess_K2 in zip(row, images_BSS, points_BK2, guesses_BK2, strict=False):
                ax.imshow(image_SS.numpy(), cmap="gray", vmin=0, vmax=255)
                ax.scatter(*true_K2.T, s=9, color="tab:cyan", label="truth")
                ax.scatter(*guess_K2.T, s=9, marker="x", linewidths=0.8, color="tab:orange", label="prediction")
                ax.set(xlim=(-0.5, len(image_SS) - 0.5), ylim=(len(image_SS) - 0.5, -0.5))
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        yield "predictions", figure
