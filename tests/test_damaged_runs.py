"""Whatever happens to a file that is read back, no command ends with a traceback, and the other runs are still told."""

import shutil
from pathlib import Path

import pytest
from damage import ways
from helpers import tmbench

from tmbench.report.__main__ import main as report

WORDS = ["task=tc", "seed=0", "epochs=3", "batch_size=80", "switch_epoch=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep, and what they share."""
    folder = tmp_path_factory.mktemp("trained")
    done = tmbench("-m", *WORDS, "optimizer=sgd,tmsgd", f"runs_dir={folder}", f"hydra.sweep.dir={folder}/.sweep")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "curves.csv", "overrides.yaml"])
def test_damage_in_run_folders_leaves_the_other_runs_to_be_told(name: str, trained: Path, tmp_path: Path) -> None:
    (whole,), (other,) = trained.glob("tc-tmsgd-*"), trained.glob("tc-sgd-*")
    shutil.copytree(other, healthy := tmp_path / other.name)
    damage = ways(whole / name, 30)
    for number, (_, do) in enumerate(damage):
        shutil.copytree(whole, place := tmp_path / f"tc-tmsgd-0-{number:012x}")
        do(place / name)
    here = f"runs_dir={tmp_path}"
    for verb in ("list", "list json=true", "list seed=0", "list status=completed", "gc"):
        done = tmbench("runs", *verb.split(), here)
        assert done.returncode == 0
        assert healthy.name[:-8] in done.stdout or verb == "gc"
    assert report([here, f"out={tmp_path}/report"]) == 0
    assert healthy.name in (tmp_path / "report" / "report.json").read_text()
    for number, (what, _) in list(enumerate(damage))[::6]:
        place = f"tc-tmsgd-0-{number:012x}"
        for words in (["runs", "show", place, here], ["runs", "compare", other.name, place, here],
                      ["run", f"{tmp_path}/{place}", "epochs=2", "task.data=x"]):  # fmt: skip
            assert len(tmbench(*words).stderr.splitlines()) < 8, what


RUN_FILES = ("config.yaml", "overrides.yaml", "result.json", "curves.csv", "last.ckpt", "best.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUN_FILES, "about.json", "state.ckpt"])
def test_a_run_asked_for_again_is_shown_repeated_or_told_in_one_line(name: str, trained: Path, tmp_path: Path) -> None:
    (run,) = trained.glob("tc-tmsgd-*")
    file = next((trained if name in ("about.json", "state.ckpt") else run).rglob(name)).relative_to(trained)
    for number, (what, do) in enumerate(ways(trained / file, 6)[::5]):
        shutil.copytree(trained, folder := tmp_path / str(number))
        do(folder / file)
        if name in ("about.json", "state.ckpt"):
            shutil.rmtree(folder / run.name)
        if name in ("last.ckpt", "best.ckpt"):
            (folder / run.name / "result.json").unlink()
        words = [*WORDS, "optimizer=tmsgd", f"runs_dir={folder}"]
        for more in ([], ["force=true"]):
            done = tmbench(*words, *more)
            assert (done.returncode in (0, 1), "Traceback" in done.stderr) == (True, False), (what, done.stderr)


STRAY = (".trunks/x", ".trunks/T/00001", ".trunks/T/abc.asked-x", ".trunks/T/.asked-3", ".trunks/T/00001.asked-x",
         ".tune/x", "x/config.yaml/y", ".removing-x", "config.yaml", ".sweep/job-00000.json", ".sweep/x")  # fmt: skip


def test_stray_files_stop_no_command(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, folder := tmp_path / "runs")
    trunk = next(folder.glob(".trunks/*")).name
    for name in STRAY:
        stray = folder / name.replace("T", trunk)
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"\xffx")
    words, here = [*WORDS, "optimizer=tmsgd"], f"runs_dir={folder}"
    for each in ([*words, here], ["-m", *words, here, "plan=true"], ["runs", "list", here], ["runs", "gc", here]):
        assert tmbench(*each).returncode == 0
    (run,) = folder.glob("tc-tmsgd-*")
    shutil.rmtree(run)
    assert tmbench(*words, here).returncode == 0
