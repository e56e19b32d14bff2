"""Runs, read into tables: one row a run, one row an epoch.

Two runs are of one **problem** if all is the same that does not belong to the method: task, data files, epochs, batch
size, precision. A **method** is an optimizer with its settings, its rate and its switch; its runs differ by seed.
"""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ..config import Settings, effective_switch, reads_switch, world_size
from ..errors import ConfigError
from ..files import read_sealed_text
from ..result import FINAL, Result
from ..runs import Run, find, fitting, flat, told_apart

OF_METHOD = ("optimizer", "lr", "schedule", "clip_norm", "clip_value", "ema")
OF_PROBLEM = ("task", "epochs", "batch_size")
ENVIRONMENT = ("hardware", "git_commit", "versions")
# As they should stand in a table: the paper's five in its order, then by name.
ORDER = ("sgd", "tmsgd", "sgdm", "adam", "apollo")


@dataclass
class Runs:
    """What a report is made of.

    runs: run (its row), run_id, folder, problem, method (indices), optimizer, seed, status, score (of the headline
        metric; null unless completed), best, baseline, seconds, epochs, from_trunk, ... ; see read.
    curves: run, epoch (trained so far, from 1), step, seconds, loss, metric.
    problems, methods: what the indices stand for.
    notes: what a reader should know of how they came together.
    """

    runs: pl.DataFrame
    curves: pl.DataFrame
    problems: list["Problem"]
    methods: list["Method"]
    notes: list[str] = field(default_factory=list)


@dataclass
class Problem:
    index: int
    task: str
    profile: str
    headline: str  # test/accuracy
    higher_is_better: bool
    config: Settings  # of one of its runs
    label: str = ""

    @property
    def metric(self) -> str:
        return self.headline.removeprefix("test/")

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1


@dataclass
class Method:
    index: int
    problem: int
    optimizer: str
    config: Settings
    label: str = ""

    @property
    def switch(self) -> int | None:
        """The epoch of its switch; None if it has none, or none in this run."""
        return effective_switch(self.config)


def opened(words: list[str], runs_dir: Path) -> list[Run]:
    """The runs that words mean: folders of runs, or of one, or globs of either, or run ids under runs_dir; all filters.

    Raises:
        ConfigError: there is none.
    """
    places, filters = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if not places and not runs_dir.is_dir():
        raise ConfigError(f"{runs_dir}: no such folder; name one, or say runs_dir=DIR")
    runs: dict[Path, Run] = {}
    for place in places or [str(runs_dir)]:
        paths = [Path(path) for path in sorted(glob.glob(place)) if Path(path).is_dir()]
        folders = [
            folder for path in paths
            for folder in ([path] if (path / "config.yaml").is_file() else _below(path))
        ]  # fmt: skip
        if not paths:
            if not runs_dir.is_dir():
                raise ConfigError(f"{place}: no such folder")
            folders = [run.folder for run in find(runs_dir, [place])]
        runs |= {folder.resolve(): Run.open(folder) for folder in folders if folder.resolve() not in runs}
    return fitting(list(runs.values()), filters)


def _below(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("[!.]*/config.yaml"))


@dataclass
class Record:
    """One run as it was told: in its folder, or by W&B."""

    name: str
    folder: str
    status: str
    config: Settings
    result: Result | None
    curves: str  # CSV


def records(runs: list[Run]) -> tuple[list[Record], list[str]]:
    """The runs' files, and what is wrong with some; runs that differ by seed alone share the parsed configuration."""
    parsed: dict[str, Settings] = {}
    found, notes = [], []
    for run in runs:
        try:
            text = read_sealed_text(run.folder / "config.yaml")
            # The seed is a line of its own, and all that differs in most of many runs.
            key = "\n".join(line for line in text.splitlines() if not line.startswith("seed: "))
            seed = next((line[6:] for line in text.splitlines() if line.startswith("seed: ")), "")
            if key not in parsed:
                parsed[key] = run.config
            config = parsed[key] | {"seed": int(seed)} if seed else run.config
            csv = run.curves
        except (OSError, ValueError) as error:
            notes.append(f"{run.folder}: left out, {error}")
            continue
        if missing := [key for key in ("task", "optimizer", "epochs", "seed", "data") if key not in config]:
            notes.append(f"{run.folder}: left out, its config.yaml has no {', '.join(missing)}")
            continue
        found.append(Record(run.folder.name, str(run.folder), run.status, config, run.result, csv))
    return found, notes


