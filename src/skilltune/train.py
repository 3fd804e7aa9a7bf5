"""Train a skill document against a frozen target: SGD on text. Read this file first; it is the whole algorithm.

    weights → the skill document          forward pass → the target does a sample with the skill
    loss → the scorer                     gradient → edits proposed from scored trajectories
    learning rate → edits per step        validation → the gate on `select`, never seen by the optimizer
    momentum → the epoch's slow update    checkpoint → the journal: calling `train` again *is* resuming

Preset `paper` and preset `default` are this same loop with another optimizer setting and another gate.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from skilltune.aio import run_all
from skilltune.errors import InfraStopped, Paused, Stopped, Unanswered
from skilltune.finish.certify import certify
from skilltune.finish.compact import compact
from skilltune.finish.controls import controls
from skilltune.finish.ledger import ledger_of
from skilltune.finish.reselect import reselect
from skilltune.gate import Gate
from skilltune.journal.keys import rng
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.optimizer.schedule import schedule, steps_per_epoch
from skilltune.parts import Session
from skilltune.preflight.noise import calibrate, repeats_itself
from skilltune.result import Result
from skilltune.rollout import Rollout
from skilltune.skill import Skill
from skilltune.usage import Usage
from skilltune.verdict import Verdict

CONFIRM_FROM = 0.5  # score of a batch; from here on a failure may well be bad luck


@dataclass(slots=True)
class State:
    """How far the run has come: the versions that were accepted, the incumbent last; the first is the input."""

    versions: list[Skill]
    memory: Memory = field(default_factory=Memory)
    verdicts: list[Verdict] = field(default_factory=list)
    score: float | None = None  # of the incumbent on `select`
    since_accept: int = 0  # steps since a version was accepted, by a step or by a slow update
    failed: dict[str, bool] = field(default_factory=dict)  # by the incumbent, of the tasks of its batches
    steady: bool = False  # the target gave equal answers to equal questions
    revived: str = ""  # the hash of a candidate that was rejected, and chosen at the end
    stopped: Stopped | None = None

    @property
    def skill(self) -> Skill:
        return self.versions[-1]


async def train(s: Session) -> Result:
    """Train, then certify. Every await that costs money is journaled: killed anywhere and called again with the same
    session settings, it gives the same versions and pays nothing twice. A budget that runs out ends the training, not
    the run: the certificate's share was kept back. A pause ends both, and the test split is not read. Raises
    `InfraStopped` and `CallConfigError` (resumable)."""
    state = State([s.skill])
    s.hold_back()
    with stopping(state):
        await fit(s, state)
        s.pause_if_wanted()
    start, best = state.versions[0], state.skill
    if isinstance(state.stopped, Paused):
        return _result(s, state, start, best)
    best = choose(s, state)
    if s.cfg.train.compact and state.stopped is None:
        with stopping(state):
            best = await shorten(s, state, best)
            s.pause_if_wanted()
        if isinstance(state.stopped, Paused):
            return _result(s, state, start, best)
    s.budget.release()

    certificate = None
    proof = s.cfg.certify.model_copy(update={"attempts": s.arena.draws(s.cfg.certify.attempts)})
    with stopping(state):
        certificate = await certify(
            s.roll, start, best, s.splits.test, s.arena.metric, proof, s.cfg.seed, s.look_at_test(best)
        )
    arms, training = None, s.budget.spent
    if certificate is not None:
        paid: dict[str, Any] = s.run.decide(f"paid by certificate {best.hash} {len(state.verdicts)}", training.to_json)
        with s.run.reading():
            training = Usage(**paid)
    if certificate is not None and s.cfg.certify.controls:
        arms = await controls(s, start, best)
        s.run.record("controls", **arms.to_json())
    if certificate is not None and certificate.gain <= 0:
        best = start  # what is not better on unseen samples is not shipped
    return replace(_result(s, state, start, best), certificate=certificate, controls=arms, training=training)


def _result(s: Session, state: State, start: Skill, best: Skill) -> Result:
    """The result without what follows the training."""
    versions, test, spent = tuple(state.versions), len(s.splits.test), s.budget.spent
    revived, folder = state.revived == best.hash, s.run.folder
    return Result(start, best, None, versions, test, folder, state.stopped, None, spent, spent, revived)


async def fit(s: Session, state: State) -> None:
    """The loop."""
    optimizer, gate, cfg = s.optimizer, s.gate, s.cfg.train
    state.score = await gate.baseline(state.skill)
    s.record_start(state.skill, state.score)
    if s.cfg.gate.calibrate and (found := await calibrate(s.arena, state.skill)) is not None:
        s.run.record("calibration", **found.to_json())
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
        state.since_accept += 1
        take(s, state, step, verdict, limit)

        if s.cfg.slow.enabled and optimizer.looks_back and step.ends_epoch and step.epoch > 1:
            await slow(s, state, step, epoch_start, optimizer, gate)


async def forward(s: Session, state: State, step: Step) -> AsyncGenerator[Rollout, None]:
    """The step's batch under the incumbent, as it comes. It is held back while half of it may be solved: then a failure
    may be bad luck and is rolled again, or too few failures may be left to go on at all."""
    attempts, name = s.arena.draws(s.cfg.target.attempts), f"step {step.index}"
    batch = s.roll.stream(state.skill, step.batch, attempts=attempts, purpose=name)
    if not s.cfg.train.confirm and not s.cfg.train.patience:
        return noted(s, state, [], batch)
    confirm = s.cfg.train.confirm and attempts == 1 and s.arena.draws(2) > 1 and not state.steady
    by_id = {sample.id: sample for sample in step.batch}
    size, held, lost = attempts * len(step.batch), list[Rollout](), 0.0
    async for rollout in batch:
        held.append(rollout)
        lost += 1 - s.arena.metric(rollout.score) if rollout.score else 0.0
        if lost > (1 - CONFIRM_FROM) * size:
            break
        if confirm and scored_zero(rollout) and len(held) - lost >= CONFIRM_FROM * size:
            s.roll.prefetch(state.skill, [by_id[rollout.sample]], 1)
    else:
        if confirm:
            held = await confirmed(s, state, held, f"{name}, failures again")
    for rollout in held:
        note(s, state, rollout)
    return noted(s, state, held, batch)


async def noted(
    s: Session, state: State, held: Sequence[Rollout], rest: AsyncGenerator[Rollout, None]
) -> AsyncGenerator[Rollout, None]:
    """Rollouts that were noted already, then the rest as it comes."""
    async with aclosing(rest):
        for rollout in held:
            yield rollout
        async for rollout in rest:
            note(s, state, rollout)
            yield rollout


async def confirmed(s: Session, state: State, rollouts: Sequence[Rollout], purpose: str) -> list[Rollout]:
    """A batch whose full failures are rolled once more: one that succeeds now was bad luck and counts as a success. A
    target that gives the same answers again is not asked twice any more."""
    by_id = {sample.id: sample for sample in s.splits.train}
    samples = [by_id[rollout.sample] for rollout in rollouts if scored_zero(rollout)]
    second = {rollout.sample: rollout for rollout in await s.roll(state.skill, samples, attempt=1, purpose=purpose)}
    state.steady = repeats_itself([(r.answer, second[r.sample].answer) for r in rollouts if r.sample in second])
    result = list[Rollout]()
    for rollout in rollouts:
        again = second.get(rollout.sample)
        result.append(again if again and again.score and again.score.hard else rollout)
    return result


def scored_zero(rollout: Rollout) -> bool:
    """True if the rollout was scored 0."""
    return rollout.score is not None and rollout.score.value == 0


def note(s: Session, state: State, rollout: Rollout) -> None:
    """Note of the rollout's task whether any attempt of the incumbent failed."""
    failed = rollout.score is None or s.arena.metric(rollout.score) < 1
    state.failed[rollout.sample] = failed or state.failed.get(rollout.sample, False)


