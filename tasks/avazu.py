"""Avazu's click log in Kaggle's CSV and in the reczoo x4 and x1 splits: from text to small integers, out of core.

Two stages, each kept under runs_dir once it is done. First every file is read once by pyarrow, checked, and stored
column by column as plain integers; that depends on the files alone. Then, for the settings asked for, rows are dealt to
the splits, the values of each field are counted in the training rows, and all is written as indices: row-major, the
narrow fields apart from the wide ones, to be mapped into memory. Both go block by block: memory holds a few blocks and
the values of the fields in work, however many rows there are.

Legend: N rows, F fields.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset, entry
from tmbench.data.files import progress, writing
from tmbench.errors import ConfigError, DataError
from tmbench.files import locked

HEXADECIMAL = (
    "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category", "device_id", "device_ip",
    "device_model",
)  # fmt: skip
COLUMNS = (
    "id", "click", "hour", "C1", "banner_pos", *HEXADECIMAL, "device_type", "device_conn_type", "C14", "C15", "C16",
    "C17", "C18", "C19", "C20", "C21",
)  # fmt: skip
OF_HOUR = ("hour", "weekday", "weekend")  # the fields made of the column hour
SPLITS = ("train", "valid", "test")
LEFT_OUT = 255  # in place of a split: not in the sample
BLOCK = 2**21  # rows
CHUNK = 2**21  # bytes of text
LONGEST = 2**16  # bytes of a line; real ones have some 150
WIDTHS: dict[np.dtype[Any], int] = {
    np.dtype(np.uint8): 2**8,
    np.dtype(np.int16): 2**15,
    np.dtype(np.int32): 2**31,
}  # how many indices fit
SETTINGS: dict[str, Any] = {
    "split": "random", "split_seed": 0, "rows": 0, "sample": "random", "min_count": 1, "buckets": 0,
}  # fmt: skip
TINY_ROWS, TINY_DAYS = 6000, 4


class _Refused(ValueError):  # noqa: N818 (it is caught here)
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


@dataclass(frozen=True)
class Table:
    """A split as it lies on the disk: each example's indices in three groups of fields, and its label."""

    sizes: list[int]  # indices of each field, in the groups' order; 0 is whatever is rare or unknown
    names: list[str]
    groups: list[np.ndarray]  # (N, F of the group) each: uint8, int16, int32; none without fields
    clicks_N: np.ndarray  # uint8


