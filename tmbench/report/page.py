"""The whole report as Markdown, JSON and one HTML file, which needs no network and treats all that runs say as text."""

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..config.settle import flat
from ..config.table import METHOD, PROBLEM, kind_of
from .contents import Drawing, Report
from .formats import are_numbers, finite, is_number, markdown, markdown_text, new_notes, number, score, table_content

HERE = Path(__file__).parent


def page(
    report: Report, drawings: list[Drawing], pictures: dict[Path, str], command: str, title: str = "tmbench report",
    verdicts: list[tuple[str, str]] | None = None,
) -> str:  # fmt: skip
    """The page's HTML.

    Args:
        pictures: of predictions: PNG files and captions.
        command: that makes it.
        verdicts: each with its sentence, in place of the report's; the figures then come before the tables.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    images = [(caption, base64.b64encode(path.read_bytes()).decode()) for path, caption in pictures.items()]
    return environment.get_template("page.html").render(
        report=report, title=title, command=command, verdicts=verdicts or _verdicts(report),
        figures_first=verdicts is not None, version=__version__, script=Markup(script), digest=digest, images=images,
        # matplotlib escapes its texts.
        figures=[(drawing.name, drawing.text, Markup(_inline(drawing.svg))) for drawing in drawings],
        are_numbers=are_numbers, is_number=is_number, notes=new_notes(report.tables), runs=_runs(report),
        details=_details(report),
    )  # fmt: skip


def _verdicts(report: Report) -> list[tuple[str, str]]:
    """Each sentence with its verdict in a word; empty where there is nothing to compare."""
    words = [comparison.verdict.split()[0].rstrip(",:") for comparison in report.comparisons]
    return list(zip(words or [""] * len(report.sentences), report.sentences, strict=True))


def _inline(svg: str) -> str:
    """An SVG as part of the page: half as large again, and black as the page's text."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', lambda m: f'{m[1]} width="{1.5 * float(m[2]):.0f}"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.S)
    return svg.replace("#000000", "currentColor")


def _runs(report: Report) -> list[dict[str, Any]]:
    """The rows of the table of runs."""
    problems, methods = report.runs.problems, report.runs.methods
    rows = []
    for row in report.runs.runs.iter_rows(named=True):
        problem = problems[row["problem"]]
        rows.append(
            row | {
                "problem_label": problem.label, "profile": problem.profile, "split": problem.split,
                "metric": problem.metric, "method_label": methods[row["method"]].label,
                "score_text": score(problem, row["score"]), "best_text": score(problem, row["best"]),
                "seconds_text": number(row["seconds"]),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (methods[row["method"]].place, row["seed"]))


def _details(report: Report) -> dict[str, Any]:
    """What the page shows of a run on a click: its command and configuration; the latter once a method."""
    configs = {}
    for method in report.runs.methods:
        shown = {key: value for key, value in flat(method.config).items() if kind_of(key) in (METHOD, PROBLEM)}
        configs[method.index] = yaml.dump(shown, sort_keys=False, Dumper=yaml.CSafeDumper)
    keys = ("command", "folder", "hardware", "versions", "git_commit", "started", "error", "steps", "parameters",
            "peak_memory_bytes", "from_trunk", "diverged_epoch")  # fmt: skip
    runs = {
        row["run"]: [row["method"], row["seed"], row["run_id"], row["status"], *(finite(row[key]) for key in keys)]
        for row in report.runs.runs.iter_rows(named=True)
    }
    return {"configs": configs, "runs": runs, "keys": list(keys)}


def content(report: Report) -> dict[str, Any]:
    """The report for another program: all tables with plain values, the sentences, the notes, and the runs."""
    return {
        "settings": report.settings, "sentences": report.sentences, "notes": report.notes,
        "tables": [table_content(table) for table in report.tables],
        "problems": [{"index": p.index, "label": p.label, "task": p.task, **p.outcome._asdict()}
                     for p in report.runs.problems],
        "methods": [{"index": m.index, "problem": m.problem, "label": m.label, "name": m.name, "optimizer": m.optimizer}
                    for m in report.runs.methods],
        "runs": report.runs.runs.to_dicts(),
    }  # fmt: skip


def pages(report: Report, drawings: list[Drawing], pictures: dict[Path, str]) -> str:
    """The whole report as Markdown, with its figures beside it."""
    profiles = ", ".join(dict.fromkeys(problem.profile for problem in report.runs.problems))
    parts = [
        "# tmbench report", f"{report.runs.content}; {profiles} data.",
        "\n".join(f"- {markdown_text(sentence)}" for sentence in report.sentences),
        "\n".join(f"> **Note** {markdown_text(note)}\n" for note in report.notes),
        *(markdown(replace(table, notes=notes))
          for table, notes in zip(report.tables, new_notes(report.tables), strict=True)),
        *(f"![{markdown_text(drawing.text)}](figures/{drawing.name}.svg)" for drawing in drawings),
        *(f"![{markdown_text(caption)}](figures/{picture.name})" for picture, caption in pictures.items()),
    ]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
