"""`tmbench data`: what a person types, and what is printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REAL_DATA, choices, real_data
from web import Web, sha256, tar_of, tree

from tmbench.config.table import conf_dir
from tmbench.data import __main__ as command
from tmbench.data.catalogue import Entry, catalogue, entry, manifest_file
from tmbench.data.croissant import describe
from tmbench.errors import ConfigError, DataError
from tmbench.tasks.seg.masks import VOCSegmentation
from tmbench.tasks.tc.r8 import LABELS, R8

Do = Callable[..., tuple[int, str]]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Do:
    """do("get tc") -> exit code and all that was printed; in a folder of its own, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMBENCH_DATA", raising=False)

    def do(words: str) -> tuple[int, str]:
        code = command.main(words.split())
        told = capsys.readouterr()
        return code, told.out + told.err

    return do


# The catalogue


def test_the_catalogue_has_every_task_and_its_own_keys_alone() -> None:
    tasks = {task for entry in catalogue().values() for task in entry.tasks}
    assert tasks == {"tc", "seg", "od", "ic", "fkpd", "ig", "ctr"}
    for one in catalogue().values():
        assert all((one.title, one.about, one.terms, one.citation, one.facts, one.files))
        assert one.homepage.startswith("http")
        for file in (*one.archives, *one.files):
            assert not file.sha256 or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert not file.md5 or re.fullmatch("[0-9a-f]{32}", file.md5)
            assert not file.urls or file.size or file.at_most, file.path  # no endless download
            assert all(url.startswith(("http://", "https://")) for url in file.urls)
            assert not set(file.tasks) - set(one.tasks)
        assert all(archive.unpack.keys() == {"from", "to", "at_most"} for archive in one.archives)
        # What comes out of an archive without a digest is checked by what is in it.
        known = any(file.sha256 or file.md5 or file.digest for file in one.files)
        assert known or all(archive.sha256 for archive in one.archives)


def test_every_task_s_reader_is_known_to_the_catalogue() -> None:
    for task in choices("task"):
        readers = command._readers(task)
        assert readers
        parts = {part for reader in readers for part in reader.parts}
        several = len([reader for reader in readers if not parts & {reader, *reader.parts}]) > 1
        for reader in readers:
            if reader.entry is not None:
                assert task in catalogue()[reader.folder].tasks
                # One of several to choose from is told, and fetched, by its own name.
                assert reader.entry == entry(reader.folder, None if several else task)


def test_the_facts_that_matter_are_told() -> None:
    facts = {name: " ".join(one.facts) for name, one in catalogue().items()}
    assert "1,683 of the 5,485 training and 667 of the 2,189 test documents" in facts["r8"]
    assert "347 people of the test frames also occur in training" in facts["faces"]
    assert "4,896 of the 7,049" in facts["sneakers"]
    assert "`difficult` are neither positives nor false positives" in facts["voc2007"]


def test_a_misspelt_key_in_the_catalogue_is_named() -> None:
    from tmbench.data.catalogue import _entry

    with pytest.raises(ConfigError, match=r"catalogue.yaml, x: there is no sha265 in a File"):
        _entry("x", {"files": [{"path": "a", "sha265": "0"}]})


# list


def test_list_tells_every_set_with_its_terms_and_what_is_here(do: Do, tmp_path: Path) -> None:
    (tmp_path / "data" / "r8").mkdir(parents=True)
    (tmp_path / "data" / "r8" / "train.txt").write_text("earn\ta\nacq\tb\n")
    code, told = do("list")
    assert (code, "no test.txt" in told, "and 1 more" in told) == (0, True, True)
    for name, one in catalogue().items():
        (row,) = (line for line in told.splitlines() if line.startswith(f"│ {name} "))
        assert ("part" if name == "r8" else "missing") in row
        assert one.terms.split()[0] in row


