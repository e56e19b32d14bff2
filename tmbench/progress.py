"""What is told on standard error while something takes long: a bar on a terminal, else a plain line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from . import signals

if TYPE_CHECKING:
    from rich.progress import Progress

EVERY = 30.0  # seconds between two lines
below: "list[Progress] | None" = None  # the bars below a sweep's table, while that is on the terminal
T = TypeVar("T")


class Lines:
    """Plain lines, at most one in `EVERY` seconds, but for those that must be told."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()

    def say(self, text: Callable[[], str], must: bool = False) -> None:
        """Prints the text, which is made only then: a training loop comes here after every step."""
        now = time.monotonic()
        if must or now - self._last >= EVERY:
            self._last = now
            print(text(), file=sys.stderr, flush=True)

    def time_left(self, done: float, total: float) -> str:
        """The time that has passed, and what the rest takes at the same pace."""
        passed = time.monotonic() - self.start
        return f"{clock(passed)} passed, {clock(passed * (total - done) / done) if done else '?'} left"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


@contextmanager
def displayed(bar: "Progress") -> "Iterator[Progress]":
    """Meanwhile a bar is on the terminal: below a sweep's table, if there is one."""
    if (bars := below) is None:
        with signals.hidden_cursor(), bar:
            yield bar
        return
    bars.append(bar)
    try:
        yield bar
    finally:
        bars.remove(bar)


@contextmanager
def progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Tells how many bytes are done: yields a function to be called with how many more are."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        with displayed(Progress(*columns, console=Console(stderr=True))) as bar:
            task = bar.add_task(name, total=total, completed=start)
            yield lambda count: bar.advance(task, count)
        return
    lines, done = Lines(), start

    def advance(count: int) -> None:
        nonlocal done
        done += count
        lines.say(text)

    def text() -> str:
        of = f" of {total / 1e6:,.0f} MB, {lines.time_left(done - start, total - start)}" if total else " MB"
        return f"{name}: {done / 1e6:,.0f}{of}"

    yield advance


def track(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """The items, while it tells how many of them have come."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with displayed(Progress(console=Console(stderr=True))) as bar:
            yield from bar.track(items, total, description=name)
        return
    lines = Lines()
    for done, item in enumerate(items, 1):
        lines.say(lambda done=done: f"{name}: {done:,} of {total:,}, {lines.time_left(done, total)}")  # type: ignore[misc]
        yield item


def loading_torch() -> None:
    """Says why nothing happens for some seconds, where torch is about to be imported."""
    if "torch" not in sys.modules:
        print("loading torch ...", file=sys.stderr, flush=True)
