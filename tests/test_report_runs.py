"""Which runs a report reads, from folders and from W&B, and which of them it takes for one problem or method."""

import copy
import dataclasses
import functools
import json
import operator
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose
from made_runs import Make, rows, table

from tmbench.config.identity import SCHEMA, digest, identity
from tmbench.config.settle import flat
from tmbench.errors import ConfigError
from tmbench.report import figures, page
from tmbench.report.__main__ import main, runs_of
from tmbench.report.read import opened, read, records

ANSWERS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "wandb_answers.json").read_text())


@pytest.fixture
def make(composed: Compose, tmp_path: Path) -> Make:
    return Make(composed, tmp_path / "runs")


@pytest.fixture
def pair(make: Make) -> None:
    make.seeds("sgd", (0.80, 0.82, 0.81))
    make.seeds("tmsgd", (0.83, 0.86, 0.82))


@pytest.mark.usefixtures("pair")
def test_words_choose_runs_by_folder_glob_id_and_filter(make: Make) -> None:
    def count(*words: str) -> int:
        return len(runs_of(*main.parse([f"runs_dir={make.folder}", *words])).runs)

    one = next(make.folder.glob("tc-sgd-0-*"))
    assert count() == 6
    assert count(str(one)) == 1
    assert count(str(make.folder / "*-tmsgd-*")) == 3
    assert count(one.name[:12]) == 1
    assert count("optimizer=sgd", "seed=0,1") == 2
    assert count(str(make.folder), "status=completed") == 6


