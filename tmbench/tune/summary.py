"""The result of a study: what was used, chosen and confirmed, and how sure the means and differences are."""

import math
import statistics
from dataclasses import asdict
from itertools import combinations

import numpy as np

from ..config.settle import Settings
from ..report.statistics import RESOLUTION, has_spread, worth
from ..result import BOUNDED, Result, versions
from .plan import Contender, Plan
from .records import Choice, Choices, Outcome, Trial
from .runner import device_seconds, score
from .sampling import load_optuna
from .space import values_of

SCHEMA = 2  # of a study's result.json
LEVEL = 0.95  # of intervals
Limits = tuple[float, float]  # between which a mean must be
JUDGED_BY = "the headline metric after the last epoch"


def result_of(plan: Plan, trials: dict[str, list[Trial]], chosen: Choices, runs: dict[str, list[Result]]) -> Settings:
    """The content of result.json; `runs` are the confirming ones."""
    example = next(run for each in runs.values() for run in each)
    limits = (0.0, 1.0) if example.metric in BOUNDED else (-math.inf, math.inf)
    higher = example.higher_is_better
    scores = [value for each in runs.values() for run in each if (value := score(run)) is not None]
    floor = worth(
        None, example.baseline.get(example.headline), (min if higher else max)(scores, default=None), higher
    )  # fmt: skip
    return {
        "schema_version": SCHEMA, "name": plan.name, "task": plan.task, "profile": example.profile,
        "headline": example.headline, "higher_is_better": higher, "command": plan.command,
        "budget": {
            "trials": plan.settings["trials"], "epochs": plan.contenders[0].epochs, "seed": plan.seed,
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
            c.name: _used(c, trials[c.name]) | _confirmed(c, chosen.choices[c.name], runs[c.name], floor, limits)
            for c in plan.contenders
        },
        "differences": {
            f"{a.name} - {b.name}": _difference(runs[a.name], runs[b.name], floor, limits)
            for a, b in combinations(plan.contenders, 2)
        },
        "versions": {**versions(), "optuna": load_optuna().__version__}, "hardware": example.hardware,
        "git_commit": example.git_commit, "data_digest": example.data_digest,
    }  # fmt: skip


def summary(values: list[float | None], limits: Limits, tolerances: list[float] | None = None) -> Settings:
    """Mean, deviation and Student's interval of the mean.

    Args:
        values: one for each seed; None for a run that diverged and has no value. Then there is no mean and no interval.
        limits: where the interval ends.
        tolerances: how far equal values may lie apart, one for each seed, see report.statistics; None: not at all.

    Returns:
        None in place of what does not exist. One seed, or seeds without a spread, give no interval: they are no
        evidence.
    """
    known = [value for value in values if value is not None]
    all_known = len(known) == len(values) > 0
    mean = statistics.fmean(known) if all_known else None
    deviation = statistics.stdev(known) if all_known and len(known) > 1 else None
    if deviation and tolerances and not has_spread(np.array(known), np.array(tolerances)):
        deviation = 0.0
    interval = None
    if mean is not None and deviation:
        from scipy.stats import t

        half = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * deviation / math.sqrt(len(known))
        interval = [max(mean - half, limits[0]), min(mean + half, limits[1])]
    return {"n": len(values), "mean": mean, "deviation": deviation, "level": LEVEL, "interval": interval}


def _used(contender: Contender, trials: list[Trial]) -> Settings:
    """The trials of an optimizer, and what they cost."""
    outcomes = [trial.outcome or Outcome("failed") for trial in trials]
    statuses = [outcome.status for outcome in outcomes]
    return {
        "space": contender.space,
        "used": {
            "trials": len(trials),
            **{status: statuses.count(status) for status in ("completed", "diverged", "pruned")},
            "without value": sum(o.status == "completed" and o.value is None for o in outcomes),
            "known_before": sum(trial.known_before for trial in trials),
            **{key: sum(getattr(o, key) for o in outcomes) for key in ("device_seconds", "seconds")},
        },
        "trials": [
            {**{key: getattr(trial, key) for key in ("number", "run", "known_before")},
             "values": values_of(contender.space, trial.params), **asdict(outcome)}
            for trial, outcome in zip(trials, outcomes, strict=True)
        ],
    }  # fmt: skip


def _confirmed(
    contender: Contender, choice: Choice | None, runs: list[Result], floor: float | None, limits: Limits
) -> Settings:
    counted = [
        {"seed": run.seed, "status": run.status, "value": score(run), "run": run.run_id, "command": run.command,
         "device_seconds": device_seconds(contender, run), "counts_as": _counts_as(run, floor)}
        for run in runs
    ]  # fmt: skip
    about = summary([_counts_as(run, floor) for run in runs], limits)
    diverged = sum(score(run) is None for run in runs)
    return {"choice": choice and asdict(choice), "confirmation": {**about, "diverged": diverged, "runs": counted}}


def _counts_as(run: Result, floor: float | None) -> float | None:
    return floor if (value := score(run)) is None else value


def _difference(first: list[Result], second: list[Result], floor: float | None, limits: Limits) -> Settings:
    """The first optimizer less the second on the same seeds; of none if one of them has no choice."""
    low, high = limits
    pairs = list(zip(first, second, strict=False))
    counted = [(_counts_as(a, floor), _counts_as(b, floor)) for a, b in pairs]
    values = [None if a is None or b is None else a - b for a, b in counted]
    # Scores come as float32: equal ones come out a little apart, which is no spread.
    tolerances = [RESOLUTION * max(abs(a or 0.0), abs(b or 0.0)) for a, b in counted]
    diverged = sum(score(a) is None or score(b) is None for a, b in pairs)
    return {**summary(values, (low - high, high - low), tolerances), "diverged": diverged}
