"""What is known of each data set: reads tasks/catalogue.yaml, and compares a folder with it."""

import gzip
import shlex
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from omegaconf import OmegaConf

from ..config.table import conf_dir
from ..errors import ConfigError
from ..files import digest_of, digest_of_text
from .files import read_text

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A file of a data set, or those of a pattern, and what its publisher says of it; None is not known."""

    path: str
    tasks: tuple[str, ...] = ()  # that need it; none: all
    urls: tuple[str, ...] = ()
    size: int | None = None
    at_most: int | None = None  # bytes, where the size is not known
    md5: str | None = None
    sha256: str | None = None
    lines: int | None = None
    rows: int | None = None  # lines after a header
    files: int | None = None
    digest: str | None = None  # of a pattern's files
    packed: tuple[str, ...] = ()  # other names, under which it lies as gz
    unpack: dict[str, Any] = field(default_factory=dict)  # an archive: from, to, at_most

    def under(self, root: Path) -> list[Path]:
        """The files that are there, in order of their names; a packed one where there is no other.

        Hidden ones, such as the `._` files of a Mac's archives, are none of them.
        """
        if not root.is_dir():
            return []
        found = sorted(path for path in root.glob(self.path) if path.is_file() and not path.name.startswith("."))
        return found or [root / name for name in self.packed if (root / name).is_file()][:1]

    def wrong(self, path: Path) -> str | None:
        """How this one file differs from the published, read anew; None if it does not, as far as is known."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"expected {self.size:,} bytes, got {size:,}"
        kind = "sha256" if self.sha256 else "md5"  # the stronger one is enough
        expected = getattr(self, kind)
        got = digest_of(path, kind) if expected else expected
        return None if got == expected else f"expected {kind} {expected}, got {got}"

    def wrong_count(self, path: Path) -> str | None:
        """How many lines or rows this one file has, if not as many as the published; None where no number is known."""
        for kind, expected, header in (("lines", self.lines, 0), ("rows", self.rows, 1)):
            try:
                if expected is not None and (got := _count_lines(path) - header) != expected:
                    return f"{got:,} of {expected:,} {kind}"
            except (OSError, EOFError, zlib.error) as error:
                return f"its {kind} cannot be counted ({error})"
        return None

    def differences(self, root: Path, at_most: float = float("inf")) -> Iterator[str]:
        """How the files that are there differ from the published; those of more bytes than `at_most` are not read."""
        found = self.under(root)
        if self.files is None:
            small = (path for path in found if path.stat().st_size <= at_most)
            yield from (
                f"{self.path}: {wrong}" for path in small if (wrong := self.wrong_count(path) or self.wrong(path))
            )
        elif len(found) != self.files:
            yield f"{self.path}: {len(found):,} of {self.files:,} files"
        elif self.digest and sum(path.stat().st_size for path in found) <= at_most:
            same = self.digest == _digest_of_pattern(found)
            yield from () if same else [f"{self.path}: not the published files (by the digest over all of them)"]


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue."""

    name: str
    title: str
    tasks: tuple[str, ...]
    about: str
    size: str
    terms: str
    homepage: str
    citation: str
    published: str | None = None
    by_hand: str | None = None  # how a person gets it, where no program may
    archives: tuple[File, ...] = ()
    files: tuple[File, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    records: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    alternative: bool = False  # to another set of the same task; only got by its own name
    part: str | None = None  # the task, of what one task needs

    def of(self, task: str) -> "Entry":
        """The part that a task needs."""
        archives = tuple(file for file in self.archives if not file.tasks or task in file.tasks)
        files = tuple(file for file in self.files if not file.tasks or task in file.tasks)
        return replace(self, part=task, archives=archives, files=files)

    @property
    def word(self) -> str:
        """What a person types for it: the task, or the data set's own name."""
        return self.part or self.name

    def absent(self, root: Path) -> list[File]:
        return [file for file in self.files if not file.under(root)]

    def is_official(self, root: Path, digests: dict[str, str]) -> bool:
        """Whether these files (name under root -> sha256) are all known to be the published ones, unchanged.

        A pattern's files are all compared, also those that are not among these; one missing or one more is a change.
        """
        read = {root / name: digest for name, digest in digests.items()}
        unpacked = {root / name: d for archive in self.archives for name, d in manifest(root, archive).items()}
        left = {path for path, digest in read.items() if unpacked.get(path) != digest}
        for file in self.files:
            here = file.under(root)
            matching = [path for path in here if path in read]
            if file.digest:  # of all that are there, of which a run may read only some
                known = len(here) == file.files and file.digest == _digest_of_pattern(here, read)
            elif file.sha256:
                known = all(read[path] == file.sha256 for path in matching)
            elif file.md5:
                known = not any(file.wrong(path) for path in matching if path in left)
            elif self.by_count:
                known = not any(file.wrong_count(path) for path in matching)
            else:  # the archive alone can tell
                continue
            if not known:
                return False
            left.difference_update(matching)
        return bool(digests) and not left

    @property
    def by_count(self) -> bool:
        """Whether no digest of the published files is known, so that the number of their rows must do."""
        return not self.archives and not any(file.sha256 or file.md5 or file.digest for file in self.files)

    def advice(self, root: Path) -> list[str]:
        """How what is missing gets there."""
        if self.by_hand:
            return self.by_hand.format(root=root).splitlines()
        downloads = [file for file in (*self.archives, *self.files) if file.urls]
        sizes = [file.size or 0 for file in downloads]
        size = f"{sum(sizes) / 1e6:,.1f} MB" if sizes and all(sizes) else self.size
        lines = [f"tmbench data get {self.word} {shlex.quote(f'data_dir={root.parent}')} fetches it ({size})"]
        for file in downloads:
            kind = "sha256" if file.sha256 else "md5"
            digest = getattr(file, kind)
            known = f"{kind} {digest}" if digest else "no digest of it is known"
            then = ", to be unpacked by that command" if file.unpack else ""
            lines.append(f"or put the file of {file.urls[0]} there as {root / file.path} ({known}){then}")
        return lines


