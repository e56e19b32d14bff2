"""What a report says: verdicts, sentences, tables, notes and figures."""

import csv
import io
import json
import math
import xml.etree.ElementTree
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
from conftest import Compose
from made_runs import Make, rows, table
from rich.console import Console

import tmbench
from tmbench.report import figures, formats, page
from tmbench.report.comparisons import Comparison
from tmbench.report.contents import Report
from tmbench.report.formats import Cell, Table
from tmbench.result import save_examples
from tmbench.runs import find

SGD, TMSGD = (0.80, 0.82, 0.81), (0.83, 0.86, 0.82)
LOWER: dict[str, Any] = {"metric": "mse", "higher_is_better": False}


@pytest.fixture
def make(composed: Compose, tmp_path: Any) -> Make:
    return Make(composed, tmp_path / "runs")


@pytest.fixture
def pair(make: Make) -> None:
    make.seeds("sgd", SGD, "epochs=4")
    make.seeds("tmsgd", TMSGD, "epochs=4", "switch_epoch=2")


def only(report: Report) -> tuple[Comparison, str]:
    """The one comparison of a report, and its sentence."""
    (comparison,), (sentence,) = report.comparisons, report.sentences
    return comparison, sentence


@pytest.mark.usefixtures("pair")
def test_numbers_are_those_of_numpy_and_pairs_are_by_seed(make: Make) -> None:
    report = make.report()
    assert rows(table(report, "results"))["tmsgd"]["ours"] == pytest.approx(np.mean(TMSGD))
    d = np.subtract(TMSGD, SGD)
    comparison, sentence = only(report)
    assert comparison.difference.mean == pytest.approx(d.mean())
    assert comparison.difference.sd == pytest.approx(d.std(ddof=1))
    assert comparison.difference.p == 0.25
    assert comparison.verdict == "undecided"
    for words in (
        "tmsgd is 2.67 points better than sgd on tc (accuracy, tiny data). Undecided: with 3 seeds, the 95 % interval "
        "is -1.13 to +6.46 points, which includes zero. About ",
        " seeds would find a difference of 2.67 points.",
    ):
        assert words in sentence


