"""How a report writes numbers, and tables of them."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..result import SHARES
from .read import Problem

PERCENT = (*SHARES, "map")  # what the paper prints in percent
BOUNDED = (*PERCENT, "auc")  # between 0 and 1
DASH = "-"  # nothing there


class Cell(NamedTuple):
    """One entry of a table: as it is read, and as it is."""

    text: str
    value: Any = None
    method: int | None = None  # whose runs it is made of


@dataclass
class Table:
    key: str  # a file name
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def file_name(*words: str) -> str:
    return "-".join(words).replace(" ", "-")


def scale(problem: Problem) -> float:
    return 100.0 if problem.metric in PERCENT else 1.0


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with so many significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def score(problem: Problem, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.2f}" if scale(problem) == 100 else f"{value:.4g}"


def difference(problem: Problem, value: float, sign: bool = False) -> str:
    """A difference of two values, in words."""
    if scale(problem) == 100:
        return f"{100 * value:{'+' if sign else ''}.2f} points"
    return f"{value:{'+' if sign else ''}.3g}"


def spread(problem: Problem, mean: float | None, sd: float | None) -> str:
    if mean is None:
        return DASH
    if sd is None or not math.isfinite(sd):
        return score(problem, mean)
    places = 2 if scale(problem) == 100 else max(0, 1 - math.floor(math.log10(sd))) if sd else 4
    return f"{scale(problem) * mean:.{places}f} ± {scale(problem) * sd:.{places}f}"


def printed_as(value: float, sd: float | None) -> str:
    return f"{value:g} ± {sd:g}" if sd else f"{value:g}"


def signed(problem: Problem, value: float) -> str:
    return f"{100 * value:+.2f}" if scale(problem) == 100 else f"{value:+.3g}"
