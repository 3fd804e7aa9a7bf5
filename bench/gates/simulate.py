"""The gates, edit by edit, in a simulated world (simulated.py): true gain, harm and honesty at equal rollouts.

The gate, its screen, its models and the certificate are the ones of `skilltune.gate`; only rollouts and edits are
simulated. All policies have 16 × (40 + |select|) + |select| target calls, and stop where these end. A step rolls a
batch of 40 under the incumbent (already seen: free), gets 12 new edits and calls the gate with at most 4 to apply.

Policies: `race` and `strict` as configured by default; `reference` is `strict` without a journal, which pays for every
batch (so it has exactly 16 steps); both get 4 random edits of the 12. `alone` is `race` without the factorial screen
(4 whole edits race), `means` is `race` with plain means instead of both models, `forgetful` is `race` that starts every
step from nothing, `unjournaled` is `race` that pays for every batch. A policy takes settings:
`race:screen=40:SHRINK=0.6` (small letters: `GateConfig`; capitals: a constant of the modules of `skilltune.gate`).

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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any
from unittest.mock import patch

from policies import Forgetful, Means
from simulated import BATCH, NEVER_RIGHT, PRIORS, START, TEST, TRAIN, Rolls, Seen, World, rules

from skilltune.config import CertifyConfig, GateConfig
from skilltune.errors import Stopped
from skilltune.finish.certify import certify
from skilltune.gate import Arena, Gate, metric_of, priors, race, screen, trials
from skilltune.gate.race import Race
from skilltune.gate.strict import Strict
from skilltune.journal.keys import rng
from skilltune.rollouts.scores import Scores, split_map
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import effects, linear, wilson

STEPS, MOST_STEPS = 16, 200  # for which the reference's rollouts suffice; at which a run ends in any case
LIMIT = 4  # edits applied at one step
POLICIES: dict[str, tuple[type, dict[str, Any], bool]] = {  # gate, its settings, is a known batch free
    "reference": (Strict, {}, False),
    "strict": (Strict, {}, True),
    "race": (Race, {}, True),
    "alone": (Race, {"screen": 0}, True),
    "means": (Means, {}, True),
    "forgetful": (Forgetful, {}, True),
    "unjournaled": (Race, {}, False),
}
# No two of these edits conflict, and to find that out costs a tenth of the time.
patch.object(screen, "conflict", lambda *_: "").start()
CONSTANTS: tuple[ModuleType, ...] = (priors, race, screen, trials, effects, linear)


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
    with settings(task.policy) as (kind, cfg, free):
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
    interactions = 0.0 if task.prior in NEVER_RIGHT else task.interactions
    world = World(PRIORS[task.prior], interactions, task.select, task.seed)
    train, select = world.split("train", TRAIN), world.split("select", task.select)
    scores = Scores(split_map(train=train, select=select), metric_of(cfg), Seen())
    roll: Any = Rolls(world, STEPS * (BATCH + task.select) + task.select, scores)
    arena = Arena(roll, train, select, cfg, task.seed, max_tokens=100_000)
    gate: Gate = kind(arena)
    versions, taken = [START], list[float]()
    level, steps, hurtful = 0.0, 0, 0
    try:
        level = await gate.baseline(START) or 0.0
        for step in range(MOST_STEPS):
            incumbent, batch = versions[-1], _batch(train, step, task.seed)
            known = sum((incumbent.hash, sample.id, 0) in scores.held for sample in batch)
            rollouts = await roll(incumbent, batch)
            if not free:
                roll.pay(known)
            failing = [rollout.sample for rollout in rollouts if rollout.score and rollout.score.value < 1]
            proposals = world.propose(step, failing)
            if kind is Strict:
                proposals = rng(task.seed, "patch", step).sample(proposals, LIMIT)
            verdict = await gate.judge(incumbent, proposals, limit=LIMIT, name=f"step {step}")
            steps, level = step + 1, verdict.score if verdict.score is not None else level
            if verdict.accepted:
                versions.append(verdict.skill)
                fresh = set(rules(verdict.skill)) - set(rules(incumbent))
                taken += [world.truth(verdict.skill) - world.truth(_without(verdict.skill, rule)) for rule in fresh]
                hurtful += sum(world.effects[rule] < 0 for rule in fresh)
    except Stopped:
        pass
    true = world.truth(versions[-1])
    gain = true - world.truth(START)
    test = world.split("test", TEST)
    card = await certify(roll, START, versions[-1], test, arena.metric, CertifyConfig(), task.seed)
    return {
        "gain": gain,
        "steps": steps,
        "rollouts": roll.spent,
        "accepts": len(versions) - 1,
        "harmful": sum(world.level(b) < world.level(a) for a, b in pairwise(versions)),
        "edits": len(taken),
        "bad_edits": sum(effect < 0 for effect in taken),
        "hurtful": hurtful,
        "optimism": level - true,
        "certified_optimism": card.gain - gain if card else None,
        "covered": card.low <= gain <= card.high if card else None,
    }


def _batch(train: list[Sample], step: int, seed: int) -> list[Sample]:
    """Epochs of shuffled batches."""
    epoch, start = divmod(step * BATCH, len(train))
    order = train[:]
    rng(seed, "epoch", epoch).shuffle(order)
    return order[start : start + BATCH]


def _without(skill: Skill, rule: int) -> Skill:
    return skill.with_text(skill.text.replace(f"- rule {rule}\n", ""))


# -- outcomes that are kept


@functools.cache
def code() -> str:
    """A digest of what decides the outcome of a task."""
    roots = Path(__file__).parent, Path(race.__file__).parents[1]
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
    parser.add_argument("--priors", default="base,nulls", help=f"of {', '.join(PRIORS)}")
    parser.add_argument("--select", default="40")
    parser.add_argument("--interactions", default="0.1")
    parser.add_argument("--policies", default="reference,race")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument(
        "--keep", type=Path, help="a file to keep outcomes in (JSON lines), and to take known ones from"
    )
    options = parser.parse_args()
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
