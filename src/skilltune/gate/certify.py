"""The certificate: start and best skill on the untouched `test` split, paired, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from skilltune.config import CertifyConfig
from skilltune.gate import stats
from skilltune.models import Usage
from skilltune.roll import MAX_UNSCORED, Roller, gather
from skilltune.rollout import Rollout, Score
from skilltune.samples import NEEDED, Sample
from skilltune.skill import Skill

FEWEST = NEEDED["test"][1]  # samples; below, the run abstains
COVERAGE = 1 - MAX_UNSCORED  # share of the samples that must be scored on both sides


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured on `n` test samples that were scored on both sides; scores are means over `attempts` draws.

    `low` and `high` bound the gain with 95 % confidence, `p` is the one-sided probability of so large a gain by
    chance, `certified` says that it is below `alpha` over the number of the look and that enough samples were scored;
    `reason` is why not.
    `tokens` and `usd` are the change per task (None: unknown).
    """

    before: float
    after: float
    n: int
    low: float
    high: float
    p: float
    certified: bool
    look: int  # how many versions this run has certified on the same samples, this one included
    fixed: int
    broken: int
    attempts: int
    method: str
    tokens: float
    usd: float | None
    reason: str = ""  # why it is not certified, "" if it is
    groups: int = 0  # of samples that may succeed or fail as one; `n` where every sample stands for itself

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def samples(self) -> str:
        """ "120 unseen samples", and in how many groups, where not each stands for itself."""
        groups = f" in {self.groups} groups" if 0 < self.groups < self.n else ""
        return f"{self.n} unseen samples{groups}"

    def __str__(self) -> str:
        return (
            f"{100 * self.before:.1f} % → {100 * self.after:.1f} % on {self.samples} "
            f"(95 % CI {100 * self.low:+.1f}…{100 * self.high:+.1f}, p = {self._p()}), {self.tokens:+.0f} tokens/task"
        )

    def _p(self) -> str:
        return f"{self.p:.3f}" if self.p >= 0.001 else f"{self.p:.0e}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def certify(
    roll: Roller,
    start: Skill,
    best: Skill,
    test: Sequence[Sample],
    metric: Callable[[Score], float],
    cfg: CertifyConfig,
    seed: int,
    look: int = 1,
) -> Certificate | None:
    """Measure both skills on `test`. None without test samples; identical texts are not rolled at all.

    The k-th look at the same test samples is certified at alpha/k only; that bounds the error of each look, and of k
    together at alpha (1 + 1/2 + … + 1/k). On fewer than `COVERAGE` of them, or fewer than `FEWEST` at all, nothing is
    certified.

    Scores that are all 0 or 1 with one attempt get the exact McNemar test and Newcombe's interval, others a sign-flip
    test and a bootstrap interval of the paired differences. Samples of one `group` may succeed or fail as one, so that
    groups are then what is flipped and drawn.
    """
    if not test or start.text == best.text:
        return None
    attempts = cfg.attempts
    draws = await gather(
        [roll(skill, test, attempt=attempt, purpose="test") for skill in (start, best) for attempt in range(attempts)]
    )
    before, after = _by_sample(draws[:attempts], metric), _by_sample(draws[attempts:], metric)
    pairs = {sample: (before[sample], after[sample]) for sample in before if sample in after}
    if not pairs:
        return None
    old, new = (by_group(test, {sample: pair[i] for sample, pair in pairs.items()}) for i in (0, 1))
    said = stats.paired(old, new, seed)
    differences = [b - a for a, b in pairs.values()]
    fixed, broken = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    cheaper, dearer = _per_task(draws[:attempts]), _per_task(draws[attempts:])
    usd = None if cheaper.usd is None or dearer.usd is None else dearer.usd - cheaper.usd
    reason = ""
    if len(pairs) < COVERAGE * len(test):
        reason = f"only {len(pairs)} of {len(test)} test samples were scored on both sides"
    elif len(pairs) < FEWEST:
        reason = f"{len(pairs)} test samples are too few to certify anything; {FEWEST} are needed"
    elif said.p >= cfg.alpha / look:
        reason = "the test split does not exclude that it is no better"
    return Certificate(
        before=fmean(a for a, _ in pairs.values()),
        after=fmean(b for _, b in pairs.values()),
        n=len(pairs),
        low=said.low,
        high=said.high,
        p=said.p,
        certified=not reason,
        look=look,
        fixed=fixed,
        broken=broken,
        attempts=attempts,
        method=said.method,
        tokens=dearer.tokens - cheaper.tokens,
        usd=usd,
        reason=reason,
        groups=len(old),
    )


def by_group(samples: Sequence[Sample], scores: Mapping[str, float]) -> list[list[float]]:
    """The scores of the samples that have one; those of one group together."""
    units: dict[tuple[bool, str], list[float]] = {}
    for sample in samples:
        if sample.id in scores:
            key = (False, sample.id) if sample.group is None else (True, sample.group)
            units.setdefault(key, []).append(scores[sample.id])
    return list(units.values())


@dataclass(frozen=True, slots=True)
class _PerTask:
    tokens: float
    usd: float | None


def _by_sample(draws: Sequence[Sequence[Rollout]], metric: Callable[[Score], float]) -> dict[str, float]:
    """Mean score of each sample over its scored draws."""
    scores: dict[str, list[float]] = {}
    for rollouts in draws:
        for rollout in rollouts:
            if rollout.score is not None:
                scores.setdefault(rollout.sample, []).append(metric(rollout.score))
    return {sample: sum(values) / len(values) for sample, values in scores.items()}


def _per_task(draws: Sequence[Sequence[Rollout]]) -> _PerTask:
    usages = [rollout.trajectory.usage for rollouts in draws for rollout in rollouts if rollout.scored]
    total = sum(usages, Usage())
    n = len(usages) or 1
    return _PerTask(total.tokens / n, None if total.usd is None else total.usd / n)
