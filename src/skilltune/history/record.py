"""A run as its journal tells it, put in order for a reader: versions, verdicts, rollouts by sample, spend."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from skilltune import stats
from skilltune.finish.certify import Certificate
from skilltune.finish.ledger import COMPACT
from skilltune.journal.run import FAILED, Run
from skilltune.result import claim
from skilltune.rollout import Rollout, Score, rollout_from_json
from skilltune.skill import Skill
from skilltune.usage import Usage

SPLITS = ("test", "select", "train")
PHASES = {"train": "learning (train)", "select": "gate (select)", "test": "certificate (test)"}
Z95 = stats.normal_quantile(0.975)


@dataclass(frozen=True, slots=True)
class Version:
    """An accepted skill; number 0 is the input. `score` and `sd` are the gate's estimate on `select`."""

    number: int
    hash: str
    text: str | None  # None where the journal no longer holds it
    score: float | None
    sd: float | None
    reason: str
    step: int | None = None
    edits: int = 0
    revived: bool = False  # its race rejected it, and it was chosen at the end by all evidence

    @property
    def tokens(self) -> int | None:
        return None if self.text is None else Skill(self.text).tokens

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the estimate."""
        if self.score is None or self.sd is None:
            return None
        return max(0.0, self.score - Z95 * self.sd), min(1.0, self.score + Z95 * self.sd)


@dataclass(frozen=True, slots=True)
class Spend:
    """What one role paid in one phase."""

    role: str
    phase: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Measured:
    """The mean score over `n` samples, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Draw:
    """One rollout: where the journal keeps it, and its score (None: not scored). A run may hold more transcripts than
    memory does, so they are read one by one when they are shown."""

    key: str
    attempt: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """All that a report shows, while its run is open. `draws` are the rollouts of the versions, by skill hash and
    sample; `others` counts those of texts that were only tried. `splits` are the sample ids of each split."""

    run: Run
    name: str
    config: Mapping[str, Any]
    splits: Mapping[str, Sequence[str]]
    versions: tuple[Version, ...]
    verdicts: tuple[Mapping[str, Any], ...]
    finish: Mapping[str, Any] | None
    draws: Mapping[tuple[str, str], Sequence[Draw]]
    others: int
    spend: tuple[Spend, ...]
    program: str  # skilltune's version, "" where the run did not record it

    @classmethod
    def of(cls, run: Run) -> Record:
        versions = accepted_versions(run)
        finished = run.events("finish")
        finish = finished[-1][2] if finished else None
        splits = (run.recall("split") or ({},))[0]
        draws, others, by_phase = _draws(run, {version.hash for version in versions}, splits)
        program = run.recall("input version")
        return cls(
            run=run,
            name=finish["name"] if finish else run.folder.resolve().name,
            config=run.config or {},
            splits={name: splits.get(name, []) for name in SPLITS},
            versions=versions,
            verdicts=tuple(event for _, _, event in run.events("verdict")),
            finish=finish,
            draws=draws,
            others=others,
            spend=(*(Spend("target", phase, usage) for phase, usage in by_phase.items()), *_other_spend(run)),
            program=program[0] if program else "",
        )

    @property
    def start(self) -> Version | None:
        return self.versions[0] if self.versions else None

    @property
    def best(self) -> Version | None:
        """What ships; before the end, the last accepted version."""
        if self.finish is None:
            return self.versions[-1] if self.versions else None
        return next((version for version in self.versions if version.hash == self.finish["best"]), None)

    @property
    def certificate(self) -> Certificate | None:
        return Certificate(**self.finish["certificate"]) if self.finish and self.finish["certificate"] else None

    @property
    def claim(self) -> str:
        """One sentence that says what may be claimed, and no more."""
        if self.finish is None:
            return "Not finished: it is still running, or was stopped. The same `skilltune train` command goes on."
        why = "there is no test split"
        if self.splits["test"]:
            stopped = self.finish["stopped"]
            why = "the run was stopped before it" if stopped else "no test sample was scored on both sides"
        changed = self.finish["best"] != self.finish["start"]
        revived = self.best is not None and self.best.revived
        return claim(changed, self.certificate, bool(self.finish["stopped"]), why, revived=revived)

    def rollouts(self, skill: str, sample: str) -> list[Rollout]:
        """The transcripts of a sample under a version, in the order of the draws."""
        found = (self.run.recall(draw.key) for draw in self.draws[skill, sample])
        return [rollout_from_json(known[0]) for known in found if known]

    def score(self, version: Version, sample: str) -> float | None:
        """The mean over the version's draws of a sample, None where it was not seen."""
        scores = [draw.score for draw in self.draws.get((version.hash, sample), ()) if draw.score is not None]
        return fmean(scores) if scores else None

    def measured(self, version: Version, split: str) -> Measured | None:
        """The plain mean over the samples of a split on which the version was seen; None for none."""
        found = [score for sample in self.splits[split] if (score := self.score(version, sample)) is not None]
        if not found:
            return None
        middle = fmean(found)
        low, high = stats.score_interval(found)
        return Measured(middle, low, high, len(found))

    def change(self, sample: str) -> float | None:
        """The sample's score under what ships minus under the input, None where one was not seen."""
        if self.start is None or self.best is None:
            return None
        before, after = self.score(self.start, sample), self.score(self.best, sample)
        return None if before is None or after is None else after - before


