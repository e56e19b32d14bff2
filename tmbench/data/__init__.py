"""Where a task's files come from: the real ones under data_dir, or tiny ones in the same format.

`python -m tmbench.data` lists, gets, prepares, verifies and describes them.
"""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..config.table import values_of
from ..errors import ConfigError, DataError, making
from ..files import digest_of_text
from ..folders import written_once
from . import files
from .catalogue import Entry, entry
from .files import digests_of, folder_digest, missing, read_bytes, read_pickle, read_picture, read_text

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Dataset", "entry", "folder_digest", "missing", "open_dataset", "read_bytes", "read_pickle", "read_picture",
    "read_text",
]  # fmt: skip


class Dataset(ABC):
    """One data set in its original files under `root`. Torch-free: a run is recognised by these files alone.

    A data set says which files are read and how tiny ones are written. One of the catalogue is thereby known,
    fetched and checked; any other is a person's own, and counts as a subset of nothing published.
    """

    folder: str  # its place under data_dir
    entry: Entry | None = None  # what tasks/catalogue.yaml says of it
    parts: "tuple[type[Dataset], ...]" = ()  # of several sets read together, each in its own folder under root
    opened: tuple[Path, dict[str, str]] | None = None  # the runs_dir and the digests, if a run has opened it
    checked: frozenset[Path] = frozenset()  # the prepared folders whose every byte has been checked since

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """The files that a run reads; raises DataError for the first that is missing."""

    @classmethod
    def source(cls) -> str:
        """The code that writes what is derived from the files, and the tiny ones; other code writes to another folder.

        That is the modules of the class and of its bases; of a data set that is a package, all modules in it.
        """
        bases = [base for base in cls.__mro__ if issubclass(base, Dataset) and base is not Dataset]
        paths = {Path(inspect.getfile(base)): None for base in bases}
        for path in [path for path in paths if path.name == "__init__.py"]:
            paths |= dict.fromkeys(sorted(path.parent.glob("*.py")))
        return "".join(path.read_text(encoding="utf-8") for path in (*paths, Path(files.__file__)))

    @classmethod
    @abstractmethod
    def write_tiny(cls, root: Path, rng: "np.random.Generator") -> None:
        """Writes a small learnable data set in the same format."""

    def counts(self) -> dict[str, int]:
        """How many examples each split has, every one of them read; DataError names the first that is broken."""
        return {}

    def prepare(self, out: Path, **settings: Any) -> None:  # noqa: B027 (nothing is what most need)
        """Writes what is derived from the files into the new folder `out`, if anything is; see `prepared`."""

    def is_official(self, digests: dict[str, str]) -> bool:
        """Whether these files (name under root -> sha256) are the published data set, whole and unchanged."""
        return self.entry is not None and self.entry.is_official(self.root, digests)

    def download(self) -> None:
        """Puts the missing official files under root, checked; files that are there stay as they are.

        DataError, if that was not possible, names the files to place by hand.
        """
        from .fetch import get

        if self.entry:
            get(self.entry, self.root)
        else:
            list(self.files())  # says what is missing

    def missing(self, path: Path, *advice: str) -> DataError:
        """The error for a file that is not there, with how it gets there if the catalogue knows."""
        word, ways = (self.entry.word, self.entry.advice(self.root)) if self.entry else (self.folder, [])
        return missing(path, word, *advice, *ways)

    def file(self, name: str) -> Path:
        """The file of this name under root; raises DataError if it is missing."""
        if not (path := self.root / name).is_file():
            raise self.missing(path)
        return path

    def digests(self, cache: Path | None = None) -> dict[str, str]:
        """The sha256 of each file, by its name under root; with a cache, unchanged files are not read again."""
        return digests_of(self.root, self.files(), cache)

    def prepared(self, runs_dir: Path, digests: dict[str, str] | None = None, **settings: Any) -> Path:
        """The folder under runs_dir that `prepare` fills, once for each content of the files and choice of settings.

        It appears whole or not at all, also when several processes want it. The first call for a folder reads all of it
        and compares it with its digests; a damaged one is named and written again.
        """
        key = json.dumps([folder_digest(digests or self.digests()), settings, self.source()], sort_keys=True)
        root = runs_dir / ".prepared" / f"{self.folder}-{digest_of_text(key)[:12]}"
        if root not in self.checked:
            written_once(root, lambda scratch: self.prepare(scratch, **settings))
            self.checked |= {root}
        return root


def open_dataset(cfg: DictConfig, cls: type[Dataset]) -> tuple[Dataset, str, str]:
    """The data set that a settled configuration asks for, its profile's label, and its digest.

    The label is `tiny`, `full` (the official files) or `subset` (any other real files).

    Raises:
        ConfigError: the task's choice among its data sets was changed in a settled configuration.
        DataError: a file is missing and cannot be fetched.
    """
    _check_choice(cfg.task)
    if not (isinstance(cls, type) and issubclass(cls, Dataset)):
        raise ConfigError(f"task.data: expected a class of tmbench.data.Dataset, got {cfg.task.data}")
    runs_dir = Path(cfg.runs_dir)
    is_tiny = cfg.data.profile == "tiny"
    root = _tiny_root(cls, runs_dir) if is_tiny else Path(cfg.data_dir) / cls.folder
    with making(f"{cls.__module__}.{cls.__qualname__}"):
        dataset = cls(root)
    # Whatever is derived lies in runs_dir, which can be written to: data_dir holds what was published.
    place = digest_of_text(str(dataset.root.resolve()))[:12]
    cache = None if is_tiny else runs_dir / ".digests" / f"{cls.folder}-{place}.json"
    try:
        digests = dataset.digests(cache)
    except DataError:
        if is_tiny or not cfg.data.download:
            raise
        dataset.download()
        digests = dataset.digests(cache)
    dataset.opened = runs_dir, digests
    label = "tiny" if is_tiny else "full" if dataset.is_official(digests) else "subset"
    return dataset, label, folder_digest(digests)


def _check_choice(task: DictConfig) -> None:
    """Refuses a data set that serves another value of the key that chooses among the task's data sets."""
    settings = values_of(f"task/{task.name}.yaml")
    key = settings.get("data_by", "dataset")
    served = settings.get("data")
    for value, path in served.items() if isinstance(served, dict) else ():
        if path == task.data and value != task[key]:
            raise ConfigError(
                f"task.{key}: expected {value}, which is what task.data={path} serves, got {task[key]!r}; a settled "
                f"configuration cannot be changed there, run python -m tmbench task={task.name} task.{key}={task[key]}"
            )


def _tiny_root(cls: type[Dataset], runs_dir: Path) -> Path:
    """The tiny set's folder, written if it is not there; a changed writer gets a folder of its own."""
    import numpy as np

    root = runs_dir / ".tiny" / f"{cls.folder}-{digest_of_text(cls.source())[:12]}"
    return written_once(root, lambda scratch: cls.write_tiny(scratch, np.random.default_rng(0)))
