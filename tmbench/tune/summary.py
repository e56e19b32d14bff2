"""The result of a study: what was used, chosen and confirmed, how sure the means are, and what a person sees of it."""

import math
import statistics
from dataclasses import asdict
from itertools import combinations

import numpy as np
from rich.console import Console
from scipy import stats

from ..config.identity import world_size
from ..config.settle import Settings
from ..report import formats
from ..report.formats import Cell, Table
from ..report.statistics import RESOLUTION, has_spread, worth
from ..result import BOUNDED, Result, shown, versions
from ..runs.show import duration
from .plan import Contender, Plan
from .space import values_of, words_of
from .trials import Choices, Outcome, Trial, load_optuna

SCHEMA = 3  # of a study's result.json
LEVEL = 0.95  # of intervals
Limits = tuple[float, float]  # between which a mean must be
JUDGED_BY = "the headline metric after the last epoch"


def device_seconds(contender: Contender, result: Result) -> float:
    """What a run cost here: training and evaluating its epochs, less those that came from a shared trunk."""
    return result.own_seconds * world_size(contender.cfg)


def result_of(plan: Plan, trials: dict[str, list[Trial]], chosen: Choices, runs: dict[str, list[Result]]) -> Settings:
    """The content of result.json; `runs` are the confirming ones."""
    example = next(run for each in runs.values() for run in each)
    limits = (0.0, 1.0) if example.metric in BOUNDED else (-math.inf, math.inf)
    higher, baseline = example.higher_is_better, example.baseline.get(example.headline)
    scores = [value for each in runs.values() for run in each if (value := run.score) is not None]
    floor = worth(None, baseline, (min if higher else max)(scores, default=None), higher)
    return {
        "schema_version": SCHEMA, "name": plan.folder.name, "task": example.task, "profile": example.profile,
        "split": example.split, "metric": example.metric, "higher_is_better": higher, "command": plan.command,
        "budget": {
            "trials": plan.settings["trials"], "epochs": plan.contenders[0].cfg["epochs"], "seed": plan.seed,
            **{key: plan.settings[key] for key in ("sampler", "pruner")},
        },
        "validation": {
            "share": plan.settings["validation"], "of": "the training examples, the same ones in every trial",
            "judged_by": JUDGED_BY,
        },
        "test": {
            "choice_frozen": chosen.frozen, "read_only_after_it": not chosen.begun_before,
            "runs_begun_before": chosen.begun_before, "diverged_count_as": floor,
            "judged_by": f"{JUDGED_BY}; nothing is chosen by it",
        },
        "optimizers": {
            c.name: {
                **_tried(c, trials[c.name]), "choice": (choice := chosen.choices[c.name]) and asdict(choice),
                "confirmation": _confirmation(c, runs[c.name], floor, limits),
            }
            for c in plan.contenders
        },
        "differences": {
            f"{a.name} - {b.name}": _difference(runs[a.name], runs[b.name], floor, limits)
            for a, b in combinations(plan.contenders, 2)
        },
        "versions": {**versions(), "optuna": load_optuna().__version__}, "hardware": example.hardware,
        "git_commit": example.git_commit, "data_digest": example.data_digest,
    }  # fmt: skip


def _tried(contender: Contender, trials: list[Trial]) -> Settings:
    """The trials of an optimizer, how they ended, and what they cost."""
    outcomes = [trial.outcome or Outcome("failed") for trial in trials]
    return {
        "space": contender.space,
        "used": {
            "trials": len(trials),
            **{status: sum(o.status == status for o in outcomes) for status in ("completed", "diverged", "pruned")},
            "without value": sum(o.status == "completed" and o.value is None for o in outcomes),
            "known_before": sum(trial.known_before for trial in trials),
            **{key: sum(getattr(o, key) for o in outcomes) for key in ("device_seconds", "seconds")},
        },
        "trials": [
            {"number": trial.number, "run": trial.run, "known_before": trial.known_before,
             "values": values_of(contender.space, trial.params), **asdict(outcome)}
            for trial, outcome in zip(trials, outcomes, strict=True)
        ],
    }  # fmt: skip


def _confirmation(contender: Contender, runs: list[Result], floor: float | None, limits: Limits) -> Settings:
    told: list[Settings] = [
        {"seed": run.seed, "status": run.status, "value": run.score, "run": run.run_id, "command": run.command,
         "device_seconds": device_seconds(contender, run), "counts_as": _counts_as(run, floor)}
        for run in runs
    ]  # fmt: skip
    about = summary([one["counts_as"] for one in told], limits)
    return {**about, "diverged": sum(one["value"] is None for one in told), "runs": told}


