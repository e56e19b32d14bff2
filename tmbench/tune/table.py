"""What a person sees of a study."""

from rich.console import Console
from rich.table import Table

from ..config.settle import Settings
from ..result import shown
from ..runs.show import duration
from .summary import LEVEL
from .trials import words_of


def table(result: Settings, console: Console) -> None:
    """Prints a line for each optimizer, the differences, and what to know of them."""
    metric, test = result["headline"], result["test"]
    console.print()
    console.print(_lines(result, metric))
    for name, difference in result["differences"].items():
        told = f"{shown(difference['mean'], metric)} ({interval(difference, metric)})".replace(" %", " points")
        console.print(f"{name}   {told}, paired by seed", highlight=False)
    if any(optimizer["confirmation"]["diverged"] for optimizer in result["optimizers"].values()):
        floor = test["diverged_count_as"]
        told = (
            "they are worse than every completed run, by an unknown amount: no mean, no interval"
            if floor is None
            else f"they count as the worse of the baseline and the worst score, {shown(floor, metric)}"
        )
        console.print(f"diverged   {told}", highlight=False)
    told = f"read only after the choice was frozen, {test['choice_frozen']}"
    if begun := len(test["runs_begun_before"]):
        told = f"[yellow]{begun} of the confirming runs were begun before the choice, by another command[/]"
    console.print(f"test       {told}", highlight=False)


def interval(summary: Settings, metric: str) -> str:
    """A summary's interval, or why there is none."""
    count = f"n={summary['n']}" + (f", {summary['diverged']} diverged" if summary["diverged"] else "")
    if summary["interval"] is None:
        why = "no spread between seeds, " if summary["deviation"] == 0 else ""
        return f"{count}: {why}no interval"
    low, high = (shown(end, metric) for end in summary["interval"])
    return f"{low} to {high}, {count}"


def _lines(result: Settings, metric: str) -> Table:
    budget = result["budget"]
    title = f"{result['task']}: {budget['trials']} trials of {budget['epochs']} epochs each, by {budget['sampler']}"
    lines = Table(title=f"{title}   {result['profile']} data", title_justify="left")
    for name in ("optimizer", "choice", "validation", "trials", "device time", metric, f"{LEVEL:.0%} interval"):
        justify = "left" if name in ("optimizer", "choice") else "right"
        lines.add_column(name, justify=justify, no_wrap=name != "choice")  # type: ignore[arg-type]
    for name, optimizer in result["optimizers"].items():
        used, choice, confirmed = optimizer["used"], optimizer["choice"], optimizer["confirmation"]
        bad = [f"{used[status]} {status}" for status in ("diverged", "pruned", "without value") if used[status]]
        lines.add_row(
            name, words_of(choice["values"]) if choice else "[yellow]none: no trial reached a finite value[/]",
            shown(choice and choice["value"], metric), ", ".join([str(used["trials"]), *bad]),
            duration(used["device_seconds"]), shown(confirmed["mean"], metric), interval(confirmed, metric),
        )  # fmt: skip
    return lines
