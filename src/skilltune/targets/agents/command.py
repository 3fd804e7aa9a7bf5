"""Any executable as an agent: `command:./agent.sh {prompt_file} {skill} {workspace}`.

It runs in the workspace and answers on stdout. Exit code 0 means that the answer counts, even an empty one; any other
code is a failure and never a score.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from skilltune.errors import UsageError
from skilltune.sandbox.process import Command, Exit
from skilltune.targets.agents.events import no_result, stopped
from skilltune.targets.agents.job import AgentExit, AgentJob, Dialect, Mode, base_env, loaded_at_start, write_skill
from skilltune.workspace import Workspace

PLACES = ("prompt_file", "skill", "workspace", "model")


class AnyCommand:
    """A command line of the user. The same facts are in its arguments (where it asks for them) and its environment.

    `{prompt_file}` holds the task, `{skill}` is the folder of the skill (empty without a skill), `{workspace}` is the
    current folder, `{model}` is the model behind the gateway. With a gateway, the usual variables of OpenAI's and
    Anthropic's clients point to it.
    """

    dialect: Dialect = "openai-chat"
    executable = ""
    beside: tuple[str, ...] = ()
    needs = "check the path in target.model; a relative path starts at the config's folder"
    rewrites: Mapping[Mode, re.Pattern[str]] = {}

    def install(self, job: AgentJob, ws: Workspace) -> None:
        (ws.home / "prompt.md").write_text(prompt_of(job), encoding="utf-8")
        if job.skill:
            write_skill(job.skill, ws.home / "skills")

    def command(self, job: AgentJob, ws: Workspace) -> Command:
        skill = str(ws.home / "skills" / job.skill.name) if job.skill else ""
        facts = {
            "prompt_file": str(ws.home / "prompt.md"),
            "skill": skill,
            "workspace": str(ws.work),
            "model": job.model,
        }
        env = base_env(job, ws) | gateway_env(job)
        env |= {f"SKILLTUNE_{name.upper()}": value for name, value in facts.items()}
        return Command(fill(job.command, facts), ws.work, env, prompt_of(job).encode())

    def read(self, job: AgentJob, ws: Workspace, exit: Exit) -> AgentExit:
        answer = exit.stdout.decode("utf-8", "replace").strip()
        if ended := stopped(job, exit, answer):
            return ended
        if exit.code != 0:
            raise no_result(job, exit, "the command failed")
        return AgentExit(answer)


def prompt_of(job: AgentJob) -> str:
    """The task. An agent of unknown kind cannot be told to load a skill, so `forced` puts the body before the task, as
    `inline` does."""
    skill = loaded_at_start(job) or (job.skill if job.activation == "inline" else None)
    return f"{skill.body.strip()}\n\n{job.prompt}" if skill and skill.body.strip() else job.prompt


def fill(command: str, facts: Mapping[str, str]) -> tuple[str, ...]:
    """The words of a command line with `{NAME}` replaced. No shell reads it. Other braces stay as they are."""
    words = []
    for word in split_command(command):
        for name, value in facts.items():
            word = word.replace(f"{{{name}}}", value)
        words.append(word)
    return tuple(words)


def split_command(command: str) -> list[str]:
    """The words of a command line. Raises `UsageError` for an open quote or an empty one."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command `{command}` cannot be read: {error}; close the quote") from error
    if not words:
        raise UsageError("the command is empty; write it like `command:./agent.sh {prompt_file}`")
    return words


def gateway_env(job: AgentJob) -> dict[str, str]:
    """The usual variables of model clients, pointing to the gateway. Empty without one."""
    if not job.url:
        return {}
    return {
        "OPENAI_BASE_URL": f"{job.url}/v1",
        "OPENAI_API_KEY": job.token,
        "ANTHROPIC_BASE_URL": job.url,
        "ANTHROPIC_API_KEY": job.token,
    }
