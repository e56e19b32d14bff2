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

from tmbench.doctor import battery, machine, place, speed
from tmbench.doctor.__main__ import PARTS, main
from tmbench.optim import fused
from tmbench.tasks.tc.task import TC


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
    assert ", 0 red" not in lines[-1]


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


class TestTrainings:
    def test_a_report_says_what_was_trained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(battery, "LEARN", ("tc",))
        words = ["train=true", "parts=resumes,devices", f"out={tmp_path}", f"runs_dir={tmp_path}"]
        assert main(words) == 0
        content = json.loads((tmp_path / "doctor.json").read_text())
        findings = {finding["name"]: finding for finding in content["findings"]}
        assert findings["resumes: tc (cpu)"]["state"] == "green"
        assert "the same bits after 320 steps" in findings["resumes: tc (cpu)"]["found"]
        page = (tmp_path / "doctor.md").read_text()
        assert all(f"| {name} |" in page for name in findings)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["doctor.json", "doctor.md"]

    def test_a_tensor_on_the_wrong_device_is_red(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        loss = TC.loss

        def elsewhere(task: TC, batch: Any) -> Any:
            total, weight = loss(task, batch)
            return total * torch.ones(1, device="meta"), weight

        monkeypatch.setattr(TC, "loss", elsewhere)
        monkeypatch.setattr(battery, "choices", lambda group: ["tc"])
        status, findings = found(capsys, "train=true", "parts=tasks", f"out={tmp_path}")
        finding = findings["tasks: tc (cpu)"]
        assert (status, finding["state"]) == (1, "red")
        assert "meta" in finding["found"]
        assert "tmbench task=tc optimizer=sgd epochs=3 trainer=cpu" in finding["remedy"]

    def test_a_kernel_that_does_nothing_is_not_fast(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        if fused.no_kernel(torch.zeros(1), 1):
            pytest.skip("no C compiler")
        monkeypatch.setattr(fused, "fused_update", lambda *args, **settings: None)
        monkeypatch.setattr(fused, "fused_sgd", lambda *args, **settings: None)
        with pytest.raises(RuntimeError, match="tmsgd fused: a tensor did not move in 2 steps"):
            speed.timed([(8, 8)], "cpu", 2)
        assert next(battery.fused(battery.Bench(tmp_path, "cpu"))).state == "red"

    def test_a_part_that_does_not_exist_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train=true", "parts=taks"]) == 2
        assert "parts: expected names among tasks, learns" in capsys.readouterr().err

    def test_the_help_names_every_part(self) -> None:
        assert list(battery.PARTS) == list(PARTS)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    def test_all_of_it_works_on_a_gpu(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, findings = found(capsys, "train=true", f"out={tmp_path}")
        assert status == 0, [finding for finding in findings.values() if finding["state"] == "red"]
