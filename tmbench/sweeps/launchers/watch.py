"""What a person sees of launched jobs: those at work, and how each ended."""

import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...errors import DataError
from ...result import epochs_done, shown
from ...verbs import ERROR, INTERRUPTED
from ..plan import Job
from ..record import JobRecord, record_of, sweep_id

LINES = 20  # of its output that a failed job shows


def log_of(file: Path) -> Path:
    """Where the output of the job in `file` goes."""
    return file.with_name(file.stem.replace("launch", "job") + ".log")


def print_end(job: Job, name: str, file: Path, status: int | None, stopping: bool, console: Console) -> bool:
    """Prints how a job ended, and records it where the job itself could not; returns whether it was stopped.

    Args:
        name: of the job, for people.
        file: its order.
        status: the exit status of its process; None if that cannot be known.
        stopping: whether the sweep is being stopped.
    """
    try:
        record = record_of(file.parent, job.number)
        if record is None and stopping and status in (INTERRUPTED, -signal.SIGTERM):
            console.print(f"{name}: not begun")
            return True
        if record is None or status not in (0, ERROR, INTERRUPTED, None):
            record = JobRecord(sweep_id(), job.number, job.overrides, job.arm)
            record = replace(record, error=f"{_death(status)}; its output: {log_of(file)}")
            record.save(file.parent)
        result = record.result()
    except DataError as error:
        console.print(f"{name}: {error}", style="red")
        return False
    if result is None:
        console.print(f"{name}: failed", style="red")
        for line in _last_lines(log_of(file)):
            console.print(f"  | {line}")
        return False
    key = result.headline
    score = shown(result.metrics["last"].get(key), key)
    console.print(f"{name}: {result.status}, {result.metric} {score}")
    return result.status == "interrupted"


def _death(status: int | None) -> str:
    if status is None:
        return "cancelled, or its machine is gone"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-LINES:] if log.exists() else []


class JobsAtWork(Progress):
    """On a terminal, a line for each job that has begun and not ended: how many of its epochs are done.

    Args:
        files: the orders of the jobs.
        names: the jobs' names for people, by their number.
    """

    def __init__(self, files: dict[Path, Job], names: dict[int, str], console: Console) -> None:
        self.lines: dict[Path, tuple[TaskID, Path]] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False), BarColumn(24),
            TextColumn("epoch {task.completed}/{task.total}"), TimeElapsedColumn(),
            console=console, refresh_per_second=1, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        for file, job in files.items():
            if job.folder and job.cfg:
                line = self.add_task(names[job.number], start=False, total=job.cfg["epochs"], visible=False)
                self.lines[file] = line, job.folder

    def get_renderables(self) -> Iterable[Any]:
        for file, (line, folder) in list(self.lines.items()):
            if log_of(file).exists():
                self.start_task(line)
                self.update(line, completed=epochs_done(folder), visible=True)
        return super().get_renderables()

    def remove(self, file: Path) -> None:
        """Takes away the line of a job that has ended."""
        if file in self.lines:
            self.remove_task(self.lines.pop(file)[0])