async def slow(s: Session, state: State, step: Step, epoch_start: Skill, optimizer: Optimizer, gate: Gate) -> None:
    """The epoch's slow update: compare its two ends on the same train samples, write guidance, and take it through the
    same gate as any other edit. Two equal skills have nothing to teach."""
    if epoch_start.text == state.skill.text:
        s.run.record("slow", epoch=step.epoch, skipped="the skill did not change in this epoch")
        return
    known = sorted(s.splits.train, key=lambda sample: sample.id)
    chosen = rng(s.cfg.seed, "slow", step.epoch).sample(known, min(s.cfg.slow.samples, len(known)))
    name = f"epoch {step.epoch} slow"
    before, after = await run_all([s.roll(skill, chosen, purpose=name) for skill in (epoch_start, state.skill)])
    pairs = [Pair(a, b) for a, b in zip(before, after, strict=True) if a.scored and b.scored]

    asked: list[Awaitable[Any]] = [optimizer.slow_update(state.skill, pairs, state.memory, step)]
    if s.cfg.slow.notes:
        asked.append(optimizer.notes(state.skill, pairs, state.memory, step))
    guidance, *notes = await run_all(asked)
    if notes:
        state.memory = replace(state.memory, notes=notes[0])
    if guidance is not None:
        verdict = await gate.judge(state.skill, [Proposal(guidance)], limit=1, name=name, alone=True)
        taken = [r for r in verdict.reports if verdict.accepted and r.edit == guidance and r.status == "applied"]
        if taken:
            state.memory = replace(state.memory, slow=taken[0].inserted.strip())  # as it stands there, line ends too
        take(s, state, step, verdict, 1)


def choose(s: Session, state: State) -> Skill:
    """The skill that goes to the certificate. If it is a candidate that the race rejected, it becomes a version."""
    if (chosen := reselect(s.arena, state.versions[0], state.verdicts)) is None:
        return state.skill
    if chosen.best.version is None:
        state.versions.append(chosen.best.skill)
        state.revived = chosen.best.skill.hash
    s.record_choice(chosen, version=len(state.versions) - 1)
    return chosen.best.skill


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
        state.since_accept, state.failed = 0, {}
    grown = verdict.accepted and s.cfg.optimizer.patterns
    state.memory = state.memory.remember(verdict.rejected, verdict.skill.body, verdict.candidate, grown=grown)
    s.roll.cancel_prefetch(state.skill)
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
