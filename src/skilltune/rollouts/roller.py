"""Forward pass: roll the target over samples. Each (skill, sample, attempt) is paid once per run.

A sample whose call failed for good is returned without a score and is excluded from every mean. Exclusions influence
decisions, so a batch waits and retries until its last sample is scored or has failed all retries. Each exclusion is a
journaled decision of the run: a resumed run completes the batch with the same samples, and a later batch tries the
excluded ones again.

A batch does not wait if waiting cannot help. Two kinds of failure are like that: the sample itself was refused
(`sample_error`), or the failure names its own cause (`CallError.systemic`). Until this process has its first score, a
batch starts with a single call, and three equal failures in a row stop it, because further calls would cost money and
tell nothing new.
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
from itertools import islice

from skilltune.aio import background, run_all
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraStopped, Outcome, RejectedError, Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.journal.under_way import subject
from skilltune.metering.meter import looking_ahead
from skilltune.metering.slots import Ahead
from skilltune.rollout import DIFF_CHARS, Rollout, Trajectory, rollout_from_json, rollout_to_json
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample
from skilltune.scorers.reading import elided
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage

MAX_UNSCORED = 0.10  # share of a batch that may fail; the coverage floor is 1 minus this
MAX_REFUSED = 0.5  # a batch stops if at least this share of all samples asked with a skill was refused (`sample_error`)
ALIKE = 3  # equal failures in a row that stop a batch, until this process has its first score
UNDER_WAY = 256  # samples of a batch in progress at once (at least twice the workers); each holds 6 KB
WAITS_S = (2.0, 10.0, 30.0)  # pauses before the failed samples of a batch are tried again
SPECULATION_DELAY_S = 0.005  # delay before a speculative rollout, so that real requests of the same moment come first
REFUSED: tuple[Outcome, ...] = ("sample_error", "not_graded")  # a retry cannot help, and no other sample is meant
NAMED = 3  # samples that a message names
MAX_REASON_CHARS = 3000  # characters of a failure message that are kept
LEFT_OUT = "left out"  # event: a batch was completed without some of its samples
DROPPED = "taken out of the run by --drop"


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a sample has no score. Failures of one kind have the same `cause`.

    `final` is True if waiting cannot help, because the failure names its own cause.
    """

    outcome: Outcome
    why: str
    cause: str
    final: bool = False

    @classmethod
    def of(cls, sample: str, error: CallError) -> Failure:
        refused = error.outcome in REFUSED
        cause = error.systemic or _normal(str(error), sample)
        return cls(error.outcome, elided(str(error), MAX_REASON_CHARS), cause, refused or bool(error.systemic))


Failures = dict[str, Failure]
"""By sample id."""


