"""ig: pictures of sneakers by a DCGAN (Radford et al., 2016), after zjy-T/Sneaker-GAN@5bf47a7.

Legend: B batch, Z entries of the noise, H and W pixels, N pictures, R rows, C columns.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchmetrics import MetricCollection
from torchvision.utils import make_grid

from tmbench.errors import ConfigError, DataError
from tmbench.seeds import derive
from tmbench.task import Figures, Loss, Player, Task, finite

from .distances import spaces
from .sneakers import SHAPE, Sneakers

NOISE = 100  # entries of the generator's input
GRID = (8, 8)  # rows and columns of the samples' picture
PROGRESS = (6, 12)  # rows, each at its moment, and columns of the progress picture
EXAMPLES_A_PASS = 64  # real pictures that a network looks at together


def generator(width: int) -> nn.Sequential:
    """Noise (B, 100, 1, 1) to pictures (B, 3, 64, 64) in [-1, 1]; 3,576,704 parameters with a width of 64."""
    layers: list[nn.Module] = []
    channels = NOISE
    for stage, out in enumerate((8 * width, 4 * width, 2 * width, width)):
        up = nn.ConvTranspose2d(channels, out, 4, *((2, 1) if stage else (1, 0)), bias=False)
        layers += [up, nn.BatchNorm2d(out), nn.ReLU(True)]
        channels = out
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(width: int) -> nn.Sequential:
    """Pictures (B, 3, 64, 64) in [-1, 1] to logits (B,) of being real; 2,765,568 parameters with a width of 64.

    The sigmoid that the source ends with is part of the losses.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    channels = width
    for out in (2 * width, 4 * width, 8 * width):
        layers += [nn.Conv2d(channels, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.LeakyReLU(0.2, True)]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, 1, 0, bias=False), nn.Flatten(0))


