"""Transfer: one skill on several targets, each with and without it.

The targets are measured one after another, so that none loads the endpoint of the next one. On one target both sides
run at the same time, because load changes answers. The comparison is the certificate's test, with an interval that has
equal errors at both ends: a table of targets has to show a loss as well as a gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from skilltune.config import CertifyConfig
from skilltune.errors import CallConfigError, InfraStopped, Paused, Stopped
from skilltune.finish.certify import Certificate, both, by_group, compare
from skilltune.rollout import Rollout, Score
from skilltune.rollouts.further import Further
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import score_interval
from skilltune.usage import Usage

TRANSFERS = "transfers"  # event: the result of an evaluation on several targets, with the skill's hash and the seed


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: the mean score of `n` samples with its 95 % interval, the tokens and dollars of a task
    (None: unknown), and the cost of all rollouts. `offered` and `loaded` are shares of the rollouts of an agent that
    was given the skill; None for a chat model, without a skill, and if nobody could see it. Without a score, `mean` is
    None."""

    mean: float | None
    low: float
    high: float
    n: int
    tokens: float
    usd: float | None
    usage: Usage
    scores: dict[str, float] = field(default_factory=dict)
    offered: float | None = None
    loaded: float | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """One skill on one target. `comparison` is None if no sample was scored at all. `reason` says why the target has no
    figures, "" if it has some; `exit_code` is then 3 for infrastructure and 4 for a used-up budget."""

    target: str
    without: Arm | None = None
    skilled: Arm | None = None
    comparison: Certificate | None = None
    reason: str = ""
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON data: `gain` with the ends of its interval, `p`, and both sides. `before` and `after` are
        the compared means, in which a sample that has a score on one side only counts against the skill."""
        data: dict[str, Any] = {"target": self.target, "reason": self.reason or None}
        data |= {"without": self.without and asdict(self.without), "with": self.skilled and asdict(self.skilled)}
        c = self.comparison
        names = ("before", "after", "gain", "low", "high", "level", "p", "n", "fixed", "broken", "method")
        data |= {name: None if c is None else getattr(c, name) for name in names}
        return data


@dataclass(frozen=True, slots=True)
class Transfers:
    """One skill on several targets, in the order in which they were named. `total` is the number of samples, `usage`
    the cost of everything, rollouts from an earlier process included."""

    split: str
    total: int
    attempts: int
    rows: tuple[Transfer, ...]
    usage: Usage

    @property
    def exit_code(self) -> int:
        """0 if every target has figures, 3 if infrastructure failed for one, 4 if the budget was used up."""
        codes = [row.exit_code for row in self.rows if row.exit_code]
        return 0 if not codes else 3 if 3 in codes else codes[0]

    def to_json(self) -> dict[str, Any]:
        rows = [row.to_json() for row in self.rows]
        usage = asdict(self.usage)
        return {"split": self.split, "samples": self.total, "attempts": self.attempts, "targets": rows, "usage": usage}


async def transfer(
    other: Further,
    skill: Skill,
    samples: Sequence[Sample],
    metric: Callable[[Score], float],
    *,
    attempts: int,
    seed: int,
    purpose: str,
) -> Transfer:
    """Measure a skill on one target. A failure that only this target suffers is a row with its reason, never a score;
    what was paid until then is in the journal. Raises `Paused`."""
    try:
        draws = await both(other.roll, Skill(""), skill, samples, attempts, f"{purpose} on {other.name}")
    except Paused:
        raise
    except (InfraStopped, CallConfigError) as error:
        return Transfer(other.name, reason=str(error), exit_code=3)
    except Stopped as error:
        return Transfer(other.name, reason=str(error), exit_code=error.exit_code)
    sides = [[rollout for rollouts in side for rollout in rollouts] for side in draws]
    without, skilled = (_arm(samples, rollouts, metric) for rollouts in sides)
    if other.proven:
        skilled = _with_activation(skilled, sides[1])
    found = compare(samples, draws, metric, CertifyConfig(attempts=attempts), seed, claims=False)
    reason = "" if found else "no sample could be scored"
    return Transfer(other.name, without, skilled, found, reason, 3 if reason else 0)


def _arm(samples: Sequence[Sample], rollouts: Sequence[Rollout], metric: Callable[[Score], float]) -> Arm:
    by_sample: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.score is not None:
            by_sample.setdefault(rollout.sample, []).append(metric(rollout.score))
    scores = {sample: fmean(values) for sample, values in by_sample.items()}
    done = [rollout.trajectory.usage for rollout in rollouts if rollout.scored]
    usage = sum(done, Usage())
    each = len(done) or 1
    low, high = score_interval(by_group(samples, scores)) if scores else (0.0, 1.0)
    mean = fmean(scores.values()) if scores else None
    usd = None if usage.usd is None else usage.usd / each
    return Arm(mean, low, high, len(scores), usage.tokens / each, usd, usage, scores)


def _with_activation(arm: Arm, rollouts: Sequence[Rollout]) -> Arm:
    ran = [rollout.trajectory for rollout in rollouts if rollout.scored]
    if not ran:
        return arm
    offered, loaded = fmean(t.skill_offered for t in ran), fmean(t.skill_loaded for t in ran)
    return replace(arm, offered=offered, loaded=loaded)
