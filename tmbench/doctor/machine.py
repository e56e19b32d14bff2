"""What computes: Python, torch, CUDA and its GPUs, bf16, and the kernels of fused=true."""

import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..config.machine import count_gpus, cpu_model
from . import Check, Finding

SAME = 1e-5  # of the way that the weights go: float32 against float64 after 20 steps
NVIDIA = Path("/proc/driver/nvidia/version")


def checks() -> dict[str, Check]:
    return {"python": python, "torch": torch_here, "cuda": cuda, "gpus": gpus, "nccl": nccl, "bf16": bf16,
            "kernel": c_kernel, "triton": triton}  # fmt: skip


def python() -> Finding:
    system = " ".join(filter(None, [platform.system(), platform.machine(), *platform.libc_ver()]))
    return Finding("python", "green", f"{platform.python_version()}, {system}, {cpu_model()}")


def torch_here() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # absent, or a library that it needs
        return Finding("torch", "red", f"cannot be imported: {error}", "pip install 'torch>=2.11'")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding(
        "torch", "green", f"{torch.__version__}, built for: {build}; {torch.backends.cpu.get_cpu_capability()}"
    )


def cuda() -> Finding:
    """Whether torch can use a GPU, and why not."""
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        is_there = torch.cuda.is_available()
    driver = _driver()
    if is_there:
        return Finding("cuda", "green", f"{torch.cuda.device_count()} GPUs; driver {driver or 'unknown'}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver is None:
        found = "no NVIDIA driver: runs train on the CPU"
        return Finding("cuda", "green", found, "for a GPU: install its driver; a container needs --gpus all")
    if visible is not None and visible.strip() in ("", "-1", "none", "NoDevFiles"):
        found = f"driver {driver}, but CUDA_VISIBLE_DEVICES={visible!r} hides every GPU: runs train on the CPU"
        return Finding("cuda", "yellow", found, "unset CUDA_VISIBLE_DEVICES, or name GPUs: CUDA_VISIBLE_DEVICES=0")
    if torch.version.cuda is None:
        found = f"driver {driver}, but this torch is built for the CPU only"
        return Finding("cuda", "red", found, "install torch's CUDA build; pytorch.org/get-started has the line")
    why = str(told[0].message).splitlines()[0] if told else "torch finds no GPU"
    remedy = (
        "update the driver, or install a torch built for it (pytorch.org/get-started); a container needs --gpus all"
    )
    return Finding("cuda", "red", f"driver {driver}, torch for CUDA {torch.version.cuda}: {why}", remedy)


def _driver() -> str | None:
    """The version of NVIDIA's driver; `unknown` if only its tool is here; None without a driver."""
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            lines = subprocess.run(ask, capture_output=True, text=True, timeout=5).stdout.split()
        except (OSError, subprocess.TimeoutExpired):
            lines = []
        if lines:
            return lines[0]
    return "unknown" if NVIDIA.exists() else None


def gpus() -> Iterator[Finding]:
    """Each GPU that torch sees: its memory, whether this build has code for it, and whether it adds correctly."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        yield Finding("gpus", "skipped", "torch sees none")
        return
    if count_gpus() != count:
        found = f"torch sees {count} GPUs, the harness {count_gpus()}: trainer=auto would choose by the latter"
        yield Finding("gpus", "red", found, "pip install cuda-bindings")
    for i in range(count):
        about = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        name = f"gpu {i}"
        found = (
            f"{about.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, capability {about.major}.{about.minor}"
        )
        try:
            works = float(torch.ones(2**20, device=f"cuda:{i}").sum()) == 2**20
        except RuntimeError as error:
            built = ", ".join(torch.cuda.get_arch_list())
            remedy = f"this torch is built for {built}; pytorch.org/get-started has other builds"
            yield Finding(name, "red", f"{found}; it fails: {str(error).splitlines()[0]}", remedy)
            continue
        if not works:
            yield Finding(name, "red", f"{found}; a sum of ones is wrong", "do not use this GPU; restart the machine")
        elif free < total / 2:
            yield Finding(name, "yellow", f"{found}; others use it", "nvidia-smi lists its processes")
        else:
            yield Finding(name, "green", found)


def nccl() -> Finding:
    import torch
    from torch import distributed

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has = {"NCCL": distributed.is_available() and distributed.is_nccl_available(),
           "gloo": distributed.is_available() and distributed.is_gloo_available()}  # fmt: skip
    found = ", ".join(f"{name} {'built in' if here else 'absent'}" for name, here in has.items())
    if has["NCCL"] and count:
        found += f", version {'.'.join(map(str, torch.cuda.nccl.version()))}"  # type: ignore[no-untyped-call]
    if count > 1 and not has["NCCL"]:
        return Finding("nccl", "red", found, "trainer=ddp needs NCCL: install torch's CUDA build; or devices=1")
    if not has["gloo"]:
        return Finding("nccl", "yellow", found, "trainer=ddp_cpu needs gloo: install another build of torch")
    return Finding("nccl", "green", found if count > 1 else f"{found}; NCCL is for two GPUs or more")


def bf16() -> Iterator[Finding]:
    """Whether layers compute in bfloat16 under autocast, forwards and backwards."""
    import torch
    from torch import nn

    layers = (nn.Linear(8, 8), (2, 8)), (nn.Conv2d(8, 8, 3), (2, 8, 5, 5)), (nn.LSTM(8, 8), (3, 2, 8))
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        by_layer = {}
        for layer, shape in layers:
            name = type(layer).__name__
            try:
                with torch.autocast(device, torch.bfloat16):
                    out = layer.to(device)(torch.ones(shape, device=device))
                out = out[0] if isinstance(out, tuple) else out
                out.float().sum().backward()
                by_layer[name] = "works" if out.dtype == torch.bfloat16 else "stays float32"
            except RuntimeError as error:
                by_layer[name] = f"fails ({str(error).splitlines()[0][:60]})"
        found = ", ".join(f"{name} {what}" for name, what in by_layer.items())
        if all(what == "works" for what in by_layer.values()):
            yield Finding(f"bf16 {device}", "green", found)
        else:
            remedy = "use precision=32 for tasks with these layers, or another device"
            yield Finding(f"bf16 {device}", "yellow", found, remedy)


def c_kernel() -> Finding:
    """The kernel of fused=true on the CPU: it compiles, and steps as the loop in float64 does."""
    import torch

    from ..optim.fused import no_kernel

    if why := no_kernel(torch.zeros(1), 1):
        remedy = "apt install gcc (or set CC); or leave out +optimizer.fused=true"
        return Finding("kernel", "yellow", f"no C kernel for +optimizer.fused=true: {why}", remedy)
    return fused_agrees("kernel", "cpu")


def triton() -> Finding:
    """The kernel of fused=true on a GPU."""
    import torch

    from ..optim.fused import no_kernel

    try:
        found = f"Triton {version('triton')}"
    except PackageNotFoundError:
        found = "Triton is not installed"
    if not torch.cuda.is_available():
        return Finding("triton", "skipped", f"{found}; its kernel needs a GPU")
    if why := no_kernel(torch.zeros(1, device="cuda"), 1):
        return Finding("triton", "yellow", f"no kernel for +optimizer.fused=true: {why}", "pip install triton")
    return fused_agrees("triton", "cuda")


def fused_agrees(name: str, device: str) -> Finding:
    """TM-SGD with momentum and decay, 20 steps in float32 by the kernel and by foreach, against float64's loop."""
    import torch

    from ..certify.descent import Candidate, Descent, distance, problem
    from ..optim import TMSGD

    candidate = Candidate(partial(TMSGD, lr=0.05, momentum=0.9, weight_decay=0.01, switch_step=6), device)
    loop = Descent(candidate, problem(5), torch.float64, foreach=False).go()
    apart = {}
    for path in ("foreach", "fused"):
        descent = Descent(candidate, problem(5), torch.float32, **{path: True}).go()
        apart[path] = max(distance(loop.path(i), descent.path(i).double()) for i in range(5))
    distances = ", ".join(f"{path} {d:.0e}" for path, d in apart.items())
    found = f"20 steps of TM-SGD, relative distance from a plain loop in float64: {distances} (bound {SAME:.0e})"
    if wrong := [path for path, d in apart.items() if not d <= SAME]:
        remedy = "leave out +optimizer.fused=true; remove ~/.cache/tmbench and try again; then report it"
        return Finding(name, "red", f"{' and '.join(wrong)} is wrong: {found}", remedy)
    return Finding(name, "green", found)
