"""`tmbench data`: lists the data sets, and gets, checks, prepares and describes them."""

import importlib
import os
import re
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.table import values_of
from ..config.values import Setting
from ..errors import ConfigError, DataError, UsageError, did_you_mean
from ..files import digest_of
from ..folders import MANIFEST, written_once
from ..verbs import ERROR, RUNS_DIR, Values, Verb, leave, out_dir
from . import Dataset, fetch
from .catalogue import Entry, catalogue, manifest
from .files import digests_of

COLOURS = {"full": "green", "here": "green", "subset": "yellow", "part": "yellow", "broken": "red", "missing": "dim"}
COLUMNS = {"name": 0, "task": 0, "what it is": 5, "download": 0, "licence or terms": 4, "here": 4}
NARROW = {"name": 0, "what it is; task; download; terms": 3, "here": 1}  # the same on a narrow terminal
WIDE = 100  # characters that the six columns need
QUICK = 2**24  # bytes: larger files are not read for the list


@dataclass(frozen=True)
class Target:
    """A data set that a person named, its reader, and what the catalogue says of it, if anything."""

    name: str
    dataset: Dataset
    entry: Entry | None


def data_dir_of(values: Values) -> Path:
    return Path(values["data_dir"] or os.environ.get("TMBENCH_DATA", "./data"))  # as in conf/config.yaml


def targets_of(values: Values, names: list[str], needs_name: str = "") -> list[Target]:
    """The data sets with these names, all of the catalogue if there are none; UsageError if a name is needed."""
    if needs_name and not names:
        raise UsageError(f"data {needs_name}: expected a task (seg), a data set (voc2007) or a class (mymodule.MyData)")
    known, data_dir = catalogue(), data_dir_of(values)
    tasks = list(dict.fromkeys(task for entry in known.values() for task in entry.tasks))
    targets: list[Target] = []
    for name in names or known:
        if name in known:
            readers = (cls for task in known[name].tasks for cls in _readers(task) if cls.folder == name)
            chosen: list[tuple[type[Dataset], Entry | None]] = [(next(readers), known[name])]
        elif name in tasks:
            by_folder = {cls.folder: cls for cls in _readers(name)}
            entries = [entry for entry in known.values() if name in entry.tasks and not entry.alternative]
            chosen = [(by_folder[entry.name], entry.of(name)) for entry in entries]
        elif "." in name:
            chosen = [((cls := _class(name)), cls.entry)]
        else:
            hint = did_you_mean(name, [*known, *tasks]) or f"; there are {', '.join([*tasks, *known])}"
            raise ConfigError(f"{name}: no task or data set has this name{hint}")
        targets += [Target(cls.folder, cls(data_dir / cls.folder), entry) for cls, entry in chosen]
    return targets


def _readers(task: str) -> list[type[Dataset]]:
    """The classes that read a task's data sets, as its YAML says."""
    data = values_of(f"task/{task}.yaml")["data"]
    readers = [_class(name) for name in ([data] if isinstance(data, str) else data.values())]
    return list(dict.fromkeys([*readers, *(part for cls in readers for part in cls.parts)]))


def _class(path: str) -> type[Dataset]:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: no such class ({error})") from None
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise ConfigError(f"{path}: expected a tmbench.data.Dataset, got {cls!r}")
    return cls


def _console() -> Console:
    """Standard output; wide enough for a table where it is a file."""
    is_told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_told else 120)


def _coloured(state: str, width: int = 0) -> str:
    return f"[{COLOURS[state]}]{state:<{width}}[/{COLOURS[state]}]"


