"""The manual does what it says: its commands and code run as they stand there, on tiny data; its links lead somewhere.

Blocks of a page run in order in one empty folder: `bash` line by line, `python` in one namespace; a block with a title
is written to that file. Where a line does not say how long to train, two epochs are enough here; a study has two
trials, seeds and epochs whatever it says. A line that needs a real data set, a cluster or a server is checked without
being run. In a command, RUN stands for a run that the page has made, RUN_A and RUN_B for two.
"""

import doctest
import os
import re
import shlex
import tomllib
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any

import jupytext
import matplotlib
import pytest
from helpers import tmbench

from tmbench.__main__ import VERBS
from tmbench.config.compose import prepared
from tmbench.config.table import choices
from tmbench.task import Task

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "AGENTS.md"])
BLOCK = re.compile(r"^( *)```(\w+)?(?: title=\"(.*?)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = {"cd", "git", "mlflow", "sbatch", "srun", "tensorboard", "torchrun", "wandb", "trackio"}  # not ours
NOT_HERE = re.compile(
    r"data=full|launcher=(slurm|ray)|trainer=(ddp|gpu)\b|logger=\S*(wandb|mlflow)|\bDIR\b|source=wandb|^data |^numerics"
    r"|task\.mup|train=true"
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix().removeprefix("docs/")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=name_of)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.syspath_prepend(str(tmp_path))
    matplotlib.use("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with chdir(tmp_path):
        for _, language, title, text in BLOCK.findall(page.read_text()):
            if title:
                Path(title).parent.mkdir(parents=True, exist_ok=True)
                Path(title).write_text(text)
            elif language == "bash":
                for line in text.replace("\\\n", " ").splitlines():
                    do(shlex.split(line, comments=True))
            elif language == "python":
                exec(compile(text, f"{name_of(page)}: {text[:60]!r}", "exec"), namespace)


def do(words: list[str]) -> None:
    """Does a line of a shell, or checks that it could be done."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in ELSEWHERE:
        return
    if words[0] == "export":
        os.environ.update(word.split("=", 1) for word in words[1:])  # type: ignore[arg-type]
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\[(.*?)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(EXTRAS), words
    elif words[0].startswith("scripts/") and words[0] != "scripts/tmbench":
        assert (ROOT / words[0]).is_file(), words
    elif words[0] == "python" and words[1].startswith("scripts/"):
        assert (ROOT / words[1]).is_file(), words
    else:
        command = words[2:] if words[:2] == ["python", "-m"] else words
        verb, _, inner = command[0].removeprefix("scripts/").partition(".")
        assert verb == "tmbench", words
        run_tmbench([*filter(None, [inner]), *command[1:]])


def run_tmbench(words: list[str]) -> None:
    made = sorted(Path("runs").glob("*/result.json"))
    for stand_in, paths in (("RUN_A", made), ("RUN_B", made[1:]), ("RUN", made)):
        if paths:
            words = [re.sub(rf"\b{stand_in}\b", paths[0].parent.name, word) for word in words]
    if not NOT_HERE.search(" ".join(words)):
        trains = any(word.startswith("task=") for word in words) and words[0] not in VERBS
        short = trains and not any(word.startswith(("epochs=", "--cfg")) for word in words)
        if words[0] == "tune":
            words = [re.sub(r"^(trials|seeds|epochs)=\d+$", r"\1=2", word) for word in words]
        done = tmbench(*words, *(["epochs=2"] if short else []))
        assert done.returncode == 0, (words, done.stderr, done.stdout)
    elif words[0] in choices("task") or "=" in words[0] or words[0] == "-m":
        first = [re.sub(r"=([^\[\],]*),.*", r"=\1", word) for word in words if word != "-m"]
        done = tmbench(*first, "--cfg", "job")
        assert done.returncode == 0, (words, done.stderr)
        assert prepared(words)
    else:
        done = tmbench(*[word for word in words[:2] if re.fullmatch(r"[a-z]+", word)], "--help")
        assert done.returncode == 0, (words, done.stderr)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    generated = {"settings.md", "commands.md", "result.md", "result.schema.json"}
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target and Path(target).name not in generated:
            assert (page.parent / target).exists(), target


def test_the_page_of_the_notebook_has_the_code_of_its_source() -> None:
    page = (ROOT / "docs" / "notebook.md").read_text()
    cells = [cell for cell in jupytext.read(ROOT / "docs" / "notebook.py").cells if cell.source]
    assert len(cells) > 10
    assert all(cell.source in page for cell in cells), "scripts/docs notebook makes it anew"
    assert page.count("![") == page.count("# alt: ") > 0
    assert "![png]" not in page


def test_every_optimizer_and_task_has_its_place() -> None:
    optimizers = (ROOT / "docs" / "reference" / "optimizers.md").read_text()
    assert set(re.findall(r"^### (\w+)$", optimizers, re.MULTILINE)) == set(choices("optimizer"))
    assert {page.stem for page in (ROOT / "docs" / "tasks").glob("*.md")} == {"index", *choices("task")}
    nav = (ROOT / "mkdocs.yml").read_text()
    assert all(f"tasks/{task}.md" in nav for task in choices("task"))


@pytest.mark.slow
def test_examples_in_docstrings_of_the_api_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference" / "api.md").read_text(), re.MULTILINE)
    assert len(names) > 5
    attempted = 0
    for name in names:
        module, _, attribute = name.rpartition(".")
        found = getattr(import_module(module), attribute)
        assert found.__doc__, name
        for test in doctest.DocTestFinder(recurse=found is not Task).find(found, name):
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert not result.failed, name
            attempted += result.attempted
    assert attempted > 5
