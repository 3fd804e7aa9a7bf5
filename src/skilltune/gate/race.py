"""The default gate: screen every edit on train, assemble the best edits, race the candidate on `select` in blocks.

The strict rule makes one noisy test of a whole patch. This gate measures every edit before it may enter a candidate. A
hopeless candidate costs one block instead of a pass over `select`; a doubtful one gets up to `passes` attempts. Edits
that look good but were not taken stay in the pool, with their measurements.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean
from typing import Any

from skilltune.aio import run_all
from skilltune.config import GateConfig
from skilltune.edits import Applied, addition, apply, says
from skilltune.gate import Arena
from skilltune.gate.also import check_elsewhere, harmless_alone
from skilltune.gate.blocks import doubling, harmful, in_turn
from skilltune.gate.priors import (
    AGAIN,
    BETWEEN,
    DEVIATION,
    FEW,
    FRESH,
    KEEP,
    LEAST,
    LEVEL,
    MANY,
    MATTERS,
    ONCE,
    OTHER_VERSION,
    OVERFIT,
    PROMISE,
    REMOVALS,
    ROUNDS,
    SHRINK,
    SURE,
    UNSCREENED,
    VETO,
    VISIBLE,
    WIDE,
    WIDER,
    WORTH,
    WORTH_DIFFUSE,
)
from skilltune.gate.screen import Pool, Screened, assign, balanced
from skilltune.gate.trials import TrainScores, Trials
from skilltune.journal.keys import rng
from skilltune.optimizer import Proposal, join
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import Mixture, standard_error
from skilltune.stats.effects import Draw
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.stats.proportions import mean
from skilltune.verdict import (
    ACCEPTED,
    GIVEN_UP,
    UNDECIDED,
    VETOED,
    Decision,
    Elsewhere,
    Figures,
    Interim,
    RaceFigures,
    Rejected,
    Screen,
    ScreenRow,
    Verdict,
    raced,
)

SAID = "the skill says this already"


@dataclass(slots=True)
class Race:
    """Implements `Gate`."""

    arena: Arena
    leftover: list[Proposal] = field(default_factory=list)  # measured, promising, not taken yet
    waiting: list[Proposal] = field(default_factory=list)  # for a place in the pool
    evidence: Trials = field(default_factory=Trials)
    level: tuple[float | None, float | None] = (None, None)  # the incumbent's on `select`, and its sd

    async def baseline(self, skill: Skill) -> float | None:
        rollouts = await self.arena.roll(skill, self.arena.select, purpose="select")
        scores = [self.arena.metric(rollout.score) for rollout in rollouts if rollout.score is not None]
        self.level = (mean(scores), standard_error(scores))
        return self.level[0]

    async def judge(
        self,
        skill: Skill,
        proposals: Sequence[Proposal],
        *,
        limit: int,
        name: str,
        protect: Sequence[str] = (),
        alone: bool = False,
    ) -> Verdict:
        pool, waiting, unusable = self._gather(skill, proposals, protect, alone=alone)
        if not pool.proposals:
            if unusable:
                reason = "none of the edits could be applied"
            elif proposals:
                reason = "all that was proposed is in the skill or was judged before"
            else:
                reason = "nothing was proposed"
            return Verdict(skill, False, reason, *self.level, rejected=unusable)

        screened = await self._screen(pool, limit, name)
        verdict = Verdict(skill, False, "the screen found no edit worth a race", *self.level)
        chosen = self._team(screened, limit) if screened else pool.first(limit)
        guilty: tuple[int, ...] = ()
        if chosen:
            self.evidence.note(pool.text(chosen), skill, [pool.proposals[i] for i in chosen])
            verdict = await self._race(pool, chosen, screened, name)
            if verdict.vetoed_by and len(chosen) > 1:
                guilty = await self._guilty(pool, chosen, verdict.vetoed_by, name)
                chosen, verdict = await self._race_again(pool, chosen, guilty, screened, verdict, name)
        chosen = chosen if verdict.candidate else ()
        effects = [screened.gain([i]) if screened else (0.0, 0.0, 0.0) for i in range(len(pool.proposals))]
        # Each member of a failed team may be good. A candidate that was given up and one that stayed undecided are
        # treated alike, so that the pool tells no more of `select` than that it was not accepted.
        failed = len(chosen) == 1 and not verdict.accepted
        spent = chosen if verdict.accepted or failed else ()
        if verdict.accepted:
            self.evidence.accept(verdict.reports)
            waiting = [*waiting, *self.evidence.reopened(skill, verdict.skill)]
        self.evidence.refuted |= {(skill.hash, pool.keys[i]) for i in (*guilty, *(chosen if failed else ()))}
        good = [i for i in pool.offered if i not in (*spent, *guilty) and effects[i][2] >= KEEP]
        if not alone:
            if screened:
                self.evidence.drop(skill, [pool.proposals[i] for i in pool.offered if i not in (*good, *chosen)])
            self.leftover = [pool.proposals[i] for i in sorted(good, key=lambda i: -effects[i][0])]
            self.waiting = waiting
        verdict = _explained(verdict, pool, chosen, good, effects if screened else None)
        return replace(verdict, rejected=(*verdict.rejected, *unusable))

    async def _guilty(self, pool: Pool, chosen: tuple[int, ...], target: str, name: str) -> tuple[int, ...]:
        """The edits of a vetoed team that the vetoing target refuses one by one. The others may be good."""
        alone = [pool.text([i]) for i in chosen]
        harmless = await harmless_alone(self.arena, target, pool.skill, alone, name)
        return tuple(i for i, fine in zip(chosen, harmless, strict=True) if not fine)

    async def _race_again(
        self,
        pool: Pool,
        chosen: tuple[int, ...],
        guilty: tuple[int, ...],
        screened: Screened | None,
        vetoed: Verdict,
        name: str,
    ) -> tuple[tuple[int, ...], Verdict]:
        """Race a vetoed team without its guilty edits. Returns the team and the verdict that count: those given, if no
        smaller team is left or worth a race."""
        left = tuple(i for i in chosen if i not in guilty)
        if left in ((), chosen):
            return chosen, vetoed
        self.evidence.note(pool.text(left), pool.skill, [pool.proposals[i] for i in left])
        verdict = await self._race(pool, left, screened, f"{name} without harm")
        return (left, verdict) if verdict.candidate else (chosen, vetoed)

    @property
    def min_expected_gain(self) -> float:
        """Gain expected of a candidate that is worth a race: less where `select` is large and can show less."""
        return max(MATTERS, min(PROMISE, VISIBLE / math.sqrt(len(self.arena.select) or 1)))

    def _gather(
        self, skill: Skill, proposals: Sequence[Proposal], protect: Sequence[str], *, alone: bool
    ) -> tuple[Pool, list[Proposal], tuple[Rejected, ...]]:
        """The pool of a step: what was left of earlier ones and what is new, the best supported of each. Beside it the
        edits that wait for a place, and those that cannot be applied."""
        held, limit = self.evidence.set_incumbent(skill), self.arena.max_tokens
        old, waiting = ([], []) if alone else (self.leftover, self.waiting)
        heard = [p for p in proposals if not self.evidence.judged(p, skill)]
        joined = join(self.evidence.known(p) for p in (*old, *heard, *waiting) if p.edit.key not in held)
        refused = dict[Proposal, str]()
        for p in joined:
            if (new := addition(p.edit)).op == "add" and says(skill.body, new.text or ""):
                refused[p] = SAID
            elif not (applied := apply(skill, [p.edit], protect=protect, max_tokens=limit)).changed:
                refused[p] = applied.reports[0].reason
            elif why := self.arena.refuses(applied.skill):
                refused[p] = why
        unusable = tuple(Rejected(p.edit, reason) for p, reason in refused.items())
        left = {p.edit.key for p in old}
        kept = [p for p in joined if p not in refused and p.edit.key in left]
        new = [p for p in joined if p not in refused and p.edit.key not in left]
        size, fresh = self.arena.cfg.pool, math.ceil(FRESH * self.arena.cfg.pool)
        if self.evidence.diffuse:  # a small effect is seldom ruled out: such edits would fill the pool for good
            size, fresh = WIDER * size, size
        places = size - min(fresh, len(new))
        queue = [*kept[:places], *new, *kept[places:]]
        removal_candidates = (
            self.evidence.removal_candidates() if queue and not alone and not self.evidence.diffuse else []
        )
        removal_candidates = [p for p in removal_candidates if p.edit.key not in {q.edit.key for q in queue}]
        removal_candidates = [
            p for p in removal_candidates if apply(skill, [p.edit], protect=protect, max_tokens=limit).changed
        ]
        pool = Pool.of(skill, queue[:size], protect, limit, removal_candidates[:REMOVALS], self.evidence.former())
        room = max(size, len(old))  # a wide pool may have left more than a narrow one takes
        return pool, queue[size : size + room], unusable

    # -- (a) the screen and (b) its model

    async def _screen(self, pool: Pool, limit: int, name: str) -> Screened | None:
        """Roll the design and fit its model; None without a screen, and for a single edit that answers no sample, such
        as the slow update's guidance: the race alone judges."""
        cfg, arena = self.arena.cfg, self.arena
        if not cfg.screen or (len(pool.proposals) == 1 and not pool.proposals[0].support):
            return None
        arena.notify("phase", name="screen")
        by_id = {sample.id: sample for sample in arena.train}
        known = self.evidence.baseline_scores(self._train_scores(), by_id)
        self.evidence.supports |= {p.edit.key: frozenset(p.support) for p in pool.proposals}
        fresh = set(pool.keys) - self.evidence.measured
        self.evidence.measured |= set(pool.keys)
        share = min(1.0, max(LEAST if fresh else 0.0, len(pool.keys) / cfg.pool))
        rollouts, texts = share * cfg.screen, max(2, round(share * cfg.texts))
        screened = None
        rounds = ROUNDS if len(pool.proposals) > ONCE else (1.0,)
        for number, part in enumerate(rounds):
            draw = rng(arena.seed, "screen", name, number)
            size = max(1, min(MANY if self.evidence.diffuse else FEW, len(pool.offered) - 1))
            wanted = max(1, min(round(part * texts), round(part * rollouts)))
            if screened is None:
                design = balanced(pool, wanted, size, draw)
            else:
                sampled = screened.sampled(wanted, max(size, limit))
                design = list(dict.fromkeys(pool.filled(subset, size, draw) for subset in sampled))
            plan = assign(pool, design, known, round(part * rollouts), draw)
            await run_all(
                [
                    self._try(pool, subset, [by_id[sample] for sample in samples], name)
                    for subset, samples in zip(design, plan, strict=True)
                ]
            )
            if number < len(rounds) - 1:
                draws = await self._draws(pool, draw, draws=BETWEEN)
                screened = Screened(pool, draws, sorted(known))
                if screened.converged(limit, SURE):
                    break
                if (
                    screened.gain(self._team(screened, limit))[0] < self.min_expected_gain
                ):  # the incumbent will probably stay
                    arena.roll.prefetch(pool.skill, arena.upcoming)
        draws = await self._draws(pool, rng(arena.seed, "screen", name))
        return Screened(pool, draws, sorted(known))

    def _team(self, screened: Screened, limit: int) -> tuple[int, ...]:
        """The edits of the candidate, each of which enters on its own evidence."""
        worth = WORTH_DIFFUSE if self.evidence.diffuse else WORTH
        return screened.assemble(limit, worth, length_price=self.arena.cfg.length_price)

    async def _try(self, pool: Pool, subset: Sequence[int], samples: Sequence[Sample], name: str) -> None:
        """Roll the samples under the incumbent with some edits of the pool: evidence of each of them."""
        text = pool.text(subset)
        self.evidence.note(text, pool.skill, [pool.proposals[i] for i in subset])
        await self.arena.roll(text, samples, purpose=f"{name} {subset}")

    async def _draws(self, pool: Pool, random: Random, **options: Any) -> list[Draw]:
        """Draws of what is known of the pool's edits, made in a thread: calls under way go on meanwhile."""
        return await asyncio.to_thread(self.evidence.draws, self._train_scores(), pool.keys, random, **options)

    def _train_scores(self) -> TrainScores:
        """Every score on train samples. Scores on `select` must not be among them: the screen chooses the candidates
        that `select` judges, and its figures are told to the optimizer."""
        return self.arena.by_text("train")

    # -- (c) the race

    async def _race(self, pool: Pool, chosen: tuple[int, ...], screened: Screened | None, name: str) -> Verdict:
        cfg, arena = self.arena.cfg, self.arena
        arena.notify("phase", name="race")
        applied = pool.apply(chosen)
        candidate = applied.skill
        prior = transferred(screened.gains(chosen)) if screened else UNSCREENED
        belief_before = Mixture(prior)
        price = cfg.length_price * max(0, candidate.tokens - pool.skill.tokens) / 1000
        if screened and belief_before.mean - price < self.min_expected_gain:
            return Verdict(pool.skill, False, "the screen found no edit worth a race", *self.level)
        order = sorted(arena.select, key=lambda sample: sample.id)
        rng(arena.seed, "race", name).shuffle(order)
        order = in_turn(order)
        blocks = [(0, block) for block in doubling(order, cfg.block)]
        blocks += [(attempt, order) for attempt in range(1, arena.draws(cfg.passes))]
        looks: list[Interim] = []
        decision: Decision = ""
        likelier = candidate
        asked = scored = 0
        for number, (attempt, block) in enumerate(blocks):
            for ahead, samples in blocks[number + 1 : number + 2]:
                arena.roll.prefetch(candidate, samples, ahead)
                arena.roll.prefetch(pool.skill, samples, ahead)
            arena.roll.prefetch(likelier, arena.upcoming)
            purpose = f"{name} race {candidate.hash} {block[0].id} {attempt}"
            sides = ((candidate, attempt), (pool.skill, attempt))  # a fair bar: the incumbent on the same samples
            done = await run_all([arena.roll(skill, block, attempt=draw, purpose=purpose) for skill, draw in sides])
            asked += comparable(zip(*done, strict=True))
            scored += sum(a.scored and b.scored for a, b in zip(*done, strict=True))
            looks.append(self._look(pool.skill, candidate, prior, price))
            _notify_interim(arena, looks)
            enough = scored > 0 and scored >= (1 - MAX_UNSCORED) * asked
            last = len(looks) == len(blocks)
            again = not last and blocks[number + 1][0] > attempt
            proven = self.evidence.proven
            if decision := rule(looks[-1], cfg, last=last, enough=enough, proven=proven, again=again):
                break
            likelier = candidate if looks[-1].better > 0.5 else pool.skill
        look, accepted = looks[-1], decision == ACCEPTED
        elsewhere = await check_elsewhere(arena, pool.skill, candidate, name) if accepted else ()
        if any(check.vetoed for check in elsewhere):
            accepted, decision = False, VETOED
        self.level = look.after if accepted else look.before
        reason = (
            f"{100 * look.gain:+.1f} ± {100 * look.sd:.1f} points on {look.n} select rollouts, "
            f"P(better) = {look.better:.2f}: {decision}"
        )
        figures = RaceFigures(
            decision=decision,
            prior=(belief_before.mean, belief_before.sd),
            interims=tuple(looks),
            unscored=asked - scored,
            needed=needed(cfg, last=len(looks) == len(blocks), proven=self.evidence.proven),
            price=price,
        )
        return self._verdict(pool.skill, applied, accepted, reason, figures, elsewhere)

    def _verdict(
        self,
        incumbent: Skill,
        applied: Applied,
        accepted: bool,
        reason: str,
        figures: Figures,
        elsewhere: tuple[Elsewhere, ...] = (),
    ) -> Verdict:
        """The verdict on a candidate that was raced. Both sides are compared on the `select` samples that both have
        done; a sample counts with its mean over the attempts that both have."""
        candidate = applied.skill
        pairs = self._paired(incumbent, candidate)
        return Verdict(
            skill=candidate if accepted else incumbent,
            accepted=accepted,
            reason="; ".join((reason, *map(str, elsewhere))),
            score=self.level[0],
            score_sd=self.level[1],
            candidate=candidate,
            before=mean([before for before, _ in pairs.values()]),
            after=mean([after for _, after in pairs.values()]),
            differences={sample: after - before for sample, (before, after) in pairs.items()},
            reports=applied.reports,
            numbers=figures,
            elsewhere=elsewhere,
        )

    def _look(
        self, incumbent: Skill, candidate: Skill, prior: Sequence[tuple[float, float, float]], price: float
    ) -> Interim:
        """The state of the race by all evidence so far."""
        posterior = self._fit_race(incumbent, candidate, WIDE)
        gain = posterior.shrunk("gain", WIDE[1], prior)
        before, after = posterior.contrast({"level": 1.0}), posterior.contrast({"level": 1.0, "gain": 1.0})
        name, witnesses = self._witnesses(), dict[str, list[float]]()
        for sample, (old, new) in self._paired(incumbent, candidate).items():
            witnesses.setdefault(name[sample], []).append(new - old)
        harm = harmful(list(map(fmean, witnesses.values())), self.arena.cfg.regression_bound)
        seen = len(self._select_draws(candidate.hash))
        return Interim(seen, _bounded(before), _bounded(after), gain.mean, gain.sd, gain.above(price + MATTERS), harm)

    def _fit_race(self, incumbent: Skill, candidate: Skill, gain: tuple[float, float]) -> Posterior:
        """The posterior of the incumbent's level, the candidate's gain and the distance of other versions, by every
        score on `select`. A group counts once: as the mean of its samples that the candidate has done, or of all its
        samples if the candidate has done none."""
        scores, name = self.arena.scores.on("select"), self._witnesses()
        done: dict[str, set[str]] = {}
        for version, sample, _ in scores:
            if version == candidate.hash:
                done.setdefault(name[sample], set()).add(sample)
        means: dict[tuple[str, str, int], list[float]] = {}
        for (version, sample, attempt), score in scores.items():
            if sample in done.get(name[sample], (sample,)):
                means.setdefault((version, name[sample], attempt), []).append(score)
        prior = {"level": LEVEL, "gain": gain}
        observations = []
        for (version, witness, _), of in means.items():
            columns = {"level": 1.0}
            if version == candidate.hash:
                columns["gain"] = 1.0
            elif version != incumbent.hash:
                columns[version] = 1.0
                prior[version] = OTHER_VERSION
            observations.append(Observation(witness, columns, fmean(of)))
        return fit(observations, prior, self.arena.noise)

    def _witnesses(self) -> dict[str, str]:
        """The name of each select sample's witness: its group, whose samples may succeed or fail as one, or itself."""
        return {s.id: f"sample {s.id}" if s.group is None else f"group {s.group}" for s in self.arena.select}

    def _paired(self, incumbent: Skill, candidate: Skill) -> dict[str, tuple[float, float]]:
        """Both scores of every `select` sample that both sides have done, as means over the draws that both have."""
        old, new = self._select_draws(incumbent.hash), self._select_draws(candidate.hash)
        pairs: dict[str, list[tuple[float, float]]] = {}
        for (sample, attempt), score in new.items():
            if (sample, attempt) in old:
                pairs.setdefault(sample, []).append((old[sample, attempt], score))
        return {sample: (fmean(a for a, _ in of), fmean(b for _, b in of)) for sample, of in pairs.items()}

    def _select_draws(self, version: str) -> dict[tuple[str, int], float]:
        """The score of every rollout of a version on `select`, by sample and attempt, in a fixed order."""
        return {
            (sample, attempt): score
            for (skill, sample, attempt), score in self.arena.scores.on("select").items()
            if skill == version
        }


