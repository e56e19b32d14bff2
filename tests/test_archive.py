"""Runs in one Parquet file: packed, read back, checked, reported on."""

import hashlib
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Compose
from made_runs import Make

from tmbench.errors import DataError
from tmbench.files import sealed_text
from tmbench.report.__main__ import main as report
from tmbench.result import Result, examples_of, save_examples
from tmbench.runs.__main__ import main
from tmbench.runs.archive import FILES, rows_of, unpack

Row = dict[str, str | None]
SCORES = {"sgd": [0.71, 0.7, 0.72, 0.69, 0.73], "tmsgd": [0.74, 0.73, 0.74, 0.72, 0.78]}


@pytest.fixture(scope="module")
def made(composed: Compose, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten runs with scores of their examples, one of them diverged; and one that was stopped."""
    folder = tmp_path_factory.mktemp("packed") / "runs"
    make = Make(composed, folder)
    for optimizer, scores in SCORES.items():
        make.seeds(optimizer, scores, "epochs=3")
    make("sgd", 5, 0.1, "epochs=3", status="diverged", diverged_at={"epoch": 1, "step": 2})
    make("sgd", 6, None, "epochs=3")
    for config in folder.glob("*/config.yaml"):
        config.write_text(sealed_text(config.read_text()))
        (config.parent / "overrides.yaml").write_text(sealed_text("- task=tc\n"))
    draw = random.Random(0)
    for path in folder.glob("*/result.json"):
        if (result := Result.load(path.parent)) and result.status == "completed":
            save_examples(path.parent, "test/accuracy", True, [float(draw.random() < 0.7) for _ in range(200)])
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The current folder, with runs/ and r8.parquet."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "runs")
    assert main(["pack", "r8.parquet"]) == 0
    assert capsys.readouterr().out == (
        "r8.parquet: 11 runs added, 0 there already; 11 in all; left out: 1 not finished\n"
    )
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.name in FILES}


def test_every_finished_run_comes_back_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unpack", "r8.parquet", "runs_dir=new"]) == 0
    (unfinished,) = (path.name for path in Path("runs").iterdir() if not (path / "result.json").exists())
    assert contents(here / "new") == {k: v for k, v in contents(here / "runs").items() if unfinished not in k}
    assert len(list(Path("new").iterdir())) == 11
    assert main(["unpack", "r8.parquet", "runs_dir=new"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "new: 11 of 11 runs made; the others were there already",
        "new: 0 of 11 runs made; the others were there already",
    ]


def test_runs_are_added_once_and_after_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "some.parquet", "optimizer=tmsgd"]) == 0
    first = [row["run_id"] for row in rows_of(Path("some.parquet"))]
    assert main(["pack", "some.parquet", "status=completed"]) == 0
    ids = [row["run_id"] for row in rows_of(Path("some.parquet"))]
    assert ids[:5] == first
    assert len({*ids}) == len(ids) == 10
    assert capsys.readouterr().out.splitlines() == [
        "some.parquet: 5 runs added, 0 there already; 5 in all",
        "some.parquet: 5 runs added, 5 there already; 10 in all",
    ]
    content = Path("some.parquet").read_bytes()
    assert main(["pack", "some.parquet", "status=completed"]) == 0
    assert Path("some.parquet").read_bytes() == content


def test_a_report_on_the_file_is_the_same_wherever_it_is_made(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also without runs/; with the intervals over other test examples, which need each run's scores."""
    pages = []
    for name in ("one", "two"):
        (here / name).mkdir()
        shutil.copy("r8.parquet", here / name)
        monkeypatch.chdir(here / name)
        assert report(["source=r8.parquet", "status=completed"]) == 0
        pages.append({str(p): p.read_bytes() for p in Path("report").rglob("*") if p.is_file()})
        monkeypatch.chdir(here)
    assert pages[0] == pages[1]
    assert b"r8.parquet/tc-sgd-0" in pages[0]["report/report.json"]
    assert str(here).encode() not in b"".join(pages[0].values())
    assert report(["status=completed", "out=other"]) == 0
    tables = {Path(k).name: v for k, v in pages[0].items() if "/tables/" in k}
    assert tables == {p.name: p.read_bytes() for p in Path("other/tables").iterdir()}
    assert "samples.csv" in tables


def test_damage_is_noticed(here: Path) -> None:
    """A flipped bit ends in an error that names the file, or is of no consequence."""
    content, draw = Path("r8.parquet").read_bytes(), random.Random(1)
    whole, noticed = rows_of(Path("r8.parquet")), 0
    for trial in range(20):
        at = draw.randrange(len(content))
        Path("bad.parquet").write_bytes(
            content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        )
        told = ""
        try:
            made, rows = unpack(Path("bad.parquet"), _folder(here / f"t{trial}")), rows_of(Path("bad.parquet"))
        except DataError as error:
            told, noticed = str(error), noticed + 1
        assert told.startswith("bad.parquet: ") or (len(made), rows) == (11, whole)
    assert noticed >= 10


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _changed(row: Row) -> Row:
    return row | {"curves.csv": f"{row['curves.csv']}".replace("0.7", "0.8")}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda row: row | {"run_id": "../tc"}, "'../tc' is no id of a run"),
        (lambda row: row | {"run_id": ".trunks"}, "'.trunks' is no id of a run"),
        (lambda row: row | {"run_id": "tc-sgd-9-abc"}, "its result.json is of another run"),
        (lambda row: row | {"config.yaml": None}, "no config.yaml"),
        (lambda row: row | {"config.yaml": f"{row['config.yaml']}".replace("epochs: 3", "epochs: 4")}, "damaged"),
        (lambda row: row | {"result.json": f"{row['result.json']}".replace("0.7", "0.8")}, "not match its sha256"),
        (lambda row: row | {"examples.json": f"{row['examples.json']}".replace("200", "100")}, "not match its sha256"),
    ],
)  # fmt: skip
def test_a_changed_row_is_refused(here: Path, change: Callable[[Row], Row], expected: str) -> None:
    row = next(row for row in rows_of(Path("r8.parquet")) if row["examples.json"])
    pq.write_table(pa.Table.from_pylist([change(row)]), "bad.parquet")
    with pytest.raises(DataError) as caught:
        unpack(Path("bad.parquet"), _folder(here / "new"))
    assert str(caught.value).startswith("bad.parquet: ")
    assert expected in str(caught.value)
    assert not [*Path("new").iterdir()]


