"""The runs that the words of the command line mean, read into tables: one row a run, one row an epoch."""

import glob
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from ..config.identity import SCHEMA, effective_switch
from ..config.settle import Settings
from ..errors import ConfigError, DataError, count
from ..files import read_sealed_text
from ..result import FINAL, Result
from ..runs import Run, find, fitting
from .paper import table_order
from .problems import Method, Outcome, Problem, Runs, digest_of, label, method_facts, problem_facts


@dataclass
class Record:
    """What a run's folder, or W&B, has of the run."""

    name: str
    folder: str
    status: str
    config: Settings
    result: Result | None
    curves: str  # CSV


def opened(words: list[str], runs_dir: Path, settings: Iterable[str] = ()) -> list[Run]:
    """The runs that words mean: folders of runs, or of one, or globs of either, or run ids under runs_dir; all filters.

    Raises ConfigError if there is none.
    """
    places, filters = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not places and not runs_dir.is_dir():
        raise ConfigError(f"{runs_dir}: no such folder; name one, or say runs_dir=DIR")
    runs: dict[Path, Run] = {}
    for place in places or [str(runs_dir)]:
        paths = [Path(path) for path in sorted(glob.glob(place)) if Path(path).is_dir()]
        folders: list[Path] = []
        for path in paths:
            is_run = (path / "config.yaml").is_file()
            folders += [path] if is_run else sorted(file.parent for file in path.glob("[!.]*/config.yaml"))
        if not paths:
            if not runs_dir.is_dir():
                raise ConfigError(f"{place}: no such folder")
            folders = [run.folder for run in find(runs_dir, [place])]
        runs |= {folder.resolve(): Run.open(folder) for folder in folders if folder.resolve() not in runs}
    return fitting(list(runs.values()), filters, settings)


def why_none_fits(words: list[str], runs_dir: Path) -> str:
    """The first filter among the words that leaves no run, and what the runs before it are."""
    fit = opened([word for word in words if "=" not in word], runs_dir)
    for word in (word for word in words if "=" in word):
        before, fit = fit, fitting(fit, [word])
        if before and not fit:
            key = word.partition("=")[0]
            there = Counter(_value(run, key) for run in before).most_common(12)
            known = ", ".join(f"{value} ({count(n, 'run')})" for value, n in there)
            return f"{word}: no run fits; {key} is {known}"
    return "no runs to report on"


def _value(run: Run, key: str) -> str:
    try:
        return str(run.value(key)).replace("None", "null")
    except (KeyError, TypeError, DataError):
        return "not known"


def records(runs: list[Run]) -> tuple[list[Record], list[str]]:
    """The runs' files, and what is wrong with some; runs that differ by seed alone share the parsed configuration."""
    parsed: dict[str, Settings] = {}
    readable, notes = [], []
    for run in runs:
        try:
            text = read_sealed_text(run.folder / "config.yaml")
            # The seed is a line of its own, and all that differs in most of many runs.
            before, found, rest = f"\n{text}".partition("\nseed: ")
            seed, _, rest = rest.partition("\n")
            if (key := f"{before}\n{rest}") not in parsed:
                parsed[key] = run.config
            config = parsed[key] | {"seed": int(seed)} if found else run.config
            csv = run.curves
        except (OSError, ValueError) as error:
            notes.append(f"{run.folder}: left out, {error}")
            continue
        readable.append(Record(run.folder.name, str(run.folder), run.status, config, run.result, csv))
    return readable, notes


# ---- the table of runs


