"""All that was ever tried on an incumbent or on it with edits of a pool, in one model of effects.

A small effect shows only in what several screens say of it together, so no trial is forgotten when a step ends or the
incumbent changes: an accepted edit is in every later trial, and its effect is drawn with the others'.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from skilltune.gate.effects import DRAWS, Draw, Odds, Trial, draw_effects

ODDS = Odds((2.0, 18.0), (4.0, 4.0))  # before anything was tried


@dataclass(frozen=True, slots=True)
class Tried:
    """One score of a sample under a version with some edits, by their keys."""

    sample: str
    version: str
    edits: tuple[str, ...]
    score: float


@dataclass(slots=True)
class Evidence:
    incumbents: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # scores by version and sample
    screened: list[Tried] = field(default_factory=list)
    raced: dict[str, list[Tried]] = field(default_factory=dict)  # by candidate
    lineage: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the edits that led to a version
    supports: dict[str, frozenset[str]] = field(default_factory=dict)  # the samples that an edit claims
    measured: set[str] = field(default_factory=set)  # edits that were in a screen
    claims: float = 1.0  # share of edits with an effect on these; until something was tried, of all
    # Where the chain stood at last: the samples, and the two effects of each edit.
    last: tuple[Mapping[str, int], Mapping[str, tuple[int, int]]] | None = None

    def standing(self, samples: Container[str]) -> dict[str, float]:
        """Mean scores of train samples under the last incumbent, or under the last version that was seen on them."""
        known = [scores for version in self.incumbents.values() for scores in version.items() if scores[0] in samples]
        return {sample: fmean(scores) for sample, scores in known}

    def draws(
        self, version: str, pool: Sequence[str], random: Random, *, draws: int = DRAWS, without: str = ""
    ) -> list[Draw]:
        """Draws of the samples under a version and of the effects of the edits of a pool, in its order, by all trials
        but those of the race of the candidate `without`."""
        seen = [
            Tried(sample, version, (), score)
            for version, known in self.incumbents.items()
            for sample, scores in known.items()
            for score in scores
        ]
        seen += self.screened
        seen += [tried for hash, race in self.raced.items() if hash != without for tried in race]
        rows = [(tried, tuple(dict.fromkeys((*self.lineage.get(tried.version, ()), *tried.edits)))) for tried in seen]
        taken = self.lineage.get(version, ())
        active = dict.fromkeys([*pool, *taken])
        others = sorted({key for _, keys in rows for key in keys}.difference(active))  # not in the order of completion
        number = {key: i for i, key in enumerate([*active, *others])}
        claims = {key: self.supports.get(key, frozenset()) for key in number}
        trials = [
            Trial(
                tried.sample,
                tuple([number[key] for key in keys]),
                tuple([number[key] for key in keys if tried.sample in claims[key]]),
                tried.score,
            )
            for tried, keys in rows
        ]
        start = None
        if self.last is not None:
            effects = [self.last[1].get(key, (0, 0)) for key in number]
            start = Draw(self.last[0], tuple([general for general, _ in effects]), tuple([c for _, c in effects]))
        drawn = draw_effects(trials, len(number), ODDS, random, draws=draws, active=len(active), start=start)
        ends = zip(number, drawn[-1].general, drawn[-1].claimed, strict=True)
        self.last = drawn[-1].bases, {key: (general, claimed) for key, general, claimed in ends}
        self.claims = sum([sum(map(bool, draw.claimed)) for draw in drawn]) / (len(number) * len(drawn))
        held = {s: [number[key] for key in taken if s in claims[key]] for s in drawn[-1].bases}
        held = {s: claiming for s, claiming in held.items() if claiming}
        result = []
        for draw in drawn:
            general = sum([draw.general[number[key]] for key in taken])
            bases = {s: base + general for s, base in draw.bases.items()}
            for s, claiming in held.items():
                bases[s] += sum([draw.claimed[i] for i in claiming])
            result.append(Draw(bases, draw.general[: len(pool)], draw.claimed[: len(pool)]))
        return result
