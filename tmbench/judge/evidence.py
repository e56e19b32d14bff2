"""What the runs of a judgement show so far: paired differences, looks at them, and the verdict on each method."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..report.statistics import tolerance, worth
from ..result import Result
from .design import Design
from .plan import Contender, Metric, Plan, report_defaults
from .sequential import Look, looks, verdicts

BySeed = dict[int, Result]


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed. `difference` is positive where the method is better, in the metric's unit.

    It is inf or -inf where one of them diverged and there is no baseline that it could count as.
    """

    seed: int
    method: Result
    against: Result
    difference: float
    near: float  # how far from an equal one the difference may come out; see report.statistics.tolerance

    @property
    def both_diverged(self) -> bool:
        """Whether the pair is no evidence that the methods are equivalent, though its difference is 0."""
        return self.method.score is None and self.against.score is None


def pairs_of(method: BySeed, against: BySeed) -> list[Pair]:
    """The pairs, in the order of their seeds.

    A diverged run counts as in a report: as the worse of the input-blind baseline and the worst score of a completed
    run, but of those up to its seed, so that a later seed changes no earlier difference.
    """
    pairs, known = [], list[float]()
    for seed in sorted(method.keys() & against.keys()):
        two = method[seed], against[seed]
        higher, baseline = two[0].higher_is_better, two[0].baseline.get(two[0].headline)
        known += [score for result in two if (score := result.score) is not None]
        worst = (min if higher else max)(known, default=None)
        bad = -math.inf if higher else math.inf
        values = [worth(result.score, baseline, worst, higher) for result in two]
        a, b = (bad if value is None else value for value in values)
        near = float(tolerance(np.array([a]), np.array([b]))[0])
        difference = 0.0 if a == b or abs(a - b) <= near else (a - b) * (1 if higher else -1)
        pairs.append(Pair(seed, *two, difference, near if difference else 0.0))
    return pairs


@dataclass
class Evidence:
    """The runs that are done, by method and seed, and those that failed, with their messages."""

    plan: Plan
    metric: Metric | None = None
    results: dict[str, BySeed] = field(default_factory=dict)
    failed: dict[str, dict[int, str]] = field(default_factory=dict)
    seeds: dict[str, int] = field(default_factory=dict)  # by method: how many are asked for so far
    looks: dict[str, list[Look]] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for contender in self.plan.contenders:
            self.results[contender.name], self.failed[contender.name] = {}, {}
        self.seeds = dict.fromkeys(self.results, 0)
        self.verdicts = {method.name: "undecided" for method in self.plan.methods}

    @property
    def undecided(self) -> list[Contender]:
        return [method for method in self.plan.methods if self.verdicts[method.name] == "undecided"]

    def runs(self) -> Iterator[tuple[Contender, int, Result]]:
        for contender in self.plan.contenders:
            for seed, result in sorted(self.results[contender.name].items()):
                yield contender, seed, result

    def pairs(self, method: str) -> list[Pair]:
        return pairs_of(self.results[method], self.results[self.plan.baseline.name])

    def margin(self) -> float | None:
        """The margin; where it is relative, a share of the baseline's mean over the seeds before the first look."""
        if (given := self.plan.settings["margin"]) is not None or self.metric is None:
            return given
        defaults = report_defaults()
        if (fixed := defaults["margin"].get(self.metric.name)) is not None:
            return float(fixed)
        first = self.plan.seeds[
            : Design(self.plan.settings["max_seeds"], 1.0, self.plan.settings["alpha"]).least_seeds()
        ]
        own = self.results[self.plan.baseline.name]
        scores = [score for seed in first if seed in own and (score := own[seed].score) is not None]
        return defaults["relative_margin"] * abs(float(np.mean(scores))) if scores and any(scores) else None

    def design(self) -> Design:
        settings = self.plan.settings
        return Design(settings["max_seeds"], self.margin(), settings["alpha"], len(self.plan.methods))

    def look(self) -> None:
        """Fills in the looks and the verdicts."""
        design = self.design()
        for name in self.verdicts:
            pairs = self.pairs(name)
            self.looks[name] = looks(
                [pair.difference for pair in pairs], design, [pair.near for pair in pairs],
                [pair.both_diverged for pair in pairs],
            )  # fmt: skip
        self.verdicts = verdicts(self.looks, design)
