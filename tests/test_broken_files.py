"""Every way in which a data set's files can be broken, in one place: a new data set is added to SETS and BREAKS.

Whatever is done to a file, its set either still reads with its right counts, or one DataError names the file.
"""

import gzip
import os
import pickle
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import real_data
from PIL import Image
from web import tiny, tree

from tmbench.data import Dataset, files, read_pickle
from tmbench.errors import DataError
from tmbench.tasks.ctr.avazu import Avazu, AvazuX1
from tmbench.tasks.fkpd.faces import Faces
from tmbench.tasks.ic.cifar import CIFAR10, CIFAR100
from tmbench.tasks.ig.sneakers import TINY_COUNT, Sneakers
from tmbench.tasks.od.boxes import VOC0712, VOCDetection
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.r8 import R8
from tmbench.tasks.voc import VOC

Break = tuple[Callable[[Path], Any], str]  # what is done to a file, and what the message that names it says
SETS: dict[str, type[Dataset]] = {
    "r8": R8, "voc2007": VOCSegmentation, "voc2007 boxes": VOCDetection, "voc0712": VOC0712, "cifar10": CIFAR10,
    "cifar100": CIFAR100, "faces": Faces, "sneakers": Sneakers, "avazu": Avazu, "avazu_x1": AvazuX1,
}  # fmt: skip
COUNTS = {
    "r8": {"train": 320, "test": 160}, "voc2007": {"train": 32, "val": 12},
    "voc2007 boxes": {"trainval": 32, "test": 12}, "voc0712": {"trainval": 64, "test": 12},
    "cifar10": CIFAR10.tiny_counts, "cifar100": CIFAR100.tiny_counts, "faces": {"train": 200, "test": 60},
    "sneakers": {"train": TINY_COUNT}, "avazu": {"train": 6000},
    "avazu_x1": {"train": 4800, "valid": 600, "test": 600},
}  # fmt: skip
CLICKS, TEXT, SHOE, FACE, POINTS = (
    "train.csv", "train.txt", "images/*.jpg", "data/training/*.jpg", "data/test_frames_keypoints.csv",
)  # fmt: skip
LIST, BOX_LIST, IMAGE, MASK, BOXES = (
    f"VOCdevkit/VOC2007/{path}"
    for path in ("ImageSets/Segmentation/train.txt", "ImageSets/Main/trainval.txt", "JPEGImages/*.jpg",
                 "SegmentationClass/*.png", "Annotations/*.xml")
)  # fmt: skip
NO_PICTURE, NO_PICKLE = "{}: not a readable picture", "{}: not a pickle that can be trusted"
NO_TEXT, TOO_LARGE = "{}: expected UTF-8 text", "{}: expected at most"
NO_HEADER, INSIDE = "{}, line 1: expected the header id,click", "expected a box inside the image, 1-"


def damage(do: Callable[..., Any]) -> Callable[..., Callable[[Path], Any]]:
    """do(path, *arguments) as a function of its arguments, which gives what is then done to a path."""
    return lambda *arguments: lambda path: do(path, *arguments)


@damage
def holds(path: Path, content: str | bytes, encoding: str = "utf-8") -> None:
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)


@damage
def replaced(path: Path, make: Callable[[Path], Any]) -> None:
    """Something else is in the place of the file."""
    path.unlink()
    make(path)


@damage
def picture(path: Path, mode: str, size: tuple[int, int], kind: str) -> None:
    Image.new(mode, size).save(path, kind)


@damage
def class_id(mask: Path, number: int) -> None:
    """One pixel of a mask is of this class."""
    with Image.open(mask) as picture:
        picture.putpixel((2, 4), number)
        picture.save(mask)


@damage
def rewritten(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@damage
def edited(path: Path, change: Callable[[list[list[str]]], Any]) -> None:
    """A table without quotes, its rows changed."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("\n".join(",".join(row) for row in rows) + "\n", errors="surrogateescape")


@damage
def packed(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The file is a gz instead, its bytes changed."""
    content = gzip.compress(path.read_bytes())
    path.unlink()
    (path.parent / "train.gz").write_bytes(change(content))


@damage
def pickled(path: Path, change: Callable[[dict[bytes, Any]], Any]) -> None:
    """A pickle that can be trusted, its values changed."""
    values = read_pickle(path)
    change(values)
    path.write_bytes(pickle.dumps(values, 3))  # 2 writes empty bytes as a call of bytes


empty = holds(b"")


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def huge(path: Path) -> None:
    """More than is read into memory, though it takes no room on the disk."""
    os.truncate(path, files.MAX_BYTES + 1)


def empty_folder(path: Path) -> None:
    """Nothing is left beside this file, nor it."""
    for other in path.parent.iterdir():
        other.unlink()


def turned(mask: Path) -> None:
    with Image.open(mask) as picture:
        ids = picture.transpose(Image.Transpose.ROTATE_90)
    ids.save(mask)


def png_bomb(path: Path) -> None:
    """A few bytes that would unpack to 10 GB."""
    Image.new("1", (9, 9)).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 10**5, 10**5)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def with_tags(text: str, **values: str) -> str:
    """The first value of each name is another."""
    for name, value in values.items():
        text = re.sub(f"<{name}>.*?</{name}>", f"<{name}>{value}</{name}>", text, count=1)
    return text


