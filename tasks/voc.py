"""PASCAL VOC in the devkit's layout: images, boxes, class masks and split lists under VOCdevkit/VOC2007 (or VOC2012).

Legend: N objects of an image.
"""

import inspect
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

from tmbench.data import Dataset, entry, read_bytes, read_picture, read_text
from tmbench.errors import DataError
from tmbench.files import digest_of

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
BORDER = 255  # in a mask: neither class nor background, ignored
CORNERS, SIZE = ("xmin", "ymin", "xmax", "ymax"), ("width", "height", "depth")  # as the XML has them
REGIONS_MD5 = "7078c1db87a7851b31966b96774cd9b9"
BIT_DEPTH = 24  # where a PNG says how many bits a value has
MAX_XML = 2**20  # bytes of an annotation; the largest real ones have some 20,000


def palette() -> np.ndarray:
    """The devkit's colours of the 256 mask values; shape (256, 3), uint8."""
    values = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
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
        for number, line in enumerate(read_text(path).splitlines(), 1):
            name = line.strip()
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
        number = 0
        for split, main, count in (("train", "trainval", 32), ("val", "test", 12)):
            names = []
            for _ in range(count):
                number += 1
                names.append(f"{number:06d}")
                image, mask, objects = _draw_tiny(rng)
                image.save(devkit / "JPEGImages" / f"{names[-1]}.jpg", quality=90)
                mask.save(devkit / "SegmentationClass" / f"{names[-1]}.png")
                (devkit / "Annotations" / f"{names[-1]}.xml").write_text(annotation(names[-1], image.size, objects))
            for folder, name in (("Segmentation", split), ("Main", main)):
                (devkit / "ImageSets" / folder / f"{name}.txt").write_text("\n".join(names) + "\n")


class VOCSegmentation(VOC):
    """Images and class masks of ImageSets/Segmentation: train.txt to train, val.txt to evaluate."""

    folder = "voc2007"
    entry = entry("voc2007", "seg")
    lists, splits = "Segmentation", ("train", "val")
    needs = (("JPEGImages", ".jpg"), ("SegmentationClass", ".png"))

    @staticmethod
    def read(image_file: Path, other_file: Path) -> tuple[np.ndarray, np.ndarray]:
        """An image and its mask: uint8 arrays of shape (H, W, 3) and (H, W), mask values 0-20 and 255.

        A mask's values are its class ids. Where it has a palette, too, the two must agree: see check_palette.

        Raises:
            DataError: names the file that is no such picture.
        """
        image = np.array(read_picture(image_file))
        picture = read_picture(other_file, as_stored=True)
        if picture.mode not in ("P", "L"):
            raise DataError(f"{other_file}: expected a palette PNG of class ids, got mode {picture.mode}")
        grey = picture.mode == "L" and picture.format == "PNG"
        if grey and (bits := read_bytes(other_file)[BIT_DEPTH]) < 8:  # read as shades of 255, not as ids
            raise DataError(f"{other_file}: expected class ids of 8 bits, got grey of {bits}; save it with 8 bits")
        mask = np.array(picture)
        if mask.shape != image.shape[:2]:
            raise DataError(f"{other_file}: expected the image's size {image.shape[:2]}, got {mask.shape}")
        ids = np.flatnonzero(np.bincount(mask.ravel()))
        strange = ids[(ids >= len(CLASSES)) & (ids != BORDER)]
        if strange.size:
            raise DataError(f"{other_file}: expected class ids 0-{len(CLASSES) - 1} or {BORDER}, got {strange[0]}")
        if picture.mode == "P":
            check_palette(other_file, ids, np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3))
        return image, mask


def check_palette(path: Path, ids: np.ndarray, colours: np.ndarray) -> None:
    """Refuses a mask in which the colour of a class id is that of another: its palette was made anew or sorted.

    Which of the two is right cannot be told from the file, so neither is taken. A grey palette, in which each id is its
    own shade, says nothing else than the ids do.

    Args:
        ids: those that occur in the mask.
        colours: of the file's palette; uint8 of shape (entries, 3).

    Raises:
        DataError: names the first id whose colour is not the devkit's.
    """
    known = palette()
    if ids[-1] < len(colours) and (colours[ids] == ids[:, None]).all():
        return
    for number in map(int, ids):
        expected, found = known[number], colours[number : number + 1]  # none, if the palette ends before it
        if len(found) and (found == expected).all():
            continue
        got = str(tuple(found[0].tolist())) if len(found) else "none"
        for other in np.flatnonzero((known == found).all(1)) if len(found) else ():
            got += f", the colour of id {other} ({_class(int(other))})"
        raise DataError(
            f"{path}: expected id {number} ({_class(number)}) in the devkit's colour {tuple(expected.tolist())}, "
            f"got {got}; save the mask again with the devkit's palette"
        )


