"""The table of scores: a reader names the splits, and no gate can read `test`."""

from __future__ import annotations

from typing import Any, cast

import pytest

from arenas import SELECT, START, TRAIN, arena
from skilltune.edits import Edit
from skilltune.gate.race import Race
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout, Score, Trajectory, Turn
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample, Splits
from skilltune.usage import Usage

pytestmark = pytest.mark.anyio
SPLITS = Splits(*(tuple(Sample(id=f"{name}{i}", input="q") for i in range(2)) for name in ("a", "b", "c")))


def rollout(skill: str, sample: str, attempt: int, value: float | None) -> Rollout:
    trajectory = Trajectory("said", turns=(Turn("user", "q"),), usage=Usage(1, 5, 7))
    return Rollout(sample, skill, attempt, trajectory, None if value is None else Score(value))


def table() -> Scores:
    scores = Scores.of(SPLITS, lambda score: 10 * score.value)
    for split in ("c", "b", "a"):
        for attempt in (1, 0):
            scores.add(rollout("x", f"{split}1", attempt, 0.5))
            scores.add(rollout("w", f"{split}0", attempt, 1.0))
    scores.add(rollout("x", "elsewhere", 0, 1.0))
    return scores


def test_each_split_is_read_by_its_name_in_a_fixed_order() -> None:
    scores = table()
    expected = {("w", "a0", 0): 10.0, ("w", "a0", 1): 10.0, ("x", "a1", 0): 5.0, ("x", "a1", 1): 5.0}
    assert list(scores.on("train").items()) == list(expected.items())
    assert {sample for _, sample, _ in scores.on("select")} == {"b0", "b1"}
    assert len(scores.on("train", "select")) == 8
    assert scores.on() == {}
    assert [r.sample for r in scores.rollouts("train")] == ["a0", "a0", "a1", "a1"]


def test_one_score_is_none_on_another_split_or_if_it_is_missing() -> None:
    scores = table()
    assert scores.one("select", "x", "b1", 1) == 5.0
    assert scores.one("train", "x", "b1", 1) is None
    assert scores.one("select", "x", "b1", 2) is None
    assert scores.one("select", "x", "c1", 0) is None


def test_only_score_and_cost_of_a_rollout_are_kept_and_the_last_one_counts() -> None:
    scores = table()
    scores.add(rollout("x", "a1", 0, 0.1))
    assert scores.on("train")["x", "a1", 0] == pytest.approx(1.0)
    (kept, *_) = scores.rollouts("train")
    assert (kept.answer, kept.trajectory.turns) == ("", ())
    assert kept.trajectory.usage == Usage(1, 5, 7)


async def test_the_screen_reads_train_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores on `select` and `test` may not move the posterior of the screen, whatever they are."""
    read: list[tuple[str, ...]] = []
    posteriors = []
    for luck in (0.0, 1.0):
        made = arena(lambda text, i: float("- a" in text), screen=24, texts=6)
        gate = Race(made)
        for sample in SELECT:
            made.scores.add(Rollout(sample.id, START.hash, 3, Trajectory(""), Score(luck)))
        await made.roll(START, TRAIN)
        on = made.scores.on

        def listening(self: Scores, *splits: Any, on: Any = on) -> Any:
            read.append(splits)
            return on(*splits)

        with monkeypatch.context() as patched:
            patched.setattr(Scores, "on", listening)
            await gate.judge(START, [Proposal(Edit("add", text="- a"), ("t0", "t1"))], limit=1, name="step 1")
        posteriors.append(cast(Any, gate.evidence).helps)
    assert ("train",) in read
    assert posteriors[0] == posteriors[1]
