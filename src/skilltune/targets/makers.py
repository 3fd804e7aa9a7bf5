"""The kinds of targets, by the scheme of their name. A new kind is one entry in `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from skilltune.config import TargetConfig
from skilltune.metering.clients import Clients
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.names import AGENT_SCHEMES
from skilltune.sandbox import probe
from skilltune.targets.agents.job import workspaces_of
from skilltune.targets.agents.target import make_agent
from skilltune.targets.chat import ChatTarget
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.plugin import load_target
from skilltune.targets.tools import MAX_TURNS, ToolsTarget

RunTarget: TypeAlias = ChatTarget | ToolsTarget | MeteredTarget
"""A target within a run: its rollouts are units of the budget."""


def make_chat(cfg: TargetConfig, clients: Clients, root: Path) -> ChatTarget | ToolsTarget:
    """A chat model, with tools if the config names some. The project's files stay hidden from the tools."""
    if cfg.tools:
        return ToolsTarget(
            clients.client(cfg, "target"),
            tuple(dict.fromkeys(cfg.tools)),
            probe(cfg.sandbox),
            workspaces_of(clients.run.folder),
            tuple({root.resolve(), clients.run.folder.resolve()}),
            cfg.max_turns or MAX_TURNS,
            cfg.temperature,
            cfg.max_tokens,
        )
    return ChatTarget(clients.client(cfg, "target"), cfg.temperature, cfg.max_tokens)


def make_plugin(cfg: TargetConfig, clients: Clients, root: Path) -> MeteredTarget:
    return MeteredTarget(cfg.model, load_target(cfg), clients.meter(cfg, "target"), cfg.price)


def make_agent_target(
    cfg: TargetConfig,
    clients: Clients,
    root: Path,
    *,
    role: str = "target",
    writable: tuple[str, ...] | None = None,
) -> MeteredTarget:
    """An agent. Its rollouts have slots of their own, because each of its model calls takes one at the endpoint."""
    section = cfg.model_copy(update={"model": cfg.upstream}) if cfg.upstream else cfg
    agent = make_agent(
        cfg,
        root,
        run=clients.run,
        slots=clients.endpoint(section, role),
        writable=writable,
        role=role,
        key_env=clients.key_env(section),
        spend=clients.budget.spend,
        executor=clients.executor,
    )
    slots = clients.executor.slots or cfg.workers
    meter = Meter(Endpoint(slots, max_wait_s=cfg.max_wait_s), clients.budget, clients.run, role)
    return MeteredTarget(cfg.model, agent, meter, None if agent.upstream else cfg.price)


MAKERS: dict[str, Callable[[TargetConfig, Clients, Path], RunTarget]] = {
    **dict.fromkeys(AGENT_SCHEMES, make_agent_target),
    "openai": make_chat,
    "anthropic": make_chat,
    "local": make_chat,
    "plugin": make_plugin,
}
