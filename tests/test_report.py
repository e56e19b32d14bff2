"""`python -m tmbench.report` and `tmbench.compare`: what runs show, from folders and from W&B."""

import base64
import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Compose, Run
from made_runs import Make, maker
from rich.console import Console

from tmbench import compare
from tmbench.errors import ConfigError
from tmbench.report import answers, figures, formats
from tmbench.report.__main__ import main, parsed, runs_of
from tmbench.report.numbers import Report, place
from tmbench.report.words import Cell, Table

SGD, TMSGD = (0.80, 0.82, 0.81), (0.83, 0.86, 0.82)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def make(composed: Compose, runs: Path) -> Make:
    return maker(composed, runs)


@pytest.fixture
def pair(make: Make) -> None:
    for seed, (a, b) in enumerate(zip(SGD, TMSGD, strict=True)):
        make("sgd", seed, a, "epochs=4")
        make("tmsgd", seed, b, "epochs=4", "switch_epoch=2")


def told(runs: Path, *words: str) -> Report:
    settings, rest = parsed([f"runs_dir={runs}", *words])
    return answers.report(runs_of(settings, rest), settings)


def table(report: Report, start: str) -> Table:
    return next(t for t in report.tables if t.key.startswith(start))


def rows(of: Table) -> dict[str, dict[str, Any]]:
    """By the method's name: each column's plain value."""
    return {
        row[of.columns.index("method")].text: dict(zip(of.columns, map(formats._plain, row), strict=True))
        for row in of.rows
    }


@pytest.mark.usefixtures("pair")
def test_numbers_are_those_of_numpy_and_pairs_are_by_seed(runs: Path) -> None:
    report = told(runs)
    assert rows(table(report, "results"))["tmsgd"]["ours"] == pytest.approx(np.mean(TMSGD))
    d = np.subtract(TMSGD, SGD)
    (contest,) = report.contests
    assert contest.result.mean == pytest.approx(d.mean())
    assert contest.result.sd == pytest.approx(d.std(ddof=1))
    assert contest.result.p == 0.25
    assert contest.verdict == "undecided"
    for words in ("tmsgd is 2.67 points better than sgd on tc", "with 3 seeds an interval of", "seeds would tell"):
        assert words in contest.sentence


def test_lower_is_better_where_the_metric_says_so(make: Make, runs: Path) -> None:
    for seed in range(8):
        make("sgd", seed, 0.5 + seed / 100, headline="test/mse", higher_is_better=False)
        make("adam", seed, 0.3 + seed / 90, headline="test/mse", higher_is_better=False)
    report = told(runs)
    assert report.contests[0].verdict == "better"
    assert "adam is 0.196 better than sgd" in report.contests[0].sentence
    assert report.standings[0].names[int(np.argmin(report.standings[0].mean))] == "adam"


def test_equal_methods_are_equivalent_and_not_merely_undecided(make: Make, runs: Path) -> None:
    for seed in range(8):
        make("sgd", seed, 0.8 + seed / 100)
        make("adam", seed, 0.8 + seed / 100 + (-1) ** seed * 1e-4)
    (contest,) = told(runs).contests
    assert contest.verdict == "equivalent"
    assert "lies within 0.50 points: they are equivalent" in contest.sentence
    assert told(runs, "margin.accuracy=1e-5").contests[0].verdict == "undecided"


def test_diverged_and_failed_runs_are_counted_and_diverged_ones_cost(make: Make, runs: Path) -> None:
    for seed in range(4):
        make("sgd", seed, 0.8)
        make("adam", seed, 0.9 if seed else None, status="completed" if seed else "diverged")
    make("adam", 4, None, status="failed", error="RuntimeError: out of memory")
    make("adam", 5, None)
    broken = make("adam", 6, 0.9)
    (broken / "result.json").write_text("{")
    report = told(runs)
    row = rows(table(report, "results"))["adam"]
    assert {k: row[k] for k in ("n", "completed", "diverged", "failed", "unfinished")} == {
        "n": 4, "completed": 3, "diverged": 1, "failed": 2, "unfinished": 1,
    }  # fmt: skip
    assert row["ours"] == pytest.approx((0.2 + 3 * 0.9) / 4)  # 0.2 is what a predictor reaches that never looks
    assert "1 of adam's runs diverged and count as their baseline" in report.contests[0].sentence
    assert any("1 broken, 1 diverged, 1 failed, 1 stopped" in note for note in report.notes)


