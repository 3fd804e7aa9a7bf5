"""A chat model as the target: the skill's body is the system message, the sample is the user message."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from skilltune.envs.task import Task
from skilltune.journal.keys import digest
from skilltune.metering.client import Client
from skilltune.models import Message, Request, system
from skilltune.models.reading import ANSWER_CHARS
from skilltune.rollout import THINKING, Trajectory, Turn
from skilltune.skill import Skill
from skilltune.usage import Usage

_NOTES = {"length": "the answer was cut at max_tokens", "refusal": "the model refused"}
GUESSED_ANSWER = 128  # tokens; used before the first answer if no max_tokens is set


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """One turn: the skill's body as system message (none if it is blank), then the task's messages
    with its files.

    An answer that was cut at `max_tokens` has the outcome `agent_limit`, and a refusal counts as the model's answer.
    Both are scored as they are, and `error` says what happened. The model's thinking is a separate turn.
    """

    client: Client
    temperature: float | None = None
    max_tokens: int | None = None

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def learned(self) -> Mapping[str, str]:
        return self.client.learned

    @property
    def fingerprint(self) -> str:
        return digest("chat", self.client.model.fingerprint, self.temperature, self.max_tokens, "inline")

    def request(self, skill: Skill, task: Task, attempt: int) -> Request:
        return Request(
            messages=with_skill(skill.body, task.shown()),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            draw=attempt,
        )

    def guess(self, skill: Skill, task: Task) -> Usage:
        request = self.request(skill, task, 0)
        return self.client.bound(replace(request, max_tokens=request.max_tokens or GUESSED_ANSWER))

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        request = self.request(skill, task, attempt)
        started = time.monotonic()
        reply = await self.client(request)
        asked = [Turn(message.role, message.text) for message in request.messages if message.role != "system"]
        thought = [Turn(THINKING, reply.thinking)] if reply.thinking else []
        too_long = reply.finish == "length" and len(reply.text) >= ANSWER_CHARS
        return Trajectory(
            answer=reply.text,
            turns=(*asked, *thought, Turn("assistant", reply.text)),
            outcome="agent_limit" if reply.finish == "length" else "ok",
            error=f"the answer was cut at {ANSWER_CHARS:,} characters" if too_long else _NOTES.get(reply.finish, ""),
            usage=reply.usage,
            seconds=round(time.monotonic() - started, 4),
        )

    def usd(self, usage: Usage) -> float | None:
        return self.client.usd(usage)

    async def aclose(self) -> None:
        await self.client.aclose()


def with_skill(body: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Prepend the skill's body to a sample's own system message, because providers accept only one."""
    if not body.strip():
        return messages
    if messages and messages[0].role == "system":
        return (system(f"{body.rstrip()}\n\n{messages[0].text}"), *messages[1:])
    return (system(body), *messages)
