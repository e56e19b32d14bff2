"""The data sets: what is read, which file an error names, the tiny sets, and downloads without a network."""

import gc
import importlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from conftest import Compose, Run, real_data
from hydra.utils import get_class
from omegaconf import DictConfig
from PIL import Image
from web import Web, opening, processes, publish, sha256, tiny, tiny_files, tree

from tmbench.config.settle import settle
from tmbench.data import Dataset, _tiny_root, fetch, files, folder_digest, open_dataset
from tmbench.data.catalogue import Entry, catalogue
from tmbench.errors import ConfigError, DataError
from tmbench.files import read_sealed
from tmbench.tasks.ctr.avazu import Avazu
from tmbench.tasks.ig.sneakers import Sneakers
from tmbench.tasks.od.boxes import VOCDetection
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.r8 import LABELS, R8
from tmbench.tasks.tc.task import vocabulary
from tmbench.tasks.voc import BORDER, CLASSES, palette

TINY_CLASSES = {0, 1, 7, 15}  # background and the three shapes
BOTH = pytest.mark.parametrize(("task", "cls"), [("tc", R8), ("seg", VOCSegmentation)])

Open = Callable[..., tuple[Dataset, str, str]]
Capture, Patch = pytest.CaptureFixture[str], pytest.MonkeyPatch


@pytest.fixture
def opened(composed: Compose, tmp_path: Path) -> Open:
    """opened("task=tc", cls, ...) -> open_dataset's answer; data_dir and runs_dir are the test's own."""

    def opened(task: str, cls: type[Dataset], *overrides: str) -> tuple[Dataset, str, str]:
        own = (f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs")
        cfg: DictConfig = settle(composed(f"task={task}", "trainer=cpu", *own, *overrides))
        return open_dataset(cfg, cls)

    return opened


# R8: reading


def write_r8(root: Path, train: str | bytes = "earn\ta", test: str | bytes = "earn\ta") -> R8:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in (("train.txt", train), ("test.txt", test)):
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return R8(root)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("money-fx\tdollar  and yen\nearn\tnet\nacq\tbuys\nearn\tloss é",
         [(7, ["dollar", "and", "yen"]), (0, ["net"]), (1, ["buys"]), (0, ["loss", "é"])]),
        ("earn\ta b\nship\tc", [(0, ["a", "b"]), (3, ["c"])]),
        ("earn\ta b\nship\tc\n", [(0, ["a", "b"]), (3, ["c"])]),
        *((f"earn\t{nothing}\nacq\ta", [(0, []), (1, ["a"])]) for nothing in ("", " ", "\t")),
        ("\n".join(f"{label}\tx" for label in reversed(LABELS)), [(number, ["x"]) for number in range(7, -1, -1)]),
    ],
)  # fmt: skip
def test_r8_reads_labels_and_words_in_order(tmp_path: Path, text: str, documents: list[Any]) -> None:
    data = write_r8(tmp_path, text, "grain\twheat")
    assert (data.read("train"), data.read("test")) == (documents, [(4, ["wheat"])])


@pytest.mark.parametrize(
    ("line", "clean", "stripped"),
    [
        ("earn\tearnings of earn learned", ["earnings", "of", "earn", "learned"], ["ings", "of", "led"]),
        ("grain\tgrains and grain", ["grains", "and", "grain"], ["s", "and"]),
        ("money-fx\tmoney fx money-fx", ["money", "fx", "money-fx"], ["money", "fx"]),
        ("acq\tearn grain", ["earn", "grain"], ["earn", "grain"]),
    ],
)
def test_r8_stripped_deletes_its_label(tmp_path: Path, line: str, clean: list[str], stripped: list[str]) -> None:
    data = write_r8(tmp_path, line)
    label = LABELS.index(line.partition("\t")[0])
    assert data.read("train") == [(label, clean)]
    assert data.read("train", "clean") == [(label, clean)]
    assert data.read("train", "stripped") == [(label, stripped)]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("earn\ta\nearn no tab\nacq\tb", ", line 2", "expected label<TAB>text, got 'earn no tab'"),
        ("earn\ta\nacq\tb\nacquisition\tc", ", line 3", "expected a label of .*, money-fx, got 'acquisition'"),
        ("Earn\ta", ", line 1", "expected a label of earn, acq, .*, got 'Earn'"),
        ("\ta", ", line 1", "expected a label of .*, got ''"),
        ("", ", line 1", "expected label<TAB>text, got ''"),
        ("earn\ta\n\nacq\tb", ", line 2", "expected label<TAB>text, got ''"),
        ("earn\ta\n\n", ", line 2", "expected label<TAB>text, got ''"),
        (b"earn\ta\nacq\t\xff", "", "expected UTF-8 text, found a byte that is not at 11"),
    ],
    ids=["no tab", "unknown label", "capital", "no label", "empty file", "blank line", "blank end", "not UTF-8"],
)
def test_r8_names_the_wrong_file_and_line(tmp_path: Path, content: str | bytes, where: str, what: str) -> None:
    data = write_r8(tmp_path, content, content)
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"^{tmp_path}/{split}.txt{where}: {what}"):
            data.read(split)


