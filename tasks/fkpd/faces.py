"""Faces with 68 key points in Udacity's layout: RGBA PNGs named .jpg, and a table of key points for each split.

Source: udacity/P1_Facial_Keypoints, commit 6e55adc, data/. Legend: N images, K key points (68).
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tmbench.data import Dataset, entry, read_picture, read_text
from tmbench.errors import DataError

POINTS = 68
EYES = (36, 45)  # the outer corners, whose distance errors are measured in
FOLDERS = {"train": "training", "test": "test"}
HEADER = ["", *(str(i) for i in range(2 * POINTS))]  # the image's name, then x0, y0, x1, y1, ... in pixels


class Faces(Dataset):
    folder = "faces"
    entry = entry("faces", "fkpd")

    def table(self, split: str) -> Path:
        return self.file(f"data/{FOLDERS[split]}_frames_keypoints.csv")

    def files(self) -> Iterable[Path]:
        for split in FOLDERS:
            yield self.table(split)
            yield from (path for path, _ in self.rows(split))

    def counts(self) -> dict[str, int]:
        return {split: sum(1 for path, _ in self.rows(split) if self.read(path).size) for split in FOLDERS}

    def rows(self, split: str) -> Iterator[tuple[Path, np.ndarray]]:
        """The image files of `train` or `test` with their key points, float32 of shape (K, 2), in the table's order.

        A key point may lie outside its image, as one of the published does.

        Raises:
            DataError: names the table and the first row that is not as it should be, or whose image is missing.
        """
        path = self.table(split)
        lines = csv.reader(read_text(path).splitlines(), strict=True)
        seen: set[str] = set()
        try:
            if (header := next(lines, [])) != HEADER:
                raise DataError(f"{path}, line 1: expected a name's column and 0-{2 * POINTS - 1}, {_differs(header)}")
            for row in lines:
                if not row:  # as after the last line
                    continue
                where = f"{path}, line {lines.line_num}"
                if len(row) != len(HEADER):
                    raise DataError(f"{where}: expected {len(HEADER)} columns, got {len(row)}")
                name = row[0]
                if not re.fullmatch(r"[\w-][\w.-]{0,127}", name):
                    raise DataError(f"{where}: expected an image's name like Marc_Anthony_02.jpg, got {name[:60]!r}")
                if name in seen:
                    raise DataError(f"{where}: {name} is named a second time")
                seen.add(name)
                image = path.parent / FOLDERS[split] / name
                if not image.is_file():
                    raise self.missing(image, f"it is named in {where}")
                yield image, np.array([_number(v, k, where) for k, v in enumerate(row[1:])], np.float32).reshape(-1, 2)
        except csv.Error as error:
            raise DataError(f"{path}, line {lines.line_num}: not a row of a table ({error})") from None
        if not seen:
            raise DataError(f"{path}: expected rows, there are none")

    @staticmethod
    def read(path: Path) -> np.ndarray:
        """An image in grey, uint8 of shape (H, W); what is transparent is white, in the published files nothing.

        Raises:
            DataError: names the file that is no such picture.
        """
        return np.array(read_picture(path).convert("L"))

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        for split, count in (("train", 200), ("test", 60)):
            folder = root / "data" / FOLDERS[split]
            folder.mkdir(parents=True)
            lines = [",".join(HEADER)]
            for i in range(count):
                name = f"Face_{i // 10}_{i % 10}.jpg"
                image, points_K2 = _draw_tiny(rng)
                image.save(folder / name, "PNG")
                lines.append(",".join([name, *(f"{v:.1f}" for v in points_K2.ravel())]))
            (root / "data" / f"{FOLDERS[split]}_frames_keypoints.csv").write_text("\n".join(lines) + "\n")


def _differs(header: list[str]) -> str:
    if len(header) != len(HEADER):
        return f"got {len(header)} columns of {len(HEADER)}"
    i = next(i for i, expected in enumerate(HEADER) if header[i] != expected)
    return f"got {header[i][:60]!r} in column {i + 1}"


def _number(text: str, column: int, where: str) -> float:
    try:
        value = float(text.replace("_", " "))  # Python would take 1_0 for 10
    except ValueError:
        value = math.nan
    if not abs(value) < 1e6:
        raise DataError(f"{where}, column {column}: expected a number of pixels, got {text[:60]!r}")
    return value


def _template() -> np.ndarray:
    """68 key points of a face, in the order of the published, about the origin within about 1; shape (K, 2)."""

    def ring(count: int, x: float, y: float, rx: float, ry: float, first: float = math.pi) -> np.ndarray:
        angles = first + 2 * math.pi * np.arange(count) / count
        return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)

    jaw = math.pi * (1 - np.arange(17) / 16)
    brow = np.stack([np.linspace(-0.65, -0.2, 5), -0.45 - 0.1 * np.sin(np.linspace(0.3, 2.8, 5))], 1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.25, 0.15, 4)], 1)
    nostrils = np.stack([np.linspace(-0.15, 0.15, 5), 0.22 + 0.04 * np.sin(np.linspace(0, math.pi, 5))], 1)
    return np.concatenate([
        np.stack([0.85 * np.cos(jaw), -0.1 + np.sin(jaw)], 1), brow, brow[::-1] * (-1, 1), bridge, nostrils,
        ring(6, -0.4, -0.25, 0.15, 0.08), ring(6, 0.4, -0.25, 0.15, 0.08),
        ring(12, 0, 0.5, 0.3, 0.13), ring(8, 0, 0.5, 0.22, 0.06),
    ])  # fmt: skip


def _draw_tiny(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A light face somewhere on a darker noisy field, turned and as large as it likes; its key points in pixels."""
    width, height = (int(v) for v in rng.integers(60, 80, 2))
    angle, scale = rng.uniform(-0.3, 0.3), rng.uniform(0.24, 0.34) * min(width, height)
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    points_K2 = _template() @ turn.T + centre
    field = rng.normal(60, 10, (height, width, 3)) + 10 * rng.normal(0, 1, 3)
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8)).convert("RGBA")
    draw = ImageDraw.Draw(image)
    skin = tuple(int(v) for v in rng.uniform((190, 150, 120), (240, 200, 170)))
    forehead = np.array([[0.7, -0.65], [0.0, -0.85], [-0.7, -0.65]]) @ turn.T + centre

    draw.polygon(np.concatenate([points_K2[:17], forehead]).ravel().tolist(), fill=skin)
    for first, last in ((17, 22), (22, 27), (27, 31)):
        draw.line(points_K2[first:last].ravel().tolist(), fill=(60, 40, 30), width=1)
    for first, last, fill in ((36, 42, (20, 20, 40)), (42, 48, (20, 20, 40)), (48, 60, (170, 40, 50))):
        draw.polygon(points_K2[first:last].ravel().tolist(), fill=fill)
    return image, points_K2
