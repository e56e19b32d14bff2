"""A table as Rich, Markdown, CSV, LaTeX (booktabs) and JSON have it. Whatever runs are called, it stays text."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from .contents import Drawing, Report
from .words import Cell, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def is_number(cell: Cell) -> bool:
    """Whether it stands at the right."""
    return cell.text[:1].isdigit() or (cell.text[:1] in "+-" and (len(cell.text) == 1 or cell.text[1].isdigit()))


def are_numbers(table: Table) -> list[bool]:
    """Of each column whether its entries are numbers."""
    return [bool(table.rows) and all(is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]


def console(table: Table, out: Console) -> None:
    lines = RichTable(title=escape(table.title), title_justify="left")
    for name, right in zip(table.columns, are_numbers(table), strict=True):
        lines.add_column(escape(name), justify="right" if right else "left")
    for row in table.rows:
        lines.add_row(*(escape(cell.text) for cell in row))
    out.print()
    out.print(lines)
    for note in table.notes:
        out.print(escape(note), style="dim", highlight=False)


def markdown(table: Table) -> str:
    def line(words: list[str]) -> str:
        return "| " + " | ".join(words) + " |"

    rule = ["--:" if right else "---" for right in are_numbers(table)]
    rows = [line([_markdown(cell.text) for cell in row]) for row in table.rows]
    head = [f"### {_markdown(table.title)}", "", line([_markdown(name) for name in table.columns]), line(rule)]
    return "\n".join([*head, *rows, *(f"\n{_markdown(note)}" for note in table.notes)]) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<|])", r"\\\1", " ".join(text.split()))


def latex(table: Table) -> str:
    """A tabular for \\input; needs \\usepackage{booktabs}."""
    columns = "".join("r" if right else "l" for right in are_numbers(table))

    def line(words: list[str]) -> str:
        return " & ".join(map(_latex, words)) + r" \\"

    rows = [line([cell.text for cell in row]) for row in table.rows]
    notes = [f"% {' '.join(note.split())}" for note in (table.title, *table.notes)]
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(table.columns), r"\midrule"]
    return "\n".join([*notes, *head, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def comma(table: Table) -> str:
    """CSV of the plain values, not rounded; an interval is two columns."""
    spans = [any(isinstance(row[i].value, list) for row in table.rows) for i in range(len(table.columns))]
    head = [
        name for column, span in zip(table.columns, spans, strict=True)
        for name in ([f"{column}, low", f"{column}, high"] if span else [column])
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        values: list[Any] = []
        for cell, span in zip(row, spans, strict=True):
            if span:
                values += cell.value if isinstance(cell.value, list) else ["", ""]
            else:
                values.append(plain(cell))
        writer.writerow(values)
    return text.getvalue()


def plain(cell: Cell) -> Any:
    """The value of a cell; its text where that is all it has."""
    return cell.value if cell.value is not None else "" if cell.text == "-" else cell.text


def content(report: Report) -> dict[str, Any]:
    """The report for another program: all tables with plain values, the sentences, the notes, and the runs."""
    return {
        "settings": report.settings, "sentences": report.sentences, "notes": report.notes,
        "tables": [table_content(table) for table in report.tables],
        "problems": [
            {"index": p.index, "label": p.label, "task": p.task, **p.outcome._asdict()} for p in report.runs.problems
        ],
        "methods": [
            {"index": m.index, "problem": m.problem, "label": m.label, "name": m.name, "optimizer": m.optimizer}
            for m in report.runs.methods
        ],
        "runs": report.runs.runs.to_dicts(),
    }  # fmt: skip


def table_content(table: Table) -> dict[str, Any]:
    rows = [[plain(cell) for cell in row] for row in table.rows]
    return {"key": table.key, "title": table.title, "columns": table.columns, "notes": table.notes, "rows": rows}


def as_json(content: dict[str, Any]) -> str:
    """JSON text; null for a number that is not finite, which JSON does not know."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pages(report: Report, drawings: list[Drawing], pictures: dict[Path, str]) -> str:
    """The whole report as Markdown, with its figures beside it."""
    profiles = ", ".join(dict.fromkeys(problem.profile for problem in report.runs.problems))
    parts = [
        "# tmbench report", f"{report.runs.content}; {profiles} data.",
        "\n".join(f"- {_markdown(sentence)}" for sentence in report.sentences),
        "\n".join(f"> **Note** {_markdown(note)}\n" for note in report.notes),
        *(markdown(table) for table in report.tables),
        *(f"![{_markdown(drawing.text)}](figures/{drawing.name}.svg)" for drawing in drawings),
        *(f"![{_markdown(caption)}](figures/{picture.name})" for picture, caption in pictures.items()),
    ]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
