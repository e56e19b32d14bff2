"""What runs say: which method is better, by how much, how sure that is and what it cost, as tables and sentences."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ..config import Settings
from ..errors import ConfigError
from ..result import SHARES
from . import statistics
from .read import ENVIRONMENT, ORDER, Method, Problem, Runs, paper
from .statistics import Comparison

PERCENT = (*SHARES, "map")  # what the paper prints in percent
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


@dataclass
class Contest:
    """Two methods on a problem, compared."""

    problem: Problem
    a: Method
    b: Method
    result: Comparison
    verdict: str  # better, worse, equivalent, undecided
    sentence: str


@dataclass
class Standing:
    """Mean ranks of methods (1 is best) over blocks: problems, or the seeds of a single one."""

    profile: str
    names: list[str]
    mean: list[float]
    span: list[tuple[float, float]]  # of the mean rank with one block left out
    blocks: list[str]
    critical: float
    p: float  # Friedman's


@dataclass
class Report:
    settings: Settings
    runs: Runs
    summary: pl.DataFrame  # a row a method; see summarize
    contests: list[Contest]
    standings: list[Standing]
    tables: list[Table]
    notes: list[str]
    sentences: list[str]
    profiles: dict[str, tuple[list[str], dict[str, np.ndarray[Any, Any]]]] = field(default_factory=dict)
    targets: dict[int, float] = field(default_factory=dict)  # by problem


def report(runs: Runs, settings: Settings) -> Report:
    """All answers.

    Raises:
        ConfigError: a setting does not fit the runs.
    """
    values = _values(runs)
    summary = summarize(runs, values)
    contests = _contests(runs, values, settings)
    targets = _targets(runs, summary, settings)
    times = _times(runs, targets)
    standings = _standings(runs, values, settings)
    found = Report(settings, runs, summary, contests, standings, [], [], [], targets=targets)
    found.profiles = _profiles(runs, times)
    found.notes = [str(settings["note"])] if settings["note"] else []
    found.notes += _notes(runs, values, settings) + runs.notes
    found.tables = [
        *(_result_table(found, problem) for problem in runs.problems),
        *_contest_tables(found), *_standing_tables(found), *_improvement_tables(found, values),
        *_time_tables(found, times),
    ]  # fmt: skip
    found.sentences = [contest.sentence for contest in contests] or [
        "Nothing to compare: "
        + (f"there is no run of {settings['against']}" if settings["against"] != "all" else "one method only")
    ]
    return found


# ---- numbers


def _values(runs: Runs) -> pl.DataFrame:
    """One value a (method, seed): the score; of a diverged run what its network is worth, which is what a look-less
    predictor is worth, or the worst that was seen on the problem if that is less."""
    table = runs.runs.filter("counts")
    signs = {problem.index: problem.sign for problem in runs.problems}
    table = table.with_columns(sign=pl.col("problem").replace_strict(signs, return_dtype=pl.Int64))
    floor = table.group_by("problem").agg(
        floor=pl.min_horizontal(
            (pl.col("score") * pl.col("sign")).filter(pl.col("score").is_finite()).min(),
            (pl.col("baseline") * pl.col("sign")).min(),
        )
    )
    table = table.join(floor, on="problem", how="left")
    usable = pl.col("score").is_not_null() & pl.col("score").is_finite()
    lost = (pl.col("status") == "diverged") | ((pl.col("status") == "completed") & ~usable)
    return table.with_columns(
        value=pl.when(usable).then("score").when(lost).then(pl.col("floor") * pl.col("sign")), lost=lost
    )


def summarize(runs: Runs, values: pl.DataFrame) -> pl.DataFrame:
    """A row a method: problem, n (values), mean, sd, best, seconds, and how many runs came to what."""
    counts = runs.runs.group_by("method").agg(
        problem=pl.col("problem").first(), optimizer=pl.col("optimizer").first(), runs=pl.len(),
        completed=(pl.col("status") == "completed").sum(), diverged=(pl.col("status") == "diverged").sum(),
        failed=pl.col("status").is_in(["failed", "broken"]).sum(),
        unfinished=pl.col("status").is_in(["interrupted", "running", "stopped"]).sum(),
    )  # fmt: skip
    numbers = values.group_by("method").agg(
        n=pl.col("value").count(), mean=pl.col("value").mean(), sd=pl.col("value").std(), best=pl.col("best").mean(),
        seconds=pl.col("seconds").filter(pl.col("status") == "completed").mean(), baseline=pl.col("baseline").mean(),
        memory=pl.col("peak_memory_bytes").max(), parameters=pl.col("parameters").first(),
    )  # fmt: skip
    order = {method.index: _place(method) for method in runs.methods}
    return (
        counts.join(numbers, on="method", how="left")
        .with_columns(place=pl.col("method").replace_strict({m: i for i, m in enumerate(sorted(order, key=order.get))}))  # type: ignore[arg-type]
        .sort("problem", "place")
    )


def _place(method: Method) -> tuple[Any, ...]:
    known = ORDER.index(method.optimizer) if method.optimizer in ORDER else len(ORDER)
    return method.problem, known, method.optimizer, method.label


def _by_seed(values: pl.DataFrame) -> dict[int, dict[int, float]]:
    """Of each method, the value of each seed."""
    found: dict[int, dict[int, float]] = {}
    for method, seed, value in values.filter(pl.col("value").is_not_null()).select("method", "seed", "value").rows():
        found.setdefault(method, {})[seed] = value
    return found


def _contests(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Contest]:
    own, lost = _by_seed(values), Counter(values.filter("lost")["method"].to_list())
    pairs: list[tuple[Problem, Method, Method, list[int]]] = []
    for problem in runs.problems:
        methods = sorted((m for m in runs.methods if m.problem == problem.index), key=_place)
        for a, b in _pairs(methods, settings["against"], own, problem):
            if seeds := sorted(own.get(a.index, {}).keys() & own.get(b.index, {}).keys()):
                pairs.append((problem, a, b, seeds))
    results = [
        statistics.compare(
            [own[a.index][s] for s in seeds], [own[b.index][s] for s in seeds],
            margin(problem, [own[b.index][s] for s in seeds], settings), settings["level"], settings["test"],
        )
        for problem, a, b, seeds in pairs
    ]  # fmt: skip
    statistics.adjust(results)
    contests = []
    for (problem, a, b, _), result in zip(pairs, results, strict=True):
        verdict = _verdict(problem, result, settings["level"])
        contest = Contest(problem, a, b, result, verdict, "")
        contest.sentence = _sentence(contest, settings, len(pairs), lost)
        contests.append(contest)
    return contests


def _pairs(
    methods: list[Method], against: str, own: dict[int, dict[int, float]], problem: Problem
) -> Iterable[tuple[Method, Method]]:
    if against == "all":
        return [(b, a) for a, b in combinations(methods, 2)]
    references = [m for m in methods if m.optimizer == against]
    pairs = []
    for method in methods:
        if references and method.optimizer != against:
            pairs.append((method, _likest(method, references, own, problem)))
    return pairs


def _likest(method: Method, references: list[Method], own: dict[int, dict[int, float]], problem: Problem) -> Method:
    """The reference with the method's settings, as far as both have them; of several, the best."""

    def alike(reference: Method) -> tuple[int, float]:
        shared = sum(
            method.config.get(key) == reference.config.get(key)
            for key in ("lr", "schedule", "clip_norm", "clip_value", "ema")
        )
        values = list(own.get(reference.index, {}).values())
        return shared, problem.sign * float(np.mean(values)) if values else -math.inf

    return max(references, key=alike)


