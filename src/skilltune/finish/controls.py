"""Control arms (`skilltune controls`): other ways to a skill, measured after the certificate. They decide nothing.

A trained skill should beat no skill, the skill that it began with, one rewrite by the optimizer, the best of as many
rewrites as the training's rollouts would pay to choose among, and its own words in random order.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from skilltune.aio import run_all
from skilltune.edits import Edit, apply
from skilltune.errors import CallConfigError, CallError, InfraError
from skilltune.finish.certify import by_group
from skilltune.journal.keys import rng
from skilltune.optimizer import Memory, Step
from skilltune.optimizer.render import copied, render_rollout, trajectory_part
from skilltune.optimizer.schedule import schedule
from skilltune.optimizer.stage import ByModel, Context, Stages
from skilltune.parts import Parts
from skilltune.rollout import Rollout
from skilltune.skill import Skill
from skilltune.stats import difference_interval, score_interval
from skilltune.stats.proportions import mean
from skilltune.usage import Usage, minus

TRAINED = "trained skill"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to a skill: its mean score on `n` test samples with its 95 % interval, the paired difference to the
    trained skill with its own (negative: worse), and what its making cost."""

    name: str
    score: float
    low: float
    high: float
    n: int
    difference: float
    difference_low: float
    difference_high: float
    cost: Usage

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Controls:
    """The arms, the trained skill first, and of those that are missing the reason."""

    arms: tuple[Arm, ...]
    missing: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"arms": [arm.to_json() for arm in self.arms], "missing": dict(self.missing)}


async def measure(s: Parts, start: Skill, trained: Skill) -> Controls:
    """Measure all arms on `test`, as often as the certificate did.

    An arm that the optimizer cannot make is missing, with the reason. Raises `Stopped` if the budget is used up; the
    journal keeps what was measured.
    """
    seen = _training(s)
    rewrites = affordable_rewrites(s)
    asked = _fixed(s, "optimizer's cost of training", s.run.paid("optimizer")[1])
    spent = sum((r.trajectory.usage for r in seen), asked)
    makers: dict[str, Callable[[], Awaitable[tuple[Skill, Usage]]]] = {
        TRAINED: lambda: _given(trained, spent),
        "no skill": lambda: _given(Skill("")),
        "start skill": lambda: _given(start),
        "one rewrite": lambda: _rewritten(s, start, 1),
        f"best of {rewrites} rewrites": lambda: _rewritten(s, start, rewrites),
        "shuffled words": lambda: _given(shuffled(trained, s.cfg.seed)),
    }
    arms: list[Arm] = []
    missing: dict[str, str] = {}
    ours: dict[str, float] = {}
    for name, make in makers.items():
        s.run.notify("arm", name=name)
        try:
            skill, cost = await make()
            scores = await _tested(s, skill)
        except CallConfigError:
            raise
        except CallError as error:
            missing[name] = " ".join(str(error).split())
            continue
        ours = ours or scores
        both = [sample for sample in ours if sample in scores]
        if not both:
            missing[name] = "no test sample was scored on both sides"
            continue
        before, after = (by_group(s.splits.test, {sample: of[sample] for sample in both}) for of in (ours, scores))
        low, high = score_interval(after)
        worse, better = difference_interval(before, after)
        score = fmean(scores[sample] for sample in both)
        gain = score - fmean(ours[sample] for sample in both)
        arms.append(Arm(name, score, low, high, len(both), gain, worse, better, cost))
    return Controls(tuple(arms), missing)


def affordable_rewrites(s: Parts) -> int:
    """The number of rewrites among which the rollouts of the training would pay to choose."""
    return max(1, round(len(_training(s)) / len(s.splits.select)))


def most_calls(s: Parts) -> tuple[int, int]:
    """Upper bounds of the calls of `measure`: (target, optimizer)."""
    rewrites = affordable_rewrites(s)
    test = CONTROL_ARMS * s.arena.draws(s.cfg.certify.attempts) * len(s.splits.test)
    batch = min(s.cfg.train.batch_size, len(s.splits.train))
    return test + batch + rewrites * len(s.splits.select), rewrites


def _training(s: Parts) -> list[Rollout]:
    """The rollouts of the training, in a fixed order: those of `train` and `select` samples."""
    return s.roll.scores.rollouts("train", "select")


def shuffled(skill: Skill, seed: int) -> Skill:
    """The skill with the words of its body in random order: as long, in the same lines, and without meaning."""
    words = re.findall(r"\S+", skill.body)
    rng(seed, "placebo").shuffle(words)
    left = iter(words)
    return skill.with_text(skill.frontmatter + re.sub(r"\S+", lambda _: next(left), skill.body))


