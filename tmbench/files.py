"""Files that several processes use at once, and that a kill may hit at any moment."""

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


def write(path: Path, text: str) -> None:
    """Writes a whole file, or leaves the old one: never half of it."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def digest_of(path: Path, kind: str = "sha256") -> str:
    """A file's `sha256` or `md5`; DataError if it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, kind).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time in a folder, which is made if need be. A dead holder lets go.

    Raises:
        BlockingIOError: another process is at it, and we are not to wait.
        OSError: the folder cannot be written to.
    """
    path = folder / ".lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                print(f"another process is at {folder}; waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
            # The folder was removed meanwhile; what we have locked is gone.