def _notify_interim(arena: Arena, looks: Sequence[Interim]) -> None:
    """Notify listeners of the state of the race, for whoever watches the run."""
    last = looks[-1]
    arena.notify("interim", look=len(looks), n=last.n, p_better=last.better, gain=last.gain, sd=last.sd, harm=last.harm)


def rule(
    interim: Interim, cfg: GateConfig, *, last: bool, enough: bool = True, proven: bool = False, again: bool = False
) -> Decision:
    """The decision after an interim analysis. The first condition that holds decides:

        accepted    enough  and  P(better) ≥ needed  and  P(harm) < VETO
        given up    P(better) < gate.futility
        undecided   last,  or  again and P(better) < AGAIN
        ""          otherwise: go on

    `last`: there are no more samples. `again`: the next samples are another pass over `select`. `enough`: enough
    samples were scored on both sides; without this condition a candidate whose calls fail on hard samples would be
    flattered. `needed` depends on `last` and `proven`, see `needed`.
    """
    if enough and interim.better >= needed(cfg, last=last, proven=proven) and interim.harm < VETO:
        return ACCEPTED
    if interim.better < cfg.futility:
        return GIVEN_UP
    if last or (again and interim.better < AGAIN):
        return UNDECIDED
    return ""


def needed(cfg: GateConfig, *, last: bool, proven: bool) -> float:
    """The P(better) that an accept needs: `gate.confidence` while samples are left. At the last interim analysis it is
    `gate.last_confidence`, or the still lower `gate.proven_confidence` while an accepted version stands (`proven`),
    because an optimizer that was right once deserves a better prior."""
    if not last:
        return cfg.confidence
    return cfg.proven_confidence if proven else cfg.last_confidence


