"""Where random numbers come from: seeds derived from a purpose and numbers."""

import random

import numpy as np
import torch


def derive(purpose: str, *numbers: int) -> int:
    """A seed for torch and numpy, of its own for each purpose and numbers, such as (seed, epoch, rank)."""
    # The count is part of it: numpy fills up with zeros, so that (5,) and (5, 0) would be the same.
    entropy = (int.from_bytes(purpose.encode()), len(numbers), *numbers)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_all(purpose: str, *numbers: int) -> None:
    """Starts every random generator of this process from these."""
    seed = derive(purpose, *numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
