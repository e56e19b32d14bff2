"""The folder of all trunks: how much it takes, and what is removed from it."""

import contextlib
import os
import re
import shutil
import socket
import time
from pathlib import Path

STORE = ".trunks"  # under runs_dir
GIB = 2**30


def size(folder: Path) -> int:
    """Bytes on disk under a folder, a file with several names counted once."""
    seen = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                about = os.lstat(os.path.join(root, name))
                seen[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(seen.values())


def shrink(store: Path, limit: float) -> int:
    """Removes the least recently used states until the store is within `limit` bytes; returns the bytes freed."""
    freed = 0
    states = [(path, path.stat().st_mtime_ns) for path in store.glob("*/" + "[0-9]" * 5) if path.exists()]
    sizes = {path: size(path) for path, _ in states}
    for path, _ in sorted(states, key=lambda state: state[1]):
        if sum(sizes.values()) - freed <= limit:
            break
        remove(path)
        freed += sizes[path]
    return freed


def remove_leftovers(store: Path) -> int:
    """Removes what killed processes left half-done, and trunks without states; returns the bytes freed."""
    freed = 0
    for trunk in store.glob("*"):
        freed += remove_leftovers_of(trunk)
        # A day, so that nobody can be about to use it.
        if not any(trunk.glob("[0-9]" * 5)) and time.time() - trunk.stat().st_mtime > 86_400:
            shutil.rmtree(trunk, ignore_errors=True)
    return freed


def remove_leftovers_of(trunk: Path) -> int:
    """Removes what killed processes left half-done in a trunk; returns the bytes freed."""
    freed = 0
    for path in (*trunk.glob(".writing-*"), *trunk.glob(".gone-*")):
        made = re.fullmatch(r"\.writing-(.+)-(\d+)-[^-]+", path.name)
        living = made is not None and (made[1] != socket.gethostname() or Path(f"/proc/{made[2]}").exists())
        with contextlib.suppress(FileNotFoundError):  # another was first
            if not living or time.time() - path.stat().st_mtime > 86_400:
                freed += size(path)
                shutil.rmtree(path, ignore_errors=True)
    return freed


def remove(state: Path) -> None:
    """Takes a state away at once; who has begun to read it finds its files gone, or has its own links."""
    gone = state.with_name(f".gone-{state.name}-{os.getpid()}-{time.monotonic_ns()}")
    with contextlib.suppress(OSError):
        state.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
