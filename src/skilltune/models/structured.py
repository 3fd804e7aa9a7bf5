"""Answers in a schema: parse, repair, validate, re-ask once, then fail as infrastructure.

An answer that cannot be read is never replaced by a default ("no edits", "the first k"): a default would be taken for
the model's opinion. An answer that was cut by the token limit is not repaired either, because its last edit would be
half a sentence that looks whole.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import resources
from typing import Any, TypeVar

from skilltune.errors import InfraError
from skilltune.models import Message, Reply, Request, Schema, user

T = TypeVar("T")


async def ask(
    call: Callable[[Request], Awaitable[Reply]],
    request: Request,
    validate: Callable[[Any], T],
) -> T:
    """What `validate` makes of the call's answer, asked for at most twice.

    `validate` gets the parsed object and raises ValueError (pydantic's included) with a message that the model can
    act on. Raises `InfraError` after the second bad answer, and whatever `call` raises.
    """
    stage = request.schema.name if request.schema else "its request"
    reason = ""
    for _ in range(2):
        reply = await call(request)
        try:
            return validate(parse(reply))
        except ValueError as error:
            reason = str(error)
        again = user(f"{prompt('reask')}\n{reason}")
        said = Message("assistant", reply.text or "{}")  # providers refuse an empty turn
        request = replace(request, messages=(*request.messages, said, again))
    raise InfraError(f"the model did not answer in the schema of {stage} twice: {reason}")


def parse(reply: Reply) -> dict[str, Any]:
    """The JSON object in a reply, repaired if need be; ValueError says why there is none."""
    if reply.finish == "refusal":
        raise ValueError(f"the model refused to answer: {reply.text[:200]}")
    text = re.sub(r"^\s*<think>.*?</think>", "", reply.text, flags=re.DOTALL).strip()
    if fenced := re.fullmatch(r"```\w*\s*\n(.*?)\n?\s*```", text, flags=re.DOTALL):
        text = fenced[1]
    try:
        value = json.loads(text)
    except ValueError:
        if reply.finish == "length":
            raise ValueError("the answer was cut off by the token limit before it was complete; be briefer") from None
        import json_repair

        value = json_repair.loads(text)
    if not isinstance(value, dict):
        raise ValueError("the answer holds no JSON object")
    return value


def inline_schema(messages: tuple[Message, ...], schema: Schema) -> tuple[Message, ...]:
    """The messages with the schema written at the end of the last one, for endpoints that take no schema."""
    *earlier, last = messages
    text = f"{last.text}\n\n{prompt('schema')}\n{json.dumps(schema.schema, ensure_ascii=False)}"
    return (*earlier, replace(last, text=text))


@functools.cache
def prompt(name: str) -> str:
    return (resources.files("skilltune.models") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()
