"""Codex, headless: `codex exec --json` with the prompt on stdin.

The skill lies in the private CODEX_HOME. It is listed by its description; the body comes through a shell read of the
file, or at once if the prompt contains `$NAME`. Codex reports no cost and has no limit of turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from skilltune.sandbox.process import Command, Exit
from skilltune.targets.agents.events import events_of, get, no_result, refuse, stopped, text_at
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

KEY = "SKILLTUNE_GATEWAY_KEY"
PROVIDER = "skilltune"
CONFIG = """\
model = {model}
model_provider = "{provider}"
check_for_update_on_startup = false
web_search = "disabled"

[skills.bundled]
enabled = false

[analytics]
enabled = false
"""
GATEWAY = """
[model_providers.{provider}]
name = "{provider}"
base_url = {url}
env_key = "{key}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
OFF = ("plugins", "unbounded_connection_retries", "multi_agent", "goals")


class Codex:
    """The command line of Codex (checked with 0.171.0)."""

    dialect: Dialect = "openai-responses"
    executable = "codex"
    beside: tuple[str, ...] = ()
    needs = "install it with `npm install -g @openai/codex`"
    rewrites: Mapping[Mode, re.Pattern[str]] = {}

    def install(self, job: AgentJob, ws: Workspace) -> None:
        home = ws.home / "codex"
        home.mkdir(parents=True, exist_ok=True)
        provider = PROVIDER if job.url else "openai"
        text = CONFIG.format(model=json.dumps(job.model), provider=provider)
        if job.url:
            text += GATEWAY.format(provider=provider, url=json.dumps(f"{job.url}/v1"), key=KEY)
        (home / "config.toml").write_text(text, encoding="utf-8")
        if skill := installed(job):
            write_skill(skill, home / "skills")

    def command(self, job: AgentJob, ws: Workspace) -> Command:
        argv = [job.command, "exec", "--json", "--skip-git-repo-check"]
        # our sandbox already holds, and Codex's own cannot be set up inside it
        argv += ["-s", "workspace-write" if job.sandbox == "none" else "danger-full-access"]
        for feature in OFF:
            argv += ["--disable", feature]
        if skill := inlined(job):
            argv += ["-c", f"developer_instructions={json.dumps(skill.body)}"]
        env = base_env(job, ws) | {"CODEX_HOME": str(ws.home / "codex")}
        if job.url:
            env[KEY] = job.token
        skill = loaded_at_start(job)
        prompt = f"${skill.name} {job.prompt}" if skill else job.prompt
        return Command((*argv, "-"), ws.work, env, prompt.encode())

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit:
        events = events_of(exit.stdout)
        items = [get(event, "item") for event in events if event.get("type") == "item.completed"]
        said = [text_at(item, "text") for item in items if get(item, "type") == "agent_message"]
        answer = said[-1] if said else ""
        denials = tuple(
            text_at(item, "command")[:200]
            for item in items
            if get(item, "type") == "command_execution" and get(item, "status") == "declined"
        )
        if ended := stopped(job, exit, answer, denials):
            return ended
        if failed := [event for event in events if event.get("type") == "turn.failed"]:
            words = text_at(failed[-1], "error", "message")
            status = re.search(r"unexpected status (\d{3})", words)
            kind = 400 if "invalid_request_error" in words else None
            refuse(job, words, int(status[1]) if status else kind)
        done = [event for event in events if event.get("type") == "turn.completed"]
        if not done or exit.code != 0:
            raise no_result(job, exit)
        return AgentExit(answer, "ok", "", denials, _usage([get(event, "usage") for event in done]))


def _usage(turns: list[object]) -> Usage:
    def total(key: str) -> int:
        return sum(count for turn in turns if isinstance(count := get(turn, key), int))

    return Usage(
        calls=len(turns),
        input_tokens=total("input_tokens"),
        output_tokens=total("output_tokens"),
        cached_tokens=total("cached_input_tokens"),
        reasoning_tokens=total("reasoning_output_tokens"),
        usd=None,
    )
