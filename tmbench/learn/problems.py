"""What the learned optimizer learns on: small networks on made data, and tasks of the tiny profile."""

import math
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor
from torch.func import grad_and_value, vmap

from ..config.compose import composed
from ..config.settle import settle
from ..data import open_dataset
from ..seeds import derive, seed_all
from ..task import checked_loss, mean
from ..training.loader import TrainLoader

WIDTHS, ACTIVATIONS = (8, 16, 32, 64), (torch.tanh, torch.relu, torch.nn.functional.gelu)
TASKS = ("tc", "ic", "ctr")

Losses = tuple[Tensor, list[Tensor]]  # the loss of each of R copies (R,), and its gradients (R, S...)


class Perceptron:
    """A network of one to three hidden layers that learns what another, random one says of normal inputs."""

    def __init__(self, seed: int) -> None:
        self.random = random = torch.Generator().manual_seed(seed)

        def one_of(*choices: Any) -> Any:
            return choices[int(torch.randint(len(choices), (), generator=random))]

        inputs, width, depth = one_of(4, 8, 16, 32), one_of(*WIDTHS), one_of(1, 2, 3)
        self.classes, self.activation = one_of(0, 2, 5, 10), one_of(*ACTIVATIONS)
        outputs = self.classes or one_of(1, 4)
        self.sizes = [inputs, *[width] * depth, outputs]
        self.batch = one_of(8, 16, 32, 64)
        count = one_of(256, 1024)
        self.x = torch.randn(count, inputs, generator=random) * one_of(0.5, 1.0, 2.0)
        teacher = [
            torch.randn(inputs, 16, generator=random) / math.sqrt(inputs),
            torch.randn(16, outputs, generator=random),
        ]
        found = torch.tanh(self.x @ teacher[0] * 2) @ teacher[1]
        self.y = found.argmax(1) if self.classes else found * one_of(0.3, 1.0, 3.0)
        self.scale = one_of(0.01, 0.1, 1.0, 10.0)  # of the loss: how large gradients are is to matter little

    def parameters(self) -> list[Tensor]:
        """The start, as nn.Linear has it: a matrix (out, in) and a bias (out,) for each layer."""
        found = []
        for n, m in zip(self.sizes, self.sizes[1:], strict=False):
            for shape in ((m, n), (m,)):
                found.append((2 * torch.rand(shape, generator=self.random) - 1) / math.sqrt(n))
        return found

    def losses(self, params_R: list[Tensor], step: int) -> Losses:
        """Of copies of the parameters (R, S...), on the batch of this step."""
        pick = torch.Generator().manual_seed(derive("learn batch", step))
        index = torch.randint(len(self.x), (self.batch,), generator=pick)
        x, y = self.x[index], self.y[index]

        def loss(params: list[Tensor]) -> Tensor:
            h = x
            for i in range(0, len(params), 2):
                h = torch.nn.functional.linear(self.activation(h) if i else h, params[i], params[i + 1])
            kind = torch.nn.functional.cross_entropy if self.classes else torch.nn.functional.mse_loss
            return self.scale * kind(h, y)

        gradients, losses = vmap(grad_and_value(loss))(params_R)
        return losses, gradients


class TinyTask:
    """A task of the harness with its tiny data, started anew by each seed."""

    def __init__(self, name: str, seed: int) -> None:
        dense = ["task.sparse=false"] if name in ("tc", "ctr") else []
        cfg = settle(OmegaConf.create(composed([f"task={name}", "data=tiny", "trainer=cpu", *dense])))
        data, _, _ = open_dataset(cfg, get_class(cfg.task.data))
        seed_all("weights", seed)
        self.task: Any = get_class(cfg.task._target_)(cfg.task, data)
        (self.player,) = self.task.players().values()
        self.loader = TrainLoader(
            self.task.examples("train"), self.task.collate, cfg.batch_size, device=torch.device("cpu"), seed=seed,
            epoch=lambda: self.epoch,
        )  # fmt: skip
        self.epoch, self.batches = -1, list[Any]()
        self.params = [p for p in self.player.module.parameters() if p.requires_grad]
        self.task.train()

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]

    def losses(self, params_R: list[Tensor], step: int) -> Losses:
        """Of copies of the parameters (R, S...), on the batch of this step; the copies share batch norm's averages."""
        epoch, at = divmod(step, self.loader.steps)
        if epoch != self.epoch:
            self.epoch = epoch
            self.batches = [steps[0][0] for block in self.loader for steps in block]
        losses, gradients = [], []
        for r in range(len(params_R[0])):
            for p, copies in zip(self.params, params_R, strict=True):
                p.data, p.grad = copies[r], None
            loss = mean(*checked_loss(self.player, self.batches[at]))
            loss.backward()
            losses.append(loss.detach())
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in self.params])
        return torch.stack(losses), [torch.stack(each) for each in zip(*gradients, strict=True)]


Problem = Perceptron | TinyTask


def problem(kind: str, seed: int) -> Problem:
    return Perceptron(seed) if kind == "mlp" else TinyTask(kind, seed)