def margin(problem: Problem, reference: Sequence[float], settings: Settings) -> float:
    """The largest difference that is none, in units of the metric."""
    fixed = settings["margin"].get(problem.metric)
    return float(fixed) if fixed is not None else settings["relative_margin"] * abs(float(np.mean(reference)))


def _verdict(problem: Problem, result: Comparison, level: float) -> str:
    if result.p_holm <= level:
        better = problem.sign * result.mean > 0
        small = result.p_equivalent_holm <= level
        return ("better" if better else "worse") + (", by less than matters" if small else "")
    return "equivalent" if result.p_equivalent_holm <= level else "undecided"


def _sentence(contest: Contest, settings: Settings, comparisons: int, lost: Counter[int]) -> str:
    problem, result, level = contest.problem, contest.result, settings["level"]
    a, b = contest.a.label, contest.b.label
    amount = problem.sign * result.mean
    words = f"{a} is {difference(problem, abs(amount))} {'better' if amount >= 0 else 'worse'} than {b}"
    if amount == 0:
        words = f"{a} and {b} come out the same"
    words += f" on {problem.label} ({problem.metric}, {problem.profile} data)"
    n = result.n
    count = f"{n} {'seed' if n == 1 else 'seeds'}"
    low, high = sorted((problem.sign * result.low, problem.sign * result.high))
    size = max(abs(result.mean), result.margin)
    needed = statistics.seeds_to_find(size, result.sd, level, settings["power"], comparisons) if n > 1 else None
    tell = f"about {needed:,} seeds would tell {difference(problem, size)}" if needed else "more seeds would tell"
    if n == 1:
        words += "; one seed tells nothing of its own spread"
    else:
        span = f"an interval of {_signed(problem, low)} to {difference(problem, high, sign=True)}"
        if contest.verdict.startswith(("better", "worse")):
            words += f"; with {count} {span} and p = {number(result.p_holm)} after Holm: it is {contest.verdict}"
        elif contest.verdict == "equivalent":
            words += (
                f"; with {count} {span} lies within {difference(problem, result.margin)}: "
                f"they are equivalent (p = {number(result.p_equivalent_holm)} after Holm)"
            )
        elif low <= 0 <= high:
            words += f"; with {count} {span} cannot rule out zero; {tell}"
        else:
            least = statistics.attainable_p(n) * comparisons
            why = (
                f"no exact test of {count} can go below p = {number(min(1.0, least))} with {comparisons} comparisons"
                if least > level
                else f"p = {number(result.p_holm)} after Holm does not confirm it"
            )
            words += f"; with {count} {span} leaves zero out, but {why}; {tell}"
    for method in (contest.a, contest.b):
        if lost[method.index]:
            words += f"; {lost[method.index]} of {method.label}'s runs diverged and count as their baseline"
    return words + "."


