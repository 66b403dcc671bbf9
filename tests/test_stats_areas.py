"""Areas under the ROC curve: scikit-learn's value, intervals that cover, paired differences and ranks."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from saebench.errors import SaebenchError
from saebench.stats import Ratio, auroc_interval, independent_difference, paired_difference, ranks, ratio_interval
from saebench.stats.areas import _freedom
from tests.raising import raises
from tests.simulation import AREA, SIZES, area_coverage, labelled


@pytest.mark.parametrize("groups", [6, 10, 14, 26])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mixed", [False, True])
def test_coverage_of_areas(groups: int, sizes: str, mixed: bool) -> None:
    """95 % nominal; 100 intervals have a binomial standard error of 2.2 points, so two below are allowed; too wide is no fault
    here (one large group is rightly conservative). DeLong with clusters − 1 degrees of freedom falls to .74 to .92."""
    rng = np.random.default_rng([3, groups, SIZES.index(sizes), mixed])
    cover, paired = area_coverage(
        rng, 100, groups=groups, sizes=sizes, mixed=mixed, area=0.8, correlation=0.0 if mixed else 0.3
    )
    assert cover >= 0.906
    assert paired >= 0.89


def test_value_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    decision = np.round(rng.normal(size=200) + 0.8 * label, 1)  # rounded: ties
    found = auroc_interval(decision[:, None], label, np.arange(200))
    assert found.value == pytest.approx(roc_auc_score(label, decision), abs=1e-12)
    many = rng.integers(0, 4, 300)
    table = rng.normal(size=(300, 4)) + np.eye(4)[many]
    macro = np.mean([roc_auc_score(many == c, table[:, c]) for c in range(4)])
    assert auroc_interval(table, many, np.arange(300)).value == pytest.approx(macro, abs=1e-12)


def test_interval_and_paired_difference_agree_with_the_cluster_bootstrap() -> None:
    """60 groups: the bootstrap is good there. On the logit scale for the interval, on the plain one for the difference."""
    rng = np.random.default_rng(1)
    units = labelled(rng, 60, "equal", True, 0.75, 0.2)
    other = units.assign(decision=units["other"] + 0.8 * units["label"])
    found, gap = ratio_interval(units, AREA), paired_difference(other, units, AREA)
    rows = [np.flatnonzero(units["cluster_id"] == g) for g in range(60)]
    again = []
    for _ in range(300):
        at = np.concatenate([rows[g] for g in rng.integers(0, 60, 60)])
        label = units["label"].to_numpy()[at]
        again.append([roc_auc_score(label, frame["decision"].to_numpy()[at]) for frame in (units, other)])
    a, b = np.array(again).T
    assert found.low is not None
    assert found.high is not None
    width = np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))
    assert width / 4 == pytest.approx(np.std(np.log(a / (1 - a))), rel=0.15)
    assert gap.high is not None
    assert gap.low is not None
    assert (gap.high - gap.low) / 4 == pytest.approx(np.std(b - a), rel=0.15)
    assert gap.p_value is not None
    assert gap.p_value < 0.05


def test_freedom_against_matrices() -> None:
    rng = np.random.default_rng(2)
    for parts, groups in ((2, 6), (8, 11)):
        weight = rng.dirichlet(np.ones(groups), size=parts)
        variance = rng.random((parts, groups))
        covariance = np.zeros((groups, groups))
        for w, v in zip(weight, variance, strict=True):
            b = np.diag(w / np.sqrt(1 - w)) @ (np.eye(groups) - np.outer(np.ones(groups), w))
            covariance += b @ np.diag(v) @ b.T
        right = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
        assert _freedom(weight, variance) == pytest.approx(right, rel=1e-9)


def test_groups_of_one_label_each_give_welchs_freedom() -> None:
    """Three groups of either label, equal in size and spread: 2 + 2 degrees of freedom, not 5."""
    weight = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]) / 3
    assert _freedom(weight, (weight > 0) * 1.0) == pytest.approx(4)


def test_better_decisions_rank_first_and_equal_ones_share_a_rank() -> None:
    rng = np.random.default_rng(4)
    units = labelled(rng, 40, "lognormal", True, 0.6, 0.2)
    better = units.assign(decision=units["decision"] + 3 * units["label"])
    assert ranks([units, better, units.assign(decision=units["other"])], AREA, "higher") == [2, 1, 2]
    assert ranks([units, better], AREA, "higher", paired=False) == [2, 1]
    monotone = units.assign(decision=np.exp(units["decision"]))
    assert paired_difference(units, monotone, AREA).p_value == 1.0


def test_perfect_separation_and_single_groups_have_no_interval() -> None:
    label = np.repeat([0, 1], 10)
    perfect = pd.DataFrame({"unit_id": range(20), "cluster_id": range(20), "label": label, "decision": label * 1.0})
    found = ratio_interval(perfect, AREA)
    assert (found.value, found.low, found.no_interval) == (1.0, None, "no variance in 20 clusters")
    worse = perfect.assign(decision=-perfect["decision"])
    gap = paired_difference(perfect, worse, AREA)
    assert (gap.value, gap.p_value, gap.low) == (1.0, None, None)
    rng = np.random.default_rng(5)
    noisy = perfect.assign(decision=label + rng.normal(size=20))
    single = noisy.assign(cluster_id=np.where(label == 1, 99, noisy["cluster_id"]))  # every positive in one group
    assert ratio_interval(single, AREA).low is None
    assert ratio_interval(noisy.assign(cluster_id=7), AREA).no_interval == "all units lie in one document"
    apart = independent_difference(noisy, noisy.assign(decision=noisy["decision"] + 5 * label * rng.random(20)), AREA)
    assert apart.value < 0


def test_invariances() -> None:
    """Monotone transforms, order of units, names of groups; classes turned round."""
    rng = np.random.default_rng(6)
    units = labelled(rng, 14, "lognormal", False, 0.8, 0.3)
    first = ratio_interval(units, AREA)
    order = rng.permutation(len(units))
    changes: list[Callable[[pd.DataFrame], pd.DataFrame]] = [
        lambda u: u.iloc[order],
        lambda u: u.assign(decision=u["decision"] ** 3),
        lambda u: u.assign(cluster_id=100 - u["cluster_id"]),
        lambda u: u.assign(decision=-u["decision"], label=1 - u["label"]),
    ]
    for change in changes:
        found = ratio_interval(change(units), AREA)
        assert (found.value, found.low, found.high) == pytest.approx((first.value, first.low, first.high), rel=1e-9)


def test_bad_areas_are_refused() -> None:
    units = labelled(np.random.default_rng(7), 6, "equal", True, 0.8, 0.0)
    with raises(SaebenchError, "one class"):
        ratio_interval(units.assign(label=1), AREA)
    with raises(SaebenchError, "decision", "nan"):
        ratio_interval(units.assign(decision=np.nan), AREA)
    with raises(SaebenchError, "no column", "elsewhere"):
        ratio_interval(units, Ratio("elsewhere", "label", kind="area"))
