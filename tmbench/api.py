"""What the command line does, as functions for another program or a notebook."""

import itertools
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from hydra import compose
from omegaconf import OmegaConf
from rich.console import Console

from .config.compose import check_choices, composed, own_files
from .config.overrides import word_of
from .errors import ConfigError
from .frames import Place, filter_words, folder_of, recorded, table
from .guest import as_guest, our_hydra
from .report.__main__ import main as report_command
from .report.__main__ import written
from .report.formats import finite
from .result import Result
from .run import run as run_once
from .runs.show import console
from .sweeps.job import command
from .sweeps.show import Outcome, varied_settings
from .sweeps.sweep import check_alone
from .sweeps.sweep import sweep as do_sweep


@dataclass(frozen=True)
class Sweep:
    """The outcome of a sweep.

    Args:
        results: of the jobs that have one, in their order.
        failures: of the others: what went wrong, by the number of the job.
        table: a row a job: `job`, `arm` (of a study), `how` (new, resumed, shown, failed or not started), and the
            columns of `runs`.
        varied: the settings in which the jobs differ.
    """

    results: list[Result] = field(repr=False)
    failures: dict[int, str]
    table: pl.DataFrame
    varied: list[str]

    def _repr_html_(self) -> str:
        """The table, which a notebook shows: the settings that vary, and the outcome of each job."""
        names = ["job", *self.varied, "status", "metric", "last", "best", "baseline", "seconds", "error"]
        shown = self.table.select(name for name in names if name in self.table.columns)
        with pl.Config(tbl_rows=-1, tbl_cols=-1):
            return shown._repr_html_()


@dataclass(frozen=True)
class Report:
    """What a report says, and where.

    Args:
        page: the file report.html; tables and figures are beside it.
        verdicts: a row for each pair of methods of a problem: `verdict`, `n` (seeds), the `mean` difference of their
            scores (positive: the method is better, whichever way the metric goes), its interval (`low`, `high`),
            `p_holm`, and what else the test gives, in units of the metric.
        sentences: the same in words.
        notes: what a reader must know before believing it.
    """

    page: Path
    verdicts: pl.DataFrame
    sentences: list[str]
    notes: list[str]


def run(
    task: str = "tc", optimizer: str = "tmsgd", seed: int = 0, *, runs_dir: Place | None = None,
    data_dir: Place | None = None, config_dir: Place | None = None, force: bool = False, progress: bool = True,
    **settings: Any,
) -> Result:  # fmt: skip
    """Does one run, or finds it if it has been done: the run of `tmbench task=TASK optimizer=OPTIMIZER seed=SEED ...`.

    The same settings are the same run, in the same folder, whoever asks. One that was interrupted is resumed. A run
    that diverges is a result, with status `diverged`.

    It leaves the program as it was: its signal handlers, random numbers and variables. Runs of several threads wait for
    each other; only the main thread can interrupt one.

    Args:
        task: what is trained, a file of conf/task.
        optimizer: with what, a file of conf/optimizer.
        seed: decides everything random.
        runs_dir: where the runs go; None: ./runs.
        data_dir: where the real data sets are; None: TMBENCH_DATA, or ./data.
        config_dir: a folder with YAML files of your own, in folders task/, optimizer/ ...
        force: repeat the run if it has been done.
        progress: show on standard error how far the run is; False prints nothing.
        settings: any other settings of the command line. A key with a dot is given as `**{"task.width": 50}`, one that
            its file does not have as `**{"+optimizer.fused": True}`. Values are Python's: None, bool, numbers, text,
            paths, lists and mappings. Text is never parsed again, but for interpolations such as `${lr}`.

    Returns:
        The result; `result.folder` is where it lies.

    Raises:
        ConfigError: a setting is not what it must be.
        DataError: a file is missing, damaged or cannot be written.
        RunError: one of the run's processes failed.
        KeyboardInterrupt: the run was stopped; the same call resumes it.

    Examples:
        >>> import tmbench
        >>> result = tmbench.run("tc", "sgd", epochs=1, batch_size=40, runs_dir="mine", progress=False)
        >>> result.status, result.metric, result.epochs["trained"]
        ('completed', 'accuracy', 1)
        >>> (result.folder / "curves.csv").exists()
        True
        >>> tmbench.run("tc", "sgd", lr=-1)
        Traceback (most recent call last):
            ...
        tmbench.errors.ConfigError: lr: expected a number > 0, got -1
    """
    given = {"task": task, "optimizer": optimizer, "seed": seed, **_places(runs_dir, data_dir, force), **settings}
    with as_guest(progress):
        words = [*_own(config_dir), *(word_of(key, value) for key, value in given.items())]
        with our_hydra():
            cfg = OmegaConf.create(composed(words))
        check_alone(cfg, "this works for a sweep only; use tmbench.sweep")
        result, folder, _ = run_once(cfg, command(words), words=words)
        if result.status == "interrupted":
            saved = "{trained} of {asked}".format_map(result.epochs)
            raise KeyboardInterrupt(f"{saved} epochs are saved in {folder}; the same call resumes the run")
    return result