def _targets(runs: Runs, summary: pl.DataFrame, settings: Settings) -> dict[int, float]:
    """The value to be reached on each problem: as set, or the median of what the reference's runs end with."""
    if settings["target"] is not None:
        return {problem.index: float(settings["target"]) for problem in runs.problems}
    found = {}
    for problem in runs.problems:
        of = runs.runs.filter((pl.col("problem") == problem.index) & pl.col("counts") & pl.col("score").is_not_null())
        own = of.filter(pl.col("optimizer") == settings["against"])
        if len(own if len(own) else of):
            found[problem.index] = float((own if len(own) else of)["score"].median())  # type: ignore[arg-type]
    return found


def _times(runs: Runs, targets: dict[int, float]) -> pl.DataFrame:
    """Of each counting run when it first reached its problem's target: epoch, step, seconds; null if it never did."""
    signs = {problem.index: problem.sign for problem in runs.problems}
    own = runs.runs.filter(pl.col("counts") & pl.col("status").is_in(["completed", "diverged"])).select(
        "run", "method", "problem", "seed",
        target=pl.col("problem").replace_strict(targets, default=None, return_dtype=pl.Float64),
        sign=pl.col("problem").replace_strict(signs, return_dtype=pl.Int64),
    )  # fmt: skip
    reached = (
        runs.curves.join(own.select("run", "target", "sign"), on="run")
        .filter(pl.col("metric") * pl.col("sign") >= pl.col("target") * pl.col("sign"))
        .sort("run", "epoch").group_by("run").first().select("run", "epoch", "step", "seconds")
    )  # fmt: skip
    return own.join(reached, on="run", how="left")


