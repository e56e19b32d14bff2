"""`tmbench runs compare RUN_A RUN_B`: in what two runs differ: settings, environment, outcome. Torch-free."""

import math
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

Rows = list[tuple[str, str, str, str]]  # name, of a, of b, b - a


def differing(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    """The keys whose values are not shown alike, in the order of their first occurrence."""
    return [row for row in _rows(a, b) if row[1] != row[2]]


def _rows(a: dict[str, Any], b: dict[str, Any]) -> Rows:
    pairs = [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])]
    return [(key, _word(x), _word(y), _gap(x, y)) for key, x, y in pairs]


def environment(result: Result) -> dict[str, str]:
    of_run = {"hardware": result.hardware, "git commit": result.git_commit or "-", "data": result.data_digest}
    return result.versions | of_run | {"profile": result.profile}


def outcome(a: Run, b: Run) -> Rows:
    """What came of two runs, including what is the same."""
    rows: Rows = [("status", a.status, b.status, "")]
    if not (a.result and b.result):
        return rows
    for when in ("last", "best"):
        x, y = (run.metrics[when] for run in (a.result, b.result))
        rows += [_metric(f"{k} {when}", k, x.get(k), y.get(k)) for k in dict.fromkeys([*x, *y]) if k != "epoch"]
    facts = [
        {"epochs trained": r.epochs["trained"], "of them shared": r.epochs["from_trunk"], "steps": r.steps,
         "switch after epoch": r.switch["effective"], "parameters": r.parameters, "seconds": round(r.seconds, 1),
         "examples/s": float(f"{r.examples_per_second:.4g}"), "peak memory, MiB": r.peak_memory_bytes >> 20}
        for r in (a.result, b.result)
    ]  # fmt: skip
    return rows + _rows(*facts)


def _metric(name: str, key: str, x: float | None, y: float | None) -> tuple[str, str, str, str]:
    gap = "" if x is None or y is None else shown(y - x, key) if math.isfinite(y - x) else "-"
    gap = gap.replace(" %", " points")  # a difference of percents
    return name, shown(x, key), shown(y, key), f"+{gap}" if gap[:1].isdigit() else gap


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
    for name in ("", *names, "difference"):
        table.add_column(escape(name), justify="right" if name == "difference" else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    if rows:
        console.print(table)


def compare(values: dict[str, Any], words: list[str]) -> int:
    """Prints in what two runs differ; returns the exit status."""
    if len(words) != 2:
        raise UsageError(f"runs compare: expected two runs, got {len(words)}: {' '.join(words)}")
    a, b = (find_one(word, Path(values["runs_dir"])) for word in words)
    settings = differing(flat(a.config), flat(b.config))
    sections = {
        "settings": [row for row in settings if kind_of(row[0]) != BOOKKEEPING],
        "settings that change no number": [row for row in settings if kind_of(row[0]) == BOOKKEEPING],
    }
    if a.result and b.result:
        sections["environment"] = differing(environment(a.result), environment(b.result))
    console = show.console()
    for title, rows in (sections | {"outcome": outcome(a, b)}).items():
        _print(title, rows, [a.folder.name, b.folder.name], console)
    epoch = first_difference(a, b)
    same = "the same, bit by bit, except for the seconds"
    console.print(f"curves: {same}" if epoch is None else f"curves: differ from epoch {epoch} on")
    return 0