class Avazu(Dataset):
    """Kaggle's train.csv, or train.gz as it comes."""

    folder = "avazu"
    entry = entry("avazu")
    kinds: Mapping[str, Kind] = {
        name: {"id": ID, "click": CLICK, "hour": HOUR}.get(name, HEX if name in HEXADECIMAL else WHOLE)
        for name in COLUMNS
    }
    optional: tuple[str, ...] = ()  # columns that may be missing
    label = "click"
    given = False  # whether each file is a split

    def files(self) -> list[Path]:
        (file,) = entry("avazu").files
        if found := file.under(self.root):
            return found
        raise self.missing(self.root / file.path)

    @property
    def fields(self) -> list[str]:
        names = [name for name in self.kinds if name not in ("id", self.label, "hour")]
        return [*OF_HOUR, *names] if "hour" in self.kinds else names

    def counts(self) -> dict[str, int]:
        """How many rows each file has, all of them checked."""
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            return self._store(Path(scratch), 0, ids_alone=True)

    def table(self, split: str, /, **settings: Any) -> Table:
        """A split, mapped into memory; prepared under the runs_dir of the run that has opened these files."""
        assert self.opened is not None, "only a run knows where to"
        folder = self.prepared(*self.opened, **settings)
        told = json.loads((folder / "fields.json").read_text())
        # Copy on write: nobody writes, but torch warns of arrays that cannot be written to.
        arrays = {path.stem: np.load(path, mmap_mode="c") for path in folder.glob(f"{split}_*.npy")}
        groups = [arrays[f"{split}_{dtype}"] for dtype in WIDTHS if f"{split}_{dtype}" in arrays]
        return Table(told["sizes"], told["names"], groups, arrays[f"{split}_click"])

    def prepared(self, runs_dir: Path, digests: dict[str, str] | None = None, **settings: Any) -> Path:
        if unknown := settings.keys() - SETTINGS.keys():
            raise ConfigError(f"{self.folder}: there is no setting {', '.join(sorted(unknown))}")
        settings = SETTINGS | settings
        for name, least in (("rows", 0), ("min_count", 1), ("buckets", 0)):
            value = settings[name]
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"task.{name}: expected a whole number >= {least}, got {value!r}")
        if self.given:
            settings["split"] = "given"
        self._at = runs_dir, digests or self.digests()
        # Ranks of one run, and runs of one sweep, would all do the same work at once.
        with locked(runs_dir / ".prepared" / f".{self.folder}"):
            return super().prepared(*self._at, **settings)

    def prepare(self, out: Path, **settings: Any) -> None:
        """Every example as indices of its fields' values, to be mapped into memory."""
        if "first" in settings:
            self._store(out, settings["first"])
            return
        first = settings["rows"] if settings["sample"] == "first" and not self.given else 0
        columns = super().prepared(*self._at, first=first)
        _Indexing(self, columns, out, settings).run()

    # The first stage: text to columns

    def _store(self, out: Path, first: int, ids_alone: bool = False) -> dict[str, int]:
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
                    yield {name: self._integers(name, batch.column(name)) for name in header}
                    advance(raw.tell() - at)
                    at = raw.tell()
        except (ValueError, OSError) as error:  # pyarrow's are such; it seldom tells the line
            raise self._first_wrong(path, header, error) from None

    def _integers(self, name: str, column: Any) -> np.ndarray:
        """A column of a batch as integers that are equal where its values are; _Refused if one is not as it should."""
        kind = self.kinds[name]
        if kind is HEX:
            return _from_hex(np.frombuffer(column.buffers()[1], ">u8", len(column), 8 * column.offset).astype("u8"))
        values: np.ndarray = column.to_numpy(zero_copy_only=False)
        if kind in (CLICK, CLICKED) and not np.isin(values, (0, 1)).all():
            raise _Refused
        if kind is HOUR and any(moment(int(hour)) is None for hour in _distinct(values)):
            raise _Refused
        if kind is INDEX and not ((values == np.rint(values)) & (abs(values) < 1e9)).all():
            raise _Refused
        if kind is CLICKED:
            return values.astype(np.uint8)
        if kind is INDEX:
            values = values.astype(np.int32)
        return values.view(kind.dtype)

    def _header(self, path: Path) -> list[str]:
        """The names of the columns, in the file's order."""
        expected = f"expected the header {','.join(self.kinds)}"
        try:
            first = next(_lines(path), None)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}, line 1: {expected}, the file cannot be read ({error})") from None
        if first is None:
            raise DataError(f"{path}, line 1: {expected}, the file is empty")
        names = first.decode("ascii", "backslashreplace").split(",")
        if sorted({*names, *self.optional}) != sorted(self.kinds) or len(set(names)) < len(names):
            raise DataError(f"{path}, line 1: {expected}, got {_shown(first, 300)}")
        return names

    def _first_wrong(self, path: Path, header: list[str], reason: Exception) -> DataError:
        """The error for a file that pyarrow or a check has refused: found line by line, which is slow but exact."""
        kinds = [self.kinds[name] for name in header]
        right = re.compile(b",".join(b"(?:%s)" % kind.pattern for kind in kinds))
        beyond = [(i, kind) for i, kind in enumerate(kinds) if kind in (ID, HOUR)]  # more than a pattern
        number = 1
        try:
            lines = _lines(path)
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
                            f"{path}, line {number}, {name}: expected {kind.expected}, got {_shown(value, 50)}"
                        )
        except (OSError, EOFError) as error:
            return DataError(f"{path}, line {number + 1}: the file is cut short or damaged there ({error})")
        return DataError(f"{path}: {_shown(str(reason).encode(), 300)}")

    def _check_ids(self, columns: Path) -> None:
        """Raises DataError if two rows have one id.

        Ids are sorted by parts, of the same remainder each, so that no more than some millions are in memory.
        """
        paths = {path.name.partition(".")[0]: path for path in self.files()}
        stored = {name: columns / f"{name}.id" for name in paths if (columns / f"{name}.id").is_file()}
        parts = 1 + sum(path.stat().st_size for path in stored.values()) // 8 // 2**25
        for part in range(parts):
            own = [ids[ids % parts == part] if parts > 1 else ids for path in stored.values() for ids in _blocks(path)]
            ids = np.concatenate(own) if own else np.empty(0, np.uint64)
            ids.sort()
            again = ids[1:][ids[1:] == ids[:-1]]
            if not len(again):
                continue
            lines = []
            for name, path in stored.items():
                for block, ids in enumerate(_blocks(path)):
                    lines += [(paths[name], 2 + block * BLOCK + int(i)) for i in np.flatnonzero(ids == again[0])]
            (path, line), (other, earlier) = lines[1], lines[0]
            where = f"line {earlier}" if other == path else f"{other}, line {earlier}"
            raise DataError(f"{path}, line {line}, id: expected each id once, {again[0]} is on {where} already")

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        write_csv(root / "train.csv", tiny_columns(rng))


