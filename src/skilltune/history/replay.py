"""Recompute every verdict of a run from its journal alone, and compare.

The very loop runs again, on a copy of the journal, with a target, an optimizer and a scorer that cannot be called.
What it then decides rests on the journal and on nothing else.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from skilltune.compaction import is_compacted, replayed
from skilltune.config import stored_config
from skilltune.envs import Env, Task
from skilltune.errors import RunError, Stopped
from skilltune.gate import Arena, build_gate, metric_of
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.models import Message
from skilltune.optimizer.recorded import Recorded
from skilltune.parts import Parts
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.further import Further, kind_of, pinned_further
from skilltune.rollouts.inputs import Pins, split_ids
from skilltune.rollouts.roller import Roller
from skilltune.rollouts.scores import Scores
from skilltune.samples import Sample, Splits
from skilltune.skill import Skill
from skilltune.targets.makers import RunTarget
from skilltune.train import train
from skilltune.usage import Usage
from skilltune.verdict import VerdictRecord

TOLERANCE = 1e-9
DECISIONS = ("start", "verdict", "reselection")  # events that are compared, in this order of a run


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One decision: what it was, what it said, and what differs now ("" for each path: recorded → recomputed)."""

    name: str
    said: str
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recomputation:
    """All decisions of a run, made again. `lacking` says what the journal does not hold to make the rest."""

    decisions: tuple[Recomputed, ...]
    lacking: str

    @property
    def exit_code(self) -> int:
        """0 all equal, 1 something differs, 2 the journal lacks something."""
        if any(decision.differences for decision in self.decisions):
            return 1
        return 2 if self.lacking else 0


async def recompute(run: Run) -> Recomputation:
    """Make all decisions of a run again. Nothing is asked of anybody, and the run is left as it is.

    A run that was stopped is compared as far as it came. Raises `RunError` for a journal without the run's parts.
    """
    pins = Pins.of(run)
    recorded, proof = _standing(run)
    made: dict[str, list[Any]] = {type: [] for type in DECISIONS}

    def hear(type: str, data: Any) -> None:
        if type in made:
            made[type].append(json.loads(json.dumps(data)))

    with tempfile.TemporaryDirectory(prefix="skilltune-") as folder, run.copy_to(Path(folder)) as copy:
        copy.listeners.append(hear)
        session = _session(copy, pins)
        result = await replayed(session, await train(session))

    decisions = [
        Recomputed(_name(type, old), _said(type, old), tuple(differences(old, new)))
        for type in DECISIONS
        for old, new in zip(recorded[type], made[type], strict=False)
    ]
    lacking = next(
        (f"the {type} {len(made[type]) + 1}" for type in DECISIONS if len(made[type]) < len(recorded[type])), ""
    )
    if proof is not None:
        if result.certificate is None:
            lacking = lacking or "the certificate"
        else:
            new = json.loads(json.dumps(result.certificate.to_json()))
            said = f"{100 * proof['before']:.1f} % → {100 * proof['after']:.1f} % on {proof['n']} test samples"
            decisions.append(Recomputed("certificate", said, tuple(differences(proof, new))))
    if lacking:
        lacking = f"{lacking} cannot be recomputed: {result.stopped or 'the loop did not come to it'}"
    return Recomputation(tuple(decisions), lacking)


def _standing(run: Run) -> tuple[dict[str, list[Any]], Any]:
    """The recorded decisions that still stand, by type, and the certificate, None without one.

    A run that was stopped chose a version and certified it, and when it goes on with a larger budget both are void:
    they are followed by steps or, before the first of them has ended, by calls that were paid after its end.
    """
    recorded: dict[str, list[Any]] = {type: [] for type in DECISIONS}
    finish, ended = None, math.inf
    for t, type, data in run.events():
        if type == "finish":
            finish, ended = data, t if data["stopped"] else math.inf
        elif type == "verdict" and not _compacts(type, data):
            if not VerdictRecord.from_json(data).shortens:  # the ablation follows the choice
                recorded["reselection"].clear()
            finish, ended = None, math.inf
        if type in DECISIONS and (is_compacted(run) or not _compacts(type, data)):
            recorded[type].append(data)
    if any(t > ended for t, _ in run.payments()):
        recorded["reselection"].clear()
        finish = None
    return recorded, finish["certificate"] if finish else None


