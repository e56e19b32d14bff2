"""What runs say, in numbers: which method is better, by how much, how sure that is and what it cost."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from ..config.settle import Settings
from ..result import FINAL
from . import statistics
from .read import ORDER, Method, Problem, Runs
from .statistics import Comparison
from .words import BOUNDED, Table, difference, number, scale, score, signed


@dataclass
class Contest:
    """Two methods on a problem, compared.

    The verdict is better, worse (both perhaps with ", by less than matters" or ", by ranks"), equivalent, or undecided
    (perhaps with ": no spread between seeds").
    """

    problem: Problem
    a: Method
    b: Method
    result: Comparison
    verdict: str
    sentence: str


@dataclass
class Standing:
    """Mean ranks of methods (1 is best) over blocks, of which there are at least two: problems, or seeds of one."""

    kind: str  # of the problems; see Problem.kind
    names: list[str]
    mean: list[float]
    span: list[tuple[float, float]]  # of the mean rank with one block left out
    blocks: list[str]
    unit: str  # what a block is: problem or seed
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
    floors: dict[int, float] = field(default_factory=dict)  # by problem with diverged runs: what they count as


def floors_of(runs: Runs) -> dict[int, float]:
    """By problem, what a diverged run counts as (see statistics.worth); infinitely bad where there is no baseline."""
    found = {}
    for problem in runs.problems:
        of = runs.runs.filter(pl.col("counts") & (pl.col("problem") == problem.index))
        baseline, worst = (_worst(of[key], problem) for key in ("baseline", "score"))
        value = statistics.worth(None, baseline, worst, problem.higher_is_better)
        found[problem.index] = -problem.sign * math.inf if value is None else value
    return found


def _worst(values: pl.Series, problem: Problem) -> float | None:
    return values.min() if problem.higher_is_better else values.max()  # type: ignore[return-value]


def values_of(runs: Runs, floors: dict[int, float]) -> pl.DataFrame:
    """One value a (method, seed): the score; of `lost` runs, which diverged or ended with no finite score, the floor.

    An infinitely bad value ranks below every completed run's, and no mean or difference is made of it.
    """
    lost = pl.col("status").is_in(FINAL) & pl.col("score").is_null()
    floor = pl.col("problem").replace_strict(floors, return_dtype=pl.Float64)
    return runs.runs.filter("counts").with_columns(lost=lost, value=pl.when(lost).then(floor).otherwise("score"))


def summarize(runs: Runs, values: pl.DataFrame) -> pl.DataFrame:
    """A row a method: problem, n (values), lost, mean, sd, best, seconds, and how many runs came to what.

    mean and sd are null where a value is infinite; best and seconds are of completed runs.
    """
    counts = runs.runs.group_by("method", maintain_order=True).agg(
        problem=pl.col("problem").first(), optimizer=pl.col("optimizer").first(), runs=pl.len(),
        completed=(pl.col("status") == "completed").sum(), diverged=(pl.col("status") == "diverged").sum(),
        failed=pl.col("status").is_in(["failed", "broken"]).sum(),
        unfinished=pl.col("status").is_in(["interrupted", "running", "stopped"]).sum(),
    )  # fmt: skip
    value, completed = pl.col("value"), pl.col("status") == "completed"
    known = value.is_finite().all()
    numbers = values.group_by("method", maintain_order=True).agg(
        n=value.count(), lost=pl.col("lost").sum(), mean=pl.when(known).then(value.mean()),
        sd=pl.when(known).then(value.std()), best=pl.col("best").filter(completed).mean(),
        seconds=pl.col("seconds").filter(completed).mean(), baseline=pl.col("baseline").mean(),
        memory=pl.col("peak_memory_bytes").max(), parameters=pl.col("parameters").first(),
    )  # fmt: skip
    order = {m.index: i for i, m in enumerate(sorted(runs.methods, key=place))}
    return (
        counts.join(numbers, on="method", how="left", maintain_order="left")
        .with_columns(place=pl.col("method").replace_strict(order))
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


def contests_of(runs: Runs, values: pl.DataFrame, floors: dict[int, float], settings: Settings) -> list[Contest]:
    own, lost = by_seed(values), set(values.filter("lost").select("method", "seed").rows())
    pairs: list[tuple[Problem, Method, Method, list[int]]] = []
    for problem in runs.problems:
        methods = sorted((m for m in runs.methods if m.problem == problem.index), key=place)
        for a, b in _pairs(methods, settings["against"]):
            if seeds := sorted(own.get(a.index, {}).keys() & own.get(b.index, {}).keys()):
                pairs.append((problem, a, b, seeds))
    results = [
        statistics.compare(
            [own[a.index][s] for s in seeds], [own[b.index][s] for s in seeds],
            margin(problem, [own[b.index][s] for s in seeds if (b.index, s) not in lost], settings),
            settings["level"], settings["test"], bound=1.0 if problem.metric in BOUNDED else math.inf,
            void=[{(a.index, s), (b.index, s)} <= lost for s in seeds],
        )
        for problem, a, b, seeds in pairs
    ]  # fmt: skip
    statistics.adjust(results)
    contests = []
    for (problem, a, b, seeds), result in zip(pairs, results, strict=True):
        verdict = _verdict(problem, result, settings["level"])
        contest = Contest(problem, a, b, result, verdict, "")
        diverged = {m.label: sum((m.index, s) in lost for s in seeds) for m in (a, b)}
        contest.sentence = _sentence(contest, settings, len(pairs), diverged, floors[problem.index])
        contests.append(contest)
    return contests


def _pairs(methods: list[Method], against: str) -> Iterable[tuple[Method, Method]]:
    if against == "all":
        return [(b, a) for a, b in combinations(methods, 2)]
    references = [m for m in methods if m.optimizer == against]
    return [(m, other) for m in methods if m.optimizer != against for other in _likest(m, references)]


def _likest(method: Method, references: list[Method]) -> list[Method]:
    """The references with the method's settings, as far as both have them.

    Of several that are equally like it all are taken: to choose the best by its scores would favour it in the test.
    """

    def alike(reference: Method) -> int:
        keys = ("lr", "schedule", "clip_norm", "clip_value", "ema")
        return sum(method.config.get(key) == reference.config.get(key) for key in keys)

    most = max(map(alike, references), default=0)
    return [reference for reference in references if alike(reference) == most]


def margin(problem: Problem, reference: Sequence[float], settings: Settings) -> float:
    """The largest difference that is none, in units of the metric; 0 if it is relative to a reference without scores.

    Args:
        reference: scores of its completed runs; what diverged ones count as would widen the margin.
    """
    fixed = settings["margin"].get(problem.metric)
    if fixed is not None:
        return float(fixed)
    return settings["relative_margin"] * abs(float(np.mean(reference))) if reference else 0.0


def _verdict(problem: Problem, result: Comparison, level: float) -> str:
    if result.n > 1 and not result.has_spread:
        return "undecided: no spread between seeds"
    is_unknown = math.isnan(result.mean)
    agrees = is_unknown or np.sign(result.mean) == result.direction  # signed ranks may say otherwise than the mean
    if result.p_holm <= level and agrees:
        small = ", by less than matters" if result.p_equivalent_holm <= level else ""
        return ("better" if problem.sign * result.direction > 0 else "worse") + (", by ranks" if is_unknown else small)
    return "equivalent" if result.p_equivalent_holm <= level else "undecided"


def _sentence(contest: Contest, settings: Settings, comparisons: int, diverged: dict[str, int], floor: float) -> str:
    problem, result, level = contest.problem, contest.result, settings["level"]
    a, b = contest.a.label, contest.b.label
    where = f"on {problem.label} ({problem.measure}, {problem.profile} data)"
    n = result.n
    count = f"{n} {'seed' if n == 1 else 'seeds'}"
    p = f"p = {number(result.p_holm)} after Holm" + (
        f", sampled ({statistics.RESAMPLES:,})" if result.is_sampled else ""
    )
    lost = " and ".join(f"{k} of {name}'s" for name, k in diverged.items() if k)
    if math.isnan(result.mean):
        words = (
            f"{a} against {b} {where}: {lost} runs on {count} diverged; without a baseline they rank below every "
            f"completed one, and the difference has no size; signed ranks give {p}: "
        )
        return words + ("it is undecided." if contest.verdict == "undecided" else f"{a} is {contest.verdict}.")
    amount = problem.sign * result.mean
    words = f"{a} is {difference(problem, abs(amount))} {'better' if amount >= 0 else 'worse'} than {b}"
    if amount == 0:
        words = f"{a} and {b} come out the same"
    words += f" {where}"
    low, high = sorted((problem.sign * result.low, problem.sign * result.high))
    size = max(abs(result.mean), result.margin)
    needed = statistics.seeds_to_find(size, result.sd, level, settings["power"], comparisons) if n > 1 else None
    tell = f"about {needed:,} seeds would tell {difference(problem, size)}" if needed else "more seeds would tell"
    if n == 1:
        words += "; one seed tells nothing of its own spread"
    elif not result.has_spread:
        words += f"; with {count} every difference is the same: undecided, no spread between seeds is no evidence"
    else:
        span = f"an interval of {signed(problem, low)} to {difference(problem, high, sign=True)}"
        if contest.verdict.startswith(("better", "worse")):
            words += f"; with {count} {span} and {p}: it is {contest.verdict}"
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
                f"no test of {count} can go below p = {number(min(1.0, least))} with {comparisons} comparisons"
                if least > level
                else f"{p} does not confirm it"
            )
            words += f"; with {count} {span} leaves zero out, but {why}; {tell}"
    if lost:
        words += f"; {lost} runs diverged and count as {floor_words(problem, floor)}"
    return words + "."


def floor_words(problem: Problem, floor: float) -> str:
    """What a diverged run counts as, in words."""
    return f"the worse of baseline and worst seen, {score(problem, floor)}{' %' if scale(problem) == 100 else ''}"


def targets_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> dict[int, float]:
    """The value to be reached on each problem: as set, or the median of what the reference's runs end with.

    Of several settings of the reference the one with the best median; where it has no run, all runs. Of an even number
    of runs the worse of the two in the middle, which more than half of them reach. No target where that run diverged.
    """
    if settings["target"] is not None:
        return {problem.index: float(settings["target"]) for problem in runs.problems}
    found = {}
    for problem in runs.problems:
        of = values.filter((pl.col("problem") == problem.index) & pl.col("value").is_not_null())
        rows = of.select("method", "optimizer", "value", "lost").rows()
        own = [row for row in rows if row[1] == settings["against"]]
        ends: dict[int | None, list[float]] = {}
        for method, _, value, lost in own or rows:
            ends.setdefault(method if own else None, []).append(-math.inf if lost else problem.sign * value)
        best = max((sorted(end)[(len(end) - 1) // 2] for end in ends.values()), default=-math.inf)
        if math.isfinite(best):
            found[problem.index] = problem.sign * best
    return found


def times_of(runs: Runs, targets: dict[int, float]) -> pl.DataFrame:
    """Of each counting run when it first reached its problem's target: epoch, step, seconds; null if it never did."""
    signs = {problem.index: problem.sign for problem in runs.problems}
    own = runs.runs.filter(pl.col("counts") & pl.col("status").is_in(FINAL)).select(
        "run", "method", "problem", "seed",
        target=pl.col("problem").replace_strict(targets, default=None, return_dtype=pl.Float64),
        sign=pl.col("problem").replace_strict(signs, return_dtype=pl.Int64),
    )  # fmt: skip
    target = pl.col("target") * pl.col("sign") - statistics.RESOLUTION * pl.col("target").abs()
    reached = (
        runs.curves.join(own.select("run", "target", "sign"), on="run", maintain_order="left")
        .filter(pl.col("metric") * pl.col("sign") >= target)
        .sort("run", "epoch").group_by("run", maintain_order=True).first().select("run", "epoch", "step", "seconds")
    )  # fmt: skip
    return own.join(reached, on="run", how="left", maintain_order="left")


