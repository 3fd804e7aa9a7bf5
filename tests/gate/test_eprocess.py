"""The betting gate: it is right about "no gain" however one looks, for a run as a whole, and still finds what helps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.config import GateConfig
from skilltune.edits import Edit
from skilltune.gate import Arena, build_gate
from skilltune.gate.eprocess import EProcess, chance, log_wealth, reachable, share
from skilltune.gate.priors import HOPE
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import FAILED, EProcessFigures, Verdict
from training import small, train

pytestmark = pytest.mark.anyio
ALPHA = 0.05
START = Skill("# Desk\n\nAnswer.\n")


# -- the bets


@st.composite
def nulls(draw: st.DrawFn) -> list[tuple[float, float]]:
    """A distribution on [-1, 1] with a mean of at most 0, as (difference, probability)."""
    values = draw(st.lists(st.floats(-1, 1), min_size=1, max_size=3))
    weights = [draw(st.floats(0.01, 1)) for _ in values]
    total = sum(weights)
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / total
    lose = max(0.0, mean) / (1 + max(0.0, mean))  # so much of a full loss makes the game fair
    return [(-1.0, lose), *((v, (1 - lose) * w / total) for v, w in zip(values, weights, strict=True))]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data(), st.floats(1.05, 20))
def test_no_adversary_makes_the_wealth_grow_or_cross_more_often_than_allowed(data: st.DataObject, bar: float) -> None:
    """Exact over a whole tree: the next distribution may depend on all that happened, its mean is at most 0."""

    def play(history: tuple[float, ...], depth: int) -> tuple[float, float]:
        """(expected wealth at the end, probability that it ever reached the bar)"""
        path = [0.0, *log_wealth(history)]
        if depth == 0:
            return math.exp(path[-1]), float(max(path) >= math.log(bar))
        wealth = crossed = 0.0
        for difference, probability in data.draw(nulls()):
            one, two = play((*history, difference), depth - 1)
            wealth, crossed = wealth + probability * one, crossed + probability * two
        return wealth, crossed

    wealth, crossed = play((), 3)
    assert wealth <= 1 + 1e-9
    assert crossed <= 1 / bar + 1e-9


def pairs(draw: Random, shared: float) -> float:
    """Two answers to a sample that are equally often right, the more alike the more is `shared`."""
    p = draw.choice((0.1, 0.5, 0.9))
    one = draw.random() < p
    return float(one) - float(one if draw.random() < shared else draw.random() < p)


NULLS: dict[str, Callable[[Random, Sequence[float]], float]] = {
    "binary pairs": lambda draw, seen: pairs(draw, 0.0),
    "correlated pairs": lambda draw, seen: pairs(draw, 0.8),
    "fractions": lambda draw, seen: draw.uniform(-1, 1),
    "many small wins, rare ruin": lambda draw, seen: 1 / 9 if draw.random() < 0.9 else -1.0,
    "rare jackpot": lambda draw, seen: 1.0 if draw.random() < 0.1 else -1 / 9,
    "harm": lambda draw, seen: draw.choices((1.0, -1.0, 0.0), (0.1, 0.2, 0.7))[0],
    "stakes rise after a loss": lambda draw, seen: draw.choice((1, -1)) * (1.0 if sum(seen[-3:]) < 0 else 0.2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_pitfall_1_looking_after_every_sample_keeps_the_error(name: str) -> None:
    """The user who stops as soon as the wealth is enough is wrong in at most alpha of the cases."""
    draw, runs, wrong = Random(name), 300, 0
    for _ in range(runs):
        seen: list[float] = []
        for _ in range(120):
            seen.append(NULLS[name](draw, seen))
        wrong += max(log_wealth(seen)) >= math.log(1 / ALPHA)
    assert wrong <= ALPHA * runs


def test_real_gains_pay_off() -> None:
    draw = Random(7)
    found = 0
    for _ in range(100):
        seen = draw.choices((1.0, -1.0, 0.0), (0.25, 0.02, 0.73), k=60)
        found += max(log_wealth(seen)) >= math.log(1 / ALPHA)
    assert found >= 85


@given(st.lists(st.floats(-1, 1), max_size=30))
def test_wealth_is_never_negative_and_moves_with_the_difference(differences: list[float]) -> None:
    path = [0.0, *log_wealth(differences)]
    assert all(map(math.isfinite, path))
    for (old, new), difference in zip(pairwise(path), differences, strict=True):
        assert abs(difference) < 1e-9 or (new > old) == (difference > 0)


def test_ten_thousand_wins_do_not_overflow() -> None:
    assert math.isfinite(log_wealth([1.0] * 10_000)[-1])


def test_the_candidates_of_a_run_share_its_error() -> None:
    assert sum(map(share, range(1, 100_000))) == pytest.approx(1, abs=1e-4)
    assert sum(map(share, range(1, 100_000))) < 1


# -- hope


def test_there_is_no_hope_where_winning_all_would_not_do() -> None:
    bar = math.log(1 / ALPHA)
    assert chance([], [1.0], [1.0] * 7, bar, Random(0)) > chance([], [1.0], [1.0] * 6, bar, Random(0)) == 0
    assert chance([], [], [0.1] * 20, bar, Random(0)) == 0  # the incumbent solves nearly everything
    assert chance([1.0] * 20, [1.0] * 20, [], bar, Random(0)) == 1


@pytest.mark.parametrize(("trend", "hopeful"), [([1.0, 0, 0, 0], True), ([0.0] * 20, False), ([-1.0, 1.0] * 8, False)])
def test_hope_follows_what_was_seen(trend: list[float], hopeful: bool) -> None:
    assert (chance(trend, trend, [1.0] * 32, math.log(33), Random(0)) >= HOPE) == hopeful


# -- the gate, on scores given by hand

Scores = Callable[[str, int, int], float | None]  # (skill text, number of the sample, attempt) → score, None: failed


class Rolls:
    """A roller with given scores; `asked` holds every (skill, sample, attempt) in order."""

    def __init__(self, score: Scores) -> None:
        self.score = score
        self.seen: dict[tuple[str, str, int], Rollout] = {}
        self.asked: list[tuple[str, str, int]] = []

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = ""
    ) -> list[Rollout]:
        rollouts = []
        for sample in samples:
            self.asked.append((skill.hash, sample.id, attempt))
            value = self.score(skill.text, int(sample.id[1:]), attempt)
            trajectory = Trajectory("", outcome="ok" if value is not None else "infra_error")
            score = None if value is None else Score(value)
            rollouts.append(Rollout(sample.id, skill.hash, attempt, trajectory, score))
            if value is not None:
                self.seen[skill.hash, sample.id, attempt] = rollouts[-1]
        return rollouts

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        assert samples


def gate_on(score: Scores, n: int = 40, group: Callable[[int], str | None] = lambda i: None, **cfg: Any) -> EProcess:
    select = [Sample(id=f"s{i}", input="q", group=group(i)) for i in range(n)]
    rolls: Any = Rolls(score)
    settings = GateConfig(**{"screen": 0, "policy": "eprocess", **cfg})
    gate = build_gate(Arena(rolls, [Sample(id="t0", input="q")], select, settings, seed=1, max_tokens=2000))
    assert isinstance(gate, EProcess)
    return gate


def figures_of(verdict: Verdict) -> EProcessFigures:
    assert isinstance(verdict.figures, EProcessFigures)
    return verdict.figures


async def raced(gate: EProcess, *rules: str, skill: Skill = START, name: str = "step 1") -> Verdict:
    if not gate.arena.roll.seen:
        await gate.baseline(skill)
    proposals = [Proposal(Edit("add", text=f"- {rule}"), ("t0",)) for rule in rules]
    return await gate.judge(skill, proposals, limit=4, name=name)


async def test_a_gain_is_accepted_and_its_numbers_are_said() -> None:
    gate = gate_on(lambda text, i, attempt: float(i % 4 == 0 or "- a" in text))
    verdict = await raced(gate, "a")
    assert verdict.accepted
    assert "- a" in verdict.skill.text
    look = figures_of(verdict).interims[-1]
    assert figures_of(verdict).bar == pytest.approx(1 / (ALPHA * share(1)))
    assert look.most >= figures_of(verdict).bar
    assert look.n < 40  # it need not see them all
    assert len(verdict.differences) == look.n
    assert look.gain == pytest.approx(sum(verdict.differences.values()) / look.n)
    said = re.fullmatch(
        rf"\{100 * look.gain:+.1f} points in (\d+) comparisons on select; "
        r"luck alone does as well in up to ([\d.]+) % of cases, allowed: 3\.04 %: accepted",
        verdict.reason,
    )
    assert said is not None, verdict.reason
    assert int(said[1]) == look.bets
    assert float(said[2]) == pytest.approx(100 / look.most, rel=0.01)
    assert float(said[2]) <= 100 / figures_of(verdict).bar


@pytest.mark.parametrize("effect", [0.0, -0.5])
async def test_what_does_nothing_or_harm_is_given_up_early(effect: float) -> None:
    gate = gate_on(lambda text, i, attempt: 0.5 + effect * ("- a" in text))
    verdict = await raced(gate, "a")
    assert not verdict.accepted
    assert verdict.skill is START
    assert figures_of(verdict).interims[-1].n <= 16
    assert "luck alone does as well in up to 100 % of cases" in verdict.reason
    assert verdict.reason.endswith(f"the samples left can hardly change that: {FAILED}")


async def test_the_reason_says_when_no_samples_are_left() -> None:
    verdict = await raced(gate_on(lambda text, i, attempt: float("- a" in text), n=5), "a")
    assert not verdict.accepted
    assert verdict.reason.endswith(f"no samples are left: {FAILED}")


@pytest.mark.parametrize(("n", "passes", "candidates"), [(7, 1, 0), (8, 1, 1), (9, 1, 1), (10, 1, 2), (9, 2, 1)])
async def test_so_many_candidates_can_be_accepted_at_most(n: int, passes: int, candidates: int) -> None:
    """A flawless candidate after some that failed: the bar has risen, and few samples cannot reach it."""
    assert reachable([1] * n, ALPHA, passes) == candidates
    for failed in range(candidates + 1):
        gate = gate_on(lambda text, i, attempt: float("- a" in text), n=n, passes=passes)
        gate.raced = failed
        assert (await raced(gate, "a")).accepted == (failed < candidates)


def test_unequal_groups_count_by_their_size() -> None:
    assert reachable([4] * 8, ALPHA) == reachable([1] * 8, ALPHA) == 1
    assert reachable([4] * 7 + [1], ALPHA) == 1
    assert reachable([8] + [1] * 12, ALPHA) == 0
    assert reachable([], ALPHA) == 0


async def test_nothing_is_begun_that_the_incumbents_scores_make_hopeless() -> None:
    """Where all but three samples are solved, three wins are the most there can be."""
    gate = gate_on(lambda text, i, attempt: float(i >= 3 or "- a" in text))
    verdict = await raced(gate, "a")
    assert not verdict.accepted
    assert [look.n for look in figures_of(verdict).interims] == [8]


async def test_the_same_seed_gives_the_same_order_and_another_step_another() -> None:
    def orders(name: str) -> list[str]:
        gate = gate_on(lambda text, i, attempt: 0.0)
        return [sample.id for unit in gate._units(name) for sample in unit]

    assert orders("step 1") == orders("step 1") != orders("step 2")
    assert sorted(orders("step 1")) == sorted(orders("step 2"))


async def test_the_level_falls_with_each_candidate_and_passes_on_when_it_was_well_spent() -> None:
    gate = gate_on(lambda text, i, attempt: min(1.0, 0.5 * ("- a" in text) + 0.5 * ("- d" in text)))
    levels, skill = [], START
    for step, rule in enumerate("nadn"):
        verdict = await raced(gate, rule, skill=skill, name=f"step {step}")
        levels.append(figures_of(verdict).level / ALPHA)
        assert verdict.accepted == (rule in "ad")
        skill = verdict.skill
    one, two, three, four = (share(k) for k in range(1, 5))
    assert levels == pytest.approx([one, two, two + three, two + three + four])


async def test_the_optimizer_learns_no_more_of_select_than_the_decision() -> None:
    """Whoever sees scores on select can fit it; two candidates that fail in different ways look alike from outside."""
    told = []
    for loss in (0.1, 0.9):
        gate = gate_on(lambda text, i, attempt, loss=loss: 0.95 - loss * ("- a" in text))
        verdict = await raced(gate, "a")
        told.append([entry.reason for entry in verdict.rejected])
        assert "points" in verdict.reason  # the user is told
    assert told[0] == told[1] == [f"raced: {FAILED}"]


async def test_samples_of_a_group_are_one_bet() -> None:
    """Forty paraphrases of two tasks are evidence from two tasks."""
    alone = await raced(gate_on(lambda text, i, attempt: float("- a" in text)), "a")
    tied = gate_on(lambda text, i, attempt: float("- a" in text), group=lambda i: f"g{i % 2}")
    verdict = await raced(tied, "a")
    assert alone.accepted
    assert not verdict.accepted
    assert figures_of(verdict).interims[-1].bets <= 2
    assert {unit[0].group for unit in tied._units("x")} == {"g0", "g1"}


async def test_samples_that_could_not_be_scored_are_bets_on_nothing_and_too_many_decide_nothing() -> None:
    async def verdict(lost: int) -> Verdict:
        return await raced(gate_on(lambda text, i, a: float("- a" in text) if i % 10 >= lost else None), "a")

    few, many = await verdict(1), await verdict(3)
    assert few.accepted
    assert not many.accepted
    assert figures_of(many).interims[-1].most >= figures_of(many).bar  # it is coverage that is missing
    assert many.reason.endswith(f"too many samples could not be scored: {FAILED}")
    assert "luck" not in many.reason


async def test_a_second_pass_is_a_new_game_on_means_of_both_draws() -> None:
    """A noisy target whose first draws leave it open. The passes share the level."""

    def noisy(text: str, i: int, attempt: int) -> float:
        return float(i % 5 == 0 or (attempt == 1 and i % 5 in (1, 2))) if "- a" in text else 0.0

    gate = gate_on(noisy, passes=2)
    verdict = await raced(gate, "a")
    rolls: Any = gate.arena.roll
    assert verdict.accepted
    assert figures_of(verdict).bar == pytest.approx(2 / (ALPHA * share(1)))
    draws = [look.draw for look in figures_of(verdict).interims]
    assert draws == sorted(draws)
    assert set(draws) == {0, 1}
    assert {attempt for skill, _, attempt in rolls.asked if skill == START.hash} == {0, 1}
    first, last = figures_of(verdict).interims[draws.count(0) - 1], figures_of(verdict).interims[-1]
    assert first.bets == 40
    assert first.most < figures_of(verdict).bar <= last.most


@pytest.mark.slow
async def test_a_run_full_of_null_candidates_rarely_accepts_any() -> None:
    """Ten coin-flipping candidates in a row, the incumbent's draws shared by all of them: the error is the run's."""
    alpha, runs, wrong = 0.3, 30, 0
    for run in range(runs):
        gate = gate_on(lambda text, i, attempt, run=run: float(Random(f"{run} {text} {i}").random() < 0.5), alpha=alpha)
        verdicts = [await raced(gate, f"null {step}", name=f"step {step}") for step in range(10)]
        wrong += any(verdict.accepted for verdict in verdicts)
    assert wrong <= alpha * runs


# -- a whole run


async def test_training_unattended_finds_the_rules(tmp_path: Path) -> None:
    with small(select=60, train=48, q=1.0) as world:
        trained = await train(world, tmp_path, {"gate.policy": "eprocess", "train.epochs": 3})
        score = world.true_score(trained.result.best.text)
    assert len(trained.versions) > 1
    assert score > 0.5
    assert {verdict["numbers"].get("rule") for verdict in trained.verdicts} <= {"eprocess", "ablation", None}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["useless", "harmful"])
async def test_pitfall_1_an_optimizer_that_is_never_right_changes_nothing(tmp_path: Path, mode: Any) -> None:
    with small(select=24, p=0.1, optimizer_mode=mode) as world:
        trained = await train(world, tmp_path, {"gate.policy": "eprocess"})
    assert len(trained.versions) == 1
    assert trained.result.exit_code == 1