def test_profiles_never_mix(make: Make, runs: Path) -> None:
    for profile, score in (("tiny", 0.5), ("full", 0.9), ("subset", 0.7)):
        for optimizer in ("sgd", "adam"):
            make(optimizer, 0, score, profile=profile, data_digest=profile)
    report = told(runs)
    assert sorted(c.problem.profile for c in report.contests) == ["full", "subset", "tiny"]
    means = {t.title.split("; ")[-1].split()[0]: rows(t)["sgd"]["ours"] for t in report.tables if "results" in t.key}
    assert means == {"tiny": 0.5, "full": 0.9, "subset": 0.7}
    assert any("Mixed profiles" in note for note in report.notes)


@pytest.mark.usefixtures("pair")
def test_a_copied_run_is_no_further_evidence(runs: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", runs, tmp_path / "copies"], check=True)
    report = told(runs, str(runs), str(tmp_path / "copies"))
    assert len(report.runs.runs) == 12
    assert report.contests[0].result.n == 3
    assert any("6 runs repeat the method and seed of another" in note for note in report.notes)


def test_paper_stands_beside_ours_with_the_protocol_difference(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.9, "epochs=120", "lr=0.01", "batch_size=5", profile="full")
    make("tmsgd", 0, 0.91, "epochs=120", "lr=0.01", "batch_size=5", "switch_epoch=90", profile="full")
    found = rows(table(told(runs), "results"))
    assert found["sgd"]["paper"] == 90.6
    assert found["sgd"]["ours - paper"] == pytest.approx(-0.6)
    assert found["sgd"]["protocol difference"] == "none in Table 2"
    assert found["tmsgd"]["protocol difference"] == "switch 90 (paper 100)"


def test_paper_does_not_stand_beside_tiny_data(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.9)
    own = table(told(runs), "results")
    assert "paper" not in own.columns
    assert any("do not stand beside" in note for note in own.notes)


def test_unfair_circumstances_are_noted(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8)
    make("adam", 0, 0.8, "lr=0.1", hardware="1 x another CPU, 1 threads")
    make("adam", 1, 0.8, "lr=0.2", versions={"torch": "0.1"})
    notes = " ".join(told(runs).notes)
    for words in ("mixed hardware", "mixed versions", "unequal tuning budgets, in settings tried: adam 2, sgd 1",
                  "not all methods have the same seeds"):  # fmt: skip
        assert words in notes


def test_settings_tell_methods_apart_and_seeds_do_not(make: Make, runs: Path) -> None:
    for seed in range(2):
        for switch in (1, 2, 3):
            make("tmsgd", seed, 0.8 + switch / 100, "epochs=4", f"switch_epoch={switch}")
        make("sgd", seed, 0.8, "epochs=4", f"switch_epoch={seed + 1}")  # which sgd does not read
    report = told(runs)
    assert [m.label for m in sorted(report.runs.methods, key=place)] == [
        "sgd", "tmsgd switch_epoch=1", "tmsgd switch_epoch=2", "tmsgd switch_epoch=3",
    ]  # fmt: skip
    assert "switch-0-tc-tiny" in [name for name, _, _ in figures.figures(report)]


def test_several_tasks_have_ranks_profiles_and_improvement(make: Make, runs: Path) -> None:
    for i, task in enumerate(("tc", "ic", "seg")):
        for seed in range(2):
            for j, optimizer in enumerate(("sgd", "tmsgd", "adam")):
                make(optimizer, seed, 0.5 + 0.1 * (j if i else -j) + seed / 100, f"task={task}", "epochs=3")
    report = told(runs)
    (standing,) = report.standings
    assert dict(zip(standing.names, standing.mean, strict=True)) == pytest.approx(
        {"sgd": 7 / 3, "tmsgd": 2.0, "adam": 5 / 3}
    )
    assert standing.span[0] == (2.0, 3.0)  # of sgd, without tc or without another
    better = rows(table(report, "improvement"))
    assert better["adam"]["P"] == pytest.approx(2 / 3)
    drawn = {name: svg for name, _, svg in figures.figures(report)}
    assert {"ranks-tiny", "profiles-tiny"} <= drawn.keys()
    for svg in drawn.values():
        assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
    assert report.targets[0] == pytest.approx(0.505)


def test_time_to_target_is_the_first_epoch_that_reaches_it(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8, "epochs=6")
    make("adam", 0, 0.6, "epochs=6")
    found = rows(table(told(runs, "target=0.71"), "time"))
    assert (found["sgd"]["epochs"], found["sgd"]["steps"], found["sgd"]["train s"]) == (4, 40, 6.0)  # 0.8 (1 - 2^-4)
    assert found["adam"]["epochs"] == "never"


@pytest.mark.usefixtures("pair")
def test_figures_are_the_same_when_drawn_again(runs: Path) -> None:
    report = told(runs)
    assert list(figures.figures(report)) == list(figures.figures(report))


AWKWARD = Table("t", "50 % & more", ["method", "x_1", "note"], [
    [Cell("a|b_<i>$", "a|b_<i>$"), Cell("0.33", 1 / 3), Cell("-")],
])  # fmt: skip


def test_formats_say_the_same_and_escape_what_is_theirs() -> None:
    assert list(csv.reader(io.StringIO(formats.comma(AWKWARD))))[1] == ["a|b_<i>$", str(1 / 3), ""]
    assert r"a|b\_\textless{}i\textgreater{}\$ & 0.33 & - \\" in formats.latex(AWKWARD)
    assert r"\begin{tabular}{lrr}" in formats.latex(AWKWARD)
    assert r"| a\|b\_\<i>$ | 0.33 | - |" in formats.markdown(AWKWARD)
    out = Console(width=80, record=True, file=io.StringIO())
    formats.console(AWKWARD, out)
    assert "a|b_<i>$" in out.export_text()


@pytest.mark.usefixtures("pair")
def test_command_writes_all_forms_and_imports_no_torch(runs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tmbench.report.__main__ import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules); sys.exit(code)"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(runs), f"out={out}"], capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tmsgd is 2.67 points better than sgd" in done.stdout.replace("\n", " ")
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "report.json", "figures/curves-0-tc-tiny.svg", "tables/comparisons.csv",
            "tables/comparisons.tex"} <= names  # fmt: skip
    content = json.loads((out / "report.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert len(content["runs"]) == 6
    for link in ("figures/curves-0-tc-tiny.svg", "figures/ranks-tiny.svg"):
        assert f"]({link})" in (out / "report.md").read_text()


@pytest.mark.usefixtures("pair")
def test_words_choose_runs_by_folder_glob_id_and_filter(runs: Path) -> None:
    def count(*words: str) -> int:
        return len(told(runs, *words).runs.runs)

    one = next(runs.glob("tc-sgd-0-*"))
    assert count() == 6
    assert count(str(one)) == 1
    assert count(str(runs / "*-tmsgd-*")) == 3
    assert count(one.name[:12]) == 1
    assert count("optimizer=sgd", "seed=0,1") == 2
    assert count(str(runs), "status=completed") == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["level=2"], "level: expected a number between 0 and 1, got 2"),
        (["metric=first"], "metric: expected last or best"),
        (["plan=-1"], "plan: expected a difference > 0"),
        (["no-such-run"], "no-such-run: no run in"),
        (["optimiser=sgd"], "optimiser: expected status, profile or a setting"),
        (["seed=9"], "no runs to report on"),
        (["margin.accuracy=x"], "margin: expected numbers > 0"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_wrong_words_get_an_answer(
    words: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs_dir={runs}", f"out={tmp_path / 'out'}", *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("pair")
def test_broken_files_cost_a_note_and_their_run_alone(runs: Path) -> None:
    first, second, third = sorted(runs.glob("tc-sgd-*"))
    (first / "curves.csv").write_text("epoch,step,lr,seconds,train/loss,test/accuracy\n0,1,0.1,what,1,0.5\n")
    (second / "config.yaml").write_text("task: [")
    (third / "config.yaml").write_text("task: {name: tc}\nseed: 1\n")
    report = told(runs)
    notes = " ".join(report.notes)
    assert f"{first}/curves.csv: left out" in notes
    assert f"{second}: left out" in notes
    assert f"{third}: left out, its config.yaml has no optimizer" in notes
    assert report.contests[0].result.n == 1


def test_plan_says_what_is_attainable_and_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan=0.5", "sd=1", "comparisons=28"]) == 0
    printed = capsys.readouterr().out
    assert "34" in printed
    assert any(line.split("│")[1:4] and "11" in line and "yes" in line for line in printed.splitlines())
    assert main(["plan=0.5", "sd=0"]) == 1


@pytest.mark.usefixtures("pair")
def test_plan_takes_the_spread_from_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan=0.01", f"runs_dir={runs}"]) == 0
    assert "tmsgd - sgd" in capsys.readouterr().out


# ---- two runs


def test_compare_names_what_differs_and_from_which_epoch(
    make: Make, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make("tmsgd", 0, 0.8, "epochs=4", "switch_epoch=2")
    b = make("tmsgd", 0, 0.8, "epochs=4", "switch_epoch=3", hardware="1 x another CPU, 1 threads")
    text = (b / "curves.csv").read_text().splitlines()
    (b / "curves.csv").write_text("\n".join([*text[:3], text[3].replace("0.7", "0.71"), *text[4:]]) + "\n")
    assert compare.main([str(a), b.name, "--runs-dir", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "switch_epoch" in printed
    assert "1 x another CPU" in printed
    assert "differ from epoch 3 on" in printed
    assert "batch_size" not in printed
    assert compare.main([str(a), str(a)]) == 0
    assert "the same bit by bit" in capsys.readouterr().out
    assert compare.main([str(a), "tc-", "--runs-dir", str(runs)]) == 1
    assert "expected one run" in capsys.readouterr().err


def test_predictions_of_real_runs_stand_in_page_and_markdown(do: Run, tmp_path: Path) -> None:
    """Each method's, of the seed that both have, and of no other."""
    for words in (["optimizer=sgd"], ["optimizer=sgdm"], ["optimizer=sgd", "seed=1"]):
        do("task=seg", "epochs=1", *words)
    out = tmp_path / "report"
    assert main([str(tmp_path), f"out={out}", "predictions=true"]) == 0
    (picture,) = (out / "figures").glob("seg-*.png")
    caption = "Predictions on seg, tiny data, a run of seed=0 of each method"
    assert f"![{caption}](figures/{picture.name})" in (out / "report.md").read_text()
    html = (out / "report.html").read_text()
    assert caption in html
    assert base64.b64encode(picture.read_bytes()).decode() in html


# ---- W&B

ANSWERS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "wandb_answers.json").read_text())


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """W&B's own client against a server with what offline runs had sent it, in its schema; the queries that it got."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            query, variables = body["query"], body.get("variables") or {}
            asked.append(query)
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "email": "", "teams": {"edges": []}}
            data: dict[str, Any] = {"viewer": viewer}
            if "query Runs(" in query and variables["project"] == "tmbench":
                edges = [{"node": own["node"], "cursor": str(i)} for i, own in enumerate(ANSWERS)]
                page = {"endCursor": None, "hasNextPage": False}
                data["project"] = {"internalId": "1", "runCount": len(edges), "readOnly": False,
                                   "runs": {"edges": edges, "pageInfo": page}}  # fmt: skip
            elif "RunFullHistory" in query:
                own = next(own for own in ANSWERS if own["node"]["name"] == variables["name"])
                data["project"] = {"run": {"history": own["history"]}}
            text = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def test_runs_are_read_back_from_wandb(wandb_server: list[str]) -> None:
    settings, rest = parsed(["source=wandb", "project=tmbench", "seed=0,7"])
    runs = runs_of(settings, rest)
    statuses = dict(runs.runs.select("run_id", "status").rows())
    assert sorted(statuses.values()) == ["completed", "completed", "failed"]
    assert statuses["tc-sgd-7-0123456789ab"] == "failed"
    assert any("me/tmbench/other: left out, not a run of tmbench" in n or "other: left out" in n for n in runs.notes)
    scores = dict(runs.runs.filter(runs.runs["status"] == "completed").select("optimizer", "score").rows())
    assert scores.keys() == {"sgd", "tmsgd"}
    assert scores["sgd"] == json.loads(ANSWERS[0]["node"]["summaryMetrics"])["test/accuracy"]
    first = runs.curves.filter(runs.curves["run"] == 0)
    assert first["epoch"].to_list() == [1, 2]
    assert first["metric"][-1] == scores[runs.runs["optimizer"][0]]


def test_wandb_project_that_is_not_there_is_named(wandb_server: list[str]) -> None:
    settings, _ = parsed(["source=wandb", "project=nothing"])
    with pytest.raises(ConfigError, match="source=wandb: nothing: "):
        runs_of(settings, [])
    with pytest.raises(ConfigError, match="expected filters"):
        runs_of(settings, ["runs/"])


@pytest.mark.usefixtures("pair")
def test_report_goes_to_wandb_as_a_run_with_tables_figures_and_the_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_wandb import read_back, records

    out = tmp_path / "out"
    assert main([f"runs_dir={runs}", f"out={out}", "logger=wandb", "mode=offline"]) == 0
    assert "to send it: wandb sync" in capsys.readouterr().out.replace("\n", " ")
    told_ = read_back(out)
    assert told_["about"].job_type == "report"
    keys = {key for row in told_["history"] for key in row}
    assert {"tables/comparisons", "figures/curves-0-tc-tiny"} <= {"/".join(key.split("/")[:2]) for key in keys}
    file = next(out.glob("wandb/*/*.wandb"))
    artifacts = [record.artifact for record in records(file) if record.WhichOneof("record_type") == "artifact"]
    assert any(artifact.type == "report" for artifact in artifacts)
