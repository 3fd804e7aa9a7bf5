"""The kinds of targets, by the scheme of their name. A new kind is one entry in `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from skilltune.config import TargetConfig
from skilltune.envs import Env, offered_by
from skilltune.errors import UsageError
from skilltune.execute import HERE
from skilltune.metering.clients import Clients
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.names import AGENT_SCHEMES, parse_name
from skilltune.sandbox import NONE, probe
from skilltune.targets.agents.job import workspaces_of
from skilltune.targets.agents.target import make_agent
from skilltune.targets.chat import ChatTarget
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.plugin import load_target
from skilltune.targets.tools import MAX_TURNS, ToolsTarget, no_tools

RunTarget: TypeAlias = ChatTarget | ToolsTarget | MeteredTarget
"""A target within a run: its rollouts are units of the budget."""


def make_chat(cfg: TargetConfig, clients: Clients, root: Path, env: Env | None = None) -> ChatTarget | ToolsTarget:
    """A chat model, with tools if the config names some or the environment offers some. The files of the project and
    of the samples stay hidden from the tools. Raises `UsageError` if both have a tool of the same name."""
    client, offered = clients.client(cfg, "target"), offered_by(env) if env is not None else ()
    if not (cfg.tools or offered):
        return ChatTarget(client, cfg.temperature, cfg.max_tokens)
    made = ToolsTarget(
        client,
        tuple(dict.fromkeys(cfg.tools)),
        probe(cfg.sandbox) if cfg.tools else NONE,
        workspaces_of(clients.run.folder),
        hidden_from(env, root, clients.run.folder),
        cfg.max_turns or MAX_TURNS,
        cfg.temperature,
        cfg.max_tokens,
        env.tools if env is not None and offered else no_tools,
        cfg.tool_calls or ("text" if parse_name(cfg.model).scheme == "local" else "native"),
    )
    if env is not None and offered:
        made.offered(made.offers(env.task(env.samples[0])))
        if cfg.hedge:
            raise UsageError(
                "target.hedge sends a request twice, and the environment offers tools, whose state a rollout has only "
                "once: leave it out"
            )
    return made


def hidden_from(env: Env | None, *folders: Path) -> tuple[Path, ...]:
    """The folders, and the files of the environment that a target and an agent that proposes edits may not read."""
    private = [*folders, *(env.private if env is not None else ())]
    return tuple(dict.fromkeys(path for path in (place.resolve() for place in private) if len(path.parts) > 1))


def make_plugin(cfg: TargetConfig, clients: Clients, root: Path, env: Env | None = None) -> MeteredTarget:
    if env is not None and (offered := offered_by(env)):
        raise UsageError(
            f"target.model: the environment offers tools ({', '.join(tool.name for tool in offered)}), and a target of "
            "a plug-in cannot be given them: name a chat model"
        )
    return MeteredTarget(cfg.model, load_target(cfg), clients.meter(cfg, "target"), cfg.price)


def make_agent_target(
    cfg: TargetConfig,
    clients: Clients,
    root: Path,
    env: Env | None = None,
    *,
    role: str = "target",
    writable: tuple[str, ...] | None = None,
) -> MeteredTarget:
    """An agent. Its rollouts have slots of their own, because each of its model calls takes one at the endpoint. It is
    given the tools of the environment if it is the target; the samples' files are hidden from it in every role. Raises
    `UsageError` if it would need those tools on another machine."""
    if role == "target" and env is not None and clients.executor is not HERE and (offered := offered_by(env)):
        raise UsageError(
            f"workers.on={clients.executor.name}: the tools of this environment ({offered[0].name}, …) have their "
            "state or documents on this machine, so its rollouts cannot run on workers: set workers.on=local"
        )
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
        offers=env.tools if env is not None and role == "target" else no_tools,
        hidden=hidden_from(env, root, clients.run.folder),
    )
    slots = clients.executor.slots or cfg.workers
    meter = Meter(Endpoint(slots, max_wait_s=cfg.max_wait_s), clients.budget, clients.run, role)
    return MeteredTarget(cfg.model, agent, meter, None if agent.upstream else cfg.price)


MAKERS: dict[str, Callable[[TargetConfig, Clients, Path, Env], RunTarget]] = {
    **dict.fromkeys(AGENT_SCHEMES, make_agent_target),
    "openai": make_chat,
    "anthropic": make_chat,
    "local": make_chat,
    "plugin": make_plugin,
}