def show(values: Values, names: list[str]) -> int:
    console = _console()
    title = f"Data sets, and what is here of them, in {data_dir_of(values)}"
    table = Table(title=title, title_justify="left", show_lines=True, expand=True)
    is_wide = console.width >= WIDE
    for column, ratio in (COLUMNS if is_wide else NARROW).items():
        table.add_column(column, ratio=ratio or None, overflow="fold")
    for target in targets_of(values, names):
        if (entry := target.entry) is not None:
            size = "by hand" if entry.by_hand else entry.size
            state, why = what_is_here(entry, target.dataset.root)
            here = f"{_coloured(state)}\n{escape(why)}" if why else _coloured(state)
            tasks = " ".join(entry.tasks)
            cells = (tasks, entry.about, size, entry.terms) if is_wide else (
                f"{entry.about}\n{tasks}; {size}; {entry.terms}",
            )  # fmt: skip
            table.add_row(target.name, *cells, here)
    console.print(table)
    console.print("tmbench data get NAME downloads one; tmbench data verify NAME says whether it is the published one")
    return 0


def what_is_here(entry: Entry, root: Path) -> tuple[str, str]:
    """Whether it is `missing`, `here` or there in `part`, and why, without reading large files."""
    absent = entry.absent(root)
    reasons = [f"no {file.path}" for file in absent]
    reasons += [text for file in entry.files for text in file.differences(root, QUICK)]
    if len(absent) == len(entry.files):
        return "missing", ""
    if not reasons:
        return "here", ""
    first = re.sub(": expected (md5|sha256|[0-9]).*", ": not as published", reasons[0].rpartition("/")[2])
    more = f"\nand {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return "part", f"{first}{more}"


def get(values: Values, names: list[str]) -> int:
    for target in targets_of(values, names, "get"):
        if target.entry is not None:
            fetch.get(target.entry, target.dataset.root)
        else:
            target.dataset.download()
    return check(values, names)


def check(values: Values, names: list[str]) -> int:
    console, code = _console(), 0
    for target in targets_of(values, names):
        if target.entry is not None:
            state, reasons = verify(target.entry, target.dataset)
        else:
            counts = target.dataset.counts()
            list(target.dataset.files())
            state, reasons = "subset", ["of nothing published", *(f"{split} {n:,}" for split, n in counts.items())]
        if state == "broken" or (state == "missing" and names):
            code = ERROR
        if state == "missing" and not names:
            reasons = []
        name = f"[bold]{target.name:<10}[/bold]"
        console.print(f"{name} {_coloured(state, 7)}  {escape(str(target.dataset.root))}", soft_wrap=True)
        for reason in reasons:
            console.print(f"           {escape(reason)}", soft_wrap=True)
    return code


def verify(entry: Entry, dataset: Dataset) -> tuple[str, list[str]]:
    """Whether what is here is the published data set: `full`, `subset`, `broken` or `missing`, and why.

    Reads every file anew and compares it with the catalogue, and reads every example. `full` is said of files that are
    all known by digest or, where none is known, by how many rows there are. All else that can be read is a `subset`.
    """
    root, absent = dataset.root, entry.absent(dataset.root)
    if len(absent) == len(entry.files):
        return "missing", entry.advice(root)
    needed = [file for file in absent if not file.tasks or entry.part]
    if needed:
        return "broken", [*(f"no {root / file.path}" for file in needed), *entry.advice(root)]
    here = sorted({path for file in entry.files for path in file.under(root)})
    if empty := [f"{path}: the file is empty" for path in here if not path.stat().st_size]:
        return "broken", empty
    reasons = [f"no {file.path} ({', '.join(file.tasks)} needs it)" for file in absent]
    try:
        counts, read = dataset.counts(), list(dataset.files())
    except DataError as error:
        return "broken", str(error).splitlines()
    for archive in entry.archives:
        if (path := root / archive.path).is_file() and (wrong := archive.wrong(path)):
            reasons.append(f"{archive.path}: {wrong}")
        out = manifest(root, archive)
        changed = [name for name, d in out.items() if not (root / name).is_file() or digest_of(root / name) != d]
        if changed:
            others = f"{len(changed):,} of {len(out):,} files are not as in {archive.path}"
            reasons.append(f"{others}; the first is {changed[0]}")
    reasons += [difference for file in entry.files for difference in file.differences(root)]
    for split, count in counts.items():
        if not reasons and count != entry.counts.get(split, count):
            reasons.append(f"{split}: {count:,} of {entry.counts[split]:,} examples")
    if not reasons and not entry.is_official(root, digests_of(root, read)):
        reasons.append("the counts are the published ones, but the digests of these files are not known")
        reasons += [f"with {a.path} beside them, `get` compares each file with it" for a in entry.archives]
    if reasons:
        return "subset", reasons
    numbers = ", ".join(f"{split} {count:,}" for split, count in (counts or entry.counts).items())
    alone = ["no digest of them is known; only the number of their rows was compared"] if entry.by_count else []
    return "full", [f"the published files: {numbers}", *alone]


