"""One study, from its plan to its result: the trials of each optimizer, the choices, and the runs that confirm them."""

import json
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .. import signals
from ..config.settle import Settings
from ..errors import ConfigError, DataError
from ..files import clear_scratch, locked, read_sealed, write, write_sealed
from ..question import check_question
from ..result import FINAL, Result, epochs_done
from ..run import run
from ..sweeps.plan import Job, RunFinder, states_to_share
from ..verbs import explain, is_expected
from .plan import Contender, Plan
from .space import all_of, values_of, with_values, words_of
from .summary import device_seconds, result_of
from .trials import Choice, Choices, Outcome, Trial, is_behind, next_point

RUNGS = 4  # parts of a run, after each of which the pruner looks at it


def study(plan: Plan) -> Settings:
    """Does what is left to do of a study; returns the content of its result.json.

    Raises ConfigError if the folder holds another study, a trial failed or no trial has a value; DataError if what the
    folder holds is damaged, or a run is not what is noted of it.
    """
    question = plan.question()
    with locked(plan.folder):
        clear_scratch(plan.folder)
        again = "give the same settings as before to resume it, say name=... for a new study, or remove the folder"
        check_question(plan.folder / "study.json", question, "study", again)
        trials = Trials(plan)
        try:
            for contender in plan.contenders:
                trials.complete(contender)
            chosen = _choices(plan, trials.noted)
            runs = {c.name: _confirmed(plan, c, chosen.choices[c.name]) for c in plan.contenders}
        except KeyboardInterrupt:
            done = sum(trial.outcome is not None for own in trials.noted.values() for trial in own)
            count = plan.settings["trials"] * len(plan.contenders)
            raise KeyboardInterrupt(f"{done} of {count} trials are done, and noted in {plan.folder}") from None
        result = result_of(plan, trials.noted, chosen, runs)
        path, text = plan.folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n"
        if not path.is_file() or path.read_bytes() != text.encode():  # a finished study may be read-only
            write(path, text)
    return result


def _do_run(contender: Contender, values: Settings, until: int | None = None) -> Result:
    """The result of the run with these values, stopped after `until` epochs; KeyboardInterrupt if before that."""
    words, cfg = contender.words_with(values), OmegaConf.create(with_values(contender.raw, values))
    result, folder, _ = run(cfg, f"python -m tmbench {shlex.join(words)}", until, words=words)
    if result.status not in FINAL and (until is None or epochs_done(folder) < until):
        raise KeyboardInterrupt
    return result


def _finished(folder: Path) -> Result | None:
    """The result of the run in a folder, if it is done."""
    result = Result.load(folder)
    return result if result and result.status in FINAL else None