def _class(number: int) -> str:
    return CLASSES[number] if number < len(CLASSES) else "border" if number == BORDER else "no class"


@dataclass(frozen=True)
class Objects:
    """The objects of an image, in the file's order; there may be none."""

    boxes: np.ndarray  # float32 of shape (N, 4): x1, y1, x2, y2 in pixels from 0; the last pixel belongs to the box
    labels: np.ndarray  # int64 of shape (N,): 1-20
    difficult: np.ndarray  # bool of shape (N,): hard to recognize, neither asked for nor counted as an error


class Detection(Dataset):
    """Images and their objects, of one set or several: their lists `trainval` to train, `test` to evaluate."""

    sets: "list[VOCDetection]"

    def split(self, name: str) -> list[tuple[Path, Path]]:
        """The (image, annotation) files to `train` with, or to `test`."""
        name = "trainval" if name == "train" else name
        return [pair for one in self.sets if name in one.splits for pair in one.pairs(name)]

    @staticmethod
    def read(image_file: Path, other_file: Path) -> tuple[np.ndarray, Objects]:
        """An image, uint8 of shape (H, W, 3), and its objects.

        Raises:
            DataError: names the file, and the first object of it, that is not as it should be.
        """
        image = np.array(read_picture(image_file))
        return image, read_objects(other_file, image.shape[1], image.shape[0])

    @classmethod
    def source(cls) -> str:
        from . import selective_search

        return super().source() + inspect.getsource(selective_search)

    def prepare(self, out: Path, **settings: Any) -> None:
        """Regions of each image that may hold an object, of the selective search; Fast R-CNN looks at nothing else."""
        from . import selective_search as search

        pairs = {(one, split): one.pairs(split) for one in self.sets for split in one.splits}
        files = [image for own in pairs.values() for image, _ in own]
        if "published" not in settings:
            search.write(out, self.root, files)
            return
        found = [
            search.read_published(one.regions_file(split), [image.stem for image, _ in own])
            for (one, split), own in pairs.items()
        ]
        names = [file.relative_to(self.root).as_posix() for file in files]
        search.store(out, names, [boxes for own in found for boxes in own])

    def regions(self, source: str) -> Path:
        """The folder of what `prepare` writes: `opencv` computes the regions, `published` takes the authors' files.

        Raises:
            DataError: a published file is missing.
        """
        assert self.opened is not None
        if source == "opencv":
            return self.prepared(*self.opened)
        files = [one.regions_file(split) for one in self.sets for split in one.splits]
        for file in files:
            if not file.is_file():
                raise DataError(
                    f"od: no {file}\n  it is in selective_search_data.tgz of rbgirshick/fast-rcnn (md5 {REGIONS_MD5})\n"
                    "  or let them be computed, with task.regions=opencv"
                )
        return self.prepared(*self.opened, published=[digest_of(file) for file in files])


class VOCDetection(Detection, VOC):
    """Images and boxes of ImageSets/Main: trainval.txt to train, test.txt to evaluate."""

    folder = "voc2007"
    entry = entry("voc2007", "od")
    lists = "Main"
    splits: tuple[str, ...] = ("trainval", "test")
    needs = (("JPEGImages", ".jpg"), ("Annotations", ".xml"))

    @property
    def sets(self) -> "list[VOCDetection]":  # type: ignore[override]
        return [self]

    def regions_file(self, split: str) -> Path:
        return self.root / "selective_search_data" / f"voc_{self.year[3:]}_{split}.mat"


class VOC2012(VOCDetection):
    """The images and boxes that VOC 2012 adds to train with; its test boxes are not public."""

    folder = "voc2012"
    entry = entry("voc2012", "od")
    year, splits = "VOC2012", ("trainval",)


