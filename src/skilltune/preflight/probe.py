"""Test each model with one call: for `check --probe`, for `doctor`, and at the start of a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from skilltune.envs.task import Task
from skilltune.errors import BudgetExceeded, CallConfigError, CallError, InfraError, InfraStopped, Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import PROBE, Paid
from skilltune.metering.client import Client
from skilltune.metering.slots import Endpoint
from skilltune.models import Request, user
from skilltune.models.retry import RetryPolicy
from skilltune.parts import Parts
from skilltune.skill import Skill
from skilltune.targets.agents.target import AgentTarget
from skilltune.targets.chat import ChatTarget
from skilltune.targets.makers import RunTarget
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.tools import ToolsTarget, no_tools
from skilltune.usage import Usage

PATIENCE_S = 30.0  # time limit of one probe in `probe_roles`, retries included
ROLLOUT_S = 300.0  # the same for a rollout with tools, because command lines start slowly and ask several times
SMOKE = Task("probe", (user("Change no file. Reply with the word: ready"),))
QUICK = RetryPolicy(attempts=5)
"""Retries of a probe's calls: enough for a hiccup, and over after seconds if the endpoint fails for good."""
REQUEST = Request((user("Reply with the word: ready"),))


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one call to a role: `seconds` until the answer, or the `error`. `learned` lists options that the
    endpoint turned out not to support. `note` says what an agent's rollout showed."""

    role: str
    model: str
    seconds: float
    error: str = ""
    learned: tuple[str, ...] = ()
    note: str = ""


async def probe(client: Client, request: Request = REQUEST) -> Usage:
    """Make one call and return its usage. Raises the errors of a call.

    The budget counts the call as a kind of its own, because its cost does not predict the cost of a real call."""
    usage = (await replace(client, meter=replace(client.meter, kind=PROBE))(request)).usage
    client.answered = True
    return usage


async def probe_target(session: Parts, target: RunTarget) -> str:
    """Let a target do one real task, with the skill and the longest sample. An agent does a short task, and the note
    that is returned says if it saw the skill. Raises the errors of a call.

    A server may cut a long prompt, refuse a system message or put the answer into an unexpected field."""
    samples = [*session.splits.train, *session.splits.select, *session.splits.test]
    task = session.env.task(max(samples, key=lambda sample: len(sample.text)))
    if isinstance(target, ChatTarget):
        await probe(_quickly(target.client), target.request(session.skill, task, 0))
        return ""
    if isinstance(target, MeteredTarget) and isinstance(target.target, AgentTarget):
        return await _smoke(session.skill, target, target.target)
    if isinstance(target, ToolsTarget):
        client = _quickly(target.client)
        counted = replace(target, client=replace(client, meter=replace(client.meter, kind=PROBE)))
    else:
        counted = replace(target, meter=replace(target.meter, kind=PROBE, endpoint=Endpoint(1, QUICK)))
    await counted.run(session.skill, task, 0)
    return ""


def _quickly(client: Client) -> Client:
    """The client with few retries."""
    return replace(client, meter=replace(client.meter, endpoint=Endpoint(1, QUICK)))


async def _smoke(skill: Skill, target: MeteredTarget, agent: AgentTarget) -> str:
    """One rollout with a short task, counted as a probe. Raises `InfraError` if a limit ended it."""
    alone = replace(
        agent,
        timeout_s=min(agent.timeout_s, ROLLOUT_S),
        slots=Endpoint(4, QUICK),
        offers=no_tools,
        _gateway=None,
        _started=False,
    )
    once_more = Endpoint(1, replace(QUICK, attempts=2))  # the gateway retries the calls of each attempt
    counted = replace(target, target=alone, meter=replace(target.meter, kind=PROBE, endpoint=once_more))
    try:
        done = await counted.run(skill, SMOKE, 0)
    finally:
        await alone.aclose()
    if done.outcome != "ok":
        raise InfraError(f"{agent.agent} did not finish a short task: {done.error}")
    calls = f"{done.usage.calls} calls of its model" if done.usage.calls > 1 else "1 call of its model"
    if agent.upstream is None:
        return "nothing proves that it saw the skill"
    if alone.skill_files(skill) is None:
        return f"{calls}; the skill has no text yet"
    return f"{calls}; the skill was offered{' and loaded' if done.skill_loaded else ', and it did not load it'}"


