"""ic: CIFAR-10 and CIFAR-100 with VGG and ResNet in their forms for 32x32 pixels, as in kuangliu/pytorch-cifar@49b7aa9.

Legend: B batch, H and W pixels, C classes, N images.
"""

from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import cfgs, make_layers

from tmbench.task import Figures
from tmbench.training.mup import built

from ..classification import MOST_IN_MATRIX, Classifier
from .cifar import CIFAR

PAD = 4  # pixels of black on each side, of which a random crop takes as much away again
PICTURES = (5, 8)  # rows and columns
VGGS = {"vgg16": "D", "vgg19": "E"}  # torchvision's names of the configurations of Simonyan and Zisserman (2014)
RESNETS = {"resnet18": (BasicBlock, (2, 2, 2, 2)), "resnet34": (BasicBlock, (3, 4, 6, 3)),
           "resnet50": (Bottleneck, (3, 4, 6, 3))}  # fmt: skip


def build_model(name: str, num_classes: int, width: int = 64, readout: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Images (B, 3, 32, 32) to logits (B, C); `width` channels in the first stage, 64 as published.

    Weights start as torch's layers do, as in the source.
    """
    if name in VGGS:
        return vgg(VGGS[name], num_classes, width, readout)
    return resnet(*RESNETS[name], num_classes, width, readout)


def vgg(configuration: str, num_classes: int, width: int, readout: type[nn.Linear]) -> nn.Sequential:
    """VGG with batch norm and one linear layer on the single pixel that five poolings leave of 32x32.

    With 10 classes VGG16 has 14,728,266 parameters, VGG19 20,040,522.
    """
    stages = [v if isinstance(v, str) else v * width // 64 for v in cfgs[configuration]]
    return nn.Sequential(make_layers(stages, batch_norm=True), nn.Flatten(), readout(8 * width, num_classes))


def resnet(
    block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], num_classes: int, width: int,
    readout: type[nn.Linear],
) -> nn.Sequential:  # fmt: skip
    """ResNet with a 3x3 stem of stride 1 and no max-pool, of torchvision's blocks.

    With 10 classes ResNet18 has 11,173,962 parameters, ResNet34 21,282,122, ResNet50 23,520,842.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    channels = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for i in range(depth):
            stride, out, shortcut = 2 if stage > 0 and i == 0 else 1, planes * block.expansion, None
            if stride != 1 or channels != out:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            layers.append(block(channels, planes, stride, shortcut))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), readout(channels, num_classes))


def cropped_and_flipped(images_B3HW: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor) -> Tensor:
    """Each image padded with black, cut to its size again from (top, left), then mirrored if its flip is true."""
    height, width = images_B3HW.shape[2:]
    padded = nn.functional.pad(images_B3HW, (PAD,) * 4)
    # A mirrored cut is a cut of the mirrored image: one indexing does both, and none depends on the values.
    both = torch.stack([padded, padded.flip(3)])
    windows = both.unfold(3, height, 1).unfold(4, width, 1)  # (2, B, 3, top, left, H, W), a view
    which_B = torch.arange(len(images_B3HW), device=images_B3HW.device)
    return windows[flip_B.long(), which_B, :, top_B, torch.where(flip_B, 2 * PAD - left_B, left_B)]


def augmented(images_B3HW: Tensor) -> Tensor:
    """Random crops and flips of these images, drawn from torch's generator of their device."""
    count, device = len(images_B3HW), images_B3HW.device
    top_B, left_B = torch.randint(2 * PAD + 1, (2, count), device=device)
    return cropped_and_flipped(images_B3HW, top_B, left_B, torch.rand(count, device=device) < 0.5)


class IC(Classifier):
    data: CIFAR
    mean: Tensor
    std: Tensor

    def __init__(self, cfg: DictConfig, data: CIFAR) -> None:
        super().__init__(cfg, data)
        self.model = built(cfg, partial(build_model, cfg.model, data.num_classes))
        more: dict[str, Metric] = {}
        if data.num_classes > 10:
            more["top5_accuracy"] = MulticlassAccuracy(data.num_classes, average="micro", top_k=5)
        self.set_classes(data.names(), **more)
        for name, values in (("mean", data.mean), ("std", data.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def examples(self, split: str) -> TensorDataset:
        """Images (N, 3, 32, 32), uint8, and labels (N,): small enough to stay on the device as they are."""
        images, labels = self.data.read(split)
        return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))

    def preprocess(self, images_B3HW: Tensor, training: bool) -> Tensor:
        """uint8 images as the network reads them: `paper` scales to [0, 1]; `standard` augments and normalises too."""
        if self.cfg.preprocess == "paper":
            return images_B3HW.float().div_(255)
        if training:
            images_B3HW = augmented(images_B3HW)
        return images_B3HW.float().div_(255).sub_(self.mean).div_(self.std)

    def pictures(self) -> Figures:
        import matplotlib.pyplot as plt

        rows, columns = PICTURES
        images_N3HW, labels_N = (t[: rows * columns] for t in self.examples("test").tensors)
        guesses_N = self.model(self.preprocess(images_N3HW.to(self.device), training=False)).argmax(1).cpu()
        figure, ax = plt.subplots(figsize=(1.4 * columns, 1.7 * rows), layout="constrained")
        for n, (image_3HW, label, guess) in enumerate(zip(images_N3HW, labels_N, guesses_N, strict=True)):
            x, y = n % columns * 40, n // columns * 48  # one axes for all: forty take seconds to draw
            ax.imshow(image_3HW.permute(1, 2, 0).numpy(), extent=(x, x + 32, y + 32, y))
            right, true = bool(label == guess), self.names[label]
            ax.text(x + 16, y - 1, true if right else f"{self.names[guess]}\nis {true}", ha="center", va="bottom",
                    fontsize=8, color="black" if right else "crimson")  # fmt: skip
        ax.set(xlim=(-4, columns * 40 - 4), ylim=(rows * 48 - 15, -14))
        ax.set_axis_off()
        ax.set_title("the first test images; red: what it was taken for, and what it is", fontsize=10)
        yield "predictions", figure
        if len(self.names) <= MOST_IN_MATRIX:
            yield from self.confusion_figure("test images by class", (8, 7))
