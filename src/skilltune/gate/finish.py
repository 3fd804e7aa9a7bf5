"""The end of training, before the test split is read: which version is really the best, and what in it carries nothing.

A version that was accepted had a good day. Looked at again with everything that was seen on `select` since, another one
may be surely better, or shorter and no worse; that costs nothing. To drop a rule, a few rollouts without it must show
that next to nothing is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skilltune.edits import Applied, apply, inverse
from skilltune.gate import Arena, Verdict
from skilltune.gate.credit import COMPACT, Rule
from skilltune.gate.crossed import Observation, Posterior, fit
from skilltune.gate.race import LEVEL, UNSCREENED, WIDE, doubling
from skilltune.roll import gather, mean
from skilltune.run import rng
from skilltune.skill import Skill
from skilltune.stats import Mixture, normal_cdf, updated

IDLE = 0.2  # share of the changes that were screened and raced that do nothing on `select`
NOTHING = (0.5, 0.0, 0.002)  # prior weight, mean and sd of a rule that carries nothing
Prior = tuple[tuple[float, float, float], ...]
FORETOLD_SD = 0.15  # by which a gain may miss what a screen foretold: where `select` has spoken, it decides
HOPELESS = 0.5  # P(less than the margin is lost) below which a drop is given up
CERTAIN = 0.99  # P(a rule carries more than the margin) at which its drop is not even tried
MARGIN = 0.01  # one point: what may be lost by dropping a rule
DRAWS = 4000  # of the gains of versions, to compare them
TIE = 0.005  # half a point: a version this close to another is as good


@dataclass(frozen=True, slots=True)
class Contender:
    """A version, or a candidate that was rejected: its gain over the input on `select` with its standard deviation, by
    all evidence, and the rollouts of its own. `version` is None for a rejected one."""

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
    """Which contender goes to the certificate, and why."""

    best: Contender
    contenders: tuple[Contender, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        contenders = [contender.to_json() for contender in self.contenders]
        return {"best": self.best.skill.hash, "reason": self.reason, "contenders": contenders}


@dataclass(frozen=True, slots=True)
class Lineage:
    """Every text that was ever judged, with the changes that led to it from the input, in order of its judgement.

    `changes` maps a text's hash to its column names, one for each change on the way; a change is named after the text
    that it led to first. `prior` holds what was believed of the gain by each change before `select` was asked, as
    components (weight, mean, sd).
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
                foretold = verdict.numbers.get("prior")
                prior[hash] = UNSCREENED
                if foretold and any(row["sd"] for row in verdict.numbers.get("screen", ())):
                    believed = foretold[0], math.hypot(foretold[1], FORETOLD_SD)
                    prior[hash] = ((IDLE, *NOTHING[1:]), (1 - IDLE, *believed))
            if verdict.accepted:
                versions.append(hash)
        return cls(texts, changes, prior, tuple(versions))

    def fit(self, arena: Arena, samples: Sequence[str]) -> Posterior:
        """The crossed model of all that was seen of these texts on some samples."""
        among = set(samples)
        observations = [
            Observation(sample, dict.fromkeys(("level", *self.changes[text]), 1.0), arena.metric(rollout.score))
            for (text, sample, _), rollout in sorted(arena.roll.seen.items())
            if text in self.changes and sample in among and rollout.score is not None
        ]
        return fit(observations, {"level": LEVEL, **dict.fromkeys(self.prior, WIDE)}, arena.noise)

    def beliefs(self, posterior: Posterior) -> dict[str, Mixture]:
        """What each change did, shrunk towards its own prior: most changes do nothing, so what may be luck is no gain.
        What a text gains over the input is the sum of its changes."""
        beliefs = {}
        for change, prior in self.prior.items():
            middle, sd = posterior.contrast({change: 1.0})
            said = max(1 / sd**2 - 1 / WIDE[1] ** 2, 1e-6)  # precision of the data alone, the wide prior taken out
            beliefs[change] = updated(prior, middle / sd**2 / said, 1 / said)
        return beliefs


def reselect(arena: Arena, start: Skill, verdicts: Sequence[Verdict]) -> Reselection | None:
    """The last accepted version, unless by the crossed model of all that was seen on `select` another one, or a
    candidate that the race rejected, is better with the race's own confidence, or an accepted one is shorter and with
    that confidence no worse. None that is not expected to be better than the input. None where there is nothing to
    choose from.

    A mean that is a little higher is no reason: to follow it loses more than it wins. Under `strict` there is no choice
    either: the published rule keeps the last accepted version.
    """
    lineage = Lineage.of(start, verdicts)
    if len(lineage.texts) == 1 or arena.cfg.policy == "strict":
        return None
    posterior = lineage.fit(arena, [sample.id for sample in arena.select])
    beliefs = lineage.beliefs(posterior)
    draw = rng(arena.seed, "reselection")
    drawn = {change: belief.draws(DRAWS, draw) for change, belief in sorted(beliefs.items())}
    rejected = {v.candidate.hash for v in verdicts if v.candidate and v.numbers.get("rule") == "race"}
    rejected -= set(lineage.versions)
    numbers = {hash: number for number, hash in reversed(list(enumerate(lineage.versions)))}  # the first of equals
    ids = {sample.id for sample in arena.select}
    seen = Counter(text for text, sample, _ in arena.roll.seen if sample in ids)
    among = [hash for hash in lineage.texts if hash in numbers or hash in rejected]
    gains = {hash: [math.fsum(drawn[c][t] for c in lineage.changes[hash]) for t in range(DRAWS)] for hash in among}

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


