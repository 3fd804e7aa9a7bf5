"""The forward pass: roll the target over samples, each (skill, sample, attempt) paid once per run.

A sample whose call failed for good comes back without a score and is left out of every mean. Leaving it out is a
decision of the run: it is written down, so that a resumed run closes the batch over the same samples, while a later
batch asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from statistics import fmean

from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraError, InfraStopped, JudgeError, Stopped
from skilltune.models import Usage
from skilltune.rollout import Rollout, Trajectory, rollout_from_json, rollout_to_json
from skilltune.run import Paid, Run, digest
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets import Target

MAX_UNSCORED = 0.10  # share of a batch that may go unscored; the coverage floor is 1 minus this
WAITS_S = (2.0, 10.0, 30.0)  # pauses before a batch with too many failures is tried again


@dataclass(slots=True)
class Roller:
    """Rolls samples with a skill; remembers every scored rollout in `seen`, the gate's evidence."""

    target: Target
    env: Env
    run: Run
    seen: dict[tuple[str, str, int], Rollout] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)  # of each sample's content, its images included
    answered: bool = False  # has the target answered in this process? One that never did is not waited for

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = "train"
    ) -> list[Rollout]:
        """One rollout per sample, in the order of `samples`, whatever order they finish in.

        `purpose` names the batch in events and in the record of what was left out. Raises `InfraStopped` when more
        than `MAX_UNSCORED` of the batch cannot be scored, `CallConfigError` as soon as one call shows that no call
        can succeed.
        """
        self.run.keep(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        closed_key = digest("left out", skill.hash, [sample.id for sample in samples], attempt, purpose)
        closed = self.run.recall(closed_key)
        left_out: dict[str, str] = closed[0] if closed else {}
        rollouts = await self._all(skill, samples, attempt, left_out)
        for pause in WAITS_S:
            if closed or not _too_many(rollouts) or not self.answered:
                break
            self.run.tell("waiting", purpose=purpose, seconds=pause, why=_failure(rollouts))
            await asyncio.sleep(pause)
            rollouts = await self._all(skill, samples, attempt, left_out)
        if not closed and _too_many(rollouts):
            raise InfraStopped(
                f"{sum(not r.scored for r in rollouts)} of {len(rollouts)} calls of the batch '{purpose}' failed: "
                f"{_failure(rollouts)}\nNothing was counted as a wrong answer. Run the same command to go on."
            )
        failed = {r.sample: r.trajectory.error for r in rollouts if not r.scored}
        if failed and not closed:
            self.run.fix(closed_key, lambda: failed)
        for rollout in rollouts:
            if rollout.scored:
                self.seen[rollout.skill, rollout.sample, rollout.attempt] = rollout
        return rollouts

    def key(self, skill: Skill, sample: Sample, attempt: int) -> str:
        """The journal key of a rollout: everything that can change its result."""
        if sample.id not in self._hashes:
            images = [
                sha256(image.data).hexdigest() for message in self.env.messages(sample) for image in message.images
            ]
            self._hashes[sample.id] = digest(sample.model_dump(mode="json", exclude={"split", "group"}), images)
        content = self._hashes[sample.id]
        return digest("rollout", self.target.fingerprint, skill.hash, content, self.env.fingerprint, attempt)

    async def _all(
        self, skill: Skill, samples: Sequence[Sample], attempt: int, left_out: dict[str, str]
    ) -> list[Rollout]:
        async def one(sample: Sample) -> Rollout:
            if sample.id in left_out:
                return _unscored(skill, sample, attempt, InfraError(left_out[sample.id]))
            try:
                return await self._one(skill, sample, attempt)
            except CallConfigError:
                raise
            except CallError as error:
                return _unscored(skill, sample, attempt, error)

        return await gather([one(sample) for sample in samples])

    async def _one(self, skill: Skill, sample: Sample, attempt: int) -> Rollout:
        key = self.key(skill, sample, attempt)
        unscored_key = digest("unscored", key)

        async def pay() -> Paid:
            """Do the sample and score it; what the target did is kept where only the scorer failed."""
            done = self.run.recall(unscored_key)
            if done:
                rollout, cost = rollout_from_json(done[0]), Usage()
            else:
                try:
                    trajectory = await self.target.run(skill, sample, self.env, attempt)
                except CallConfigError as error:
                    raise CallConfigError(f"sample {sample.id}: {error}") from error
                rollout, cost = Rollout(sample.id, skill.hash, attempt, trajectory, None), trajectory.usage
            self.answered = True
            try:
                score = await self.env.score(sample, rollout)
            except JudgeError:
                if not done:
                    self.run.put(unscored_key, "unscored", Paid(rollout_to_json(rollout), cost))
                raise
            return Paid(rollout_to_json(replace(rollout, score=score)), cost)

        rollout = rollout_from_json(await self.run.once(key, "rollout", pay))
        self.run.tell("rollout", sample=sample.id, score=rollout.score.value if rollout.score else None)
        return rollout


async def gather(coroutines: Sequence) -> list:
    """Run all at once, results in order; the first error cancels the rest and is raised itself, not in a group.

    An ordered stop (`Stopped`) is raised only after the rest has ended: what is under way is paid for, so it is let
    finish and kept.
    """

    async def one(coroutine: Awaitable) -> object:
        try:
            return await coroutine
        except Stopped as stop:
            return stop

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(coroutine)) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    results = [task.result() for task in tasks]
    for result in results:
        if isinstance(result, Stopped):
            raise result
    return results


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing: no evidence is not a zero."""
    return fmean(values) if values else None


def _first(errors: BaseExceptionGroup) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unscored(skill: Skill, sample: Sample, attempt: int, error: CallError) -> Rollout:
    return Rollout(sample.id, skill.hash, attempt, Trajectory("", outcome=error.outcome, error=str(error)), None)


def _too_many(rollouts: Sequence[Rollout]) -> bool:
    """More than the tolerated share is unscored; one failure alone never stops a small batch."""
    unscored = sum(not rollout.scored for rollout in rollouts)
    return unscored > max(MAX_UNSCORED * len(rollouts), 1 if len(rollouts) > 1 else 0)


def _failure(rollouts: Sequence[Rollout]) -> str:
    return next(rollout.trajectory.error for rollout in rollouts if not rollout.scored)
