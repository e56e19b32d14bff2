"""Downloads and archives, against a web server of the test's own that misbehaves in every way known."""

import errno
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from web import Web, get_quickly, processes, sha256, tar_of, tiny_files, tree

from tmbench.data import archive, fetch
from tmbench.data.catalogue import Entry, File, manifest
from tmbench.errors import DataError
from tmbench.tasks.seg.masks import VOCSegmentation

CONTENT = bytes(range(256)) * 8192  # 2 MiB, two chunks


@pytest.fixture
def file(web: Web) -> File:
    web.files["file"] = CONTENT
    return File(path="file", urls=(web.url("file"),), size=len(CONTENT), sha256=sha256(CONTENT))


def arrives(file: File, folder: Path) -> None:
    """A download comes to a folder whole, and leaves nothing else there."""
    fetch.download(file, folder / "file")
    assert tree(folder) == {"file": CONTENT}


def test_a_download_arrives_whole_and_leaves_nothing_else(web: Web, file: File, tmp_path: Path) -> None:
    arrives(file, tmp_path / "new")


@pytest.mark.parametrize("lengths", [True, False], ids=["with", "without a length"])
@pytest.mark.parametrize("etags", [True, False], ids=["with", "without an ETag"])
def test_a_cut_connection_goes_on(web: Web, file: File, tmp_path: Path, etags: bool, lengths: bool) -> None:
    web.etags, web.lengths = etags, lengths
    web.faults = [("cut", 1_500_000), ("cut", 100_000)]
    arrives(file, tmp_path)
    assert web.asked == [("file", None), ("file", "bytes=1500000-"), ("file", "bytes=1600000-")]


def test_a_server_without_ranges_is_asked_for_all_again(web: Web, file: File, tmp_path: Path) -> None:
    web.ranges, web.faults = False, [("cut", 1_500_000)]
    arrives(file, tmp_path)


def test_a_silent_server_is_asked_again(web: Web, file: File, tmp_path: Path) -> None:
    web.faults = [("hang", 700_000)]
    arrives(file, tmp_path)
    assert web.asked[1:] == [("file", "bytes=700000-")]


def test_a_download_that_keeps_being_cut_is_given_up_and_goes_on_later(web: Web, file: File, tmp_path: Path) -> None:
    web.faults = [("cut", 1000)] * fetch.TRIES
    path = tmp_path / "file"
    told = f"the connection was cut after {1000 * fetch.TRIES:,} of {len(CONTENT):,} bytes; tried 4 times; "
    with pytest.raises(DataError, match=f"{told}what came is kept in {path}.part, and the same command continues from"):
        fetch.download(file, path)
    assert not path.exists()
    arrives(file, tmp_path)
    assert web.asked[-1] == ("file", f"bytes={1000 * fetch.TRIES}-")


def test_a_file_that_changed_at_the_server_is_taken_from_its_beginning(web: Web, tmp_path: Path) -> None:
    unknown = File(path="file", urls=(web.url("file"),))  # no digest would tell
    web.files["file"] = b"old" * 10**6
    web.faults = [("cut", 2000)] * fetch.TRIES
    with pytest.raises(DataError):
        fetch.download(unknown, tmp_path / "file")
    web.files["file"] = CONTENT
    arrives(unknown, tmp_path)


def test_without_etag_or_digest_nothing_is_resumed(web: Web, file: File, tmp_path: Path) -> None:
    web.etags = False
    web.faults = [("cut", 2000)]
    arrives(File(path="file", urls=file.urls), tmp_path)
    assert web.asked == [("file", None), ("file", None)]


def test_a_part_from_another_day_that_does_not_fit_is_dropped(web: Web, file: File, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    arrives(file, tmp_path)
    assert web.asked == [("file", "bytes=1000-"), ("file", None)]


@pytest.mark.parametrize("size", [len(CONTENT), None], ids=["size known", "size unknown"])
@pytest.mark.parametrize("more", [b"", b"x"])
def test_only_a_whole_part_is_taken(web: Web, file: File, tmp_path: Path, size: int | None, more: bytes) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT + more)
    arrives(replace(file, size=size), tmp_path)