def _compacts(type: str, data: Any) -> bool:
    """True for a verdict of a compaction. One that has not ended decided nothing."""
    return type == "verdict" and VerdictRecord.from_json(data).compacts


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The differences between two JSON values, as "path: old → new". Numbers differ if they are further apart than
    `TOLERANCE`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}[{index}]")
    elif isinstance(old, int | float) and isinstance(new, int | float):
        if not math.isclose(old, new, rel_tol=0.0, abs_tol=TOLERANCE):
            yield f"{path}: {old!r} → {new!r}"
    elif old != new:
        yield f"{path}: {json.dumps(old):.80} → {json.dumps(new):.80}"


def _name(type: str, data: Any) -> str:
    if type == "verdict":
        verdict = VerdictRecord.from_json(data)
        return verdict.figures.rule if verdict.shortens else f"step {verdict.step}"
    return type


def _said(type: str, data: Any) -> str:
    if type == "verdict":
        return f"{'accepted' if data['accepted'] else 'rejected'}: {data['reason']}"
    return str(data.get("reason", "the input"))


# -- parts that cannot be called


class _Absent(Env):
    """An environment with a known fingerprint and nothing else."""

    def __init__(self, fingerprint: str) -> None:
        self.samples, self.prompt, self._fingerprint, self._tools = (), "", fingerprint, None

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def messages(self, sample: Sample) -> tuple[Message, ...]:
        raise Stopped(f"the journal does not hold sample {sample.id}")

    def hashes(self, sample: Sample) -> tuple[list[str], dict[str, str]]:
        raise Stopped(f"the journal does not hold sample {sample.id}")

    def task(self, sample: Sample) -> Task:
        return Task(sample.id, ())

    def chooses(self, sample: Sample) -> bool:
        return False  # unknown, and nobody is asked

    async def score(self, sample: Sample, rollout: Rollout) -> Score:
        raise Stopped(f"the journal holds no score of sample {sample.id} with skill {rollout.skill}")


@dataclass(frozen=True, slots=True)
class _Silent:
    """A target with a known fingerprint and nothing else. Implements `Target`."""

    fingerprint: str

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        raise Stopped(f"the journal holds no rollout of sample {task.id} with skill {skill.hash}, attempt {attempt}")

    def guess(self, skill: Skill, task: Task) -> Usage:
        return Usage()


def _session(run: Run, pins: Pins) -> Parts:
    """The parts of the loop over a copy of the journal."""
    if run.config is None:
        raise RunError(f"the journal in {run.folder} holds no configuration")
    cfg = stored_config(run.config, run.folder)
    split = split_ids(run)
    if split is None:
        raise RunError(f"the journal in {run.folder} holds no split of the samples")
    by_id = {
        sample: Sample(id=sample, input="", group=pins.groups.get(sample)) for ids in split.values() for sample in ids
    }
    splits = Splits(**{name: tuple(by_id[sample] for sample in ids) for name, ids in split.items()})
    env = _Absent(pins.env)
    roll = Roller(_Silent(pins.target), env, run, dict(pins.contents), Scores.of(splits, metric_of(cfg.gate)))
    also = tuple(
        Further(
            name,
            Roller(
                _Silent(fingerprint), env, run, dict(pins.contents), replace(roll.scores, held={}), kind=kind_of(name)
            ),
        )
        for name, fingerprint in pinned_further(run).items()
    )
    limit = cfg.train.skill_limit(pins.skill.tokens)
    arena = Arena(roll, splits.train, splits.select, cfg.gate, cfg.seed, limit, also=also, start=pins.skill)
    optimizer = Recorded(run, pins.looks_back)
    budget = Budget(Limits(), Usage())
    nobody = cast(RunTarget, None)  # a loop that can replay calls the target through its roller only
    return Parts(cfg, run, pins.skill, env, splits, budget, nobody, None, roll, arena, build_gate(arena), optimizer)
