"""The command line: `tmbench report [RUN | FOLDER | GLOB | KEY=VALUE ...]`."""

import json
import shlex
import shutil
import sys
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..config.table import conf_dir
from ..config.trust import TRUST
from ..config.values import Setting
from ..errors import ConfigError, did_you_mean
from ..verbs import JSON, Values, Verb

if TYPE_CHECKING:
    from rich.console import Console

    from .contents import Report
    from .problems import Runs
    from .read import Record

# What each setting of conf/report.yaml must be, and what it does; its default, and more of the why, are there.
MEANINGS = {
    "source": ("a file, or runs, or wandb", "where the runs are: in folders, in a W&B project, or in a Parquet file of "
               "`tmbench runs pack`"),
    "runs_dir": ("a folder", "where the runs are"),
    "out": ("a folder", "where the files go: report.html, report.md, report.json, tables/, figures/"),
    "metric": ("one of last, best", "the value after the last epoch, or the best epoch's"),
    "against": ("a word", "the optimizer that all others are compared with, or all: each with each"),
    "test": ("one of permutation, wilcoxon", "the two-sided test, paired by seed"),
    "level": ("a number between 0 and 1", "error level of all tests together, and of the intervals"),
    "power": ("a number between 0 and 1", "the probability with which planned seeds find a difference"),
    "margin": ("settings", "by metric, the largest difference that does not matter: margin.accuracy=0.01"),
    "relative_margin": ("a number > 0", "the same for any other metric, as a share of the reference's value"),
    "target": ("a number, or null", "the value for the time to target; null: the median that `against` ends with"),
    "note": ("a sentence, or null", "a sentence of yours for the reader"),
    "trust": (TRUST.expects, TRUST.help),
    "predictions": ("true or false", "show what the trained networks predict for the same examples; needs their data"),
    "plan": ("a number > 0, or null", "how many seeds find this difference, given the spread that the runs show?"),
    "sd": ("a number > 0, or null", "for plan: the spread of paired differences, in place of runs"),
    "comparisons": ("a whole number > 0, or null", "for plan: tests that share the level; null: those of the runs"),
    "logger": ("one of none, wandb", "wandb: send the report to W&B as well, as a run of type report"),
    "project": ("a word", "the project of W&B"),
    "entity": ("a word, or null", "the user or team of W&B"),
    "mode": ("one of online, offline, or null", "of W&B; null: online with an account, else offline"),
}  # fmt: skip


def _settings() -> dict[str, Setting]:
    defaults = yaml.safe_load((conf_dir() / "report.yaml").read_text(encoding="utf-8"))
    return {key: Setting(*MEANINGS[key], default) for key, default in defaults.items()} | {"json": JSON}


def runs_of(settings: Values, words: list[str]) -> "Runs":
    """The runs that the words mean, read into tables."""
    from .read import read

    if settings["source"] not in ("runs", "wandb"):
        return _of_file(settings, words)
    if settings["source"] == "wandb":
        from .wandb_project import fetched

        runs, notes = fetched(settings, words)
    else:
        runs, notes = _of_folders(words, Path(settings["runs_dir"]))
    tables = read(runs, settings["metric"], notes)
    _check_words(settings, tables)
    return tables


def _of_folders(words: list[str], runs_dir: Path) -> "tuple[list[Record], list[str]]":
    from .read import opened, records, why_none_fits

    if not (found := opened(words, runs_dir, main.settings)):
        raise ConfigError(why_none_fits(words, runs_dir))
    return records(found)


def _of_file(settings: Values, words: list[str]) -> "Runs":
    """The runs of a Parquet file, whose folders exist for as long as the tables."""
    from ..runs.archive import SUFFIX, unpack
    from .read import read

    file = Path(settings["source"])
    if file.suffix != SUFFIX:
        expected = f"runs, wandb, or a file of `tmbench runs pack`, whose name ends with {SUFFIX}"
        raise ConfigError(f"source: expected {expected}, got {file}")
    if places := [word for word in words if "=" not in word]:
        raise ConfigError(f"source={file}: expected filters such as task=tc, got {' '.join(places)}")
    root = Path(tempfile.mkdtemp(prefix="tmbench-report-"))
    try:
        place = root / file.name
        place.mkdir()
        unpack(file, place)
        runs, notes = _of_folders([str(place), *words], place)
        for record in runs:  # the page and its files are the same wherever they are made
            record.folder = str(Path(record.folder).relative_to(root))
        tables = read(runs, settings["metric"], notes)
        tables.root = root
        _check_words(settings, tables)
    except BaseException:
        shutil.rmtree(root)
        raise
    weakref.finalize(tables, shutil.rmtree, root, ignore_errors=True)
    return tables


