"""Targets: the frozen agent that does the tasks. A new kind is one class with the members of `Target`.

`build` knows the names of targets from one table, `targets.makers.MAKERS`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from skilltune.envs.task import Task
from skilltune.rollout import Trajectory
from skilltune.skill import Skill
from skilltune.usage import Usage


@runtime_checkable
class Target(Protocol):
    """A frozen agent.

    `fingerprint` identifies everything that can change its behaviour for a given skill and task, and contains no
    secret. `run` does one task with the skill; `attempt` numbers repeated runs of the same task. It returns a
    `Trajectory` with outcome "ok" or "agent_limit", and otherwise raises `InfraError`, `SampleError` or
    `CallConfigError`. An error states in `usage` what the failed run cost, as far as it is known. `guess` estimates the
    cost of one run, for budgets and estimates before the first run.
    """

    @property
    def fingerprint(self) -> str: ...

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory: ...

    def guess(self, skill: Skill, task: Task) -> Usage: ...


__all__ = ["Target", "Task"]
