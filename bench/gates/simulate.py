"""The gates, edit by edit, in a simulated world (simulated.py): true gain, harm and honesty at equal rollouts.

The gate, its screen, its models and the certificate are the ones of `skilltune.gate`; only rollouts and edits are
simulated. All policies have 16 × (40 + |select|) + |select| target calls, and stop where these end. A step rolls a
batch of 40 under the incumbent (already seen: free), gets 12 new edits and calls the gate with at most 4 to apply.

Policies: `race` and `strict` as configured by default; `reference` is `strict` without a journal, which pays for every
batch (so it has exactly 16 steps); both get 4 random edits of the 12. `alone` is `race` without the factorial screen
(4 whole edits race), `means` is `race` with plain means instead of both models, `forgetful` is `race` that starts every
step from nothing, `unjournaled` is `race` that pays for every batch. `ended` is `race` as trainings end it by default:
failures are tried again if half of a batch is solved, and the run ends by the value of a further step. A policy takes
settings: `race:screen=40:SHRINK=0.6` (small letters: `GateConfig`; capitals: a constant of `skilltune.gate` or of
`skilltune.stopping`).
A prior may also be a family of tests/worlds, for example quarter: then gains count from the family's input skill, and
`--interactions` does nothing. Locked families need --why.

Run: python bench/gates/simulate.py --runs 100 --priors base,nulls --select 20,40,140 --policies reference,race

With `--keep FILE` every outcome is written down, and the same command goes on where it was ended, or adds runs to those
that are there. Outcomes of other sources (`code`: of skilltune and of this folder) are not used.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import json
import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, cast
from unittest.mock import patch

from policies import Forgetful, Means
from simulated import BATCH, NEVER_RIGHT, PRIORS, TEST, TRAIN, Edits, FamilyEdits, Rolls, Seen, World

from skilltune import stopping
from skilltune.config import CertifyConfig, GateConfig, TrainConfig
from skilltune.errors import Stopped
from skilltune.finish.certify import certify
from skilltune.gate import Arena, Gate, metric_of, priors, race, screen, trials
from skilltune.gate.race import Race
from skilltune.gate.strict import Strict
from skilltune.journal.keys import rng
from skilltune.journal.run import Run
from skilltune.rollout import Rollout
from skilltune.rollouts.forward import SOLVED
from skilltune.rollouts.scores import Scores, split_map
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import effects, linear, wilson
from skilltune.stopping import Past, Stopping
from skilltune.verdict import Verdict
from worlds import FAMILIES, unlock

STEPS, MOST_STEPS = 16, 200  # for which the reference's rollouts suffice; at which a run ends in any case
LIMIT = 4  # edits applied at one step
POLICIES: dict[str, tuple[type, dict[str, Any], bool]] = {  # gate, its settings, True if a known batch is free
    "reference": (Strict, {}, False),
    "strict": (Strict, {}, True),
    "race": (Race, {}, True),
    "alone": (Race, {"screen": 0}, True),
    "means": (Means, {}, True),
    "forgetful": (Forgetful, {}, True),
    "unjournaled": (Race, {}, False),
    "ended": (Race, {}, True),
}
CONSTANTS: tuple[ModuleType, ...] = (priors, race, screen, trials, effects, linear, stopping)


@dataclass(frozen=True, slots=True)
class Task:
    """One run. The seed is the world's and the run's."""

    policy: str
    prior: str
    select: int
    interactions: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run; gains and levels are in [0, 1]. `harmful` counts versions, `bad_edits` edits, whose true
    marginal effect at the time of the accept was negative, `hurtful` the edits of the harmful kind among the taken.
    `optimism` is the level that the gate reports less the true one, `certified_optimism` the certificate's gain less
    the true one, `covered`: its interval holds the true gain (None: nothing was accepted, so nothing is tested)."""

    gain: float
    steps: int
    rollouts: int
    accepts: int
    harmful: int
    edits: int
    bad_edits: int
    hurtful: int
    optimism: float
    certified_optimism: float | None
    covered: bool | None
    seconds: float


