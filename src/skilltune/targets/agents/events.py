"""Reads the output of command line agents: one JSON object per line, with other lines between them."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from skilltune.errors import CallConfigError, CallError, InfraError, RejectedError
from skilltune.sandbox.process import Exit
from skilltune.targets.agents.job import AgentExit, AgentJob

Event = dict[str, Any]
SHOWN = 600  # characters of an agent's output in a message
UNKNOWN_MODEL = ("model_not_found", "may not exist", "unknown model", "model is not found", "no such model")


def events_of(stream: bytes) -> list[Event]:
    """The JSON objects of a stream. Lines that hold none (warnings, progress, half a line after a kill) are skipped."""
    found: list[Event] = []
    for line in stream.splitlines():
        if line.lstrip().startswith(b"{"):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                found.append(event)
    return found


def get(event: Any, *path: str | int) -> Any:
    """The value at a path of keys and indices, or None."""
    for key in path:
        if isinstance(event, dict) and isinstance(key, str):
            event = event.get(key)
        elif isinstance(event, list) and isinstance(key, int) and -len(event) <= key < len(event):
            event = event[key]
        else:
            return None
    return event


def text_at(event: Any, *path: str | int) -> str:
    """The text at a path, or ""."""
    found = get(event, *path)
    return found if isinstance(found, str) else ""


def stopped(job: AgentJob, exit: Exit, answer: str, denials: tuple[str, ...] = ()) -> AgentExit | None:
    """The end of a rollout that one of our limits ended; None if it ended by itself."""
    if exit.timed_out:
        why = f"no end within {job.timeout_s:g} s ({job.role}.timeout_s)"
        return AgentExit(answer, "agent_limit", why, denials, timed_out=True)
    return None


def refuse(job: AgentJob, message: str, status: int | None) -> NoReturn:
    """Raise the error of a model call that failed for good, by its HTTP status."""
    text = f"{job.agent}: {message.strip()[:SHOWN] or 'its model call failed'}"
    lowered = message.lower()
    if status in (401, 403):
        raise CallConfigError(f"{text}; check the key of {job.model} and that it may use this model")
    if status == 404 or any(words in lowered for words in UNKNOWN_MODEL):
        raise CallConfigError(f"{text}; check the model's name in {job.role}.model ({job.model})")
    if status in (400, 413, 422):
        raise RejectedError(text)
    raise InfraError(text, systemic=f"{job.agent} reports a failed model call: {message.strip()[:120]}")


def no_result(job: AgentJob, exit: Exit, why: str = "") -> CallError:
    """The error of an agent that ended without a result. The same end again and again points to its settings."""
    said = exit.stderr.decode("utf-8", "replace").strip() or exit.stdout.decode("utf-8", "replace").strip()
    ended = f"exit code {exit.code}" if exit.limit == "" else f"ended by its limit {exit.limit}"
    what = why or "it ended without a result"
    tail = f": …{said[-SHOWN:]}" if len(said) > SHOWN else f": {said}" if said else ""
    if "root/sudo" in said or "cannot be used with root" in said.lower():
        return CallConfigError(
            f"{job.agent} refuses to run as root with these permissions{tail}; run skilltune as another user"
        )
    return InfraError(f"{job.agent}: {what} ({ended}){tail}", systemic=f"{job.agent}: {what} ({ended})")
