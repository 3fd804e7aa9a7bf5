"""Train a skill document against a frozen target: SGD on text. Read this file first; it is the whole algorithm.

    weights → the skill document          forward pass → the target does a sample with the skill
    loss → the scorer                     gradient → edits proposed from scored trajectories
    learning rate → edits per step        validation → the gate on `select`, never seen by the optimizer
    momentum → the epoch's slow update    checkpoint → the journal: calling `train` again *is* resuming

Preset `paper` and preset `default` are this same loop with another optimizer setting and another gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from skilltune.aio import run_all
from skilltune.errors import InfraStopped, Paused, Stopped, Unanswered
from skilltune.finish.certify import certify
from skilltune.finish.compact import compact
from skilltune.finish.controls import controls
from skilltune.finish.ledger import ledger_of
from skilltune.finish.looks import look_at_test
from skilltune.finish.reselect import reselect
from skilltune.finish.reserve import hold_back
from skilltune.journal.keys import rng
from skilltune.optimizer import Memory, Pair, Proposal, Step
from skilltune.optimizer.schedule import schedule, steps_per_epoch
from skilltune.parts import Parts
from skilltune.preflight.noise import calibrate
from skilltune.result import Result
from skilltune.rollouts.forward import Forward
from skilltune.skill import Skill
from skilltune.stopping import Past, Stopping, failing_share
from skilltune.usage import Usage
from skilltune.verdict import Verdict
from skilltune.versions import record_choice, record_start, record_verdict


@dataclass(slots=True)
class State:
    """The progress of a run. `versions` holds the accepted skills: the input first, the incumbent last."""

    versions: list[Skill]
    memory: Memory = field(default_factory=Memory)
    verdicts: list[Verdict] = field(default_factory=list)
    past: list[Past] = field(default_factory=list)  # the finished steps
    score: float | None = None  # the incumbent's score on `select`
    stopped: Stopped | None = None
    revived: str = ""  # hash of the chosen skill if it is a candidate that the race had rejected

    @property
    def skill(self) -> Skill:
        return self.versions[-1]


async def train(s: Parts) -> Result:
    """Train, choose a version, certify it.

    Every await that costs money is journaled. If the process is killed and `train` is called again with the same
    parts, it gives the same versions and pays for no stored answer twice. A budget that runs out ends the training, but
    the skill is still certified, because the cost of the certificate was reserved. A pause ends the run before the test
    split is read. Raises `InfraStopped` and `CallConfigError`; both can be resumed.
    """
    state, stop = State([s.skill]), Stopping(s.run, s.cfg.train, guess=s.cfg.train.batch_size + s.cfg.gate.screen)
    hold_back(s)
    with ordered_stop(state):
        await fit(s, state, stop)
        stop.pause_if_wanted()
    best = state.skill if isinstance(state.stopped, Paused) else choose(s, state)
    if s.cfg.train.compact and state.stopped is None:
        with ordered_stop(state):
            best = await shorten(s, state, best)
            stop.pause_if_wanted()
    if isinstance(state.stopped, Paused):
        return conclude(s, state, best)
    s.budget.release()
    return await prove(s, state, best)


async def fit(s: Parts, state: State, stop: Stopping) -> None:
    """The training loop. A step rolls out a batch, proposes edits, lets the gate judge them and applies the verdict."""
    cfg = s.cfg.train
    state.score = await s.gate.baseline(state.skill)
    record_start(s, state.skill, state.score)
    if s.cfg.gate.calibrate and (found := await calibrate(s.arena, state.skill)) is not None:
        s.run.record("calibration", **found.to_json())
    attempts, noisy = s.arena.draws(s.cfg.target.attempts), s.arena.draws(2) > 1
    confirm = cfg.confirm and attempts == 1 and noisy
    forward = Forward(s.roll, s.arena.metric, hold=cfg.confirm or stop.by_value, confirm=confirm)
    epoch_start, tasks = state.skill, len(s.splits.train)

    for step in schedule(cfg, s.splits.train, s.cfg.seed):
        if stop.before_step(state.past, failing_share(forward.failed, tasks), state.score):
            break
        paid, judged = len(s.roll.seen), len(state.verdicts)
        if step.starts_epoch:
            epoch_start = state.skill
            if not s.cfg.optimizer.patterns:
                state.memory = state.memory.new_epoch()

        name, memory = f"step {step.index}", state.memory
        async with aclosing(await forward.batch(state.skill, step.batch, name, attempts)) as rollouts:
            if forward.whole and stop.worthless(state.past, failing_share(forward.failed, tasks) or 0.0):
                break
            proposals = await s.optimizer.propose(state.skill, rollouts, memory, step, step.lr or cfg.lr)
            async for _ in rollouts:  # the gate needs the whole batch; the optimizer may have stopped reading early
                pass
        failing = failing_share(forward.failed, tasks) or 0.0
        limit = step.lr or await s.optimizer.learning_rate(state.skill, proposals, memory, step, cfg.lr)
        s.arena.upcoming = step.upcoming
        verdict = await s.gate.judge(state.skill, proposals, limit=limit, name=name, protect=memory.protected)
        state.memory = replace(memory, lr=limit)
        apply_verdict(s, state, step, verdict, limit)

        if s.cfg.slow.enabled and s.optimizer.looks_back and step.ends_epoch and step.epoch > 1:
            await slow_update(s, state, step, epoch_start)
        state.past.append(Past.of(state.verdicts[judged:], failing, len(s.roll.seen) - paid))
        if state.past[-1].accepted:  # the incumbent changed
            forward.failed.clear()


async def slow_update(s: Parts, state: State, step: Step, epoch_start: Skill) -> None:
    """Run the epoch's slow update.

    The skills at the epoch's start and end do the same train samples. The optimizer writes guidance from the
    comparison, and the gate judges that guidance like any other edit. Nothing is done if the skill did not change.
    """
    if epoch_start.text == state.skill.text:
        s.run.record("slow", epoch=step.epoch, skipped="the skill did not change in this epoch")
        return
    known = sorted(s.splits.train, key=lambda sample: sample.id)
    chosen = rng(s.cfg.seed, "slow", step.epoch).sample(known, min(s.cfg.slow.samples, len(known)))
    name = f"epoch {step.epoch} slow"
    before, after = await run_all([s.roll(skill, chosen, purpose=name) for skill in (epoch_start, state.skill)])
    pairs = [Pair(a, b) for a, b in zip(before, after, strict=True) if a.scored and b.scored]

    asked: list[Any] = [s.optimizer.slow_update(state.skill, pairs, state.memory, step)]
    if s.cfg.slow.notes:
        asked.append(s.optimizer.notes(state.skill, pairs, state.memory, step))
    guidance, *notes = await run_all(asked)
    if notes:
        state.memory = replace(state.memory, notes=notes[0])
    if guidance is not None:
        verdict = await s.gate.judge(state.skill, [Proposal(guidance)], limit=1, name=name, alone=True)
        applied = [r for r in verdict.reports if verdict.accepted and r.edit == guidance and r.status == "applied"]
        if applied:
            state.memory = replace(state.memory, slow=applied[0].inserted.strip())  # as inserted, with its newlines
        apply_verdict(s, state, step, verdict, 1)


def apply_verdict(s: Parts, state: State, step: Step, verdict: Verdict, limit: int) -> None:
    """Apply the gate's verdict to the state, and record it."""
    state.score = verdict.score
    state.verdicts.append(verdict)
    if verdict.accepted:
        state.versions.append(verdict.skill)
    grown = verdict.accepted and s.cfg.optimizer.patterns
    state.memory = state.memory.remember(verdict.rejected, verdict.skill.body, verdict.candidate, grown=grown)
    s.roll.cancel_prefetch(state.skill)
    record_verdict(s, step, verdict, limit, version=len(state.versions) - 1)


