"""Columns of integers in plain files, read a block of rows at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 2**21  # rows


def count(rows: int) -> int:
    """How many blocks so many rows fill."""
    return -(-rows // BLOCK)


def read(path: Path, dtype: Any, block: int) -> np.ndarray:
    """The values (rows,) of a block; fewer at the end of the file."""
    # Not mapped: pages of a mapped file would count as this process's memory.
    return np.fromfile(path, dtype, BLOCK, offset=block * BLOCK * np.dtype(dtype).itemsize)


def blocks(path: Path, dtype: Any = np.uint64) -> Iterator[np.ndarray]:
    """The values of a file, block by block."""
    rows = path.stat().st_size // np.dtype(dtype).itemsize
    return (read(path, dtype, block) for block in range(count(rows)))


def distinct(keys: np.ndarray) -> np.ndarray:
    """The values that there are, sorted; quick where equal ones follow one another."""
    return np.unique(keys[np.flatnonzero(np.diff(keys, prepend=~keys[:1]))])
