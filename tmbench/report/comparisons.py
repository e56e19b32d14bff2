"""Is one method better than another? What each run counts as, tests of paired differences, and verdicts in words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from ..config.settle import Settings
from ..config.table import METHOD, kind_of
from ..errors import count
from ..result import FINAL
from . import statistics
from .formats import difference, diverged_value, number, signed
from .problems import Method, Problem, Runs
from .statistics import Difference

Scores = dict[int, dict[int, float]]  # by method and seed, what a run counts as

# ---- what each run counts as


def diverged_values(runs: Runs) -> dict[int, float]:
    """By problem, what a diverged run counts as (see statistics.worth); infinitely bad where there is no baseline."""
    values = {}
    for problem in runs.problems:
        of = runs.runs.filter(pl.col("counts") & (pl.col("problem") == problem.index))
        known = of.select("baseline", "score")
        baseline, worst = (known.min() if problem.higher_is_better else known.max()).row(0)
        value = statistics.worth(None, baseline, worst, problem.higher_is_better)
        values[problem.index] = -problem.sign * math.inf if value is None else value
    return values


def values_of(runs: Runs, of_diverged: dict[int, float]) -> pl.DataFrame:
    """One value a (method, seed): the score, or `of_diverged` for a `lost` run, which has no finite score at its end.

    An infinitely bad value ranks below every completed run's, and no mean or difference is made of it.
    """
    lost = pl.col("status").is_in(FINAL) & pl.col("score").is_null()
    value = pl.col("problem").replace_strict(of_diverged, return_dtype=pl.Float64)
    return runs.runs.filter("counts").with_columns(lost=lost, value=pl.when(lost).then(value).otherwise("score"))


def summarize(runs: Runs, values: pl.DataFrame) -> dict[int, dict[str, Any]]:
    """By method: problem, n (values), lost, mean, sd, best, seconds, baseline, and how many runs have which status.

    mean and sd are None where a value is infinite; best and seconds are of completed runs.
    """
    counts = runs.runs.group_by("method", maintain_order=True).agg(
        pl.col("problem", "optimizer").first(), completed=(pl.col("status") == "completed").sum(),
        diverged=(pl.col("status") == "diverged").sum(), failed=pl.col("status").is_in(["failed", "broken"]).sum(),
        unfinished=pl.col("status").is_in(["interrupted", "running", "stopped"]).sum(),
    )  # fmt: skip
    value, of_completed = pl.col("value"), pl.col("best", "seconds").filter(pl.col("status") == "completed")
    is_known = value.is_finite().all()
    numbers = values.group_by("method", maintain_order=True).agg(
        of_completed.mean(), n=value.count(), lost=pl.col("lost").sum(), mean=pl.when(is_known).then(value.mean()),
        sd=pl.when(is_known).then(value.std()), baseline=pl.col("baseline").mean(),
    )  # fmt: skip
    rows = counts.join(numbers, on="method", how="left", maintain_order="left")
    return {row["method"]: row for row in rows.iter_rows(named=True)}


def by_seed(values: pl.DataFrame) -> Scores:
    scores: Scores = {}
    for method, seed, value in values.filter(pl.col("value").is_not_null()).select("method", "seed", "value").rows():
        scores.setdefault(method, {})[seed] = value
    return scores


# ---- pairs, their tests and verdicts


@dataclass
class Comparison:
    """A method and its reference on a problem; a positive difference says that the method is better.

    The verdict is better, worse (both perhaps with ", by less than the margin" or ", by ranks"), equivalent, or
    undecided (perhaps with ": no spread between seeds").
    """

    problem: Problem
    method: Method
    reference: Method
    difference: Difference
    verdict: str
    diverged: dict[str, int]  # by the method's label, how many runs on the compared seeds

    @property
    def is_tested(self) -> bool:
        """Whether Holm counts it: one pair of runs is no test; see statistics.adjust."""
        return self.difference.n > 1


def comparisons_of(runs: Runs, values: pl.DataFrame, scores: Scores, settings: Settings) -> list[Comparison]:
    """All pairs that the settings ask for and that share a seed, tested together."""
    lost = set(values.filter("lost").select("method", "seed").rows())
    pairs: list[tuple[Problem, Method, Method, list[int]]] = []
    for problem in runs.problems:
        for method, reference in _pairs(runs.methods_of(problem), settings["against"]):
            if seeds := sorted(scores.get(method.index, {}).keys() & scores.get(reference.index, {}).keys()):
                pairs.append((problem, method, reference, seeds))
    differences = [
        statistics.compare(
            [problem.sign * scores[a.index][s] for s in seeds], [problem.sign * scores[b.index][s] for s in seeds],
            margin(problem, [scores[b.index][s] for s in seeds if (b.index, s) not in lost], settings),
            settings["level"], settings["test"], bound=problem.bound,
            both_diverged=[{(a.index, s), (b.index, s)} <= lost for s in seeds],
        )
        for problem, a, b, seeds in pairs
    ]  # fmt: skip
    statistics.adjust(differences)
    return [
        Comparison(
            problem, a, b, difference, _verdict(difference, settings["level"]),
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

    That are the reference's scores in completed runs; what diverged ones count as would widen the margin.
    """
    if (fixed := settings["margin"].get(problem.metric)) is not None:
        return float(fixed)
    return settings["relative_margin"] * abs(float(np.mean(reference))) if reference else 0.0