def probe_of(session: Parts, client: Client) -> Request:
    """The request that tests the optimizer's or the judge's model: one word, with the settings of the role."""
    if session.judge is not None and client is session.judge.client:
        return replace(REQUEST, temperature=session.judge.temperature, max_tokens=session.judge.max_tokens)
    cfg = session.cfg.optimizer
    return replace(REQUEST, temperature=cfg.temperature, max_tokens=cfg.max_tokens)


async def probe_roles(session: Parts, announce: Callable[[str], None] = lambda text: None) -> list[Probe]:
    """Probe each model of a run, once if it has two roles. An error is part of the result. `announce` hears before a
    rollout of an agent begins."""
    probes = []
    for role, payee in roles(session):
        works = isinstance(payee, MeteredTarget | ToolsTarget)
        patience = ROLLOUT_S if works else PATIENCE_S
        if works:
            announce(
                f"probe: one rollout of {payee.name}, which calls its model a few times (at most {patience:g} s) …"
            )
        started, error, note = time.monotonic(), "", ""
        try:
            async with asyncio.timeout(patience):
                if isinstance(payee, Client):
                    await probe(_quickly(payee), probe_of(session, payee))
                else:
                    note = await probe_target(session, payee)
        except TimeoutError:
            error = f"`{payee.name}`: no answer within {patience:g} s"
        except (CallError, Stopped) as failure:
            error = str(failure)
        learned = tuple(payee.learned.values())
        probes.append(Probe(role, payee.name, time.monotonic() - started, error, learned, note))
    return probes


def roles(session: Parts) -> list[tuple[str, Client | RunTarget]]:
    """(role, its model or agent) of everything that a run calls. A model in two roles appears once, with both names."""
    judge = session.judge.client if session.judge else None
    found: dict[str, tuple[str, Client | RunTarget]] = {}
    further = [("further target", other.roll.target) for other in session.arena.also]
    every = [("target", session.target), ("optimizer", session.optimizer_client), ("judge", judge), *further]
    for role, payee in every:
        if payee is not None:
            model = payee.client.fingerprint if isinstance(payee, ChatTarget) else payee.fingerprint
            found[model] = (f"{found[model][0]} and {role}", found[model][1]) if model in found else (role, payee)
    return list(found.values())


async def try_targets(session: Parts) -> None:
    """Call each further chat model once, so that a wrong key, model or path is found before anything else is spent;
    once per run. Raises `CallConfigError`. One that cannot be reached is left to its own rollouts."""
    for other in session.arena.also:
        target = other.roll.target
        if isinstance(target, ChatTarget | ToolsTarget):
            client = target.client

            async def pay(client: Client = client) -> Paid:
                return Paid(None, await probe(client))

            with suppress(InfraError, Stopped):
                await session.run.memo(digest(PROBE, client.model.fingerprint), PROBE, pay)


async def try_models(session: Parts) -> None:
    """Call the models of the optimizer, the judge and the further targets once, before anything is spent on the target;
    once per run.

    Raises `CallConfigError` for a wrong key, model or path, and `InfraStopped` if a model cannot be reached. A model
    that is also the target is not called, because the target's first call tests it. If the budget is too small even for
    this, the loop reports it.
    """
    further = [(f"further target {other.name}", other.roll.target) for other in session.arena.also]
    clients = [(name, target.client) for name, target in further if isinstance(target, ChatTarget | ToolsTarget)]
    for role, client in (*roles(session), *clients):
        if not isinstance(client, Client):
            continue

        async def pay(client: Client = client) -> Paid:
            return Paid(None, await probe(client, probe_of(session, client)))

        try:
            await session.run.memo(digest(PROBE, client.model.fingerprint), PROBE, pay)
        except BudgetExceeded:
            return
        except CallConfigError as error:
            raise CallConfigError(f"the {role} cannot be used, so the target was not called. {error}") from error
        except InfraError as error:
            raise InfraStopped(
                f"the {role} cannot be reached, so the target was not called. {error}\n"
                "Run the same command again when it can."
            ) from error
