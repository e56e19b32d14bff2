"""Tables and their cells: how numbers are written, and a table as Rich, Markdown, CSV, LaTeX (booktabs) and JSON.

Whatever runs are called, it stays text.
"""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ..runs.show import NARROW, fits
from .problems import Method, Problem

DASH = "-"  # nothing there
KEYS = ("problem", "data", "method", "against", "differences of", "seeds")  # columns that say what a row is of
WIDTHS = (16, 12, 8, 4)  # characters that a column of words may take in a narrow table: the first that fits
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "≈": r"$\approx$",
}  # fmt: skip


class Cell(NamedTuple):
    """One entry of a table: as it is read, and as it is."""

    text: str
    value: Any = None
    method: int | None = None  # whose runs it is made of
    is_bold: bool = False  # in LaTeX


@dataclass
class Table:
    key: str  # a file name
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


# ---- how numbers are written


def file_name(*words: str) -> str:
    return "-".join(words).replace(" ", "-")


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with so many significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def numeric(value: float | None) -> Cell:
    return Cell(number(value), value)


def whole(value: int) -> Cell:
    return Cell(str(value), value)


def span(low: float, high: float) -> Cell:
    """An interval of plain numbers."""
    return Cell(DASH if math.isnan(low) else f"{low:.2f} to {high:.2f}", [low, high])


def named(method: Method) -> Cell:
    return Cell(method.label, method.label, method.index)


def unit(problem: Problem) -> str:
    """What follows a score of this problem in a sentence."""
    return " %" if problem.is_percent else ""


def score(problem: Problem, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.2f}" if problem.is_percent else f"{value:.4g}"


def diverged_value(problem: Problem, value: float) -> str:
    """What a diverged run counts as, in words."""
    return f"the worse of the baseline and the worst completed run, {score(problem, value)}{unit(problem)}"


