"""Files that several processes use at once, that a kill or a power cut may hit, and that are checked when read back."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from annotated_types import Ge, Le

from .errors import ConfigError, DataError

if TYPE_CHECKING:
    from pydantic import TypeAdapter  # else imported where something is checked: --help has no time for it

T = TypeVar("T")
Whole = Annotated[int, Ge(-(2**53)), Le(2**53)]  # as a table or another program has it
_OF_A_PARSER = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)  # for odd content
MOST_ENTRIES = 2000  # of a configuration; real ones have some two hundred
LOCK = ".lock"  # in a folder in which one process works at a time


def write(path: Path, text: str, durable: bool = True) -> None:
    """Writes a whole file, or leaves the old one: never half of it.

    It waits for the disk if `durable`; a file that is only a note of what is elsewhere may do without.
    """
    with naming(path):
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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file or folder in an OSError that names none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def folder_for(key: str, path: str | Path) -> Path:
    """The folder that a setting names, made if need be; ConfigError if it cannot be written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        raise ConfigError(f"{key}: expected a folder to write to, got {path} ({error.strerror})") from None


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


def read(path: Path, parse: Callable[[bytes], T], remedy: str = "") -> T:
    """What `parse` makes of a file's content; all that is read back comes this way.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: it is no file, cannot be read, or `parse` refuses it; the message ends with the remedy.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise DataError("expected a file, got a folder or something else")
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise
    except DataError as error:
        what = str(error)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    except (*_OF_A_PARSER, yaml.YAMLError) as error:
        what = f"damaged: not what this program writes ({type(error).__name__})"
    raise DataError(f"{path}: {what}{'; ' if remedy else ''}{remedy}")


def _whole(digits: str) -> int:
    if abs(number := int(digits)) >= 2**63:
        raise ValueError("a whole number that is too large for a table")
    return number


loads = partial(json.loads, parse_int=_whole)  # JSON of a file that we wrote


def checked(kind: Any, value: Any) -> Any:
    """A value of JSON as the type that it must be, such as a dataclass; DataError names the first place that is not."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_json(json.dumps(value), strict=True)  # of JSON, where a dict may be a dataclass
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise DataError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r:.100}") from None


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_yaml(path: Path, kind: Any) -> Any:
    """The content of a file of sealed_text, made printable; DataError if it is damaged or not of this kind."""

    def parse(text: str) -> Any:
        # libyaml ends the process where lists or mappings are nested some ten thousand deep.
        if max(map(text.count, "[{-?:")) > MOST_ENTRIES:
            raise DataError(f"expected at most {MOST_ENTRIES:,} entries")
        content = yaml.load(text, Loader=yaml.CSafeLoader)  # OmegaConf takes ten times as long
        checked(kind, content)
        return printable(content) if "\\" in text else content  # an escape is the only way into YAML

    return read_sealed_text(path, parse)


def read_sealed(path: Path, kind: Any = dict[str, Any], remedy: str = "") -> Any:
    """What write_sealed wrote, made printable; DataError, with the remedy, if that was something else or no `kind`."""

    def parse(text: bytes) -> Any:
        facts = loads(text)["facts"]
        if text != _sealed(facts).encode():  # byte for byte, so that no damage is too small
            raise DataError("damaged: its content does not match its sha256")
        return checked(kind, printable(facts) if b"\\" in text else facts)

    return read(path, parse, remedy)


def printable(value: Any) -> Any:
    """A value as JSON and YAML have them, without characters that could command a terminal: they become escapes.

    Line ends and tabs stay.
    """
    if isinstance(value, str):
        return _COMMANDS.sub(lambda found: repr(found[0])[1:-1], value)
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    return [printable(each) for each in value] if isinstance(value, list) else value


# Control characters, and those that turn the direction of writing.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def sealed_text(text: str) -> str:
    """Text whose first line is a comment with the digest of the others, as YAML may have; see read_sealed_text."""
    return f"# sha256 {digest_of_text(text)}\n{text}"


def read_sealed_text(path: Path, parse: Callable[[str], Any] = str) -> Any:
    """What sealed_text was given, parsed; DataError if the file is empty, or not what was written.

    A file without such a line, as older versions wrote it, is taken as it is.
    """

    def unsealed(content: bytes) -> Any:
        line, _, rest = content.partition(b"\n")
        if b"sha256" not in line and not line.startswith(b"#"):
            rest = content
        elif line != b"# sha256 " + hashlib.sha256(rest).hexdigest().encode():
            raise DataError(
                "damaged, or changed by hand: it does not match the sha256 in its first line; to change a setting, say "
                "it as a word: python -m tmbench.run RUN key=value"
            )
        if not rest.strip():
            raise DataError("damaged: it is empty")
        return parse(rest.decode())

    return read(path, unsealed, "the run's own command writes it again")


def scratch_in(folder: Path) -> list[Path]:
    """What killed processes left half-written in a folder to which nobody writes now: its names are of tempfile."""
    return list(folder.glob(f".?*-{'?' * 8}"))


def scratch_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A new folder, to be filled and renamed; its name says by which process, see abandoned_in."""
    prefix = f".writing-{socket.gethostname()}-{os.getpid()}-"
    return tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True)


def abandoned_in(parent: Path) -> Iterator[Path]:
    """The scratch folders of processes that are dead, as far as one can tell here, or have done nothing for a day."""
    for path in parent.glob(".writing-*"):
        made = re.fullmatch(r"\.writing-(.+)-(\d+)-[^-]+", path.name)
        is_dead = made is not None and made[1] == socket.gethostname() and not Path(f"/proc/{made[2]}").exists()
        if is_dead or is_a_day_old(path):
            yield path


def is_a_day_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > 86_400
    except FileNotFoundError:
        return False


def clear_scratch(folder: Path) -> None:
    """Removes what is half-written in a folder, for the holder of its lock."""
    for path in scratch_in(folder):
        remove(path)


def remove(path: Path) -> bool:
    """Removes a file or a folder, if it is there; False, and a line that says why, if that cannot be."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:  # another was first
        pass
    except OSError as error:
        print(f"{path}: {error.strerror}; not removed", file=sys.stderr)
        return False
    return True


def digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path, kind: str = "sha256") -> str:
    """A file's `sha256` or `md5`; DataError if it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, kind).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time in a folder, which is made if need be. A dead holder lets go.

    A folder that we may only read is not locked, since we change nothing there. Raises BlockingIOError if another
    process is at it and we are not to wait, else OSError if the folder cannot be made.
    """
    if folder.is_dir() and not is_writable(folder):
        yield
        return
    from filelock import FileLock, Timeout  # here, since it takes longer to import than most commands need

    lock = FileLock(folder / LOCK)
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


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns a failure to write into a clear message."""
    try:
        yield
    except OSError as error:
        more = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            more = f"; {free:,} bytes are free there" + (f", {needed:,} more are needed" if needed else "")
        raise DataError(f"{path}: cannot be written ({error.strerror}{more}); what is there is kept") from None