def _shared(runs: Runs, profile: str) -> tuple[list[Problem], list[str]]:
    """The problems of a profile, and the labels of the methods that have been at all of them."""
    problems = [p for p in runs.problems if p.profile == profile]
    labels = [{m.label for m in runs.methods if m.problem == p.index} for p in problems]
    names = set.intersection(*labels) if labels else set()
    first = [m for m in runs.methods if problems and m.problem == problems[0].index and m.label in names]
    return problems, [m.label for m in sorted(first, key=_place)]


def _names(runs: Runs) -> dict[tuple[int, str], int]:
    return {(m.problem, m.label): m.index for m in runs.methods}


def _standings(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Standing]:
    own, index, found = _by_seed(values), _names(runs), []
    for profile in dict.fromkeys(problem.profile for problem in runs.problems):
        problems, names = _shared(runs, profile)
        if len(problems) > 1:
            names = [n for n in names if all(own.get(index[p.index, n]) for p in problems)]
            blocks = [p.label for p in problems]
            rows = [[p.sign * float(np.mean([*own[index[p.index, n]].values()])) for n in names] for p in problems]
        else:
            names = [n for n in names if own.get(index[problems[0].index, n])]
            each = [own[index[problems[0].index, n]] for n in names]
            seeds = sorted(set.intersection(*({*one} for one in each))) if each else []
            blocks = [f"{problems[0].label} seed={seed}" for seed in seeds]
            rows = [[problems[0].sign * one[seed] for one in each] for seed in seeds]
        if len(names) < 2 or not blocks:
            continue
        scores_BM = np.array(rows)
        ranks_BM = statistics.ranks(scores_BM)
        without = [np.delete(ranks_BM, i, 0).mean(0) for i in range(len(blocks))] if len(blocks) > 1 else [ranks_BM[0]]
        span = [(float(min(w[i] for w in without)), float(max(w[i] for w in without))) for i in range(len(names))]
        found.append(
            Standing(
                profile,
                names,
                ranks_BM.mean(0).tolist(),
                span,
                blocks,
                statistics.critical_difference(len(names), len(blocks), settings["level"]),
                statistics.friedman_p(scores_BM),
            )
        )
    return found


def _profiles(runs: Runs, times: pl.DataFrame) -> dict[str, tuple[list[str], dict[str, np.ndarray[Any, Any]]]]:
    """Of each data profile with several problems: method names, and times (problem x method) in steps and seconds."""
    index, found = _names(runs), {}
    medians = times.with_columns(pl.col("step", "seconds").cast(pl.Float64).fill_null(math.inf)).group_by("method").agg(
        pl.col("step", "seconds").median()
    )  # fmt: skip
    known = {method: {"steps": step, "seconds": seconds} for method, step, seconds in medians.rows()}
    for profile in dict.fromkeys(problem.profile for problem in runs.problems):
        problems, names = _shared(runs, profile)
        if len(problems) < 2 or len(names) < 2:
            continue
        found[profile] = (
            names,
            {
                unit: np.array(
                    [[known.get(index[p.index, n], {}).get(unit, math.inf) for n in names] for p in problems]
                )
                for unit in ("steps", "seconds")
            },
        )
    return found


# ---- words


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


# ---- tables


def entry_of(problem: Problem) -> Settings | None:
    """What the paper has on this problem, whatever the settings; None if nothing, or the data are not the real ones."""
    task = problem.config["task"]
    for entry in paper()["results"]:
        ours = entry["ours"]
        same = ours["task"] == problem.task and all(task.get(k) == ours[k] for k in ("model", "dataset") if k in ours)
        if same and problem.profile != "tiny":
            found: Settings = entry
            return found
    return None


def protocol_difference(method: Method, task: str) -> str:
    """In what a method's runs are not as the paper's Table 2 has them, in words."""
    row, config = paper()["table2"].get(task), method.config
    if row is None:
        return "not in the paper"
    ours = {"epochs": config["epochs"], "lr": config["lr"], "batch": config["batch_size"]}
    if "switch_step" in config["optimizer"]:
        ours["switch"] = config["switch_epoch"]
    for reading in ("printed", "reconciled"):
        if all(row[reading][key] == value for key, value in ours.items()):
            alike = row["printed"] == row["reconciled"]
            return (
                "none in Table 2" if alike else f"none in Table 2 ({'as printed' if reading == 'printed' else reading})"
            )
    own = row["reconciled"]
    words = [f"{key} {value} (paper {own[key]})" for key, value in ours.items() if value != own[key]]
    return ", ".join(words)