def _verdict(difference: Difference, level: float) -> str:
    if difference.n > 1 and not difference.has_spread:
        return "undecided: no spread between seeds"
    has_no_size = math.isnan(difference.mean)
    # Signed ranks may point the other way than the mean.
    if difference.p_holm <= level and (has_no_size or np.sign(difference.mean) == difference.direction):
        direction = "better" if difference.direction > 0 else "worse"
        if has_no_size:
            return f"{direction}, by ranks"
        return f"{direction}, by less than the margin" if difference.p_equivalent_holm <= level else direction
    return "equivalent" if difference.p_equivalent_holm <= level else "undecided"


# ---- in a sentence or two, as a person would say it to another


def sentences(comparisons: list[Comparison], settings: Settings, diverged_values: dict[int, float]) -> list[str]:
    """One for each of the comparisons of a report."""
    tests = tested(comparisons)
    return [
        _without_size(c) if math.isnan(c.difference.mean)
        else _with_size(c, settings, tests, diverged_values[c.problem.index])
        for c in comparisons
    ]  # fmt: skip


def tested(comparisons: Iterable[Comparison]) -> int:
    """How many tests Holm corrects for."""
    return sum(comparison.is_tested for comparison in comparisons)


def _where(comparison: Comparison) -> str:
    problem = comparison.problem
    return f"on {problem.label} ({problem.measure}, {problem.profile} data)"


def _diverged(comparison: Comparison) -> str:
    """Whose runs diverged, such as: 1 of adam's runs and 2 of sgd's. Empty if none did."""
    words = [f"{n} of {name}'s" for name, n in comparison.diverged.items() if n]
    return " and ".join([f"{word} runs" for word in words[:1]] + words[1:])


def _p_holm(comparison: Comparison) -> str:
    sampled = f", from {statistics.RESAMPLES:,} samples" if comparison.difference.is_sampled else ""
    return f"p = {number(comparison.difference.p_holm)} after Holm{sampled}"


def _without_size(comparison: Comparison) -> str:
    """Where a run diverged and there is no baseline."""
    method, reference, verdict = comparison.method.label, comparison.reference.label, comparison.verdict
    result = "undecided" if verdict == "undecided" else f"{method} is {verdict}"
    words = f"{method} and {reference} {_where(comparison)}: with {count(comparison.difference.n, 'seed')}, "
    words += f"{_diverged(comparison)} diverged. Without a baseline these rank below every completed run, and the "
    return f"{words}difference has no size. By signed ranks ({_p_holm(comparison)}): {result}."


def _with_size(comparison: Comparison, settings: Settings, comparisons: int, diverged_as: float) -> str:
    problem, method, reference = comparison.problem, comparison.method.label, comparison.reference.label
    amount = comparison.difference.mean
    words = f"{method} and {reference} score the same"
    if amount:
        word = "better" if amount > 0 else "worse"
        words = f"{method} is {difference(problem, abs(amount))} {word} than {reference}"
    words += f" {_where(comparison)}. {_evidence(comparison, settings, comparisons)}"
    if diverged := _diverged(comparison):
        words += f" Diverged: {diverged}; a diverged run counts as {diverged_value(problem, diverged_as)}."
    return words


def _evidence(comparison: Comparison, settings: Settings, comparisons: int) -> str:
    """How sure that is, and what would make it surer."""
    problem, gap, verdict = comparison.problem, comparison.difference, comparison.verdict
    seeds = count(gap.n, "seed")
    if gap.n == 1:
        return "Undecided: one seed shows no spread between seeds."
    if not gap.has_spread:
        words = f"Undecided: with {seeds}, every difference is the same"
        return f"{words}; without spread between seeds there is no evidence."
    share = f"{100 * (1 - settings['level']):g} %"
    ends = f"{signed(problem, gap.low)} to {difference(problem, gap.high, sign=True)}"
    interval = f"With {seeds}, the {share} interval is {ends}"
    if verdict.startswith(("better", "worse")):
        return f"{interval}, and {_p_holm(comparison)}: {verdict}."
    if verdict == "equivalent":
        p = number(gap.p_equivalent_holm)
        return f"{interval}, within the margin of {difference(problem, gap.margin)}: equivalent (p = {p} after Holm)."
    size = max(abs(gap.mean), gap.margin)
    advice = "More seeds are needed."
    if needed := statistics.seeds_to_find(size, gap.sd, settings["level"], settings["power"], comparisons):
        advice = f"About {needed:,} seeds would find a difference of {difference(problem, size)}."
    interval = f"Undecided: w{interval[1:]}"
    if gap.low <= 0 <= gap.high:
        return f"{interval}, which includes zero. {advice}"
    why = f"{_p_holm(comparison)} does not confirm it"
    if (least := statistics.attainable_p(gap.n) * comparisons) > settings["level"]:
        why = f"no test of {seeds} can go below p = {number(min(1.0, least))} in {count(comparisons, 'comparison')}"
    return f"{interval}, which excludes zero, but {why}. {advice}"