def simulate(task: Task) -> Outcome:
    began = time.process_time()
    # No two edits of a prior conflict, and to find that out costs a tenth of the time.
    agreed = nullcontext() if task.prior in FAMILIES else patch.object(screen, "conflict", lambda *_: "")
    with agreed, settings(task.policy) as (kind, cfg, free):
        outcome = asyncio.run(_run(task, kind, cfg, free))
    return Outcome(**outcome, seconds=time.process_time() - began)


@contextmanager
def settings(policy: str) -> Iterator[tuple[type, GateConfig, bool]]:
    """The policy's gate, settings and accounting, with the constants that its name changes; restored at the end."""
    name, *changes = policy.split(":")
    kind, cfg, free = POLICIES[name]
    changed: list[tuple[ModuleType, str, Any]] = []
    for key, _, text in (change.partition("=") for change in changes):
        if key.islower():
            cfg = {**cfg, key: float(text)}
            continue
        holders = [module for module in CONSTANTS if hasattr(module, key)]  # an imported constant is a copy
        assert holders, f"no constant {key}"
        for module in holders:
            old = getattr(module, key)
            changed.append((module, key, old))
            setattr(module, key, type(old)(float(text)))
    try:
        yield kind, GateConfig(**cfg), free
    finally:
        for module, key, value in changed:
            setattr(module, key, value)


async def _run(task: Task, kind: type, cfg: GateConfig, free: bool) -> dict[str, Any]:
    world = _world(task)
    train, select = world.split("train", TRAIN), world.split("select", task.select)
    scores = Scores(split_map(train=train, select=select), metric_of(cfg), Seen())
    roll: Any = Rolls(world, STEPS * (BATCH + task.select) + task.select, scores)
    arena = Arena(roll, train, select, cfg, task.seed, max_tokens=100_000)
    gate: Gate = kind(arena)
    ending = Ending(arena) if task.policy.partition(":")[0] == "ended" else None
    versions, taken = [world.start], list[float]()
    level, steps, hurtful = 0.0, 0, 0
    try:
        level = await gate.baseline(world.start) or 0.0
        for step in range(MOST_STEPS):
            incumbent, batch = versions[-1], _batch(train, step, task.seed)
            known = sum((incumbent.hash, sample.id, 0) in scores.held for sample in batch)
            if ending and ending.reached(incumbent):
                break
            rollouts = await roll(incumbent, batch)
            if not free:
                roll.pay(known)
            if ending:
                rollouts = await ending.confirmed(incumbent, batch, rollouts)
                if ending.reached(incumbent):
                    break
            failing = [rollout.sample for rollout in rollouts if rollout.score and rollout.score.value < 1]
            proposals = world.propose(step, failing, incumbent)
            if kind is Strict:
                proposals = rng(task.seed, "patch", step).sample(proposals, min(LIMIT, len(proposals)))
            verdict = await gate.judge(incumbent, proposals, limit=LIMIT, name=f"step {step}")
            world.remember(verdict)
            steps, level = step + 1, verdict.score if verdict.score is not None else level
            if ending:
                ending.add(verdict)
            if verdict.accepted:
                versions.append(verdict.skill)
                fresh = set(world.lines(verdict.skill)) - set(world.lines(incumbent))
                taken += [world.truth(verdict.skill) - world.truth(_without(verdict.skill, line)) for line in fresh]
                hurtful += sum(map(world.hurts, fresh))
    except Stopped:
        pass
    true = world.truth(versions[-1])
    gain = true - world.truth(world.start)
    test = world.split("test", TEST)
    card = await certify(roll, world.start, versions[-1], test, arena.metric, CertifyConfig(), task.seed)
    return {
        "gain": gain,
        "steps": steps,
        "rollouts": roll.spent,
        "accepts": len(versions) - 1,
        "harmful": sum(world.truth(b) < world.truth(a) for a, b in pairwise(versions)),
        "edits": len(taken),
        "bad_edits": sum(effect < 0 for effect in taken),
        "hurtful": hurtful,
        "optimism": level - true,
        "certified_optimism": card.gain - gain if card else None,
        "covered": card.low <= gain <= card.high if card else None,
    }