async def _given(skill: Skill, cost: Usage | None = None) -> tuple[Skill, Usage]:
    return skill, cost or Usage()


async def _tested(s: Parts, skill: Skill) -> dict[str, float]:
    """The mean score on each test sample."""
    attempts = range(s.arena.draws(s.cfg.certify.attempts))
    draws = await run_all([s.roll(skill, s.splits.test, attempt=attempt, purpose="controls") for attempt in attempts])
    scores: dict[str, list[float]] = {}
    for rollout in (rollout for draw in draws for rollout in draw):
        if rollout.score is not None:
            scores.setdefault(rollout.sample, []).append(s.arena.metric(rollout.score))
    return {sample: sum(values) / len(values) for sample, values in scores.items()}


def _fixed(s: Parts, name: str, usage: Usage) -> Usage:
    """The spend when this was first asked for, from the journal, because a replay pays nothing."""
    known: dict[str, Any] = s.run.decide(name, usage.to_json)
    return Usage(**known)


# -- rewrites


async def _rewritten(s: Parts, start: Skill, n: int) -> tuple[Skill, Usage]:
    """The best on `select` of n rewrites of the start skill (the first of equals; n = 1 needs no choice), and what they
    cost: the first step's rollouts, the optimizer's calls, the rollouts to choose by."""
    step = next(schedule(s.cfg.train, s.splits.train, s.cfg.seed))
    rollouts = await s.roll(start, step.batch, purpose="controls")
    cost = sum((rollout.trajectory.usage for rollout in rollouts), Usage())
    found: list[Skill] = []
    for draws in (range(1), range(1, n)):  # the first is the one that the arm of one rewrite has
        before = s.run.paid("optimizer")[1]
        answers = await run_all([_rewrite(s, start, rollouts, step, draw) for draw in draws])
        asked = minus(s.run.paid("optimizer")[1], before)
        cost = cost + _fixed(s, f"optimizer's cost of rewrites {draws}", asked)
        found += [skill for skill in answers if skill is not None]
    if not found:
        raise InfraError("no answer of the optimizer could be used as a rewrite")
    if n == 1:
        return found[0], cost
    texts = list({skill.hash: skill for skill in found}.values())
    passes = await run_all([s.roll(skill, s.splits.select, purpose="controls") for skill in texts])
    means = [mean([s.arena.metric(r.score) for r in rolled if r.score is not None]) or 0.0 for rolled in passes]
    cost = sum((r.trajectory.usage for rolled in passes for r in rolled), cost)
    return texts[max(range(len(texts)), key=lambda i: (means[i], -i))], cost


async def _rewrite(s: Parts, start: Skill, rollouts: Sequence[Rollout], step: Step, draw: int) -> Skill | None:
    """One rewrite by one call, given what the first step's reflection was given; None where it cannot be used."""
    answers = s.agent or (ByModel(s.optimizer_client, s.run) if s.optimizer_client else None)
    if answers is None:
        raise InfraError("an optimizer without a model cannot rewrite")
    cfg = s.cfg.optimizer
    samples = {sample.id: sample for sample in step.batch}
    known = [rollout for rollout in rollouts if rollout.score is not None]
    evidence = [
        trajectory_part(
            rollout,
            render_rollout(
                rollout, samples[rollout.sample], s.env, chars=cfg.trajectory_chars, show_expected=cfg.show_expected
            ),
        )
        for rollout in sorted(known, key=lambda rollout: rollout.score.hard if rollout.score else 0.0)
    ]

    def read(data: Any) -> Skill:
        text = data.get("skill") if isinstance(data, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError('"skill" must be the whole new document')
        edit = Edit("rewrite", text=text.removeprefix(start.frontmatter))
        copy = copied(edit, start.body, list(samples.values()), s.env)
        if copy and cfg.checks == "enforce":
            raise ValueError(f"{copy}; write general guidance instead")
        applied = apply(start, [edit], max_tokens=s.cfg.train.skill_limit(start.tokens))
        if applied.reports[0].status == "rejected":
            raise ValueError(applied.reports[0].reason)
        return applied.skill

    stages = Stages(answers, s.run, cfg)
    return await stages.ask_or_none("rewrite_once", Context(start, Memory(), step), evidence, read, redraw=draw)


CONTROL_ARMS = 4  # that are rolled on the test split beside the two skills of the certificate