def _result_table(found: Report, problem: Problem) -> Table:
    """In the paper's form: a row an optimizer, ours beside the paper's."""
    entry = entry_of(problem)
    settings, table2 = problem.config, found.summary.filter(pl.col("problem") == problem.index)
    unit = " (%)" if scale(problem) == 100 else ""
    last = "after the last epoch" if found.settings["metric"] == "last" else "of the best epoch"
    about = f"{problem.profile} data, {settings['epochs']} epochs"
    if entry:
        title = f"{entry['task']}, {entry['dataset']}, {_model(problem, entry)}: {problem.metric}{unit} {last}; {about}"
    else:
        title = f"{problem.label}: {problem.metric}{unit} {last}; {about}"
    comparable = entry is not None and entry["ours"]["metric"] == problem.metric
    printed = entry["values"] if entry and comparable else {}
    columns = ["method", "ours", "n", "completed", "diverged", "failed", "unfinished", "best epoch's", "train s"]
    if entry:
        columns += ["paper", "ours - paper", "protocol difference"]
    names = {ours: theirs for theirs, ours in paper()["paper"]["optimizers"].items()}
    rows, methods = [], {m.index: m for m in found.runs.methods}
    factor = entry["ours"]["scale"] if entry else 1
    for row in table2.iter_rows(named=True):
        method = methods[row["method"]]
        cells = [
            Cell(method.label, method.label, method.index),
            Cell(spread(problem, row["mean"], row["sd"]), row["mean"], method.index),
            *(Cell(str(row[k] or 0), row[k] or 0) for k in ("n", "completed", "diverged", "failed", "unfinished")),
            Cell(score(problem, row["best"]), row["best"]), Cell(number(row["seconds"]), row["seconds"]),
        ]  # fmt: skip
        if entry:
            theirs = printed.get(names.get(method.optimizer, "")) or {}
            value, theirs_sd = theirs.get("mean"), theirs.get("spread")
            gap = None if value is None or row["mean"] is None else factor * row["mean"] - value
            digits = 2 if factor == 100 else 4
            cells += [
                Cell(theirs.get("bound", DASH) if value is None else printed_as(value, theirs_sd), value),
                Cell(DASH if gap is None else f"{gap:+.{digits}f}", gap),
                Cell(protocol_difference(method, problem.task)),
            ]  # fmt: skip
        rows.append(cells)
    notes = ["ours: mean ± standard deviation between seeds (n - 1); a diverged run counts as its baseline."]
    trivial = table2["baseline"].mean()
    if isinstance(trivial, float):
        notes.append(f"A predictor that never looks at its input: {score(problem, trivial)}{unit.strip(' ()')}.")
    if entry:
        notes.append(f"paper: {entry['source']}; n is not told, ± is not explained.")
        notes += _order_note(entry, printed, table2, problem, methods)
        if entry["ours"]["metric"] != problem.metric:
            notes.append(f"The paper's {entry['metric']} is not {problem.metric}: no value stands beside ours.")
    elif problem.profile == "tiny":
        notes.append("Tiny data are made up: the paper's values do not stand beside them.")
    return Table(f"results-{problem.index}-{problem.task}-{problem.profile}", title, columns, rows, notes)


def printed_as(value: float, sd: float | None) -> str:
    return f"{value:g} ± {sd:g}" if sd else f"{value:g}"


def _model(problem: Problem, entry: Settings) -> str:
    return problem.config["task"].get("model") or str(entry["model"])