@dataclass(slots=True)
class Roller:
    """Rolls samples with a skill and keeps every score in `scores`, for the gate."""

    target: Target
    env: Env
    run: Run
    contents: dict[str, str] = field(default_factory=dict)  # by sample id, see `content`
    scores: Scores = field(default_factory=Scores)
    answered: bool = False  # True if the target answered in this process; a batch never waits for one that did not
    under_way: int = UNDER_WAY
    abreast: int = UNDER_WAY  # the same for each of two batches that are compared, so that they share the slots evenly
    kind: str = "rollout"  # of its answers in the journal
    lookahead: bool = False  # True if idle workers may run rollouts that will probably be requested next
    abandoned: set[str] = field(default_factory=set)  # ids of samples that failed all retries: not waited for again
    dropped: frozenset[str] = frozenset()  # ids of samples that the user took out of the run: only replayed
    _alike: list[str] = field(default_factory=list)  # causes of the last failures, until something is scored
    _proven: bool = False  # True if this process paid for an answer and scored it
    _first: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the batch that sends the first call
    _refused: dict[str, Failure] = field(default_factory=dict)  # by key; this process does not ask them again
    _ahead: dict[str, tuple[asyncio.Task, Ahead]] = field(default_factory=dict)  # speculative rollouts, by key

    async def __call__(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        *,
        attempt: int = 0,
        purpose: str = "train",
        at_once: int | None = None,
        on_result: Callable[[int, Rollout], None] = lambda index, rollout: None,
    ) -> list[Rollout]:
        """One rollout per sample, in the order of `samples`, regardless of the order in which they finish.

        `purpose` names the batch in events and in the record of excluded samples. `at_once` samples are in progress at
        once, by default `under_way`. `on_result` receives each rollout and
        its index as soon as it is final. Raises `InfraStopped` if more than `MAX_UNSCORED` of the batch cannot be
        scored, and `CallConfigError` as soon as one call shows that no call can succeed.
        """
        self.run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        closed_key = digest("left out", skill.hash, [sample.id for sample in samples], attempt, purpose)
        closed = self.run.recall(closed_key)
        left_out = {sample: Failure(**stored) for sample, stored in closed[0].items()} if closed else {}
        at_once = at_once or self.under_way
        rollouts, failures = await self._all(skill, samples, attempt, purpose, at_once, left_out, on_result)
        before: Failures = {}
        for pause in WAITS_S:
            late = any(not failure.final and sample not in self.abandoned for sample, failure in failures.items())
            many = _too_many(failures, len(rollouts))
            if closed or not self.answered or not (late or many) or all(f.final for f in failures.values()):
                break
            if _of_scorer(failures) and _causes(failures) == _causes(before):
                break  # a scorer that failed twice in the same way will fail again
            before = failures
            why = next(failure.why for failure in failures.values() if not failure.final)
            self.run.notify("waiting", purpose=purpose, seconds=pause, why=why)
            await asyncio.sleep(pause)
            rollouts, failures = await self._all(skill, samples, attempt, purpose, at_once, left_out, on_result)
        if not closed and (_too_many(failures, len(rollouts)) or self._all_refused(skill, failures, len(rollouts))):
            if _of_scorer(failures):
                self._keep_answers(rollouts)
            raise self._stop(purpose, len(rollouts), failures)
        if failures and not closed:
            self.abandoned.update(sample for sample, failure in failures.items() if failure.outcome not in REFUSED)
            reasons = {sample: asdict(failure) for sample, failure in failures.items()}
            self.run.decide(closed_key, lambda: reasons)
            self.run.record(LEFT_OUT, purpose=purpose, skill=skill.hash, attempt=attempt, samples=reasons)
        for index, rollout in enumerate(rollouts):
            if rollout.scored:
                self.scores.add(rollout)
            else:
                on_result(index, rollout)
        return rollouts

    async def stream(
        self, skill: Skill, samples: Sequence[Sample], *, attempts: int = 1, purpose: str = "train"
    ) -> AsyncGenerator[Rollout, None]:
        """Yield the rollouts of all attempts at a batch in order, each as soon as it and all before it are final."""
        size = len(samples)
        finals = [asyncio.get_running_loop().create_future() for _ in range(attempts * size)]

        async def roll(attempt: int) -> None:
            def on_result(index: int, rollout: Rollout) -> None:
                final = finals[attempt * size + index]
                if not final.done():
                    final.set_result(rollout)

            await self(skill, samples, attempt=attempt, purpose=purpose, on_result=on_result)

        rolling = background(run_all([roll(attempt) for attempt in range(attempts)]))
        try:
            for final in finals:
                await asyncio.wait((final, rolling), return_when=asyncio.FIRST_COMPLETED)
                if not final.done():
                    rolling.result()  # raises; a batch that ends normally has settled all of its futures
                yield final.result()
            await rolling
        finally:
            rolling.cancel()
            await asyncio.wait([rolling])

    # -- speculative rollouts

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        """Start rollouts that will probably be requested soon, on workers that are idle.

        Their answers go to the journal. No result depends on them until they are requested.
        """
        for sample in samples if self.lookahead and self.answered else ():
            key = self.key(skill, sample, attempt)
            if key not in self._ahead:
                context, call = copy_context(), Ahead()
                context.run(looking_ahead.set, call)
                task = background(self._quietly(skill, sample, attempt), name=skill.hash, context=context)
                self._ahead[key] = task, call
                task.add_done_callback(lambda _, key=key: self._ahead.pop(key, None))

    def cancel_prefetch(self, skill: Skill) -> None:
        """Cancel prefetched rollouts of every other skill. Calls that were already sent may finish."""
        for task, call in self._ahead.values():
            if task.get_name() != skill.hash and not call.begun:
                task.cancel()

    async def aclose(self) -> None:
        """Cancel all prefetched rollouts."""
        tasks = [task for task, _ in self._ahead.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _quietly(self, skill: Skill, sample: Sample, attempt: int) -> None:
        """Run a speculative rollout. Errors are suppressed, because a real request would meet them again."""
        with suppress(Exception):
            await asyncio.sleep(SPECULATION_DELAY_S)
            await self._one(skill, sample, attempt)

    def key(self, skill: Skill, sample: Sample, attempt: int) -> str:
        """The journal key of a rollout: everything that can change its result."""
        return rollout_key(self.target.fingerprint, skill.hash, self.content(sample), self.env.fingerprint, attempt)

    def held_in(self, journal: Run) -> tuple[int, int]:
        """Return (rollouts of a journal that are valid here, all its rollouts).

        A rollout is valid if its key is the same with this target, scorer and samples.
        """
        samples = {sample.id: sample for sample in self.env.samples}
        valid = total = 0
        for key, value in journal.answers(self.kind):
            total += 1
            if (sample := samples.get(value["sample"])) is not None:
                parts = self.target.fingerprint, value["skill"], self.content(sample), self.env.fingerprint
                valid += key == rollout_key(*parts, value["attempt"])
        return valid, total

    def answer_key(self, skill: str, sample: Sample, attempt: int) -> str:
        """The journal key of an answer that has no score yet, so that a repaired scorer can grade it without a new
        call."""
        asked = [self.content(sample), self.env.prompt, *(["options"] if self.env.chooses(sample) else [])]
        asked += ["visible", *sorted(self.env.visible)] if self.env.visible else []
        asked += ["tools", self.env.tools_fingerprint] if self.env.tools_fingerprint else []
        return digest("unscored", self.target.fingerprint, skill, *asked, attempt)

    def _raises(self, failures: Failures) -> bool:
        """True if every failure was raised by a user's scorer function."""
        return self.env.judge is None and _of_scorer(failures)

    def _all_refused(self, skill: Skill, failures: Failures, size: int) -> bool:
        """True if the endpoint refuses at least half of the samples asked with a skill.

        False if it refuses only a candidate. That is a failure of the candidate, and the gate sees its missing scores.
        """
        refused = sum(failure.outcome in REFUSED for failure in failures.values())
        scored = sum(hash == skill.hash for hash, _, _ in self.scores.held)
        return refused >= ALIKE and refused >= MAX_REFUSED * (size + scored) and bool(scored or not self.scores.held)

    def _stop(self, purpose: str, size: int, failures: Failures) -> InfraStopped:
        """The error that stops a failed batch. It says how much failed, why, and how to go on."""
        what, then = ("scores" if self._raises(failures) else "calls"), [self._way_on(failures)]
        if len(failures) <= NAMED < size:
            drop = " ".join(f"--drop {shlex.quote(sample)}" for sample in failures)
            then.append(f"To go on without {_first_few(list(failures))} for good, add {drop}.")
        share = f"{len(failures)} of {size} {what} of the batch '{purpose}' failed"
        return InfraStopped(
            f"{share}: {describe_failures(failures)}\nNothing was counted as a wrong answer. {' '.join(then)}"
        )

    def _keep_answers(self, rollouts: Sequence[Rollout]) -> None:
        """Store all answers so far, scored ones too, where a repaired scorer or another judge finds them."""
        samples = {sample.id: sample for sample in self.env.samples}
        for rollout in (*self.scores.held.values(), *(r for r in rollouts if r.scored)):
            if rollout.sample not in samples:  # dropped, and no longer in the sample file
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
        """Hash of a sample's input and expected answer, including the content of its images and files."""
        if sample.id not in self.contents:
            images, files = self.env.hashes(sample)
            stated = sample.model_dump(mode="json", exclude={"split", "group"})
            self.contents[sample.id] = digest(stated, images, *([files] if files else []))
        return self.contents[sample.id]

    async def _all(
        self,
        skill: Skill,
        samples: Sequence[Sample],
        attempt: int,
        purpose: str,
        at_once: int,
        left_out: Failures,
        on_result: Callable[[int, Rollout], None],
    ) -> tuple[list[Rollout], Failures]:
        """Try every sample once. Returns the rollouts in order, and the failures of samples without a score."""
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
            """Roll one sample alone, then a few more, to tell a bad sample from a bad endpoint."""
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
            await run_all([work() for _ in range(min(at_once, len(samples)))])
        except InfraStopped:
            if stop and _of_scorer(failures):
                self._keep_answers(list(rollouts.values()))
            raise
        ordered = {sample.id: failures[sample.id] for sample in samples if sample.id in failures}
        return [rollouts[index] for index in range(len(samples))], ordered

    @property
    def _heard(self) -> bool:
        """True if this run has a scored answer. Until then, one call is sent before all others."""
        return self._proven or bool(self.scores.held) or self.kind in self.run.usage

    def _known(self, skill: Skill, sample: Sample, attempt: int) -> Failure | None:
        """The failure of a sample that is not asked, because the user dropped it or it was refused before."""
        if sample.id in self.dropped and self.run.recall(self.key(skill, sample, attempt)) is None:
            return Failure("not_graded", DROPPED, DROPPED, final=True)
        return self._refused.get(self.key(skill, sample, attempt)) if self._refused else None

    def _in_a_row(self, failure: Failure) -> bool:
        """True for the last of `ALIKE` equal failures in a row, until this process has its first score."""
        if self._proven or failure.outcome in REFUSED:
            return False
        self._alike = [*self._alike, failure.cause][-ALIKE:]
        return len(self._alike) == ALIKE and len(set(self._alike)) == 1

    def _systemic(self, failure: Failure) -> InfraStopped:
        """The error that stops a run if its first calls all fail in the same way."""
        why = failure.why if not failure.final or failure.cause in failure.why else f"{failure.cause}. {failure.why}"
        return InfraStopped(
            f"{ALIKE} of {ALIKE} samples failed in the same way, so no more are sent: {why}\n"
            f"Nothing was counted as a wrong answer. {self._way_on({'': failure})}"
        )

    def _way_on(self, failures: Failures) -> str:
        """The last sentence of a stop message: how to go on."""
        if self._raises(failures):
            return "The answers are kept: fix the scorer and run the same command; no answer is paid for again."
        if _of_scorer(failures):
            return "The answers are kept: run the same command to ask the judge again, or name another with --fork."
        if all(failure.final for failure in failures.values()):
            return "Fix the cause and run the same command, with --fork if a setting of the run has to change."
        return "Run the same command to go on."

    def _kept(self, trajectory: Trajectory) -> Trajectory:
        """Store the files that the target left behind and its output, before the rollout that names them."""
        output = (trajectory.stream,) if trajectory.stream is not None else ()
        for artifact in (*trajectory.artifacts.values(), *output):
            self.run.put_blob(artifact.key, artifact.read())
        return replace(trajectory, diff=elided(trajectory.diff, DIFF_CHARS)) if trajectory.diff else trajectory

    async def _one(self, skill: Skill, sample: Sample, attempt: int) -> Rollout:
        key = self.key(skill, sample, attempt)

        async def pay() -> Paid:
            """Roll and score the sample. If only the scorer fails, the answer is kept."""
            subject.set((sample.id, skill.hash))  # of this task and the tasks that it starts
            unscored_key = self.answer_key(skill.hash, sample, attempt)
            done = self.run.recall(unscored_key)
            if done:
                rollout, cost = _in_memory(rollout_from_json(done[0], self.run.blob)), Usage()
            else:
                try:
                    trajectory = await self.target.run(skill, self.env.task(sample), attempt)
                except CallConfigError as error:
                    if not isinstance(error, RejectedError):
                        raise CallConfigError(f"sample {sample.id}: {error}") from error
                    way = _without(sample) if self.answered else ""
                    raise RejectedError(f"sample {sample.id}: {error}{way}") from error
                trajectory = self._kept(trajectory)
                rollout = Rollout(sample.id, skill.hash, attempt, trajectory, None)
                cost = Usage() if trajectory.journaled else trajectory.usage
            self.answered = True
            try:
                score = await self.env.score(sample, rollout)
            except BaseException:  # also a judge's wrong key, or a stop: the target's answer is paid for
                if not done:
                    self.run.put(unscored_key, "unscored", Paid(rollout_to_json(rollout), cost))
                raise
            self._proven = True
            return Paid(rollout_to_json(replace(rollout, score=score)), cost)

        if key in self._ahead and looking_ahead.get() is None:
            self._ahead[key][1].want()
        stored = await self.run.memo(key, self.kind, pay)
        with self.run.reading():
            rollout = rollout_from_json(stored, self.run.blob)
        if looking_ahead.get() is None:
            self.run.notify("rollout", sample=sample.id, score=rollout.score.value if rollout.score else None)
        return rollout


def rollout_key(target: str, skill: str, content: str, env: str, attempt: int) -> str:
    """The journal key of a rollout, built from the fingerprints of everything that can change its result."""
    return digest("rollout", target, skill, content, env, attempt)


def comparable(pairs: Iterable[tuple[Rollout, Rollout]]) -> int:
    """Number of pairs that can be compared. A pair whose sample is refused under both skills is not counted."""
    return sum(not (a.outcome in REFUSED and b.outcome in REFUSED) for a, b in pairs)


def describe_failures(failures: Failures) -> str:
    """The causes of failures, most frequent first, each with its samples."""
    causes = Counter(failure.cause for failure in failures.values())
    if len(causes) == 1:
        return next(iter(failures.values())).why
    parts = []
    for cause, times in causes.most_common():
        samples = [sample for sample, failure in failures.items() if failure.cause == cause]
        parts.append(f"{times} × {failures[samples[0]].why} ({_first_few(samples)})")
    return "; ".join(parts)


def _hopeless(rollouts: Iterable[Rollout], failures: Failures, size: int) -> bool:
    """True if a running batch has no score yet and too many equal failures that waiting cannot repair."""
    failed = [failure for failure in failures.values() if failure.outcome not in REFUSED]
    alike = len(failed) >= ALIKE and len({failure.cause for failure in failed}) == 1
    lasting = all(failure.final or failure.outcome == "judge_error" for failure in failed)
    return alike and lasting and _too_many(failures, size) and not any(rollout.scored for rollout in rollouts)


def _of_scorer(failures: Failures) -> bool:
    return {failure.outcome for failure in failures.values()} == {"judge_error"}


def _causes(failures: Failures) -> dict[str, str]:
    return {sample: failure.cause for sample, failure in failures.items()}


def _without(sample: Sample) -> str:
    """The hint to drop the sample."""
    return f"\nIf only this sample is to blame, add --drop {shlex.quote(sample.id)} to go on without it."


def _first_few(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - NAMED} more" if len(samples) > NAMED else ""
    return ", ".join(samples[:NAMED]) + more


_VARIES = re.compile(r"\d+|\"[^\"]*\"|'[^']*'")


def _normal(message: str, sample: str) -> str:
    """The message without the parts that differ between calls: sample id, numbers, quoted text."""
    return _VARIES.sub("…", message.replace(sample, "…"))[:300]


def _in_memory(rollout: Rollout) -> Rollout:
    """The rollout with the content of its artifacts. A user's scorer runs in a thread that may not read the journal."""
    if not rollout.artifacts:
        return rollout
    loaded = {path: artifact.loaded() for path, artifact in rollout.artifacts.items()}
    return replace(rollout, trajectory=replace(rollout.trajectory, artifacts=loaded))


def _unscored(skill: Skill, sample: Sample, attempt: int, failure: Failure) -> Rollout:
    return Rollout(sample.id, skill.hash, attempt, Trajectory("", outcome=failure.outcome, error=failure.why), None)


def _too_many(failures: Failures, size: int) -> bool:
    """True if more than the tolerated share of a batch failed. A single failure never stops a small batch.

    A sample that was refused (`sample_error`) is not counted, because it would stop the run for good.
    """
    failed = sum(failure.outcome not in REFUSED for failure in failures.values())
    return failed > max(MAX_UNSCORED * size, 1 if size > 1 else 0)
