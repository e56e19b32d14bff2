"""Regions of an image that may hold an object: selective search (Uijlings et al., IJCV 2013), computed or published.

Computed ones are OpenCV's, in its fast mode; recall then differs a little from the published files, which the authors'
MATLAB code wrote and which rbgirshick/fast-rcnn@b612190 downloads (selective_search_data.tgz). Legend: P proposals in
an image, over all images in Q rows.
"""

import ctypes
import inspect
import json
import multiprocessing
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tmbench.data import read_picture
from tmbench.errors import ConfigError, DataError
from tmbench.files import digest_of, digest_of_text, read_sealed, remove, write_sealed
from tmbench.progress import track

INLINE = 200  # images, up to which starting other processes takes longer than it saves
MAX_MAT = 2**31  # bytes; the published files have up to 300 MB


def search(image_file: Path) -> np.ndarray:
    """The regions of an image, most likely objects first: uint16 of shape (P, 4), pixels from 0, the last included."""
    try:
        import cv2
    except ModuleNotFoundError:
        raise ConfigError("task.model=fast_rcnn needs a package: pip install 'tmbench[od]'") from None
    cv2.setNumThreads(1)  # as many processes as cores work on other images
    ctypes.CDLL(None).srand(0)  # it orders the regions partly by chance: alike for each image, whatever came before
    image = np.array(read_picture(image_file))
    finder = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    finder.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV's order
    finder.switchToSelectiveSearchFast()
    x, y, width, height = np.reshape(finder.process(), (-1, 4)).T
    boxes = np.stack([x, y, x + width - 1, y + height - 1], axis=1)
    _, first = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(first)].astype(np.uint16)


def write(out: Path, root: Path, image_files: Iterable[Path]) -> None:
    """Searches all images, in as many processes as there are cores, and writes what `Proposals` reads.

    What has been found is kept beside `out`, by the content of each image, until all is: a search that is stopped, or
    another data set with the same images, goes on from it.
    """
    paths = sorted(set(image_files))
    kept = out.parent / f".unfinished-regions-{digest_of_text(inspect.getsource(search))[:12]}"
    kept.mkdir(exist_ok=True)
    search_or_read = partial(_search_or_read, kept)
    if len(paths) <= INLINE:
        found = [search_or_read(path) for path in paths]
    else:  # not forked: beside the threads of the caller, that may hang
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
            found = list(track(pool.imap(search_or_read, paths, chunksize=4), "selective search", len(paths)))
    store(out, [path.relative_to(root).as_posix() for path in paths], found)
    remove(kept)


def _search_or_read(kept: Path, image_file: Path) -> np.ndarray:
    """The regions of an image, from the folder of those that have been found, where they are kept from now on."""
    file = kept / f"{digest_of(image_file)}.json"
    with suppress(FileNotFoundError, DataError, KeyError, ValueError, OverflowError):  # not there, or damaged
        return np.array(read_sealed(file, dict[str, list[list[int]]])["boxes"], np.uint16).reshape(-1, 4)
    boxes = search(image_file)
    with suppress(OSError):  # another process is done with all, or the disk is full, of which `store` tells
        write_sealed(file, {"boxes": boxes.tolist()})
    return boxes


def store(out: Path, names: list[str], boxes: list[np.ndarray]) -> None:
    np.save(out / "boxes.npy", np.concatenate([np.zeros((0, 4), np.uint16), *boxes]))
    ends = np.cumsum([0, *map(len, boxes)]).tolist()
    (out / "images.json").write_text(json.dumps({name: ends[n : n + 2] for n, name in enumerate(names)}))


class Proposals:
    """What `write` wrote: the regions of an image by its name under the data set's root, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, list[int]] = json.loads((folder / "images.json").read_text())
        self.boxes_Q4: Any = np.load(folder / "boxes.npy", mmap_mode="r")

    def __reduce__(self) -> Any:  # for another process: the folder, not what is in it
        return Proposals, (self.folder,)

    def of(self, name: str, limit: int) -> np.ndarray:
        """The first regions of an image; float32 of shape (P, 4)."""
        first, last = self.rows[name]
        return np.array(self.boxes_Q4[first : min(last, first + limit)], dtype=np.float32)


def read_published(path: Path, names: list[str]) -> list[np.ndarray]:
    """The regions of images in a published voc_<year>_<list>.mat, uint16 of shape (P, 4) as `search` gives them.

    Args:
        path: the file; its `boxes` is a cell of matrices with the columns y1, x1, y2, x2 in pixels from 1.
        names: of the images in the order of the split's list, such as 000005. If the file has `images`, boxes are found
            by these names; else it must have as many as there are names.

    Raises:
        DataError: it is no such file, or an image is not in it.
    """
    from scipy.io import loadmat

    if path.stat().st_size > MAX_MAT:
        raise DataError(f"{path}: expected at most {MAX_MAT:,} bytes, got {path.stat().st_size:,}")
    try:
        values = loadmat(path, variable_names=["boxes", "images"])
        cells = [np.asarray(cell, dtype=np.float64) for cell in values["boxes"].ravel()]
        listed = (
            [str(np.asarray(cell).ravel()[0]) for cell in values["images"].ravel()] if "images" in values else names
        )
    except Exception as error:  # a broken file raises nearly anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a file of regions ({type(error).__name__}: {reason})") from None
    if len(listed) != len(cells):
        raise DataError(f"{path}: expected the regions of {len(listed):,} images, got {len(cells):,}")
    known = dict(zip(listed, cells, strict=True))
    found = []
    for name in names:
        if name not in known:
            raise DataError(f"{path}: expected regions of each image, there are none of {name}")
        boxes = known[name]
        expected = f"{path}, {name}: expected rows of y1, x1, y2, x2 in whole pixels from 1"
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"{expected}, got {boxes.shape}")
        whole = (boxes >= 1) & (boxes < 2**16) & (boxes == np.rint(boxes))
        wrong = ~(whole.all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1))
        if wrong.any():
            raise DataError(f"{expected}, got {', '.join(f'{value:g}' for value in boxes[wrong][0])}")
        found.append((boxes[:, [1, 0, 3, 2]] - 1).astype(np.uint16))
    return found
