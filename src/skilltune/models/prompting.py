"""Two ways to write a request as one text for the embedded model: a plain continuation, or the chat template."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from skilltune.errors import CallConfigError, UsageError
from skilltune.models import Request

_MARK = "\u2060skilltune\u2060"  # stands for the sample while the part before it is rendered
_DATE = "2026-01-01"  # some templates print today's date; a fixed one keeps answers equal from day to day


class Prompting(Protocol):
    """Writes requests as text. `name` belongs to the model's fingerprint: change it with the rendering.

    `render` returns (prefix, prompt). The prefix is the part that all samples of a skill share; the prompt starts with
    it. `stop` and `max_tokens` are the defaults of an answer.
    """

    @property
    def name(self) -> str: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def max_tokens(self) -> int: ...
    def render(self, request: Request) -> tuple[str, str]: ...


@dataclass(frozen=True, slots=True)
class Continuation:
    """The skill, a blank line and the input, without roles. A base model continues worked examples well."""

    name: str = "continuation/1"
    stop: tuple[str, ...] = ("\n",)  # a continuation has no other natural end
    max_tokens: int = 64

    def render(self, request: Request) -> tuple[str, str]:
        _refuse_images(request)
        prefix = _joined(message.text for message in request.messages if message.role == "system")
        return prefix, _joined([prefix, *(message.text for message in request.messages if message.role != "system")])


class ChatTemplate:
    """The chat template that the model was trained with, from its file. The answer ends at the model's own end mark."""

    stop: tuple[str, ...] = ()
    max_tokens: int = 512

    def __init__(self, template: str, *, bos: str = "", eos: str = "", adds_bos: bool = False) -> None:
        try:
            sandbox = importlib.import_module("jinja2.sandbox")
        except ImportError:
            raise UsageError("a model with a chat template needs jinja2: pip install 'skilltune[local]'") from None
        engine = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        engine.globals |= {"raise_exception": _raise, "strftime_now": lambda _form: _DATE}
        try:
            self._template = engine.from_string(template)
        except Exception as error:  # jinja2 has several syntax errors
            raise UsageError(f"the model's chat template cannot be read: {error}") from None
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._own_bos = bos if adds_bos else ""
        self.name = f"chat/1:{hashlib.sha256(template.encode()).hexdigest()[:12]}"

    def render(self, request: Request) -> tuple[str, str]:
        _refuse_images(request)
        turns = [{"role": message.role, "content": message.text} for message in request.messages]
        turns = turns or [{"role": "user", "content": ""}]
        prompt = self._text(turns)
        first = next((number for number, turn in enumerate(turns) if turn["role"] != "system"), None)
        if first is None:
            return prompt, prompt
        marked = self._text([*turns[:first], {**turns[first], "content": _MARK}])
        prefix = marked.partition(_MARK)[0]
        return (prefix if prompt.startswith(prefix) else ""), prompt

    def _text(self, turns: list[dict[str, Any]]) -> str:
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._tokens)
        except Exception as error:
            raise CallConfigError(f"the model's chat template refuses these messages: {error}") from error
        return text.removeprefix(self._own_bos)  # llama.cpp adds this token itself


def _raise(message: str) -> None:
    """Called by templates that reject a sequence of roles."""
    raise ValueError(message)


def _refuse_images(request: Request) -> None:
    if any(message.images for message in request.messages):
        raise CallConfigError("the embedded model reads text only: remove the images or choose another target")


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(stripped for text in texts if (stripped := text.strip()))
