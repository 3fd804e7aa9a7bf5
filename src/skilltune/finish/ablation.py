"""The ablation: leave out the edits of the best skill that harm or that carry nothing. A training may end with it
(`train.ablation`), and `skilltune compact` makes it on a finished run.

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
from skilltune.gate import Arena, Gate
from skilltune.gate.also import check_elsewhere
from skilltune.gate.blocks import doubling, harmful
from skilltune.gate.priors import (
    DOUBTED,
    DOUBTS,
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
    ROUNDS_AT_END,
    ROUNDS_ON_DEMAND,
    VETO,
    WIDE,
)
from skilltune.gate.race import Race, transferred
from skilltune.gate.screen import Pool, Screened, balanced
from skilltune.gate.trials import Trials
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.stats.proportions import mean
from skilltune.verdict import ABLATED, COMPACTED, AblationFigures, DropInterim, Screen, ScreenRow, Verdict


def learned(gate: Gate) -> Trials | None:
    """The trials of the training's own gate; None if it keeps none."""
    return gate.evidence if isinstance(gate, Race) else None


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
    done: Sequence[Collection[str]] = (),
) -> list[list[str]]:
    """For each set of removals the train samples on which it is tried: in turn one that a removed edit claims, because
    a loss shows there, and one that fails, because a gain shows there. The least used come first. `done` has the
    samples on which each set was tried before: they would tell nothing new."""
    others = sorted(failing) or sorted(known)
    draw.shuffle(others)
    uses = dict.fromkeys(known, 0)
    plan = []
    for number, subset in enumerate(design):
        each = rollouts * (number + 1) // len(design) - rollouts * number // len(design)
        claims = [[s for s in pool.proposals[i].support if s in known] for i in subset]
        draw.shuffle(claims)
        chosen: list[str] = []
        before = done[number] if done else ()
        for candidates in [*(turn for claimed in claims for turn in (claimed, others)), sorted(known)] * each:
            free = [sample for sample in candidates if sample not in chosen and sample not in before]
            if len(chosen) < each and free:
                chosen.append(min(free, key=lambda sample: uses[sample]))
                uses[chosen[-1]] += 1
        plan.append(chosen)
    return plan


