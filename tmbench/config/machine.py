"""What this machine has, and what of it a run takes: GPUs, processor, checkout; without torch, which imports slowly."""

import math
import os
import platform
import subprocess
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .values import is_whole


def count_gpus() -> int:
    """How many NVIDIA GPUs CUDA shows."""
    return len(gpu_names())


@cache
def gpu_names() -> list[str]:
    """The types of the NVIDIA GPUs that CUDA shows; none without a GPU, its driver, or a torch that can use it.

    Asked through cuda.bindings, which comes with torch's CUDA build: like torch, and unlike NVML, CUDA obeys
    CUDA_VISIBLE_DEVICES.
    """
    if version("torch").endswith("+cpu"):
        return []
    try:
        from cuda.bindings import driver

        if any(driver.cuInit(0)):
            return []
        _, count = driver.cuDeviceGetCount()
    except (ImportError, RuntimeError):  # not installed; no driver
        return []
    names = (driver.cuDeviceGetName(256, driver.cuDeviceGet(ordinal)[1])[1] for ordinal in range(count))
    return [name.partition(b"\0")[0].decode(errors="replace") for name in names]


@cache
def cpu_model() -> str:
    """The processor's name, as far as it is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes of memory that this process may still take; as much as fits into an address where that is not known."""
    free = 2**63
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # of a container; its `max` is no number where there is no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def git_commit() -> str | None:
    """The checkout's commit, with + if it was changed; None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = partial(subprocess.check_output, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=10)
    with suppress(OSError, subprocess.SubprocessError):
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).strip()
        return git(["git", "rev-parse", "HEAD"]).strip() + ("+" if changed else "")
    return None


def settle_trainer(cfg: dict[str, Any], launcher: dict[str, Any]) -> None:
    """Puts what the trainer's YAML and this machine, or the launcher's, give in place of null, auto and -1.

    Raises:
        ConfigError: the machine or the trainer has no such devices.
    """
    trainer = cfg["trainer"]
    for key in ("devices", "num_nodes", "precision"):
        if cfg[key] is not None:
            trainer[key] = cfg[key]
        cfg[key] = None  # one place for each value; settled configs carry it in trainer
    trainer["precision"] = str(trainer["precision"])
    _fill_devices(trainer, launcher)
    if trainer["num_workers"] is None:
        few = trainer["accelerator"] == "cpu" or cfg["data"]["profile"] == "tiny"
        trainer["num_workers"] = 0 if few else min(8, os.cpu_count() or 1)


def _fill_devices(trainer: dict[str, Any], launcher: dict[str, Any]) -> None:
    elsewhere = launcher.get("gpus_per_node", launcher.get("num_gpus"))  # those of a job on another machine
    gpus = count_gpus() if elsewhere is None else math.ceil(elsewhere)
    if trainer["accelerator"] == "auto":
        trainer["accelerator"] = "cuda" if gpus else "cpu"
    name, on_gpu = trainer["name"], trainer["accelerator"] == "cuda"
    if on_gpu and not gpus:
        if elsewhere is not None:
            one = "gpus_per_node=1" if "gpus_per_node" in launcher else "num_gpus=1"
            raise ConfigError(f"trainer={name}: launcher={launcher['name']} gives a run no GPU; say launcher.{one}")
        raise ConfigError(f"trainer={name}: no NVIDIA GPU is visible here; use trainer=cpu or trainer=ddp_cpu")
    if trainer["devices"] == -1:
        trainer["devices"] = gpus if on_gpu else os.cpu_count()
    devices = trainer["devices"]
    if isinstance(devices, str):
        raise ConfigError(f"devices: expected how many, got {devices!r}; the kind is trainer=cpu, gpu, ddp, ddp_cpu")
    if on_gpu and is_whole(devices, 1) and devices > gpus:
        raise ConfigError(f"devices: expected at most {gpus}, the GPUs visible here, got {devices}")
    if trainer["strategy"] == "auto" and devices != 1:
        ddp = "ddp" if on_gpu else "ddp_cpu"
        raise ConfigError(f"devices: trainer={name} uses one, got {devices}; use trainer={ddp}")
