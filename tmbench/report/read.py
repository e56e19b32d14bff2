"""Runs, read into tables: one row a run, one row an epoch.

Two runs are of one **problem** if all is the same that does not belong to the method: task, data files, epochs, batch
size, precision, the share held out for validation. A **method** is an optimizer with its settings, its rate and its
switch; its runs differ by seed.
"""

import glob
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from ..config.identity import SCHEMA, effective_switch, identity
from ..config.settle import Settings, flat
from ..errors import ConfigError
from ..files import read_sealed_text
from ..result import FINAL, Result
from ..runs import Run, distinguishing_words, find, fitting

# What makes the method, of the settings that make a run; but for the seed, all others make the problem.
OF_METHOD = ("optimizer", "lr", "schedule", "clip_norm", "clip_value", "ema", "switch_epoch")
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

    @property
    def content(self) -> str:
        """How many runs of how many methods on how many problems; a method is one on however many problems."""
        counts = {"run": len(self.runs), "method": len({m.name for m in self.methods}), "problem": len(self.problems)}
        runs, methods, problems = (f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items())
        return f"{runs} of {methods} on {problems}"


class Outcome(NamedTuple):
    """What a result adds to the settings to make the problem."""

    profile: str
    data_digest: str
    headline: str  # test/accuracy
    higher_is_better: bool
    schema: int  # numbers of another version of the results are not these


@dataclass
class Problem:
    index: int
    task: str
    outcome: Outcome
    config: Settings  # of one of its runs
    label: str = ""

    @property
    def profile(self) -> str:
        return self.outcome.profile

    @property
    def headline(self) -> str:
        return self.outcome.headline

    @property
    def higher_is_better(self) -> bool:
        return self.outcome.higher_is_better

    @property
    def split(self) -> str:
        """What is judged: test, or validation."""
        return self.headline.partition("/")[0]

    @property
    def metric(self) -> str:
        """The headline metric, whatever the split."""
        return self.headline.partition("/")[2]

    @property
    def measure(self) -> str:
        """The metric, with the split where that is not the test split."""
        return self.metric if self.split == "test" else f"{self.split} {self.metric}"

    @property
    def kind(self) -> str:
        """What may be seen together: the profile, with the split and the version of the results where these differ."""
        version = "" if self.outcome.schema == SCHEMA else f"schema {self.outcome.schema}"
        return " ".join(filter(None, (self.profile, self.split.removeprefix("test"), version)))

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1


