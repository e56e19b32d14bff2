"""Downloads that resume, are checked and land whole; archives that are unpacked into their folder and nowhere else."""

import errno
import gzip
import http.client
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import DataError
from .catalogue import Entry, File, manifest, manifest_file
from .files import digest_of, locked, missing, write_whole

TRIES, PAUSE, TIMEOUT = 4, 1.0, 20.0  # of one address; seconds before the second try, doubled each time; of silence
CHUNK = 2**20
MAX_MEMBERS = 200_000
Say = Callable[[str], None]


class _Again(Exception):  # noqa: N818
    """A fault that may be gone on the next try."""


def get(entry: Entry, root: Path, say: Say = print) -> None:
    """Puts what is missing of a data set under root, checked. What is there stays as it is.

    Raises:
        DataError: that was not possible; says why, and what a person can do by hand.
    """
    if _is_done(entry, root):
        return
    if entry.by_hand:
        raise missing(root / entry.absent(root)[0].path, entry.word, *entry.advice(root))
    _keep_own(entry, root)
    with locked(root):
        if _is_done(entry, root):  # another process was at it
            return
        for archive in entry.archives:
            _get_archive(entry, archive, root, say)
        for file in entry.files:
            path = root / file.path
            if file.urls and not path.exists():
                try:
                    download(file, path, say)
                except DataError as error:
                    raise _explained(entry, root, path, error) from None
        if absent := entry.absent(root):
            raise missing(root / absent[0].path, entry.word, *entry.advice(root))


def _is_done(entry: Entry, root: Path) -> bool:
    """Nothing is missing; of an archive that is or was here, all that came out of it."""
    for archive in entry.archives:
        out = manifest(root, archive)
        if not out and (root / archive.path).exists():
            return False
        if not all((root / name).exists() for name in out):
            return False
    return not entry.absent(root)


def _explained(entry: Entry, root: Path, path: Path, error: DataError) -> DataError:
    told = [line for line in str(error).splitlines() if line.strip()]
    return missing(path, entry.word, *told, *entry.advice(root)[1:])  # the first is what has just been tried


def _keep_own(entry: Entry, root: Path) -> None:
    """Refuses to mix the published files with a person's own, unless they put the archive beside theirs."""
    own = [file.path for file in entry.files if file.under(root)]
    if own and entry.archives and not any((root / a.path).exists() or manifest(root, a) for a in entry.archives):
        archive = entry.archives[0]
        raise missing(
            root / entry.absent(root)[0].path,
            entry.word,
            f"{root / archive.unpack['to']} is there, but not from {archive.path}; it stays as it is",
            f"to have it completed, and compared, put the published archive beside it, as {root / archive.path}",
            "to have the published set instead, move that folder away",
            *entry.advice(root),
        )


def _get_archive(entry: Entry, archive: File, root: Path, say: Say) -> None:
    path, out = root / archive.path, manifest(root, archive)
    if out and all((root / name).exists() for name in out):
        return
    if not path.exists():
        try:
            download(archive, path, say)
        except DataError as error:
            raise _explained(entry, root, root / archive.unpack["to"], error) from None
    elif wrong := archive.wrong(path):
        raise DataError(
            f"{path}: {wrong}\n  it is not the published archive, or not all of it, and was not unpacked; remove it"
        )
    say(f"unpacking {path}")
    unpack(entry, archive, root)


def download(file: File, target: Path, say: Say = print) -> None:
    """Puts a file at `target`, from the first of its addresses that has it; whole and checked, or not at all.

    What has arrived stays in `<target>.part`, and the next call goes on from there.

    Raises:
        DataError: no address has it, or what came is not the published file.
    """
    told = []
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for url in file.urls:
        say(f"downloading {url}")
        try:
            return _from(url, file, target)
        except DataError as error:
            told.append(str(error))
    raise DataError("\n".join(told))