def _difference(first: list[Result], second: list[Result], floor: float | None, limits: Limits) -> Settings:
    """The first optimizer less the second on the same seeds; of none if one of them has no choice."""
    low, high = limits
    pairs = list(zip(first, second, strict=False))
    counted = [(_counts_as(a, floor), _counts_as(b, floor)) for a, b in pairs]
    values = [None if a is None or b is None else a - b for a, b in counted]
    # Scores come as float32: equal ones come out a little apart, which is no spread.
    tolerances = [RESOLUTION * max(abs(a or 0.0), abs(b or 0.0)) for a, b in counted]
    diverged = sum(a.score is None or b.score is None for a, b in pairs)
    return {**summary(values, (low - high, high - low), tolerances), "diverged": diverged}


def _counts_as(run: Result, floor: float | None) -> float | None:
    return floor if (value := run.score) is None else value


def summary(values: list[float | None], limits: Limits, tolerances: list[float] | None = None) -> Settings:
    """Mean, deviation and Student's interval of the mean; None without a spread, or if a run has no value.

    Args:
        values: one for each seed; None for a run that diverged and has no value.
        limits: where the interval ends.
        tolerances: how far equal values may lie apart, one for each seed, see report.statistics; None: not at all.
    """
    known = [value for value in values if value is not None]
    all_known = len(known) == len(values) > 0
    mean = statistics.fmean(known) if all_known else None
    deviation = statistics.stdev(known) if all_known and len(known) > 1 else None
    if deviation and tolerances and not has_spread(np.array(known), np.array(tolerances)):
        deviation = 0.0
    interval = None
    if mean is not None and deviation:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1)) * deviation / math.sqrt(len(known))
        interval = [max(mean - half, limits[0]), min(mean + half, limits[1])]
    return {"n": len(values), "mean": mean, "deviation": deviation, "level": LEVEL, "interval": interval}


def show(result: Settings, console: Console) -> None:
    """Prints a line for each optimizer, the differences, and what to know of them."""
    metric, test = f"{result['split']}/{result['metric']}", result["test"]
    formats.console(_lines(result, metric), console)
    for name, difference in result["differences"].items():
        told = f"{shown(difference['mean'], metric)} ({interval(difference, metric)})".replace(" %", " points")
        console.print(f"{name}   {told}, paired by seed", highlight=False)
    if any(optimizer["confirmation"]["diverged"] for optimizer in result["optimizers"].values()):
        told = "they are worse than every completed run, by an unknown amount: no mean, no interval"
        if (floor := test["diverged_count_as"]) is not None:
            told = f"they count as the worse of the baseline and the worst score, {shown(floor, metric)}"
        console.print(f"diverged   {told}", highlight=False)
    told = f"read only after the choice was frozen, {test['choice_frozen']}"
    if begun := len(test["runs_begun_before"]):
        told = f"[yellow]{begun} of the confirming runs were begun before the choice, by another command[/]"
    console.print(f"test       {told}", highlight=False)


def interval(summary: Settings, metric: str) -> str:
    """A summary's interval, or why there is none."""
    count = f"n={summary['n']}" + (f", {summary['diverged']} diverged" if summary["diverged"] else "")
    if summary["interval"] is None:
        why = "no spread between seeds, " if summary["deviation"] == 0 else ""
        return f"{count}: {why}no interval"
    low, high = (shown(end, metric) for end in summary["interval"])
    return f"{low} to {high}, {count}"


def _lines(result: Settings, metric: str) -> Table:
    budget = result["budget"]
    title = f"{result['task']}: {budget['trials']} trials of {budget['epochs']} epochs each, by {budget['sampler']}"
    columns = ["optimizer", "choice", "validation", "trials", "device time", metric, f"{LEVEL:.0%} interval"]
    lines = Table("study", f"{title}   {result['profile']} data", columns, [])
    for name, optimizer in result["optimizers"].items():
        used, choice, confirmed = optimizer["used"], optimizer["choice"], optimizer["confirmation"]
        bad = [f"{used[status]} {status}" for status in ("diverged", "pruned", "without value") if used[status]]
        texts = (
            name, words_of(choice["values"]) if choice else "none: no trial reached a finite value",
            shown(choice and choice["value"], metric), ", ".join([str(used["trials"]), *bad]),
            duration(used["device_seconds"]), shown(confirmed["mean"], metric), interval(confirmed, metric),
        )  # fmt: skip
        lines.rows.append([Cell(text) for text in texts])
    return lines