def test_r8_shows_only_the_beginning_of_a_long_wrong_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/.{{,200}}$"):
        write_r8(tmp_path, "x" * 100_000).read("train")


@pytest.mark.parametrize("name", ["train.txt", "test.txt"])
def test_r8_names_the_missing_file_where_to_get_it_and_the_way_without(opened: Open, tmp_path: Path, name: str) -> None:
    write_r8(tmp_path / "data" / "r8")
    path = tmp_path / "data" / "r8" / name
    path.unlink()
    with pytest.raises(DataError) as error:
        opened("tc", R8, "data=full", "data.download=false")
    (file,) = (file for file in catalogue()["r8"].files if file.path == name)
    for hint in (f"tc: no {path}\n", file.urls[0], file.sha256, "tmbench data get tc", "data=tiny"):
        assert str(hint) in str(error.value)


def test_a_vocabulary_is_of_the_training_words_or_as_the_source_s_with_its_end_mark_and_no_padding() -> None:
    train, test = [(0, ["b", "a", "b"]), (0, ["d"])], [(1, ["c", "a"])]
    assert vocabulary(train[:1], test, "train") == {"<pad>": 0, "<unk>": 1, "b": 2, "a": 3}
    assert vocabulary(train, test, "train_test") == {"b": 0, "a": 1, "<eos>": 2, "d": 3, "c": 4}


# R8: the real files

R8_COUNTS = {
    "earn": (2840, 1083), "acq": (1596, 696), "crude": (253, 121), "trade": (251, 75),
    "money-fx": (206, 87), "interest": (190, 81), "ship": (108, 36), "grain": (41, 10),
}  # fmt: skip


@pytest.mark.parametrize(("split", "place", "total", "differ"), [("train", 0, 5485, 1683), ("test", 1, 2189, 667)])
def test_real_r8_has_the_published_counts(split: str, place: int, total: int, differ: int) -> None:
    data = R8(real_data("r8"))
    clean, stripped = data.read(split), data.read(split, "stripped")
    assert len(clean) == len(stripped) == total
    assert Counter(LABELS[label] for label, _ in clean) == {name: n[place] for name, n in R8_COUNTS.items()}
    assert [label for label, _ in clean] == [label for label, _ in stripped]
    assert sum(a != b for a, b in zip(clean, stripped, strict=True)) == differ


def test_real_r8_has_the_source_s_vocabulary() -> None:
    data = R8(real_data("r8"))
    documents = [data.read(split, "stripped") for split in ("train", "test")]
    words = vocabulary(*documents, "train_test")
    assert len(words) == 23_590
    assert sorted(words.values()) == list(range(23_590))


def test_real_r8_opens_as_full_and_with_one_more_word_as_subset(opened: Open, tmp_path: Path) -> None:
    root = real_data("r8").absolute()
    data, label, digest = opened("tc", R8, "data=full", "data.download=false", f"data_dir={root.parent}")
    assert (data.root, label) == (root, "full")
    assert data.digests() == {file.path: file.sha256 for file in catalogue()["r8"].files}
    assert digest == folder_digest(data.digests())
    shutil.copytree(root, tmp_path / "data" / "r8", copy_function=shutil.copyfile)
    with (tmp_path / "data" / "r8" / "test.txt").open("a") as f:
        f.write(" more")
    _, label, other = opened("tc", R8, "data=full", "data.download=false")
    assert (label, other != digest) == ("subset", True)


# VOC: reading


@pytest.fixture
def voc_set(tmp_path: Path) -> VOCSegmentation:
    return tiny(VOCSegmentation, tmp_path / "voc")


def name_of(data: VOCSegmentation, split: str, names: str | bytes) -> Path:
    """Replaces a split's list, and gives its path."""
    path = data.list_file(split)
    path.write_bytes(names if isinstance(names, bytes) else names.encode())
    return path


def test_voc_pairs_come_in_the_order_of_the_list(voc_set: VOCSegmentation) -> None:
    name_of(voc_set, "train", "000003\n\n 000001 \n000002")
    year = voc_set.root / "VOCdevkit" / "VOC2007"
    assert voc_set.pairs("train") == [
        (year / "JPEGImages" / f"{n}.jpg", year / "SegmentationClass" / f"{n}.png")
        for n in ("000003", "000001", "000002")
    ]


