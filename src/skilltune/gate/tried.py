"""All that was ever tried on an incumbent or on it with edits of a pool, in one model of effects.

A small effect shows only in what several screens say of it together, so no trial is forgotten when a step ends or the
incumbent changes: an accepted edit is in every later trial, and its effect is drawn with the others'. Each rollout
counts once, whatever it was made for.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

from skilltune.gate.effects import DRAWS, EVERYWHERE, Draw, Odds, Trial, draw_effects
from skilltune.optimizer import Proposal
from skilltune.skill import Skill

CLAIMS = 0.1  # share of edits with an effect on the samples that they claim, below which claims mean nothing

Scores = Mapping[tuple[str, str], Sequence[float]]  # by text hash and sample


@dataclass(slots=True)
class Evidence:
    """Which edits the texts of a run hold, and what was learned of these."""

    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the keys of a text's edits, by its hash
    incumbents: list[str] = field(default_factory=list)  # hashes, the present one last
    edits: dict[str, str] = field(default_factory=dict)  # what an edit inserts, by its key
    supports: dict[str, frozenset[str]] = field(default_factory=dict)  # the samples that an edit claims
    measured: set[str] = field(default_factory=set)  # edits that were in a screen
    claims: float = 1.0  # share of edits with an effect on these; until something was tried, of all
    # Where the chain stood at last: the samples, and the two effects of each edit.
    last: tuple[Mapping[str, int], Mapping[str, tuple[int, int]]] | None = None

    @property
    def everywhere(self) -> bool:
        """Whether claims were found to mean nothing: what edits do, they do to all samples."""
        return self.claims < CLAIMS

    def enthrone(self, skill: Skill) -> tuple[str, ...]:
        """Take note of the incumbent; the edits that it holds."""
        if skill.hash not in self.incumbents[-1:]:
            self.incumbents.append(skill.hash)
        return self.texts.setdefault(skill.hash, ())

    def note(self, text: Skill, incumbent: Skill, proposals: Sequence[Proposal]) -> None:
        """Take note of what a text holds: the incumbent's edits, but for those that were overwritten, and these."""
        self.edits |= {p.edit.key: _plain(p.edit.text or "") for p in proposals}
        held = [key for key in self.texts[incumbent.hash] if self.edits[key] in _plain(text.text)]
        self.texts.setdefault(text.hash, tuple(dict.fromkeys((*held, *(p.edit.key for p in proposals)))))

    def standing(self, scores: Scores, samples: Container[str]) -> dict[str, float]:
        """Mean scores of samples under the incumbent, or under the last version that was seen on them."""
        rank = {version: place for place, version in enumerate(self.incumbents)}
        known = [(rank[text], sample, seen) for (text, sample), seen in scores.items() if text in rank]
        return {sample: fmean(seen) for _, sample, seen in sorted(known) if sample in samples}

    def draws(
        self,
        scores: Scores,
        pool: Sequence[str],
        random: Random,
        *,
        draws: int = DRAWS,
        without: Container[tuple[str, str]] = (),
    ) -> list[Draw]:
        """Draws of the samples under the incumbent and of the effects of the edits of a pool, in its order, by all
        scores but those of `without`."""
        rows = [
            (sample, self.texts[text], score)
            for (text, sample), seen in sorted(scores.items())
            if text in self.texts and (text, sample) not in without
            for score in seen
        ]
        taken = self.texts[self.incumbents[-1]]
        active = dict.fromkeys([*pool, *taken])
        others = sorted({key for _, keys, _ in rows for key in keys}.difference(active))
        number = {key: i for i, key in enumerate([*active, *others])}
        claims = {key: self.supports.get(key, frozenset()) for key in number}
        trials = [
            Trial(
                sample,
                tuple([number[key] for key in keys]),
                tuple([number[key] for key in keys if sample in claims[key]]),
                score,
            )
            for sample, keys, score in rows
        ]
        start = None
        if self.last is not None:
            effects = [self.last[1].get(key, (0, 0)) for key in number]
            start = Draw(self.last[0], tuple([general for general, _ in effects]), tuple([c for _, c in effects]))
        odds = EVERYWHERE if self.everywhere else Odds()
        drawn = draw_effects(trials, len(number), odds, random, draws=draws, active=len(active), start=start)
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


def _plain(text: str) -> str:
    """Without what inserting changes: line ends, and white space around."""
    return text.replace("\r\n", "\n").strip()
