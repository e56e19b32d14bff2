"""`tmbench runs`: lists the runs in a folder, shows, compares, draws and removes them, and frees space. Torch-free."""

import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.values import Setting
from ..errors import ConfigError, UsageError
from ..files import locked
from ..trunks.store import GIB, STORE, remove_leftovers, shrink, size
from ..verbs import DATA_DIR, ERROR, JSON, RUNS_DIR, Verb, leave, out_dir
from . import REMOVING, compare, find, show

Values = dict[str, Any]
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


def draw_runs(values: Values, words: list[str]) -> int:
    from .figures import draw  # matplotlib

    return draw(values, words)


def remove_runs(values: Values, words: list[str]) -> int:
    """Removes runs that no process works on, after asking; returns the exit status."""
    if not words:
        raise UsageError("remove: expected run ids or filters, such as status=failed")
    runs = find(Path(values["runs_dir"]), words)
    busy = [run for run in runs if run.status == "running"]
    for run in busy:
        print(f"{run.folder}: a process is at work on it; not removed", file=sys.stderr)
    runs = [run for run in runs if run not in busy]
    if not runs:
        print("no run to remove")
        return ERROR if busy else 0
    for run in runs:
        print(f"{run.folder}  {run.status}")
    if not values["yes"]:
        if not sys.stdin.isatty():
            raise ConfigError("remove: cannot ask, since stdin is not a terminal; to remove these runs, add yes=true")
        if input(f"remove these {len(runs)} runs? [y/N] ").strip().lower() != "y":
            print("nothing removed")
            return ERROR
    removed = sum(_remove(run.folder) for run in runs)
    print(f"removed {removed} runs")
    return ERROR if busy or removed < len(runs) else 0


def _remove(folder: Path) -> bool:
    """Removes a run; whether that was possible. Else it says why."""
    removing = folder.with_name(REMOVING + folder.name)
    try:
        with locked(folder, wait=False):
            shutil.rmtree(removing, ignore_errors=True)
            os.replace(folder, removing)  # at once, so that no half of a run is ever found
        shutil.rmtree(removing)
    except BlockingIOError:
        print(f"{folder}: a process has started to work on it; not removed", file=sys.stderr)
    except OSError as error:
        print(f"{folder}: {error.strerror}; not removed", file=sys.stderr)
    else:
        return True
    return False


def free_space(values: Values, words: list[str]) -> int:
    """Removes what killed processes left, and shared states beyond the limit."""
    runs_dir = Path(values["runs_dir"])
    find(runs_dir, [])  # raises if there is no such folder
    freed = 0
    for path in runs_dir.glob(f"{REMOVING}*"):
        freed += size(path)
        shutil.rmtree(path, ignore_errors=True)
    freed += remove_leftovers(runs_dir / STORE) + shrink(runs_dir / STORE, values["limit"] * GIB)
    print(f"freed {show.size_words(freed)}; shared states now take {show.size_words(size(runs_dir / STORE))}")
    return 0


HERE = {"runs_dir": RUNS_DIR}
FIGURES = HERE | {"data_dir": DATA_DIR, "out": out_dir("./figures")}
YES = Setting("true or false", "do not ask", False)
LIMIT = Setting("a number >= 0", "GiB of shared states to keep, the most recently used", 0)
main = Verb(
    "runs",
    "Lists the runs in a folder; shows, compares, draws and removes them. Without a command: list.",
    list_runs,
    HERE | {"json": JSON},
    FILTERS,
    "tmbench runs status=failed,stopped          which of them failed or were stopped\n"
    "tmbench runs task=tc lr=0.1 task.width=50   a filter is a status, a profile or any setting\n"
    "tmbench runs show tc-tmsgd-0-4ed8           a run is called by its id, or the start of it",
    {
        "list": Verb("runs list", "Lists the runs that fit all filters.", list_runs, HERE | {"json": JSON}, FILTERS),
        "show": Verb("runs show", "Shows the result of one run.", show_run, HERE, "RUN"),
        "compare": compare.main,
        "figures": Verb(
            "runs figures",
            "Draws the predictions of several trained runs of a task for the same test examples, side by side.",
            draw_runs,
            FIGURES,
            f"TASK {FILTERS}",
            "tmbench runs figures fkpd seed=0 optimizer=sgd,tmsgd",
        ),
        "remove": Verb("runs remove", "Removes runs, after asking.", remove_runs, HERE | {"yes": YES}, FILTERS),
        "gc": Verb(
            "runs gc",
            "Frees space: removes what killed processes left, and the states that runs share, beyond a limit.",
            free_space,
            HERE | {"limit": LIMIT},
        ),
    },
)

if __name__ == "__main__":
    leave(main())
