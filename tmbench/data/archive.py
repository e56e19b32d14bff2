"""Archives that are not to be trusted: unpacked into their own folder and nowhere else, so large and no larger."""

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import DataError
from ..files import digest_of, write
from .catalogue import Entry, File, manifest_file
from .files import writing

CHUNK = 2**20
MAX_MEMBERS = 200_000


def unpack(entry: Entry, archive: File, root: Path) -> None:
    """Unpacks a verified archive beside its place, compares what came with the catalogue, and moves it in.

    Files that are there already stay as they are. The sha256 of all that came out is written to
    `<archive>.sha256`, so that it can be told later which files are the published ones.

    Raises:
        DataError: it is broken, or has what no data set's archive has: names outside its folder, links, devices,
            more bytes than it may; nothing was moved in.
    """
    path, spec = root / archive.path, archive.unpack
    for left in root.glob(".unpacking-*"):  # of a process that was killed: this one holds the lock
        shutil.rmtree(left, ignore_errors=True)
    with writing(root):
        scratch = Path(tempfile.mkdtemp(dir=root, prefix=".unpacking-"))
    try:
        writer = _unzip if path.suffix == ".zip" else _untar
        try:
            writer(path, scratch, PurePosixPath(spec["from"]), PurePosixPath(spec["to"]), spec["at_most"])
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, RuntimeError) as error:
            raise DataError(f"{path}: not a readable archive ({error})") from None
        except (OSError, ValueError, NotImplementedError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be unpacked ({error})") from None
        found = {file.relative_to(scratch).as_posix(): digest_of(file) for file in _files(scratch)}
        if not found:
            raise DataError(f"{path}: expected files under {spec['from'] or '.'}, found none")
        for file in entry.files:
            for difference in file.differences(scratch) if file.under(scratch) else ():
                raise DataError(f"{path}: what came out of it is not what was published: {difference}")
        with writing(root):
            lines = [f"{digest}  {name}\n" for name, digest in {archive.path: digest_of(path), **found}.items()]
            write(manifest_file(root, archive), "".join(lines))
            _move(scratch, root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _move(source: Path, target: Path) -> None:
    """Moves a folder's content into another; at once where nothing is, else beside what is there."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if not os.path.lexists(place):
            path.rename(place)
        elif path.is_dir() and place.is_dir():
            _move(path, place)


def _place(archive: Path, number: int, name: str, inside: PurePosixPath, to: PurePosixPath) -> PurePosixPath | None:
    """Where a member goes under the folder, or None if it is not wanted."""
    pure = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"{archive}: member {number}, {name[:80]!r}, leads out of the folder; nothing was unpacked")
    return to / pure.relative_to(inside) if pure.is_relative_to(inside) else None


def _refused(archive: Path, number: int, name: str, kind: str) -> DataError:
    return DataError(f"{archive}: member {number}, {name[:80]!r}, is {kind}, not a file; nothing was unpacked")


class _Bounded:
    """A stream that ends in an error after so many bytes, whatever its headers say."""

    def __init__(self, stream: IO[bytes], archive: Path, at_most: int, done: int = 0) -> None:
        self.stream, self.archive, self.at_most, self.left = stream, archive, at_most, at_most - done

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise DataError(f"{self.archive}: more than {self.at_most:,} bytes when unpacked; nothing was unpacked")
        return content


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        shutil.copyfileobj(source, out, CHUNK)
    if target.stat().st_size != size:
        raise EOFError(f"{target.name}: expected {size:,} bytes, got {target.stat().st_size:,}")


def _untar(path: Path, scratch: Path, inside: PurePosixPath, to: PurePosixPath, at_most: int) -> None:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.open(fileobj=_Bounded(stream, path, at_most), mode="r|") as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar, 1):
                if number > MAX_MEMBERS:
                    raise DataError(f"{path}: more than {MAX_MEMBERS:,} members; nothing was unpacked")
                place = _place(path, number, member.name, inside, to)
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    kind = "a link" if member.islnk() or member.issym() else "special"
                    raise _refused(path, number, member.name, kind)
                content = tar.extractfile(member)
                assert content is not None
                if place is not None:
                    _copy(content, scratch / place, member.size)


def _unzip(path: Path, scratch: Path, inside: PurePosixPath, to: PurePosixPath, at_most: int) -> None:
    done = 0
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise DataError(f"{path}: more than {MAX_MEMBERS:,} members; nothing was unpacked")
        for number, member in enumerate(members, 1):
            place = _place(path, number, member.filename, inside, to)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise _refused(path, number, member.filename, "a link" if kind == stat.S_IFLNK else "special")
            if place is None:
                continue
            with archive.open(member) as content:
                bounded: Any = _Bounded(content, path, at_most, done)
                _copy(bounded, scratch / place, member.file_size)
            done += member.file_size