def _order_note(
    entry: Settings, printed: Settings, summary: pl.DataFrame, problem: Problem, methods: dict[int, Method]
) -> list[str]:
    """The paper's order and ours, of the optimizers that both have."""
    names = paper()["paper"]["optimizers"]
    theirs = {names[k]: v["mean"] for k, v in printed.items() if v and v.get("mean") is not None}
    ours = {methods[m].optimizer: value for m, value in summary.select("method", "mean").rows() if value is not None}
    both = [name for name in theirs if name in ours]
    if len(both) < 2:
        return []
    lines = [" > ".join(sorted(both, key=lambda name: -problem.sign * table[name])) for table in (theirs, ours)]
    return [f"Best first: the paper {lines[0]}; ours {lines[1]}" + (" (the same)." if lines[0] == lines[1] else ".")]


def _contest_tables(found: Report) -> list[Table]:
    if not found.contests:
        return []
    level = found.settings["level"]
    share = f"{100 * (1 - level):g} %"
    columns = ["problem", "data", "method", "against", "n", "difference", f"{share} interval", f"{share} bootstrap",
               "p", "p (Holm)", "p equivalent (Holm)", "margin", "verdict"]  # fmt: skip
    rows = []
    for contest in found.contests:
        p, r, f = contest.problem, contest.result, scale(contest.problem)

        def span(low: float, high: float, p: Problem = p) -> Cell:
            if not math.isfinite(low):
                return Cell(DASH)
            return Cell(f"{_signed(p, low)} to {_signed(p, high)}", [low, high])

        rows.append([
            Cell(p.label), Cell(p.profile), Cell(contest.a.label, contest.a.label, contest.a.index),
            Cell(contest.b.label, contest.b.label, contest.b.index), Cell(str(r.n), r.n),
            Cell(_signed(p, r.mean), r.mean), span(r.low, r.high), span(r.bootstrap_low, r.bootstrap_high),
            Cell(number(r.p), r.p), Cell(number(r.p_holm), r.p_holm),
            Cell(number(r.p_equivalent_holm), r.p_equivalent_holm), Cell(number(f * r.margin), r.margin),
            Cell(contest.verdict),
        ])  # fmt: skip
    count = len(found.contests)
    test = "changes of sign (permutation of the mean)" if found.settings["test"] == "permutation" else "signed ranks"
    enough = statistics.seeds_to_attain(level, count)
    notes = [
        f"Differences are method - against, paired by seed, in points where the metric is a share. Positive is "
        f"{'better' if all(c.problem.higher_is_better for c in found.contests) else 'higher, not always better'}.",
        f"p: exact, two-sided, by {test}; Holm over the {count} comparisons of this report, at {level:g} in all. "
        f"{enough} seeds are the fewest that can reach it.",
        f"The interval is Student's below {statistics.ENOUGH_TO_BOOTSTRAP} seeds, where the bootstrap's (BCa) is too "
        "narrow. Each covers by itself.",
        "p equivalent: two one-sided t-tests against the margin, which conf/report.yaml fixes.",
    ]
    return [Table("comparisons", "Is it better?", columns, rows, notes)]


def _signed(problem: Problem, value: float) -> str:
    return f"{100 * value:+.2f}" if scale(problem) == 100 else f"{value:+.3g}"


def _standing_tables(found: Report) -> list[Table]:
    tables = []
    for s in found.standings:
        rows = [
            [Cell(name), Cell(f"{mean:.2f}", mean), Cell(f"{low:.2f} to {high:.2f}", [low, high])]
            for mean, name, (low, high) in sorted(zip(s.mean, s.names, s.span, strict=True))
        ]
        what = "tasks" if len({p.index for p in found.runs.problems if p.profile == s.profile}) > 1 else "seeds"
        notes = [
            f"Blocks are {what}: {', '.join(s.blocks[:8])}{', ...' if len(s.blocks) > 8 else ''}.",
            f"Mean ranks {s.critical:.2f} apart differ (Nemenyi, {found.settings['level']:g})"
            + ("" if math.isnan(s.p) else f"; that none differs: Friedman's p = {number(s.p)}")
            + ".",
        ]
        if what == "seeds":
            notes.append("Seeds of one task: a rank here says nothing of other tasks.")
        columns = ["method", "mean rank", f"with one of the {what} left out"]
        tables.append(Table(f"ranks-{s.profile}", f"Ranks on {s.profile} data (1 is best)", columns, rows, notes))
    return tables


