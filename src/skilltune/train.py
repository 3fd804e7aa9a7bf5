"""Train a skill document against a frozen target: SGD on text. Read this file first; it is the whole algorithm.

    weights → the skill document          forward pass → the target does a sample with the skill
    loss → the scorer                     gradient → edits proposed from scored trajectories
    learning rate → edits per step        validation → the gate on `select`, never seen by the optimizer
    momentum → the epoch's slow update    checkpoint → the journal: calling `train` again *is* resuming

Preset `paper` and preset `default` are this same loop with another optimizer setting and another gate.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skilltune.controls import Controls, controls
from skilltune.errors import InfraStopped, Stopped, Unanswered
from skilltune.export import export
from skilltune.gate import Gate, Verdict
from skilltune.gate.calibrate import calibrate
from skilltune.gate.certify import Certificate, certify
from skilltune.gate.credit import ledger_of
from skilltune.gate.finish import compact, reselect
from skilltune.models import Usage
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.optimizer.schedule import schedule, steps_per_epoch
from skilltune.roll import gather
from skilltune.rollout import Rollout
from skilltune.run import rng
from skilltune.samples import Sample
from skilltune.session import Session
from skilltune.skill import Skill

CONFIRM_FROM = 0.5  # score on `select` from which on a failure may well be bad luck
REPEATS = 8  # failures that were answered alike twice, from which on failures are not rolled again


@dataclass(slots=True)
class State:
    """How far the run has come: the versions that were accepted, the incumbent last; the first is the input."""

    versions: list[Skill]
    memory: Memory = field(default_factory=Memory)
    verdicts: list[Verdict] = field(default_factory=list)
    score: float | None = None  # of the incumbent on `select`
    since_accept: int = 0  # steps
    failed: dict[str, bool] = field(default_factory=dict)  # by the incumbent, of the tasks of its batches
    steady: bool = False  # the target gave equal answers to equal questions
    stopped: Stopped | None = None

    @property
    def skill(self) -> Skill:
        return self.versions[-1]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run ended with. `best` is the input itself where nothing better was found."""

    start: Skill
    best: Skill
    certificate: Certificate | None
    versions: tuple[Skill, ...]
    test: int  # samples in the test split
    folder: Path  # of the run
    stopped: Stopped | None = None
    controls: Controls | None = None
    spent: Usage = field(default_factory=Usage)  # over all lives of the run
    training: Usage = field(default_factory=Usage)  # of that, for training and certificate: without control arms

    def __repr__(self) -> str:
        """What may be claimed, on what evidence, at what price, and where it is: a line each."""
        from skilltune.report.card import describe_usage, headline

        best = f"best/{self.best.name}" if self.best.folder else "best_skill.md"
        proof = str(self.certificate) if self.certificate else f"no certificate: {self.uncertified}"
        return "\n".join((headline(self), proof, describe_usage(self.spent), str(self.folder / best)))

    def export(self, kind: str, to: str | Path | None = None, **options: Any) -> Path:
        """Put the best skill where an agent finds it; see `skilltune.export.export`."""
        return export(self.best, kind, to, **options)

    @property
    def exit_code(self) -> int:
        """0 better, 1 nothing better, 4 stopped by budget, 5 accepted but not certified (see the contract)."""
        if self.stopped is not None:
            return self.stopped.exit_code
        if self.best.text == self.start.text:
            return 1
        certified = self.certificate.certified if self.certificate else not self.test
        return 0 if certified else 5

    @property
    def uncertified(self) -> str:
        """Why there is no certificate, "" if there is one."""
        if self.certificate is not None:
            return ""
        if self.best.text == self.start.text:
            return "the best skill is the input, so the test split was not read"
        if not self.test:
            return "there is no test split"
        return "the run was stopped before it" if self.stopped else "no test sample was scored on both sides"


