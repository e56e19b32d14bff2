"""The runs that are here: `python -m tmbench.runs` lists them, shows one, removes, and tidies up.

Torch-free; a folder counts as a run if it holds a config.yaml.
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ..config.settle import flat
from ..errors import ConfigError, DataError
from ..files import locked
from ..result import epochs_done, shown
from ..trunks import GIB, STORE, shrink, size, sweep_up
from . import GONE, SHOWN, Run, find, show, told_apart

MANY = 300
STATUSES = ("completed", "diverged", "failed", "interrupted", "running", "stopped", "broken")


def table(runs: list[Run], runs_dir: Path) -> None:
    """Prints one line a run, and what all cost."""
    console = show.console()
    lines = Table(title=f"{runs_dir}", title_justify="left")
    lines.add_column("run", no_wrap=True)
    for name in (
        "status",
        "data",
        "metric",
        "last",
        "best",
        "baseline",
        "switch",
        "epochs",
        "shared",
        "seconds",
        "settings",
    ):
        words = name in ("status", "data", "metric", "settings")
        lines.add_column(name, justify="left" if words else "right", no_wrap=name != "settings")
    for run, settings in zip(runs, _told_apart(runs), strict=True):
        result = run.result
        status = f"[{show.COLOURS.get(run.status, 'red')}]{run.status}[/]"
        if result is None:
            lines.add_row(run.folder.name, status, "", "", "", "", "", str(epochs_done(run.folder)))
            continue
        key, at = result.headline, result.switch["effective"]
        lines.add_row(
            run.folder.name, status, result.profile, key.removeprefix("test/"),
            shown(result.metrics["last"].get(key), key), shown(result.metrics["best"].get(key), key),
            shown(result.baseline.get(key), key), "-" if at is None else str(at),
            f"{result.epochs['trained']}/{result.epochs['asked']}",
            str(result.epochs["from_trunk"] or "-"), f"{result.seconds:.1f}",
            settings,
        )  # fmt: skip
    if runs:
        console.print(lines)
    seconds = sum(
        r.result.seconds * (1 - r.result.epochs["from_trunk"] / max(1, r.result.epochs["trained"]))
        for r in runs if r.result
    )  # fmt: skip
    counts = ", ".join(f"{n} {s}" for s in STATUSES if (n := sum(run.status == s for run in runs)))
    console.print(
        f"{len(runs)} runs{f': {counts}' if counts else f' in {runs_dir}'}; {show.duration(seconds)} of training here, "
        f"{_bytes(sum(size(run.folder) for run in runs))}; shared states {_bytes(size(runs_dir / STORE))}",
        highlight=False,
    )


def _told_apart(runs: list[Run]) -> list[str]:
    """For each run, the settings in which the runs of its task and optimizer differ and that no column shows."""
    if len(runs) > MANY:  # reading so many configurations would take seconds
        return [""] * len(runs)
    own, groups = list[dict[str, Any]](), list[str]()
    for run in runs:
        try:
            settings = flat({key: value for key, value in run.config.items() if key not in SHOWN})
        except DataError as error:  # of this run alone
            print(error, file=sys.stderr)
            settings = {}
        own.append(settings)
        groups.append(f"{settings.get('task.name')} {settings.get('optimizer.name')}")
    return told_apart(groups, own)


def remove(runs: list[Run], sure: bool) -> int:
    """Removes runs that nobody is at, after asking; returns the exit code."""
    busy = [run for run in runs if run.status == "running"]
    for run in busy:
        print(f"{run.folder}: a process is at it; left alone", file=sys.stderr)
    runs = [run for run in runs if run.status != "running"]
    if not runs:
        print("no run to remove")
        return int(bool(busy))
    for run in runs:
        print(f"{run.folder}  {run.status}")
    if not sure:
        if not sys.stdin.isatty():
            raise ConfigError("remove: nobody to ask; say --yes to remove these runs")
        if input(f"remove these {len(runs)} runs? [y/N] ").strip().lower() != "y":
            print("nothing removed")
            return 1
    for run in runs:
        try:
            with locked(run.folder, wait=False):
                gone = run.folder.with_name(GONE + run.folder.name)
                shutil.rmtree(gone, ignore_errors=True)
                os.replace(run.folder, gone)
            shutil.rmtree(gone)
        except BlockingIOError:
            print(f"{run.folder}: a process has begun with it; left alone", file=sys.stderr)
            busy.append(run)
    print(f"removed {len(runs) - sum(run in busy for run in runs)} runs")
    return int(bool(busy))


def tidy(runs_dir: Path, limit: float) -> None:
    """Removes what killed processes left, and shared states beyond the limit."""
    freed = sum(size(path) for path in runs_dir.glob(f"{GONE}*"))
    for path in runs_dir.glob(f"{GONE}*"):
        shutil.rmtree(path, ignore_errors=True)
    freed += sweep_up(runs_dir / STORE) + shrink(runs_dir / STORE, limit)
    print(f"freed {_bytes(freed)}; shared states now take {_bytes(size(runs_dir / STORE))}")


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where the runs are (./runs)")
    parser = argparse.ArgumentParser(
        prog="python -m tmbench.runs", description="Lists the runs that are here, shows one, removes, tidies up.",
        epilog="A filter is key=value[,value]: status=failed,stopped  task=tc  optimizer=tmsgd  lr=0.1  task.width=50",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", metavar="list | show | remove | gc")
    about = {
        "list": "list the runs that fit all filters (the default)",
        "show": "show one run's result",
        "remove": "remove runs, after asking",
        "gc": "remove leftovers of killed processes, and shared states of trunks beyond a limit",
    }
    for verb, text in about.items():
        own = verbs.add_parser(verb, parents=[common], help=text, description=text)
        if verb == "gc":
            own.add_argument("--limit", type=float, default=0.0, metavar="GIB", help="GiB of states to keep (0)")
            continue
        own.add_argument("words", nargs="*", metavar="RUN | KEY=VALUE", help="run ids (or their starts) and filters")
        if verb == "list":
            own.add_argument("--json", action="store_true", help="the results as JSON")
        if verb == "remove":
            own.add_argument("--yes", action="store_true", help="do not ask")
    if not words or (words[0] not in about and words[0] not in ("-h", "--help")):
        words = ["list", *words]
    asked = parser.parse_args(words)
    try:
        if not asked.runs_dir.is_dir():
            raise ConfigError(f"{asked.runs_dir}: no such folder; say --runs-dir DIR")
        if asked.verb == "gc":
            tidy(asked.runs_dir, asked.limit * GIB)
            return 0
        if asked.verb == "remove" and not asked.words:
            raise ConfigError("remove: expected run ids or filters, such as status=failed")
        runs = find(asked.runs_dir, asked.words)
        if asked.verb == "remove":
            return remove(runs, asked.yes)
        if asked.verb == "show":
            if len(runs) != 1 or runs[0].result is None:
                names = ", ".join(f"{run.folder.name} ({run.status})" for run in runs[:5])
                raise ConfigError(f"show: expected one run with a result, got {len(runs)}: {names}")
            show.one(runs[0].result, runs[0].folder, "listed", show.console())
        elif asked.json:
            print(json.dumps([asdict(run.result) for run in runs if run.result], indent=2))
        else:
            table(runs, asked.runs_dir)
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
