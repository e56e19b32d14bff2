"""The sequential test agrees with a count of all changes of sign, and keeps its level though it is looked at always."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tmbench.judge import sequential
from tmbench.judge.design import Design
from tmbench.judge.sequential import Look, first_rejections, fixed_design_seeds, looks, verdicts
from tmbench.report.statistics import Values, tolerance
from tmbench.report.variance import split

SOME = np.array([0.31, 0.12, 0.254, 0.4, -0.05, 0.15, 0.2, 0.35, 0.128])
NINE = Design(9, margin=0.1)


def by_brute_force(d: Values, design: Design, level: float) -> int:
    """The first look that rejects, from all sequences of signs; 0 if none does."""
    sums = np.cumsum(np.array([*itertools.product((1.0, -1.0), repeat=design.max_seeds)])[:, : len(d)] * d, 1).round(9)
    alive = np.ones(len(sums), bool)
    for n, spent in enumerate(design.spent()[: len(d)]):
        for value in np.unique(sums[alive, n])[::-1] if np.ptp(np.abs(d[: n + 1])) else ():
            largest = alive & (sums[:, n] == value)
            if (~alive).sum() + largest.sum() > level * spent * len(sums):
                break
            alive &= ~largest
        if not alive[0]:
            return n + 1
    return 0


@pytest.mark.parametrize(("level", "zeros"), [(0.005, 0), (0.025, 0), (0.025, 2), (0.3, 4)])
def test_first_rejection_is_that_of_all_changes_of_sign(level: float, zeros: int) -> None:
    rng, found = np.random.default_rng(0), set()
    for _ in range(15):
        d = rng.normal(0.8, 1, 9).round(1)  # with ties
        d[rng.permutation(9)[:zeros]] = 0
        expected = by_brute_force(d, NINE, level), by_brute_force(-d, NINE, level)
        assert first_rejections(d, NINE, level) == expected
        found.add(expected[0])
    assert len(found) > 1


def test_p_is_the_least_level_that_rejects() -> None:
    last = looks(SOME, NINE)[-1]
    rejecting = [level for level in sequential.LADDER if by_brute_force(SOME, NINE, level)]
    assert last.p_better == 2 * rejecting[0] < 0.05
    assert last.p_worse == 1.0


def test_a_part_of_all_changes_of_sign_rejects_exactly_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all sequences of signs, 16 at a time as seen from each: these are the same 16 from each of the 16."""
    monkeypatch.setattr(sequential, "GENERATORS", 4)
    sizes = np.random.default_rng(0).exponential(1, 8)
    signs = itertools.product((1.0, -1.0), repeat=8)
    found = [first_rejections(sizes * of, Design(8), 0.3)[0] for of in signs]
    assert np.count_nonzero(found) == 256 * 4 / 16  # 4 of 16 is the largest share up to 0.3
    assert len({*found}) > 2


@pytest.mark.parametrize("heavy", [False, True])
def test_equal_methods_are_told_apart_no_more_often_than_the_level(heavy: bool) -> None:
    rng, studies = np.random.default_rng(0), 400
    found = [first_rejections(rng.standard_t(2, 12) if heavy else rng.normal(size=12), Design(12), 0.1 / 2)
             for _ in range(studies)]  # fmt: skip
    assert 0.06 < np.mean([max(of) > 0 for of in found]) <= stats.binom.ppf(0.999, studies, 0.1) / studies


def test_the_look_after_some_seeds_is_the_same_when_more_have_come() -> None:
    d = np.random.default_rng(1).normal(0.5, 1, 20)
    early, late = looks(d[:14], Design(20, 0.5)), looks(d, Design(20, 0.5))[:14]
    assert [look[:4] for look in early] == [look[:4] for look in late]
    assert np.array(early)[:, 4:] == pytest.approx(np.array(late)[:, 4:], rel=0.05)
    for values in np.array(late)[:, [1, 2, 3, 5]].T:  # p and the upper bound
        assert (np.diff(values[np.isfinite(values)]) <= 0).all()


def test_swapped_methods_swap_everything() -> None:
    there, back = looks(SOME, NINE), looks(-SOME, NINE)
    for one, other in zip(there, back, strict=True):
        assert other == one._replace(p_better=one.p_worse, p_worse=one.p_better, low=-one.high, high=-one.low)


def test_equivalence_is_both_one_sided_tests_against_the_margin() -> None:
    d = np.random.default_rng(2).normal(0.1, 1, 9)
    for look, above, below in zip(
        looks(d, replace(NINE, margin=2.0)), looks(d + 2, NINE), looks(d - 2, NINE), strict=True
    ):
        assert min(1, 2 * look.p_equivalent) == max(above.p_better, below.p_worse)
    assert look.p_equivalent < 0.05
    both = looks([*d, 0.0, 0.0], replace(NINE, max_seeds=11, margin=2.0), both_diverged=[False] * 9 + [True] * 2)
    assert both[-1].p_equivalent > looks([*d, 0.0, 0.01], replace(NINE, max_seeds=11, margin=2.0))[-1].p_equivalent


def test_confidence_sequence_excludes_what_the_test_rejects_and_no_more() -> None:
    rng, design, excluded = np.random.default_rng(3), Design(12), 0
    for _ in range(8):
        d = rng.normal(0.7, 1, 12)
        for look in looks(d, design):
            assert (not look.low < 0 < look.high) == (min(look.p_better, look.p_worse) <= design.alpha)
            excluded += look.low > 0
    assert excluded > 5