def read(found: Iterable[Record], metric: str, notes: list[str]) -> Runs:
    """Tables of the runs, told apart into problems and methods.

    Args:
        found: the runs.
        metric: last or best.
        notes: known of them already.
    """
    found = list(found)
    problems: dict[str, Problem] = {}
    methods: dict[tuple[int, str], Method] = {}
    profiles = _profiles(found)
    heads = _headlines(found)
    rows: list[dict[str, Any]] = []
    texts: list[tuple[int, str, str]] = []
    facts_of: dict[int, tuple[str, str]] = {}  # of a shared configuration, once
    for record in found:
        config, result = record.config, record.result
        key = id(config["task"])
        if key not in facts_of:
            facts_of[key] = (_digest(_problem_facts(config)), _digest(_method_facts(config)))
        of_problem, of_method = facts_of[key]
        profile, digest = profiles[str(config["data"]["profile"])] if result is None else (
            result.profile, result.data_digest,
        )  # fmt: skip
        head = (result.headline, result.higher_is_better) if result else heads.get(config["task"]["name"])
        if head is None:
            notes.append(f"{record.name}: {record.status}, and nothing is known of its task's metric; not in a table")
            continue
        problem = problems.setdefault(
            f"{of_problem} {profile} {digest} {head}",
            Problem(len(problems), config["task"]["name"], profile, *head, config),
        )
        method = methods.setdefault(
            (problem.index, of_method), Method(len(methods), problem.index, config["optimizer"]["name"], config)
        )
        rows.append(_row(len(rows), record, problem, method, metric))
        if record.curves:
            texts.append((len(rows) - 1, problem.headline, record.curves))
    if not rows:
        raise ConfigError("no runs to report on: none fits, or none has come to a result")
    tables = Runs(
        pl.DataFrame(rows, infer_schema_length=None), _curves(texts, rows, notes), list(problems.values()),
        list(methods.values()), notes,
    )  # fmt: skip
    _label(tables)
    tables.runs = _replicates(tables)
    return tables


def _problem_facts(config: Settings) -> Settings:
    trainer = {key: config["trainer"][key] for key in ("precision", "accumulate")}
    task = {key: value for key, value in config["task"].items() if key not in ("_target_", "data", "eval_batch_size")}
    facts = {key: config[key] for key in OF_PROBLEM if key != "task"}
    return facts | {"task": task, "trainer": trainer, "processes": world_size(config)}


def _method_facts(config: Settings) -> Settings:
    left = ("_target_", "_partial_", "trunk", "switch_step")
    optimizer = {key: value for key, value in config["optimizer"].items() if key not in left}
    facts = {key: config.get(key) for key in OF_METHOD} | {"optimizer": optimizer}
    return facts | ({"switch_epoch": config["switch_epoch"]} if reads_switch(config) else {})


def _digest(facts: Settings) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _profiles(found: list[Record]) -> dict[str, tuple[str, str]]:
    """What a run without a result is taken for, by the profile that it asked for: as most of the others came out."""
    seen: dict[str, Counter[tuple[str, str]]] = {"tiny": Counter(), "full": Counter()}
    for record in found:
        if record.result:
            own = seen.setdefault(str(record.config["data"]["profile"]), Counter())
            own[record.result.profile, record.result.data_digest] += 1
    return {asked: (own.most_common(1)[0][0] if own else (asked, "")) for asked, own in seen.items()}


def _headlines(found: list[Record]) -> dict[str, tuple[str, bool]]:
    return {
        record.config["task"]["name"]: (record.result.headline, record.result.higher_is_better)
        for record in found if record.result
    }  # fmt: skip


