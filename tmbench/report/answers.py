"""From runs to a report, and its tables that compare methods: differences, ranks, time to target; plans."""

import math
from typing import Any

import polars as pl

from ..config.settle import Settings
from ..errors import ConfigError, DataError, count
from . import statistics
from .across import BOOTSTRAPS, common, improvement, median_times
from .comparisons import Comparison, sentences, tested
from .contents import Report, notes_of, numbers_of
from .formats import DASH, Cell, Table, file_name, named, number, numeric, score, signed, signed_span, span, whole
from .paper import result_table
from .problems import Runs
from .statistics import attainable_p, seeds_to_attain, seeds_to_find
from .switches import switch_tables
from .variance import SampleSplit, sample_split


def report(runs: Runs, settings: Settings) -> Report:
    """All that the runs say, in numbers, tables, sentences and notes."""
    done = numbers_of(runs, settings)
    done.notes = ([settings["note"]] if settings["note"] else []) + notes_of(done) + runs.notes
    done.tables = [
        *(result_table(done, problem) for problem in runs.problems),
        *_comparison_tables(done), *switch_tables(done), *_ranking_tables(done), *_improvement_tables(done),
        *_time_tables(done),
    ]  # fmt: skip
    against = settings["against"]
    nothing = "there is one method only" if against == "all" else f"there is no run of {against} to compare with"
    done.sentences = sentences(done.comparisons, settings, done.diverged_values) or [f"Nothing to compare: {nothing}."]
    return done


# ---- differences


def _comparison_tables(report: Report) -> list[Table]:
    if not report.comparisons:
        return []
    share = f"{100 * (1 - report.settings['level']):g} %"
    columns = ["problem", "data", "method", "against", "verdict", "n", "difference", f"{share} interval",
               f"{share} bootstrap", "p", "p (Holm)", "p equivalent (Holm)", "margin"]  # fmt: skip
    rows = [_comparison_row(comparison) for comparison in report.comparisons]
    table = Table("comparisons", "Is it better?", columns, rows, _comparison_notes(report))
    return [table, *_sample_tables(report, table.notes)]


def _comparison_row(comparison: Comparison) -> list[Cell]:
    problem, gap = comparison.problem, comparison.difference

    def interval(low: float, high: float) -> Cell:
        if not (gap.has_spread and math.isfinite(low)):
            return Cell(DASH)
        return signed_span(problem, low, high)

    return [
        Cell(problem.label), Cell(problem.profile), named(comparison.method), named(comparison.reference),
        Cell(comparison.verdict), whole(gap.n),
        Cell(DASH) if math.isnan(gap.mean) else Cell(signed(problem, gap.mean), gap.mean),
        interval(gap.low, gap.high), interval(gap.bootstrap_low, gap.bootstrap_high),
        Cell(number(gap.p) + (", sampled" if gap.is_sampled else ""), gap.p), numeric(gap.p_holm),
        numeric(gap.p_equivalent_holm), Cell(number(problem.scale * gap.margin), gap.margin),
    ]  # fmt: skip


def _comparison_notes(report: Report) -> list[str]:
    comparisons, level, n = report.comparisons, report.settings["level"], tested(report.comparisons)
    test = {"permutation": "changes of sign (permutation of the mean)", "wilcoxon": "signed ranks"}
    enough = "No number of seeds can reach it."
    if least := seeds_to_attain(level, max(1, n)):
        enough = f"At least {count(least, 'seed')} are needed to reach it."
    notes = [
        "Differences are between method and against, paired by seed, in points where the metric is a share. "
        "Positive means that the method is better, also where a lower value of the metric is.",
        f"p: two-sided, by {test[report.settings['test']]}; exact up to {statistics.EXACT_UP_TO} seeds, and where all "
        f"differences are multiples of one number, such as a share of the test examples; else from "
        f"{statistics.RESAMPLES:,} samples. Holm over the {count(n, 'comparison')} of this report, at {level:g} in "
        f"all. {enough}",
        f"Holm holds the tests of a difference to {level:g} together, and those of equivalence to another {level:g}: "
        f"with probability {1 - 2 * level:g} or more no verdict of either kind is false.",
        f"The interval is Student's below {statistics.ENOUGH_TO_BOOTSTRAP} seeds, where the bootstrap's (BCa) is too "
        "narrow. Each interval covers by itself, not all together.",
        "p equivalent: two one-sided t-tests against the margin, which conf/report.yaml sets; 1 below "
        f"{statistics.LEAST_TO_EQUATE} seeds on which not both diverged, and where these show no spread.",
    ]
    if single := len(comparisons) - n:
        notes.append(f"Pairs of methods that share one seed only are listed and not tested: {single} here.")
    if seeds := [c.difference.n for c in comparisons if c.verdict == "equivalent"]:
        words = f"equivalent is about the scores that were seen. After {min(seeds)} seeds without a divergence, up to "
        words += f"{1 - level ** (1 / min(seeds)):.0%} of a method's runs may still diverge"
        notes.append(f"{words} (at {100 * (1 - level):g} % confidence).")
    if any(math.isnan(c.difference.mean) for c in comparisons):
        notes.append("There is no difference where a run diverged without a baseline: p is that of the signed ranks.")
    return notes