def _improvement_tables(found: Report, values: pl.DataFrame) -> list[Table]:
    """The probability of improvement over the reference, across tasks."""
    runs, settings, tables = found.runs, found.settings, []
    own, index = _by_seed(values), _names(runs)
    for profile in dict.fromkeys(problem.profile for problem in runs.problems):
        problems, names = _shared(runs, profile)
        if settings["against"] not in names or len(names) < 2:
            continue
        rows = []
        for name in names:
            if name == settings["against"]:
                continue
            samples = [
                tuple(
                    [p.sign * v for v in own.get(index[p.index, n], {}).values()] for n in (name, settings["against"])
                )
                for p in problems
            ]
            samples = [(a, b) for a, b in samples if a and b]
            if not samples:
                continue
            value, low, high = statistics.improvement(samples, settings["level"])  # type: ignore[arg-type]
            span = DASH if math.isnan(low) else f"{low:.2f} to {high:.2f}"
            rows.append([Cell(name), Cell(f"{value:.2f}", value), Cell(span, [low, high]),
                         Cell(str(len(samples)), len(samples))])  # fmt: skip
        title = f"Probability that a run beats one of {settings['against']}, on {profile} data"
        share = f"{100 * (1 - settings['level']):g} %"
        notes = ["Mann-Whitney's, averaged over tasks, ties half. The interval is a bootstrap's over seeds, too narrow "
                 f"below {statistics.ENOUGH_TO_BOOTSTRAP} of them."]  # fmt: skip
        tables.append(
            Table(f"improvement-{profile}", title, ["method", "P", f"{share} bootstrap", "tasks"], rows, notes)
        )
    return tables


def _time_tables(found: Report, times: pl.DataFrame) -> list[Table]:
    rows, methods = [], {m.index: m for m in found.runs.methods}
    problems = {p.index: p for p in found.runs.problems}
    inf = pl.col("epoch", "step", "seconds").cast(pl.Float64).fill_null(math.inf)
    medians = times.with_columns(inf).group_by("method").agg(
        pl.col("problem").first(), pl.col("epoch", "step", "seconds").median(),
        reached=pl.col("epoch").is_finite().sum(), n=pl.len(),
    )  # fmt: skip
    for row in sorted(medians.iter_rows(named=True), key=lambda row: _place(methods[row["method"]])):
        problem = problems[row["problem"]]
        target = found.targets.get(problem.index)
        if target is None:
            continue
        never = [
            Cell("never") if math.isinf(row[k]) else Cell(number(row[k]), row[k]) for k in ("epoch", "step", "seconds")
        ]
        label = methods[row["method"]].label
        rows.append([
            Cell(problem.label), Cell(problem.profile), Cell(label, label, row["method"]),
            Cell(score(problem, target), target), Cell(f"{row['reached']} of {row['n']}", row["reached"]), *never,
        ])  # fmt: skip
    if not rows:
        return []
    whose = (
        "as set" if found.settings["target"] is not None else f"the median that {found.settings['against']} ends with"
    )
    columns = ["problem", "data", "method", "target", "reached", "epochs", "steps", "train s"]
    notes = [
        f"Target: {whose}. Medians over seeds of the first epoch at whose end it is reached; a run that never reaches "
        "it counts as infinite."
    ]
    return [Table("time-to-target", "Time to target", columns, rows, notes)]


# ---- notes


