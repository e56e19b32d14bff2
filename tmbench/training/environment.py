"""What a result says of the machine and the code: hardware, memory, commit, operations that do not repeat bitwise."""

import re
import resource
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer

from ..config.machine import cpu_model


@contextmanager
def nondeterministic_operations() -> Iterator[list[str]]:
    """Collects the operations that torch warns of, in place of printing the warnings."""
    operations: list[str] = []
    with warnings.catch_warnings():
        # Lightning 2.6 with torch 2.15; nothing that a person could do about it.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        # On a cluster's machine; a run alone is what was asked for.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        warnings.filterwarnings("always", message=".*does not have a deterministic implementation")
        show = warnings.showwarning

        def note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            found = re.match(r"(\S+) does not have a deterministic implementation", str(message))
            if not found:
                show(message, *args, **kwargs)
            elif found[1] not in operations:
                operations.append(found[1])

        warnings.showwarning = note
        yield operations


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{trainer.world_size} x {torch.cuda.get_device_name(device)}"
    return f"{trainer.world_size} x {cpu_model()}, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The checkout's commit, with + if it was changed; None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10)
    try:
        commit = git(["git", "rev-parse", "HEAD"], check=True).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"], check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
