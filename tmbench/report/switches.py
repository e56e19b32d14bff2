"""A method with several switch epochs: which is best, and what is left of that once one knows that it was chosen."""

import re
from dataclasses import dataclass

import numpy as np

from .contents import Report
from .formats import DASH, Cell, Table, numeric, signed, signed_span, whole
from .problems import Method, Problem
from .statistics import EXACT_UP_TO, Values, signs, t_interval, tolerance


@dataclass(frozen=True)
class Best:
    """The best of several settings, by paired differences to one reference.

    `index`: which it is. `mean`: its difference, which choosing it has raised. `p`: of a best one at least as good if
    no setting is better than the reference (one-sided). `held_out`: the mean over seeds of the difference on that seed
    of the setting that is best on the others, which nothing has raised; `interval`: Student's.
    """

    index: int
    mean: float
    p: float
    held_out: float
    interval: tuple[float, float]


def best_of(differences_MS: Values, near_S: Values, level: float) -> Best:
    """The best of M settings over S seeds, at least 2; a positive difference is better.

    p is of the largest mean under changes of sign of whole seeds, of all settings together, since they share the
    reference's run: exact up to EXACT_UP_TO seeds, else from a sample (Westfall and Young 1993).
    """
    means_M, count = differences_MS.mean(1), differences_MS.shape[1]
    largest_R = (signs(count) @ differences_MS.T / count).max(1)
    extreme, is_sampled = int((largest_R >= means_M.max() - near_S.mean() - 1e-12).sum()), count > EXACT_UP_TO
    chosen_S = ((differences_MS.sum(1)[:, None] - differences_MS) / (count - 1)).argmax(0)
    held_out_S = differences_MS[chosen_S, np.arange(count)]
    p = (extreme + is_sampled) / (len(largest_R) + is_sampled)
    return Best(int(means_M.argmax()), float(means_M.max()), p, float(held_out_S.mean()), t_interval(held_out_S, level))


def by_switch(methods: list[Method]) -> dict[str, dict[int, Method]]:
    """Methods that differ by their switch epoch alone, by that; by what is common to their labels."""
    lines: dict[str, dict[int, Method]] = {}
    for method in sorted((m for m in methods if m.switch is not None), key=lambda m: m.switch or 0):
        lines.setdefault(re.sub(r" ?switch_epoch=\S+", "", method.label), {})[method.switch or 0] = method
    return {name: found for name, found in lines.items() if len(found) > 1}


def switch_tables(report: Report) -> list[Table]:
    """A row for each method with several switch epochs and each reference on a problem; none if there is none."""
    rows = [row for problem in report.runs.problems for row in _rows(report, problem)]
    if not rows:
        return []
    share = f"{100 * (1 - report.settings['level']):g} % interval"
    columns = ["problem", "data", "method", "against", "switches", "n", "best", "its difference", "p of the best",
               "held out", share]  # fmt: skip
    notes = [
        "The best of several switch epochs looks better than it is, since it was chosen. p of the best: one-sided, of "
        "a best difference at least as large, by changes of sign of whole seeds, if no switch epoch is better.",
        "held out: on each seed, the difference of the switch epoch that is best on the other seeds; over the seeds "
        "that all of them and the reference have.",
    ]
    return [Table("switches", "Is the best switch epoch better?", columns, rows, notes)]


def _rows(report: Report, problem: Problem) -> list[list[Cell]]:
    rows, methods, scores, against = [], report.runs.methods_of(problem), report.scores, report.settings["against"]
    compared = {(c.method.index, c.reference.index) for c in report.comparisons}  # of like rates and other settings
    for name, found in by_switch(methods).items():
        for reference in methods:
            if reference.optimizer != against or reference.switch is not None:
                continue
            if not all((method.index, reference.index) in compared for method in found.values()):
                continue
            all_of = [scores.get(m.index, {}) for m in (*found.values(), reference)]
            seeds = sorted(set.intersection(*(set(of) for of in all_of)))
            values = np.array([[of[seed] for seed in seeds] for of in all_of])
            if len(seeds) < 2 or not np.isfinite(values).all():
                continue
            best = best_of(problem.sign * (values[:-1] - values[-1]), tolerance(*values), report.settings["level"])
            low, high = best.interval
            rows.append([
                Cell(problem.label), Cell(problem.profile), Cell(name), Cell(reference.label),
                Cell(", ".join(map(str, found)), tuple(found)), whole(len(seeds)), whole(list(found)[best.index]),
                Cell(signed(problem, best.mean), best.mean), numeric(best.p),
                Cell(signed(problem, best.held_out), best.held_out),
                signed_span(problem, low, high) if low < high else Cell(DASH),
            ])  # fmt: skip
    return rows
