"""The doctor: it says what works on this machine, finds planted faults, and says what to do."""

import errno
import json
import os
import sys
import tempfile
import threading
import urllib.request
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from tmbench.doctor import battery, machine, place
from tmbench.doctor.__main__ import PARTS, main
from tmbench.optim import fused

PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def found(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status, and the findings by name."""
    status = main([*words, "json=true"])
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == 1
    return status, {finding["name"]: finding for finding in content["findings"]}


def test_a_sound_machine_has_nothing_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = found(capsys, f"runs_dir={tmp_path}")
    assert status == 0, findings
    assert {"python", "torch", "cuda", "nccl", "wandb", "runs_dir", "data_dir", "threads"} <= findings.keys()
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] == "yellow")
    assert findings["data"]["found"].endswith("avazu_x1")
    assert not list(tmp_path.iterdir())


class TestPlantedFaults:
    """Each is planted in what the doctor looks at, not in the doctor, and is green before."""

    def test_a_missing_extra_is_red_if_it_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["extras=tune", f"runs_dir={tmp_path}"]
        status, findings = found(capsys, *words)
        assert (status, "tune" in findings["extras"]["found"].split(";")[0]) == (0, True)
        installed = Distribution.from_name

        def from_name(name: str) -> Distribution:
            if name == "optuna":
                raise PackageNotFoundError(name)
            return installed(name)

        monkeypatch.setattr(Distribution, "from_name", from_name)
        status, findings = found(capsys, *words)
        assert (status, findings["extras"]["state"]) == (1, "red")
        assert findings["extras"]["remedy"] == "pip install 'tmbench[tune]'"
        status, findings = found(capsys, f"runs_dir={tmp_path}")
        assert (status, findings["extras"]["state"]) == (0, "yellow")

    @pytest.mark.parametrize("is_shut", [False, True], ids=["read_only", "in_a_folder_that_may_not_be_entered"])
    def test_runs_dir_that_cannot_be_written_is_red(self, is_shut: bool, a_user: Any) -> None:
        """Without a mock: root, who may write anywhere, becomes another user meanwhile."""
        with tempfile.TemporaryDirectory() as name:
            above, path = Path(name), Path(name) / "runs"
            path.mkdir()
            for folder in (above, path):
                folder.chmod(0o777)
            assert a_user(place.runs_dir, path).state == "green"
            (above if is_shut else path).chmod(0o600 if is_shut else 0o555)
            finding = a_user(place.runs_dir, path)
            above.chmod(0o700)
        assert (finding.state, "Permission denied" in finding.found) == ("red", True)
        assert finding.remedy == f"give yourself the right to write to {path}, or name another folder: runs_dir=DIR"

    def test_runs_dir_on_a_disk_that_is_mounted_to_be_read_is_red(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make = os.mkdir

        def read_only(path: Any, *args: Any, **settings: Any) -> None:
            if Path(path).is_relative_to(tmp_path):
                raise OSError(errno.EROFS, "Read-only file system")
            make(path, *args, **settings)

        monkeypatch.setattr(os, "mkdir", read_only)
        monkeypatch.setenv("COLUMNS", "60")
        status, findings = found(capsys, f"runs_dir={tmp_path}")
        assert (status, findings["runs_dir"]["state"]) == (1, "red")
        assert "Read-only file system" in findings["runs_dir"]["found"]
        assert "runs_dir=DIR" in findings["runs_dir"]["remedy"]
        assert main([f"runs_dir={tmp_path}"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 60
        assert ", 0 red" not in lines[-1]

    def test_a_kernel_that_does_nothing_is_red(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if fused.no_kernel(torch.zeros(1), 1):
            pytest.skip("no C compiler")
        assert machine.c_kernel().state == "green"
        monkeypatch.setattr(fused, "fused_update", lambda *args, **settings: None)
        status, findings = found(capsys, f"runs_dir={tmp_path}")
        assert (status, findings["kernel"]["state"]) == (1, "red")
        assert "fused is wrong" in findings["kernel"]["found"]
        assert "leave out +optimizer.fused=true" in findings["kernel"]["remedy"]


@pytest.fixture
def a_user() -> Any:
    """a_user(function, ...) -> what it returns, done by a user who may not do everything."""

    def do(function: Any, *arguments: Any) -> Any:
        if os.geteuid() != 0:
            return function(*arguments)
        os.seteuid(65534)
        try:
            return function(*arguments)
        finally:
            os.seteuid(0)

    return do


def test_without_torch_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, battery.__name__)  # as in a process that could not import it
    status, findings = found(capsys, "train=true", f"out={tmp_path}")
    assert (status, findings["torch"]["remedy"]) == (1, "pip install 'torch>=2.11'")
    assert {findings[name]["found"] for name in ("bf16", "threads")} == {"needs torch, which is not installed"}
    assert (findings["trainings"]["state"], findings["runs_dir"]["state"]) == ("skipped", "green")


def test_a_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*args: Any, **settings: Any) -> None:
        over.wait(60)
        raise OSError("over")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(place, "PATIENCE", 0.05)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    finding = place.wandb()
    over.set()
    assert (finding.state, "gave no answer in 0.05 s" in finding.found) == ("yellow", True)


@pytest.mark.parametrize(
    ("visible", "build", "state", "remedy"),
    [
        ("", "13.0", "yellow", "CUDA_VISIBLE_DEVICES=0"),
        ("0", None, "red", "torch's CUDA build"),
        ("0", "13.0", "red", "update the driver"),
    ],
)
def test_says_why_a_gpu_cannot_be_used(
    visible: str, build: str | None, state: str, remedy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(machine, "NVIDIA", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = machine.cuda()
    assert (finding.state, remedy in finding.remedy) == (state, True)


def test_a_name_that_is_no_extra_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extras=tunes"]) == 2
    assert "extras: expected names among croissant" in capsys.readouterr().err


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train=true", "parts=taks"]) == 2
    assert "parts: expected names among tasks, learns" in capsys.readouterr().err


def test_the_help_and_the_page_name_every_part() -> None:
    assert list(battery.PARTS) == list(PARTS)
    rows = (line for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    named = {name.strip("` ") for row in rows for name in row.split("|")[1].split(",")}
    assert named >= set(PARTS)
