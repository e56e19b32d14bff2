"""Archives that are not to be trusted: unpacked into their own folder and nowhere else, so large and no larger."""

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import DataError
from ..files import digest_of, write, writing
from .catalogue import Entry, File, manifest_file

CHUNK = 2**20
MAX_MEMBERS = 200_000
Member = tuple[str, str, int, Callable[[], Any]]  # name, kind ("a file", "a folder" ...), bytes, what opens it


def unpack(entry: Entry, archive: File, root: Path) -> None:
    """Unpacks a verified archive beside its place, compares what came with the catalogue, and moves it in.

    Files that are there already stay as they are. The sha256 of all that came out is written to
    `<archive>.sha256`, so that it can be told later which files are the published ones. DataError if it is broken, or
    has what no data set's archive has (names outside its folder, links, devices, more bytes than it may); nothing was
    then moved in.
    """
    path, spec = root / archive.path, archive.unpack
    for left in root.glob(".unpacking-*"):  # of a process that was killed: this one holds the lock
        shutil.rmtree(left, ignore_errors=True)
    with writing(root):
        scratch = Path(tempfile.mkdtemp(dir=root, prefix=".unpacking-"))
    try:
        try:
            _extract(path, scratch, PurePosixPath(spec["from"]), PurePosixPath(spec["to"]), spec["at_most"])
        except DataError:
            raise
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, RuntimeError) as error:
            raise DataError(f"{path}: not a readable archive ({error})") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be unpacked ({error})") from None
        found = sorted(file for file in scratch.rglob("*") if file.is_file())
        digests = {file.relative_to(scratch).as_posix(): digest_of(file) for file in found}
        if not digests:
            raise DataError(f"{path}: expected files under {spec['from'] or '.'}, found none")
        for file in entry.files:
            for difference in file.differences(scratch) if file.under(scratch) else ():
                raise DataError(f"{path}: what came out of it is not what was published: {difference}")
        with writing(root):
            lines = [f"{digest}  {name}\n" for name, digest in {archive.path: digest_of(path), **digests}.items()]
            write(manifest_file(root, archive), "".join(lines))
            _move(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """Moves a folder's content into another; at once where nothing is, else beside what is there."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            path.rename(place)
        elif path.is_dir() and place.is_dir():
            _move(path, place)


def _extract(path: Path, scratch: Path, inside: PurePosixPath, to: PurePosixPath, at_most: int) -> None:
    """Writes the files under one folder of an archive into another folder under scratch."""
    total = 0
    members = _members_of_zip(path) if path.suffix == ".zip" else _members_of_tar(path, at_most)
    for number, (name, kind, size, opened) in enumerate(members, 1):
        member, place = f"{path}: member {number}, {name[:80]!r},", PurePosixPath(name)
        if number > MAX_MEMBERS:
            raise DataError(f"{path}: more than {MAX_MEMBERS:,} members; nothing was unpacked")
        if not name or "\\" in name or "\0" in name or place.is_absolute() or ".." in place.parts:
            raise DataError(f"{member} leads out of the folder; nothing was unpacked")
        if kind == "a folder":
            continue
        if kind != "a file":
            raise DataError(f"{member} is {kind}, not a file; nothing was unpacked")
        if not place.is_relative_to(inside):
            continue
        total += size
        if total > at_most:
            raise _too_large(path, at_most)
        target = scratch / to / place.relative_to(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as content, target.open("xb") as out:
            shutil.copyfileobj(content, out, CHUNK)
        if target.stat().st_size != size:
            raise EOFError(f"{target.name}: expected {size:,} bytes, got {target.stat().st_size:,}")


def _too_large(path: Path, at_most: int) -> DataError:
    return DataError(f"{path}: more than {at_most:,} bytes when unpacked; nothing was unpacked")


class _Bounded:
    """A stream that ends in an error after so many bytes, whatever its headers say."""

    def __init__(self, stream: IO[bytes], archive: Path, at_most: int) -> None:
        self.stream, self.archive, self.at_most, self.left = stream, archive, at_most, at_most

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise _too_large(self.archive, self.at_most)
        return content


def _members_of_tar(path: Path, at_most: int) -> Iterator[Member]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.open(fileobj=_Bounded(stream, path, at_most), mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                kind = "a link" if member.islnk() or member.issym() else "a folder" if member.isdir() else "special"
                if member.isreg() and not member.issparse():
                    kind = "a file"
                yield member.name, kind, member.size, partial(tar.extractfile, member)


def _members_of_zip(path: Path) -> Iterator[Member]:
    """Reading one of them gives as many bytes as it says at most, so that their sum is a bound."""
    kinds = {0: "a file", stat.S_IFREG: "a file", stat.S_IFLNK: "a link"}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            kind = "a folder" if member.is_dir() else kinds.get(stat.S_IFMT(member.external_attr >> 16), "special")
            yield member.filename, kind, member.file_size, partial(archive.open, member)
