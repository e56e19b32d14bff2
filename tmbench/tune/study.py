"""One study, from its plan to its result."""

import json

from ..config.settle import Settings, flat
from ..errors import ConfigError, DataError
from ..files import locked, write
from .choice import best_trials, confirmed, frozen
from .plan import Plan
from .records import CHOICES, QUESTION, TRIALS, Choices, Trial, load, save
from .runner import Runner
from .summary import result_of
from .trials import Trials

SHOWN = 8  # differences between two questions


def study(plan: Plan) -> Settings:
    """Does what is left to do of a study; returns the content of its result.json.

    Raises:
        ConfigError: the folder holds another study, a trial failed, or no trial of any optimizer has a value.
        DataError: what the folder holds is damaged.
        KeyboardInterrupt: it was interrupted.
    """
    runner = Runner()
    with locked(plan.folder):
        _check_question(plan)
        trials = _trials(plan, runner)
        chosen = _choices(plan, trials, runner)
        runs = {c.name: confirmed(plan, c, chosen.choices[c.name], runner) for c in plan.contenders}
        result = result_of(plan, trials, chosen, runs)
        write(plan.folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _check_question(plan: Plan) -> None:
    """Checks that the folder's study, if there is one, asks the same question."""
    question, path = plan.question(), plan.folder / "study.json"
    if not path.exists():
        save(path, QUESTION, question)
    remedy = f"say name=... for a new study, or remove {plan.folder}"
    there, now = flat(load(path, QUESTION, remedy)), flat(question)
    if there != now:
        differ = [key for key in there | now if there.get(key) != now.get(key)]
        told = "\n".join(f"  {key}: was {there.get(key)}, is {now.get(key)}" for key in differ[:SHOWN])
        told += f"\n  and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise ConfigError(
            f"{plan.folder}: expected the study that is there, got another:\n{told}\n"
            "  give the same settings as before to resume it, say name=... for a new study, or remove the folder"
        )


def _trials(plan: Plan, runner: Runner) -> dict[str, list[Trial]]:
    """The trials of each optimizer, all done."""
    path, noted = plan.folder / "trials.json", dict[str, list[Trial]]()
    if path.exists():
        noted = load(path, TRIALS, "remove it: the same command asks for the same trials, whose runs are known")
    for contender in plan.contenders:
        own = noted.setdefault(contender.name, [])
        Trials(plan, contender, own, lambda: save(path, TRIALS, noted), runner).complete()
    return noted


def _choices(plan: Plan, trials: dict[str, list[Trial]], runner: Runner) -> Choices:
    """What was chosen, now or by an earlier command."""
    path, best = plan.folder / "choice.json", best_trials(plan, trials)
    if not path.exists():
        save(path, CHOICES, frozen(plan, best, runner))
    remedy = "remove it: the same command chooses again, from the same trials"
    chosen = load(path, CHOICES, remedy)
    if chosen.choices != best:
        raise DataError(f"{path}: its choices are not the best trials in trials.json; {remedy}")
    return chosen
