"""Any agent that speaks the Agent Client Protocol: `acp:opencode acp`, `acp:agy --acp`, `acp:goose acp`, …

The protocol is a conversation, and a job is one process. So the process is a small client (`acp_client.py`) that starts
the agent, gives it the task, permits what the sandbox allows anyway, and prints what the agent reports, one JSON object
per line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from skilltune.errors import CallConfigError
from skilltune.sandbox.process import Command, Exit
from skilltune.targets.agents.acp_client import NOT_STARTED
from skilltune.targets.agents.command import fill, gateway_env, prompt_of
from skilltune.targets.agents.events import events_of, get, no_result, refuse, stopped, text_at
from skilltune.targets.agents.job import AgentExit, AgentJob, Dialect, Mode, base_env, installed, write_skill
from skilltune.workspace import Workspace

CLIENT = Path(__file__).with_name("acp_client.py")
SKILLS = (".agents/skills", ".claude/skills")
"""Places below HOME where agents look for skills. An agent that reads both lists the skill once or twice."""
LOGIN = -32000  # the protocol's error code for a missing login
LIMITS = {"max_tokens": "the model's limit of tokens", "max_turn_requests": "its limit of turns"}


class AcpAgent:
    """An agent behind the Agent Client Protocol, version 1. `forced` puts the skill's body before the task."""

    dialect: Dialect = "openai-chat"
    executable = ""
    beside: tuple[str, ...] = ()
    needs = "install the agent, and check its command in target.model"
    rewrites: Mapping[Mode, re.Pattern[str]] = {}

    def install(self, job: AgentJob, ws: Workspace) -> None:
        if skill := installed(job):
            for place in SKILLS:
                write_skill(skill, ws.home / place)

    def command(self, job: AgentJob, ws: Workspace) -> Command:
        argv = fill(job.command, {"workspace": str(ws.work), "model": job.model})
        task = {"argv": argv, "cwd": str(ws.work), "prompt": prompt_of(job)}
        python = os.path.realpath(sys.executable)
        return Command(
            (python, "-I", "-S", str(CLIENT)), ws.work, base_env(job, ws) | gateway_env(job), json.dumps(task).encode()
        )

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit:
        events = events_of(exit.stdout)
        answer, denials = _said(events), tuple(text_at(e, "denied") for e in events if "denied" in e)
        if ended := stopped(job, exit, answer, denials):
            return ended
        if failed := [event for event in events if "failed" in event]:
            error = failed[-1]["failed"]
            words = f"{text_at(error, 'message')} {text_at(error, 'data', 'details') or text_at(error, 'data')}"
            if get(error, "code") == NOT_STARTED:
                raise CallConfigError(f"{job.agent}: {words.strip()}; {self.needs}")
            if get(error, "code") == LOGIN:
                refuse(job, f"it asks for a login: {words}", 401)
            refuse(job, words, None)
        reasons = [text_at(event, "stopped") for event in events if "stopped" in event]
        if not reasons or exit.code != 0:
            raise no_result(job, exit)
        if reason := LIMITS.get(reasons[-1]):
            return AgentExit(answer, "agent_limit", f"stopped by {reason}", denials)
        if reasons[-1] == "cancelled":
            raise no_result(job, exit, "it cancelled its own turn")
        note = "the model refused" if reasons[-1] == "refusal" else ""
        return AgentExit(answer, "ok", note, denials)


def _said(events: list[dict[str, object]]) -> str:
    """The agent's text after its last tool call, or else its last text."""
    said, texts = "", ""
    for event in events:
        update = get(event, "update")
        match text_at(update, "sessionUpdate"):
            case "agent_message_chunk":
                texts += text_at(update, "content", "text")
            case "tool_call" | "tool_call_update":
                said, texts = texts or said, ""
    return (texts or said).strip()
