"""Finished runs in one Parquet file: a row a run, whose columns are the files that say what it was and what it came to.

That is what a repository can keep of hundreds of runs. Their weights, figures and states to resume from are left out.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.identity import OVERRIDES
from ..errors import ConfigError, DataError, UsageError
from ..files import folder_for, land, naming, read, scratch_folder, write
from ..result import EXAMPLES, FINAL, Result, examples_of
from ..verbs import Values
from . import Run, find

FILES = ("config.yaml", OVERRIDES, "result.json", "curves.csv", EXAMPLES)  # each has its digest, here or in the result
NEEDED = ("config.yaml", "result.json")
SUFFIX = ".parquet"


def pack(file: Path, runs: Iterable[Run]) -> tuple[int, int]:
    """Adds the finished runs that the file has not; returns how many those are, and how many are in it then.

    Raises:
        DataError: the file, or a run, is damaged; nothing was written.
    """
    rows = rows_of(file) if file.exists() else []
    there = {row["run_id"] for row in rows}
    new = [_row(run) for run in runs if run.status in FINAL and run.folder.name not in there]
    if new:
        table = pa.Table.from_pylist(rows + new, pa.schema([(name, pa.string()) for name in ("run_id", *FILES)]))
        with naming(file), scratch_folder(folder_for("pack", file.parent)) as scratch:
            path = Path(scratch) / "runs"
            pq.write_table(table, path, compression="zstd", write_page_checksum=True, write_statistics=False)
            land(path, file)
    return len(new), len(rows) + len(new)


def _row(run: Run) -> dict[str, str | None]:
    _check(run.folder)
    files = {name: run.folder / name for name in FILES}
    return {"run_id": run.folder.name} | {
        name: read(path, bytes.decode) if path.exists() else None for name, path in files.items()
    }


def _check(folder: Path) -> None:
    """Raises DataError if one of the run's files is missing, or not what was written."""
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise DataError(f"{folder}: damaged: it has no {missing[0]}")
    result = Result.load(folder)
    if result is None or result.run_id != folder.name:
        raise DataError(f"{folder}: renamed, or damaged: its result.json is of another run")
    run = Run(folder, result, result.status)
    _ = run.config, run.curves, examples_of(folder)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file that `pack` wrote. Raises DataError if it is another, or damaged."""

    def parse(content: bytes) -> list[dict[str, Any]]:
        # Without threads of its own: one that is busy when the process ends aborts it (pyarrow 26.0, one time in five).
        alone = {"use_threads": False, "pre_buffer": False}
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True, **alone)
        if missing := {"run_id", *NEEDED} - {*table.column_names}:
            raise DataError(f"expected a file of `tmbench runs pack`, got one without {', '.join(sorted(missing))}")
        return [dict.fromkeys(FILES) | row for row in table.to_pylist()]

    try:
        return read(file, parse, "take it from where it came from")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; `tmbench runs pack {file}` makes it of finished runs") from None


def unpack(file: Path, runs_dir: Path) -> dict[Path, bool]:
    """Makes the folders of the file's runs, but for those that are there; returns all, with whether each is new.

    Raises:
        DataError: the file, or a run in it, is damaged; that run and those after it were not made.
    """
    folders = dict[Path, bool]()
    for row in rows_of(file):
        name = str(row["run_id"])
        if not name.isprintable() or name.startswith(".") or Path(name).name != name:
            raise DataError(f"{file}: damaged: {name!r:.100} is no id of a run")
        target = runs_dir / name
        folders[target] = not target.exists()
        if not folders[target]:
            continue
        with scratch_folder(runs_dir) as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            for key in FILES:
                if row[key] is not None:
                    write(folder / key, str(row[key]), durable=False)
            try:
                _check(folder)
            except DataError as error:
                raise DataError(f"{file}: {str(error).replace(f'{scratch}/', '')}") from None
            os.replace(folder, target)
    return folders


def _file_of(verb: str, words: list[str]) -> tuple[Path, list[str]]:
    if not words or not words[0].endswith(SUFFIX):
        raise UsageError(f"{verb}: expected a file whose name ends with {SUFFIX}, got {words[0] if words else 'none'}")
    return Path(words[0]).expanduser(), words[1:]


def pack_runs(values: Values, words: list[str]) -> int:
    file, words = _file_of("pack", words)
    runs = find(Path(values["runs_dir"]), words)
    new, count = pack(file, runs)
    known = sum(run.status in FINAL for run in runs) - new
    told = f"{file}: {new} runs added, {known} there already; {count} in all"
    left = len(runs) - new - known
    print(f"{told}{f'; left out: {left} not finished' if left else ''}")
    return 0


def unpack_runs(values: Values, words: list[str]) -> int:
    file, words = _file_of("unpack", words)
    if words:
        raise UsageError(f"unpack: expected one file, got {' '.join([str(file), *words])}")
    runs_dir = folder_for("runs_dir", values["runs_dir"])
    folders = unpack(file, runs_dir)
    print(f"{runs_dir}: {sum(folders.values())} of {len(folders)} runs made; the others were there already")
    return 0
