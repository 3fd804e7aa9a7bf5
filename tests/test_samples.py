"""Splits: a partition that keeps groups together in any order of the file; power: numbers that simulation bears out."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.errors import UsageError
from skilltune.samples import SPLITS, Sample, Splits, describe_power, detectable_gain, split, too_small


def make(n: int, **kw) -> list[Sample]:
    return [Sample(id=f"s{i}", input=f"question {i}", **kw) for i in range(n)]


def home(splits: Splits) -> dict[str, str]:
    return {sample.id: name for name in SPLITS for sample in getattr(splits, name)}


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(getattr(splits, name)) for name in SPLITS)


def test_the_ratio_is_exact_without_groups():
    assert sizes(split(make(10))) == (4, 3, 3)
    assert sizes(split(make(200))) == (80, 60, 60)
    assert sizes(split(make(101), ratio=(2, 1, 7))) == (20, 10, 71)
    assert sizes(split(make(10), ratio=(1, 1, 0))) == (5, 5, 0)
    assert sizes(split(make(3))) == (1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=40, max_size=80),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_splits_partition_keep_groups_together_and_ignore_order(groups, seed, data):
    samples = [
        Sample(id=f"s{i}", input=f"q{i}", group=None if group is None else f"g{group}")
        for i, group in enumerate(groups)
    ]
    splits = split(samples, seed=seed)
    assert Counter(s.id for name in SPLITS for s in getattr(splits, name)) == Counter(s.id for s in samples)
    where = home(splits)
    for group in {s.group for s in samples} - {None}:
        assert len({where[s.id] for s in samples if s.group == group}) == 1
    largest = max(Counter(g for g in groups if g is not None).values(), default=1)
    for name, share in zip(SPLITS, (0.4, 0.3, 0.3), strict=True):
        assert abs(len(getattr(splits, name)) - share * len(samples)) <= largest
    assert split(data.draw(st.permutations(samples)), seed=seed) == splits


def test_equal_groups_are_shared_out_by_the_ratio():
    samples = [Sample(id=f"s{i}", input=f"q{i}", group=f"template {i // 4}") for i in range(80)]
    assert sizes(split(samples)) == (32, 24, 24)


def test_single_samples_even_out_what_groups_leave():
    grouped = [Sample(id=f"g{i}", input=f"q{i}", group=f"template {i // 8}") for i in range(24)]
    assert sizes(split([*make(36), *grouped])) == (24, 18, 18)


def test_the_seed_changes_the_splits_and_their_order():
    samples = make(60)
    first, second = split(samples, seed=0), split(samples, seed=1)
    assert home(first) != home(second)
    assert [s.id for s in first.train] != sorted((s.id for s in first.train), key=lambda name: int(name[1:]))


def test_adding_a_sample_moves_few_others():
    samples = make(200)
    before = home(split(samples))
    for extra in range(10):
        after = home(split([*samples, Sample(id=f"new{extra}", input=f"another {extra}")]))
        assert sum(before[name] != after[name] for name in before) <= 2


def test_an_explicit_split_wins_and_the_others_fill_up_the_ratio():
    samples = [*make(30)]
    fixed = [s.model_copy(update={"split": "test"}) for s in samples[:9]]
    splits = split([*fixed, *samples[9:]])
    assert sizes(splits) == (12, 9, 9)
    assert {s.id for s in splits.test} == {s.id for s in fixed}


def test_samples_of_a_group_follow_its_explicit_split():
    samples = [*make(20), Sample(id="a", input="a", group="g", split="select"), Sample(id="b", input="b", group="g")]
    assert home(split(samples))["b"] == "select"


def test_a_group_with_two_explicit_splits_is_refused():
    samples = [
        *make(8),
        Sample(id="a", input="a", group="g", split="train"),
        Sample(id="b", input="b", group="g", split="test"),
    ]
    with pytest.raises(UsageError, match='group "g" is in test and train'):
        split(samples)


def test_pitfall_10_the_same_sample_under_two_ids_never_straddles():
    for seed in range(20):
        twins = [Sample(id="a", input="same", target="x"), Sample(id="b", input="same", target="x")]
        where = home(split([*make(10), *twins], seed=seed))
        assert where["a"] == where["b"]


def test_pitfall_17_duplicate_ids_are_refused():
    with pytest.raises(UsageError, match='"s0" occurs more than once'):
        split([*make(10), *make(1)])


@pytest.mark.parametrize(
    ("n", "ratio", "empty"), [(1, (4, 3, 3), "select"), (4, (2, 1, 7), "select"), (0, (1, 1, 1), "train")]
)
def test_an_empty_train_or_select_is_a_usage_error_that_tells_the_sizes(n, ratio, empty):
    with pytest.raises(UsageError, match=rf"the {empty} split is empty \(train \d, select 0, test \d; {n} samples?,"):
        split(make(n), ratio=ratio)


@pytest.mark.parametrize("ratio", [(1, 1), (1, -1, 1), (0, 0, 0), (1, math.nan, 1)])
def test_a_ratio_that_is_none_is_refused(ratio):
    with pytest.raises(UsageError, match="ratio"):
        split(make(10), ratio=ratio)


def exact_p(wins: int, losses: int) -> float:
    n = wins + losses
    return sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n


@pytest.mark.parametrize("n", [12, 30, 60, 140])
def test_the_detectable_gain_is_seen_four_times_out_of_five_by_the_exact_test(n):
    gain, differ, random_ = detectable_gain(n), max(0.2, detectable_gain(n)), random.Random(n)
    seen = 0
    for _ in range(2000):
        draws = [random_.random() for _ in range(n)]
        wins = sum(draw < (differ + gain) / 2 for draw in draws)
        losses = sum((differ + gain) / 2 <= draw < differ for draw in draws)
        seen += exact_p(wins, losses) <= 0.05
    assert 0.75 < seen / 2000 < 0.85  # three standard errors of the simulation are 0.027


def test_sixty_samples_see_fifteen_points():
    assert detectable_gain(60) == pytest.approx(0.15, abs=0.005)
    gains = [detectable_gain(n) for n in range(5, 400)]
    assert gains == sorted(gains, reverse=True)
    assert detectable_gain(60, power=0.9) > detectable_gain(60)
    assert detectable_gain(60, discordant=0.4) > detectable_gain(60)


def test_too_few_samples_see_nothing():
    assert [detectable_gain(n) for n in (0, 1, 4)] == [math.inf] * 3
    assert detectable_gain(5) < 1


def test_the_power_is_told_in_plain_words():
    assert describe_power(split(make(200))).splitlines() == [
        "train 80 · select 60 · test 60",
        "select: 60 paired samples see a gain of 15 points or more 4 times out of 5",
        "test: 60 paired samples see a gain of 15 points or more 4 times out of 5",
    ]
    small = describe_power(split(make(8), ratio=(1, 1, 0)))
    assert "select: 4 paired samples are too few to show any gain" in small
    assert "test: empty, so nothing will be certified" in small
    assert "test: 9 paired samples are too few to certify any gain (at least 10" in describe_power(split(make(30)))


def test_what_is_too_small_to_prove_anything_is_said_once():
    assert too_small(split(make(40))) == ""
    assert too_small(split(make(20), ratio=(1, 1, 0))) == ""  # no certificate was wanted
    assert too_small(split(make(5))) == (
        "select has 2 of the 5 samples that it takes to show any gain; "
        "test has 1 of the 10 samples that it takes to certify any gain"
    )


def test_groups_are_counted_in_the_power():
    grouped = [Sample(id=f"s{i}", input=f"q{i}", group=f"g{i // 4}") for i in range(80)]
    assert "they form 6 groups" in describe_power(split(grouped))
