"""The tables that a person sees: of one run, and of many."""

import os
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..config.identity import OVERRIDES
from ..config.settle import flat
from ..config.table import BOOKKEEPING, kind_of
from ..errors import DataError, count
from ..folders import size
from ..result import Result, epochs_done, shown, uses_of_limit, versions
from ..trunks import STORE
from . import STATUSES, Run, distinguishing_words

COLOURS = {"completed": "green", "diverged": "yellow", "running": "blue"}  # of a status; others are red
WIDE = 120  # from this many characters on, a list has all columns
MOST_COMPARED = 300  # runs whose settings are compared for a list: reading more would take seconds
COLUMNS = ("status", "data", "metric", "last", "best", "baseline", "switch", "epochs", "shared", "seconds")
RIGHT = COLUMNS[3:]  # columns of numbers
NARROW: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}  # look of a table
ONLY_WIDE = ("baseline", "shared", "seconds")
NARROWEST, NOT_NARROWEST = 75, (*ONLY_WIDE, "best", "switch")  # below so many characters these are left out
WIDEST = 10_000  # characters that any table may take, to see how many it would


def one(result: Result, folder: Path, how: str, console: Console) -> None:
    """Prints one run's result, and what to do next.

    Args:
        how: how it came: `new`, `resumed`, `shown` (it was there) or `listed`.
    """
    key, epochs = result.headline, result.epochs
    shared = f", {epochs['from_trunk']} of them shared with another run" if epochs["from_trunk"] else ""
    cost = f"{epochs['trained']} of {epochs['asked']} epochs{shared}, {rate(result.examples_per_second)} examples/s"
    lines = [
        (result.metric, f"{_score(result)}, on {_data(result)} data"),
        *([("baseline", f"{shown(result.baseline[key], key)} without looking at the input")]
          if key in result.baseline else []),
        ("status", _status(result, how)),
        ("switch", _switch(result)),
        *([("curvature", text)] if (text := _curvature(result)) else []),
        ("seconds", f"{result.seconds:.1f} of training ({cost})"),
        ("files", str(folder)),
        *(("note", note) for note in _notes(result, how)),
        *([("error", result.error)] if result.error else []),
    ]  # fmt: skip
    # A saved configuration without the words that were asked for cannot be changed.
    if result.profile == "tiny" and (" tmbench.run " not in result.command or (folder / OVERRIDES).exists()):
        # Not the few epochs of a trial, nor a switch among them: the real data have a protocol of their own.
        own = ("data=tiny", "epochs=", "switch_epoch=")
        words = [word for word in shlex.split(result.command) if not word.startswith(own)]
        lines.append(("real data", f"{shlex.join(words)} data=full data_dir=DIR"))
    console.print(f"\n[bold]{result.task} {result.optimizer} seed={result.seed}[/bold]", highlight=False)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        # Not wrapped: paths and commands are there to be copied.
        console.print(f"[bold]{name:<{width}}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)


def _data(result: Result) -> str:
    return result.profile if result.split == "test" else f"{result.profile} {result.split}"


def _score(result: Result) -> str:
    last, best, key = result.metrics["last"], result.metrics["best"], result.headline
    if "epoch" not in best:
        return shown(last.get(key), key)
    when = {"completed": "at the end", "diverged": "before it diverged"}.get(result.status, "so far")
    return f"{shown(last.get(key), key)} {when}, best {shown(best.get(key), key)} after epoch {best['epoch']:.0f}"


def _status(result: Result, how: str) -> str:
    at, resumed = result.diverged_at, " (resumed from its last checkpoint)"
    where = f" in epoch {at['epoch']}, step {at['step']}" if at else ""
    note = {"shown": " before (shown, not repeated; force=true repeats it)", "resumed": resumed}.get(how, "")
    if result.status == "interrupted":
        note += "; {trained} of {asked} epochs are saved, and the same command continues".format_map(result.epochs)
    return result.status + where + note


def _switch(result: Result) -> str:
    switch = result.switch
    if switch["step"] is not None:
        when = f"after epoch {switch['effective']}" if switch["effective"] else "at the start"
        return f"{when} (step {switch['step']:,})"
    if switch["requested"] is None:
        return "none (this optimizer has no switch)"
    return f"never (switch_epoch={switch['requested']}, {result.epochs['asked']} epochs)"


def _curvature(result: Result) -> str:
    """How near the run's last step was to its stability limit; empty if that was not measured."""
    if result.curvature is None:
        return ""
    last, how = result.metrics["last"], result.curvature
    found = [(key.removeprefix("curvature/top").replace("_", " of "), value) for key, value in last.items()
             if key.startswith("curvature/top")]  # fmt: skip
    tops = ", ".join(f"{value:.4g}{of}" for of, value in found)
    uses = ", ".join(f"{use:.2g}" for use in uses_of_limit(last))
    used = f"rate x curvature at {uses} of the stability limit; " if uses else ""
    return f"{used}largest eigenvalue {tops} ({how.get('examples')} examples, {how.get('how')})"


def _notes(result: Result, how: str) -> list[str]:
    notes, now = list(result.notes), versions()
    others = [f"{name} {version}" for name, version in result.versions.items() if version != now.get(name)]
    if how in ("shown", "listed") and others:
        notes.append(f"made with {', '.join(others)}; here are other versions (force=true repeats it)")
    if result.nondeterministic:
        notes.append(f"no deterministic kernel for {', '.join(result.nondeterministic)}")
    return notes


def many(runs: list[Run], runs_dir: Path, console: Console) -> None:
    """Prints one line a run, and what all of them cost."""
    if runs:
        console.print(_table(runs, runs_dir, console.width))
    seconds = sum(
        r.result.seconds * (1 - r.result.epochs["from_trunk"] / max(1, r.result.epochs["trained"]))
        for r in runs if r.result
    )  # fmt: skip
    counts = ", ".join(f"{n} {status}" for status in STATUSES if (n := sum(run.status == status for run in runs)))
    console.print(
        f"{count(len(runs), 'run')}{f': {counts}' if counts else f' in {runs_dir}'}; {duration(seconds)} of training, "
        f"{size_words(sum(size(run.folder) for run in runs))}; shared states {size_words(size(runs_dir / STORE))}",
        highlight=False,
    )


def _table(runs: list[Run], runs_dir: Path, width: int) -> Table:
    """A row a run. A narrow one leaves out columns, shortens ids and has the settings below the id."""
    is_wide = width >= WIDE
    rows = [row(run) for run in runs]
    left_out = () if is_wide else ONLY_WIDE if width >= NARROWEST else NOT_NARROWEST
    names = [name for name in COLUMNS if name not in left_out]
    values = {name: {facts[name] for facts in rows if facts[name]} for name in ("data", "metric")}
    common = [name for name, several in values.items() if len(several) <= 1]
    title = " ".join([str(runs_dir), *(f"{name}={value}" for name in common for value in values[name])])
    table = Table(title=escape(title), title_justify="left", **({} if is_wide else NARROW))
    table.add_column("run", no_wrap=is_wide, overflow="fold")
    columns = [name for name in names if name not in common]
    for name in columns:
        table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True)
    if is_wide:
        table.add_column("settings")
    ids = [run.folder.name for run in runs] if is_wide else _short_ids([run.folder.name for run in runs])
    for name, facts, words in zip(ids, rows, map(escape, _settings_words(runs)), strict=True):
        cells = [facts[column] for column in columns]
        table.add_row(*([name, *cells, words] if is_wide else ["\n  ".join([name, *_brief(words)]), *cells]))
    return table


