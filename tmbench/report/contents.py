"""All that a report has to say: the numbers, and the tables, sentences and notes made of them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from ..config.settle import Settings
from .across import Profile, Ranking, profiles_of, rankings_of, targets_of, times_of
from .comparisons import Comparison, comparisons_of
from .problems import Runs
from .scores import diverged_values, summarize, values_of
from .words import Table


class Drawing(NamedTuple):
    """A figure of a report."""

    name: str  # of a file
    text: str  # what it shows, for those who cannot see it
    svg: str


@dataclass
class Report:
    settings: Settings
    runs: Runs
    diverged_values: dict[int, float]  # by problem, what a diverged run counts as
    values: pl.DataFrame  # a row a (method, seed); see values_of
    summary: pl.DataFrame  # a row a method; see summarize
    comparisons: list[Comparison]
    rankings: list[Ranking]
    targets: dict[int, float]  # by problem
    times: pl.DataFrame  # a row a run; see times_of
    profiles: dict[str, Profile]  # by kind of problems
    tables: list[Table] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def numbers_of(runs: Runs, settings: Settings) -> Report:
    """A report with its numbers, still without words."""
    of_diverged = diverged_values(runs)
    values = values_of(runs, of_diverged)
    targets = targets_of(runs, values, settings)
    times = times_of(runs, targets)
    return Report(
        settings, runs, of_diverged, values, summarize(runs, values), comparisons_of(runs, values, settings),
        rankings_of(runs, values, settings), targets, times, profiles_of(runs, times),
    )  # fmt: skip
