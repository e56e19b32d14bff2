"""Where a task's files come from: the real ones under data_dir, or tiny ones in the same format."""

import hashlib
import inspect
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from .errors import DataError

if TYPE_CHECKING:
    import numpy as np


class Dataset(ABC):
    """One data set in its original files under `root`. Torch-free: a run is recognised by these files alone."""

    folder: str  # its place under data_dir

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """The files that a run reads; raises DataError for the first that is missing."""

    @abstractmethod
    def is_official(self, digests: dict[str, str]) -> bool:
        """Whether these files (name under root -> sha256) are the published data set, whole and unchanged."""

    @abstractmethod
    def download(self) -> None:
        """Puts the missing official files under root, checked; files that are there stay as they are.

        Raises:
            DataError: that was not possible; names the files to place by hand.
        """

    @classmethod
    @abstractmethod
    def write_tiny(cls, root: Path, rng: "np.random.Generator") -> None:
        """Writes a small learnable data set in the same format."""

    def digests(self) -> dict[str, str]:
        """The sha256 of each file, by its name under root."""
        return {str(f.relative_to(self.root)): _sha256(f) for f in sorted(self.files())}


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def folder_digest(digests: dict[str, str]) -> str:
    """One digest for many files: the sha256 over the sorted lines `sha256  name`."""
    return hashlib.sha256("".join(f"{d}  {name}\n" for name, d in sorted(digests.items())).encode()).hexdigest()


def open_dataset(cfg: DictConfig, cls: type[Dataset]) -> tuple[Dataset, str, str]:
    """The data set that a settled configuration asks for, its profile's label, and its digest.

    The label is `tiny`, `full` (the official files) or `subset` (any other real files).

    Raises:
        DataError: a file is missing and cannot be fetched.
    """
    if cfg.data.profile == "tiny":
        dataset = cls(_tiny_root(cls, Path(cfg.runs_dir)))
        try:
            return dataset, "tiny", folder_digest(dataset.digests())
        except DataError as error:
            where = str(error).splitlines()[0]
            raise DataError(f"{where}\n  the tiny data set is damaged; remove {dataset.root}") from None
    dataset = cls(Path(cfg.data_dir) / cls.folder)
    try:
        digests = dataset.digests()
    except DataError:
        if not cfg.data.download:
            raise
        dataset.download()
        digests = dataset.digests()
    return dataset, "full" if dataset.is_official(digests) else "subset", folder_digest(digests)


def _tiny_root(cls: type[Dataset], runs_dir: Path) -> Path:
    """The tiny set's folder, written if it is not there; a changed writer gets a folder of its own."""
    import numpy as np

    writer = inspect.getsource(inspect.getmodule(cls))  # type: ignore[arg-type]
    root = runs_dir / ".tiny" / f"{cls.folder}-{hashlib.sha256(writer.encode()).hexdigest()[:12]}"
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=root.parent, prefix=".writing-"))
    try:
        cls.write_tiny(scratch, np.random.default_rng(0))
        scratch.chmod(0o755)
        scratch.rename(root)
    except OSError:
        if not root.is_dir():  # else another process was first, and wrote the same
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def missing(path: Path, what: str, *advice: str) -> DataError:
    """The error for a file that is not there: where it should be, and what can be done."""
    lines = [f"{what}: no {path}", *advice, "or use data=tiny, which needs no download"]
    return DataError("\n  ".join(lines))


def read_text(path: Path) -> str:
    """A text file's content; DataError names the file if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found a byte that is not at {error.start}") from None