class Trials:
    """The trials of each optimizer, which are noted in trials.json before anything else happens."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.path, self.noted = plan, plan.folder / "trials.json", dict[str, list[Trial]]()
        if self.path.exists():
            remedy = "remove it: the same command asks for the same trials, whose runs are known"
            self.noted = read_sealed(self.path, dict[str, list[Trial]], remedy)

    def complete(self, contender: Contender) -> None:
        """Does the optimizer's trials that are not done yet, and compares all of them with their runs."""
        own, count = self.noted.setdefault(contender.name, []), self.plan.settings["trials"]
        if set(contender.space) == {"switch_epoch"} and len(own) < count:
            _request_shared_states(contender)
        for trial in own:
            if trial.is_open:
                self._do(contender, trial)
        while len(own) < count:
            self._do(contender, self._drawn(contender))
        for trial in own:
            self._compare(contender, trial)
        failed = [(trial, trial.outcome.error) for trial in own if trial.outcome and trial.is_open]
        if failed:
            told = "\n".join(f"  trial {t.number} ({_words(contender, t)}): {error}" for t, error in failed)
            raise ConfigError(
                f"{contender.name}: {len(failed)} of {count} trials failed, so nothing is chosen yet:\n"
                f"{told}\n  correct the cause and give the same command again, which repeats them; or change the space"
            )

    def _save(self) -> None:
        write_sealed(self.path, {name: [asdict(trial) for trial in own] for name, own in self.noted.items()})

    def _settings(self, contender: Contender, trial: Trial) -> Settings:
        return {"validation": self.plan.settings["validation"]} | values_of(contender.space, trial.params)

    def _drawn(self, contender: Contender) -> Trial:
        """The next trial; from here on it counts."""
        own = self.noted[contender.name]
        trial = Trial(len(own), "", False, next_point(self.plan, contender, own))
        folder = contender.run_folder(self._settings(contender, trial))
        trial.run = folder.name
        trial.known_before = any(other.run == trial.run for other in own) or _finished(folder) is not None
        own.append(trial)
        self._save()
        return trial

    def _do(self, contender: Contender, trial: Trial) -> None:
        """Does the trial's run and notes what came of it."""
        place = f"trial {trial.number + 1} of {self.plan.settings['trials']}"
        print(f"\n{contender.name} {place}: {_words(contender, trial)}", file=sys.stderr)
        try:
            trial.outcome = self._outcome(contender, trial)
        except Exception as error:  # the next command tries again
            if signals.is_interrupt(error):
                raise KeyboardInterrupt from None
            if is_expected(error):
                raise
            trial.outcome = Outcome("failed", error=f"{type(error).__name__}: {error}")
            print(explain(error), file=sys.stderr)
        self._save()

    def _outcome(self, contender: Contender, trial: Trial) -> Outcome:
        """What comes of the trial's run; the pruner may end it after each part but the last."""
        settings, epochs = self._settings(contender, trial), contender.cfg["epochs"]
        done = epochs_done(contender.run_folder(settings))
        ends = {-(-epochs * k // RUNGS) for k in range(1, RUNGS)} if self.plan.settings["pruner"] != "none" else set()
        for end in sorted(ends - {epochs}):
            if done >= end:
                continue  # an earlier command came this far
            result = _do_run(contender, settings, end)
            if result.status in FINAL:
                break
            if (value := result.score) is not None and end not in dict(trial.reported):
                trial.reported.append((end, value))
                self._save()
            if is_behind(contender, self.noted[contender.name], trial.number):
                break
        else:
            result = _do_run(contender, settings)
        cost = 0.0 if trial.known_before else device_seconds(contender, result)
        seconds = result.seconds + result.evaluation_seconds
        if result.status not in FINAL:
            return Outcome("pruned", None, seconds, cost)
        status: Any = result.status
        return Outcome(status, result.score, seconds, cost, result.diverged_at)

    def _compare(self, contender: Contender, trial: Trial) -> None:
        """Compares a trial with its run, which is repeated if it is gone; DataError if they differ."""
        if trial.outcome is None or trial.outcome.status not in FINAL:
            return
        settings = self._settings(contender, trial)
        folder = contender.run_folder(settings)
        noted: list[object] = [trial.run, trial.outcome.status, trial.outcome.value]
        actual: list[object] = [folder.name]
        if folder.name == trial.run:
            result = _finished(folder) or _do_run(contender, settings)  # it may have been stopped while it was repeated
            actual += [result.status, result.score]
        if noted != actual:
            raise DataError(
                f"{self.path}: {contender.name}'s trial {trial.number} ({_words(contender, trial)}) is noted as "
                f"{', '.join(map(str, noted))}; its run is {', '.join(map(str, actual))}\n"
                "  remove trials.json and choice.json, and the same command asks for the same trials again; or remove "
                "the run's folder if the run was changed"
            )


def _words(contender: Contender, trial: Trial) -> str:
    return words_of(values_of(contender.space, trial.params))


def _request_shared_states(contender: Contender) -> None:
    """Lets trials that differ in their switch alone train what they share once, whatever their order."""
    points = [values_of(contender.space, point) for point in all_of(contender.space)]
    jobs = [Job(i, [], with_values(contender.raw, values)) for i, values in enumerate(points)]
    RunFinder(download=True).find_all(jobs)
    for trunk, epoch, differences in states_to_share(jobs):
        trunk.request(epoch, differences)


def _choices(plan: Plan, trials: dict[str, list[Trial]]) -> Choices:
    """What was chosen, now or by an earlier command."""
    path = plan.folder / "choice.json"
    best = {contender.name: _best(contender, trials[contender.name]) for contender in plan.contenders}
    if not path.exists():
        write_sealed(path, asdict(_frozen(plan, best)))
    remedy = "remove it: the same command chooses again, from the same trials"
    chosen = read_sealed(path, Choices, remedy)
    if chosen.choices != best:
        raise DataError(f"{path}: its choices are not the best trials in trials.json; {remedy}")
    return chosen


def _best(contender: Contender, trials: list[Trial]) -> Choice | None:
    """The best trial of an optimizer, of equals the first; None if no trial has a value."""
    sign = 1 if contender.higher_is_better else -1
    candidates = [
        Choice(t.number, values_of(contender.space, t.params), t.outcome.value, t.run)
        for t in trials if t.outcome and t.outcome.value is not None
    ]  # fmt: skip
    return max(candidates, key=lambda choice: sign * choice.value, default=None)


def _frozen(plan: Plan, choices: dict[str, Choice | None]) -> Choices:
    """The choices, the time, and the confirming runs that another command has begun already."""
    if not any(choices.values()):
        why = "no trial reached a finite value, so there is nothing to choose; expected a space with lower rates"
        raise ConfigError(f"{', '.join(choices)}: {why}")
    chosen = [(contender, choice) for contender in plan.contenders if (choice := choices[contender.name])]
    folders = [contender.run_folder(_to_confirm(choice, s)) for contender, choice in chosen for s in plan.seeds]
    begun = [folder.name for folder in folders if epochs_done(folder) or _finished(folder)]
    return Choices(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), choices, begun)


def _confirmed(plan: Plan, contender: Contender, choice: Choice | None) -> list[Result]:
    """Runs the choice on all training examples, once for each fresh seed; nothing if there is no choice."""
    results = []
    if choice:
        for seed in plan.seeds:
            print(f"\n{contender.name} with seed={seed}, to confirm {words_of(choice.values)}", file=sys.stderr)
            results.append(_do_run(contender, _to_confirm(choice, seed)))
    return results


def _to_confirm(choice: Choice, seed: int) -> Settings:
    return {"validation": None, **choice.values, "seed": seed}
