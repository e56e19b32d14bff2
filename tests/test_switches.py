"""The best of several switch epochs: what choosing it does to its difference, and the table of it."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import Compose
from made_runs import Make, rows, table

from tmbench.report.formats import comma
from tmbench.report.statistics import sign_flip_p
from tmbench.report.switches import best_of


def test_one_setting_is_the_one_sided_test_of_it() -> None:
    d = np.array([0.3, 0.1, -0.2, 0.4, 0.25, 0.05])
    found = best_of(d[None], np.zeros(6), 0.05)
    assert found.p == pytest.approx(sign_flip_p(d)[0] / 2)
    assert found.held_out == pytest.approx(found.mean) == pytest.approx(d.mean())


def test_p_counts_every_change_of_sign_of_whole_seeds() -> None:
    random = np.random.default_rng(3)
    d_MS = random.normal(0.4, 1, (3, 5))
    count = 0
    for bits in range(32):
        signs = np.array([1 if bits >> s & 1 else -1 for s in range(5)])
        count += max((row * signs).mean() for row in d_MS) >= d_MS.mean(1).max() - 1e-12
    assert best_of(d_MS, np.zeros(5), 0.05).p == count / 32


def test_of_settings_that_are_all_alike_the_best_is_seldom_called_better_and_looks_better_than_it_is() -> None:
    """600 studies of 7 switch epochs on 12 seeds; the reference is shared, so that their differences are related."""
    random, below, means, held_out = np.random.default_rng(0), 0, [], []
    for _ in range(600):
        d_MS = random.normal(size=(7, 12)) - random.normal(size=12)
        found = best_of(d_MS, np.zeros(12), 0.05)
        below += found.p <= 0.05
        means.append(found.mean)
        held_out.append(found.held_out)
    assert 0.02 < below / 600 < 0.08
    assert np.mean(means) > 0.2
    assert abs(np.mean(held_out)) < 4 * np.std(held_out) / 600**0.5


def test_the_table_has_a_row_for_each_method_with_several_switches(composed: Compose, tmp_path: Path) -> None:
    make = Make(composed, tmp_path / "runs")
    base = [0.70, 0.72, 0.69, 0.71, 0.73, 0.70]
    make.seeds("sgd", base, "epochs=6")
    for switch, gain in ((1, -0.01), (3, 0.02), (5, 0.005)):
        scores = [score + gain + 0.001 * seed for seed, score in enumerate(base)]
        make.seeds(
            "tmsgd",
            scores,
            "epochs=6",
            f"switch_epoch={switch}",
            switch={"requested": switch, "effective": switch, "step": 1},
        )
    found = rows(table(make.report(), "switches"))["tmsgd"]
    assert (found["switches"], found["best"], found["n"]) == ((1, 3, 5), 3, 6)
    (line,) = csv.DictReader(io.StringIO(comma(table(make.report(), "switches"))))
    assert (line["switches"], line["best"]) == ("1, 3, 5", "3")
    assert "95 % interval, low" in line
    assert found["its difference"] == found["held out"] == pytest.approx(0.0225)
    assert found["p of the best"] == 2**-6
    assert not [t for t in make.report("switch_epoch=3,never").tables if t.key == "switches"]


def test_a_method_is_held_against_the_reference_of_its_own_rate(composed: Compose, tmp_path: Path) -> None:
    make = Make(composed, tmp_path / "runs")
    make.seeds("sgd", [0.70, 0.72, 0.69], "epochs=6", "lr=0.1")
    make.seeds("sgd", [0.80, 0.82, 0.81], "epochs=6", "lr=0.02")
    for switch in (1, 3):
        about = {"requested": switch, "effective": switch, "step": 1}
        make.seeds("tmsgd", [0.71, 0.73, 0.70], "epochs=6", "lr=0.1", f"switch_epoch={switch}", switch=about)
    (row,) = table(make.report(), "switches").rows
    assert row[3].text == "sgd lr=0.1"
