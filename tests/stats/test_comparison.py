"""The certificate's test: level, power, agreement of p and interval; against scipy and by simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from skilltune.stats import difference_interval, mcnemar, paired, score_interval
from skilltune.stats.bounded import mean_above, mean_interval
from skilltune.stats.proportions import discordant_interval

scores = st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=25)
coins = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40)
quick = settings(max_examples=20, deadline=None)


def split(both: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [before for before, _ in both], [after for _, after in both]


# -- properties


@quick
@given(pairs | coins, st.sampled_from([0.01, 0.025, 0.05, 0.2]))
def test_the_interval_excludes_zero_exactly_if_p_is_below_alpha(both, alpha):
    said = paired(*split(both), alpha=alpha)
    assert (said.low > 0) == (said.p < alpha)
    assert -1 - 1e-9 <= said.low <= said.gain + 1e-9
    assert said.gain - 1e-9 <= said.high <= 1 + 1e-9
    assert said.high >= 0
    assert 0 <= said.p <= 1


@quick
@given(pairs | coins, st.data())
def test_p_never_grows_if_an_answer_gets_better(both, data):
    before, after = split(both)
    index = data.draw(st.integers(0, len(both) - 1))
    better = after[:]
    better[index] = data.draw(st.floats(after[index], 1)) if sum(after) % 1 > 0 else 1.0
    if all(score in (0.0, 1.0) for score in (*before, *after)) != all(
        score in (0.0, 1.0) for score in (*before, *better)
    ):
        return  # another test then
    assert paired(before, better).p <= paired(before, after).p + 1e-12


@quick
@given(pairs | coins, st.randoms(use_true_random=False), st.integers(0, 99))
def test_order_and_seed_change_nothing(both, shuffler, seed):
    shuffled = both[:]
    shuffler.shuffle(shuffled)
    one, other = paired(*split(both)), paired(*split(shuffled), seed=seed)
    assert (one.p, one.low, one.high) == pytest.approx((other.p, other.low, other.high), abs=1e-9)


@quick
@given(pairs | coins)
def test_groups_of_one_are_no_groups(both):
    before, after = split(both)
    alone = paired(before, after)
    assert paired(before, after, groups=list(range(len(both)))) == alone
    assert paired(before, after, groups=[None] * len(both)) == alone
    assert paired([[score] for score in before], [[score] for score in after]) == alone


def test_groups_may_be_named_or_nested():
    before, after = [0.0, 0.5, 0.2, 0.1, 0.0], [1.0, 0.5, 0.9, 0.3, 1.0]
    named = paired(before, after, groups=["a", None, "b", "a", None])
    nested = paired([[0.0, 0.1], [0.5], [0.2], [0.0]], [[1.0, 0.3], [0.5], [0.9], [1.0]])
    assert (named.p, named.low, named.high, named.gain) == pytest.approx(
        (nested.p, nested.low, nested.high, nested.gain)
    )
    assert "groups" in named.method


@quick
@given(pairs | coins)
def test_the_plain_interval_is_odd_and_holds_the_gain(both):
    before, after = split(both)
    low, high = difference_interval(before, after)
    back = difference_interval(after, before)
    assert (-back[1], -back[0]) == pytest.approx((low, high), abs=1e-6)
    gain = math.fsum(after) / len(both) - math.fsum(before) / len(both)
    assert low - 1e-9 <= gain <= high + 1e-9


def test_scores_out_of_range_and_unequal_lengths_are_refused():
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            paired([0.5], [bad])
    with pytest.raises(ValueError, match="shorter"):
        paired([0.5, 0.5], [0.5])
    with pytest.raises(ValueError, match="shorter"):
        paired([0.5, 0.5], [0.5, 0.5], groups=["a"])


def test_nothing_says_nothing():
    said = paired([], [])
    assert (said.p, said.low, said.high, said.gain) == (1, -1, 1, 0)
    assert mean_interval([]) == (0, 1)
    said = paired([[0.5, 0.25]] * 10, [[0.5, 0.25]] * 10)
    assert said.p == 1
    assert said.low < -0.1 < 0.1 < said.high


# -- the exact test and its interval


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test(fixed, broken):
    if fixed + broken:
        exact = binomtest(fixed, fixed + broken, alternative="greater").pvalue
        assert mcnemar(fixed, broken) == pytest.approx(exact, rel=1e-9)
        said = paired([0.0] * fixed + [1.0] * broken + [0.0, 1.0], [1.0] * fixed + [0.0] * broken + [0.0, 1.0])
        assert said.p == mcnemar(fixed, broken)


@pytest.mark.parametrize(("n", "one_sided"), [(10, True), (7, False)])
def test_the_exact_interval_covers_every_truth(n: int, one_sided: bool):
    """Exact coverage: every possible table, weighted by its probability, under many truths. With `one_sided`, and a
    gain of 0 or less, only the low end errs."""
    tables = [(f, b) for f in range(n + 1) for b in range(n + 1 - f)]
    intervals = np.array([discordant_interval(f, b, n, 0.05, one_sided) for f, b in tables])
    fixed, broken = np.array(tables).T
    for change, right in product((0.02, 0.1, 0.3, 0.6, 0.95, 1.0), (0.0, 0.1, 0.4, 0.49, 0.5, 0.51, 0.6, 0.9, 1.0)):
        chance = binom.pmf(fixed + broken, n, change) * binom.pmf(fixed, fixed + broken, right)
        truth = change * (2 * right - 1)
        missed_low = chance[intervals[:, 0] > truth + 1e-9].sum()
        missed_high = chance[intervals[:, 1] < truth - 1e-9].sum()
        assert missed_low + missed_high <= 0.05 + 1e-9, (change, right)
        if one_sided and truth <= 0:
            assert missed_high == 0
        if not one_sided:
            assert max(missed_low, missed_high) <= 0.025 + 1e-9, (change, right)


def test_the_exact_interval_is_about_as_wide_as_the_best_approximations():
    """Newcombe's method 10 (1998), which is no exact one, gives [6.5, 26.2], [82.2, 93.8] and [5.6, 32.9] points."""
    for fixed, broken, n, low, high in ((30, 10, 120, 0.05, 0.30), (108, 0, 120, 0.80, 0.97), (12, 2, 50, 0.03, 0.40)):
        found = discordant_interval(fixed, broken, n, 0.05)
        assert low <= found[0] <= (fixed - broken) / n <= found[1] <= high


