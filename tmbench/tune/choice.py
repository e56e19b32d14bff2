"""The best trial of each optimizer, and the runs with fresh seeds that confirm it: the first to read the test split."""

import sys
import time

from ..config.settle import Settings
from ..errors import ConfigError
from ..result import Result
from .plan import Contender, Plan
from .records import Choice, Choices, Trial
from .runner import Runner
from .space import values_of
from .trials import words_of


def best_trials(plan: Plan, trials: dict[str, list[Trial]]) -> dict[str, Choice | None]:
    """The best trial of each optimizer, of equals the first; None if no trial has a value."""
    choices: dict[str, Choice | None] = {}
    for contender in plan.contenders:
        sign = 1 if contender.higher_is_better else -1
        candidates = [
            Choice(trial.number, values_of(contender.space, trial.params), trial.outcome.value, trial.run)
            for trial in trials[contender.name]
            if trial.outcome and trial.outcome.value is not None
        ]
        choices[contender.name] = max(candidates, key=lambda choice: sign * choice.value, default=None)
    return choices


def frozen(plan: Plan, choices: dict[str, Choice | None], runner: Runner) -> Choices:
    """The choices, the time, and the confirming runs that another command has begun already.

    Raises:
        ConfigError: there is nothing to choose.
    """
    if not any(choices.values()):
        raise ConfigError(
            f"{', '.join(choices)}: no trial reached a finite value, so there is nothing to choose; "
            "expected a space with lower rates"
        )
    begun = []  # these have read the test split
    for contender in plan.contenders:
        if choice := choices[contender.name]:
            for seed in plan.seeds:
                folder, state = runner.find(contender, _settings(choice, seed))
                begun += [folder.name] if state != "new" else []
    return Choices(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), choices, begun)


def confirmed(plan: Plan, contender: Contender, choice: Choice | None, runner: Runner) -> list[Result]:
    """Runs the choice on all training examples, once for each fresh seed; nothing if there is no choice."""
    results = []
    for seed in plan.seeds if choice else ():
        assert choice is not None
        print(f"\n{contender.name} with seed={seed}, to confirm {words_of(choice.values)}", file=sys.stderr)
        results.append(runner.do(contender, _settings(choice, seed))[0])
    return results


def _settings(choice: Choice, seed: int) -> Settings:
    return {"validation": None, **choice.values, "seed": seed}