def test_voc_reads_the_pixels_and_the_class_ids(voc_set: VOCSegmentation) -> None:
    image_file, mask_file = voc_set.pairs("train")[0]
    mask = np.zeros((3, 5), dtype=np.uint8)
    mask[0] = [0, 1, 20, BORDER, 15]
    Image.fromarray(np.full((3, 5, 3), (200, 10, 90), dtype=np.uint8)).save(image_file, quality=100, subsampling=0)
    picture = Image.frombytes("P", (5, 3), mask.tobytes())
    picture.putpalette(palette().tobytes())
    picture.save(mask_file)
    image, ids = voc_set.read(image_file, mask_file)
    assert (image.dtype, image.shape, ids.dtype) == (np.uint8, (3, 5, 3), np.uint8)
    np.testing.assert_array_equal(ids, mask)
    np.testing.assert_allclose(image.astype(int), np.broadcast_to((200, 10, 90), (3, 5, 3)), atol=3)


def test_voc_reads_a_grey_image_as_three_channels(voc_set: VOCSegmentation) -> None:
    image_file, mask_file = voc_set.pairs("train")[0]
    Image.new("L", (30, 20), 77).save(image_file, quality=100)
    Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(mask_file)
    image, _ = voc_set.read(image_file, mask_file)
    assert image.shape == (20, 30, 3)
    assert (image == 77).all()


def test_voc_files_are_the_lists_and_the_pairs_that_they_name(voc_set: VOCSegmentation) -> None:
    expected = {voc_set.list_file("train"), voc_set.list_file("val")}
    expected |= {file for split in ("train", "val") for pair in voc_set.pairs(split) for file in pair}
    (voc_set.devkit / "JPEGImages" / "999999.jpg").write_bytes(b"named in no list")
    assert set(voc_set.files()) == expected
    assert len(expected) == 2 + 2 * (32 + 12)


def test_voc_palette_has_the_devkit_s_colours() -> None:
    colours = palette()
    assert (colours.shape, colours.dtype) == ((256, 3), np.uint8)
    # aeroplane, bird, person, tvmonitor and the border, as the devkit's documentation shows them
    known = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {k: tuple(colours[k].tolist()) for k in known} == known
    assert colours[BORDER].tolist() == [224, 224, 192]
    assert len({tuple(c) for c in colours.tolist()}) == 256


@pytest.mark.parametrize("kind", ["list", "image", "mask"])
def test_voc_names_a_missing_file_and_where_it_is_listed_or_comes_from(voc_set: VOCSegmentation, kind: str) -> None:
    listed = voc_set.list_file("val")
    gone = listed if kind == "list" else voc_set.pairs("val")[4][kind == "mask"]
    gone.unlink()
    with pytest.raises(DataError) as error:
        voc_set.digests()
    archive = catalogue()["voc2007"].archives[0]
    ways = (archive.urls[0], "tmbench data get seg", "data=tiny")
    hints = (f"seg: no {gone}\n", *(ways if kind == "list" else [f"named in {listed}, line 5"]))
    assert [hint for hint in hints if hint not in str(error.value)] == []


@pytest.mark.parametrize("entry", ["../x", "/etc/passwd", "..", ".hidden", "a/b"])
def test_voc_takes_no_list_entry_that_leads_out_of_its_folders(voc_set: VOCSegmentation, entry: str) -> None:
    path = name_of(voc_set, "train", f"000001\n{entry}\n")
    with pytest.raises(DataError, match=f"^{path}, line 2: expected an image's name like 000032, got '{entry}'$"):
        voc_set.pairs("train")


def test_voc_closes_a_truncated_picture(voc_set: VOCSegmentation) -> None:
    image, mask = voc_set.pairs("train")[0]
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(DataError):
            voc_set.read(image, mask)
        gc.collect()
    assert [str(w.message) for w in caught] == []


# VOC: the real subset


def test_real_voc_opens_as_subset(opened: Open) -> None:
    root = real_data("voc2007").absolute()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    data, label, digest = opened("seg", VOCSegmentation, "data=full", f"data_dir={root.parent}")
    assert (data.root, label) == (root, "subset")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert digest == folder_digest(data.digests())
    assert len(data.digests()) == 2 + 2 * (50 + 25)


@pytest.mark.parametrize(("split", "count"), [("train", 50), ("val", 25)])
def test_real_voc_reads_every_pair_of_a_list(split: str, count: int) -> None:
    data = VOCSegmentation(real_data("voc2007"))
    assert len(data.pairs(split)) == count
    seen: set[int] = set()
    for image_file, mask_file in data.pairs(split):
        image, mask = data.read(image_file, mask_file)
        assert image.shape == (*mask.shape, 3)
        assert image.std() > 5, image_file
        seen |= set(np.unique(mask).tolist())
        with Image.open(mask_file) as picture:
            np.testing.assert_array_equal(np.reshape(picture.getpalette("RGB"), (-1, 3)), palette())
    assert seen == {*range(len(CLASSES)), BORDER}


# The tiny sets


