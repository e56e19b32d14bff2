"""A comparison in a sentence or two, as a person would say it to another."""

import math

from ..config.settle import Settings
from . import statistics
from .comparisons import Comparison
from .planning import attainable_p, seeds_to_find
from .problems import Problem
from .words import count, difference, number, score, signed, unit


def sentences(comparisons: list[Comparison], settings: Settings, diverged_values: dict[int, float]) -> list[str]:
    """One for each of the comparisons of a report.

    Args:
        diverged_values: by problem, what a diverged run counts as.
    """
    return [
        _without_size(c)
        if math.isnan(c.difference.mean)
        else _with_size(c, settings, len(comparisons), diverged_values[c.problem.index])
        for c in comparisons
    ]


def diverged_value(problem: Problem, value: float) -> str:
    """What a diverged run counts as, in words."""
    return f"the worse of the baseline and the worst completed run, {score(problem, value)}{unit(problem)}"


def _where(comparison: Comparison) -> str:
    problem = comparison.problem
    return f"on {problem.label} ({problem.measure}, {problem.profile} data)"


def _diverged(comparison: Comparison) -> str:
    """Whose runs diverged, such as: 1 of adam's runs and 2 of sgd's. Empty if none did."""
    words = [f"{n} of {name}'s" for name, n in comparison.diverged.items() if n]
    return " and ".join([f"{words[0]} runs", *words[1:]]) if words else ""


def _p_holm(comparison: Comparison) -> str:
    sampled = f", from {statistics.RESAMPLES:,} samples" if comparison.difference.is_sampled else ""
    return f"p = {number(comparison.difference.p_holm)} after Holm{sampled}"


def _without_size(comparison: Comparison) -> str:
    """Where a run diverged and there is no baseline."""
    method, reference, verdict = comparison.method.label, comparison.reference.label, comparison.verdict
    result = "undecided" if verdict == "undecided" else f"{method} is {verdict}"
    return (
        f"{method} and {reference} {_where(comparison)}: with {count(comparison.difference.n, 'seed')}, "
        f"{_diverged(comparison)} diverged. Without a baseline these rank below every completed run, and the "
        f"difference has no size. By signed ranks ({_p_holm(comparison)}): {result}."
    )


def _with_size(comparison: Comparison, settings: Settings, comparisons: int, diverged_as: float) -> str:
    problem, method, reference = comparison.problem, comparison.method.label, comparison.reference.label
    amount = problem.sign * comparison.difference.mean
    words = (
        f"{method} is {difference(problem, abs(amount))} {'better' if amount > 0 else 'worse'} than {reference}"
        if amount
        else f"{method} and {reference} score the same"
    )
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
        return (
            f"Undecided: with {seeds}, every difference is the same; without spread between seeds there is no evidence."
        )
    low, high = sorted((problem.sign * gap.low, problem.sign * gap.high))
    share = f"{100 * (1 - settings['level']):g} %"
    interval = f"With {seeds}, the {share} interval is {signed(problem, low)} to {difference(problem, high, sign=True)}"
    if verdict.startswith(("better", "worse")):
        return f"{interval}, and {_p_holm(comparison)}: {verdict}."
    if verdict == "equivalent":
        p = number(gap.p_equivalent_holm)
        return f"{interval}, within the margin of {difference(problem, gap.margin)}: equivalent (p = {p} after Holm)."
    size = max(abs(gap.mean), gap.margin)
    needed = seeds_to_find(size, gap.sd, settings["level"], settings["power"], comparisons)
    advice = (
        f"About {needed:,} seeds would find a difference of {difference(problem, size)}."
        if needed
        else "More seeds are needed."
    )
    if low <= 0 <= high:
        return f"Undecided: {interval[:1].lower()}{interval[1:]}, which includes zero. {advice}"
    least = attainable_p(gap.n) * comparisons
    why = (
        f"no test of {seeds} can go below p = {number(min(1.0, least))} in {count(comparisons, 'comparison')}"
        if least > settings["level"]
        else f"{_p_holm(comparison)} does not confirm it"
    )
    return f"Undecided: {interval[:1].lower()}{interval[1:]}, which excludes zero, but {why}. {advice}"
