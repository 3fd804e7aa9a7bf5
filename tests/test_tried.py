"""All trials of a run in one model: nothing is forgotten when a step ends, and what claims are worth is learned."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from statistics import fmean

import pytest

from skilltune.gate.effects import Draw, solved
from skilltune.gate.tried import Evidence, Tried

SAMPLES = [f"t{i:02}" for i in range(24)]
RULE = frozenset(SAMPLES[:6])


def trials(version: str, edits: tuple[str, ...], scores: dict[str, float]) -> list[Tried]:
    return [Tried(sample, version, edits, score) for sample, score in scores.items()]


def started(failing: frozenset[str] = frozenset(SAMPLES[:18])) -> Evidence:
    """A version that fails three quarters of the samples."""
    return Evidence(incumbents={"v0": {sample: [float(sample not in failing)] for sample in SAMPLES}})


def chance(draws: list[Draw], edit: int) -> float:
    """P(an effect on claimed samples)."""
    return fmean(draw.claimed[edit] > 0 for draw in draws)


def level(draws: list[Draw], sample: str) -> float:
    return fmean(solved(draw.bases[sample]) for draw in draws)


def test_what_an_edit_did_is_known_after_it_left_the_pool():
    evidence = started()
    evidence.supports["a"] = RULE
    evidence.screened += trials("v0", ("a",), dict.fromkeys(RULE, 1.0))
    assert chance(evidence.draws("v0", ["a"], Random(1)), 0) > 0.9
    evidence.supports["b"] = frozenset(SAMPLES[6:12])
    evidence.screened += trials("v0", ("b",), dict.fromkeys(SAMPLES[6:12], 0.0))
    assert evidence.draws("v0", ["b"], Random(2))[0].claimed == pytest.approx((0,), abs=24)
    [drawn] = [evidence.draws("v0", ["b", "a"], Random(3))]
    assert chance(drawn, 1) > 0.9 > 0.3 > chance(drawn, 0)


def test_an_accepted_edit_is_part_of_what_the_next_incumbent_solves():
    """The version was not seen on these samples at all: the edit that led to it was."""
    evidence = started()
    evidence.supports["a"] = RULE
    evidence.screened += trials("v0", ("a",), dict.fromkeys(RULE, 1.0))
    evidence.lineage["v1"] = ("a",)
    before, after = (evidence.draws(version, ["z"], Random(1)) for version in ("v0", "v1"))
    for sample in RULE:
        assert level(before, sample) < 0.3
        assert level(after, sample) > 0.7
    assert level(after, SAMPLES[20]) == pytest.approx(level(before, SAMPLES[20]), abs=0.1)


def test_a_race_is_left_out_where_it_is_about_to_be_counted_again():
    evidence = started()
    evidence.supports["a"] = RULE
    evidence.raced["candidate"] = trials("v0", ("a",), dict.fromkeys(RULE, 1.0))
    assert chance(evidence.draws("v0", ["a"], Random(1)), 0) > 0.9
    evidence.last = None
    assert chance(evidence.draws("v0", ["a"], Random(1), without="candidate"), 0) == pytest.approx(0.5, abs=0.15)


def tossed(claims_are_true: bool, random: Random) -> Iterator[Tried]:
    """Eight edits, alone on what each claims: of these it solves all, or what the incumbent solves anyway."""
    for i in range(8):
        for sample in SAMPLES[2 * i : 2 * i + 2] * 3:
            right = claims_are_true != (random.random() < 0.05)
            yield Tried(sample, "v0", (f"edit {i}",), float(right))


@pytest.mark.parametrize("claims_are_true", [True, False])
def test_whether_claims_mean_anything_is_learned(claims_are_true: bool):
    evidence = started()
    evidence.supports |= {f"edit {i}": frozenset(SAMPLES[2 * i : 2 * i + 2]) for i in range(8)}
    evidence.screened += tossed(claims_are_true, Random(1))
    pool = [f"edit {i}" for i in range(8)]
    draws = evidence.draws("v0", pool, Random(1))
    assert evidence.claims > 0.8 if claims_are_true else evidence.claims < 0.3
    evidence.supports["fresh"] = frozenset(SAMPLES[16:18])
    fresh = chance(evidence.draws("v0", [*pool, "fresh"], Random(2)), 8)
    assert fresh > 0.6 if claims_are_true else fresh < 0.4
    assert len(draws[0].general) == len(draws[0].claimed) == 8


def test_the_draws_are_a_function_of_what_was_tried_and_the_seed():
    def drawn() -> list[Draw]:
        evidence = started()
        evidence.supports["a"] = RULE
        first = evidence.draws("v0", ["a"], Random(1), draws=10)
        evidence.screened += trials("v0", ("a",), dict.fromkeys(RULE, 1.0))
        return [*first, *evidence.draws("v0", ["a"], Random(2))]

    assert drawn() == drawn()


def test_the_order_in_which_trials_came_in_changes_nothing():
    """Also of edits that left the pool: rollouts of one screen end in any order."""

    def drawn(order: list[str]) -> list[Draw]:
        evidence = started()
        evidence.supports |= {"a": RULE, "b": frozenset(SAMPLES[6:12])}
        for key in order:
            evidence.screened += trials("v0", (key,), dict.fromkeys(evidence.supports[key], float(key == "a")))
        return evidence.draws("v0", ["z"], Random(1))

    assert drawn(["a", "b"]) == drawn(["b", "a"])


def test_repeats_of_a_failure_tell_bad_luck_from_a_lack():
    """Failed once and solved once is a sample of even odds; failed twice is one that is not solved."""
    evidence = started()
    evidence.incumbents["v0"][SAMPLES[0]] = [0.0, 0.0, 0.0]
    evidence.incumbents["v0"][SAMPLES[1]] = [0.0, 1.0, 1.0]
    draws = evidence.draws("v0", ["z"], Random(1), draws=400)
    assert level(draws, SAMPLES[0]) < level(draws, SAMPLES[2]) < level(draws, SAMPLES[1])
