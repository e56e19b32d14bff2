"""How far generated pictures are from real ones: what networks see in them, and metrics of that.

A picture goes through a network once, and all metrics share what it saw. Legend: B batch, H and W pixels, D features,
N and M pictures.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities import dim_zero_cat
from torchvision.models import ResNet34_Weights, resnet34

from tmbench.errors import ConfigError, DataError

from ..pictures import MEAN, STD, weights_file

NEIGHBOURS = 3  # of Kynkaanniemi et al. (2019)
RANDOM = "use task.features=random, which needs no weights (its distance is no FID)"
BLOCK = 1024  # pictures whose distances to all others are in memory at once


# What a network sees in pictures (B, 3, H, W), uint8: (B, D) for each kind of feature.
Features = Callable[[Tensor], dict[str, Tensor]]


class Inception:
    """`64` and `2048`: the poolings of the Inception that FID was defined with (Heusel et al., 2017).

    The weights are those of the original, carried over to torch. Pictures are resized to 299x299 as TensorFlow 1 did,
    bilinearly and without antialiasing, which torch-fidelity does and torchmetrics' own default does not.

    Raises:
        ConfigError: torch-fidelity is not installed.
        DataError: as `weights_file`.
    """

    def __init__(self) -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        except ImportError:
            fix = "pip install 'tmbench[fid]', or use task.features=random"
            raise ConfigError(f"task.features=inception: torch-fidelity is not installed; {fix}") from None
        # pytorch-fid publishes the same weights under another name.
        file = weights_file("ig", fidelity.URL_INCEPTION_V3, "pt_inception-2015-12-05-6726825d.pth", instead=RANDOM)
        load(file)  # before torch-fidelity does, which would run code that is in it
        names = ["64", "2048"]
        try:
            self.net = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", names, str(file))
        except RuntimeError as error:
            raise unfit(file, error) from None

    def __call__(self, pictures_B3HW: Tensor) -> dict[str, Tensor]:
        pooled = self.net.to(pictures_B3HW.device)(pictures_B3HW)
        return dict(zip(("64", "2048"), pooled, strict=True))


class ResNet:
    """`softmax`: the 1000 class probabilities of torchvision's ResNet-34, as in xuqiantong/GAN-Metrics@2fdcfdd."""

    def __init__(self) -> None:
        file = weights_file("ig", ResNet34_Weights.IMAGENET1K_V1.url, instead=RANDOM)
        self.net = resnet34().eval().requires_grad_(False)
        try:
            self.net.load_state_dict(load(file))
        except RuntimeError as error:
            raise unfit(file, error) from None

    def __call__(self, pictures_B3HW: Tensor) -> dict[str, Tensor]:
        device = pictures_B3HW.device
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
        large_B3HW = nn.functional.interpolate(pictures_B3HW.float(), size=224, mode="bilinear")
        return {"softmax": self.net.to(device)((large_B3HW / 255 - mean) / std).softmax(1)}


class Random:
    """`random`: 64 features of a small convolutional network that nobody trained, the same in every run.

    It needs no weights file and tells pictures apart by colours, edges and their sizes. Its distances have no meaning
    beyond this network, and names of their own.
    """

    def __init__(self) -> None:
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        sizes = [(16, 3), (32, 16), (64, 32)]
        self.weights = [draw(out, channels, 5, 5) * (2 / (25 * channels)) ** 0.5 for out, channels in sizes]

    def __call__(self, pictures_B3HW: Tensor) -> dict[str, Tensor]:
        x = pictures_B3HW.float() / 127.5 - 1
        for weight in self.weights:
            x = nn.functional.conv2d(x, weight.to(x.device), stride=2, padding=2).relu()
        return {"random": x.mean((2, 3))}


def load(file: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, read without running code; DataError if it holds anything else."""
    try:
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises nearly anything
        raise unfit(file, error) from None
    return state


def unfit(file: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"{file}: not the published weights ({reason}); remove it, to have it downloaded again")


def given(num_features: int) -> nn.Module:
    """In the place of torchmetrics' own network: the features are given."""
    network = nn.Identity()
    network.num_features = num_features  # type: ignore[assignment]
    return network


class Frechet(FrechetInceptionDistance):
    """The Frechet distance of Gaussians fitted to features (B, D) of real and generated pictures.

    What was seen of the real ones is kept when it is reset. On features `2048` of Inception it is FID.
    """

    def __init__(self, num_features: int, root: bool = False) -> None:
        super().__init__(given(num_features), reset_real_features=False)
        self.root = root

    def compute(self) -> Tensor:
        distance = super().compute().clamp(min=0)  # rounding can make a vanishing one negative
        return distance.sqrt() if self.root else distance


class Kernel(KernelInceptionDistance):
    """KID, the squared maximum mean discrepancy by a cubic kernel: its mean over 100 pairs of subsets, always the same.

    Subsets have 1000 pictures, or all if there are fewer.
    """

    def __init__(self, num_features: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # of its memory
            super().__init__(given(num_features), reset_real_features=False)

    def compute(self) -> Tensor:  # type: ignore[override]
        self.subset_size = min(1000, *(sum(map(len, seen)) for seen in (self.real_features, self.fake_features)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return super().compute()[0]


class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkaanniemi et al., 2019, equations 1 and 2) of features (B, D).

    Precision: the share of generated pictures within the real ones' manifold, the balls around each that reach to its
    third nearest neighbour. Recall, the measure of diversity: the share of real pictures within the generated ones'.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self.prefix = prefix
        for name in ("real", "fake"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features_BD: Tensor, real: bool) -> None:
        (self.real if real else self.fake).append(features_BD)

    def compute(self) -> dict[str, Tensor]:
        # float64: the squares of distances are differences of much larger numbers.
        real_ND, fake_MD = (dim_zero_cat(seen).double() for seen in (self.real, self.fake))
        values = {"precision": share_within(fake_MD, real_ND), "recall": share_within(real_ND, fake_MD)}
        return {self.prefix + name: value for name, value in values.items()}

    def reset(self) -> None:
        real = list(self.real)  # reset empties the list itself
        super().reset()
        self.real = real


def share_within(points_MD: Tensor, centres_ND: Tensor) -> Tensor:
    """The share of the points that lie in a ball around a centre, up to its third nearest neighbour; shape ()."""
    k = min(NEIGHBOURS + 1, len(centres_ND))  # itself is among the nearest
    radii_N = torch.cat([torch.cdist(c, centres_ND).kthvalue(k).values for c in torch.split(centres_ND, BLOCK)])
    inside_M = torch.cat([(torch.cdist(p, centres_ND) <= radii_N).any(1) for p in torch.split(points_MD, BLOCK)])
    return inside_M.float().mean()


def spaces(features: str, resnet: bool) -> tuple[list[Features], dict[str, tuple[str, Any]]]:
    """The networks of task.features, and the metrics by name: (the kind of feature that each reads, itself)."""
    if features == "random":
        judged = {"random_frechet": Frechet(64), "random_manifold": PrecisionRecall("random_")}
        return [Random()], {name: ("random", metric) for name, metric in judged.items()}
    networks: list[Features] = [Inception()]
    metrics: dict[str, tuple[str, Any]] = {
        "fid": ("2048", Frechet(2048)), "fid64": ("64", Frechet(64)), "kid": ("2048", Kernel(2048)),
        "manifold": ("2048", PrecisionRecall()),
    }  # fmt: skip
    if resnet:
        networks.append(ResNet())
        metrics["softmax_fid"] = ("softmax", Frechet(1000, root=True))
    return networks, metrics
