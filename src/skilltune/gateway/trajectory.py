"""The trajectory of an agent: the messages of its last request, then the last answer, in one form for all agents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from skilltune.gateway.activation import Activation, holds_body
from skilltune.models.dialects import (
    Answer,
    Conversation,
    Message,
    Other,
    Picture,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
)
from skilltune.models.dialects.canonical import Part
from skilltune.rollout import THINKING, Turn

CALL, TOOL = "tool call", "tool"
_AROUND = re.compile(  # what an agent adds to the output of a tool; ids and times differ in every run
    r"\s*<system-reminder>.*?</system-reminder>|^Chunk ID: [0-9a-f]+\n|^Wall time: [0-9.]+ seconds\n",
    re.DOTALL | re.MULTILINE,
)
_FOLDER = re.compile(r"^Base directory for this skill: .*\n*", re.MULTILINE)  # Claude Code says where it lies
_CONTEXT = re.compile(r"\s*<([a-z][\w-]*)\b[^>]*>.*</\1>\s*", re.DOTALL)  # context that a harness adds to the task


def turns_of(conversation: Conversation, answer: Answer | None, activation: Activation | None) -> tuple[Turn, ...]:
    """The turns of a conversation without the agent's own instructions.

    Left out are system texts and user texts that are wholly in a tag, because agents wrap what they add in tags. The
    body of the skill is replaced by its name; the text around it, such as the task, stays.
    """
    messages = [*conversation.messages]
    if answer is not None:
        messages.append(Message("assistant", answer.parts))
    return tuple(turn for message in messages for turn in _turns(message, activation))


def _turns(message: Message, activation: Activation | None) -> Iterator[Turn]:
    texts: list[str] = []
    for part in () if message.role == "system" else message.parts:
        if (text := _shown(part)) is not None:
            if message.role == "user":
                text = _without_skill(text, activation)
            if text and (message.role == "assistant" or not _CONTEXT.fullmatch(text)):
                texts.append(text)
            continue
        yield from _joined(message.role, texts)
        texts = []
        match part:
            case Reasoning(text) if text:
                yield Turn(THINKING, text)
            case ToolCall():
                yield Turn(CALL, call_text(part))
            case ToolResult(parts=parts):
                shown = _AROUND.sub("", "\n".join(filter(None, map(_shown, parts))))
                yield Turn(TOOL, f"[error]\n{shown}" if part.error else shown)
    yield from _joined(message.role, texts)


def _joined(role: str, texts: Iterable[str]) -> Iterator[Turn]:
    if text := "\n\n".join(filter(None, texts)):
        yield Turn(role, text)


def _shown(part: Part) -> str | None:
    match part:
        case Text(text):
            return text
        case Picture():
            return "[image]"
        case Other(_, kind):
            return f"[{kind}]"
    return None


def _without_skill(text: str, activation: Activation | None) -> str:
    """The text with the name of the skill in place of its body, and in place of a tag around the body."""
    if activation is None or not activation.body.strip() or not holds_body(activation, (text,)):
        return text
    name = f"[the skill `{activation.name}`]"
    body = re.compile(r"\s+".join(map(re.escape, activation.body.split())))
    if _CONTEXT.fullmatch(text) or not body.search(text):  # the second: with line numbers in it
        return name
    return _FOLDER.sub("", body.sub(lambda _: name, text)).strip()


def call_text(call: ToolCall) -> str:
    """A tool call as text: the name of the tool, then one argument per line."""
    try:
        arguments = {"": call.arguments} if call.custom else json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = {"": call.arguments}
    if not isinstance(arguments, dict):
        arguments = {"": arguments}
    lines = [f"{name}: {_value(value)}" if name else _value(value) for name, value in arguments.items()]
    return "\n".join([call.name, *lines])


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