def sweep(
    task: str | Iterable[str] = "tc",
    optimizer: str | Iterable[str] = "tmsgd",
    seed: int | Iterable[int] = 0,
    *,
    runs_dir: Place | None = None,
    data_dir: Place | None = None,
    config_dir: Place | None = None,
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Does every combination of the listed values, as `tmbench -m ...` does: what is known is not done again.

    Every list, tuple, range or array is a list of values to try, and the last one varies fastest. A setting that is a
    list itself is therefore given in another list: `**{"optimizer.betas": [[0.9, 0.99]]}` is one value,
    `[[0.9, 0.99], [0.8, 0.9]]` are two.

    Args:
        task, optimizer, seed: one, or several.
        runs_dir, data_dir, config_dir, force, progress: as of `run`.
        settings: as of `run`, each with one value or a list of values. Those of a sweep are `launcher="local"` (several
            jobs at once; also slurm, ray), `study="switch"` (adds control runs) and `plan=True` (prints the jobs and
            what they would cost; at most one epoch of the first is trained, to measure its time, and it is kept).

    Returns:
        The results, and a table of all jobs. With `plan=True` nothing of that: no results, no failures, no rows.

    Raises:
        ConfigError, DataError: as of `run`, before any job begins, or if the launcher cannot do the jobs.
        KeyboardInterrupt: the sweep was stopped; the same call does what is missing.

    Warns:
        RuntimeWarning: a job has failed; the others were done all the same, and `failures` has its message.

    Examples:
        >>> import tmbench
        >>> two = tmbench.sweep("tc", "sgd", seed=range(2), epochs=1, batch_size=40, runs_dir="mine", progress=False)
        >>> [result.seed for result in two.results]
        [0, 1]
        >>> two.table.select("job", "seed", "status").rows()
        [(0, 0, 'completed'), (1, 1, 'completed')]
    """
    given = {"task": task, "optimizer": optimizer, "seed": seed, **_places(runs_dir, data_dir, force), **settings}
    with as_guest(progress):
        search = _own(config_dir)
        choices = [[word_of(key, value) for value in _values(key, several)] for key, several in given.items()]
        jobs = [list(words) for words in itertools.product(*choices)]
        for words in choices:
            check_choices(words, [])
        with our_hydra():
            config = compose("config", [*search, *jobs[0]], return_hydra_config=True)
            outcomes = do_sweep(jobs, config, console() if "plan=true" in jobs[0] else Console(quiet=True))
    swept = _swept(outcomes)
    if swept.failures:
        number, error = next(iter(swept.failures.items()))
        warnings.warn(f"{len(swept.failures)} of {len(outcomes)} jobs failed; job {number}: {error}", RuntimeWarning, 2)
    return swept


def report(runs_dir: Place = "runs", out: Place = "report", **settings: Any) -> Report:
    """Says which optimizer is better, by how much and how sure that is, as `tmbench report` does.

    Args:
        runs_dir: the folder with the runs.
        out: the folder for report.html, report.md, report.json, tables/ and figures/.
        settings: those of `tmbench report --help`, such as `against="sgd"`, `metric="best"` or
            `**{"margin.accuracy": 0.01}`; all others are filters, as of `runs`.

    Returns:
        The page, and the verdicts.

    Raises:
        ConfigError: no run fits, or a setting is not what it must be.
        DataError: a file is damaged, or cannot be written.

    Examples:
        >>> import tmbench
        >>> kinds = ["sgd", "tmsgd"]
        >>> _ = tmbench.sweep("tc", kinds, [0, 1], epochs=2, batch_size=40, runs_dir="pairs", progress=False)
        >>> report = tmbench.report("pairs", out="page", task="tc", against="sgd")
        >>> report.page.name, report.verdicts.select("method", "against", "n").rows()
        ('report.html', [('tmsgd', 'sgd', 2)])
    """
    if settings.keys() & {"plan", "json"}:
        raise ConfigError(
            "report: expected neither plan= nor json=; they work on the command line only: tmbench report plan=0.01"
        )
    with as_guest(progress=True):
        places = {"runs_dir": folder_of("runs_dir", runs_dir), "out": folder_of("out", out)}
        done, notes = written(*report_command.parse(filter_words(places | settings)))
    rows = [
        {"problem": c.problem.label, "profile": c.problem.profile, "metric": c.problem.metric, "method": c.method.label,
         "against": c.reference.label, "verdict": c.verdict, **finite(asdict(c.difference))}
        for c in done.comparisons
    ]  # fmt: skip
    page = places["out"] / "report.html"
    return Report(page, pl.DataFrame(rows, infer_schema_length=None), done.sentences, [*done.notes, *notes])


def _places(runs_dir: Place | None, data_dir: Place | None, force: bool) -> dict[str, Any]:
    """The settings that are parameters of their own, where they are given."""
    places = {"runs_dir": runs_dir, "data_dir": data_dir}
    given: dict[str, Any] = {key: folder_of(key, place) for key, place in places.items() if place is not None}
    if not isinstance(force, bool):
        raise ConfigError(f"force: expected True or False, got {force!r}")
    return given | ({"force": True} if force else {})


def _own(config_dir: Place | None) -> list[str]:
    if config_dir is None:
        return []
    folder = folder_of("config_dir", config_dir)
    if not folder.is_dir():
        raise ConfigError(f"config_dir: expected a folder with YAML files of yours, got {config_dir}")
    return own_files(str(folder))


def _values(key: str, value: Any) -> list[Any]:
    """The values to try that were given for a setting."""
    value = value.tolist() if hasattr(value, "tolist") else value  # a number of numpy or torch may be an Iterable
    if isinstance(value, (str, bytes, Mapping, os.PathLike)) or not isinstance(value, Iterable):
        return [value]
    if not (values := list(value)):
        raise ConfigError(f"{key}: expected a value, or a list of values to try, got an empty one")
    return values


def _swept(outcomes: list[Outcome]) -> Sweep:
    _, varied, _ = varied_settings([(record.words, record.arm) for record, _ in outcomes])
    rows = [
        {"job": r.number, "arm": r.arm or None, "how": r.how or "failed", "failure": r.error or None,
         "run_id": Path(r.folder).name if r.folder else None}
        for r, _ in outcomes
    ]  # fmt: skip
    schema: Any = {"job": pl.Int64, "arm": pl.String, "how": pl.String, "failure": pl.String, "run_id": pl.String}
    folders = dict.fromkeys(record.folder for record, _ in outcomes if record.folder)
    runs = table(record for folder in folders for record in recorded(Path(folder)))
    jobs = pl.DataFrame(rows, schema=schema).join(runs, on="run_id", how="left", maintain_order="left")
    status, error = pl.coalesce("status", pl.lit("failed")), pl.coalesce("failure", "error")
    return Sweep(
        [result for _, result in outcomes if result],
        {record.number: record.error for record, _ in outcomes if record.error},
        jobs.with_columns(status=status, error=error).drop("failure"),
        [key.lstrip("+") for key in varied],
    )