class AvazuX4(Avazu):
    """reczoo's x4: Kaggle's rows as three files, dealt at random."""

    folder = "avazu_x4"
    entry = entry("avazu_x4")
    optional: tuple[str, ...] = ("id",)
    given = True

    def files(self) -> list[Path]:
        paths = [self.root / f"{split}.csv" for split in SPLITS]
        for path in paths:
            if not path.is_file():
                raise self.missing(path)
        return paths

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        cls._write_splits(root, tiny_columns(rng))

    @classmethod
    def _write_splits(cls, root: Path, columns: dict[str, list[str]]) -> None:
        cuts = (0, TINY_ROWS * 8 // 10, TINY_ROWS * 9 // 10, TINY_ROWS)
        for split, first, last in zip(SPLITS, cuts, cuts[1:], strict=False):
            write_csv(root / f"{split}.csv", {name: values[first:last] for name, values in columns.items()})


class AvazuX1(AvazuX4):
    """reczoo's x1: 22 fields that are indices already, without names."""

    folder = "avazu_x1"
    entry = entry("avazu_x1")
    optional = ()
    label = "label"
    kinds = {"label": CLICKED, **{f"feat_{i}": INDEX for i in range(1, 23)}}

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        columns = tiny_columns(rng)
        indices: dict[str, list[str]] = {"label": columns["click"]}
        last = 0
        for i, name in enumerate(COLUMNS[2:], 1):
            _, inverse = np.unique(columns[name], return_inverse=True)
            indices[f"feat_{i}"] = [str(last + 1 + int(v)) for v in inverse]  # each field goes on where another ends
            last += 1 + int(inverse.max())
        cls._write_splits(root, indices)


class _Indexing:
    """The second stage: from stored columns to indices."""

    def __init__(self, data: Avazu, columns: Path, out: Path, settings: dict[str, Any]) -> None:
        self.data, self.columns, self.out, self.settings = data, columns, out, settings
        self.names = [path.name.partition(".")[0] for path in data.files()]
        self.rows = {name: (columns / f"{name}.{data.label}").stat().st_size for name in self.names}
        if settings["rows"] > sum(self.rows.values()):
            there = sum(self.rows.values())
            raise ConfigError(f"task.rows: expected at most {there:,}, as many as there are, got {settings['rows']:,}")

    def run(self) -> None:
        fields = self.data.fields
        # Sorting, searching and reading leave the interpreter free.
        with (
            writing(self.out),
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            progress("indexing", 0, 2 * 4 * len(fields) * sum(self.rows.values())) as self.advance,
        ):
            counts = self._deal()
            values = dict(zip(fields, pool.map(self._values, fields), strict=True))
            most = self.settings["buckets"] or 2**31
            sizes = {name: min(1 + len(own), most) for name, own in values.items()}
            groups: dict[np.dtype[Any], list[str]] = {
                dtype: [name for name in fields if below < sizes[name] <= most]
                for below, (dtype, most) in zip((0, *WIDTHS.values()), WIDTHS.items(), strict=False)
            }
            self._write(counts, groups, values, sizes, pool)
        names = [name for group in groups.values() for name in group]
        told = {"names": names, "sizes": [sizes[name] for name in names], "rows": counts, "settings": self.settings}
        (self.out / "fields.json").write_text(json.dumps(told, indent=1))
        for name in self.names:
            (self.out / f"{name}.split").unlink()

    def _deal(self) -> dict[str, int]:
        """Writes the split of each row, one byte each; returns the rows of each split."""
        counts = np.zeros((len(SPLITS), 2), int)
        asked, total, days = self.settings["rows"], sum(self.rows.values()), self._days()
        for i, name in enumerate(self.names):
            here = left = self.rows[name]
            if self.settings["rows"]:  # each file's share; what rounding leaves over is the last's
                left = round(asked * here / total)
                asked, total = asked - left, total - here
            with (self.out / f"{name}.split").open("wb") as f:
                for block, clicks in enumerate(_blocks(self.columns / f"{name}.{self.data.label}", np.uint8)):
                    rng = np.random.default_rng((self.settings["split_seed"], i, block))
                    here -= len(clicks)
                    splits = self._splits(i, block, clicks, days, rng, left, here)
                    left -= int((splits != LEFT_OUT).sum())
                    for split, click in ((s, c) for s in range(len(SPLITS)) for c in (0, 1)):
                        counts[split, click] += ((splits == split) & (clicks == click)).sum()
                    splits.tofile(f)
        for split in (0, 2):
            if not counts[split].all():
                raise DataError(
                    f"{self.data.root}: expected rows with and without a click in the {SPLITS[split]} split, got "
                    f"{counts[split, 1]:,} with and {counts[split, 0]:,} without; take more rows, or another split"
                )
        return {split: int(count) for split, count in zip(SPLITS, counts.sum(1), strict=True)}

    def _splits(
        self, i: int, block: int, clicks: np.ndarray, days: np.ndarray, rng: np.random.Generator, left: int, later: int
    ) -> np.ndarray:
        """The split of each row of a block, of which the sample takes its part of the `left` rows still wanted."""
        count = len(clicks)
        taken = np.ones(count, bool)
        if self.settings["rows"] and self.settings["sample"] == "first":
            taken[left:] = False
        elif self.settings["rows"]:
            taken[:] = False
            share = rng.hypergeometric(left, count + later - left, count)
            taken[rng.choice(count, share, replace=False)] = True
        splits = np.full(count, LEFT_OUT, np.uint8)
        if self.settings["split"] == "given":
            splits[taken] = i
        elif self.settings["split"] == "day":
            day = _read(self.columns / f"{self.names[i]}.hour", np.uint32, block) // 100
            splits[taken] = np.where(day == days[-1], 2, np.where(day == days[-2], 1, 0))[taken]
        else:  # the same share of the clicks and of the rest, block by block
            for click in (0, 1):
                own = rng.permutation(np.flatnonzero(taken & (clicks == click)))
                train, valid = round(0.8 * len(own)), round(0.9 * len(own))
                splits[own[:train]], splits[own[train:valid]], splits[own[valid:]] = 0, 1, 2
        return splits

    def _days(self) -> np.ndarray:
        """The days that there are, for the split by day; of one that is not to be held out, the last is twice there."""
        if self.settings["split"] != "day":
            return np.empty(0, np.uint32)
        path = self.columns / f"{self.names[0]}.hour"
        days = np.unique(np.concatenate([_distinct(hours // 100) for hours in _blocks(path, np.uint32)]))
        if len(days) < 2:
            raise ConfigError(f"task.split=day: all rows are of one day, {days[0]}; use task.split=random")
        return days if len(days) > 2 else np.array([days[0], days[1] + 1, days[1]])  # a day that no row has

    def _keys(self, name: str, field: str, block: int) -> np.ndarray:
        """What a block of rows has in a field, as integers that are equal where its values are."""
        keys = _read(self.columns / f"{name}.{'hour' if field in OF_HOUR else field}", np.uint32, block)
        self.advance(keys.nbytes)
        if field not in OF_HOUR:
            return keys
        hours = _distinct(keys)
        moments = [moment(int(hour)) for hour in hours]
        own = {
            "hour": [m.hour for m in moments if m],
            "weekday": [m.weekday() for m in moments if m],
            "weekend": [int(m.weekday() >= 5) for m in moments if m],
        }
        return np.array(own[field], np.uint32)[_places(keys, hours)]

    def _values(self, field: str) -> np.ndarray:
        """The values of a field that are frequent enough in the training rows, sorted."""
        values, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
        for name, block in self._all_blocks():
            keys = self._keys(name, field, block)[_read(self.out / f"{name}.split", np.uint8, block) == 0]
            more, their = np.unique(keys, return_counts=True)
            values, inverse = np.unique(np.concatenate([values, more]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts, their])).astype(np.int64)
        return values[counts >= self.settings["min_count"]]

    def _all_blocks(self) -> Iterable[tuple[str, int]]:
        return ((name, block) for name in self.names for block in range(-(-self.rows[name] // BLOCK)))

    def _write(
        self, counts: dict[str, int], groups: dict[np.dtype[Any], list[str]], values: dict[str, np.ndarray],
        sizes: dict[str, int], pool: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        files: dict[tuple[str, str], Any] = {}
        used = {dtype: names for dtype, names in groups.items() if names}
        try:
            for split, rows in counts.items():
                for dtype, names in used.items():
                    files[split, str(dtype)] = _npy(self.out / f"{split}_{dtype}.npy", dtype, (rows, len(names)))
                files[split, "click"] = _npy(self.out / f"{split}_click.npy", np.dtype(np.uint8), (rows,))
            for name, block in self._all_blocks():
                splits = _read(self.out / f"{name}.split", np.uint8, block)
                arrays: dict[str, np.ndarray] = {
                    "click": _read(self.columns / f"{name}.{self.data.label}", np.uint8, block)
                }
                for dtype, names in used.items():
                    indices_NF = arrays[str(dtype)] = np.empty((len(splits), len(names)), dtype)

                    def fill(f: int, names: list[str] = names, indices_NF: np.ndarray = indices_NF) -> None:
                        keys = self._keys(name, names[f], block)  # noqa: B023 (done within the round)
                        indices_NF[:, f] = _indices(keys, values[names[f]], sizes[names[f]])

                    list(pool.map(fill, range(len(names))))
                for i, split in enumerate(SPLITS):
                    own = np.flatnonzero(splits == i)
                    for kind, array in arrays.items():
                        array.take(own, axis=0).tofile(files[split, kind])
        finally:
            for file in files.values():
                file.close()


def _indices(keys: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """1 + each key's place among the values, 0 for one that is not there; its bucket where there are more values."""
    if 1 + len(values) > size:
        return _mixed(keys) % np.uint32(size)
    return _places(keys, values) + 1


def _distinct(keys: np.ndarray) -> np.ndarray:
    """The values that there are, sorted; quick where equal ones follow one another."""
    return np.unique(keys[np.flatnonzero(np.diff(keys, prepend=~keys[:1]))])


def _places(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each key is among the sorted values; -1 for one that is not there."""
    import pyarrow as pa
    from pyarrow import compute

    if len(values) and (span := int(values[-1] - values[0])) < 2**16:
        table = np.full(span + 2, -1, np.int32)
        table[values - values[0]] = np.arange(len(values))
        return table[np.minimum(keys - values[0], np.uint32(span + 1))]  # what is below wraps round, and is far above
    places = compute.index_in(pa.array(keys), value_set=pa.array(values))  # hashed: far faster than a binary search
    found: np.ndarray = compute.fill_null(places, -1).to_numpy(zero_copy_only=False)
    return found


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Each key's hash: MurmurHash3's finalizer, under which no two of 2^32 keys become one (before the modulo)."""
    keys = keys.copy()
    keys ^= keys >> np.uint32(16)
    keys *= np.uint32(0x85EBCA6B)
    keys ^= keys >> np.uint32(13)
    keys *= np.uint32(0xC2B2AE35)
    keys ^= keys >> np.uint32(16)
    return keys


def _each(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte] * 8)))


def _from_hex(words_N: np.ndarray) -> np.ndarray:
    """The numbers (uint32) that words of 8 hexadecimal digits stand for; _Refused if one has others than 0-9a-f.

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
        raise _Refused
    for bits, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        digit = (digit | (digit >> np.uint64(bits))) & np.uint64(mask)
    return digit.astype(np.uint32)


def _read(path: Path, dtype: Any, block: int) -> np.ndarray:
    # Not mapped: pages of a mapped file would count as this process's memory.
    return np.fromfile(path, dtype, BLOCK, offset=block * BLOCK * np.dtype(dtype).itemsize)


def _blocks(path: Path, dtype: Any = np.uint64) -> Iterator[np.ndarray]:
    rows = path.stat().st_size // np.dtype(dtype).itemsize
    return (_read(path, dtype, block) for block in range(-(-rows // BLOCK)))


def _npy(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """An .npy file whose content is still to be written, row by row."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return file


def _lines(path: Path) -> Iterator[bytes]:
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


def _shown(text: bytes, length: int) -> str:
    return repr(text[:length].decode("ascii", "backslashreplace")) + ("..." if len(text) > length else "")


def write_csv(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    rows = map(",".join, zip(*columns.values(), strict=True))
    path.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")


def tiny_columns(rng: np.random.Generator) -> dict[str, list[str]]:
    """Rows in which site, place, model and hour decide much, a sixth of them clicked; all else is noise."""
    count = TINY_ROWS
    columns: dict[str, list[str]] = {
        "id": sorted(str(i) for i in rng.integers(10**18, 2**64, count, np.uint64)),  # as Kaggle's: by their text
        "click": [],
    }
    hours = np.sort(rng.integers(0, 24 * TINY_DAYS, count))
    columns["hour"] = [f"1410{21 + h // 24}{h % 24:02d}" for h in hours]
    logit = np.where(hours % 24 < 8, -1.5, 0.5)
    sizes = {"C1": 5, "banner_pos": 4, "device_ip": 2000, "device_id": 400, "C14": 100, "C17": 40, "C20": 60}
    for name in COLUMNS[3:]:
        size = sizes.get(name, 12)
        chosen = np.minimum(rng.geometric(3 / size, count) - 1, size - 1)
        if name in ("site_id", "app_category", "banner_pos", "device_model", "C21"):
            logit += rng.normal(0, 2, size)[chosen]
        if name in HEXADECIMAL:
            words = [f"{v:08x}" for v in rng.choice(2**32, size, replace=False)]
        else:
            words = [str(v) for v in rng.choice(1000, size, replace=False) - (name == "C20")]
        columns[name] = [words[v] for v in chosen]
    logit -= np.quantile(logit, 5 / 6)
    columns["click"] = [str(int(v)) for v in rng.random(count) < 1 / (1 + np.exp(-2 * logit))]
    return {name: columns[name] for name in COLUMNS}
