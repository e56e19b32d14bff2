"""The first stage: CSV files, checked, to columns of integers: how values are written, and the files these lie in."""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset
from tmbench.errors import DataError
from tmbench.files import writing
from tmbench.progress import progress

HEXADECIMAL = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id", "device_ip",
    "device_model",
)  # fmt: skip
COLUMNS = (
    "id", "click", "hour", "C1", "banner_pos", *HEXADECIMAL, "device_type", "device_conn_type", "C14", "C15", "C16",
    "C17", "C18", "C19", "C20", "C21",
)  # fmt: skip
BLOCK = 2**21  # rows
CHUNK = 2**21  # bytes of text
LONGEST = 2**16  # bytes of a line; real ones have some 150


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
        return np.dtype("u1" if self is CLICKED else {"uint64": "u8", "uint8": "u1"}.get(self.type, "u4"))


ID = Kind("uint64", "a whole number below 2^64", rb"[0-9]{1,20}")
CLICK = Kind("uint8", "0 or 1", rb"[01]")
HOUR = Kind("int32", "an hour as YYMMDDHH", rb"[0-9]{8}")
HEX = Kind("binary", "8 hexadecimal digits", rb"[0-9a-f]{8}")
WHOLE = Kind("int32", "a whole number of at most 9 digits", rb"-?[0-9]{1,9}")
INDEX = Kind("double", "a whole number of at most 9 digits", rb"-?[0-9]{1,9}(\.0*)?")  # as pandas may have written it
CLICKED = Kind("double", "0 or 1", rb"[01](\.0*)?")


def as_integers(kind: Kind, column: Any) -> np.ndarray:
    """A pyarrow column as integers (rows,) that are equal where its values are; Refused if one is not of this kind."""
    if kind is HEX:
        return from_hex(np.frombuffer(column.buffers()[1], ">u8", len(column), 8 * column.offset).astype("u8"))
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    if kind in (CLICK, CLICKED) and not np.isin(values, (0, 1)).all():
        raise Refused
    if kind is HOUR and any(moment(int(hour)) is None for hour in distinct(values)):
        raise Refused
    if kind is INDEX and not ((values == np.rint(values)) & (abs(values) < 1e9)).all():
        raise Refused
    if kind in (INDEX, CLICKED):
        values = values.astype(np.int32 if kind is INDEX else np.uint8)
    return values.view(kind.dtype)


def _each(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte] * 8)))


