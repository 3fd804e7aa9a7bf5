"""The certificate: start and best skill on the untouched `test` split, paired, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from skilltune.aio import run_all
from skilltune.config import CertifyConfig
from skilltune.rollout import Rollout, Score
from skilltune.rollouts.roller import MAX_UNSCORED, Roller
from skilltune.samples import NEEDED, Sample
from skilltune.skill import Skill
from skilltune.stats import difference_interval, paired
from skilltune.usage import Usage

FEWEST = NEEDED["test"][1]  # samples; below, the run abstains
COVERAGE = 1 - MAX_UNSCORED  # share of the samples that must be scored on both sides


@dataclass(frozen=True, slots=True)
class Also:
    """The comparison on a further target (`gate.also`), on `n` test samples. `harmless` means that `low` lies above
    −`margin`, so that a larger loss is excluded at the certificate's level, and that enough samples were scored. The
    other fields are those of `Certificate`."""

    target: str
    before: float
    after: float
    n: int
    low: float
    high: float
    margin: float
    harmless: bool
    tokens: float
    usd: float | None
    level: float

    def __str__(self) -> str:
        """ "openai/x: 61.0 % → 62.5 % on 80 test samples (95 % CI −2.0…+9.1): no loss above 5 points"."""
        verdict = "no loss above" if self.harmless else "does not exclude a loss above"
        return (
            f"{self.target}: {100 * self.before:.1f} % → {100 * self.after:.1f} % on {self.n} test samples "
            f"({100 * self.level:.3g} % CI {100 * self.low:+.1f}…{100 * self.high:+.1f}): {verdict} "
            f"{100 * self.margin:.3g} points"
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """The gain on `n` test samples; scores are means over `attempts` rollouts of a sample.

    `p` is the one-sided p-value of "not better". `low` and `high` bound the gain with the confidence `level`, which is
    1 − `alpha` / `look`. `certified` means that `low` lies above 0, which is the same as p below `alpha` / `look`, and
    that enough samples were scored; `reason` says why not.
    `failed_after` samples have no score only with the trained skill and count as 0 there; `failed_before` ones have
    none only with the input and count as 1 there; `left_out` ones have none with either.
    `also` has the comparison on each further target; a gain is certified only if all of them are harmless.
    `tokens` and `usd` are the change per task (None: unknown).
    """

    before: float
    after: float
    n: int
    low: float
    high: float
    p: float
    certified: bool
    look: int  # how often these samples were read before, by this run and those that it shares answers with, plus one
    fixed: int
    broken: int
    attempts: int
    method: str
    tokens: float
    usd: float | None
    reason: str = ""  # why it is not certified, "" if it is
    groups: int = 0  # of samples that may succeed or fail as one; `n` where every sample stands for itself
    level: float = 0.95
    failed_after: int = 0
    failed_before: int = 0
    left_out: int = 0
    also: tuple[Also, ...] = ()

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def covered(self) -> bool:
        """True if enough samples were scored on both sides to decide anything."""
        lost = self.failed_after + self.failed_before + self.left_out
        total = self.n + self.left_out
        return self.n >= FEWEST and total - lost >= COVERAGE * total

    @property
    def samples(self) -> str:
        """ "120 unseen samples", with the number of groups if some samples share a group."""
        groups = f" in {self.groups} groups" if 0 < self.groups < self.n else ""
        return f"{self.n} unseen samples{groups}"

    @property
    def confidence(self) -> str:
        """ "95 %": the level of the interval."""
        return f"{100 * self.level:.3g} %"

    @property
    def interval(self) -> str:
        """ "+0.4…+18.9", in points. A low end above 0 is not printed as 0."""
        low = 100 * self.low
        return (
            f"{max(low, 0.001):+.3f}…{100 * self.high:+.1f}" if 0 < low < 0.05 else f"{low:+.1f}…{100 * self.high:+.1f}"
        )

    @property
    def unscored(self) -> str:
        """A sentence on the test samples that could not be scored, "" if there are none."""
        parts = []
        if self.failed_after:
            parts.append(f"{self.failed_after} only with the trained skill (counted as 0 there)")
        if self.failed_before:
            parts.append(f"{self.failed_before} only with the input (counted as 1 there)")
        if self.left_out:
            parts.append(f"{self.left_out} with neither (left out)")
        return f"without a score: {', '.join(parts)}" if parts else ""

    def __str__(self) -> str:
        return (
            f"{100 * self.before:.1f} % → {100 * self.after:.1f} % on {self.samples} "
            f"({self.confidence} CI {self.interval}, p = {self._p()}), {self.tokens:+.0f} tokens/task"
        )

    def _p(self) -> str:
        return f"{self.p:.3f}" if self.p >= 0.001 else f"{self.p:.0e}"

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return data if self.also else {key: value for key, value in data.items() if key != "also"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        return cls(**{**data, "also": tuple(Also(**row) for row in data.get("also", ()))})


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
    together at alpha (1 + 1/2 + … + 1/k). If fewer than `COVERAGE` of them were scored with both skills, or fewer than
    `FEWEST` at all, nothing is certified.

    An attempt that has a score with one skill only counts against the trained skill: as 0 if it has none with the
    trained skill, otherwise as 1 for the input. One that has no score with either is left out.

    Samples of one `group` may succeed or fail as one, so groups are the independent units of the test
    (`skilltune.stats.paired`).
    """
    if not test or start.text == best.text:
        return None
    draws = await both(roll, start, best, test, cfg.attempts, "test")
    return compare(test, draws, metric, cfg, seed, look)


