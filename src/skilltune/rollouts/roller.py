"""The forward pass: roll the target over samples, each (skill, sample, attempt) paid once per run.

A sample whose call failed for good comes back without a score and is left out of every mean. What is left out changes
what is decided, so a batch waits even for its last sample, unless that has failed through all waits before. Leaving it
out is a decision of the run: it is written down, so that a resumed run closes the batch over the same samples, while a
later batch asks again.

A batch does not wait for what waiting cannot change: a sample that was refused for what it says (`sample_error`), and
a failure that names its own cause (`CallError.systemic`). Before the first score of a process a batch begins with one
call, and three equal failures in a row stop it: 27 more of them would cost as much and say the same.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import islice

from skilltune.aio import background, run_all
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraStopped, Outcome, RejectedError, Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.metering.client import looking_ahead
from skilltune.metering.slots import Ahead
from skilltune.rollout import Rollout, Trajectory, rollout_from_json, rollout_to_json
from skilltune.samples import Sample
from skilltune.scorers.reading import elided
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage

MAX_UNSCORED = 0.10  # share of a batch that may fail; the coverage floor is 1 minus this
MAX_REFUSED = 0.5  # share that must not be refused for what it says (`sample_error`), of all that is asked with a skill
ALIKE = 3  # equal failures in a row, before the first score of a process, that stop a batch
UNDER_WAY = 256  # samples of a batch begun at once, or twice the workers: each holds 6 KB
WAITS_S = (2.0, 10.0, 30.0)  # pauses before what failed in a batch is tried again
MOMENT_S = 0.005  # that what may be needed waits, for what is asked for at the same time to go first
REFUSED: tuple[Outcome, ...] = ("sample_error", "not_graded")  # asking again cannot help, and no other sample is meant
NAMED = 3  # samples that a message names
LONGEST_WHY = 3000  # characters of a failure that are kept
LEFT_OUT = "left out"  # event: a batch was closed without some of its samples
DROPPED = "taken out of the run by --drop"


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason that a sample has no score. `cause` is equal for failures of one kind.

    `final`: the failure names its own cause, so that waiting cannot help.
    """

    outcome: Outcome
    why: str
    cause: str
    final: bool = False

    @classmethod
    def of(cls, sample: str, error: CallError) -> Failure:
        refused = error.outcome in REFUSED
        cause = error.systemic or _normal(str(error), sample)
        return cls(error.outcome, elided(str(error), LONGEST_WHY), cause, refused or bool(error.systemic))


Failures = dict[str, Failure]
"""By sample id."""


