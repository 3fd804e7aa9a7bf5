"""The verdict of a gate: its figures, and their JSON form in the journal.

`Verdict` is what a gate returns; it holds skills. `VerdictRecord` is what a reader of the journal gets; it holds their
hashes. Both have the same typed figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from skilltune.edits import Edit, Report
from skilltune.skill import Skill

Decision = Literal["accepted", "given up", "undecided", "vetoed", ""]
"""The end of a race; "" while it goes on."""
ACCEPTED: Literal["accepted"] = "accepted"
GIVEN_UP: Literal["given up"] = "given up"
UNDECIDED: Literal["undecided"] = "undecided"
VETOED: Literal["vetoed"] = "vetoed"
"""By a further target, after the race accepted."""
ABLATED, COMPACTED = "ablation", "compact"
"""The rules of the two verdicts that come after the steps of a training."""
FAILED = "given up: not shown to be better"
"""The optimizer hears only this about a candidate that was not accepted."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An edit that was judged and not kept, and the gate's reason, which the optimizer sees."""

    edit: Edit
    reason: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The check of an accepted candidate on the further `target`: the mean scores without and with the change on `n`
    pairs of `select` rollouts, and `harm`, which is P(loss > `margin`). None: nothing was scored. `against` is the
    skill that the candidate was compared with: the incumbent, or the input if that comparison is the worse one."""

    target: str
    before: float | None
    after: float | None
    n: int
    harm: float
    margin: float
    vetoed: bool
    against: str = "incumbent"

    def __str__(self) -> str:
        """ "vetoed by openai/x: 80.0 % → 60.0 % on 40 select rollouts, P(loss > 5 points) = 0.98"."""
        said = "vetoed by" if self.vetoed else "harmless on"
        bar = " of the input" if self.against == "input" else ""
        return (
            f"{said} {self.target}: {percent(self.before)}{bar} → {percent(self.after)} on {self.n} select rollouts, "
            f"P(loss > {100 * self.margin:.3g} points) = {self.harm:.2f}"
        )


# -- the figures of each rule


@dataclass(frozen=True, slots=True)
class Estimate:
    """The last estimate of a candidate: its gain and the standard deviation of the gain, in scores, and P(it is
    better). None: the rule has no such figure."""

    gain: float | None = None
    sd: float | None = None
    better: float | None = None


@dataclass(frozen=True, slots=True)
class Interim:
    """An interim analysis of a race, after `n` `select` rollouts of the candidate.

    `before` and `after` are (mean, sd) of the level of the incumbent and of the candidate. `gain` and `sd` are the
    posterior of the candidate's gain. All are in scores. `better` is P(gain > price of the added length) from all
    evidence. `harm` is P(loss > regression bound) from `select` alone, so that a screen on train cannot outvote the
    samples that were held out.
    """

    n: int
    before: tuple[float, float]
    after: tuple[float, float]
    gain: float
    sd: float
    better: float
    harm: float


@dataclass(frozen=True, slots=True)
class BettingInterim:
    """An interim analysis of a betting race, after `n` `select` rollouts of the candidate.

    `bets` were made in pass number `draw`; `gain` is their mean, in scores. `wealth` is the gamblers' wealth (1 at the
    start) and `most` its maximum. `hope` is P(the wealth reaches the bar) if the trend goes on.
    """

    n: int
    draw: int
    bets: int
    gain: float
    wealth: float
    most: float
    hope: float


@dataclass(frozen=True, slots=True)
class DropInterim:
    """An interim analysis of the race without some edits, after `n` samples: the gain by leaving them out, its sd (both
    in scores), and P(the loss is smaller than the margin)."""

    n: int
    gain: float
    sd: float
    safe: float


@dataclass(frozen=True, slots=True)
class RaceFigures:
    """A race: the prior (mean, sd) of the gain, the interim analyses, P(better) `needed` at the last one, the
    `unscored` pairs of rollouts, and the `price` of the added length. Gains and prices are in scores."""

    decision: str
    prior: tuple[float, float]
    interims: tuple[Interim, ...]
    unscored: int
    needed: float
    price: float
    rule: ClassVar[str] = "race"

    @property
    def estimate(self) -> Estimate:
        last = self.interims[-1]
        return Estimate(last.gain, last.sd, last.better)

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "decision": self.decision,
            "prior": self.prior,
            "looks": _rows(self.interims),
            "unscored": self.unscored,
            "needed": self.needed,
            "price": self.price,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RaceFigures:
        interims = tuple(
            Interim(**{**_only(Interim, look), "before": _pair(look["before"]), "after": _pair(look["after"])})
            for look in data["looks"]
        )
        return cls(
            data["decision"], _pair(data["prior"]), interims, data["unscored"], data["needed"], data.get("price", 0.0)
        )


@dataclass(frozen=True, slots=True)
class StrictFigures:
    """The published rule: the mean scores before and after, on `n` samples."""

    before: float | None
    after: float | None
    n: int
    rule: ClassVar[str] = "strict"

    @property
    def estimate(self) -> Estimate:
        return Estimate()  # the rule compares two means and estimates nothing

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "before": self.before, "after": self.after, "n": self.n}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StrictFigures:
        return cls(data["before"], data["after"], data["n"])


@dataclass(frozen=True, slots=True)
class EProcessFigures:
    """A betting race: the `number` of the candidate, its `level` (the error that it may use), and the `bar` that the
    wealth must reach."""

    decision: str
    number: int
    level: float
    bar: float
    interims: tuple[BettingInterim, ...]
    rule: ClassVar[str] = "eprocess"

    @property
    def estimate(self) -> Estimate:
        return Estimate(gain=self.interims[-1].gain)

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "decision": self.decision,
            "number": self.number,
            "level": self.level,
            "bar": self.bar,
            "looks": _rows(self.interims),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EProcessFigures:
        interims = tuple(BettingInterim(**_only(BettingInterim, look)) for look in data["looks"])
        return cls(data["decision"], data["number"], data["level"], data["bar"], interims)


@dataclass(frozen=True, slots=True)
class AblationFigures:
    """The race of an ablation: the keys of the removals, the gain that the rollouts on train `predicted` (mean, sd),
    and the margin that may be lost. Gain and margin are in scores. Without an edit to leave out there was no race.

    `rule` is "ablation" at the end of a training, and "compact" if `skilltune compact` asked for it.
    """

    edits: tuple[str, ...]
    predicted: tuple[float, float]
    margin: float
    interims: tuple[DropInterim, ...]
    rule: str = ABLATED

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.interims[-1].gain, self.interims[-1].sd) if self.interims else Estimate()

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "edits": list(self.edits),
            "predicted": self.predicted,
            "margin": self.margin,
            "looks": _rows(self.interims),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AblationFigures:
        interims = tuple(DropInterim(**_only(DropInterim, look)) for look in data["looks"])
        return cls(tuple(data["edits"]), _pair(data["predicted"]), data["margin"], interims, data["rule"])


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """The mapping of a plug-in gate. Empty if no rule was applied.

    A gate may state `gain`, `sd` and `better` in the mapping, or in the last of its `looks`.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        return str(self.values.get("rule", ""))

    @property
    def estimate(self) -> Estimate:
        looks = self.values.get("looks")
        last = looks[-1] if isinstance(looks, Sequence) and looks else self.values
        if not isinstance(last, Mapping):
            return Estimate()
        return Estimate(last.get("gain"), last.get("sd"), last.get("better"))

    def to_json(self) -> dict[str, Any]:
        return dict(self.values)


