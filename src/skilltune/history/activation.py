"""The share of an agent's rollouts in which the skill was offered and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.names import AGENT_SCHEMES, parse_name
from skilltune.rollout import Trajectory

UNPROVEN = "unproven: the agent has a login of its own, so nobody saw if it was given the skill"


def describe_activation(run: Run) -> str:
    """One sentence for the report of a run; "" if the target is no agent or made no rollout."""
    target: Mapping[str, Any] = (run.config or {}).get("target", {})
    if not is_agent(str(target.get("model", ""))):
        return ""
    if is_unproven(str(target["model"]), str(target.get("upstream") or ""), target.get("gateway") is not False):
        return UNPROVEN
    seen = [(value["offered"], value["loaded"]) for _, value in run.answers("rollout")]
    return shares(seen)


def activation_of(model: str, upstream: str, trajectories: Iterable[Trajectory], *, gateway: bool = True) -> str:
    """The same for rollouts in memory."""
    if not is_agent(model):
        return ""
    every = list(trajectories)
    if every and is_unproven(model, upstream, gateway):
        return UNPROVEN
    return shares([(each.skill_offered, each.skill_loaded) for each in every])


def shares(seen: list[tuple[bool, bool]]) -> str:
    if not seen:
        return ""
    offered, loaded = (sum(column) for column in zip(*seen, strict=True))
    return f"offered in {offered} of {len(seen)} rollouts, loaded in {loaded} ({100 * loaded / len(seen):.0f} %)"


def is_agent(model: str) -> bool:
    """False also for a name that this version cannot read."""
    try:
        return bool(model) and parse_name(model).scheme in AGENT_SCHEMES
    except UsageError:
        return False


def is_unproven(model: str, upstream: str, gateway: bool) -> bool:
    """True if the agent's model calls do not go through the gateway."""
    return not gateway or (parse_name(model).scheme in ("acp", "command") and not upstream)
