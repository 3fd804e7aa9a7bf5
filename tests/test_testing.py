"""The contract suites pass what is sound and name what is not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterable, Callable
from dataclasses import replace
from typing import Any

import pytest

from skilltune import Env, Score
from skilltune.edits import Edit
from skilltune.envs import Task
from skilltune.errors import InfraError
from skilltune.journal.run import Run
from skilltune.limits import Limits
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models.build import build_model
from skilltune.optimizer import Optimizer, Proposal
from skilltune.optimizer.examples import ExamplesOptimizer
from skilltune.rollout import Rollout, Trajectory, Turn
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets.chat import ChatTarget
from skilltune.testing import check_env, check_optimizer, check_scorer, check_target
from skilltune.usage import Usage
from world import World

ROWS = [{"id": f"s{i}", "input": f"{i} + 1?", "target": str(i + 1)} for i in range(12)]
ENV = Env(ROWS)


# -- environments and scorers


@pytest.mark.parametrize("score", ["exact", "number", "f1", "em", "anls", "contains", "json", "choice"])
def test_our_own_scorers_honour_the_contract(score: str) -> None:
    check_scorer(score, ROWS)


def test_an_async_function_may_score() -> None:
    async def right(sample: Sample, rollout: Rollout) -> bool:
        return rollout.answer == sample.target

    check_env(Env(ROWS, right))


def lucky() -> Callable[[Sample, Rollout], float]:
    turns = itertools.count()
    return lambda sample, rollout: float(rollout.answer == sample.target or (rollout.answer == "x" and next(turns) % 2))


def fussy(sample: Sample, rollout: Rollout) -> bool:
    return int(rollout.answer or 0) == int(sample.target)


def unmeasured(sample: Sample, rollout: Rollout) -> Score:
    metrics: Any = {"words": {"a", "b"}}
    return Score(float(rollout.answer == sample.target), metrics=metrics)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda sample, rollout: 1.0, "an empty answer scores 1"),
        (lambda sample, rollout: 0.5 * (rollout.answer == sample.target), "its expected answer scores 0.5"),
        (lucky(), "a score that changes"),
        (fussy, "ValueError: invalid literal"),
        (unmeasured, 'the metric "words" of a score must be a number, not set'),
    ],
)
def test_a_scorer_that_misleads_is_found(score: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_scorer(score, ROWS)


# -- targets


class Sums:
    """A sound target: it can add."""

    fingerprint = "sums 1"

    def guess(self, skill: Skill, task: Task) -> Usage:
        return Usage(1, skill.tokens + 10, 2)

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        await asyncio.sleep(0)
        asked = task.messages[-1].text
        answer = str(int(asked.split()[0]) + 1)
        return Trajectory(answer, (Turn("user", asked), Turn("assistant", answer)), usage=Usage(1, 10, 2))


class Changing(Sums):
    _prints = itertools.count()

    @property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"sums {next(self._prints)}"


class Free(Sums):
    def guess(self, skill: Skill, task: Task) -> Usage:
        return Usage()


class Altered(Sums):
    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        return replace(await super().run(skill, task, attempt), **self.changes)


class Braces(Sums):
    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        skill.body.format()
        return await super().run(skill, task, attempt)


class Deaf(Sums):
    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        if attempt:
            for _ in range(20):
                try:
                    await asyncio.sleep(0.02)
                except asyncio.CancelledError:
                    continue
        return await super().run(skill, task, attempt)


class Away(Sums):
    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        raise InfraError("nobody answers")


def test_a_sound_target_passes() -> None:
    check_target(Sums(), ENV)


def test_the_chat_target_passes(tmp_path: Any) -> None:
    with World(2, 4, 4, 4) as world, Run.open(tmp_path) as run:
        model = build_model(f"openai@{world.url}/target")
        client = Client(model, Meter(Endpoint(4), Budget(Limits(), Usage()), run, "target"))
        check_target(ChatTarget(client), Env(world.samples()))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (object(), "a target has"),
        (Changing(), "changes from call to call"),
        (Free(), "no call"),
        (Altered(outcome="infra_error"), "never scored"),
        (Altered(answer=4), "not a text"),
        (Altered(turns=()), "no turns"),
        (Altered(turns=(("user", "x"),)), r"Turn\(role, text\)"),
        (Altered(seconds=object()), "cannot be written as JSON"),
        (Braces(), "braces"),
        (Deaf(), "has not ended"),
        (Away(), "nobody answers"),
    ],
)
def test_a_target_that_breaks_the_contract_is_found(target: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.testing.CANCEL_S", 0.2)
    with pytest.raises((AssertionError, KeyError), match=message):
        check_target(target, ENV)


def test_pitfall_22_a_key_in_a_fingerprint_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE_API_KEY", "sesame-open-1")
    target = Sums()
    target.fingerprint = "sums with sesame-open-1"
    with pytest.raises(AssertionError, match="HOUSE_API_KEY"):
        check_target(target, ENV)


# -- optimizers


class Fixed(Optimizer):
    """Proposes what it was made with."""

    def __init__(self, *proposals: Any, looks_back: bool = False, rate: Any = 1) -> None:
        self.proposals, self.looks_back, self.rate = list(proposals), looks_back, rate

    async def propose(self, skill: Any, rollouts: AsyncIterable[Rollout], memory: Any, step: Any, limit: int) -> Any:
        return self.proposals if [rollout async for rollout in rollouts] else []

    async def learning_rate(self, skill: Any, proposals: Any, memory: Any, step: Any, most: int) -> Any:
        return self.rate


class Moody(Fixed):
    async def propose(self, skill: Any, rollouts: AsyncIterable[Rollout], memory: Any, step: Any, limit: int) -> Any:
        self.rate += 1
        return [Proposal(Edit("add", text=f"- Rule {self.rate}."))]


RULE = Edit("add", text="- Add one.")


def test_sound_optimizers_pass() -> None:
    check_optimizer(Fixed(Proposal(RULE, ("s1",))), ENV)
    check_optimizer(Fixed(Proposal(RULE), looks_back=True), ENV)
    check_optimizer(ExamplesOptimizer(ENV, {sample.id: sample for sample in ENV.samples}, 12, 1), ENV)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (object(), "an optimizer has"),
        (Fixed(RULE), "not a Proposal"),
        (Fixed(Proposal(RULE, ("t9",))), r"not shown: \['t9'\]"),
        (Fixed(Proposal(Edit("delete", target="- Nowhere."))), "cannot be placed"),
        (Fixed(Proposal(Edit("add", text=" "))), "add needs text"),
        (Fixed(Proposal(RULE), rate=0), "learning_rate returned 0"),
        (Fixed(Proposal(RULE), rate=9), "learning_rate returned 9"),
        (Moody(), "other proposals"),
    ],
)
def test_an_optimizer_that_breaks_the_contract_is_found(optimizer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_optimizer(optimizer, ENV)
