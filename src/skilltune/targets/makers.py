"""The kinds of targets, by the scheme of their name. A new kind is one entry in `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from skilltune.config import TargetConfig
from skilltune.metering.clients import Clients
from skilltune.targets.chat import ChatTarget
from skilltune.targets.metered import MeteredTarget
from skilltune.targets.plugin import load_target

RunTarget: TypeAlias = ChatTarget | MeteredTarget
"""A target within a run: its rollouts are units of the budget."""


def make_chat(cfg: TargetConfig, clients: Clients) -> ChatTarget:
    return ChatTarget(clients.client(cfg, "target"), cfg.temperature, cfg.max_tokens)


def make_plugin(cfg: TargetConfig, clients: Clients) -> MeteredTarget:
    return MeteredTarget(cfg.model, load_target(cfg), clients.meter(cfg, "target"), cfg.price)


MAKERS: dict[str, Callable[[TargetConfig, Clients], RunTarget]] = {
    "openai": make_chat,
    "anthropic": make_chat,
    "local": make_chat,
    "plugin": make_plugin,
}