def _row(run: int, record: Record, problem: Problem, method: Method, metric: str) -> dict[str, Any]:
    result, key = record.result, problem.headline
    row: dict[str, Any] = {
        "run": run, "run_id": record.name, "folder": record.folder, "problem": problem.index, "method": method.index,
        "optimizer": method.optimizer, "seed": int(record.config["seed"]), "status": record.status,
    }  # fmt: skip
    blank: dict[str, Any] = {
        "score": None, "best": None, "best_epoch": None, "baseline": None, "seconds": None, "epochs": None,
        "from_trunk": None, "steps": None, "parameters": None, "peak_memory_bytes": None, "hardware": None,
        "versions": None, "git_commit": None, "command": None, "started": None, "error": None, "diverged_epoch": None,
    }  # fmt: skip
    if result is None:
        return row | blank
    best = result.metrics["best"]
    score = result.metrics[metric].get(key) if record.status == "completed" else None
    return row | {
        "score": None if score is None else float(score),
        "best": _float(best.get(key)), "best_epoch": _float(best.get("epoch")),
        "baseline": _float(result.baseline.get(key)), "seconds": float(result.seconds),
        "epochs": int(result.epochs["trained"]), "from_trunk": int(result.epochs["from_trunk"]),
        "steps": int(result.steps), "parameters": int(result.parameters),
        "peak_memory_bytes": int(result.peak_memory_bytes), "hardware": result.hardware,
        "versions": " ".join(f"{name} {made}" for name, made in result.versions.items()),
        "git_commit": result.git_commit, "command": result.command, "started": result.started, "error": result.error,
        "diverged_epoch": _float((result.diverged_at or {}).get("epoch")),
    }  # fmt: skip


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _curves(texts: list[tuple[int, str, str]], rows: list[dict[str, Any]], notes: list[str]) -> pl.DataFrame:
    """All curves as one table; files with the same head are parsed at once."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for run, headline, text in texts:
        head, _, body = text.partition("\n")
        if body.strip():
            groups.setdefault((head.strip(), headline), []).append((run, body if body.endswith("\n") else body + "\n"))
    tables = [pl.DataFrame(schema=CURVES)]
    for (head, headline), files in groups.items():
        names = head.split(",")
        if not {"epoch", "step", "seconds"} <= set(names):
            notes.append(f"{rows[files[0][0]]['folder']}/curves.csv: not ours, its columns are {head}")
            continue
        try:
            table = _parsed(names, files)
        except (pl.exceptions.PolarsError, ValueError):  # one of them is broken: which?
            good = []
            for file in files:
                try:
                    _parsed(names, [file])
                    good.append(file)
                except (pl.exceptions.PolarsError, ValueError) as error:
                    notes.append(f"{rows[file[0]]['folder']}/curves.csv: left out, {str(error).splitlines()[0]}")
            if not good:
                continue
            table = _parsed(names, good)
        tables.append(
            table.select(
                "run",
                (pl.col("epoch") + 1).cast(pl.Int64),
                pl.col("step").cast(pl.Int64),
                "seconds",
                (pl.col("train/loss") if "train/loss" in names else pl.lit(None, pl.Float64)).alias("loss"),
                (pl.col(headline) if headline in names else pl.lit(None, pl.Float64)).alias("metric"),
            )
        )
    return pl.concat(tables)


CURVES = {
    "run": pl.Int64, "epoch": pl.Int64, "step": pl.Int64, "seconds": pl.Float64, "loss": pl.Float64,
    "metric": pl.Float64,
}  # fmt: skip


def _parsed(names: list[str], files: list[tuple[int, str]]) -> pl.DataFrame:
    table = pl.read_csv(
        "".join(body for _, body in files).encode(), has_header=False, schema=dict.fromkeys(names, pl.Float64)
    )
    runs = [run for run, body in files for _ in range(body.count("\n"))]
    return table.with_columns(pl.Series("run", runs, pl.Int64))


def _label(tables: Runs) -> None:
    """Names problems and methods by what tells them apart."""
    problems, methods = tables.problems, tables.methods
    own = [flat(_problem_facts(problem.config)) | {"data": problem.profile} for problem in problems]
    for problem, words in zip(problems, told_apart([p.task for p in problems], own), strict=True):
        words = words.replace("task.", "")
        problem.label = f"{problem.task} {words}".strip()
    same = Counter(problem.label for problem in problems)
    for problem in problems:  # the same settings on other files
        if same[problem.label] > 1:
            problem.label += f" (data {problem.index})"
    own = [flat(_method_facts(method.config)) for method in methods]
    for method, words in zip(methods, told_apart([f"{m.problem} {m.optimizer}" for m in methods], own), strict=True):
        method.label = f"{method.optimizer} {words.replace('optimizer.', '')}".strip()


def _replicates(tables: Runs) -> pl.DataFrame:
    """Marks the run that stands for its (method, seed): `counts`. A second one is no replicate, and said so."""
    runs = tables.runs.with_columns(final=pl.col("status").is_in(FINAL))
    chosen = (
        runs.sort(["final", "started", "run"], descending=[True, True, True], nulls_last=True)
        .group_by(["method", "seed"], maintain_order=True).first().select("run")
    )  # fmt: skip
    runs = runs.with_columns(counts=pl.col("run").is_in(chosen["run"].implode()))
    twice = runs.filter(~pl.col("counts"))
    if len(twice):
        names = ", ".join(twice["folder"].head(3).to_list()) + (", ..." if len(twice) > 3 else "")
        tables.notes.append(
            f"{len(twice)} runs repeat the method and seed of another and are no further evidence; the newest counts, "
            f"not {names}"
        )
    return runs.drop("final")


@cache
def paper() -> Any:
    """What the paper printed: paper_results.yaml."""
    path = Path(__file__).parent / "paper_results.yaml"
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
