"""An Inspect task's solver as the frozen agent. Inspect evaluates one sample of the task with the target's model.

The model's calls go through the gateway, which meters them, journals them and proves that the skill was there. The
task's scorer runs in the same evaluation, so the calls of a model that grades are part of the rollout.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from skilltune.config import TargetConfig
from skilltune.envs.inspect import InspectEnv, InspectTask, time_limit
from skilltune.envs.inspect.process import ATTEMPTS, GRACE_S, Workers
from skilltune.envs.task import Task
from skilltune.errors import CallConfigError, CallError, InfraError, Stopped, UsageError
from skilltune.gateway import Activation, Gateway, Lease, RolloutLimits, Upstream, upstream_of
from skilltune.gateway.trajectory import CALL
from skilltune.journal.keys import digest
from skilltune.journal.run import Run
from skilltune.metering.clients import Clients
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.names import parse_name
from skilltune.rollout import THINKING, Artifact, Trajectory, Turn
from skilltune.skill import Skill
from skilltune.targets.metered import MeteredTarget
from skilltune.usage import Usage, minus

HUNG = 0.5  # share of a rollout's time that was spent waiting before its end, from which on something hangs
GUESSED_CALLS, GUESSED_TOKENS = 2, 256  # of a rollout before the first one: the solver's call, and a grader's
TIME_LIMITS = ("time", "working")  # limits that a hanging endpoint may reach


@dataclass(slots=True)
class InspectTarget:
    """Implements `Target` with the solver of an Inspect task and a model behind the gateway.

    `slots` schedules the calls of the model, `spend` counts the cost of a failed attempt, whose exchanges are journaled
    already, and `account` is the name under which they are journaled. The result of an evaluation is in the
    trajectory's `stream`.
    """

    inspected: InspectTask
    upstream: Upstream
    timeout_s: float
    temperature: float | None
    max_tokens: int | None
    workers: Workers
    run_journal: Run | None = None
    slots: Endpoint | None = None
    account: str = ""
    spend: Callable[[Usage], None] = lambda _: None
    _gateway: Gateway | None = None
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @property
    def fingerprint(self) -> str:
        model = self.upstream.fingerprint, self.temperature, self.max_tokens
        return digest("inspect", self.inspected.code, *model)

    @property
    def facts(self) -> tuple[str, ...]:
        task = self.inspected.task or self.inspected.file.name
        return (f"Inspect evaluates the task {task}, whose solver may change the messages that are shown here",)

    def guess(self, skill: Skill, task: Task) -> Usage:
        characters = len(skill.body) + sum(len(message.text) for message in task.messages)
        tokens = -(-characters // 4) * GUESSED_CALLS
        return self.upstream.priced(Usage(GUESSED_CALLS, tokens, (self.max_tokens or GUESSED_TOKENS) * GUESSED_CALLS))

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        if task.id not in self.inspected.digests:
            raise CallConfigError(f'the Inspect task has no sample "{task.id}"')
        content = self.inspected.digests[task.id]
        key = digest("inspect rollout", self.fingerprint, skill.hash, task.id, content, attempt)
        lease = await self._lease(key, skill)
        request = {
            "do": "evaluate",
            "file": str(self.inspected.file),
            "task": self.inspected.task,
            "id": task.id,
            "digest": content,
            "skill": skill.body,
            "model": self.upstream.model,
            "url": f"{lease.url}/v1",
            "token": lease.key,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "time_limit": max(1, round(self.timeout_s)),
        }
        started = time.monotonic()
        try:
            result = await self.workers.ask(request, self.timeout_s + GRACE_S)
            waited = await lease.end()
            trajectory = witnessed(result, lease, time.monotonic() - started, waited=waited)
        except BaseException as failure:  # also a cancelled rollout: its exchanges are paid
            await lease.end()
            self.spend(lease.paid)
            # The model's failure explains Inspect's.
            told = lease.fault if isinstance(lease.fault, CallError | Stopped) else failure
            if not isinstance(failure, Exception):
                raise
            if isinstance(told, CallError):
                told.usage = Usage()  # every exchange is journaled with its own cost
            raise told from failure
        self.spend(minus(lease.paid, lease.usage))  # the caller counts all, and the rest was paid before
        return replace(trajectory, skill_offered=lease.offered or not skill.body.strip())

    async def _lease(self, key: str, skill: Skill) -> Lease:
        async with self._starting:
            if self._gateway is None:
                gateway = Gateway()
                await gateway.start()
                self._gateway = gateway
        promised = Activation("inline", skill.name, "", skill.body) if skill.body.strip() else None
        return self._gateway.lease(
            self.upstream,
            promised,
            RolloutLimits(),
            rollout_key=key,
            run=self.run_journal,
            slots=self.slots,
            account=self.account,
        )

    def usd(self, usage: Usage) -> float | None:
        """The price of a usage in dollars, or None if it is unknown."""
        return self.upstream.priced(usage).usd

    async def aclose(self) -> None:
        await self.workers.aclose()
        if self._gateway is not None:
            await self._gateway.aclose()


def witnessed(result: Mapping[str, Any], lease: Lease, seconds: float, *, waited: float = 0.0) -> Trajectory:
    """The trajectory of an evaluation. Raises the fault of the model that ended it, `InfraError` if it failed or hung,
    and `CallConfigError` if the task went past the gateway.

    `waited` is the time in seconds that an exchange under way at the end had waited. If the time ran out, by
    `target.timeout_s` or a limit of the task's own, and `HUNG` of that limit or more went by in waiting for the model
    or in code that asked nothing, there is no result.
    """
    if lease.fault is not None:
        raise lease.fault
    if why := result.get("unusable"):
        raise CallConfigError(f"the Inspect task cannot be used: {why}")
    if others := result.get("others"):
        raise CallConfigError(
            f"the Inspect task called {', '.join(others)} itself, so these calls were not metered: let it use "
            "get_model() without a name, which is target.model"
        )
    if why := result["error"]:
        raise InfraError(f"Inspect failed: {why}", systemic=f"Inspect failed: {why}"[:200], attempts=ATTEMPTS)
    limit, stop = result["limit"], result["stop"]
    if limit in TIME_LIMITS:
        limit_s, name = result["limit_s"], result["limit_name"]
        if lease.trouble is not None:
            raise lease.trouble  # its time ran out while the gateway tried a failed call again
        if waited >= HUNG * limit_s:
            raise InfraError(
                f"the Inspect task waited {waited:.0f} of its {limit_s:g} s for one answer of its model: raise {name}, "
                "or use fewer workers"
            )
        if result["idle"] >= HUNG * limit_s:
            raise InfraError(
                f"the solver of the Inspect task hung: it neither asked its model nor used a tool or a "
                f"sandbox in the last {result['idle']:.0f} of its {limit_s:g} s ({name})",
                systemic="the solver of the Inspect task hangs",
                attempts=ATTEMPTS,
            )
        if not lease.exchanges:
            raise InfraError(f"the {limit_s:g} s of the Inspect task ({name}) ran out before its model's first answer")
    if not lease.exchanges:
        raise CallConfigError(
            "the Inspect task asked its model nothing, so a skill cannot change anything: check its solver, and take "
            "cache=True out of it"
        )
    note = f"stopped by the {limit} limit" if limit else ""
    if stop == "max_tokens":
        note = note or "the answer was cut at max_tokens"
    return Trajectory(
        answer=result["answer"],
        turns=tuple(turn for message in result["messages"] for turn in _turns(message)),
        outcome="agent_limit" if note else "ok",
        error=note or ("the model refused" if stop == "content_filter" else ""),
        usage=lease.usage,
        seconds=round(seconds, 4),
        skill_loaded=True,
        stream=Artifact.of(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace")),
        journaled=True,
    )


def _turns(message: Mapping[str, Any]) -> Iterator[Turn]:
    """The turns of one message of Inspect's. System messages are left out, as for every target."""
    if message["role"] == "system":
        return
    if message["thinking"]:
        yield Turn(THINKING, message["thinking"])
    text = f"[error]\n{message['error']}" if message["error"] else message["text"]
    if text:
        yield Turn(message["role"], text)
    for name, arguments in message["calls"]:
        lines = [f"{key}: {_shown(value)}" for key, value in arguments.items()]
        yield Turn(CALL, "\n".join([name, *lines]))


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def make_inspect(cfg: TargetConfig, env: InspectEnv, clients: Clients) -> MeteredTarget:
    """The target of an Inspect task with the model that `cfg.model` names. Raises `UsageError` for an option that it
    would ignore, and for a model that has no API."""
    name = parse_name(cfg.model)
    if name.scheme not in ("openai", "anthropic"):
        raise UsageError(
            f"target.model: `{name}` cannot do an Inspect task, which runs its own solver and calls a model by an API: "
            "name an openai or anthropic model"
        )
    for option in ("tools", "hedge"):
        if getattr(cfg, option):
            raise UsageError(f"target.{option}: an Inspect task runs its own solver; leave it out")
    try:
        upstream = upstream_of(cfg.model, api=cfg.api, key_env=clients.key_env(cfg), rate=cfg.price)
    except CallError as error:
        raise UsageError(f"target.model: {error}") from error
    target = InspectTarget(
        inspected=env.task_file,
        upstream=upstream,
        timeout_s=time_limit(cfg),
        temperature=cfg.temperature,
        max_tokens=cfg.max_tokens,
        workers=Workers(cfg.workers),
        run_journal=clients.run,
        slots=clients.endpoint(cfg),
        spend=clients.budget.spend,
    )
    meter = Meter(Endpoint(cfg.workers, max_wait_s=cfg.max_wait_s), clients.budget, clients.run, "target")
    return MeteredTarget(cfg.model, target, meter)
