"""VGG16 (Simonyan and Zisserman 2014), from which both detectors start."""

from typing import Any

from torch import nn
from torchvision.models import VGG16_Weights, vgg16
from torchvision.models.vgg import cfgs, make_layers

from ..weights import with_weights


def published(chosen: VGG16_Weights) -> Any:
    """torchvision's VGG16 with these weights.

    Raises:
        DataError: they are not here and cannot be downloaded.
    """
    return with_weights("od", "imagenet", chosen, lambda: vgg16(weights=chosen))


def scaled(channels: int, width: float) -> int:
    """How many channels a layer of so many has in a network of this width."""
    return max(8, round(channels * width))


def random_features(width: float, batch_norm: bool, bn_momentum: float) -> nn.Sequential:
    """The 13 convolutions with ReLU and the 5 poolings, with random weights."""
    stages = [v if isinstance(v, str) else scaled(v, width) for v in cfgs["D"]]
    layers: nn.Sequential = make_layers(stages, batch_norm=batch_norm)
    for module in layers:
        if isinstance(module, nn.Conv2d):
            start(module)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = bn_momentum
    return layers


def start(module: nn.Module) -> None:
    """Kaiming-normal weights by what a convolution gives out, zero biases; other layers stay as they are."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
