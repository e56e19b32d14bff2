"""One pass over all tensors, where a kernel for it can be had: on the CPU in C, on CUDA in Triton.

A step of TM reads the weight, its gradient and two differences, and writes the weight and one difference: 6 words
a parameter, against 11 of the four passes that foreach makes. The C kernel is compiled by the system's compiler
when it is first used, which takes a second, and kept in the user's cache.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
MOST_DIFFERENCES = 4
_C_TYPES = {torch.float32: "float_step", torch.float64: "double_step"}
_TRITON_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# By what torch itself found on this processor. A kernel bound by memory gains nothing from more than these.
_VECTORS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx512f", "-mfma"]}


@dataclass(frozen=True)
class Coefficients:
    """What one step multiplies by; see fused.c for the formula. `fresh` is 1 - dampening."""

    factors: Sequence[float]
    rate: float
    sign: float = 1.0
    decay: float = 0.0
    momentum: float = 0.0
    fresh: float = 1.0
    nesterov: bool = False
    shrink: float = 1.0

    @property
    def scalars(self) -> tuple[float, ...]:
        """In the kernels' order."""
        look, own = (self.momentum, 1.0) if self.nesterov else (1.0, 0.0)
        return self.sign, self.decay, self.momentum, self.fresh, look, own, self.shrink, self.rate


def fused_update(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor] | None,
    differences: Sequence[list[Tensor]],
    by: Coefficients,
) -> None:
    """One step in place: `params`, momentum `buffers` and the oldest of `differences`, which takes the new one's place.

    Shapes: `differences` holds one list for each factor, newest first; all lists correspond item by item. Tensors
    are of one device and type, and each parameter's are dense and laid out alike; see `obstacle`.
    """
    if not params:
        return
    columns: list[Sequence[Tensor | None]] = [params, grads, buffers or [None] * len(params), *differences]
    pointers = [0 if t is None else t.data_ptr() for row in zip(*columns, strict=True) for t in row]
    sizes = [p.numel() for p in params]
    if params[0].is_cuda:
        from .fused_cuda import launch

        launch(params[0], pointers, sizes, buffers is not None, by.scalars, by.factors)
        return
    count = len(differences)
    settings = (ctypes.c_double * (8 + MOST_DIFFERENCES))(*by.scalars, *by.factors)
    getattr(_library(), _C_TYPES[params[0].dtype])(
        ctypes.c_int64(len(params)),
        (ctypes.c_void_p * len(pointers))(*pointers),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_int64(count),
        settings,
        ctypes.c_int64(min(torch.get_num_threads(), 1 + sum(sizes) // 2**15)),  # where torch starts threads, too
    )


def obstacle(p: Tensor, *others: Any, differences: int) -> str | None:
    """Why no kernel can step this parameter, with its gradient, buffer and differences; None if one can."""
    if differences > MOST_DIFFERENCES:
        return f"the kernels know formulas of up to {MOST_DIFFERENCES} differences, not {differences}"
    if p.device.type == "cpu":
        if p.dtype not in _C_TYPES:
            return f"the CPU's kernel knows float32 and float64, not {str(p.dtype).removeprefix('torch.')}"
        if isinstance(library := _compiled(), str):
            return library
    elif p.device.type == "cuda":
        if p.dtype not in _TRITON_TYPES:
            return f"CUDA's kernel knows float32, bfloat16 and float16, not {str(p.dtype).removeprefix('torch.')}"
        if reason := _no_triton():
            return reason
    else:
        return f"there is no kernel for {p.device.type}"
    if any(t.dtype != p.dtype or t.device != p.device for t in others):
        return "a gradient or a state is of another type or device than its parameter"
    formats = [torch.contiguous_format, *{4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(p.dim(), [])]
    if not any(all(t.is_contiguous(memory_format=f) for t in (p, *others)) for f in formats):
        return "a gradient or a state is laid out in memory otherwise than its parameter"
    return None


@cache
def _compiled() -> ctypes.CDLL | str:
    """The C kernels, or why there are none."""
    flags = ["-O3", "-shared", "-fPIC", "-fopenmp", *_VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])]
    compiler = os.environ.get("CC", "cc")
    key = hashlib.sha256("\0".join([compiler, *flags, SOURCE.read_text()]).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tmbench"
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / f"fused-{key}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                built = Path(aside) / library.name
                subprocess.run(
                    [compiler, *flags, "-o", str(built), str(SOURCE)], check=True, capture_output=True, text=True
                )
                built.replace(library)  # whole or not at all, also with several processes at work
        # torch's own OpenMP is loaded already and serves it, so both share their threads.
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        return f"the C compiler {compiler} failed: {error.stderr.strip() or error}"
    except (OSError, RuntimeError) as error:  # no compiler, no place to write, no home
        return f"the C kernel could not be built: {error}"


def _library() -> ctypes.CDLL:
    library = _compiled()
    assert not isinstance(library, str), library
    return library


@cache
def _no_triton() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed"
    return None
