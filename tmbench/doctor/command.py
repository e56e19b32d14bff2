"""`tmbench` in a process of its own, as a person starts it; one whose ranks can be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..result import Result, epochs_done
from ..training.ranks import GRACE, PATIENCE, python_path

PROGRAM = [sys.executable, "-m", "tmbench"]
LONGEST = 300.0  # seconds, of a command of the battery
ENDS_WITHIN = PATIENCE + GRACE + 15  # seconds, from the death of a rank to the end of its command


def can_find_children() -> bool:
    """Whether this system says which processes a process has started; Linux does."""
    return _children(os.getpid()).exists()


def _children(pid: int) -> Path:
    return Path("/proc") / str(pid) / "task" / str(pid) / "children"


@dataclass(frozen=True)
class Command:
    """`tmbench WORDS` for one run, in a folder for this run alone."""

    words: list[str]
    runs_dir: Path

    def result(self) -> Result:
        """The run's result, when the command has ended; RuntimeError with what it said if it failed."""
        with self._started() as process:
            output, _ = process.communicate(timeout=LONGEST)
        folder = next(self.runs_dir.glob("*/result.json"), self.runs_dir).parent
        result = Result.load(folder)
        if process.returncode or result is None:
            said = output.strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"tmbench {' '.join(self.words)}: exit status {process.returncode}: {said[-1]}")
        return result

    def kill_a_rank(self) -> tuple[int | None, float]:
        """Starts the command, and kills the last of its ranks as soon as an epoch is saved.

        Returns:
            Its exit status, None if it did not end within ENDS_WITHIN and was killed as well; seconds from the rank's
            end to its own.

        Raises:
            RuntimeError: it ended, or LONGEST passed, before it had saved an epoch.
        """
        deadline = time.monotonic() + LONGEST
        with self._started() as process:
            while not any(map(epochs_done, self.runs_dir.glob("*/"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"tmbench {' '.join(self.words)}: it saved no epoch, so no rank was killed")
                time.sleep(0.02)
            rank = int(_children(process.pid).read_text().split()[-1])
            killed = time.monotonic()
            os.kill(rank, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=ENDS_WITHIN)
            return process.returncode, time.monotonic() - killed

    @contextmanager
    def _started(self) -> "Iterator[subprocess.Popen[str]]":
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [*PROGRAM, *self.words, f"runs_dir={self.runs_dir}"], text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": python_path()},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()  # on Linux its ranks end with it
            process.communicate()
