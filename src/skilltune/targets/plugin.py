"""A plug-in's target: timed, and held to its contract."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from skilltune import plugins
from skilltune.config import TargetConfig
from skilltune.envs.task import Task
from skilltune.errors import CallConfigError, CallError, InfraError, UsageError
from skilltune.journal.keys import digest
from skilltune.names import parse_name
from skilltune.rollout import Artifact, Trajectory
from skilltune.skill import Skill
from skilltune.targets import Target
from skilltune.usage import Usage


@dataclass(frozen=True, slots=True)
class PluginTarget:
    """Implements `Target` with a plug-in's target. `package` is the plug-in's distribution and version; an upgrade is
    another target."""

    name: str
    target: Target
    package: str
    timeout_s: float

    @property
    def fingerprint(self) -> str:
        return digest("plugin", self.name, self.package, self.target.fingerprint)

    def guess(self, skill: Skill, task: Task) -> Usage:
        try:
            guess = self.target.guess(skill, task)
        except CallError:
            raise
        except Exception as error:
            raise CallConfigError(f"{self.name}: `guess` failed with {type(error).__name__}: {error}") from error
        if not isinstance(guess, Usage):
            raise CallConfigError(f"{self.name}: `guess` must return a Usage; it returned {guess!r:.200}")
        return guess

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        where = f'{self.name}, sample "{task.id}"'
        limit = asyncio.timeout(self.timeout_s)
        try:
            async with limit:
                trajectory = await self.target.run(skill, task, attempt)
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
        if wrong := [path for path, file in trajectory.artifacts.items() if not isinstance(file, Artifact)]:
            raise CallConfigError(
                f"{where}: `Trajectory.artifacts` maps a path to an `Artifact`; make one with "
                f"skilltune.rollout.Artifact.of(content) for {wrong[0]!r:.100}"
            )
        return trajectory

    async def aclose(self) -> None:
        close = getattr(self.target, "aclose", None)
        if close is not None:
            await close()


def load_target(cfg: TargetConfig) -> PluginTarget:
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
    return PluginTarget(cfg.model, target, plugin.package, cfg.timeout_s)
