"""Checkpoints that notice damage: torch's own files, each with its number of epochs and its own sha256 inside.

Both are the comment with which a ZIP archive may end. So one rename lands all of it, links and copies keep it, and
plain `torch.load` reads the file; torch itself does not compare the archive's checksums. Torch-free but for save and
load.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from .errors import DataError, RunError
from .files import land

NOTE = 10 + 64  # bytes of the comment: nine digits, a space, and the sha256 of all other bytes of the file
WRITING = ".writing.ckpt"  # beside a checkpoint, while it is written
# What a checkpoint may hold beside tensors and plain values: parts of the state of an optimizer that conf/ offers.
SAFE_TYPES = {
    f"pytorch_optimizer.optimizer.utils.{name}"
    for name in (
        "preconditioner.PreConditioner", "partition.BlockPartitioner", "partition.PreConditionerType", "graft.Graft",
        "graft.SGDGraft", "graft.SQRTNGraft", "graft.AdaGradGraft", "graft.RMSPropGraft",
    )
}  # fmt: skip


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint, or leaves the old one whole. It is on the disk when this returns.

    Raises:
        OSError: the file could not be written.
        RunError: it holds what `load` refuses.
    """
    import torch

    scratch = path.with_name(WRITING)
    scratch.unlink(missing_ok=True)  # of a killed process; it may be a second name of a file that we keep
    try:
        with scratch.open("wb") as file:
            out = _HashingFile(file)
            try:
                torch.save(checkpoint, out)  # type: ignore[arg-type]  # all that it needs is to write
            except RuntimeError as error:
                raise out.error or error from None
            note = b"%09d " % (checkpoint["epoch"] + 1)
            out.digest.update(note)
            file.seek(-2, os.SEEK_END)  # the comment's length, which was 0
            file.write(NOTE.to_bytes(2, "little") + note + out.digest.hexdigest().encode())
        if unsafe := _other_types(scratch) - SAFE_TYPES:
            raise RunError(
                f"checkpoint: expected tensors and plain values, got {_shown(unsafe)} in the optimizer's or the "
                "network's state, which a resumed run would refuse to load\n  keep plain values there; or add "
                "to the module that defines the class: torch.serialization.add_safe_globals([TheClass])"
            )
        land(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class _HashingFile:
    """Writes what torch.save gives it, in order, and hashes it.

    torch turns what is raised meanwhile into a RuntimeError about the position in the file; `error` keeps it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            count = self.file.write(data)
        except BaseException as error:
            self.error = error
            raise
        self.digest.update(data)
        return count

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, sealed: bool = True) -> dict[str, Any]:
    """What was saved, on the CPU.

    Args:
        sealed: False for a file of before checkpoints had a digest.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or holds more than tensors, plain values and `SAFE_TYPES`. Nothing of it has run then.
    """
    import torch

    with path.open("rb") as file:  # once, so that what is loaded is what was checked
        if sealed:
            _check(file, path)
        try:
            if unsafe := (others := _other_types(file)) - SAFE_TYPES:
                raise DataError(
                    f"{path}: not loaded, since code of its own could run: expected tensors and plain values, got "
                    f"{_shown(unsafe)}\n  if you trust the file and that class, add to the module that "
                    "defines the class: torch.serialization.add_safe_globals([TheClass])"
                )
            file.seek(0)
            with torch.serialization.safe_globals([_imported(name) for name in others]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except DataError:
            raise
        except Exception as error:
            raise _damaged(path, f"torch cannot read it ({type(error).__name__})") from None


def _other_types(file: Any) -> set[str]:
    """Names of the classes and functions in a checkpoint that are neither torch's own nor declared to be safe."""
    import torch

    if not isinstance(file, Path):
        file.seek(0)
    return set(torch.serialization.get_unsafe_globals_in_checkpoint(file))


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def _shown(names: Iterable[str]) -> str:
    return ", ".join(repr(name)[1:-1][:80] for name in sorted(names)[:3])


def check(path: Path) -> None:
    """Reads all of a checkpoint; DataError if it is not what was saved."""
    with path.open("rb") as file:
        _check(file, path)


def _check(file: BinaryIO, path: Path) -> None:
    digest, left = hashlib.sha256(), os.fstat(file.fileno()).st_size - 2 - NOTE
    while left > 0 and (chunk := file.read(min(left, 2**20))):
        digest.update(chunk)
        left -= len(chunk)
    end = file.read()
    digest.update(b"\0\0" + end[2:-64])
    if not _NOTED.fullmatch(end):
        raise _damaged(path, "it does not end with its sha256")
    if end[-64:] != digest.hexdigest().encode():
        raise _damaged(path, "its content does not match its sha256")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: damaged: {what}; bring back a copy of it, or repeat the run from its start: force=true")


_NOTED = re.compile(re.escape(NOTE.to_bytes(2, "little")) + rb"(\d{9}) [0-9a-f]{64}", re.DOTALL)


def epochs(path: Path) -> int | None:
    """How many epochs a checkpoint has, read from its end alone; None if it is not there or does not say."""
    try:
        with path.open("rb") as file:
            file.seek(-2 - NOTE, os.SEEK_END)
            noted = _NOTED.fullmatch(file.read())
    except OSError:
        return None
    return int(noted[1]) if noted else None
