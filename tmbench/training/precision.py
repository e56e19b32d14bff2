"""Whether a device can train a task in mixed precision, tried on two examples before the first epoch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from ..config.machine import cpu_model
from ..errors import ConfigError

# What mixed precision is there for. Norms, losses and tables stay float32 by design.
PRODUCTS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase)


class PrecisionCheck(Callback):
    """Takes the gradient of each player's loss once, and notes which layers ran in float32 all the same.

    It leaves weights, buffers, gradients and random generators as they were, and does nothing in float32.

    Raises:
        ConfigError: some layer works in float32, but not in the precision that was asked for.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        precision, task = trainer.precision_plugin.precision, pl_module.task
        if precision == "32-true":
            return
        (batch,) = trainer.train_dataloader.gather([np.arange(min(2, trainer.train_dataloader.count))], 0)
        batch = pl_module.transfer_batch_to_device(batch, task.device, 0)
        with _unchanged(task):
            watch = LayerWatch(task)
            try:
                with watch, trainer.precision_plugin.train_step_context():
                    differentiate(task, batch)
            except RuntimeError as error:
                differentiate(task, batch)  # if float32 fails, too, then this error is the one to tell
                device = torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else cpu_model()
                raise ConfigError(
                    f"precision={precision}: {watch.at} does not work in it on this device ({device}): "
                    f"{str(error).splitlines()[0]}\n  use precision=32, or another device"
                ) from error
        if watch.float32:
            self.notes.append(f"precision={precision}: {', '.join(watch.float32)} stayed float32 on this device")


def differentiate(task: Any, batch: Any) -> None:
    """Takes the gradient of each player's loss of a batch, and keeps nothing."""
    for player in task.players().values():
        total, _ = player.loss(batch)
        params = [p for p in player.module.parameters() if p.requires_grad]
        if total.requires_grad:  # not if there was nothing to learn from
            torch.autograd.grad(total, params, allow_unused=True)


class LayerWatch(ExitStack):
    """Notes, until it is closed, which layer of a task is at work, and which matrix products gave float32."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.at, self.float32 = "the loss", list[str]()
        for key, module in task.named_modules():
            if not list(module.children()):
                name = f"{key} ({type(module).__name__})"
                self.enter_context(module.register_forward_pre_hook(partial(self._begin, name)))
                self.enter_context(module.register_forward_hook(partial(self._end, name)))

    def _begin(self, name: str, module: nn.Module, inputs: Any) -> None:
        self.at = name

    def _end(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.at = f"what follows {name}"
        first = output if isinstance(output, Tensor) else output[0]
        if isinstance(module, PRODUCTS) and first.dtype == torch.float32 and name not in self.float32:
            self.float32.append(name)
        if first.requires_grad:
            first.register_hook(lambda gradient: setattr(self, "at", f"the gradient of {name}"))


@contextmanager
def _unchanged(task: nn.Module) -> Iterator[None]:
    """Puts back what a forward pass changes: batch norm's averages and other buffers, the random generators."""
    kept = [(buffer, buffer.clone()) for buffer in task.buffers()]
    with torch.random.fork_rng({b.device for b, _ in kept if b.is_cuda}):
        yield
    for buffer, value in kept:
        buffer.copy_(value)
