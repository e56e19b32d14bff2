"""The runs of a study: which they are, doing them, and what they say."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..errors import ConfigError
from ..result import FINAL, Result, epochs_done
from ..run import run
from ..sweeps.plan import Job, RunFinder
from .plan import Contender


class Runner:
    """Does the runs of a study, and finds those that are done."""

    def __init__(self) -> None:
        self._finder = RunFinder(download=True)

    def find(self, contender: Contender, values: Mapping[str, Any]) -> tuple[Path, str]:
        """The folder of the run with these values, and its state: see sweeps.plan.Job.

        Raises:
            ConfigError: there is no such run.
        """
        job = Job(0, [], contender.settings_with(values))
        self._finder.find(job)
        if job.folder is None:
            raise ConfigError(job.error)
        return job.folder, job.state

    def do(self, contender: Contender, values: Mapping[str, Any], until: int | None = None) -> tuple[Result, Path]:
        """The result and the folder of the run with these values.

        Args:
            until: stop after this many epochs; None: do all of them.

        Raises:
            KeyboardInterrupt: it was interrupted before that.
            Exception: it failed.
        """
        words = contender.words_with(values)
        cfg = OmegaConf.create(contender.settings_with(values))
        result, folder, _ = run(cfg, f"python -m tmbench {shlex.join(words)}", until, words=words)
        if result.status not in FINAL and (until is None or epochs_done(folder) < until):
            raise KeyboardInterrupt
        return result, folder


def score(result: Result) -> float | None:
    """The headline metric after the last epoch so far; None of a run that diverged, or whose metric is not finite."""
    value = None if result.status == "diverged" else result.metrics["last"].get(result.headline)
    return value if value is not None and math.isfinite(value) else None


def device_seconds(contender: Contender, result: Result) -> float:
    """What a run cost here: training and evaluating its epochs, less those that came from a shared trunk."""
    trained = result.epochs["trained"]
    share = (trained - result.epochs["from_trunk"]) / trained if trained else 1.0
    return share * (result.seconds + result.evaluation_seconds) * contender.processes
