"""Intervals hold what they promise by simulation, agree with hand computation, and do not care how units are cut."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from saebench.errors import SaebenchError
from saebench.metric import Score
from saebench.stats import Ratio, holm, independent_difference, paired_difference, ranks, ratio_interval, verdict
from saebench.stats.estimate import freedom
from tests import simulation
from tests.raising import raises

RATIO = Ratio("num", "den")
SHARE = Ratio("num", "den", within=(0, 1))
Draw = Callable[[np.random.Generator, int], pd.DataFrame]


def frame(num: object, den: object, cluster: object) -> pd.DataFrame:
    columns = {"cluster_id": np.asarray(cluster), "num": np.asarray(num, float), "den": np.asarray(den, float)}
    return pd.DataFrame({"unit_id": np.arange(len(columns["num"])), **columns})


# --- realistic units: contexts correlated within documents of unequal length, skewed, num and den correlated ---------


def documents(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """The document of each context; lengths are lognormal around 12 contexts."""
    lengths = np.maximum(1, np.exp(rng.normal(np.log(12), spread, count)).round()).astype(int)
    return np.repeat(np.arange(count), lengths)


def variance_ratio(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Squared error over variance: both skewed, their ratio grows with the variance."""
    doc = documents(rng, count, 0.6)
    loud = rng.normal(0, 0.25, count)[doc]
    den = np.exp(loud + rng.normal(0, 0.35, len(doc)))
    hard = rng.normal(0, 0.15, count)[doc]
    return frame(0.35 * den * np.exp(0.3 * loud + hard + rng.normal(0, 0.2, len(doc))), den, doc)


def per_token(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """A skewed positive mean per token (KL), document effects and all."""
    doc = documents(rng, count, 0.6)
    den = 127.0 - rng.poisson(0.5, len(doc))
    return frame(0.2 * den * np.exp(rng.normal(0, 0.35, count)[doc] + rng.normal(0, 0.5, len(doc))), den, doc)


def books(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """The hard case: some documents are twenty times longer than others, and documents differ a lot."""
    doc = documents(rng, count, 1.0)
    den = np.full(len(doc), 127.0)
    return frame(0.2 * den * np.exp(rng.normal(0, 0.6, count)[doc] + rng.normal(0, 0.5, len(doc))), den, doc)


def rare(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """A rare event: about three in a document."""
    doc = documents(rng, count, 0.6)
    den = np.full(len(doc), 127.0)
    return frame(rng.poisson(0.002 * den * rng.gamma(2, 0.5, count)[doc]), den, doc)


@pytest.mark.parametrize("clusters", [10, 26, 50, 200])
@pytest.mark.parametrize("draw", [variance_ratio, per_token, books, rare])
def test_coverage_is_what_it_says(draw: Draw, clusters: int) -> None:
    """93–97 % for nominal 95 %. With 600 intervals the binomial standard error is 0.9 points, so the test allows two of
    them on each side; the larger simulation behind saebench/stats.py (20,000 each) lies within 94.3 to 96.9."""
    rng = np.random.default_rng([2, clusters])
    whole = draw(rng, 100_000)
    truth = whole["num"].sum() / whole["den"].sum()
    trials = 600
    hits = 0
    for _ in range(trials):
        found = ratio_interval(draw(rng, clusters), RATIO)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.912 <= hits / trials <= 0.988


def test_ignoring_documents_would_be_too_narrow() -> None:
    """The guard of the guard: with every context its own cluster, the same simulation falls far short."""
    rng = np.random.default_rng(3)
    whole = per_token(rng, 100_000)
    truth = whole["num"].sum() / whole["den"].sum()
    hits = 0
    for _ in range(300):
        units = per_token(rng, 26)
        found = ratio_interval(units.assign(cluster_id=units["unit_id"]), RATIO)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits / 300 < 0.8


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_equal_clusters_give_students_t() -> None:
    """Equal denominators: the ratio is a mean of G numbers and its interval is Student's, with G − 1 degrees."""
    x = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    found = ratio_interval(frame(x, np.ones(6), range(6)), RATIO)
    low, high = scipy_stats.t.interval(0.95, 5, loc=x.mean(), scale=scipy_stats.sem(x))
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), low, high), rel=1e-12)
    assert (found.n, found.clusters) == (6, 6)


