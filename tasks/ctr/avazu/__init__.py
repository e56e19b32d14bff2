"""Avazu's click log in Kaggle's CSV and in the reczoo x4 and x1 splits: from text to small integers, out of core.

Two stages, each kept under runs_dir once it is done. First every file is read once by pyarrow, checked, and stored
column by column as plain integers; that depends on the files alone. Then, for the settings asked for, rows are dealt to
the splits, the values of each field are counted in the training rows, and all is written as indices: row-major, the
narrow fields apart from the wide ones, to be mapped into memory. Both go block by block: memory holds a few blocks and
the values of the fields in work, however many rows there are.

Legend: N rows, F fields.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import entry
from tmbench.errors import ConfigError
from tmbench.files import locked

from .columns import CLICK, CLICKED, COLUMNS, HEX, HEXADECIMAL, HOUR, ID, INDEX, WHOLE, Columns, Kind
from .indexing import OF_HOUR, SPLITS, WIDTHS, Indexing

TINY_ROWS, TINY_DAYS = 6000, 4
SETTINGS: dict[str, Any] = {
    "split": "random",
    "split_seed": 0,
    "rows": 0,
    "sample": "random",
    "min_count": 1,
    "buckets": 0,
}


@dataclass(frozen=True)
class Table:
    """A split as it lies on the disk: each example's indices in three groups of fields, and its label."""

    sizes: list[int]  # indices of each field, in the groups' order; 0 is whatever is rare or unknown
    names: list[str]
    groups: list[np.ndarray]  # (N, F of the group) each: uint8, int16, int32; none without fields
    clicks_N: np.ndarray  # uint8


class Avazu(Columns):
    """Kaggle's train.csv, or train.gz as it comes."""

    folder = "avazu"
    entry = entry("avazu")
    kinds: Mapping[str, Kind] = {
        name: {"id": ID, "click": CLICK, "hour": HOUR}.get(name, HEX if name in HEXADECIMAL else WHOLE)
        for name in COLUMNS
    }
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

    def table(self, split: str, /, **settings: Any) -> Table:
        """A split, mapped into memory; prepared under the runs_dir of the run that has opened these files."""
        assert self.opened is not None, "only a run knows where to"
        folder = self.prepared(*self.opened, **settings)
        saved = json.loads((folder / "fields.json").read_text())
        # Copy on write: nobody writes, but torch warns of arrays that cannot be written to.
        arrays = {path.stem: np.load(path, mmap_mode="c") for path in folder.glob(f"{split}_*.npy")}
        groups = [arrays[f"{split}_{dtype}"] for dtype in WIDTHS if f"{split}_{dtype}" in arrays]
        return Table(saved["sizes"], saved["names"], groups, arrays[f"{split}_click"])

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
            self.store(out, settings["first"])
            return
        first = settings["rows"] if settings["sample"] == "first" and not self.given else 0
        columns = super().prepared(*self._at, first=first)
        Indexing(self, columns, out, settings).run()

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
        return [self.file(f"{split}.csv") for split in SPLITS]

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        columns = cls.columns_of(tiny_columns(rng))
        cuts = (0, TINY_ROWS * 8 // 10, TINY_ROWS * 9 // 10, TINY_ROWS)
        for split, first, last in zip(SPLITS, cuts, cuts[1:], strict=False):
            write_csv(root / f"{split}.csv", {name: values[first:last] for name, values in columns.items()})

    @staticmethod
    def columns_of(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        """The columns of this form of the data, of Kaggle's."""
        return columns


class AvazuX1(AvazuX4):
    """reczoo's x1: 22 fields that are indices already, without names."""

    folder = "avazu_x1"
    entry = entry("avazu_x1")
    optional = ()
    label = "label"
    kinds = {"label": CLICKED, **{f"feat_{i}": INDEX for i in range(1, 23)}}

    @staticmethod
    def columns_of(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        indices: dict[str, list[str]] = {"label": columns["click"]}
        last = 0
        for i, name in enumerate(COLUMNS[2:], 1):
            _, inverse = np.unique(columns[name], return_inverse=True)
            indices[f"feat_{i}"] = [str(last + 1 + int(v)) for v in inverse]  # each field goes on where another ends
            last += 1 + int(inverse.max())
        return indices


def write_csv(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    rows = map(",".join, zip(*columns.values(), strict=True))
    path.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")


def tiny_columns(rng: np.random.Generator) -> dict[str, list[str]]:
    """Rows in which site, place, model and hour decide much, a sixth of them clicked; all else is noise."""
    count = TINY_ROWS
    ids = sorted(str(i) for i in rng.integers(10**18, 2**64, count, np.uint64))  # as Kaggle's: by their text
    columns: dict[str, list[str]] = {"id": ids}
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
