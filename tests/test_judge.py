"""`tmbench judge`: rounds of paired seeds, its verdicts, its exit status, and what makes a verdict doubtful."""

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Compose, Run
from forked import Forked
from helpers import assert_mean_of_examples, results, tmbench
from made_runs import Make

from tmbench.api import sweep
from tmbench.errors import DataError
from tmbench.files import write_sealed
from tmbench.judge.__main__ import STATUS, main
from tmbench.judge.alarms import weak_baseline
from tmbench.judge.design import Design
from tmbench.judge.evidence import pairs_of
from tmbench.judge.ledger import Entry
from tmbench.judge.plan import plan_of
from tmbench.judge.sequential import looks, verdicts
from tmbench.result import Result, examples_of, save_examples
from tmbench.sweeps import sweep as sweep_module
from tmbench.tasks.tc.task import TC

FOUND = ("better", "worse")
Plant = Callable[..., None]
NOISE = [0.003, -0.002, 0.001, -0.003, 0.002, -0.001, 0.0025, -0.0015, 0.0005, -0.0025]


@pytest.fixture
def plant(composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """plant(sgd=[scores], adam=[...]): runs of tc with these scores, as if they were done; None: it diverged."""
    monkeypatch.chdir(tmp_path)

    def plant(*words: str, **scores: list[float | None]) -> None:
        against, *others = scores
        values, rest = main.parse([f"against={against}", "task=tc", f"optimizer={','.join(others)}", *words])
        make, plan = Make(composed, tmp_path / "runs"), plan_of(values, rest)
        for contender in plan.contenders:
            for seed, score in enumerate(scores[contender.name]):
                folder = contender.run_folder(seed)
                status = {"status": "diverged"} if score is None else {}
                make(contender.name, seed, score, *words, name=folder.name, data_digest=contender.data_digest, **status)

    return plant


def test_each_method_gets_its_verdict_which_is_told_at_once_the_second_time(plant: Plant, tmp_path: Path) -> None:
    base = [0.8 + 2 * noise for noise in NOISE]
    plant("epochs=4", sgd=base, adam=[score + 0.02 + noise for score, noise in zip(base, NOISE, strict=True)],
          rmsprop=[score + 8 * noise for score, noise in zip(base, NOISE, strict=True)])  # fmt: skip
    words = ["task=tc", "optimizer=adam,rmsprop", "epochs=4", "max_seeds=10", "json=true"]
    done = tmbench("judge", *words)
    content = json.loads(done.stdout)
    expected = {"adam": "better", "rmsprop": "undecided"}
    assert {name: method["verdict"] for name, method in content["methods"].items()} == expected
    assert (done.returncode, content["verdict"], content["schema_version"]) == (6, "mixed", 1)
    adam = content["methods"]["adam"]
    assert adam["sentence"].startswith("adam is 2.01 points better than sgd on tc")
    assert adam["interval"][0] < 0.02 < adam["interval"][1]
    assert content["methods"]["rmsprop"]["would_take"]["seeds"] > 10
    assert "About " in content["methods"]["rmsprop"]["sentence"]
    assert content["spent"]["runs"] == sum(method["pairs"] for method in content["methods"].values()) + 10
    page = tmp_path / content["page"]
    html = page.read_text()
    assert html.index("adam is 2.01 points") < html.index("figure-forest") < html.index("table-verdicts")
    assert tmbench("judge", "table", cwd=tmp_path).returncode == 0
    assert r"\uparrow" in (tmp_path / "judge" / "table.tex").read_text()
    files = {path.name for path in page.parent.rglob("*") if path.is_file()}
    assert {"forest.png", "forest.pdf", "running-adam.pdf", "verdicts.tex", "verdicts.csv", "result.json"} <= files
    code = (
        "import sys, time; from tmbench.judge.__main__ import main; code = main(); "
        "slow = {'torch', 'pytorch_lightning', 'scipy', 'polars', 'matplotlib'} & set(sys.modules); "
        "print(time.process_time(), *slow, file=sys.stderr); sys.exit(code)"
    )
    again = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (6, done.stdout)
    seconds, *slow = again.stderr.split()
    assert slow == []
    assert float(seconds) < 3  # 0.9 on a quiet machine


@pytest.mark.parametrize(
    ("gap", "noise", "verdict", "status"),
    [(-0.02, 0.5, "worse", 3), (0.0, 0.5, "equivalent", 4), (0.0, 6.0, "undecided", 5)],
)
def test_the_exit_status_is_the_verdict(
    plant: Plant, gap: float, noise: float, verdict: str, status: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tmbench.judge.page.write_page", lambda *_: None)  # drawing is most of the time
    monkeypatch.setenv("COLUMNS", "60")
    plant("epochs=4", sgd=[0.8 + 2 * each for each in NOISE], adam=[0.8 + (2 + noise) * n + gap for n in NOISE])
    for folder in Path("runs").glob("tc-*"):  # of a metric that is not the headline, as ctr has them
        save_examples(folder, "test/loss", False, [0.4, 0.6] if "adam" in folder.name else [0.5, 0.8])
    assert main(["task=tc", "optimizer=adam", "epochs=4", "max_seeds=10"]) == status
    head, *lines = capsys.readouterr().out.splitlines()
    heads = {"equivalent": "adam and sgd are equivalent", "undecided": "adam against sgd: undecided"}
    assert head == heads.get(verdict, f"adam is {verdict} than sgd")
    assert max(map(len, lines)) <= 60
    told = " ".join(" ".join(lines).split())
    assert (
        "adam's difference in loss is +0.15 to +0.15 on these 2 test examples, which the verdict, by accuracy" in told
    )
    assert {"seeds", "device", "noise", "page"} <= {line.split(" ")[0] for line in lines}


@pytest.mark.slow
def test_an_interrupted_judgement_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "judge",
        "task=tc",
        "optimizer=adam",
        "epochs=1",
        "batch_size=80",
        "max_seeds=4",
        "alpha=0.5",
        "margin=0.3",
    ]
    do_job, count = sweep_module.do_job, iter(range(100))

    def interrupted(*order: Any) -> Any:
        if next(count) == 3:
            raise KeyboardInterrupt
        return do_job(*order)

    monkeypatch.setattr(sweep_module, "do_job", interrupted)
    stopped = tmbench(*words, cwd=tmp_path)
    assert stopped.returncode == 130
    assert stopped.stderr.endswith(
        "interrupted: 1 of at most 4 seeds are done, and each whole epoch of the others is saved; the same command "
        "continues\n"
    )
    assert len(before := results(tmp_path / "runs")) == 3
    done = tmbench(*words, cwd=tmp_path)
    assert done.returncode in STATUS.values()
    after = results(tmp_path / "runs")
    assert len(after) > 3
    assert all(after[name][0].started == result.started for name, (result, _) in before.items())
    assert "test examples, which the verdict is about, and" in " ".join(done.stdout.split())
    count = iter([3])  # no run may be done
    assert tmbench(*words, cwd=tmp_path).stdout == done.stdout


def test_the_table_has_all_judgements_with_the_best_in_bold_and_a_mark_for_each_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries: list[Entry] = []

    def ended(
        name: str, task: str, metric: str, methods: dict[str, str], scores: dict[str, list[float | None]]
    ) -> None:
        entries.append(Entry(name, "q", "", task, task, list(methods), "sgd", 0.05, True, [0, 2]))
        runs = [{"method": m, "seed": i, "score": s} for m, of in scores.items() for i, s in enumerate(of)]
        (folder := tmp_path / ".judge" / name).mkdir(parents=True)
        write_sealed(folder / "result.json", {
            "name": name, "task": task, "profile": "full", "split": "test", "metric": metric, "epochs": 4,
            "higher_is_better": metric == "accuracy", "against": "sgd", "runs": runs,
            "methods": {m: {"verdict": v} for m, v in methods.items()},
        })  # fmt: skip

    ended("a", "tc", "accuracy", {"adam": "better", "lion": "worse"},
          {"sgd": [0.8, 0.82], "adam": [0.9, 0.92], "lion": [0.95, None]})  # fmt: skip
    ended("b", "fkpd", "mse", {"adam": "undecided"}, {"sgd": [0.1, 0.2], "adam": [0.2, 0.3]})
    ended("c", "fkpd", "mse", {"adam": "equivalent"}, {"sgd": [0.1, 0.2], "adam": [0.15, 0.2]})
    write_sealed(tmp_path / ".judge" / "ledger.json", {"judgements": [asdict(entry) for entry in entries]})
    out = tmp_path / "out"
    assert main(["table", f"runs_dir={tmp_path}", f"out={out}"]) == 0
    assert "adam on fkpd was judged more than once; this is c." in " ".join(capsys.readouterr().out.split())
    head, *rows = re.findall(r"^(.*) \\\\$", (out / "table.tex").read_text(), re.MULTILINE)
    assert head == "method & tc, accuracy & fkpd, mse"
    assert rows == [
        r"sgd & 81.00 $\pm$ 1.41 & \textbf{0.150 $\pm$ 0.071}",
        r"adam & \textbf{91.00 $\pm$ 1.41 $\uparrow$} & 0.175 $\pm$ 0.035 $\approx$",
        r"lion & 95.00, 1 diverged $\downarrow$ & -",
    ]
    with (out / "table.csv").open() as file:
        found = {(row["task"], row["method"]): row for row in csv.DictReader(file)}
    lion = found["tc", "lion"]
    assert [lion[key] for key in ("verdict", "completed", "diverged", "best mean")] == ["worse", "1", "1", "no"]
    assert float(found["fkpd", "adam"]["mean"]) == pytest.approx(0.175)
    assert main(["table", f"runs_dir={tmp_path / 'none'}"]) == 1
    assert "runs_dir: expected judgements that have ended under" in capsys.readouterr().err


def test_a_round_fills_whole_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmbench.judge.page.write_page", lambda *_: None)
    stacks, do_job = list[int](), sweep_module.do_job

    def counted(folder: Path, order: Any) -> Any:
        stacks.append(1 + len(order.others))
        return do_job(folder, order)

    monkeypatch.setattr(sweep_module, "do_job", counted)
    words = ["task=tc", "optimizer=tmsgd", "epochs=1", "batch_size=80", "alpha=0.4", "max_seeds=4", "margin=0.001"]
    done = tmbench("judge", *words, "replicas=4", "json=true", cwd=tmp_path)
    assert done.returncode in STATUS.values(), done.stderr
    assert json.loads(done.stdout)["design"]["least_seeds"] == 3
    assert stacks == [4, 4]
    assert {result.replicas for result, _ in results(tmp_path / "runs").values()} == {4}


def test_replicas_auto_is_the_fastest_for_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tmbench.training.capacity.seconds_a_step", lambda plans: 10.0 - plans[0].cfg.replicas / 2)
    plan = plan_of(*main.parse(["task=tc", "optimizer=tmsgd,muon", "replicas=auto"]))  # 10 of 34 seeds
    found = {each.name: (each.cfg["replicas"], each.words[-1], each.raw["seed"]) for each in plan.contenders}
    assert found == {
        "sgd": (8, "replicas=8", 0), "tmsgd": (8, "replicas=8", 0), "muon": (1, "replicas=1", 0)
    }  # fmt: skip
    code = "import sys; from tmbench.judge import design, plan; assert not {'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # what a known judgement needs of it


def test_a_run_that_failed_is_told_and_in_no_pair(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tmbench.judge.page.write_page", lambda *_: None)
    plant("epochs=4", sgd=[0.8 + 2 * noise for noise in NOISE], adam=[0.83 + 3 * noise for noise in NOISE])
    words = ["task=tc", "optimizer=adam", "epochs=4", "max_seeds=10", "--json"]

    def put_in_the_way(seed: int) -> None:
        (folder,) = Path("runs").glob(f"tc-adam-{seed}-*")
        shutil.rmtree(folder)
        folder.write_text("in the way")

    put_in_the_way(2)
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(run["method"], run["seed"]) for run in content["failed"]] == [("adam", 2)]
    assert 2 not in content["methods"]["adam"]["seeds"]
    (alarm,) = (alarm["text"] for alarm in content["alarms"] if alarm["kind"] == "failed")
    assert alarm.startswith("adam: no pair with seed 2, since the run failed (")
    put_in_the_way(4)
    put_in_the_way(5)
    assert main(words) == 1
    assert "adam: its last 2 runs failed: " in capsys.readouterr().err


def test_alarms_tell_why_a_verdict_may_be_doubted(
    plant: Plant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tmbench.judge.page.write_page", lambda *_: None)
    plant("epochs=4", sgd=[0.8 + 2 * noise for noise in NOISE], adam=[0.83 + 3 * noise for noise in NOISE])
    for curve in Path("runs").glob("tc-adam-*/curves.csv"):  # ahead at the end alone
        head, *rows, last = curve.read_text().splitlines()
        curve.write_text("\n".join([head, *(f"{row.rpartition(',')[0]},0.1" for row in rows), last]) + "\n")
    of_study = {"space": {"lr": {"low": 0.02, "high": 0.5, "log": True}}, "used": {"trials": 20}}
    Path("runs/.tune/mine").mkdir(parents=True)
    study = {"name": "mine", "task": "tc", "optimizers": {"adam": of_study}}
    Path("runs/.tune/mine/result.json").write_text(json.dumps(study))
    words = ["task=tc", "optimizer=adam", "epochs=4", "max_seeds=10", "--json"]
    assert main([*words, "name=first"]) == 0
    first = json.loads(capsys.readouterr().out)
    alarms = {alarm["kind"]: alarm["text"] for alarm in first["alarms"]}
    assert alarms.keys() == {"still falling", "crossing", "edge", "budgets"}
    assert alarms["edge"].startswith("adam: lr=0.02 is at the edge of what was tuned, 0.02 to 0.5 (study mine)")
    assert alarms["budgets"].endswith("sgd 0 trials, adam 20 trials")
    assert first["ledger"] == {"earlier": 0, "false_at_most": 0.1, "on_the_same_seeds": []}
    shutil.rmtree("runs/.judge/first")
    assert main([*words, "margin=0.01"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["ledger"] == {"earlier": 1, "false_at_most": 0.2, "on_the_same_seeds": ["first"]}
    assert {"ledger", "same seeds"} <= {alarm["kind"] for alarm in second["alarms"]}
    ledger = Path("runs/.judge/ledger.json")
    ledger.write_text(ledger.read_text().replace("better", "worse"))
    assert main([*words, "margin=0.02"]) == 1
    assert "ledger.json: damaged" in capsys.readouterr().err


def test_a_baseline_far_below_what_is_published_is_an_alarm(composed: Compose, tmp_path: Path) -> None:
    make = Make(composed, tmp_path / "runs")
    for seed, score in enumerate((0.5, 0.52)):
        make("sgd", seed, score, "task=tc", profile="full")
        make("tmsgd", seed, score + 0.1, "task=tc", profile="full")
    (alarm,) = weak_baseline(make.report("against=sgd"))
    assert alarm[1].startswith("sgd reaches 51 %, far from the ")
    assert weak_baseline(make.report("against=tmsgd", "target=0.5")) != alarm


def of_score(score: float | None, seed: int, baseline: float | None, higher: bool = True) -> Result:
    known = {} if baseline is None else {"test/accuracy": baseline}
    return Result.from_dict({
        "run_id": "r", "status": "completed" if score is not None else "diverged", "task": "tc", "optimizer": "sgd",
        "seed": seed, "profile": "tiny", "protocol": "reconciled", "split": "test", "metric": "accuracy",
        "higher_is_better": higher, "metrics": {"last": {} if score is None else {"test/accuracy": score}, "best": {}},
        "seconds": 1.0, "epochs": {"asked": 1, "trained": 1, "from_trunk": 0}, "steps": 1, "examples_per_second": 1.0,
        "peak_memory_bytes": 0, "parameters": 1, "switch": {"requested": None, "effective": None, "step": None},
        "versions": {}, "hardware": "", "git_commit": None, "data_digest": "", "command": "", "started": "",
        "baseline": known, "schema_version": 4,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("method", "against", "baseline", "higher", "expected"),
    [
        ([0.9, 0.8], [0.8, 0.9], None, True, [0.1, -0.1]),
        ([0.9, 0.8], [0.8, 0.9], None, False, [-0.1, 0.1]),
        ([0.9, None, 0.9], [0.8, 0.7, 0.05], 0.1, True, [0.1, -0.6, 0.85]),  # later, a worse run changes nothing
        ([0.9, None, None], [0.8, 0.7, None], None, True, [0.1, -math.inf, 0.0]),
        ([None], [0.8], 2.0, False, [-1.2]),
        ([np.float32(0.7)], [0.7], None, True, [0.0]),  # rounded once
    ],
)
def test_a_diverged_run_counts_as_the_worst_so_far(
    method: Any, against: Any, baseline: float | None, higher: bool, expected: list[float]
) -> None:
    two = [{s: of_score(v and float(v), s, baseline, higher) for s, v in enumerate(each)} for each in (method, against)]
    assert [pair.difference for pair in pairs_of(*two)] == pytest.approx(expected)


def test_a_metric_without_a_direction_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TC, "higher_is_better", None)
    done = tmbench("judge", "task=tc", "optimizer=adam", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "tmbench.tasks.tc.task.TC.higher_is_better: expected True or False, got None; without"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["against=sgdd"], "against: expected an optimizer, got sgdd; did you mean sgd?"),
        (["optimizer=adam,adam"], "optimizer: expected each method once, got adam twice"),
        (["optimizer=sgd"], "optimizer: expected methods other than the baseline, got sgd"),
        (["optimizer=addam"], "optimizer=addam: there is no such choice; did you mean adam"),
        (["margin=much"], "margin: expected a number > 0, or null, got 'much'"),
        (
            ["margin=0.5", "max_seeds=5"],
            "max_seeds: expected at least 6, since fewer pairs can never say better or worse",
        ),
        (["margin=5"], "margin: expected a difference below 1, since accuracy is between 0 and 1 (0.01 is one point)"),
        (["seed=1"], "seed: this is no setting of a judgement; say first_seed="),
        (["name=a/b"], "name: expected a word without slashes"),
        (["optimizer=adam", "adam.epochs=3"], "adam.epochs: expected the same problem for all methods, got 3 and"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(words: list[str], message: str, tmp_path: Path) -> None:
    done = tmbench("judge", "task=tc", *words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(message)
    assert not list(tmp_path.glob("runs/tc-*"))


def test_scores_of_examples_are_kept_and_their_mean_is_the_metric(do: Run) -> None:
    result, folder = do("task=tc", "optimizer=sgd", "epochs=2", "batch_size=40")
    assert set(assert_mean_of_examples(result, folder, "test/accuracy", True)) == {0.0, 1.0}
    (folder / "examples.json").write_text("{}")
    with pytest.raises(DataError, match=r"examples.json: damaged"):
        examples_of(folder)


@pytest.mark.slow
def test_a_killed_judgement_continues_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=adam", "epochs=2", "batch_size=16", "max_seeds=10"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = tmbench("judge", *words, cwd=make_folder(whole))
    for number in (signal.SIGKILL, signal.SIGINT):
        process = Forked("judge", *words, cwd=make_folder(killed))
        before = len(list(killed.glob("runs/*/result.json")))
        deadline = time.monotonic() + 120
        while len(list(killed.glob("runs/*/result.json"))) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    done = tmbench("judge", *words, cwd=killed)
    assert done.returncode == expected.returncode
    of = [json.loads(next(folder.glob("judge/*/result.json")).read_text()) for folder in (whole, killed)]
    assert of[0]["methods"] == of[1]["methods"]


def make_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.slow
def test_twenty_planted_nulls_are_seldom_told_apart(tmp_path: Path) -> None:
    """The same method on disjoint seeds: at most 3 of 20 better or worse (a rate of 0.05 gives more in 1.6 %)."""
    most, decided = 8, 0
    swept = sweep(
        "tc", "sgd", range(40 * most), epochs=2, batch_size=20, replicas=24, runs_dir=tmp_path, progress=False
    )
    results, design = {result.seed: result for result in swept.results}, Design(most, 0.001)
    for null in range(20):
        seeds = range(2 * most * null, 2 * most * (null + 1))
        two = [{n: results[seed] for n, seed in enumerate(seeds[half::2])} for half in (0, 1)]
        pairs = pairs_of(*two)
        assert sum(pair.difference != 0 for pair in pairs) > most // 2  # real noise
        decided += verdicts({"sgd": looks([pair.difference for pair in pairs], design)}, design)["sgd"] in FOUND
    assert decided <= 3