def test_curves_that_are_not_the_result_s_are_refused(here: Path) -> None:
    """The tests' runs know no digest of their curves; those of real runs do."""
    run = next(Path("runs").glob("tc-sgd-0-*"))
    result = Result.load(run)
    assert result
    result.curves_sha256 = hashlib.sha256((run / "curves.csv").read_bytes()).hexdigest()
    result.save(run)
    assert main(["pack", "one.parquet", run.name]) == 0
    (row,) = rows_of(Path("one.parquet"))
    pq.write_table(pa.Table.from_pylist([_changed(row)]), "bad.parquet")
    with pytest.raises(DataError, match=r"bad.parquet: .*curves.csv: damaged"):
        unpack(Path("bad.parquet"), _folder(here / "new"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pack"], "pack: expected a file whose name ends with .parquet, got none"),
        (["pack", "optimizer=sgd"], "pack: expected a file whose name ends with .parquet, got optimizer=sgd"),
        (["unpack", "no.parquet"], "no.parquet: no such file"),
        (["unpack", "r8.parquet", "task=tc"], "unpack: expected one file, got r8.parquet task=tc"),
        (["unpack", "other.parquet"], "other.parquet: expected a file of `tmbench runs pack`, got one without"),
        (["unpack", "text.parquet"], "text.parquet: damaged"),
        (["pack", "text.parquet"], "text.parquet: damaged"),
    ],
)
def test_other_files_are_refused(
    here: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"a": [1]}), "other.parquet")
    Path("text.parquet").write_text("not one")
    assert main(words) != 0
    assert expected in capsys.readouterr().err


def test_sources_that_are_none_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in {
        "source=run": "source: expected runs, wandb, or a file of `tmbench runs pack`",
        "source=no.parquet": "no.parquet: no such file",
        "source=r8.parquet lr=7": "lr=7: no run fits",
    }.items():
        assert report(words.split()) != 0
        assert expected in capsys.readouterr().err
    assert report(["source=r8.parquet", "runs"]) != 0
    assert "expected filters such as task=tc, got runs" in capsys.readouterr().err


def test_examples_come_back(here: Path) -> None:
    unpack(Path("r8.parquet"), _folder(here / "new"))
    run = next(Path("runs").glob("tc-tmsgd-2-*"))
    one, other = examples_of(run), examples_of(Path("new") / run.name)
    assert one is not None
    assert one == other
    assert len(one.scores) == 200


@pytest.mark.slow
def test_a_command_that_reads_the_file_ends_as_it_should(here: Path) -> None:
    """pyarrow 26.0 with threads of its own: one command in five was aborted at its end, after its work."""
    command = [sys.executable, "-m", "tmbench.runs", "pack", "r8.parquet"]
    assert [subprocess.run(command, stdout=subprocess.DEVNULL).returncode for _ in range(15)] == [0] * 15


PAGE = Path(__file__).parents[1] / "docs" / "results" / "r8.md"
COMMANDS = re.findall(r"^tmbench report (source=docs/.+) out=(docs/\S+)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_of_results_names_its_reports() -> None:
    assert {out for _, out in COMMANDS} == {
        f"docs/results/r8/{p.parent.name}" for p in PAGE.parent.glob("r8/*/report.md")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("words", "out"), COMMANDS)
def test_the_committed_report_is_made_again_byte_for_byte(
    words: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = PAGE.parents[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    shutil.copytree(PAGE.parent / "r8", "docs/results/r8", ignore=shutil.ignore_patterns(Path(out).name))
    assert report([*words.split(), f"out={out}"]) == 0
    committed = {str(p.relative_to(root)): p.read_bytes() for p in (root / out).rglob("*") if p.is_file()}
    assert len(committed) >= 10
    assert {str(p): p.read_bytes() for p in Path(out).rglob("*") if p.is_file()} == committed
