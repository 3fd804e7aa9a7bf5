"""The choice of a version at the end of training, before the test split is read.

A version that was accepted may have been lucky. By everything that was seen on `select` since, another version may be
better with confidence, or shorter and no worse. The choice costs no rollout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skilltune.gate import Arena
from skilltune.gate.priors import GAIN_DRAWS, IDLE, LEVEL, NOTHING, PREDICTED_SD, TIE, UNSCREENED, WIDE
from skilltune.journal.keys import rng
from skilltune.skill import Skill
from skilltune.stats import Mixture
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.verdict import RaceFigures, Verdict

Prior = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Contender:
    """A version, or a rejected candidate (`version` is None): its gain over the input on `select` and the standard
    deviation of the gain, in scores, by all evidence. `n` is the number of its own rollouts."""

    skill: Skill
    version: int | None
    gain: float
    sd: float
    n: int

    def to_json(self) -> dict[str, Any]:
        figures = {"version": self.version, "gain": self.gain, "sd": self.sd, "n": self.n}
        return {"skill": self.skill.hash, "tokens": self.skill.tokens, **figures}


@dataclass(frozen=True, slots=True)
class Reselection:
    """The contender that goes to the certificate, and the reason for the choice."""

    best: Contender
    contenders: tuple[Contender, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        contenders = [contender.to_json() for contender in self.contenders]
        return {"best": self.best.skill.hash, "reason": self.reason, "contenders": contenders}


@dataclass(frozen=True, slots=True)
class Lineage:
    """Every judged text, in the order of the verdicts, with the changes that lead to it from the input.

    `changes` maps the hash of a text to its column names, one for each change on the way. A change is named after the
    first text that it led to. `prior` has the prior of the gain of each change before `select` was seen, as components
    (weight, mean, sd).
    """

    texts: Mapping[str, Skill]
    changes: Mapping[str, tuple[str, ...]]
    prior: Mapping[str, Prior]
    versions: tuple[str, ...]  # the hashes of the accepted ones, the input first

    @classmethod
    def of(cls, start: Skill, verdicts: Sequence[Verdict]) -> Lineage:
        texts = {start.hash: start}
        changes: dict[str, tuple[str, ...]] = {start.hash: ()}
        prior: dict[str, Prior] = {}
        versions = [start.hash]
        for verdict in verdicts:
            if verdict.candidate is None:
                continue
            hash = verdict.candidate.hash
            if hash not in texts:
                texts[hash], changes[hash] = verdict.candidate, (*changes[versions[-1]], hash)
                prior[hash] = UNSCREENED
                if isinstance(verdict.figures, RaceFigures) and verdict.screen and verdict.screen.measured:
                    gain, sd = verdict.figures.prior
                    prior[hash] = ((IDLE, *NOTHING[1:]), (1 - IDLE, gain, math.hypot(sd, PREDICTED_SD)))
            if verdict.accepted:
                versions.append(hash)
        return cls(texts, changes, prior, tuple(versions))

    def fit(self, arena: Arena) -> Posterior:
        """The crossed model of all that was seen of these texts on `select`."""
        observations = [
            Observation(sample, dict.fromkeys(("level", *self.changes[text]), 1.0), score)
            for (text, sample, _), score in arena.scores.on("select").items()
            if text in self.changes
        ]
        return fit(observations, {"level": LEVEL, **dict.fromkeys(self.prior, WIDE)}, arena.noise)

    def beliefs(self, posterior: Posterior) -> dict[str, Mixture]:
        """The posterior of each change under its own prior. Most changes do nothing, so a gain that may be luck counts
        for little. The gain of a text over the input is the sum of its changes."""
        return {change: posterior.shrunk(change, WIDE[1], prior) for change, prior in self.prior.items()}


def reselect(arena: Arena, start: Skill, verdicts: Sequence[Verdict]) -> Reselection | None:
    """Choose a version by the linear mixed model of every score on `select`.

    The choice is the last accepted version, with these exceptions, each with the race's own confidence: another
    version, or a candidate that the race rejected, is better; or an accepted version is shorter and no worse. If the
    choice is not expected to be better than the input, the input is chosen. A mean that is a little higher is no reason
    to change: on average that loses more than it wins. With `gate.also` only accepted versions are chosen from, because
    the further targets have checked no other.

    Returns None if there is only the input, and under `strict`, because the published rule keeps the last accepted
    version.
    """
    lineage = Lineage.of(start, verdicts)
    if len(lineage.texts) == 1 or arena.cfg.policy == "strict":
        return None
    posterior = lineage.fit(arena)
    beliefs = lineage.beliefs(posterior)
    draw = rng(arena.seed, "reselection")
    drawn = {change: belief.draws(GAIN_DRAWS, draw) for change, belief in sorted(beliefs.items())}
    rejected = {v.candidate.hash for v in verdicts if v.candidate and v.figures.rule == RaceFigures.rule}
    rejected -= set(lineage.versions)
    if arena.also:
        rejected = set()  # no rejected candidate was checked on every further target
    numbers = {hash: number for number, hash in reversed(list(enumerate(lineage.versions)))}  # the first of equals
    seen = Counter(text for text, _, _ in arena.scores.on("select"))
    among = [hash for hash in lineage.texts if hash in numbers or hash in rejected]
    gains = {hash: [math.fsum(drawn[c][t] for c in lineage.changes[hash]) for t in range(GAIN_DRAWS)] for hash in among}

    def contender(hash: str) -> Contender:
        changes = lineage.changes[hash]
        _, sd = posterior.contrast(dict.fromkeys(changes, 1.0))
        gain = math.fsum(beliefs[change].mean for change in changes)
        return Contender(lineage.texts[hash], numbers.get(hash), gain, sd, seen[hash])

    def sure(one: Contender, other: Contender, margin: float) -> float:
        """P(one is better than the other by more than the margin)."""
        return fmean(a - b > margin for a, b in zip(gains[one.skill.hash], gains[other.skill.hash], strict=True))

    contenders = [contender(hash) for hash in among]
    best = next(c for c in contenders if c.skill.hash == lineage.versions[-1])
    why = "the last accepted, and no other is surely better"
    for other in sorted(contenders, key=lambda c: -c.gain):
        if other.gain > best.gain and (p := sure(other, best, TIE)) >= arena.cfg.confidence:
            best, why = other, f"better than the last accepted by all evidence: P = {p:.2f}"
    for other in sorted(contenders, key=lambda c: c.skill.tokens):
        shorter = other.version is not None and other.skill.tokens < best.skill.tokens
        if shorter and (p := sure(other, best, -TIE)) >= arena.cfg.confidence:
            best, why = other, f"shorter and no worse: P = {p:.2f}"
    if best.version != 0 and best.gain <= 0:
        best = next(c for c in contenders if c.version == 0)
        why = "no version is expected to be better"
    of = f"version {best.version} of {len(lineage.versions) - 1}" if best.version is not None else "rejected once"
    return Reselection(best, tuple(contenders), f"{of}: {_gain(best)}, {why}")


def _gain(contender: Contender) -> str:
    if contender.version == 0:
        return "the input"
    return f"{100 * contender.gain:+.1f} ± {100 * contender.sd:.1f} points over the input"