async def train(s: Session) -> Result:
    """Train, then certify. Every await that costs money is journaled: killed anywhere and called again with the same
    session settings, it gives the same versions and pays nothing twice. A budget that runs out ends the training, not
    the run: the certificate's share was kept back. Raises `InfraStopped` and `CallConfigError` (resumable)."""
    state = State([s.skill])
    s.hold_back()
    with stopping(state):
        await fit(s, state)
    start, best = state.versions[0], state.skill
    if (chosen := reselect(s.arena, start, state.verdicts)) is not None:
        s.run.emit("reselection", **chosen.to_json())
        best = chosen.best.skill
    if s.cfg.train.compact and state.stopped is None:
        with stopping(state):
            best = await shorten(s, state, best)
    s.budget.release()

    certificate = None
    proof = s.cfg.certify.model_copy(update={"attempts": s.arena.draws(s.cfg.certify.attempts)})
    with stopping(state):
        certificate = await certify(
            s.roll, start, best, s.splits.test, s.arena.metric, proof, s.cfg.seed, s.look_at_test(best)
        )
    arms, training = None, s.budget.spent
    if certificate is not None:
        paid: dict[str, Any] = s.run.fix(f"paid by certificate {best.hash} {len(state.verdicts)}", training.to_json)
        training = Usage(**paid)
    if certificate is not None and s.cfg.certify.controls:
        arms = await controls(s, start, best)
        s.run.emit("controls", **arms.to_json())
    if certificate is not None and certificate.gain <= 0:
        best = start  # what is not better on unseen samples is not shipped
    versions, test = tuple(state.versions), len(s.splits.test)
    return Result(start, best, certificate, versions, test, s.run.folder, state.stopped, arms, s.budget.spent, training)


async def fit(s: Session, state: State) -> None:
    """The loop."""
    optimizer, gate, cfg = s.optimizer, s.gate, s.cfg.train
    state.score = await gate.baseline(state.skill)
    s.record_start(state.skill, state.score)
    if s.cfg.gate.calibrate and (found := await calibrate(s.arena, state.skill)) is not None:
        s.run.emit("calibration", **found.to_json())
    epoch_start = state.skill

    for step in schedule(cfg, s.splits.train, s.cfg.seed):
        if s.should_stop(state.since_accept, state.score):
            break
        if step.starts_epoch:
            epoch_start = state.skill
            if not s.cfg.optimizer.patterns:
                state.memory = state.memory.new_epoch()

        async with aclosing(await forward(s, state, step)) as rollouts:
            if s.nothing_left(state.failed):
                break
            proposals = await optimizer.propose(state.skill, rollouts, state.memory, step, step.lr or cfg.lr)
            async for _ in rollouts:  # what the optimizer did not wait for is the gate's evidence too
                pass
        limit = step.lr or await optimizer.learning_rate(state.skill, proposals, state.memory, step, cfg.lr)
        s.arena.upcoming, protect = step.upcoming, state.memory.protected
        verdict = await gate.judge(state.skill, proposals, limit=limit, name=f"step {step.index}", protect=protect)
        state.memory = replace(state.memory, lr=limit)
        state.since_accept = 0 if verdict.accepted else state.since_accept + 1
        take(s, state, step, verdict, limit)

        if s.cfg.slow.enabled and optimizer.looks_back and step.ends_epoch and step.epoch > 1:
            await slow(s, state, step, epoch_start, optimizer, gate)


async def forward(s: Session, state: State, step: Step) -> AsyncGenerator[Rollout, None]:
    """The step's batch under the incumbent, as it comes. Once much is solved, a failure may be bad luck: then it is
    rolled again, and the batch comes when all of it is known. So it does if it may be the last one, because whether the
    run goes on must be known before the optimizer is asked."""
    attempts = s.arena.draws(s.cfg.target.attempts)
    batch = s.roll.stream(state.skill, step.batch, attempts=attempts, purpose=f"step {step.index}")
    repeats = attempts == 1 and s.arena.draws(2) > 1 and not state.steady
    if s.cfg.train.confirm and repeats and (state.score or 0.0) >= CONFIRM_FROM:
        return stream(await confirmed(s, state, batch, f"step {step.index}, failures again"))
    if s.too_few({sample.id: False for sample in step.batch} | state.failed):
        return stream([rollout async for rollout in counted(s, state, batch)])
    return counted(s, state, batch)


async def counted(s: Session, state: State, rollouts: AsyncGenerator[Rollout, None]) -> AsyncGenerator[Rollout, None]:
    """A batch as it comes; which of its tasks failed is noted."""
    async with aclosing(rollouts):
        async for rollout in rollouts:
            note(s, state, rollout)
            yield rollout


