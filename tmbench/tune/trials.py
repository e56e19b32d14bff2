"""The trials of one optimizer: drawing them, doing their runs, and comparing what is noted with those runs."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from ..config.settle import Settings
from ..errors import ConfigError, DataError
from ..result import FINAL, Result, epochs_done
from ..sweeps.plan import Job, RunFinder, states_to_share
from ..verbs import EXPECTED, explain
from .plan import Contender, Plan
from .records import Outcome, Status, Trial
from .runner import Runner, device_seconds, score
from .sampling import is_behind, next_point
from .space import all_of, as_word, values_of

RUNGS = 4  # parts of a run, after each of which the pruner looks at it


class Trials:
    """The trials of one optimizer.

    Args:
        noted: those so far; this class adds to them and changes them.
        save: writes down what is noted.
    """

    def __init__(
        self, plan: Plan, contender: Contender, noted: list[Trial], save: Callable[[], None], runner: Runner
    ) -> None:
        self.plan, self.contender, self.noted, self.save, self.runner = plan, contender, noted, save, runner
        self.count = plan.settings["trials"]

    def complete(self) -> None:
        """Does the trials that are not done yet, and compares all of them with their runs.

        Raises:
            ConfigError: a trial failed.
            DataError: a run is not what is noted of it.
            KeyboardInterrupt: a run was interrupted.
        """
        if set(self.contender.space) == {"switch_epoch"} and len(self.noted) < self.count:
            self._request_shared_states()
        for trial in self.noted:
            if trial.is_open:
                self._do(trial)
        while len(self.noted) < self.count:
            self._do(self._drawn())
        for trial in self.noted:
            self._compare(trial)
        failed = [(trial, trial.outcome.error) for trial in self.noted if trial.outcome and trial.is_open]
        if failed:
            told = "\n".join(f"  trial {t.number} ({words_of(self.values(t))}): {error}" for t, error in failed)
            raise ConfigError(
                f"{self.contender.name}: {len(failed)} of {self.count} trials failed, so nothing is chosen yet:\n"
                f"{told}\n  correct the cause and give the same command again, which repeats them; or change the space"
            )

    def values(self, trial: Trial) -> Settings:
        """What the trial tries: the values of the tuned settings."""
        return values_of(self.contender.space, trial.params)

    def _settings(self, trial: Trial) -> Settings:
        return {"validation": self.plan.settings["validation"]} | self.values(trial)

    def _request_shared_states(self) -> None:
        """Lets trials that differ in their switch alone train what they share once, whatever their order."""
        points = [values_of(self.contender.space, point) for point in all_of(self.contender.space)]
        jobs = [Job(i, [], self.contender.settings_with(values)) for i, values in enumerate(points)]
        finder = RunFinder(download=True)
        for job in jobs:
            finder.find(job)
        for trunk, epoch, needs in states_to_share(jobs):
            trunk.request(epoch, needs)

    def _drawn(self) -> Trial:
        """The next trial; from here on it counts."""
        trial = Trial(len(self.noted), "", False, next_point(self.plan, self.contender, self.noted))
        folder, state = self.runner.find(self.contender, self._settings(trial))
        trial.run, trial.known_before = folder.name, state in ("known", "same")
        self.noted.append(trial)
        self.save()
        return trial

    def _do(self, trial: Trial) -> None:
        """Does the trial's run and notes what came of it."""
        place = f"trial {trial.number + 1} of {self.count}"
        print(f"\n{self.contender.name} {place}: {words_of(self.values(trial))}", file=sys.stderr)
        try:
            trial.outcome = self._outcome(trial)
        except EXPECTED:
            raise
        except Exception as error:  # the next command tries again
            trial.outcome = Outcome("failed", error=f"{type(error).__name__}: {error}")
            print(explain(error), file=sys.stderr)
        self.save()

    def _outcome(self, trial: Trial) -> Outcome:
        result = None
        for end in self._looks():
            if end is not None and epochs_done(self.plan.runs_dir / trial.run) >= end:
                continue  # an earlier command came this far
            result, _ = self.runner.do(self.contender, self._settings(trial), end)
            if result.status in FINAL:
                break
            self._report(trial, end, score(result))
            if is_behind(self.plan, self.contender, self.noted, trial.number):
                break
        assert result is not None
        status = result.status if result.status in FINAL else "pruned"
        return Outcome(
            cast(Status, status), None if status == "pruned" else score(result),
            result.seconds + result.evaluation_seconds,
            0.0 if trial.known_before else device_seconds(self.contender, result), result.diverged_at,
        )  # fmt: skip

    def _looks(self) -> list[int | None]:
        """The epochs after which the pruner looks at a run; None for its end."""
        if self.plan.settings["pruner"] == "none":
            return [None]
        epochs = self.contender.epochs
        return [*sorted({-(-epochs * k // RUNGS) for k in range(1, RUNGS)} - {epochs}), None]

    def _report(self, trial: Trial, epochs: int | None, value: float | None) -> None:
        if epochs is not None and value is not None and epochs not in dict(trial.reported):
            trial.reported.append((epochs, value))
            self.save()

    def _compare(self, trial: Trial) -> None:
        """Compares a trial with its run, which is repeated if it is gone.

        Raises:
            DataError: they differ.
        """
        if trial.outcome is None or trial.outcome.status not in FINAL:
            return
        folder, _ = self.runner.find(self.contender, self._settings(trial))
        noted = [trial.run, trial.outcome.status, trial.outcome.value]
        actual: list[object] = [folder.name]
        if folder.name == trial.run:
            result = self._result(folder, trial)
            actual += [result.status, score(result)]
        if noted != actual:
            raise DataError(
                f"{self.plan.folder / 'trials.json'}: {self.contender.name}'s trial {trial.number} "
                f"({words_of(self.values(trial))}) is noted as {', '.join(map(str, noted))}; its run is "
                f"{', '.join(map(str, actual))}\n  remove trials.json and choice.json, and the same command asks for "
                "the same trials again; or remove the run's folder if the run was changed"
            )

    def _result(self, folder: Path, trial: Trial) -> Result:
        result = Result.load(folder)
        if result is None or result.status not in FINAL:  # gone, or interrupted while it was repeated
            result, _ = self.runner.do(self.contender, self._settings(trial))
        return result


def words_of(values: Settings) -> str:
    """The values as a person reads them, in four digits."""
    shorter = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(as_word(key, value) for key, value in shorter.items()) or "nothing to tune"