def test_a_server_that_sends_another_part_is_not_believed(web: Web, file: File, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    web.faults = [("other part", 500)]
    arrives(file, tmp_path)


def test_a_wrong_digest_is_told_and_kept_apart(web: Web, file: File, tmp_path: Path) -> None:
    web.files["file"] = other = CONTENT[:-1] + b"x"
    path = tmp_path / "file"
    with pytest.raises(DataError) as error:
        fetch.download(file, path)
    assert str(error.value) == (
        f"{web.url('file')}: expected sha256 {file.sha256}, got {sha256(other)}\nwhat came is kept as {path}.wrong"
    )
    assert tree(tmp_path) == {"file.wrong": other}


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_wrong_length_is_refused_at_once(web: Web, file: File, tmp_path: Path, length: int) -> None:
    web.files["file"] = b"x" * length
    with pytest.raises(DataError, match=f"expected {len(CONTENT):,} bytes, the server has {length:,}$"):
        fetch.download(file, tmp_path / "file")
    assert tree(tmp_path) == {}


def test_a_server_that_never_ends_is_stopped(web: Web, file: File, tmp_path: Path) -> None:
    web.lengths = False
    web.files["file"] = CONTENT * 4
    with pytest.raises(DataError, match=f"expected at most {len(CONTENT):,} bytes, the server sends more"):
        fetch.download(file, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    with pytest.raises(DataError, match="expected at most 1,000,000 bytes"):
        fetch.download(File(path="file", urls=file.urls, at_most=10**6), tmp_path / "other")


def test_more_than_was_announced_is_not_read(web: Web, file: File, tmp_path: Path) -> None:
    web.faults = [("more",)]
    with pytest.raises(DataError, match="expected 2,097,152 bytes, the server has 2,097,177"):
        fetch.download(file, tmp_path / "file")


@pytest.mark.parametrize("code", [404, 403, 410, 401])
def test_a_file_that_is_gone_is_told_at_once(web: Web, file: File, tmp_path: Path, code: int) -> None:
    web.faults = [("status", code)]
    with pytest.raises(DataError, match=f"^{web.url('file')}: the server says {code} "):
        fetch.download(file, tmp_path / "file")
    assert len(web.asked) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again_but_not_for_ever(web: Web, file: File, tmp_path: Path, code: int) -> None:
    web.faults = [("status", code)]
    fetch.download(file, tmp_path / "file")
    web.faults, web.asked = [("status", code)] * 9, []
    with pytest.raises(DataError, match=f"the server says {code} .*; tried 4 times$"):
        fetch.download(file, tmp_path / "again")
    assert len(web.asked) == fetch.TRIES


def test_a_redirect_is_followed_and_a_circle_is_not(web: Web, file: File, tmp_path: Path) -> None:
    web.files["elsewhere"] = CONTENT
    web.faults = [("redirect", "elsewhere"), ("cut", 1000), ("redirect", "elsewhere")]
    fetch.download(file, tmp_path / "file")
    assert web.asked[1:] == [("elsewhere", None), ("file", "bytes=1000-"), ("elsewhere", "bytes=1000-")]
    web.faults = [("redirect", "file")] * 50
    with pytest.raises(DataError, match="the server says 302"):
        fetch.download(file, tmp_path / "again")


def test_a_mirror_is_asked_when_the_first_address_has_nothing(web: Web, file: File, tmp_path: Path) -> None:
    urls = (web.url("gone"), "http://127.0.0.1:9/file", web.url("file"))
    fetch.download(replace(file, urls=urls), tmp_path / "file")
    assert tree(tmp_path) == {"file": CONTENT}
    with pytest.raises(DataError) as error:
        fetch.download(replace(file, urls=urls[:2]), tmp_path / "again")
    lines = [line.partition(": ")[2][:13] for line in str(error.value).splitlines()]
    assert lines == ["the server sa", "no connection"]


def test_a_full_disk_is_told_and_the_part_is_kept(web: Web, file: File, tmp_path: Path) -> None:
    (tmp_path / "file.part").symlink_to("/dev/full")  # a device that has no room, ever
    told = rf"^{tmp_path}/file.part: cannot be written \(No space left on device; .* free"
    with pytest.raises(DataError, match=told):
        fetch.download(file, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, r8_online: Entry) -> None:

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=rf"^{tmp_path}/r8: cannot be written \(Read-only file system\)"):
        fetch.get(r8_online, tmp_path / "r8")


@pytest.fixture(scope="module")
def at_once() -> Iterator[Callable[[Entry, Path], Any]]:
    """at_once(entry, root): three processes want it at the same time."""
    with processes(3) as pool:
        yield lambda entry, root: list(pool.map(get_quickly, [entry] * 3, [root] * 3))


def test_three_processes_fetch_it_once(web: Web, tmp_path: Path, at_once: Any, r8_online: Entry) -> None:
    web.faults = [("hang", 1000)]  # the first has it in hand while the others come
    at_once(r8_online, tmp_path / "r8")
    assert [name for name, asked in web.asked if asked is None] == ["train.txt", "test.txt"]
    assert tree(tmp_path / "r8").keys() == {"train.txt", "test.txt"}


# Archives

VOC = "VOCdevkit/VOC2007"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "inside" / "data").mkdir(parents=True)
    return tmp_path / "inside" / "data"