def manifest(root: Path, archive: File) -> dict[str, str]:
    """The sha256 of each file that came out of the verified archive, by its name under root; {} if not known here."""
    path = manifest_file(root, archive)
    if not path.is_file():
        return {}
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in read_text(path).splitlines())}
    of_archive = digests.pop(archive.path, None)
    return digests if of_archive and archive.sha256 in (None, of_archive) else {}


def manifest_file(root: Path, archive: File) -> Path:
    return root / f"{archive.path}.sha256"


@cache
def catalogue() -> dict[str, Entry]:
    """All data sets by name."""
    raw: Any = OmegaConf.to_container(OmegaConf.load(conf_dir().parent / "tasks" / "catalogue.yaml"))
    return {name: _entry(name, values) for name, values in raw.items()}


def entry(name: str, task: str | None = None) -> Entry:
    """One data set, or the part of it that a task needs."""
    return catalogue()[name].of(task) if task else catalogue()[name]


def _entry(name: str, values: dict[str, Any]) -> Entry:
    for group in ("archives", "files"):
        values[group] = [_made(File, name, file) for file in values.get(group, ())]
    return _made(Entry, name, {"name": name, **values})


def _made(cls: type[T], name: str, values: dict[str, Any]) -> T:
    if strange := values.keys() - {f.name for f in fields(cls)}:  # type: ignore[arg-type]
        raise ConfigError(f"catalogue.yaml, {name}: there is no {', '.join(sorted(strange))} in a {cls.__name__}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _digest_of_pattern(paths: list[Path], known: Mapping[Path, str] = MappingProxyType({})) -> str:
    """The sha256 over the lines `sha256  bare name`, sorted by name; a file whose digest is known is not read."""
    lines = (f"{known.get(path) or digest_of(path)}  {path.name}\n" for path in sorted(paths, key=lambda p: p.name))
    return digest_of_text("".join(lines))


def _count_lines(path: Path) -> int:
    """Lines with something on them; the last needs no newline."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
        return sum(1 for line in f if line.strip())