# -- the betting test


def wealth(differences: Sequence[float], share: float) -> float:
    return math.prod(1 + share * d for d in differences)


def test_p_is_one_over_the_average_wealth():
    differences = [0.5, -0.2, 0.9, 0.0, 0.4, 0.3, -0.1, 0.6]
    least = min(1.0, 1.5 * math.sqrt(2 * math.log(20) / len(differences)))
    shares = [least ** (1 - k / 23) for k in range(24)]
    average = math.fsum(wealth(differences, share) for share in shares) / 24
    assert mean_above([[(1 + d) / 2] for d in differences], 0.5) == pytest.approx(min(1, 1 / average))


@quick
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=1, max_size=4), min_size=1, max_size=8),
    st.floats(0.01, 0.98),
)
def test_p_grows_with_the_mean_in_question(units, mean):
    assert mean_above(units, mean) <= mean_above(units, mean + 0.01) + 1e-12


def test_no_two_point_distribution_is_certified_too_often():
    """Exact: the worst distributions for a bounded mean have two values. Of the differences all but some are `small`,
    the rest −1 or whatever makes the mean 0."""
    for n, small in product((10, 30, 80), (0.01, 0.05, 0.2, 0.5, 1.0)):
        for loss in (small, 0.5, 1.0):
            if loss < small:
                continue
            lost = np.arange(n + 1)
            p = [mean_above([[(1 - loss) / 2]] * k + [[(1 + small) / 2]] * (n - k), 0.5) for k in range(n + 1)]
            chance = binom.pmf(lost, n, small / (small + loss))
            assert chance[np.array(p) < 0.05].sum() <= 0.05


def drawn(kind: str) -> Callable[[random.Random], list[list[float]]]:
    """Differences without a gain, in units."""
    match kind:
        case "wrecked":
            return lambda draw: [[-0.98 if draw.random() < 0.02 else 0.02] for _ in range(60)]
        case "a group broken":
            return lambda draw: [[-1.0] * 6 if draw.random() < 1 / 7 else [1.0] + [0.0] * 5 for _ in range(10)]
        case "as one":
            return lambda draw: [[draw.choice((-1.0, 0.0, 1.0))] * draw.randint(1, 6) for _ in range(12)]
        case _:
            return lambda draw: [[draw.choices((0.1, -0.9), (0.9, 0.1))[0]] for _ in range(40)]


@pytest.mark.parametrize("kind", ["wrecked", "a group broken", "as one", "skewed"])
def test_skewed_and_grouped_differences_are_not_certified_by_luck(kind: str):
    draw, make, claimed, runs = random.Random(kind), drawn(kind), 0, 400
    for _ in range(runs):
        units = [[(1 + d) / 2 for d in unit] for unit in make(draw)]
        claimed += mean_above(units, 0.5) < 0.05
    assert claimed <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs)


def test_a_plain_gain_is_certified():
    draw = random.Random(3)
    before = [draw.random() * 0.6 for _ in range(60)]
    said = paired(before, [min(1.0, score + draw.uniform(0, 0.4)) for score in before])
    assert said.p < 0.001
    assert 0.02 < said.low < said.gain < said.high < 0.4
    whole = paired([[0.0] * 12] * 10, [[1.0] * 11 + [0.0]] * 10)
    assert whole.p < 0.005
    assert whole.low > 0.2


def test_one_large_group_outweighs_many_small_ones():
    """The mean is that of samples: a group of 40 that turned wrong is not balanced by 20 samples that turned right."""
    units = [[1.0] * 40, *[[0.0]] * 20], [[0.0] * 40, *[[1.0]] * 20]
    assert paired(*units).p == 1
    assert paired(*units).gain == pytest.approx(-1 / 3)


# -- a single mean


def test_a_mean_score_gets_an_interval():
    assert score_interval([1.0, 0.0, 1.0, 1.0]) == score_interval([[1.0], [0.0], [1.0], [1.0]])
    low, high = score_interval([[1.0] * 5] * 6)
    assert low < 0.95
    assert high == 1
    low, high = score_interval([0.2, 0.4, 0.6] * 20)
    assert 0.2 < low < 0.4 < high < 0.6
