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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from .formula import State, as_number, difference_names, differences_of

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
        buffer_share, gradient_share = (self.momentum, 1.0) if self.nesterov else (1.0, 0.0)
        return self.sign, self.decay, self.momentum, self.fresh, buffer_share, gradient_share, self.shrink, self.rate


def fused_update(rows: list[list[Tensor]], by: Coefficients, buffered: bool = False) -> None:
    """One step in place, of tensors of one device and type; see `no_kernel` and `odd_layout` for what must hold.

    Args:
        rows: for each parameter itself, its gradient, its momentum buffer if `buffered`, and its differences, newest
            first; the new one takes the place of the oldest.
        by: the numbers, with a factor for each difference.
    """
    first = rows[0][0]
    sizes = [row[0].numel() for row in rows]
    pointers = []
    for row in rows:
        w, grad, *kept = (t.data_ptr() for t in row)
        pointers += [w, grad, *kept] if buffered else [w, grad, 0, *kept]
    if first.is_cuda:
        from .fused_cuda import launch

        launch(first, pointers, sizes, buffered, by.scalars, by.factors)
        return
    settings = (ctypes.c_double * (8 + MOST_DIFFERENCES))(*by.scalars, *by.factors)
    library = _compiled()
    assert not isinstance(library, str), library
    getattr(library, _C_TYPES[first.dtype])(
        ctypes.c_int64(len(rows)),
        (ctypes.c_void_p * len(pointers))(*pointers),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_int64(len(by.factors)),
        settings,
        ctypes.c_int64(min(torch.get_num_threads(), 1 + sum(sizes) // 2**15)),  # where torch starts threads, too
    )


def fused_sgd(state: State, group: dict[str, Any], params: list[Tensor], lr: float) -> None:
    """One step of torch's own fused SGD, which serves until the switch."""
    fresh = [p for p in params if state[p].get("momentum_buffer") is None]
    known = [p for p in params if state[p].get("momentum_buffer") is not None]
    for some in filter(None, (fresh, known)):  # torch expects that all have a buffer, or none
        buffers = [state[p].get("momentum_buffer") for p in some]
        sgd(
            some, [p.grad for p in some], buffers, fused=True,  # type: ignore[misc]
            lr=lr, momentum=group["momentum"], dampening=group["dampening"], nesterov=group["nesterov"],
            weight_decay=0.0 if group["decoupled"] else group["weight_decay"], maximize=group["maximize"],
        )  # fmt: skip
        if group["momentum"] != 0:
            for p, buffer in zip(some, buffers, strict=True):
                state[p]["momentum_buffer"] = buffer


def fused_step(
    optimizer: str, state: State, group: dict[str, Any], params: list[Tensor], factors: Sequence[float], rate: float
) -> list[Tensor]:
    """Steps by a kernel the parameters that it can step; returns the others, with one warning for each reason."""
    names, keeps = difference_names(len(factors)), group["momentum"] != 0
    lr, decay, decoupled = as_number(group["lr"]), group["weight_decay"], group["decoupled"]
    batches: dict[Any, list[list[Tensor]]] = {}
    left = []
    for p in params:  # once through all, which is what a step of many small tensors costs
        kept = state[p]
        fresh = keeps and "momentum_buffer" not in kept
        if fresh:
            kept["momentum_buffer"] = torch.zeros_like(p)
        if names and names[-1] not in kept:
            differences_of(state, [p], names)
        row = [p, p.grad, *([kept["momentum_buffer"]] if keeps else ()), *(kept[name] for name in names)]
        kind = p.device, p.dtype, fresh
        batch = batches.get(kind)
        if why := (batch is None and no_kernel(p, len(names))) or odd_layout(row):
            _say_once(f"{optimizer}: fused: {why}; such parameters are updated without it")
            if fresh:
                del kept["momentum_buffer"]
            left.append(p)
            continue
        if batch is None:
            batch = batches[kind] = []
        batch.append(row)
        if names:  # what is written over the oldest becomes the newest
            kept.update(zip(names, (row[-1], *row[-len(names) : -1]), strict=True))
    for (*_, fresh), rows in batches.items():
        by = Coefficients(
            factors, rate,
            sign=-1.0 if group["maximize"] else 1.0,
            decay=0.0 if decoupled else decay,
            momentum=group["momentum"],
            fresh=1.0 if fresh else 1 - group["dampening"],  # the first gradient is not dampened, in torch
            nesterov=group["nesterov"],
            shrink=1 - lr * decay if decoupled else 1.0,
        )  # fmt: skip
        fused_update(rows, by, buffered=keeps)
    return left


def odd_layout(row: list[Tensor]) -> str | None:
    """Why a parameter of this row, as `fused_update` takes it, cannot be stepped by a kernel; None if it can."""
    formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(row[0].dim(), [])
    if any(all(t.is_contiguous(memory_format=f) for t in row) for f in (torch.contiguous_format, *formats)):
        return None
    return "a gradient or a state is laid out in memory otherwise than its parameter"


def no_kernel(p: Tensor, differences: int) -> str | None:
    """Why there is no kernel for parameters like this one; None if there is."""
    kind = str(p.dtype).removeprefix("torch.")
    if differences > MOST_DIFFERENCES:
        return f"the kernels know formulas of up to {MOST_DIFFERENCES} differences, not {differences}"
    if p.device.type == "cpu":
        if p.dtype not in _C_TYPES:
            return f"the CPU's kernel knows float32 and float64, not {kind}"
        return library if isinstance(library := _compiled(), str) else None
    if p.device.type != "cuda":
        return f"there is no kernel for {p.device.type}"
    if p.dtype not in _TRITON_TYPES:
        return f"CUDA's kernel knows float32, bfloat16 and float16, not {kind}"
    return None if find_spec("triton") else "Triton is not installed"


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


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)