def transferred(gains: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    """The prior of the gain on `select`, by draws of the posterior of the gain on train: (weight, mean, sd) each."""
    each = (1 - OVERFIT) / len(gains)
    spike = OVERFIT + each * sum(gain == 0 for gain in gains)
    return ((spike, 0.0, 0.002), *((each, SHRINK * gain, DEVIATION) for gain in gains if gain))


def _bounded(level: tuple[float, float]) -> tuple[float, float]:
    return min(1.0, max(0.0, level[0])), level[1]


def _explained(
    verdict: Verdict,
    pool: Pool,
    chosen: Sequence[int],
    good: Sequence[int],
    effects: Sequence[tuple[float, float, float]] | None,
) -> Verdict:
    """The verdict with the measured effect of every edit. Edits that were neither accepted nor kept for later are
    rejected, with their effect as the reason. Without a screen (`effects` is None) only raced edits were tried."""
    taken = chosen if verdict.accepted else ()

    def measured(i: int) -> str:
        """The reason that the optimizer is told; it rests on train samples alone."""
        screened = (
            "measured effect {:+.1f} ± {:.1f} points".format(*(100 * x for x in effects[i][:2])) if effects else ""
        )
        return "; ".join(filter(None, (screened, raced(len(chosen)) if i in chosen else "")))

    rows = [
        ScreenRow(proposal.edit.key, proposal.edit.text or proposal.edit.target, gain, sd)
        for proposal, (gain, sd, _) in zip(
            pool.proposals, effects or [(0.0, 0.0, 0.0)] * len(pool.proposals), strict=True
        )
    ]
    dropped = [i for i in (pool.offered if effects else chosen) if i not in taken and i not in good]
    return replace(
        verdict,
        rejected=tuple(Rejected(pool.proposals[i].edit, measured(i)) for i in dropped),
        screen=Screen(tuple(rows), tuple(chosen)),
    )
