"""What may import what, what the command line imports, and what a wheel carries."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tmbench.__main__ import VERBS, main
from tmbench.config.table import conf_dir
from tmbench.run import main as saved_run

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # which may name a checkout
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd, env=environment)
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


def test_every_command_has_help_without_torch() -> None:
    code = (
        "import sys\nfrom tmbench.__main__ import VERBS, main\n"
        "for verb in ('run', *VERBS):\n"
        "    sys.argv = ['tmbench', verb, '--help']\n"
        "    try:\n        main()\n    except SystemExit as done:\n"
        "        print('\\nstatus', verb, done.code, *({'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)))"
    )
    output = run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", cwd=ROOT)
    statuses = [line.split()[1:] for line in output.splitlines() if line.startswith("status ")]
    assert statuses == [[verb, "0"] for verb in ("run", *VERBS)]
    for verb in VERBS:
        assert re.search(rf"^usage: (python -m )?tmbench.{verb} ", output, re.MULTILINE)
        assert re.search(rf"^  {verb} +\w", output, re.MULTILINE)  # in the list that `tmbench --help` gives


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rnus", "list"], 2, "rnus: there is no such command; tmbench --help lists them; did you mean runs?"),
        (["run", "nowhere/config.yaml"], 1, "no configuration to run"),
        (["nowhere/config.yaml"], 1, "no configuration to run"),
    ],
)
def test_words_that_are_no_command_and_no_file_are_named(
    words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tmbench", *words])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert (leaving.value.code, message in capsys.readouterr().err) == (code, True)


def test_a_setting_in_place_of_a_saved_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert saved_run([f"task={'x' * 300}"]) == 2  # longer than the name of a file may be
    assert "expected the folder of a run, or its config.yaml" in capsys.readouterr().err


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
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    work = tmp_path / "work"
    work.mkdir()
    (work / "tasks.py").write_text("raise SystemExit('the wrong tasks')\n")
    (work / "conf").mkdir()
    assert str(home) in run(python, "-c", "import tmbench; print(tmbench.__file__)", cwd=work)
    assert "completed" in run(python, "-m", "tmbench", "task=tc", "epochs=1", cwd=work)
    assert list((work / "runs").glob("tc-tmsgd-0-*/result.json"))
    script = home / "bin" / "tmbench"
    assert "completed before" in run(script, "run", "task=tc", "epochs=1", cwd=work)
    assert "avazu_x4" in run(script, "data", "list", cwd=work)
    # tmbench.optim needs torch alone.
    alone = (
        "import sys; from tmbench.optim import TMSGD; import torch; "
        "TMSGD([torch.nn.Parameter(torch.ones(1))], lr=0.1); "
        "assert not {'hydra', 'omegaconf', 'pytorch_lightning', 'wandb', 'rich'} & set(sys.modules)"
    )
    run(python, "-c", alone, cwd=work)