def read(records: Iterable[Record], metric: str, notes: list[str]) -> Runs:
    """Tables of the runs, sorted into problems and methods. Raises ConfigError if there is no run to report on.

    Args:
        metric: last or best.
        notes: what is known of the runs already.
    """
    records = list(records)
    facts: dict[int, tuple[Settings, Settings]] = {}  # runs that share a parsed configuration share its facts
    digests: dict[int, tuple[str, str]] = {}
    for key, config in {id(record.config["task"]): record.config for record in records}.items():
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # a setting is not what it must be
            effective_switch(config)
            facts[key] = problem_facts(config), method_facts(config)
            digests[key] = digest_of(facts[key][0]), digest_of(facts[key][1])
    odd = [record for record in records if id(record.config["task"]) not in digests]
    notes += [f"{record.folder}: left out, its configuration is not one of this program" for record in odd]
    records = [record for record in records if id(record.config["task"]) in digests]
    usual: dict[str, Counter[Outcome]] = {}  # by the problem's digest
    of_task: dict[str, Outcome] = {}
    for record in records:
        if record.result:
            of_task[record.result.task] = outcome = Outcome.of(record.result)
            usual.setdefault(digests[id(record.config["task"])][0], Counter())[outcome] += 1
    problems: dict[tuple[str, Outcome], Problem] = {}
    methods: dict[tuple[int, str], Method] = {}
    rows: list[dict[str, Any]] = []
    files: list[CurveFile] = []
    for record in records:
        config, key = record.config, id(record.config["task"])
        (of_problem, of_method), (problem_digest, method_digest) = facts[key], digests[key]
        if record.result:
            outcome = Outcome.of(record.result)
        elif problem_digest in usual:  # as most runs with its settings have
            outcome = usual[problem_digest].most_common(1)[0][0]
        elif like := of_task.get(config["task"]["name"]):
            split = "test" if config.get("validation") is None else "validation"
            outcome = like._replace(profile=config["data"]["profile"], data_digest="", split=split, schema=SCHEMA)
        else:
            notes.append(f"{record.name}: {record.status}; the metric of its task is not known, so no table has it")
            continue
        problem = Problem(len(problems), config["task"]["name"], config, of_problem, outcome)
        problem = problems.setdefault((problem_digest, outcome), problem)
        method = Method(len(methods), problem.index, config["optimizer"]["name"], config, of_method)
        method = methods.setdefault((problem.index, method_digest), method)
        if record.curves:
            files.append(CurveFile(len(rows), record.folder, problem.key, record.curves))
        rows.append(_row(len(rows), record, problem, method, metric))
    if not rows:
        raise ConfigError("no runs to report on: none fits the words, or none has a result")
    label(list(problems.values()), list(methods.values()))
    for place, method in enumerate(sorted(methods.values(), key=table_order)):
        method.place = place
    table = _with_counts(pl.DataFrame(rows, infer_schema_length=None), notes)
    return Runs(table, curves(files, notes), list(problems.values()), list(methods.values()), notes)


def _row(run: int, record: Record, problem: Problem, method: Method, metric: str) -> dict[str, Any]:
    result, key = record.result, problem.key
    row: dict[str, Any] = {
        "run": run, "run_id": record.name, "folder": record.folder, "problem": problem.index, "method": method.index,
        "optimizer": method.optimizer, "seed": int(record.config["seed"]), "status": record.status,
        "replicas": int(record.config.get("replicas", 1)),
    }  # fmt: skip
    if result is None:
        return row
    best = result.metrics["best"]
    return row | {
        "score": _number(result.metrics[metric], key) if record.status == "completed" else None,
        "best": _number(best, key), "best_epoch": _number(best, "epoch"),
        "baseline": _number(result.baseline, key), "seconds": float(result.seconds),
        "epochs": int(result.epochs["trained"]), "from_trunk": int(result.epochs["from_trunk"]),
        "steps": int(result.steps), "parameters": int(result.parameters),
        "peak_memory_bytes": int(result.peak_memory_bytes), "hardware": result.hardware,
        "versions": " ".join(f"{name} {version}" for name, version in result.versions.items()),
        "git_commit": result.git_commit, "command": result.command, "started": result.started, "error": result.error,
        "diverged_epoch": _number(result.diverged_at or {}, "epoch"),
    }  # fmt: skip


