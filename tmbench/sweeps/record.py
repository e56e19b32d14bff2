"""A sweep's record as files in its folder: which jobs it has, and what came of them."""

import json
import os
from pathlib import Path
from typing import Any

from ..files import write

MARK = "TMBENCH_SWEEP"  # in the environment of a sweep and of its jobs: which one it is
LAUNCHED = "launched.json"  # in a sweep's folder: which sweep has it, and the jobs in the order of their launch
Record = dict[str, Any]  # of a job: its words, arm and error, its run's folder and how that came


def mark() -> str:
    """Which sweep this process belongs to; empty for none."""
    return os.environ.get(MARK, "")


def is_current(folder: Path, sweep: str) -> bool:
    """Whether the sweep of this mark still has the folder: a job of a killed one may outlive it elsewhere."""
    owner = _read(folder / LAUNCHED)
    return owner is None or owner.get("sweep") == sweep


def number(folder: Path, launched: int) -> tuple[int, str]:
    """The number and the arm of the job that a launcher calls by its place among those launched."""
    owner = _read(folder / LAUNCHED)
    if owner is None or owner.get("sweep") != mark():  # another's sweeper
        return launched, ""
    found, arm = owner["jobs"][launched]
    return int(found), str(arm)


def add_job(
    folder: Path, number: int, overrides: list[str], arm: str, run: Path | None = None, how: str = "", error: str = ""
) -> None:
    """Adds a job to the sweep in `folder`: its run's folder and how it came (see run.run), or its error."""
    if not is_current(folder, mark()):
        return
    where = str(run) if run else None
    job = {"sweep": mark(), "overrides": overrides, "arm": arm, "folder": where, "how": how, "error": error}
    # Not durable: the table at the end reads it, and no power cut is between.
    write(_record(folder, number), json.dumps(job) + "\n", durable=False)


def job_of(folder: Path, number: int) -> Record | None:
    """What add_job noted of a job of this process's sweep; None if nothing."""
    job = _read(_record(folder, number))
    return job if job and job.get("sweep") == mark() else None


def _record(folder: Path, number: int) -> Path:
    return folder / f"job-{number:05d}.json"


def _read(path: Path) -> Record | None:
    """What a file of the sweep says; None if there is none, or what a power cut left of it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
