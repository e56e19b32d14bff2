"""What runs say, in numbers: which method is better, by how much, how sure that is and what it cost."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from ..config import Settings
from . import statistics
from .read import ORDER, Method, Problem, Runs
from .statistics import Comparison
from .words import Table, difference, number, signed


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


def values_of(runs: Runs) -> pl.DataFrame:
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
    order = {method.index: place(method) for method in runs.methods}
    return (
        counts.join(numbers, on="method", how="left")
        .with_columns(place=pl.col("method").replace_strict({m: i for i, m in enumerate(sorted(order, key=order.get))}))  # type: ignore[arg-type]
        .sort("problem", "place")
    )


def place(method: Method) -> tuple[Any, ...]:
    known = ORDER.index(method.optimizer) if method.optimizer in ORDER else len(ORDER)
    return method.problem, known, method.optimizer, method.label


def by_seed(values: pl.DataFrame) -> dict[int, dict[int, float]]:
    """Of each method, the value of each seed."""
    found: dict[int, dict[int, float]] = {}
    for method, seed, value in values.filter(pl.col("value").is_not_null()).select("method", "seed", "value").rows():
        found.setdefault(method, {})[seed] = value
    return found


def contests_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Contest]:
    own, lost = by_seed(values), Counter(values.filter("lost")["method"].to_list())
    pairs: list[tuple[Problem, Method, Method, list[int]]] = []
    for problem in runs.problems:
        methods = sorted((m for m in runs.methods if m.problem == problem.index), key=place)
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
        span = f"an interval of {signed(problem, low)} to {difference(problem, high, sign=True)}"
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


def targets_of(runs: Runs, summary: pl.DataFrame, settings: Settings) -> dict[int, float]:
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


def times_of(runs: Runs, targets: dict[int, float]) -> pl.DataFrame:
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


def shared(runs: Runs, profile: str) -> tuple[list[Problem], list[str]]:
    """The problems of a profile, and the labels of the methods that have been at all of them."""
    problems = [p for p in runs.problems if p.profile == profile]
    labels = [{m.label for m in runs.methods if m.problem == p.index} for p in problems]
    names = set.intersection(*labels) if labels else set()
    first = [m for m in runs.methods if problems and m.problem == problems[0].index and m.label in names]
    return problems, [m.label for m in sorted(first, key=place)]


def indices(runs: Runs) -> dict[tuple[int, str], int]:
    return {(m.problem, m.label): m.index for m in runs.methods}


def standings_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Standing]:
    own, index, found = by_seed(values), indices(runs), []
    for profile in dict.fromkeys(problem.profile for problem in runs.problems):
        problems, names = shared(runs, profile)
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


def profiles_of(runs: Runs, times: pl.DataFrame) -> dict[str, tuple[list[str], dict[str, np.ndarray[Any, Any]]]]:
    """Of each data profile with several problems: method names, and times (problem x method) in steps and seconds."""
    index, found = indices(runs), {}
    medians = times.with_columns(pl.col("step", "seconds").cast(pl.Float64).fill_null(math.inf)).group_by("method").agg(
        pl.col("step", "seconds").median()
    )  # fmt: skip
    known = {method: {"steps": step, "seconds": seconds} for method, step, seconds in medians.rows()}
    for profile in dict.fromkeys(problem.profile for problem in runs.problems):
        problems, names = shared(runs, profile)
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
