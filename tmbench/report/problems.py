"""Which runs belong together: the problems and methods of a report, and what they are called.

Two runs are of one **problem** if all is the same that does not belong to the method: task, data files, epochs, batch
size, precision, the share held out for validation. A **method** is an optimizer with its settings, its rate and its
switch; its runs differ by seed. The table of settings says which setting belongs to which.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config.identity import SCHEMA, effective_switch, identity, rate_of
from ..config.settle import Settings, flat
from ..config.table import METHOD, NUMBERS, kind_of
from ..result import BOUNDED, SHARES, Result
from ..runs import distinguishing_words

if TYPE_CHECKING:
    import polars as pl  # which takes long to import; the facts of a run do without


class Outcome(NamedTuple):
    """What the result of a run adds to its settings to make the problem."""

    profile: str
    data_digest: str
    split: str  # what is judged: test, or validation
    metric: str  # accuracy
    higher_is_better: bool
    schema: int  # of result.json; the numbers of different schemas are not compared

    @classmethod
    def of(cls, result: Result) -> "Outcome":
        return cls(result.profile, result.data_digest, result.split, result.metric, result.higher_is_better,
                   result.schema_version)  # fmt: skip


@dataclass
class Problem:
    index: int
    task: str
    config: Settings  # of one of its runs
    facts: Settings  # see problem_facts
    outcome: Outcome
    label: str = ""

    def __post_init__(self) -> None:
        self.profile, _, self.split, self.metric, self.higher_is_better, self.schema = self.outcome

    @property
    def key(self) -> str:
        """The metric's key in results and curves: test/accuracy."""
        return f"{self.split}/{self.metric}"

    @property
    def sign(self) -> int:
        """1 where the higher value is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def measure(self) -> str:
        """The metric, with the split where that is not the test split."""
        return self.metric if self.split == "test" else f"{self.split} {self.metric}"

    @property
    def kind(self) -> str:
        """What may be seen together: the profile, with the split and the schema of the results where these differ."""
        version = "" if self.schema == SCHEMA else f"schema {self.schema}"
        return " ".join(filter(None, (self.profile, self.split.removeprefix("test"), version)))

    @property
    def name(self) -> str:
        """The label with the profile, for notes."""
        return f"{self.label} ({self.profile})"

    def measured_by(self, metric: str) -> "Problem":
        """The same with another metric, whose differences count as positive where they are better."""
        return replace(self, outcome=self.outcome._replace(metric=metric))

    @property
    def is_percent(self) -> bool:
        return self.metric in SHARES

    @property
    def scale(self) -> float:
        """What a value is multiplied by where a person reads it."""
        return 100.0 if self.is_percent else 1.0

    @property
    def bound(self) -> float:
        """The largest difference that the metric allows."""
        return 1.0 if self.is_bounded else math.inf

    @property
    def is_bounded(self) -> bool:
        """Whether the metric lies between 0 and 1."""
        return self.metric in BOUNDED


@dataclass
class Method:
    index: int
    problem: int
    optimizer: str
    config: Settings  # of one of its runs
    facts: Settings  # see method_facts
    name: str = ""  # the same on all problems: the optimizer, and the settings in which its methods differ on one
    label: str = ""  # the name, with its rate and switch where other methods on the problem have others
    place: int = 0  # in tables; see paper.table_order

    @property
    def switch(self) -> int | None:
        """The epoch of its switch; None if it has none, or none in this run."""
        return effective_switch(self.config)


@dataclass
class Runs:
    """What a report is made of.

    runs: run (its row), run_id, folder, problem, method (indices), optimizer, seed, status, score (of the problem's
        metric; null unless completed), best, baseline, seconds, epochs, from_trunk, ...; see read.
    curves: run, epoch (trained so far, from 1), step, seconds, loss, metric.
    problems, methods: what the indices stand for.
    notes: what a reader should know of how the runs were read.
    root: the folder that the column `folder` is relative to.
    """

    runs: "pl.DataFrame"
    curves: "pl.DataFrame"
    problems: list[Problem]
    methods: list[Method]
    notes: list[str] = field(default_factory=list)
    root: Path = Path()

    @property
    def content(self) -> str:
        """How many runs of how many methods on how many problems; a method is one on however many problems."""
        counts = {"run": len(self.runs), "method": len({m.name for m in self.methods}), "problem": len(self.problems)}
        runs, methods, problems = (f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items())
        return f"{runs} of {methods} on {problems}"

    def methods_of(self, problem: Problem) -> list[Method]:
        """In the order of tables."""
        methods = [method for method in self.methods if method.problem == problem.index]
        return sorted(methods, key=lambda method: method.place)

    def kinds(self) -> list[str]:
        """The kinds of the problems; only problems of one kind are seen together."""
        return list(dict.fromkeys(problem.kind for problem in self.problems))


def problem_facts(config: Settings) -> Settings:
    """The settings of a run that make its problem: all that can change its numbers, but the method's and the seed."""
    facts = {key: value for key, value in identity(config, "").items() if kind_of(key) not in (METHOD, NUMBERS)}
    del facts["schema"]
    by_method = _of_the_task(facts)
    task = {name: value for name, value in facts["task"].items() if name not in by_method}
    return facts | {"task": task, "data": config["data"]["profile"]}


def method_facts(config: Settings) -> Settings:
    """The settings of a run that make its method."""
    facts = identity(config, "") | {"lr": rate_of(config)}
    found = {key: value for key, value in facts.items() if kind_of(key) == METHOD}
    by_method = _of_the_task(facts)
    return found | ({"task": by_method} if by_method else {})


def _of_the_task(facts: Settings) -> Settings:
    """The settings of the task that follow the optimizer: task.sparse is true for SGD, and false for Adam."""
    return {key: value for key, value in facts["task"].items() if kind_of(f"task.{key}") == NUMBERS}


def digest_of(facts: Settings) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def label(problems: list[Problem], methods: list[Method]) -> None:
    """Names problems and methods by the settings in which they differ."""
    facts = [flat(p.facts) | {"data": p.profile, "schema": p.schema} for p in problems]
    for problem, words in zip(problems, distinguishing_words([p.task for p in problems], facts), strict=True):
        problem.label = f"{problem.task} {words.replace('task.', '')}".strip()
    uses = Counter(problem.label for problem in problems)
    for problem in problems:  # the same settings on other files
        if uses[problem.label] > 1:
            problem.label += f" (data {problem.index})"
    groups = [f"{method.problem} {method.optimizer}" for method in methods]
    facts = [flat(method.facts) for method in methods]
    for method, words in zip(methods, distinguishing_words(groups, facts), strict=True):
        method.name = f"{method.optimizer} {words.replace('optimizer.', '')}".strip()
    names = Counter((method.problem, method.name) for method in methods)
    for method in methods:  # the words leave out the places that a rate was filled into
        if names[method.problem, method.name] > 1:
            method.name += f" (method {method.index})"
    for problem in problems:
        _add_rates([method for method in methods if method.problem == problem.index])


def _add_rates(methods: list[Method]) -> None:
    """Labels the methods of one problem: their names, with the rate and switch where these differ between them."""
    values = {key: {method.facts.get(key) for method in methods} - {None} for key in ("lr", "switch_epoch")}
    for method in methods:
        method.label = method.name
        for key, several in values.items():
            if len(several) > 1 and key in method.facts and f" {key}=" not in method.name:
                method.label += f" {key}={method.facts[key]}"
