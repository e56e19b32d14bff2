"""PASCAL VOC as its devkit lays it out, which od and seg read: images and split lists under VOCdevkit/VOC2007."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

from tmbench.data import Dataset, read_text
from tmbench.errors import DataError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255  # in a mask: neither class nor background, ignored
CORNERS, SIZE = ("xmin", "ymin", "xmax", "ymax"), ("width", "height", "depth")  # as the XML has them


def palette() -> np.ndarray:
    """The devkit's colours of the 256 mask values; shape (256, 3), uint8."""
    values, colours = np.arange(256), np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):  # bits 0, 3, 6 make red, from its highest bit down; 1, 4, 7 green; 2, 5 blue
        colours[:, bit % 3] |= ((values >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


class VOC(Dataset):
    """What the parts of the devkit share; a class says which lists it reads, and what files an image needs."""

    year: str = "VOC2007"
    lists: str  # the folder of ImageSets
    splits: tuple[str, ...]
    needs: tuple[tuple[str, str], ...]  # of each image: folder and ending

    @property
    def devkit(self) -> Path:
        return self.root / "VOCdevkit" / self.year

    def list_file(self, split: str) -> Path:
        return self.devkit / "ImageSets" / self.lists / f"{split}.txt"

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """The (image, mask or annotation) files of a split, in the list's order.

        Raises:
            DataError: the list, or a file that it names, is missing.
        """
        path = self.list_file(split)
        if not path.is_file():
            raise self.missing(path)
        pairs = []
        for number, name in enumerate(map(str.strip, read_text(path).splitlines()), 1):
            if not name:
                continue
            if not re.fullmatch(r"\w[\w.-]{0,63}", name):
                raise DataError(f"{path}, line {number}: expected an image's name like 000032, got {name[:60]!r}")
            image, other = (self.devkit / folder / f"{name}{ending}" for folder, ending in self.needs)
            for file in (image, other):
                if not file.is_file():
                    raise self.missing(file, f"it is named in {path}, line {number}")
            pairs.append((image, other))
        if not pairs:
            raise DataError(f"{path}: expected image names, one a line; the file is empty")
        return pairs

    def files(self) -> Iterable[Path]:
        for split in self.splits:
            yield self.list_file(split)
            for pair in self.pairs(split):
                yield from pair

    def counts(self) -> dict[str, int]:
        return {split: sum(1 for pair in self.pairs(split) if self.read(*pair)) for split in self.splits}

    @staticmethod
    def read(image_file: Path, other_file: Path) -> Any:
        """An image and what is known of it."""
        raise NotImplementedError

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        """Shapes on a noisy field, with masks and boxes: one set for segmentation and for detection."""
        devkit = root / "VOCdevkit" / cls.year
        for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation", "ImageSets/Main"):
            (devkit / folder).mkdir(parents=True)
        for split, main, numbers in (("train", "trainval", range(1, 33)), ("val", "test", range(33, 45))):
            names = [f"{number:06d}" for number in numbers]
            for name in names:
                image, mask, objects = _draw_tiny(rng)
                image.save(devkit / "JPEGImages" / f"{name}.jpg", quality=90)
                mask.save(devkit / "SegmentationClass" / f"{name}.png")
                (devkit / "Annotations" / f"{name}.xml").write_text(annotation(name, image.size, objects))
            for listed in (f"Segmentation/{split}.txt", f"Main/{main}.txt"):
                (devkit / "ImageSets" / listed).write_text("\n".join(names) + "\n")


Tiny = tuple[str, bool, tuple[int, int, int, int]]  # class, difficult, xmin, ymin, xmax, ymax


def annotation(name: str, size: tuple[int, int], objects: list[Tiny]) -> str:
    """The devkit's XML of an image and its objects: class, difficult, box (corners in pixels from 1)."""
    lines = ["<annotation>", "\t<folder>VOC2007</folder>", f"\t<filename>{escape(name)}.jpg</filename>"]
    lines += ["\t<size>", *(f"\t\t<{k}>{v}</{k}>" for k, v in zip(SIZE, (*size, 3), strict=True)), "\t</size>"]
    for label, difficult, box in objects:
        lines += ["\t<object>", f"\t\t<name>{escape(label)}</name>", f"\t\t<difficult>{int(difficult)}</difficult>"]
        corners = (f"\t\t\t<{corner}>{v}</{corner}>" for corner, v in zip(CORNERS, box, strict=True))
        lines += ["\t\t<bndbox>", *corners, "\t\t</bndbox>", "\t</object>"]
    return "\n".join([*lines, "</annotation>"]) + "\n"


def _draw_tiny(rng: np.random.Generator) -> tuple[Image.Image, Image.Image, list[Tiny]]:
    """A noisy field with one or two shapes on it; a class is one kind of shape in one colour."""
    width, height = (int(v) for v in rng.integers(72, 100, 2))
    shapes = {1: ("ellipse", (70, 120, 230)), 7: ("rectangle", (220, 60, 50)), 15: ("ellipse", (240, 190, 140))}
    field = rng.normal(0, 12, (height, width, 3)) + np.array([60, 130, 70]) + 30 * rng.normal(0, 1, 3)
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
    mask, which = Image.new("P", (width, height), 0), Image.new("L", (width, height), 0)
    mask.putpalette(palette().tobytes())
    boxes = []
    for number in range(int(rng.integers(1, 3))):
        label = int(rng.choice(list(shapes)))
        kind, colour = shapes[label]
        w, h = (int(v) for v in rng.integers(28, 48, 2))
        x, y = int(rng.integers(2, width - w - 2)), int(rng.integers(2, height - h - 2))
        box = (x, y, x + w, y + h)
        shade = tuple(int(v) for v in (np.array(colour) + rng.normal(0, 10, 3)).clip(0, 255))
        getattr(ImageDraw.Draw(image), kind)(box, fill=shade)
        getattr(ImageDraw.Draw(mask), kind)(box, fill=label, outline=BORDER)
        getattr(ImageDraw.Draw(which), kind)(box, fill=number + 1)
        boxes.append((CLASSES[label], box))
    objects = []
    for number, (name, (x1, y1, x2, y2)) in enumerate(boxes, 1):
        seen = int((np.array(which) == number).sum()) / ((x2 - x1) * (y2 - y1))
        objects.append((name, seen < 0.3, (x1 + 1, y1 + 1, x2 + 1, y2 + 1)))  # hidden behind the other: difficult
    return image, mask, objects