def test_equal_clusters_paired_gives_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.lognormal(size=(2, 9))
    found = paired_difference(frame(a, np.ones(9), range(9)), frame(b, np.ones(9), range(9)), RATIO)
    right = scipy_stats.ttest_rel(a, b)
    interval = right.confidence_interval(0.95)
    assert found.value == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    assert found.p_value == pytest.approx(right.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_unequal_clusters_against_matrices() -> None:
    """se and degrees of freedom written out with full matrices, as Imbens and Kolesár have them."""
    num, den = np.array([2.0, 3.0, 10.0, 1.0]), np.array([4.0, 2.0, 9.0, 5.0])
    total, ratio = den.sum(), num.sum() / den.sum()
    w = den / total
    e = num - ratio * den
    se = np.sqrt((e**2 / (1 - w)).sum()) / total
    residual = np.eye(4) - np.outer(w, np.ones(4))
    covariance = residual @ np.diag(w**2) @ residual.T
    m = np.diag(1 / (1 - w)) @ covariance
    freedom = np.trace(m) ** 2 / np.trace(m @ m)
    half = scipy_stats.t.ppf(0.95, freedom) * se
    found = ratio_interval(frame(num, den, range(4)), Ratio("num", "den", 1.0, -2.0), level=0.9)
    assert found.value == pytest.approx(1 - 2 * ratio, rel=1e-14)
    assert (found.low, found.high) == pytest.approx((found.value - 2 * half, found.value + 2 * half), rel=1e-10)


def test_degrees_of_freedom_keep_their_digits_up_to_the_largest_document() -> None:
    """The sums in place of matrices cancel where one document dominates; compared in exact arithmetic."""
    for parts in ([1, 1, 1, 1], [1, 64, 1], [1, 2, 3, 590], [5, 1, 3, 2, 9, 40]):
        w = [Fraction(part, sum(parts)) for part in parts]
        v, whole, n = [x * x for x in w], sum(x * x for x in w), range(len(w))
        c = [[(v[i] if i == j else 0) - w[i] * v[j] - w[j] * v[i] + w[i] * w[j] * whole for j in n] for i in n]
        trace = sum(c[i][i] / (1 - w[i]) for i in n)
        square = sum(c[i][j] ** 2 / (1 - w[i]) / (1 - w[j]) for i in n for j in n)
        found = freedom(np.array([float(x) for x in w]))
        assert float(found) == pytest.approx(float(trace**2 / square), rel=1e-6)


def test_p_values_reach_far_into_the_tail() -> None:
    x = np.linspace(1, 1.1, 40)
    a, b = frame(x, np.ones(40), range(40)), frame(np.zeros(40), np.ones(40), range(40))
    right = scipy_stats.ttest_1samp(x, 0).pvalue
    assert right < 1e-50
    assert paired_difference(a, b, RATIO).p_value == pytest.approx(right, rel=1e-6)


def test_count_is_what_n_counts() -> None:
    units = frame([1, 2], [3, 4], [0, 1]).assign(tokens=[127.0, 120.0])
    assert ratio_interval(units, Ratio("num", "den", count="tokens")).n == 247


# --- invariances -----------------------------------------------------------------------------------------------------

some_units = st.integers(3, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.1, 100), min_size=n, max_size=n),
        st.lists(st.floats(1, 50), min_size=n, max_size=n),
        st.permutations([0, 1, 2] + [i % 4 for i in range(n - 3)]),
    )
)


def numbers(found: object) -> list[float]:
    """Value, low and high; NaN where there is none."""
    return [np.nan if (x := getattr(found, name)) is None else x for name in ("value", "low", "high")]


