"""The files in a sweep's folder: which sweep has it, what each job is to do, and what came of it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from ..config.settle import Settings
from ..errors import DataError
from ..files import write
from ..result import Result

SWEEP = "TMBENCH_SWEEP"  # in the environment of a sweep and of its jobs: the sweep's id
OWNER = "sweep.txt"  # holds the id of the sweep that has the folder
STOPPING = "stopping"  # is there once jobs on other machines are to stop

T = TypeVar("T")


@dataclass(frozen=True)
class JobOrder:
    """What one job is to do; see job.do_job."""

    number: int
    arm: str  # of a study, for people; empty for a job that was asked for
    words: list[str]  # its overrides
    search: list[str]  # the word for a person's own YAML files, if they have any
    cfg: Settings  # as composed
    states: list[tuple[int, int]]  # of its trunk that jobs of the sweep want: (epoch, number of differences)
    cwd: str = ""  # where its own process is to run; empty if it has none
    environment: dict[str, str] = field(default_factory=dict)  # of that process, beside what it finds

    def save(self, folder: Path) -> Path:
        """Writes the order into the sweep's folder, for the job's own process."""
        return _save(folder / f"launch-{self.number:05d}.json", self)

    @classmethod
    def load(cls, file: Path) -> "JobOrder":
        return _loaded(cls, file)


@dataclass(frozen=True)
class JobRecord:
    """What came of one job of a sweep."""

    sweep: str  # its id
    number: int
    words: list[str]
    arm: str
    folder: str | None = None  # its run's; None if there is no result
    how: str = ""  # as run.run says: new, resumed or shown
    error: str = ""

    def save(self, folder: Path) -> None:
        """Writes the record into the sweep's folder, unless another sweep has that by now."""
        if is_current(folder, self.sweep):
            _save(_record(folder, self.number), self)

    def result(self) -> Result | None:
        """The result of the job's run, if it has one; DataError if that is damaged."""
        return Result.load(Path(self.folder)) if self.folder else None


def record_of(folder: Path, number: int) -> JobRecord | None:
    """What was recorded of a job of this process's sweep; None if nothing was.

    Raises:
        DataError: a power cut left a damaged record.
    """
    path = _record(folder, number)
    try:
        record = _loaded(JobRecord, path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise DataError(f"{path}: damaged; give the same command again") from None
    return record if record.sweep == sweep_id() else None


def sweep_id() -> str:
    """Which sweep this process belongs to; empty for none."""
    return os.environ.get(SWEEP, "")


def is_current(folder: Path, sweep: str) -> bool:
    """Whether the sweep of this id still has the folder: a job of a killed sweep may outlive it on another machine."""
    try:
        return (folder / OWNER).read_text() == sweep
    except FileNotFoundError:
        return True


def _record(folder: Path, number: int) -> Path:
    return folder / f"job-{number:05d}.json"


def _save(path: Path, content: "JobOrder | JobRecord") -> Path:
    # Not durable: the sweep itself reads it, and no power cut is between.
    write(path, json.dumps(asdict(content)) + "\n", durable=False)
    return path


def _loaded(of: type[T], path: Path) -> T:
    """The file's content, checked; OSError or ValueError if it cannot be had."""
    from pydantic import TypeAdapter  # not at the top: `tmbench --help` has no use for it

    return TypeAdapter(of).validate_python(json.loads(path.read_bytes()))