@pytest.mark.parametrize("d", [[], [0.3], [0.0] * 10, [0.2] * 10])
def test_without_spread_there_is_no_evidence(d: list[float]) -> None:
    found = looks(d, Design(10, margin=1.0))
    assert found == [Look(n, 1.0, 1.0, 1.0, -math.inf, math.inf) for n in range(1, len(d) + 1)]
    assert verdicts({"adam": found}, Design(10, margin=1.0)) == {"adam": "undecided"}


def test_ten_ties_and_one_large_difference_are_not_equivalent() -> None:
    assert looks([0.0] * 10 + [0.4], Design(11, margin=0.05))[-1].p_equivalent > 0.05  # type: ignore[operator]


def test_infinite_differences_are_ranked() -> None:
    d = [math.inf, 0.3, 0.1, -0.2, math.inf, 0.5, 0.4, 0.6, 0.7, 0.8, 0.9, -math.inf]
    design = Design(12, margin=1.0)
    found = looks(d, design)
    same_ranks = looks(np.sign(d) * np.square(d), design)
    assert np.array(found) == pytest.approx(np.array(same_ranks), nan_ok=True)
    assert (found[-2].p_better < 0.05, found[-1].p_equivalent, math.isnan(found[0].low)) == (True, 1.0, True)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_p_of_accuracies_is_that_of_the_counts(kind: type) -> None:
    counts = np.array([3, 1, 7, 2, -2, 3, 7, 0, 4, 3, 3, 1])
    base = 1700 + 13 * np.arange(12)
    a, b = (np.asarray((base + more) / 2189, kind).astype(float) for more in (counts, 0))
    found = looks(a - b, Design(12), near=[*tolerance(a, b)])
    assert [look[1:3] for look in found] == [look[1:3] for look in looks(counts, Design(12))]


def test_one_run_with_a_huge_score_blurs_no_other_seed() -> None:
    d = np.r_[SOME, 1e6]
    near = np.r_[np.full(9, 1e-8), 0.24]
    assert looks(d, Design(10), near=near)[-1][:3] == looks(d, Design(10))[-1][:3]


@pytest.mark.parametrize("bad", [[0.1, math.nan], [0.1] * 10])
def test_differences_that_cannot_be_judged_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="at most 9 differences and no nan"):
        looks(bad, NINE)


def look(p_better: float, p_worse: float = 1.0, p_equivalent: float | None = 1.0) -> Look:
    return Look(1, p_better, p_worse, p_equivalent, 0.0, 0.0)


def test_the_first_verdict_stays_and_is_corrected_for_all_methods() -> None:
    of = {
        "adam": [look(0.03), look(0.03)],  # significant once sgdm is
        "sgdm": [look(0.2), look(1.0, 0.02)],
        "sgd": [look(0.2, 0.2, 0.01), look(0.001)],  # decided before
        "new": [look(0.2)],
    }
    assert verdicts(of, Design(9, 0.1, comparisons=1)) == {
        "adam": "undecided", "sgdm": "undecided", "sgd": "equivalent", "new": "undecided",
    }  # fmt: skip
    two = {name: of[name] for name in ("adam", "sgdm")}
    assert verdicts(two, Design(9)) == {"adam": "better", "sgdm": "worse"}
    assert verdicts(two, Design(9, comparisons=3)) == {"adam": "undecided", "sgdm": "undecided"}


@pytest.mark.parametrize("design", [Design(7), Design(34), Design(80, comparisons=4), Design(20, margin=5.0)])
def test_least_seeds_decide_if_all_agree_and_fewer_never_do(design: Design) -> None:
    d = np.linspace(0.9, 1, design.least_seeds())
    found = [verdicts({"adam": looks(d[:n], design)}, design)["adam"] for n in (len(d) - 1, len(d))]
    assert found == ["undecided", "equivalent" if design.margin else "better"]
    short = Design(3, design.margin, design.alpha, design.comparisons)
    assert Design(short.least_seeds()).max_seeds > 3
    enough = replace(short, max_seeds=short.least_seeds())
    assert enough.least_seeds() == enough.max_seeds


def test_fixed_design_is_that_of_a_power_calculation() -> None:
    assert fixed_design_seeds(0.5) == 34


# ---- the two variances


def test_components_of_variance_are_those_that_the_differences_are_made_of() -> None:
    rng = np.random.default_rng(0)
    of_seeds, of_examples = rng.normal(0.2, 1, 6), rng.normal(0, 2, 40)
    found = split(of_seeds[:, None] + of_examples, 0.05)
    assert (found.seeds, found.examples) == pytest.approx((of_seeds.var(ddof=1), of_examples.var(ddof=1)))
    assert (found.mean, found.residual) == pytest.approx((of_seeds.mean() + of_examples.mean(), 0))
    expected = stats.ttest_1samp(of_seeds + of_examples.mean(), 0).confidence_interval(0.95)
    assert found.of_training == pytest.approx((expected.low, expected.high))
    assert found.of_both[0] < found.of_training[0] < found.of_training[1] < found.of_both[1]
    assert all(map(math.isnan, split(np.ones((1, 5)), 0.05).of_both))


def test_both_intervals_cover_as_often_as_they_say() -> None:
    rng, studies, covered = np.random.default_rng(1), 400, np.zeros(2)
    for _ in range(studies):
        of_examples = rng.normal(0, 0.4, 60)
        found = split(rng.normal(0, 0.05, (6, 1)) + of_examples + rng.normal(0, 0.3, (6, 60)), 0.05)
        covered += (
            found.of_training[0] <= of_examples.mean() <= found.of_training[1],
            found.of_both[0] <= 0 <= found.of_both[1],
        )
    assert covered / studies == pytest.approx(0.95, abs=3.3 * math.sqrt(0.05 * 0.95 / studies))
