"""The command line: `python -m tmbench.report [RUN | FOLDER | GLOB | KEY=VALUE ...]`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..config.settle import Settings
from ..config.table import conf_dir
from ..config.values import is_number, is_whole
from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from .numbers import Report
    from .read import Runs

USAGE = """\
usage: python -m tmbench.report [RUN | FOLDER | GLOB | KEY=VALUE ...]

Says what runs show: which optimizer is better, by how much, how sure that is, what it cost.

Runs are those under ./runs, or under the folders and globs that are named; filters choose among them:
status=completed,diverged  task=tc  optimizer=sgd,tmsgd  profile=full  lr=0.1  seed=0,1,2

  python -m tmbench.report                                all runs under ./runs, into ./report
  python -m tmbench.report task=tc profile=full out=r8    some of them
  python -m tmbench.report 'old/*' runs against=all       several folders; each method with each
  python -m tmbench.report plan=0.003 task=tc             how many seeds would find a difference of 0.003?
  python -m tmbench.report plan=0.003 sd=0.002 comparisons=28
  python -m tmbench.report source=wandb project=tmbench   the runs of a W&B project
  python -m tmbench.report logger=wandb                   the report to W&B as well

Settings (conf/report.yaml, which says more):
"""


def parsed(words: list[str]) -> tuple[Settings, list[str]]:
    """The settings, and the words that choose runs.

    Raises:
        ConfigError: a value is of the wrong kind.
    """
    settings: Settings = yaml.safe_load((conf_dir() / "report.yaml").read_text(encoding="utf-8"))
    rest = []
    for word in words:
        key, equals, text = word.partition("=")
        top, _, metric = key.partition(".")
        if not equals or top not in settings:
            rest.append(word)
            continue
        try:
            value = text if key in WORDS else yaml.safe_load(text)
            if isinstance(value, str) and (metric or key in NUMBERS):  # 1e-3, to YAML a word
                value = float(value)
        except (yaml.YAMLError, ValueError):
            value = text
        if metric and isinstance(settings[top], dict):
            settings[top] = settings[top] | {metric: value}
        else:
            settings[key] = value
    for key, (is_right, expected) in RULES.items():
        if not is_right(settings[key]):
            raise ConfigError(f"{key}: expected {expected}, got {settings[key]!r}")
    return settings, rest


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _share(value: Any) -> bool:
    return _positive(value) and value < 1


WORDS = ("runs_dir", "out", "against", "note", "project", "entity")  # whatever YAML would make of them
NUMBERS = ("level", "power", "relative_margin", "target", "plan", "sd")
RULES: dict[str, tuple[Any, str]] = {
    "source": (lambda v: v in ("runs", "wandb"), "runs or wandb"),
    "metric": (lambda v: v in ("last", "best"), "last or best"),
    "test": (lambda v: v in ("permutation", "wilcoxon"), "permutation or wilcoxon"),
    "against": (lambda v: isinstance(v, str) and v, "an optimizer, or all"),
    "level": (_share, "a number between 0 and 1"),
    "power": (_share, "a number between 0 and 1"),
    "relative_margin": (_positive, "a number > 0"),
    "margin": (lambda v: isinstance(v, dict) and all(map(_positive, v.values())), "numbers > 0: margin.accuracy=0.01"),
    "plan": (lambda v: v is None or _positive(v), "a difference > 0 in units of the metric, such as 0.003"),
    "sd": (lambda v: v is None or _positive(v), "a number > 0"),
    "comparisons": (lambda v: v is None or is_whole(v, 1), "a whole number > 0"),
    "target": (lambda v: v is None or is_number(v), "a value of the metric"),
    "predictions": (lambda v: isinstance(v, bool), "true or false"),
    "logger": (lambda v: v in ("none", "wandb", None), "none or wandb"),
}


def runs_of(settings: Settings, words: list[str]) -> "Runs":
    """The runs that are meant, read into tables."""
    if settings["source"] == "wandb":
        from .online import fetched

        found, notes = fetched(settings, words)
    else:
        from .read import opened, records

        found, notes = records(opened(words, Path(settings["runs_dir"])))
    from .read import read

    return read(found, settings["metric"], notes)


def main(arguments: list[str] | None = None) -> int:
    """The command line of this module; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if set(words) & {"-h", "--help"}:
        print(USAGE + (conf_dir() / "report.yaml").read_text(encoding="utf-8"), end="")
        return 0
    try:
        settings, rest = parsed(words)
        if settings["plan"] is not None:
            return _plan(settings, rest)
        from ..runs import show
        from .answers import report

        found = report(runs_of(settings, rest), settings)
        return _write(found, shlex.join(["python", "-m", "tmbench.report", *words]), show.console())
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 1


def _plan(settings: Settings, words: list[str]) -> int:
    from ..runs import show
    from . import answers, formats

    found = None if settings["sd"] is not None else answers.report(runs_of(settings, words), settings)
    for table in answers.plan(settings, found):
        formats.console(table, show.console())
    return 0


def _write(found: "Report", command: str, console: "Console") -> int:
    from rich.markup import escape

    from ..files import write
    from . import formats
    from .page import page

    out = Path(found.settings["out"])
    try:
        for folder in (out / "tables", out / "figures"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: expected a folder to write to, got {out} ({error.strerror})") from None
    from .figures import figures, predictions

    drawn = list(figures(found))
    pictures = predictions(found, out / "figures") if found.settings["predictions"] else {}
    for name, _, svg in drawn:
        write(out / "figures" / f"{name}.svg", svg)
    for table in found.tables:
        write(out / "tables" / f"{table.key}.csv", formats.comma(table))
        write(out / "tables" / f"{table.key}.tex", formats.latex(table))
    write(out / "report.md", formats.pages(found, drawn, pictures))
    write(out / "report.json", formats.as_json(found))
    write(out / "report.html", page(found, drawn, pictures, command))
    for table in found.tables:
        formats.console(table, console)
    console.print()
    for sentence in found.sentences:
        console.print(escape(sentence), highlight=False)
    for note in found.notes:
        console.print(f"[yellow]note[/yellow]  {escape(note)}", highlight=False)
    if found.settings["logger"] == "wandb":
        from .online import sent

        for note in sent(found, drawn, out):
            console.print(f"[yellow]note[/yellow]  {escape(note)}", highlight=False)
    console.print(f"\n{len(found.runs.runs)} runs; {out / 'report.html'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
