"""What a study keeps of its trials, checked when it is read back, and which point each next one takes, by Optuna."""

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import ConfigError
from ..seeds import derive
from .plan import Contender, Plan
from .space import Space, all_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


@dataclass
class Outcome:
    """What came of a trial's run."""

    status: Literal["completed", "diverged", "pruned", "failed"]
    value: float | None = None  # of the headline metric; None unless the run completed with a finite one
    seconds: float = 0.0  # of training and evaluation
    device_seconds: float = 0.0  # what this trial cost: 0 if its run was done before
    diverged_at: dict[str, int] | None = None  # epoch and step
    error: str | None = None


@dataclass
class Trial:
    """One trial; it counts from the moment at which its point is drawn."""

    number: int
    run: str  # the name of its folder
    known_before: bool  # its run was done before the trial was drawn
    params: dict[str, Any]  # the point of the space; see space.values_of
    reported: list[tuple[int, float]] = field(default_factory=list)  # (epochs, value) that the pruner has seen
    outcome: Outcome | None = None  # None: not done yet

    @property
    def is_open(self) -> bool:
        return self.outcome is None or self.outcome.status == "failed"


@dataclass
class Choice:
    """The best trial of one optimizer."""

    number: int
    values: dict[str, Any]
    value: float
    run: str


@dataclass
class Choices:
    """The content of choice.json."""

    frozen: str  # when, in UTC
    choices: dict[str, Choice | None]  # by optimizer; None: no trial has a value
    begun_before: list[str]  # confirming runs that another command had begun


def load_optuna() -> Any:
    """The module; ConfigError if it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise ConfigError("tuning needs more packages: pip install 'tmbench[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def next_point(plan: Plan, contender: Contender, trials: list[Trial]) -> dict[str, Any]:
    """The point of the space that the next trial takes."""
    number, space = len(trials), contender.space
    if plan.settings["sampler"] == "grid":  # all points once, in an order that the seed decides; then again
        points = all_of(space)
        order = np.random.default_rng(derive("trials", plan.seed)).permutation(len(points))
        return points[order[number % len(points)]]
    if plan.settings["sampler"] == "qmc":
        return _quasi_random_point(plan, space, number)
    study = _study(contender, trials)
    # Given, not left to Optuna's version: it models pairs of settings, and no trial runs while another is drawn.
    study.sampler = load_optuna().samplers.TPESampler(
        seed=derive("trial", plan.seed, number), n_startup_trials=max(1, min(10, plan.settings["trials"] // 2)),
        multivariate=True, constant_liar=False,
    )  # fmt: skip
    return study.ask(_distributions(space)).params


def _quasi_random_point(plan: Plan, space: Space, number: int) -> dict[str, Any]:
    """The point of this number in a scrambled Sobol sequence, whatever came of the trials before it."""
    optuna = load_optuna()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(sampler=optuna.samplers.QMCSampler(scramble=True, seed=derive("trials", plan.seed)))
    for _ in range(number):
        study.tell(study.ask(_distributions(space)), 0.0)
    return study.ask(_distributions(space)).params


def is_behind(contender: Contender, trials: list[Trial], number: int) -> bool:
    """Whether the median pruner would end this trial, by what it and the others have reported."""
    study = _study(contender, trials)
    return load_optuna().pruners.MedianPruner().prune(study, study.get_trials()[number])


def _study(contender: Contender, trials: list[Trial]) -> "optuna.Study":
    """Optuna's study of the optimizer, in memory, with the trials so far; those not done are running there."""
    optuna = load_optuna()
    study = optuna.create_study(direction="maximize" if contender.higher_is_better else "minimize")
    for trial in trials:
        state, value = _state_and_value(trial, contender.higher_is_better)
        study.add_trial(optuna.trial.create_trial(
            state=optuna.trial.TrialState[state], value=value, params=trial.params,
            distributions=_distributions(contender.space), intermediate_values=dict(trial.reported),
        ))  # fmt: skip
    return study


def _state_and_value(trial: Trial, higher_is_better: bool) -> tuple[str, float | None]:
    """What Optuna knows of a trial; one without a value is worse than every other."""
    if trial.outcome is None or trial.is_open:
        return "RUNNING", None
    if trial.outcome.status == "pruned":
        return "PRUNED", trial.reported[-1][1] if trial.reported else None
    worst = -math.inf if higher_is_better else math.inf
    return "COMPLETE", worst if trial.outcome.value is None else trial.outcome.value


def _distributions(space: Space) -> "dict[str, BaseDistribution]":
    """The space as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, BaseDistribution] = {}
    for key, spec in space.items():
        if "choices" in spec:
            distributions[key] = CategoricalDistribution(range(len(spec["choices"])))
        else:
            kind = IntDistribution if isinstance(spec["low"], int) else FloatDistribution
            distributions[key] = kind(spec["low"], spec["high"], log=spec["log"])
    return distributions
