"""Gets what is missing of a data set: downloads that resume, are checked, and land whole or not at all.

Ours, since torchvision's and pooch's downloads start again from the first byte after a cut.
"""

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import land, locked, writing
from ..progress import progress
from .archive import unpack
from .catalogue import Entry, File, manifest
from .files import missing

TRIES, PAUSE, TIMEOUT = 4, 1.0, 20.0  # of one address; seconds before the second try, doubled each time; of silence
CHUNK = 2**20


class _Again(Exception):  # noqa: N818
    """A fault that may be gone on the next try."""


def get(entry: Entry, root: Path) -> None:
    """Puts what is missing of a data set under root, checked. What is there stays as it is.

    DataError says why that was not possible, and what a person can do by hand.
    """
    if _is_done(entry, root):
        return
    if entry.by_hand:
        raise missing(root / entry.absent(root)[0].path, entry.word, *entry.advice(root))
    _keep_own(entry, root)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    with locked(root):
        if _is_done(entry, root):  # another process was at it
            return
        for archive in entry.archives:
            if not _is_unpacked(archive, root):
                _get_file(entry, archive, root, root / archive.unpack["to"])
                print(f"unpacking {root / archive.path}")
                unpack(entry, archive, root)
        for file in entry.files:
            if file.urls and not (root / file.path).exists():
                _get_file(entry, file, root, root / file.path)
        if absent := entry.absent(root):
            raise missing(root / absent[0].path, entry.word, *entry.advice(root))


def _is_done(entry: Entry, root: Path) -> bool:
    """Nothing is missing; of an archive that is or was here, all that came out of it."""
    here = [archive for archive in entry.archives if (root / archive.path).exists() or manifest(root, archive)]
    return all(_is_unpacked(archive, root) for archive in here) and not entry.absent(root)


def _is_unpacked(archive: File, root: Path) -> bool:
    out = manifest(root, archive)
    return bool(out) and all((root / name).exists() for name in out)


def _keep_own(entry: Entry, root: Path) -> None:
    """Refuses to mix the published files with a person's own, unless they put the archive beside theirs."""
    present = [file.path for file in entry.files if file.under(root)]
    if present and entry.archives and not any((root / a.path).exists() or manifest(root, a) for a in entry.archives):
        archive = entry.archives[0]
        ways = [
            f"{root / archive.unpack['to']} is there, but not from {archive.path}; it stays as it is",
            f"to have it completed, and compared, put the published archive beside it, as {root / archive.path}",
            "to have the published set instead, move that folder away",
        ]
        raise missing(root / entry.absent(root)[0].path, entry.word, *ways, *entry.advice(root))


def _get_file(entry: Entry, file: File, root: Path, needed: Path) -> None:
    """Downloads a file that is not there, or checks the one that is; an error names what is `needed` of it."""
    path = root / file.path
    if not path.exists():
        try:
            download(file, path)
        except DataError as error:
            reasons = [line for line in str(error).splitlines() if line.strip()]
            advice = entry.advice(root)[1:]  # the first is what has just been tried
            raise missing(needed, entry.word, *reasons, *advice) from None
    elif wrong := file.wrong(path):
        raise DataError(
            f"{path}: {wrong}\n  it is not the published archive, or not all of it, and was not unpacked; remove it"
        )


def download(file: File, target: Path) -> None:
    """Puts a file at `target`, from the first of its addresses that has it; whole and checked, or not at all.

    What has arrived stays in `<target>.part`, and the next call continues there. DataError if no address has it, or
    what came is not the published file.
    """
    failures = []
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for url in file.urls:
        print(f"downloading {url}")
        try:
            return _from(url, file, target)
        except DataError as error:
            failures.append(str(error))
    raise DataError("\n".join(failures))


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
            land(part, target)
            return _discard(part)
        if not resumed:
            aside = target.with_name(f"{target.name}.wrong")
            os.replace(part, aside)
            _discard(part)
            raise DataError(f"{url}: {wrong}\nwhat came is kept as {aside}")
        _discard(part)  # its beginning was from an earlier day: once more, from scratch
        resumed, reason = False, wrong
    kept = f"; what came is kept in {part}, and the same command continues from there" if part.is_file() else ""
    raise DataError(f"{url}: {reason}; tried {TRIES} times{kept}")


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
        said = f"the server says {error.code} {error.reason}"
        if error.code == 416:  # there is nothing after the part: it is whole, or of another version
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            _discard(part)
            said = "the server has another version of it"
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _Again(said) from None
        raise DataError(f"{url}: {said}") from None
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
            raise _Again("the server sent a different part of the file than requested")
        total = None if response.length is None else start + response.length
        limit = file.size or file.at_most
        if total is not None and ((file.size and total != file.size) or (limit and total > limit)):
            most = "" if file.size else "at most "
            raise DataError(f"{url}: expected {most}{limit:,} bytes, the server has {total:,}")
        _receive(url, response, part, start, file.size or total, limit)


def _receive(url: str, response: Any, part: Path, start: int, total: int | None, limit: int | None) -> None:
    done = start
    with writing(part, None if total is None else total - start):
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if version and not version.startswith("W/"):  # a weak one does not promise the same bytes
            _tag(part).write_text(version, encoding="utf-8")
        else:
            _tag(part).unlink(missing_ok=True)
        out = part.open("ab" if start else "wb")
    with out, progress(part.stem, start, total) as advance:
        while True:
            try:
                chunk = response.read1(CHUNK)  # what has come, so that a silence loses none of it
            except (http.client.HTTPException, OSError) as error:
                raise _Again(f"the connection was cut after {done:,} bytes ({error})") from None
            if not chunk:
                break
            with writing(part, None if total is None else total - done):
                out.write(chunk)
                out.flush()
            done += len(chunk)
            advance(len(chunk))
            if limit and done > limit:
                raise DataError(f"{url}: expected at most {limit:,} bytes, the server sends more")
        os.fsync(out.fileno())
    if total is not None and done < total:
        raise _Again(f"the connection was cut after {done:,} of {total:,} bytes")
