"""One call to each model, to see that it answers: for `check --probe`, for `doctor`, and before a run spends."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from skilltune.errors import BudgetExceeded, CallConfigError, CallError, InfraError, InfraStopped, Stopped
from skilltune.journal.keys import digest
from skilltune.journal.run import PROBE, Paid
from skilltune.metering.client import Client
from skilltune.models import Request, user
from skilltune.parts import Parts
from skilltune.targets.chat import ChatTarget
from skilltune.usage import Usage

PATIENCE_S = 30.0  # of `probe_roles`, retries included
REQUEST = Request((user("Reply with the word: ready"),))


@dataclass(frozen=True, slots=True)
class Probe:
    """One call to one role; `seconds` until the answer, `error` if none came. `learned`: what the endpoint turned out
    not to know."""

    role: str
    model: str
    seconds: float
    error: str = ""
    learned: tuple[str, ...] = ()


async def probe(client: Client, request: Request = REQUEST) -> Usage:
    """The cost of one call. Raises all that a call may raise.

    The call has a role of its own, because its cost tells nothing about the cost of a real one."""
    usage = (await replace(client, role=PROBE)(request)).usage
    client.answered = True
    return usage


def probe_of(session: Parts, client: Client) -> Request:
    """The question that shows best if a role will do.

    The target's is a real one, with the skill and the longest sample: a server may cut a long prompt, refuse a system
    message, or put the whole answer where nobody looks for it. The others are asked for one word, under the settings of
    their role.
    """
    if session.judge is not None and client is session.judge.client:
        return replace(REQUEST, temperature=session.judge.temperature, max_tokens=session.judge.max_tokens)
    if client is session.optimizer_client:
        cfg = session.cfg.optimizer
        return replace(REQUEST, temperature=cfg.temperature, max_tokens=cfg.max_tokens)
    if not isinstance(session.roll.target, ChatTarget):
        return REQUEST
    samples = [*session.splits.train, *session.splits.select, *session.splits.test]
    longest = max(samples, key=lambda sample: len(sample.text))
    return session.roll.target.request(session.skill, longest, session.env, 0)


async def probe_roles(session: Parts) -> list[Probe]:
    """Probe each model of a session, once where it has both roles; an error is part of the result."""
    probes = []
    for role, client in roles(session):
        started, error = time.monotonic(), ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await probe(client, probe_of(session, client))
        except TimeoutError:
            error = f"`{client.model.name}`: no answer within {PATIENCE_S:g} s"
        except (CallError, Stopped) as failure:
            error = str(failure)
        learned = tuple(getattr(client.model, "learned", {}).values())
        probes.append(Probe(role, client.model.name, time.monotonic() - started, error, learned))
    return probes


def roles(session: Parts) -> list[tuple[str, Client]]:
    """(role, client) of each model that a session calls; a model in two roles is named once, by both."""
    judge = session.judge.client if session.judge else None
    found: dict[str, tuple[str, Client]] = {}
    for role, client in (("target", session.target), ("optimizer", session.optimizer_client), ("judge", judge)):
        if client is not None:
            model = client.model.fingerprint
            found[model] = (f"{found[model][0]} and {role}", found[model][1]) if model in found else (role, client)
    return list(found.values())


async def try_models(session: Parts) -> None:
    """Let the models of the optimizer and of the judge answer once before anything is spent on the target, once per run
    and model.

    Raises `CallConfigError` for a wrong key, model or path, `InfraStopped` where one cannot be reached. No call where
    the target is the same model, whose first answer shows as much. A budget too small even for this is left to the
    loop, which says so.
    """
    for role, client in roles(session):
        if client is session.target:
            continue

        async def pay(client: Client = client) -> Paid:
            return Paid(None, await probe(client, probe_of(session, client)))

        try:
            await session.run.memo(digest(PROBE, client.model.fingerprint), PROBE, pay)
        except BudgetExceeded:
            return
        except CallConfigError as error:
            raise CallConfigError(f"the {role} cannot be used, so nothing was asked of the target. {error}") from error
        except InfraError as error:
            raise InfraStopped(
                f"the {role} cannot be reached, so nothing was asked of the target. {error}\n"
                "Run the same command again when it can."
            ) from error
