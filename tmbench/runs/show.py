"""The tables a person sees at the end of a run and of a sweep."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from ..config.identity import OVERRIDES
from ..result import Result, shown, versions

if TYPE_CHECKING:
    pass

COLOURS = {"completed": "green", "diverged": "yellow", "running": "blue"}  # of a status; others are red


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
    trivial = result.baseline.get(key)
    score = shown(last.get(key), key)
    if best:
        when = {"completed": "at the end", "diverged": "before it diverged"}.get(result.status, "so far")
        score += f" {when}, best {shown(best[key], key)} after epoch {best['epoch'] + 1}"
    status = result.status
    if result.diverged_at:
        status += f" in epoch {result.diverged_at['epoch'] + 1}, step {result.diverged_at['step'] + 1}"
    if how == "shown":
        status += " before (shown, not repeated; force=true repeats it)"
    elif how == "resumed":
        status += " (went on from its last checkpoint)"
    done = f"{result.epochs['trained']} of {result.epochs['asked']} epochs"
    if shared := result.epochs["from_trunk"]:
        done += f", {shared} of them another run's with the same beginning"
    lines = [
        (key.removeprefix("test/"), f"{score}, on {result.profile} data"),
        *([("baseline", f"{shown(trivial, key)} without a look at the input")] if trivial is not None else []),
        ("status", status),
        ("switch", switch_words(result)),
        ("seconds", f"{result.seconds:.1f} of training ({done}, {result.examples_per_second:,.0f} examples/s)"),
        ("files", str(folder)),
        *(("note", note) for note in result.notes),
    ]
    now = versions()
    others = [f"{name} {made}" for name, made in result.versions.items() if made != now.get(name)]
    if how in ("shown", "listed") and others:
        lines.append(("note", f"made with {', '.join(others)}; here are other versions (force=true repeats it)"))
    if result.nondeterministic:
        lines.append(("note", f"no deterministic kernel for {', '.join(result.nondeterministic)}"))
    if result.error:
        lines.append(("error", result.error))
    # A saved configuration of which nobody knows what was asked for cannot be changed.
    if result.profile == "tiny" and (" tmbench.run " not in result.command or (folder / OVERRIDES).exists()):
        lines.append(("real data", f"{result.command} data=full data_dir=DIR".replace(" data=tiny", "")))
    console.print(f"\n[bold]{result.task} {result.optimizer} seed={result.seed}[/bold]", highlight=False)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        # Not wrapped: paths and commands are there to be copied.
        console.print(f"[bold]{name:<{width}}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)


def console() -> Console:
    """Standard output; wide enough for a table where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
