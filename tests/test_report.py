"""`python -m tmbench.report`: what runs show, from folders and from W&B."""

import base64
import copy
import csv
import dataclasses
import functools
import io
import json
import math
import operator
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Compose, Run
from made_runs import Make, maker
from rich.console import Console

from tmbench.config.identity import SCHEMA, digest, identity
from tmbench.config.settle import flat
from tmbench.config.table import conf_dir
from tmbench.errors import ConfigError
from tmbench.report import answers, figures, formats, statistics
from tmbench.report.__main__ import main, parsed, runs_of
from tmbench.report.numbers import Report, place
from tmbench.report.read import opened, read, records
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
    words = "count as the worse of baseline and worst seen, 20.00 %"
    assert f"1 of adam's runs diverged and {words}" in report.contests[0].sentence
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
    assert report.targets[0] == 0.5  # of 0.5 and 0.51 what both runs of sgd reach


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


# ---- what belongs to the problem, and what to the method


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The configuration with another value at a dotted key."""
    found = copy.deepcopy(config)
    *folders, name = key.split(".")
    inner = functools.reduce(operator.getitem, folders, found)
    old = inner[name]
    inner[name] = not old if isinstance(old, bool) else old + 1 if isinstance(old, (int, float)) else f"{old}x"
    return found


@pytest.mark.parametrize("optimizer", ["tmsgd", "adam"])
def test_each_setting_that_makes_another_run_makes_another_problem_or_method(
    optimizer: str, make: Make, runs: Path
) -> None:
    """But for the seed: no two runs that differ in what can change the numbers are repeats of each other."""
    make(optimizer, 0, 0.8)
    ((run,), _) = records(opened([], runs))
    own = [run.config, *(changed(run.config, key) for key in flat(run.config) if key != "seed")]
    others = list({digest(identity(config, "")): config for config in own}.values())[1:]
    assert len(others) > 20
    results = [
        dataclasses.replace(run.result, **own)
        for own in ({"data_digest": "e" * 16}, {"profile": "full"}, {"schema_version": 0}, {"metric": "loss"})
    ]  # fmt: skip
    found = [run, *(dataclasses.replace(run, config=config) for config in others)]
    found += [dataclasses.replace(run, result=result) for result in results]
    tables = read(found, "last", [])
    assert tables.runs["counts"].all()
    assert len(tables.methods) == len(found)


def test_validation_shares_are_problems_of_their_own_and_their_accuracy_is_an_accuracy(make: Make, runs: Path) -> None:
    for seed in range(6):
        for share in (0.1, 0.2):
            for optimizer, score in (("sgd", 0.85), ("adam", 0.8501 + seed / 1000)):
                own = f"validation={share}"
                make(optimizer, seed, score + share / 10, own, headline="validation/accuracy")
    report = told(runs)
    assert [p.label for p in report.runs.problems] == ["tc validation=0.1", "tc validation=0.2"]
    assert not any("repeat" in note for note in report.notes)
    for contest in report.contests:
        assert contest.result.n == 6
        assert contest.result.margin == 0.005
        assert "adam is 0.26 points better than sgd on tc validation=" in contest.sentence
        assert "(validation accuracy, tiny data)" in contest.sentence
    results = table(report, "results-0")
    assert "validation accuracy (%)" in results.title
    assert next(cell.text for cell in results.rows[0] if "±" in cell.text) == "86.00 ± 0.00"
    drawn = {name: svg for name, _, svg in figures.figures(report)}
    assert ">validation accuracy (%)<" in drawn["curves-0-tc-tiny"]
    assert "ranks-tiny-validation" in drawn


def test_test_and_validation_runs_are_not_ranked_together(make: Make, runs: Path) -> None:
    for optimizer in ("sgd", "adam"):
        make(optimizer, 0, 0.8)
        make(optimizer, 0, 0.8, "validation=0.2", headline="validation/accuracy")
    assert told(runs).standings == []


def test_results_of_another_version_are_apart_and_noted(make: Make, runs: Path) -> None:
    for optimizer in ("sgd", "adam"):
        make(optimizer, 0, 0.8)
        make(optimizer, 0, 0.7, schema_version=0)
    report = told(runs)
    assert {p.kind for p in report.runs.problems} == {"tiny schema 0", "tiny"}
    assert {p.label for p in report.runs.problems} == {"tc schema=0", f"tc schema={SCHEMA}"}
    assert report.runs.runs["counts"].all()
    assert any(f"(schema 0 and {SCHEMA})" in note for note in report.notes)


def test_methods_that_no_word_tells_apart_have_names_of_their_own(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8, "lr=0.1")
    make("sgd", 0, 0.8, "lr=0.2", "optimizer.lr=0.1")
    make("sgd", 0, 0.8, "lr=0.2", "optimizer.lr=0.3")
    assert len({m.name for m in told(runs).runs.methods}) == 3


def test_an_unfinished_run_joins_the_finished_ones_of_its_settings(make: Make, runs: Path) -> None:
    for seed in range(3):
        make("sgd", seed, 0.8, "task=ic", data_digest="i" * 16)
    make("sgd", 0, 0.8)
    make("sgd", 1, None)
    report = told(runs)
    assert len(report.runs.problems) == 2
    assert rows(table(report, "results-1-tc"))["sgd"]["unfinished"] == 1


def test_labels_show_rates_and_switches_that_differ(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8, "lr=0.1", "epochs=4")
    make("tmsgd", 0, 0.8, "lr=0.2", "epochs=4", "switch_epoch=1")
    make("tmnag", 0, 0.8, "lr=0.2", "epochs=4", "switch_epoch=2")
    report = told(runs)
    assert [m.label for m in sorted(report.runs.methods, key=place)] == [
        "sgd lr=0.1", "tmsgd lr=0.2 switch_epoch=1", "tmnag lr=0.2 switch_epoch=2",
    ]  # fmt: skip
    assert [m.name for m in report.runs.methods] == [m.optimizer for m in report.runs.methods]
    assert "4 epochs, lr 0.1" in table(told(runs, "optimizer=sgd"), "results").title


def test_a_method_on_several_problems_is_one_method(make: Make, runs: Path) -> None:
    for task in ("tc", "ic"):
        for seed in range(2):
            make("sgd", seed, 0.8, f"task={task}")
            make("adam", seed, 0.8, f"task={task}", "lr=0.5")
    report = told(runs)
    assert report.runs.content == "8 runs of 2 methods on 2 problems"
    assert "8 runs of 2 methods on 2 problems" in formats.pages(report, [], {})


# ---- diverged runs


@pytest.fixture
def mostly_diverged(make: Make) -> None:
    """A task without a baseline, whose metric is the better the lower: one good run, seven that diverged."""
    lower: dict[str, Any] = {"headline": "test/fid", "higher_is_better": False, "baseline": {}}
    for seed in range(8):
        make("sgd", seed, 0.1, **lower)
        make("tmsgd", seed, None if seed else 0.09, status="diverged" if seed else "completed", **lower)


@pytest.mark.usefixtures("mostly_diverged")
@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_diverged_runs_without_a_baseline_rank_below_completed_ones_and_have_no_mean(test: str, runs: Path) -> None:
    report = told(runs, f"test={test}")
    (contest,) = report.contests
    assert contest.verdict == "worse, by ranks"
    assert contest.result.p == 4 / 2**8  # of 1 and seven times 5 only the 1 may change its sign
    assert "7 of tmsgd's runs on 8 seeds diverged; without a baseline they rank below" in contest.sentence
    assert "tmsgd is worse, by ranks." in contest.sentence
    row = rows(table(report, "comparisons"))["tmsgd"]
    assert (row["difference"], row["95 % interval"], row["p equivalent (Holm)"]) == ("", "", 1.0)
    assert rows(table(report, "results"))["tmsgd"]["ours"] == ""
    assert any("No mean where a run diverged" in note for note in table(report, "results").notes)
    assert any("7 runs diverged, and there is no baseline" in note for note in report.notes)
    (standing,) = report.standings
    assert dict(zip(standing.names, standing.mean, strict=True)) == {"sgd": 1 + 1 / 8, "tmsgd": 2 - 1 / 8}
    assert json.loads(formats.as_json(report))


def test_diverged_runs_without_a_baseline_are_never_equivalent_even_on_the_same_seeds(make: Make, runs: Path) -> None:
    for seed in range(8):
        for optimizer, noise in (("sgd", 0), ("adam", 1e-4 * (-1) ** seed)):
            status = "completed" if seed else "diverged"
            make(optimizer, seed, 0.8 + noise if seed else None, status=status, baseline={})
    (contest,) = told(runs).contests
    assert contest.verdict == "undecided"
    assert "1 of adam's and 1 of sgd's runs on 8 seeds diverged" in contest.sentence


def test_diverged_runs_without_a_baseline_put_a_method_last_on_their_problem(make: Make, runs: Path) -> None:
    for task in ("tc", "ic"):
        for seed in range(3):
            make("sgd", seed, 0.5, f"task={task}", baseline={})
            make("adam", seed, 0.9 if seed else None, f"task={task}", status="completed" if seed else "diverged",
                 baseline={})  # fmt: skip
            make("sgdm", seed, None, f"task={task}", status="diverged", baseline={})
    report = told(runs)
    (standing,) = report.standings
    # Of three seeds, adam is first in two and, with sgdm, last in one: by its mean ranks it is second to none.
    assert dict(zip(standing.names, standing.mean, strict=True)) == {"adam": 1.0, "sgd": 2.0, "sgdm": 3.0}
    assert rows(table(report, "improvement"))["adam"]["P"] == pytest.approx(2 / 3)


def test_a_diverged_run_counts_as_the_worst_seen_where_that_is_worse_than_the_baseline(make: Make, runs: Path) -> None:
    for seed in range(3):
        make("sgd", seed, 0.2008 if seed else 0.1008)
        make("adam", seed, 0.9 if seed else None, status="completed" if seed else "diverged")
    report = told(runs)
    words = "the worse of baseline and worst seen, 10.08 %"
    assert report.contests[0].sentence.endswith(f"; 1 of adam's runs diverged and count as {words}.")
    assert f"A diverged run counts as {words}." in table(report, "results").notes
    assert rows(table(report, "results"))["adam"]["ours"] == pytest.approx((0.1008 + 1.8) / 3)


def test_diverged_runs_of_the_reference_do_not_widen_the_margin(make: Make, runs: Path) -> None:
    lower: dict[str, Any] = {"headline": "test/mse", "higher_is_better": False, "baseline": {"test/mse": 1.0}}
    for seed in range(4):
        make("sgd", seed, 0.01 if seed else None, status="completed" if seed else "diverged", **lower)
        make("adam", seed, 0.01 + seed / 1000, **lower)
    assert told(runs).contests[0].result.margin == pytest.approx(0.05 * 0.01)


def test_only_runs_of_the_compared_seeds_are_said_to_have_diverged(make: Make, runs: Path) -> None:
    for seed in range(4):
        make("sgd", seed, 0.8 + seed / 100)
        make("adam", seed, 0.8)
    make("adam", 4, None, status="diverged")
    assert "diverged" not in told(runs).contests[0].sentence


@pytest.mark.parametrize(
    ("score", "baseline", "worst", "higher", "expected"),
    [
        (0.7, 0.2, 0.1, True, 0.7),
        (None, 0.2, 0.3, True, 0.2),
        (None, 0.2, 0.1, True, 0.1),
        (math.nan, 0.2, None, True, 0.2),
        (None, 2.0, 3.0, False, 3.0),
        (math.inf, 2.0, 1.0, False, 2.0),
        (None, None, 0.1, True, None),
        (None, math.nan, 0.1, True, None),
    ],
)
def test_a_diverged_run_is_worth_the_worse_of_baseline_and_worst_and_nothing_without_a_baseline(
    score: float | None, baseline: float | None, worst: float | None, higher: bool, expected: float | None
) -> None:
    assert statistics.worth(score, baseline, worst, higher) == expected


# ---- no evidence


@pytest.mark.parametrize(("seeds", "gap"), [(2, 0.0), (2, 0.001), (8, 0.0), (8, 0.02)])
def test_no_spread_between_seeds_decides_nothing(seeds: int, gap: float, make: Make, runs: Path) -> None:
    for seed in range(seeds):
        make("sgd", seed, 0.8 + seed / 100)
        make("adam", seed, 0.8 + seed / 100 + gap)
    report = told(runs)
    (contest,) = report.contests
    assert contest.verdict == "undecided: no spread between seeds"
    assert "every difference is the same: undecided, no spread between seeds is no evidence" in contest.sentence
    assert (contest.result.p, contest.result.p_equivalent) == (1.0, 1.0)
    assert rows(table(report, "comparisons"))["adam"]["95 % interval"] == ""


def test_seeds_on_which_both_diverge_show_no_equivalence(make: Make, runs: Path) -> None:
    for seed in range(8):
        for optimizer, more in (("sgd", 0.0), ("adam", 1e-4)):
            status = "completed" if seed < 2 else "diverged"
            make(optimizer, seed, 0.9 + seed * more if seed < 2 else None, status=status)
    (contest,) = told(runs).contests
    assert (contest.verdict, contest.result.n, contest.result.p_equivalent) == ("undecided", 8, 1)


def test_two_seeds_show_no_equivalence(make: Make, runs: Path) -> None:
    for seed in range(2):
        make("sgd", seed, 0.8)
        make("adam", seed, 0.8 + seed * 1e-6)
    assert told(runs).contests[0].verdict == "undecided"


def test_an_interval_of_a_share_stays_between_minus_one_and_one(make: Make, runs: Path) -> None:
    for seed, (a, b) in enumerate(((0.2, 0.9), (0.3, 0.4))):
        make("sgd", seed, a)
        make("adam", seed, b)
    (contest,) = told(runs).contests
    assert (contest.result.low, contest.result.high) == (-1.0, 1.0)
    assert "an interval of -100.00 to +100.00 points" in contest.sentence


def test_one_block_has_no_ranks(make: Make, runs: Path) -> None:
    for optimizer in ("sgd", "adam", "sgdm"):
        make(optimizer, 0, 0.8)
    report = told(runs)
    assert report.standings == []
    assert not any(t.key.startswith("ranks") for t in report.tables)


def test_a_verdict_of_signed_ranks_against_the_mean_is_none(make: Make, runs: Path) -> None:
    for seed in range(9):
        make("sgd", seed, 0.8)
        make("adam", seed, 0.81 + seed / 1000 if seed else 0.1)
    (contest,) = told(runs, "test=wilcoxon", "level=0.15").contests
    assert contest.result.p <= 0.15
    assert contest.result.mean < 0 < contest.result.direction
    assert contest.verdict == "undecided"


def test_all_references_that_are_as_like_are_compared_and_not_the_best_of_them(make: Make, runs: Path) -> None:
    for seed in range(3):
        make("sgd", seed, 0.8 + seed / 100, "lr=0.1")
        make("sgd", seed, 0.9 + seed / 100, "lr=0.2")
        make("adam", seed, 0.85, "lr=0.3")
        make("sgdm", seed, 0.85, "lr=0.1")
    against = {(c.a.label, c.b.label) for c in told(runs).contests}
    assert against == {("adam lr=0.3", "sgd lr=0.1"), ("adam lr=0.3", "sgd lr=0.2"), ("sgdm lr=0.1", "sgd lr=0.1")}


# ---- scores at their resolution


def test_sampled_p_says_so_and_the_families_of_holm_are_told(make: Make, runs: Path) -> None:
    for seed in range(20):
        make("sgd", seed, 0.8)
        make("adam", seed, 0.9 + seed / 1000)
    report = told(runs)
    assert "p = 0.0001 after Holm, sampled (9,999): it is better" in report.contests[0].sentence
    comparisons = table(report, "comparisons")
    assert "0.0001, sampled" in [cell.text for cell in comparisons.rows[0]]
    notes = " ".join(comparisons.notes)
    assert "exact up to 13 seeds, of more sampled (9,999)" in notes
    assert "with probability 0.9 or more no verdict of either kind is false" in notes


def test_ranks_of_means_share_ties_at_the_resolution_of_float32(make: Make, runs: Path) -> None:
    """Both methods have 3002 of 2189 examples right over two seeds."""
    for task in ("tc", "ic"):
        for seed, (a, b) in enumerate(((1501, 1400), (1501, 1602))):
            make("sgd", seed, float(np.float32(a / 2189)), f"task={task}")
            make("adam", seed, float(np.float32(b / 2189)), f"task={task}")
    (standing,) = told(runs).standings
    assert standing.mean == [1.5, 1.5]


def test_a_target_is_reached_at_the_resolution_of_float32(make: Make, runs: Path) -> None:
    make("sgd", 0, 1 / 3)
    make("adam", 0, float(np.nextafter(np.float32(1 / 3), np.float32(0))))
    found = rows(table(told(runs, "target=0.3333333333333333"), "time"))
    assert found["adam"]["reached"] == 1


def test_the_reference_reaches_its_own_median_with_an_even_number_of_runs(make: Make, runs: Path) -> None:
    for seed, score in enumerate((0.5, 0.6, 0.7, 0.8)):
        make("sgd", seed, score)
    found = rows(table(told(runs), "time"))["sgd"]
    assert found["target"] == 0.6
    assert found["reached"] == 3
    assert found["epochs"] != "never"


def test_a_target_says_whose_it_is(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8)
    for task in ("tc", "ic"):
        make("adam", 0, 0.7, f"task={task}")
    (note,) = table(told(runs), "time").notes
    assert "on ic, where sgd has no run, the median that all runs end with" in note


def test_no_target_is_what_a_diverged_run_counts_as(make: Make, runs: Path) -> None:
    for seed in range(3):
        make("sgd", seed, None if seed else 0.8, status="diverged" if seed else "completed")
    report = told(runs)
    assert report.targets == {}
    assert not any(t.key == "time-to-target" for t in report.tables)


# ---- not a number


def test_a_curve_of_nan_reaches_no_target_and_spoils_no_mean(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8, "epochs=3")
    broken = make("sgd", 1, 0.8, "epochs=3")
    text = (broken / "curves.csv").read_text().splitlines()
    lines = [line.rpartition(",")[0] + f",{word}" for line, word in zip(text[1:], ("nan", "inf", "0.8"), strict=True)]
    (broken / "curves.csv").write_text("\n".join([text[0], *lines]) + "\n")
    make("adam", 0, None, "epochs=3", status="diverged")
    report = told(runs)
    assert report.runs.curves["metric"].drop_nulls().is_finite().all()
    times = rows(table(report, "time"))
    assert (times["sgd"]["epochs"], times["sgd"]["reached"]) == (3, 2)
    assert (times["adam"]["epochs"], times["adam"]["reached"]) == ("never", 0)
    assert all("nan" not in svg.lower() for _, _, svg in figures.figures(report))


def test_a_completed_run_without_a_finite_metric_counts_as_diverged_and_is_named(make: Make, runs: Path) -> None:
    for seed in range(2):
        make("sgd", seed, 0.8, schema_version=1)
        folder = make("adam", seed, 0.8, schema_version=1)
    # As an earlier version wrote it, which had no digest and did not refuse such a number.
    old = json.loads((folder / "result.json").read_text())
    del old["sha256"]
    old["metrics"]["last"]["test/accuracy"] = math.inf
    (folder / "result.json").write_text(json.dumps(old))
    report = told(runs)
    assert rows(table(report, "results"))["adam"]["ours"] == pytest.approx((0.2 + 0.8) / 2)
    assert any("1 completed runs have no finite accuracy and count as diverged" in note for note in report.notes)


# ---- what is averaged and put in order


def test_the_best_epochs_are_those_of_completed_runs(make: Make, runs: Path) -> None:
    make("sgd", 0, 0.8)
    make("sgd", 1, 0.1, status="interrupted")
    row = rows(table(told(runs), "results"))["sgd"]
    assert (row["n"], row["ours"], row["best epoch's"]) == (1, 0.8, 0.8)


def test_the_order_of_the_best_is_that_of_the_seeds_that_all_have(make: Make, runs: Path) -> None:
    for seed in range(3):
        make("sgd", seed, (0.8, 0.8, 0.2)[seed], profile="full")
        if seed < 2:
            make("adam", seed, 0.7, profile="full")
    notes = " ".join(table(told(runs), "results").notes)
    assert "ours sgd > adam" in notes
    assert "on the 2 seeds that all have" in notes


def test_a_report_relies_on_no_order_that_polars_does_not_promise(
    make: Make, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joins and groups that do not ask for an order get the reverse of the one that polars happens to give."""
    for seed in range(5):
        for task in ("tc", "ic"):
            make("sgd", seed, 0.8 + seed**2 / 100, f"task={task}", "epochs=3", parameters=seed)
            make("adam", seed, 0.7 + seed**3 / 1000, f"task={task}", "epochs=3", parameters=seed)
    expected = formats.as_json(told(runs))
    join, group = pl.DataFrame.join, pl.DataFrame.group_by

    def joined(self: pl.DataFrame, *words: Any, **more: Any) -> pl.DataFrame:
        found = join(self, *words, **more)
        return found if "maintain_order" in more else found.reverse()

    def grouped(self: pl.DataFrame, *words: Any, **more: Any) -> Any:
        assert more.get("maintain_order"), "a group_by without maintain_order"
        return group(self, *words, **more)

    monkeypatch.setattr(pl.DataFrame, "join", joined)
    monkeypatch.setattr(pl.DataFrame, "group_by", grouped)
    assert formats.as_json(told(runs)) == expected


def test_false_verdicts_are_as_rare_as_the_level_through_the_whole_report() -> None:
    """A few of the studies that scripts/simulate_report.py makes: with ties, divergence and unequal seeds."""
    script = conf_dir().parent / "scripts" / "simulate_report.py"
    done = subprocess.run(
        [sys.executable, script, "--studies", "100", "--most", "0.08"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
