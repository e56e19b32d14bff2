"""How an optimizer that wants the norms of the examples' gradients (CLARS) gets them in a run."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ..errors import ConfigError
from ..optim.clars import AT_ONCE, CLARS, of_examples, trained, why_not_by_examples
from ..task import Player, Task, checked_loss
from .loader import TrainLoader
from .probe import undisturbed

MOST = AT_ONCE // 8  # numbers in the gradient of an example; of more, a step would take too long


def check_norms(optimizer: Any, cfg: DictConfig, world: int) -> None:
    """ConfigError if an optimizer, of this section of the configuration, would not get the norms that it wants."""
    if any(getattr(getattr(optimizer, part, None), "func", None) is CLARS for part in ("first", "second")):
        raise ConfigError(f"optimizer={cfg.name}: CLARS cannot be a part of it, since it wants the examples' gradients")
    if hasattr(optimizer, "norms"):
        if "parts" not in cfg:
            raise ConfigError(f"optimizer={cfg.name}: expected a key parts in its YAML file, as in clars.yaml")
        if world > 1:
            raise ConfigError(f"devices: optimizer={cfg.name} runs on one, it takes the examples' gradients itself")


def divided_for_norms(task: Task, loader: TrainLoader, parts: int, device: torch.device) -> str | None:
    """Has the loader divide batches into parts if a task's examples have no gradients of their own; returns why.

    None: they have, by `torch.func.vmap`, which is tried on the first step's examples.

    Args:
        parts: at most; those that the loader makes already, if more than one, are kept. Batch norm gets two examples
            at least.
    """
    batch = next(iter(next(iter(loader))))[0][0]
    reason = next(filter(None, (_refusal(task, player, batch, device) for player in task.players().values())), None)
    if reason is not None and loader.accumulate == 1:
        least = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in task.modules()) else 1
        loader.accumulate = max(1, min(parts, loader.batch_size // least))
    return reason


def _refusal(task: Task, player: Player, batch: object, device: torch.device) -> str | None:
    """What speaks against the gradients of single examples, by a player's loss; None: nothing."""
    if reason := why_not_by_examples(player.module):
        return reason
    if (size := sum(p.numel() for p in trained(player.module).values())) > MOST:
        return f"an example's has {size:,} numbers"
    if not (isinstance(batch, (tuple, list)) and all(isinstance(t, torch.Tensor) for t in batch)):
        return "its batches are more than tensors"
    some = tuple(t[:2].to(device) for t in batch)
    try:
        with undisturbed(task):
            of_examples(player.module, lambda one: checked_loss(player, one), some)
    except (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError) as error:
        return f"torch.func.vmap: {str(error).strip().partition(chr(10))[0]}"
    return None
