"""The last ablation: leave out the edits of the best skill that harm or that carry nothing.

It is one more factorial screen. Its factors are the removals of the edits that stand in the skill. Its rollouts enter
the same model as the screens of the training. Several edits are left out at once, so an edit that hides the worth of
another one is found. The chosen removals form one candidate, which is raced once on `select`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

from skilltune.aio import run_all
from skilltune.edits import apply
from skilltune.gate import Arena
from skilltune.gate.also import check_elsewhere
from skilltune.gate.blocks import doubling, harmful
from skilltune.gate.priors import (
    ABLATION,
    DOUBTED,
    EACH,
    ENDING,
    FAILS,
    FEW,
    HOPELESS,
    LEVEL,
    MARGIN,
    MATTERS,
    NOTHING,
    PER_TEXT,
    VETO,
    WIDE,
)
from skilltune.gate.race import transferred
from skilltune.gate.screen import Pool, Screened, balanced
from skilltune.gate.trials import Trials
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.stats.proportions import mean
from skilltune.verdict import AblationFigures, DropInterim, Screen, ScreenRow, Verdict


async def ablate(
    arena: Arena,
    best: Skill,
    start: Skill,
    verdicts: Sequence[Verdict],
    trials: Trials | None = None,
    *,
    failing: float = 0.0,
) -> Verdict | None:
    """The verdict on the best skill without the edits that harm or carry nothing; None if no edit is in doubt, or if
    the skill fails on a smaller share of its train tasks than `failing`, because then no edit harms much.

    `start` is the input and `verdicts` are those of the training. `trials` are what the gate has learned; without them
    only the versions count. An edit is in doubt unless it surely carries more than `MARGIN`. Each costs `EACH` train
    rollouts, all of them at most `ABLATION`. The candidate is accepted if P(the loss is smaller than `MARGIN`) reaches
    the gate's confidence and `select` does not veto it. Without an edit to leave out, the verdict has no candidate. Its
    screen has the measured effect of every edit in doubt.
    """
    trials = Trials.of(start, verdicts, {sample.id for sample in arena.train}) if trials is None else trials
    for verdict in verdicts:
        if verdict.candidate == best:
            trials.accept(verdict.reports)
    trials.set_incumbent(best)
    scores = arena.by_text("train")
    if fmean([fmean(s) < FAILS for (text, _), s in scores.items() if text == best.hash] or [1.0]) < failing:
        return None
    ablation = _Ablation(arena, best, trials, rng(arena.seed, "ablation", best.hash))
    everything = ablation.pool(trials.removals_of_incumbent())
    if not everything.proposals:
        return None
    known = await ablation.screened(everything)
    nothing = [0.0] * len(known.draws)
    doubt = {i: _safe(known.gains([i]), nothing) for i in range(len(everything.proposals))}
    doubtful = sorted((i for i in doubt if 1 - doubt[i] < DOUBTED), key=lambda i: -doubt[i])
    if not doubtful:
        return None
    removals = [everything.proposals[i] for i in doubtful[: ABLATION // EACH]]
    trials.mend(arena.by_text("train"), removals)
    pool = ablation.pool(removals)
    screened = await ablation.measure(pool)
    chosen = removable(screened, arena.cfg.confidence)
    rows = tuple(_row(trials, screened, i) for i in range(len(pool.proposals)))
    screen = Screen(rows, chosen)
    if not chosen:
        why, figures = "the ablation found nothing to leave out", AblationFigures((), (0.0, 0.0), MARGIN, ())
        return Verdict(best, False, why, *_level(arena, best), numbers=figures, screen=screen)
    judged = {start.hash, *(verdict.candidate.hash for verdict in verdicts if verdict.candidate)}
    return await ablation.race(pool, chosen, screened, screen, judged)


def removable(screened: Screened, confidence: float) -> tuple[int, ...]:
    """The removals to make, as places in the pool: first those that raise the expected gain, then the ones whose
    additional loss, all together, is smaller than the margin with this confidence. A gain must not pay for a loss. An
    edit that claims a failing task is removed for harm only: something else may hide its worth."""
    chosen: list[int] = []
    pool, gain, before = screened.pool, 0.0, [0.0] * len(screened.draws)
    harmless = False
    failing = [pool.mends.get(key, (frozenset[str](), 0))[0] for key in pool.keys]
    masked = {i for i, p in enumerate(pool.proposals) if failing[i].intersection(p.support)}
    while True:
        left = [i for i in range(len(pool.proposals)) if i not in chosen and pool.fits(chosen, i)]
        gains = {i: screened.gains([*chosen, i]) for i in left}
        means = {i: fmean(gains[i]) for i in left}
        found = [] if harmless else [i for i in left if means[i] > gain + MATTERS]
        if not found:
            harmless = True
            found = [i for i in left if i not in masked and _safe(gains[i], before) >= confidence]
        if not found:
            return tuple(sorted(chosen))
        chosen.append(max(found, key=lambda i: (means[i], -i)))
        gain, before = means[chosen[-1]], before if harmless else gains[chosen[-1]]


def _safe(gains: Sequence[float], before: Sequence[float]) -> float:
    """P(the loss is smaller than the margin)."""
    return fmean(gain > old - MARGIN for gain, old in zip(gains, before, strict=True))


def left_out(
    pool: Pool,
    design: Sequence[Sequence[int]],
    known: Collection[str],
    failing: Collection[str],
    rollouts: int,
    draw: Random,
) -> list[list[str]]:
    """For each set of removals the train samples on which it is tried: in turn one that a removed edit claims, because
    a loss shows there, and one that fails, because a gain shows there. The least used come first."""
    others = sorted(failing) or sorted(known)
    draw.shuffle(others)
    uses = dict.fromkeys(known, 0)
    plan = []
    for number, subset in enumerate(design):
        each = rollouts * (number + 1) // len(design) - rollouts * number // len(design)
        claims = [[s for s in pool.proposals[i].support if s in known] for i in subset]
        draw.shuffle(claims)
        chosen: list[str] = []
        for candidates in [*(turn for claimed in claims for turn in (claimed, others)), sorted(known)] * each:
            free = [sample for sample in candidates if sample not in chosen]
            if len(chosen) < each and free:
                chosen.append(min(free, key=lambda sample: uses[sample]))
                uses[chosen[-1]] += 1
        plan.append(chosen)
    return plan


@dataclass(frozen=True, slots=True)
class _Ablation:
    arena: Arena
    best: Skill
    trials: Trials
    random: Random

    def pool(self, removals: Sequence[Proposal]) -> Pool:
        """The removals that can be applied. Locked regions stay."""
        usable = [p for p in removals if apply(self.best, [p.edit]).changed]
        former, mends = self.trials.former(), self.trials.mends
        return Pool.of(self.best, usable, (), self.arena.max_tokens, former=former, mends=mends)

    async def screened(self, pool: Pool) -> Screened:
        scores = self.arena.by_text("train")
        known = self.trials.baseline_scores(scores, {sample.id for sample in self.arena.train})
        draws = await asyncio.to_thread(self.trials.draws, scores, pool.keys, self.random, draws=ENDING)
        return Screened(pool, draws, sorted(known))

    async def measure(self, pool: Pool) -> Screened:
        """Roll sets of removals on train samples and return the posterior of their effects. The first round leaves out
        each edit equally often, the second one what looks best to leave out by the first."""
        by_id = {sample.id: sample for sample in self.arena.train}
        rollouts, size = EACH * len(pool.proposals), max(1, min(FEW, round(len(pool.proposals) / 3)))
        design = balanced(pool, max(2, rollouts // 2 // PER_TEXT), size, self.random)
        screened = None
        for number in range(2):
            if screened is not None:
                sampled = screened.sampled(max(2, rollouts // 2 // PER_TEXT), len(pool.proposals))
                design = list(dict.fromkeys(pool.filled(subset, size, self.random) for subset in sampled)) or design
            scores = self.arena.by_text("train")
            known = self.trials.baseline_scores(scores, by_id)
            own = [(sample, seen) for (text, sample), seen in scores.items() if text == self.best.hash]
            failing = [sample for sample, seen in own if fmean(seen) < FAILS]
            plan = left_out(pool, design, known, failing, rollouts // 2, self.random)
            texts = [pool.text(subset) for subset in design]
            for text, subset in zip(texts, design, strict=True):
                self.trials.note(text, self.best, [pool.proposals[i] for i in subset])
            await run_all(
                [
                    self.arena.roll(
                        text, [by_id[s] for s in samples], purpose=f"ablation {self.best.hash} {number} {subset}"
                    )
                    for text, subset, samples in zip(texts, design, plan, strict=True)
                ]
            )
            screened = await self.screened(pool)
        assert screened is not None
        return screened

    async def race(
        self, pool: Pool, chosen: tuple[int, ...], screened: Screened, screen: Screen, judged: set[str]
    ) -> Verdict:
        """The verdict on the best skill with the chosen removals, raced once on `select` against the best skill."""
        arena, best, applied = self.arena, self.best, pool.apply(chosen)
        candidate = applied.skill
        order = sorted(arena.select, key=lambda sample: sample.id)
        rng(arena.seed, "ablation", candidate.hash).shuffle(order)
        prior = transferred(screened.gains(chosen))
        interims: list[DropInterim] = []
        posterior, pairs = None, dict[str, tuple[float, float]]()
        dropped = vetoed = False
        asked = 0
        for block in doubling(order, arena.cfg.block):
            purpose = f"ablation {candidate.hash} {block[0].id}"
            done = await run_all([arena.roll(text, block, purpose=purpose) for text in (candidate, best)])
            asked += comparable(zip(*done, strict=True))
            posterior = _fit(arena, best, candidate, judged)
            gain = posterior.shrunk("drop", WIDE[1], prior)
            pairs = _pairs(arena, best, candidate)
            n = (interims[-1].n if interims else 0) + len(block)
            interims.append(DropInterim(n, gain.mean, gain.sd, gain.above(-MARGIN)))
            vetoed = harmful([new - old for old, new in pairs.values()], arena.cfg.regression_bound) >= VETO
            enough = len(pairs) > 0 and len(pairs) >= (1 - MAX_UNSCORED) * asked
            dropped = interims[-1].safe >= arena.cfg.confidence and enough and not vetoed
            if interims[-1].safe < HOPELESS or dropped:
                break
        assert posterior is not None
        elsewhere = await check_elsewhere(arena, best, candidate, "ablation") if dropped else ()
        dropped = dropped and not any(check.vetoed for check in elsewhere)
        last, foretold = interims[-1], screened.gain(chosen)
        level, sd = posterior.contrast({"level": 1.0, "drop": 1.0} if dropped else {"level": 1.0})
        counted = f"{len(chosen)} of {len(screen.rows)} edits in doubt"
        return Verdict(
            skill=candidate if dropped else best,
            accepted=dropped,
            reason=f"without {counted}: {100 * last.gain:+.1f} ± {100 * last.sd:.1f} points on {last.n} select "
            f"rollouts, P(loss < {100 * MARGIN:.2g} point) = {last.safe:.3f}, needed {arena.cfg.confidence:g}"
            f"{', but it breaks too much' if vetoed else ''}: {'left out' if dropped else 'they stay'}"
            + "".join(f"; {check}" for check in elsewhere),
            score=min(1.0, max(0.0, level)),
            score_sd=sd,
            candidate=candidate,
            before=mean([old for old, _ in pairs.values()]),
            after=mean([new for _, new in pairs.values()]),
            differences={sample: new - old for sample, (old, new) in pairs.items()},
            reports=applied.reports,
            numbers=AblationFigures(
                tuple(pool.keys[i] for i in chosen), (foretold[0], foretold[1]), MARGIN, tuple(interims)
            ),
            screen=screen,
            elsewhere=elsewhere,
        )


def _row(trials: Trials, screened: Screened, place: int) -> ScreenRow:
    """The measured effect of an edit of the skill: that of its removal with the other sign."""
    proposal = screened.pool.proposals[place]
    key = trials.removals.get(proposal.edit.key, proposal.edit.key)
    text = trials.edits[key].edit.text or trials.edits[key].edit.target
    gain, sd, _ = screened.gain([place])
    return ScreenRow(key, text, -gain, max(sd, NOTHING[2]))


def _level(arena: Arena, skill: Skill) -> tuple[float | None, float | None]:
    """The mean score of a skill on `select`, and its standard error."""
    scores = [score for (text, _, _), score in arena.scores.on("select").items() if text == skill.hash]
    return mean(scores), standard_error(scores)


def _fit(arena: Arena, best: Skill, candidate: Skill, judged: set[str]) -> Posterior:
    """The posterior of the best skill's level and of the gain by the drop, by all of `select`."""
    others = sorted(judged - {best.hash, candidate.hash})
    columns = {text: {"level": 1.0, text: 1.0} for text in others}
    columns |= {best.hash: {"level": 1.0}, candidate.hash: {"level": 1.0, "drop": 1.0}}
    observations = [
        Observation(sample, columns[text], score)
        for (text, sample, _), score in arena.scores.on("select").items()
        if text in columns
    ]
    return fit(observations, {"level": LEVEL, "drop": WIDE, **dict.fromkeys(others, WIDE)}, arena.noise)


def _pairs(arena: Arena, best: Skill, candidate: Skill) -> dict[str, tuple[float, float]]:
    """The first scores of both texts on every `select` sample that both have done."""
    seen = {(text, sample): score for (text, sample, n), score in arena.scores.on("select").items() if n == 0}
    return {
        sample: (seen[best.hash, sample], score)
        for (text, sample), score in seen.items()
        if text == candidate.hash and (best.hash, sample) in seen
    }
