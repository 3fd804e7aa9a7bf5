"""Merge patches as published by SkillOpt: hierarchically, failures before successes, then ranked and clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skilltune.aio import run_all
from skilltune.edits import Edit, Malformed
from skilltune.optimizer import Proposal, join
from skilltune.optimizer.lines import read_edits
from skilltune.optimizer.render import Part
from skilltune.optimizer.stage import Context, Stages, as_json

Patch = list[Proposal]
SIDES = ("failures", "successes")


async def merge(
    stages: Stages, context: Context, failures: Sequence[Patch], successes: Sequence[Patch], size: int, limit: int
) -> Patch:
    """Merge all patches into at most `limit` edits.

    Each side is merged `size` patches at a time, then the two sides, with priority for failures. If more than `limit`
    edits remain, a ranking decides which to keep.
    """
    sides = await run_all([_tree(stages, context, side, size) for side in (failures, successes)])
    merged = [side for side in sides if side]
    if len(merged) == 2:
        merged = [await _merge_once(stages, context, merged, prompt="merge_final", names=SIDES)]
    proposals = merged[0] if merged else []
    if len(proposals) > limit:
        proposals = [proposals[index] for index in await _rank(stages, context, proposals, limit)]
    return proposals[:limit]


async def _tree(stages: Stages, context: Context, patches: Sequence[Patch], size: int) -> Patch:
    """Merge level by level until one patch is left. The merges of a level run at the same time."""
    level = [patch for patch in patches if patch]
    while len(level) > 1:
        groups = [level[start : start + size] for start in range(0, len(level), size)]
        level = await run_all([_merge_once(stages, context, group) for group in groups])
    return level[0] if level else []


async def _merge_once(
    stages: Stages, context: Context, patches: Sequence[Patch], *, prompt: str = "merge", names: Sequence[str] = ()
) -> Patch:
    """One merge call. If its answer cannot be read, the patches are joined without duplicates; an event says so."""
    if len(patches) == 1:
        return patches[0]
    supported = {sample for patch in patches for proposal in patch for sample in proposal.support}

    def read(data: Any) -> Patch:
        edits = read_edits(data, context.skill.body)
        faults = [edit.reason for edit in edits if isinstance(edit, Malformed)]
        if edits and len(faults) == len(edits):
            raise ValueError("no edit of the answer can be read: " + "; ".join(faults))
        return [
            Proposal(edit, tuple(dict.fromkeys(c.sample for c in edit.evidence if c.sample in supported)))
            for edit in edits
            if isinstance(edit, Edit)
        ]

    evidence = [
        Part.of("patch", as_json({"edits": [p.edit.to_json() for p in patch]}), id=names[i] if names else f"p{i}")
        for i, patch in enumerate(patches)
    ]
    merged = await stages.ask_or_none(prompt, context, evidence, read)
    return join(proposal for patch in patches for proposal in patch) if merged is None else merged


async def _rank(stages: Stages, context: Context, proposals: Patch, limit: int) -> list[int]:
    """Indices, best first. If the answer cannot be read, the best supported edits come first; an event says so."""

    def read(data: Any) -> list[int]:
        order = data.get("order")
        if not isinstance(order, list):
            raise ValueError('"order" must be a list of indices')
        known = [i for i in dict.fromkeys(order) if type(i) is int and 0 <= i < len(proposals)]
        if len(known) < min(limit, len(proposals)):
            raise ValueError(f'"order" must hold each index from 0 to {len(proposals) - 1} once')
        return known

    order = await stages.ask_or_none("rank", context, numbered(proposals), read, limit=limit)
    if order is None:
        return sorted(range(len(proposals)), key=lambda i: -len(proposals[i].support))
    return order


def numbered(proposals: Sequence[Proposal]) -> list[Part]:
    """The edits as parts of a question, numbered from 0."""
    return [Part.of("edit", as_json(proposal.edit.to_json()), index=i) for i, proposal in enumerate(proposals)]