class Ending:
    """The end of a training by the value of a further step, and the second try of failures before it."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.past, self.failed, self.calls = arena, list[Past](), dict[str, bool](), 0
        self.of: Skill | None = None  # the skill that failed on these
        self.stop = Stopping(cast(Run, self), TrainConfig(), TRAIN, guess=BATCH + arena.cfg.screen)

    def record(self, _type: str, **_data: Any) -> None:
        """Called with the reason, as a run is. Nobody reads it here."""

    async def confirmed(self, skill: Skill, batch: Sequence[Sample], rollouts: list[Rollout]) -> list[Rollout]:
        """The rollouts of a batch, with the second one of a failure that is solved then."""
        if skill != self.of:
            self.of, self.failed = skill, {}
        failing = {rollout.sample for rollout in rollouts if rollout.score and rollout.score.value == 0}
        again: list[Rollout] = []
        if len(failing) <= (1 - SOLVED) * len(batch):
            again = await self.arena.roll(skill, [sample for sample in batch if sample.id in failing], attempt=1)
        lucky = {rollout.sample: rollout for rollout in again if rollout.score and rollout.score.hard}
        final = [lucky.get(rollout.sample, rollout) for rollout in rollouts]
        self.failed |= {rollout.sample: bool(rollout.score and rollout.score.value < 1) for rollout in final}
        return final

    def reached(self, skill: Skill) -> bool:
        return skill == self.of and self.stop.worthless(self.past, self.failed)

    def add(self, verdict: Verdict) -> None:
        """Add a finished step."""
        calls, self.calls = self.calls, self.arena.roll.spent  # type: ignore[attr-defined]
        self.past.append(Past.of([verdict], self.stop.failing(self.failed), self.calls - calls))


def _batch(train: list[Sample], step: int, seed: int) -> list[Sample]:
    """Epochs of shuffled batches."""
    epoch, start = divmod(step * BATCH, len(train))
    order = train[:]
    rng(seed, "epoch", epoch).shuffle(order)
    return order[start : start + BATCH]


def _without(skill: Skill, line: str) -> Skill:
    return skill.with_text(skill.text.replace(f"{line}\n", ""))


def _world(task: Task) -> Edits:
    if task.prior in FAMILIES:
        return FamilyEdits(FAMILIES[task.prior], task.select, task.seed)
    return World(PRIORS[task.prior], 0.0 if task.prior in NEVER_RIGHT else task.interactions, task.select, task.seed)


# -- outcomes that are kept


@functools.cache
def code() -> str:
    """A digest of what decides the outcome of a task."""
    roots = Path(__file__).parent, Path(race.__file__).parents[1], Path(__file__).parents[2] / "tests" / "worlds"
    sources = sorted(path for root in roots for kind in ("*.py", "*.c") for path in root.rglob(kind))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def kept(file: Path) -> Iterator[tuple[Task, Outcome]]:
    """What these sources made before; a line that a killed process left unfinished is made anew."""
    for line in file.read_text().splitlines() if file.exists() else ():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if row["code"] == code():
                yield Task(**row["task"]), Outcome(**row["outcome"])


def outcomes(tasks: Sequence[Task], workers: int, keep: Path | None) -> Iterator[tuple[Task, Outcome]]:
    """Each task with its outcome, in order; those that were kept are not made again."""
    known = dict(kept(keep)) if keep else {}
    with multiprocessing.Pool(workers) as pool:
        made = pool.imap(simulate, [task for task in tasks if task not in known])
        for task in tasks:
            if task not in known:
                known[task] = next(made)
                if keep is not None:
                    row = {"code": code(), "task": asdict(task), "outcome": asdict(known[task])}
                    with keep.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            yield task, known[task]


# -- tables


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval (normal: cells hold many runs)."""
    middle = fmean(values)
    if len(values) < 2:
        return middle, math.nan
    return middle, 1.96 * math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1) / len(values))


