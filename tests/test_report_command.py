"""`tmbench report`: its words, its files, plans, and what goes to W&B."""

import base64
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Compose
from hydra.utils import get_class
from made_runs import Make
from omegaconf import OmegaConf

from tmbench import checkpoint
from tmbench.config.settle import plain, settled
from tmbench.config.table import conf_dir
from tmbench.data import open_dataset
from tmbench.report.__main__ import MEANINGS, main


@pytest.fixture
def make(composed: Compose, tmp_path: Path) -> Make:
    return Make(composed, tmp_path / "runs")


@pytest.fixture
def pair(make: Make) -> None:
    make.seeds("sgd", (0.80, 0.82, 0.81), "epochs=4")
    make.seeds("tmsgd", (0.83, 0.86, 0.82), "epochs=4", "switch_epoch=2")


@pytest.mark.usefixtures("pair")
def test_command_writes_all_forms_and_imports_no_torch(make: Make, tmp_path: Path) -> None:
    code = (
        "import sys; from tmbench.report.__main__ import main; code = main(); "
        "assert not {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules); sys.exit(code)"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-W", "error", "-c", code, str(make.folder), f"out={out}", "note=two words"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "tmsgd is 2.67 points better than sgd" in done.stdout.replace("\n", " ")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "report.json", "figures/curves-0-tc-tiny.svg", "tables/comparisons.csv",
            "tables/comparisons.tex"} <= names  # fmt: skip
    content = json.loads((out / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert len(content["runs"]) == 6
    assert [(p["split"], p["metric"]) for p in content["problems"]] == [("test", "accuracy")]
    assert content["notes"] == ["two words"]
    for link in ("figures/curves-0-tc-tiny.svg", "figures/ranks-tiny.svg"):
        assert f"]({link})" in (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    assert f"tmbench report {make.folder} out={out} &#39;note=two words&#39;</code>" in html


@pytest.mark.parametrize(("width", "words"), [(60, []), (80, ["plan=0.01"])])
def test_a_narrow_terminal_cuts_no_number_and_no_name(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int,
    words: list[str],
) -> None:  # fmt: skip
    make.seeds("sgd", (0.8, 0.85, 0.82), "epochs=4")
    for momentum in (0.25, 0.75):
        make.seeds("tmsgd", (0.8123, 0.75, 0.8), "epochs=4", f"optimizer.momentum={momentum}")
    command = [f"runs_dir={make.folder}", f"out={tmp_path / 'out'}", "against=all", *words]
    assert main([*command, "json=true"]) == 0
    content = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(command) == 0
    text = capsys.readouterr().out
    cut = [line for line in text.splitlines() if len(line) > width or "…" in line]
    assert [line for line in cut if "report.html" not in line] == []
    names = [str(cell) for table in content["tables"] for row in table["rows"] for cell in row if isinstance(cell, str)]
    assert {word for name in names for word in name.split()} <= set(text.split()) | set(text.replace("=", " ").split())


def test_help_names_each_setting_and_starts_without_what_is_slow() -> None:
    code = "import sys; from tmbench.report.__main__ import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    text, _, modules = done.stdout.rpartition("\n[")
    assert not {"torch", "polars", "matplotlib", "scipy", "pandas"} & set(modules.replace("'", "").split(", "))
    assert yaml.safe_load((conf_dir() / "report.yaml").read_text()).keys() == MEANINGS.keys()
    assert all(f"\n  {key}=" in text for key in MEANINGS)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["level=2"], 2, "level: expected a number between 0 and 1, got 2"),
        (["metric=first"], 2, "metric: expected one of last, best, got 'first'"),
        (["plan=-1"], 2, "plan: expected a number > 0, or null, got -1"),
        (["margin.accuracy=x"], 2, "margin.accuracy: expected a number, got 'x'"),
        (["margin.accuracy=-1"], 1, "margin.accuracy: expected a number > 0, got -1"),
        (["no-such-run"], 1, "no-such-run: no run in"),
        (["optimiser=sgd"], 1, "optimiser: expected status, profile or a setting"),
        (["seed=9"], 1, "seed=9: no run fits; seed is 0 (1 run)"),
        (["out={}"], 1, "out: expected a folder to write to, got "),  # a file
    ],
)
def test_wrong_words_get_an_answer(
    words: list[str], status: int, message: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("sgd", 0, 0.8)
    words = [word.format(folder / "result.json") for word in words]
    assert main([f"runs_dir={make.folder}", f"out={tmp_path / 'out'}", *words]) == status
    assert message in capsys.readouterr().err


def test_plan_says_what_is_attainable_and_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan=0.5", "sd=1", "comparisons=28"]) == 0
    printed = capsys.readouterr().out
    assert "34" in printed
    assert any(line.split("│")[1:4] and "11" in line and "yes" in line for line in printed.splitlines())
    assert main(["plan=0.5", "sd=1", "json=true"]) == 0
    attainable, seeds = json.loads(capsys.readouterr().out)["tables"]
    assert (attainable["key"], seeds["rows"][0][4]) == ("attainable", 34)
    assert main(["plan=0.5", "sd=0"]) == 2


@pytest.mark.usefixtures("pair")
def test_plan_takes_the_spread_from_runs(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan=0.01", f"runs_dir={make.folder}"]) == 0
    assert "tmsgd - sgd" in capsys.readouterr().out
    assert main(["plan=0.01", f"runs_dir={make.folder}", "optimizer=sgd"]) == 1
    assert "plan: the spread is not known" in capsys.readouterr().err


def test_false_verdicts_are_as_rare_as_the_level_through_the_whole_report() -> None:
    """A few of the studies that scripts/simulate_report.py makes: with ties, divergence and unequal seeds."""
    script = conf_dir().parent / "scripts" / "simulate_report.py"
    assert runpy.run_path(str(script))["main"](["studies=20", "most=0.08"]) == 0


def test_predictions_stand_in_page_and_markdown(
    make: Make, composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each method's, of the seed that both have, and of no other; here of networks that nobody trained."""
    words = ("task=fkpd", "epochs=1")
    cfg = composed(*words, f"runs_dir={make.folder}")
    data, _, digest = open_dataset(cfg, get_class(cfg.task.data))
    weights = get_class(cfg.task._target_)(OmegaConf.create(settled(plain(cfg))).task, data).state_dict()
    like: dict[str, Any] = {"metric": "mse", "higher_is_better": False, "data_digest": digest}
    for optimizer in ("sgd", "sgdm"):
        last = make(optimizer, 0, 0.5, *words, **like) / "checkpoints" / "last.ckpt"
        last.parent.mkdir()
        checkpoint.save({"epoch": 0, "state_dict": weights}, last)
    make("sgd", 1, 0.5, *words, **like)  # which has no weights to predict with
    out = tmp_path / "report"
    assert main([str(make.folder), f"out={out}", "predictions=true", "--json"]) == 0
    assert capsys.readouterr().out == (out / "report.json").read_text()
    (picture,) = (out / "figures").glob("fkpd-*.png")
    caption = "Predictions on fkpd, tiny data, a run of seed=0 of each method"
    assert f"![{caption}](figures/{picture.name})" in (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    assert caption in html
    assert base64.b64encode(picture.read_bytes()).decode() in html


@pytest.mark.usefixtures("pair")
def test_report_goes_to_wandb_as_a_run_with_tables_figures_and_the_page(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers import read_back, records

    out = tmp_path / "out"
    assert main([f"runs_dir={make.folder}", f"out={out}", "logger=wandb", "mode=offline"]) == 0
    assert "to send it: wandb sync" in capsys.readouterr().out.replace("\n", " ")
    sent = read_back(out)
    assert sent["about"].job_type == "report"
    keys = {key for row in sent["history"] for key in row}
    assert {"tables/comparisons", "figures/curves-0-tc-tiny"} <= {"/".join(key.split("/")[:2]) for key in keys}
    file = next(out.glob("wandb/*/*.wandb"))
    artifacts = [record.artifact for record in records(file) if record.WhichOneof("record_type") == "artifact"]
    assert any(artifact.type == "report" for artifact in artifacts)


NO_KEY = "expected status, profile or a setting such as task, optimizer, seed, lr"


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("agains=sgd", f"agains: {NO_KEY}; did you mean against?"),
        ("optimiser=sgd", f"optimiser: {NO_KEY}; did you mean optimizer?"),
        ("against=tmsg", "against: expected all, or one of sgd, tmsgd, got tmsg; did you mean tmsgd?"),
        ("margin.acuracy=0.01", "margin.acuracy: expected a metric of these runs (accuracy); did you mean accuracy?"),
        ("plan=1", "plan: expected a difference below 1, since accuracy is between 0 and 1 (0.01 is one point), got 1"),
        ("task=seg", "task=seg: no run fits; task is tc (6 runs)"),
    ],
)
def test_a_word_that_fits_no_run_is_refused_with_those_that_do(
    word: str, told: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs_dir={make.folder}", f"out={tmp_path / 'out'}", word]) == 1
    assert capsys.readouterr().err == f"{told}\n"
    assert not (tmp_path / "out").exists()
