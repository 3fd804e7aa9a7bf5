"""Train a skill document against a frozen target: SGD on text. Read this file first; it is the whole algorithm.

    weights → the skill document          forward pass → the target does a sample with the skill
    loss → the scorer                     gradient → edits proposed from scored trajectories
    learning rate → edits per step        validation → the gate on `select`, never seen by the optimizer
    momentum → the epoch's slow update    checkpoint → the journal: calling `train` again *is* resuming

Preset `paper` and preset `default` are this same loop with another optimizer setting and another gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skilltune.errors import Stopped
from skilltune.export import export
from skilltune.gate import Gate, Verdict
from skilltune.gate.certify import Certificate, certify
from skilltune.optimizer import Memory, Optimizer, Pair, Proposal, Step
from skilltune.optimizer.schedule import schedule
from skilltune.roll import gather
from skilltune.run import rng
from skilltune.session import Session
from skilltune.skill import Skill


@dataclass(slots=True)
class State:
    """How far the run has come: the versions that were accepted, the incumbent last; the first is the input."""

    versions: list[Skill]
    memory: Memory = field(default_factory=Memory)
    score: float | None = None  # of the incumbent on `select`
    since_accept: int = 0  # steps
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

    def export(self, kind: str, to: str | Path = ".", **options: Any) -> Path:
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
    s.budget.hold("target", calls=2 * s.cfg.certify.attempts * len(s.splits.test), guess=s.typical_call())
    with stopping(state):
        await fit(s, state)
    s.budget.release()

    start, best = state.versions[0], state.skill
    certificate = None
    with stopping(state):
        certificate = await certify(
            s.roll, start, best, s.splits.test, s.arena.metric, s.cfg.certify, s.cfg.seed, s.look_at_test(best)
        )
    if certificate is not None and certificate.gain <= 0:
        best = start  # what is not better on unseen samples is not shipped
    return Result(start, best, certificate, tuple(state.versions), len(s.splits.test), s.run.folder, state.stopped)


async def fit(s: Session, state: State) -> None:
    """The loop."""
    optimizer, gate, cfg = s.optimizer, s.gate, s.cfg.train
    state.score = await gate.baseline(state.skill)
    s.record_start(state.skill, state.score)
    epoch_start = state.skill

    for step in schedule(cfg, s.splits.train, s.cfg.seed):
        if s.should_stop(state.since_accept, state.score):
            break
        if step.starts_epoch:
            epoch_start, state.memory = state.skill, state.memory.new_epoch()

        rollouts = await forward(s, state.skill, step)
        proposals = await optimizer.propose(state.skill, rollouts, state.memory, step, step.lr or cfg.lr)
        limit = step.lr or await optimizer.learning_rate(state.skill, proposals, state.memory, step, cfg.lr)
        protect = state.memory.protected
        verdict = await gate.judge(state.skill, proposals, limit=limit, name=f"step {step.index}", protect=protect)
        state.memory = replace(state.memory, lr=limit)
        state.since_accept = 0 if verdict.accepted else state.since_accept + 1
        take(s, state, step, verdict, limit)

        if s.cfg.slow.enabled and optimizer.looks_back and step.ends_epoch and step.epoch > 1:
            await slow(s, state, step, epoch_start, optimizer, gate)


async def forward(s: Session, skill: Skill, step: Step) -> list:
    """Roll the step's batch, `target.attempts` times each."""
    purposes = [(attempt, f"step {step.index}") for attempt in range(s.cfg.target.attempts)]
    draws = await gather([s.roll(skill, step.batch, attempt=attempt, purpose=name) for attempt, name in purposes])
    return [rollout for rollouts in draws for rollout in rollouts]


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

    guidance = await optimizer.slow_update(state.skill, pairs, state.memory, step)
    if guidance is not None:
        verdict = await gate.judge(state.skill, [Proposal(guidance)], limit=1, name=name, alone=True)
        taken = [r for r in verdict.reports if verdict.accepted and r.edit == guidance and r.status == "applied"]
        if taken:
            state.memory = replace(state.memory, slow=taken[0].inserted.strip())  # as it stands there, line ends too
        take(s, state, step, verdict, 1)
    if s.cfg.slow.notes:
        state.memory = replace(state.memory, notes=await optimizer.notes(state.skill, pairs, state.memory, step))


def take(s: Session, state: State, step: Step, verdict: Verdict, limit: int) -> None:
    """Take over what the gate decided, and write it down."""
    state.score = verdict.score
    if verdict.accepted:
        state.versions.append(verdict.skill)
    state.memory = state.memory.remember(verdict.rejected, verdict.skill.body)
    s.record(step, verdict, limit, version=len(state.versions) - 1)


@contextmanager
def stopping(state: State) -> Iterator[None]:
    """An ordered stop (the budget) ends the block, not the run; what was reached stands."""
    try:
        yield
    except Stopped as stop:
        if stop.exit_code != Stopped.exit_code:  # a stop by infrastructure leaves nothing to certify with
            raise
        state.stopped = stop
