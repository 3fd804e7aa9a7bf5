"""Every trial of the run: which edits each text contained and how it scored. One posterior is fitted to all of them.

A small effect shows only in several screens together. So no trial is dropped when a step ends or the incumbent changes:
an accepted edit is part of every later trial, and its effect is estimated with the others. Each rollout counts once,
whatever it was made for.

An accept may have been luck. While no edit of the incumbent is known to help, the removal of each edit is an edit of
the pool; its effect is that of the edit, with the other sign.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean

from skilltune.edits import Edit, Report, inverse
from skilltune.gate.priors import CLAIMS, FAILS, KNOWN, SOME
from skilltune.optimizer import Proposal
from skilltune.skill import Skill
from skilltune.stats.effects import CHAINS, DRAWS, EVERYWHERE, Draw, Odds, Trial, draw_effects
from skilltune.verdict import Verdict

DOUBT = "what was seen since it came does not speak for it"

Scores = Mapping[tuple[str, str], Sequence[float]]  # by text hash and sample


@dataclass(slots=True)
class Trials:
    """The edits that each text of a run holds, and the posterior of their effects."""

    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the keys of a text's edits, by its hash
    incumbents: list[str] = field(default_factory=list)  # hashes, the present one last
    edits: dict[str, Proposal] = field(default_factory=dict)  # those that texts hold, by their keys
    supports: dict[str, frozenset[str]] = field(default_factory=dict)  # the samples that an edit claims
    measured: set[str] = field(default_factory=set)  # edits that were in a screen
    versions: dict[str, Skill] = field(default_factory=dict)  # the incumbents, by their hashes
    removals: dict[str, str] = field(default_factory=dict)  # the key of the edit that a removal takes back, by its own
    # The samples that a removal may mend, because the incumbent fails on them, and the number of those it was seen on.
    mends: dict[str, tuple[frozenset[str], int]] = field(default_factory=dict)
    inverses: dict[str, Edit] = field(default_factory=dict)  # the removal of an accepted edit, by that edit's key
    refuted: set[tuple[str, str]] = field(default_factory=set)  # edits that a race gave up alone, with the incumbent
    # Edits that a screen found hardly any good, with the incumbent: the samples that they claimed.
    dropped: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    helps: dict[str, float] = field(default_factory=dict)  # P(an edit helps), of those in the last posterior
    claims: float = 1.0  # share of edits with an effect on these; until something was tried, of all
    solved: float = 1.0  # mean score of the incumbent, or of the last one that was seen
    # The last state of each chain of the sampler: the samples, and the two effects of each edit.
    last: Sequence[tuple[Mapping[str, int], Mapping[str, tuple[int, int]]]] = ()

    @classmethod
    def of(cls, start: Skill, verdicts: Sequence[Verdict], train: Container[str]) -> Trials:
        """The trials by the verdicts of a training alone: its versions, and the candidates that were rejected."""
        trials = cls()
        trials.set_incumbent(start)
        for verdict in verdicts:
            if verdict.candidate is None:
                continue
            reports = [report for report in verdict.reports if report.applied]
            for report in reports:
                claimed = (citation.sample for citation in report.edit.evidence)
                trials.supports[report.edit.key] = frozenset(sample for sample in claimed if sample in train)
            trials.note(verdict.candidate, trials.versions[trials.incumbents[-1]], [
                Proposal(report.edit, tuple(sorted(trials.supports[report.edit.key]))) for report in reports
            ])  # fmt: skip
            if verdict.accepted:
                trials.accept(verdict.reports)
                trials.set_incumbent(verdict.candidate)
        return trials

    @property
    def diffuse(self) -> bool:
        """True if claims were found to mean nothing: edits act on all samples alike."""
        return self.claims < CLAIMS and self.solved >= SOME

    @property
    def proven(self) -> bool:
        """True while an accepted version stands; false again if all that was accepted was taken back."""
        return self.incumbents[:1] != self.incumbents[-1:]

    def set_incumbent(self, skill: Skill) -> tuple[str, ...]:
        """Store the incumbent. Returns the keys of the edits that it holds."""
        if skill.hash not in self.incumbents[-1:]:
            self.incumbents.append(skill.hash)
            self.versions[skill.hash] = skill
        return self.texts.setdefault(skill.hash, ())

    def note(self, text: Skill, incumbent: Skill, proposals: Sequence[Proposal]) -> None:
        """Store the edits of a text: those of the incumbent that were not overwritten, and these."""
        gone = {self.removals[p.edit.key] for p in proposals if p.edit.key in self.removals}
        new = {p.edit.key: p for p in proposals if p.edit.key not in self.removals or p.edit.key in self.mends}
        self.edits |= new
        document, before = _plain(text.body), self.texts[incumbent.hash]
        once = dict.fromkeys([*(key for version in self.incumbents for key in self.texts[version]), *before])
        parts = {key: self._inserted(key) for key in once if key not in gone}  # a removal may bring an older text back
        held = [key for key, part in parts.items() if (_stands(part, document) if part else key in before)]
        self.texts.setdefault(text.hash, tuple(dict.fromkeys((*held, *new))))

    def _inserted(self, key: str) -> str:
        return _plain(self.edits[key].edit.text or "")

    def accept(self, reports: Sequence[Report]) -> None:
        """Store the removal of each edit of an accepted candidate; the optimizer may propose the same removal."""
        for report in reports:
            key = report.edit.key
            back = inverse(report.edit.op, report.removed, report.inserted, DOUBT)
            if report.status == "applied" and key not in self.removals and back and back.key not in self.edits:
                self.removals[back.key], self.inverses[key] = key, back

    def known(self, proposal: Proposal) -> Proposal:
        """A proposal as it is; one that takes an accepted edit back answers what that one did."""
        key = self.removals.get(proposal.edit.key)
        if key is None:
            return proposal
        return replace(proposal, support=tuple(sorted(self.supports.get(key, ()))), among=self.edits[key].among)

    def removal_candidates(self) -> list[Proposal]:
        """The removals of the edits of the incumbent, the most doubtful first, while none of its edits is known to help:
        it may be there by luck, with something harmful beside which nothing can show what it is worth."""
        incumbent = self.incumbents[-1]
        if any(self.helps.get(key, 1.0) >= KNOWN for key in self.texts[incumbent]):
            return []
        removals = self.removals_of_incumbent()
        return [removal for removal in removals if (incumbent, removal.edit.key) not in self.refuted]

    def mend(self, scores: Scores, removals: Sequence[Proposal]) -> None:
        """Let removals answer the samples on which the incumbent fails: a line that harms some samples shows there."""
        own = {sample: fmean(seen) for (text, sample), seen in scores.items() if text == self.incumbents[-1]}
        failing = frozenset(sample for sample, score in own.items() if score < FAILS)
        self.mends |= {p.edit.key: (failing, len(own)) for p in removals if p.edit.key in self.removals}

    def removals_of_incumbent(self) -> list[Proposal]:
        """The removal of each edit of the incumbent that can be removed, the most doubtful first."""
        held = sorted(self.texts[self.incumbents[-1]], key=lambda key: self.helps.get(key, 1.0))
        parts = {key: self._inserted(key) for key in held}
        inside = {key for key in held for other in held if key != other and parts[key] and parts[key] in parts[other]}
        removable = [key for key in held if key in self.inverses and key not in inside]
        return [self.known(Proposal(self.inverses[key])) for key in removable]

    def drop(self, incumbent: Skill, proposals: Sequence[Proposal]) -> None:
        """Store the edits that a screen dropped, with the samples that they claim."""
        for proposal in proposals:
            key = incumbent.hash, proposal.edit.key
            self.dropped[key] = self.dropped.get(key, frozenset()).union(proposal.support)

    def reopened(self, before: Skill, after: Skill) -> list[Proposal]:
        """The edits that a screen dropped beside an edit that `before` holds and `after` does not: it may have hidden
        their worth."""
        gone = set(self.texts[before.hash]) - set(self.texts[after.hash])
        keys = dict.fromkeys(key for hash, key in self.dropped if gone.intersection(self.texts[hash]))
        return [self.edits[key] for key in keys if key in self.edits and key not in gone]

    def judged(self, proposal: Proposal, incumbent: Skill) -> bool:
        """True if a screen dropped this edit beside this incumbent, and the edit claims no new sample."""
        claimed = self.dropped.get((incumbent.hash, proposal.edit.key))
        return claimed is not None and claimed.issuperset(proposal.support)

    def former(self) -> dict[tuple[str, ...], Skill]:
        """The incumbents before the present one, by their lines."""
        return {lines(skill): skill for hash, skill in self.versions.items() if hash != self.incumbents[-1]}

    def baseline_scores(self, scores: Scores, samples: Container[str]) -> dict[str, float]:
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
    ) -> list[Draw]:
        """Draws of the samples under the incumbent and of the effects of the edits of a pool (their keys, in its order)
        by these scores. After the claimed effects of all edits come those of the removals on the samples that they may
        mend, in the order of the pool."""
        rows = [
            (sample, self.texts[text], score)
            for (text, sample), seen in sorted(scores.items())
            if text in self.texts
            for score in seen
        ]
        taken = self.texts[self.incumbents[-1]]
        own = [score for (text, _), seen in scores.items() if text == self.incumbents[-1] for score in seen]
        self.solved = fmean(own) if own else self.solved
        signs = [-1 if key in self.removals else 1 for key in pool]
        in_question = [self.removals.get(key, key) for key in pool]
        active = dict.fromkeys([*in_question, *(key for key in pool if key in self.mends)])
        others = sorted({*taken, *(key for _, keys, _ in rows for key in keys)}.difference(active))
        number = {key: i for i, key in enumerate([*active, *others])}
        claims = {
            key: self.mends[key][0] if key in self.mends else self.supports.get(key, frozenset()) for key in number
        }
        trials = [
            Trial(
                sample,
                tuple([number[key] for key in keys]),
                tuple([number[key] for key in keys if sample in claims[key]]),
                score,
            )
            for sample, keys, score in rows
        ]
        start = [
            Draw(bases, *(tuple([effects.get(key, (0, 0))[kind] for key in number]) for kind in (0, 1)))
            for bases, effects in self.last
        ]
        odds = EVERYWHERE if self.diffuse else Odds()
        local = {i for key, i in number.items() if key in self.mends}  # the edit itself has the general effect
        drawn = draw_effects(
            trials, len(number), odds, random, draws=draws, active=len(active), start=start, local=local
        )
        self.last = [
            (draw.bases, dict(zip(number, zip(draw.general, draw.claimed, strict=True), strict=True)))
            for draw in drawn[-CHAINS:]
        ]
        self.claims = sum([sum(map(bool, draw.claimed)) for draw in drawn]) / (len(number) * len(drawn))
        self.helps = {
            key: fmean([_does_good(draw.general[i], draw.claimed[i] if claims[key] else 0) for draw in drawn])
            for key, i in number.items()
        }
        held = {s: [number[key] for key in taken if s in claims[key]] for s in drawn[-1].bases}
        held = {s: claiming for s, claiming in held.items() if claiming}
        effects = [(sign, number[key]) for sign, key in zip(signs, in_question, strict=True)]
        mending = [number[key] for key in pool if key in self.mends]
        result = []
        for draw in drawn:
            general = sum([draw.general[number[key]] for key in taken])
            bases = {s: base + general for s, base in draw.bases.items()}
            for s, claiming in held.items():
                bases[s] += sum([draw.claimed[i] for i in claiming])
            of_pool = [[sign * kind[i] for sign, i in effects] for kind in (draw.general, draw.claimed)]
            of_pool[1] += [draw.claimed[i] for i in mending]
            result.append(Draw(bases, *map(tuple, of_pool)))
        return result


def _does_good(general: int, claimed: int) -> bool:
    """True if an edit with these effects helps on some samples and harms on none."""
    return general > 0 or (general == 0 and claimed > 0)


def lines(skill: Skill) -> tuple[str, ...]:
    """The lines of a text without blank lines, because removals may leave some."""
    return tuple(line.rstrip() for line in skill.text.splitlines() if line.strip())


def _stands(part: str, document: str) -> bool:
    """True if every line of the part stands in the document; later edits may stand between the lines."""
    return all(line.strip() in document for line in part.splitlines())


def _plain(text: str) -> str:
    """Without what inserting changes: line ends, and white space around."""
    return text.replace("\r\n", "\n").strip()
