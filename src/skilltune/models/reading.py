"""Turns the parts of an answer into a finished reply, by the same rules for every dialect and role.

An answer without text is never a reply, because a scorer would count it as wrong. It becomes a failure that says why
the text is missing and what to change. Thinking that a server left in the text is removed, so that it is not scored,
and is stored separately.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from skilltune.errors import CallError, InfraError, SampleError
from skilltune.models import Reply, Request, ToolCall
from skilltune.usage import Usage

ANSWER_CHARS = 500_000  # longer answers are cut; the longest answer of any model (128,000 tokens) has fewer
THINKING_CHARS = 20_000  # characters of the thinking that are kept: its beginning and its end
MOST_TOKENS = 20_000_000  # a larger token count of one call is not credible
SMALLEST_CONTEXT = 256  # tokens; a smaller count for a long prompt is not credible, because every context is larger
READ_SHARE = 0.7  # fewest tokens per word of a prompt, over all tokenizers

RAISE_LIMIT = "raise max_tokens"  # `Client` adds the section of the config to the key
CUT = f"answers are cut before any text: {RAISE_LIMIT}"
TOOL_CALL = "the model calls tools that were not offered: switch tool calling off at the server"
EMPTY = "answers have no text at all"
RAISE_CONTEXT = "raise its context (Ollama: num_ctx; vLLM: --max-model-len; llama.cpp: -c)"
SHORT_CONTEXT = f"the endpoint reads only a part of the prompt: {RAISE_CONTEXT}"

Finish = Literal["stop", "length", "refusal", "other"]
FINISHES: dict[str, Finish | Literal["broken"]] = {
    **dict.fromkeys(("stop", "eos", "end_turn", "stop_sequence", "completed", "complete", "tool_use"), "stop"),
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"), "length"
    ),
    **dict.fromkeys(
        ("content_filter", "refusal", "safety", "sensitive", "prohibited_content", "recitation", "blocklist"), "refusal"
    ),
    **dict.fromkeys(
        (
            "error", "abort", "aborted", "cancelled", "failed", "incomplete", "in_progress", "queued", "pause_turn",
            "network_error", "insufficient_system_resource", "malformed_function_call",
        ),
        "broken",
    ),
}  # fmt: skip

_NAMES = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_OPEN = re.compile(rf"\s*(?:<({'|'.join(_NAMES)})>|(\[think\])|(◁think▷))", re.IGNORECASE)
_CLOSE = re.compile(rf"</({'|'.join(_NAMES)})>|\[/think\]|◁/think▷", re.IGNORECASE)
_STRAY = re.compile(rf"\s*(?:{_CLOSE.pattern})", re.IGNORECASE)
_QUOTES = "`'\"“”‘’«»"
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")


class NoText(InfraError):
    """An answer without any text. It is retried a few times, then it counts as a failed call."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The parts of an answer, as read by a dialect.

    `ended` is the server's finish reason. `thinking` is the text of the field `field`. `error` is an error that the
    server reports in place of (the rest of) the answer.
    """

    text: str
    ended: object
    usage: Usage
    thinking: str = ""
    field: str = ""
    refusal: str = ""
    called: bool = False  # True if the model called a tool
    calls: tuple[ToolCall, ...] = ()  # calls of the tools that the request offers
    error: object = None
    stop: tuple[str, ...] = ()  # stop sequences still to be applied, because the endpoint does not support them


def finished(raw: Raw, request: Request, say: Callable[[str], str]) -> Reply:
    """The finished reply. `say` turns a problem into an error message.

    Raises `NoText` for an answer without text, `SampleError` if a filter withheld the text, and `InfraError` if the
    answer was broken off.
    """
    ended = str(raw.ended or "stop").lower()
    finish = FINISHES.get(ended, "other")
    if finish == "broken":
        raise InfraError(say(f"the answer was broken off: the server says `{ended}`"), usage=raw.usage)
    asked = "\n".join(message.text for message in request.messages) if "<" in raw.text else ""
    split = split_thinking(sendable(raw.text), asked)
    thinking = _shortened("\n\n".join(filter(None, (sendable(raw.thinking).strip(), split.thinking))))
    if raw.calls and finish != "length":  # a call that was cut has broken arguments
        return Reply(split.answer[:ANSWER_CHARS], raw.usage, "stop", thinking, raw.calls)
    if split.answer.strip():
        cut = len(split.answer) > ANSWER_CHARS
        return Reply(split.answer[:ANSWER_CHARS], raw.usage, "length" if cut else finish, thinking)
    if raw.refusal.strip():
        return Reply(sendable(raw.refusal)[:ANSWER_CHARS], raw.usage, "refusal", thinking)
    if finish == "stop" and request.stop and raw.usage.output_tokens and not thinking and not raw.called:
        return Reply("", raw.usage, finish)  # a stop sequence came first
    raise _no_text(raw, finish, ended, split, thinking, say)


def _no_text(raw: Raw, finish: Finish, ended: str, split: Split, thinking: str, say: Callable[[str], str]) -> CallError:
    if finish == "refusal":
        problem = f"a content filter withheld the whole answer (the server says `{ended}`)"
        return SampleError(say(problem), systemic="a content filter withholds the answers", usage=raw.usage)
    attempts: int | None = 4
    if finish == "length":
        cause, attempts = CUT, 2
        problem = f"the answer was cut before any text{' while the model was still thinking' if thinking else ''}"
    elif thinking:
        place = raw.field if raw.thinking else "an unclosed thinking tag" if split.open else "thinking tags"
        fix = "correct the server's reasoning parser, or switch thinking off"
        cause, attempts = f"all text of the answers is in {place}: {fix}", 3
        problem = "the answer has no text"
    elif raw.called:
        cause, problem = TOOL_CALL, "the answer is a tool call without any text"
    else:
        cause, problem = EMPTY, "the answer has no text"
        attempts = attempts if raw.usage.output_tokens else None  # no tokens counted: a transient fault of the endpoint
    return NoText(say(f"empty answer: {problem} ({cause})"), systemic=cause, attempts=attempts, usage=raw.usage)


@dataclass(frozen=True, slots=True)
class Split:
    """A text without the thinking at its start. `open` is True if the thinking was never closed."""

    thinking: str
    answer: str
    open: bool = False


def split_thinking(text: str, asked: str = "") -> Split:
    """Remove the thinking at the start of an answer: `<think>…</think>` and similar tags, or everything up to a lone
    `</think>`.

    A tag later in the answer stays, because the answer mentions it. So does any tag other than `<think>` that the
    prompt `asked` for. An unclosed thinking tag leaves no answer.
    """
    at, parts = 0, list[str]()
    while opened := _OPEN.match(text, at):
        name = (opened[1] or "").lower()
        if name not in ("", "think") and f"<{name}>" in asked.lower():
            break
        closing = f"</{name}>" if name else "[/think]" if opened[2] else "◁/think▷"
        closed = re.compile(re.escape(closing), re.IGNORECASE).search(text, opened.end())
        if closed is None:
            parts.append(text[opened.end() :])
            return Split(_joined(parts), "", open=True)
        parts.append(text[opened.end() : closed.start()])
        at = closed.end()
        while stray := _STRAY.match(text, at):
            at = stray.end()
    if not at and (closed := _CLOSE.search(text)) is not None and _closes(text, closed, asked):
        parts, at = [text[: closed.start()]], closed.end()
    return Split(_joined(parts), text[at:].lstrip()) if at else Split("", text)


def _closes(text: str, closed: re.Match[str], asked: str) -> bool:
    """True if this tag closes thinking whose opening tag the server removed. Otherwise the answer just mentions the
    tag."""
    name = (closed[1] or "").lower()
    if name not in ("", "think") and closed[0].lower() in asked.lower():
        return False
    before, after = text[: closed.start()], text[closed.end() :]
    opening = f"<{name}>" if name else "[think]" if closed[0][0] == "[" else "◁think▷"
    if (
        any(sign in _QUOTES for sign in (*before[-1:], *after[:1]))
        or opening in before.lower()
        or before.count("```") % 2
    ):
        return False
    alone = not before.strip() or before.rstrip(" \t").endswith("\n")
    return alone or after.lstrip(" \t").startswith(("\n", "\r")) or after[:1].isalnum()


def _joined(parts: list[str]) -> str:
    return "\n\n".join(filter(None, (part.strip() for part in parts)))


def _shortened(text: str) -> str:
    if len(text) <= THINKING_CHARS:
        return text
    half = THINKING_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def sendable(text: str) -> str:
    """The text without unpaired surrogates, which no request can contain."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def texts_in(value: Any) -> str:
    """All text in a reasoning field of any shape: a string, a list of parts, or nested parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(texts_in(part) for part in value)
    if isinstance(value, dict):
        return texts_in(next((value[key] for key in ("text", "thinking", "summary", "content") if value.get(key)), ""))
    return ""


@dataclass(slots=True)
class Context:
    """Checks that an endpoint reads whole prompts. `most` is the largest prompt so far, in counted tokens."""

    most: int = 0

    def check(self, request: Request, usage: Usage, say: Callable[[str], str]) -> None:
        """Raise `InfraError` if the endpoint counted far fewer tokens than the prompt must have.

        Servers such as Ollama silently cut a prompt that is longer than their context. The test is conservative. A
        prompt has at least as many tokens as words, apart from tokenizers that join words. Some servers do not count
        cached tokens, so an endpoint that once counted a whole prompt is not checked below that size.
        """
        count = usage.input_tokens + usage.cached_tokens
        known, self.most = self.most, max(self.most, count)
        characters = sum(len(message.text) for message in request.messages)
        if not SMALLEST_CONTEXT <= count < characters / 4:
            return
        fewest = READ_SHARE * sum(_fewest_tokens(message.text) for message in request.messages)
        if count < fewest and known < fewest:
            problem = f"the endpoint read {usage.input_tokens:,} of about {-(-characters // 4):,} prompt tokens"
            raise InfraError(say(f"{problem}; {RAISE_CONTEXT}"), systemic=SHORT_CONTEXT, attempts=1, usage=usage)


@functools.lru_cache(maxsize=16)
def _fewest_tokens(text: str) -> float:
    """Lower bound of the tokens of a text: one per word, and one per four characters of scripts without spaces."""
    if text.isascii():
        return len(text.split())
    rest = _CJK.sub("", text)
    return len(rest.split()) + (len(text) - len(rest)) / 4


def sane(value: object) -> int:
    """A token count from a server, or 0 if it is not a number from 0 to `MOST_TOKENS`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:  # also not NaN
        return 0
    return int(value)


def capped(usage: Usage) -> Usage:
    """The usage with plausible parts. Reasoning tokens are at most the output tokens.

    If a server reports more cached tokens than input tokens, it counts them separately, so they are added to the input.
    """
    apart = usage.cached_tokens if usage.cached_tokens > usage.input_tokens else 0
    return replace(
        usage,
        input_tokens=usage.input_tokens + apart,
        reasoning_tokens=min(usage.reasoning_tokens, usage.output_tokens),
    )
