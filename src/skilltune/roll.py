"""The forward pass: roll the target over samples, each (skill, sample, attempt) paid once per run.

A sample whose call failed for good comes back without a score and is left out of every mean. What is left out changes
what is decided, so a batch waits even for its last sample, unless that has failed through all waits before. Leaving it
out is a decision of the run: it is written down, so that a resumed run closes the batch over the same samples, while a
later batch asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from hashlib import sha256
from statistics import fmean

from skilltune.aio import background
from skilltune.calls import looking_ahead
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraError, InfraStopped, Stopped
from skilltune.models import Usage
from skilltune.models.endpoint import Ahead
from skilltune.rollout import Rollout, Trajectory, rollout_from_json, rollout_to_json
from skilltune.run import Paid, Run, digest
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets import Target

MAX_UNSCORED = 0.10  # share of a batch that may go unscored; the coverage floor is 1 minus this
UNDER_WAY = 256  # samples of a batch begun at once, or twice the workers: each holds 6 KB
WAITS_S = (2.0, 10.0, 30.0)  # pauses before what failed in a batch is tried again
MOMENT_S = 0.005  # that what may be needed waits, for what is asked for at the same time to go first


@dataclass(slots=True)
class Roller:
    """Rolls samples with a skill; remembers every scored rollout in `seen`, the gate's evidence: its score and its
    cost, for what was said is in the journal."""

    target: Target
    env: Env
    run: Run
    seen: dict[tuple[str, str, int], Rollout] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)  # by sample id, see `content`
    answered: bool = False  # has the target answered in this process? One that never did is not waited for
    under_way: int = UNDER_WAY
    lookahead: bool = False  # may idle workers roll what will probably be asked for next?
    given_up: set[str] = field(default_factory=set)  # sample ids that failed through all waits: not waited for again
    _ahead: dict[str, tuple[asyncio.Task, Ahead]] = field(default_factory=dict)  # by key, under way or waiting

    async def __call__(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        *,
        attempt: int = 0,
        purpose: str = "train",
        landed: Callable[[int, Rollout], None] = lambda index, rollout: None,
    ) -> list[Rollout]:
        """One rollout per sample, in the order of `samples`, whatever order they finish in.

        `purpose` names the batch in events and in the record of what was left out. `landed` is told each rollout with
        its index as soon as it is final. Raises `InfraStopped` when more than `MAX_UNSCORED` of the batch cannot be
        scored, `CallConfigError` as soon as one call shows that no call can succeed.
        """
        self.run.keep(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        closed_key = digest("left out", skill.hash, [sample.id for sample in samples], attempt, purpose)
        closed = self.run.recall(closed_key)
        left_out: dict[str, str] = closed[0] if closed else {}
        rollouts = await self._all(skill, samples, attempt, left_out, landed)
        before: list[Rollout] = []
        for pause in WAITS_S:
            late = any(not r.scored and r.sample not in self.given_up for r in rollouts)
            if closed or not self.answered or not (late or _too_many(rollouts)):
                break
            if self._raises(rollouts) and _errors(rollouts) == _errors(before):
                break  # a function that raised the same twice does so a third time
            before = rollouts
            self.run.tell("waiting", purpose=purpose, seconds=pause, why=_failure(rollouts))
            await asyncio.sleep(pause)
            rollouts = await self._all(skill, samples, attempt, left_out, landed)
        if not closed and _too_many(rollouts):
            what, then = "calls", "Run the same command to go on."
            if self._raises(rollouts):
                self._keep_answers(rollouts)
                what = "scores"
                then = "The answers are kept: mend the scorer and run the same command; none is asked for again."
            raise InfraStopped(
                f"{len(_errors(rollouts))} of {len(rollouts)} {what} of the batch '{purpose}' failed: "
                f"{_failure(rollouts)}\nNothing was counted as a wrong answer. {then}"
            )
        failed = {r.sample: r.trajectory.error for r in rollouts if not r.scored}
        if failed and not closed:
            self.given_up.update(failed)
            self.run.fix(closed_key, lambda: failed)
        for index, rollout in enumerate(rollouts):
            if rollout.scored:
                cost = Trajectory("", outcome=rollout.outcome, usage=rollout.trajectory.usage)
                self.seen[rollout.skill, rollout.sample, rollout.attempt] = replace(rollout, trajectory=cost)
            else:
                landed(index, rollout)
        return rollouts

    async def stream(
        self, skill: Skill, samples: Sequence[Sample], *, attempts: int = 1, purpose: str = "train"
    ) -> AsyncGenerator[Rollout, None]:
        """The rollouts of one or more draws of a batch, in order, each as soon as it and all before it are final."""
        size = len(samples)
        finals = [asyncio.get_running_loop().create_future() for _ in range(attempts * size)]

        async def draw(attempt: int) -> None:
            def landed(index: int, rollout: Rollout) -> None:
                final = finals[attempt * size + index]
                if not final.done():
                    final.set_result(rollout)

            await self(skill, samples, attempt=attempt, purpose=purpose, landed=landed)

        draws = background(gather([draw(attempt) for attempt in range(attempts)]))
        try:
            for final in finals:
                await asyncio.wait((final, draws), return_when=asyncio.FIRST_COMPLETED)
                if not final.done():
                    draws.result()  # raises: a batch that ends well has settled all of its rollouts
                yield final.result()
            await draws
        finally:
            draws.cancel()
            await asyncio.wait([draws])

    # -- looking ahead

    def expect(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        """These rollouts will probably be asked for soon: make them while there is nothing better to do. The answers
        wait in the journal; no result depends on them before they are asked for."""
        for sample in samples if self.lookahead and self.answered else ():
            key = self.key(skill, sample, attempt)
            if key not in self._ahead:
                context, call = copy_context(), Ahead()
                context.run(looking_ahead.set, call)
                task = background(self._quietly(skill, sample, attempt), name=skill.hash, context=context)
                self._ahead[key] = task, call
                task.add_done_callback(lambda _, key=key: self._ahead.pop(key, None))

    def settle(self, skill: Skill) -> None:
        """What was expected of any other skill than this one is not needed any more; what was sent is let finish."""
        for task, call in self._ahead.values():
            if task.get_name() != skill.hash and not call.begun:
                task.cancel()

    async def aclose(self) -> None:
        """End what still runs ahead."""
        tasks = [task for task, _ in self._ahead.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _quietly(self, skill: Skill, sample: Sample, attempt: int) -> None:
        """Roll ahead; whatever goes wrong, who really asks will see it."""
        with suppress(Exception):
            await asyncio.sleep(MOMENT_S)
            await self._one(skill, sample, attempt)

    def key(self, skill: Skill, sample: Sample, attempt: int) -> str:
        """The journal key of a rollout: everything that can change its result."""
        return rollout_key(self.target.fingerprint, skill.hash, self.content(sample), self.env.fingerprint, attempt)

    def held_in(self, journal: Run) -> tuple[int, int]:
        """(rollouts that hold here, all rollouts) of a journal: its keys are made again with this target, scorer and
        samples."""
        samples = {sample.id: sample for sample in self.env.samples}
        held = total = 0
        for key, value in journal.answers("rollout"):
            total += 1
            if (sample := samples.get(value["sample"])) is not None:
                parts = self.target.fingerprint, value["skill"], self.content(sample), self.env.fingerprint
                held += key == rollout_key(*parts, value["attempt"])
        return held, total

    def answer_key(self, skill: str, sample: Sample, attempt: int) -> str:
        """The journal key of what the target did where no score came of it: a mended scorer finds it there."""
        asked = self.content(sample), self.env.prompt
        return digest("unscored", self.target.fingerprint, skill, *asked, attempt)

    def _raises(self, rollouts: Sequence[Rollout]) -> bool:
        """Is it the scorer, and a function, that all failures are of?"""
        return self.env.judge is None and {r.outcome for r in rollouts if not r.scored} == {"judge_error"}

    def _keep_answers(self, rollouts: Sequence[Rollout]) -> None:
        """Keep what the target did so far where a mended scorer finds it, the answers that had a score included."""
        samples = {sample.id: sample for sample in self.env.samples}
        for rollout in (*self.seen.values(), *(r for r in rollouts if r.scored)):
            sample, attempt = samples[rollout.sample], rollout.attempt
            content = self.content(sample)
            key = rollout_key(self.target.fingerprint, rollout.skill, content, self.env.fingerprint, attempt)
            for stored in self.run.recall(key) or ():
                said = replace(rollout_from_json(stored), score=None)
                self.run.put(
                    self.answer_key(rollout.skill, sample, attempt), "unscored", Paid(rollout_to_json(said), Usage())
                )

    def content(self, sample: Sample) -> str:
        """Hash of what a sample asks and expects, its images included."""
        if sample.id not in self.contents:
            images = [
                sha256(image.data).hexdigest() for message in self.env.messages(sample) for image in message.images
            ]
            self.contents[sample.id] = digest(sample.model_dump(mode="json", exclude={"split", "group"}), images)
        return self.contents[sample.id]

    async def _all(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        attempt: int,
        left_out: dict[str, str],
        landed: Callable[[int, Rollout], None],
    ) -> list[Rollout]:
        rollouts: dict[int, Rollout] = {}
        waiting = iter(enumerate(samples))

        async def one(index: int, sample: Sample) -> Rollout:
            if sample.id in left_out:
                return _unscored(skill, sample, attempt, InfraError(left_out[sample.id]))
            try:
                rollout = await self._one(skill, sample, attempt)
            except CallConfigError:
                raise
            except CallError as error:
                return _unscored(skill, sample, attempt, error)
            landed(index, rollout)
            return rollout

        async def work() -> None:
            for index, sample in waiting:
                rollouts[index] = await one(index, sample)

        await gather([work() for _ in range(min(self.under_way, len(samples)))])
        return [rollouts[index] for index in range(len(samples))]

    async def _one(self, skill: Skill, sample: Sample, attempt: int) -> Rollout:
        key = self.key(skill, sample, attempt)

        async def pay() -> Paid:
            """Do the sample and score it; what the target did is kept where only the scorer failed."""
            unscored_key = self.answer_key(skill.hash, sample, attempt)
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
            except BaseException:  # a judge's wrong key and a stop too: what the target did is paid for
                if not done:
                    self.run.put(unscored_key, "unscored", Paid(rollout_to_json(rollout), cost))
                raise
            return Paid(rollout_to_json(replace(rollout, score=score)), cost)

        if key in self._ahead and looking_ahead.get() is None:
            self._ahead[key][1].want()
        rollout = rollout_from_json(await self.run.once(key, "rollout", pay))
        if looking_ahead.get() is None:
            self.run.tell("rollout", sample=sample.id, score=rollout.score.value if rollout.score else None)
        return rollout


def rollout_key(target: str, skill: str, content: str, env: str, attempt: int) -> str:
    """The journal key of a rollout, from the fingerprints of all that can change its result."""
    return digest("rollout", target, skill, content, env, attempt)


async def gather(coroutines: Iterable[Awaitable] | AsyncIterable[Awaitable]) -> list:
    """Run all at once, results in order; the first error cancels the rest and is raised itself, not in a group.

    Coroutines that become ready one after the other (an async iterable) are started as they come. An ordered stop
    (`Stopped`) is raised only after the rest has ended: what is under way is paid for, so it is let finish and kept.
    """

    async def one(coroutine: Awaitable) -> object:
        try:
            return await coroutine
        except Stopped as stop:
            return stop

    tasks: list[asyncio.Task] = []
    ended: list[object] = []
    try:
        async with asyncio.TaskGroup() as group:
            if isinstance(coroutines, AsyncIterable):
                try:
                    async for coroutine in coroutines:
                        tasks.append(group.create_task(one(coroutine)))
                except Stopped as stop:
                    ended.append(stop)
            else:
                tasks += [group.create_task(one(coroutine)) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    results = [*ended, *(task.result() for task in tasks)]
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


def _errors(rollouts: Sequence[Rollout]) -> list[str]:
    return [rollout.trajectory.error for rollout in rollouts if not rollout.scored]


def _failure(rollouts: Sequence[Rollout]) -> str:
    return _errors(rollouts)[0]