@BOTH
def test_the_generator_alone_decides_on_a_tiny_set(task: str, cls: type[Dataset], tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        cls.write_tiny(tmp_path / name, np.random.default_rng(seed))
    assert tree(tmp_path / "again") == tiny_files(cls)
    assert tree(tmp_path / "other").keys() == tiny_files(cls).keys()
    assert tree(tmp_path / "other") != tiny_files(cls)


def test_tiny_r8_has_the_real_layout_and_every_label_in_both_splits(tmp_path: Path) -> None:
    data = tiny(R8, tmp_path)
    assert set(tree(tmp_path)) == {"train.txt", "test.txt"}
    for split, count in (("train", 320), ("test", 160)):
        documents = data.read(split)
        assert Counter(label for label, _ in documents) == dict.fromkeys(range(8), count // 8)
        assert all(words for _, words in documents)
        assert not (tmp_path / f"{split}.txt").read_bytes().endswith(b"\n")  # as in the real files
        assert [label for label, _ in documents[:8]] != list(range(8))  # shuffled
        assert {label for label, words in documents if LABELS[label] in words} == set(range(8))


def test_tiny_r8_differs_when_stripped_and_shares_no_document_between_its_splits(tmp_path: Path) -> None:
    data = tiny(R8, tmp_path)
    assert data.read("train") != data.read("train", "stripped")
    train, test = ({" ".join(words) for _, words in data.read(split)} for split in ("train", "test"))
    assert not train & test


def test_tiny_voc_has_the_real_layout_and_every_class_in_both_splits(voc_set: VOCSegmentation) -> None:
    names = {"train": [f"{n:06d}" for n in range(1, 33)], "val": [f"{n:06d}" for n in range(33, 45)]}
    lists = ("Segmentation/train", "Segmentation/val", "Main/trainval", "Main/test")
    of_each = ("Annotations/{}.xml", "JPEGImages/{}.jpg", "SegmentationClass/{}.png")
    expected = {f"ImageSets/{name}.txt" for name in lists}
    expected |= {path.format(name) for listed in names.values() for name in listed for path in of_each}
    assert set(tree(voc_set.root)) == {f"VOCdevkit/VOC2007/{path}" for path in expected}
    for split, listed in names.items():
        assert voc_set.list_file(split).read_text().split() == listed
        with Image.open(voc_set.pairs(split)[0][0]) as image, Image.open(voc_set.pairs(split)[0][1]) as mask:
            assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "P")
            np.testing.assert_array_equal(np.reshape(mask.getpalette("RGB"), (-1, 3)), palette())
        masks = [voc_set.read(*pair)[1] for pair in voc_set.pairs(split)]
        assert {int(v) for mask in masks for v in np.unique(mask)} == {*TINY_CLASSES, BORDER}


@BOTH
def test_tiny_data_are_written_once_and_open_as_tiny_with_the_same_digest_everywhere(
    task: str, cls: type[Dataset], opened: Open, tmp_path: Path, monkeypatch: Patch
) -> None:
    data, label, digest = opened(task, cls)
    assert (label, digest) == ("tiny", folder_digest(data.digests()))
    assert data.root.parent == tmp_path / "runs" / ".tiny"
    assert opened(task, cls, f"runs_dir={tmp_path}/elsewhere")[2] == digest
    before = {path: path.stat().st_mtime_ns for path in data.root.rglob("*")}
    monkeypatch.setattr(cls, "write_tiny", lambda *args: pytest.fail("written again"))
    again, _, same = opened(task, cls)
    assert (again.root, same) == (data.root, digest)
    assert {path: path.stat().st_mtime_ns for path in data.root.rglob("*")} == before


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    data = write_r8(tmp_path, b"earn\ta", b"acq\tb")
    sums = {"train.txt": sha256(b"earn\ta"), "test.txt": sha256(b"acq\tb")}
    assert data.digests() == sums
    lines = f"{sums['test.txt']}  test.txt\n{sums['train.txt']}  train.txt\n"
    assert folder_digest(sums) == sha256(lines.encode())
    assert folder_digest(dict(reversed(sums.items()))) == folder_digest(sums)
    swapped = {"train.txt": sums["test.txt"], "test.txt": sums["train.txt"]}
    assert folder_digest(swapped) != folder_digest(sums)


@pytest.fixture(scope="module")
def at_once() -> Iterator[Callable[[type[Dataset], Path], Any]]:
    """at_once(cls, runs_dir): four processes open a tiny set at the same time."""
    with processes(4) as pool:
        yield lambda cls, runs_dir: list(pool.map(_tiny_root, [cls] * 4, [runs_dir] * 4))


def test_four_processes_at_once_make_one_whole_tiny_set(tmp_path: Path, at_once: Callable[..., None]) -> None:
    cls = VOCSegmentation
    at_once(cls, tmp_path)
    (root,) = (tmp_path / ".tiny").iterdir()
    assert root == _tiny_root(cls, tmp_path)
    assert tree(root) == tiny_files(cls)


class First(R8):
    """A tiny set whose writer is in this module."""


class Second(First):
    """One whose writer is overtaken by another process just before it is done."""

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        super().write_tiny(root, rng)
        (root / "train.txt").write_text("earn\tsecond")
        _tiny_root(First, root.parent.parent)


def test_the_first_tiny_set_stays_when_a_second_writer_comes_late(tmp_path: Path) -> None:
    root = _tiny_root(Second, tmp_path)
    assert tree(root) == tiny_files(First)
    assert list(root.parent.iterdir()) == [root]


class Broken(R8):
    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        (root / "train.txt").write_text("half")
        raise OSError("disk full")


def test_a_writer_that_fails_leaves_no_tiny_set_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        _tiny_root(Broken, tmp_path)
    assert list((tmp_path / ".tiny").iterdir()) == []


def test_a_changed_writer_gets_a_tiny_set_of_its_own(tmp_path: Path, monkeypatch: Patch) -> None:
    module = tmp_path / "changing.py"
    module.write_text("from tmbench.tasks.tc.r8 import R8\n\nclass Mine(R8):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    cls = importlib.import_module("changing").Mine
    before = _tiny_root(cls, tmp_path)
    module.write_text(module.read_text() + "# changed\n")
    after = _tiny_root(cls, tmp_path)
    assert before != after
    assert tree(before) == tree(after)
    # What a base class, or another module of a data set's own package, writes counts as well.
    assert "def annotation" in VOCSegmentation.source()
    assert "def tiny_columns" in Avazu.source()


# Without the files, with and without a network


@BOTH
def test_full_without_files_and_downloads_names_the_path(
    task: str, cls: type[Dataset], opened: Open, tmp_path: Path, monkeypatch: Patch
) -> None:
    called = []
    monkeypatch.setattr(cls, "download", lambda self: called.append(self))
    with pytest.raises(DataError) as error:
        opened(task, cls, "data=full", "data.download=false")
    first = "train.txt" if task == "tc" else "VOCdevkit/VOC2007/ImageSets/Segmentation/train.txt"
    assert str(error.value).startswith(f"{task}: no {tmp_path}/data/{cls.folder}/{first}\n")
    assert not called
    assert not (tmp_path / "data").exists()


@pytest.fixture
def offline(monkeypatch: Patch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@BOTH
def test_files_are_named_offline(task: str, cls: type[Dataset], opened: Open, tmp_path: Path, offline: None) -> None:
    with pytest.raises(DataError) as error:
        opened(task, cls, "data=full")
    root, one = tmp_path / "data" / cls.folder, catalogue()[cls.folder]
    archives = [hint for file in one.archives[:1] for hint in (*file.urls, file.sha256, root / file.path)]
    first = root / "train.txt" if task == "tc" else root / "VOCdevkit/VOC2007"
    hints = (f"{task}: no {first}\n", "no route to host", *(archives or one.files[0].urls), "data=tiny")
    assert [hint for hint in hints if str(hint) not in str(error.value)] == []


@BOTH
@pytest.mark.parametrize("download", ["false", "true"])
def test_a_data_dir_may_be_no_file(task: str, cls: type[Dataset], download: str, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=f"{tmp_path}/file/{cls.folder}"):
        opened(task, cls, "data=full", f"data.download={download}", f"data_dir={tmp_path}/file")


# R8: downloading


def test_r8_is_downloaded_and_runs_as_full(do: Run, tmp_path: Path, web: Web, r8_online: Entry) -> None:
    result, _ = do("task=tc", "trainer=cpu", "data=full", f"data_dir={tmp_path}/data", "epochs=1", "batch_size=64")
    assert (result.status, result.profile) == ("completed", "full")
    assert tree(tmp_path / "data" / "r8") == web.files
    assert web.asked == [("train.txt", None), ("test.txt", None)]


def test_r8_with_another_content_is_not_taken(opened: Open, tmp_path: Path, web: Web, r8_online: Entry) -> None:
    web.files["test.txt"] = b"earn\tsomething else"
    path = tmp_path / "data" / "r8" / "test.txt"
    told = f"^tc: no {path}\n  .*expected sha256 .*\n  what came is kept as {path}.wrong\n"
    with pytest.raises(DataError, match=told):
        opened("tc", R8, "data=full")
    assert tree(path.parent).keys() == {"train.txt", "test.txt.wrong"}


@pytest.mark.parametrize("mine", ["train.txt", "test.txt"])
def test_r8_downloads_only_what_is_missing(opened: Open, tmp_path: Path, web: Web, mine: str, r8_online: Entry) -> None:
    root = tmp_path / "data" / "r8"
    root.mkdir(parents=True)
    (root / mine).write_text("earn\tmy own")
    _, label, _ = opened("tc", R8, "data=full")
    assert label == "subset"
    assert tree(root) == {**web.files, mine: b"earn\tmy own"}


def test_r8_that_is_there_is_opened_without_a_download(opened: Open, tmp_path: Path, offline: None) -> None:
    write_r8(tmp_path / "data" / "r8")
    _, label, _ = opened("tc", R8, "data=full")
    assert label == "subset"


# VOC: downloading


def test_voc_is_full_until_a_mask_or_list_is_changed(opened: Open, web: Web, voc_online: Entry) -> None:
    data, label, digest = opened("seg", VOCSegmentation, "data=full")
    assert isinstance(data, VOCSegmentation)
    assert opened("seg", VOCSegmentation, "data=full")[1:] == (label, digest) == ("full", digest)
    assert len(web.asked) == 1
    _, mask_file = data.pairs("val")[0]
    original = mask_file.read_bytes()
    with Image.open(mask_file) as mask:
        mask.putpixel((0, 0), BORDER)
        mask.save(mask_file)
    _, label, changed = opened("seg", VOCSegmentation, "data=full")
    assert (label, changed != digest) == ("subset", True)
    mask_file.write_bytes(original)
    assert opened("seg", VOCSegmentation, "data=full")[1:] == ("full", digest)
    name_of(data, "train", "000001\n000002\n")
    assert opened("seg", VOCSegmentation, "data=full")[1] == "subset"


def test_an_unpacked_voc_is_a_subset_without_its_archive(
    opened: Open, tmp_path: Path, web: Web, voc_online: Entry
) -> None:
    data = tiny(VOCSegmentation, tmp_path / "data" / "voc2007")
    before = tree(data.root)
    assert opened("seg", VOCSegmentation, "data=full")[1] == "subset"
    archive = data.root / voc_online.archives[0].path
    archive.write_bytes(web.files[archive.name])
    fetch.get(voc_online, data.root)
    assert opened("seg", VOCSegmentation, "data=full")[1] == "full"
    archive.unlink()  # is not needed any more
    assert opened("seg", VOCSegmentation, "data=full")[1] == "full"
    assert not web.asked
    assert tree(data.root).keys() - before.keys() == {f"{archive.name}.sha256"}
    assert tree(data.root).items() >= before.items()


def test_voc_with_other_counts_is_refused(opened: Open, tmp_path: Path, monkeypatch: Patch, voc_online: Entry) -> None:
    publish(monkeypatch, VOCSegmentation, files=tuple(replace(file, lines=209) for file in voc_online.files[:1]))
    with pytest.raises(DataError, match=f"^{tmp_path}/data/voc2007/{voc_online.archives[0].path}: .* 32 of 209 lines$"):
        opened("seg", VOCSegmentation, "data=full")
    assert tree(tmp_path / "data" / "voc2007").keys() == {voc_online.archives[0].path}


@pytest.mark.parametrize("gone", ["list", "image", "mask"])
def test_voc_download_leaves_own_files(opened: Open, tmp_path: Path, web: Web, gone: str, voc_online: Entry) -> None:
    data = tiny(VOCSegmentation, tmp_path / "data" / "voc2007")
    image, mask = data.pairs("val")[0]
    path = {"list": data.list_file("val"), "image": image, "mask": mask}[gone]
    path.unlink()
    before = {p: p.read_bytes() for p in data.root.rglob("*") if p.is_file()}  # not even a lock
    with pytest.raises(DataError, match=f"^seg: no {path}\n"):
        opened("seg", VOCSegmentation, "data=full")
    assert not web.asked
    assert {p: p.read_bytes() for p in data.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("is_published", [True, False])
def test_no_other_archive_is_unpacked(
    opened: Open, tmp_path: Path, web: Web, is_published: bool, voc_online: Entry
) -> None:
    archive = tmp_path / "data" / "voc2007" / voc_online.archives[0].path
    content = web.files[archive.name]
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content if is_published else b"x" * len(content))
    if is_published:
        assert opened("seg", VOCSegmentation, "data=full")[1] == "full"
        out = {f"{archive.name}.sha256", *tiny_files(VOCSegmentation)}
        assert tree(archive.parent).items() >= tiny_files(VOCSegmentation).items()
    else:
        wrong = f"^{archive}: expected sha256 .*, got .*\n  it is not the published archive"
        with pytest.raises(DataError, match=wrong):
            opened("seg", VOCSegmentation, "data=full")
        out = set()
    assert tree(archive.parent).keys() == {archive.name, *out}
    assert not web.asked


# What is kept between runs


def test_unchanged_files_are_not_read_again(opened: Open, tmp_path: Path, monkeypatch: Patch) -> None:
    write_r8(tmp_path / "data" / "r8")
    path = tmp_path / "data" / "r8" / "train.txt"
    read: list[Path] = []
    monkeypatch.setattr(files, "digest_of", lambda path: read.append(path) or sha256(path.read_bytes()))
    monkeypatch.setattr(files.time, "time_ns", lambda: path.stat().st_ctime_ns + 10**10)  # the files are old
    answer = opened("tc", R8, "data=full")[1:]
    assert len(read) == 2
    assert opened("tc", R8, "data=full")[1:] == answer
    assert len(read) == 2
    stat = path.stat()
    path.write_text("acq\ta")  # of the same size, and then with the same time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert opened("tc", R8, "data=full")[1:] != answer
    assert read[2:] == [path]


def test_a_file_that_was_written_just_now_is_read_again(opened: Open, tmp_path: Path) -> None:
    write_r8(tmp_path / "data" / "r8")
    first = opened("tc", R8, "data=full")[2]
    (cache,) = (tmp_path / "runs" / ".digests").iterdir()
    assert all(entry[:3] == [-1, -1, -1] for entry in read_sealed(cache).values())
    assert opened("tc", R8, "data=full")[2] == first


def test_r8_is_prepared_once_from_the_same_files_in_both_texts(tmp_path: Path) -> None:
    data = tiny(R8, tmp_path / "r8")
    before = tree(data.root)
    folder = data.prepared(tmp_path / "runs")
    for split in ("train", "test"):
        assert R8(folder).read(split) == data.read(split, "stripped") != data.read(split)
    stamp = folder.stat().st_mtime_ns
    assert data.prepared(tmp_path / "runs") == folder
    assert folder.stat().st_mtime_ns == stamp
    assert tree(data.root) == before
    (data.root / "train.txt").write_text("earn\tearnings")
    assert data.prepared(tmp_path / "runs") != folder
    assert data.prepared(tmp_path / "runs", variant="another") != data.prepared(tmp_path / "runs")


def test_a_preparation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    data = write_r8(tmp_path / "r8", test="no tab")
    with pytest.raises(DataError, match="line 1: expected label<TAB>text"):
        data.prepared(tmp_path / "runs")
    assert list((tmp_path / "runs" / ".prepared").iterdir()) == []


# Damage in what is kept between runs


def damaged(path: Path, rng: np.random.Generator) -> None:
    """One bit of a file is another, at a random place."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Small(R8):
    """A tiny set that is quickly written."""

    @classmethod
    def write_tiny(cls, root: Path, rng: np.random.Generator) -> None:
        write_r8(root, "earn\tnet\nacq\tbuys", "grain\twheat")


@pytest.mark.parametrize(("cls", "times"), [(Small, 20), (VOCSegmentation, 1)])
def test_a_flipped_bit_in_a_tiny_set_is_mended(cls: type[Dataset], times: int, tmp_path: Path, capsys: Capture) -> None:
    answer, root = opening("tiny", cls, tmp_path), _tiny_root(cls, tmp_path / "runs")
    whole, rng = {path: path.read_bytes() for path in files_of(root)}, np.random.default_rng(0)
    for _ in range(times):
        path = list(whole)[rng.integers(len(whole))]
        damaged(path, rng)
        assert opening("tiny", cls, tmp_path) == answer
        told = capsys.readouterr().err
        assert f"{root}: damaged: " in told
        assert path.name in told or path.name == ".sha256"
        assert {path: path.read_bytes() for path in files_of(root)} == whole
    assert opening("tiny", cls, tmp_path) == answer
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda root: os.truncate(root / "train.txt", 1000), "train.txt has changed"),
        (lambda root: (root / "train.txt").unlink(), "train.txt is missing"),
        (lambda root: (root / "more.txt").write_text("earn\ta"), "more.txt is not one of its files"),
        (lambda root: (root / ".sha256").unlink(), "it cannot be checked"),
    ],
    ids=["cut", "missing", "more", "unsealed"],
)
def test_a_damaged_tiny_set_is_written_again(harm: Any, told: str, tmp_path: Path, capsys: Capture) -> None:
    answer, root = opening("tiny", R8, tmp_path), _tiny_root(R8, tmp_path / "runs")
    harm(root)
    assert opening("tiny", R8, tmp_path) == answer
    assert f"{root}: damaged: {told}" in capsys.readouterr().err
    assert tree(root) == tiny_files(R8)


def test_a_run_after_a_tiny_file_was_cut_is_the_same_run(do: Run, tmp_path: Path) -> None:
    words = ("task=tc", "trainer=cpu", "epochs=1", "batch_size=64", "force=true")
    result, folder = do(*words)
    os.truncate(next((tmp_path / ".tiny").glob("r8-*/train.txt")), 1000)
    again, same = do(*words)
    assert (same, again.metrics) == (folder, result.metrics)


def r8_prepared(root: Path, runs: Path) -> Path:
    return write_r8(root, "earn\tearnings").prepared(runs)


def pictures_prepared(root: Path, runs: Path) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (9, 9), (i, 99, 200)).save(root / "images" / f"{i}.jpg")
    return Sneakers(root).prepared(runs)


def clicks_prepared(root: Path, runs: Path) -> Path:
    if not root.is_dir():
        tiny(Avazu, root)
    return Avazu(root).prepared(runs)


def regions_prepared(root: Path, runs: Path) -> Path:
    from scipy.io import savemat

    data = VOCDetection(root) if root.is_dir() else tiny(VOCDetection, root)
    for split in data.splits:
        boxes = np.empty(len(data.pairs(split)), object)
        boxes[:] = [np.array([[1, 1, 9, 9]], "f8")] * len(boxes)
        data.regions_file(split).parent.mkdir(exist_ok=True)
        if not data.regions_file(split).exists():
            savemat(data.regions_file(split), {"boxes": boxes})
    data.opened = runs, {"all": "the same"}
    return data.regions("published")


@pytest.mark.parametrize("prepared", [r8_prepared, pictures_prepared, clicks_prepared, regions_prepared])
def test_a_flipped_bit_in_prepared_data_is_mended(prepared: Any, tmp_path: Path, capsys: Capture) -> None:
    folder = prepared(tmp_path / "data", tmp_path / "runs")
    whole, rng = tree(folder), np.random.default_rng(0)
    assert whole
    capsys.readouterr()
    for number in range(len(files_of(folder))):  # each file once
        path = files_of(folder)[number]
        damaged(path, rng)
        assert prepared(tmp_path / "data", tmp_path / "runs") == folder
        told = capsys.readouterr().err
        assert f"{folder}: damaged: " in told
        assert path.name in told or path.name == ".sha256"
        assert tree(folder) == whole


def test_the_columns_of_the_clicks_are_checked_too(tmp_path: Path, capsys: Capture) -> None:
    folder = clicks_prepared(tmp_path / "data", tmp_path / "runs")
    (columns,) = (path for path in (tmp_path / "runs" / ".prepared").glob("avazu-*") if path != folder)
    whole, indices = tree(columns), tree(folder)
    damaged(columns / "train.C17", np.random.default_rng(0))
    shutil.rmtree(folder)
    assert clicks_prepared(tmp_path / "data", tmp_path / "runs") == folder
    assert f"{columns}: damaged: train.C17 has changed; it is written again" in capsys.readouterr().err
    assert (tree(columns), tree(folder)) == (whole, indices)


def test_prepared_data_are_checked_once(tmp_path: Path, monkeypatch: Patch) -> None:
    clicks_prepared(tmp_path / "data", tmp_path / "runs")
    read: list[Path] = []
    monkeypatch.setattr("tmbench.folders.damage", lambda folder: read.append(folder))
    data = Avazu(tmp_path / "data")
    data.opened = tmp_path / "runs", data.digests()
    for split in ("train", "valid", "test"):
        data.table(split)
    assert len(read) == 1
    Avazu(tmp_path / "data").prepared(tmp_path / "runs")  # another opening
    assert len(read) == 2


def test_a_flipped_bit_in_the_kept_digests_is_mended(tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    write_r8(tmp_path / "data" / "r8")
    path = tmp_path / "data" / "r8" / "train.txt"
    monkeypatch.setattr(files.time, "time_ns", lambda: path.stat().st_ctime_ns + 10**10)  # the files are old
    answer = opening("full", R8, tmp_path)
    (cache,) = (tmp_path / "runs" / ".digests").iterdir()
    kept, rng = cache.read_bytes(), np.random.default_rng(0)
    false = kept.replace(sha256(path.read_bytes()).encode(), b"0" * 64)
    for number in range(22):
        damaged(cache, rng) if number < 20 else cache.write_bytes((false, b"{broken")[number - 20])
        assert opening("full", R8, tmp_path) == answer
        assert f"{cache}: damaged: " in capsys.readouterr().err
        assert cache.read_bytes() == kept
    assert opening("full", R8, tmp_path) == answer
    assert capsys.readouterr().err == ""


def test_four_processes_mend_a_set_and_leave_mapped_files_alone(tmp_path: Path, at_once: Callable[..., None]) -> None:
    root = _tiny_root(R8, tmp_path)
    whole = tree(root)
    mapped = np.memmap(root / "test.txt", mode="r")
    damaged(root / "train.txt", np.random.default_rng(0))
    at_once(R8, tmp_path)
    assert tree(root) == whole
    assert mapped.tobytes() == whole["test.txt"]
    assert {path.name for path in root.parent.iterdir()} == {root.name, ".lock"}


def test_a_set_that_another_process_mended_stays(tmp_path: Path, monkeypatch: Patch) -> None:
    """As when two have noticed the damage and one has mended it already."""
    root = _tiny_root(R8, tmp_path)
    inode, seen = root.stat().st_ino, iter(["train.txt has changed", None])
    monkeypatch.setattr("tmbench.folders.damage", lambda folder: next(seen))
    assert _tiny_root(R8, tmp_path) == root
    assert root.stat().st_ino == inode


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [("ctr", "dataset", "avazu_x4"), ("ic", "dataset", "cifar100"), ("od", "mode", "paper_number")],
)
def test_a_settled_configuration_keeps_its_data_set(composed: Compose, task: str, key: str, value: str) -> None:
    cfg = settle(composed(f"task={task}", "trainer=cpu"))
    chosen, cfg.task[key] = cfg.task[key], value
    with pytest.raises(ConfigError, match=rf"task\.{key}: expected {chosen}, which is what .* got '{value}'"):
        open_dataset(cfg, get_class(cfg.task.data))