@dataclass
class Method:
    index: int
    problem: int
    optimizer: str
    config: Settings
    name: str = ""  # the same on all problems: the optimizer, and the settings in which its methods differ on one
    label: str = ""  # the name, with its rate and switch where other methods on the problem have others

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
    problems: dict[tuple[str, Outcome], Problem] = {}
    methods: dict[tuple[int, str], Method] = {}
    # Runs that share a parsed configuration share its facts.
    configs = {id(record.config["task"]): record.config for record in found}
    facts = {key: (_digest(_problem_facts(own)), _digest(_method_facts(own))) for key, own in configs.items()}
    outcomes, of_task = _outcomes([(facts[id(r.config["task"])][0], r.result) for r in found if r.result])
    rows: list[dict[str, Any]] = []
    texts: list[tuple[int, str, str]] = []
    for record in found:
        config = record.config
        of_problem, of_method = facts[id(config["task"])]
        if record.result:
            outcome = _outcome(record.result)
        elif of_problem in outcomes:
            outcome = outcomes[of_problem]
        elif config["task"]["name"] in of_task:
            metric_, higher_is_better = of_task[config["task"]["name"]]
            split = "test" if config.get("validation") is None else "validation"
            outcome = Outcome(config["data"]["profile"], "", f"{split}/{metric_}", higher_is_better, SCHEMA)
        else:
            notes.append(f"{record.name}: {record.status}, and nothing is known of its task's metric; not in a table")
            continue
        problem = problems.setdefault(
            (of_problem, outcome), Problem(len(problems), config["task"]["name"], outcome, config)
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
    facts = {key: v for key, v in identity(config, "").items() if key not in (*OF_METHOD, "seed", "schema")}
    return facts | {"data": config["data"]["profile"]}


def _method_facts(config: Settings) -> Settings:
    facts = identity(config, "") | {"lr": config["lr"]}
    return {key: facts[key] for key in OF_METHOD if key in facts}


def _digest(facts: Settings) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _outcome(result: Result) -> Outcome:
    return Outcome(result.profile, result.data_digest, result.headline, result.higher_is_better, result.schema_version)


def _outcomes(known: list[tuple[str, Result]]) -> tuple[dict[str, Outcome], dict[str, tuple[str, bool]]]:
    """What runs without a result are taken for.

    Returns:
        By the problem's facts, what most of its runs came to; by the task, its metric and whether higher is better.
    """
    seen: dict[str, Counter[Outcome]] = {}
    for of_problem, result in known:
        seen.setdefault(of_problem, Counter())[_outcome(result)] += 1
    of_task = {result.task: (result.headline.partition("/")[2], result.higher_is_better) for _, result in known}
    return {key: counter.most_common(1)[0][0] for key, counter in seen.items()}, of_task


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
    return row | {
        "score": _finite(result.metrics[metric].get(key)) if record.status == "completed" else None,
        "best": _finite(best.get(key)), "best_epoch": _finite(best.get("epoch")),
        "baseline": _finite(result.baseline.get(key)), "seconds": float(result.seconds),
        "epochs": int(result.epochs["trained"]), "from_trunk": int(result.epochs["from_trunk"]),
        "steps": int(result.steps), "parameters": int(result.parameters),
        "peak_memory_bytes": int(result.peak_memory_bytes), "hardware": result.hardware,
        "versions": " ".join(f"{name} {made}" for name, made in result.versions.items()),
        "git_commit": result.git_commit, "command": result.command, "started": result.started, "error": result.error,
        "diverged_epoch": _finite((result.diverged_at or {}).get("epoch")),
    }  # fmt: skip


def _finite(value: Any) -> float | None:
    """The number; None of none, and of one that is not finite: it compares with nothing."""
    return None if value is None or not math.isfinite(value) else float(value)


def _curves(texts: list[tuple[int, str, str]], rows: list[dict[str, Any]], notes: list[str]) -> pl.DataFrame:
    """All curves as one table; files with the same head are parsed at once.

    What is not finite becomes null: to polars a NaN is larger than every number.
    """
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
    seen = pl.col("loss", "metric")
    return pl.concat(tables).with_columns(pl.when(seen.is_finite()).then(seen))


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
    own = [flat(_problem_facts(p.config)) | {"data": p.profile, "schema": p.outcome.schema} for p in problems]
    for problem, words in zip(problems, distinguishing_words([p.task for p in problems], own), strict=True):
        words = words.replace("task.", "")
        problem.label = f"{problem.task} {words}".strip()
    same = Counter(problem.label for problem in problems)
    for problem in problems:  # the same settings on other files
        if same[problem.label] > 1:
            problem.label += f" (data {problem.index})"
    own = [flat(_method_facts(method.config)) for method in methods]
    for method, words in zip(
        methods, distinguishing_words([f"{m.problem} {m.optimizer}" for m in methods], own), strict=True
    ):
        method.name = f"{method.optimizer} {words.replace('optimizer.', '')}".strip()
    namesakes = Counter((method.problem, method.name) for method in methods)
    for method in methods:  # words leave out the places that a rate was filled into
        if namesakes[method.problem, method.name] > 1:
            method.name += f" (method {method.index})"
    for problem in problems:
        rivals = [m for m in methods if m.problem == problem.index]
        shown = [
            key
            for key in ("lr", "switch_epoch")
            if len({_method_facts(m.config).get(key) for m in rivals} - {None}) > 1
        ]
        for method in rivals:
            facts = _method_facts(method.config)
            more = [f"{key}={facts[key]}" for key in shown if key in facts and f" {key}=" not in method.name]
            method.label = " ".join([method.name, *more])


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