@pytest.mark.usefixtures("pair")
def test_a_copied_run_is_no_further_evidence(make: Make, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", make.folder, tmp_path / "copies"], check=True)
    report = make.report(str(make.folder), str(tmp_path / "copies"))
    assert len(report.runs.runs) == 12
    assert report.comparisons[0].difference.n == 3
    assert any("6 runs repeat the method and seed of another" in note for note in report.notes)


@pytest.mark.usefixtures("pair")
def test_broken_files_cost_a_note_and_their_run_alone(make: Make) -> None:
    first, second, third = sorted(make.folder.glob("tc-sgd-*"))
    (first / "curves.csv").write_text("epoch,step,lr,seconds,train/loss,test/accuracy\n0,1,0.1,what,1,0.5\n")
    (second / "config.yaml").write_text("task: [")
    (third / "config.yaml").write_text("task: {name: tc}\nseed: 1\n")
    report = make.report()
    notes = " ".join(report.notes)
    assert f"{first}/curves.csv: left out" in notes
    assert f"{second}: left out" in notes
    assert f"{third}: left out, {third}/config.yaml: optimizer: field required" in notes
    assert report.comparisons[0].difference.n == 1
    assert report.runs.curves["run"].n_unique() == 3


def test_an_unfinished_run_joins_the_finished_ones_of_its_settings(make: Make) -> None:
    make.seeds("sgd", [0.8] * 3, "task=ic", data_digest="i" * 16)
    make("sgd", 0, 0.8)
    make("sgd", 1, None)
    report = make.report()
    assert len(report.runs.problems) == 2
    assert rows(table(report, "results-1-tc"))["sgd"]["unfinished"] == 1


# ---- what belongs to the problem, and what to the method


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The configuration with another value at a dotted key."""
    other = copy.deepcopy(config)
    *folders, name = key.split(".")
    inner = functools.reduce(operator.getitem, folders, other)
    old = inner[name]
    inner[name] = not old if isinstance(old, bool) else old + 1 if isinstance(old, (int, float)) else f"{old}x"
    return other


@pytest.mark.parametrize("optimizer", ["tmsgd", "adam"])
def test_each_setting_that_makes_another_run_makes_another_problem_or_method(optimizer: str, make: Make) -> None:
    """But for seed and replicas: no two runs that differ in what can change the numbers repeat each other."""
    make(optimizer, 0, 0.8)
    ((run,), _) = records(opened([], make.folder))
    configs = [run.config, *(changed(run.config, key) for key in flat(run.config) if key not in ("seed", "replicas"))]
    others = list({digest(identity(config, "")): config for config in configs}.values())[1:]
    assert len(others) > 20
    results = [
        dataclasses.replace(run.result, **fields)
        for fields in (
            {"data_digest": "e" * 16}, {"profile": "full"}, {"schema_version": 0}, {"metric": "loss"}, {"split": "x"},
        )
    ]  # fmt: skip
    runs = [run, *(dataclasses.replace(run, config=config) for config in others)]
    runs += [dataclasses.replace(run, result=result) for result in results]
    tables = read(runs, "last", [])
    assert tables.runs["counts"].all()
    assert len(tables.methods) == len(runs)


def test_settings_distinguish_methods_and_seeds_do_not(make: Make) -> None:
    for seed in range(2):
        for switch in (1, 2, 3):
            make("tmsgd", seed, 0.8 + switch / 100, "epochs=4", f"switch_epoch={switch}")
        make("sgd", seed, 0.8, "epochs=4", f"switch_epoch={seed + 1}")  # which sgd does not read
    assert [m.label for m in sorted(make.report().runs.methods, key=lambda m: m.place)] == [
        "sgd", "tmsgd switch_epoch=1", "tmsgd switch_epoch=2", "tmsgd switch_epoch=3",
    ]  # fmt: skip


def test_a_method_is_labelled_by_the_rate_that_its_optimizer_reads(make: Make) -> None:
    make("sgd", 0, 0.8, "lr=0.02")
    make("adam", 0, 0.8, "lr=0.02", "optimizer.lr=0.0005")
    assert {m.label for m in make.report().runs.methods} == {"sgd lr=0.02", "adam lr=0.0005"}


def test_validation_shares_are_problems_of_their_own_and_their_accuracy_is_an_accuracy(make: Make) -> None:
    for share in (0.1, 0.2):
        words, first = f"validation={share}", share / 10
        make.seeds("sgd", [0.85 + first] * 6, words, split="validation")
        make.seeds("adam", [0.8501 + seed / 1000 + first for seed in range(6)], words, split="validation")
    report = make.report()
    assert [p.label for p in report.runs.problems] == ["tc validation=0.1", "tc validation=0.2"]
    assert {(p["split"], p["metric"]) for p in page.content(report)["problems"]} == {("validation", "accuracy")}
    assert not any("repeat" in note for note in report.notes)
    for comparison, sentence in zip(report.comparisons, report.sentences, strict=True):
        assert comparison.difference.n == 6
        assert comparison.difference.margin == 0.005
        assert "adam is 0.26 points better than sgd on tc validation=" in sentence
        assert "(validation accuracy, tiny data)" in sentence
    results = table(report, "results-0")
    assert "validation accuracy (%)" in results.title
    assert next(cell.text for cell in results.rows[0] if "±" in cell.text) == "86.00 ± 0.00"
    assert [ranking.kind for ranking in report.rankings] == ["tiny validation"]
    problem = report.runs.problems[0]
    figure = figures.learning(report, problem, report.runs.methods_of(problem))
    assert figure.axes[0].get_ylabel() == "validation accuracy (%)"


def test_results_of_another_version_or_split_are_apart_and_noted(make: Make) -> None:
    for optimizer in ("sgd", "adam"):
        make(optimizer, 0, 0.8)
        make(optimizer, 0, 0.7, schema_version=0)
        make(optimizer, 0, 0.8, "validation=0.2", split="validation")
    report = make.report()
    assert report.rankings == []
    assert {p.kind for p in report.runs.problems} == {"tiny schema 0", "tiny", "tiny validation"}
    settings = {("None", 0), ("None", SCHEMA), ("0.2", SCHEMA)}
    labels = {f"tc validation={share} schema={schema}" for share, schema in settings}
    assert {p.label for p in report.runs.problems} == labels
    assert report.runs.runs["counts"].all()
    assert any(f"(schema 0 and {SCHEMA})" in note for note in report.notes)


def test_methods_that_no_word_distinguishes_have_names_of_their_own(make: Make) -> None:
    make("switch", 0, 0.8, "lr=0.1")
    make("switch", 0, 0.8, "lr=0.2", "optimizer.second.lr=0.1")
    make("switch", 0, 0.8, "lr=0.2", "optimizer.second.lr=0.3")
    assert len({m.name for m in make.report().runs.methods}) == 3


def test_labels_show_rates_and_switches_that_differ(make: Make) -> None:
    make("sgd", 0, 0.8, "lr=0.1", "epochs=4")
    make("tmsgd", 0, 0.8, "lr=0.2", "epochs=4", "switch_epoch=1")
    make("tmnag", 0, 0.8, "lr=0.2", "epochs=4", "switch_epoch=2")
    methods = make.report().runs.methods
    assert [m.label for m in sorted(methods, key=lambda m: m.place)] == [
        "sgd lr=0.1", "tmsgd lr=0.2 switch_epoch=1", "tmnag lr=0.2 switch_epoch=2",
    ]  # fmt: skip
    assert [m.name for m in methods] == [m.optimizer for m in methods]
    assert "4 epochs, lr 0.1" in table(make.report("optimizer=sgd"), "results").title


def test_methods_that_differ_in_a_number_stand_in_its_order(make: Make) -> None:
    for switch in ("100", "9", "20", "0", "never"):
        make("tmsgd", 0, 0.8, "epochs=120", f"switch_epoch={switch}")
    for rate in ("10", "9.5", "1e-3"):
        make("adam", 0, 0.8, "epochs=120", f"lr={rate}")
    labels = {
        name: [
            m.label.split("=")[-1] for m in sorted(make.report(f"optimizer={name}").runs.methods, key=lambda m: m.place)
        ]
        for name in ("tmsgd", "adam")
    }
    assert labels == {"tmsgd": ["0", "9", "20", "100", "never"], "adam": ["0.001", "9.5", "10.0"]}


def test_a_method_on_several_problems_is_one_method(make: Make) -> None:
    for task in ("tc", "ic"):
        make.seeds("sgd", [0.8, 0.8], f"task={task}")
        make.seeds("adam", [0.8, 0.8], f"task={task}", "lr=0.5")
    report = make.report()
    assert report.runs.content == "8 runs of 2 methods on 2 problems"
    assert "8 runs of 2 methods on 2 problems" in page.pages(report, [], {})


# ---- W&B


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's own client asks a server here, which has what offline runs had sent, in W&B's schema."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            query, variables = body["query"], body.get("variables") or {}
            viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "email": "", "teams": {"edges": []}}
            data: dict[str, Any] = {"viewer": viewer}
            if "query Runs(" in query and variables["project"] == "tmbench":
                edges = [{"node": answer["node"], "cursor": str(i)} for i, answer in enumerate(ANSWERS)]
                page = {"endCursor": None, "hasNextPage": False}
                data["project"] = {"internalId": "1", "runCount": len(edges), "readOnly": False,
                                   "runs": {"edges": edges, "pageInfo": page}}  # fmt: skip
            elif "RunFullHistory" in query:
                answer = next(answer for answer in ANSWERS if answer["node"]["name"] == variables["name"])
                data["project"] = {"run": {"history": answer["history"]}}
            text = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("wandb_server")
def test_runs_are_read_back_from_wandb() -> None:
    """They were sent when a result had one field for split and metric."""
    runs = runs_of(*main.parse(["source=wandb", "project=tmbench", "seed=0,7"]))
    statuses = dict(runs.runs.select("run_id", "status").rows())
    assert sorted(statuses.values()) == ["completed", "completed", "failed"]
    assert statuses["tc-sgd-7-0123456789ab"] == "failed"
    assert any("other: left out, not a run of tmbench" in note for note in runs.notes)
    assert {(problem.split, problem.metric) for problem in runs.problems} == {("test", "accuracy")}
    scores = dict(runs.runs.filter(runs.runs["status"] == "completed").select("optimizer", "score").rows())
    assert scores.keys() == {"sgd", "tmsgd"}
    assert scores["sgd"] == json.loads(ANSWERS[0]["node"]["summaryMetrics"])["test/accuracy"]
    first = runs.curves.filter(runs.curves["run"] == 0)
    assert first["epoch"].to_list() == [1, 2]  # as sent by schema 3, which counted from 0
    assert first["metric"][-1] == scores[runs.runs["optimizer"][0]]


@pytest.mark.usefixtures("wandb_server")
def test_wandb_project_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="source=wandb: nothing: "):
        runs_of(*main.parse(["source=wandb", "project=nothing"]))
    with pytest.raises(ConfigError, match="expected filters"):
        runs_of(*main.parse(["source=wandb", "runs/"]))
