"""CIFAR-10 and -100 in their original python batches: pickles of N uint8 rows, 32x32 pixels in planes R, G, B."""

import colorsys
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset, entry, read_pickle
from tmbench.errors import DataError

SHAPE = (3, 32, 32)
ROW = 3 * 32 * 32
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "blue", "indigo", "magenta", "pink")  # each 36 degrees


class CIFAR(Dataset):
    """What both have in common; a class says which files and keys, and the statistics its sources normalise with."""

    batches: dict[str, tuple[str, ...]]  # split -> its files
    meta: str  # the file with the classes' names
    label_key: bytes
    names_key: bytes
    num_classes: int
    mean: tuple[float, float, float]  # of red, green and blue in [0, 1], over the training images
    std: tuple[float, float, float]
    tiny_counts: dict[str, int]

    def files(self) -> Iterable[Path]:
        return [self.file(name) for name in (*self.batches["train"], *self.batches["test"], self.meta)]

    def counts(self) -> dict[str, int]:
        self.names()
        return {split: len(self.read(split)[1]) for split in self.batches}

    def names(self) -> list[str]:
        """The classes' names, by label.

        Raises:
            DataError: the file does not name each class once.
        """
        path = self.root / self.meta
        key = self.names_key.decode()
        names = _listed(path, read_pickle(path), self.names_key, self.num_classes, f"{self.num_classes} names")
        for label, name in enumerate(names):
            if not isinstance(name, (bytes, str)) or not 0 < len(name) < 64 or not name.isascii():
                raise DataError(f"{path}, {key}[{label}]: expected a class's name, got {_short(name)}")
        if len(set(names)) != len(names):
            raise DataError(f"{path}: expected {key} to name each class once")
        return [name if isinstance(name, str) else name.decode() for name in names]

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 of shape (N, 3, 32, 32), and labels, int64 of shape (N,), of `train` or `test`, in file order.

        Raises:
            DataError: names the file, and the first image of it, that is not as it should be.
        """
        images, labels = zip(*(self._read_batch(self.root / name) for name in self.batches[split]), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def _read_batch(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        values = read_pickle(path)
        rows = _value(path, values, b"data")
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != ROW:
            got = f"{rows.dtype} of {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
            raise DataError(f"{path}: expected data to be uint8 of shape (N, {ROW}), got {got}")
        if not len(rows):
            raise DataError(f"{path}: expected images, there are none")
        labels = _listed(path, values, self.label_key, len(rows), f"{len(rows)}, one for each image")
        for n, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < self.num_classes:
                expected = f"a label 0-{self.num_classes - 1}"
                raise DataError(f"{path}, {self.label_key.decode()}[{n}]: expected {expected}, got {_short(label)}")
        return rows.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        """Discs in a hue on noise; of 100 classes, the noise has a hue too. The classes are named after these."""
        names = list(HUES) if cls.num_classes == 10 else [f"{disc}_on_{field}" for field in HUES for disc in HUES]
        (root / cls.meta).parent.mkdir(parents=True)
        write_pickle(root / cls.meta, {cls.names_key: [name.encode() for name in names]})
        for split, files in cls.batches.items():
            count = cls.tiny_counts[split]
            labels = rng.permutation(np.arange(count) % cls.num_classes)
            images = np.stack([_draw_tiny(int(label), cls.num_classes, rng) for label in labels])
            for i, name in enumerate(files):
                mine = slice(count * i // len(files), count * (i + 1) // len(files))
                cls.write_batch(root / name, images[mine], labels[mine])

    @classmethod
    def write_batch(cls, path: Path, images: np.ndarray, labels: np.ndarray) -> None:
        """Images (N, 3, 32, 32), uint8, and labels (N,) as one original batch file."""
        name = path.name.encode()
        write_pickle(path, {
            b"batch_label": name, cls.label_key: [int(label) for label in labels], b"data": images.reshape(-1, ROW),
            b"filenames": [b"%s_%05d.png" % (name, i) for i in range(len(labels))],
        })  # fmt: skip


class CIFAR10(CIFAR):
    folder = "cifar10"
    entry = entry("cifar10")
    batches = {
        "train": tuple(f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)),
        "test": ("cifar-10-batches-py/test_batch",),
    }
    meta = "cifar-10-batches-py/batches.meta"
    label_key, names_key, num_classes = b"labels", b"label_names", 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # kuangliu/pytorch-cifar@49b7aa9
    tiny_counts = {"train": 400, "test": 200}


class CIFAR100(CIFAR):
    folder = "cifar100"
    entry = entry("cifar100")
    batches = {"train": ("cifar-100-python/train",), "test": ("cifar-100-python/test",)}
    meta = "cifar-100-python/meta"
    label_key, names_key, num_classes = b"fine_labels", b"fine_label_names", 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # weiaicunzai/pytorch-cifar100@11d8418
    tiny_counts = {"train": 800, "test": 200}


def _value(path: Path, values: dict[Any, Any], key: bytes) -> Any:
    """The value of a key, which is bytes as Python 2 wrote it, or the same word as Python 3 does."""
    named = [values[k] for k in (key, key.decode()) if k in values]
    if len(named) != 1:
        found = ", ".join(sorted(_short(k) for k in values))[:200]
        raise DataError(f"{path}: expected a value {key.decode()!r}, there are {found or 'none'}")
    return named[0]


def _listed(path: Path, values: dict[Any, Any], key: bytes, count: int, expected: str) -> list[Any]:
    """The value of a key, which must be a list of `count`."""
    listed = _value(path, values, key)
    if not isinstance(listed, list) or len(listed) != count:
        got = str(len(listed)) if isinstance(listed, list) else type(listed).__name__
        raise DataError(f"{path}: expected {key.decode()} to be a list of {expected}, got {got}")
    return listed


def _short(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return repr(text)[:60]


def write_pickle(path: Path, values: dict[bytes, Any]) -> None:
    """A dict of words, lists and uint8 arrays (N, K) as Python 2 pickled the published batches, opcode for opcode.

    Python 3 cannot: its bytes become calls of _codecs.encode, its words Unicode, and torchvision wants neither.
    """
    path.write_bytes(b"\x80\x02" + _pickled(values) + b".")


def _pickled(value: Any) -> bytes:
    """The opcodes (see pickletools) that put one value on the stack, in protocol 2."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(x) for pair in value.items() for x in pair) + b"u"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_pickled, value.shape)) + b"\x86"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _pickled(value.tobytes()) + b"tb"


def _draw_tiny(label: int, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """One image, uint8 of shape (3, 32, 32)."""
    field, disc = divmod(label, 10)
    radius, (y, x) = rng.uniform(6, 10), rng.uniform(11, 21, 2)
    grid = np.arange(32)
    inside = (grid[:, None] - y) ** 2 + (grid - x) ** 2 < radius**2
    behind = _colour(field, rng) * 0.7 if num_classes > 10 else np.full(3, rng.uniform(60, 190))
    image = np.where(inside, _colour(disc, rng)[:, None, None], behind[:, None, None]) + rng.normal(0, 25, SHAPE)
    return image.clip(0, 255).astype(np.uint8)


def _colour(hue: int, rng: np.random.Generator) -> np.ndarray:
    """About this of the ten hues, as red, green and blue up to 255; shape (3,)."""
    return 255 * np.array(colorsys.hsv_to_rgb((hue + rng.uniform(-0.3, 0.3)) / 10 % 1, 0.8, rng.uniform(0.6, 0.95)))