def _sample_tables(report: Report, notes: list[str]) -> list[Table]:
    """Would another test set agree? Of the comparisons whose runs have kept scores of single test examples.

    Args:
        notes: of the comparisons; what a verdict is about is added, and what is wrong with scores.
    """
    all_tested = [comparison for comparison in report.comparisons if comparison.is_tested]
    found = [(c, sample) for c in all_tested if (sample := _sample_of(report, c, notes))]
    if all_tested:
        about = "A verdict is about training again on the same test examples"
        notes.append(f"{about}; the next table allows for others as well." if found else f"{about}.")
    if missing := len(all_tested) - len(found):
        words = "not all of their runs have kept scores of single test examples"
        notes.append(f"What other test examples would say is not known of {count(missing, 'comparison')}: {words}.")
    if not found:
        return []
    share = f"{100 * (1 - report.settings['level']):g} % interval"
    columns = ["problem", "data", "method", "against", "metric", "n", "test examples", "difference",
               f"{share}, these examples", f"{share}, others too", "sd by seeds", "sd by examples"]  # fmt: skip
    return [Table("samples", "Would another test set agree?", columns, [_sample_row(*each) for each in found], [
        "The interval of these examples is Student's over seeds, and what the verdict is about if it is of the same "
        "metric. The other allows for another test set of this size as well: where it includes zero, that could turn "
        "the order round.",
        "Each sd is a part of the mean difference's sd: what other seeds would change on all examples alike, and what "
        "other examples would change with all seeds alike; 0 if it is too small to be estimated. What is particular to "
        "a seed and an example is in neither, but in both intervals.",
    ])]  # fmt: skip


def _sample_of(report: Report, comparison: Comparison, notes: list[str]) -> SampleSplit | None:
    """None where not all runs have scores, or one diverged; these are of the last epoch, so with metric=best, too."""
    methods = comparison.method.index, comparison.reference.index
    runs = report.values.filter(pl.col("method").is_in(methods) & pl.col("value").is_not_null())
    by_method = {
        method: {row["seed"]: row for row in runs.filter(pl.col("method") == method).iter_rows(named=True)}
        for method in methods
    }
    seeds = sorted(by_method[methods[0]].keys() & by_method[methods[1]].keys())
    pairs = [(by_method[methods[0]][seed], by_method[methods[1]][seed]) for seed in seeds]
    if report.settings["metric"] != "last" or any(run["lost"] for pair in pairs for run in pair):
        return None
    folders = [(report.runs.root / a["folder"], report.runs.root / b["folder"]) for a, b in pairs]
    try:
        return sample_split(folders, comparison.problem.higher_is_better, report.settings["level"])
    except DataError as error:
        notes.append(str(error))
        return None


def _sample_row(comparison: Comparison, sample: SampleSplit) -> list[Cell]:
    problem, found = comparison.problem.measured_by(sample.metric), sample.split

    def interval(low: float, high: float) -> Cell:
        return signed_span(problem, max(low, -problem.bound), min(high, problem.bound))

    sds = math.sqrt(found.seeds / comparison.difference.n), math.sqrt(found.examples / sample.test_examples)
    return [
        Cell(problem.label), Cell(problem.profile), named(comparison.method), named(comparison.reference),
        Cell(problem.measure), whole(comparison.difference.n), whole(sample.test_examples),
        Cell(signed(problem, found.mean), found.mean), interval(*found.of_training), interval(*found.of_both),
        *(Cell(number(problem.scale * sd), sd) for sd in sds),
    ]  # fmt: skip


# ---- across problems


