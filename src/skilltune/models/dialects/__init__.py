"""Three APIs for one conversation with tools: Anthropic Messages, OpenAI Responses and OpenAI Chat Completions.

Pure functions over JSON. `canonical` has the one form of requests, answers and streams. Each dialect reads that form
from its own JSON and writes it. So a translation is `render(parse(body))`, and a stream is translated event by event:
the decoder of one dialect makes deltas, the encoder of the other makes events. A `CallConfigError` names the part of a
request that another dialect cannot express.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, get_args

from skilltune.errors import CallConfigError
from skilltune.models.dialects import chat, messages, responses
from skilltune.models.dialects.canonical import (
    Answer,
    Closed,
    Conversation,
    Delta,
    Dialect,
    Ended,
    Grew,
    Json,
    Message,
    Opened,
    Other,
    Picture,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    deltas_of,
    untranslatable,
)
from skilltune.usage import Usage

NAMES: tuple[Dialect, ...] = get_args(Dialect)


class Assembler(Protocol):
    """Puts the events of one stream together. `body` is the whole response, None until it is complete. `failure` is an
    error that the stream reports. `content` is True once a part of the answer has come.

    `feed` raises ValueError, LookupError, TypeError or AttributeError for an event of an unknown shape.
    """

    failure: Any
    content: bool

    @property
    def body(self) -> Json | None: ...

    def feed(self, event: Mapping[str, Any]) -> None: ...


class Decoder(Protocol):
    def feed(self, event: Mapping[str, Any]) -> Iterator[Delta]: ...


class Encoder(Protocol):
    def feed(self, delta: Delta) -> Iterator[bytes]: ...


_MODULES = {"anthropic-messages": messages, "openai-responses": responses, "openai-chat": chat}


def parse_request(dialect: Dialect, body: Mapping[str, Any]) -> Conversation:
    """Raises `CallConfigError` for a request of another shape. Parts that no other dialect can express are kept by
    their type (`Other`)."""
    try:
        return _MODULES[dialect].parse_request(body)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CallConfigError(f"a request is not of the form of {dialect}: {type(error).__name__} {error}") from None


def translated_request(dialect: Dialect, body: Mapping[str, Any]) -> Conversation:
    """Like `parse_request`, but raises `CallConfigError` also for a field that no other dialect has. Hints, which
    change only the cost or the style of an answer, are left out."""
    _MODULES[dialect].check_request(body)
    return parse_request(dialect, body)


def render_request(dialect: Dialect, conversation: Conversation) -> Json:
    """Raises `CallConfigError` that names the part which this dialect cannot express."""
    return _MODULES[dialect].render_request(conversation)


def parse_response(dialect: Dialect, body: Mapping[str, Any], tools: tuple[Tool, ...] = ()) -> Answer:
    """`tools` are those of the request; calls of its custom tools are recognised by their names.

    Raises LookupError, TypeError, ValueError or AttributeError for a body of another shape.
    """
    return _MODULES[dialect].parse_response(body, tools)


def render_response(dialect: Dialect, answer: Answer) -> Json:
    return _MODULES[dialect].render_response(answer)


def usage_of(dialect: Dialect, body: Mapping[str, Any]) -> Usage:
    """Tokens of the call that this response reports, without a price."""
    return _MODULES[dialect].usage_of(body)


def cache_writes(dialect: Dialect, body: Mapping[str, Any]) -> int:
    """Input tokens that were written to the provider's cache."""
    return _MODULES[dialect].cache_writes(body)


def events_of(dialect: Dialect, body: Mapping[str, Any]) -> Iterator[bytes]:
    """The stream of a response that is complete already."""
    return _MODULES[dialect].events_of(body)


def assembler(dialect: Dialect) -> Assembler:
    return _MODULES[dialect].Assembler()


def decoder(dialect: Dialect, tools: tuple[Tool, ...] = ()) -> Decoder:
    """Events → deltas, all but `Ended`, for which the whole response is needed."""
    return _MODULES[dialect].Decoder(tools)


def encoder(dialect: Dialect, model: str, id: str) -> Encoder:
    """Deltas → the bytes of events. `model` is the name that the client asked for. `id` must be unique, because
    Claude Code joins messages of one id."""
    return _MODULES[dialect].Encoder(model, id)


def ping(dialect: Dialect) -> bytes:
    """An event without meaning that keeps a client waiting."""
    return _MODULES[dialect].PING


def error_body(dialect: Dialect, status: int, message: str) -> Json:
    return _MODULES[dialect].error_body(status, message)


def error_event(dialect: Dialect, status: int, message: str) -> bytes:
    return _MODULES[dialect].error_event(status, message)


__all__ = [
    "NAMES",
    "Answer",
    "Assembler",
    "Closed",
    "Conversation",
    "Decoder",
    "Delta",
    "Dialect",
    "Encoder",
    "Ended",
    "Grew",
    "Json",
    "Message",
    "Opened",
    "Other",
    "Picture",
    "Reasoning",
    "Text",
    "Tool",
    "ToolCall",
    "ToolResult",
    "assembler",
    "cache_writes",
    "decoder",
    "deltas_of",
    "encoder",
    "error_body",
    "error_event",
    "events_of",
    "parse_request",
    "parse_response",
    "ping",
    "render_request",
    "render_response",
    "translated_request",
    "untranslatable",
    "usage_of",
]