@dataclass(frozen=True, slots=True)
class Ablation:
    """The edits of the best skill that are in doubt, ready to be measured: `pool` holds their removals. An edit is in
    doubt unless a screen measured it and it surely carries more than `MARGIN`. Without a screen, edits that came
    together share what their version gained, so nothing is known of one of them.

    `judged` are the hashes of the texts whose scores on `select` tell easy samples from hard ones.
    """

    arena: Arena
    best: Skill
    trials: Trials
    judged: frozenset[str]
    random: Random
    pool: Pool
    rule: str

    @classmethod
    async def of(
        cls,
        arena: Arena,
        best: Skill,
        start: Skill,
        verdicts: Sequence[Verdict],
        trials: Trials | None = None,
        *,
        rule: str = ABLATED,
        failing: float = 0.0,
    ) -> Ablation | None:
        """The ablation of the best skill, without a call; None if no edit is in doubt, or if the skill fails on a
        smaller share of its train tasks than `failing`, because then no edit harms much.

        `start` is the input and `verdicts` are those of the training. `trials` are what the gate has learned (see
        `learned`); without them only the versions count. `rule` is the rule of the verdict's figures: an ablation that
        a user asked for (`COMPACTED`) may take more rounds.
        """
        trials = Trials.of(start, verdicts, {sample.id for sample in arena.train}) if trials is None else trials
        for verdict in verdicts:
            if verdict.candidate == best:
                trials.accept(verdict.reports)
        trials.set_incumbent(best)
        scores = arena.by_text("train")
        if fmean([fmean(s) < FAILS for (text, _), s in scores.items() if text == best.hash] or [1.0]) < failing:
            return None
        random = rng(arena.seed, "ablation", best.hash)
        everything = _pool(arena, best, trials, trials.removals_of_incumbent())
        if not everything.proposals:
            return None
        known = await _screened(arena, trials, everything, random)
        nothing = [0.0] * len(known.draws)
        safe = {i: _safe(known.gains([i]), nothing) for i in range(len(everything.proposals))}
        apart = {i for i, p in enumerate(everything.proposals) if trials.removals[p.edit.key] in trials.measured}
        doubtful = sorted((i for i in safe if i not in apart or 1 - safe[i] < DOUBTED), key=lambda i: -safe[i])
        if not doubtful:
            return None
        removals = [everything.proposals[i] for i in doubtful[:DOUBTS]]
        trials.mend(arena.by_text("train"), removals)
        judged = frozenset((start.hash, *(verdict.candidate.hash for verdict in verdicts if verdict.candidate)))
        return cls(arena, best, trials, judged, random, _pool(arena, best, trials, removals), rule)

    @property
    def most_calls(self) -> int:
        """The most target calls of `verdict`: the rollouts on train, and a race on `select`."""
        race = len(self.arena.select) + self.arena.scores.missing(self.best.hash, self.arena.select)
        return self._rounds * EACH * len(self.pool.proposals) + race

    @property
    def _rounds(self) -> int:
        return ROUNDS_ON_DEMAND if self.rule == COMPACTED else ROUNDS_AT_END

    async def verdict(self) -> Verdict:
        """The verdict on the best skill without the edits that harm or carry nothing.

        Each of at most `DOUBTS` edits in doubt costs `EACH` train rollouts in a round. The candidate is accepted if
        P(the loss is smaller than `MARGIN`) reaches the gate's confidence and `select` does not veto it. Without an
        edit to leave out, the verdict has no candidate. Its screen has the measured effect of every edit in doubt.
        """
        screened = await self._measure()
        chosen = removable(screened, self.arena.cfg.confidence)
        screen = Screen(tuple(_row(self.trials, screened, i) for i in range(len(self.pool.proposals))), chosen)
        if chosen:
            return await self._race(chosen, screened, screen)
        figures = AblationFigures((), (0.0, 0.0), MARGIN, (), self.rule)
        why = "the ablation found nothing to leave out"
        return Verdict(self.best, False, why, *_level(self.arena, self.best), numbers=figures, screen=screen)

    async def _measure(self) -> Screened:
        """Roll sets of removals on train samples and return the posterior of their effects. The first round leaves out
        each edit equally often, later ones leave out what then looks best to leave out. There are at least two rounds;
        further ones end once no edit is in doubt, or once nothing new can be tried."""
        pool, by_id = self.pool, {sample.id: sample for sample in self.arena.train}
        rollouts, size = EACH * len(pool.proposals), max(1, min(FEW, round(len(pool.proposals) / 3)))
        design = balanced(pool, max(2, rollouts // PER_TEXT), size, self.random)
        screened = None
        for number in range(self._rounds):
            if screened is not None:
                if number > 1 and not self._undecided(screened):
                    break
                sampled = screened.sampled(max(2, rollouts // PER_TEXT), len(pool.proposals))
                design = list(dict.fromkeys(pool.filled(subset, size, self.random) for subset in sampled)) or design
            scores = self.arena.by_text("train")
            known = self.trials.baseline_scores(scores, by_id)
            own = [(sample, seen) for (text, sample), seen in scores.items() if text == self.best.hash]
            failing = [sample for sample, seen in own if fmean(seen) < FAILS]
            texts = [pool.text(subset) for subset in design]
            done = [{sample for text, sample in scores if text == tried.hash} for tried in texts]
            plan = left_out(pool, design, known, failing, rollouts, self.random, done)
            if screened is not None and not any(plan):
                break
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
            screened = await _screened(self.arena, self.trials, pool, self.random)
        assert screened is not None
        return screened

    def _undecided(self, screened: Screened) -> bool:
        """True if an edit neither surely carries something nor surely may go."""
        nothing = [0.0] * len(screened.draws)
        safe = [_safe(screened.gains([i]), nothing) for i in range(len(self.pool.proposals))]
        return any(1 - DOUBTED < p < self.arena.cfg.confidence for p in safe)

    async def _race(self, chosen: tuple[int, ...], screened: Screened, screen: Screen) -> Verdict:
        """The verdict on the best skill with the chosen removals, raced once on `select` against the best skill."""
        arena, best, pool = self.arena, self.best, self.pool
        applied = pool.apply(chosen)
        candidate = applied.skill
        self.trials.note(candidate, best, [pool.proposals[i] for i in chosen])
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
            posterior = _fit(arena, best, candidate, self.judged)
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
        last, predicted = interims[-1], screened.gain(chosen)[:2]
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
            numbers=AblationFigures(tuple(pool.keys[i] for i in chosen), predicted, MARGIN, tuple(interims), self.rule),
            screen=screen,
            elsewhere=elsewhere,
        )


def _pool(arena: Arena, best: Skill, trials: Trials, removals: Sequence[Proposal]) -> Pool:
    """The removals that can be applied. Locked regions stay."""
    usable = [p for p in removals if apply(best, [p.edit]).changed]
    return Pool.of(best, usable, (), arena.max_tokens, former=trials.former(), mends=trials.mends)


async def _screened(arena: Arena, trials: Trials, pool: Pool, random: Random) -> Screened:
    """The posterior of the removals by all scores on train."""
    scores = arena.by_text("train")
    known = trials.baseline_scores(scores, {sample.id for sample in arena.train})
    draws = await asyncio.to_thread(trials.draws, scores, pool.keys, random, draws=ENDING)
    return Screened(pool, draws, sorted(known))


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


def _fit(arena: Arena, best: Skill, candidate: Skill, judged: Collection[str]) -> Posterior:
    """The posterior of the best skill's level and of the gain by the drop, by all of `select`."""
    others = sorted({*judged} - {best.hash, candidate.hash})
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
