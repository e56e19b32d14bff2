"""The runs that are here: `python -m tmbench.runs` lists them, shows one, removes, and tidies up.

Torch-free; a folder counts as a run if it holds a config.yaml.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from . import show
from .config import Settings, flat, select
from .errors import ConfigError, DataError
from .files import locked, read_sealed_text
from .result import FINAL, Result, shown
from .run import epochs_done
from .trunks import GIB, STORE, shrink, size, sweep_up

GONE = ".removing-"  # what a run's folder is called while it is being removed
MANY = 300
SHOWN = ("seed", "switch_epoch", "runs_dir", "data_dir", "logger", "study", "force", "plan", "trunk", "trunk_gib")
STATUSES = ("completed", "diverged", "failed", "interrupted", "running", "stopped", "broken")


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    result: Result | None
    status: str  # the result's; or running, stopped (begun, and nobody is at it), broken (its result is not ours)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        try:
            result = Result.load(folder)
            status = result.status if result else "stopped"
        except DataError:
            result, status = None, "broken"
        try:
            with locked(folder, wait=False):
                return cls(folder, result, status)
        except BlockingIOError:
            return cls(folder, result, "running")
        except OSError:  # not ours to write to, so nobody is at it
            return cls(folder, result, status)

    @cached_property
    def config(self) -> Settings:
        path = self.folder / "config.yaml"
        try:
            # Settled, so without interpolations: OmegaConf takes ten times as long.
            found = yaml.load(read_sealed_text(path), Loader=yaml.CSafeLoader)
        except DataError:
            raise
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path}: not a configuration ({error})") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}: not a configuration; expected key: value, got {found!r:.40}")
        return found

    @property
    def curves(self) -> str:
        """What curves.csv holds, nothing if there is none; DataError if it is not what the result was made of."""
        path = self.folder / "curves.csv"
        content = path.read_bytes() if path.is_file() else b""
        # A run that goes on has newer curves than its result.
        known = self.result.curves_sha256 if self.result and self.status in FINAL else None
        if known and hashlib.sha256(content).hexdigest() != known:
            raise DataError(
                f"{path}: damaged: not what result.json says by its sha256; remove result.json, and the run's own "
                "command writes both again"
            )
        return content.decode()

    def value(self, key: str) -> Any:
        """What a filter's key says of this run: its status, or a setting. Raises KeyError if it has none such."""
        if key in ("status", "profile", "headline"):
            return self.status if key == "status" else getattr(self.result, key, None)
        found = select(self.config, key)
        return found.get("name") if isinstance(found, dict) else found


def find(runs_dir: Path, words: list[str]) -> list[Run]:
    """The runs that all the words fit: key=value[,value...] (status, profile or any setting), or ids, or their starts.

    Raises:
        ConfigError: no run has such a key, or no run is called so.
    """
    folders = sorted(path.parent for path in runs_dir.glob("[!.]*/config.yaml"))
    names = [Path(word).name for word in words if "=" not in word]
    for name in names:
        if not any(folder.name.startswith(name) for folder in folders):
            raise ConfigError(f"{name}: no run in {runs_dir} is called so; python -m tmbench.runs lists them")
    found = [Run.open(f) for f in folders if not names or any(f.name.startswith(name) for name in names)]
    return fitting(found, [word for word in words if "=" in word])


def fitting(found: list[Run], filters: list[str]) -> list[Run]:
    """Those of the runs that all key=value[,value...] fit; ConfigError if no run has such a key."""
    for key, wanted in (word.split("=", 1) for word in filters):
        values = {}
        for run in found:
            try:
                values[run.folder] = run.value(key)
            except (KeyError, TypeError):
                continue
            except DataError as error:  # of this run alone; the others can be told apart
                print(error, file=sys.stderr)
        if found and not values:
            raise ConfigError(f"{key}: expected status, profile or a setting such as task, optimizer, seed, lr")
        found = [run for run in found if any(_same(values.get(run.folder), one) for one in wanted.split(","))]
    return found


def _same(value: Any, word: str) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        return float(value) == float(word)
    return str(value).lower() == word.lower()


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


def told_apart(groups: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """For each of some flat settings, those in which it differs from others of its group, as key=value words."""
    values: dict[tuple[str, str], Counter[str]] = {}
    for group, own in zip(groups, settings, strict=True):
        for key, value in own.items():
            values.setdefault((group, key), Counter())[str(value)] += 1
    sizes, words = Counter(groups), []
    for group, own in zip(groups, settings, strict=True):
        varied = [key for key in own if values[group, key][str(own[key])] < sizes[group]]
        # A rate goes by its first name, not by every place that it was filled into.
        words.append(" ".join(f"{key}={own[key]}" for key in varied if "lr" not in varied or not key.endswith(".lr")))
    return words


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
