"""The ledger: the effect of each rule that stands in a skill, by every rollout with and without it.

The effect of a rule is a column of the linear mixed model over all judged texts. Its screened effect is the prior;
every rollout of a judged text is evidence. A screen measures a rule on the samples that the rule claims. So the error
of the screens is estimated together with the effects: screens that missed the effect of a team badly do not separate
its rules well. The texts of the screens themselves stay out of the model, because their samples were chosen for the
edits. They count if the same sample was seen with and without a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from skilltune.edits import Op, Report
from skilltune.finish.records import Start
from skilltune.gate.priors import DEVIATION, EM_ROUNDS, LEVEL, MISSES, MOVED, SHRINK, WIDE
from skilltune.journal.run import Run
from skilltune.rollout import Rollout, Score
from skilltune.skill import Skill
from skilltune.stats import normal_quantile
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.verdict import Screen, VerdictRecord


@dataclass(frozen=True, slots=True)
class Together:
    """Rules, by their keys, that the data cannot separate: no screen measured them, and every judged text holds all or
    none of them. `effect` and `sd` are those of all of them together, in scores."""

    keys: tuple[str, ...]
    effect: float
    sd: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the posterior."""
        return _interval(self.effect, self.sd)


@dataclass(frozen=True, slots=True)
class Rule:
    """An edit that stands in a skill: its `text` (of a deletion the text that is gone), the reason for it, and the step
    and version that brought it.

    `effect` and `sd` are its posterior in scores. `known` train samples were seen with and without it under otherwise
    the same rules; `fixed` and `broken` count those that it fixed and broke. If `together` is set, the data cannot
    separate it from the other rules there: its own effect is only a share of theirs.
    """

    key: str
    op: Op
    text: str
    removed: str
    why: str
    evidence: tuple[str, ...]
    step: int
    version: int
    effect: float
    sd: float
    fixed: int
    broken: int
    known: int
    together: Together | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the posterior."""
        return _interval(self.effect, self.sd)


@dataclass(frozen=True, slots=True)
class Seen:
    """The evidence: rollouts by (skill hash, sample), and how to read a text's body, squeezed, by its hash."""

    scores: Mapping[tuple[str, str], Sequence[float]]
    text_of: Callable[[str], str]

    @classmethod
    def of(cls, rollouts: Iterable[Rollout], metric: Callable[[Score], float], run: Run) -> Seen:
        scores: dict[tuple[str, str], list[float]] = {}
        for rollout in sorted(rollouts, key=lambda r: (r.skill, r.sample, r.attempt)):
            if rollout.score is not None:
                scores.setdefault((rollout.skill, rollout.sample), []).append(metric(rollout.score))

        @cache
        def text_of(hash: str) -> str:
            return _squeeze(Skill((run.blob(hash) or b"").decode("utf-8", "surrogatepass")).body)

        return cls(scores, text_of)


@dataclass(frozen=True, slots=True)
class _Change:
    """An applied edit of an accepted verdict, as it was recorded."""

    verdict: VerdictRecord
    report: Report
    ablation: Screen | None = None  # the last one that measured edits of the best skill

    @property
    def key(self) -> str:
        return self.report.edit.key

    @property
    def claims(self) -> frozenset[str]:
        """The samples that it quotes."""
        return frozenset(citation.sample for citation in self.report.edit.evidence)

    @property
    def predicted(self) -> tuple[float, float] | None:
        """Its effect by the ablation or else by its screen, with the standard deviation; None without both."""
        if self.ablation and (row := self.ablation.row(self.key)):
            return row.effect, row.sd
        row = self.verdict.screen.row(self.key) if self.verdict.screen else None
        return (SHRINK * row.effect, row.sd) if row else None

    def takes_back(self, earlier: Iterable[_Change]) -> bool:
        """True if it undoes an earlier change; then neither of the two stands."""
        own = _squeeze(self.report.removed), _squeeze(self.report.inserted)
        return any(own == (_squeeze(c.report.inserted), _squeeze(c.report.removed)) for c in earlier)

    def stands_in(self, text: str) -> bool:
        """True if a squeezed text holds all lines that the edit brought. If the edit brought nothing new: true if the
        text does not hold what the edit removed."""
        removed = _squeeze(self.report.removed)
        new = [line for line in map(_squeeze, self.report.inserted.splitlines()) if line not in removed]
        return all(line in text for line in new) if new else removed not in text


