"""The default gate: screen every edit on train, assemble the best, race the assembly on `select` in blocks.

The strict rule asks one noisy question of a whole patch. Here every edit is measured before it may stand in a
candidate, a hopeless candidate costs one block instead of a pass, a doubtful one gets up to `passes` draws, and
edits that look good but were not taken stay in the pool, with what was learned about them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field, replace

from skilltune.edits import apply
from skilltune.gate import Arena, Verdict
from skilltune.gate.crossed import Observation, Posterior, fit
from skilltune.gate.screen import Pool, Screened, assign, balanced, edit_columns
from skilltune.gate.stats import Mixture, spike_and_slab, standard_error
from skilltune.optimizer import Proposal, join
from skilltune.optimizer.memory import Rejected
from skilltune.roll import gather, mean
from skilltune.run import rng
from skilltune.skill import Skill

LEVEL = (0.5, 1.0)  # prior mean and sd of the incumbent's level on `select`, in scores
OTHER_VERSION = (0.0, 0.30)  # of the distance of any other version from the incumbent
# Prior of the gain of a candidate that was not screened, as (weight, sd): most changes do little, some do a lot.
UNSCREENED = ((0.8, 0.03), (0.2, 0.30))
WIDE = (0.0, 0.30)  # under which such a gain is fitted before that prior is put in its place
SHRINK = 0.8  # of a screened gain: the best of many is flattered, and train is not select
DEVIATION = 0.04  # sd by which the gain on `select` may miss what the screen foretold
ROUNDS = (0.5, 0.25, 0.25)  # of the screen: the first shows each edit once, the others follow what was learned
WORTH = 0.6  # an edit is put into a candidate when P(it adds something) is at least this
FORGET = 2.0  # an earlier posterior's sd counts so much wider under a new incumbent


@dataclass(frozen=True, slots=True)
class Look:
    """The state of a race after `n` rollouts of the candidate: level and sd of the incumbent and of the candidate, the
    gain and its sd (all in scores), P(gain > price of its length), P(it harms by more than the regression bound)."""

    n: int
    before: tuple[float, float]
    after: tuple[float, float]
    gain: float
    sd: float
    better: float
    harm: float


@dataclass(slots=True)
class Race:
    """Implements `Gate`."""

    arena: Arena
    leftover: list[Proposal] = field(default_factory=list)  # measured, promising, not taken yet
    waiting: list[Proposal] = field(default_factory=list)  # not measured yet: the pool was full
    learned: dict[str, tuple[float, float]] = field(default_factory=dict)  # "KEY edit|claim" → mean, sd
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
        old, waiting = ([], []) if alone else (self.leftover, self.waiting)
        measured = {proposal.edit.key for proposal in old}
        joined = sorted(join([*old, *proposals, *waiting]), key=lambda proposal: proposal.edit.key not in measured)
        reports = {p: apply(skill, [p.edit], protect=protect, max_tokens=self.arena.max_tokens) for p in joined}
        unusable = tuple(Rejected(p.edit, a.reports[0].reason) for p, a in reports.items() if not a.changed)
        usable = [proposal for proposal, applied in reports.items() if applied.changed]
        pool = Pool.of(skill, usable[: self.arena.cfg.pool], protect, self.arena.max_tokens)
        if not pool.proposals:
            reason = "none of the edits could be applied" if joined else "nothing was proposed"
            return Verdict(skill, False, reason, *self.level, rejected=unusable)

        screened = await self._screen(pool, limit, name)
        verdict = Verdict(skill, False, "the screen found no edit worth a race", *self.level)
        chosen = screened.assemble(limit, WORTH) if screened else pool.first(limit)
        if chosen:
            verdict = await self._race(pool, chosen, screened, name)
        effects = [screened.gain([i]) if screened else (0.0, 0.0, 0.0) for i in range(len(pool.proposals))]
        spent = chosen if verdict.accepted or len(chosen) == 1 else ()  # of a failed team each member may be good
        good = [i for i, (gain, _, p) in enumerate(effects) if i not in spent and gain > 0 and p >= WORTH]
        if not alone:
            self._keep(pool, screened, sorted(good, key=lambda i: -effects[i][0]))
            self.waiting = usable[self.arena.cfg.pool :][: self.arena.cfg.pool]
        verdict = _explained(verdict, pool, chosen, good, effects)
        return replace(verdict, rejected=(*verdict.rejected, *unusable))

    # -- (a) the screen and (b) its model

    async def _screen(self, pool: Pool, limit: int, name: str) -> Screened | None:
        """Roll the design and fit its model; None for a single edit or without a screen: the race alone judges."""
        cfg, arena = self.arena.cfg, self.arena
        if len(pool.proposals) < 2 or not cfg.screen:
            return None
        by_id = {sample.id: sample for sample in arena.train}
        known = self._known(pool.skill.hash, by_id)
        observations = [Observation(sample, {"level": 1.0}, score) for sample, score in known.items()]
        screened = None
        for number, share in enumerate(ROUNDS):
            draw = rng(arena.seed, "screen", name, number)
            texts = max(1, round(share * cfg.texts))
            if screened is None:
                size = min(limit, len(pool.proposals) - 1, math.ceil(len(pool.proposals) / texts))
                design = balanced(pool, texts, size, draw)
            else:
                design = screened.sampled(texts, limit)
            plan = assign(pool, design, known, round(share * cfg.screen), draw)
            results = await gather(
                [
                    arena.roll(pool.text(subset), [by_id[sample] for sample in samples], purpose=f"{name} {subset}")
                    for subset, samples in zip(design, plan, strict=True)
                ]
            )
            for subset, rollouts in zip(design, results, strict=True):
                for rollout in rollouts:
                    if rollout.score is not None:
                        columns = {"level": 1.0, **edit_columns(pool, subset, rollout.sample)}
                        observations.append(Observation(rollout.sample, columns, arena.metric(rollout.score)))
            screened = Screened(pool, observations, sorted(known), self.learned, draw)
        return screened

    def _known(self, version: str, samples: Container[str]) -> dict[str, float]:
        """The version's mean score on each of the samples on which it was seen."""
        scores: dict[str, list[float]] = {}
        for (skill, sample, _), rollout in sorted(self.arena.roll.seen.items()):
            if skill == version and sample in samples and rollout.score is not None:
                scores.setdefault(sample, []).append(self.arena.metric(rollout.score))
        return {sample: sum(values) / len(values) for sample, values in scores.items()}

    # -- (c) the race

    async def _race(self, pool: Pool, chosen: tuple[int, ...], screened: Screened | None, name: str) -> Verdict:
        cfg, arena = self.arena.cfg, self.arena
        edits = [pool.proposals[i].edit for i in chosen]
        applied = apply(pool.skill, edits, protect=pool.protect, max_tokens=pool.max_tokens)
        candidate = applied.skill
        prior = WIDE
        if screened:
            foretold, sd, _ = screened.gain(chosen)
            prior = (SHRINK * foretold, math.hypot(sd, DEVIATION, (1 - SHRINK) * foretold))
        price = cfg.length_price * max(0, candidate.tokens - pool.skill.tokens) / 1000
        order = sorted(arena.select, key=lambda sample: sample.id)
        rng(arena.seed, "race", name).shuffle(order)
        blocks = [(attempt, start) for attempt in range(cfg.passes) for start in range(0, len(order), cfg.block)]
        looks: list[Look] = []
        decision = ""
        for attempt, start in blocks:
            block = order[start : start + cfg.block]
            purpose = f"{name} race {candidate.hash} {start}"
            sides = ((candidate, attempt), (pool.skill, 0))  # an incumbent seen on a few lucky samples is no bar
            await gather([arena.roll(skill, block, attempt=draw, purpose=purpose) for skill, draw in sides])
            looks.append(self._look(pool.skill, candidate, prior, price, screened is not None))
            decision = self._decide(looks[-1], last=len(looks) == len(blocks))
            if decision:
                break
        look, accepted = looks[-1], decision == "accepted"
        self.level = look.after if accepted else look.before
        old, new = dict(self._select_scores(pool.skill.hash)), dict(self._select_scores(candidate.hash))
        differences = {sample: new[sample] - old[sample] for sample in sorted(new) if sample in old}
        return Verdict(
            skill=candidate if accepted else pool.skill,
            accepted=accepted,
            reason=f"{100 * look.gain:+.1f} ± {100 * look.sd:.1f} points on {look.n} select rollouts, "
            f"P(better) = {look.better:.2f}: {decision}",
            score=self.level[0],
            score_sd=self.level[1],
            candidate=candidate,
            before=mean([old[sample] for sample in differences]),
            after=mean([new[sample] for sample in differences]),
            differences=differences,
            reports=applied.reports,
            numbers={"rule": "race", "prior": prior, "looks": [asdict(look) for look in looks], "price": price},
        )

    def _look(
        self, incumbent: Skill, candidate: Skill, prior: tuple[float, float], price: float, screened: bool
    ) -> Look:
        """What all evidence says of the candidate now."""
        posterior = self._fit_race(incumbent, candidate, prior)
        middle, sd = posterior.contrast({"gain": 1.0})
        gain = Mixture(((1.0, middle, sd),))
        if not screened:
            said = max(1 / sd**2 - 1 / prior[1] ** 2, 1e-6)  # precision of the data alone, the normal prior taken out
            gain = spike_and_slab(middle / sd**2 / said, 1 / said, UNSCREENED)
        before, after = posterior.contrast({"level": 1.0}), posterior.contrast({"level": 1.0, "gain": 1.0})
        harm = 1 - gain.above(-self.arena.cfg.regression_bound)
        seen = len(self._select_scores(candidate.hash))
        return Look(seen, _bounded(before), _bounded(after), gain.mean, gain.sd, gain.above(price), harm)

    def _decide(self, look: Look, *, last: bool) -> str:
        """ "" to go on; the veto on credible harm holds also where the last, lower bar is reached."""
        cfg = self.arena.cfg
        if look.better >= (cfg.last_confidence if last else cfg.confidence) and look.harm < 1 - cfg.confidence:
            return "accepted"
        if look.better < cfg.futility:
            return "given up"
        return "undecided" if last else ""

    def _fit_race(self, incumbent: Skill, candidate: Skill, gain: tuple[float, float]) -> Posterior:
        """All that was ever seen on `select`: the incumbent's level, the candidate's gain, other versions' distance."""
        ids = {sample.id for sample in self.arena.select}
        prior = {"level": LEVEL, "gain": gain}
        observations = []
        for (version, sample, _), rollout in sorted(self.arena.roll.seen.items()):
            if sample not in ids or rollout.score is None:
                continue
            columns = {"level": 1.0}
            if version == candidate.hash:
                columns["gain"] = 1.0
            elif version != incumbent.hash:
                columns[version] = 1.0
                prior[version] = OTHER_VERSION
            observations.append(Observation(sample, columns, self.arena.metric(rollout.score)))
        return fit(observations, prior)

    def _select_scores(self, version: str) -> list[tuple[str, float]]:
        """(sample, score) of every rollout of a version on `select`, in a fixed order."""
        ids = {sample.id for sample in self.arena.select}
        return [
            (sample, self.arena.metric(rollout.score))
            for (skill, sample, _), rollout in sorted(self.arena.roll.seen.items())
            if skill == version and sample in ids and rollout.score is not None
        ]

    def _keep(self, pool: Pool, screened: Screened | None, good: Sequence[int]) -> None:
        """Promising leftovers stay for the next step, with what is known of them."""
        self.leftover = [pool.proposals[i] for i in good]
        self.learned.clear()
        for i in good:
            if screened:
                self.learned |= screened.learned(i, FORGET)


