"""Train a skill document against a frozen target: SGD on text. Read this file first; it is the whole algorithm.

    weights → the skill document          forward pass → the target does a sample with the skill
    loss → the scorer                     gradient → edits proposed from scored trajectories
    learning rate → edits per step        validation → the gate on `select`, never seen by the optimizer
    momentum → the epoch's slow update    checkpoint → the journal: calling `train` again *is* resuming

Preset `paper` and preset `default` are this same loop with another optimizer setting and another gate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skilltune.aio import run_all
from skilltune.finish.ablation import Ablation, learned
from skilltune.finish.proof import prove
from skilltune.finish.reserve import hold_back
from skilltune.gate.priors import HARMED
from skilltune.journal.keys import rng
from skilltune.optimizer import Pair, Proposal, Step
from skilltune.optimizer.schedule import after_all, schedule, steps_per_epoch
from skilltune.parts import Parts
from skilltune.preflight.noise import calibrate
from skilltune.result import Result, conclude
from skilltune.rollouts.forward import Forward, drain
from skilltune.skill import Skill
from skilltune.state import State, apply_verdict, choose
from skilltune.stopping import Stopping
from skilltune.versions import record_start


async def train(s: Parts) -> Result:
    """Train, choose a version, certify it.

    Every await that costs money is journaled. If the process is killed and `train` is called again with the same
    parts, it gives the same versions and pays for no stored answer twice. A budget that runs out ends the training, but
    the skill is still certified, because the cost of the certificate was reserved. A pause ends the run before the test
    split is read. Raises `InfraStopped` and `CallConfigError`; both can be resumed.
    """
    state, proof = State([s.skill]), None
    hold_back(s)
    with state.until_stopped():
        await fit(s, state)
    if state.paused:
        return conclude(s, state, state.skill)
    best = choose(s, state)
    if s.cfg.train.ablation and state.stopped is None:
        with state.until_stopped():
            best = await leave_out(s, state, best)
    with state.until_stopped():
        proof = await prove(s, state.start, best, len(state.verdicts))
    return conclude(s, state, best, proof)


async def fit(s: Parts, state: State) -> None:
    """The training loop. A step rolls out a batch, proposes edits, lets the gate judge them and applies the verdict."""
    cfg = s.cfg.train
    stop = Stopping(s.run, cfg, tasks=len(s.splits.train), guess=cfg.batch_size + s.cfg.gate.screen)
    steps = steps_per_epoch(cfg, len(s.splits.train)) * cfg.epochs
    state.score = await s.gate.baseline(state.skill)
    record_start(s, state.skill, state.score)
    if s.cfg.gate.calibrate:
        await calibrate(s.arena, state.skill)
    forward = Forward.of(s.roll, s.arena.metric, cfg, s.arena.draws(s.cfg.target.attempts), noisy=s.arena.draws(2) > 1)

    for step in schedule(cfg, s.splits.train, s.cfg.seed):
        if stop.before_step(state.past, forward.known(state.skill), state.score):
            break
        s.run.notify("step", step=step.index, steps=steps)
        state.begin_step(step, calls=len(s.roll.scores), forgets=not s.cfg.optimizer.patterns)

        async with forward.batch(state.skill, step.batch, step.name) as rollouts:
            if forward.whole and stop.worthless(state.past, forward.failed):
                break
            proposals = await s.optimizer.propose(state.skill, rollouts, state.memory, step, step.lr or cfg.lr)
            await drain(rollouts)  # the gate needs the whole batch; the optimizer may stop reading early
        limit = step.lr or await s.optimizer.learning_rate(state.skill, proposals, state.memory, step, cfg.lr)

        s.arena.upcoming = step.upcoming
        protected = state.memory.protected
        verdict = await s.gate.judge(state.skill, proposals, limit=limit, name=step.name, protect=protected)
        state.memory = replace(state.memory, lr=limit)
        apply_verdict(s, state, step, verdict, limit)

        if step.ends_epoch and step.epoch > 1 and s.cfg.slow.enabled and s.optimizer.looks_back:
            await slow_update(s, state, step, state.epoch_start)
        state.end_step(stop.failing(forward.failed), calls=len(s.roll.scores))
    stop.pause_if_wanted()


async def leave_out(s: Parts, state: State, best: Skill) -> Skill:
    """If tasks still fail, leave out the edits of the best skill that harm or carry nothing. Returns what is left."""
    ablation = await Ablation.of(s.arena, best, state.start, state.verdicts, learned(s.gate), failing=HARMED)
    if ablation is None:
        return best
    verdict = await ablation.verdict()
    apply_verdict(s, state, after_all(s.cfg.train, s.splits.train), verdict, len(verdict.reports))
    return verdict.skill


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
    s.run.notify("phase", name="slow update")
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
