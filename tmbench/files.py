"""Files that several processes use at once, that a kill or a power cut may hit, and that are checked when read back."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import DataError

MANIFEST = ".sha256"  # of a sealed folder: a line `sha256  name` for each of its files


def write(path: Path, text: str, durable: bool = True) -> None:
    """Writes a whole file, or leaves the old one: never half of it.

    It waits for the disk if `durable`; a file that is only a note of what is elsewhere may do without.
    """
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(scratch, 0o644)
        land(Path(scratch), path) if durable else os.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(scratch)
        raise


def land(scratch: Path, target: Path) -> None:
    """Moves a finished file to its place in the same file system; its content is on the disk before its name is."""
    flush(scratch)
    os.replace(scratch, target)
    flush(target.parent)


def link(source: Path, target: Path) -> None:
    """The same bytes under another name, once on disk where that is possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk; a power cut then loses none of them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_sealed(path: Path, facts: dict[str, Any]) -> None:
    """Writes facts as JSON with a digest of their own, `sha256`; see read_sealed. Raises ValueError for a NaN."""
    write(path, _sealed(facts))


def _sealed(facts: dict[str, Any]) -> str:
    digest = digest_of_text(json.dumps(facts, indent=2, allow_nan=False))
    return json.dumps({"sha256": digest, "facts": facts}, indent=2, allow_nan=False) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """The facts that write_sealed wrote; DataError if the file is not what was written."""
    text = path.read_bytes()
    try:
        facts: dict[str, Any] = json.loads(text)["facts"]
        if text == _sealed(facts).encode():  # byte for byte, so that no damage is too small
            return facts
        what = "its content does not match its sha256"
    except (ValueError, KeyError, TypeError) as error:
        what = f"not JSON as this program writes it ({type(error).__name__})"
    raise DataError(f"{path}: damaged: {what}")


def sealed_text(text: str) -> str:
    """Text whose first line is a comment with the digest of the others, as YAML may have; see read_sealed_text."""
    return f"# sha256 {digest_of_text(text)}\n{text}"


def read_sealed_text(path: Path) -> str:
    """What sealed_text was given; DataError if the file is empty, or not what was written.

    A file without such a line, as older versions wrote it, is taken as it is.
    """
    content = path.read_bytes()
    line, _, rest = content.partition(b"\n")
    if b"sha256" not in line and not line.startswith(b"#"):
        rest = content
    elif line != b"# sha256 " + hashlib.sha256(rest).hexdigest().encode():
        raise DataError(
            f"{path}: damaged, or changed by hand: it does not match the sha256 in its first line; the run's own "
            "command writes it again; to change a setting, say it as a word: python -m tmbench.run FILE key=value"
        )
    if not rest.strip():
        raise DataError(f"{path}: damaged: it is empty; the run's own command writes it again")
    return rest.decode()


def clear_scratch(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder to which nobody writes now."""
    for path in folder.glob(f".?*-{'?' * 8}"):
        if path.is_file():
            path.unlink()


def digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def seal(folder: Path) -> None:
    """Writes down the digest of every file under a folder; see damage. All of it is then on the disk."""
    for path in _files(folder):
        flush(path)
    write(folder / MANIFEST, _manifest(folder))


def damage(folder: Path) -> str | None:
    """What is no longer as it was when the folder was sealed; None if nothing. Every file is read."""
    try:
        texts = (folder / MANIFEST).read_bytes().decode(errors="replace"), _manifest(folder)
    except (OSError, DataError) as error:
        return f"it cannot be checked ({error})"
    lines = ([line.partition("  ") for line in text.split("\n") if line] for text in texts)
    was, now = ({name: digest for digest, _, name in each} for each in lines)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            how = "is missing" if name not in now else "has changed" if name in was else "is not one of its files"
            return f"{name} {how}"
    return None if texts[0] == texts[1] else f"{MANIFEST} has changed"


def _manifest(folder: Path) -> str:
    return "".join(f"{digest_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


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

    Raises BlockingIOError if another process is at it and we are not to wait, else OSError if it cannot be written to.
    """
    from filelock import FileLock, Timeout  # here, since it takes longer to import than most commands need

    lock = FileLock(folder / ".lock")
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the folder was removed meanwhile
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if not wait:
                    raise BlockingIOError(f"{folder}: in use by another process") from None
                print(f"{folder} is in use by another process; waiting for it", file=sys.stderr)
                lock.acquire()
    try:
        yield
    finally:
        lock.release()
