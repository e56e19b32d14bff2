"""The first stage: CSV files, checked, to columns of integers."""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset
from tmbench.data.files import progress, writing
from tmbench.errors import DataError

from . import kinds
from .kinds import HOUR, ID, Kind, as_integers

CHUNK = 2**21  # bytes of text
LONGEST = 2**16  # bytes of a line; real ones have some 150


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
            with writing(out):
                files: dict[str, Any] = {}
                try:
                    for batch in self._batches(path):
                        if not files:
                            kept = [column for column in batch if not ids_alone or column == "id"]
                            files = {column: (out / f"{name}.{column}").open("wb") for column in kept}
                        count = len(batch[self.label])
                        if first:
                            count = min(count, first - counts[name])
                        for column, file in files.items():
                            file.write(batch[column][:count].data)
                        counts[name] += count
                        if counts[name] == first:
                            break
                finally:
                    for file in files.values():
                        file.close()
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
        types = {"binary": pa.binary(8), **{name: getattr(pa, name)() for name in ("uint64", "uint8", "int32")}}
        types["double"] = pa.float64()
        try:
            with pa.OSFile(str(path)) as raw, progress(path.name, 0, path.stat().st_size) as advance:
                reader = csv.open_csv(
                    pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else raw,
                    read_options=csv.ReadOptions(block_size=CHUNK),
                    parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
                    convert_options=csv.ConvertOptions(
                        column_types={name: types[self.kinds[name].type] for name in header}, null_values=[]
                    ),
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
                for name, kind, value in zip(header, kinds, values, strict=True):
                    if not kind.is_right(value):
                        return DataError(
                            f"{path}, line {number}, {name}: expected {kind.expected}, got {shown(value, 50)}"
                        )
        except (OSError, EOFError) as error:
            return DataError(f"{path}, line {number + 1}: the file is cut short or damaged there ({error})")
        return DataError(f"{path}: {shown(str(reason).encode(), 300)}")

    def _check_ids(self, columns: Path) -> None:
        """Raises DataError if two rows have one id.

        Ids are sorted by parts, of the same remainder each, so that no more than some millions are in memory.
        """
        paths = {path.name.partition(".")[0]: path for path in self.files()}
        stored = {name: columns / f"{name}.id" for name in paths if (columns / f"{name}.id").is_file()}
        parts = 1 + sum(path.stat().st_size for path in stored.values()) // 8 // 2**25
        for part in range(parts):
            some = [
                ids[ids % parts == part] if parts > 1 else ids for path in stored.values() for ids in kinds.blocks(path)
            ]
            ids = np.concatenate(some) if some else np.empty(0, np.uint64)
            ids.sort()
            again = ids[1:][ids[1:] == ids[:-1]]
            if not len(again):
                continue
            lines = []
            for name, path in stored.items():
                for block, ids in enumerate(kinds.blocks(path)):
                    lines += [(paths[name], 2 + block * kinds.BLOCK + int(i)) for i in np.flatnonzero(ids == again[0])]
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