def entry_of(root: Path, content: bytes, name: str = "a.tar", **unpack: Any) -> Entry:
    """A data set whose archive was put there, and is what was published."""
    (root / name).write_bytes(content)
    archive = File(path=name, sha256=sha256(content), unpack={"from": "a", "to": "b", "at_most": 10**6, **unpack})
    return Entry("x", "x", (), "", "", "", "", "", archives=(archive,), files=(File(path="b/*"),))


def zip_of(files: dict[str, bytes], kind: int = 0, **settings: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, kind << 16
            archive.writestr(member, content)
    return out.getvalue()


def member_of(kind: bytes, target: str = "", name: str = "a/x") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        good = tarfile.TarInfo("a/first")
        good.size = 5
        tar.addfile(good, io.BytesIO(b"first"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)
    return out.getvalue()


GOOD = {"a/one": b"1", "a/deep/two": b"2" * 5000, "elsewhere/three": b"3"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar_of(GOOD)),
        ("a.tar.gz", tar_of(GOOD, "w:gz")),
        ("a.zip", zip_of(GOOD)),
        ("a.tar", tar_of({f"./{name}": content for name, content in GOOD.items()})),
    ],
    ids=["tar", "tar.gz", "zip", "tar with ./"],
)
def test_an_archive_is_unpacked_from_one_folder_into_another(root: Path, name: str, content: bytes) -> None:
    entry = entry_of(root, content, name)
    fetch.get(entry, root)
    out = {"b/one": b"1", "b/deep/two": b"2" * 5000}
    assert {key: value for key, value in tree(root).items() if not key.startswith("a.")} == out
    assert manifest(root, entry.archives[0]) == {key: sha256(value) for key, value in out.items()}
    assert oct((root / "b").stat().st_mode & 0o777) == oct(0o777 & ~current_umask())


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "tar: parent": ("a.tar", lambda: tar_of({"a/ok": b"1", "a/../../../out": b"x"}), "leads out of the folder"),
    "tar: absolute": ("a.tar", lambda: tar_of({"/tmp/out": b"x"}), "leads out of the folder"),
    "tar: backslash": ("a.tar", lambda: tar_of({"a\\..\\out": b"x"}), "leads out of the folder"),
    "tar: symlink": ("a.tar", lambda: member_of(tarfile.SYMTYPE, "/etc/passwd"), "is a link, not a file"),
    "tar: symlink inside": ("a.tar", lambda: member_of(tarfile.SYMTYPE, "first"), "is a link, not a file"),
    "tar: hard link": ("a.tar", lambda: member_of(tarfile.LNKTYPE, "../../out"), "is a link, not a file"),
    "tar: device": ("a.tar", lambda: member_of(tarfile.CHRTYPE), "is special, not a file"),
    "tar: fifo": ("a.tar", lambda: member_of(tarfile.FIFOTYPE), "is special, not a file"),
    "tar: twice": ("a.tar", lambda: tar_of({"a/x": b"1", "a/./x": b"2"}), "cannot be unpacked .*File exists"),
    "tar: bomb": ("a.tar.gz", lambda: tar_of({"a/x": bytes(4_000_000)}, "w:gz"), "more than 1,000,000 bytes"),
    "tar: bomb beside": ("a.tar.gz", lambda: tar_of({"z/x": bytes(4_000_000)}, "w:gz"), "more than 1,000,000 bytes"),
    "tar: cut": ("a.tar", lambda: tar_of({"a/x": bytes(50_000)})[:9000], "not a readable archive"),
    "tar.gz: cut": ("a.tar.gz", lambda: tar_of({"a/x": os.urandom(50_000)}, "w:gz")[:9000], "not a readable archive"),
    "tar: nothing wanted": ("a.tar", lambda: tar_of({"other/x": b"1"}), "expected files under a, found none"),
    "tar: empty": ("a.tar", lambda: b"", "not a readable archive"),
    "tar: text": ("a.tar", lambda: b"no archive\n" * 1000, "not a readable archive"),
    "tar: zip": ("a.tar", lambda: zip_of(GOOD), "not a readable archive"),
    "zip: parent": ("a.zip", lambda: zip_of({"a/../../out": b"x"}), "leads out of the folder"),
    "zip: absolute": ("a.zip", lambda: zip_of({"/tmp/out": b"x"}), "leads out of the folder"),
    "zip: symlink": ("a.zip", lambda: zip_of({"a/x": b"/etc/passwd"}, stat.S_IFLNK), "is a link, not a file"),
    "zip: bomb": ("a.zip", lambda: zip_of({"a/x": bytes(4_000_000)}), "more than 1,000,000 bytes"),
    "zip: bomb of many": (
        "a.zip", lambda: zip_of({f"a/{i}": bytes(600_000) for i in range(3)}), "more than 1,000,000 bytes",
    ),
    "zip: lying size": ("a.zip", lambda: lying_zip(), "not a readable archive|cannot be unpacked|more than"),
    "zip: cut": ("a.zip", lambda: zip_of(GOOD)[:-30], "not a readable archive"),
    "zip: changed": ("a.zip", lambda: zip_of(GOOD).replace(b"1", b"7", 1), "not a readable archive"),
    "zip: encrypted": ("a.zip", lambda: encrypted_zip(), "not a readable archive"),
}  # fmt: skip