def test_a_narrow_list_leaves_nothing_out(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    _, told = do("list")
    assert max(len(line) for line in told.splitlines()) == 60
    words = {word for one in catalogue().values() for word in f"{one.about} {one.terms}".replace(";", "").split()}
    assert words <= set(told.replace(";", "").split())


def test_a_look_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from tmbench.data.__main__ import main\n"
        "for words in (['--help'], ['list'], ['verify', 'r8', 'voc2007']): main(words)\n"
        "sys.exit(bool({'torch', 'torchvision', 'mlcroissant', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done


# get and verify


def test_get_does_nothing_the_second_time(do: Do, web: Web, r8_online: Entry, voc_online: Entry) -> None:
    code, told = do("get tc seg")
    assert code == 0, told
    assert f"downloading {web.url('train.txt')}" in told
    assert f"unpacking data/voc2007/{manifest_file(Path(), entry('voc2007').archives[0]).stem}" in told
    assert re.search(r"^r8 +full +data/r8\n +the published files: train 320, test 160$", told, re.MULTILINE)
    assert re.search(r"^voc2007 +full +data/voc2007\n +the published files: train 32, val 12$", told, re.MULTILINE)
    asked = list(web.asked)
    code, told = do("get tc seg")
    assert (code, "downloading" in told, web.asked) == (0, False, asked)


def test_what_another_task_needs_is_added_to_the_same_folder(
    do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Web, voc_online: Entry
) -> None:
    """As VOC's test archive, which detection needs and segmentation does not."""
    content = tar_of({"VOCdevkit/VOC2007/ImageSets/Layout/test.txt": b"000001\n"})
    web.files["test.tar"] = content
    first = voc_online.archives[0]
    archive = replace(first, path="test.tar", urls=(web.url("test.tar"),), size=None, sha256=sha256(content))
    both = replace(voc_online, part=None, archives=(*voc_online.archives, replace(archive, tasks=("od",))))
    listed = replace(voc_online.files[0], path="VOCdevkit/VOC2007/ImageSets/Layout/test.txt", lines=1, tasks=("od",))
    monkeypatch.setitem(catalogue(), "voc2007", replace(both, files=(*voc_online.files, listed)))
    assert do("get seg")[0] == 0
    assert [name for name, _ in web.asked] == [first.path]
    code, told = do("verify voc2007")
    assert (code, "no VOCdevkit/VOC2007/ImageSets/Layout/test.txt (od needs it)" in told) == (0, True)
    code, told = do("get voc2007")
    assert (code, "voc2007    full" in told) == (0, True)
    assert [name for name, _ in web.asked] == [first.path, "test.tar"]


def test_get_without_a_server_tells_what_to_place_where(do: Do, web: Web, r8_online: Entry) -> None:
    web.files.clear()
    code, told = do("get r8")
    assert (code, "r8: no data/r8/train.txt" in told) == (1, True)
    assert f"{web.url('train.txt')}: the server says 404 Not Found" in told
    digest = r8_online.files[0].sha256
    assert f"or put the file of {web.url('train.txt')} there as data/r8/train.txt (sha256 {digest})" in told


def test_get_explains_a_log_in_in_one_message(do: Do) -> None:
    code, told = do("get avazu")
    place = "put it at data/avazu/train.gz as it is, or unpacked at data/avazu/train.csv"
    page = "kaggle.com/c/avazu-ctr-prediction/data"
    hints = ("no data/avazu/train.csv", "log in, accept the rules", page, place, "get avazu_x4")
    assert (code, [hint for hint in hints if hint not in told]) == (1, [])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("get voc207", "voc207: no task or data set has this name; did you mean voc2007?"),
        ("verify xyzzy", "there are tc, seg, od, ic"),
        ("verify nowhere.Data", "nowhere.Data: no such class"),
        ("verify tmbench.data.missing", "expected a tmbench.data.Dataset"),
        ("describe avazu_x1", "avazu_x1: missing, and cannot be described"),
        ("describe r8", "r8: missing, and cannot be described"),
        ("describe r8 voc2007 out=x.json", "out: expected one data set for one file, got r8, voc2007"),
    ],
)
def test_what_cannot_be_done_is_one_message(do: Do, words: str, hint: str) -> None:
    code, told = do(words)
    assert (code, hint in told, "Traceback" in told) == (1, True, False)