async def confirmed(s: Session, state: State, rollouts: AsyncGenerator[Rollout, None], purpose: str) -> list[Rollout]:
    """A batch whose full failures were rolled once more: what succeeds then was bad luck, and passes for a success. A
    target that gives the same answers again is not asked twice any more."""
    by_id = {sample.id: sample for sample in s.splits.train}
    first, samples = list[Rollout](), list[Sample]()
    async with aclosing(rollouts):
        async for rollout in rollouts:
            first.append(rollout)
            if rollout.score and rollout.score.value == 0:
                samples.append(by_id[rollout.sample])
                s.roll.expect(state.skill, samples[-1:], 1)
    second = {rollout.sample: rollout for rollout in await s.roll(state.skill, samples, attempt=1, purpose=purpose)}
    equal = [second[rollout.sample].answer == rollout.answer for rollout in first if rollout.sample in second]
    state.steady = len(equal) >= REPEATS and all(equal)
    result = list[Rollout]()
    for rollout in first:
        again = second.get(rollout.sample)
        result.append(again if again and again.score and again.score.hard else rollout)
        note(s, state, result[-1])
    return result


def note(s: Session, state: State, rollout: Rollout) -> None:
    """Note of the rollout's task whether any attempt of the incumbent failed."""
    failed = rollout.score is None or s.arena.metric(rollout.score) < 1
    state.failed[rollout.sample] = failed or state.failed.get(rollout.sample, False)


async def stream(rollouts: Iterable[Rollout]) -> AsyncGenerator[Rollout, None]:
    """Rollouts that are there already, as they would come."""
    for rollout in rollouts:
        yield rollout


async def slow(s: Session, state: State, step: Step, epoch_start: Skill, optimizer: Optimizer, gate: Gate) -> None:
    """The epoch's slow update: compare its two ends on the same train samples, write guidance, and take it through the
    same gate as any other edit. Two equal skills have nothing to teach."""
    if epoch_start.text == state.skill.text:
        s.run.emit("slow", epoch=step.epoch, skipped="the skill did not change in this epoch")
        return
    known = sorted(s.splits.train, key=lambda sample: sample.id)
    chosen = rng(s.cfg.seed, "slow", step.epoch).sample(known, min(s.cfg.slow.samples, len(known)))
    name = f"epoch {step.epoch} slow"
    before, after = await gather([s.roll(skill, chosen, purpose=name) for skill in (epoch_start, state.skill)])
    pairs = [Pair(a, b) for a, b in zip(before, after, strict=True) if a.scored and b.scored]

    asked: list[Awaitable[Any]] = [optimizer.slow_update(state.skill, pairs, state.memory, step)]
    if s.cfg.slow.notes:
        asked.append(optimizer.notes(state.skill, pairs, state.memory, step))
    guidance, *notes = await gather(asked)
    if notes:
        state.memory = replace(state.memory, notes=notes[0])
    if guidance is not None:
        verdict = await gate.judge(state.skill, [Proposal(guidance)], limit=1, name=name, alone=True)
        taken = [r for r in verdict.reports if verdict.accepted and r.edit == guidance and r.status == "applied"]
        if taken:
            state.memory = replace(state.memory, slow=taken[0].inserted.strip())  # as it stands there, line ends too
        take(s, state, step, verdict, 1)


async def shorten(s: Session, state: State, best: Skill) -> Skill:
    """The compact pass: what is left of the best skill without the rules that carry nothing."""
    rules = ledger_of(s.run, s.roll.seen.values(), s.arena.metric, best.hash)
    judged = {verdict.candidate.hash for verdict in state.verdicts if verdict.candidate}
    steps = steps_per_epoch(s.cfg.train, len(s.splits.train)) * s.cfg.train.epochs
    async with aclosing(compact(s.arena, best, rules, {state.versions[0].hash, *judged})) as verdicts:
        async for verdict in verdicts:
            steps += 1
            take(s, state, Step(steps, s.cfg.train.epochs, (), 1, starts_epoch=False, ends_epoch=False), verdict, 1)
            best = verdict.skill
    return best


def take(s: Session, state: State, step: Step, verdict: Verdict, limit: int) -> None:
    """Take over what the gate decided, and write it down."""
    state.score = verdict.score
    state.verdicts.append(verdict)
    if verdict.accepted:
        state.versions.append(verdict.skill)
        state.failed = {}
    grown = verdict.accepted and s.cfg.optimizer.patterns
    state.memory = state.memory.remember(verdict.rejected, verdict.skill.body, verdict.candidate, grown=grown)
    s.roll.settle(state.skill)
    s.record(step, verdict, limit, version=len(state.versions) - 1)


@contextmanager
def stopping(state: State) -> Iterator[None]:
    """An ordered stop (the budget) ends the block, not the run; what was reached stands."""
    try:
        yield
    except Stopped as stop:
        if isinstance(stop, InfraStopped | Unanswered):  # there is nothing to certify with, or nothing yet
            raise
        state.stopped = stop