@dataclass(slots=True)
class Roller:
    """Rolls samples with a skill; remembers every scored rollout in `seen`, the gate's evidence: its score and its
    cost, for what was said is in the journal."""

    target: Target
    env: Env
    run: Run
    contents: dict[str, str] = field(default_factory=dict)  # by sample id, see `content`
    seen: dict[tuple[str, str, int], Rollout] = field(default_factory=dict)
    answered: bool = False  # has the target answered in this process? One that never did is not waited for
    under_way: int = UNDER_WAY
    lookahead: bool = False  # may idle workers roll what will probably be asked for next?
    abandoned: set[str] = field(default_factory=set)  # sample ids that failed through all waits: not waited for again
    dropped: frozenset[str] = frozenset()  # sample ids that the user took out of the run: only replayed
    _alike: list[str] = field(default_factory=list)  # the causes of the last failures, until something is scored
    _proven: bool = False  # did this process pay for an answer and score it?
    _first: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the batch whose call goes ahead
    _refused: dict[str, Failure] = field(default_factory=dict)  # by key: not asked again by this process
    _ahead: dict[str, tuple[asyncio.Task, Ahead]] = field(default_factory=dict)  # by key, under way or waiting

    async def __call__(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        *,
        attempt: int = 0,
        purpose: str = "train",
        on_result: Callable[[int, Rollout], None] = lambda index, rollout: None,
    ) -> list[Rollout]:
        """One rollout per sample, in the order of `samples`, whatever order they finish in.

        `purpose` names the batch in events and in the record of what was left out. `on_result` is called with each
        rollout and its index as soon as it is final. Raises `InfraStopped` when more than `MAX_UNSCORED` of the batch
        cannot be scored, `CallConfigError` as soon as one call shows that no call can succeed.
        """
        self.run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        closed_key = digest("left out", skill.hash, [sample.id for sample in samples], attempt, purpose)
        closed = self.run.recall(closed_key)
        left_out = {sample: Failure(**stored) for sample, stored in closed[0].items()} if closed else {}
        rollouts, failures = await self._all(skill, samples, attempt, purpose, left_out, on_result)
        before: Failures = {}
        for pause in WAITS_S:
            late = any(not failure.final and sample not in self.abandoned for sample, failure in failures.items())
            many = _too_many(failures, len(rollouts))
            if closed or not self.answered or not (late or many) or all(f.final for f in failures.values()):
                break
            if _of_scorer(failures) and _causes(failures) == _causes(before):
                break  # a scorer that failed in the same way twice does so a third time
            before = failures
            why = next(failure.why for failure in failures.values() if not failure.final)
            self.run.notify("waiting", purpose=purpose, seconds=pause, why=why)
            await asyncio.sleep(pause)
            rollouts, failures = await self._all(skill, samples, attempt, purpose, left_out, on_result)
        if not closed and (_too_many(failures, len(rollouts)) or self._all_refused(skill, failures, len(rollouts))):
            if _of_scorer(failures):
                self._keep_answers(rollouts)
            raise self._stop(purpose, len(rollouts), failures)
        if failures and not closed:
            self.abandoned.update(sample for sample, failure in failures.items() if failure.outcome not in REFUSED)
            told = {sample: asdict(failure) for sample, failure in failures.items()}
            self.run.decide(closed_key, lambda: told)
            self.run.record(LEFT_OUT, purpose=purpose, skill=skill.hash, attempt=attempt, samples=told)
        for index, rollout in enumerate(rollouts):
            if rollout.scored:
                cost = Trajectory("", outcome=rollout.outcome, usage=rollout.trajectory.usage)
                self.seen[rollout.skill, rollout.sample, rollout.attempt] = replace(rollout, trajectory=cost)
            else:
                on_result(index, rollout)
        return rollouts

    async def stream(
        self, skill: Skill, samples: Sequence[Sample], *, attempts: int = 1, purpose: str = "train"
    ) -> AsyncGenerator[Rollout, None]:
        """The rollouts of one or more draws of a batch, in order, each as soon as it and all before it are final."""
        size = len(samples)
        finals = [asyncio.get_running_loop().create_future() for _ in range(attempts * size)]

        async def draw(attempt: int) -> None:
            def on_result(index: int, rollout: Rollout) -> None:
                final = finals[attempt * size + index]
                if not final.done():
                    final.set_result(rollout)

            await self(skill, samples, attempt=attempt, purpose=purpose, on_result=on_result)

        draws = background(run_all([draw(attempt) for attempt in range(attempts)]))
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

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
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

    def cancel_prefetch(self, skill: Skill) -> None:
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
        asked = [self.content(sample), self.env.prompt, *(["options"] if self.env.chooses(sample) else [])]
        return digest("unscored", self.target.fingerprint, skill, *asked, attempt)

    def _raises(self, failures: Failures) -> bool:
        """True if every failure was raised by a user's scorer function."""
        return self.env.judge is None and _of_scorer(failures)

    def _all_refused(self, skill: Skill, failures: Failures, size: int) -> bool:
        """True if the endpoint refuses half of what was asked with a skill. Not if it refuses a candidate alone: that
        is the candidate's own failure, which the gate sees as a lack of scores."""
        refused = sum(failure.outcome in REFUSED for failure in failures.values())
        scored = sum(hash == skill.hash for hash, _, _ in self.seen)
        return refused >= ALIKE and refused >= MAX_REFUSED * (size + scored) and bool(scored or not self.seen)

    def _stop(self, purpose: str, size: int, failures: Failures) -> InfraStopped:
        """The stop of a batch that failed: how much of it, why, and how to go on."""
        what, then = ("scores" if self._raises(failures) else "calls"), [self._way_on(failures)]
        if len(failures) <= NAMED < size:
            drop = " ".join(f"--drop {shlex.quote(sample)}" for sample in failures)
            then.append(f"To go on without {_few(list(failures))} for good, add {drop}.")
        share = f"{len(failures)} of {size} {what} of the batch '{purpose}' failed"
        return InfraStopped(
            f"{share}: {describe_failures(failures)}\nNothing was counted as a wrong answer. {' '.join(then)}"
        )

    def _keep_answers(self, rollouts: Sequence[Rollout]) -> None:
        """Keep what the target did so far where a mended scorer or another judge finds it, the answers that had a score
        included."""
        samples = {sample.id: sample for sample in self.env.samples}
        for rollout in (*self.seen.values(), *(r for r in rollouts if r.scored)):
            if rollout.sample not in samples:  # dropped, and no longer in the file
                continue
            sample, attempt = samples[rollout.sample], rollout.attempt
            content = self.content(sample)
            key = rollout_key(self.target.fingerprint, rollout.skill, content, self.env.fingerprint, attempt)
            for stored in self.run.recall(key) or ():
                said = replace(rollout_from_json(stored), score=None)
                self.run.put(
                    self.answer_key(rollout.skill, sample, attempt), "unscored", Paid(rollout_to_json(said), Usage())
                )

    def content(self, sample: Sample) -> str:
        """Hash of what a sample asks and expects, the content of its images and files included."""
        if sample.id not in self.contents:
            images = [
                sha256(image.data).hexdigest() for message in self.env.messages(sample) for image in message.images
            ]
            files = self.env.file_hashes(sample)
            stated = sample.model_dump(mode="json", exclude={"split", "group"})
            self.contents[sample.id] = digest(stated, images, *([files] if files else []))
        return self.contents[sample.id]

    async def _all(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        attempt: int,
        purpose: str,
        left_out: Failures,
        on_result: Callable[[int, Rollout], None],
    ) -> tuple[list[Rollout], Failures]:
        """One try at every sample: the rollouts in order, and the failures of those without a score."""
        rollouts: dict[int, Rollout] = {}
        failures: Failures = {}
        waiting = iter(enumerate(samples))
        stop: list[InfraStopped] = []

        async def one(index: int, sample: Sample) -> None:
            failure = left_out.get(sample.id) or self._known(skill, sample, attempt)
            if failure is None:
                try:
                    rollouts[index] = await self._one(skill, sample, attempt)
                    on_result(index, rollouts[index])
                    return
                except CallConfigError:
                    raise
                except CallError as error:
                    failure = Failure.of(sample.id, error)
                    if self._in_a_row(failure):
                        stop.append(self._systemic(failure))
            if failure.outcome in REFUSED and sample.id not in self.dropped:
                self._refused[self.key(skill, sample, attempt)] = failure
            failures[sample.id] = failure
            rollouts[index] = _unscored(skill, sample, attempt, failure)
            if not left_out and not stop and _hopeless(rollouts.values(), failures, len(samples)):
                stop.append(self._stop(purpose, len(rollouts), failures))

        async def work() -> None:
            for index, sample in waiting:
                await one(index, sample)
                if stop:
                    raise stop[0]

        async def ahead() -> None:
            """One sample alone, then the few that tell a bad sample from a bad endpoint."""
            async with self._first:
                for together in (1, ALIKE - 1):
                    first = list(islice(waiting, together)) if not self._heard else []
                    try:
                        await run_all([one(index, sample) for index, sample in first])
                    except RejectedError as error:
                        if together == 1 and not self.answered and await answers_another():
                            raise RejectedError(f"{error}{_without(first[0][1])}") from error
                        raise
                    if stop:
                        raise stop[0]

        async def answers_another() -> bool:
            """True if the endpoint answers the next sample: then the one before was refused for what it says."""
            with suppress(CallError, Stopped):
                await run_all([one(index, sample) for index, sample in islice(waiting, 1)])
            return self.answered

        try:
            if not self._heard:
                await ahead()
            await run_all([work() for _ in range(min(self.under_way, len(samples)))])
        except InfraStopped:
            if stop and _of_scorer(failures):
                self._keep_answers(list(rollouts.values()))
            raise
        ordered = {sample.id: failures[sample.id] for sample in samples if sample.id in failures}
        return [rollouts[index] for index in range(len(samples))], ordered

    @property
    def _heard(self) -> bool:
        """True if an answer was scored in this run. If not, one call goes ahead of all others."""
        return self._proven or bool(self.seen) or "rollout" in self.run.usage

    def _known(self, skill: Skill, sample: Sample, attempt: int) -> Failure | None:
        """The failure of a sample that is not asked: the user dropped it, or it was refused before."""
        if sample.id in self.dropped and self.run.recall(self.key(skill, sample, attempt)) is None:
            return Failure("not_graded", DROPPED, DROPPED, final=True)
        return self._refused.get(self.key(skill, sample, attempt)) if self._refused else None

    def _in_a_row(self, failure: Failure) -> bool:
        """True for the last of `ALIKE` equal failures in a row, if nothing was scored by this process before."""
        if self._proven or failure.outcome in REFUSED:
            return False
        self._alike = [*self._alike, failure.cause][-ALIKE:]
        return len(self._alike) == ALIKE and len(set(self._alike)) == 1

    def _systemic(self, failure: Failure) -> InfraStopped:
        """The stop at the start of a run whose calls all fail in one way."""
        why = failure.why if not failure.final or failure.cause in failure.why else f"{failure.cause}. {failure.why}"
        return InfraStopped(
            f"{ALIKE} of {ALIKE} samples failed in the same way, so no more are sent: {why}\n"
            f"Nothing was counted as a wrong answer. {self._way_on({'': failure})}"
        )

    def _way_on(self, failures: Failures) -> str:
        """The last sentence of a stop: how to go on."""
        if self._raises(failures):
            return "The answers are kept: mend the scorer and run the same command; none is asked for again."
        if _of_scorer(failures):
            return "The answers are kept: run the same command to ask the judge again, or name another with --fork."
        if all(failure.final for failure in failures.values()):
            return "Mend the cause and run the same command, with --fork if a setting of the run has to change."
        return "Run the same command to go on."

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
                    if not isinstance(error, RejectedError):
                        raise CallConfigError(f"sample {sample.id}: {error}") from error
                    way = _without(sample) if self.answered else ""
                    raise RejectedError(f"sample {sample.id}: {error}{way}") from error
                rollout, cost = Rollout(sample.id, skill.hash, attempt, trajectory, None), trajectory.usage
            self.answered = True
            try:
                score = await self.env.score(sample, rollout)
            except BaseException:  # a judge's wrong key and a stop too: what the target did is paid for
                if not done:
                    self.run.put(unscored_key, "unscored", Paid(rollout_to_json(rollout), cost))
                raise
            self._proven = True
            return Paid(rollout_to_json(replace(rollout, score=score)), cost)

        if key in self._ahead and looking_ahead.get() is None:
            self._ahead[key][1].want()
        stored = await self.run.memo(key, "rollout", pay)
        with self.run.reading():
            rollout = rollout_from_json(stored)
        if looking_ahead.get() is None:
            self.run.notify("rollout", sample=sample.id, score=rollout.score.value if rollout.score else None)
        return rollout


