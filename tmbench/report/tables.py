"""The tables of a report that compare methods: differences, ranks, improvement, time to target."""

import math
from typing import Any

import polars as pl

from . import statistics
from .across import common, improvement, indices
from .comparisons import Comparison
from .contents import Report
from .planning import seeds_to_attain
from .problems import Problem
from .scores import by_seed, table_order
from .words import DASH, Cell, Table, count, file_name, number, numeric, score, signed


def comparison_tables(report: Report) -> list[Table]:
    if not report.comparisons:
        return []
    share = f"{100 * (1 - report.settings['level']):g} %"
    columns = ["problem", "data", "method", "against", "verdict", "n", "difference", f"{share} interval",
               f"{share} bootstrap", "p", "p (Holm)", "p equivalent (Holm)", "margin"]  # fmt: skip
    rows = [_comparison_row(comparison) for comparison in report.comparisons]
    return [Table("comparisons", "Is it better?", columns, rows, _comparison_notes(report))]


def _comparison_row(comparison: Comparison) -> list[Cell]:
    problem, gap = comparison.problem, comparison.difference
    method, reference = comparison.method, comparison.reference

    def interval(low: float, high: float) -> Cell:
        if not (gap.has_spread and math.isfinite(low)):
            return Cell(DASH)
        return Cell(f"{signed(problem, low)} to {signed(problem, high)}", [low, high])

    return [
        Cell(problem.label), Cell(problem.profile), Cell(method.label, method.label, method.index),
        Cell(reference.label, reference.label, reference.index), Cell(comparison.verdict), Cell(str(gap.n), gap.n),
        Cell(DASH) if math.isnan(gap.mean) else Cell(signed(problem, gap.mean), gap.mean),
        interval(gap.low, gap.high), interval(gap.bootstrap_low, gap.bootstrap_high),
        Cell(number(gap.p) + (", sampled" if gap.is_sampled else ""), gap.p), numeric(gap.p_holm),
        numeric(gap.p_equivalent_holm), Cell(number(problem.scale * gap.margin), gap.margin),
    ]  # fmt: skip


def _comparison_notes(report: Report) -> list[str]:
    comparisons, level, n = report.comparisons, report.settings["level"], len(report.comparisons)
    test = {"permutation": "changes of sign (permutation of the mean)", "wilcoxon": "signed ranks"}
    enough = seeds_to_attain(level, n)
    positive = "better" if all(c.problem.higher_is_better for c in comparisons) else "higher, not always better"
    notes = [
        "Differences are method - against, paired by seed, in points where the metric is a share. "
        f"Positive is {positive}.",
        f"p: two-sided, by {test[report.settings['test']]}; exact up to {statistics.EXACT_UP_TO} seeds, for more from "
        f"{statistics.RESAMPLES:,} samples. Holm over the {count(n, 'comparison')} of this report, at {level:g} in "
        "all. "
        + (
            f"At least {count(enough, 'seed')} are needed to reach it."
            if enough
            else "No number of seeds can reach it."
        ),
        f"Holm holds the tests of a difference to {level:g} together, and those of equivalence to another {level:g}: "
        f"with probability {1 - 2 * level:g} or more no verdict of either kind is false.",
        f"The interval is Student's below {statistics.ENOUGH_TO_BOOTSTRAP} seeds, where the bootstrap's (BCa) is too "
        "narrow. Each interval covers by itself, not all together.",
        "p equivalent: two one-sided t-tests against the margin, which conf/report.yaml sets; 1 below "
        f"{statistics.LEAST_TO_EQUATE} seeds on which not both diverged, and where these show no spread.",
    ]
    if seeds := [c.difference.n for c in comparisons if c.verdict == "equivalent"]:
        unseen = 1 - level ** (1 / min(seeds))
        notes.append(
            f"equivalent is about the scores that were seen. After {min(seeds)} seeds without a divergence, up to "
            f"{unseen:.0%} of a method's runs may still diverge (at {100 * (1 - level):g} % confidence)."
        )
    if any(math.isnan(c.difference.mean) for c in comparisons):
        notes.append("There is no difference where a run diverged without a baseline: p is that of the signed ranks.")
    return notes


