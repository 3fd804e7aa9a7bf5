"""A target whose rollouts are units of work: one slot and one reservation each, whatever number of calls it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from skilltune.envs.task import Task
from skilltune.metering.meter import Meter
from skilltune.models.prices import price
from skilltune.rollout import Trajectory
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage


@dataclass(frozen=True, slots=True)
class MeteredTarget:
    """Implements `Target`: runs another target within the budget, in the endpoint's window, with retries.

    `rate` is dollars per million input and output tokens; it overrides the dollars that the target states. The target
    may have `usd(usage)`, its own price, `refuses(skill)`, `learned` as a `Client` has it, and `aclose()`.
    """

    name: str
    target: Target
    meter: Meter
    rate: tuple[float, float] | None = None

    @property
    def fingerprint(self) -> str:
        return self.target.fingerprint

    def guess(self, skill: Skill, task: Task) -> Usage:
        return self._priced(self.target.guess(skill, task))

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        return await self.meter(partial(self._once, skill, task, attempt), self.guess(skill, task))

    async def _once(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        trajectory = await self.target.run(skill, task, attempt)
        return replace(trajectory, usage=self._priced(trajectory.usage))

    def _priced(self, usage: Usage) -> Usage:
        """The usage with at least one call, and with dollars by the configured price if there is one."""
        return replace(usage, calls=max(1, usage.calls), usd=usage.usd if self.rate is None else self.usd(usage))

    def usd(self, usage: Usage) -> float | None:
        """The price of a usage in dollars, or None if it is unknown."""
        own = getattr(self.target, "usd", None)
        return own(usage) if own is not None and self.rate is None else price(self.name, usage, override=self.rate)

    def refuses(self, skill: Skill) -> str:
        """The reason why the target cannot load a skill as it is; "" if it can."""
        refuses = getattr(self.target, "refuses", None)
        return refuses(skill) if refuses is not None else ""

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences about the target for `check`, `doctor` and the card."""
        return getattr(self.target, "facts", ())

    @property
    def learned(self) -> Mapping[str, str]:
        return getattr(self.target, "learned", {})

    async def aclose(self) -> None:
        close = getattr(self.target, "aclose", None)  # for targets that hold connections or processes
        if close is not None:
            await close()
