"""What counts as the published data set: each set's stated values, and each kind of rule on a tree made for it."""

import gzip
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from web import Web, opening, publish, serving, sha256, tar_of, tiny_files, tree, write

from tmbench.data import Dataset
from tmbench.data import __main__ as command
from tmbench.data.catalogue import Entry, File, catalogue, entry
from tmbench.errors import DataError
from tmbench.tasks.ctr.avazu import Avazu, AvazuX1, AvazuX4
from tmbench.tasks.fkpd.faces import Faces
from tmbench.tasks.ic.cifar import CIFAR10, CIFAR100
from tmbench.tasks.ig.sneakers import Sneakers
from tmbench.tasks.od.boxes import VOC2012, VOCDetection
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.r8 import R8

# As published, or computed from the published files. A digest of many is `sha256sum * | sha256sum` under LC_ALL=C.
CIFAR_10, CIFAR_100, VOC_LISTS = "cifar-10-batches-py", "cifar-100-python", "VOCdevkit/VOC2007/ImageSets"
STATED: dict[str, dict[str, dict[str, str | int]]] = {
    "r8": {
        "train.txt": {"size": 3354423, "lines": 5485,
                      "sha256": "3ed60c905aaa95b96c3fc4afb6d14ad2e20106c59c5b9dda950dcb3075eecfbe"},
        "test.txt": {"size": 1195260, "lines": 2189,
                     "sha256": "2ba368c42e6808bc3dc68b8f7879eb07a2810ed137f0b304e2213b689677e561"},
    },
    "voc2007": {
        "VOCtrainval_06-Nov-2007.tar": {"size": 460032000, "md5": "c52e279531787c972589f7e41ab4ae64",
                                        "sha256": "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508"},
        "VOCtest_06-Nov-2007.tar": {"size": 451020800, "md5": "b6e924de25625d8de591ea690078ad9f",
                                    "sha256": "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892"},
        f"{VOC_LISTS}/Segmentation/train.txt": {"lines": 209}, f"{VOC_LISTS}/Segmentation/val.txt": {"lines": 213},
        f"{VOC_LISTS}/Main/trainval.txt": {"lines": 5011}, f"{VOC_LISTS}/Main/test.txt": {"lines": 4952},
    },
    "voc2012": {
        "VOCtrainval_11-May-2012.tar": {"size": 1999639040, "md5": "6cd6e144f989b92b3379bac3b3de84fd",
                                        "sha256": "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"},
        "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt": {"lines": 11540},
    },
    "cifar10": {
        "cifar-10-python.tar.gz": {"size": 170498071, "md5": "c58f30108f718f92721af3b95e74349a",
                                   "sha256": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        f"{CIFAR_10}/data_batch_1": {"md5": "c99cafc152244af753f735de768cd75f"},
        f"{CIFAR_10}/data_batch_2": {"md5": "d4bba439e000b95fd0a9bffe97cbabec"},
        f"{CIFAR_10}/data_batch_3": {"md5": "54ebc095f3ab1f0389bbae665268c751"},
        f"{CIFAR_10}/data_batch_4": {"md5": "634d18415352ddfa80567beed471001a"},
        f"{CIFAR_10}/data_batch_5": {"md5": "482c414d41f54cd18b22e5b47cb7c3cb"},
        f"{CIFAR_10}/test_batch": {"md5": "40351d587109b95175f43aff81a1287e"},
        f"{CIFAR_10}/batches.meta": {"md5": "5ff9c542aee3614f3951f8cda6e48888"},
    },
    "cifar100": {
        "cifar-100-python.tar.gz": {"size": 169001437, "md5": "eb9058c3a382ffc7106e4002c42a8d85",
                                    "sha256": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        f"{CIFAR_100}/train": {"md5": "16019d7e3df5f24257cddd939b257f8d"},
        f"{CIFAR_100}/test": {"md5": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        f"{CIFAR_100}/meta": {"md5": "7973b15100ade9c7d40fb424638fde48"},
    },
    "faces": {
        "data/training_frames_keypoints.csv": {
            "sha256": "9f3d1213429893d4955e2789076f6ce11e297253fed86337cffb6ca85bd61ec8", "rows": 3462,
        },
        "data/test_frames_keypoints.csv": {
            "sha256": "348e5e1a5906001f64d3da627e4f61dc3de90771d6d92f5d93628029b3c85e65", "rows": 770,
        },
        "data/training/*.jpg": {"files": 3462,
                                "digest": "dda579b9a05a4065c7e8c8b2959c511cda5338f886cc926316a6c459633c7840"},
        "data/test/*.jpg": {"files": 2308,
                            "digest": "dd193a3a0e24d8c1f5b9fa19062b0ceb65297e95f86d11e6f519bf2e2536eed2"},
    },
    "sneakers": {
        "images/*.jpg": {"files": 7049, "digest": "aa0a94c305227a88a9d5c196eefc7348947da71d7a0b600ec04cc1934e8112c4"},
    },
    "avazu": {"train.csv": {"rows": 40428967}},
    "avazu_x4": {
        "Avazu_x4.zip": {"size": 1306331539,
                         "sha256": "4ba8bf46eada70abbe068e4e5bfb3b3d879e6fbd2f2fcf51760cd1388b789b65"},
        "train.csv": {"md5": "de3a27264cdabf66adf09df82328ccaa", "rows": 32343172},
        "valid.csv": {"md5": "33232931d84d6452d3f956e936cab2c9", "rows": 4042897},
        "test.csv": {"md5": "3ebb774a9ca74d05919b84a3d402986d", "rows": 4042898},
    },
    "avazu_x1": {
        "train.csv": {"md5": "f1114a07aea9e996842c71648e0f6395", "rows": 28300276},
        "valid.csv": {"md5": "d9568f246357d156c4b8030fadb8b623", "rows": 4042897},
        "test.csv": {"md5": "9e2fe9c48705c9315ae7a0953eb57acf", "rows": 8085794},
    },
}  # fmt: skip
KINDS = ("size", "md5", "sha256", "lines", "rows", "files", "digest")


def stated(file: File) -> dict[str, Any]:
    return {kind: value for kind in KINDS if (value := getattr(file, kind)) is not None}


def test_the_catalogue_states_the_published_values() -> None:
    found = {name: {f.path: stated(f) for f in (*one.archives, *one.files)} for name, one in catalogue().items()}
    assert {name: {path: known for path, known in files.items() if known} for name, files in found.items()} == STATED


# Rules, on trees that are made up and then stated to be the published ones

READERS: dict[str, type[Dataset]] = {
    "r8": R8, "voc2007 seg": VOCSegmentation, "voc2007 od": VOCDetection, "voc2012": VOC2012, "cifar10": CIFAR10,
    "cifar100": CIFAR100, "faces": Faces, "sneakers": Sneakers, "avazu": Avazu, "avazu gz": Avazu,
    "avazu_x4": AvazuX4, "avazu_x1": AvazuX1,
}  # fmt: skip
Made = tuple[Entry, type[Dataset], Path]


def test_every_set_of_the_catalogue_has_a_made_tree() -> None:
    assert {cls.folder for cls in READERS.values()} == set(catalogue())


@cache
def made_files(case: str) -> dict[str, bytes]:
    """A small tree in the set's layout: its tiny set and, where a run reads only a part of a pattern, the rest."""
    files = tiny_files(READERS[case])
    if case == "avazu gz":
        return {"train.gz": gzip.compress(files["train.csv"], 1)}
    if case == "faces":  # ten of each split, for speed, and some that no table names
        tables = {name: text for name, text in files.items() if name.endswith(".csv")}
        tables = {name: b"".join(text.splitlines(keepends=True)[:11]) for name, text in tables.items()}
        listed = b"".join(tables.values())
        files = tables | {name: text for name, text in files.items() if name.rpartition("/")[2].encode() in listed}
        files |= {f"data/test/Unread_{i}.jpg": b"not in the table %d" % i for i in range(5)}
    return files


def archive_of(archive: File, files: dict[str, bytes]) -> bytes:
    """An archive that gives these files, in the kind and the folder that the catalogue tells of."""
    inside, to = (f"{archive.unpack[side]}/" if archive.unpack[side] else "" for side in ("from", "to"))
    content = {inside + name.removeprefix(to): text for name, text in files.items() if name.startswith(to)}
    if not archive.path.endswith(".zip"):
        return tar_of(content, "w:gz" if archive.path.endswith(".gz") else "w")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, text in content.items():
            packed.writestr(name, text)
    return out.getvalue()


def value(kind: str, contents: dict[str, bytes]) -> str | int:
    """What the catalogue would state of files, by name; computed here, not by what is tested."""
    (content, *_) = contents.values()
    count = len((gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).rstrip(b"\n").split(b"\n"))
    lines = [f"{sha256(contents[path])}  {path.rpartition('/')[2]}\n" for path in sorted(contents)]
    return {
        "size": len(content), "md5": hashlib.md5(content).hexdigest(), "sha256": sha256(content), "lines": count,
        "rows": count - 1, "files": len(contents), "digest": sha256("".join(lines).encode()),
    }[kind]  # fmt: skip


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


@pytest.fixture
def make(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Made]:
    """make(case) -> the entry of which a made tree is now the published one, its reader, and where it belongs."""

    def make(case: str) -> Made:
        files, cls = made_files(case), READERS[case]
        one = cls.entry
        assert one is not None
        known = []
        for file in one.files:
            folder, _, pattern = file.path.rpartition("/")
            own = {
                path: content for path, content in files.items()
                if path == file.path or path in file.packed
                or ("*" in pattern and path.startswith(f"{folder}/") and path.endswith(pattern.strip("*")))
            }  # fmt: skip
            urls = tuple(web.url(file.path) for _ in file.urls)
            known.append(replace(file, urls=urls, **{kind: value(kind, own) for kind in stated(file)}))
            web.files |= own
        archives = []
        for archive in one.archives:
            content = archive_of(archive, files)
            web.files[archive.path] = content
            urls = (web.url(archive.path),)
            now = {kind: value(kind, {archive.path: content}) for kind in stated(archive)}
            archives.append(replace(archive, urls=urls, **now))
        counts = cls(write(files, tmp_path / "made")).counts()
        changed = publish(monkeypatch, cls, files=tuple(known), archives=tuple(archives), counts=counts)
        return changed, cls, tmp_path / "data" / cls.folder

    return make


def label(cls: type[Dataset], root: Path) -> str:
    """What a run says that these files are; or `refused`."""
    try:
        return opening("full", cls, root.parent.parent)[0]
    except DataError:
        return "refused"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[str, Entry], str]:
    """told("get" or "verify", entry) -> full, subset, broken or missing."""

    def told(verb: str, one: Entry) -> str:
        command.main([verb, one.name, "--data-dir", str(tmp_path / "data")])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{one.name} "))
        return line.split()[1]

    return told


@pytest.mark.parametrize("case", READERS)
def test_a_set_is_full_until_a_file_is_changed_missing_or_added(
    case: str, make: Callable[..., Made], told: Callable[..., str]
) -> None:
    one, cls, root = make(case)
    if one.by_hand:
        write(made_files(case), root)
    assert told("get", one) == "full"
    assert tree(root).items() >= made_files(case).items()
    for path in [next(iter(cls(root).files())), *root.glob("data/test/*_3.jpg")]:
        content = path.read_bytes()
        path.write_bytes(changed(content))
        assert label(cls, root) in ("subset", "refused"), path
        assert told("verify", one) in ("subset", "broken"), path
        path.unlink()
        assert label(cls, root) in ("subset", "refused"), path
        assert told("verify", one) in ("subset", "broken", "missing"), path
        path.write_bytes(content)
    for file in [file for file in one.files if file.digest]:
        first = file.under(root)[0]
        extra = first.with_name(f"zz_{first.name}")
        extra.write_bytes(first.read_bytes())
        assert (label(cls, root), told("verify", one)) == ("subset", "subset"), file.path
        extra.unlink()
    assert (label(cls, root), told("verify", one)) == ("full", "full")
    for archive in one.archives:  # without what the archive told, each file's own digest tells the same
        (root / archive.path).unlink()
        (root / f"{archive.path}.sha256").unlink()
    expected = "subset" if one.name in ("voc2007", "voc2012") else "full"  # of VOC, only the archives' are published
    assert (told("verify", one), label(cls, root)) == (expected, expected)


def changed(content: bytes) -> bytes:
    """Another byte in the middle; of a click log, which is told by its rows alone, a row less."""
    if content[:2] == b"\x1f\x8b":
        return gzip.compress(changed(gzip.decompress(content)), 1)
    if content.startswith(b"id,click"):
        return content[: content.rstrip(b"\n").rindex(b"\n") + 1]
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_verify_says_when_rows_alone_tell_the_published_file(
    make: Callable[[str], Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _, root = make("avazu gz")
    write(made_files("avazu gz"), root)
    assert command.main(["verify", "avazu", "--data-dir", str(tmp_path / "data")]) == 0
    assert "no digest of them is known; only the number of their rows was compared" in capsys.readouterr().out
    (root / "train.gz").write_bytes(made_files("avazu gz")["train.gz"][:-9])
    assert label(Avazu, root) == "subset"
    assert [text for text in one.files[0].differences(root) if "train.csv: its rows cannot be counted" in text]


def test_a_pattern_s_digest_is_over_lines_in_the_order_of_names(tmp_path: Path) -> None:
    """The digest here was computed by `LC_ALL=C; sha256sum *.jpg | sha256sum`."""
    digest = "756c231115329b773e1d158e63ef18136d1ce22e200ca25cebfdfeb5161866c9"
    known = replace(entry("sneakers"), archives=(), files=(File("images/*.jpg", files=4, digest=digest),))
    own = {f"images/{name}.jpg": f"{name}.jpg".encode() for name in ("c", "a", "B", "b")}
    write(own, tmp_path)
    assert known.is_official(tmp_path, {name: sha256(content) for name, content in own.items()})
    assert not list(known.files[0].differences(tmp_path))
    one = {"images/a.jpg": sha256(b"a.jpg")}  # a run may read only some; the digest is that of all
    assert known.is_official(tmp_path, one)
    assert not known.is_official(tmp_path, {"images/a.jpg": sha256(b"b.jpg")})
    (tmp_path / "images" / "c.jpg").write_text("another")
    assert not known.is_official(tmp_path, one)


def test_hidden_files_are_none_of_a_pattern_s(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    assert File("*.jpg", files=1).under(tmp_path) == [tmp_path / "a.jpg"]
