"""Is one method better than another? Pairs of methods, the tests of their differences, and the verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl

from ..config.settle import Settings
from ..config.table import METHOD, kind_of
from . import statistics
from .problems import Method, Problem, Runs
from .scores import by_seed, table_order
from .statistics import Difference


@dataclass
class Comparison:
    """A method and its reference on a problem.

    The verdict is better, worse (both perhaps with ", by less than the margin" or ", by ranks"), equivalent, or
    undecided (perhaps with ": no spread between seeds").
    """

    problem: Problem
    method: Method
    reference: Method
    difference: Difference
    verdict: str
    diverged: dict[str, int]  # by the method's label, how many runs on the compared seeds


def comparisons_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Comparison]:
    """All pairs that the settings ask for and that share a seed, tested together."""
    scores, lost = by_seed(values), set(values.filter("lost").select("method", "seed").rows())
    pairs: list[tuple[Problem, Method, Method, list[int]]] = []
    for problem in runs.problems:
        for method, reference in _pairs(sorted(runs.methods_of(problem), key=table_order), settings["against"]):
            if seeds := sorted(scores.get(method.index, {}).keys() & scores.get(reference.index, {}).keys()):
                pairs.append((problem, method, reference, seeds))
    differences = [
        statistics.compare(
            [scores[a.index][s] for s in seeds], [scores[b.index][s] for s in seeds],
            margin(problem, [scores[b.index][s] for s in seeds if (b.index, s) not in lost], settings),
            settings["level"], settings["test"], bound=1.0 if problem.is_bounded else math.inf,
            both_diverged=[{(a.index, s), (b.index, s)} <= lost for s in seeds],
        )
        for problem, a, b, seeds in pairs
    ]  # fmt: skip
    statistics.adjust(differences)
    return [
        Comparison(
            problem, a, b, difference, _verdict(problem, difference, settings["level"]),
            {m.label: sum((m.index, s) in lost for s in seeds) for m in (a, b)},
        )
        for (problem, a, b, seeds), difference in zip(pairs, differences, strict=True)
    ]  # fmt: skip


def _pairs(methods: list[Method], against: str) -> Iterable[tuple[Method, Method]]:
    if against == "all":
        return [(b, a) for a, b in combinations(methods, 2)]
    references = [m for m in methods if m.optimizer == against]
    others = [m for m in methods if m.optimizer != against]
    return [(method, reference) for method in others for reference in _most_similar(method, references)]


def _most_similar(method: Method, references: list[Method]) -> list[Method]:
    """The references that share the most of the method's settings outside its optimizer and switch.

    Of several that share as many all are taken: to choose the best by its scores would favour it in the test.
    """
    keys = [key for key in method.config if kind_of(key) == METHOD and key not in ("optimizer", "switch_epoch")]

    def shared(reference: Method) -> int:
        return sum(method.config[key] == reference.config.get(key) for key in keys)

    most = max(map(shared, references), default=0)
    return [reference for reference in references if shared(reference) == most]


def margin(problem: Problem, reference: Sequence[float], settings: Settings) -> float:
    """The largest difference that does not matter, in units of the metric; 0 if it is relative and `reference` empty.

    Args:
        reference: scores of its completed runs; what diverged ones count as would widen the margin.
    """
    fixed = settings["margin"].get(problem.metric)
    if fixed is not None:
        return float(fixed)
    return settings["relative_margin"] * abs(float(np.mean(reference))) if reference else 0.0


def _verdict(problem: Problem, difference: Difference, level: float) -> str:
    if difference.n > 1 and not difference.has_spread:
        return "undecided: no spread between seeds"
    has_no_size = math.isnan(difference.mean)
    # Signed ranks may point the other way than the mean.
    agrees = has_no_size or np.sign(difference.mean) == difference.direction
    if difference.p_holm <= level and agrees:
        direction = "better" if problem.sign * difference.direction > 0 else "worse"
        if has_no_size:
            return f"{direction}, by ranks"
        return f"{direction}, by less than the margin" if difference.p_equivalent_holm <= level else direction
    return "equivalent" if difference.p_equivalent_holm <= level else "undecided"
