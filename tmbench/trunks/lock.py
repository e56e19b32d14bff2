"""Which process trains a trunk now, how far it has come, and whether it lives."""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 60.0  # seconds without a sign of life after which others no longer wait for the holder of a lock


def is_acquired(lock: FileLock) -> bool | None:
    """Whether we hold the lock now, whose holder's death releases it; None where the file system has no locks."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError:
        return None
    return True


class Reservation:
    """What a run got from its trunk: the epoch of the state that was fetched, and perhaps the lock.

    The holder of the lock touches its file now and then, and writes into it how many epochs it has trained.
    """

    def __init__(self, start: int | None, lock: FileLock | None = None) -> None:
        self.start, self._lock = start, lock
        self._released = threading.Event()
        if lock is not None:
            threading.Thread(target=self._show_life, args=(Path(lock.lock_file),), daemon=True).start()

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def _show_life(self, path: Path) -> None:
        while not self._released.wait(PATIENCE / 6):
            with contextlib.suppress(OSError):
                os.utime(path)

    def reached(self, epoch: int) -> None:
        """Tells those who wait that the requested states up to this epoch are published."""
        if self._lock is not None:
            Path(self._lock.lock_file).write_text(str(epoch))

    def release(self) -> None:
        """Lets others train on: the run has come to its end of the trunk."""
        self._released.set()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class HolderWatch:
    """Watches a lock's holder from now on; its sign of life by our own clock, since the holder's may differ."""

    def __init__(self, lock: Path) -> None:
        self.lock, self.last_touch, self.start = lock, 0, time.monotonic()
        self.alive_at, self.announced = self.start, False

    def is_futile(self, end: int) -> bool:
        """Whether the holder has passed epoch `end`, whose state is not there, or seems to be frozen."""
        if not self.announced and time.monotonic() - self.start > 2:
            print("another process trains the epochs that this run shares with it; waiting", file=sys.stderr)
            self.announced = True
        with contextlib.suppress(OSError, ValueError):
            touch = self.lock.stat().st_mtime_ns
            if touch != self.last_touch:
                self.last_touch, self.alive_at = touch, time.monotonic()
            if int(self.lock.read_text()) >= end:
                return True
        if time.monotonic() - self.alive_at < PATIENCE:
            return False
        print(f"no sign of life from it in {PATIENCE:.0f} s: going on without it", file=sys.stderr)
        return True
