"""Tool calls as text, for a model without function calling: `<think>…</think><action>…</action>`.

If there is one tool with one parameter, the action is its value: `<action>open the drawer</action>`. Else it is JSON:
`<action>{"tool": "read", "path": "a.txt"}</action>`. The first action of an answer counts, because a model that goes on
after it makes up the observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skilltune.models import Tool, ToolCall, ToolResult

_PROMPTS = Path(__file__).parent / "prompts"
_PROTOCOL = (_PROMPTS / "text_calls.md").read_text(encoding="utf-8").strip()
NO_CALL = (_PROMPTS / "no_call.md").read_text(encoding="utf-8").strip()
_ACTION = re.compile(r"<action>(.*?)(?:</action>|\Z)", re.DOTALL | re.IGNORECASE)


def explained(offered: Iterable[Tool]) -> str:
    """The protocol and the tools, for the end of the prompt."""
    tools = list(offered)
    if (only := _only(tools)) is not None:
        tool, parameter = only
        return _PROTOCOL.replace("{actions}", f"{tool.description} The action is {_about(tool, parameter)}.")
    listed = [json.dumps({"tool": tool.name} | {key: _about(tool, key) for key in _keys(tool)}) for tool in tools]
    lines = [f"- {form}  {tool.description}" for form, tool in zip(listed, tools, strict=True)]
    end = "An answer without an action ends your work."
    return _PROTOCOL.replace("{actions}", "\n".join(("An action is one of these JSON objects:", *lines, end)))


def call_in(text: str, offered: Iterable[Tool]) -> tuple[ToolCall, ...]:
    """The call that an answer makes; empty if it makes none. An action that is not JSON although it must be is a call
    of a tool that does not exist, so that the model is told."""
    _, _, after = text.rpartition("</think>")
    found = _ACTION.search(after) or _ACTION.search(text)
    if found is None:
        return ()
    action, tools = found[1].strip(), list(offered)
    if (only := _only(tools)) is not None:
        tool, parameter = only
        return (ToolCall("1", tool.name, json.dumps({parameter: action}, ensure_ascii=False)),)
    try:
        said: Any = json.loads(action)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("tool"), str):
        return (ToolCall("1", action[:80], "{}"),)
    given = {key: value for key, value in said.items() if key != "tool"}
    return (ToolCall("1", said["tool"], json.dumps(given, ensure_ascii=False)),)


def observed(results: Sequence[ToolResult]) -> str:
    """The results of a step as the next message."""
    return "\n".join(f"<observation>\n{result.text}\n</observation>" for result in results)


def _only(tools: Sequence[Tool]) -> tuple[Tool, str] | None:
    """The tool and its parameter, if the action is the parameter's value."""
    if len(tools) == 1 and len(keys := _keys(tools[0])) == 1:
        return tools[0], keys[0]
    return None


def _keys(tool: Tool) -> list[str]:
    return list(tool.parameters.get("properties", {}))


def _about(tool: Tool, key: str) -> str:
    return tool.parameters["properties"][key].get("description", key)
