"""Cheap sneakers: a folder of JPEGs, images/*.jpg, one shop photograph each. Legend: N pictures."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tmbench.data import Dataset, entry, read_picture
from tmbench.errors import DataError

SIZE = 64  # pixels a side, as the networks see them
SHAPE = (3, SIZE, SIZE)
TINY_COUNT = 192


class Sneakers(Dataset):
    folder = "sneakers"
    entry = entry("sneakers", "ig")
    _pictures: np.ndarray | None = None  # as read

    def files(self) -> list[Path]:
        folder = self.root / "images"
        if not folder.is_dir():
            raise self.missing(folder)
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        for path in paths:
            if path.suffix != ".jpg" or not path.is_file():
                raise DataError(f"{path}: expected nothing but files *.jpg in this folder; move it elsewhere")
        if not paths:
            raise DataError(f"{folder}: expected pictures, files *.jpg; the folder is empty")
        return paths

    def counts(self) -> dict[str, int]:
        return {"train": len(self.decoded())}

    def read(self) -> np.ndarray:
        """All pictures, uint8 of shape (N, 3, 64, 64), in the order of their names; decoded once under runs_dir.

        Read once, so that several tasks may share them.

        Raises:
            DataError: names the first file that is no picture.
        """
        if self._pictures is None:
            root = self.prepared(*self.opened) if self.opened else None
            self._pictures = np.load(root / "pictures.npy") if root else self.decoded()
        return self._pictures

    def prepare(self, out: Path, **settings: Any) -> None:
        """All pictures in one array, pictures.npy: decoding thousands of large JPEGs takes minutes."""
        np.save(out / "pictures.npy", self.decoded())

    def decoded(self) -> np.ndarray:
        """As read, from the files themselves."""
        # Threads: decoding and resizing leave the interpreter free.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return np.stack(list(pool.map(self.picture, self.files())))

    @staticmethod
    def picture(path: Path) -> np.ndarray:
        """One picture, resized as torchvision's Resize does; uint8 of shape (3, 64, 64)."""
        image = read_picture(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.array(image).transpose(2, 0, 1)

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        (root / "images").mkdir()
        for i in range(TINY_COUNT):
            _draw_tiny(rng).save(root / "images" / f"shoe{i:04d}.jpg", quality=90)


def _draw_tiny(rng: np.random.Generator) -> Image.Image:
    """A shoe from the side on white, its toe to the right: an upper in one colour, a sole and laces in others."""
    size = 96
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    upper, sole, laces = (
        tuple(int(v) for v in rng.integers(low, high, 3)) for low, high in ((20, 220), (0, 90), (90, 255))
    )
    left, right = rng.uniform(6, 16), rng.uniform(80, 90)
    ground, height = rng.uniform(60, 70), rng.uniform(22, 36)
    length, thick = right - left, rng.uniform(5, 9)
    outline = [(0, 0), (0, 0.9), (0.12, 1), (0.36, 0.95), (0.6, 0.5), (0.92, 0.36), (1, 0.1), (1, 0)]
    draw.polygon([(left + x * length, ground - y * height) for x, y in outline], fill=upper)
    draw.rounded_rectangle((left - 2, ground, right + 2, ground + thick), thick / 2, fill=sole)
    for x in (0.4, 0.48, 0.56):
        at, top = left + x * length, ground - (0.95 - 1.75 * (x - 0.36)) * height
        draw.line((at, top + 1, at - 6, top + 10), fill=laces, width=3)
    return image
