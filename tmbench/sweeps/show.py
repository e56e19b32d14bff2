"""The tables that a person sees at the end of a sweep, and before it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..result import Result, shown
from ..runs.show import COLOURS, duration

if TYPE_CHECKING:
    from .plan import Job, Paces


def many(jobs: list[dict[str, Any]], console: Console) -> None:
    """One line for each job of a sweep, told apart by what the jobs do not share; a job is as in sweep.add_job."""
    settings, varied, common = told_apart([(job["overrides"], job["arm"]) for job in jobs])
    results = [Result.load(Path(job["folder"])) if job["folder"] else None for job in jobs]
    profiles = sorted({r.profile for r in results if r})
    columns = ["status", "metric", "last", "best", "baseline", "switch at", "seconds"]
    if not any(r and r.baseline for r in results):
        columns.remove("baseline")
    table = Table(title=f"{len(jobs)} jobs: {common}   {' and '.join(profiles) or 'no'} data", title_justify="left")
    table.add_column("job", justify="right")
    for key in varied:
        table.add_column(key.removeprefix("optimizer.").removeprefix("task."), no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name in ("status", "metric") else "right", no_wrap=True)
    for number, (job, own, result) in enumerate(zip(jobs, settings, results, strict=True)):
        words = [str(number), *(own.get(key, "") for key in varied)]
        if result is None:
            table.add_row(*words, "[red]failed[/red]")
            continue
        key = result.headline
        status = f"[{COLOURS.get(result.status, 'red')}]{result.status}[/]" + (
            ", known" if job["how"] == "shown" else ""
        )
        effective = result.switch["effective"]
        table.add_row(
            *words, status, key.removeprefix("test/"), shown(result.metrics["last"].get(key), key),
            shown(result.metrics["best"].get(key), key),
            *([shown(result.baseline.get(key), key)] if "baseline" in columns else []),
            "-" if effective is None else str(effective), f"{result.seconds:.1f}",
        )  # fmt: skip
    console.print()
    console.print(table)
    for number, job in enumerate(jobs):
        if job["error"]:
            console.print(f"[red]job {number}[/red] {escape(job['error'])}", soft_wrap=True)


def told_apart(jobs: list[tuple[list[str], str]]) -> tuple[list[dict[str, str]], list[str], str]:
    """Of (words, arm) of some jobs: each job's settings, the keys that tell them apart, and what all have in common."""
    # A word that takes a setting away, such as ~optimizer.momentum, has no value.
    settings = [
        {k: v for k, _, v in (w.partition("=") for w in words)} | ({"arm": arm} if arm else {}) for words, arm in jobs
    ]
    asked = [own for own in settings if "arm" not in own] or settings  # an arm's name says what it changes
    keys = list(dict.fromkeys(key for own in asked for key in own))
    varied = [key for key in keys if len({own.get(key) for own in asked}) > 1]
    common = " ".join(f"{key}={asked[0][key]}".rstrip("=") for key in keys if key not in varied)
    return settings, varied + (["arm"] if len(asked) < len(settings) else []), common


def plan(jobs: "list[Job]", paces: "Paces", console: Console) -> None:
    """What a sweep would do, and about how long it would take."""
    settings, varied, common = told_apart([(job.overrides, job.arm) for job in jobs])
    table = Table(title=f"{len(jobs)} jobs: {common}", title_justify="left")
    table.add_column("job", justify="right")
    for key in varied:
        table.add_column(key.removeprefix("optimizer.").removeprefix("task."), no_wrap=True)
    for name in ("run", "from trunk", "to train", "time"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    total = alone = 0.0
    for job, own in zip(jobs, settings, strict=True):
        words = [str(job.number), *(own.get(key, "") for key in varied)]
        if not job.is_due or job.cfg is None:
            states = {"wrong": "[red]wrong[/red]", "same": "another job's", "known": "[green]known[/green]"}
            table.add_row(*words, states[job.state])
            continue
        pace = paces.of(job)
        seconds = pace.around + pace.epoch * job.trains if pace else 0.0
        total += seconds
        alone += pace.around + pace.epoch * (job.cfg["epochs"] - job.have) if pace else 0.0
        run = f"goes on from epoch {job.have}" if job.have else "new"
        table.add_row(*words, run, str(job.shares or "-"), str(job.trains), duration(seconds) if pace else "-")
    console.print()
    console.print(table)
    due = [job for job in jobs if job.is_due]
    trains, shares = sum(job.trains for job in due), sum(max(0, job.shares - job.have) for job in due)
    known, same = (sum(job.state == state for job in jobs) for state in ("known", "same"))
    console.print(f"runs       {len(due)} to do, {known} known, {same} the same as another job's")
    console.print(f"epochs     {trains} to train; {shares} more come from shared trunks")
    measured = next((pace for job in due if (pace := paces.of(job))), None)
    if measured and total:
        console.print(f"time       {duration(total)} one after another, {duration(alone)} with trunk=off")
        around = f", {measured.around:.2g} s around a run" if measured.around else ""
        console.print(
            f"           {measured.epoch:.3g} s an epoch with its evaluation{around}: measured in {measured.run}"
        )
    elif due and not any(job.folder for job in due):
        console.print("time       unknown: the data are not here yet")
    for job in jobs:
        if job.error:
            console.print(f"[red]job {job.number}[/red] {escape(job.error)}")
