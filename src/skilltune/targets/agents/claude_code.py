"""Claude Code, headless: `claude -p` with the prompt on stdin and one JSON event per line on stdout.

The skill lies in a folder given by `--add-dir`, so that the workspace holds nothing but the task. Only its name and
description are in the first request; the body comes when the model calls the tool `Skill`, or at once if the prompt
begins with `/NAME`. An API error has the subtype "success" and `is_error`, so both are read.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping

from skilltune.sandbox.process import Command, Exit
from skilltune.targets.agents.events import Event, events_of, get, no_result, refuse, stopped, text_at
from skilltune.targets.agents.job import (
    AgentExit,
    AgentJob,
    Dialect,
    Mode,
    base_env,
    inlined,
    installed,
    loaded_at_start,
    write_skill,
)
from skilltune.usage import Usage
from skilltune.workspace import Workspace

TOOLS = "Bash,Read,Write,Edit,Glob,Grep,Skill"
LIMITS = {"error_max_turns": "its limit of turns", "error_max_budget_usd": "its limit of dollars"}
QUIET = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
    "CLAUDE_CODE_DISABLE_BUNDLED_SKILLS": "1",
    "CLAUDE_CODE_DISABLE_CLAUDE_MDS": "1",
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_FILE_MENTIONS": "1",  # an @ in a task is no order to attach a file
    "CLAUDE_CODE_MAX_RETRIES": "0",  # the gateway retries
}
_ALWAYS = (
    r"\$ARGUMENTS|\$\{CLAUDE_(?:SKILL_DIR|SESSION_ID|EFFORT|PROJECT_DIR)\}|\\\$(?=\d)|(?:^|(?<=\s))!`[^`\n]+`|^```!.*"
)
_NUMBER = re.compile(r"\$(?=\d)")
"""`/NAME TASK` puts words of the task in place of $0, $1, …; the tool `Skill` leaves them as they are."""
BUILTIN = ("plugin-authoring", "agents-md")
"""Plug-ins inside Claude Code that add skills or read files of their own, and that no variable turns off."""


class ClaudeCode:
    """The command line of Claude Code (checked with 2.1.332)."""

    dialect: Dialect = "anthropic-messages"
    executable = "claude"
    beside: tuple[str, ...] = ()
    needs = "install it with `npm install -g @anthropic-ai/claude-code`"
    rewrites: Mapping[Mode, re.Pattern[str]] = dict.fromkeys(("forced", "native"), re.compile(_ALWAYS, re.MULTILINE))

    def install(self, job: AgentJob, ws: Workspace) -> None:
        (ws.home / ".claude").mkdir(parents=True, exist_ok=True)
        if skill := installed(job):
            body = _NUMBER.sub(r"\\$", skill.body) if loaded_at_start(job) else None  # \$1 arrives as $1
            write_skill(skill, ws.home / "skill" / ".claude" / "skills", body)

    def command(self, job: AgentJob, ws: Workspace) -> Command:
        off = {"enabledPlugins": {f"cc-plugin-{name}@builtin": False for name in BUILTIN}}
        argv = [job.command, "-p", "--output-format", "stream-json", "--verbose", "--setting-sources", "project"]
        argv += ["--permission-mode", "dontAsk", "--tools", TOOLS, "--allowedTools", TOOLS, "--strict-mcp-config"]
        argv += ["--settings", json.dumps(off), "--session-id", str(uuid.uuid5(uuid.NAMESPACE_URL, job.key))]
        argv += ["--model", job.model]
        for folder in (*((ws.home / "skill",) if installed(job) else ()), *job.shown):
            argv += ["--add-dir", str(folder)]
        if skill := inlined(job):
            argv += ["--append-system-prompt", skill.body]
        env = base_env(job, ws) | QUIET | {"CLAUDE_CONFIG_DIR": str(ws.home / ".claude")}
        if job.url:
            env |= {"ANTHROPIC_BASE_URL": job.url, "ANTHROPIC_API_KEY": job.token}
        return Command(tuple(argv), ws.work, env, self._prompt(job).encode())

    def _prompt(self, job: AgentJob) -> str:
        if skill := loaded_at_start(job):
            return f"/{skill.name} {job.prompt}"
        if job.prompt.lstrip().startswith("/"):  # the task's own text, not a command
            return f"Task:\n{job.prompt}"
        return job.prompt

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit:
        events = events_of(exit.stdout)
        results = [event for event in events if event.get("type") == "result"]
        end = results[-1] if results else {}
        denials = tuple(text_at(denied, "tool_name") for denied in get(end, "permission_denials") or ())
        said = _said(events)
        if ended := stopped(job, exit, said, denials):
            return ended
        if not results:
            raise no_result(job, exit)
        usage = _usage(end)
        if (reason := LIMITS.get(text_at(end, "subtype"))) is not None:
            return AgentExit(text_at(end, "result") or said, "agent_limit", f"stopped by {reason}", denials, usage)
        if end.get("is_error"):
            status = get(end, "api_error_status")
            words = text_at(end, "result") or "; ".join(map(str, get(end, "errors") or ()))
            refuse(job, words, status if isinstance(status, int) else None)
        if exit.code != 0:
            raise no_result(job, exit, "it reports success but its exit code says otherwise")
        return AgentExit(text_at(end, "result"), "ok", "", denials, usage)


def _said(events: list[Event]) -> str:
    """The text of the last message of the model that has one."""
    for event in reversed(events):
        if event.get("type") == "assistant":
            blocks = get(event, "message", "content")
            texts = [text_at(block, "text") for block in blocks if get(block, "type") == "text"] if blocks else []
            if text := "".join(texts):
                return text
    return ""


def _usage(end: Event) -> Usage:
    used = get(end, "usage") or {}
    counts = {key: value for key, value in used.items() if isinstance(value, int)}
    cached = counts.get("cache_read_input_tokens", 0)
    usd = get(end, "total_cost_usd")
    return Usage(
        calls=max(1, get(end, "num_turns") or 1),
        input_tokens=counts.get("input_tokens", 0) + cached + counts.get("cache_creation_input_tokens", 0),
        output_tokens=counts.get("output_tokens", 0),
        cached_tokens=cached,
        usd=float(usd) if isinstance(usd, int | float) else None,
    )