def kinds(runs: Runs) -> list[str]:
    """Of the problems; only those of one kind are seen together."""
    return list(dict.fromkeys(problem.kind for problem in runs.problems))


def shared(runs: Runs, kind: str) -> tuple[list[Problem], list[str]]:
    """The problems of a kind, and the names of the methods that have been at all of them."""
    problems = [p for p in runs.problems if p.kind == kind]
    named = [{m.name for m in runs.methods if m.problem == p.index} for p in problems]
    names = set.intersection(*named) if named else set()
    first = [m for m in runs.methods if problems and m.problem == problems[0].index and m.name in names]
    return problems, [m.name for m in sorted(first, key=place)]


def indices(runs: Runs) -> dict[tuple[int, str], int]:
    return {(m.problem, m.name): m.index for m in runs.methods}


def standings_of(runs: Runs, values: pl.DataFrame, settings: Settings) -> list[Standing]:
    own, index, found = by_seed(values), indices(runs), []
    for kind in kinds(runs):
        problems, names = shared(runs, kind)
        names = [n for n in names if all(own.get(index[p.index, n]) for p in problems)]
        blocks: list[str] = []
        rows: list[Any] = []
        for problem in problems:
            each = [own[index[problem.index, n]] for n in names]
            seeds = sorted(set.intersection(*({*one} for one in each))) if each else []
            scores_SM = np.array([[problem.sign * one[seed] for one in each] for seed in seeds])
            if len(problems) == 1:
                rows, blocks = [*scores_SM], [f"{problem.label} seed={seed}" for seed in seeds]
            elif seeds:
                # Without a mean the order on the problem is that of the mean ranks.
                is_known = np.isfinite(scores_SM).all()
                rows.append(scores_SM.mean(0) if is_known else -statistics.ranks(scores_SM).mean(0))
                blocks.append(problem.label)
        if len(names) < 2 or len(blocks) < 2:
            continue
        scores_BM = np.array(rows)
        ranks_BM = statistics.ranks(scores_BM)
        without = [np.delete(ranks_BM, i, 0).mean(0) for i in range(len(blocks))]
        span = [(float(min(w[i] for w in without)), float(max(w[i] for w in without))) for i in range(len(names))]
        found.append(
            Standing(
                kind,
                names,
                ranks_BM.mean(0).tolist(),
                span,
                blocks,
                "seed" if len(problems) == 1 else "problem",
                statistics.critical_difference(len(names), len(blocks), settings["level"]),
                statistics.friedman_p(ranks_BM),
            )
        )
    return found


def profiles_of(runs: Runs, times: pl.DataFrame) -> dict[str, tuple[list[str], dict[str, np.ndarray[Any, Any]]]]:
    """Of each kind with several problems that have a target: method names, and times (problem x method) in steps and
    seconds."""
    index, found = indices(runs), {}
    medians = times.with_columns(pl.col("step", "seconds").cast(pl.Float64).fill_null(math.inf)).group_by(
        "method", maintain_order=True
    ).agg(pl.col("step", "seconds").median())  # fmt: skip
    known = {method: {"steps": step, "seconds": seconds} for method, step, seconds in medians.rows()}
    with_target = set(times.filter(pl.col("target").is_not_null())["problem"])
    for kind in kinds(runs):
        problems, names = shared(runs, kind)
        problems = [p for p in problems if p.index in with_target]
        if len(problems) < 2 or len(names) < 2:
            continue
        found[kind] = (
            names,
            {
                unit: np.array(
                    [[known.get(index[p.index, n], {}).get(unit, math.inf) for n in names] for p in problems]
                )
                for unit in ("steps", "seconds")
            },
        )
    return found
