"""Non-inferiority on further targets: a candidate that the gate accepts must not harm them (`gate.also`).

The gate's own target decides first, so a rejected candidate costs nothing here. Each further target then does the
`select` samples with the candidate, with the incumbent, and with the input. The input is compared too, because many
small losses would otherwise add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from skilltune.aio import run_all
from skilltune.gate import Arena
from skilltune.gate.blocks import doubling, harmful, in_turn
from skilltune.gate.priors import ELSEWHERE, VETO
from skilltune.journal.keys import rng
from skilltune.rollouts.further import Further
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.verdict import Elsewhere


async def check_elsewhere(arena: Arena, incumbent: Skill, candidate: Skill, name: str) -> tuple[Elsewhere, ...]:
    """Check an accepted candidate on each further target, in order, up to the first one that vetoes it.

    A target vetoes unless P(loss > `gate.also_margin`) is at most `ELSEWHERE` by its `select` samples, against the
    incumbent and against the input. The loss of a version over the input counts once it was accepted, so a removal of
    edits is checked like an addition. `name` is the name of the step.
    """
    found: list[Elsewhere] = []
    for other in arena.also:
        found.append(await _check(arena, other, incumbent, candidate, name))
        if found[-1].vetoed:
            break
    return tuple(found)


async def harmless_alone(
    arena: Arena, target: str, incumbent: Skill, candidates: Sequence[Skill], name: str
) -> list[bool]:
    """For each candidate True if the further target does not veto it."""
    other = next(other for other in arena.also if other.name == target)
    return [not (await _check(arena, other, incumbent, skill, name)).vetoed for skill in candidates]


async def _check(arena: Arena, other: Further, incumbent: Skill, candidate: Skill, name: str) -> Elsewhere:
    """Roll blocks of `select`, up to `gate.passes` attempts. A clear harm ends the check early; a pass needs all
    samples."""
    cfg, start = arena.cfg, arena.start
    bars = [incumbent, *([start] if start is not None and start.hash != incumbent.hash else [])]
    order = sorted(arena.select, key=lambda sample: sample.id)
    rng(arena.seed, "elsewhere", other.name, name).shuffle(order)
    order = in_turn(order)
    blocks = [(0, block) for block in doubling(order, cfg.block)]
    blocks += [(attempt, order) for attempt in range(1, cfg.passes)]
    asked = scored = done = 0
    said = Elsewhere(other.name, None, None, 0, 1.0, cfg.also_margin, True)
    for attempt, block in blocks:
        purpose = f"{name} on {other.name} {candidate.hash} {block[0].id} {attempt}"
        new, *old = await run_all(
            [other.roll(skill, block, attempt=attempt, purpose=purpose) for skill in (candidate, *bars)]
        )
        asked += sum(comparable(zip(bar, new, strict=True)) for bar in old)
        scored += sum(a.scored and b.scored for bar in old for a, b in zip(bar, new, strict=True))
        done += len(block)
        said = max((_compare(arena, other, bar, candidate, bar is not incumbent) for bar in bars), key=_harm)
        enough = scored > 0 and scored >= (1 - MAX_UNSCORED) * asked
        whole = done % len(order) == 0
        if whole and enough and said.harm <= ELSEWHERE:
            return replace(said, vetoed=False)
        if said.harm >= VETO:
            break
    return said


def _harm(said: Elsewhere) -> float:
    return said.harm


def _compare(arena: Arena, other: Further, bar: Skill, candidate: Skill, of_input: bool) -> Elsewhere:
    """Both skills on the `select` samples that both have done on this target. A group counts once, as its mean."""
    scores = other.roll.scores.on("select")
    units: dict[tuple[bool, str], list[tuple[float, float]]] = {}
    by_id: dict[str, Sample] = {sample.id: sample for sample in arena.select}
    for (text, sample, attempt), after in scores.items():
        before = scores.get((bar.hash, sample, attempt))
        if text == candidate.hash and before is not None:
            group = by_id[sample].group
            units.setdefault((group is not None, group or sample), []).append((before, after))
    pairs = [pair for unit in units.values() for pair in unit]
    margin = arena.cfg.also_margin
    harm = harmful([fmean(b - a for a, b in unit) for unit in units.values()], margin)
    before, after = (fmean(pair[side] for pair in pairs) if pairs else None for side in (0, 1))
    return Elsewhere(other.name, before, after, len(pairs), harm, margin, True, "input" if of_input else "incumbent")


def fewest(margin: float) -> int:
    """The fewest `select` samples with which a candidate that changes nothing passes."""
    return next(n for n in range(1, math.ceil(2 / margin)) if harmful([0.0] * n, margin) <= ELSEWHERE)
