"""Pictures as they look and masks as they mean: bits a value, transparency, palettes; annotations in any encoding."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tmbench.data import read_picture
from tmbench.errors import DataError
from tmbench.tasks.fkpd.faces import Faces
from tmbench.tasks.ig.sneakers import Sneakers
from tmbench.tasks.od.boxes import VOCDetection, read_objects
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.voc import BORDER, CLASSES, annotation, palette


def pixels(path: Path) -> np.ndarray:
    picture = read_picture(path)
    assert picture.mode == "RGB"
    return np.array(picture)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def save_png(path: Path, values: np.ndarray, kind: int, *chunks: bytes) -> Path:
    """A PNG of these values, (H, W) or (H, W, C), big-endian, with other chunks; `kind` as in its IHDR."""
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, kind, 0, 0, 0)
    return write_png(path, head, b"".join(b"\0" + row.tobytes() for row in values), *chunks)


def write_png(path: Path, head: bytes, rows: bytes, *chunks: bytes) -> Path:
    content = chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(content))
    return path


# Pictures


def test_an_even_ramp_of_16_bits_stays_an_even_ramp_and_8_bits_written_as_16_are_the_same(tmp_path: Path) -> None:
    ramp = np.arange(2**16, dtype=">u2").reshape(256, 256)
    seen = pixels(save_png(tmp_path / "ramp.jpg", ramp, 0))
    assert (seen == (np.arange(2**16) // 256).reshape(256, 256, 1)).all()
    colours = np.repeat(ramp[..., None], 3, axis=2)  # grey as grey and grey as colours are the same picture
    np.testing.assert_array_equal(pixels(save_png(tmp_path / "colours.jpg", colours, 2)), seen)
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    seen = pixels(save_png(tmp_path / "x.png", (grey.astype(">u2") * 257).astype(">u2"), 0))
    np.testing.assert_array_equal(seen, np.repeat(grey[..., None], 3, axis=2))


def test_what_is_transparent_is_white_in_every_kind_of_png(tmp_path: Path) -> None:
    opaque, half = (10, 200, 90), 128
    colours = np.array([[[*opaque, 255], [*opaque, 0], [*opaque, half]]], dtype=np.uint8)
    blended = [round((v * half + 255 * (255 - half)) / 255) for v in opaque]
    save_png(tmp_path / "rgba.png", colours, 6)
    entries = chunk(b"PLTE", bytes(opaque) * 3), chunk(b"tRNS", bytes([255, 0, half]))
    save_png(tmp_path / "palette.png", np.array([[0, 1, 2]], dtype=np.uint8), 3, *entries)
    save_png(tmp_path / "rgba16.png", (colours.astype(">u2") * 257).astype(">u2"), 6)
    for name in ("rgba", "palette", "rgba16"):
        seen = pixels(tmp_path / f"{name}.png")
        assert seen[0, :2].tolist() == [list(opaque), [255, 255, 255]], name
        np.testing.assert_allclose(seen[0, 2], blended, atol=1, err_msg=name)
    grey = np.array([[[77, 255], [77, 0]]], dtype=np.uint8)
    assert pixels(save_png(tmp_path / "la.png", grey, 4))[0, :, 0].tolist() == [77, 255]
    key = chunk(b"tRNS", struct.pack(">H", 77))
    assert pixels(save_png(tmp_path / "l.png", np.array([[77, 78]], np.uint8), 0, key))[0, :, 0].tolist() == [255, 78]
    key = chunk(b"tRNS", struct.pack(">H", 20_000))
    values = np.array([[20_000, 20_001]], ">u2")
    assert pixels(save_png(tmp_path / "l16.png", values, 0, key))[0, :, 0].tolist() == [255, 20_001 // 256]
    key = chunk(b"tRNS", struct.pack(">HHH", 20_000, 300, 5))
    values = np.array([[[20_000, 300, 5], [20_000, 600, 5]]], ">u2")
    assert pixels(save_png(tmp_path / "rgb16.png", values, 2, key))[0].tolist() == [[255] * 3, [78, 2, 0]]
    for bits, row, shades in ((4, 0x3A, [255, 170]), (2, 0b11_10_0000, [255, 170]), (1, 0b10_000000, [255, 0])):
        head, key = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0), chunk(b"tRNS", struct.pack(">H", row >> 8 - bits))
        assert pixels(write_png(tmp_path / "few.png", head, bytes([0, row]), key))[0, :, 0].tolist() == shades, bits
        key = chunk(b"tRNS", struct.pack(">H", row >> 8 - 2 * bits & 2**bits - 1))  # the other pixel
        assert pixels(write_png(tmp_path / "few.png", head, bytes([0, row]), key))[0, 1, 0] == 255, bits
    key = chunk(b"tRNS", struct.pack(">HHH", *opaque))
    assert pixels(save_png(tmp_path / "rgb.png", colours[..., :3], 2, key))[0, 0].tolist() == [255, 255, 255]


def test_an_opaque_alpha_channel_changes_no_bit(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (60, 50, 4), dtype=np.uint8)
    colours[..., 3] = 255
    np.testing.assert_array_equal(pixels(save_png(tmp_path / "x.png", colours, 6)), colours[..., :3])


def test_every_reader_sees_a_transparent_or_16_bit_picture_as_it_looks(tmp_path: Path) -> None:
    ramp, clear = tmp_path / "ramp.jpg", tmp_path / "clear.jpg"
    save_png(ramp, np.linspace(0, 2**16 - 1, 64 * 64).astype(">u2").reshape(64, 64), 0)
    save_png(clear, np.zeros((64, 64, 4), np.uint8), 6)
    Image.new("L", (64, 64)).save(mask := tmp_path / "mask.png")
    (tmp_path / "x.xml").write_text(annotation("x", (64, 64), []))
    readers = (
        Faces.read, Sneakers.picture, lambda path: VOCSegmentation.read(path, mask)[0],
        lambda path: VOCDetection.read(path, tmp_path / "x.xml")[0],
    )  # fmt: skip
    for read in readers:
        assert (read(clear) == 255).all()
        assert np.histogram(read(ramp), 8, (0, 256))[0].std() == 0  # as many dark as bright


def test_a_cmyk_jpeg_has_the_colours_of_the_same_picture_in_rgb(tmp_path: Path) -> None:
    colours = np.repeat([[[255, 255, 255], [200, 30, 30], [20, 40, 160], [0, 0, 0]]], 8, axis=0).repeat(8, axis=1)
    picture = Image.fromarray(colours.astype(np.uint8))
    picture.convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    np.testing.assert_allclose(pixels(tmp_path / "x.jpg").astype(int), colours, atol=12)


def test_a_palette_picture_without_a_palette_is_refused(tmp_path: Path) -> None:
    path = save_png(tmp_path / "x.png", np.zeros((3, 3), np.uint8), 3)
    for as_stored in (False, True):
        with pytest.raises(DataError, match=f"^{path}: not a readable picture .the colours of its palette are missing"):
            read_picture(path, as_stored)


def test_an_exif_orientation_moves_no_pixel(tmp_path: Path) -> None:
    """Boxes, masks and key points are given in the file's own pixels."""
    picture = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to look at
    picture.save(tmp_path / "x.jpg", exif=exif)
    assert pixels(tmp_path / "x.jpg").shape == (10, 20, 3)


