"""`tmbench runs`: lists the runs in a folder; shows, compares, draws, packs, removes them; frees space. Torch-free."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from ..config.trust import TRUST
from ..config.values import Setting
from ..errors import ConfigError, UsageError
from ..files import abandoned_in, is_a_day_old, locked, remove
from ..folders import freed_without, size
from ..trunks import GIB, STORE, leftovers, shrink
from ..verbs import DATA_DIR, ERROR, JSON, RUNS_DIR, Values, Verb, leave, out_dir
from . import REMOVING, Run, find, leftovers_in, show
from .compare import compare

FILTERS = "[RUN | KEY=VALUE[,VALUE] ...]"


def list_runs(values: Values, words: list[str]) -> int:
    runs_dir = Path(values["runs_dir"])
    runs = find(runs_dir, words)
    if values["json"]:
        print(json.dumps([asdict(run.result) for run in runs if run.result], indent=2))
    else:
        show.many(runs, runs_dir, show.console())
    return 0


def show_run(values: Values, words: list[str]) -> int:
    runs = find(Path(values["runs_dir"]), words)
    if len(runs) != 1 or runs[0].result is None:
        names = ", ".join(f"{run.folder.name} ({run.status})" for run in runs[:5])
        raise ConfigError(f"show: expected one run with a result, got {len(runs)}: {names}")
    show.one(runs[0].result, runs[0].folder, "listed", show.console())
    return 0


def remove_runs(values: Values, words: list[str]) -> int:
    """Removes runs that no process works on, after asking; returns the exit status."""
    if not words:
        raise UsageError("remove: expected run ids or filters, such as status=failed")
    runs = find(Path(values["runs_dir"]), words)
    for run in runs:
        print(f"{run.folder}  {run.status}")
    if runs and not values["yes"]:
        if not sys.stdin.isatty():
            raise ConfigError("remove: cannot ask, since stdin is not a terminal; to remove these runs, add yes=true")
        if input(f"remove these {len(runs)} runs? [y/N] ").strip().lower() != "y":
            print("nothing removed")
            return ERROR
    removed = sum(_remove(run.folder) for run in runs)
    print(f"removed {removed} runs")
    return ERROR if removed < len(runs) else 0


def _remove(folder: Path) -> bool:
    """Removes a run; whether that was possible. Else it says why."""
    removing = folder.with_name(REMOVING + folder.name)
    try:
        with locked(folder, wait=False):
            shutil.rmtree(removing, ignore_errors=True)
            os.replace(folder, removing)  # at once, so that no half of a run is ever found
        shutil.rmtree(removing)
        return True
    except OSError as error:
        why = "a process is at work on it" if isinstance(error, BlockingIOError) else error.strerror
        print(f"{folder}: {why}; not removed", file=sys.stderr)
        return False


def free_space(values: Values, words: list[str]) -> int:
    """Removes what killed processes left, and shared states beyond the limit; 1 if something stays."""
    runs_dir = Path(values["runs_dir"])
    store = runs_dir / STORE
    freed, removed = 0, True
    for path in _leftovers(runs_dir, find(runs_dir, [])):
        freed += freed_without(path)
        removed &= remove(path)
        freed -= freed_without(path)
    freed += freed_without(store)
    for path in shrink(store, values["limit"] * GIB):
        removed = False
        print(f"{path}: not removed; is it yours?", file=sys.stderr)
    freed -= freed_without(store)
    print(f"freed {show.size_words(freed)}; shared states now take {show.size_words(size(store))}")
    return 0 if removed else ERROR


def _leftovers(runs_dir: Path, runs: list[Run]) -> Iterator[Path]:
    """What killed processes left half-done, each while we hold the lock of its folder."""
    yield from runs_dir.glob(f"{REMOVING}*")
    for folder in [run.folder for run in runs] + list(runs_dir.glob(".tune/*/")):
        with suppress(BlockingIOError), locked(folder, wait=False):  # else somebody works there
            yield from leftovers_in(folder)
    for name in (".tiny", ".prepared"):
        yield from abandoned_in(runs_dir / name)
    yield from filter(is_a_day_old, (runs_dir / ".prepared").glob(".unfinished-*"))
    yield from leftovers(runs_dir / STORE)


def _later(module: str, function: str) -> Callable[[Values, list[str]], int]:
    """What a command does, in a module of ours that imports much: only then."""
    return lambda values, words: int(getattr(import_module(f"tmbench.runs.{module}"), function)(values, words))


HERE = {"runs_dir": RUNS_DIR}
LIST = HERE | {"json": JSON}
FIGURES = HERE | {"data_dir": DATA_DIR, "out": out_dir("./figures"), "trust": TRUST}
REMOVE = HERE | {"yes": Setting("true or false", "do not ask", False)}
GC = HERE | {"limit": Setting("a number >= 0", "GiB of shared states to keep, the most recently used", 0)}
VERBS = (
    Verb("runs list", "Lists the runs that fit all filters.", list_runs, LIST, FILTERS),
    Verb("runs show", "Shows the result of one run.", show_run, HERE, "RUN"),
    Verb("runs compare", "Shows how runs differ: settings, environment, outcome.", compare, HERE, "RUN RUN ..."),
    Verb("runs figures", "Draws the predictions of several trained runs of a task, side by side.",
         _later("figures", "draw"), FIGURES, f"TASK {FILTERS}",
         "tmbench runs figures fkpd seed=0 optimizer=sgd,tmsgd"),
    Verb("runs remove", "Removes runs, after asking.", remove_runs, REMOVE, FILTERS),
    Verb("runs pack", "Adds finished runs to one Parquet file: settings, results, curves, no weights.",
         _later("archive", "pack_runs"), HERE, f"FILE.parquet {FILTERS}",
         "tmbench runs pack r8.parquet task=tc profile=full"),
    Verb("runs unpack", "Makes the runs of such a file again, as runs that are done.",
         _later("archive", "unpack_runs"), HERE, "FILE.parquet"),
    Verb("runs gc", "Frees space: what killed processes left, and shared states beyond a limit.", free_space, GC),
)  # fmt: skip
EXAMPLES = """
tmbench runs status=failed,stopped          which of them failed or were stopped
tmbench runs task=tc lr=0.1 task.width=50   a filter is a status, a profile or any setting
tmbench runs show tc-tmsgd-0-4ed8           a run is called by its id, the start of it, or its folder"""
SUMMARY = "Lists the runs in a folder; shows, compares, draws, packs and removes them. Without a command: list."
main = Verb("runs", SUMMARY, list_runs, LIST, FILTERS, EXAMPLES, {verb.name.split()[1]: verb for verb in VERBS})

if __name__ == "__main__":
    leave(main())
