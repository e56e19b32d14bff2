"""PASCAL VOC-2007 in the devkit's layout: images, class masks and split lists under VOCdevkit/VOC2007."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tmbench.data import Dataset, entry, read_picture, read_text
from tmbench.errors import DataError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255  # in a mask: neither class nor background, ignored
SPLITS = ("train", "val")


def palette() -> np.ndarray:
    """The devkit's colours of the 256 mask values; shape (256, 3), uint8."""
    values = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):  # bits 0, 3, 6 make red, from its highest bit down; 1, 4, 7 green; 2, 5 blue
        colours[:, bit % 3] |= ((values >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours


class VOCSegmentation(Dataset):
    """Images and class masks of ImageSets/Segmentation: train.txt to train, val.txt to evaluate."""

    folder = "voc2007"
    entry = entry("voc2007", "seg")

    @property
    def year(self) -> Path:
        return self.root / "VOCdevkit" / "VOC2007"

    def list_file(self, split: str) -> Path:
        return self.year / "ImageSets" / "Segmentation" / f"{split}.txt"

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """The (image, mask) files of `train` or `val`, in the list's order.

        Raises:
            DataError: the list, or a file that it names, is missing.
        """
        path = self.list_file(split)
        if not path.is_file():
            raise self.missing(path)
        pairs = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            name = line.strip()
            if not name:
                continue
            if not re.fullmatch(r"\w[\w.-]{0,63}", name):
                raise DataError(f"{path}, line {number}: expected an image's name like 000032, got {name[:60]!r}")
            pair = (self.year / "JPEGImages" / f"{name}.jpg", self.year / "SegmentationClass" / f"{name}.png")
            for file in pair:
                if not file.is_file():
                    raise self.missing(file, f"it is named in {path}, line {number}")
            pairs.append(pair)
        if not pairs:
            raise DataError(f"{path}: expected image names, one a line; the file is empty")
        return pairs

    def files(self) -> Iterable[Path]:
        for split in SPLITS:
            yield self.list_file(split)
            for pair in self.pairs(split):
                yield from pair

    def counts(self) -> dict[str, int]:
        return {split: sum(1 for pair in self.pairs(split) if self.read(*pair)) for split in SPLITS}

    @staticmethod
    def read(image_file: Path, mask_file: Path) -> tuple[np.ndarray, np.ndarray]:
        """An image and its mask: uint8 arrays of shape (H, W, 3) and (H, W), mask values 0-20 and 255.

        Raises:
            DataError: names the file that is no such picture.
        """
        image = np.array(read_picture(image_file).convert("RGB"))
        picture = read_picture(mask_file)
        if picture.mode not in ("P", "L"):
            raise DataError(f"{mask_file}: expected a palette PNG of class ids, got mode {picture.mode}")
        mask = np.array(picture)
        if mask.shape != image.shape[:2]:
            raise DataError(f"{mask_file}: expected the image's size {image.shape[:2]}, got {mask.shape}")
        strange = mask[(mask >= len(CLASSES)) & (mask != BORDER)]
        if strange.size:
            raise DataError(f"{mask_file}: expected class ids 0-{len(CLASSES) - 1} or {BORDER}, got {strange[0]}")
        return image, mask

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        year = root / "VOCdevkit" / "VOC2007"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (year / folder).mkdir(parents=True)
        number = 0
        for split, count in (("train", 32), ("val", 12)):
            names = []
            for _ in range(count):
                number += 1
                names.append(f"{number:06d}")
                image, mask = _draw_tiny(rng)
                image.save(year / "JPEGImages" / f"{names[-1]}.jpg", quality=90)
                mask.save(year / "SegmentationClass" / f"{names[-1]}.png")
            (year / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def _draw_tiny(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """A noisy field with one or two shapes on it; a class is one kind of shape in one colour."""
    width, height = (int(v) for v in rng.integers(72, 100, 2))
    shapes = {1: ("ellipse", (70, 120, 230)), 7: ("rectangle", (220, 60, 50)), 15: ("ellipse", (240, 190, 140))}
    field = rng.normal(0, 12, (height, width, 3)) + np.array([60, 130, 70]) + 30 * rng.normal(0, 1, 3)
    image = Image.fromarray(field.clip(0, 255).astype(np.uint8))
    mask = Image.new("P", (width, height), 0)
    mask.putpalette(palette().tobytes())
    for _ in range(int(rng.integers(1, 3))):
        label = int(rng.choice(list(shapes)))
        kind, colour = shapes[label]
        w, h = (int(v) for v in rng.integers(28, 48, 2))
        x, y = int(rng.integers(2, width - w - 2)), int(rng.integers(2, height - h - 2))
        box = (x, y, x + w, y + h)
        shade = tuple(int(v) for v in (np.array(colour) + rng.normal(0, 10, 3)).clip(0, 255))
        getattr(ImageDraw.Draw(image), kind)(box, fill=shade)
        getattr(ImageDraw.Draw(mask), kind)(box, fill=label, outline=BORDER)
    return image, mask