def rollout_key(target: str, skill: str, content: str, env: str, attempt: int) -> str:
    """The journal key of a rollout, from the fingerprints of all that can change its result."""
    return digest("rollout", target, skill, content, env, attempt)


def comparable(pairs: Iterable[tuple[Rollout, Rollout]]) -> int:
    """The number of pairs that could have been compared: a sample that is refused under both skills could not."""
    return sum(not (a.outcome in REFUSED and b.outcome in REFUSED) for a, b in pairs)


def describe_failures(failures: Failures) -> str:
    """The causes of failures, the most frequent first, each with the samples that it befell."""
    causes = Counter(failure.cause for failure in failures.values())
    if len(causes) == 1:
        return next(iter(failures.values())).why
    parts = []
    for cause, times in causes.most_common():
        samples = [sample for sample, failure in failures.items() if failure.cause == cause]
        parts.append(f"{times} × {failures[samples[0]].why} ({_few(samples)})")
    return "; ".join(parts)


def _hopeless(rollouts: Iterable[Rollout], failures: Failures, size: int) -> bool:
    """True if a batch that is under way has no score yet and too many failures of one cause that no waiting mends."""
    failed = [failure for failure in failures.values() if failure.outcome not in REFUSED]
    alike = len(failed) >= ALIKE and len({failure.cause for failure in failed}) == 1
    lasting = all(failure.final or failure.outcome == "judge_error" for failure in failed)
    return alike and lasting and _too_many(failures, size) and not any(rollout.scored for rollout in rollouts)


