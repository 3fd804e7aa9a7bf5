"""The schedule: the textual learning rate by its formulas, and every train sample once an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.config import TrainConfig
from skilltune.optimizer.schedule import learning_rate, schedule, steps_per_epoch
from skilltune.samples import Sample

# (schedule, lr, lr_min, edits at step 1, 2, …), worked out by hand; round() takes a half to the even neighbour.
RATES = [
    ("constant", 4, 2, [4, 4, 4, 4]),
    ("linear", 8, 2, [7, 6, 5, 4, 3, 2]),  # 8 − t
    ("linear", 4, 2, [4, 3, 2, 2]),  # 3.5, 3, 2.5, 2
    ("linear", 4, 2, [3, 3, 2]),  # 3.33, 2.67, 2
    ("linear", 4, 4, [4, 4, 4]),
    ("linear", 5, 1, [1]),
    ("cosine", 8, 2, [8, 6, 5, 4, 2, 2]),  # 7.60, 6.5, 5, 3.5, 2.40, 2
    ("cosine", 4, 2, [4, 3, 2, 2]),  # 3.71, 3, 2.29, 2
    ("cosine", 16, 1, [15, 11, 6, 2, 1]),  # 14.57, 10.82, 6.18, 2.43, 1
    ("cosine", 10, 2, [10, 9, 8, 6, 4, 3, 2, 2]),  # 9.70, 8.83, 7.53, 6, 4.47, 3.17, 2.30, 2
    ("cosine", 3, 3, [3, 3]),
    ("autonomous", 4, 2, [None, None, None]),
]


def make(n: int) -> list[Sample]:
    return [Sample(id=f"s{i:03}", input=f"q{i}") for i in range(n)]


@pytest.mark.parametrize(("name", "lr", "lr_min", "expected"), RATES)
def test_the_learning_rate_follows_its_formula(name, lr, lr_min, expected):
    steps = len(expected)
    assert [learning_rate(name, step, steps, lr, lr_min) for step in range(1, steps + 1)] == expected


@given(st.sampled_from(["linear", "cosine"]), st.integers(1, 50), st.integers(1, 20), st.integers(0, 20))
def test_pitfall_7_a_decaying_rate_never_rises_and_ends_at_its_minimum_never_at_zero(name, steps, lr_min, more):
    rates = [learning_rate(name, step, steps, lr_min + more, lr_min) or 0 for step in range(1, steps + 1)]
    assert all(lr_min <= rate <= lr_min + more for rate in rates)
    assert all(later <= earlier for earlier, later in pairwise(rates))
    assert rates[-1] == lr_min


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 4), st.integers(0, 3), st.data())
def test_each_epoch_visits_every_train_sample_once_in_any_order_of_the_file(n, batch_size, epochs, seed, data):
    cfg = TrainConfig(batch_size=batch_size, epochs=epochs)
    samples = make(n)
    steps = list(schedule(cfg, samples, seed))
    assert len(steps) == epochs * steps_per_epoch(cfg, n)
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    for epoch in range(1, epochs + 1):
        own = [step for step in steps if step.epoch == epoch]
        assert Counter(sample.id for step in own for sample in step.batch) == Counter(s.id for s in samples)
        assert all(len(step.batch) == batch_size for step in own[:-1])
        assert [step.starts_epoch for step in own] == [True] + [False] * (len(own) - 1)
        assert [step.ends_epoch for step in own] == [False] * (len(own) - 1) + [True]
    assert [step.upcoming for step in steps] == [*[step.batch for step in steps[1:]], ()]
    assert list(schedule(cfg, data.draw(st.permutations(samples)), seed)) == steps


def test_epochs_and_seeds_differ_in_their_order():
    def orders(seed: int) -> list[list[str]]:
        steps = schedule(TrainConfig(batch_size=30, epochs=3), make(30), seed)
        return [[sample.id for sample in step.batch] for step in steps]

    made = [*orders(1), *orders(2)]
    assert len({tuple(order) for order in made}) == 6
    assert orders(1) == orders(1)


def test_the_rate_of_a_step_spans_all_epochs():
    steps = list(schedule(TrainConfig(batch_size=2, epochs=2, lr=8, lr_min=2, schedule="linear"), make(5), 0))
    assert [step.lr for step in steps] == [7, 6, 5, 4, 3, 2]
    autonomous = schedule(TrainConfig(batch_size=2, epochs=1, schedule="autonomous"), make(5), 0)
    assert [step.lr for step in autonomous] == [None] * 3


def test_no_samples_and_no_epochs_are_no_steps():
    assert list(schedule(TrainConfig(), [], 0)) == []
    assert list(schedule(TrainConfig(epochs=0), make(5), 0)) == []