def _check_words(settings: Values, found: "Runs") -> None:
    """Raises ConfigError for an optimizer or a metric that no run has, and for a difference that no share can have."""
    optimizers = sorted({method.optimizer for method in found.methods})
    against = settings["against"]
    if against not in ("all", main.settings["against"].default, *optimizers):
        hint = did_you_mean(against, optimizers)
        raise ConfigError(f"against: expected all, or one of {', '.join(optimizers)}, got {against}{hint}")
    metrics = sorted({problem.metric for problem in found.problems})
    for metric in settings["margin"].keys() - main.settings["margin"].default.keys() - {*metrics}:
        expected = f"a metric of these runs ({', '.join(metrics)})"
        raise ConfigError(f"margin.{metric}: expected {expected}{did_you_mean(metric, metrics)}")
    bounded = sorted({problem.metric for problem in found.problems if problem.is_bounded})
    if settings["plan"] is not None and settings["plan"] >= 1 and bounded:
        raise ConfigError(
            f"plan: expected a difference below 1, since {', '.join(bounded)} is between 0 and 1 (0.01 is one point), "
            f"got {settings['plan']}"
        )


def do(settings: Values, words: list[str]) -> int:
    """Writes the report, or says how many seeds a difference needs."""
    _check_margins(settings)
    from ..runs import show
    from . import answers, formats, page

    if settings["plan"] is not None:
        shown = None if settings["sd"] is not None else answers.report(runs_of(settings, words), settings)
        tables = answers.plan(settings, shown)
        if settings["json"]:
            print(formats.as_json({"tables": [formats.table_content(table) for table in tables]}), end="")
        for table in () if settings["json"] else tables:
            formats.console(table, show.console())
        return 0
    report, notes = written(settings, words)
    if settings["json"]:
        print(formats.as_json(page.content(report)), end="")
    else:
        _print(report, notes, show.console())
    return 0


def written(settings: Values, words: list[str]) -> tuple["Report", list[str]]:
    """The report on the runs that the words mean, whose files are written, and notes on where else it went."""
    from . import answers

    _check_margins(settings)
    report = answers.report(runs_of(settings, words), settings)
    return report, _write(report, _command(settings, words))


def _check_margins(settings: Values) -> None:
    for metric, value in settings["margin"].items():
        Setting("a number > 0", "").checked(f"margin.{metric}", value)


def _command(settings: Values, words: list[str]) -> str:
    """What a person types to get this report."""
    changed = []
    for key, setting in main.settings.items():
        value = settings[key]
        if isinstance(value, dict):
            changed += [f"{key}.{name}={one}" for name, one in value.items() if one != setting.default.get(name)]
        elif value != setting.default and key != "json":
            changed.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return shlex.join(["tmbench", "report", *words, *changed])


def _write(report: "Report", command: str) -> list[str]:
    """Writes all files, and sends W&B what it is to get; returns what a person should know of that."""
    from ..files import folder_for, write
    from . import formats
    from .figures import figures, predictions
    from .page import content, page, pages

    settings = report.settings
    out = folder_for("out", settings["out"])
    for name in ("tables", "figures"):
        folder_for("out", out / name)
    drawings = list(figures(report))
    pictures = predictions(report, out / "figures") if settings["predictions"] else {}
    for drawing in drawings:
        write(out / "figures" / f"{drawing.name}.svg", drawing.svg)
    for table in report.tables:
        write(out / "tables" / f"{table.key}.csv", formats.comma(table))
        write(out / "tables" / f"{table.key}.tex", formats.latex(table))
    write(out / "report.md", pages(report, drawings, pictures))
    write(out / "report.json", formats.as_json(content(report)))
    write(out / "report.html", page(report, drawings, pictures, command))
    if settings["logger"] != "wandb":
        return []
    from .wandb_project import sent

    return sent(report, drawings, out)


def _print(report: "Report", notes: list[str], console: "Console") -> None:
    from rich.markup import escape

    from . import formats

    for table, new in zip(report.tables, formats.new_notes(report.tables), strict=True):
        formats.console(replace(table, notes=new), console)
    console.print()
    for note in [*report.notes, *notes]:
        console.print(f"[yellow]note[/yellow]  {escape(note)}", highlight=False)
    for sentence in report.sentences:  # the answer, where a person at a terminal looks
        console.print(f"\n{escape(sentence)}", highlight=False)
    page = Path(report.settings["out"]) / "report.html"
    console.print(f"\n{len(report.runs.runs)} runs; {page}", highlight=False, soft_wrap=True)


EXAMPLES = """
tmbench report                                all runs under ./runs, into ./report
tmbench report task=tc profile=full out=r8    some of them; filters are status, profile and all settings of a run
tmbench report optimizer=sgd,tmsgd seed=0,1,2  a filter may have several values
tmbench report 'old/*' runs against=all       several folders; each method with each
tmbench report plan=0.003 task=tc             how many seeds find a difference of 0.003?
tmbench report plan=0.003 sd=0.002 comparisons=28
tmbench report source=wandb project=tmbench   the runs of a W&B project
tmbench report source=runs.parquet task=tc    those in a file of `tmbench runs pack`
tmbench report logger=wandb                   the report to W&B as well
"""

main = Verb(
    "report", "Says which optimizer is better, by how much, how sure that is, and what it cost.", do,
    settings=_settings(), takes="[RUN | FOLDER | GLOB | KEY=VALUE ...]", examples=EXAMPLES,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
