"""The tables that a person sees at the end of a sweep, and before it."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import count
from ..result import Result
from ..runs import Run
from ..runs.show import NARROW, duration, fits, row

if TYPE_CHECKING:
    from .job import JobRecord
    from .plan import Duration, Job

Outcome = tuple["JobRecord", Result | None]  # of a job
NOT_STARTED = "not started"  # how a job ended that fail_fast kept from its start
_STATES = {"wrong": "[red]wrong[/red]", "same": "another job's", "known": "[green]known[/green]"}


def print_results(outcomes: list[Outcome], console: Console) -> None:
    """One line for each job of a sweep, with the settings in which the jobs differ."""
    settings, varied, common = varied_settings([(record.words, record.arm) for record, _ in outcomes])
    results = [result for _, result in outcomes if result]
    profiles = " and ".join(sorted({result.profile for result in results}))
    baseline = ["baseline"] if any(result.baseline for result in results) else []
    rows = []
    for (record, result), own in zip(outcomes, settings, strict=True):
        cells = {"status": NOT_STARTED if record.how == NOT_STARTED else "[red]failed[/red]"}
        if result:
            cells = row(Run(Path(record.folder or ""), result, result.status))
            cells["status"] += ", known" if record.how == "shown" else ""
        rows.append(cells | {"job": str(record.number)} | {key: escape(own.get(key, "")) for key in varied})
    title = f"{count(len(outcomes), 'job')}: {common}" + (f"   {profiles} data" if profiles else "")
    _print_table(title, varied, ["status", "metric"], ["last", "best", *baseline, "switch", "seconds"], rows, console)
    _print_errors(((record.number, record.error) for record, _ in outcomes), console)


def varied_settings(jobs: list[tuple[list[str], str]]) -> tuple[list[dict[str, str]], list[str], str]:
    """Of jobs, each (words, arm): the settings of each; the keys whose values differ; the words that all have."""
    # A word that takes a setting away, such as ~optimizer.momentum, has no value.
    settings = [
        {k: v for k, _, v in (w.partition("=") for w in words)} | ({"arm": arm} if arm else {}) for words, arm in jobs
    ]
    asked = [own for own in settings if "arm" not in own] or settings  # an arm's name says what it changes
    keys = list(dict.fromkeys(key for own in asked for key in own))
    varied = [key for key in keys if len({own.get(key) for own in asked}) > 1]
    common = " ".join(f"{key}={asked[0][key]}".rstrip("=") for key in keys if key not in varied)
    return settings, varied + (["arm"] if len(asked) < len(settings) else []), common


def print_plan(jobs: "list[Job]", durations: "dict[int, Duration]", console: Console) -> None:
    """What a sweep would do, and about how long it would take by the durations of like runs."""
    settings, varied, common = varied_settings([(job.overrides, job.arm) for job in jobs])
    rows = []
    for job, own in zip(jobs, settings, strict=True):
        cells = {"run": _STATES.get(job.state, "new")}
        if job.is_due:
            cells = {
                "run": f"resumes after epoch {job.epochs_done}" if job.epochs_done else "new",
                "from trunk": str(job.epochs_from_trunk or "-"), "to train": str(job.epochs_to_train),
                "time": duration(found.of(job.epochs_to_train)) if (found := durations.get(job.number)) else "-",
            }  # fmt: skip
        rows.append(cells | {"job": str(job.number)} | {key: escape(own.get(key, "")) for key in varied})
    _print_table(
        f"{count(len(jobs), 'job')}: {common}", varied, ["run"], ["from trunk", "to train", "time"], rows, console
    )
    _print_sums(jobs, durations, console)
    _print_errors(((job.number, job.error) for job in jobs), console)


def _print_sums(jobs: "list[Job]", durations: "dict[int, Duration]", console: Console) -> None:
    """The runs, epochs and time of a planned sweep."""
    due = [job for job in jobs if job.is_due]
    trained = sum(job.epochs_to_train for job in due)
    shared = sum(max(0, job.epochs_from_trunk - job.epochs_done) for job in due)
    states = Counter(job.state for job in jobs)
    console.print(f"runs       {len(due)} to do, {states['known']} known, {states['same']} the same as another job's")
    if due and not any(job.folder for job in due):
        console.print(f"epochs     {trained} to train, fewer where runs share their beginning, more")
        console.print("           with a study's control arms; that and the time are unknown,")
        console.print("           since the data are not here yet (tmbench data list)")
        return
    console.print(f"epochs     {trained} to train; {shared} more come from shared trunks")
    measured = [(job, found) for job in due if (found := durations.get(job.number))]
    if measured:
        with_trunks = sum(found.of(job.epochs_to_train) for job, found in measured)
        without = sum(found.of(job.cfg["epochs"] - job.epochs_done) for job, found in measured)
        first = measured[0][1]
        overhead = f", {first.overhead:.2g} s around a run" if first.overhead else ""
        console.print(f"time       {duration(with_trunks)} one after another, {duration(without)} with trunk=off")
        console.print(f"           {first.epoch:.3g} s an epoch with its evaluation{overhead}: measured in {first.run}")


def _print_table(
    title: str, varied: list[str], words: list[str], numbers: list[str], rows: list[dict[str, str]], console: Console
) -> None:
    """A table of jobs, one a row. No number is ever cut: where it is too wide, other columns become narrower.

    Args:
        varied: the settings in which the jobs differ.
        words, numbers: the other columns.
        rows: by job, its cells by column.
    """
    same = {name: {cells[name] for cells in rows if name in cells} for name in ("metric", "baseline")}
    common = {key: values.pop() for key, values in same.items() if len(values) == 1 and key in (*words, *numbers)}
    shorter = title + "".join(f"   {name}={value}" for name, value in common.items())
    fewer = [name for name in (*words, *numbers) if name not in common]
    short = {key: key.removeprefix("optimizer.").removeprefix("task.") for key in varied}
    settings = ["  ".join(f"{short[key]}={cells[key]}" for key in varied if cells[key]) for cells in rows]
    shared = [cells | {"settings": own} for cells, own in zip(rows, settings, strict=True)]
    tables: list[Callable[[], Table]] = [  # made when they are wanted: a sweep may have a thousand rows
        lambda: _table(title, short, [*varied, *words, *numbers], numbers, rows),
        lambda: _table(shorter, short, [*varied, *fewer], numbers, rows, **NARROW),
    ]
    last = partial(_table, shorter, short, [*(["settings"] if varied else []), *fewer], numbers, shared, **NARROW)
    console.print()
    console.print(next((table for table in (make() for make in tables) if fits(table, console)), None) or last())


def _table(
    title: str, heads: dict[str, str], columns: list[str], numbers: list[str], rows: list[dict[str, str]], **look: Any
) -> Table:
    table = Table(title=escape(title), title_justify="left", **look)
    for name in ("job", *columns):
        is_number = name == "job" or name in numbers
        justify: Any = "right" if is_number else "left"
        table.add_column(heads.get(name, name), justify=justify, no_wrap=is_number, overflow="fold")
    for cells in rows:
        table.add_row(*(cells.get(name, "") for name in ("job", *columns)))
    return table


def _print_errors(errors: Iterable[tuple[int, str]], console: Console) -> None:
    for number, error in errors:
        if error:
            console.print(f"[red]job {number}[/red] {escape(error)}", soft_wrap=True)
