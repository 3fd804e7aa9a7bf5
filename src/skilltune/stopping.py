"""Reasons to end the training before its last step: the value of a further step, and the limits that a user set.

A further step is worth its calls while enough still fails and the optimizer may mend it. The chance that it does is
learned from the steps of this run. An optimizer may be one that never finds an edit that helps; the first accept
rules that out. So a run without an accept ends after a few steps, and a run with accepts goes on while much fails. In
simulated worlds (the tuning families of bench/worlds.md) .65 of the steps right after an accept helped, and .15 of
those after three misses: the steps since the last accept say most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise, takewhile
from statistics import fmean
from typing import Any

from skilltune.config import TrainConfig
from skilltune.errors import Paused
from skilltune.journal.run import Run
from skilltune.verdict import Verdict

NEVER = 0.8  # P(an optimizer never finds an edit that helps)
HITS, MISSES = 1.0, 1.0  # of any other optimizer: steps with and without an accept, as if seen before
FORMER = 1.0  # steps with the present skill that the rate of accepts up to the last one counts as
MENDED, SEEN = 0.4, 1.0  # share of the failing tasks that an accepted step mends, and the accepts that this counts as
UNSEEN = 0.5  # failing tasks among one task, as if seen before; it stands for the train tasks that were not seen
TRIES = 3  # steps before an optimizer that has not helped yet is given up, if its help would be worth a step
CALLS = 100  # `train.call_price` is the price of this many calls


@dataclass(frozen=True, slots=True)
class Past:
    """A finished step: its outcome in words, the share of train tasks that failed before it, its target calls, and True
    if it accepted an edit or a slow update."""

    outcome: str
    failing: float
    calls: int
    accepted: bool

    @classmethod
    def of(cls, verdicts: Sequence[Verdict], failing: float, calls: int) -> Past:
        """`verdicts`: on the step's edits, then on the slow update if there was one."""
        return cls(verdicts[0].outcome, failing, calls, any(verdict.accepted for verdict in verdicts))


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected value of a further step: `failing` is the share of the train tasks that still fail, `hits` of
    `steps` steps accepted something, `p_hit` is the probability that the next one does, `mended` the share of the
    failing tasks that it then mends, and `calls` are the target calls that it takes."""

    failing: float
    hits: int
    steps: int
    p_hit: float
    mended: float
    calls: float

    @classmethod
    def of(cls, past: Sequence[Past], failing: float, guess: int) -> Forecast:
        """`guess`: the calls of a step before any was finished."""
        hits, idle = sum(step.accepted for step in past), len(idle_steps(past))
        shares = pairwise([*(step.failing for step in past), failing])
        mended = [1 - min(1.0, b / a) for step, (a, b) in zip(past, shares, strict=True) if step.accepted and a > 0]
        return cls(
            failing=failing,
            hits=hits,
            steps=len(past),
            p_hit=_p_hit(hits, len(past) - hits - idle, idle),
            mended=(MENDED * SEEN + math.fsum(mended)) / (SEEN + len(mended)),
            calls=fmean(step.calls for step in past) if past else guess,
        )

    @property
    def gain(self) -> float:
        """Expected gain of the step, in scores."""
        return self.failing * self.p_hit * self.mended

    def worth(self, call_price: float) -> bool:
        """True if the step is expected to gain the price of its calls (a score per `CALLS` calls).

        Up to `TRIES` steps without an accept it is enough that a step that helps would gain that: a small effect shows
        only in several screens together, so the first misses say little of the optimizer.
        """
        tried = self.hits > 0 or self.steps >= TRIES
        return (self.gain if tried else self.failing * self.mended) >= call_price * self.calls / CALLS

    def __str__(self) -> str:
        helped = f", {self.hits} of {self.steps} steps helped" if self.steps else ""
        return (
            f"{100 * self.failing:.0f} % of the train tasks still fail{helped}: a further step of about "
            f"{self.calls:.0f} calls is expected to gain {100 * self.gain:.2g} points"
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """The event of a training that ended before its last step: the reason in words, and the figures of the forecast if
    the reason was the value of a further step."""

    reason: str
    forecast: Forecast | None = None

    def to_json(self) -> dict[str, Any]:
        return {"reason": self.reason, "forecast": asdict(self.forecast) if self.forecast else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ending:
        known, stored = {field.name for field in fields(Forecast)}, data.get("forecast")
        return cls(data["reason"], Forecast(**{k: v for k, v in stored.items() if k in known}) if stored else None)


@dataclass(frozen=True, slots=True)
class Stopping:
    """Decides if the training ends, and records the reason as an event. `tasks` is the number of train tasks; `guess`
    is the number of target calls that a step takes if none was finished yet.

    Its methods take the finished steps `past`, and `failed`, which maps each train task that the incumbent did to True
    if it failed. A failure that a second attempt solved does not count as failed.
    """

    run: Run
    cfg: TrainConfig
    tasks: int
    guess: int

    def before_step(self, past: Sequence[Past], failed: Mapping[str, bool], score: float | None) -> bool:
        """True if patience is used up, the target score is reached, or a further step is not worth its calls.

        If the incumbent did no task yet, its value is not judged. Raises `Paused` like `pause_if_wanted`.
        """
        self.pause_if_wanted()
        idle = idle_steps(past)
        if self.cfg.patience and len(idle) >= self.cfg.patience:
            counted = Counter(step.outcome for step in reversed(idle))
            how = ", ".join(f"{times} × {outcome}" for outcome, times in counted.items())
            return self._end(Ending(f"no accept in {len(idle)} steps (train.patience = {self.cfg.patience}): {how}"))
        if self.cfg.target_score is not None and score is not None and score >= self.cfg.target_score:
            return self._end(Ending(f"the score on select reached {self.cfg.target_score:g}"))
        return bool(failed) and self.worthless(past, failed)

    def pause_if_wanted(self) -> None:
        """Raise `Paused` if the run folder contains a file named `stop`, by which the user asks for a pause."""
        if (self.run.place / "stop").exists():
            raise Paused(f"{self.run.folder / 'stop'} exists; delete it and run the same command to go on")

    def worthless(self, past: Sequence[Past], failed: Mapping[str, bool]) -> bool:
        """True if a further step is not worth its calls."""
        forecast = Forecast.of(past, self.failing(failed), self.guess)
        if not self.cfg.by_value or forecast.worth(self.cfg.call_price):
            return False
        price = 100 * self.cfg.call_price * forecast.calls / CALLS
        least = f"less than the {price:.2g} points that so many calls have to gain"
        how = f"{least} (train.call_price; train.patience = 0 goes on)"
        return self._end(Ending(f"{forecast}, {how}", forecast))

    def failing(self, failed: Mapping[str, bool]) -> float:
        """The expected share of the train tasks that fail. Tasks that were not done count as those that were."""
        left, seen = sum(failed.values()), len(failed)
        return (left + (self.tasks - seen) * (left + UNSEEN) / (seen + 1)) / self.tasks

    def _end(self, ending: Ending) -> bool:
        self.run.record("stopping", **ending.to_json())
        return True


def idle_steps(past: Sequence[Past]) -> list[Past]:
    """The steps since the last accept, the newest first."""
    return list(takewhile(lambda step: not step.accepted, reversed(past)))


def _p_hit(hits: int, misses: int, idle: int) -> float:
    """P(the next step helps), after `hits` and `misses` up to the last accept, and `idle` steps since then.

    Each skill has a rate of its own, because it may be one beside which little more is found. The rate up to the last
    accept is the mean of its Beta prior, and the idle steps are misses. Before the first accept, no step ever helps
    with probability NEVER.
    """
    rate = (HITS + hits) / (HITS + MISSES + hits + misses)
    p = FORMER * rate / (FORMER + idle)
    if hits:
        return p
    able = (1 - NEVER) * math.prod((FORMER * (1 - rate) + i) / (FORMER + i) for i in range(idle))
    return p * able / (able + NEVER)
