"""Targets: the frozen agent that does the tasks. A new kind is one class with the members of `Target`."""

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

    `fingerprint` identifies everything that can change its behaviour for a given skill and sample, and contains no
    secret. `run` does one sample with the skill; `attempt` numbers repeated runs of the same sample. It returns a
    `Trajectory` with outcome "ok" or "agent_limit", and otherwise raises `InfraError`, `SampleError` or
    `CallConfigError`. It reads the sample only through `env.messages(sample)` and `env.files(sample)`: the expected
    answer, the checks and the other samples must not reach the agent. `guess` estimates the cost of one run, for
    budgets and estimates before the first run.
    """

    @property
    def fingerprint(self) -> str: ...

    async def run(self, skill: Skill, sample: Sample, env: Env, attempt: int) -> Trajectory: ...

    def guess(self, skill: Skill, sample: Sample, env: Env) -> Usage: ...


__all__ = ["Target"]
