"""The tables a person sees at the end of a run and of a sweep."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .result import Result, shown, versions


def switch_words(result: Result) -> str:
    switch = result.switch
    if switch["step"] is not None:
        return f"at epoch {switch['effective']} (step {switch['step']:,})"
    if switch["requested"] is None:
        return "none (this optimizer has no switch)"
    return f"never (switch_epoch={switch['requested']}, {result.epochs['asked']} epochs)"


def one(result: Result, folder: Path, how: str, console: Console) -> None:
    """One run's result, and what to do next."""
    last, best, key = result.metrics["last"], result.metrics["best"], result.headline
    score = shown(last.get(key), key)
    if best:
        score += f" at the end, best {shown(best[key], key)} after epoch {best['epoch'] + 1}"
    status = result.status
    if result.diverged_at:
        status += f" in epoch {result.diverged_at['epoch'] + 1}, step {result.diverged_at['step'] + 1}"
    if how == "shown":
        status += " before (shown, not repeated; force=true repeats it)"
    elif how == "resumed":
        status += " (went on from its last checkpoint)"
    done = f"{result.epochs['trained']} of {result.epochs['asked']} epochs"
    lines = [
        (key.removeprefix("test/"), f"{score}, on {result.profile} data"),
        ("status", status),
        ("switch", switch_words(result)),
        ("seconds", f"{result.seconds:.1f} of training ({done}, {result.examples_per_second:,.0f} examples/s)"),
        ("files", str(folder)),
        *(("note", note) for note in result.notes),
    ]
    now = versions()
    others = [f"{name} {made}" for name, made in result.versions.items() if made != now.get(name)]
    if how == "shown" and others:
        lines.append(("note", f"made with {', '.join(others)}; here are other versions (force=true repeats it)"))
    if result.nondeterministic:
        lines.append(("note", f"no deterministic kernel for {', '.join(result.nondeterministic)}"))
    if result.error:
        lines.append(("error", result.error))
    if result.profile == "tiny":
        lines.append(("real data", f"{result.command} data=full data_dir=DIR".replace(" data=tiny", "")))
    console.print(f"\n[bold]{result.task} {result.optimizer} seed={result.seed}[/bold]", highlight=False)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        # Not wrapped: paths and commands are there to be copied.
        console.print(f"[bold]{name:<{width}}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)


def console() -> Console:
    """Standard output; wide enough for a table where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def many(jobs: list[dict[str, Any]], console: Console) -> None:
    """One line for each job of a sweep, told apart by what the jobs do not share; a job is as in sweep.add_job."""
    settings = [dict(word.split("=", 1) for word in job["overrides"]) for job in jobs]
    varied = [key for key in settings[0] if len({s.get(key) for s in settings}) > 1]
    results = [Result.load(Path(job["folder"])) if job["folder"] else None for job in jobs]
    profiles = sorted({r.profile for r in results if r})
    common = " ".join(f"{key}={value}" for key, value in settings[0].items() if key not in varied)
    table = Table(title=f"{len(jobs)} jobs: {common}   {' and '.join(profiles) or 'no'} data", title_justify="left")
    table.add_column("job", justify="right")
    for key in varied:
        table.add_column(key.removeprefix("optimizer.").removeprefix("task."), no_wrap=True)
    for name in ("status", "metric", "last", "best", "switch at", "seconds"):
        table.add_column(name, justify="left" if name in ("status", "metric") else "right", no_wrap=True)
    for number, (job, own, result) in enumerate(zip(jobs, settings, results, strict=True)):
        words = [str(number), *(own.get(key, "") for key in varied)]
        if result is None:
            table.add_row(*words, "[red]failed[/red]")
            continue
        key = result.headline
        colour = {"completed": "green", "diverged": "yellow"}.get(result.status, "red")
        status = f"[{colour}]{result.status}[/{colour}]" + (", known" if job["how"] == "shown" else "")
        effective = result.switch["effective"]
        table.add_row(
            *words, status, key.removeprefix("test/"), shown(result.metrics["last"].get(key), key),
            shown(result.metrics["best"].get(key), key), "-" if effective is None else str(effective),
            f"{result.seconds:.1f}",
        )  # fmt: skip
    console.print()
    console.print(table)
    for number, job in enumerate(jobs):
        if job["error"]:
            console.print(f"[red]job {number}[/red] {escape(job['error'])}")