# Masks

IDS = np.array([[0, 1, 15, BORDER]] * 4, dtype=np.uint8)


def read_mask(root: Path, ids: np.ndarray, colours: np.ndarray | None) -> np.ndarray:
    """What is read of a mask with these ids and this palette; without one, of a grey picture."""
    Image.new("RGB", ids.shape[::-1]).save(root / "x.jpg")
    mask = Image.fromarray(ids)
    if colours is not None:
        mask = Image.frombytes("P", mask.size, ids.tobytes())
        mask.putpalette(colours.astype(np.uint8).tobytes())
    mask.save(root / "x.png")
    return VOCSegmentation.read(root / "x.jpg", root / "x.png")[1]


def test_a_mask_is_read_by_its_ids_where_its_colours_say_nothing_else(tmp_path: Path) -> None:
    unused = palette()
    unused[[2, 3, 200]] = 7, 8, 9  # of ids that do not occur
    for colours in (None, palette(), np.repeat(np.arange(256)[:, None], 3, axis=1), unused):
        np.testing.assert_array_equal(read_mask(tmp_path, IDS, colours), IDS)
    np.testing.assert_array_equal(read_mask(tmp_path, IDS[:, :3], palette()[:16]), IDS[:, :3])


def test_a_mask_whose_palette_was_made_anew_is_refused(tmp_path: Path) -> None:
    """As picture programs do: the same colours in another order, so that each id is another class."""
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    right = Image.frombytes("P", (4, 4), IDS.tobytes())
    right.putpalette(palette().tobytes())
    again = right.convert("RGB").quantize(8)
    assert set(np.unique(np.array(again))) == {0, 1, 2, 3}
    again.save(tmp_path / "x.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.png: expected id \d \(\w+\) in the devkit's colour \("):
        VOCSegmentation.read(tmp_path / "x.jpg", tmp_path / "x.png")