def _notes(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    table = runs.runs
    counts = Counter(table["status"].to_list())
    others = [f"{n} {status}" for status, n in sorted(counts.items()) if status != "completed"]
    if others:
        notes.append(f"Of {len(table)} runs {', '.join(others)}; they are counted in the tables.")
    profiles = list(dict.fromkeys(p.profile for p in runs.problems))
    if len(profiles) > 1:
        notes.append(f"Mixed profiles: {', '.join(profiles)} data are all here, in separate tables and statistics.")
    if "subset" in profiles:
        notes.append("subset: real files that are not the published set; not comparable with full.")
    if settings["metric"] == "best":
        notes.append("metric=best: the epoch was chosen by the test split, which flatters whoever fluctuates more.")
    for problem in runs.problems:
        of = table.filter((pl.col("problem") == problem.index) & pl.col("counts"))
        for key, word in zip(ENVIRONMENT, ("hardware", "commits", "versions"), strict=True):
            several = of[key].drop_nulls().unique().sort().to_list()
            if len(several) > 1:
                notes.append(f"{problem.label} ({problem.profile}): mixed {word}: {_differing(several)}.")
        budgets = Counter(m.optimizer for m in runs.methods if m.problem == problem.index)
        if len(set(budgets.values())) > 1:
            words = ", ".join(f"{name} {n}" for name, n in sorted(budgets.items()))
            notes.append(f"{problem.label} ({problem.profile}): unequal tuning budgets, in settings tried: {words}.")
        methods = of.filter(pl.col("status").is_in(["completed", "diverged"]))
        seeds = {frozenset(own) for (own,) in methods.group_by("method").agg("seed").select("seed").rows()}
        if len(seeds) > 1:
            notes.append(f"{problem.label} ({problem.profile}): not all methods have the same seeds; only pairs count.")
    missing = values.filter("lost" & pl.col("value").is_null()) if "lost" in values.columns else values.clear()
    if len(missing):
        notes.append(f"{len(missing)} diverged runs have neither a baseline nor another run's value to count as.")
    return notes


def _differing(several: list[str]) -> str:
    """A few of several strings, cut where they are the same."""
    shown = several[:3]
    return " | ".join(one[:60] + ("..." if len(one) > 60 else "") for one in shown) + (
        f" and {len(several) - 3} more" if len(several) > 3 else ""
    )


# ---- planning


def plan(settings: Settings, found: Report | None) -> list[Table]:
    """Which p is attainable with n seeds, and how many seeds a difference needs."""
    level, power = settings["level"], settings["power"]
    wanted = settings["plan"]
    comparisons = settings["comparisons"] or (len(found.contests) if found and found.contests else 1)
    rows = [
        [Cell(str(n), n), Cell(number(statistics.attainable_p(n)), statistics.attainable_p(n)),
         Cell(number(min(1.0, statistics.attainable_p(n) * comparisons))),
         Cell("yes" if statistics.attainable_p(n) * comparisons <= level else "no")]
        for n in range(1, max(12, statistics.seeds_to_attain(level, comparisons)) + 1)
    ]  # fmt: skip
    word = f"{comparisons} comparison{'s' if comparisons > 1 else ''}"
    tables = [
        Table("attainable", f"The smallest p of an exact paired test, alone and with {word} (Holm)",
              ["seeds", "p", f"p (Holm, {comparisons})", f"reaches {level:g}"], rows)
    ]  # fmt: skip
    sources: list[tuple[str, str, float]] = []
    if settings["sd"] is not None:
        sources = [("any", "as given", float(settings["sd"]))]
    elif found:
        sources = [
            (f"{c.problem.label} ({c.problem.profile})", f"{c.a.label} - {c.b.label}", c.result.sd)
            for c in found.contests if c.result.n > 1
        ]  # fmt: skip
    if not sources:
        raise ConfigError("plan: the spread is not known: say sd=..., or name runs of two methods with 2 seeds or more")
    rows = []
    for problem, whose, sd in sources:
        needed = statistics.seeds_to_find(float(wanted), sd, level, power, comparisons)
        alone = statistics.seeds_to_find(float(wanted), sd, level, power)
        many = "over a million"
        rows.append([
            Cell(problem), Cell(whose), Cell(number(sd), sd), Cell(number(wanted), wanted),
            Cell(str(alone or many), alone), Cell(str(needed or many), needed),
        ])  # fmt: skip
    tables.append(
        Table(
            "seeds",
            f"Seeds that find a true difference of {number(wanted)} with probability {power:g}",
            ["problem", "differences of", "their sd", "difference", "seeds, alone", f"seeds, {word}"],
            rows,
            [
                "By the power of Student's paired test, and at least what an exact test needs. A spread known from few "
                "seeds is itself uncertain: of 3 by a factor of 0.5 to 6 (95 %)."
            ],
        )
    )
    return tables
