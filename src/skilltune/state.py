"""The progress of a run, and the two things that change it: a verdict of the gate, and the choice at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from skilltune.errors import InfraStopped, Paused, Stopped, Unanswered
from skilltune.finish.reselect import reselect
from skilltune.optimizer import Memory, Step
from skilltune.parts import Parts
from skilltune.skill import Skill
from skilltune.stopping import Past
from skilltune.verdict import Verdict
from skilltune.versions import record_choice, record_verdict


@dataclass(slots=True)
class State:
    """The progress of a run. `versions` holds the accepted skills: the input first, the incumbent last.

    `score` is the incumbent's score on `select`. `past` holds the finished steps. `begun` is the number of target calls
    and of verdicts at the start of the present step. `epoch_start` is the incumbent at the start of the epoch.
    `stopped` is the reason if the training was stopped from outside. `revived` is the hash of the chosen skill if it is
    a candidate that the race had rejected.
    """

    versions: list[Skill]
    memory: Memory = field(default_factory=Memory)
    verdicts: list[Verdict] = field(default_factory=list)
    past: list[Past] = field(default_factory=list)
    begun: tuple[int, int] = (0, 0)
    score: float | None = None
    epoch_start: Skill = field(default_factory=lambda: Skill(""))
    stopped: Stopped | None = None
    revived: str = ""

    @property
    def start(self) -> Skill:
        return self.versions[0]

    @property
    def skill(self) -> Skill:
        """The incumbent."""
        return self.versions[-1]

    @property
    def paused(self) -> bool:
        return isinstance(self.stopped, Paused)

    def begin_step(self, step: Step, *, calls: int, forgets: bool) -> None:
        """Note the start of a step, after so many target calls, and that of an epoch. `forgets`: the rejected edits of
        the last epoch are dropped."""
        self.begun = calls, len(self.verdicts)
        if step.starts_epoch:
            self.epoch_start = self.skill
            self.memory = self.memory.new_epoch() if forgets else self.memory

    def end_step(self, failing: float, *, calls: int) -> None:
        """Add the step to the past. `failing`: the share of train tasks that failed before it."""
        before, judged = self.begun
        self.past.append(Past.of(self.verdicts[judged:], failing, calls - before))

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Catch an ordered stop, such as a used-up budget, and keep it as `stopped`. The run continues after the block.

        `InfraStopped` and `Unanswered` pass through, because the certificate would need the same endpoint or answer.
        """
        try:
            yield
        except (InfraStopped, Unanswered):
            raise
        except Stopped as stop:
            self.stopped = stop


def apply_verdict(s: Parts, state: State, step: Step, verdict: Verdict, limit: int) -> None:
    """Apply a verdict to the state, and record it. `limit` is the number of edits that were allowed."""
    state.score = verdict.score
    state.verdicts.append(verdict)
    if verdict.accepted:
        state.versions.append(verdict.skill)
    grown = verdict.accepted and s.cfg.optimizer.patterns
    shrunk = grown and any(report.shortens for report in verdict.reports)
    state.memory = state.memory.remember(
        verdict.rejected, verdict.skill.body, verdict.candidate, grown=grown, shrunk=shrunk
    )
    s.roll.cancel_prefetch(state.skill)
    record_verdict(s, step, verdict, limit, version=len(state.versions) - 1)


def choose(s: Parts, state: State) -> Skill:
    """Choose the skill to certify by its scores on `select`. A chosen candidate that the race had rejected becomes a
    version."""
    if (chosen := reselect(s.arena, state.start, state.verdicts)) is None:
        return state.skill
    if chosen.best.version is None:
        state.versions.append(chosen.best.skill)
        state.revived = chosen.best.skill.hash
    record_choice(s, chosen, version=len(state.versions) - 1)
    return chosen.best.skill
