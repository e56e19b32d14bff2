"""Folders that are written once, whole, and whose every file is checked later; and what folders take on disk."""

import os
import stat
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import DataError
from .files import abandoned_in, digest_of, flush, land, locked, naming, remove, scratch_folder, write, writing

MANIFEST = ".sha256"  # of a sealed folder: a line `sha256  name` for each of its files


def written_once(root: Path, fill: Callable[[Path], None]) -> Path:
    """A folder that `fill` fills if it is not there, or is no longer as it was filled; it appears whole or not at all.

    The folder is sealed, and every byte of it is read to check that. A damaged one is named on stderr and written
    again; a process that has its files open or mapped keeps them.
    """
    if root.is_dir() and (wrong := damage(root)):
        print(f"{root}: damaged: {wrong}; it is written again", file=sys.stderr)
        with writing(root), locked(root.parent):  # so that nobody takes away what another has just written anew
            if root.is_dir() and damage(root) is not None:
                with scratch_folder(root.parent) as aside:
                    root.rename(Path(aside) / root.name)  # at once
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    for path in abandoned_in(root.parent):
        remove(path)
    try:
        with naming(root), scratch_folder(root.parent) as name:
            fill(scratch := Path(name))
            seal(scratch)
            scratch.chmod(0o755)
            land(scratch, root)
    except OSError:
        if not root.is_dir():  # else another process was first, and wrote the same
            raise
    return root


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


def size(folder: Path) -> int:
    """Bytes on disk under a folder, a file with several names counted once."""
    seen = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                about = os.lstat(os.path.join(root, name))
                seen[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(seen.values())


def freed_without(path: Path) -> int:
    """Bytes of files that would be gone with a file or folder: not of those that have a name elsewhere, too."""
    names, about = Counter[int](), dict[int, os.stat_result]()
    for file in [path, *path.rglob("*")]:
        with suppress(OSError):
            found = file.lstat()
            names[found.st_ino] += 1
            about[found.st_ino] = found
    # Not their blocks, of which a new file may have none yet.
    return sum(f.st_size for ino, f in about.items() if stat.S_ISREG(f.st_mode) and f.st_nlink == names[ino])
