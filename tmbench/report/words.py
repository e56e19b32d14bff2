"""How a report writes numbers, and tables of them."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .problems import Problem

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


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with so many significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def numeric(value: float | None) -> Cell:
    return Cell(number(value), value)


def unit(problem: Problem) -> str:
    """What follows a score of this problem in a sentence."""
    return " %" if problem.is_percent else ""


def score(problem: Problem, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.2f}" if problem.is_percent else f"{value:.4g}"


def difference(problem: Problem, value: float, sign: bool = False) -> str:
    """A difference of two values, in words."""
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.2f} points" if problem.is_percent else f"{value:{plus}.3g}"


def spread(problem: Problem, mean: float | None, sd: float | None) -> str:
    if mean is None:
        return DASH
    if sd is None or not math.isfinite(sd):
        return score(problem, mean)
    places = 2 if problem.is_percent else max(0, 1 - math.floor(math.log10(sd))) if sd else 4
    return f"{problem.scale * mean:.{places}f} ± {problem.scale * sd:.{places}f}"


def signed(problem: Problem, value: float) -> str:
    return difference(problem, value, sign=True).removesuffix(" points")


def count(n: int, word: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
