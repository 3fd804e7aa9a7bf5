"""The training loop in simulated worlds without HTTP: a third of the CPU of bench/worlds.py, for many paired runs.

The gate, the stop rule, the forward pass and the choice at the end are the real ones. The target and the optimizer of
`tests/worlds` are asked directly. There is no journal, no slow update, no last ablation and no certificate. So its
figures are not those of bench/worlds.py; it is for the difference between two variants on the same seeds.

    python bench/steps.py --families quarter,quarter-often-wrong --seeds 10
    python bench/steps.py --families quarter --seeds 10 --constant gate.priors.WORTH=0.05
    python bench/steps.py --families quarter --seeds 10 --set train.call_price=0.005

With `--against` (changes as in `--constant` or `--set`) both variants run, and the paired difference is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import math
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from skilltune.config import make_config
from skilltune.edits import Edit
from skilltune.finish.reselect import reselect
from skilltune.gate import Arena, metric_of
from skilltune.gate.race import Race
from skilltune.optimizer import Memory, Proposal, join
from skilltune.optimizer.schedule import schedule
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.forward import Forward
from skilltune.rollouts.scores import Scores, split_map
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.state import State
from skilltune.stopping import Stopping
from world import Prompt, Shown, uniform
from worlds import Family, FamilyWorld

SPEC = importlib.util.spec_from_file_location("bench_worlds", Path(__file__).with_name("worlds.py"))
assert SPEC
assert SPEC.loader
bench: Any = importlib.util.module_from_spec(SPEC)
sys.modules["bench_worlds"] = bench
SPEC.loader.exec_module(bench)


@dataclass(slots=True)
class Rolls:
    """Stands for the roller: every rollout is made at once, and each (skill, sample, attempt) counts once."""

    world: FamilyWorld
    scores: Scores
    seen: dict[tuple[str, str, int], Rollout] = field(default_factory=dict)

    async def __call__(self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, **_: Any) -> list[Rollout]:
        return [self.roll(skill, sample, attempt) for sample in samples]

    async def stream(self, skill: Skill, samples: Sequence[Sample], **_: Any) -> AsyncGenerator[Rollout, None]:
        for sample in samples:
            yield self.roll(skill, sample, 0)

    def roll(self, skill: Skill, sample: Sample, attempt: int) -> Rollout:
        key = (skill.hash, sample.id, attempt)
        if key not in self.seen:
            ticket = self.world.tickets[sample.id]
            value = self.world.value(skill.text, ticket)
            if uniform(self.world.seed, "noise", *key) < self.world.flip_rate(ticket, value >= 0.5):
                value = 1 - value
            answer = f"{value} {uniform(self.world.seed, 'answer', *key)}"
            self.seen[key] = Rollout(sample.id, skill.hash, attempt, Trajectory(answer), Score(value))
            self.scores.add(self.seen[key])
        return self.seen[key]

    def prefetch(self, *_: Any) -> None:
        """Nothing is waited for, so nothing is made ahead."""


@dataclass(slots=True)
class Events:
    """Stands for the run: keeps the reasons of its events."""

    place: Path = Path("no such folder")
    reasons: list[str] = field(default_factory=list)

    def record(self, _: str, *, reason: str, **__: Any) -> None:
        self.reasons.append(reason)


@dataclass(frozen=True, slots=True)
class Outcome:
    """True score of what ships as a share of the best, target calls, True if the skill changed, why it ended."""

    true: float
    calls: int
    changed: bool
    reason: str


async def train(family: Family, seed: int, settings: dict[str, Any]) -> Outcome:
    """The loop of `skilltune.train.fit`, and the choice at the end."""
    world = FamilyWorld(family, seed)
    cfg = make_config({"preset": "default", "seed": seed, **settings})
    samples = {
        split: [Sample(id=t.id, input=t.input) for t in world.tickets.values() if t.split == split]
        for split in ("train", "select")
    }
    rolls, events = Rolls(world, Scores(split_map(**samples), metric_of(cfg.gate))), Events()
    roll: Any = rolls
    run: Any = events
    limit = max(2000, bench.TOKENS_A_KIND * world.classes)
    arena = Arena(roll, samples["train"], samples["select"], cfg.gate, seed, limit)
    gate, state = Race(arena), State([Skill(world.start or "# Skill\n")], Memory())
    stop = Stopping(run, cfg.train, tasks=len(samples["train"]), guess=cfg.train.batch_size + cfg.gate.screen)
    forward = Forward.of(roll, arena.metric, cfg.train, attempts=1, noisy=True)
    state.score = await gate.baseline(state.skill)
    for step in schedule(cfg.train, samples["train"], seed):
        if stop.before_step(state.past, forward.known(state.skill), state.score):
            break
        state.begin_step(step, calls=len(rolls.seen), forgets=False)
        async with forward.batch(state.skill, step.batch, step.name) as batch:
            if forward.whole and stop.worthless(state.past, forward.failed):
                break
            failures = [rollout async for rollout in batch if rollout.score and rollout.score.value < 1]
        proposals = propose(world, state, step.index, failures, step.lr or cfg.train.lr, cfg.train.minibatch_size)
        proposals = [replace(proposal, among=len(step.batch)) for proposal in proposals]
        verdict = await gate.judge(state.skill, proposals, limit=step.lr or cfg.train.lr, name=step.name)
        state.score = verdict.score
        state.verdicts.append(verdict)
        state.versions += [verdict.skill] * verdict.accepted
        state.memory = state.memory.remember(
            verdict.rejected, verdict.skill.body, verdict.candidate, grown=verdict.accepted
        )
        state.end_step(stop.failing(forward.failed), calls=len(rolls.seen))
    chosen = reselect(arena, state.start, state.verdicts)
    best = chosen.best.skill if chosen else state.skill
    true = world.true_score(best.text) / world.attainable
    return Outcome(true, len(rolls.seen), best != state.start, " ".join(events.reasons))


def propose(
    world: FamilyWorld, state: State, step: int, failures: Sequence[Rollout], limit: int, size: int
) -> list[Proposal]:
    """The edits of the family's optimizer for the failures, one question for each minibatch."""
    rejected = "\n".join(str(entry.edit.text or entry.edit.target) for entry in state.memory.rejected)
    proposals = []
    for start in range(0, len(failures), size):
        shown = [
            Shown(rollout.sample, rollout.score.value if rollout.score else 0.0, world.tickets[rollout.sample].input)
            for rollout in failures[start : start + size]
        ]
        prompt = Prompt("", state.skill.text, limit, rejected, shown, [], [], [])
        where = (world.seed, "idea", state.skill.hash, step, start, rejected)
        answer = world.optimizer.reflect(prompt, lambda *what, where=where: uniform(*where, *what))
        for edit in answer["edits"]:
            support = tuple(citation["sample"] for citation in edit["evidence"])
            proposals.append(
                Proposal(Edit(edit["op"], text=edit["text"], after=edit["after"], target=edit["target"]), support)
            )
    return join(proposals)


