"""How the values of Avazu's columns are written, the integers that stand for them, and the files these lie in."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

HEXADECIMAL = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id", "device_ip",
    "device_model",
)  # fmt: skip
COLUMNS = (
    "id", "click", "hour", "C1", "banner_pos", *HEXADECIMAL, "device_type", "device_conn_type", "C14", "C15", "C16",
    "C17", "C18", "C19", "C20", "C21",
)  # fmt: skip
BLOCK = 2**21  # rows


class Refused(ValueError):  # noqa: N818 (the reader catches it)
    """Something is wrong with a value; which line it is on, a second pass finds out."""


@lru_cache(4096)
def moment(hour: int) -> datetime | None:
    """The time of Avazu's YYMMDDHH; None if there is no such hour."""
    try:
        return datetime.strptime(f"{hour:08d}", "%y%m%d%H")
    except ValueError:
        return None


@dataclass(frozen=True)
class Kind:
    """How the values of a column are written, for the second pass; pyarrow's type for the first."""

    type: str
    expected: str
    pattern: bytes

    def is_right(self, value: bytes) -> bool:
        return re.fullmatch(self.pattern, value) is not None and self.fits(value)

    def fits(self, value: bytes) -> bool:
        """Whether a value of the right pattern is in range."""
        return (self is not ID or int(value) < 2**64) and (self is not HOUR or moment(int(value)) is not None)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({"uint64": "u8", "uint8": "u1"}.get(self.type, "u4"))


ID = Kind("uint64", "a whole number below 2^64", rb"[0-9]{1,20}")
CLICK = Kind("uint8", "0 or 1", rb"[01]")
HOUR = Kind("int32", "an hour as YYMMDDHH", rb"[0-9]{8}")
HEX = Kind("binary", "8 hexadecimal digits", rb"[0-9a-f]{8}")
WHOLE = Kind("int32", "a whole number of at most 9 digits", rb"-?[0-9]{1,9}")
INDEX = Kind("double", "a whole number of at most 9 digits", rb"-?[0-9]{1,9}(\.0*)?")  # as pandas may have written it
CLICKED = Kind("double", "0 or 1", rb"[01](\.0*)?")


def as_integers(kind: Kind, column: Any) -> np.ndarray:
    """A pyarrow column as integers (rows,) that are equal where its values are.

    Raises:
        Refused: a value is not of this kind.
    """
    if kind is HEX:
        return from_hex(np.frombuffer(column.buffers()[1], ">u8", len(column), 8 * column.offset).astype("u8"))
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    if kind in (CLICK, CLICKED) and not np.isin(values, (0, 1)).all():
        raise Refused
    if kind is HOUR and any(moment(int(hour)) is None for hour in distinct(values)):
        raise Refused
    if kind is INDEX and not ((values == np.rint(values)) & (abs(values) < 1e9)).all():
        raise Refused
    if kind is CLICKED:
        return values.astype(np.uint8)
    if kind is INDEX:
        values = values.astype(np.int32)
    return values.view(kind.dtype)


def _each(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte] * 8)))


def from_hex(words_N: np.ndarray) -> np.ndarray:
    """The numbers (uint32) that words of 8 hexadecimal digits stand for; Refused if one has others than 0-9a-f.

    All 8 characters of a word at once, as the bytes of one number.

    Args:
        words_N: the characters, the first in the highest byte; uint64.
    """
    letter = (words_N >> np.uint64(6)) & _each(1)
    digit = (words_N & _each(15)) + letter * np.uint64(9)
    wrong = (digit + _each(ord("0")) + letter * np.uint64(ord("a") - ord("0") - 10)) ^ words_N
    wrong |= (((digit + _each(6)) >> np.uint64(4)) & _each(15)) ^ letter  # a letter is 10 to 15, all else is less
    wrong |= digit & _each(0xF0)
    if wrong.any():
        raise Refused
    for bits, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        digit = (digit | (digit >> np.uint64(bits))) & np.uint64(mask)
    return digit.astype(np.uint32)


def count_blocks(rows: int) -> int:
    """How many blocks so many rows fill."""
    return -(-rows // BLOCK)


def read_block(path: Path, dtype: Any, block: int) -> np.ndarray:
    """The values (rows,) of a block; fewer at the end of the file."""
    # Not mapped: pages of a mapped file would count as this process's memory.
    return np.fromfile(path, dtype, BLOCK, offset=block * BLOCK * np.dtype(dtype).itemsize)


def blocks(path: Path, dtype: Any = np.uint64) -> Iterator[np.ndarray]:
    """The values of a file, block by block."""
    rows = path.stat().st_size // np.dtype(dtype).itemsize
    return (read_block(path, dtype, block) for block in range(count_blocks(rows)))


def distinct(keys: np.ndarray) -> np.ndarray:
    """The values that there are, sorted; quick where equal ones follow one another."""
    return np.unique(keys[np.flatnonzero(np.diff(keys, prepend=~keys[:1]))])
