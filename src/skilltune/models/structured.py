"""Structured answers: parse, repair, validate, re-ask once, then raise `InfraError`.

An unreadable answer is never replaced by a default ("no edits", "the first k"), because a default would pass for the
model's opinion. An answer that was cut by the token limit is not repaired, because half a sentence would look like a
whole edit.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import resources
from types import FrameType
from typing import Any, TypeVar

from skilltune.errors import CutShort, InfraError
from skilltune.models import Message, Reply, Request, Schema, user
from skilltune.models.reading import split_thinking

T = TypeVar("T")

JSON_CHARS = 200_000  # longest answer that is read
JSON_DEPTH = 64  # nesting of brackets; our schemas need six
REPAIR_STEPS = 1_000_000  # function calls, about one second: the repair takes cubic time for some texts
SHOWN_AGAIN = 20_000  # characters of a bad answer that are sent back to the model with the re-ask
_BRACKETS = re.compile(r"[\[\]{}]")


async def ask(
    call: Callable[[Request], Awaitable[Reply]],
    request: Request,
    validate: Callable[[Any], T],
    read: Callable[[Reply], Any] | None = None,
) -> T:
    """The validated answer of a call. A bad answer is asked again once.

    `read` gives the content of a reply; without it, that is the reply's JSON object. `validate` gets the content and
    returns the result. Both raise ValueError (pydantic's included) with a message that the model can act on. Raises
    `InfraError` after the second bad answer (`CutShort` if both were cut by the token limit), and passes on errors of
    `call`.
    """
    stage = request.schema.name if request.schema else "its request"
    reason, cut = "", True
    for _ in range(2):
        reply = await call(request)
        cut = cut and reply.finish == "length"
        try:
            return validate((read or parse)(reply))
        except RecursionError:
            reason = "the answer is nested too deeply"
        except ValueError as error:
            reason = str(error)
        again = user(f"{prompt('reask_text' if read else 'reask')}\n{reason}")
        said = Message("assistant", reply.text[:SHOWN_AGAIN] or "{}")  # providers refuse an empty turn
        request = replace(request, messages=(*request.messages, said, again))
    fault = CutShort if cut else InfraError
    raise fault(f"the model did not answer in the schema of {stage} twice: {reason}")


def parse(reply: Reply) -> dict[str, Any]:
    """The JSON object in a reply, repaired if necessary. Raises ValueError with the reason if there is none."""
    if reply.finish == "refusal":
        raise ValueError(f"the model refused to answer: {reply.text[:200]}")
    text = _unfenced(split_thinking(reply.text).answer.strip())
    if len(text) > JSON_CHARS:
        raise ValueError(f"the answer has {len(text):,} characters; be briefer")
    if _depth(text) > JSON_DEPTH:
        raise ValueError("the answer is nested too deeply")
    try:
        value = json.loads(text)
    except ValueError:
        if reply.finish == "length":
            raise ValueError("the answer was cut off by the token limit before it was complete; be briefer") from None
        value = _repaired(text)
    if not isinstance(value, dict):
        raise ValueError("the answer holds no JSON object")
    return value


def _unfenced(text: str) -> str:
    """The text without a code fence around it."""
    first, newline, rest = text.partition("\n")
    if not newline or not rest.endswith("```") or not re.fullmatch(r"```\w*\s*", first):
        return text
    return rest[:-3].strip()


def _depth(text: str) -> int:
    """The deepest nesting of brackets, including brackets in strings."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth = depth + 1 if bracket[0] in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


class _TooManySteps(BaseException):  # not an Exception, because the repair could catch it
    pass


def _repaired(text: str) -> Any:
    """The value of almost valid JSON. Raises ValueError if the repair takes too many steps.

    Steps are counted instead of timed, so that a replay gives the same result.
    """
    import json_repair

    steps = 0

    def step(frame: FrameType, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1
        if steps > REPAIR_STEPS:
            raise _TooManySteps

    before = sys.getprofile()
    sys.setprofile(step)
    try:
        return json_repair.loads(text)
    except (_TooManySteps, RecursionError):
        raise ValueError("the answer is not JSON and cannot be repaired") from None
    finally:
        sys.setprofile(before)


def inline_schema(messages: tuple[Message, ...], schema: Schema) -> tuple[Message, ...]:
    """Append the schema to the last message, for endpoints without structured output."""
    *earlier, last = messages
    text = f"{last.text}\n\n{prompt('schema')}\n{json.dumps(schema.schema, ensure_ascii=False)}"
    return (*earlier, replace(last, text=text))


@functools.cache
def prompt(name: str) -> str:
    return (resources.files("skilltune.models") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()
