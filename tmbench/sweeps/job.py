"""One job of a sweep: doing it, its order, and the record of what came of it; both are files in the sweep's folder.

As a process of its own, it is `python -m tmbench.sweeps.job FILE`, with its order in that file.
"""

import json
import os
import shlex
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from omegaconf import OmegaConf

from .. import signals
from ..config.compose import as_typed
from ..config.overrides import key_of, of_the_run
from ..config.settle import Settings
from ..errors import CannotStackError
from ..files import checked, loads, read, write
from ..result import Result
from ..run import Asked, run_stack
from ..verbs import ERROR, INTERRUPTED, explain, guarded, is_expected, leave

PROGRAM = os.environ.get("TMBENCH_PROGRAM", "python -m tmbench")  # as the person called it
SWEEP = "TMBENCH_SWEEP"  # in the environment of a sweep and of its jobs: the sweep's id
RECORD = "job-{:05d}.json"  # by the number of the job
OWNER = "sweep.txt"  # holds the id of the sweep that has the folder
STOPPING = "stopping"  # is there once jobs on other machines are to stop


def sweep_id() -> str:
    """Which sweep this process belongs to; empty for none."""
    return os.environ.get(SWEEP, "")


def is_current(folder: Path, sweep: str) -> bool:
    """Whether the sweep of this id still has the folder: a job of a killed sweep may outlive it on another machine."""
    try:
        return read(folder / OWNER, bytes.decode) == sweep
    except FileNotFoundError:
        return True


@dataclass(frozen=True)
class JobOrder:
    """What one job, or a stack of them, is to do; see do_job."""

    number: int
    arm: str  # of a study, for people; empty for a job that was asked for
    words: list[str]  # its overrides
    search: list[str]  # the word for a person's own YAML files, if they have any
    cfg: Settings  # as composed
    states: list[tuple[int, int]]  # of its trunk that jobs of the sweep want: (epoch, number of differences)
    cwd: str = ""  # where its own process is to run; empty if it has none
    environment: dict[str, str] = field(default_factory=dict)  # of that process, beside what it finds
    timeout: float | None = None  # minutes that it may take; None: no limit
    others: "list[JobOrder]" = field(default_factory=list)  # that are trained with it, as one stack

    def save(self, folder: Path) -> Path:
        return _save(folder / f"launch-{self.number:05d}.json", self)

    @classmethod
    def load(cls, file: Path) -> "JobOrder":
        return read(file, lambda text: checked(cls, loads(text)))


@dataclass(frozen=True)
class JobRecord:
    """What came of one job of a sweep."""

    number: int
    words: list[str]
    arm: str
    folder: str | None = None  # its run's; None if there is no result
    how: str = ""  # as run.run says: new, resumed or shown
    error: str = ""
    sweep: str = field(default_factory=sweep_id)

    def save(self, folder: Path) -> None:
        """Writes the record into the sweep's folder, unless another sweep has that by now."""
        if is_current(folder, self.sweep):
            _save(folder / RECORD.format(self.number), self)

    def result(self) -> Result | None:
        return Result.load(Path(self.folder)) if self.folder else None


def record_of(folder: Path, number: int) -> JobRecord | None:
    """What was recorded of a job of this process's sweep; None if nothing was, DataError if a power cut damaged it."""
    path = folder / RECORD.format(number)
    try:
        record = read(path, lambda text: checked(JobRecord, loads(text)), "give the same command again")
    except FileNotFoundError:
        return None
    return record if record.sweep == sweep_id() else None


def _save(path: Path, content: JobOrder | JobRecord) -> Path:
    # Not durable: the sweep itself reads it, and no power cut is between.
    write(path, json.dumps(asdict(content)) + "\n", durable=False)
    return path


def command(words: list[str]) -> str:
    """What a person would type for the run that these words ask for."""
    return f"{PROGRAM} {shlex.join(as_typed(of_the_run(words)))}"


def do_job(folder: Path, order: JobOrder) -> list[Result | None]:
    """Does a job of the sweep in `folder`, or a stack of them, and records what came of each.

    Returns:
        The result of each; None, after a line why, if it fails.
    """
    orders = [order, *order.others]
    try:
        outcomes = run_stack([_asked(folder, each) for each in orders])
    except CannotStackError as error:
        if not order.others and order.cfg["replicas"] == 1:
            raise
        print(f"replicas: {error.why}; these runs are trained one at a time", file=sys.stderr)
        alone = [
            replace(
                each, cfg=each.cfg | {"replicas": 1}, others=[],
                words=[*(w for w in each.words if key_of(w) != "replicas"), "replicas=1"],
            ) for each in orders
        ]  # fmt: skip
        return [result for each in alone for result in do_job(folder, each)]
    except Exception as error:
        if signals.is_interrupt(error):
            raise KeyboardInterrupt from None
        message = explain(error) if is_expected(error) else f"{type(error).__name__}: {error}"
        for each in orders:
            JobRecord(each.number, each.words, each.arm, error=message).save(folder)
        print(explain(error), file=sys.stderr)
        return [None] * len(orders)
    for each, (_, run_folder, how) in zip(orders, outcomes, strict=True):
        JobRecord(each.number, each.words, each.arm, folder=str(run_folder), how=how).save(folder)
    return [result for result, _, _ in outcomes]


def _asked(folder: Path, order: JobOrder) -> Asked:
    words, cfg = [*order.search, *order.words], OmegaConf.create(order.cfg)
    if "group" in cfg.logger and cfg.logger.group is None:
        cfg.logger.group = folder.name
    return Asked(cfg, command(words), words, order.states)


def main() -> None:
    """A job's own process: does the job whose order is in the file that it is given."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes; it is meant for our parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    file = Path(sys.argv[1])

    def do() -> int:
        results = do_job(file.parent, JobOrder.load(file))
        if None in results:
            return ERROR
        return INTERRUPTED if any(result and result.status == "interrupted" for result in results) else 0

    leave(guarded(do))


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
