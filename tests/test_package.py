"""What may import what, and what a wheel carries."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tmbench.config.settle import conf_dir

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=600, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_runner_and_contract_know_no_task_by_name() -> None:
    for file in (ROOT / "tmbench").rglob("*.py"):
        text = file.read_text()
        assert "from .tasks" not in text
        assert "tmbench.tasks" not in text.replace("`tmbench.tasks`", ""), file


def test_tasks_know_no_optimizer() -> None:
    for file in (ROOT / "tasks").rglob("*.py"):
        assert "optim" not in file.read_text().replace("optimizer of", ""), file


@pytest.mark.slow
def test_wheel_works_from_another_folder_beside_another_module_called_tasks(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"tmbench", "hydra_plugins"}
    for group in conf_dir().iterdir():
        for file in group.glob("*.yaml") if group.is_dir() else [group]:
            assert f"tmbench/conf/{file.relative_to(conf_dir())}" in names
    assert "tmbench/tasks/catalogue.yaml" in names
    assert {f"tmbench/report/{name}" for name in ("page.html", "page.js", "paper_results.yaml")} <= set(names)
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=tmp_path)
    # The heavy dependencies are this environment's; tmbench is the wheel's.
    work = tmp_path / "work"
    work.mkdir()
    (work / "tasks.py").write_text("raise SystemExit('the wrong tasks')\n")
    (work / "conf").mkdir()
    site = sysconfig.get_paths()["purelib"]
    where = "import sys, tmbench; sys.path.append(sys.argv[1]); print(tmbench.__file__)"
    assert str(home) in run(python, "-c", where, site, cwd=work)
    start = (
        f"import sys, tmbench; sys.path.append({site!r}); sys.argv = ['tmbench', *sys.argv[1:]]; "
        "from tmbench.__main__ import main; main()"
    )
    told = run(python, "-c", start, "task=tc", "epochs=1", cwd=work)
    assert "completed" in told
    assert list((work / "runs").glob("tc-tmsgd-0-*/result.json"))
    assert "avazu_x4" in run(python, "-c", start.replace("tmbench.__main__", "tmbench.data.__main__"), "list", cwd=work)
    # tmbench.optim needs torch alone.
    alone = (
        f"import sys; sys.path.append({site!r}); from tmbench.optim import TMSGD; import torch; "
        "TMSGD([torch.nn.Parameter(torch.ones(1))], lr=0.1); "
        "assert not {'hydra', 'omegaconf', 'pytorch_lightning', 'wandb', 'rich'} & set(sys.modules)"
    )
    run(python, "-c", alone, cwd=work)
