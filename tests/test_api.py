"""The Python door: what it does is what the command line does, and its host is as before."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from conftest import Compose
from helpers import curves as curves_of
from helpers import tmbench as command
from hydra import compose, initialize_config_dir
from made_runs import Make

import tmbench
from tmbench.errors import ConfigError, DataError
from tmbench.training.record import Recorder

TINY: dict[str, Any] = {"batch_size": 40, "trunk": "off", "progress": False}
HANDLED = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in HANDLED]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_the_package_loads_and_changes_nothing() -> None:
    code = (
        "import signal, sys; before = [signal.getsignal(n) for n in (2, 15)]; import tmbench; "
        "assert before == [signal.getsignal(n) for n in (2, 15)]; "
        "print({'torch', 'hydra', 'omegaconf', 'polars', 'pydantic', 'numpy', 'matplotlib'} & set(sys.modules)); "
        "import tmbench.run, tmbench.runs, tmbench.report; "
        "print(*(type(getattr(tmbench, name)).__name__ for name in ('run', 'runs', 'report'))); "
        "print(set(tmbench.__all__) <= set(dir(tmbench)), hasattr(tmbench, 'nothing'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\nfunction function function\nTrue False False\n", "")


VALUES = [
    None, True, False, 0, -3, 10**20, 0.1, 0.1 + 0.2, 1e-5, 1e22, 5e-324, -0.0, 3.0, "sgd", "", " ", "null", "True",
    "nan", "1", "1e-3", "a b", "it's", 'say "x"', "x=y,z", "[1]", "{a: 1}", "~/x", "/tmp/a-b.c", "C:\\x\\", "\\'", "#",
    "%", "ü", "(", "a\nb", "-x", "_", [], [0.9, 0.99], ["a", None, [1, "b,c"]], {"a": 1, "b": {"c": [True, "x y"]}},
]  # fmt: skip


class Keeper(torch.optim.SGD):
    """An optimizer that takes any settings."""

    def __init__(self, parameters: Any, lr: float, **settings: Any) -> None:
        super().__init__(parameters, lr=lr)


def own_optimizer(name: str, target: str, *settings: str) -> Path:
    """The folder with a file for the optimizer in it."""
    Path("mine/optimizer").mkdir(parents=True)
    lines = [f"name: {name}", f"_target_: {target}", "_partial_: true", "lr: ${lr}", *settings]
    Path(f"mine/optimizer/{name}.yaml").write_text("\n".join(lines))
    return Path("mine").absolute()


def test_values_reach_a_run_and_a_sweep_as_they_are() -> None:
    theirs = [np.float64(0.1), np.int32(3), np.array([1, 2]), torch.tensor(0.5), Path("x y"), (1, 2)]
    values = {f"optimizer.v{i}": value for i, value in enumerate(VALUES + theirs)}
    own_files = own_optimizer("keeper", f"{__name__}.Keeper", *(f"{key.split('.')[1]}: null" for key in values))
    result = tmbench.run("tc", "keeper", config_dir=own_files, epochs=1, **TINY, **values)
    kept = yaml.safe_load(Path(result.folder or "", "config.yaml").read_text())["optimizer"]
    expected = [*VALUES, 0.1, 3, [1, 2], 0.5, "x y", [1, 2]]
    assert [repr(kept[f"v{i}"]) for i in range(len(expected))] == [*map(repr, expected)]
    listed = {key: [value] for key, value in values.items()}
    (known,) = tmbench.sweep("tc", ["keeper"], config_dir=own_files, epochs=1, **TINY, **listed).results
    assert known == result
    words = [*shlex.split(result.command)[3:], "--config-dir", str(own_files)]
    assert result.run_id in command(*words).stdout  # what the result says to type


def test_a_run_is_that_of_the_command_line_and_the_other_way_round(here: Path) -> None:
    assert command("task=tc", "optimizer=sgd", "seed=1", "epochs=1", "batch_size=40", "runs_dir=r s").returncode == 0
    result = tmbench.run("tc", "sgd", 1, epochs=1, batch_size=40, runs_dir="r s", progress=False)
    assert [path.name for path in (here / "r s").glob("tc-*")] == [result.run_id]
    assert result.command.startswith("python -m tmbench task=tc optimizer=sgd seed=1 epochs=1")

    betas = {"optimizer.betas": [0.8, 0.99], "task.width": 8}
    mine = tmbench.run("tc", "adam", lr=1e-3, epochs=1, batch_size=40, progress=False, **betas)
    words = ["task=tc", "optimizer=adam", "lr=0.001", "epochs=1", "batch_size=40", "optimizer.betas=[0.8,0.99]"]
    told = command(*words, "task.width=8").stdout
    assert mine.folder is not None
    assert "completed before (shown, not repeated" in told
    assert mine.run_id in told
    assert mine.folder.name == mine.run_id


def test_a_run_tells_where_it_is_unless_it_is_to_be_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    first = tmbench.run("tc", "sgd", epochs=1, batch_size=40)
    told = capsys.readouterr()
    assert (told.out, "epoch 1/1" in told.err) == ("", True)
    again = tmbench.run("tc", "sgd", epochs=1, batch_size=40, force=True, progress=False)
    assert capsys.readouterr() == ("", "")
    assert (again.overhead_seconds != first.overhead_seconds, again.metrics) == (True, first.metrics)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"task": "tk"}, r"^task=tk: there is no such choice; your own files need .*\n  possible here: ctr"),
        ({"lrr": 1}, r"^lrr: there is no such setting; did you mean lr\?"),
        ({"lr": "0.1"}, r"^lr: expected a number > 0, got '0.1'$"),
        ({"lr": float("nan")}, r"^lr: expected a number > 0, got nan$"),
        ({"lr": object}, r"^lr: expected None, a bool, a number, a text, a path, .* got <class 'object'>$"),
        ({"task.width": {1: 2}}, r"^task.width: expected None, a bool"),
        ({"a b": 1}, r"^a b: expected the name of a setting, such as lr"),
        ({"hydra.verbose": True}, r"^hydra.verbose: expected the name of a setting"),
        ({"epochs": [1, 2]}, r"^epochs: expected a whole number >= 1, got \[1, 2\]$"),
        ({"runs_dir": 3}, "^runs_dir: expected the path of a folder, as text or as a pathlib.Path, got 3$"),
        ({"runs_dir": ""}, "^runs_dir: expected the path of a folder, as text or as a pathlib.Path, got ''$"),
        ({"config_dir": 3}, "^config_dir: expected the path of a folder, .* got 3$"),
        ({"lr": "${"}, r"^lr='\${': .*; in a text, \${KEY} stands for the value of another setting$"),
        ({"lr": "${rl}"}, r"^optimizer.lr: Interpolation key 'rl' not found; in a text, \${KEY} stands for "),
        ({"config_dir": "none"}, r"^config_dir: expected a folder with YAML files of yours, got none$"),
        ({"data": "full", "data_dir": "none"}, r"^data_dir: no folder none; to download the data there"),
        ({"study": "switch"}, r"^study: this works for a sweep only; use tmbench.sweep$"),
        ({"plan": True}, r"^plan: this works for a sweep only; use tmbench.sweep$"),
        ({"runs_dir": "file/x"}, r"^runs_dir: expected a folder to write to, got file/x"),
        ({"optimizer.name": "x"}, r"^optimizer.name: .* the file that optimizer=\.\.\. chooses"),
        ({"data": "full", "data_dir": "data", "data.download": False}, r"^tc: no data/r8/train.txt\n"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], told: str, here: Path) -> None:
    (here / "file").touch()
    (here / "data").mkdir()
    with pytest.raises(DataError if "data.download" in settings else ConfigError, match=told):
        tmbench.run(progress=False, **settings)
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize("place", [None, 3, "", b"x", "a\0b"])
@pytest.mark.parametrize("function", [tmbench.runs, tmbench.curves, tmbench.report, partial(tmbench.report, "runs")])
def test_a_folder_that_is_no_path_is_refused(function: Callable[..., object], place: Any) -> None:
    with pytest.raises(ConfigError, match=r"^(runs_dir|out): expected the path of a folder, .* got "):
        function(place)


def test_a_run_that_diverges_is_a_result() -> None:
    result = tmbench.run("tc", "sgd", epochs=1, lr=1e30, **TINY)
    assert (result.status, result.diverged_at is not None) == ("diverged", True)
    assert "diverged in epoch 1" in result._repr_html_()


@pytest.fixture
def _interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT comes after the first epoch that any run trains, once."""
    original, signals = Recorder.on_train_epoch_end, [signal.SIGINT]

    def and_interrupt(self: Recorder, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        while signals:
            os.kill(os.getpid(), signals.pop())

    monkeypatch.setattr(Recorder, "on_train_epoch_end", and_interrupt)


@pytest.mark.usefixtures("_interrupted")
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_interrupt_is_raised_and_the_same_call_resumes(epochs: int) -> None:
    """Also one that comes when there is nothing left to stop: a loop of the host's must end."""
    before = handlers()
    told = "1 of 2 epochs are saved in .*; the same call" if epochs > 1 else "^$"
    with pytest.raises(KeyboardInterrupt, match=told):
        tmbench.run("tc", "sgd", epochs=epochs, **TINY)
    assert handlers() == before
    resumed = tmbench.run("tc", "sgd", epochs=epochs, **TINY)
    assert (resumed.status, resumed.epochs["trained"]) == ("completed", epochs)
    assert handlers() == before


def test_an_interrupt_waits_for_an_import(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is half-imported cannot be imported again, and a kernel lives on."""
    own_optimizer("late", "late_module.Late")
    code = "import os\nos.kill(os.getpid(), 2)\nimport torch\nclass Late(torch.optim.SGD): pass\n"
    (here / "late_module.py").write_text(code)
    monkeypatch.syspath_prepend(here)
    with pytest.raises(KeyboardInterrupt):
        tmbench.run("tc", "late", epochs=1, config_dir="mine", **TINY)
    assert "late_module" in sys.modules
    assert tmbench.run("tc", "late", epochs=1, config_dir="mine", **TINY).status == "completed"


@pytest.mark.usefixtures("_interrupted")
def test_an_interrupt_ends_a_sweep() -> None:
    with pytest.raises(KeyboardInterrupt, match="0 of 2 jobs are done, and each whole epoch"):
        tmbench.sweep("tc", "sgd", [0, 1], epochs=2, **TINY)


def test_runs_of_several_threads_do_not_mix(here: Path) -> None:
    before = handlers()

    def losses(seed: int, runs_dir: str) -> list[dict[str, str]]:
        folder = tmbench.run("tc", "sgd", seed, epochs=1, runs_dir=runs_dir, **TINY).folder
        assert folder is not None
        return curves_of(folder)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(losses, (0, 1), ("a", "a")))
    assert together[1] == losses(1, "b")
    assert handlers() == before


def test_the_host_keeps_its_random_numbers_variables_and_hydra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed() -> None:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)

    (here / "config.yaml").write_text("mine: 1\n")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    variables = dict(os.environ)
    seed()
    expected = draw()
    seed()
    with initialize_config_dir(str(here), version_base="1.3"):
        (result,) = tmbench.sweep("tc", "sgd", epochs=1, **TINY).results
        assert tmbench.run("tc", "sgd", epochs=1, **TINY) == result
        assert compose("config") == {"mine": 1}
    assert draw() == expected
    assert dict(os.environ) == variables


def test_a_sweep_does_the_jobs_of_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=tc", "optimizer=sgd,adam", "seed=1", "lr=0.001", "epochs=1", "batch_size=40"]
    assert command("-m", *words, "runs_dir=one").returncode == 0
    kinds = ["sgd", "adam"]
    swept = tmbench.sweep("tc", kinds, range(1, 2), lr=[1e-3], epochs=1, batch_size=40, runs_dir="one", progress=False)
    assert swept.table["how"].to_list() == ["shown"] * 2
    assert [(r.optimizer, r.seed) for r in swept.results] == [(kind, seed) for kind in kinds for seed in [1]]
    assert len(list((here / "one").glob("tc-*"))) == 2
    html = swept._repr_html_()
    assert all(f">{head}</th>" in html.replace("<th>", ">") for head in ("optimizer", "status", "last"))
    assert capsys.readouterr() == ("", "")


def test_lists_in_lists_are_values_and_a_job_that_fails_leaves_the_others() -> None:
    betas = {"optimizer.betas": [[0.9, 0.99], [0.8, 0.9]]}
    with pytest.warns(RuntimeWarning, match=r"2 of 4 jobs failed; job 2: epochs: expected a whole number >= 1"):
        swept = tmbench.sweep("tc", "adam", epochs=np.array([1, 0]), lr=torch.tensor(0.5), **betas, **TINY)
    assert swept.table.select("job", "status").rows() == [
        (0, "completed"), (1, "completed"), (2, "failed"), (3, "failed"),
    ]  # fmt: skip
    assert swept.table["optimizer.betas"].to_list()[:2] == [[0.9, 0.99], [0.8, 0.9]]
    assert list(swept.failures) == [2, 3]
    with pytest.raises(ConfigError, match="seed: expected a value, or a list of values to try, got an empty one"):
        tmbench.sweep(seed=[])


def test_a_plan_with_the_arms_of_a_study_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    planned = tmbench.sweep("tc", "tmsgd", plan=[True], study="switch", epochs=2, switch_epoch=[1], **TINY)
    told = capsys.readouterr().out
    assert (planned.results, planned.table.height) == ([], 0)
    assert re.search("to train(.|\n)*half_rate|half", told)


@pytest.fixture
def made(composed: Compose, tmp_path: Path) -> Make:
    make = Make(composed, tmp_path / "runs")
    make.seeds("sgd", (0.80, 0.82, None))
    make.seeds("tmsgd", (0.83, 0.86, 0.82))
    return make


def test_runs_are_a_frame_with_a_row_each(made: Make) -> None:
    frame = tmbench.runs()
    assert frame.select("optimizer", "seed", "status", "last").sort("optimizer", "seed").rows() == [
        ("sgd", 0, "completed", 0.80), ("sgd", 1, "completed", 0.82), ("sgd", 2, "diverged", None),
        ("tmsgd", 0, "completed", 0.83), ("tmsgd", 1, "completed", 0.86), ("tmsgd", 2, "completed", 0.82),
    ]  # fmt: skip
    assert frame.schema["task.width"] == pl.Int64
    assert frame.filter(pl.col("optimizer") == "sgd")["test/accuracy"].drop_nulls().to_list() == [0.80, 0.82]
    some = tmbench.runs(
        optimizer=["sgd", "adam"], seed=[0, 2], status="completed", validation=None, **{"task.mup": False}
    )
    assert some["seed"].to_list() == [0]
    assert list(frame.to_pandas()["last"].dropna()) == frame["last"].drop_nulls().to_list()
    one = tmbench.runs(run_id=some["run_id"][0])
    assert one.rows() == some.rows()
    (made.folder / "empty").mkdir()
    assert tmbench.runs("runs/empty").filter(pl.col("last") > 0).height == 0
    wrongs = (
        ({"lrr": 1}, "lrr: exp"),
        ({"lr": []}, "lr: exp"),
        ({"task": "a,b"}, "comma"),
        ({"runs_dir": "x"}, "^x: no"),
    )
    for wrong, told in wrongs:
        with pytest.raises(ConfigError, match=told):
            tmbench.runs(**wrong)


def test_a_damaged_run_is_left_out_with_a_warning(made: Make) -> None:
    broken = next(made.folder.glob("tc-sgd-0-*"))
    (broken / "config.yaml").write_text("")
    for read in (tmbench.runs, tmbench.curves):
        with pytest.warns(UserWarning, match=f"{broken.name}: left out"):
            assert read()["run_id"].n_unique() == 5


def test_curves_are_a_row_an_epoch(made: Make) -> None:
    epochs = len(curves_of(next(made.folder.glob("tc-sgd-0-*"))))
    frame = tmbench.curves(optimizer="sgd")
    assert frame.columns == ["run_id", "epoch", "step", "seconds", "lr", "train/loss", "test/accuracy"]
    assert (frame.height, frame["epoch"].min(), frame["run_id"].n_unique()) == (3 * epochs, 1, 3)
    diverged = frame.filter(pl.col("run_id").str.starts_with("tc-sgd-2"))
    assert diverged["test/accuracy"].null_count() == epochs  # made of NaN
    assert tmbench.curves(status="failed").columns == ["run_id", "epoch", "step", "seconds"]


def test_a_report_gives_its_page_and_verdicts(made: Make) -> None:
    report = tmbench.report(out="page", against="sgd", task="tc", **{"margin.accuracy": 0.001})
    assert "<html" in report.page.read_text()
    row = report.verdicts.row(0, named=True)
    assert (row["method"], row["against"], row["n"], row["verdict"]) == ("tmsgd", "sgd", 3, "undecided")
    assert row["margin"] == 0.001
    assert report.sentences[0].startswith("tmsgd is ")
    assert any("1 diverged" in note for note in report.notes)
    for wrong, told in ({"plan": 0.1}, "plan="), ({"metric": "x"}, "metric: expected"), ({"task": "ic"}, "no run fits"):
        with pytest.raises(ConfigError, match=told):
            tmbench.report(**wrong)


def test_a_result_shows_itself_as_text_without_outside_help(made: Make) -> None:
    folder = made("sgd", 7, 0.5)
    result = tmbench.Result.load(folder)
    assert result is not None
    html = replace(result, notes=["<script>&"], error="a<b")._repr_html_()
    assert "&lt;script&gt;&amp;" in html
    assert "<script" not in html
    result.notes = ["x"]
    html = result._repr_html_()
    assert re.search(r'<img alt="Training loss and test/accuracy [^"]+" .*src="data:image/svg\+xml;base64,\w', html)
    assert not re.search(r'(src|href)="(?!data:)', html)
    path = folder / "curves.csv"
    head, *rows = path.read_text().splitlines()
    older = [f"{int(epoch) - 1},{rest}" for epoch, _, rest in (row.partition(",") for row in rows)]  # counted from 0
    path.write_text("\n".join([head, *older]))
    assert result._repr_html_() == html
    for damaged in ("", "epoch,x\nz,1\n"):
        (folder / "curves.csv").write_text(damaged)
        assert result._repr_html_().endswith("</table>")


@pytest.mark.slow
def test_a_notebook_shows_results_and_keeps_its_own_pictures(here: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "import tmbench\nresult = tmbench.run('tc', 'sgd', epochs=1, batch_size=40)",
        "assert tmbench.run('tc', 'sgd', epochs=1, batch_size=40, progress=False) == result\nresult",
        "tmbench.sweep('tc', ['sgd', 'tmsgd'], epochs=1, batch_size=40, progress=False)",
        "tmbench.report(against='sgd')\ntmbench.curves().join(tmbench.runs(), on='run_id')",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]);",
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    done = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(here)}}).execute()
    shown = [[output.get("data", {}) for output in cell.outputs] for cell in done.cells]
    assert not any(shown[0])  # progress alone
    assert "data:image/svg+xml" in shown[1][-1]["text/html"]
    assert "tmsgd" in shown[2][-1]["text/html"]
    assert "test/accuracy" in shown[3][-1]["text/html"]
    assert "image/png" in shown[4][-1]


@pytest.mark.parametrize(
    ("host", "told"),
    [
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), "torch.autocast"),
        (torch.inference_mode, "torch.inference_mode"),
        (lambda: torch.device("meta"), r"torch.set_default_device\(meta\)"),
    ],
)
def test_what_a_host_has_set_in_torch_reaches_no_number(host: Any, told: str, tmp_path: Path) -> None:
    with host(), pytest.raises(ConfigError, match=f"^{told} is set in this program and would change the numbers"):
        tmbench.run("tc", "sgd", epochs=1, runs_dir=tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ConfigError, match=r"^torch.set_default_dtype\(torch.float64\) is set in this program"):
            tmbench.run("tc", "sgd", epochs=1, runs_dir=tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(ConfigError, match=r"^force: expected True or False, got 'no'"):
        tmbench.run("tc", "sgd", epochs=1, runs_dir=tmp_path, force="no")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