EIGHT = [0.8 + seed / 100 for seed in range(8)]
NO_SPREAD = "every difference is the same; without spread between seeds there is no evidence."
VERDICTS: dict[str, tuple[Any, Any, dict[str, Any], list[str], str, str]] = {
    # scores of sgd and of adam, what else the results say, words, the verdict, words of the sentence
    "lower is better": ([0.5 + seed / 100 for seed in range(8)], [0.3 + seed / 90 for seed in range(8)], LOWER, [],
                        "better", "and p = 0.00781 after Holm: better."),
    "equivalent": (EIGHT, [x + (-1) ** i * 1e-4 for i, x in enumerate(EIGHT)], {}, [],
                   "equivalent", "within the margin of 0.50 points: equivalent (p = "),
    "not within a small margin": (EIGHT, [x + (-1) ** i * 1e-4 for i, x in enumerate(EIGHT)], {},
                                  ["margin.accuracy=1e-5"], "undecided", "which includes zero"),
    "within the margin": ([0.8] * 8, [0.801 + seed / 1e5 for seed in range(8)], {}, [],
                          "better, by less than the margin", "after Holm: better, by less than the margin."),
    "one seed": ([0.8], [0.8], {}, [], "undecided", "adam and sgd score the same on tc (accuracy, tiny data). "
                 "Undecided: one seed shows no spread between seeds."),
    "two seeds": ([0.8, 0.8], [0.8, 0.8 + 1e-6], {}, [], "undecided", "which includes zero"),
    "two seeds, no spread": (EIGHT[:2], [x + 0.001 for x in EIGHT[:2]], {}, [],
                             "undecided: no spread between seeds", NO_SPREAD),
    "no difference": (EIGHT, EIGHT, {}, [], "undecided: no spread between seeds", NO_SPREAD),
    "no spread": (EIGHT, [x + 0.02 for x in EIGHT], {}, [], "undecided: no spread between seeds", NO_SPREAD),
    "both diverge": ([0.9, 0.9, *[None] * 6], [0.9, 0.9001, *[None] * 6], {}, [], "undecided", "6 of adam's runs and"),
    "both diverge without a baseline": (
        [None, *[0.8] * 7], [None, *(0.8 + 1e-4 * (-1) ** seed for seed in range(1, 8))], {"baseline": {}}, [],
        "undecided", "with 8 seeds, 1 of adam's runs and 1 of sgd's diverged"),
    "a share is bounded": ([0.2, 0.3], [0.9, 0.4], {}, [], "undecided", "interval is -100.00 to +100.00 points"),
    "a map is a share": ([0.2, 0.3], [0.9, 0.4], {"metric": "map"}, [],
                         "undecided", "points better than sgd on tc (map, tiny data)"),
    "ranks against the mean": ([0.8] * 9, [0.1, *(0.81 + seed / 1000 for seed in range(1, 9))], {},
                               ["test=wilcoxon", "level=0.15"], "undecided", "85 % interval"),
    "too few seeds": ([0.8] * 3, [0.85, 0.851, 0.852], {}, [], "undecided",
                      "excludes zero, but no test of 3 seeds can go below p = 0.25 in 1 comparison."),
    "diverged on another seed": ([0.8, 0.81, 0.82, 0.83], [0.8, 0.8, 0.8, 0.8, None], {}, [], "undecided", "worse"),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_a_verdict_and_its_sentence_say_what_the_seeds_show(case: str, make: Make) -> None:
    sgd, adam, facts, words, verdict, fragment = VERDICTS[case]
    make.seeds("sgd", sgd, **facts)
    make.seeds("adam", adam, **facts)
    report = make.report(*words)
    comparison, sentence = only(report)
    assert comparison.verdict == verdict
    assert fragment in sentence
    gap, row = comparison.difference, rows(table(report, "comparisons"))["adam"]
    assert gap.n == min(len(sgd), len(adam))
    if "no spread" in verdict:
        assert (gap.p, gap.p_equivalent, row["95 % interval"]) == (1.0, 1.0, "")
    if case == "lower is better":
        assert sentence.startswith("adam is 0.196 better than sgd")
        assert row["difference"] == pytest.approx(gap.mean) == pytest.approx(0.1961, abs=1e-4)  # the sentence's sign
        assert 0 < row["95 % interval"][0] < gap.mean < row["95 % interval"][1]
        assert report.rankings[0].names[int(np.argmin(report.rankings[0].mean))] == "adam"
    elif case == "one seed":
        assert report.rankings == []
    elif case == "both diverge":
        assert gap.p_equivalent == 1
    elif "share" in case:
        assert (gap.low, gap.high, gap.margin) == (-1.0, 1.0, 0.005)
    elif case == "ranks against the mean":
        assert gap.p <= 0.15
        assert gap.mean < 0 < gap.direction
    elif case == "diverged on another seed":
        assert "iverged" not in sentence


def test_a_report_says_whether_another_test_set_would_agree(make: Make) -> None:
    rng = np.random.default_rng(0)
    of_examples = rng.normal(0, 0.5, 30)
    of_examples += 0.06 - of_examples.mean()
    for seed in range(8):
        base, of_seed = rng.normal(size=30), rng.normal(0, 0.02)
        for name, more in (("sgd", 0.0), ("adam", of_examples + of_seed)):
            scores = (base - more).tolist()
            own = {"metric": "mse", "higher_is_better": False, "baseline": {"test/mse": 2.0}}
            folder = make(name, seed, float(np.mean(scores)), **own)
            save_examples(folder, "test/mse", False, scores)
        make("rmsprop", seed, 1.0 + seed / 10, **own)
    report = make.report()
    (row,) = rows(table(report, "samples")).values()
    assert (row["method"], row["metric"], row["n"], row["test examples"]) == ("adam", "mse", 8, 30)
    assert row["difference"] == pytest.approx(rows(table(report, "comparisons"))["adam"]["difference"])
    assert row["95 % interval, these examples"][0] > 0 > row["95 % interval, others too"][0]
    assert row["sd by examples"] == pytest.approx(of_examples.std(ddof=1) / 30**0.5)
    notes = table(report, "comparisons").notes
    assert notes[-2].endswith("training again on the same test examples; the next table allows for others as well.")
    assert notes[-1].startswith("What other test examples would say is not known of 1 comparison: not all of their")
    (folder / "examples.json").write_text("{}")
    assert any("examples.json: damaged" in note for note in table(make.report(), "comparisons").notes)


def test_profiles_never_mix(make: Make) -> None:
    for profile, score in (("tiny", 0.5), ("full", 0.9), ("subset", 0.7)):
        for optimizer in ("sgd", "adam"):
            make(optimizer, 0, score, profile=profile, data_digest=profile)
    report = make.report()
    assert sorted(c.problem.profile for c in report.comparisons) == ["full", "subset", "tiny"]
    means = {t.title.split("; ")[-1].split()[0]: rows(t)["sgd"]["ours"] for t in report.tables if "results" in t.key}
    assert means == {"tiny": 0.5, "full": 0.9, "subset": 0.7}
    assert any("Mixed profiles" in note for note in report.notes)


def test_paper_stands_beside_ours_with_the_protocol_difference_and_not_beside_tiny_data(make: Make) -> None:
    words = ("epochs=120", "lr=0.01", "batch_size=5")
    make("sgd", 0, 0.9, *words, profile="full")
    make("tmsgd", 0, 0.91, *words, "switch_epoch=90", profile="full")
    results = rows(table(make.report(), "results"))
    assert results["sgd"]["paper"] == 90.6
    assert results["sgd"]["ours - paper"] == pytest.approx(-0.6)
    assert results["sgd"]["protocol difference"] == "none in Table 2"
    assert results["tmsgd"]["protocol difference"] == "switch 90 (paper 100)"
    make("tmsgd", 0, 0.91, *words, "switch_epoch=100", "optimizer.c=0.25", profile="full")
    told = {row["protocol difference"] for row in rows(table(make.report(), "results")).values()}
    assert told == {"none in Table 2", "switch 90 (paper 100)", "c 0.25 (usually 0.5)"}
    make("sgd", 0, 0.9)
    tiny = next(t for t in make.report().tables if t.key.startswith("results") and t.key.endswith("tiny"))
    assert "paper" not in tiny.columns
    assert any("do not stand beside" in note for note in tiny.notes)


def test_unfair_circumstances_are_noted(make: Make) -> None:
    make("sgd", 0, 0.8)
    make("adam", 0, 0.8, "lr=0.1", hardware="1 x another CPU, 1 threads")
    make("adam", 1, 0.8, "lr=0.2", versions={"torch": "0.1"})
    notes = " ".join(make.report().notes)
    for words in ("mixed hardware", "mixed versions", "unequal tuning budgets, in settings tried: adam 2, sgd 1",
                  "methods do not all have the same seeds"):  # fmt: skip
        assert words in notes


def test_several_tasks_have_ranks_profiles_and_improvement(make: Make) -> None:
    for i, task in enumerate(("tc", "ic", "seg")):
        for j, optimizer in enumerate(("sgd", "tmsgd", "adam")):
            first = 0.5 + 0.1 * (j if i else -j)
            make.seeds(optimizer, [first, first + 0.01], f"task={task}", "epochs=3")
    report = make.report()
    (ranking,) = report.rankings
    assert dict(zip(ranking.names, ranking.mean, strict=True)) == pytest.approx(
        {"sgd": 7 / 3, "tmsgd": 2.0, "adam": 5 / 3}
    )
    assert ranking.range_without_one[0] == (2.0, 3.0)  # of sgd, without tc or without another
    assert (ranking.place, ranking.firsts) == ([1, 1, 1], [0.0, 0.0, 1000.0])  # two seeds a tenth apart change no rank
    assert rows(table(report, "improvement"))["adam"]["P"] == pytest.approx(2 / 3)
    assert report.targets[0] == 0.5  # of 0.5 and 0.51 what both runs of sgd reach
    drawings = list(figures.figures(report))
    assert {"ranks-tiny", "profiles-tiny"} <= {drawing.name for drawing in drawings}
    assert all(xml.etree.ElementTree.fromstring(drawing.svg).tag.endswith("svg") for drawing in drawings)


def test_switch_epochs_are_drawn_beside_the_reference(make: Make) -> None:
    for switch in (1, 2):
        make("tmsgd", 0, 0.8 + switch / 100, "epochs=4", f"switch_epoch={switch}")
    make("adam", 0, 0.7, "epochs=4")
    make("sgd", 0, 0.8, "epochs=4")
    report = make.report()
    drawings = list(figures.figures(report))
    assert list(figures.figures(report)) == drawings  # the same when drawn again
    svg = {drawing.name: drawing.svg for drawing in drawings}["switch-0-tc-tiny"]
    assert [f">{name}<" in svg for name in ("sgd", "tmsgd", "adam")] == [True, True, False]
    report = make.report("against=all")
    without = figures.switches(report, report.runs.problems[0])
    assert without is not None
    assert [text.get_text() for text in without.axes[0].get_legend().get_texts()] == ["tmsgd"]


# ---- time to target


def test_time_to_target_is_the_first_epoch_that_reaches_it(make: Make) -> None:
    make("sgd", 0, 0.8, "epochs=6")
    make("adam", 0, 0.6, "epochs=6")
    times = rows(table(make.report("target=0.71"), "time"))
    assert (times["sgd"]["epochs"], times["sgd"]["steps"], times["sgd"]["train s"]) == (4, 40, 6.0)  # 0.8 (1 - 2^-4)
    assert times["adam"]["epochs"] == "never"


def test_the_reference_reaches_its_own_median_with_an_even_number_of_runs(make: Make) -> None:
    make.seeds("sgd", [0.5, 0.6, 0.7, 0.8])
    times = rows(table(make.report(), "time"))["sgd"]
    assert (times["target"], times["reached"]) == (0.6, 3)
    assert times["epochs"] != "never"


def test_a_target_says_where_it_comes_from(make: Make) -> None:
    make("sgd", 0, 0.8)
    for task in ("tc", "ic"):
        make("adam", 0, 0.7, f"task={task}")
    (note,) = table(make.report(), "time").notes
    assert "on ic, where sgd has no run, the median that all runs end with" in note


def test_a_target_is_reached_at_the_resolution_of_float32(make: Make) -> None:
    make("sgd", 0, 1 / 3)
    make("adam", 0, float(np.nextafter(np.float32(1 / 3), np.float32(0))))
    assert rows(table(make.report("target=0.3333333333333333"), "time"))["adam"]["reached"] == 1


# ---- diverged runs


def test_diverged_and_failed_runs_are_counted_and_diverged_ones_cost(make: Make) -> None:
    make.seeds("sgd", [0.8] * 4)
    make.seeds("adam", [None, 0.9, 0.9, 0.9])
    make("adam", 4, None, status="failed", error="RuntimeError: out of memory")
    make("adam", 5, None)
    broken = make("adam", 6, 0.9)
    (broken / "result.json").write_text("{")
    report = make.report()
    row = rows(table(report, "results"))["adam"]
    assert {k: row[k] for k in ("n", "completed", "diverged", "failed", "unfinished")} == {
        "n": 4, "completed": 3, "diverged": 1, "failed": 2, "unfinished": 1,
    }  # fmt: skip
    assert row["ours"] == pytest.approx((0.2 + 3 * 0.9) / 4)  # 0.2 is the input-blind baseline's
    words = "counts as the worse of the baseline and the worst completed run, 20.00 %."
    assert report.sentences[0].endswith(f"Diverged: 1 of adam's runs; a diverged run {words}")
    assert any("1 broken, 1 diverged, 1 failed, 1 stopped" in note for note in report.notes)


@pytest.fixture
def mostly_diverged(make: Make) -> None:
    """A task without a baseline, whose metric is the better the lower: one good run, seven that diverged."""
    make.seeds("sgd", [0.1] * 8, **LOWER, baseline={})
    make.seeds("tmsgd", [0.09, *[None] * 7], **LOWER, baseline={})


@pytest.mark.usefixtures("mostly_diverged")
@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_diverged_runs_without_a_baseline_rank_below_completed_ones_and_have_no_mean(test: str, make: Make) -> None:
    report = make.report(f"test={test}")
    comparison, sentence = only(report)
    assert comparison.verdict == "worse, by ranks"
    assert comparison.difference.p == 4 / 2**8  # of 1 and seven times 5 only the 1 may change its sign
    assert "with 8 seeds, 7 of tmsgd's runs diverged. Without a baseline these rank below every" in sentence
    assert sentence.endswith("By signed ranks (p = 0.0156 after Holm): tmsgd is worse, by ranks.")
    row = rows(table(report, "comparisons"))["tmsgd"]
    assert (row["difference"], row["95 % interval"], row["p equivalent (Holm)"]) == ("", "", 1.0)
    results = table(report, "results")
    assert rows(results)["tmsgd"]["ours"] == ""
    assert any("no mean where a run diverged" in note for note in results.notes)
    assert any("7 runs diverged, and there is no baseline" in note for note in report.notes)
    (ranking,) = report.rankings
    assert dict(zip(ranking.names, ranking.mean, strict=True)) == {"sgd": 1 + 1 / 8, "tmsgd": 2 - 1 / 8}
    assert json.loads(formats.as_json(page.content(report)))


def test_diverged_runs_without_a_baseline_put_a_method_last_on_their_problem(make: Make) -> None:
    for task in ("task=tc", "task=ic"):
        make.seeds("sgd", [0.5] * 3, task, baseline={})
        make.seeds("adam", [None, 0.9, 0.9], task, baseline={})
        make.seeds("sgdm", [None] * 3, task, baseline={})
    report = make.report()
    (ranking,) = report.rankings
    # Of three seeds, adam is first in two and, with sgdm, last in one: by its mean ranks it is second to none.
    assert dict(zip(ranking.names, ranking.mean, strict=True)) == {"adam": 1.0, "sgd": 2.0, "sgdm": 3.0}
    assert rows(table(report, "improvement"))["adam"]["P"] == pytest.approx(2 / 3)


def test_a_diverged_run_counts_as_the_worst_run_where_that_is_worse_than_the_baseline(make: Make) -> None:
    make.seeds("sgd", [0.1008, 0.2008, 0.2008])
    make.seeds("adam", [None, 0.9, 0.9])
    report = make.report()
    words = "the worse of the baseline and the worst completed run, 10.08 %."
    assert report.sentences[0].endswith(f" Diverged: 1 of adam's runs; a diverged run counts as {words}")
    assert f"A diverged run counts as {words}" in table(report, "results").notes
    assert rows(table(report, "results"))["adam"]["ours"] == pytest.approx((0.1008 + 1.8) / 3)


def test_diverged_runs_of_the_reference_do_not_widen_the_margin(make: Make) -> None:
    make.seeds("sgd", [None, 0.01, 0.01, 0.01], **LOWER, baseline={"test/mse": 1.0})
    make.seeds("adam", [0.01 + seed / 1000 for seed in range(4)], **LOWER, baseline={"test/mse": 1.0})
    assert make.report().comparisons[0].difference.margin == pytest.approx(0.05 * 0.01)


def test_no_target_is_what_a_diverged_run_counts_as(make: Make) -> None:
    make.seeds("sgd", [0.8, None, None])
    report = make.report()
    assert report.targets == {}
    assert not any(t.key == "time-to-target" for t in report.tables)


def test_all_references_that_are_as_similar_are_compared_and_not_the_best_of_them(make: Make) -> None:
    make.seeds("sgd", [0.8, 0.81], "lr=0.1")
    make.seeds("sgd", [0.9, 0.91], "lr=0.2")
    make.seeds("adam", [0.85, 0.85], "lr=0.3")
    make.seeds("sgdm", [0.85, 0.85], "lr=0.1")
    assert {(c.method.label, c.reference.label) for c in make.report().comparisons} == {
        ("adam lr=0.3", "sgd lr=0.1"), ("adam lr=0.3", "sgd lr=0.2"), ("sgdm lr=0.1", "sgd lr=0.1"),
    }  # fmt: skip


def test_without_the_reference_there_is_nothing_to_compare(make: Make) -> None:
    make("adam", 0, 0.8)
    assert make.report().sentences == ["Nothing to compare: there is no run of sgd to compare with."]
    assert make.report("against=all").sentences == ["Nothing to compare: there is one method only."]


# ---- scores at their resolution


def test_sampled_p_says_so_and_the_families_of_holm_are_explained(make: Make) -> None:
    make.seeds("sgd", [0.8] * 20)
    make.seeds("adam", [0.9 + 0.02 * math.sin(seed) for seed in range(20)])
    report = make.report()
    assert "p = 0.0001 after Holm, from 9,999 samples: better." in report.sentences[0]
    comparisons = table(report, "comparisons")
    assert "0.0001, sampled" in [cell.text for cell in comparisons.rows[0]]
    notes = " ".join(comparisons.notes)
    assert "exact up to 13 seeds, and where" in notes
    assert "else from 9,999 samples" in notes
    assert "with probability 0.9 or more no verdict of either kind is false" in notes


def test_trials_of_tuning_with_one_seed_are_listed_and_make_no_other_verdict_less_sure(make: Make) -> None:
    make.seeds("sgd", [0.8] * 8)
    make.seeds("adam", [0.9 + seed / 1000 for seed in range(8)])
    (before,) = make.report().comparisons
    for lr in range(1, 11):
        make.seeds("sgd", [0.8], f"lr={lr / 100}", "validation=0.2", split="validation")
        make.seeds("adam", [0.9], f"lr={lr / 100}", "validation=0.2", split="validation")
    report = make.report()
    after = next(c for c in report.comparisons if c.problem.split == "test")
    assert (after.difference.p_holm, after.verdict) == (before.difference.p_holm, "better")
    assert len(report.comparisons) == 11
    notes = " ".join(table(report, "comparisons").notes)
    assert "Holm over the 1 comparison of this report" in notes
    assert "share one seed only are listed and not tested: 10 here" in notes


def test_ranks_of_means_share_ties_at_the_resolution_of_float32(make: Make) -> None:
    """Both methods have 3002 of 2189 examples right over two seeds."""
    for task in ("tc", "ic"):
        for optimizer, counts in (("sgd", (1501, 1501)), ("adam", (1400, 1602))):
            make.seeds(optimizer, [float(np.float32(n / 2189)) for n in counts], f"task={task}")
    (ranking,) = make.report().rankings
    assert ranking.mean == [1.5, 1.5]


# ---- not a number


def test_a_curve_of_nan_reaches_no_target_and_spoils_no_mean(make: Make) -> None:
    make("sgd", 0, 0.8, "epochs=3")
    broken = make("sgd", 1, 0.8, "epochs=3")
    text = (broken / "curves.csv").read_text().splitlines()
    lines = [line.rpartition(",")[0] + f",{word}" for line, word in zip(text[1:], ("nan", "inf", "0.8"), strict=True)]
    (broken / "curves.csv").write_text("\n".join([text[0], *lines]) + "\n")
    make("adam", 0, None, "epochs=3", status="diverged")
    report = make.report()
    assert report.runs.curves["metric"].drop_nulls().is_finite().all()
    times = rows(table(report, "time"))
    assert (times["sgd"]["epochs"], times["sgd"]["reached"]) == (3, 2)
    assert (times["adam"]["epochs"], times["adam"]["reached"]) == ("never", 0)
    assert all("nan" not in drawing.svg.lower() for drawing in figures.figures(report))


def test_a_completed_run_without_a_finite_metric_counts_as_diverged_and_is_noted(make: Make) -> None:
    make.seeds("sgd", [0.8, 0.8], schema_version=1)
    make("adam", 0, 0.8, schema_version=1)
    folder = make("adam", 1, 0.8, schema_version=1)
    # As an earlier version wrote it, which had no digest and did not refuse such a number.
    old = json.loads((folder / "result.json").read_text())
    del old["sha256"]
    old["metrics"]["last"]["test/accuracy"] = math.inf
    (folder / "result.json").write_text(json.dumps(old))
    report = make.report()
    assert rows(table(report, "results"))["adam"]["ours"] == pytest.approx((0.2 + 0.8) / 2)
    assert any("1 completed runs have no finite accuracy and count as diverged" in note for note in report.notes)


# ---- what is averaged and put in order


def test_the_best_epochs_are_those_of_completed_runs(make: Make) -> None:
    make("sgd", 0, 0.8)
    make("sgd", 1, 0.1, status="interrupted")
    row = rows(table(make.report(), "results"))["sgd"]
    assert (row["n"], row["ours"], row["best epoch's"]) == (1, 0.8, 0.8)


def test_intervals_of_a_share_end_where_a_share_does(make: Make) -> None:
    rng = np.random.default_rng(0)
    for seed, (low, high) in enumerate([(0.02, 0.35), (0.2, 0.9), (0.01, 0.99)]):
        for name, score in (("sgd", low), ("adam", high)):
            scores = (rng.random(50) < score).astype(float).tolist()
            save_examples(make(name, seed, score), "test/accuracy", True, scores)
    report = make.report()
    assert rows(table(report, "results"))["adam"]["95 % interval"][1] == 1.0
    (row,) = rows(table(report, "samples")).values()
    assert row["95 % interval, these examples"][1] == row["95 % interval, others too"][1] == 1.0


def test_the_rate_of_a_method_is_its_own_where_it_has_one(make: Make) -> None:
    """The run's lr is 0.02 for both; the learned optimizer does not read it."""
    make.seeds("sgd", SGD)
    make.seeds("learned", TMSGD)
    assert [run.folder.name[:6] for run in find(make.folder, ["lr=1"])] == ["tc-lea"] * 3
    assert [run.folder.name[:6] for run in find(make.folder, ["lr=0.02"])] == ["tc-sgd"] * 3
    frame = tmbench.runs(make.folder)
    assert set(frame.select("optimizer", "lr").rows()) == {("sgd", 0.02), ("learned", 1.0)}


def test_the_interval_of_a_mean_is_students(make: Make) -> None:
    make.seeds("sgd", scores := [0.80, 0.84, 0.79, 0.85])
    make("adam", 0, 0.9)
    found = rows(table(make.report(), "results"))
    expected = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert found["sgd"]["95 % interval"] == pytest.approx(expected)
    assert not found["adam"]["95 % interval"]


def test_the_order_of_the_best_is_that_of_the_seeds_that_all_have(make: Make) -> None:
    make.seeds("sgd", [0.8, 0.8, 0.2], profile="full")
    make.seeds("adam", [0.7, 0.7], profile="full")
    notes = " ".join(table(make.report(), "results").notes)
    assert "ours sgd > adam" in notes
    assert "on the 2 seeds that all have" in notes


def test_a_report_relies_on_no_order_that_polars_does_not_promise(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins and groups that do not ask for an order get the reverse of the one that polars happens to give."""
    for task in ("tc", "ic"):
        for seed in range(5):
            make("sgd", seed, 0.8 + seed**2 / 100, f"task={task}", "epochs=3", parameters=seed)
            make("adam", seed, 0.7 + seed**3 / 1000, f"task={task}", "epochs=3", parameters=seed)
    expected = page.content(make.report())
    join, group = pl.DataFrame.join, pl.DataFrame.group_by

    def reversed_join(self: pl.DataFrame, *words: Any, **more: Any) -> pl.DataFrame:
        joined = join(self, *words, **more)
        return joined if "maintain_order" in more else joined.reverse()

    def ordered_group(self: pl.DataFrame, *words: Any, **more: Any) -> Any:
        assert more.get("maintain_order"), "a group_by without maintain_order"
        return group(self, *words, **more)

    monkeypatch.setattr(pl.DataFrame, "join", reversed_join)
    monkeypatch.setattr(pl.DataFrame, "group_by", ordered_group)
    assert formats.as_json(page.content(make.report())) == formats.as_json(expected)


# ---- formats

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
