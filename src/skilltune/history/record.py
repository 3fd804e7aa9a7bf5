"""The one reader of a run: what its journal says, typed and in order.

Terminal, page, card and exports show a run from here. All but the rollouts is read at once; the rollouts are read when
they are first asked for, because there may be many.
"""

from __future__ import annotations

import json
import math
import shlex
from bisect import insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from skilltune import stats
from skilltune.config import GateConfig, stored_config
from skilltune.errors import Outcome, RunError, UsageError
from skilltune.finish.certify import Certificate
from skilltune.finish.records import Finish, Start
from skilltune.history.left_out import left_out
from skilltune.history.usable import Share, usable_proposals
from skilltune.journal.run import EXCHANGE, FAILED, Run, by_work, owner_of
from skilltune.result import claim
from skilltune.rollout import Rollout, Score, rollout_from_json
from skilltune.rollouts.further import kind_of, measured, pinned_further
from skilltune.rollouts.inputs import KEPT, own_keys
from skilltune.skill import Skill
from skilltune.stopping import Ending
from skilltune.usage import Usage
from skilltune.verdict import VerdictRecord

SPLITS = ("test", "select", "train")
PHASES = {"train": "learning (train)", "select": "gate (select)", "test": "certificate (test)"}
ROOT = "root"  # event: the folder at which relative paths of the configuration start
Z95 = stats.normal_quantile(0.975)


@dataclass(frozen=True, slots=True)
class Version:
    """An accepted skill; number 0 is the input. `score` and `sd` are the gate's estimate on `select`. `revived`: the
    race rejected it, and it was chosen at the end from all evidence."""

    number: int
    hash: str
    text: str | None  # None: the journal no longer holds it
    score: float | None
    sd: float | None
    reason: str
    step: int | None = None
    edits: int = 0
    revived: bool = False

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
    """The cost of one role in one phase."""

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
    """One rollout: its key in the journal, its outcome, and its score (None: not scored). All transcripts may not fit
    into memory, so each is read when it is shown."""

    key: str
    attempt: int
    outcome: Outcome
    score: float | None