def _of_scorer(failures: Failures) -> bool:
    return {failure.outcome for failure in failures.values()} == {"judge_error"}


def _causes(failures: Failures) -> dict[str, str]:
    return {sample: failure.cause for sample, failure in failures.items()}


def _without(sample: Sample) -> str:
    return f"\nIf only this sample is to blame, add --drop {shlex.quote(sample.id)} to go on without it."


def _few(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return ", ".join(samples[:NAMED]) + more


_VARIES = re.compile(r"\d+|\"[^\"]*\"|'[^']*'")


def _normal(message: str, sample: str) -> str:
    """A message without what differs from call to call: the sample's id, numbers, quoted text."""
    return _VARIES.sub("…", message.replace(sample, "…"))[:300]


def _unscored(skill: Skill, sample: Sample, attempt: int, failure: Failure) -> Rollout:
    return Rollout(sample.id, skill.hash, attempt, Trajectory("", outcome=failure.outcome, error=failure.why), None)


def _too_many(failures: Failures, size: int) -> bool:
    """More than the tolerated share of a batch failed; one failure alone never stops a small batch. A sample that was
    refused for what it says is not counted: it would stop the run for good."""
    failed = sum(failure.outcome not in REFUSED for failure in failures.values())
    return failed > max(MAX_UNSCORED * size, 1 if size > 1 else 0)
