"""Converts chat messages of logs and data sets to the three roles that every provider supports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skilltune.errors import UsageError
from skilltune.scorers.reading import quote

_EXAMPLES = {"example_user": "user", "example_assistant": "assistant"}  # worked examples in OpenAI evals
_ROLES = {"developer": "system", "human": "user", "gpt": "assistant", "ai": "assistant", "model": "assistant"}
_TOOLS = ("tool", "function", "tool_result", "tool_use", "ipython")
_TEXT_PARTS = ("text", "input_text", "output_text")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_LOGGED = (
    *_CALLS,
    "refusal",
    "audio",
    "annotations",
    "reasoning",
    "reasoning_content",
    "name",
)  # often there and empty


def turn(where: str, number: int, raw: Any) -> Any:
    """A message in our names. `developer` becomes system, text parts are joined, and a worked example of OpenAI evals
    becomes the turn that it shows. Raises UsageError for content that cannot be sent to a chat target."""
    if not isinstance(raw, Mapping):
        return raw  # Sample reports the problem
    place = f"{where}: message {number} of the chat"
    made = dict(raw)
    if "from" in made and "role" not in made:  # ShareGPT
        made["role"] = made.pop("from")
        made["content"] = made.pop("value", made.get("content"))
    role = made.get("role")
    if role in _TOOLS or any(made.get(key) for key in _CALLS):
        what = f'has the role "{role}"' if role in _TOOLS else f"calls tools ({next(k for k in _CALLS if made.get(k))})"
        raise UsageError(
            f"{place} {what}: a chat target is sent text and images only; leave the tool turns out, or write what "
            "they found into the user's message"
        )
    if made.get("name") in list(_EXAMPLES):
        made["role"] = _EXAMPLES[made.pop("name")]
    elif role in list(_ROLES):
        made["role"] = _ROLES[role]
    if made.get("content", "") is None:
        raise UsageError(f"{place} has no text: its content is null")
    if isinstance(made.get("content"), list):
        made["content"] = "\n".join(_part(place, part) for part in made["content"])
    return {key: value for key, value in made.items() if key not in _LOGGED or value not in (None, "", [], {})}


def _part(place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image_url", "input_image", "image"):
        raise UsageError(
            f"{place} has an image as a part: save it as a file, and name that file in the message's `images`, "
            'e.g. {"role": "user", "content": "…", "images": ["a.png"]}'
        )
    raise UsageError(f"{place} has a part that is not a text: {quote(str(part))}")