def ledger(
    verdicts: Sequence[VerdictRecord],
    start: str,
    best: str,
    seen: Seen,
    train: Sequence[str],
    select: Sequence[str],
    repeat: float | None = None,
) -> list[Rule]:
    """The rules that stand in the skill with the hash `best`, in the order in which they came.

    `verdicts` are the recorded ones, `start` the hash of the input, `train` and `select` sample ids, `repeat` the
    measured variance of a repeated score, if it was. An edit that a later one rewrote or removed does not stand any
    more.
    """
    changes: dict[str, _Change] = {}
    ablation = next((verdict.screen for verdict in reversed(verdicts) if verdict.shortens and verdict.screen), None)
    for verdict in verdicts:
        if (verdict.accepted or verdict.candidate == best) and not verdict.shortens:
            applied = [_Change(verdict, report, ablation) for report in verdict.applied]
            changes |= {change.key: change for change in applied if not change.takes_back(changes.values())}
    standing = [change for change in changes.values() if change.stands_in(seen.text_of(best))]
    columns, posterior = _fitted(verdicts, start, list(changes.values()), seen, {*train, *select}, repeat)
    matched = _matched(standing, seen, frozenset(train))
    mixed = _together([change for change in standing if change.predicted is None], columns, posterior)
    rules = []
    for change in standing:
        report, moved = change.report, matched[change.key]
        effect, sd = posterior.contrast({change.key: 1.0})
        rules.append(
            Rule(
                key=change.key,
                op=report.edit.op if report.inserted.strip() else "delete",
                text=report.inserted or report.removed,
                removed=report.removed,
                why=report.edit.why,
                evidence=tuple(dict.fromkeys(citation.sample for citation in report.edit.evidence)),
                step=change.verdict.step,
                version=change.verdict.version,
                effect=effect,
                sd=sd,
                fixed=sum(difference >= MOVED for difference in moved),
                broken=sum(difference <= -MOVED for difference in moved),
                known=len(moved),
                together=mixed.get(change.key),
            )
        )
    return rules


def ledger_of(run: Run, rollouts: Iterable[Rollout], metric: Callable[[Score], float], best: str) -> list[Rule]:
    """The ledger of a skill of a run by these rollouts and the verdicts in its journal."""
    verdicts = [VerdictRecord.from_json(data) for _, _, data in run.events("verdict")]
    (_, _, data), *_ = run.events("start")
    split = (run.recall("split") or [{"train": [], "select": []}])[0]
    repeat = next((data["sd"] ** 2 for _, _, data in run.events("calibration")), None)
    seen = Seen.of(rollouts, metric, run)
    return ledger(verdicts, Start.from_json(data).skill, best, seen, split["train"], split["select"], repeat)