def prepare(values: Values, names: list[str]) -> int:
    for target in targets_of(values, names, "prepare"):
        prepare = type(target.dataset).prepare
        if prepare is Dataset.prepare:
            print(f"{target.name}: nothing to prepare; its files are read as they are")
        else:
            folder = target.dataset.prepared(Path(values["runs_dir"]))
            print(f"{target.name}: {(prepare.__doc__ or '').splitlines()[0]}\n  {folder}")
    return 0


def describe(values: Values, names: list[str]) -> int:
    from .croissant import describe

    targets, out = targets_of(values, names), values["out"]
    if out and len(targets) > 1:
        raise ConfigError(f"out: expected one data set for one file, got {', '.join(t.name for t in targets)}")
    for target in targets:
        if target.entry is None:
            raise ConfigError(f"{target.name}: the catalogue has no entry for it that could be described")
        state, reasons = verify(target.entry, target.dataset)
        if state in ("missing", "broken"):
            if state == "missing" and not names:
                continue
            raise DataError("\n  ".join([f"{target.name}: {state}, and cannot be described", *reasons]))
        root = target.dataset.root
        path = Path(out) if out else root / "croissant.json"
        unknown = describe(target.entry, root, state, reasons, path)
        print(f"{target.name}: {state}; described in {path}, which mlcroissant accepts")
        if unknown:
            print(f"  recommended, but not known: {', '.join(unknown)}")
    return 0


def tiny(values: Values, names: list[str]) -> int:
    import numpy as np

    out = values["out"]
    for target in targets_of(values, names, "tiny"):
        root = Path(out) / target.name
        if root.exists():
            raise DataError(f"{root}: is there already; remove it, or name another folder with out=DIR")
        written_once(root, partial(target.dataset.write_tiny, rng=np.random.default_rng(0)))
        (root / MANIFEST).unlink()  # a person may change it
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"{target.name}: {len(files)} files, {size:,} bytes, in {root}; the same that data=tiny trains on")
        print(f"  tmbench data verify {target.name} {shlex.quote(f'data_dir={out}')}")
    return 0


def _verb(name: str, summary: str, do: Any, **more: Setting) -> Verb:
    settings = {"data_dir": Setting("a folder, or null", "where the data sets are; null: TMBENCH_DATA, else ./data")}
    example = f"tmbench data {name} seg voc2007 mymodule.MyData   for a task, a data set and a class of your own"
    return Verb(f"data {name}", summary, do, settings | more, "[NAME ...]", example)


FILE = Setting("a file, or null", "where it is written; null: croissant.json in the folder of the data set")
main = Verb(
    "data",
    "Lists the data sets, and gets, checks, prepares and describes them.",
    None,
    choices={
        "list": _verb("list", "Lists all data sets: what they are, their size and terms, what is here.", show),
        "get": _verb("get", "Downloads what is missing, checks it and unpacks it.", get),
        "prepare": _verb("prepare", "Writes what is derived from the files.", prepare, runs_dir=RUNS_DIR),
        "verify": _verb("verify", "Reads all files: are they the published ones, a subset, broken?", check),
        "describe": _verb("describe", "Writes a description in Croissant (JSON-LD).", describe, out=FILE),
        "tiny": _verb("tiny", "Writes a tiny set in the same format, to look at.", tiny, out=out_dir("./tiny-data")),
    },
)

if __name__ == "__main__":
    leave(main())