@dataclass(slots=True)
class Rollouts:
    """The rollouts of the run's target, without their transcripts. `read` adds those that were stored since the last
    call, so a reader that follows a run reads each one once. Rollouts that a fork copied from another target or scorer
    are left out.

    `draws` are in the order of the attempts, by skill hash and sample. `spend` is their cost by phase. `offered` and
    `loaded` count the rollouts in which the skill was offered and loaded.
    """

    draws: dict[tuple[str, str], list[Draw]] = field(default_factory=dict)
    spend: dict[str, Usage] = field(default_factory=lambda: dict.fromkeys(PHASES.values(), Usage()))
    count: int = 0
    offered: int = 0
    loaded: int = 0
    until: float = -math.inf
    exchanged: float = -math.inf

    def read(self, run: Run, splits: Mapping[str, Sequence[str]]) -> Rollouts:
        gate, of_this_run = (run.config or {}).get("gate", {}), own_keys(run)
        phase_of = {sample: PHASES[name] for name, part in splits.items() for sample in part}
        fields = ("skill", "sample", "attempt", "outcome", "score", "offered", "loaded")
        paths = [f"$.{name}" for name in fields]

        def count(sample: str, usage: Usage) -> None:
            phase = phase_of.get(sample, "other samples")
            self.spend[phase] = self.spend.get(phase, Usage()) + usage

        with run.reading():
            # an agent's rollouts, and its attempts without a result, are paid exchange by exchange
            for t, _, usage, (sample, _) in run.parts(EXCHANGE, "$.sample", "$.role", after=self.exchanged):
                count(sample or "", usage)
                self.exchanged = t
            for t, key, usage, values in run.parts("rollout", *paths, after=self.until):
                skill, sample, attempt, outcome, score, offered, loaded = values
                count(sample, usage)
                self.until = t
                if not of_this_run(key, skill, sample, attempt):
                    continue
                value = _compared(Score(**score), gate) if score is not None else None
                insort(self.draws.setdefault((skill, sample), []), Draw(key, attempt, outcome, value), key=_attempt)
                self.count += 1
                self.offered, self.loaded = self.offered + bool(offered), self.loaded + bool(loaded)
        return self


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and its subject: the patch of a step, the slow update of an epoch (it comes second under the number of
    its step), or the edits that are left out after the training."""

    verdict: VerdictRecord
    kind: Literal["step", "slow", "compact", "ablation"]

    def to_json(self) -> dict[str, Any]:
        """The verdict in figures, in scores: the means `before` and `after` on `n` `select` samples, the estimated
        `gain` and its `sd`, and P(better). None: the gate has no such figure."""
        v, estimate = self.verdict, self.verdict.figures.estimate
        return {
            "step": v.step,
            "epoch": v.epoch,
            "version": v.version,
            "accepted": v.accepted,
            "score": v.score,
            "reason": v.reason,
            "kind": self.kind,
            "edits": len(v.applied),
            "before": v.before,
            "after": v.after,
            "n": len(v.differences),
            "gain": estimate.gain,
            "sd": estimate.sd,
            "p_better": estimate.better,
        }


@dataclass(frozen=True)
class Record:
    """A run as its journal tells it, also while the run is under way. Read it while its journal is open.

    `rows` are the input, every verdict in order and, if a rejected candidate was chosen at the end, that version.
    `versions` are the skills that were accepted or chosen, by number. `finish` is the end of the run: None before it,
    and after a stopped run has gone on. `ending` is the reason if the training ended before its last step, by the value
    of a further step, by patience or by the target score. `stopped` is the reason if the last process ended too early,
    and `larger` the limit that it needs to go on. `writer` is the process that has the run open now. `command` is the
    last command that trained it: its `line`, and the `folder` in which it was given. `gate` is None if the
    configuration was made by another version of skilltune. `estimated` is the number of failed attempts whose cost is
    unknown. `left_out` has the outcome and cause of the samples that were left out.
    `proposals` has the share of the optimizer's proposals that could be used, by form.
    """

    run: Run
    name: str
    config: Mapping[str, Any]
    gate: GateConfig | None
    splits: Mapping[str, Sequence[str]]
    rows: tuple[Version | Judged, ...]
    versions: tuple[Version, ...]
    finish: Finish | None
    ending: Ending | None
    controls: Mapping[str, Any] | None
    command: Mapping[str, str] | None
    stopped: str
    larger: str
    usage: Mapping[str, Usage]
    writer: int | None
    estimated: int
    program: str  # the version of skilltune, "" if the run did not record it
    root: str = ""  # the folder at which relative paths of the configuration start, "" if it was not recorded
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    proposals: Mapping[str, Share] = field(default_factory=dict)
    known: Rollouts | None = None

    @classmethod
    def of(cls, run: Run, known: Rollouts | None = None) -> Record:
        """`known` has rollouts that an earlier reader of the same run has read. It is brought up to date."""
        rows: list[Version | Judged] = []
        versions: dict[int, Version] = {}
        finish: Finish | None = None
        ending: Ending | None = None
        controls = command = None
        stopped = larger = root = ""
        for _, type, data in run.events():
            if type == "start" and not versions:
                start = Start.from_json(data)
                versions[0] = _version(run, 0, start.skill, "the input", score=start.score, sd=start.score_sd)
                rows.append(versions[0])
            elif type == "verdict":
                verdict = VerdictRecord.from_json(data)
                ending = ending if verdict.shortens else None
                if not verdict.shortens and (void := [v for v in versions.values() if v.revived]):
                    versions = {number: v for number, v in versions.items() if not v.revived}  # the run went on
                    rows = [row for row in rows if row not in void]
                rows.append(Judged(verdict, _kind(verdict, rows[-1] if rows else None)))
                if verdict.accepted:
                    versions[verdict.version] = _accepted(run, verdict)
                if not verdict.compacts:  # a compaction that has not ended changes nothing
                    finish, stopped, larger = None, "", ""
            elif type == "reselection" and (number := data.get("version")) is not None:
                why = f"chosen at the end: {data['reason']}"
                versions[number] = replace(_version(run, number, data["best"], why), revived=True)
                rows.append(versions[number])
            elif type == "stopping":
                ending = Ending.from_json(data)
            elif type == "controls":
                controls = data
            elif type == "command":
                command = data
            elif type == ROOT:
                root = data["folder"]
            elif type == "stopped" and (finish is None or finish.stopped):
                finish, stopped, larger = None, data["reason"], data.get("larger", "")
            elif type == "finish":
                finish = Finish.from_json(data)
                stopped, larger = finish.stopped, finish.larger
        splits = (run.recall("split") or ({},))[0]
        gate = None
        with suppress(RunError):  # the reasons of another version's verdicts are shown as they were recorded
            gate = stored_config(run.config, run.folder).gate if run.config else None
        program = run.recall("input version")
        return cls(
            run=run,
            name=finish.name if finish else run.folder.resolve().name,
            config=run.config or {},
            gate=gate,
            splits={name: splits.get(name, []) for name in SPLITS},
            rows=tuple(rows),
            versions=tuple(version for _, version in sorted(versions.items())),
            finish=finish,
            ending=ending,
            controls=controls,
            command=command,
            stopped=stopped,
            larger=larger,
            usage=dict(run.usage),
            writer=run.writer,
            estimated=run.estimated,
            program=program[0] if program else "",
            root=root,
            left_out=left_out(run),
            proposals=usable_proposals(run),
            known=known,
        )

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def verdicts(self) -> tuple[VerdictRecord, ...]:
        return tuple(row.verdict for row in self.rows if isinstance(row, Judged))

    @property
    def state(self) -> Literal["running", "stopped", "finished"]:
        finished = self.finish is not None and not self.finish.stopped
        return "running" if self.writer is not None else "finished" if finished else "stopped"

    @property
    def resume(self) -> str:
        """The command that goes on with a stopped run."""
        if self.command is None:
            return f"the same call or command that began it, with {self.folder} as its run"
        elsewhere = Path.cwd() != Path(self.command["folder"])
        line = affordable(self.command["line"], self.larger)
        return line + (f"   (in {self.command['folder']})" if elsewhere else "")

    @property
    def best_hash(self) -> str | None:
        """The hash of the skill that ships; before the end, of the last accepted version."""
        return self.finish.best if self.finish else self.versions[-1].hash if self.versions else None

    def hash_of(self, version: str) -> str:
        """The hash of a version by its number, or of "best". Raises `UsageError`."""
        if version == "best" and self.best_hash is not None:
            return self.best_hash
        hashes = {str(known.number): known.hash for known in self.versions}
        if version.isdecimal() and str(int(version)) in hashes:
            return hashes[str(int(version))]
        known = ", ".join(hashes) or "none yet"
        raise UsageError(f"no version {version!r} in {self.folder}; there are {known} and best")

    @property
    def files(self) -> list[Path]:
        """The files for a reader, those that exist."""
        places = [self.folder / "best_skill.md", *sorted(self.folder.glob("best/*")), self.folder / "card.md"]
        return [path for path in (*places, self.folder / "rollouts.jsonl") if path.exists()]

    def to_json(self) -> dict[str, Any]:
        """The record for programs, without the rollouts."""
        return {
            "run": str(self.folder),
            "state": self.state,
            "pid": self.writer,
            "finished": self.finish is not None,
            "exit_code": self.finish.exit_code if self.finish else None,
            "ending": self.ending.to_json() if self.ending else None,
            "stopped": self.stopped or None,
            "resume": self.resume if self.state == "stopped" else None,
            "best": self.best_hash,
            "versions": {str(version.number): version.hash for version in self.versions},
            "verdicts": [
                row.to_json()
                if isinstance(row, Judged)
                else {"version": row.number, "score": row.score, "reason": row.reason}
                for row in self.rows
            ],
            "certificate": self.finish.certificate.to_json() if self.finish and self.finish.certificate else None,
            "controls": self.controls,
            "left_out": self.left_out,
            "proposals": {form: asdict(share) for form, share in self.proposals.items()},
            "usage": {kind: asdict(usage) for kind, usage in self.usage.items()},
            "files": [str(path) for path in self.files],
        }

    # -- the rollouts

    @cached_property
    def seen(self) -> Rollouts:
        """All rollouts of the target. They are read when they are first asked for."""
        return (self.known or Rollouts()).read(self.run, self.splits)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All samples, split by split. The order never changes, so a place in it is a lasting name."""
        return tuple(dict.fromkeys(sample for name in SPLITS for sample in self.splits[name]))

    @cached_property
    def samples(self) -> Mapping[str, Mapping[str, Any]]:
        """The samples that the run has used so far, by id, as the journal stored them."""
        found: dict[str, Mapping[str, Any]] = {}
        for name in KEPT:
            found |= json.loads(self.run.blob(name) or "{}")
        return found

    @property
    def draws(self) -> Mapping[tuple[str, str], Sequence[Draw]]:
        """The rollouts by skill hash and sample, also of texts that were only tried."""
        return self.seen.draws

    @cached_property
    def spend(self) -> tuple[Spend, ...]:
        """The cost of each role in each phase."""
        targets = (Spend("target", phase, usage) for phase, usage in self.seen.spend.items())
        return (*targets, *_other_spend(self.run))

    @property
    def start(self) -> Version | None:
        return self.versions[0] if self.versions else None

    @property
    def best(self) -> Version | None:
        """The version that ships; before the end, the last accepted one."""
        if self.finish is None:
            return self.versions[-1] if self.versions else None
        return next((version for version in self.versions if version.hash == self.finish.best), None)

    @property
    def certificate(self) -> Certificate | None:
        return self.finish.certificate if self.finish else None

    @property
    def claim(self) -> str:
        """One sentence that says what may be claimed, and no more."""
        if self.finish is None:
            return "Not finished: it is still running, or was stopped. The same `skilltune train` command goes on."
        why = "there is no test split"
        if self.splits["test"]:
            why = "the run was stopped before it" if self.finish.stopped else "no test sample was scored on both sides"
        changed = self.finish.best != self.finish.start
        revived = self.best is not None and self.best.revived
        return claim(changed, self.certificate, bool(self.finish.stopped), why, revived=revived)

    def rollouts(self, skill: str, sample: str) -> list[Rollout]:
        """The transcripts of a sample under a version, in the order of the attempts."""
        found = (self.run.recall(draw.key) for draw in self.draws[skill, sample])
        return [rollout_from_json(known[0]) for known in found if known]

    def score(self, version: Version, sample: str) -> float | None:
        """The mean over the version's attempts at a sample, None if it has no score."""
        scores = [draw.score for draw in self.draws.get((version.hash, sample), ()) if draw.score is not None]
        return fmean(scores) if scores else None

    def measured(self, version: Version, split: str) -> Measured | None:
        """The plain mean over the samples of a split on which the version has a score; None if it has none."""
        found = [score for sample in self.splits[split] if (score := self.score(version, sample)) is not None]
        if not found:
            return None
        middle = fmean(found)
        low, high = stats.score_interval(found)
        return Measured(middle, low, high, len(found))

    def change(self, sample: str) -> float | None:
        """The sample's score under what ships minus its score under the input, None if one is missing."""
        if self.start is None or self.best is None:
            return None
        before, after = self.score(self.start, sample), self.score(self.best, sample)
        return None if before is None or after is None else after - before


