"""Try the scorer before anything is paid. It must work, and an empty answer must not get full marks."""

from __future__ import annotations

from contextlib import suppress

from skilltune.build import describe_overlong
from skilltune.errors import JudgeError, UsageError
from skilltune.optimizer.examples import require_answers
from skilltune.parts import Parts
from skilltune.rollout import Rollout, Trajectory

TRIED = 5  # samples on which an empty answer is scored


async def try_scorer(s: Parts) -> None:
    """Score one expected answer, so that a broken scorer is found before anything is paid. If that would need a judge,
    an empty answer is scored instead.

    Raises `UsageError` if the scorer fails or gives full marks to an empty answer, and if the optimizer could not
    propose anything from the samples.
    """
    if too_long := describe_overlong(s.cfg, s.skill):
        raise UsageError(f"{too_long}. Nothing was spent.")
    require_evidence(s)
    if not s.env.scores_text:
        return
    sample = next(known for known in (*s.splits.select, *s.splits.train) if known.id not in s.roll.dropped)
    answer = "" if s.env.lines(sample) else s.env.expected(sample)
    rollout = Rollout(sample.id, s.skill.hash, 0, Trajectory(answer), None)
    try:
        await s.env.score(sample, rollout)
    except JudgeError as error:
        raise UsageError(f"{error}\nNothing was spent: fix the scorer and run the same command again.") from error
    if not s.env.lines(sample) and await _empty_solves_all(s):
        raise UsageError(
            "the scorer gives full marks to an empty answer, so a skill could not learn anything: `skilltune check` "
            "lists the samples. Nothing was spent."
        )


def require_evidence(s: Parts) -> None:
    """Raise `UsageError` if the optimizer could never propose anything from the train samples."""
    if s.cfg.optimizer.model == "examples" and s.cfg.train.epochs:
        require_answers(s.env, s.splits.train)


async def _empty_solves_all(s: Parts) -> bool:
    """True if an empty answer solves each tried sample that has an expected answer."""
    known = (sample for sample in s.splits.select if sample.id not in s.roll.dropped)
    tried = [sample for sample in known if s.env.expected(sample)][:TRIED]
    rollouts = [Rollout(sample.id, s.skill.hash, 0, Trajectory(""), None) for sample in tried]
    with suppress(JudgeError):  # a scorer that fails on an empty answer gives it no full marks
        scores = [await s.env.score(sample, rollout) for sample, rollout in zip(tried, rollouts, strict=True)]
        return bool(scores) and all(score.value >= 1 for score in scores)
    return False
