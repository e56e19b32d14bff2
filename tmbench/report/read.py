"""Runs, read into tables: one row a run, one row an epoch."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from ..config.identity import SCHEMA
from ..errors import ConfigError
from ..result import FINAL, Result
from .folders import Record
from .problems import Method, Outcome, Problem, Runs, digest_of, label, method_facts, problem_facts

ENVIRONMENT = {"hardware": "hardware", "git_commit": "commits", "versions": "versions"}  # columns, and their words


def read(records: Iterable[Record], metric: str, notes: list[str]) -> Runs:
    """Tables of the runs, sorted into problems and methods.

    Args:
        records: the runs.
        metric: last or best.
        notes: what is known of the runs already.

    Raises:
        ConfigError: there is no run to report on.
    """
    records = list(records)
    # Runs that share a parsed configuration share its facts.
    configs = {id(record.config["task"]): record.config for record in records}
    facts = {key: (problem_facts(config), method_facts(config)) for key, config in configs.items()}
    digests = {key: (digest_of(of_problem), digest_of(of_method)) for key, (of_problem, of_method) in facts.items()}
    usual = _usual_outcomes([(digests[id(r.config["task"])][0], r.result) for r in records if r.result])
    of_task = {record.result.task: record.result for record in records if record.result}
    problems: dict[tuple[str, Outcome], Problem] = {}
    methods: dict[tuple[int, str], Method] = {}
    rows: list[dict[str, Any]] = []
    files: list[CurveFile] = []
    for record in records:
        config, key = record.config, id(record.config["task"])
        (of_problem, of_method), (problem_digest, method_digest) = facts[key], digests[key]
        outcome = _outcome(record, usual.get(problem_digest), of_task)
        if outcome is None:
            notes.append(f"{record.name}: {record.status}; the metric of its task is not known, so no table has it")
            continue
        problem = problems.setdefault(
            (problem_digest, outcome), Problem(len(problems), config["task"]["name"], config, of_problem, outcome)
        )
        method = methods.setdefault(
            (problem.index, method_digest),
            Method(len(methods), problem.index, config["optimizer"]["name"], config, of_method),
        )
        if record.curves:
            files.append(CurveFile(len(rows), record.folder, problem.key, record.curves))
        rows.append(_row(len(rows), record, problem, method, metric))
    if not rows:
        raise ConfigError("no runs to report on: none fits the words, or none has a result")
    label(list(problems.values()), list(methods.values()))
    table = _with_counts(pl.DataFrame(rows, infer_schema_length=None), notes)
    return Runs(table, curves(files, notes), list(problems.values()), list(methods.values()), notes)


def _outcome_of(result: Result) -> Outcome:
    return Outcome(
        result.profile, result.data_digest, result.split, result.metric, result.higher_is_better, result.schema_version
    )


def _usual_outcomes(results: list[tuple[str, Result]]) -> dict[str, Outcome]:
    """By the digest of a problem's facts, the outcome that most of its runs have."""
    counts: dict[str, Counter[Outcome]] = {}
    for digest, result in results:
        counts.setdefault(digest, Counter())[_outcome_of(result)] += 1
    return {digest: counter.most_common(1)[0][0] for digest, counter in counts.items()}


def _outcome(record: Record, usual: Outcome | None, of_task: dict[str, Result]) -> Outcome | None:
    """The outcome of a run; of one without a result what runs with its settings, or else of its task, have."""
    if record.result:
        return _outcome_of(record.result)
    like = of_task.get(record.config["task"]["name"])
    if usual or like is None:
        return usual
    split = "test" if record.config.get("validation") is None else "validation"
    return Outcome(record.config["data"]["profile"], "", split, like.metric, like.higher_is_better, SCHEMA)


def _row(run: int, record: Record, problem: Problem, method: Method, metric: str) -> dict[str, Any]:
    result, key = record.result, problem.key
    row: dict[str, Any] = {
        "run": run, "run_id": record.name, "folder": record.folder, "problem": problem.index, "method": method.index,
        "optimizer": method.optimizer, "seed": int(record.config["seed"]), "status": record.status,
    }  # fmt: skip
    if result is None:
        return row | dict.fromkeys((
            "score", "best", "best_epoch", "baseline", "seconds", "epochs", "from_trunk", "steps", "parameters",
            "peak_memory_bytes", "hardware", "versions", "git_commit", "command", "started", "error", "diverged_epoch",
        ))  # fmt: skip
    best = result.metrics["best"]
    return row | {
        "score": _finite(result.metrics[metric].get(key)) if record.status == "completed" else None,
        "best": _finite(best.get(key)), "best_epoch": _finite(best.get("epoch")),
        "baseline": _finite(result.baseline.get(key)), "seconds": float(result.seconds),
        "epochs": int(result.epochs["trained"]), "from_trunk": int(result.epochs["from_trunk"]),
        "steps": int(result.steps), "parameters": int(result.parameters),
        "peak_memory_bytes": int(result.peak_memory_bytes), "hardware": result.hardware,
        "versions": " ".join(f"{name} {version}" for name, version in result.versions.items()),
        "git_commit": result.git_commit, "command": result.command, "started": result.started, "error": result.error,
        "diverged_epoch": _finite((result.diverged_at or {}).get("epoch")),
    }  # fmt: skip


