"""`python -m tmbench.data`: what data sets there are, and how to get, check, prepare and describe them."""

import argparse
import difflib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.settle import conf_dir
from ..errors import ConfigError, DataError
from ..files import MANIFEST
from . import Dataset, fetch
from .catalogue import Entry, catalogue
from .files import written_once
from .verify import verify

COLOURS = {"full": "green", "here": "green", "subset": "yellow", "part": "yellow", "broken": "red", "missing": "dim"}
COLUMNS = {"name": 0, "task": 0, "what it is": 5, "download": 0, "licence or terms": 4, "here": 4}
QUICK = 2**24  # bytes: larger files are not read for the list
DATA_DIR = "./data"  # as in conf/config.yaml


@dataclass(frozen=True)
class Target:
    """A data set that a person named: what is known of it, and what reads it, if anything does yet."""

    name: str
    root: Path
    entry: Entry | None
    cls: type[Dataset] | None

    @property
    def dataset(self) -> Dataset | None:
        return self.cls(self.root) if self.cls else None


def main(arguments: list[str] | None = None) -> int:
    """Does what is asked; 0 if it went well, 1 after an error, which is told in one message."""
    options = _parser().parse_args(arguments)
    try:
        targets = _targets(options.names, Path(options.data_dir))
        return options.do(targets, options) or 0
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
    except BrokenPipeError:  # | head
        sys.stderr.close()
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tmbench.data",
        description="Data sets: what there are, what is here, and how to get, check and describe them.",
        epilog="NAMES are tasks (seg), data sets (voc2007) or classes of your own (mymodule.MyData).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verbs: list[tuple[Callable[..., int | None], str, str]] = [
        (show, "list", "all data sets: what they are, their size and terms, what is here"),
        (get, "get", "download what is missing, check it and unpack it"),
        (prepare, "prepare", "make what is derived from the files"),
        (check, "verify", "read all files again: are they the published ones, a subset, broken?"),
        (describe, "describe", "write a description in Croissant (JSON-LD), checked by mlcroissant"),
        (tiny, "tiny", "write a tiny set in the same format, to look at"),
    ]
    for do, name, text in verbs:
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".", epilog=parser.epilog)
        command.set_defaults(do=do, out=None)
        command.add_argument("names", nargs="+" if name in ("get", "tiny", "prepare") else "*", metavar="NAMES")
        default = os.environ.get("TMBENCH_DATA", DATA_DIR)
        where = f"where the data sets are (default: TMBENCH_DATA or {DATA_DIR}; now {default})"
        command.add_argument("--data-dir", default=default, metavar="DIR", help=where)
        if name == "describe":
            command.add_argument("--out", metavar="FILE", help="default: croissant.json in the data set's folder")
        if name == "prepare":
            command.add_argument("--out", default="runs", metavar="DIR", help="your runs_dir; default: ./runs")
        if name == "tiny":
            command.add_argument("--out", default="tiny-data", metavar="DIR", help="default: ./tiny-data")
    return parser


def _targets(names: list[str], data_dir: Path) -> list[Target]:
    known = catalogue()
    tasks = list(dict.fromkeys(task for entry in known.values() for task in entry.tasks))
    found = []
    for name in names or known:
        if name in known:
            cls = next((cls for task in known[name].tasks for cls in _readers(task) if cls.folder == name), None)
            found.append(Target(name, data_dir / name, known[name], cls))
        elif name in tasks:
            readers = {cls.folder: cls for cls in _readers(name)}
            for entry in known.values():
                if name in entry.tasks and not entry.alternative:
                    root = data_dir / entry.name
                    found.append(Target(entry.name, root, entry.of(name), readers.get(entry.name)))
        elif "." in name:
            cls = _class(name)
            found.append(Target(cls.folder, data_dir / cls.folder, cls.entry, cls))
        else:
            near = difflib.get_close_matches(name, [*known, *tasks], 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join([*tasks, *known])}"
            raise ConfigError(f"{name}: no task or data set is called that; {hint}")
    return found


def _readers(task: str) -> list[type[Dataset]]:
    """What reads a task's data sets, as its YAML says; none if there is no such task yet."""
    path = conf_dir() / "task" / f"{task}.yaml"
    if not path.is_file():
        return []
    data = OmegaConf.load(path)["data"]  # type: ignore[index]
    readers = [_class(name) for name in ([data] if isinstance(data, str) else data.values())]
    return list(dict.fromkeys([*readers, *(part for cls in readers for part in cls.parts)]))


def _class(path: str) -> type[Dataset]:
    module, _, name = path.rpartition(".")
    sys.path.insert(0, os.getcwd())
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: no such class ({error})") from None
    finally:
        sys.path.pop(0)
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise ConfigError(f"{path}: expected a tmbench.data.Dataset, got {cls!r}")
    return cls


