"""How many replicas a machine carries, and how fast they are: measured on a few steps, before a run begins."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config.machine import free_memory
from ..plan import Plan
from .build import loaders_of, optimizer_of, task_of
from .module import Training
from .stack import Stack
from .stackable import check_fits

WARM_UP, STEPS, SECONDS = 3, 20, 4.0  # of a measurement, whichever of the last two comes first


def check_memory(stack: Stack, batch: Any, device: torch.device) -> None:
    """CannotStackError if the stack's next step does not fit into the memory that is free, with the number that does.

    Args:
        batch: one of the stack's own, (K, ...).
        device: where it will be trained.
    """
    one = tuple(t[0] for t in batch)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    check_fits(stack.first, stack.slots, free, _kept(stack, one))


def _kept(stack: Stack, batch: Any) -> int:
    """Bytes that a backward pass of one replica keeps, of the player with the most."""
    sizes = dict[int, int]()

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    weights, most = {p.untyped_storage().data_ptr() for p in stack.parameters()}, 0
    with stack.unchanged(), stack.own_random_numbers(0):
        for player in stack.first.players().values():
            sizes.clear()
            with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                player.loss(batch)
            most = max(most, sum(size for place, size in sizes.items() if place not in weights))
    return most


def seconds_a_step(plans: Sequence[Plan]) -> float:
    """How long a step of these runs takes, as one stack or, of a single run without replicas, by itself.

    Raises:
        CannotStackError: they cannot be stacked.
    """
    cfg, task = plans[0].cfg, task_of(plans)
    device = torch.device(cfg.trainer.accelerator)
    task.to(device).train()
    loader, _ = loaders_of(plans, task, device)
    blocks = iter(loader)
    steps = (step for block in blocks for step in block)
    if isinstance(task, Stack):
        first = next(steps)
        task.try_once(first[0][0])
        check_memory(task, first[0][0], device)
    new_optimizer = optimizer_of(cfg, 0 if "switch_step" in cfg.optimizer else None)
    training = Training(task, cfg, [new_optimizer], loader.steps, None, lambda: False)
    optimizers: list[Any] = training.new_optimizers()
    training.step_by_rows(optimizers)
    begun, done = 0.0, 0
    for number, step in enumerate(steps):
        if number == WARM_UP:
            begun = _now(device)
        for player, optimizer in zip(task.players().values(), optimizers, strict=True):
            optimizer.step(partial(training.gradient.closure, optimizer, player, step))
        done = number + 1 - WARM_UP
        if done == STEPS or (done > 0 and _now(device) - begun > SECONDS):
            break
    return (_now(device) - begun) / max(done, 1)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
