"""How many seeds does a question need? What a paired test can reach, and what would find a difference."""

import math
from functools import cache

from ..config.settle import Settings
from ..errors import ConfigError
from .contents import Report
from .statistics import EXACT_UP_TO, RESAMPLES
from .words import Cell, Table, count, number, numeric


def attainable_p(n: int) -> float:
    """The smallest two-sided p of a paired test with n seeds, whatever the difference: exact, or of a sample."""
    return min(1.0, max(2.0 ** (1 - n), 1 / (RESAMPLES + 1) if n > EXACT_UP_TO else 0.0))


def seeds_to_attain(level: float, comparisons: int = 1) -> int | None:
    """The fewest seeds whose test can fall below the level as the first of so many comparisons (Holm).

    None if no number of seeds can: the comparisons are too many for a sample of RESAMPLES.
    """
    return next((n for n in range(1, EXACT_UP_TO + 10) if attainable_p(n) <= level / comparisons), None)


@cache
def seeds_to_find(difference: float, sd: float, level: float, power: float, comparisons: int = 1) -> int | None:
    """How many seeds would find a true mean difference with this power, if paired differences have this spread.

    By the power of Student's paired test (statsmodels'), at the level that Holm leaves the first of so many
    comparisons; at least as many as the exact test needs. None if a million would not do, or no number can.
    """
    from statsmodels.stats.power import TTestPower

    attaining = seeds_to_attain(level, comparisons)
    if attaining is None:
        return None
    least = max(2, attaining)
    if not sd > 0:
        return least
    effect, alpha = abs(difference) / sd, level / comparisons

    def is_enough(n: int) -> bool:
        power_of_n = float(TTestPower().power(effect, n, alpha))
        return power_of_n >= power or (math.isnan(power_of_n) and effect > 1)  # so sure that it underflows

    high = least
    while not is_enough(high):
        high *= 2
        if high > 1_000_000:
            return None
    low = max(least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high


def plan(settings: Settings, report: Report | None) -> list[Table]:
    """Which p is attainable with n seeds, and how many seeds would find the difference `settings["plan"]`.

    Args:
        report: on runs that show the spread of paired differences, unless the settings say it (sd).

    Raises:
        ConfigError: no spread is known.
    """
    pairs = report.comparisons if report else []
    spreads = [
        (c.problem.name, f"{c.method.label} - {c.reference.label}", c.difference.sd)
        for c in pairs if c.difference.has_spread and c.difference.sd > 0
    ]  # fmt: skip
    if settings["sd"] is not None:
        spreads = [("any", "as given", float(settings["sd"]))]
    if not spreads:
        raise ConfigError(
            "plan: the spread is not known; give sd=..., or name runs of two methods that show one over 2 seeds or more"
        )
    comparisons = settings["comparisons"] or len(pairs) or 1
    return [_attainable(settings["level"], comparisons), _needed(settings, spreads, comparisons)]


def _attainable(level: float, comparisons: int) -> Table:
    rows = []
    for n in range(1, max(12, seeds_to_attain(level, comparisons) or 0) + 1):
        p = attainable_p(n)
        adjusted = p * comparisons
        rows.append([Cell(str(n), n), numeric(p), Cell(number(min(1.0, adjusted))),
                     Cell("yes" if adjusted <= level else "no")])  # fmt: skip
    columns = ["seeds", "p", f"p (Holm, {comparisons})", f"reaches {level:g}"]
    title = f"The smallest p of a paired test, alone and with {count(comparisons, 'comparison')} (Holm)"
    return Table("attainable", title, columns, rows)


def _needed(settings: Settings, spreads: list[tuple[str, str, float]], comparisons: int) -> Table:
    level, power, difference = settings["level"], settings["power"], float(settings["plan"])
    none = "over a million" if seeds_to_attain(level, comparisons) else "no number is enough"
    rows = []
    for problem, methods, sd in spreads:
        alone = seeds_to_find(difference, sd, level, power)
        together = seeds_to_find(difference, sd, level, power, comparisons)
        rows.append([Cell(problem), Cell(methods), numeric(sd), numeric(difference),
                     Cell(str(alone or none), alone), Cell(str(together or none), together)])  # fmt: skip
    columns = ["problem", "differences of", "their sd", "difference", "seeds, alone",
               f"seeds, {count(comparisons, 'comparison')}"]  # fmt: skip
    title = f"Seeds that find a true difference of {number(difference)} with probability {power:g}"
    note = (
        "By the power of Student's paired test, and at least what an exact test needs. A spread that is known from few "
        "seeds is itself uncertain: from 3 seeds by a factor of 0.5 to 6 (95 %)."
    )
    return Table("seeds", title, columns, rows, [note])
