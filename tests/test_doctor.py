"""The doctor: it says what works on this machine, finds planted faults, and says what to do."""

import errno
import json
import sys
import threading
import urllib.request
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

from tmbench.doctor import examined, machine, place
from tmbench.doctor.__main__ import main
from tmbench.optim import fused


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


def test_planted_faults_are_red_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = place.version

    def without_optuna(name: str) -> str:
        if name == "optuna":
            raise PackageNotFoundError(name)
        return version(name)

    def read_only(*args: Any, **settings: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")  # root may write to any folder

    monkeypatch.setattr(place, "version", without_optuna)
    monkeypatch.setattr(place, "write", read_only)
    monkeypatch.setattr(fused, "fused_update", lambda *args, **settings: None)
    monkeypatch.setenv("COLUMNS", "60")
    status, findings = found(capsys, "extras=tune", f"runs_dir={tmp_path}")
    assert status == 1
    red = {name: finding for name, finding in findings.items() if finding["state"] == "red"}
    assert red["extras"]["remedy"] == "pip install 'tmbench[tune]'"
    assert "Read-only file system" in red["runs_dir"]["found"]
    assert "runs_dir=DIR" in red["runs_dir"]["remedy"]
    if "no C kernel" not in findings["kernel"]["found"]:
        assert "fused is wrong" in red["kernel"]["found"]
        assert "leave out +optimizer.fused=true" in red["kernel"]["remedy"]
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert (
        "2 red" in lines[-1]
    )  # without extras=, one that is absent is yellow, and this runs_dir is refused all the same


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = [f for name, check in machine.checks().items() for f in examined(name, check)]
    by_name = {finding.name: finding for finding in findings}
    assert (by_name["torch"].state, by_name["torch"].remedy) == ("red", "pip install 'torch>=2.11'")
    assert by_name["bf16"].found == "needs torch, which is not installed"


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