@contextmanager
def ordered_stop(state: State) -> Iterator[None]:
    """Catch an ordered stop, such as a used-up budget, and note it in the state. The run continues after the block.

    `InfraStopped` and `Unanswered` pass through.
    """
    try:
        yield
    except Stopped as stop:
        if isinstance(stop, InfraStopped | Unanswered):  # the certificate would need the same endpoint or answer
            raise
        state.stopped = stop


# -- the end of a run


def choose(s: Parts, state: State) -> Skill:
    """Choose the skill to certify. A chosen candidate that the race had rejected becomes a version."""
    if (chosen := reselect(s.arena, state.versions[0], state.verdicts)) is None:
        return state.skill
    if chosen.best.version is None:
        state.versions.append(chosen.best.skill)
        state.revived = chosen.best.skill.hash
    record_choice(s, chosen, version=len(state.versions) - 1)
    return chosen.best.skill


async def shorten(s: Parts, state: State, best: Skill) -> Skill:
    """Remove the rules that add nothing according to the journal (`train.compact`), and return the shorter skill."""
    rules = ledger_of(s.run, s.roll.seen.values(), s.arena.metric, best.hash)
    judged = {verdict.candidate.hash for verdict in state.verdicts if verdict.candidate}
    steps = steps_per_epoch(s.cfg.train, len(s.splits.train)) * s.cfg.train.epochs
    async with aclosing(compact(s.arena, best, rules, {state.versions[0].hash, *judged})) as verdicts:
        async for verdict in verdicts:
            steps += 1
            step = Step(steps, s.cfg.train.epochs, (), 1, starts_epoch=False, ends_epoch=False)
            apply_verdict(s, state, step, verdict, 1)
            best = verdict.skill
    return best


async def prove(s: Parts, state: State, best: Skill) -> Result:
    """Certify the best skill on `test`, and measure the control arms if asked to.

    No other code reads `test`. If the skill does not gain on it, the input is shipped.
    """
    start, certificate, arms, training = state.versions[0], None, None, s.budget.spent
    proof = s.cfg.certify.model_copy(update={"attempts": s.arena.draws(s.cfg.certify.attempts)})
    with ordered_stop(state):
        look = look_at_test(s, best)
        certificate = await certify(s.roll, start, best, s.splits.test, s.arena.metric, proof, s.cfg.seed, look)
    if certificate is not None:
        training = s.budget.spent
        paid: dict[str, Any] = s.run.decide(f"paid by certificate {best.hash} {len(state.verdicts)}", training.to_json)
        with s.run.reading():
            training = Usage(**paid)
        if s.cfg.certify.controls:
            arms = await controls(s, start, best)
            s.run.record("controls", **arms.to_json())
        if certificate.gain <= 0:
            best = start
    return replace(conclude(s, state, best), certificate=certificate, controls=arms, training=training)


def conclude(s: Parts, state: State, best: Skill) -> Result:
    """The result of the training, without certificate and control arms."""
    versions, test, spent = tuple(state.versions), len(s.splits.test), s.budget.spent
    revived, folder = state.revived == best.hash, s.run.folder
    return Result(versions[0], best, None, versions, test, folder, state.stopped, None, spent, spent, revived)