def tags(**values: str) -> Callable[[Path], Any]:
    return rewritten(lambda text: with_tags(text, **values))


def xml(old: str, new: str) -> Callable[[Path], Any]:
    return rewritten(lambda text: text.replace(old, new))


@rewritten
def second_is_a_giraffe(text: str) -> str:
    """The object comes twice, the second time with another class."""
    (first, *_) = re.findall(r"\t<object>.*?</object>\n", text, re.DOTALL)
    return f"<annotation>\n{first}{with_tags(first, name='giraffe')}</annotation>\n"


def doctype(entities: str, text: str) -> Callable[[Path], Any]:
    return holds(f"<!DOCTYPE x [{entities}]><annotation>{text}</annotation>")


def box(*corners: str) -> Callable[[Path], Any]:
    return tags(**dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)))


def value(line: int, column: int, text: str) -> Callable[[Path], Any]:
    """One value of a table is another; lone surrogates stand for bytes that are not UTF-8."""
    return edited(lambda rows: rows[line - 1].__setitem__(column, text))


def dumped(values: Any) -> Callable[[Path], Any]:
    return holds(pickle.dumps(values, 2))


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Any]:
    return pickled(lambda values: values.update({b"data": change(values[b"data"])}))


def put(key: bytes, value: Any, at: int | None = None) -> Callable[[Path], Any]:
    """A value of a pickle, or one item of it, is another."""
    return pickled(lambda values: values.__setitem__(key, value) if at is None else values[key].__setitem__(at, value))


def batches(labels: bytes, last: int) -> dict[str, Break]:
    """The ways to break one of CIFAR's batches."""
    key = labels.decode()
    return {
        **COMMON,
        "empty": (empty, NO_PICKLE), "truncated": (half, NO_PICKLE),
        "a picture": (picture("RGB", (9, 9), "PNG"), NO_PICKLE), "a list": (dumped([1]), NO_PICKLE),
        "code": (dumped(os.getcwd), "{}: not a pickle that can be"), "oversized": (huge, TOO_LARGE),
        "another pickle": (dumped({b"x": 1}), "{}: expected a value 'data', there are 'x'"),
        "nothing in it": (dumped({}), "{}: expected a value 'data', there are none"),
        "no labels": (pickled(lambda v: v.pop(labels)), f"{{}}: expected a value '{key}', there are "),
        "no images": (
            pickled(lambda v: v.update({labels: [], b"data": v[b"data"][:0]})), "{}: expected images, there are",
        ),
        "grey images": (images(lambda d: d[:, :1024]), "uint8 of shape (N, 3072), got uint8 of"),
        "square images": (images(lambda d: d.reshape(-1, 3, 32, 32)), "{}: expected data to be"),
        "images as numbers": (images(lambda d: d.astype("f4")), "{}: expected data to be uint8"),
        "images as a list": (put(b"data", [1, 2]), "(N, 3072), got list"),
        "an image less": (images(lambda d: d[1:]), f"{{}}: expected {key} to be a list of "),
        "a label less": (pickled(lambda v: v[labels].pop()), f"{{}}: expected {key} to be a list of "),
        "labels as an array": (
            pickled(lambda v: v.update({labels: np.array(v[labels])})), f"{{}}: expected {key} to be a list",
        ),
        "label too large": (put(labels, last + 1, 17), f"{{}}, {key}[17]: expected a label 0-{last}, got {last + 1}"),
        "negative label": (put(labels, -1, 3), f"{{}}, {key}[3]: expected a label 0-{last}, got -1"),
        "label in words": (put(labels, b"cat", 0), f"{{}}, {key}[0]: expected a label 0-{last}, got 'cat'"),
        "label that is true": (put(labels, True, 5), f"{{}}, {key}[5]: expected a label 0-{last}, got True"),
    }  # fmt: skip