def test_a_mask_with_two_colours_changed_is_told_by_class_and_colour(tmp_path: Path) -> None:
    colours = palette()
    colours[[1, 15]] = colours[[15, 1]]
    with pytest.raises(DataError) as error:
        read_mask(tmp_path, IDS, colours)
    assert str(error.value) == (
        f"{tmp_path}/x.png: expected id 1 (aeroplane) in the devkit's colour (128, 0, 0), got (192, 128, 128), the "
        "colour of id 15 (person); save the mask again with the devkit's palette"
    )
    colours = palette()
    colours[BORDER] = 255, 255, 255
    with pytest.raises(DataError, match=r"id 255 \(border\) in the devkit's colour \(224, 224, 192\), got \(255, 255,"):
        read_mask(tmp_path, IDS, colours)
    with pytest.raises(DataError, match=r"expected id 15 \(person\) in the devkit's colour .*, got none; save"):
        read_mask(tmp_path, IDS[:, :3], palette()[:15])


def test_a_mask_of_16_bits_is_refused_and_not_scaled(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    save_png(tmp_path / "x.png", IDS.astype(">u2"), 0)
    with pytest.raises(DataError, match=r"x\.png: expected a palette PNG of class ids, got mode I;16"):
        VOCSegmentation.read(tmp_path / "x.jpg", tmp_path / "x.png")


# Annotations

OBJECT = annotation("x", (40, 30), [("cat", False, (2, 3, 20, 25))])

ONE = OBJECT[OBJECT.index("<object>") : OBJECT.index("</annotation>")]


@pytest.mark.parametrize(
    ("declared", "codec"),
    [
        ("", "utf-8"), ("", "utf-8-sig"), ("", "utf-16"), ("utf-8", "utf-8"), ("ISO-8859-1", "latin-1"),
        ("windows-1252", "cp1252"), ("US-ASCII", "ascii"), ("UTF-16", "utf-16"), ("UTF-16", "utf-16-le"),
        ("UTF-16", "utf-16-be"), ("gb2312", "ascii"),
    ],
)  # fmt: skip
def test_an_annotation_is_read_in_its_declared_encoding(tmp_path: Path, declared: str, codec: str) -> None:
    owner = "Jos" if codec == "ascii" else "José Ñandú"
    text = OBJECT.replace("<size>", f"<owner>{owner}</owner><size>")
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    (tmp_path / "x.xml").write_bytes((head + text).encode(codec))
    found = read_objects(tmp_path / "x.xml", 40, 30)
    assert found.labels.tolist() == [CLASSES.index("cat")]
    assert found.boxes.tolist() == [[1, 2, 19, 24]]


@pytest.mark.parametrize("declared", ["no-such-encoding", "gb2312", "utf-16"])
def test_an_annotation_that_is_not_in_its_declared_encoding_is_refused(tmp_path: Path, declared: str) -> None:
    text = OBJECT.replace("<size>", "<owner>José</owner><size>")
    (tmp_path / "x.xml").write_text(f'<?xml version="1.0" encoding="{declared}"?>\n{text}', encoding="utf-8")
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.xml: not a readable annotation \("):
        read_objects(tmp_path / "x.xml", 40, 30)


def test_a_document_type_is_refused_in_every_encoding(tmp_path: Path) -> None:
    text = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'
    for codec in ("utf-8", "utf-16"):
        (tmp_path / "x.xml").write_bytes(text.encode(codec))
        with pytest.raises(DataError, match="a document type"):
            read_objects(tmp_path / "x.xml", 40, 30)


def test_objects_that_would_not_be_read_are_refused_and_none_at_all_is_legal(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    for old, new, told in (
        ("object>", "Object>", "<Object> in <annotation>"),
        ("\t<object>", "\t<objects><object>", "<object> in <objects>"),
        ("\t<object>", f"{ONE}<objects><object>", "<object> in <objects>"),
        ("<object>", '<object xmlns="urn:x">', "<{urn:x}object> in <annotation>"),
    ):  # fmt: skip
        text = OBJECT.replace(old, new)
        path.write_text(text.replace("</object>\n</ann", "</object></objects>\n</ann") if "objects" in new else text)
        with pytest.raises(DataError) as error:
            read_objects(path, 40, 30)
        assert str(error.value) == f"{path}: expected each <object> directly in <annotation>, got {told}"
    for text in ("<annotation/>", "<annotation><objects/><!-- <object/> --></annotation>"):
        path.write_text(text)
        assert read_objects(path, 40, 30).boxes.shape == (0, 4)
    path.write_text(OBJECT.replace("<xmin>2", "<xmin>1_0"))
    with pytest.raises(DataError, match="expected a bndbox of four numbers, got xmin '1_0'"):
        read_objects(path, 40, 30)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_grey_mask_of_few_bits_is_refused_whose_ids_would_be_read_as_shades(bits: int, tmp_path: Path) -> None:
    image, mask = tmp_path / "image.jpg", tmp_path / "mask.png"
    Image.new("RGB", (2, 1)).save(image)
    row = bytes([0, 1 << (8 - bits)])  # ids 1 and 0: aeroplane and background
    write_png(mask, struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0), row)
    with pytest.raises(DataError, match=r"mask\.png: expected (class ids of 8 bits, got grey of|a palette PNG)"):
        VOCSegmentation.read(image, mask)
