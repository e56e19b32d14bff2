"""The fused step as one Triton kernel over many tensors, found through a table of their addresses."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # elements a program; each tensor's last block is masked
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit  # type: ignore[untyped-decorator]
def step_kernel(  # type: ignore[no-untyped-def]
    table,  # int64, a row a tensor: weights, gradient, buffer or 0, differences, newest first
    sizes,  # int64
    blocks,  # int64, a row a program: which tensor, which element is the first
    sign, decay, momentum, fresh, look, own, shrink, rate, f0, f1, f2, f3,
    COUNT: tl.constexpr, BUFFER: tl.constexpr, TYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The formula of fused.c; whatever the tensors' type, computed in float32."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    i = tl.load(blocks + 2 * tl.program_id(0) + 1) + tl.arange(0, BLOCK)
    inside = i < tl.load(sizes + tensor)
    row = table + tensor * (3 + COUNT)
    w_at = tl.multiple_of(tl.load(row).to(tl.pointer_type(TYPE)), ALIGN) + i
    g_at = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(TYPE)), ALIGN) + i
    w = tl.load(w_at, mask=inside).to(tl.float32)
    g = sign * tl.load(g_at, mask=inside).to(tl.float32) + decay * w
    if BUFFER:
        v_at = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(TYPE)), ALIGN) + i
        v = momentum * tl.load(v_at, mask=inside).to(tl.float32) + fresh * g
        tl.store(v_at, v.to(TYPE), mask=inside)
        g = look * v + own * g
    d = -rate * g
    oldest = w_at
    if COUNT > 0:
        oldest = tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(TYPE)), ALIGN) + i
        d += f0 * tl.load(oldest, mask=inside).to(tl.float32)
    if COUNT > 1:
        oldest = tl.multiple_of(tl.load(row + 4).to(tl.pointer_type(TYPE)), ALIGN) + i
        d += f1 * tl.load(oldest, mask=inside).to(tl.float32)
    if COUNT > 2:
        oldest = tl.multiple_of(tl.load(row + 5).to(tl.pointer_type(TYPE)), ALIGN) + i
        d += f2 * tl.load(oldest, mask=inside).to(tl.float32)
    if COUNT > 3:
        oldest = tl.multiple_of(tl.load(row + 6).to(tl.pointer_type(TYPE)), ALIGN) + i
        d += f3 * tl.load(oldest, mask=inside).to(tl.float32)
    if COUNT > 0:
        tl.store(oldest, d.to(TYPE), mask=inside)
    tl.store(w_at, (shrink * w + d).to(TYPE), mask=inside)


def launch(
    like: Tensor, pointers: list[int], sizes: list[int], buffered: bool, scalars: Sequence[float],
    factors: Sequence[float],
) -> None:  # fmt: skip
    """Steps all tensors, of the device and type of `like`, by one launch."""
    blocks, sizes_table = _blocks(tuple(sizes), like.device)
    table = _table(tuple(pointers), like.device)
    align = 16 if all(pointer % 16 == 0 for pointer in pointers) else like.element_size()
    with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
        step_kernel[(len(blocks),)](
            table, sizes_table, blocks, *scalars, *factors, *[0.0] * (4 - len(factors)),
            COUNT=len(factors), BUFFER=buffered, TYPE=_TYPES[like.dtype], ALIGN=align, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip


@lru_cache(maxsize=64)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    rows = [(tensor, start) for tensor, size in enumerate(sizes) for start in range(0, size, BLOCK)]
    return torch.tensor(rows, dtype=torch.int64).to(device), torch.tensor(sizes, dtype=torch.int64).to(device)


# The differences take turns, and the allocator gives gradients their old places again: few tables serve many steps.
@lru_cache(maxsize=64)
def _table(pointers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(pointers, dtype=torch.int64).to(device)