def class_names(names: bytes, count: int) -> dict[str, Break]:
    """The ways to break the file that names the classes."""
    key = names.decode()
    return {
        **COMMON,
        "empty": (empty, NO_PICKLE), "truncated": (half, NO_PICKLE),
        "without": (pickled(lambda v: v.pop(names)), f"{{}}: expected a value '{key}', there are none"),
        "one less": (pickled(lambda v: v[names].pop()), f"{key} to be a list of {count} names, got {count - 1}"),
        "no list": (put(names, b"cat"), f"{{}}: expected {key} to be a list of {count} names, got bytes"),
        "a number": (put(names, 4, 2), f"{{}}, {key}[2]: expected a class's name, got 4"),
        "no word": (put(names, b"\xff", 2), f"{{}}, {key}[2]: expected a class's name"),
        "twice the same": (
            pickled(lambda v: v[names].__setitem__(1, v[names][0])), f"{{}}: expected {key} to name each class",
        ),
    }  # fmt: skip


BOMB = "{}: not a readable annotation (a document type"
COMMON: dict[str, Break] = {
    "missing": (Path.unlink, ": no {}"), "a folder": (replaced(Path.mkdir), ": no {}"),
    "a pipe": (replaced(os.mkfifo), ": no {}"),
    "a link to nowhere": (replaced(lambda p: p.symlink_to("nowhere")), ": no {}"),
    "a link to itself": (replaced(lambda p: p.symlink_to(p.name)), ": no {}"),
}  # fmt: skip
BREAKS: dict[str, dict[str, dict[str, Break]]] = {  # by the set, a pattern of its files and the kind of damage
    "r8": {
        TEXT: {
            **COMMON,
            "empty": (empty, "{}, line 1: expected label<TAB>text"), "UTF-16": (holds("earn\ta", "utf-16"), NO_TEXT),
            "latin-1": (holds(b"earn\tcaf\xe9 au lait"), NO_TEXT),
            "a picture": (picture("RGB", (9, 9), "PNG"), NO_TEXT),
            "binary zeros": (holds(bytes(99)), "{}, line 1: expected label<TAB>text"),
            "another table": (holds("id,click\n1,0\n"), "{}, line 1: expected label<TAB>text"),
            "oversized": (huge, TOO_LARGE),
        },
    },
    "voc2007": {
        LIST: {
            **COMMON,
            "empty list": (empty, "{}: expected image names"),
            "blank list": (holds(" \n\n"), "{}: expected image names"),
            "UTF-16 list": (holds("000001", "utf-16"), NO_TEXT), "oversized list": (huge, TOO_LARGE),
            "list of what is not there": (holds("000001\n999999"), "named in {}, line 2"),
            "list that leads out": (holds("../../x"), "{}, line 1: expected an image's name"),
            "list with numbers": (holds("000001  1"), "{}, line 1: expected an image's name"),
        },
        IMAGE: {
            **COMMON,
            "empty image": (empty, NO_PICTURE), "truncated image": (half, NO_PICTURE),
            "a GIF": (picture("L", (9, 9), "GIF"), NO_PICTURE),
            "PostScript": (holds("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), NO_PICTURE),
            "image of another size": (picture("RGB", (9, 9), "JPEG"), "expected the image's size"),
            "text named .jpg": (holds("not a picture"), NO_PICTURE), "image bomb": (png_bomb, NO_PICTURE),
            "large image": (picture("1", (9000, 8000), "PNG"), "{}: not a readable picture (9000x8000"),
        },
        MASK: {
            **COMMON,
            "empty mask": (empty, NO_PICTURE), "truncated mask": (half, NO_PICTURE),
            "mask of another size": (picture("P", (9, 9), "PNG"), "{}: expected the image's size"),
            "mask in colours": (picture("RGB", (9, 9), "PNG"), "{}: expected a palette PNG"),
            "turned mask": (turned, "{}: expected the image's size ("),
            **{f"class id {n}": (class_id(n), f"{{}}: expected class ids 0-20 or 255, got {n}") for n in (21, 30, 254)},
            "mask bomb": (png_bomb, NO_PICTURE),
        },
    },
    "voc2007 boxes": {
        BOX_LIST: {
            **COMMON,
            "list of what is not there": (holds("000001\n999999"), "named in {}, line 2"),
        },
        IMAGE: {
            **COMMON,
            "truncated image": (half, NO_PICTURE),
            "image of another size": (picture("RGB", (9, 9), "JPEG"), "box inside the image, 1-9 by 1-9"),
        },
        BOXES: {
            **COMMON,
            "empty annotation file": (empty, "{}: not a readable annotation (no el"),
            "truncated annotation": (half, "{}: not a readable annotation"),
            "a picture for an annotation": (picture("RGB", (9, 9), "PNG"), "{}: not a readable annotation"),
            "oversized annotation": (huge, TOO_LARGE),
            "long annotation": (lambda p: p.write_text(" " * 2**20 + p.read_text()), TOO_LARGE),
            "another document": (holds("<html/>"), "{}: expected an <annotation>, got <h"),
            "entity bomb": (doctype('<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">', "&b;"), BOMB),
            "entity that reads a file": (doctype('<!ENTITY a SYSTEM "file:///etc/passwd">', "&a;"), BOMB),
            "unknown entity": (xml("<xmin>", "<xmin>&a;"), "{}: not a readable annotation (undefined entity"),
            "no name": (tags(name=""), "{}, object 1 (no name): expected one of the 20 classes"),
            "unknown class": (tags(name="giraffe"), "{}, object 1 (giraffe): expected one of the 20"),
            "background": (tags(name="background"), "{}, object 1 (background): expected one of the 20"),
            "second object's class": (second_is_a_giraffe, "{}, object 2 (giraffe): expected one of"),
            "strange difficult": (tags(difficult="maybe"), "expected difficult to be 0 or 1, got 'maybe'"),
            "two boxes": (xml("</bndbox>", "</bndbox><bndbox/>"), "expected one <bndbox>, got 2"),
            "two names": (xml("</name>", "</name><name>cat</name>"), "expected one <name>, got 2"),
            "no box": (xml("bndbox", "box"), "expected a bndbox of four numbers, got xmin '', ymin ''"),
            "no number": (tags(ymax="low"), "expected a bndbox of four numbers, got xmin '"),
            "not a number": (tags(xmin="nan"), INSIDE), "infinite": (tags(xmax="inf"), INSIDE),
            "box from zero": (tags(xmin="0"), INSIDE), "negative box": (tags(ymin="-3"), INSIDE),
            "box outside": (tags(xmax="101"), INSIDE), "box below": (tags(ymax="101"), INSIDE),
            "box of no width": (box("9", "9", "9", "20"), "expected a box with an area, xmin < xmax"),
            "box of no height": (box("9", "9", "20", "9"), "expected a box with an area, xmin < xmax"),
            "box turned round": (box("20", "9", "9", "20"), "xmin < xmax and ymin < ymax, got (20, 9, 9, 20)"),
        },
    },
    "voc0712": {
        "voc2007/" + BOX_LIST: {"list missing of 2007": (Path.unlink, "od: no {}")},
        "voc2012/" + BOX_LIST.replace("2007", "2012"): {"list missing of 2012": (Path.unlink, "od: no {}")},
        "voc2012/" + BOXES.replace("2007", "2012"): {
            "unknown class in 2012": (tags(name="giraffe"), "{}, object 1 (giraffe): expected one"),
        },
    },
    "cifar10": {
        "cifar-10-batches-py/data_batch_4": batches(b"labels", 9),
        "cifar-10-batches-py/batches.meta": class_names(b"label_names", 10),
    },
    "cifar100": {  # the same reader; what differs
        "cifar-100-python/train": {
            case: broken for case, broken in batches(b"fine_labels", 99).items()
            if case in ("missing", "truncated", "no labels", "label too large")
        },
        "cifar-100-python/meta": {
            case: broken for case, broken in class_names(b"fine_label_names", 100).items()
            if case in ("missing", "one less")
        },
    },
    "faces": {
        POINTS: {
            **COMMON,
            "empty table": (empty, "{}, line 1: expected a name's column and 0-135"),
            "header alone": (edited(lambda r: r.__delitem__(slice(1, None))), "{}: expected rows"),
            "no header": (edited(lambda r: r.pop(0)), "{}, line 1: expected a name's column and 0-135, got"),
            "missing column": (edited(lambda r: [own.pop() for own in r]), "got 136 columns of 137"),
            "renamed column": (value(1, 7, "x3"), "line 1: expected a name's colu"),
            "short row": (edited(lambda r: r[4].pop()), "{}, line 5: expected 137 columns, got 136"),
            "long row": (edited(lambda r: r[4].append("1")), "{}, line 5: expected 137 columns, got 138"),
            "no number": (value(4, 9, "x"), "{}, line 4, column 8: expected a num"),
            "empty number": (value(4, 136, ""), "{}, line 4, column 135: expected"),
            "not a number": (value(4, 1, "nan"), "{}, line 4, column 0: expected"),
            "infinite": (value(4, 1, "-inf"), "{}, line 4, column 0: expected a"),
            "named twice": (edited(lambda r: r[3].__setitem__(0, r[2][0])), "line 4: Face_0_1.jpg is named"),
            "name that leads out": (value(4, 0, "../x.jpg"), "line 4: expected an"),
            "name of nothing": (value(4, 0, "x.jpg"), "named in {}, line 4"),
            "open quote": (value(4, 5, '"1'), "not a row of a table"), "UTF-16 table": (holds("x", "utf-16"), NO_TEXT),
            "oversized table": (huge, TOO_LARGE), "truncated table": (half, "{}, line "),
        },
        FACE: {
            **COMMON,
            "image named in the table": (Path.unlink, "data/training_frames_keypoints.csv, line 2"),
            "empty image": (empty, NO_PICTURE), "truncated image": (half, NO_PICTURE),
            "image bomb": (png_bomb, NO_PICTURE),
        },
    },
    "avazu": {
        CLICKS: {
            **COMMON,
            "empty": (empty, NO_HEADER),
            "header alone": (edited(lambda r: r.__delitem__(slice(1, None))), "{}, line 2: expected rows"),
            "no header": (edited(lambda r: r.pop(0)), NO_HEADER), "renamed column": (value(1, 5, "site"), NO_HEADER),
            "column twice": (value(1, 5, "C1"), NO_HEADER),
            "column less": (edited(lambda r: [own.pop() for own in r]), NO_HEADER),
            "byte-order mark": (value(1, 0, "\ufeffid"), NO_HEADER),
            "UTF-16": (lambda p: p.write_text(p.read_text(), "utf-16"), NO_HEADER),
            "another table": (holds("id,click\n1,0\n"), NO_HEADER),
            "zeros": (lambda p: os.truncate(p, 2**21), "{}, line 6002: the file is cut short or damaged"),
            "short row": (edited(lambda r: r[4].pop()), "{}, line 5: expected 24 values, got 23"),
            "long row": (edited(lambda r: r[4].append("1")), "{}, line 5: expected 24 values, got 25"),
            "short last row": (edited(lambda r: r[-1].pop()), "{}, line 6001: expected 24 values, got 23"),
            "blank line": (edited(lambda r: r.insert(3000, [])), "{}, line 3001: expected 24 values, got 1"),
            "two of them": (edited(lambda r: (r[5000].pop(), r[70].pop())), "{}, line 71: expected 24 values, got 23"),
            "label 2": (value(5001, 1, "2"), "{}, line 5001, click: expected 0 or 1, got '2'"),
            "label -1": (value(3, 1, "-1"), "{}, line 3, click: expected 0 or 1, got '-1'"),
            "no label": (value(3, 1, ""), "{}, line 3, click: expected 0 or 1, got ''"),
            "id in words": (value(3, 0, "x"), "{}, line 3, id: expected a whole number below 2^64, got 'x'"),
            "rounded id": (value(9, 0, "1.000009e18"), "{}, line 9, id: expected a whole number"),
            "id of 2^64": (value(9, 0, str(2**64)), "{}, line 9, id: expected a whole number below 2^64"),
            "id twice": (edited(lambda r: r[5998].__setitem__(0, r[1][0])), "{}, line 5999, id: expected"),
            "no hour": (value(4000, 2, "14102124"), "{}, line 4000, hour: expected an hour as YYMMDDHH, got"),
            "no day": (value(4000, 2, "14023005"), "{}, line 4000, hour: expected an hour as YYMMDDHH, got"),
            "long hour": (value(2, 2, "2014102100"), "{}, line 2, hour: expected an hour as YYMMDDHH"),
            "upper case": (value(2, 12, "0A0B0C0D"), "{}, line 2, device_ip: expected 8 hexadecimal digits"),
            "short word": (value(2, 12, "0a0b0c0"), "{}, line 2, device_ip: expected 8 hexadecimal digits"),
            "quoted": (value(2, 12, '"0a0b0c0d"'), "{}, line 2, device_ip: expected 8 hexadecimal digits"),
            "no number": (value(2, 23, "many"), "{}, line 2, C21: expected a whole number of at most 9"),
            "missing number": (value(2, 23, "NA"), "{}, line 2, C21: expected a whole number of at most 9"),
            "large number": (value(2, 23, "9" * 30), "{}, line 2, C21: expected a whole number of at most"),
            "not UTF-8": (value(77, 1, "\udcff"), r"{}, line 77, click: expected 0 or 1, got '\\xff'"),
            "not UTF-8 in a word": (
                value(5, 5, "caf\udce9cafe"), r"{}, line 5, site_id: expected 8 hexadecimal digits, got 'caf\\xe9",
            ),
            "gz cut short": (packed(lambda c: c[: len(c) // 2]), "train.gz, line "),
            "gz without its end": (packed(lambda c: c[:-4]), "train.gz, line 6002: the file is cut short or"),
            "gz with a wrong checksum": (
                packed(lambda c: c[:-8] + bytes(4) + c[-4:]), "train.gz, line 6002: the file is cut short or",
            ),
            "no gz": (lambda p: p.rename(p.with_suffix(".gz")), "train.gz, line 1: expected the header"),
        },
    },
    "avazu_x1": {
        "test.csv": {
            "missing": (Path.unlink, ": no {}"),
            "fraction": (value(7, 3, "1.5"), "{}, line 7, feat_3: expected a whole number of at most 9"),
            "infinite": (value(7, 3, "inf"), "{}, line 7, feat_3: expected a whole number of at most 9"),
            "large": (value(7, 3, "1e300"), "{}, line 7, feat_3: expected a whole number of at most 9"),
        },
        "valid.csv": {"label 0.5": (value(7, 0, "0.5"), "{}, line 7, label: expected 0 or 1, got '0.5'")},
    },
    "sneakers": {
        SHOE: {
            **{case: (do, "{}: expected nothing but files *.jpg") for case, (do, _) in COMMON.items()
               if case != "missing"},
            "no folder": (lambda p: shutil.rmtree(p.parent), "images"),
            "empty folder": (empty_folder, "images: expected pictures, files *.jpg; the folder is empty"),
            "another ending": (
                lambda p: p.rename(p.with_suffix(".gif")), "shoe0000.gif: expected nothing but files *.jpg",
            ),
            "empty": (empty, NO_PICTURE), "truncated": (half, NO_PICTURE),
            "a text": (holds("a shoe"), NO_PICTURE), "a GIF": (picture("L", (9, 9), "GIF"), NO_PICTURE),
            "bomb": (png_bomb, NO_PICTURE),
            "large": (picture("1", (9000, 8000), "PNG"), "{}: not a readable picture (9000x8000"),
        },
    },
}  # fmt: skip
CASES = [(name, file, case) for name, files in BREAKS.items() for file, cases in files.items() for case in cases]


@pytest.fixture(scope="module", params=SETS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny set's name and folder."""
    return request.param, write(request.param, tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def little_is_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 2**24)  # so that files with more are quickly read


def write(name: str, root: Path) -> Path:
    return tiny(SETS[name], root).root


def read(name: str, root: Path) -> dict[str, int]:
    """Everything that a run would read."""
    data = SETS[name](root)
    data.digests()
    return data.counts()


def test_every_set_has_its_broken_cases() -> None:
    assert SETS.keys() == BREAKS.keys()


def test_a_whole_set_reads_with_its_counts(whole: tuple[str, Path]) -> None:
    name, root = whole
    assert read(name, root) == COUNTS[name]


@pytest.mark.parametrize(("name", "file", "case"), CASES)
def test_a_broken_file_is_named_in_one_message(tmp_path: Path, name: str, file: str, case: str) -> None:
    root = write(name, tmp_path)
    do, told = BREAKS[name][file][case]
    path = min(root.glob(file))
    do(path)
    with pytest.raises(DataError) as error:
        read(name, root)
    assert told.format(path) in str(error.value)
    assert len(str(error.value)) < 1500


# Fuzz: any bytes

MUTATIONS: list[Callable[[bytearray, np.random.Generator], bytearray]] = [
    lambda c, rng: c[: rng.integers(len(c) + 1)],
    lambda c, rng: c[rng.integers(len(c) + 1) :],
    lambda c, rng: changed(c, rng, 1),
    lambda c, rng: changed(c, rng, 30),
    lambda c, rng: changed(c[:600], rng, 3) + c[600:],  # the headers are where a picture's trouble begins
    lambda c, rng: (at := rng.integers(len(c) + 1)) and c[:at] + bytearray(rng.bytes(50)) + c[at:],
    lambda c, rng: (at := rng.integers(len(c) + 1)) and c[:at] + c[at + rng.integers(200) :],
    lambda c, rng: c + c[: rng.integers(len(c) + 1)],
    lambda c, rng: bytearray(rng.bytes(int(rng.integers(2000)))),
]


def changed(content: bytearray, rng: np.random.Generator, count: int) -> bytearray:
    content = bytearray(content)
    for at in rng.integers(len(content), size=count if content else 0):
        content[at] = rng.integers(256)
    return content


def fuzz(name: str, root: Path, cases: int, outside: Path) -> tuple[int, int]:
    """How many mutations of a file still read, and how many were refused; any other end is an error of ours."""
    rng = np.random.default_rng(0)
    expected = read(name, root)
    paths = sorted(SETS[name](root).files())  # others, such as masks where boxes are read, could be anything
    around = {path: path.stat().st_mtime_ns for path in outside.rglob("*") if not path.is_relative_to(root)}
    good = refused = 0
    for case in range(cases):
        path = paths[rng.integers(len(paths))]
        content = path.read_bytes()
        mutation = MUTATIONS[case % len(MUTATIONS)]
        path.write_bytes(mutation(bytearray(content), rng) or b"")
        told, counts = "", {}
        try:
            counts = one(name, root, path, expected)
        except DataError as error:
            told = str(error)
        if told:
            assert path.stem in told, (case, path, told)
            assert len(told) < 1500
            refused += 1
        else:
            # A list or a text with fewer or more good lines is another set of good examples, and counted so.
            split = path.stem.removesuffix("ing_frames_keypoints").removesuffix("_frames_keypoints")
            right = expected | ({split: lines_of(path, name)} if path.suffix in (".txt", ".csv") else {})
            assert counts == right, (case, path)
            good += 1
        path.write_bytes(content)
    assert {p: p.stat().st_mtime_ns for p in outside.rglob("*") if not p.is_relative_to(root)} == around
    assert read(name, root) == expected
    return good, refused


def lines_of(path: Path, name: str) -> int:
    """How many examples a text file names; blank lines count where they are examples without words."""
    lines = re.split("\r\n|\r|\n", path.read_bytes().decode())
    if name == "r8":
        return len(lines) - (not lines[-1])
    return len([line for line in lines if line.strip()]) - (not name.startswith("voc"))  # a header


def one(name: str, root: Path, path: Path, expected: dict[str, int]) -> dict[str, int]:
    """Reads what the changed file is part of; of the other pictures nothing has changed."""
    data = SETS[name](root)
    if isinstance(data, Sneakers):
        data.picture(path)
        return expected
    if isinstance(data, VOC) and path.suffix != ".txt":
        pairs = [pair for split in expected for pair in data.pairs(split) if path in pair]
        for pair in pairs:
            data.read(*pair)
        return expected
    if isinstance(data, VOC):
        return {split: len(data.pairs(split)) for split in expected}
    if isinstance(data, Faces):
        if path.suffix != ".csv":
            data.read(path)
        return {split: sum(1 for _ in data.rows(split)) for split in expected}
    return data.counts()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETS if name != "voc0712"])
def test_2000_mutated_files_read_or_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "beside").write_text("not ours")
    (tmp_path / "data").mkdir()
    good, refused = fuzz(name, write(name, tmp_path / "data"), 2000, tmp_path)
    print(f"{name}: {good} of 2000 mutated files still read, {refused} were refused with a message")
    assert good > 20 or name.startswith("avazu")  # where any byte that is not as it should be is told
    assert refused > 50


# Pickles, as CIFAR's batches are


def batch(root: Path, content: bytes) -> Path:
    path = root / "data_batch_1"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_pickle_of_plain_values_and_arrays_reads_as_with_pickle(tmp_path: Path, protocol: int, order: Any) -> None:
    values = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4, order=order), b"labels": [1, 2, 3],
        b"wide": np.array([1.5, -2.0]), b"filenames": [b"a.png", b"b.png"], b"batch_label": b"training batch",
    }  # fmt: skip
    path = batch(tmp_path, pickle.dumps(values, protocol))
    got = read_pickle(path)
    assert got.keys() == values.keys()
    for key, value in values.items():
        np.testing.assert_array_equal(got[key], value)
        assert getattr(got[key], "dtype", None) == getattr(value, "dtype", None)


def test_real_cifar_batches_read_as_with_pickle() -> None:
    folder = real_data("cifar10") / "cifar-10-batches-py"
    for path in sorted(folder.iterdir()):
        with path.open("rb") as f:
            expected = pickle.load(f, encoding="bytes")
        got = read_pickle(path)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(got[key], value)


class Runs:
    """Runs a command when it is unpickled by pickle itself."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for attack in (
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(getattr, "text", "upper"),
        Runs(np.load, str(mark)),
        Runs(np.array, [Runs(os.mkdir, str(mark))]),
        Runs(shutil.copy, __file__, str(mark)),
    ):
        for protocol in (0, 2, 4):
            path = batch(tmp_path, pickle.dumps({b"data": attack}, protocol))
            with pytest.raises(DataError, match=f"^{path}: not a pickle that can be trusted"):
                read_pickle(path)
            assert not mark.exists()


PICKLES = {
    "empty": b"", "text": b"no pickle", "a list": pickle.dumps([1, 2]),
    "cut": pickle.dumps({b"data": np.zeros(9)})[:50],
    "objects": pickle.dumps({b"data": np.array([object, None])}, 2),
    "a table": pickle.dumps({b"data": np.zeros(2, dtype=[("a", "O"), ("b", "u1")])}, 2),
    "memo bomb": b"\x80\x02}q\x00r\xff\xff\xff\x7f.",  # a memo of two thousand million entries
    "bytes bomb": b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b".",  # a bytearray of 4 EiB
    "codec": b"\x80\x02c_codecs\nencode\nq\x00X\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.",
    "deep": b"(" * 100_000 + b"l" * 100_000 + b".",
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_a_broken_pickle_is_a_data_error(tmp_path: Path, case: str) -> None:
    path = batch(tmp_path, PICKLES[case])
    with pytest.raises(DataError, match=f"^{path}: not a pickle that can be trusted") as error:
        read_pickle(path)
    assert len(str(error.value)) < 400 + len(str(path))


def test_a_pickled_array_of_a_number_in_place_of_bytes_takes_no_memory(tmp_path: Path) -> None:
    content = b"\x80\x02}X\x01\x00\x00\x00acnumpy._core.numeric\n_frombuffer\n(\x8a\x08" + (2**62).to_bytes(8, "little")
    content += b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x01X\x01\x00\x00\x00CtRs."
    with pytest.raises(DataError, match="ValueError: an array of numbers was expected"):  # MemoryError if it were made
        read_pickle(batch(tmp_path, content))


def test_an_oversized_or_missing_pickle_is_a_data_error(tmp_path: Path) -> None:
    path = batch(tmp_path, b"")
    huge(path)
    with pytest.raises(DataError, match=f"^{path}: expected at most"):
        read_pickle(path)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: No such file"):
        read_pickle(path)


def test_mutated_pickles_read_or_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {b"data": np.arange(60, dtype=np.uint8).reshape(5, 12), b"labels": [1, 2, 3], b"filenames": [b"a"] * 5}
    content = pickle.dumps(values, 2)
    told = []
    for case in range(450):
        path = batch(tmp_path, bytes(MUTATIONS[case % len(MUTATIONS)](bytearray(content), rng) or b""))
        try:
            read_pickle(path)
        except DataError as error:
            told.append(str(error))
    assert all(text.startswith(str(path)) for text in told)
    assert 100 < len(told) < 450
    assert tree(tmp_path).keys() == {"data_batch_1"}


def test_cifar_batches_that_python_3_wrote_again_are_the_same_images(tmp_path: Path) -> None:
    """Their keys and names are words in place of bytes, and at protocol 5 arrays are written in another way."""
    for protocol in (2, 3, 4, 5):
        for name, cls in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
            data = cls(write(name, tmp_path / f"{protocol}" / name))
            read, names = {split: data.read(split) for split in data.batches}, data.names()
            for path in data.files():
                with path.open("rb") as f:
                    path.write_bytes(pickle.dumps(pickle.load(f, encoding="latin1"), protocol))
                assert {type(key) for key in read_pickle(path)} == {str}
            assert data.names() == names
            for split, (images, labels) in read.items():
                for old, new in zip((images, labels), data.read(split), strict=True):
                    assert old.dtype == new.dtype
                    np.testing.assert_array_equal(old, new)
            assert not data.is_official(data.digests())


def test_a_pickle_with_a_key_as_bytes_and_as_a_word_is_refused(tmp_path: Path) -> None:
    data = CIFAR10(write("cifar10", tmp_path))
    put("data", np.zeros((80, 3072), np.uint8))(path := tmp_path / data.batches["test"][0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"^{path}: expected a value 'data', there are 'batch_label', 'data', 'data'"):
        data.read("test")