@settings(max_examples=60, deadline=None)
@given(some_units, st.randoms(use_true_random=False), st.floats(0.01, 100), st.floats(0.01, 100))
def test_order_scale_and_splitting(units: tuple, random: object, up: float, down: float) -> None:
    num, den, cluster = units
    first = ratio_interval(frame(num, den, cluster), RATIO)
    order = list(range(len(num)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = frame(num, den, cluster).iloc[order]
    assert numbers(ratio_interval(shuffled, RATIO)) == pytest.approx(numbers(first), rel=1e-7, abs=1e-9, nan_ok=True)

    scaled = ratio_interval(frame(np.array(num) * up, np.array(den) * down, cluster), RATIO)
    assert numbers(scaled) == pytest.approx(
        [x * up / down for x in numbers(first)], rel=1e-7, abs=1e-9 * up / down, nan_ok=True
    )

    # One unit cut in two, and a document without anything: the cluster sums are the same, and so is everything else.
    cut = frame(
        [num[0] / 4, num[0] * 3 / 4, *num[1:], 0], [den[0] / 2, den[0] / 2, *den[1:], 0], [cluster[0], *cluster, 99]
    )
    again = ratio_interval(cut, RATIO)
    assert numbers(again) == pytest.approx(numbers(first), rel=1e-7, abs=1e-9, nan_ok=True)
    assert again.clusters == first.clusters


@settings(max_examples=40, deadline=None)
@given(some_units, some_units)
def test_a_difference_turned_round_changes_its_sign(one: tuple, two: tuple) -> None:
    n = min(len(one[0]), len(two[0]))
    cluster = [i % 3 for i in range(n)]
    a, b = (frame(x[0][:n], x[1][:n], cluster) for x in (one, two))
    there, back = paired_difference(a, b, RATIO), paired_difference(b, a, RATIO)
    assert (there.p_value is None) == (back.p_value is None)
    assert there.p_value is None or there.p_value == pytest.approx(back.p_value, rel=1e-7)
    value, low, high = numbers(back)
    assert numbers(there) == pytest.approx([-value, -high, -low], rel=1e-7, abs=1e-9, nan_ok=True)
    assert there.value == pytest.approx(ratio_interval(a, RATIO).value - ratio_interval(b, RATIO).value, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_its_definition(p: list[float]) -> None:
    """Step down: reject while the k-th smallest of m is at most α/(m − k + 1)."""
    adjusted = holm(p)
    for alpha in (0.01, 0.05, 0.5):
        rejected = set()
        for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
            if p[index] * (len(p) - step) > alpha:
                break
            rejected.add(index)
        assert set(np.flatnonzero(adjusted <= alpha)) == rejected


def test_holm_stops_at_the_first_that_fails() -> None:
    """0.02 · 3 fails at 5 %, so 0.031 · 1 is not looked at any more."""
    assert holm([0.031, 0.02, 0.03]) == pytest.approx([0.06, 0.06, 0.06])


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)


# --- differences and ranks -------------------------------------------------------------------------------------------


def board(rng: np.random.Generator, shifts: list[float], clusters: int, noise: float = 0.05) -> list[pd.DataFrame]:
    """SAEs measured on the same contexts: what the documents do to all of them is far larger than their differences."""
    base = per_token(rng, clusters)
    common = base["num"] / base["den"]
    found = []
    for shift in shifts:
        own = rng.normal(0, noise, clusters)[base["cluster_id"]] + rng.normal(0, noise, len(base))
        found.append(base.assign(num=base["den"] * (common * np.exp(own) + shift)))
    return found


def test_paired_finds_what_unpaired_misses() -> None:
    rng = np.random.default_rng(5)
    a, b = board(rng, [0.0, 0.02], 26)
    one, two = ratio_interval(a, RATIO), ratio_interval(b, RATIO)
    assert one.high is not None
    assert two.low is not None
    assert one.high > two.low, "the intervals overlap widely"
    found = paired_difference(a, b, RATIO)
    assert found.p_value is not None
    assert found.p_value < 1e-3
    assert found.high is not None
    assert found.high < 0
    assert ranks([a, b], RATIO, "lower") == [1, 2]
    assert ranks([a, b], RATIO, "higher") == [2, 1]


@pytest.mark.parametrize("saes", [12, 100])
@pytest.mark.parametrize("tied", ["all", "pairs"])
def test_false_placements_are_on_at_most_one_board_in_twenty(saes: int, tied: str) -> None:
    """40 boards; 5 % is 2, plus three binomial standard errors (1.4 each). `tests/simulation.py ranks` is the large study."""
    shifts = np.zeros(saes) if tied == "all" else 50.0 * (np.arange(saes) // 2)
    wrong = 0
    for trial in range(40):
        units = simulation.board(np.random.default_rng([6, trial, saes]), shifts, 10)
        wrong += simulation.false_placement(shifts, ranks(units, RATIO, "higher"))
    assert wrong <= 6


@pytest.mark.parametrize("copies", [12, 88])
@pytest.mark.parametrize("exact", [True, False])
def test_irrelevant_saes_move_no_rank(copies: int, exact: bool) -> None:
    """Copies of a random SAE, exact or of other seeds, at the bottom of the board; exact ones also where they are not last."""
    rng = np.random.default_rng(11)
    shifts = np.array([0.0, 0.4, 0.9, 1.3, 1.4, 2.5, 2.6, 4.0, -30.0])
    units = simulation.board(rng, shifts, 40)
    before = ranks(units, RATIO, "higher")
    assert len(set(before)) >= 5
    worst = units[-1]
    added = [worst if exact else worst.assign(num=worst["num"] + 0.1 * rng.normal(size=40)) for _ in range(copies)]
    assert ranks(units + added, RATIO, "higher")[:9] == before
    if exact:
        down = ranks(units, RATIO, "lower")
        assert ranks(units + added, RATIO, "lower")[:9] == down
        middle = [units[4]] * copies
        assert ranks(units + middle, RATIO, "higher") == before + [before[4]] * copies


def test_a_table_of_more_scores_needs_more_evidence() -> None:
    rng = np.random.default_rng(12)
    units = simulation.board(rng, np.array([0.0, 2.0]), 26)
    p = paired_difference(*units, RATIO).p_value
    assert p is not None
    enough = int(0.05 / p / 1.3)  # the factor of the second place
    assert enough > 1
    assert ranks(units, RATIO, "higher", scores=enough) == [2, 1]
    assert ranks(units, RATIO, "higher", scores=enough + 1) == [1, 1]


def test_better_needs_a_size_too() -> None:
    """Two seeds of one recipe differ by 5e-5 in explained variance, consistently: not better. Twenty times that is."""
    rng = np.random.default_rng(13)
    score = Ratio("num", "den", offset=1.0, scale=-1.0)
    a = per_token(rng, 26)
    seed, other = (
        a.assign(num=a["num"] - a["den"] * (gap + 0.2 * gap * rng.normal(size=26)[a["cluster_id"]]))
        for gap in (5e-5, 1e-3)
    )
    near, far = paired_difference(seed, a, score), paired_difference(other, a, score)
    assert near.p_value is not None
    assert near.p_value < 1e-6
    assert verdict(near, "higher", 3e-4) == "negligible"
    assert verdict(far, "higher", 3e-4) == "better"
    assert verdict(far, "lower", 3e-4) == "worse"
    assert verdict(far, None, 3e-4) == "differs"
    assert verdict(near, "higher") == "better", "none is known: significance alone"
    assert verdict(far, "higher", 3e-4, p_value=0.06) == "same"
    fixed = paired_difference(frame(33 * ONES, ONES, range(20)), frame(30 * ONES, ONES, range(20)), RATIO)
    assert verdict(fixed, None) == "differs", "an L0 that each architecture fixes"
    assert verdict(fixed, "higher") == "unknown"
    assert verdict(None, "higher") == verdict(replace(far, p_value=None), "higher") == "unknown"
    assert ranks([a, seed, other], score, "higher") == [3, 2, 1]
    assert ranks([a, seed, other], score, "higher", smallest=3e-4) == [2, 2, 1]


def test_four_standard_errors_are_told_apart() -> None:
    """Seven SAEs in a row, each four standard errors of a paired difference better than the next, 200 documents."""
    rng = np.random.default_rng(7)
    probe = board(rng, [0.0, 0.0], 200)
    trial = paired_difference(*probe, RATIO)
    assert trial.high is not None
    step = 4 * (trial.high - trial.value) / 1.98
    told = total = 0
    for _ in range(40):
        found = ranks(board(rng, [step * i for i in range(7)], 200), RATIO, "lower")
        assert found[0] == 1
        told += sum(one != two for one, two in pairwise(found))
        total += 6
    assert told / total >= 0.7


def test_ranks_leave_room_for_ties() -> None:
    """C is better than A, B ties with both: rank is one plus the number that are significantly better."""
    rng = np.random.default_rng(8)
    ones = np.ones(30)
    a, b, c = rng.normal(1.0, 0.1, 30), rng.normal(1.06, 1.0, 30), rng.normal(1.12, 0.1, 30)
    saes = [frame(x - x.mean() + m, ones, range(30)) for x, m in ((a, 1.0), (b, 1.06), (c, 1.12))]
    assert ranks(saes, RATIO, "higher") == [2, 1, 1]
    assert ranks(saes, RATIO, "lower") == [1, 1, 2]
    assert ranks(saes, RATIO, None) == [None, None, None]
    assert ranks(saes[:1], RATIO, "lower") == [1]
    assert ranks([], RATIO, "lower") == []
    flipped = Ratio("num", "den", offset=1.0, scale=-1.0)
    assert ranks(saes, flipped, "higher") == [1, 1, 2]


def test_rounding_is_not_a_difference() -> None:
    """The same SAE in two file formats: differences of 1e-7, however consistent, are below what a score promises."""
    rng = np.random.default_rng(9)
    a = per_token(rng, 26)
    b = a.assign(num=a["num"] * (1 + 1e-7))
    assert paired_difference(a, b, RATIO).p_value == 1.0
    assert ranks([a, b], RATIO, "lower") == [1, 1]
    same = paired_difference(a, a, RATIO)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, None, None, 1.0)
    assert same.no_interval == "no variance in 26 clusters"


def test_pairs_are_matched_by_unit_and_not_by_row() -> None:
    rng = np.random.default_rng(10)
    a = per_token(rng, 12)
    b = a.assign(num=a["num"] * 1.1)
    right = paired_difference(a, b, RATIO)
    again = paired_difference(a, b.sample(frac=1, random_state=0), RATIO)
    assert numbers(again) == pytest.approx(numbers(right), rel=1e-9)
    part = paired_difference(a, b.iloc[20:], RATIO)
    assert part.n == len(a) - 20
    assert numbers(part) == pytest.approx(numbers(paired_difference(a.iloc[20:], b.iloc[20:], RATIO)), rel=1e-9)


# --- units that do not pair ------------------------------------------------------------------------------------------


def test_independent_difference_is_welchs_t_test() -> None:
    """Equal weights: value, interval and p of scipy's t-test with unequal variances."""
    rng = np.random.default_rng(20)
    a, b = rng.normal(0.8, 0.1, 40), rng.normal(0.7, 0.3, 23)
    found = independent_difference(frame(a, np.ones(40), range(40)), frame(b, np.ones(23), range(23)), RATIO)
    welch = scipy_stats.ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert numbers(found) == pytest.approx([a.mean() - b.mean(), interval.low, interval.high], rel=1e-9)
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-9)
    assert (found.n, found.clusters) == (63, 63)


def test_latents_of_the_same_number_are_not_paired() -> None:
    """Two samples that are nearly equal row by row: paired, the difference is clear; independent, it is wide."""
    rng = np.random.default_rng(21)
    a = rng.normal(0.8, 0.2, 50)
    b = a - rng.normal(0.01, 0.002, 50)
    one, two = frame(a, np.ones(50), range(50)), frame(b, np.ones(50), range(50))
    paired, apart = paired_difference(one, two, RATIO), independent_difference(one, two, RATIO)
    assert paired.p_value is not None
    assert paired.p_value < 1e-6
    assert apart.p_value == pytest.approx(scipy_stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert ranks([one, two], RATIO, "higher") == [1, 2]
    assert ranks([one, two], RATIO, "higher", paired=False) == [1, 1]
    far = frame(a - 0.5, np.ones(50), range(50, 100))
    assert ranks([far, one, two], RATIO, "higher", paired=False) == [3, 1, 1]


def test_independent_differences_that_do_not_vary() -> None:
    ones = np.ones(5)
    found = independent_difference(frame(0.9 * ones, ones, range(5)), frame(0.5 * ones, ones, range(5)), RATIO)
    assert (found.value, found.low, found.high, found.p_value) == (pytest.approx(0.4), None, None, None)
    same = independent_difference(frame(ones, ones, range(5)), frame(ones, ones, range(5)), RATIO)
    assert (same.value, same.p_value) == (0.0, 1.0)
    one = independent_difference(frame(ones, ones, range(5)), frame([1, 2, 3, 4, 5], ones, range(5)), RATIO)
    assert (one.p_value, one.no_interval) == (None, "no variance in 5 clusters")
    alone = independent_difference(frame([1.0], [1.0], [0]), frame(ones, ones, range(5)), RATIO)
    assert alone.low is None
    assert alone.no_interval


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_one_document_has_no_interval() -> None:
    units = frame([1, 2, 3], [1, 1, 1], [7, 7, 7])
    found = ratio_interval(units, RATIO)
    assert (found.value, found.low, found.high) == (2.0, None, None)
    assert found.no_interval == "all units lie in one document"
    difference = paired_difference(units, units, RATIO)
    assert (difference.value, difference.p_value, difference.no_interval) == (0.0, None, found.no_interval)
    assert ranks([units, units], RATIO, "lower") == [None, None]
    lopsided = ratio_interval(frame([1, 2], [1, 0], [0, 1]), RATIO)
    assert lopsided.no_interval == "one document holds more than 99% of the denominator"


# --- no variance: an exact interval or none, and never a p-value of 0 --------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 20, 1000])
@pytest.mark.parametrize("right", [0, 1])
def test_all_right_or_all_wrong_has_the_exact_binomial_interval(n: int, right: int) -> None:
    units = frame(np.full(n, right), np.ones(n), range(n))
    found = ratio_interval(units, SHARE)
    exact = scipy_stats.binomtest(right * n, n).proportion_ci(0.95, "exact")
    assert numbers(found) == pytest.approx([right, exact.low, exact.high], abs=1e-12)
    turned = ratio_interval(units, Ratio("num", "den", offset=1.0, scale=-1.0, within=(0, 1)))
    assert numbers(turned) == pytest.approx([1 - right, 1 - exact.high, 1 - exact.low], abs=1e-12)


ONES = np.ones(20)


@pytest.mark.parametrize(
    ("units", "clusters"),
    [
        (frame(0.3 * ONES, ONES, range(20)), 20),  # not 0 or 1
        (frame(ONES, ONES, np.arange(20) // 2), 10),  # two units per cluster are not independent
        (frame(np.arange(1, 21), np.arange(1, 21), range(20)), 20),  # 1, in unequal weights
        (frame([3.0, 2.0], [10.0, 20 / 3], [0, 1]), 2),
        (frame([7.0, 14.0], [7.0, 14.0], [0, 1]), 2),
        (frame(0.1 * np.arange(1, 21), 0.3 * np.arange(1, 21), range(20)), 20),  # equal but for rounding
        (frame(0.1 * np.arange(1, 21, dtype=np.float32), 0.3 * np.arange(1, 21), range(20)), 20),  # float32 sums
    ],
)
def test_no_variance_has_no_interval(units: pd.DataFrame, clusters: int) -> None:
    found = ratio_interval(units, RATIO)
    if found.value <= 1:
        assert ratio_interval(units, SHARE) == found
    assert (found.low, found.high) == (None, None)
    assert found.no_interval == f"no variance in {clusters} clusters"
    other = units.assign(num=units["num"] * 2)
    for difference in (paired_difference(units, other, RATIO), independent_difference(units, other, RATIO)):
        assert difference.value == pytest.approx(-found.value)
        assert (difference.p_value, difference.low, difference.high) == (None, None, None)
        assert difference.no_interval == found.no_interval
    assert ranks([units, other], RATIO, "higher") == [1, 1]


@pytest.mark.parametrize("n", [2, 3, 20, 2000])
def test_a_difference_of_shares_without_variance_is_a_sign_test(n: int) -> None:
    """A is right and B wrong on every unit. The chance of that if both were as good is 2^(1−n)."""
    a, b = frame(np.ones(n), np.ones(n), range(n)), frame(np.zeros(n), np.ones(n), range(n))
    found = paired_difference(a, b, SHARE)
    assert found.p_value == pytest.approx(max(2.0 ** (1 - n), 1e-300))
    assert found.p_value is not None
    assert found.p_value > 0
    least = scipy_stats.binomtest(n, n).proportion_ci(0.95, "exact").low
    assert numbers(found) == pytest.approx([1, 2 * least - 1, 1], abs=1e-12)
    back = paired_difference(b, a, SHARE)
    assert numbers(back) == pytest.approx([-1, -1, 1 - 2 * least], abs=1e-12)
    same = paired_difference(a, a, SHARE)
    assert same.p_value == 1.0
    assert (same.low, same.high) == pytest.approx((least - 1, 1 - least), abs=1e-12)


def test_a_p_value_never_underflows_to_0() -> None:
    rng = np.random.default_rng(22)
    a = frame(1 + 1e-5 * rng.normal(size=500), np.ones(500), range(500))
    far = a.assign(num=1e-5 * rng.normal(size=500))
    for found in (paired_difference(a, far, RATIO), independent_difference(a, far, RATIO)):
        assert found.p_value is not None
        assert found.p_value > 0


def test_limits_hold_where_there_is_no_interval() -> None:
    """One document, or none that varies: a value beyond the declared limits is an error all the same."""
    for clusters in ([7, 7], [1, 2]):
        with raises(SaebenchError, "1.5", 0, 1):
            ratio_interval(frame([1.5, 1.5], [1, 1], clusters), Ratio("num", "den", within=(0, 1)))


@pytest.mark.parametrize(
    ("units", "parts"),
    [
        (frame([1, np.nan], [1, 1], [0, 1]), ("num", "nan", "unit 1")),
        (frame([1, 1], [1, np.inf], [0, 1]), ("den", "inf", "unit 1")),
        (frame([1, 1], [0, 0], [0, 1]), ("den", "sums to 0")),
        (frame([1, 1], [1, -1], [0, 1]), ("den", "sums to 0")),
        (frame([], [], []), ("no units",)),
        (frame([1], [1], [0]).drop(columns="num"), ("no column", "num")),
        (frame([1], [1], [0]).drop(columns="cluster_id"), ("no column", "cluster_id")),
        (frame([1, 1], [1, 1], [0, None]), ("missing", "cluster_id")),
    ],
)
def test_bad_units_are_refused(units: pd.DataFrame, parts: tuple[str, ...]) -> None:
    with raises(SaebenchError, *parts):
        ratio_interval(units, RATIO)


def test_pairs_that_are_refused() -> None:
    a = frame([1, 2, 3], [1, 1, 1], [0, 0, 1])
    with raises(SaebenchError, "no unit is shared"):
        paired_difference(a, a.assign(unit_id=[7, 8, 9]), RATIO)
    with raises(SaebenchError, "unit 1", "different documents"):
        paired_difference(a, a.assign(cluster_id=[0, 1, 1]), RATIO)
    with raises(SaebenchError, "unit 4", "twice"):
        paired_difference(a, a.assign(unit_id=[4, 4, 5]), RATIO)
    with raises(SaebenchError, "num", "den"):
        ratio_interval(a, Score("norm", value=1.0, no_interval="exact"))


def test_an_interval_ends_where_its_score_does() -> None:
    """A share's does not leave [0, 1], a gap's not [-1, 1]; nothing is concluded from what happened to be drawn."""
    groups = np.repeat(np.arange(4), 25)
    right = frame((groups != 0) * 1.0, np.ones(100), groups)
    share = ratio_interval(right, Ratio("num", "den", within=(0, 1)))
    half = scipy_stats.t(3).ppf(0.975) * np.std([0, 1, 1, 1], ddof=1) / 2  # equal groups: a t interval of their means
    assert (share.value, share.low, share.high) == (0.75, pytest.approx(max(0.0, 0.75 - half), abs=1e-9), 1.0)
    assert ratio_interval(right, Ratio("num", "den", 1.0, -1.0, within=(0, 1))).low == 0.0
    free = ratio_interval(right, RATIO)
    assert (free.low, free.high) == pytest.approx((0.75 - half, 0.75 + half), abs=1e-9)
    for within in ((0.0, 0.5), (0.8, 1.0), (1.0, 0.0)):
        with raises(SaebenchError, "0.75", f"{within[0]:g}", f"{within[1]:g}"):
            ratio_interval(right, Ratio("num", "den", within=within))
    # Gains of six zeros, a half and a one: that none is negative does not say that none can be.
    gains = frame([0, 0, 0, 0, 0, 0, 0.5, 1], np.ones(8), range(8))
    gain = ratio_interval(gains, Ratio("num", "den", within=(-1, 1)))
    assert gain.low is not None
    assert gain.low < 0
    assert ratio_interval(gains.assign(num=-gains["num"] * 3), Ratio("num", "den", within=(-1, 1))).low == -1.0
