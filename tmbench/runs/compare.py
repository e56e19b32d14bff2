"""`tmbench runs compare RUN RUN ...`: in what runs differ: settings, environment, outcome. Torch-free."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.settle import flat
from ..config.table import BOOKKEEPING, kind_of
from ..errors import UsageError
from ..result import Result, shown
from . import Run, find_one, show

Rows = list[list[str]]  # name, a cell for each run, and of two runs the second less the first


def differing(runs: Sequence[dict[str, Any]]) -> Rows:
    """The keys whose values are not shown alike, in the order of their first occurrence."""
    return [row for row in _rows(runs) if len(set(row[1 : 1 + len(runs)])) > 1]


def _rows(runs: Sequence[dict[str, Any]]) -> Rows:
    keys = dict.fromkeys(key for facts in runs for key in facts)
    each = [(key, [facts.get(key) for facts in runs]) for key in keys]
    return [[key, *map(_word, values), *([_gap(*values)] if len(runs) == 2 else [])] for key, values in each]


def environment(result: Result) -> dict[str, str]:
    of_run = {"hardware": result.hardware, "git commit": result.git_commit or "-", "data": result.data_digest}
    return result.versions | of_run | {"profile": result.profile}


def outcome(runs: Sequence[Run]) -> Rows:
    """What came of the runs, including what is the same."""
    rows: Rows = [["status", *(run.status for run in runs), *([""] if len(runs) == 2 else [])]]
    results = [run.result for run in runs if run.result]
    if len(results) < len(runs):
        return rows
    for when in ("last", "best"):
        metrics = [result.metrics[when] for result in results]
        keys = dict.fromkeys(key for each in metrics for key in each if key != "epoch")
        rows += [_metric(f"{key} {when}", key, [each.get(key) for each in metrics]) for key in keys]
    facts = [
        {"epochs trained": r.epochs["trained"], "of them shared": r.epochs["from_trunk"], "steps": r.steps,
         "switch after epoch": r.switch["effective"], "parameters": r.parameters, "seconds": round(r.seconds, 1),
         "examples/s": float(f"{r.examples_per_second:.4g}"), "peak memory, MiB": r.peak_memory_bytes >> 20}
        for r in results
    ]  # fmt: skip
    return rows + _rows(facts)


def _metric(name: str, key: str, values: list[float | None]) -> list[str]:
    cells = [name, *(shown(value, key) for value in values)]
    if len(values) > 2:
        return cells
    x, y = values
    gap = "" if x is None or y is None else shown(y - x, key) if math.isfinite(y - x) else "-"
    gap = gap.replace(" %", " points")  # a difference of percents
    return [*cells, f"+{gap}" if gap[:1].isdigit() else gap]


def first_difference(a: Run, b: Run) -> int | None:
    """The first epoch (from 1) whose rows in two runs' curves differ, except in their seconds; None if none do."""
    both = []
    for run in (a, b):
        lines = run.curves.splitlines()
        names = lines[0].split(",") if lines else []
        both.append([dict(zip(names, line.split(","), strict=False)) | {"seconds": ""} for line in lines[1:]])
    for epoch, (x, y) in enumerate(zip(*both, strict=False), 1):
        if x != y:
            return epoch
    return None if len(both[0]) == len(both[1]) else min(map(len, both)) + 1


def _word(value: Any) -> str:
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _gap(x: Any, y: Any) -> str:
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in (x, y)) or x == y:
        return ""
    try:
        return f"{y - x:+.6g}" + (f" (x {y / x:.3g})" if x > 0 and y > 0 else "")
    except OverflowError:  # a whole number of hundreds of digits
        return ""


def _print(title: str, rows: Rows, names: list[str], console: Console) -> None:
    console.print(f"\n[bold]{title}[/bold]" + ("" if rows else "  the same"))
    table = Table()
    for name in ("", *names, *(["difference"] if len(names) == 2 else [])):
        table.add_column(escape(name), justify="right" if name == "difference" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)


def compare(values: dict[str, Any], words: list[str]) -> int:
    """Prints in what runs differ, and of two what came of both; returns the exit status."""
    if len(words) < 2:
        raise UsageError(f"runs compare: expected two runs or more, got {len(words)}: {' '.join(words)}")
    runs = [find_one(word, Path(values["runs_dir"])) for word in words]
    settings = differing([flat(run.config) for run in runs])
    sections = {
        "settings": [row for row in settings if kind_of(row[0]) != BOOKKEEPING],
        "settings that change no number": [row for row in settings if kind_of(row[0]) == BOOKKEEPING],
    }
    results = [run.result for run in runs if run.result]
    if len(results) == len(runs):
        sections["environment"] = differing([environment(result) for result in results])
    came = outcome(runs)
    sections["outcome"] = came if len(runs) == 2 else [row for row in came if len(set(row[1:])) > 1]
    console = show.console()
    for title, rows in sections.items():
        _print(title, rows, [run.folder.name for run in runs], console)
    same, first = "the same, bit by bit, except for the seconds", runs[0]
    for other in runs[1:]:
        epoch = first_difference(first, other)
        of = "" if len(runs) == 2 else f" of {other.folder.name} and {first.folder.name}"
        told = f"curves{of}: {same}" if epoch is None else f"curves{of}: differ from epoch {epoch} on"
        console.print(told, highlight=False, soft_wrap=True)
    return 0
