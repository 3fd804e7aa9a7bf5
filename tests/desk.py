"""A scripted model that plays both sides of a training: a desk that enters codes, and an agent that proposes rules.

The target knows a code only if the skill says it. The optimizer reads the files of its question by the agent's own
shell tool, and answers from them alone.
"""

from __future__ import annotations

import json
import re
from typing import Any

from skilltune import Sample
from skilltune.gateway.body import texts_of
from skilltune.optimizer.stage import load_prompt
from upstream import Asked, Call, Turn

KINDS = ("printer", "screen")
LOOK = "cat README.md; cat skill.md; cat samples/* patches/* edits.jsonl refused.md 2>/dev/null"
BEGIN = load_prompt("agent")[:40]  # of the prompt of an agent that proposes


def call(asked: Asked, command: str) -> Turn:
    """A call of the agent's shell tool, by the name that it has in the request."""
    offered = [tool.get("function", tool).get("name", "") for tool in asked.body["tools"]]
    name = next(name for name in ("exec_command", "Bash", "bash") if name in offered)
    return Turn(calls=(Call(name, {"cmd": command} if name == "exec_command" else {"command": command}),))


def text_of(asked: Asked) -> str:
    return "\n".join(texts_of(asked.body))


def samples(n: int) -> list[Sample]:
    codes = {"printer": "PRN-1", "screen": "SCR-2"}
    return [
        Sample(id=f"t{i:03}", input=f"Ticket {i:03}: the {KINDS[i % 2]} is broken.", target=codes[KINDS[i % 2]])
        for i in range(n)
    ]


def desk(asked: Asked) -> Turn:
    """The target, which knows a code only if the skill says it, and the optimizer, which reads files."""
    text = text_of(asked)
    if BEGIN in text:
        return optimizer(asked, text)
    kind = next((kind for kind in KINDS if f": the {kind} is broken" in text), "")
    said = re.search(rf"code of a {kind} is ([A-Z]{{3}}-\d)", text) if kind else None
    return Turn(said[1] if said else "UNKNOWN")


def optimizer(asked: Asked, text: str) -> Turn:
    if not asked.results:
        return call(asked, LOOK)
    stage = re.search(r"# Question: (\w+)", text)
    assert stage
    match stage[1]:
        case "merge":
            patches = [json.loads(line) for line in re.findall(r'^\{"edits": .*$', text, re.MULTILINE)]
            return Turn(json.dumps({"edits": [edit for patch in patches for edit in patch["edits"]]}))
        case "rank":
            return Turn(json.dumps({"order": [*range(len(re.findall(r'^\{"index": ', text, re.MULTILINE)))]}))
        case "learning_rate":
            return Turn(json.dumps({"edits": 1, "reason": ""}))
        case "slow_update" | "notes":
            return Turn(json.dumps({"notes": "One rule a kind.", "reasoning": "", "guidance": ""}))
    edits: dict[str, Any] = {}
    for sample, body in re.findall(r'# Sample "(t\d+)"\n(.*?)(?=# Sample|\Z)', text, re.DOTALL):
        kind, code = re.search(r"the (\w+) is broken", body), re.search(r"Expected: (\S+)", body)
        if kind and code and "UNKNOWN" in body:
            rule = f"- The code of a {kind[1]} is {code[1]}."
            cited = [{"sample": sample, "quote": f"the {kind[1]} is broken"}]
            edits[rule] = {"op": "add", "after": None, "target": None, "text": rule, "why": "", "evidence": cited}
    return Turn(json.dumps({"diagnosis": [], "edits": list(edits.values())}))