async def compact(
    arena: Arena, best: Skill, rules: Sequence[Rule], judged: Collection[str]
) -> AsyncGenerator[Verdict, None]:
    """One verdict for each rule that may carry nothing, the least first; each goes on from what the last one left.

    A rule is dropped when P(less than the margin is lost) reaches the gate's confidence; the margin is `MARGIN` less
    what earlier drops are believed to have lost. Both texts are seen on the train
    samples that the rule claims, where a loss would show first, on all of `select`, and where that does not suffice on
    as many other train samples, in growing blocks; a drop that is hopeless ends early. A rule that is known to carry
    something costs nothing. `judged` are the hashes of the texts whose rollouts tell samples apart.
    """
    skill, margin = best, MARGIN
    for rule in sorted(rules, key=lambda rule: rule.carries(MARGIN)):
        why = f"the rule of step {rule.step} may carry nothing"
        without = inverse(rule.op, rule.removed, rule.text, why)
        if without is None or rule.carries(margin) >= CERTAIN:
            continue
        if rule.effect >= 0 and normal_cdf(margin / NOTHING[2]) < arena.cfg.confidence:
            continue  # so little is left of the margin that not even a rule that does nothing could be dropped
        applied = apply(skill, [without])
        if applied.changed:
            verdict = await _drop(arena, skill, applied, rule, {*judged, best.hash, skill.hash}, margin)
            skill = verdict.skill
            if verdict.accepted:
                margin = max(0.0, margin + min(0.0, verdict.numbers["looks"][-1]["gain"]))
            yield verdict


async def _drop(
    arena: Arena, skill: Skill, applied: Applied, rule: Rule, judged: Collection[str], margin: float
) -> Verdict:
    """Is the skill without the rule no worse, by more than the margin?"""
    cfg, candidate = arena.cfg, applied.skill
    order = [sample for sample in arena.train if sample.id in rule.evidence]
    enough = len(order) + len(arena.select)
    for split in (arena.select, arena.train):
        part = sorted((sample for sample in split if sample.id not in rule.evidence), key=lambda sample: sample.id)
        rng(arena.seed, COMPACT, rule.key).shuffle(part)
        order += part[: len(arena.select)]
    prior = (NOTHING, (1 - NOTHING[0], -rule.effect, rule.sd))
    looks: list[tuple[int, float, float, float]] = []
    posterior = None
    for block in doubling(order, cfg.block):
        purpose = f"compact {candidate.hash} {block[0].id}"
        await gather([arena.roll(text, block, purpose=purpose) for text in (candidate, skill)])
        posterior = _fit_drop(arena, skill, candidate, judged)
        middle, sd = posterior.contrast({"drop": 1.0})
        said = max(1 / sd**2 - 1 / WIDE[1] ** 2, 1e-6)
        gain = updated(prior, middle / sd**2 / said, 1 / said)
        looks.append(((looks[-1][0] if looks else 0) + len(block), gain.mean, gain.sd, gain.above(-margin)))
        n, _, _, safe = looks[-1]
        if safe < HOPELESS or (safe >= cfg.confidence and n >= enough):
            break
    n, gain, sd, safe = looks[-1]
    dropped = safe >= cfg.confidence
    ids = [sample.id for sample in arena.select]
    old, new = (_scores(arena, text, ids) for text in (skill, candidate))
    differences = {sample: new[sample] - old[sample] for sample in sorted(new) if sample in old}
    assert posterior is not None
    level, spread = posterior.contrast({"level": 1.0, "drop": 1.0} if dropped else {"level": 1.0})
    text = " ".join(rule.text.split())
    return Verdict(
        skill=candidate if dropped else skill,
        accepted=dropped,
        reason=f'without "{text:.60}": {100 * gain:+.1f} ± {100 * sd:.1f} points on {n} rollouts, '
        f"P(loss < {100 * margin:.2g} point) = {safe:.3f}, needed {cfg.confidence:g}: "
        f"{'dropped' if dropped else 'it stays'}",
        score=min(1.0, max(0.0, level)),
        score_sd=spread,
        candidate=candidate,
        before=mean([old[sample] for sample in differences]),
        after=mean([new[sample] for sample in differences]),
        differences=differences,
        reports=applied.reports,
        numbers={
            "rule": COMPACT,
            "edit": rule.key,
            "effect": (rule.effect, rule.sd),
            "margin": margin,
            "looks": [dict(zip(("n", "gain", "sd", "safe"), look, strict=True)) for look in looks],
        },
    )


def _fit_drop(arena: Arena, skill: Skill, candidate: Skill, judged: Collection[str]) -> Posterior:
    """All that was seen of judged texts on train and `select`: the skill's level, and what it is without the rule."""
    among = {sample.id for sample in (*arena.train, *arena.select)}
    others = sorted({*judged} - {skill.hash, candidate.hash})
    columns = {text: {"level": 1.0, text: 1.0} for text in others}
    columns |= {skill.hash: {"level": 1.0}, candidate.hash: {"level": 1.0, "drop": 1.0}}
    observations = [
        Observation(sample, columns[text], arena.metric(rollout.score))
        for (text, sample, _), rollout in sorted(arena.roll.seen.items())
        if text in columns and sample in among and rollout.score is not None
    ]
    return fit(observations, {"level": LEVEL, "drop": WIDE, **dict.fromkeys(others, WIDE)}, arena.noise)


def _scores(arena: Arena, skill: Skill, samples: Sequence[str]) -> dict[str, float]:
    """The first score of a skill on each of the samples on which it was seen."""
    seen = {sample: arena.roll.seen.get((skill.hash, sample, 0)) for sample in samples}
    return {sample: arena.metric(r.score) for sample, r in seen.items() if r is not None and r.score is not None}
