"""The second stage: rows are dealt to the splits, and the stored columns become indices of each field's values."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tmbench.errors import ConfigError, DataError
from tmbench.files import writing
from tmbench.progress import progress

from .columns import blocks, count_blocks, distinct, moment, read_block

if TYPE_CHECKING:
    from . import Avazu

OF_HOUR = ("hour", "weekday", "weekend")  # the fields made of the column hour
SPLITS = ("train", "valid", "test")
LEFT_OUT = 255  # in place of a split: not in the sample
# How many indices fit.
WIDTHS: dict[np.dtype[Any], int] = {
    np.dtype("u1"): 2**8,
    np.dtype("i2"): 2**15,
    np.dtype("i4"): 2**31,
}


class Indexing:
    def __init__(self, data: "Avazu", columns: Path, out: Path, settings: dict[str, Any]) -> None:
        self.data, self.columns, self.out, self.settings = data, columns, out, settings
        self.names = [path.name.partition(".")[0] for path in data.files()]
        self.rows = {name: (columns / f"{name}.{data.label}").stat().st_size for name in self.names}
        if settings["rows"] > sum(self.rows.values()):
            got = f"{sum(self.rows.values()):,}, as many as there are, got {settings['rows']:,}"
            raise ConfigError(f"task.rows: expected at most {got}")

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
            sizes = {name: min(1 + len(known), most) for name, known in values.items()}
            groups: dict[np.dtype[Any], list[str]] = {
                dtype: [name for name in fields if below < sizes[name] <= most]
                for below, (dtype, most) in zip((0, *WIDTHS.values()), WIDTHS.items(), strict=False)
            }
            self._write(counts, groups, values, sizes, pool)
        names = [name for group in groups.values() for name in group]
        description = {"names": names, "sizes": [sizes[name] for name in names], "rows": counts}
        (self.out / "fields.json").write_text(json.dumps(description | {"settings": self.settings}, indent=1))
        for name in self.names:
            (self.out / f"{name}.split").unlink()

    def _deal(self) -> dict[str, int]:
        """Writes the split of each row, one byte each; returns the rows of each split."""
        counts = np.zeros((len(SPLITS), 2), int)
        wanted, total, days = self.settings["rows"], sum(self.rows.values()), self._days()
        for i, name in enumerate(self.names):
            here = left = self.rows[name]
            if self.settings["rows"]:  # each file's share; what rounding leaves over is the last's
                left = round(wanted * here / total)
                wanted, total = wanted - left, total - here
            with (self.out / f"{name}.split").open("wb") as f:
                for block, clicks in enumerate(blocks(self.columns / f"{name}.{self.data.label}", np.uint8)):
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
            day = read_block(self.columns / f"{self.names[i]}.hour", np.uint32, block) // 100
            splits[taken] = np.where(day == days[-1], 2, np.where(day == days[-2], 1, 0))[taken]
        else:  # the same share of the clicks and of the rest, block by block
            for click in (0, 1):
                rows_of_kind = rng.permutation(np.flatnonzero(taken & (clicks == click)))
                train, valid = round(0.8 * len(rows_of_kind)), round(0.9 * len(rows_of_kind))
                splits[rows_of_kind[:train]], splits[rows_of_kind[train:valid]], splits[rows_of_kind[valid:]] = 0, 1, 2
        return splits

    def _days(self) -> np.ndarray:
        """The days that there are, for the split by day; of one that is not to be held out, the last is twice there."""
        if self.settings["split"] != "day":
            return np.empty(0, np.uint32)
        path = self.columns / f"{self.names[0]}.hour"
        days = np.unique(np.concatenate([distinct(hours // 100) for hours in blocks(path, np.uint32)]))
        if len(days) < 2:
            raise ConfigError(f"task.split=day: all rows are of one day, {days[0]}; use task.split=random")
        return days if len(days) > 2 else np.array([days[0], days[1] + 1, days[1]])  # a day that no row has

    def _keys(self, name: str, field: str, block: int) -> np.ndarray:
        """What a block of rows has in a field, as integers that are equal where its values are."""
        keys = read_block(self.columns / f"{name}.{'hour' if field in OF_HOUR else field}", np.uint32, block)
        self.advance(keys.nbytes)
        if field not in OF_HOUR:
            return keys
        hours = distinct(keys)
        moments = [moment(int(hour)) for hour in hours]
        parts = {"hour": lambda m: m.hour, "weekday": lambda m: m.weekday(), "weekend": lambda m: m.weekday() >= 5}
        return np.array([parts[field](m) for m in moments], np.uint32)[_places(keys, hours)]

    def _values(self, field: str) -> np.ndarray:
        """The values of a field that are frequent enough in the training rows, sorted."""
        values, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
        for name, block in self._all_blocks():
            keys = self._keys(name, field, block)[read_block(self.out / f"{name}.split", np.uint8, block) == 0]
            more, their = np.unique(keys, return_counts=True)
            values, inverse = np.unique(np.concatenate([values, more]), return_inverse=True)
            counts = np.bincount(inverse, np.concatenate([counts, their])).astype(np.int64)
        return values[counts >= self.settings["min_count"]]

    def _all_blocks(self) -> Iterable[tuple[str, int]]:
        return ((name, block) for name in self.names for block in range(count_blocks(self.rows[name])))

    def _write(
        self, counts: dict[str, int], groups: dict[np.dtype[Any], list[str]], values: dict[str, np.ndarray],
        sizes: dict[str, int], pool: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        files: dict[tuple[str, str], Any] = {}
        used = {dtype: names for dtype, names in groups.items() if names}
        try:
            for split, rows in counts.items():
                for dtype, names in used.items():
                    files[split, str(dtype)] = npy_file(self.out / f"{split}_{dtype}.npy", dtype, (rows, len(names)))
                files[split, "click"] = npy_file(self.out / f"{split}_click.npy", np.dtype(np.uint8), (rows,))
            for name, block in self._all_blocks():
                splits = read_block(self.out / f"{name}.split", np.uint8, block)
                arrays: dict[str, np.ndarray] = {
                    "click": read_block(self.columns / f"{name}.{self.data.label}", np.uint8, block)
                }
                for dtype, names in used.items():
                    indices_NF = arrays[str(dtype)] = np.empty((len(splits), len(names)), dtype)

                    def fill(f: int, names: list[str] = names, indices_NF: np.ndarray = indices_NF) -> None:
                        keys = self._keys(name, names[f], block)  # noqa: B023 (done within the round)
                        indices_NF[:, f] = _indices(keys, values[names[f]], sizes[names[f]])

                    list(pool.map(fill, range(len(names))))
                for i, split in enumerate(SPLITS):
                    in_split = np.flatnonzero(splits == i)
                    for kind, array in arrays.items():
                        array.take(in_split, axis=0).tofile(files[split, kind])
        finally:
            for file in files.values():
                file.close()


def _indices(keys: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """1 + each key's place among the values, 0 for one that is not there; its bucket where there are more values."""
    if 1 + len(values) > size:
        return hashed(keys) % np.uint32(size)
    return _places(keys, values) + 1


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


def hashed(keys: np.ndarray) -> np.ndarray:
    """Each key's hash: MurmurHash3's finalizer, under which no two of 2^32 keys become one (before the modulo)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        keys = (keys ^ keys >> np.uint32(shift)) * np.uint32(factor)
    return keys


def npy_file(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """An .npy file whose content is still to be written, row by row."""
    file, header = path.open("wb"), {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
    return file