def _fitted(
    verdicts: Sequence[VerdictRecord],
    start: str,
    changes: Sequence[_Change],
    seen: Seen,
    samples: set[str],
    repeat: float | None,
) -> tuple[dict[str, dict[str, float]], Posterior]:
    """The columns of each judged text that was seen on these samples, and the posterior of the effects."""
    rejected = {v.candidate for v in verdicts if v.candidate and not v.accepted}
    judged = rejected | {start} | {v.skill for v in verdicts}
    predicted = {change.key: change.predicted for change in changes}
    screened = {key: found for key, found in predicted.items() if found}
    prior = {"level": LEVEL} | dict.fromkeys(predicted, WIDE)
    columns = {}
    for text in sorted(judged):
        held = [change.key for change in changes if change.stands_in(seen.text_of(text))]
        own = [text] if text in rejected else []  # what else such a candidate changed
        prior |= dict.fromkeys(own, WIDE)
        columns[text] = dict.fromkeys(("level", *held, *own), 1.0)
    observations = [
        Observation(sample, columns[text], score)
        for (text, sample), scores in seen.scores.items()
        if text in columns and sample in samples
        for score in scores
    ]

    def fitted(deviation: float) -> Posterior:
        believed = {key: (effect, math.hypot(sd, deviation)) for key, (effect, sd) in screened.items()}
        return fit(observations, prior | believed, repeat)

    deviation = DEVIATION
    for _ in range(EM_ROUNDS if screened else 0):
        deviation = _deviation(screened, fitted(deviation), deviation)
    tried = {text for text, sample in seen.scores if sample in samples}
    return {text: held for text, held in columns.items() if text in tried}, fitted(deviation)


def _deviation(predicted: Mapping[str, tuple[float, float]], posterior: Posterior, last: float) -> float:
    """The standard deviation of the difference between effects and their screens, without the screens' own noise, after
    one more EM round (Dempster, Laird & Rubin 1977)."""
    squares = MISSES * DEVIATION**2
    for key, (effect, sd) in predicted.items():
        middle, spread = posterior.contrast({key: 1.0})
        share = last**2 / (last**2 + sd**2)  # of a miss that is not noise
        squares += share**2 * ((middle - effect) ** 2 + spread**2) + share * sd**2
    return math.sqrt(squares / (MISSES + len(predicted)))


def _together(
    changes: Sequence[_Change], columns: Mapping[str, Mapping[str, float]], posterior: Posterior
) -> dict[str, Together]:
    """Those of the changes, by key, that no text holds without the others of their group."""
    groups: dict[frozenset[str], list[str]] = {}
    for change in changes:
        groups.setdefault(frozenset(t for t, held in columns.items() if change.key in held), []).append(change.key)
    found = [
        Together(tuple(keys), *posterior.contrast(dict.fromkeys(keys, 1.0))) for keys in groups.values() if keys[1:]
    ]
    return {key: together for together in found for key in together.keys}


def _matched(standing: Sequence[_Change], seen: Seen, train: frozenset[str]) -> dict[str, list[float]]:
    """For each rule the change in mean score of every sample that was seen with and without it, the other standing
    rules being the same; of a sample that the rule claims, those being the same that claim it too."""
    held: dict[str, frozenset[str]] = {}
    for text, _ in seen.scores:
        if text not in held:
            held[text] = frozenset(change.key for change in standing if change.stands_in(seen.text_of(text)))
    by_sample: dict[str, list[tuple[frozenset[str], Sequence[float]]]] = {}
    for (text, sample), scores in seen.scores.items():
        if sample in train:
            by_sample.setdefault(sample, []).append((held[text], scores))
    moved: dict[str, list[float]] = {}
    for change in standing:
        moved[change.key] = found = []
        for sample, known in by_sample.items():
            difference = _difference(change.key, known)
            if difference is None and sample in change.claims:
                rivals = {other.key for other in standing if sample in other.claims}
                difference = _difference(change.key, [(rules & rivals, scores) for rules, scores in known])
            if difference is not None:
                found.append(difference)
    return moved


def _difference(key: str, known: Sequence[tuple[frozenset[str], Sequence[float]]]) -> float | None:
    """Mean score with a rule less that without it, over groups with the same other rules; None if there are none."""
    groups: dict[frozenset[str], list[float]] = {}
    for rules, scores in known:
        groups.setdefault(rules, []).extend(scores)
    pairs = [(groups[rules - {key}], groups[rules]) for rules in groups if key in rules and rules - {key} in groups]
    return fmean(fmean(after) - fmean(before) for before, after in pairs) if pairs else None


def _interval(effect: float, sd: float) -> tuple[float, float]:
    half = normal_quantile(0.975) * sd
    return effect - half, effect + half


def _squeeze(text: str) -> str:
    return " ".join(text.split())
