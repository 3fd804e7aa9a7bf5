"""A failure may be bad luck: what the optimizer is shown of a batch is what fails twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from skilltune.config import make_config
from skilltune.journal.run import Run
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.forward import Forward, drain
from skilltune.samples import Sample
from skilltune.skill import Skill
from training import START as TEXT
from training import small, train

pytestmark = pytest.mark.anyio
SKILL = Skill("# Desk\n")
TRAIN = [Sample(id=f"t{i}", input="q") for i in range(20)]


def rolled(sample: str, attempt: int, value: float | None, answer: str) -> Rollout:
    return Rollout(sample, SKILL.hash, attempt, Trajectory(answer), None if value is None else Score(value))


def passing(roll: Any) -> Forward:
    """The forward pass of the default preset over a stand-in of the roller."""
    return Forward(roll, lambda score: score.value, hold=True, confirm=True)


async def shown(first: dict[str, float | None], second: dict[str, float | None], answers: str = "same") -> Any:
    """The rollouts of a batch with these scores, the samples rolled again, and True if the target is steady."""
    asked: list[str] = []

    async def roll(skill: Skill, samples: list[Sample], *, attempt: int, purpose: str) -> list[Rollout]:
        assert attempt == 1
        asked.extend(sample.id for sample in samples)
        said = {"same": "answer {}", "other": "another answer {}", "constant": "no idea"}[answers]
        return [rolled(sample.id, 1, second[sample.id], said.format(sample.id)) for sample in samples]

    async def batch(*_: Any, **__: Any) -> AsyncGenerator[Rollout, None]:
        for sample, value in first.items():
            yield rolled(sample, 0, value, "no idea" if answers == "constant" else f"answer {sample}")

    roll.prefetch = lambda skill, samples, attempt: None  # type: ignore[attr-defined]
    roll.stream = batch  # type: ignore[attr-defined]
    forward = passing(roll)
    samples = [sample for sample in TRAIN if sample.id in first]
    async with forward.batch(SKILL, samples, "step 1") as rollouts:
        out = [rollout async for rollout in rollouts]
    assert forward.failed == {r.sample: r.score is None or r.score.value < 1 for r in out}
    return out, asked, not forward.confirm


async def test_what_succeeds_at_the_second_try_is_shown_as_a_success():
    out, asked, _ = await shown({"t0": 1.0, "t1": 0.0, "t2": 0.0, "t3": None}, {"t1": 1.0, "t2": 0.0})
    assert asked == ["t1", "t2"]
    assert [(r.sample, r.attempt, r.score and r.score.value) for r in out] == [
        ("t0", 0, 1.0),
        ("t1", 1, 1.0),
        ("t2", 0, 0.0),
        ("t3", 0, None),
    ]


async def test_a_second_try_that_has_no_score_leaves_the_failure_as_it_was():
    out, _, _ = await shown({"t1": 0.0, "t2": 1.0}, {"t1": None})
    assert [(r.sample, r.attempt) for r in out] == [("t1", 0), ("t2", 0)]


@pytest.mark.parametrize(("answers", "steady"), [("same", True), ("other", False), ("constant", False)])
async def test_a_target_that_repeats_itself_is_not_asked_twice_again(answers: str, steady: bool):
    batch: dict[str, float | None] = {sample.id: float(i >= 9) for i, sample in enumerate(TRAIN)}
    _, asked, found = await shown(batch, batch, answers)
    assert len(asked) == 9
    assert found == steady


async def test_a_partly_right_answer_is_no_bad_luck():
    out, asked, _ = await shown({"t0": 0.6, "t1": 0.0, "t2": 1.0}, {"t1": 0.9})
    assert asked == ["t1"]
    assert [r.attempt for r in out] == [0, 0, 0]


def test_the_papers_preset_takes_a_failure_for_a_failure():
    assert make_config({"preset": "default"}).train.confirm
    assert not make_config({"preset": "paper"}).train.confirm


@pytest.mark.parametrize(("scores", "again"), [([1, 0, 0, 1], 2), ([1, 0, 0, 0.9], 0), ([0, 0, 0, 1], 0)])
async def test_failures_are_tried_twice_in_a_batch_of_which_half_is_solved(scores: list[float], again: int):
    """The batch itself tells: scores on `select` must not change what the optimizer is shown."""
    batch: dict[str, float | None] = {f"t{i}": float(score) for i, score in enumerate(scores)}
    out, asked, _ = await shown(batch, {**batch, "t1": 1.0})
    assert len(asked) == again
    assert [r.sample for r in out] == list(batch)


@pytest.mark.parametrize("failing", [12, 4])
async def test_a_batch_is_passed_on_as_soon_as_more_than_half_of_it_must_have_failed(failing: int):
    came: list[str] = []

    async def batch(*_: Any, **__: Any) -> AsyncGenerator[Rollout, None]:
        for i, sample in enumerate(TRAIN):
            came.append(sample.id)
            yield rolled(sample.id, 0, float(i >= failing), "same")

    async def roll(skill: Skill, samples: list[Sample], **_: Any) -> list[Rollout]:
        return [rolled(sample.id, 1, 0.0, "same") for sample in samples]

    roll.prefetch = lambda skill, samples, attempt: None  # type: ignore[attr-defined]
    roll.stream = batch  # type: ignore[attr-defined]
    forward = passing(roll)
    async with forward.batch(SKILL, TRAIN, "step 1") as rollouts:
        assert len(came) == (11 if failing > 10 else 20)
        assert len(forward.failed) == len(came)  # in time to see that nothing is left to learn
        assert [rollout.sample async for rollout in rollouts] == [sample.id for sample in TRAIN]
    assert len(forward.failed) == 20
    came.clear()
    async with forward.batch(SKILL, TRAIN[:2], "step 2"):
        assert len(forward.failed) == 20
    async with forward.batch(SKILL.with_text("# Another\n"), TRAIN[:2], "step 3") as rollouts:
        await drain(rollouts)
    assert set(forward.failed) == {sample.id for sample in TRAIN}  # the stand-in rolls all of them


@pytest.mark.parametrize("confirm", [True, False])
async def test_failures_are_tried_twice_in_a_run_once_half_is_solved(tmp_path: Path, confirm: bool):
    with small(p=0.1, q=1.0, seed=2) as world:
        run = await train(world, tmp_path, {"train.epochs": 3, "train.confirm": confirm})
    assert any(verdict["score"] >= 0.5 for verdict in run.verdicts[:-1])
    with Run.read(run.folder) as journal:
        rollouts = [data for _, data, _ in journal.memos("rollout")]
    scores = {(r["skill"], r["sample"], r["attempt"]): r["score"]["value"] for r in rollouts}
    twice = [(skill, sample) for skill, sample, attempt in scores if attempt == 1]
    assert bool(twice) == confirm
    assert all(scores[skill, sample, 0] == 0.0 for skill, sample in twice)
    assert Skill(TEXT).hash not in {skill for skill, _ in twice}
