"""What this machine has: GPUs and processor, asked without torch."""

import ctypes
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path


def count_gpus() -> int:
    """How many NVIDIA GPUs CUDA shows."""
    return len(gpu_names())


@cache
def gpu_names() -> list[str]:
    """The types of the NVIDIA GPUs that CUDA shows, asked of the driver itself: importing torch takes seconds."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if version("torch").endswith("+cpu") or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    names = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return names


@cache
def cpu_model() -> str:
    """The processor's name, as far as it can be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