def _finite(value: Any) -> float | None:
    """The number; None of None, and of one that is not finite: it compares with nothing."""
    return None if value is None or not math.isfinite(value) else float(value)


def _with_counts(runs: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """The table with the column `counts`: whether a run is the newest of its method and seed; others are no evidence.

    Args:
        notes: a word on the others is added to it.
    """
    runs = runs.with_columns(final=pl.col("status").is_in(FINAL))
    newest = (
        runs.sort(["final", "started", "run"], descending=[True, True, True], nulls_last=True)
        .group_by(["method", "seed"], maintain_order=True).first().select("run")
    )  # fmt: skip
    runs = runs.with_columns(counts=pl.col("run").is_in(newest["run"].implode()))
    others = runs.filter(~pl.col("counts"))
    if len(others):
        names = ", ".join(others["folder"].head(3).to_list()) + (", ..." if len(others) > 3 else "")
        notes.append(
            f"{len(others)} runs repeat the method and seed of another and are no further evidence; the newest counts, "
            f"not {names}."
        )
    return runs.drop("final")


# ---- curves

COLUMNS = {
    "run": pl.Int64, "epoch": pl.Int64, "step": pl.Int64, "seconds": pl.Float64, "loss": pl.Float64,
    "metric": pl.Float64,
}  # fmt: skip


class CurveFile(NamedTuple):
    run: int  # its row in the table of runs
    folder: str
    key: str  # the column of the problem's metric
    text: str  # CSV


def curves(files: list[CurveFile], notes: list[str]) -> pl.DataFrame:
    """All curves as one table; files with the same head are parsed at once.

    What is not finite becomes null: to polars a NaN is larger than every number.

    Args:
        notes: what is wrong with some of the files is added to it.
    """
    groups: dict[tuple[str, str], list[CurveFile]] = {}
    for file in files:
        head, _, body = file.text.partition("\n")
        if body.strip():
            body = body if body.endswith("\n") else body + "\n"
            groups.setdefault((head.strip(), file.key), []).append(file._replace(text=body))
    tables = [pl.DataFrame(schema=COLUMNS)]
    for (head, key), alike in groups.items():
        names = head.split(",")
        if not {"epoch", "step", "seconds"} <= set(names):
            notes.append(f"{alike[0].folder}/curves.csv: left out, expected epoch, step and seconds, got {head}")
        elif (table := _parsed(names, alike, notes)) is not None:
            tables.append(_selected(table, key))
    numbers = pl.col("loss", "metric")
    return pl.concat(tables).with_columns(pl.when(numbers.is_finite()).then(numbers))


def _selected(table: pl.DataFrame, key: str) -> pl.DataFrame:
    def column(name: str) -> Any:
        return pl.col(name) if name in table.columns else pl.lit(None, pl.Float64)

    return table.select(
        "run", (pl.col("epoch") + 1).cast(pl.Int64), pl.col("step").cast(pl.Int64), "seconds",
        column("train/loss").alias("loss"), column(key).alias("metric"),
    )  # fmt: skip


def _parsed(names: list[str], files: list[CurveFile], notes: list[str]) -> pl.DataFrame | None:
    """The files as one table, without those that are broken; None if all are."""
    try:
        return _parsed_at_once(names, files)
    except (pl.exceptions.PolarsError, ValueError) as error:
        if len(files) == 1:
            notes.append(f"{files[0].folder}/curves.csv: left out, {str(error).splitlines()[0]}")
            return None
    tables = [table for file in files if (table := _parsed(names, [file], notes)) is not None]
    return pl.concat(tables) if tables else None


def _parsed_at_once(names: list[str], files: list[CurveFile]) -> pl.DataFrame:
    table = pl.read_csv(
        "".join(file.text for file in files).encode(), has_header=False, schema=dict.fromkeys(names, pl.Float64)
    )
    runs = [file.run for file in files for _ in range(file.text.count("\n"))]
    return table.with_columns(pl.Series("run", runs, pl.Int64))
