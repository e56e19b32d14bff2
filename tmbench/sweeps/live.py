"""The table on the terminal while a sweep is at work."""

import csv
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .. import progress, signals
from ..errors import count
from ..result import Result, newest, shown
from ..runs.show import COLOURS, NARROW
from .plan import Job
from .show import varied_settings

WIDTHS = (3, 8, 9, 5, 8, 7, 9)  # of the columns, at least, so that they stay where they are
LINES_AROUND = 8  # of the terminal: the table's head and counts, a run's bar, and what is printed above


@dataclass
class _Row:
    """What is known of one job; it follows the run's curves.csv, whichever process does the job."""

    job: Job
    settings: str
    status: str = "waiting"
    epochs: int = 0
    loss: str = ""
    score: str = ""
    seen: int = 0  # when curves.csv was last written, as the file system has it
    first: tuple[int, float] | None = None  # epochs, and when there were so many
    last: tuple[int, float] = (0, 0.0)

    def read(self) -> None:
        """Takes what the run has left since the last time."""
        path = (self.job.folder or Path()) / "curves.csv"
        try:
            changed = path.stat().st_mtime_ns
            if changed == self.seen:
                return
            with path.open() as file:
                values = newest([{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)])
        except (OSError, TypeError, ValueError):  # not there yet, or just being replaced
            return
        self.seen, self.epochs, self.loss = changed, int(values["epoch"]), shown(values.get("train/loss"), "train/loss")
        # The headline metric comes first among those of the evaluation.
        headline = next((key for key in values if "/" in key and not key.startswith("train/")), "")
        self.score = shown(values.get(headline), headline)
        self.last = (self.epochs, time.monotonic())
        self.first = self.first or self.last

    def cells(self) -> tuple[str, ...]:
        epochs = f"{self.epochs}/{self.job.cfg['epochs']}"
        return str(self.job.number), self.settings, self.status, epochs, self.loss, self.score, self.left()

    def left(self) -> str:
        """The time to the end at the pace of the epochs that were seen; empty before there are two."""
        if self.status != "running" or self.first is None or self.last[0] <= self.first[0]:
            return ""
        pace = (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        since = time.monotonic() - self.last[1]
        return progress.clock(max(0.0, pace * (self.job.cfg["epochs"] - self.epochs) - since))


class JobTable:
    """A sweep's jobs while it is at work: a table on a terminal, and nothing elsewhere. A context manager.

    What is printed meanwhile goes above the table, and the bar of a run in this process below it.

    Args:
        begun: returns the numbers of the jobs that have begun, those that have ended perhaps among them.
        is_alone: whether no other process writes on the terminal.
    """

    def __init__(self, jobs: list[Job], begun: Callable[[], set[int]], console: Console, is_alone: bool = True) -> None:
        settings, varied, _ = varied_settings([(job.overrides, job.arm) for job in jobs])
        short = [key.removeprefix("optimizer.").removeprefix("task.") for key in varied]
        self.heads = ("job", "  ".join(short) or "settings", "status", "epoch", "loss", "metric", "time left")
        self.names = {
            job.number: f"job {job.number}  {' '.join(f'{key}={own.get(key)}' for key in varied)}"
            for job, own in zip(jobs, settings, strict=True)
        }
        self.rows = {
            job.number: _Row(job, "  ".join(own.get(key, "-") for key in varied))
            for job, own in zip(jobs, settings, strict=True)
        }
        self.begun, self.console, self.is_shown = begun, console, is_alone and console.is_terminal
        self.note = ""  # for a person, below the counts
        self._ended: list[int] = []  # the last one last
        self._live = Live(get_renderable=self.view, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "JobTable":
        if self.is_shown:
            progress.below = []
            with ExitStack() as stack:
                stack.enter_context(signals.hidden_cursor())
                stack.enter_context(self._live)
                self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.is_shown:
            self._open.__exit__(*error)
            progress.below = None

    def ended(self, number: int, status: str, result: Result | None = None) -> None:
        row = self.rows[number]
        row.read()
        row.status = status
        if result is not None:
            row.score = shown(result.metrics["last"].get(result.headline), result.headline)
        self._ended.append(number)

    def view(self) -> Group:
        """The table as it is now, with as many jobs as the terminal has lines for."""
        for number in self.begun() & self.rows.keys():
            if (row := self.rows[number]).status in ("waiting", "running"):
                row.status = "running"
                row.read()
        shown_rows = self._that_fit(max(3, self.console.height - LINES_AROUND))
        cells = [row.cells() for row in shown_rows]
        # No column but that of the settings is ever cut; it has what the others leave.
        widths = [max(least, *(len(one[i]) for one in (self.heads, *cells))) for i, least in enumerate(WIDTHS)]
        widths[1] = max(8, min(widths[1], self.console.width - sum(widths) + widths[1] - 2 * len(WIDTHS) - 1))
        table = Table(**NARROW)
        for i, head in enumerate(self.heads):
            justify: Any = "left" if i in (1, 2) else "right"
            table.add_column(head, justify=justify, width=widths[i], no_wrap=True, overflow="ellipsis")
        for row, texts in zip(shown_rows, cells, strict=True):
            colours = {"waiting": "", "not started": ""} | COLOURS
            table.add_row(
                *(Text(text, colours.get(row.status, "red") if i == 2 else "") for i, text in enumerate(texts))
            )
        counts = Counter(row.status for row in self.rows.values())
        words = ", ".join(f"{n} {status}" for status, n in counts.items())
        below: list[Any] = [Text(self.note, "bold")] if self.note else []
        return Group(
            table, Text(f"{count(len(self.rows), 'job')}: {words}", no_wrap=True), *below, *(progress.below or ())
        )

    def _that_fit(self, most: int) -> list[_Row]:
        """Those at work, then the next ones and the last ones that have ended, in the order of their numbers."""
        at_work = [number for number, row in self.rows.items() if row.status == "running"]
        waiting = [number for number, row in self.rows.items() if row.status == "waiting"]
        few = max(1, (most - len(at_work)) // 2)
        chosen = dict.fromkeys([*at_work, *waiting[:few], *reversed(self._ended), *waiting])
        return [self.rows[number] for number in sorted(list(chosen)[:most])]