def test_verify_tells_the_four_states(do: Do, tmp_path: Path, r8_online: Entry) -> None:
    path = tmp_path / "data" / "r8" / "test.txt"
    code, told = do("verify tc")
    assert (code, "missing" in told, "get tc data_dir=data" in told) == (1, True, True)
    assert do("get tc")[0] == 0
    good = path.read_bytes()
    assert do("verify tc") == (0, "r8         full     data/r8\n           the published files: train 320, test 160\n")
    path.write_bytes(good + b" more")
    code, told = do("verify tc")
    assert (code, f"test.txt: expected sha256 {sha256(good)}, got {sha256(good + b' more')}" in told) == (0, True)
    path.write_bytes(good + b"\nearn\tmore")
    code, told = do("verify tc")
    assert (code, "r8         subset" in told, "test.txt: 161 of 160 lines" in told) == (0, True, True)
    path.write_bytes(good + b"\nmore")
    code, told = do("verify tc")
    broken = "broken   data/r8\n           data/r8/test.txt, line 161: expected label<TAB>text"
    assert (code, broken in told) == (1, True)
    path.write_bytes(b"")
    assert "broken" in do("verify tc")[1]
    path.unlink()
    code, told = do("verify")
    assert (code, "no data/r8/test.txt" in told) == (1, True)
    assert Counter(line.split()[1] for line in told.splitlines() if not line.startswith(" ")) == {
        "broken": 1, "missing": len(catalogue()) - 1,
    }  # fmt: skip