def _ranking_tables(report: Report) -> list[Table]:
    tables = []
    for ranking in report.rankings:
        unit, blocks = ranking.unit, ranking.blocks
        of_methods = (ranking.mean, ranking.names, ranking.range_without_one, ranking.place, ranking.firsts)
        rows = [
            [Cell(name), Cell(str(place), place), Cell(f"{mean:.2f}", mean), span(*ends), Cell(f"{first:.0f}", first)]
            for mean, name, ends, place, first in sorted(zip(*of_methods, strict=True))
        ]
        by = ", by the means on the seeds that all methods have" if unit == "problem" else ""
        friedman = "" if math.isnan(ranking.p) else f"; that none differs: Friedman's p = {number(ranking.p)}"
        notes = [
            f"Blocks are {unit}s{by}: {', '.join(blocks[:8])}{', ...' if len(blocks) > 8 else ''}.",
            f"Mean ranks {ranking.critical_difference:.2f} apart differ (Nemenyi, {report.settings['level']:g})"
            f"{friedman}. A method's place is 1 more than the number of methods better by so much.",
        ]
        if unit == "seed":
            notes.append("These are seeds of one problem: the ranks say nothing about other problems.")
        columns = ["method", "place", "mean rank", f"without any one {unit}", f"first in {BOOTSTRAPS:,} bootstraps"]
        title = f"Ranks on {ranking.kind} data (1 is best)"
        tables.append(Table(file_name("ranks", ranking.kind), title, columns, rows, notes))
    return tables


def _improvement_tables(report: Report) -> list[Table]:
    """The probability of improvement over the reference, across problems."""
    against, level, tables = report.settings["against"], report.settings["level"], []
    for kind in report.runs.kinds():
        problems, methods = common(report.runs, kind)
        if against not in methods or len(methods) < 2:
            continue
        values = {
            name: [[p.sign * score for score in report.scores.get(i, {}).values()]
                   for p, i in zip(problems, on, strict=True)]
            for name, on in methods.items()
        }  # fmt: skip
        rows = []
        for name in methods:
            samples = [(a, b) for a, b in zip(values[name], values[against], strict=True) if a and b]
            if name != against and samples:
                value, *ends = improvement(samples, level)
                rows.append([Cell(name), Cell(f"{value:.2f}", value), span(*ends), whole(len(samples))])
        title = f"Probability that a run beats one of {against}, on {kind} data"
        note = (
            "Mann-Whitney's, averaged over problems; a tie counts half. The interval is a bootstrap over seeds, too "
            f"narrow below {statistics.ENOUGH_TO_BOOTSTRAP} of them."
        )
        columns = ["method", "P", f"{100 * (1 - level):g} % bootstrap", "problems"]
        tables.append(Table(file_name("improvement", kind), title, columns, rows, [note]))
    return tables


# ---- time to target


def _time_tables(report: Report) -> list[Table]:
    def time(value: Any) -> Cell:
        return Cell("never") if math.isinf(value) else numeric(value)

    medians = {row["method"]: row for row in median_times(report.times).iter_rows(named=True)}
    rows = []
    for problem in (problem for problem in report.runs.problems if problem.index in report.targets):
        target = report.targets[problem.index]
        for method in (method for method in report.runs.methods_of(problem) if method.index in medians):
            row = medians[method.index]
            rows.append([
                Cell(problem.label), Cell(problem.profile), named(method), Cell(score(problem, target), target),
                Cell(f"{row['reached']} of {row['n']}", row["reached"]),
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


# ---- plans


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
    comparisons = settings["comparisons"] or tested(pairs) or 1
    return [_attainable(settings["level"], comparisons), _needed(settings, spreads, comparisons)]


def _attainable(level: float, comparisons: int) -> Table:
    rows = []
    for n in range(1, max(12, seeds_to_attain(level, comparisons) or 0) + 1):
        adjusted = attainable_p(n) * comparisons
        reaches = Cell("yes" if adjusted <= level else "no")
        rows.append([whole(n), numeric(attainable_p(n)), Cell(number(min(1.0, adjusted))), reaches])
    columns = ["seeds", "p", f"p (Holm, {comparisons})", f"reaches {level:g}"]
    title = f"The smallest p of a paired test, alone and with {count(comparisons, 'comparison')} (Holm)"
    return Table("attainable", title, columns, rows)


def _needed(settings: Settings, spreads: list[tuple[str, str, float]], comparisons: int) -> Table:
    level, power, difference = settings["level"], settings["power"], float(settings["plan"])
    none = "over a million" if seeds_to_attain(level, comparisons) else "no number is enough"
    rows = []
    for problem, methods, sd in spreads:
        seeds = [seeds_to_find(difference, sd, level, power, n) for n in (1, comparisons)]
        rows.append([Cell(problem), Cell(methods), numeric(sd), numeric(difference),
                     *(Cell(str(n or none), n) for n in seeds)])  # fmt: skip
    columns = ["problem", "differences of", "their sd", "difference", "seeds, alone",
               f"seeds, {count(comparisons, 'comparison')}"]  # fmt: skip
    title = f"Seeds that find a true difference of {number(difference)} with probability {power:g}"
    note = (
        "By the power of Student's paired test, and at least what an exact test needs. A spread that is known from few "
        "seeds is itself uncertain: from 3 seeds by a factor of 0.5 to 6 (95 %)."
    )
    return Table("seeds", title, columns, rows, [note])
