"""VOC's images and the boxes of their objects, of ImageSets/Main, in 2007 and 2012. Legend: N objects of an image."""

import inspect
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import Dataset, entry, read_bytes, read_picture
from tmbench.errors import DataError
from tmbench.files import digest_of

from ..voc import CLASSES, CORNERS, VOC
from . import selective_search

REGIONS_MD5 = "7078c1db87a7851b31966b96774cd9b9"
MAX_XML = 2**20  # bytes of an annotation; the largest real ones have some 20,000


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
        return super().source() + inspect.getsource(selective_search)

    def prepare(self, out: Path, **settings: Any) -> None:
        """Regions of each image that may hold an object, of the selective search; Fast R-CNN looks at nothing else."""
        pairs = {(one, split): one.pairs(split) for one in self.sets for split in one.splits}
        files = [image for listed in pairs.values() for image, _ in listed]
        if "published" not in settings:
            selective_search.write(out, self.root, files)
            return
        found: list[np.ndarray] = []
        for (one, split), listed in pairs.items():
            found += selective_search.read_published(one.regions_file(split), [image.stem for image, _ in listed])
        selective_search.store(out, [file.relative_to(self.root).as_posix() for file in files], found)

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
                source = f"selective_search_data.tgz of rbgirshick/fast-rcnn (md5 {REGIONS_MD5})"
                fix = "or let them be computed, with task.regions=opencv"
                raise DataError(f"od: no {file}\n  it is in {source}\n  {fix}")
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
        parts = [(name.partition("/"), digest) for name, digest in digests.items()]
        return all(
            one.is_official({rest: digest for (folder, _, rest), digest in parts if folder == one.folder})
            for one in self.sets
        )

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

    The file is XML as the devkit has it, in the encoding that it declares, with each object directly under `annotation`
    and box corners in pixels from 1, both inside the box. An object without `difficult` is not difficult. An object's
    parts (`part`) and the size that the file gives are not read: the image's own is what the boxes must lie in.

    Raises:
        DataError: it is no such file; names the object, counted from 1, that has no known class or no real box.
    """
    top = _parsed(path)
    for parent in top.iter():
        for child in parent:  # an object that is not read would be one that is not there
            name = child.tag.rpartition("}")[2]
            if name.lower() == "object" and (parent is not top or child.tag != "object"):
                where = f"<{child.tag[:40]}> in <{parent.tag[:40]}>"
                raise DataError(f"{path}: expected each <object> directly in <annotation>, got {where}")
    elements = enumerate(top.findall("object"), 1)
    read = [_read_object(element, width, height, f"{path}, object {number}") for number, element in elements]
    boxes, labels, difficult = zip(*read, strict=True) if read else ((), (), ())
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(difficult, bool))


def _parsed(path: Path) -> ET.Element:
    """The root of an annotation's XML."""
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
    return top


def _read_object(element: ET.Element, width: int, height: int, where: str) -> tuple[list[float], int, bool]:
    """The box, in pixels from 0, the label, and whether it is difficult."""
    name = (element.findtext("name") or "").strip()
    where = f"{where} ({name[:40] or 'no name'})"
    for part in ("name", "bndbox"):
        if (count := len(element.findall(part))) > 1:
            raise DataError(f"{where}: expected one <{part}>, got {count}")
    if name not in CLASSES[1:]:
        raise DataError(f"{where}: expected one of the 20 classes, such as {CLASSES[1]} or {CLASSES[-1]}")
    hard = (element.findtext("difficult") or "0").strip()
    if hard not in ("0", "1"):
        raise DataError(f"{where}: expected difficult to be 0 or 1, got {hard[:40]!r}")
    words = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
    try:
        x1, y1, x2, y2 = box = [float(word.replace("_", " ")) for word in words]  # Python would take 1_0 for 10
    except ValueError:
        got = ", ".join(f"{corner} {word[:20]!r}" for corner, word in zip(CORNERS, words, strict=True))
        raise DataError(f"{where}: expected a bndbox of four numbers, got {got}") from None
    got = f"({', '.join(word[:20] for word in words)})"
    # Not cut to the image, and not left out: either would train on something else than what was annotated.
    if not (x1 >= 1 and y1 >= 1 and x2 <= width and y2 <= height):
        raise DataError(f"{where}: expected a box inside the image, 1-{width} by 1-{height}, got {got}")
    if not (x1 < x2 and y1 < y2):
        raise DataError(f"{where}: expected a box with an area, xmin < xmax and ymin < ymax, got {got}")
    return [v - 1 for v in box], CLASSES.index(name), hard == "1"