def ranking_tables(report: Report) -> list[Table]:
    tables = []
    for ranking in report.rankings:
        unit, blocks = ranking.unit, ranking.blocks
        rows = [
            [Cell(name), Cell(f"{mean:.2f}", mean), Cell(f"{low:.2f} to {high:.2f}", [low, high])]
            for mean, name, (low, high) in sorted(
                zip(ranking.mean, ranking.names, ranking.range_without_one, strict=True)
            )
        ]
        by = ", by the means on the seeds that all methods have" if unit == "problem" else ""
        friedman = "" if math.isnan(ranking.p) else f"; that none differs: Friedman's p = {number(ranking.p)}"
        notes = [
            f"Blocks are {unit}s{by}: {', '.join(blocks[:8])}{', ...' if len(blocks) > 8 else ''}.",
            f"Mean ranks {ranking.critical_difference:.2f} apart differ (Nemenyi, {report.settings['level']:g})"
            f"{friedman}.",
        ]
        if unit == "seed":
            notes.append("These are seeds of one problem: the ranks say nothing about other problems.")
        columns = ["method", "mean rank", f"without any one {unit}"]
        title = f"Ranks on {ranking.kind} data (1 is best)"
        tables.append(Table(file_name("ranks", ranking.kind), title, columns, rows, notes))
    return tables


def improvement_tables(report: Report) -> list[Table]:
    """The probability of improvement over the reference, across problems."""
    against, level, tables = report.settings["against"], report.settings["level"], []
    for kind in report.runs.kinds():
        problems, names = common(report.runs, kind)
        if against not in names or len(names) < 2:
            continue
        rows = [row for name in names if name != against if (row := _improvement_row(report, problems, name))]
        title = f"Probability that a run beats one of {against}, on {kind} data"
        note = (
            "Mann-Whitney's, averaged over problems; a tie counts half. The interval is a bootstrap over seeds, too "
            f"narrow below {statistics.ENOUGH_TO_BOOTSTRAP} of them."
        )
        columns = ["method", "P", f"{100 * (1 - level):g} % bootstrap", "problems"]
        tables.append(Table(file_name("improvement", kind), title, columns, rows, [note]))
    return tables


def _improvement_row(report: Report, problems: list[Problem], name: str) -> list[Cell] | None:
    """None if the method and the reference have values on no common problem."""
    scores, index = by_seed(report.values), indices(report.runs)
    samples = []
    for problem in problems:
        a, b = (
            [problem.sign * value for value in scores.get(index[problem.index, method], {}).values()]
            for method in (name, report.settings["against"])
        )
        if a and b:
            samples.append((a, b))
    if not samples:
        return None
    value, low, high = improvement(samples, report.settings["level"])
    interval = DASH if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    return [Cell(name), Cell(f"{value:.2f}", value), Cell(interval, [low, high]), Cell(str(len(samples)), len(samples))]


def time_tables(report: Report) -> list[Table]:
    methods = {m.index: m for m in report.runs.methods}
    problems = {p.index: p for p in report.runs.problems if p.index in report.targets}
    times = pl.col("epoch", "step", "seconds")
    medians = (
        report.times.with_columns(times.cast(pl.Float64).fill_null(math.inf))
        .group_by("method", maintain_order=True)
        .agg(pl.col("problem").first(), times.median(), reached=pl.col("epoch").is_finite().sum(), n=pl.len())
    )

    def time(value: Any) -> Cell:
        return Cell("never") if math.isinf(value) else numeric(value)

    rows = []
    for row in sorted(medians.iter_rows(named=True), key=lambda row: table_order(methods[row["method"]])):
        if row["problem"] in problems:
            problem, label = problems[row["problem"]], methods[row["method"]].label
            target = report.targets[problem.index]
            rows.append([
                Cell(problem.label), Cell(problem.profile), Cell(label, label, row["method"]),
                Cell(score(problem, target), target), Cell(f"{row['reached']} of {row['n']}", row["reached"]),
                *(time(row[key]) for key in ("epoch", "step", "seconds")),
            ])  # fmt: skip
    if not rows:
        return []
    columns = ["problem", "data", "method", "target", "reached", "epochs", "steps", "train s"]
    note = (
        f"Target: {_target_words(report)}. Medians over seeds of the first epoch at whose end it is reached; a run "
        "that never reaches it counts as infinite."
    )
    return [Table("time-to-target", "Time to target", columns, rows, [note])]


def _target_words(report: Report) -> str:
    """Where the targets come from."""
    if report.settings["target"] is not None:
        return "as set"
    against = report.settings["against"]
    of_against = [m.problem for m in report.runs.methods if m.optimizer == against]
    several = " with the best of its settings" if len(of_against) > len(set(of_against)) else ""
    without = [p.label for p in report.runs.problems if p.index in report.targets and p.index not in of_against]
    of_all = "the median that all runs end with"
    if not of_against:
        return of_all
    words = f"the median that {against} ends with{several}"
    return f"{words}; on {', '.join(without)}, where {against} has no run, {of_all}" if without else words