def test_verify_reads_again_what_has_the_same_size_and_time(do: Do, tmp_path: Path, voc_online: Entry) -> None:
    assert do("get seg")[0] == 0
    path = sorted((tmp_path / "data").rglob("*.png"))[3]
    stat, other = path.stat(), sorted((tmp_path / "data").rglob("*.jpg"))[3]
    for changed in (path, other):
        changed.write_bytes(changed.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    code, told = do("verify seg")
    reason = "2 of 136 files are not as in VOCtrainval_06-Nov-2007.tar; the first is VOCdevkit/VOC2007/JPEG"
    assert (code, reason in told) == (0, True)


def test_verify_tells_how_own_files_become_the_full_set(do: Do, tmp_path: Path, web: Web, voc_online: Entry) -> None:
    assert do("tiny seg out=data")[0] == 0
    code, told = do("verify seg")
    assert (code, "subset" in told) == (0, True)
    assert "with VOCtrainval_06-Nov-2007.tar beside them, `get` compares each file with it" in told
    archive = tmp_path / "data" / "voc2007" / voc_online.archives[0].path
    archive.write_bytes(web.files[archive.name])
    code, told = do("get seg")
    assert (code, "voc2007    full" in told) == (0, True)
    archive.write_bytes(b"x" * archive.stat().st_size)
    assert f"{archive.name}: expected sha256" in do("verify seg")[1]


def test_real_data_are_recognized(do: Do) -> None:
    real_data("r8")
    before = {path: path.stat().st_mtime_ns for path in REAL_DATA.rglob("*")}
    code, told = do(f"verify --data-dir {REAL_DATA.absolute()}")
    assert code == 0
    states = {line.split()[0]: line.split()[1] for line in told.splitlines() if not line.startswith(" ")}
    subsets = dict.fromkeys(("voc2007", "cifar10", "faces", "sneakers", "avazu"), "subset")
    assert states == {**dict.fromkeys(catalogue(), "missing"), **subsets, "r8": "full"}
    for reason in (
        "Segmentation/train.txt: 50 of 209 lines", "data_batch_1: expected md5 c99cafc152244af753f735de768cd75f",
        "data/training/*.jpg: 240 of 3,462 files", "images/*.jpg: 200 of 7,049 files", "8,999 of 40,428,967 rows",
    ):  # fmt: skip
        assert reason in told
    assert {path: path.stat().st_mtime_ns for path in REAL_DATA.rglob("*")} == before


# tiny, prepare, a person's own


def test_tiny_sets_can_be_looked_at_and_are_read_as_data(do: Do, tmp_path: Path) -> None:
    code, told = do("tiny tc voc2007")
    assert (code, "r8: 2 files" in told, "voc2007: 136 files" in told) == (0, True, True)
    code, told = do("verify r8 voc2007 data_dir=tiny-data")
    assert (code, told.count("subset")) == (0, 2)
    assert "tiny-data/r8: is there already; remove it" in do("tiny tc")[1]


def test_prepare_writes_beside_the_runs_and_says_where(do: Do, tmp_path: Path) -> None:
    do("tiny tc seg out=data")
    before = tree(tmp_path / "data")
    code, told = do("prepare tc seg")
    assert (code, "voc2007: nothing to prepare" in told) == (0, True)
    (folder,) = (tmp_path / "runs" / ".prepared").iterdir()
    assert str(folder.relative_to(tmp_path)) in told
    assert R8(folder).read("train") == R8(tmp_path / "data" / "r8").read("train", "stripped")
    assert tree(tmp_path / "data") == before


def test_a_person_s_own_class_is_taken_by_its_path(do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (conf_dir().parent / "docs" / "howto" / "task.md").read_text()
    (code,) = re.findall(r"```python title=.*?\n(.*?)```", text, re.DOTALL)
    (tmp_path / "blobs_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)  # as `tmbench` and python -m do with the folder that they are called in
    assert do("tiny blobs_of_mine.BlobData out=data")[0] == 0
    code, told = do("verify blobs_of_mine.BlobData")
    assert (code, "of nothing published" in told) == (0, True)
    (tmp_path / "data" / "blobs" / "blobs.npz").unlink()
    code, told = do("get blobs_of_mine.BlobData")
    assert (code, "blobs: no data/blobs/blobs.npz" in told) == (1, True)


# describe


def described(root: Path) -> dict[str, object]:
    return json.loads((root / "croissant.json").read_text())


@pytest.fixture
def mlc() -> object:
    return pytest.importorskip("mlcroissant")


def test_described_records_come_back(do: Do, tmp_path: Path, web: Web, mlc: object, r8_online: Entry) -> None:
    do("get tc")
    code, told = do("describe tc")
    assert (code, "r8: full; described in data/r8/croissant.json, which mlcroissant accepts" in told) == (0, True)
    assert_records_are_ours(tmp_path / "data" / "r8")
    found = described(tmp_path / "data" / "r8")
    files = {file["@id"]: file for file in found["distribution"]}  # type: ignore[attr-defined]
    assert files["train.txt"]["sha256"] == sha256(web.files["train.txt"])
    assert (files["train.txt"]["contentUrl"], files["train.txt"]["sameAs"]) == ("train.txt", web.url("train.txt"))
    assert found["conditionsOfAccess"] == found["license"] == catalogue()["r8"].terms
    assert "Liang Yao" in str(found["citeAs"])
    assert "1,683 of the 5,485 training" in str(found["rai:dataLimitations"])
    with (tmp_path / "data" / "r8" / "test.txt").open("a") as f:
        f.write("\nearn\tone more")
    assert "subset" in do("describe tc")[1]
    found = described(tmp_path / "data" / "r8")
    assert "subset" in str(found["description"])
    assert "sameAs" not in found["distribution"][1]  # type: ignore[index]


def assert_records_are_ours(root: Path) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(str(root / "croissant.json"))
    for split in ("train", "test"):
        records = [(r[f"{split}/label"].decode(), r[f"{split}/text"].decode()) for r in dataset.records(split)]
        assert [(LABELS.index(label), text.split()) for label, text in records] == R8(root).read(split)


def test_every_real_set_that_is_here_is_described_and_its_records_are_read(do: Do, tmp_path: Path, mlc: object) -> None:
    import mlcroissant

    for name, one in catalogue().items():
        if not (REAL_DATA / name).is_dir():
            continue
        root = tmp_path / "data" / name
        shutil.copytree(real_data(name), root, copy_function=shutil.copyfile)
        root.chmod(0o755)
        code, told = do(f"describe {name}")
        assert (code, "which mlcroissant accepts" in told) == (0, True), told
        if name == "r8":
            assert_records_are_ours(root)
        dataset = mlcroissant.Dataset(str(root / "croissant.json"))
        for records in one.records:
            first = next(iter(dataset.records(records)))
            assert set(first) == {f"{records}/{field}" for field in one.records[records]}
        assert all(fact in json.dumps(described(root), ensure_ascii=False).replace('\\"', '"') for fact in one.facts)


def test_without_mlcroissant_the_extra_is_named(do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    do("tiny tc out=data")
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    code, told = do("describe r8")
    assert (code, told) == (1, "describe needs mlcroissant: pip install 'tmbench[croissant]'\n")


def test_a_description_that_cannot_be_written_names_the_way_out(tmp_path: Path, mlc: object) -> None:
    VOCSegmentation.write_tiny(tmp_path, __import__("numpy").random.default_rng(0))
    with pytest.raises(DataError, match=r"nowhere/x.json: cannot be written .*; name another file with out=FILE"):
        describe(entry("voc2007"), tmp_path, "subset", [], tmp_path / "nowhere" / "x.json")