def accepted_versions(run: Run) -> tuple[Version, ...]:
    """The input and every accepted skill, in order, and a rejected one that was chosen at the end of the training."""
    versions: dict[int, Version] = {}
    revived: int | None = None
    for _, type, event in run.events():
        if type == "start":
            versions.setdefault(0, _version(run, 0, event, "the input"))
        elif type == "verdict":
            if revived is not None and event["numbers"].get("rule") != COMPACT:  # the run went on: the choice is void
                del versions[revived]
                revived = None
            if event["accepted"]:
                versions[event["version"]] = _version(run, event["version"], event, event["reason"])
        elif type == "reselection" and (number := event.get("version")) is not None:
            revived = number
            unknown = {"skill": event["best"], "score": None, "score_sd": None}
            versions[number] = replace(
                _version(run, number, unknown, f"chosen at the end: {event['reason']}"), revived=True
            )
    return tuple(version for _, version in sorted(versions.items()))


def _version(run: Run, number: int, event: Mapping[str, Any], reason: str) -> Version:
    raw = run.blob(event["skill"])
    return Version(
        number=number,
        hash=event["skill"],
        text=None if raw is None else raw.decode("utf-8", "surrogatepass"),
        score=event["score"],
        sd=event["score_sd"],
        reason=reason,
        step=event.get("step"),
        edits=sum(edit["status"] == "applied" for edit in event.get("edits", ())),
    )


def _draws(
    run: Run, versions: set[str], splits: Mapping[str, Sequence[str]]
) -> tuple[dict[tuple[str, str], list[Draw]], int, dict[str, Usage]]:
    """The versions' rollouts by (skill, sample), how many others there are, and the spend of all by phase."""
    gate = (run.config or {}).get("gate", {})
    split_of = {sample: name for name, part in splits.items() for sample in part}
    found: dict[tuple[str, str], list[Draw]] = defaultdict(list)
    spend = dict.fromkeys(PHASES.values(), Usage())
    others = 0
    for key, value, usage in run.each_memo("rollout"):
        phase = PHASES.get(split_of.get(value["sample"], ""), "other samples")
        spend[phase] = spend.get(phase, Usage()) + usage
        if value["skill"] in versions:
            score = _compared(Score(**value["score"]), gate) if "score" in value else None
            found[value["skill"], value["sample"]].append(Draw(key, value["attempt"], score))
        else:
            others += 1
    for draws in found.values():
        draws.sort(key=lambda draw: draw.attempt)
    return dict(found), others, spend


def _compared(score: Score, gate: Mapping[str, Any]) -> float:
    """The number that the run compares (gate.metric)."""
    match gate.get("metric"):
        case "hard":
            return score.hard
        case "soft":
            return score.partial
        case "mixed":
            return gate["weight"] * score.hard + (1 - gate["weight"]) * score.partial
        case _:
            return score.value


def _other_spend(run: Run) -> list[Spend]:
    """Every paid kind but rollouts; failed attempts, which may have been billed, by the role that made them."""
    rows = [
        Spend(kind, "answers without a score" if kind == "unscored" else "all", usage)
        for kind, usage in sorted(run.usage.items())
        if kind not in ("rollout", FAILED)
    ]
    failed: dict[tuple[str, bool], Usage] = {}
    for _, value, usage in run.each_memo(FAILED):
        which = value["role"], bool(value.get("estimated"))
        failed[which] = failed.get(which, Usage()) + usage
    names = {False: "failed attempts", True: "attempts without an answer: cost unknown, estimated"}
    return rows + [Spend(role, names[estimated], usage) for (role, estimated), usage in sorted(failed.items())]