Draws = tuple[Sequence[Sequence[Rollout]], Sequence[Sequence[Rollout]]]
"""The rollouts of both skills: one list for each attempt."""


async def both(roll: Roller, start: Skill, best: Skill, test: Sequence[Sample], attempts: int, purpose: str) -> Draws:
    """Both skills do the samples at the same time, in step, so that a drift of the endpoint meets both alike."""
    sides = [(skill, attempt) for attempt in range(attempts) for skill in (start, best)]
    done = await run_all(
        [roll(skill, test, attempt=attempt, purpose=purpose, at_once=roll.abreast) for skill, attempt in sides]
    )
    return done[::2], done[1::2]


def compare(
    test: Sequence[Sample],
    draws: Draws,
    metric: Callable[[Score], float],
    cfg: CertifyConfig,
    seed: int,
    look: int = 1,
    *,
    claims: bool = True,
) -> Certificate | None:
    """The certificate of these rollouts, see `certify`. None if no sample was scored. A comparison that `claims`
    nothing has an interval with equal errors at both ends, so that it shows a loss too."""
    seen = _compare(test, _scores(draws[0], metric), _scores(draws[1], metric))
    if not seen.pairs:
        return None
    alpha = cfg.alpha / look
    old, new = (by_group(test, {sample: pair[side] for sample, pair in seen.pairs.items()}) for side in (0, 1))
    said = paired(old, new, seed, alpha=alpha)
    low, high = (said.low, said.high) if claims else difference_interval(old, new, alpha)
    differences = [b - a for a, b in seen.pairs.values()]
    fixed, broken = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    cheaper, dearer = _per_task(draws[0]), _per_task(draws[1])
    usd = None if cheaper.usd is None or dearer.usd is None else dearer.usd - cheaper.usd
    reason = ""
    if seen.whole < COVERAGE * len(test):
        reason = f"only {seen.whole} of {len(test)} test samples were scored on both sides"
    elif len(seen.pairs) < FEWEST:
        reason = f"{len(seen.pairs)} test samples are too few to certify anything; {FEWEST} are needed"
    elif said.low <= 0:
        reason = "the test split does not exclude that it is no better"
    return Certificate(
        before=fmean(a for a, _ in seen.pairs.values()),
        after=fmean(b for _, b in seen.pairs.values()),
        n=len(seen.pairs),
        low=low,
        high=high,
        p=said.p,
        certified=not reason,
        look=look,
        fixed=fixed,
        broken=broken,
        attempts=cfg.attempts,
        method=said.method,
        tokens=dearer.tokens - cheaper.tokens,
        usd=usd,
        reason=reason,
        groups=len(old),
        level=1 - alpha,
        failed_after=seen.failed_after,
        failed_before=seen.failed_before,
        left_out=len(test) - len(seen.pairs),
    )


def with_further(proof: Certificate, others: Sequence[tuple[str, Certificate]], margin: float) -> Certificate:
    """The certificate with the comparisons on further targets, by name. It certifies a gain only if each of them
    excludes a loss above the margin. All must hold, so the level needs no correction for their number."""
    also = tuple(
        Also(
            target=name,
            before=other.before,
            after=other.after,
            n=other.n,
            low=other.low,
            high=other.high,
            margin=margin,
            harmless=other.low > -margin and other.covered,
            tokens=other.tokens,
            usd=other.usd,
            level=other.level,
        )
        for name, other in others
    )
    harmed = [row.target for row in also if not row.harmless]
    if not harmed or not proof.certified:
        return replace(proof, also=also)
    reason = f"the test split does not exclude a loss above {100 * margin:.3g} points on {', '.join(harmed)}"
    return replace(proof, also=also, certified=False, reason=reason)


@dataclass(frozen=True, slots=True)
class _Compared:
    """Mean scores (before, after) of each sample; how many samples were scored on both sides in every attempt that
    counts, and how many lack a score on one side only in some attempt."""

    pairs: Mapping[str, tuple[float, float]]
    whole: int
    failed_after: int
    failed_before: int


Attempts = Mapping[tuple[str, int], float]
"""Scores by sample and attempt."""


def _compare(test: Sequence[Sample], before: Attempts, after: Attempts) -> _Compared:
    """Pair the attempts of each sample; what has a score on one side only counts against `after`."""
    attempts: dict[str, list[tuple[str, int]]] = {}
    for key in sorted({*before, *after}):
        attempts.setdefault(key[0], []).append(key)
    scored = {sample.id: attempts[sample.id] for sample in test if sample.id in attempts}
    pairs = {
        sample: (fmean(before.get(key, 1.0) for key in keys), fmean(after.get(key, 0.0) for key in keys))
        for sample, keys in scored.items()
    }
    failed_after = {sample for sample, keys in scored.items() if any(key not in after for key in keys)}
    failed_before = {sample for sample, keys in scored.items() if any(key not in before for key in keys)}
    whole = len(pairs.keys() - failed_after - failed_before)
    return _Compared(pairs, whole, len(failed_after), len(failed_before))


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


def _scores(draws: Sequence[Sequence[Rollout]], metric: Callable[[Score], float]) -> Attempts:
    return {
        (rollout.sample, rollout.attempt): metric(rollout.score)
        for rollouts in draws
        for rollout in rollouts
        if rollout.score is not None
    }


def _per_task(draws: Sequence[Sequence[Rollout]]) -> _PerTask:
    usages = [rollout.trajectory.usage for rollouts in draws for rollout in rollouts if rollout.scored]
    total = sum(usages, Usage())
    n = len(usages) or 1
    return _PerTask(total.tokens / n, None if total.usd is None else total.usd / n)