def lying_zip() -> bytes:
    """4 MB that call themselves 10 bytes."""
    size = (4_000_000).to_bytes(4, "little")
    return zip_of({"a/x": bytes(4_000_000)}).replace(size, (10).to_bytes(4, "little"))


def encrypted_zip() -> bytes:
    content = bytearray(zip_of({"a/x": b"1"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_or_broken_archive_is_told_and_leaves_nothing(root: Path, tmp_path: Path, case: str) -> None:
    name, make, told = HOSTILE[case]
    entry = entry_of(root, make(), name)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=f"^{root / name}: .*({told})"):
        fetch.get(entry, root)
    assert tree(tmp_path) == before
    assert {path.name for path in root.iterdir()} == {name, ".lock"}


def test_too_many_members_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    for name, content in (("a.tar", tar_of(GOOD)), ("a.zip", zip_of(GOOD))):
        with pytest.raises(DataError, match="more than 2 members"):
            fetch.get(entry_of(root, content, name), root)
        (root / name).unlink()


def test_unpacking_leaves_a_persons_own_files_and_adds_the_others_and_those_that_were_deleted(root: Path) -> None:
    (root / "b" / "deep").mkdir(parents=True)
    (root / "b" / "one").write_bytes(b"mine")
    entry = entry_of(root, tar_of(GOOD))
    for _ in range(2):
        fetch.get(entry, root)
        assert (root / "b" / "one").read_bytes() == b"mine"
        assert (root / "b" / "deep" / "two").read_bytes() == b"2" * 5000
        (root / "b" / "deep" / "two").unlink()
    assert not entry.is_official(root, {"b/one": sha256(b"mine")})
    assert entry.is_official(root, {"b/deep/two": sha256(b"2" * 5000)})


def test_an_unpacking_that_was_killed_is_done_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of(root, tar_of(GOOD))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archive, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.get(entry, root)
    shutil.copytree(root, root / ".unpacking-left", ignore=lambda *_: [".unpacking-left"])  # as after SIGKILL
    assert not (root / "b").exists()
    fetch.get(entry, root)
    assert (root / "b" / "one").read_bytes() == b"1"
    assert not list(root.glob(".unpacking-*"))


def test_a_list_of_digests_from_another_archive_says_nothing(root: Path) -> None:
    entry = entry_of(root, tar_of(GOOD))
    fetch.get(entry, root)
    other = replace(entry, archives=(replace(entry.archives[0], sha256="0" * 64),))
    assert entry.is_official(root, {"b/one": sha256(b"1")})
    assert not other.is_official(root, {"b/one": sha256(b"1")})


def test_an_archive_whose_digest_nobody_knows_is_judged_by_what_comes_out(root: Path) -> None:
    entry = entry_of(root, tar_of(GOOD))
    unknown = replace(entry.archives[0], sha256=None)
    right = replace(entry, archives=(unknown,), files=(File(path="b/one", sha256=sha256(b"1")),))
    wrong = replace(entry, archives=(unknown,), files=(File(path="b/one", sha256=sha256(b"2")),))
    with pytest.raises(DataError, match=r"what came out of it is not what was published: b/one: expected sha256"):
        fetch.get(wrong, root)
    assert not (root / "b").exists()
    fetch.get(right, root)
    assert right.is_official(root, {"b/one": sha256(b"1")})


def test_three_processes_unpack_it_once(web: Web, tmp_path: Path, at_once: Any, voc_online: Entry) -> None:
    at_once(voc_online, tmp_path / "voc")
    assert len(web.asked) == 1
    found = tree(tmp_path / "voc")
    assert {name: content for name, content in found.items() if name.startswith(VOC)} == tiny_files(VOCSegmentation)
