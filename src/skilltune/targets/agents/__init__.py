"""Real agents as frozen targets: one file per kind of agent, and one pure job per rollout.

An agent's model calls go through the gateway, which meters them, journals them and proves that the skill was there.
"""

from __future__ import annotations

from collections.abc import Mapping

from skilltune.targets.agents.acp import AcpAgent
from skilltune.targets.agents.claude_code import ClaudeCode
from skilltune.targets.agents.codex import Codex
from skilltune.targets.agents.command import AnyCommand
from skilltune.targets.agents.job import Agent, AgentExit, AgentJob, AgentResult, SkillFiles, run_job
from skilltune.targets.agents.opencode import OpenCode

AGENTS: Mapping[str, Agent] = {
    "claude-code": ClaudeCode(),
    "codex": Codex(),
    "opencode": OpenCode(),
    "acp": AcpAgent(),
    "command": AnyCommand(),
}
"""Every kind of agent by the scheme of its name."""

__all__ = ["AGENTS", "Agent", "AgentExit", "AgentJob", "AgentResult", "SkillFiles", "run_job"]
