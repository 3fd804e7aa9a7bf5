"""The factorial screen: which edits of the pool help, measured on train samples a few edits at a time.

Every rollout uses the incumbent plus a random subset of the pool, so it informs every edit of its subset. An edit says
which samples it answers (its support), so an effect is split in two: on the samples that it claims, and on all others.
That is what lets a dozen rollouts find a rule that helps one task in twelve.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from statistics import fmean, pstdev

from skilltune.edits import Applied, Edit, apply, conflict
from skilltune.gate.priors import PASSING_SHARE, ROUNDING
from skilltune.gate.trials import lines
from skilltune.optimizer import Proposal
from skilltune.skill import Skill
from skilltune.stats.effects import Draw, solved


@dataclass(frozen=True, slots=True)
class Pool:
    """The edits that may be applied to an incumbent now, and which pairs exclude each other. The last `removals` of
    them take back edits of the incumbent that are in doubt: each is in half of what is tried, beside the others."""

    skill: Skill
    proposals: tuple[Proposal, ...]
    conflicts: frozenset[tuple[int, int]]
    protect: tuple[str, ...]
    max_tokens: int
    removals: int = 0
    former: Mapping[tuple[str, ...], Skill] = field(default_factory=dict)  # versions before it, by their lines
    mends: Mapping[str, tuple[frozenset[str], int]] = field(default_factory=dict)  # see `Trials`

    @classmethod
    def of(
        cls,
        skill: Skill,
        usable: Sequence[Proposal],
        protect: Sequence[str],
        max_tokens: int,
        removals: Sequence[Proposal] = (),
        former: Mapping[tuple[str, ...], Skill] | None = None,
        mends: Mapping[str, tuple[frozenset[str], int]] | None = None,
    ) -> Pool:
        """A pool of proposals that can each be applied alone."""
        usable = [*usable, *removals]
        pairs = [(a, b) for b in range(len(usable)) for a in range(b)]
        excluded = {(a, b) for a, b in pairs if conflict(skill, usable[a].edit, usable[b].edit, protect)}
        return cls(
            skill,
            tuple(usable),
            frozenset(excluded),
            tuple(protect),
            max_tokens,
            len(removals),
            former or {},
            mends or {},
        )

    @property
    def keys(self) -> list[str]:
        return [proposal.edit.key for proposal in self.proposals]

    @property
    def offered(self) -> range:
        """The numbers of the edits that are no removals."""
        return range(len(self.proposals) - self.removals)

    def fits(self, chosen: Sequence[int], another: int) -> bool:
        return all((min(i, another), max(i, another)) not in self.conflicts for i in chosen)

    def first(self, limit: int) -> tuple[int, ...]:
        """The best supported edits that can stand together, at most `limit`."""
        chosen: list[int] = []
        for i in range(len(self.proposals)):
            if len(chosen) < limit and self.fits(chosen, i):
                chosen.append(i)
        return tuple(chosen)

    def filled(self, chosen: Sequence[int], size: int, draw: Random) -> tuple[int, ...]:
        """A set with other edits beside it, drawn at random, up to `size`: what is not tried is never learned."""
        edits, left = list(chosen), size - sum(i in self.offered for i in chosen)
        for i in draw.sample(self.offered, len(self.offered)):
            if left > 0 and i not in edits and self.fits(edits, i):
                edits.append(i)
                left -= 1
        return self.halved(edits, draw)

    def halved(self, chosen: Collection[int], draw: Random) -> tuple[int, ...]:
        """A set with each further removal or without it, by the toss of a coin."""
        edits = set(chosen)
        for i in range(len(self.offered), len(self.proposals)):
            if draw.random() < 0.5 and i not in edits and self.fits(sorted(edits), i):
                edits.add(i)
        return tuple(sorted(edits))

    def apply(self, chosen: Sequence[int]) -> Applied:
        """The incumbent with the chosen edits, in pool order. What leads back to a former version is that version."""
        edits = [self.proposals[i].edit for i in sorted(chosen)]
        applied = apply(self.skill, edits, protect=self.protect, max_tokens=self.max_tokens)
        former = self.former.get(lines(applied.skill)) if self.former else None
        return replace(applied, skill=former) if former else applied

    def text(self, chosen: Sequence[int]) -> Skill:
        return self.apply(chosen).skill


def balanced(pool: Pool, texts: int, size: int, draw: Random) -> list[tuple[int, ...]]:
    """At most `texts` distinct conflict-free subsets of about `size` edits, each edit in nearly equally many,
    beside the removals."""
    used = [0] * len(pool.offered)
    chosen: dict[tuple[int, ...], None] = {}
    for _ in range(4 * texts):
        if len(chosen) == texts:
            break
        order = sorted(range(len(used)), key=lambda i: (used[i], draw.random()))
        subset: list[int] = []
        for i in order:
            if len(subset) < size and pool.fits(subset, i):
                subset.append(i)
        key = pool.halved(subset, draw)
        if key not in chosen:
            chosen[key] = None
            for i in subset:
                used[i] += 1
    return list(chosen)


def assign(
    pool: Pool, design: Sequence[tuple[int, ...]], known: Mapping[str, float], rollouts: int, draw: Random
) -> list[list[str]]:
    """For each subset the train samples it is run on: failures that its edits claim in turn, and some passing ones.

    `known` maps the samples to choose from to the incumbent's score.
    """
    passing = sorted(sample for sample, score in known.items() if score >= 1.0)
    failing = sorted(sample for sample, score in known.items() if score < 1.0)
    draw.shuffle(passing)
    draw.shuffle(failing)
    each = max(1, round(rollouts / len(design))) if design else 0
    uses = dict.fromkeys(known, 0)
    plan = []
    for number, subset in enumerate(design):
        guards = min(len(passing), int((number + 1) * PASSING_SHARE * each) - int(number * PASSING_SHARE * each))
        chosen: list[str] = []
        claims = [[s for s in pool.proposals[i].support if known.get(s, 1.0) < 1.0] for i in subset]
        draw.shuffle(claims)
        for candidates in [*claims, *claims, failing] * each:
            free = [sample for sample in candidates if sample not in chosen]
            if len(chosen) < each - guards and free:
                chosen.append(min(free, key=lambda sample: uses[sample]))
                uses[chosen[-1]] += 1
        for sample in sorted(passing, key=lambda sample: uses[sample])[: each - len(chosen)]:
            chosen.append(sample)
            uses[sample] += 1
        plan.append(chosen)
    return plan


# A set of edits: their numbers; the samples that they claim, each with its share of all tasks and the places of the
# claimed effects on it; the share that is left to all other samples.
_Parts = tuple[list[int], list[tuple[str, float, list[int]]], float]


class Screened:
    """The posterior of the pool's edits: the gain of a set of edits over the incumbent under each draw, averaged over
    the train samples on which the incumbent was seen."""

    def __init__(self, pool: Pool, draws: Sequence[Draw], known: Sequence[str]) -> None:
        """`known`: the samples that stand for all tasks."""
        self.pool, self.draws, self.known = pool, draws, tuple(known)
        self._tokens = [_added_tokens(proposal.edit) for proposal in pool.proposals]
        each = 1 / (len(self.known) or 1)
        # For each edit its claims: the samples, the share of all tasks that one of them stands for, and the place of
        # the effect among the claimed effects of a draw.
        self._claims = [
            [(frozenset(proposal.support).intersection(known), 1 / proposal.among if proposal.among else each, i)]
            for i, proposal in enumerate(pool.proposals)
        ]
        mending = [i for i, key in enumerate(pool.keys) if key in pool.mends]
        for place, i in enumerate(mending, len(self._claims)):
            samples, among = pool.mends[pool.keys[i]]
            self._claims[i].append((samples.intersection(known), 1 / (among or 1), place))
        self._counts = [Counter(map(draw.bases.__getitem__, self.known)) for draw in draws]
        # For each draw, as bits: the edits that have an effect. Most edits have none.
        self._moving = [
            sum(
                [
                    1 << i
                    for i, of in enumerate(self._claims)
                    if draw.general[i] or any(s and draw.claimed[c] for s, _, c in of)
                ]
            )
            for draw in draws
        ]
        self._gains: list[dict[int, float]] = [{0: 0.0} for _ in draws]  # of each draw, by the edits that move
        self._sets: dict[int, _Parts] = {}  # by the edits

    def gains(self, chosen: Sequence[int]) -> list[float]:
        """The gain of a set of edits under each of the draws."""
        bits = sum([1 << i for i in chosen])
        return [self._under(t, bits) for t in range(len(self.draws))]

    def _under(self, t: int, bits: int) -> float:
        """The gain of a set of edits, given as bits, under one draw."""
        moving = bits & self._moving[t]
        gain = self._gains[t].get(moving)
        if gain is None:
            gain = self._gains[t][moving] = self._gain(self.draws[t], self._counts[t], moving)
        return gain

    def _gain(self, draw: Draw, counts: Mapping[int, int], moving: int) -> float:
        """Under one draw. A claimed sample stands for its share of the samples that the optimizer was shown with it,
        all others for what remains. `counts`: how many samples have a base."""
        chosen, claims, left = self._parts(moving)
        general = sum([draw.general[i] for i in chosen])
        gain, others = 0.0, 0.0
        rises, bases, claimed = _rises(general), draw.bases, draw.claimed
        for sample, share, claiming in claims:
            base = bases[sample]
            gain += share * _rises(general + sum([claimed[i] for i in claiming]))[base]
            others -= rises[base]
        if general and left > 0:
            others += sum([n * rises[base] for base, n in counts.items()])
            gain += left * others / (len(self.known) - len(claims) or 1)
        return gain

    def _parts(self, moving: int) -> _Parts:
        """A set of edits, given as bits, as all draws see it."""
        if moving not in self._sets:
            chosen = [i for i in range(moving.bit_length()) if moving >> i & 1]
            claiming: dict[str, list[tuple[float, int]]] = {}
            for i in chosen:
                for samples, share, place in self._claims[i]:
                    for sample in samples:
                        claiming.setdefault(sample, []).append((share, place))
            claims = [(sample, max(of)[0], [place for _, place in of]) for sample, of in sorted(claiming.items())]
            left = 1.0
            for _, share, _ in claims:
                left -= share
            self._sets[moving] = chosen, claims, left
        return self._sets[moving]

    def gain(self, chosen: Sequence[int]) -> tuple[float, float, float]:
        """Mean and standard deviation of the gain of a set, and P(gain > 0)."""
        gains = self.gains(chosen)
        return fmean(gains), pstdev(gains), sum(gain > 0 for gain in gains) / len(gains)

    def converged(self, limit: int, share: float) -> bool:
        """True if the best team has `limit` edits and each adds something in at least this share of the draws."""
        team = self.assemble(limit, share)
        gains = self.gains(team)

        def helps(i: int) -> bool:
            without = self.gains([j for j in team if j != i])
            return sum(b - a > ROUNDING for a, b in zip(without, gains, strict=True)) >= share * len(self.draws)

        return len(team) == limit and all(map(helps, team))

    def sampled(self, n: int, limit: int) -> list[tuple[int, ...]]:
        """For each of `n` draws the set that is best if that draw is the truth (Thompson 1933): what to try next."""
        found: dict[tuple[int, ...], None] = {}
        for t in range(len(self.draws)):
            if len(found) < n and (chosen := self.assemble(limit, 0.5, [t])):
                found[chosen] = None
        return list(found)

    def assemble(
        self, limit: int, worth: float, draws: Sequence[int] | None = None, length_price: float = 0.0
    ) -> tuple[int, ...]:
        """Greedily the edits that add most to the expected gain, at most `limit`; the shorter one on ties.

        Each edit enters on its own evidence: what it adds to the gain must be more than the price of its length, in the
        mean and with at least probability `worth`. `length_price` is a score per 1,000 tokens. Under some of the draws,
        or under all.
        """
        draws = range(len(self.draws)) if draws is None else draws
        prices = [length_price * tokens / 1000 for tokens in self._tokens]
        chosen: list[int] = []
        bits, gains = 0, dict.fromkeys(draws, 0.0)
        while len(chosen) < limit:
            best: tuple[tuple[float, int, int], dict[int, float]] | None = None
            for i, proposal in enumerate(self.pool.proposals):
                if i in chosen or not self.pool.fits(chosen, i):
                    continue
                with_it = {t: self._under(t, bits | 1 << i) for t in draws if self._moving[t] >> i & 1}
                added = [gain - gains[t] for t, gain in with_it.items()]  # nothing under the other draws
                mean, helped = math.fsum(added) / len(draws), sum([gain > prices[i] + ROUNDING for gain in added])
                if mean > prices[i] and helped >= worth * len(draws):
                    rank = mean, -len(proposal.edit.text or ""), -i
                    best = (rank, with_it) if best is None or rank > best[0] else best
            if best is None:
                break
            chosen.append(-best[0][2])
            bits |= 1 << chosen[-1]
            gains |= best[1]
        return tuple(sorted(chosen))


def _added_tokens(edit: Edit) -> int:
    """The tokens by which an edit makes the skill longer, about; none if it makes it shorter."""
    return max(0, Skill(edit.text or "").tokens - Skill(edit.target or "").tokens)


@cache
def _rises(effect: int) -> _Rises:
    return _Rises(effect)


class _Rises(dict[int, float]):
    """The rise of P(solved) by an effect in units, by the sample's base."""

    def __init__(self, effect: int) -> None:
        super().__init__()
        self.effect = effect

    def __missing__(self, base: int) -> float:
        self[base] = solved(base + self.effect) - solved(base)
        return self[base]