Figures = RaceFigures | StrictFigures | EProcessFigures | AblationFigures | OwnFigures
"""The figures that a verdict rests on. `rule` names the rule of the gate, "" if no rule was applied."""


@dataclass(frozen=True, slots=True)
class ScreenRow:
    """One edit of the pool: its key, its text, its effect on train and the sd of the effect, in scores. An `sd` of 0
    means that no screen measured it."""

    key: str
    text: str | None
    effect: float
    sd: float


@dataclass(frozen=True, slots=True)
class Screen:
    """The pool of a step: one row per edit, and the places of the edits that were raced (`chosen`)."""

    rows: tuple[ScreenRow, ...]
    chosen: tuple[int, ...] = ()

    @property
    def measured(self) -> bool:
        """True if a screen measured an edit of the pool."""
        return any(row.sd for row in self.rows)

    def row(self, key: str) -> ScreenRow | None:
        """The measured effect of the edit with this key, None if no screen measured it."""
        return next((row for row in self.rows if row.key == key and row.sd), None)

    def raced(self, key: str) -> str:
        """The reason why an edit of a rejected candidate was not kept, "" if the edit was not raced."""
        return raced(len(self.chosen)) if any(self.rows[place].key == key for place in self.chosen) else ""

    def to_json(self) -> dict[str, Any]:
        return {"screen": _rows(self.rows), "chosen": list(self.chosen)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Screen:
        rows = tuple(ScreenRow(row["key"], row.get("text"), row["effect"], row["sd"]) for row in data["screen"])
        return cls(rows, tuple(place for place in data.get("chosen", ()) if place < len(rows)))


def raced(edits: int) -> str:
    """The reason of each of so many edits that were raced together and not accepted."""
    return f"raced{' with others' if edits > 1 else ''}: {FAILED}"


_RULES = {
    RaceFigures.rule: RaceFigures,
    StrictFigures.rule: StrictFigures,
    EProcessFigures.rule: EProcessFigures,
    ABLATED: AblationFigures,
    COMPACTED: AblationFigures,
}


def figures_from_json(data: Mapping[str, Any]) -> tuple[Figures, Screen | None]:
    """The figures and the screen in the `numbers` of a recorded verdict.

    What does not have the shape of its rule (a plug-in gate's own figures, or those of another version of skilltune)
    stays a mapping.
    """
    screen, rest = None, data
    if "screen" in data:
        try:
            screen = Screen.from_json(data)
            rest = {key: value for key, value in data.items() if key not in ("screen", "chosen")}
        except (KeyError, TypeError, AttributeError):
            screen = None
    rule = _RULES.get(str(rest.get("rule")))
    if rule is None or rest.get("looks") == []:
        return OwnFigures(rest), screen
    try:
        return rule.from_json(rest), screen
    except (KeyError, TypeError, ValueError):
        return OwnFigures(rest), screen


# -- the verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's decision, and the evidence for it.

    `skill` is the incumbent from now on. `score` is its level on `select` as the gate estimates it, and `score_sd` the
    standard deviation of the estimate (None: nothing was measured). The version was selected for a high score, so the
    score proves nothing.
    `before` and `after` are the means of incumbent and candidate over the same samples, `differences` the candidate's
    score minus the incumbent's by sample. `reports` has the fate of each edit of the candidate, `rejected` the edits
    that were judged and not kept (the optimizer sees them), `numbers` the figures of the rule. A plug-in gate may give
    any mapping that JSON can hold as `numbers`. `screen` is the pool from which the candidate was chosen.
    `elsewhere` has the checks on further targets, of a candidate that would have been accepted without them.
    """

    skill: Skill
    accepted: bool
    reason: str
    score: float | None
    score_sd: float | None = None
    candidate: Skill | None = None
    before: float | None = None
    after: float | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    numbers: Figures | Mapping[str, Any] = field(default_factory=dict)
    screen: Screen | None = None
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def vetoed_by(self) -> str:
        """The further target that vetoed the candidate, "" if none did."""
        return next((check.target for check in self.elsewhere if check.vetoed), "")

    @property
    def figures(self) -> Figures:
        """`numbers`, with the mapping of a plug-in gate as `OwnFigures`."""
        return OwnFigures(self.numbers) if isinstance(self.numbers, Mapping) else self.numbers

    @property
    def outcome(self) -> str:
        """The outcome in words: accepted, rejected, or the reason why there was no candidate."""
        judged = "accepted" if self.accepted else "a candidate was rejected"
        return judged if self.candidate is not None else self.reason

    def to_json(self) -> dict[str, Any]:
        """The evidence as JSON data, with hashes for skills."""
        return {
            "accepted": self.accepted,
            "reason": self.reason,
            "score": self.score,
            "score_sd": self.score_sd,
            "skill": self.skill.hash,
            "candidate": self.candidate.hash if self.candidate else None,
            "before": self.before,
            "after": self.after,
            "differences": dict(self.differences),
            "edits": [report.to_json() for report in self.reports],
            "rejected": [{"edit": entry.edit.to_json(), "reason": entry.reason} for entry in self.rejected],
            "numbers": {**self.figures.to_json(), **(self.screen.to_json() if self.screen else {})},
            **({"elsewhere": _rows(self.elsewhere)} if self.elsewhere else {}),
        }


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A verdict as the journal keeps it: hashes for skills, and the step at which it was made.

    `version` is the number of the incumbent from now on, `lr` the number of edits that were allowed. The other fields
    are those of `Verdict`.
    """

    step: int
    version: int
    accepted: bool
    skill: str
    candidate: str | None = None
    epoch: int = 0
    lr: int = 0
    reason: str = ""
    score: float | None = None
    score_sd: float | None = None
    before: float | None = None
    after: float | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    figures: Figures = field(default_factory=OwnFigures)
    screen: Screen | None = None
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def vetoed_by(self) -> str:
        """The further target that vetoed the candidate, "" if none did."""
        return next((check.target for check in self.elsewhere if check.vetoed), "")

    @property
    def applied(self) -> tuple[Report, ...]:
        """The reports of the edits that the candidate holds."""
        return tuple(report for report in self.reports if report.applied)

    @property
    def compacts(self) -> bool:
        """True if the verdict is that of `skilltune compact` on a finished run."""
        return self.figures.rule == COMPACTED

    @property
    def shortens(self) -> bool:
        """True if the verdict leaves out edits after the last step: the ablation of a training, or a compaction."""
        return self.figures.rule in (ABLATED, COMPACTED)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VerdictRecord:
        """The record of a `verdict` event. Raises `KeyError` if step, version, decision or skill are missing."""
        figures, screen = figures_from_json(data.get("numbers", {}))
        rejected = (Rejected(Edit.from_json(entry["edit"]), entry["reason"]) for entry in data.get("rejected", ()))
        return cls(
            step=data["step"],
            version=data["version"],
            accepted=data["accepted"],
            skill=data["skill"],
            candidate=data.get("candidate"),
            epoch=data.get("epoch", 0),
            lr=data.get("lr", 0),
            reason=data.get("reason", ""),
            score=data.get("score"),
            score_sd=data.get("score_sd"),
            before=data.get("before"),
            after=data.get("after"),
            differences=data.get("differences", {}),
            reports=tuple(map(Report.from_json, data.get("edits", ()))),
            rejected=tuple(rejected),
            figures=figures,
            screen=screen,
            elsewhere=tuple(Elsewhere(**_only(Elsewhere, check)) for check in data.get("elsewhere", ())),
        )


def percent(score: float | None) -> str:
    """A score for a reader: 0.125 → "12.5 %"."""
    return "—" if score is None else f"{100 * score:.1f} %"


# -- JSON


def _rows(found: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(row) for row in found]


def _only(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass in an object. Raises `KeyError` if one is missing."""
    return {part.name: data[part.name] for part in fields(kind)}


def _pair(values: Sequence[float]) -> tuple[float, float]:
    first, second = values
    return first, second