class VOC0712(Detection):
    """trainval of VOC 2007 and 2012 to train with, test of 2007 to evaluate: two sets, each in its own folder."""

    folder = ""
    parts: "tuple[type[VOCDetection], ...]" = (VOCDetection, VOC2012)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.sets = [cls(root / cls.folder) for cls in self.parts]

    def files(self) -> Iterable[Path]:
        for one in self.sets:
            yield from one.files()

    def counts(self) -> dict[str, int]:
        counts = [one.counts() for one in self.sets]
        return {split: sum(each.get(split, 0) for each in counts) for split in counts[0]}

    def is_official(self, digests: dict[str, str]) -> bool:
        own: dict[str, dict[str, str]] = {one.folder: {} for one in self.sets}
        for name, digest in digests.items():
            folder, _, rest = name.partition("/")
            own[folder][rest] = digest
        return all(one.is_official(own[one.folder]) for one in self.sets)

    def download(self) -> None:
        for one in self.sets:
            one.download()

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        for one in cls.parts:
            one.write_tiny(root / one.folder, rng)


class _NoDoctype(ET.TreeBuilder):
    """Builds the tree of a document without a DTD: no entity can be declared, so none expands or reads a file."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f"a document type ({name[:40]}), which an annotation does not need")


def read_objects(path: Path, width: int, height: int) -> Objects:
    """The objects in an annotation of an image of this size; an annotation without objects is legal.

    The file is XML as the devkit has it, in the encoding that it declares, with each object directly under
    `annotation` and box corners in pixels from 1, both inside the box. An object without
    `difficult` is not difficult; an object's parts (`part`) are not read. The size that the file gives is not read
    either: the image's own is what the boxes must lie in.

    Raises:
        DataError: it is no such file; names the object, counted from 1, that has no known class or no real box.
    """
    content = read_bytes(path)
    if len(content) > MAX_XML:
        raise DataError(f"{path}: expected at most {MAX_XML:,} bytes of XML, got {len(content):,}")
    # ASCII is the same in every encoding that may be declared beside it; the parser does not know all of them.
    plain = content.isascii() and b"\0" not in content
    try:
        top = ET.fromstring(content.decode() if plain else content, ET.XMLParser(target=_NoDoctype()))
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not a readable annotation ({error})") from None
    if top.tag != "annotation":
        raise DataError(f"{path}: expected an <annotation>, got <{top.tag[:40]}>")
    for parent in top.iter():
        for child in parent:  # an object that is not read would be one that is not there
            name = child.tag.rpartition("}")[2]
            if name.lower() == "object" and (parent is not top or child.tag != "object"):
                where = f"<{child.tag[:40]}> in <{parent.tag[:40]}>"
                raise DataError(f"{path}: expected each <object> directly in <annotation>, got {where}")
    boxes, labels, difficult = [], [], []
    for number, found in enumerate(top.findall("object"), 1):
        name = (found.findtext("name") or "").strip()
        where = f"{path}, object {number} ({name[:40] or 'no name'})"
        for part in ("name", "bndbox"):
            if (count := len(found.findall(part))) > 1:
                raise DataError(f"{where}: expected one <{part}>, got {count}")
        if name not in CLASSES[1:]:
            raise DataError(f"{where}: expected one of the 20 classes, such as {CLASSES[1]} or {CLASSES[-1]}")
        hard = (found.findtext("difficult") or "0").strip()
        if hard not in ("0", "1"):
            raise DataError(f"{where}: expected difficult to be 0 or 1, got {hard[:40]!r}")
        words = [(found.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
        try:
            x1, y1, x2, y2 = box = [float(word.replace("_", " ")) for word in words]  # Python would take 1_0 for 10
        except ValueError:
            told = ", ".join(f"{corner} {word[:20]!r}" for corner, word in zip(CORNERS, words, strict=True))
            raise DataError(f"{where}: expected a bndbox of four numbers, got {told}") from None
        told = f"({', '.join(word[:20] for word in words)})"
        # Not cut to the image, and not left out: either would train on something else than what was annotated.
        if not (x1 >= 1 and y1 >= 1 and x2 <= width and y2 <= height):
            raise DataError(f"{where}: expected a box inside the image, 1-{width} by 1-{height}, got {told}")
        if not (x1 < x2 and y1 < y2):
            raise DataError(f"{where}: expected a box with an area, xmin < xmax and ymin < ymax, got {told}")
        boxes.append([v - 1 for v in box])
        labels.append(CLASSES.index(name))
        difficult.append(hard == "1")
    return Objects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(labels, dtype=np.int64), np.array(difficult, bool)
    )


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
