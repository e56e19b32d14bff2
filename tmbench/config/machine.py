"""What this machine has: GPUs, processor and checkout, found without torch, whose import takes seconds."""

import platform
import subprocess
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path


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
