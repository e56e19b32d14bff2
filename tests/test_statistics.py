"""The report's statistics agree with brute force and with scipy and statsmodels, and keep their promises on noise."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from tmbench.report import across, statistics

FIXED = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.15, -0.02])
LEVEL, DRAWS = 0.05, 1000
SURE = 3 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)  # of a share of the draws: three standard errors


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def flip_p(d: np.ndarray, test: str = "permutation") -> float:
    return statistics.sign_flip_p(d, test)[0]


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_exact_p_is_the_share_of_sign_changes_at_least_as_far(n: int) -> None:
    d = FIXED[:n]
    means = [abs(np.mean(d * signs)) for signs in itertools.product((1, -1), repeat=n)]
    expected = np.mean([mean >= abs(d.mean()) - 1e-12 for mean in means])
    assert flip_p(d) == pytest.approx(expected)


def test_wilcoxon_and_t_interval_are_scipys_and_equivalence_is_the_worse_of_two_one_sided_t_tests() -> None:
    assert flip_p(FIXED, "wilcoxon") == pytest.approx(stats.wilcoxon(FIXED, method="exact").pvalue)
    expected = stats.ttest_1samp(FIXED, 0).confidence_interval(0.9)
    assert statistics.t_interval(FIXED, 0.1) == pytest.approx((expected.low, expected.high))
    low = stats.ttest_1samp(FIXED, -0.3, alternative="greater").pvalue
    high = stats.ttest_1samp(FIXED, 0.3, alternative="less").pvalue
    assert statistics.equivalence_p(FIXED, 0.3) == pytest.approx(max(low, high))


def test_holm_is_that_of_statsmodels() -> None:
    for p in ([0.04, 0.01, 0.03], [0.5, 0.001, 0.001, 1.0, 0.3], [0.2]):
        assert statistics.holm(p) == multipletests(p, method="holm")[1].tolist()
    assert statistics.holm([]) == []


def test_attainable_p_halves_with_each_seed_and_a_sample_cannot_reach_everything() -> None:
    for n in (1, 2, 5, 6):
        smallest = flip_p(np.linspace(1, 2, n))
        assert smallest == pytest.approx(statistics.attainable_p(n))
    assert statistics.seeds_to_attain(0.05) == 6
    assert statistics.seeds_to_attain(0.05, 28) == 11
    assert statistics.seeds_to_attain(0.05, 500) == 15
    assert statistics.seeds_to_attain(0.05, 501) is None
    assert statistics.seeds_to_find(1.0, 1.0, 0.05, 0.8, 501) is None


def test_seeds_to_find_are_the_fewest_with_the_power() -> None:
    found = statistics.seeds_to_find(0.5, 1.0, 0.05, 0.8)
    assert found == math.ceil(TTestPower().solve_power(0.5, None, 0.05, 0.8)) == 34
    assert statistics.seeds_to_find(5, 1.0, 0.05, 0.8) == 6  # the t-test would do with 3, an exact one cannot
    assert statistics.seeds_to_find(1e-6, 1.0, 0.05, 0.8) is None
    assert statistics.seeds_to_find(0.5, 1.0, 0.05, 0.8, 10) > found  # type: ignore[operator]


def test_many_comparisons_do_not_make_a_plan_too_short(rng: np.random.Generator) -> None:
    n, level = statistics.seeds_to_find(1.41, 1.0, 0.05, 0.8, 400), 0.05 / 400
    assert n is not None
    found = [np.mean(stats.ttest_1samp(rng.normal(1.41, 1, (20000, k)), 0, axis=1).pvalue <= level) for k in (n - 1, n)]
    assert found[0] - 0.01 < 0.8 < found[1] + 0.01


def test_planned_seeds_find_the_difference_as_often_as_promised(rng: np.random.Generator) -> None:
    n = statistics.seeds_to_find(1.2, 1.0, 0.05, 0.8)
    assert n is not None
    found = np.mean([flip_p(rng.normal(1.2, 1, n)) <= 0.05 for _ in range(300)])
    assert found == pytest.approx(0.8, abs=0.08)


def test_no_true_difference_is_found_no_more_often_than_the_level(rng: np.random.Generator) -> None:
    """Of noise that is not normal at all: the test is exact for any that is symmetric."""
    rate = np.mean([flip_p(rng.standard_t(2, 7)) <= LEVEL for _ in range(DRAWS)])
    assert 0.02 < rate <= LEVEL + SURE


def test_several_comparisons_with_one_reference_are_wrong_together_no_more_often_than_the_level(
    rng: np.random.Generator,
) -> None:
    wrong = 0
    for _ in range(DRAWS):
        seeds_MS = rng.normal(0, 1, (3, 7)) + rng.normal(0, 3, 7)  # a seed is good or bad for all
        p = [flip_p(own - seeds_MS[0]) for own in seeds_MS[1:]]
        wrong += min(statistics.holm(p)) <= LEVEL
    assert 0.02 < wrong / DRAWS <= LEVEL + SURE


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_t_interval_covers_as_often_as_it_says(n: int, rng: np.random.Generator) -> None:
    spans = [statistics.t_interval(rng.normal(0.7, 2, n), LEVEL) for _ in range(DRAWS)]
    assert np.mean([low <= 0.7 <= high for low, high in spans]) == pytest.approx(1 - LEVEL, abs=SURE)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least", "most"), [(5, 0.78, 0.90), (20, 0.90, 0.97), (40, 0.92, 0.97)])
def test_bootstrap_interval_covers_once_there_are_enough_seeds(
    n: int, least: float, most: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line is why fewer than ENOUGH_TO_BOOTSTRAP seeds are not left to it."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    spans = [statistics.bootstrap_interval(rng.normal(0.7, 2, n), LEVEL) for _ in range(DRAWS)]
    assert least <= np.mean([low <= 0.7 <= high for low, high in spans]) <= most
    assert (n >= statistics.ENOUGH_TO_BOOTSTRAP) == (least >= 0.9)


def test_methods_a_margin_apart_are_called_equivalent_no_more_often_than_the_level(rng: np.random.Generator) -> None:
    rate = np.mean([statistics.equivalence_p(rng.normal(1, 1, 10), 1.0) <= LEVEL for _ in range(DRAWS)])
    assert 0.02 < rate <= LEVEL + SURE


@pytest.mark.parametrize("n", [3, 25])
def test_comparison_quotes_the_interval_that_its_seeds_allow(n: int, rng: np.random.Generator) -> None:
    a, b = rng.normal(1, 1, n), rng.normal(0, 1, n)
    found = statistics.compare(a, b, 0.1, LEVEL, "permutation")
    d = a - b
    assert (found.n, found.mean, found.sd) == (n, pytest.approx(d.mean()), pytest.approx(d.std(ddof=1)))
    expected = statistics.t_interval(d, LEVEL) if n == 3 else statistics.bootstrap_interval(d, LEVEL)
    assert (found.low, found.high) == expected


@pytest.mark.parametrize("d", [[0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.2]])
def test_degenerate_differences_make_no_noise(d: list[float]) -> None:
    found = statistics.compare(d, [0.0] * len(d), 0.1, LEVEL, "permutation")
    assert found.p >= statistics.attainable_p(len(d))
    if len(d) > 1:
        assert (found.low, found.high) == pytest.approx((d[0], d[0]))
        assert found.p_equivalent == 1.0


def test_improvement_is_mann_whitneys_share_averaged_over_tasks() -> None:
    one, two = ([3.0, 5.0, 6.0], [1.0, 4.0, 5.0]), ([1.0, 2.0], [3.0, 4.0])
    shares = [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in (one, two)]
    value, low, high = across.improvement([one, two], LEVEL)
    assert value == pytest.approx(np.mean(shares))
    assert 0 <= low <= value <= high <= 1


def test_critical_difference_is_that_of_demsars_table() -> None:
    """Demsar 2006, table 5(a): q is 2.569 for 4 classifiers; his example over 14 data sets has 1.25."""
    assert across.critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=0.005)


def test_ranks_share_ties_and_friedman_is_scipys() -> None:
    scores_BM = np.array([[0.9, 0.8, 0.7], [0.9, 0.9, 0.1], [0.5, 0.4, 0.6]])
    assert across.ranks(scores_BM).tolist() == [[1, 2, 3], [1.5, 1.5, 3], [2, 3, 1]]
    assert across.friedman_p(across.ranks(scores_BM)) == pytest.approx(stats.friedmanchisquare(*scores_BM.T).pvalue)
    assert math.isnan(across.friedman_p(across.ranks(scores_BM[:, :2])))


def test_a_method_is_first_in_as_many_bootstraps_as_chance_has_it() -> None:
    """Of one seed in three a is the better by far, b of the others: b has the mean where that seed is not drawn."""
    good_in_one = np.array([[9.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    a, b = across.firsts([good_in_one])
    assert (a + b, b / 1000) == (1000, pytest.approx((2 / 3) ** 3, abs=0.05))
    assert across.firsts([good_in_one[:, [0, 0]]]) == [500, 500]


def test_methods_share_a_place_until_ranks_are_the_critical_difference_apart() -> None:
    assert across.places(np.array([1.2, 3.0, 1.8, 4.0]), 1.5) == [1, 2, 1, 3]


def test_profile_counts_tasks_within_a_multiple_of_the_fastest() -> None:
    inf = math.inf
    times_BM = np.array([[10, 20, inf], [30, 10, 15], [inf, inf, inf], [5, 5, 50]])
    shares_RM = across.profile(times_BM, np.array([1.0, 2.0, 10.0]))
    assert shares_RM.tolist() == [[0.5, 0.5, 0], [0.5, 0.75, 0.25], [0.75, 0.75, 0.5]]


COUNTS = np.array([3, 1, 7, 2, -2, 3, 7, 0])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
def test_p_of_accuracies_is_that_of_the_counts_whatever_the_base_accuracy(kind: type, test: str) -> None:
    expected = flip_p(COUNTS.astype(float), test)
    found = {
        statistics.compare(
            ((base + COUNTS) / 2189).astype(kind).tolist(), (base / 2189).astype(kind).tolist(), 0.005, LEVEL, test
        ).p
        for base in (first + np.arange(8) * step for first in range(900, 2000, 97) for step in (0, 7, 13))
    }
    assert found == {expected}


def test_p_of_more_seeds_is_exact_where_differences_are_shares_of_the_same_examples() -> None:
    counts = np.array([3, 1, 7, 2, -2, 3, 7, 0, -5, 4, 1, -1, 2, -6, 8, -3])
    d = counts / 2189
    expected = np.mean(np.abs(np.array(list(itertools.product((1, -1), repeat=16))) @ counts) >= counts.sum())
    assert statistics.sign_flip_p(d) == (pytest.approx(expected, rel=1e-12), False)
    for base in range(1900, 2000, 7):
        a, b = ((base + c).astype(np.float32) / np.float32(2189) for c in (counts, 0 * counts))
        found = statistics.compare(a.tolist(), b.tolist(), 0.005, LEVEL, "permutation")
        assert (found.p, found.is_sampled) == (pytest.approx(expected, rel=1e-12), False)
    assert flip_p(np.ones(72)) == 2.0**-71
    assert 0 < flip_p(np.ones(5000)) < 1e-300


def test_shares_of_many_examples_are_told_from_their_float32_scores(rng: np.random.Generator) -> None:
    """The smallest difference is many units, and the largest so many that its rounding alone would blur the unit."""
    for n, accuracy, sd in ((50_000, 0.76, 0.005), (7500, 0.5, 0.1), (10_000, 0.7, 0.02)):
        counts = np.rint(n * (accuracy + rng.normal(0, sd, (2, 40))))
        a, b = (counts / n).astype(np.float32).astype(float)
        found = statistics.multiples(a - b, statistics.tolerance(a, b))
        assert found is not None
        assert found.tolist() == (counts[0] - counts[1]).tolist()


def test_signed_ranks_of_more_seeds_are_scipys_exact_ones(rng: np.random.Generator) -> None:
    d = rng.normal(0.3, 1, 30)
    expected = stats.wilcoxon(d, method="exact").pvalue
    assert statistics.sign_flip_p(d, "wilcoxon") == (pytest.approx(expected), False)


def test_p_of_more_seeds_than_can_be_enumerated_is_a_share_of_a_sample(rng: np.random.Generator) -> None:
    """The observed signs are one of the draws, so it is never 0; nor can it be as small as an exact one."""
    assert statistics.sign_flip_p(rng.uniform(1, 2, 20)) == (statistics.attainable_p(20), True) == (1e-4, True)
    d = rng.normal(0.5, 1, 14)
    expected = np.mean(np.abs(np.array(list(itertools.product((1, -1), repeat=14))) @ d) >= abs(d.sum()) - 1e-12)
    assert flip_p(d) == pytest.approx(expected, abs=0.006)
    close = rng.normal(0, 1e-7, 20)  # known to 1e-7 alone, so that each is near a multiple of anything
    assert statistics.multiples(close, np.full(20, 1e-7)) is None


def test_infinite_scores_rank_below_all_others() -> None:
    inf = math.inf
    a, b = [0.5, 0.6, 0.7, -inf, 0.5, 0.9], [0.4, -inf, 0.6, -inf, -inf, 0.8]
    found = statistics.compare(a, b, 0.005, LEVEL, "permutation")
    ranked = np.array([3.0, 5.5, 3.0, 0.0, 5.5, 3.0])  # of 0.1, inf, 0.1, nothing, inf, 0.1
    assert found.p == flip_p(ranked)
    assert (found.direction, found.p_equivalent) == (1, 1.0)
    assert all(map(math.isnan, (found.mean, found.sd, found.low, found.high, found.bootstrap_low)))
    scores_BM = np.array([[-inf, 0.2, -inf], [0.1, -inf, 0.3]])
    assert across.ranks(scores_BM).tolist() == [[2.5, 1, 2.5], [2, 3, 1]]
    assert across.improvement([([-inf, 0.5], [-inf, 0.4])], LEVEL)[0] == pytest.approx((0.5 + 0 + 1 + 1) / 4)


def test_values_are_tied_that_lie_within_the_tolerance_and_no_others() -> None:
    values = np.array([0.3, 0.1 + 1e-9, math.inf, 0.1, math.inf, 0.2])
    assert statistics.tied(values, 1e-8).tolist() == [0.3, 0.1, math.inf, 0.1, math.inf, 0.2]


@pytest.mark.parametrize("n", [2, 3])
def test_equivalence_takes_more_than_two_seeds_and_some_spread(n: int) -> None:
    assert (statistics.equivalence_p(np.linspace(0, 1e-9, n), 1.0) < 1) == (n > 2)
    assert statistics.equivalence_p(np.zeros(n), 1.0) == 1.0


def test_students_interval_ends_at_the_bound() -> None:
    found = statistics.compare([0.9, 0.4], [0.2, 0.3], 0.005, LEVEL, "permutation", bound=1.0)
    assert (found.low, found.high) == (-1.0, 1.0)


@pytest.mark.parametrize("test", ["permutation", "wilcoxon"])
@pytest.mark.parametrize("whose", ["both", "one"])
def test_one_run_that_ended_with_a_huge_score_blurs_no_other_seed(whose: str, test: str) -> None:
    b = 0.05 + np.arange(8) / 1000
    a = b - 0.003 - np.arange(8) / 1e4
    for score in (1.0, 3e5, 1e9):
        b[3], a[3] = score, score if whose == "both" else a[3]
        found = statistics.compare(a, b, 0.0025, 0.05, test)
        assert (found.direction, found.has_spread) == (-1, True)
        assert found.p == (4 if whose == "both" else 2) / 2**8  # a is the lower of the two wherever they differ
        assert found.mean == pytest.approx(np.mean(a - b))


def test_a_huge_score_ties_no_others_in_ranks_and_shares() -> None:
    assert across.ranks(-np.array([[0.04, 0.05, 3e5]])).tolist() == [[1, 2, 3]]
    assert across.improvement([([-0.04] * 3, [-0.05, -0.05, -1e6])], 0.05)[0] == 1


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