def _brief(words: str) -> list[str]:
    """Settings as a narrow list has room for them: keys without their group, four digits, nothing that is not set."""
    short = re.sub(r"\d*\.\d{4,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", words)
    words = re.sub(r"(\w+\.)+(\w+=)", r"\2", short)
    return [word for word in re.split(r" (?=\w+=)", words) if word and not word.endswith("=None")]


def row(run: Run) -> dict[str, str]:
    """The columns of a list that show a result."""
    result, status = run.result, f"[{COLOURS.get(run.status, 'red')}]{run.status}[/]"
    if result is None:
        empty = dict.fromkeys(
            ("status", "data", "metric", "last", "best", "baseline", "switch", "epochs", *ONLY_WIDE), ""
        )
        return empty | {"status": status, "epochs": str(epochs_done(run.folder))}
    key, switch = result.headline, result.switch["effective"]
    return {
        "status": status, "data": _data(result), "metric": result.metric,
        "last": shown(result.metrics["last"].get(key), key), "best": shown(result.metrics["best"].get(key), key),
        "baseline": shown(result.baseline.get(key), key), "switch": "-" if switch is None else str(switch),
        "epochs": f"{result.epochs['trained']}/{result.epochs['asked']}",
        "shared": str(result.epochs["from_trunk"] or "-"), "seconds": f"{result.seconds:.1f}",
    }  # fmt: skip


def _short_ids(names: list[str], digits: int = 12) -> list[str]:
    """The ids with as few digits of their hash, but at least four, as tell them from each other."""
    for left_out in range(digits - 4, 0, -1):
        short = [name[:-left_out] for name in names]
        if all(name and count == 1 for name, count in Counter(short).items()):
            return short
    return names


def _settings_words(runs: list[Run]) -> list[str]:
    """For each run, the settings in which the runs of its task and optimizer differ and that no column shows."""
    if len(runs) > MOST_COMPARED:
        return [""] * len(runs)
    settings, groups = [], []
    for run in runs:
        try:
            values = flat(run.config)
        except DataError as error:  # of this run alone
            print(error, file=sys.stderr)
            values = {}
        groups.append(f"{values.get('task.name')} {values.get('optimizer.name')}")
        shown_keys = [key for key in values if kind_of(key) != BOOKKEEPING and key not in ("seed", "switch_epoch")]
        settings.append({key: values[key] for key in shown_keys})
    return distinguishing_words(groups, settings)


def fits(table: Table, console: Console) -> bool:
    """Whether a table has room on the console with every cell on a line of its own."""
    for column in table.columns:  # rich takes ten times as long to measure a cell
        column.width = max(cell_len(_plain(str(cell))) for cell in (column.header, *column.cells))
    if console.measure(table, options=console.options.update(width=WIDEST)).maximum <= console.width:
        return True
    for column in table.columns:
        column.width = None
    return False


def _plain(cell: str) -> str:
    return Text.from_markup(cell).plain if "[" in cell else cell


def console() -> Console:
    """Standard output; wide enough for a table where it is a file."""
    return Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=150)


def rate(value: float) -> str:
    """How many a second, as a person says it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size_words(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