def from_hex(words_N: np.ndarray) -> np.ndarray:
    """The numbers (uint32) that words of 8 hexadecimal digits stand for; Refused if one has others than 0-9a-f.

    All 8 characters of a word at once, as the bytes of one uint64, the first in the highest byte.
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


class Columns(Dataset):
    """CSV files of the same columns; a subclass says which files, and which columns of which kind."""

    kinds: Mapping[str, Kind]
    optional: tuple[str, ...] = ()  # columns that may be missing
    label: str

    def counts(self) -> dict[str, int]:
        """How many rows each file has, all of them checked."""
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            return self.store(Path(scratch), 0, ids_alone=True)

    def store(self, out: Path, first: int, ids_alone: bool = False) -> dict[str, int]:
        """Writes each column of each file as `<file>.<column>`, of the first rows or all (0); returns how many."""
        counts = {}
        for path in self.files():
            name = path.name.partition(".")[0]
            counts[name] = 0
            with writing(out), ExitStack() as stack:
                files: dict[str, Any] = {}
                for batch in self._batches(path):
                    for column in batch if not files else ():
                        if not ids_alone or column == "id":
                            files[column] = stack.enter_context((out / f"{name}.{column}").open("wb"))
                    count = len(batch[self.label])
                    if first:
                        count = min(count, first - counts[name])
                    for column, file in files.items():
                        file.write(batch[column][:count].data)
                    counts[name] += count
                    if counts[name] == first:
                        break
            if not counts[name]:
                raise DataError(f"{path}, line 2: expected rows after the header, there are none")
        self._check_ids(out)
        return counts

    def _batches(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        """The file's columns, some thousand rows at a time: uint8 labels, uint64 ids, uint32 for all else.

        Raises:
            DataError: names the first line that is wrong.
        """
        import pyarrow as pa
        from pyarrow import csv

        header = self._header(path)
        types = {name: pa.type_for_alias(self.kinds[name].type) for name in header}
        types |= {name: pa.binary(8) for name in header if self.kinds[name] is HEX}
        try:
            with pa.OSFile(str(path)) as raw, progress(path.name, 0, path.stat().st_size) as advance:
                reader = csv.open_csv(
                    pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else raw,
                    read_options=csv.ReadOptions(block_size=CHUNK),
                    parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                    convert_options=csv.ConvertOptions(column_types=types, null_values=[]),
                )
                at = 0
                for batch in reader:
                    yield {name: as_integers(self.kinds[name], batch.column(name)) for name in header}
                    advance(raw.tell() - at)
                    at = raw.tell()
        except (ValueError, OSError) as error:  # pyarrow's are such; it seldom tells the line
            raise self._first_wrong(path, header, error) from None

    def _header(self, path: Path) -> list[str]:
        """The names of the columns, in the file's order."""
        expected = f"expected the header {','.join(self.kinds)}"
        try:
            first = next(lines_of(path), None)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}, line 1: {expected}, the file cannot be read ({error})") from None
        if first is None:
            raise DataError(f"{path}, line 1: {expected}, the file is empty")
        names = first.decode("ascii", "backslashreplace").split(",")
        if sorted({*names, *self.optional}) != sorted(self.kinds) or len(set(names)) < len(names):
            raise DataError(f"{path}, line 1: {expected}, got {shown(first, 300)}")
        return names

    def _first_wrong(self, path: Path, header: list[str], reason: Exception) -> DataError:
        """The error for a file that pyarrow or a check has refused: found line by line, which is slow but exact."""
        kinds = [self.kinds[name] for name in header]
        right = re.compile(b",".join(b"(?:%s)" % kind.pattern for kind in kinds))
        beyond = [(i, kind) for i, kind in enumerate(kinds) if kind in (ID, HOUR)]  # more than a pattern
        number = 1
        try:
            lines = lines_of(path)
            next(lines)
            for number, line in enumerate(lines, 2):
                values = line.split(b",")
                if right.fullmatch(line) and all(kind.fits(values[i]) for i, kind in beyond):
                    continue
                if len(values) != len(kinds):
                    return DataError(f"{path}, line {number}: expected {len(kinds)} values, got {len(values)}")
                wrong = (i for i, kind in enumerate(kinds) if not kind.is_right(values[i]))
                if (i := next(wrong, None)) is not None:
                    got = f"expected {kinds[i].expected}, got {shown(values[i], 50)}"
                    return DataError(f"{path}, line {number}, {header[i]}: {got}")
        except (OSError, EOFError) as error:
            return DataError(f"{path}, line {number + 1}: the file is cut short or damaged there ({error})")
        return DataError(f"{path}: {shown(str(reason).encode(), 300)}")

    def _check_ids(self, columns: Path) -> None:
        """DataError if two rows have one id; ids are sorted by remainder, so that only some millions are in memory."""
        paths = {path.name.partition(".")[0]: path for path in self.files()}
        stored = {name: columns / f"{name}.id" for name in paths if (columns / f"{name}.id").is_file()}
        parts = 1 + sum(path.stat().st_size for path in stored.values()) // 8 // 2**25
        for part in range(parts):
            some = [ids[ids % parts == part] if parts > 1 else ids for path in stored.values() for ids in blocks(path)]
            ids = np.concatenate(some) if some else np.empty(0, np.uint64)
            ids.sort()
            again = ids[1:][ids[1:] == ids[:-1]]
            if not len(again):
                continue
            lines = []
            for name, path in stored.items():
                for block, ids in enumerate(blocks(path)):
                    lines += [(paths[name], 2 + block * BLOCK + int(i)) for i in np.flatnonzero(ids == again[0])]
            (path, line), (other, earlier) = lines[1], lines[0]
            where = f"line {earlier}" if other == path else f"{other}, line {earlier}"
            raise DataError(f"{path}, line {line}, id: expected each id once, {again[0]} is on {where} already")


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, of a damaged gz all that can be had; then an OSError or EOFError."""
    opener: Any = partial(gzip.open, mode="rb") if path.suffix == ".gz" else partial(open, mode="rb")
    with opener(path) as f:
        rest = b""
        try:
            while chunk := f.read1(2**16):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.removesuffix(b"\r")
                if len(rest) > LONGEST:
                    raise OSError(f"a line of more than {LONGEST:,} bytes")
        except zlib.error as error:
            raise OSError(str(error)) from None
    if rest:
        yield rest.removesuffix(b"\r")


def shown(text: bytes, length: int) -> str:
    return repr(text[:length].decode("ascii", "backslashreplace")) + ("..." if len(text) > length else "")