def share(hits: list[bool]) -> str:
    """A proportion with its Wilson interval."""
    if not hits:
        return "—"
    low, high = wilson(sum(hits), len(hits))
    return f"{fmean(hits):.2f} ({low:.2f}–{high:.2f})"


HEADS = (
    "gain", "worse", "any accept", "accepts", "harmful versions/run", "/accept", "edits", "edits < 0 /run", "/edit",
    "harmful kind/run", "optimism", "certificate's", "covered", "rollouts", "steps", "s",
)  # fmt: skip


def row(outcomes: list[Outcome]) -> list[str]:
    def points(values: list[float]) -> str:
        return "{:.1f} ± {:.1f}".format(*(100 * x for x in interval(values))) if values else "—"

    def average(name: str) -> float:
        return fmean(getattr(outcome, name) for outcome in outcomes)

    def ratio(a: str, b: str) -> str:
        return f"{average(a) / average(b):.2f}" if average(b) else "—"

    return [
        points([o.gain for o in outcomes]),
        share([o.gain < 0 for o in outcomes]),
        share([o.accepts > 0 for o in outcomes]),
        f"{average('accepts'):.2f}",
        f"{average('harmful'):.2f}",
        ratio("harmful", "accepts"),
        f"{average('edits'):.1f}",
        f"{average('bad_edits'):.2f}",
        ratio("bad_edits", "edits"),
        f"{average('hurtful'):.2f}",
        points([o.optimism for o in outcomes]),
        points([o.certified_optimism for o in outcomes if o.certified_optimism is not None]),
        share([o.covered for o in outcomes if o.covered is not None]),
        f"{average('rollouts'):.0f}",
        f"{average('steps'):.1f}",
        f"{average('seconds'):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs a cell, seeds 0, 2, 4, … or 1, 3, 5, …")
    parser.add_argument("--seeds", choices=["even", "odd"], default="even", help="even: to tune on; odd: to report")
    parser.add_argument("--priors", default="base,nulls", help=f"of {', '.join(PRIORS)}, or families")
    parser.add_argument("--select", default="40")
    parser.add_argument("--interactions", default="0.1")
    parser.add_argument("--policies", default="reference,race")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument(
        "--keep", type=Path, help="a file to keep outcomes in (JSON lines), and to take known ones from"
    )
    parser.add_argument("--why", default="", help="the reason for a look at locked families")
    options = parser.parse_args()
    unlock(options.priors.split(","), options.why, Path(__file__).parents[1] / "worlds.md")
    seeds = range(options.seeds == "odd", 2 * options.runs, 2)
    tasks = [
        Task(policy, prior, int(select), float(interactions), seed)
        for select in options.select.split(",")
        for interactions in options.interactions.split(",")
        for prior in options.priors.split(",")
        for policy in options.policies.split(",")
        for seed in seeds
    ]
    print(f"{options.runs} runs a cell, {options.seeds} seeds; gains in points, ± and brackets: 95 %\n")
    print(f"| select | interactions | prior | policy | {' | '.join(HEADS)} |")
    print("| --- " * (4 + len(HEADS)) + "|")
    cells: dict[tuple, list[Outcome]] = defaultdict(list)
    for task, outcome in outcomes(tasks, options.workers, options.keep):
        what = task.select, task.interactions, task.prior, task.policy
        cells[what].append(outcome)
        if len(cells[what]) == len(seeds):
            print(f"| {' | '.join(map(str, what))} | {' | '.join(row(cells[what]))} |", flush=True)


if __name__ == "__main__":
    main()
