"""opencode, headless: `opencode run --format json` with the prompt on stdin.

The private settings name one provider, the gateway. Skills are commands here, so `--command NAME` loads the body at
once. opencode installs a package into its settings folder at every start; npm's offline mode prevents that, because a
rollout connects to nothing but the gateway.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from skilltune.errors import UsageError
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

PROVIDER = "skilltune"
SWITCHES = (
    *("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "SHARE"),
    *("EXTERNAL_SKILLS", "CLAUDE_CODE", "PROJECT_CONFIG"),  # nothing of the user's reaches the rollout
)


class OpenCode:
    """The command line of opencode (checked with 1.18.33)."""

    dialect: Dialect = "openai-chat"
    executable = "opencode"
    beside: tuple[str, ...] = ("rg",)  # its tools for skills and files; it would download it at first use
    needs = "install it with `npm install -g opencode-ai`"
    rewrites: Mapping[Mode, re.Pattern[str]] = {"forced": re.compile(r"\$\d+|\$ARGUMENTS|!`[^`]+`")}

    def install(self, job: AgentJob, ws: Workspace) -> None:
        if not job.url:
            raise UsageError("opencode runs through the gateway only; leave target.gateway out")
        model = f"{PROVIDER}/{job.model}"
        settings = {
            "autoupdate": False,
            "share": "disabled",
            "snapshot": False,
            "model": model,
            "small_model": model,
            "enabled_providers": [PROVIDER],
            "agent": {"title": {"disable": True}},  # one more paid call that names the session
            "permission": {
                "skill": {"customize-opencode": "deny"},  # a skill of its own
                "webfetch": "deny",
                "websearch": "deny",
                "external_directory": {"*": "deny"}
                | {f"{folder}/*": "allow" for folder in job.shown},  # the last rule counts
            },
            "provider": {
                PROVIDER: {
                    "npm": "@ai-sdk/openai-compatible",
                    "name": PROVIDER,
                    "options": {"baseURL": f"{job.url}/v1", "apiKey": job.token},
                    "models": {job.model: {"name": job.model}},
                }
            },
        }
        if skill := installed(job):
            write_skill(skill, ws.home / "skills")
            settings["skills"] = {"paths": [str(ws.home / "skills")]}
        if skill := inlined(job):
            (ws.home / "instructions.md").write_text(skill.body, encoding="utf-8")
            settings["instructions"] = [str(ws.home / "instructions.md")]
        (ws.home / "opencode.json").write_text(json.dumps(settings), encoding="utf-8")

    def command(self, job: AgentJob, ws: Workspace) -> Command:
        argv = [job.command, "run", "--format", "json"]
        if skill := loaded_at_start(job):
            argv += ["--command", skill.name]
        env = base_env(job, ws)
        env |= {f"OPENCODE_DISABLE_{name}": "1" for name in SWITCHES}
        env |= {"OPENCODE_PURE": "1", "OPENCODE_CONFIG": str(ws.home / "opencode.json"), "npm_config_offline": "true"}
        for kind, folder in (("CONFIG", ".config"), ("DATA", ".data"), ("CACHE", ".cache"), ("STATE", ".state")):
            env[f"XDG_{kind}_HOME"] = str(ws.home / folder)
        return Command(tuple(argv), ws.work, env, job.prompt.encode())

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit:
        events = events_of(exit.stdout)
        steps = [get(event, "part") for event in events if event.get("type") == "step_finish"]
        said = [get(event, "part") for event in events if event.get("type") == "text"]
        last = text_at(said[-1], "messageID") if said else ""
        answer = "".join(text_at(part, "text") for part in said if text_at(part, "messageID") == last)
        denials = tuple(
            text_at(event, "part", "tool")
            for event in events
            if event.get("type") == "tool_use" and "permission" in text_at(event, "part", "state", "error").lower()
        )
        if ended := stopped(job, exit, answer, denials):
            return ended
        if failed := [event for event in events if event.get("type") == "error"]:
            status = get(failed[-1], "error", "data", "statusCode")
            words = text_at(failed[-1], "error", "data", "message") or text_at(failed[-1], "error", "name")
            refuse(job, words, status if isinstance(status, int) else None)
        reason = text_at(steps[-1], "reason") if steps else ""
        if exit.code != 0 or reason not in ("stop", "length"):
            raise no_result(job, exit)
        if reason == "length":
            return AgentExit(answer, "agent_limit", "the answer was cut at the model's limit", denials, _usage(steps))
        return AgentExit(answer, "ok", "", denials, _usage(steps))


def _usage(steps: list[object]) -> Usage:
    def total(*path: str) -> int:
        return sum(int(count) for step in steps if isinstance(count := get(step, "tokens", *path), int | float))

    cached = total("cache", "read")
    return Usage(
        calls=len(steps),
        input_tokens=total("input") + cached + total("cache", "write"),
        output_tokens=total("output"),
        cached_tokens=cached,
        reasoning_tokens=total("reasoning"),
        usd=None,
    )
