"""The one owner of SIGINT (Ctrl-C) and SIGTERM, which ask a process to stop, from its first import to its end.

Both mean the same: it says what is saved, and ends with status 130; the same command continues. How it stops depends on
where it is:

    imports       at once: nothing is at stake, and nobody could catch an exception; in somebody else's program after
                  them, since what is half-imported cannot be imported again
    a command     by KeyboardInterrupt, wherever it is, since files land whole; see `raising`
    training      after its step, as whoever has children tells them first; see `listening`
    its last act  not any more: its status is known
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

requested = False  # somebody has asked, and nothing has stopped for it yet
raised = False  # by an exception, which a library may have swallowed, or made another of
_owned = False  # whether this process is ours from its start to its end
_hidden = 0  # how many of those that draw on the terminal have hidden its cursor
SHOW_CURSOR = "\x1b[?25h"

Handler = Callable[[int, FrameType | None], object]


def own() -> None:
    """From now on the signals are ours: this process is our program, and not one that has imported us."""
    global _owned
    _owned, show = True, sys.unraisablehook
    # Swallowed by a destructor, say; see `check`.
    sys.unraisablehook = lambda about: None if about.exc_type is KeyboardInterrupt else show(about)
    _set([_end] * 2)


def disown() -> bool:
    """The status of the process is known: from now on no signal changes it. Returns whether it is ours."""
    if _owned:
        _set([signal.SIG_IGN] * 2)
    return _owned


@contextmanager
def listening(handler: Handler) -> Iterator[None]:
    """Meanwhile the signals call this handler, in place of what they did. Only the main thread hears them."""

    def heard(number: int, frame: FrameType | None) -> None:
        global requested
        requested = True
        handler(number, frame)

    before = _set([heard] * 2)
    try:
        yield
    finally:
        _set(before)


@contextmanager
def raising() -> Iterator[None]:
    """Meanwhile, while a command is done, the signals raise KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        global raised
        if _is_importing(frame):  # an exception there may end C++ code by abort(), and leave half a module
            if _owned:
                _end(number, frame)
            return  # `check` raises it
        raised = True
        raise KeyboardInterrupt

    with listening(interrupt):
        yield


def check() -> None:
    """Raises KeyboardInterrupt for a signal that nothing has stopped for: it came too late, or was swallowed."""
    if requested:
        forget()
        raise KeyboardInterrupt


def is_interrupt(error: BaseException) -> bool:
    """Whether an error is a request to stop, or what a library has made of it."""
    return raised or isinstance(error, KeyboardInterrupt)


def forget() -> None:
    """What was asked for has stopped."""
    global requested, raised
    requested = raised = False


def say(message: str) -> None:
    """Prints a line to stderr; for handlers, which may have interrupted another print."""
    os.write(2, f"{message}\n".encode())


@contextmanager
def hidden_cursor() -> Iterator[None]:
    """Meanwhile a table or a bar on the terminal hides its cursor, which is seen again however this ends."""
    global _hidden
    _hidden += 1
    try:
        yield
    except BaseException:  # a second signal, say, while the table ended for a first one
        os.write(2, SHOW_CURSOR.encode())
        raise
    finally:
        _hidden -= 1


def _is_importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _end(number: int, frame: FrameType | None) -> None:
    if _hidden:
        say(SHOW_CURSOR)
    if "TMBENCH_COMMAND" not in os.environ:  # else a rank: the process that started it says so
        say("interrupted; the same command continues")
    os._exit(128 + signal.SIGINT)


def _set(handlers: list[Any]) -> list[Any]:
    """Sets the handlers of SIGINT and SIGTERM; returns those before."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [
        signal.signal(number, handler)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True)
    ]
