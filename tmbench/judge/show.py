"""What a person at a terminal sees of a judgement: the verdict first."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.settle import Settings
from ..runs.show import duration

COLOURS = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow", "mixed": "yellow"}


def headline(name: str, verdict: str, against: str) -> str:
    if verdict == "equivalent":
        return f"{name} and {against} are equivalent"
    return f"{name} is {verdict} than {against}" if verdict != "undecided" else f"{name} against {against}: undecided"


def show(result: Settings, console: Console) -> None:
    """Prints the verdicts, their sentences, what they cost, and why they may be doubted."""
    for name, method in result["methods"].items():
        verdict = method["verdict"]
        head = escape(headline(name, verdict, result["against"]))
        console.print(f"[bold {COLOURS[verdict]}]{head}[/]", highlight=False)
        console.print(f"{escape(method['sentence'])}\n", highlight=False)
    for head, text in lines(result):
        colour = "yellow" if head == "alarm" else None
        _row(head, text, console, colour)
    _row("page", result["page"], console)


def lines(result: Settings) -> list[tuple[str, str]]:
    """What is told of all methods together."""
    spent, floor = result["spent"], result["noise_floor"]
    fixed = spent["fixed_design"]
    told = [
        ("seeds", f"{spent['seeds']} of at most {fixed['seeds']}; a fixed design spends all {fixed['seeds']}"),
        ("device", f"{duration(spent['device_seconds'])} for {spent['runs']} runs; a fixed design spends about "
                   f"{duration(fixed['device_seconds'])} for {fixed['runs']}"),
    ]  # fmt: skip
    for name, method in result["methods"].items():
        knowing = method["fixed_design"]["knowing"]
        if knowing and method["verdict"] in ("better", "worse"):
            size = f"a difference of {name}'s size in 4 of 5 cases, if the size is known beforehand"
            told.append(("fixed n", f"{knowing:,} seeds find {size}"))
        if method["variance"]:
            told.append(("test set", method["variance"]["text"]))
    if not all(method["variance"] for method in result["methods"].values()):
        told.append(("test set", "a verdict is about these test examples; not all runs have scores of single ones"))
    if floor:
        told.append(
            ("noise", f"{floor['text']} between two runs of {result['against']} on different seeds, on average")
        )
    return told + [("alarm", alarm["text"]) for alarm in result["alarms"]]


def _row(head: str, text: str, console: Console, colour: str | None = None) -> None:
    """A line whose text continues below its own beginning."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=8)
    table.add_column(overflow="fold")
    table.add_row(f"[{colour}]{head}[/]" if colour else head, escape(text))
    console.print(table, highlight=False)
