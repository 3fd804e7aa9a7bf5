"""Runs a plug-in's target like any other: within the budget, in the endpoint's window, timed, retried, counted.

These rules apply to calls of a `Model`, so the target is wrapped as a model. A task is a request with skill, sample and
environment; the reply contains its trajectory. The plug-in knows nothing of this.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from skilltune import plugins
from skilltune.config import TargetConfig
from skilltune.envs import Env
from skilltune.errors import CallConfigError, CallError, InfraError, UsageError
from skilltune.journal.keys import digest
from skilltune.metering.client import Client
from skilltune.models import Reply, Request
from skilltune.models.prices import price
from skilltune.names import parse_name
from skilltune.rollout import Trajectory
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage

PROBE = "probe"  # sample id for requests without a sample, such as `check --probe`


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(Request):
    """One sample to do with a skill; `draw` is the attempt."""

    skill: Skill
    sample: Sample
    env: Env


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Reply):
    """The reply to a task, with the target's trajectory."""

    trajectory: Trajectory


@dataclass(slots=True)
class AgentModel:
    """Implements `Model` with a target. `package` is the plug-in's distribution and version; an upgrade is another
    model."""

    name: str
    target: Target
    package: str
    timeout_s: float
    price: tuple[float, float] | None  # dollars per million input and output tokens; overrides the target's own cost

    @property
    def fingerprint(self) -> str:
        return digest("plugin", self.name, self.package, self.target.fingerprint)

    async def complete(self, request: Request) -> Done:
        task = request if isinstance(request, Task) else _as_task(request)
        where = f'{self.name}, sample "{task.sample.id}"'
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                trajectory = await self.target.run(task.skill, task.sample, task.env, task.draw)
        except CallError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise InfraError(f"{where}: no result within {self.timeout_s:g} s (target.timeout_s)") from None
            raise CallConfigError(f"{where}: the plug-in failed with {type(error).__name__}: {error}") from error
        if not isinstance(trajectory, Trajectory) or trajectory.outcome not in ("ok", "agent_limit"):
            raise CallConfigError(
                f"{where}: `run` must return a Trajectory whose outcome is ok or agent_limit, and raise InfraError or "
                f"CallConfigError otherwise; it returned {trajectory!r:.200}"
            )
        usage = self.priced(trajectory.usage)
        return Done(trajectory.answer, usage, trajectory=replace(trajectory, usage=usage))

    def guess(self, request: Request) -> Usage:
        task = request if isinstance(request, Task) else _as_task(request)
        return self.priced(self.target.guess(task.skill, task.sample, task.env))

    def priced(self, usage: Usage) -> Usage:
        """The usage with at least one call, and with dollars by the configured price if there is one."""
        usd = usage.usd if self.price is None else price(self.name, usage, override=self.price)
        return replace(usage, calls=max(1, usage.calls), usd=usd)

    async def aclose(self) -> None:
        close = getattr(self.target, "aclose", None)  # for targets that hold connections or processes
        if close is not None:
            await close()


class AgentClient(Client):
    """A client that takes the target's own guess as the bound."""

    def bound(self, request: Request) -> Usage:
        assert isinstance(self.model, AgentModel)
        return self.model.guess(request)


@dataclass(frozen=True, slots=True)
class AgentTarget:
    """Implements `Target`: runs the plug-in's target through its client."""

    client: AgentClient

    @property
    def fingerprint(self) -> str:
        return self.client.model.fingerprint

    def guess(self, skill: Skill, sample: Sample, env: Env) -> Usage:
        return self.client.bound(Task((), skill=skill, sample=sample, env=env))

    async def run(self, skill: Skill, sample: Sample, env: Env, attempt: int) -> Trajectory:
        reply = await self.client(Task((), draw=attempt, skill=skill, sample=sample, env=env))
        assert isinstance(reply, Done)
        return reply.trajectory


def load_target(cfg: TargetConfig) -> AgentModel:
    """The target plug-in named by `cfg.model` ("plugin:NAME/REST"), created as `make(REST, cfg)`.

    Raises `UsageError` if there is none, or if the created object is not a `Target`.
    """
    name = parse_name(cfg.model)
    if cfg.api != "chat":
        raise UsageError(f"target.api: `{name}` has no {cfg.api} API; leave `api` out")
    plugin = plugins.require("target", name.plugin)
    target = plugin.make(name.model, cfg)
    if not isinstance(target, Target):
        raise UsageError(
            f'the target plug-in "{plugin.name}" of {plugin.package} made a {type(target).__name__}, which lacks a '
            "member of `skilltune.targets.Target`: fingerprint, run, guess"
        )
    return AgentModel(cfg.model, target, plugin.package, cfg.timeout_s, cfg.price)


def _as_task(request: Request) -> Task:
    """A plain request as a task: its text becomes the sample, and the skill is empty."""
    text = "\n\n".join(message.text for message in request.messages)
    sample = Sample(id=PROBE, input=text or PROBE, target=PROBE)
    return Task((), draw=request.draw, skill=Skill(""), sample=sample, env=Env([sample]))