def affordable(command: str, larger: str) -> str:
    """The command that resumes a run, with the larger limit of the budget that it needs ("": none)."""
    if not larger:
        return command
    name, words = larger.partition("=")[0], shlex.split(command)
    raised = [larger if word.startswith(f"{name}=") else word for word in words]
    return shlex.join(raised if larger in raised else [*raised, larger])


def _kind(verdict: VerdictRecord, before: Version | Judged | None) -> Literal["step", "slow", "compact", "ablation"]:
    if verdict.shortens:
        return "compact" if verdict.compacts else "ablation"
    return "slow" if isinstance(before, Judged) and before.verdict.step == verdict.step else "step"


def _accepted(run: Run, verdict: VerdictRecord) -> Version:
    version = _version(run, verdict.version, verdict.skill, verdict.reason, score=verdict.score, sd=verdict.score_sd)
    return replace(version, step=verdict.step, edits=len(verdict.applied))


def _version(
    run: Run, number: int, hash: str, reason: str, *, score: float | None = None, sd: float | None = None
) -> Version:
    raw = run.blob(hash)
    text = None if raw is None else raw.decode("utf-8", "surrogatepass")
    return Version(number, hash, text, score, sd, reason)


def _attempt(draw: Draw) -> int:
    return draw.attempt


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
    """Every paid kind but rollouts of the target; failed attempts, which may have been billed, by the role that made
    them. The exchanges of an agent count for its role."""
    further = [*pinned_further(run), *measured(run)]
    roles = {kind_of(name): f"further target {name}" for name in further} | {"rollout": "target"}
    rows = [
        Spend(roles.get(kind, kind), "answers without a score" if kind == "unscored" else "all", usage)
        for kind, usage in by_work({kind: usage for kind, usage in run.usage.items() if kind != FAILED})
        if kind != "rollout"
    ]
    failed: dict[tuple[str, bool], Usage] = {}
    for _, value, usage in run.each_memo(FAILED):
        kind = owner_of(value["role"])
        which = roles.get(kind, kind), bool(value.get("estimated"))
        failed[which] = failed.get(which, Usage()) + usage
    names = {False: "failed attempts", True: "attempts without an answer: cost unknown, estimated"}
    return rows + [Spend(role, names[estimated], usage) for (role, estimated), usage in sorted(failed.items())]