def _number(values: dict[str, Any], key: str) -> float | None:
    """The number; None of one that is missing, or not finite: it compares with nothing."""
    value = values.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def _with_counts(runs: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """The table with the column `counts`: whether a run is the newest of its method and seed; others repeat it."""
    newest = (
        runs.sort(pl.col("status").is_in(FINAL), "started", "run", descending=True, nulls_last=True)
        .group_by("method", "seed", maintain_order=True).first()
    )  # fmt: skip
    runs = runs.with_columns(counts=pl.col("run").is_in(newest["run"].implode()))
    stacks = (
        runs.filter("counts")
        .group_by("problem", maintain_order=True)
        .agg(pl.col("replicas").unique().sort())["replicas"]
        .to_list()
    )
    if mixed := sorted({k for each in stacks if len(each) > 1 for k in each}):
        told = " and ".join(map(str, mixed))
        notes.append(f"Runs with replicas={told} are compared; a replica is its run by itself up to rounding.")
    others = runs.filter(~pl.col("counts"))
    if len(others):
        names = ", ".join(others["folder"].head(3).to_list()) + (", ..." if len(others) > 3 else "")
        words = f"{len(others)} runs repeat the method and seed of another and are no further evidence"
        notes.append(f"{words}; the newest counts, not {names}.")
    return runs


# ---- curves

COLUMNS = dict.fromkeys(("run", "epoch", "step"), pl.Int64) | dict.fromkeys(("seconds", "loss", "metric"), pl.Float64)


class CurveFile(NamedTuple):
    run: int  # its row in the table of runs
    folder: str
    key: str  # the column of the problem's metric
    text: str  # CSV


def curves(files: list[CurveFile], notes: list[str]) -> pl.DataFrame:
    """Loss and metric of all curves as one table; what is not finite becomes null, see `curve_tables`."""
    tables = [_selected(table, key) for key, table in curve_tables(files, notes)]
    return pl.concat([pl.DataFrame(schema=COLUMNS), *tables])


def curve_tables(files: list[CurveFile], notes: list[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """The curves with all of their columns: files with the same head and key are one table, parsed at once.

    What is not finite becomes null: to polars a NaN is larger than every number. Notes tell what is wrong with files.
    """
    groups: dict[tuple[str, str], list[CurveFile]] = {}
    for file in files:
        head, _, body = file.text.partition("\n")
        if body.strip():
            body = body.removesuffix("\n") + "\n"
            groups.setdefault((head.strip(), file.key), []).append(file._replace(text=body))
    for (head, key), alike in groups.items():
        names = head.split(",")
        if not {"epoch", "step", "seconds"} <= set(names):
            notes.append(f"{alike[0].folder}/curves.csv: left out, expected epoch, step and seconds, got {head}")
            continue
        numbers = pl.col(pl.Float64)
        for table in _parsed(names, alike, notes):
            whole = table.with_columns(pl.col("epoch", "step").cast(pl.Int64))
            yield key, whole.with_columns(pl.when(numbers.is_finite()).then(numbers))


def _selected(table: pl.DataFrame, key: str) -> pl.DataFrame:
    def column(name: str) -> Any:
        return pl.col(name) if name in table.columns else pl.lit(None, pl.Float64)

    return table.select(
        "run", "epoch", "step", "seconds", column("train/loss").alias("loss"), column(key).alias("metric")
    )


def _parsed(names: list[str], files: list[CurveFile], notes: list[str]) -> list[pl.DataFrame]:
    """One table of all files; where some are broken, one of each that is not."""
    text = "".join(file.text for file in files).encode()
    runs = [file.run for file in files for _ in range(file.text.count("\n"))]
    try:
        table = pl.read_csv(text, has_header=False, schema=dict.fromkeys(names, pl.Float64))
        return [table.with_columns(pl.Series("run", runs, pl.Int64))]
    except (pl.exceptions.PolarsError, ValueError) as error:
        if len(files) > 1:
            return [table for file in files for table in _parsed(names, [file], notes)]
        notes.append(f"{files[0].folder}/curves.csv: left out, {str(error).splitlines()[0]}")
        return []