def _from(url: str, file: File, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    resumed = part.is_file() and part.stat().st_size > 0
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        try:
            _transfer(url, file, part)
        except _Again as error:
            reason = str(error)
            continue
        wrong = file.wrong(part)
        if not wrong:
            os.replace(part, target)
            _discard(part)
            return
        if not resumed:
            aside = target.with_name(f"{target.name}.wrong")
            os.replace(part, aside)
            _discard(part)
            raise DataError(f"{url}: {wrong}\nwhat came is kept as {aside}")
        _discard(part)  # its beginning was from an earlier day: once more, from scratch
        resumed, reason = False, wrong
    kept = f"; what came is kept in {part}, and the same command goes on from there" if part.is_file() else ""
    raise DataError(f"{url}: {reason}, and so {TRIES} times{kept}")


def _tag(part: Path) -> Path:
    """Where the server's name for the version that the part is of is kept."""
    return part.with_name(f"{part.name}.etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _transfer(url: str, file: File, part: Path) -> None:
    """One request, for what is not in the part yet."""
    start = part.stat().st_size if part.is_file() else 0
    if start and start == file.size:
        return
    version = _tag(part).read_text(encoding="utf-8") if _tag(part).is_file() else None
    headers = {"User-Agent": "tmbench", "Accept-Encoding": "identity"}
    if start and (version or file.sha256 or file.md5):
        headers["Range"] = f"bytes={start}-"
        if version:
            headers["If-Range"] = version  # another version is then sent whole
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing after the part: it is whole, or of another version
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            _discard(part)
            raise _Again("the server has another version of it") from None
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Again(f"the server says {error.code} {error.reason}") from None
        raise DataError(f"{url}: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionResetError)):
            raise _Again(f"no answer ({error.reason})") from None
        raise DataError(f"{url}: no connection ({error.reason})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Again(f"no answer ({error or type(error).__name__})") from None
    with response:
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _discard(part)
            raise _Again("the server sent another part than was asked for")
        total = None if response.length is None else start + response.length
        limit = file.size or file.at_most
        if total is not None and ((file.size and total != file.size) or (limit and total > limit)):
            most = "" if file.size else "at most "
            raise DataError(f"{url}: expected {most}{limit:,} bytes, the server has {total:,}")
        _receive(url, response, part, start, file.size or total, limit)


def _receive(url: str, response: Any, part: Path, start: int, total: int | None, limit: int | None) -> None:
    done = start
    with _writing(part, None if total is None else total - start):
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # a weak one does not promise the same bytes
            _tag(part).write_text(version, encoding="utf-8")
        else:
            _tag(part).unlink(missing_ok=True)
        out = part.open("ab" if start else "wb")
    with out, _progress(part.stem, start, total) as advance:
        while True:
            try:
                chunk = response.read1(CHUNK)  # what has come, so that a silence loses none of it
            except (http.client.HTTPException, OSError) as error:
                raise _Again(f"the connection was cut after {done:,} bytes ({error})") from None
            if not chunk:
                break
            with _writing(part, None if total is None else total - done):
                out.write(chunk)
                out.flush()
            done += len(chunk)
            advance(len(chunk))
            if limit and done > limit:
                raise DataError(f"{url}: expected at most {limit:,} bytes, the server sends more")
        os.fsync(out.fileno())
    if total is not None and done < total:
        raise _Again(f"the connection was cut after {done:,} of {total:,} bytes")


@contextmanager
def _writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns a failure to write into a clear message."""
    try:
        yield
    except OSError as error:
        more = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            more = f"; {free:,} bytes are free there" + (f", {needed:,} more are needed" if needed else "")
        raise DataError(f"{path}: cannot be written ({error.strerror}{more}); what is there is kept") from None


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


# Archives


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
    with _writing(root):
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
        with _writing(root):
            lines = [f"{digest}  {name}\n" for name, digest in {archive.path: digest_of(path), **found}.items()]
            write_whole(manifest_file(root, archive), "".join(lines))
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
