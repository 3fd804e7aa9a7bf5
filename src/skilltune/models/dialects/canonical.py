"""One form for a conversation with tools, into which every dialect is read and from which every dialect is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import json_repair

from skilltune.errors import CallConfigError
from skilltune.models import Schema
from skilltune.usage import Usage

Json = dict[str, Any]
Dialect = Literal["anthropic-messages", "openai-responses", "openai-chat"]
Finish = Literal["stop", "length", "tools", "refusal"]


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An image. `url` is an address or a data URI."""

    url: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The model's reasoning. `opaque` is a signature or an encrypted form that only the upstream can read.

    `hidden` is True for reasoning without any readable text (Anthropic's `redacted_thinking`).
    """

    text: str
    opaque: str = ""
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments` is a JSON object as text; for a custom tool it is free text."""

    id: str
    name: str
    arguments: str
    custom: bool = False


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The output of the tool call with the same id."""

    id: str
    parts: tuple[Text | Picture | Other, ...]
    error: bool = False
    custom: bool = False

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Other:
    """A part that only its own dialect can express. It can be read, but not translated."""

    dialect: str
    kind: str


Part = Text | Picture | Reasoning | ToolCall | ToolResult | Other


@dataclass(frozen=True, slots=True)
class Message:
    """Parts of one speaker. Tool results belong to the user. A system message stands in the middle of a conversation
    only; instructions before it are in `Conversation.system`."""

    role: Literal["user", "assistant", "system"]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call. `parameters` is a JSON schema. A custom tool takes free text; `format` may hold
    its grammar. `other` is the type of a tool that only its own dialect can express, "" for all others."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    custom: bool = False
    format: Mapping[str, Any] | None = None
    other: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request. `choice` is "", "auto", "none", "any" or "tool:NAME"."""

    model: str
    messages: tuple[Message, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()
    choice: str = ""
    parallel: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    schema: Schema | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `usage` counts one call, without its price."""

    parts: tuple[Part, ...]
    finish: Finish = "stop"
    usage: Usage = field(default_factory=Usage)
    id: str = ""
    model: str = ""

    @property
    def text(self) -> str:
        return "\n\n".join(part.text for part in self.parts if isinstance(part, Text) and part.text)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


# -- a stream of an answer: parts are opened, grow and are closed one after another


@dataclass(frozen=True, slots=True)
class Opened:
    """A part begins. It is empty but for the id and the name of a tool call."""

    part: Text | Reasoning | ToolCall


@dataclass(frozen=True, slots=True)
class Grew:
    """Text that is appended to the open part."""

    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The open part is complete."""

    part: Text | Reasoning | ToolCall


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete."""

    answer: Answer


Delta = Opened | Grew | Closed | Ended


def deltas_of(answer: Answer) -> list[Delta]:
    """The stream of an answer that is complete already."""
    deltas: list[Delta] = []
    for part in answer.parts:
        if isinstance(part, Text):
            deltas += [Opened(Text("")), Grew(part.text), Closed(part)]
        elif isinstance(part, Reasoning):
            deltas += [Opened(replace(part, text="", opaque="")), Grew(part.text), Closed(part)]
        elif isinstance(part, ToolCall):
            deltas += [Opened(replace(part, arguments="")), Grew(part.arguments), Closed(part)]
    return [*deltas, Ended(answer)]


# -- shared by the dialects


def untranslatable(dialect: str, what: str) -> CallConfigError:
    return CallConfigError(
        f"the gateway cannot translate {what} of {dialect} into another dialect: switch it off in the agent, or name "
        f"an upstream that speaks {dialect} itself"
    )


def require_known(dialect: str, body: Mapping[str, Any], known: frozenset[str], hints: frozenset[str]) -> None:
    """Raise `CallConfigError` for a field that is neither translated nor a mere hint. Null, false, 0 and empty values
    ask for nothing."""
    for name, value in body.items():
        if value and name not in known and name not in hints:
            raise untranslatable(dialect, f"the field `{name}`")


def require_expressible(parts: Iterable[Part]) -> None:
    """Raise `CallConfigError` for a part that only its own dialect can express."""
    for part in parts:
        if isinstance(part, Other):
            raise untranslatable(part.dialect, f"a part of type `{part.kind}`")


def require_plain(tool: Tool) -> None:
    """Raise `CallConfigError` for a tool that only its own dialect can express."""
    if tool.other:
        raise untranslatable("the agent's API", f"the tool `{tool.name}` of type `{tool.other}`")


def merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages with neighbours of one role joined, and without those that have no part."""
    result: list[Message] = []
    for message in messages:
        if result and result[-1].role == message.role:
            result[-1] = Message(message.role, result[-1].parts + message.parts)
        elif message.parts:
            result.append(message)
    return tuple(result)


def split_system(messages: Iterable[Message]) -> tuple[str, tuple[Message, ...]]:
    """(text of the system messages at the start, the other messages)."""
    system, rest = list[str](), list[Message]()
    for message in messages:
        if message.role == "system" and not rest:
            system += [part.text for part in message.parts if isinstance(part, Text) and part.text]
        else:
            rest.append(message)
    return "\n\n".join(system), merged(rest)


def dumped(value: object) -> str:
    """Compact JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_object(arguments: str) -> Json:
    """The arguments of a tool call as an object. Small models write JSON that is slightly broken; it is repaired."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = json_repair.loads(arguments)
    return value if isinstance(value, dict) else {"value": value}


INPUT = "input"
"""The only parameter of a custom tool where the dialect has functions alone."""
INPUT_SCHEMA: Json = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}


def as_function(call: ToolCall) -> ToolCall:
    """A call of a custom tool as the call of a function with one parameter."""
    return replace(call, arguments=dumped({INPUT: call.arguments}), custom=False) if call.custom else call


def as_called(call: ToolCall, tools: Iterable[Tool]) -> ToolCall:
    """The inverse of `as_function`, for the tools that were offered."""
    if not any(tool.custom and tool.name == call.name for tool in tools):
        return call
    given = as_object(call.arguments)
    text = given.get(INPUT, call.arguments)
    return replace(call, arguments=text if isinstance(text, str) else dumped(text), custom=True)


def number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
