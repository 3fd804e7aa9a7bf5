"""Models behind one small protocol: a frozen request in, a frozen reply out, typed errors otherwise.

Providers only translate. Retries are in `metering.slots`, journaling in `journal.run`, budgets in `metering.budget`. So
each provider fits on one screen, and every rule about money is in one place.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from skilltune.usage import Usage

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message, as bytes, so that it can be hashed and sent to any provider."""

    data: bytes
    media_type: str = "image/png"

    @classmethod
    def load(cls, path: Path) -> Image:
        return cls(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "image/png")

    @property
    def data_uri(self) -> str:
        return f"data:{self.media_type};base64,{self.base64}"

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments` is JSON text as the model wrote it, and so may be broken."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The output of the tool call with the same id. `error` is True if the call failed."""

    id: str
    text: str
    error: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message: text, then images.

    An assistant's message may call tools. The next message, of the user, then holds one result for each call.
    """

    role: Role
    text: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_results: tuple[ToolResult, ...] = ()

    @property
    def chars(self) -> int:
        """Characters of everything but images."""
        called = sum(len(call.name) + len(call.arguments) for call in self.tool_calls)
        return len(self.text) + called + sum(len(result.text) for result in self.tool_results)


@dataclass(frozen=True, slots=True)
class Schema:
    """Structured output: `name` is the stage ("reflect", "merge", …), `schema` a JSON schema of an object."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `max_tokens` limits the answer; `temperature` None means the provider's default.

    `draw` numbers repeated samples of the same request (0, 1, …). Together with the content it forms the idempotency
    key, so that a server that honours such keys never bills a retry twice.
    """

    messages: tuple[Message, ...]
    temperature: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    schema: Schema | None = None
    draw: int = 0
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request. `finish` is "stop", "length" (cut by max_tokens), "refusal" or "other".

    `thinking` is the model's reasoning before the answer, as far as the server shows it. It is not part of the answer.
    `tool_calls` are the calls of the tools that the request offers; with them the text may be empty.
    """

    text: str
    usage: Usage
    finish: Literal["stop", "length", "refusal", "other"] = "stop"
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@runtime_checkable
class Model(Protocol):
    """A model that can be called.

    `name` is the name in skilltune's grammar ("openai/gpt-…"). `fingerprint` identifies everything about the model and
    its endpoint that can change an answer, and contains no secret. It becomes part of the journal's keys. `complete`
    raises `InfraError` (worth a retry), `SampleError` (this request will never be answered) or `CallConfigError` (no
    request will be answered), and never a provider's own exception.

    A model may have a mapping `learned` of features that its endpoint does not support (parameter → a sentence for the
    user).
    """

    name: str

    @property
    def fingerprint(self) -> str: ...

    async def complete(self, request: Request) -> Reply: ...

    async def aclose(self) -> None: ...


def user(text: str, images: Sequence[Image] = ()) -> Message:
    return Message("user", text, tuple(images))


def system(text: str) -> Message:
    return Message("system", text)


__all__ = [
    "Image",
    "Message",
    "Model",
    "Reply",
    "Request",
    "Role",
    "Schema",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Usage",
    "system",
    "user",
]