def difference(problem: Problem, value: float, sign: bool = False) -> str:
    """A difference of two values, in words."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.2f} points" if problem.is_percent else f"{value:{plus}.3g}"


def signed(problem: Problem, value: float) -> str:
    return difference(problem, value, sign=True).removesuffix(" points")


def signed_span(problem: Problem, low: float, high: float) -> Cell:
    """An interval of differences."""
    return Cell(f"{signed(problem, low)} to {signed(problem, high)}", [low, high])


def spread(problem: Problem, mean: float | None, sd: float | None) -> str:
    if mean is None or sd is None or not math.isfinite(sd):
        return score(problem, mean)
    places = 2 if problem.is_percent else max(0, 1 - math.floor(math.log10(sd))) if sd else 4
    return f"{problem.scale * mean:.{places}f} ± {problem.scale * sd:.{places}f}"


# ---- how tables are written


def is_number(cell: Cell) -> bool:
    """Whether it stands at the right."""
    return cell.text[:1].isdigit() or (cell.text[:1] in "+-" and (len(cell.text) == 1 or cell.text[1].isdigit()))


def are_numbers(table: Table) -> list[bool]:
    """Of each column whether its entries are numbers."""
    return [bool(table.rows) and all(is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]


def new_notes(tables: list[Table]) -> list[list[str]]:
    """The notes of each of several tables that are read one after another, without those of an earlier one."""
    seen: dict[str, Table] = {}
    return [[note for note in table.notes if seen.setdefault(note, table) is table] for table in tables]


def console(table: Table, out: Console) -> None:
    """Prints a table and its notes. One that is too wide is printed in parts: no number and no name is ever cut."""
    numbers = are_numbers(table)
    columns = [_Column(name, [row[i].text for row in table.rows], numbers[i]) for i, name in enumerate(table.columns)]
    whole = _rich(table.title, columns)
    for part in [whole] if fits(whole, out) else _narrow(table.title, columns, out):
        out.print()
        out.print(part)
    for note in table.notes:
        out.print(escape(note), style="dim", highlight=False)


class _Column(NamedTuple):
    head: str
    cells: list[str]
    is_number: bool

    def folded(self, width: int) -> "_Column":
        """The same on lines of at most so many characters; a number, and the words of the head, stay whole."""
        cells = self.cells if self.is_number else [textwrap.fill(text, width) for text in self.cells]
        widest = max([8, *(len(line) for text in cells for line in text.splitlines())])
        return self._replace(head=textwrap.fill(self.head, widest, break_long_words=False), cells=cells)


def _rich(title: str, columns: list[_Column], **look: Any) -> RichTable:
    table = RichTable(title=escape(title), title_justify="left", **look)
    for column in columns:
        table.add_column(escape(column.head), justify="right" if column.is_number else "left", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(escape, cells))
    return table


def _narrow(title: str, columns: list[_Column], out: Console) -> Iterator[RichTable]:
    """The table in as many parts, each with some of the columns, as it takes for each to fit."""
    common = [c for c in columns if not c.is_number and len(c.cells) > 1 and len(set(c.cells)) == 1]
    title += "".join(f"   {c.head}={c.cells[0]}" for c in common)
    own = [c for c in columns if c not in common]
    keys = [c for c in own if c.head in KEYS] or own[:1]
    others = [c.folded(WIDTHS[0]) for c in own if c not in keys]
    for width in WIDTHS:
        keys = [c.folded(width) for c in keys]
        if all(fits(_rich("", [*keys, column], **NARROW), out) for column in others):
            break
    part = list[_Column]()
    for column in others:
        if part and not fits(_rich("", [*keys, *part, column], **NARROW), out):
            yield _rich(title, keys + part, **NARROW)
            part, title = [], ""
        part.append(column)
    yield _rich(title, keys + part, **NARROW)


def markdown(table: Table) -> str:
    rule = ["--:" if right else "---" for right in are_numbers(table)]
    rows = [[markdown_text(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(words)} |" for words in ([*map(markdown_text, table.columns)], rule, *rows)]
    notes = [f"\n{markdown_text(note)}" for note in table.notes]
    return "\n".join([f"### {markdown_text(table.title)}", "", *lines, *notes]) + "\n"


def markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(text.split()))


def latex(table: Table) -> str:
    """A tabular for \\input; needs \\usepackage{booktabs}."""
    columns = "".join("r" if right else "l" for right in are_numbers(table))
    head, *rows = (
        " & ".join(words) + r" \\"
        for words in (map(_latex, table.columns), *(map(_latex_cell, row) for row in table.rows))
    )
    notes = [f"% {' '.join(note.split())}" for note in (table.title, *table.notes)]
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*notes, *lines, r"\end{tabular}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    return rf"\textbf{{{_latex(cell.text)}}}" if cell.is_bold else _latex(cell.text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def comma(table: Table) -> str:
    """CSV of the plain values, not rounded; an interval, a list of two, is two columns; a tuple is the cell's text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = []
    for i, name in enumerate(table.columns):
        cells = [row[i] for row in table.rows]
        if any(isinstance(cell.value, list) for cell in cells):
            ends = [cell.value if isinstance(cell.value, list) else ["", ""] for cell in cells]
            columns += [[f"{name}, low", *(low for low, _ in ends)], [f"{name}, high", *(high for _, high in ends)]]
        else:
            columns.append([name, *(cell.text if isinstance(cell.value, tuple) else plain(cell) for cell in cells)])
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def plain(cell: Cell) -> Any:
    """The value of a cell; its text where that is all it has."""
    return cell.value if cell.value is not None else "" if cell.text == DASH else cell.text


def table_content(table: Table) -> dict[str, Any]:
    rows = [[plain(cell) for cell in row] for row in table.rows]
    return {"key": table.key, "title": table.title, "columns": table.columns, "notes": table.notes, "rows": rows}


def as_json(content: dict[str, Any]) -> str:
    """JSON text; null for a number that is not finite, which JSON does not know."""
    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
