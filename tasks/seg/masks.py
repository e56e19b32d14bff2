"""VOC's images and class masks, of ImageSets/Segmentation."""

from pathlib import Path

import numpy as np

from tmbench.data import entry, read_picture
from tmbench.data.files import bits_of
from tmbench.errors import DataError

from ..voc import BORDER, CLASSES, VOC, palette


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
        if grey and (bits := bits_of(other_file)) < 8:  # read as shades of 255, not as ids
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
        ids, colours: the ids that occur in the mask, and the file's palette, uint8 of shape (entries, 3).

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
