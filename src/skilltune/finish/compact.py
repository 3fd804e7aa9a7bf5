"""The races of `skilltune compact`: drop each rule that has no effect, by the journal and a few more rollouts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence

from skilltune.aio import run_all
from skilltune.edits import Applied, Edit, apply, inverse
from skilltune.finish.ledger import Rule
from skilltune.gate import Arena
from skilltune.gate.also import check_elsewhere
from skilltune.gate.blocks import doubling
from skilltune.gate.priors import CERTAIN, HOPELESS, LEVEL, MARGIN, NOTHING, WIDE
from skilltune.journal.keys import rng
from skilltune.skill import Skill
from skilltune.stats import normal_cdf
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.stats.proportions import mean
from skilltune.verdict import CompactFigures, DropInterim, Verdict


async def compact(
    arena: Arena, best: Skill, rules: Sequence[Rule], judged: Collection[str]
) -> AsyncGenerator[Verdict, None]:
    """One verdict for each rule that may have no effect, the smallest effect first. Each starts from the skill that the
    last one left.

    A rule is dropped if P(the loss is smaller than the margin) reaches the gate's confidence. The margin is `MARGIN`
    minus the estimated loss by earlier drops. Both texts are rolled in growing blocks: on the train samples that the
    rule claims, where a loss would show first, on all of `select`, and, if that does not suffice, on as many other
    train samples. A hopeless drop ends early. A rule that is known to have an effect costs nothing. `judged` are the
    hashes of the texts whose rollouts tell easy samples from hard ones.
    """
    skill, margin = best, MARGIN
    for rule in doubtful(rules):
        without = _removal(rule)
        if without is None or rule.carries(margin) >= CERTAIN:
            continue
        if rule.effect >= 0 and normal_cdf(margin / NOTHING[2]) < arena.cfg.confidence:
            continue  # so little is left of the margin that not even a rule that does nothing could be dropped
        applied = apply(skill, [without])
        if applied.changed:
            verdict = await _drop(arena, skill, applied, rule, {*judged, best.hash, skill.hash}, margin)
            skill = verdict.skill
            if verdict.accepted:
                margin = max(0.0, margin + min(0.0, verdict.figures.estimate.gain or 0.0))
            yield verdict


def doubtful(rules: Sequence[Rule]) -> list[Rule]:
    """The rules that may have no effect and that can be removed, the smallest effect first. The others cost nothing."""
    tried = [rule for rule in rules if rule.carries(MARGIN) < CERTAIN and _removal(rule) is not None]
    return sorted(tried, key=lambda rule: rule.carries(MARGIN))


def most_calls(arena: Arena, rules: Sequence[Rule]) -> int:
    """An upper bound of the target calls of `compact`: both texts do all samples of every drop."""
    return sum(2 * (len(rule.evidence) + 2 * len(arena.select)) for rule in doubtful(rules))


def _removal(rule: Rule) -> Edit | None:
    return inverse(rule.op, rule.removed, rule.text, f"the rule of step {rule.step} may carry nothing")


async def _drop(
    arena: Arena, skill: Skill, applied: Applied, rule: Rule, judged: Collection[str], margin: float
) -> Verdict:
    """The verdict on the skill without the rule: it is accepted if it is worse by no more than the margin."""
    cfg, candidate = arena.cfg, applied.skill
    order = [sample for sample in arena.train if sample.id in rule.evidence]
    enough = len(order) + len(arena.select)
    for split in (arena.select, arena.train):
        part = sorted((sample for sample in split if sample.id not in rule.evidence), key=lambda sample: sample.id)
        rng(arena.seed, CompactFigures.rule, rule.key).shuffle(part)
        order += part[: len(arena.select)]
    prior = (NOTHING, (1 - NOTHING[0], -rule.effect, rule.sd))
    looks: list[DropInterim] = []
    posterior = None
    for block in doubling(order, cfg.block):
        purpose = f"compact {candidate.hash} {block[0].id}"
        await run_all([arena.roll(text, block, purpose=purpose) for text in (candidate, skill)])
        posterior = _fit_drop(arena, skill, candidate, judged)
        gain = posterior.shrunk("drop", WIDE[1], prior)
        n = (looks[-1].n if looks else 0) + len(block)
        looks.append(DropInterim(n, gain.mean, gain.sd, gain.above(-margin)))
        if looks[-1].safe < HOPELESS or (looks[-1].safe >= cfg.confidence and n >= enough):
            break
    last = looks[-1]
    dropped = last.safe >= cfg.confidence
    elsewhere = await check_elsewhere(arena, skill, candidate, f"compact {rule.key}") if dropped else ()
    dropped = dropped and not any(check.vetoed for check in elsewhere)
    seen = arena.scores.on("select")
    old, new = (
        {s: score for (t, s, n), score in seen.items() if (t, n) == (text.hash, 0)} for text in (skill, candidate)
    )
    differences = {sample: new[sample] - old[sample] for sample in sorted(new) if sample in old}
    assert posterior is not None
    level, spread = posterior.contrast({"level": 1.0, "drop": 1.0} if dropped else {"level": 1.0})
    text = " ".join(rule.text.split())
    return Verdict(
        skill=candidate if dropped else skill,
        accepted=dropped,
        reason=f'without "{text:.60}": {100 * last.gain:+.1f} ± {100 * last.sd:.1f} points on {last.n} rollouts, '
        f"P(loss < {100 * margin:.2g} point) = {last.safe:.3f}, needed {cfg.confidence:g}: "
        f"{'dropped' if dropped else 'it stays'}" + "".join(f"; {check}" for check in elsewhere),
        score=min(1.0, max(0.0, level)),
        score_sd=spread,
        candidate=candidate,
        before=mean([old[sample] for sample in differences]),
        after=mean([new[sample] for sample in differences]),
        differences=differences,
        reports=applied.reports,
        numbers=CompactFigures(rule.key, (rule.effect, rule.sd), margin, tuple(looks)),
        elsewhere=elsewhere,
    )


def _fit_drop(arena: Arena, skill: Skill, candidate: Skill, judged: Collection[str]) -> Posterior:
    """The posterior of the skill's level and of the gain by the drop, by all scores of judged texts on train and
    `select`."""
    others = sorted({*judged} - {skill.hash, candidate.hash})
    columns = {text: {"level": 1.0, text: 1.0} for text in others}
    columns |= {skill.hash: {"level": 1.0}, candidate.hash: {"level": 1.0, "drop": 1.0}}
    observations = [
        Observation(sample, columns[text], score)
        for (text, sample, _), score in arena.scores.on("train", "select").items()
        if text in columns
    ]
    return fit(observations, {"level": LEVEL, "drop": WIDE, **dict.fromkeys(others, WIDE)}, arena.noise)