def runs(families: Sequence[Family], seeds: Sequence[int], changes: Sequence[str]) -> dict[tuple[str, int], Outcome]:
    values = bench.assigned(changes)
    constants = {name: value for name, value in values.items() if name.rpartition(".")[2].isupper()}
    settings = bench.tree_of({name: value for name, value in values.items() if name not in constants})
    with bench.constants(constants):
        return {
            (family.name, seed): asyncio.run(train(family, seed, settings)) for family in families for seed in seeds
        }


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    true = [outcome.true for outcome in outcomes]
    changed = sum(outcome.changed for outcome in outcomes)
    return (
        f"| {name} | {len(true)} | {fmean(true):.3f} | {min(true):.2f} | "
        f"{fmean(outcome.calls for outcome in outcomes):.0f} | {changed} |"
    )


def difference(values: Sequence[float], digits: int) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{fmean(values):+.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="tuning", help="names of families for tuning, or tuning")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting: train.patience=8")
    parser.add_argument(
        "--constant", action="append", default=[], metavar="NAME=VALUE", help="a constant: gate.priors.WORTH=0.05"
    )
    parser.add_argument("--against", action="append", default=[], metavar="NAME=VALUE", help="a second variant")
    options = parser.parse_args()
    families = bench.chosen(options.families, {}, "")
    seeds = range(options.first, options.first + options.seeds)
    known = runs(families, seeds, [*options.set, *options.constant])
    other = runs(families, seeds, options.against) if options.against else {}
    print("| family | runs | true score | worst | target calls | changed |\n| --- | --- | --- | --- | --- | --- |")
    for family in families:
        print(row(family.name, [known[family.name, seed] for seed in seeds]))
        if other:
            print(row(f"{family.name}, {' '.join(options.against)}", [other[family.name, seed] for seed in seeds]))
    if other:
        true, calls = (
            [getattr(known[key], name) - getattr(other[key], name) for key in known] for name in ("true", "calls")
        )
        print(f"\nwithout {' '.join(options.against)}: {difference(true, 3)} true score, {difference(calls, 0)} calls")


if __name__ == "__main__":
    main()