def initialize(module: nn.Module) -> None:
    """As in the source: weights from N(0, 0.02), batch norm's from N(1, 0.02) with biases of 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def exact(logits_B: Tensor) -> Tensor:
    """Logits for a loss: in float32 at least, which bf16-mixed on a CPU does not see to for softplus."""
    return logits_B.to(torch.promote_types(logits_B.dtype, torch.float32))


def as_bytes(pictures_B3HW: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8."""
    return ((pictures_B3HW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def fixed_noise(purpose: str, count: int) -> Tensor:
    """Noise (count, 100) that is the same in every run."""
    return torch.randn(count, NOISE, generator=torch.Generator().manual_seed(derive(purpose)))


def moments(epochs: int) -> list[int]:
    """After how many epochs each row of the progress picture is taken: closer together early, when most happens."""
    return [math.ceil(epochs * ((row + 1) / PROGRESS[0]) ** 2) for row in range(PROGRESS[0])]


class IG(Task):
    higher_is_better = False
    progress: Tensor
    progress_epochs: Tensor

    def __init__(self, cfg: DictConfig, data: Sneakers) -> None:
        super().__init__(cfg, data)
        self.real_N3HW = torch.from_numpy(data.read())
        self.discriminator, self.generator = discriminator(cfg.width), generator(cfg.width)
        self.apply(initialize)
        self.register_buffer("progress", torch.zeros(*PROGRESS, *SHAPE, dtype=torch.uint8))
        self.register_buffer("progress_epochs", torch.zeros(PROGRESS[0], dtype=torch.long))  # 0: not yet
        # No submodules: nobody trains, averages or saves what only looks.
        self.networks, spaces_of = spaces(cfg.features, cfg.resnet34)
        self.reads = {name: kind for name, (kind, _) in spaces_of.items()}
        self.metrics = MetricCollection({name: metric for name, (_, metric) in spaces_of.items()}, compute_groups=False)
        self.headline = next(iter(self.reads))
        self.saw_real = False

    def players(self) -> dict[str, Player]:
        d = Player(self.discriminator, self.discriminator_loss, self.cfg.lr_d or None)
        return {"d": d, "g": Player(self.generator, self.loss, self.cfg.lr_g or None)}

    def examples(self, split: str) -> TensorDataset:
        """`train`: the real pictures (N, 3, 64, 64), uint8. `test`: noise (N, 100), one for each picture to judge."""
        if split == "train":
            return TensorDataset(self.real_N3HW)
        return TensorDataset(fixed_noise("samples", self.cfg.samples or len(self.real_N3HW)))

    def as_evaluated(self) -> TensorDataset:
        """Noise, one for each real picture."""
        return TensorDataset(fixed_noise("samples", len(self.real_N3HW)))

    def hold_out(self, held_out_N: np.ndarray) -> None:
        """Judges generated pictures by as many real ones that were not trained on."""
        super().hold_out(held_out_N)
        self.real_N3HW = self.real_N3HW[torch.from_numpy(held_out_N)]

    def generate(self, noise_BZ: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) in [-1, 1]."""
        return self.generator(noise_BZ[:, :, None, None])

    def imitations(self, real_B3HW: Tensor) -> Tensor:
        """As many pictures from fresh noise."""
        return self.generate(torch.randn(len(real_B3HW), NOISE, device=real_B3HW.device))

    def discriminator_loss(self, batch: tuple[Tensor]) -> Loss:
        """Binary cross-entropy of telling real pictures from as many generated ones; both added, over the real ones."""
        real_B3HW = batch[0]
        with torch.no_grad():
            fake_B3HW = self.imitations(real_B3HW)
        # Two passes: batch norm sees either kind alone, as in the source.
        real_logits_B, fake_logits_B = (exact(self.discriminator(x)) for x in (real_B3HW / 127.5 - 1, fake_B3HW))
        total = nn.functional.softplus(-real_logits_B).sum() + nn.functional.softplus(fake_logits_B).sum()
        return total, len(real_B3HW)

    def loss(self, batch: tuple[Tensor]) -> Loss:
        """The generator's, which does not saturate: binary cross-entropy of its pictures being taken for real."""
        logits_B = exact(self.discriminator(self.imitations(batch[0])))
        return nn.functional.softplus(-logits_B).sum(), len(batch[0])

    def evaluates_after(self, epochs: int, of: int) -> bool:
        return epochs % self.cfg.evaluate_every == 0 or epochs in moments(of)

    def check_data(self) -> None:
        """A distance is between distributions, of which one picture tells nothing."""
        if self.cfg.samples == 1:
            raise ConfigError("task.samples: expected at least 2 generated pictures to judge, or 0, got 1")
        if len(self.real_N3HW) < 2:
            where = f"the {self.split} split of {self.data.root}, to judge generated ones by; there is 1"
            fix = "add pictures, or make the validation share larger"
            raise DataError(f"ig: expected at least 2 real pictures in {where}: {fix}")

    def evaluate(self, batch: tuple[Tensor]) -> None:
        if not self.saw_real:  # once a run: they do not change
            ranks = torch.distributed
            rank, world = (ranks.get_rank(), ranks.get_world_size()) if ranks.is_initialized() else (0, 1)
            for real_B3HW in torch.split(self.real_N3HW[rank::world], EXAMPLES_A_PASS):
                self.look(real_B3HW.to(batch[0].device), real=True)
            self.saw_real = True
        self.look(as_bytes(finite("pictures", self.generate(batch[0]))), real=False)

    def look(self, pictures_B3HW: Tensor, real: bool) -> None:
        """Updates the metrics with uint8 pictures, each of which goes through each network once.

        In float32, whatever the run's precision: a distance is given in the precision of the features.
        """
        with torch.autocast(pictures_B3HW.device.type, enabled=False):
            features = {kind: seen for network in self.networks for kind, seen in network(pictures_B3HW).items()}
        for name, kind in self.reads.items():
            self.metrics[name].update(features[kind], real=real)

    def after_evaluation(self, epochs: int, of: int) -> None:
        """Takes the row of the progress picture that is due."""
        if epochs not in moments(of):
            return
        row, noise_NZ = moments(of).index(epochs), fixed_noise("pictures", math.prod(GRID))[: PROGRESS[1]]
        self.progress[row] = as_bytes(self.generate(noise_NZ.to(self.device)))
        self.progress_epochs[row] = epochs

    def pictures(self) -> Figures:
        return self.compare({"generated": self})

    @classmethod
    def compare(cls, tasks: Mapping[str, Any]) -> Figures:
        import matplotlib.pyplot as plt

        some = next(iter(tasks.values()))
        noise_NZ = fixed_noise("pictures", math.prod(GRID))
        spread = torch.linspace(0, len(some.real_N3HW) - 1, math.prod(GRID)).long()
        grids = {"real": some.real_N3HW[spread]}
        grids |= {label: as_bytes(run.generate(noise_NZ.to(run.device))).cpu() for label, run in tasks.items()}
        figure, axes = plt.subplots(1, len(grids), figsize=(4.6 * len(grids), 4.9), squeeze=False, layout="constrained")
        for ax, (label, pictures_N3HW) in zip(axes[0], grids.items(), strict=True):
            show(ax, pictures_N3HW, GRID[1])
            ax.set_title(label)
        yield "samples", figure
        runs = {label: run for label, run in tasks.items() if run.progress_epochs.any()}
        if not runs:
            return
        figure, axes = plt.subplots(1, len(runs), figsize=(7.5 * len(runs), 4.2), squeeze=False, layout="constrained")
        for ax, (label, run) in zip(axes[0], runs.items(), strict=True):
            taken = run.progress_epochs.nonzero().flatten()
            show(ax, run.progress[taken].flatten(0, 1).cpu(), PROGRESS[1])
            step = SHAPE[1] + 2
            ax.set_axis_on()
            ax.set_xticks([])
            ax.set_yticks([step * (i + 0.5) for i in range(len(taken))], run.progress_epochs[taken].tolist())
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
            ax.set(title=label, ylabel="epochs trained")
        yield "progress", figure


def show(ax: Any, pictures_N3HW: Tensor, columns: int) -> None:
    """Draws uint8 pictures in rows, with a thin white line between them."""
    ax.imshow(make_grid(pictures_N3HW, columns, padding=2, pad_value=255).permute(1, 2, 0).numpy())
    ax.set_axis_off()
