"""Targets: the frozen agent that does the tasks. A new kind is one class with the two members of `Target`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from skilltune.envs import Env
from skilltune.rollout import Trajectory
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.usage import Usage


@runtime_checkable
class Target(Protocol):
    """A frozen agent.

    `fingerprint`: everything that can change what it does with a given skill and sample, and no secret.
    `run` does one sample with the skill; `attempt` numbers repeated draws of the same. It returns a `Trajectory`
    whose outcome is "ok" or "agent_limit", and raises `InfraError`, `SampleError` or `CallConfigError` otherwise.
    `guess` is what one run may cost, for budgets and estimates before any was seen.
    """

    @property
    def fingerprint(self) -> str: ...

    async def run(self, skill: Skill, sample: Sample, env: Env, attempt: int) -> Trajectory: ...

    def guess(self, skill: Skill, sample: Sample, env: Env) -> Usage: ...


__all__ = ["Target"]
