"""One tiny call that shows whether a model answers: for `check --probe`, for `doctor`, and before a run spends."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, replace

from skilltune.calls import Client
from skilltune.errors import BudgetExceeded, CallConfigError, CallError, InfraError, InfraStopped, Stopped
from skilltune.models import Request, Usage, user
from skilltune.run import PROBE, Paid, digest
from skilltune.session import Session

PATIENCE_S = 30.0  # of `probe_roles`, retries included
TOKENS = 16  # the least that every provider accepts
REQUEST = Request((user("Reply with the word: ready"),), max_tokens=TOKENS)
# A reasoning model may think for longer than that, which some providers report as an error: it is there.
_THOUGHT = re.compile(r"output limit (was|is) reached")


@dataclass(frozen=True, slots=True)
class Probe:
    """One tiny call to one role; `seconds` until the answer, `error` if none came."""

    role: str
    model: str
    seconds: float
    error: str = ""


async def probe(client: Client) -> Usage:
    """What one tiny call cost. Raises what any call may. It has a role of its own: its cost tells nothing of a real
    call's."""
    try:
        usage = (await replace(client, role=PROBE)(REQUEST)).usage
        client.answered = True
        return usage
    except CallConfigError as error:
        if not _THOUGHT.search(str(error).lower()):
            raise
        return replace(client.bound(REQUEST), calls=1)


async def probe_roles(session: Session) -> list[Probe]:
    """Probe each model of a session, once where it has both roles; an error is part of the result."""
    probes = []
    for role, client in roles(session):
        started, error = time.monotonic(), ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await probe(client)
        except TimeoutError:
            error = f"`{client.model.name}`: no answer within {PATIENCE_S:g} s"
        except (CallError, Stopped) as failure:
            error = str(failure)
        probes.append(Probe(role, client.model.name, time.monotonic() - started, error))
    return probes


def roles(session: Session) -> list[tuple[str, Client]]:
    """(role, client) of each model that a session calls; a model in two roles is named once, by both."""
    judge = session.judge.client if session.judge else None
    found: dict[str, tuple[str, Client]] = {}
    for role, client in (("target", session.target), ("optimizer", session.optimizer_client), ("judge", judge)):
        if client is not None:
            model = client.model.fingerprint
            found[model] = (f"{found[model][0]} and {role}", found[model][1]) if model in found else (role, client)
    return list(found.values())


async def try_models(session: Session) -> None:
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
            return Paid(None, await probe(client))

        try:
            await session.run.once(digest(PROBE, client.model.fingerprint), PROBE, pay)
        except BudgetExceeded:
            return
        except CallConfigError as error:
            raise CallConfigError(f"the {role} cannot be used, so nothing was asked of the target. {error}") from error
        except InfraError as error:
            raise InfraStopped(
                f"the {role} cannot be reached, so nothing was asked of the target. {error}\n"
                "Run the same command again when it can."
            ) from error