def _console() -> Console:
    """Standard output; wide enough for a table where it is a file."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=120)


def _coloured(state: str, width: int = 0) -> str:
    return f"[{COLOURS[state]}]{state:<{width}}[/{COLOURS[state]}]"


def show(targets: list[Target], options: argparse.Namespace) -> None:
    console = _console()
    title = f"Data sets, and what is here of them, in {options.data_dir}"
    table = Table(title=title, title_justify="left", show_lines=True, expand=True)
    for column, ratio in COLUMNS.items():
        table.add_column(column, ratio=ratio or None)
    for target in targets:
        entry, root = target.entry, target.root
        if entry is None:
            continue
        absent = entry.absent(root)
        told = [f"no {file.path}" for file in absent]
        told += [text for file in entry.files for text in file.differences(root, QUICK)]
        state = "missing" if len(absent) == len(entry.files) else "part" if told else "here"
        size = "by hand" if entry.by_hand else entry.size
        here = _coloured(state)
        if state == "part":
            first = re.sub(": expected (md5|sha256|[0-9]).*", ": not as published", told[0].rpartition("/")[2])
            here += f"\n{escape(first)}" + (f"\nand {len(told) - 1} more" if len(told) > 1 else "")
        table.add_row(target.name, " ".join(entry.tasks), entry.about, size, entry.terms, here)
    console.print(table)
    console.print("python -m tmbench.data get NAME fetches one; verify NAME says whether it is the published one")


def get(targets: list[Target], options: argparse.Namespace) -> int:
    for target in targets:
        if target.entry is not None:
            fetch.get(target.entry, target.root)
        elif target.dataset is not None:
            target.dataset.download()
    return check(targets, options)


def check(targets: list[Target], options: argparse.Namespace) -> int:
    console, code = _console(), 0
    for target in targets:
        if target.entry is not None:
            state, reasons = verify(target.entry, target.dataset, target.root)
        else:
            assert target.dataset is not None
            counts = target.dataset.counts()
            list(target.dataset.files())
            state, reasons = "subset", ["of nothing published", *(f"{split} {n:,}" for split, n in counts.items())]
        if state == "broken" or (state == "missing" and options.names):
            code = 1
        if state == "missing" and not options.names:
            reasons = []
        name = f"[bold]{target.name:<10}[/bold]"
        console.print(f"{name} {_coloured(state, 7)}  {escape(str(target.root))}", soft_wrap=True)
        for reason in reasons:
            console.print(f"           {escape(reason)}", soft_wrap=True)
    return code


def prepare(targets: list[Target], options: argparse.Namespace) -> None:
    for target in targets:
        dataset = target.dataset
        if dataset is None or type(dataset).prepare is Dataset.prepare:
            print(f"{target.name}: nothing to prepare; its files are read as they are")
            continue
        folder = dataset.prepared(Path(options.out))
        print(f"{target.name}: {(type(dataset).prepare.__doc__ or '').splitlines()[0]}\n  {folder}")


def describe(targets: list[Target], options: argparse.Namespace) -> None:
    from .croissant import describe

    if options.out and len(targets) > 1:
        raise ConfigError(f"--out: expected one data set for one file, got {', '.join(t.name for t in targets)}")
    for target in targets:
        if target.entry is None:
            raise ConfigError(f"{target.name}: nothing is known of it that could be described")
        state, reasons = verify(target.entry, target.dataset, target.root)
        if state in ("missing", "broken"):
            if state == "missing" and not options.names:
                continue
            raise DataError("\n  ".join([f"{target.name}: {state}, and cannot be described", *reasons]))
        path = Path(options.out) if options.out else target.root / "croissant.json"
        unknown = describe(target.entry, target.root, state, reasons, path)
        print(f"{target.name}: {state}; described in {path}, which mlcroissant accepts")
        if unknown:
            print(f"  recommended, but not known: {', '.join(unknown)}")


def tiny(targets: list[Target], options: argparse.Namespace) -> None:
    import numpy as np

    for target in targets:
        cls = target.cls
        if cls is None:
            raise ConfigError(f"{target.name}: nothing writes a tiny one yet")
        root = Path(options.out) / cls.folder
        if root.exists():
            raise DataError(f"{root}: is there already; remove it, or name another folder with --out")
        written_once(root, partial(cls.write_tiny, rng=np.random.default_rng(0)))
        (root / MANIFEST).unlink()  # it is the person's now, who may change it
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"{target.name}: {len(files)} files, {size:,} bytes, in {root}; the same that data=tiny trains on")
        print(f"  python -m tmbench.data verify {target.name} --data-dir {shlex.quote(options.out)}")


if __name__ == "__main__":
    sys.exit(main())
