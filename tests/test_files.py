"""Whole writes, digests that notice every changed byte, and locks."""

import json
from pathlib import Path

import pytest

from tmbench.errors import DataError
from tmbench.files import land, read_sealed, write, write_sealed
from tmbench.folders import damage, seal


def flipped(path: Path, at: int, bit: int = 0) -> bytes:
    """Changes one bit of a file; returns the old content."""
    old = path.read_bytes()
    path.write_bytes(old[:at] + bytes([old[at] ^ 1 << bit]) + old[at + 1 :])
    return old


def test_sealed_facts_come_back_and_a_flipped_bit_of_any_byte_is_noticed(tmp_path: Path) -> None:
    path, facts = tmp_path / "choice.json", {"lr": 0.1, "seeds": [1, 2], "name": "tmsgd", "none": None, "µ": True}
    write_sealed(path, facts)
    assert read_sealed(path) == facts
    for at in range(path.stat().st_size):
        old = flipped(path, at, at % 8)
        with pytest.raises(DataError, match=r"choice\.json: damaged"):
            read_sealed(path)
        path.write_bytes(old)
    assert read_sealed(path) == facts
    for content in ("", "{}", "[1]", json.dumps({"sha256": "", "facts": facts})):
        path.write_text(content)
        with pytest.raises(DataError, match="damaged"):
            read_sealed(path)
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "no.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_sealed(path, {"loss": float("nan")})


def test_sealed_folder_tells_of_changed_missing_and_strange_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("a.npy", "inner/b.txt"):
        (tmp_path / name).write_bytes(b"content of " + name.encode())
    assert "cannot be checked" in (damage(tmp_path) or "")
    seal(tmp_path)
    assert damage(tmp_path) is None
    for name in ("a.npy", "inner/b.txt", ".sha256"):
        for at in range((tmp_path / name).stat().st_size):
            old = flipped(tmp_path / name, at)
            assert damage(tmp_path) is not None
            (tmp_path / name).write_bytes(old)
    assert damage(tmp_path) is None
    (tmp_path / "c").touch()
    assert damage(tmp_path) == "c is not one of its files"
    (tmp_path / "c").rename(tmp_path / "a.npy")
    assert damage(tmp_path) == "a.npy has changed"
    (tmp_path / "a.npy").unlink()
    assert damage(tmp_path) == "a.npy is missing"


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write(path, "old")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", no_space)
        with pytest.raises(OSError, match="No space"):
            write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def test_content_is_on_the_disk_before_its_name_is_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    calls: list[str] = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr("os.replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    monkeypatch.setattr("os.fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    (tmp_path / "scratch").write_text("x")
    land(tmp_path / "scratch", tmp_path / "target")
    assert calls == [str(tmp_path / "scratch"), "replace", str(tmp_path)]