def _bounded(level: tuple[float, float]) -> tuple[float, float]:
    return min(1.0, max(0.0, level[0])), level[1]


def _explained(
    verdict: Verdict,
    pool: Pool,
    chosen: Sequence[int],
    good: Sequence[int],
    effects: Sequence[tuple[float, float, float]],
) -> Verdict:
    """The verdict with every edit's measured effect; what is neither taken nor kept for later is rejected with it."""
    taken = chosen if verdict.accepted else ()

    def measured(i: int) -> str:
        raced = f"raced{' with others' if len(chosen) > 1 else ''}: {verdict.reason}" if i in chosen else ""
        gain, sd, _ = effects[i]
        screened = f"measured effect {100 * gain:+.1f} ± {100 * sd:.1f} points" if sd else ""
        return "; ".join(filter(None, (screened, raced))) or verdict.reason

    table = [
        {"key": proposal.edit.key, "text": proposal.edit.text or proposal.edit.target, "effect": gain, "sd": sd}
        for proposal, (gain, sd, _) in zip(pool.proposals, effects, strict=True)
    ]
    dropped = [i for i in range(len(pool.proposals)) if i not in taken and i not in good]
    return replace(
        verdict,
        rejected=tuple(Rejected(pool.proposals[i].edit, measured(i)) for i in dropped),
        numbers={**verdict.numbers, "screen": table, "chosen": list(chosen)},
    )
