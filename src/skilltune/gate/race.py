"""The default gate: screen every edit on train, assemble the best, race the assembly on `select` in blocks.

The strict rule asks one noisy question of a whole patch. Here every edit is measured before it may stand in a
candidate, a hopeless candidate costs one block instead of a pass, a doubtful one gets up to `passes` draws, and
edits that look good but were not taken stay in the pool, with what was learned about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from skilltune.edits import apply
from skilltune.gate import Arena, Verdict
from skilltune.gate.crossed import Observation, Posterior, fit
from skilltune.gate.screen import LEVEL, Pool, assign, edit_columns, fit_edits, subsets
from skilltune.gate.stats import normal_cdf
from skilltune.optimizer import Proposal
from skilltune.optimizer.memory import Rejected
from skilltune.roll import gather, mean
from skilltune.run import rng
from skilltune.skill import Skill

GAIN = (0.0, 0.15)  # prior of a candidate's gain on `select`: sceptical, most changes do little
OTHER_VERSION = (0.0, 0.30)  # prior of the distance of any other version from the incumbent
WORTH = 0.6  # an edit is put into a candidate when P(its effect > 0) is at least this
LAST_CONFIDENCE = 0.90  # accept above this when all passes are used up
FORGET = 2.0  # an earlier posterior's sd counts so much wider under a new incumbent


@dataclass(slots=True)
class Race:
    """Implements `Gate`."""

    arena: Arena
    leftover: list[Proposal] = field(default_factory=list)
    learned: dict[str, tuple[float, float]] = field(default_factory=dict)  # "KEY edit|claim" → mean, sd

    async def baseline(self, skill: Skill) -> float | None:
        rollouts = await self.arena.roll(skill, self.arena.select, purpose="select")
        return mean([self.arena.metric(rollout.score) for rollout in rollouts if rollout.score is not None])

    async def judge(
        self, skill: Skill, proposals: Sequence[Proposal], *, limit: int, name: str, protect: Sequence[str] = ()
    ) -> Verdict:
        cfg = self.arena.cfg
        fresh = {proposal.edit.key: proposal for proposal in [*self.leftover, *proposals]}
        pool = Pool.of(skill, list(fresh.values()), cfg.pool, protect, self.arena.max_tokens)
        score = await self._mean_on_select(skill)
        if not pool.proposals:
            reason = "none of the edits could be applied" if fresh else "nothing was proposed"
            return Verdict(
                skill, False, reason, score, rejected=tuple(Rejected(p.edit, reason) for p in fresh.values())
            )

        evidence = await self._screen(pool, limit, name)
        raced: list[tuple[int, ...]] = []
        verdict = Verdict(skill, False, "the screen found no edit worth a race", score)
        for _ in range(cfg.races):
            posterior = fit_edits(pool, evidence, self.learned)
            chosen = self._assemble(pool, posterior, limit)
            if not chosen or chosen in raced:
                break
            raced.append(chosen)
            verdict = await self._race(pool, chosen, name, score)
            if verdict.accepted:
                break
            evidence += self._raced(pool, chosen)
        posterior = fit_edits(pool, evidence, self.learned)
        return self._settle(pool, posterior, verdict, raced)

    async def _mean_on_select(self, skill: Skill) -> float | None:
        """The incumbent's mean over the `select` samples on which it was seen; nothing is paid."""
        scores = self._select_scores(skill.hash)
        return mean([score for _, score in scores])

    # -- (a) the screen

    async def _screen(self, pool: Pool, limit: int, name: str) -> list[Observation]:
        """Roll the design; observations of incumbent and subsets on train, of the incumbent on select."""
        cfg, arena = self.arena.cfg, self.arena
        by_id = {sample.id: sample for sample in arena.train}
        known = self._known(pool.skill.hash, by_id)
        size = min(limit, max(1, len(pool.proposals) // 2))
        design = subsets(pool, cfg.texts, size, arena.seed, name) if len(pool.proposals) > 1 and cfg.screen else []
        plan = assign(pool, design, known, cfg.screen, arena.seed, name)
        texts = [pool.text(subset) for subset in design]
        results = await gather(
            [
                arena.roll(text, [by_id[sample] for sample in samples], purpose=f"{name} screen {number}")
                for number, (text, samples) in enumerate(zip(texts, plan, strict=True))
            ]
        )
        observations = [Observation(sample, {"level": 1.0}, score) for sample, score in known.items()]
        for subset, rollouts in zip(design, results, strict=True):
            for rollout in rollouts:
                if rollout.score is not None:
                    columns = edit_columns(pool, subset, rollout.sample, {})
                    observations.append(
                        Observation(rollout.sample, {"level": 1.0, **columns}, arena.metric(rollout.score))
                    )
        observations += [
            Observation(sample, {"select level": 1.0}, score) for sample, score in self._select_scores(pool.skill.hash)
        ]
        return observations

    def _known(self, version: str, samples: Any) -> dict[str, float]:
        """The incumbent's mean score on each train sample on which it was seen."""
        scores: dict[str, list[float]] = {}
        for (skill, sample, _), rollout in sorted(self.arena.roll.seen.items()):
            if skill == version and sample in samples and rollout.score is not None:
                scores.setdefault(sample, []).append(self.arena.metric(rollout.score))
        return {sample: sum(values) / len(values) for sample, values in scores.items()}

    def _shares(self, pool: Pool) -> dict[int, float]:
        """The share of tasks that each edit claims, judged from the train samples seen under the incumbent."""
        seen = len(self._known(pool.skill.hash, {sample.id for sample in self.arena.train})) or 1
        return {i: min(1.0, len(p.support) / seen) for i, p in enumerate(pool.proposals)}

    # -- (b) the candidate

    def _effect(self, posterior: Posterior, pool: Pool, i: int) -> tuple[float, float]:
        """Mean and sd of an edit's effect on the mean score of all tasks."""
        return posterior.contrast(edit_columns(pool, [i], None, self._shares(pool)))

    def _assemble(self, pool: Pool, posterior: Posterior, limit: int) -> tuple[int, ...]:
        """The edits with the largest positive effects, at most `limit`, no two in conflict; the shorter on ties."""
        effects = {i: self._effect(posterior, pool, i) for i in range(len(pool.proposals))}
        worth = [i for i, (middle, sd) in effects.items() if middle > 0 and normal_cdf(middle / sd) >= WORTH]
        if len(pool.proposals) == 1:
            worth = [0]  # nothing was screened: the race alone decides
        chosen: list[int] = []
        for i in sorted(worth, key=lambda i: (-effects[i][0], len(pool.proposals[i].edit.text or ""))):
            if len(chosen) < limit and pool.fits(chosen, i):
                chosen.append(i)
        return tuple(sorted(chosen))

    # -- (c) the race

    async def _race(self, pool: Pool, chosen: tuple[int, ...], name: str, score: float | None) -> Verdict:
        cfg, arena = self.arena.cfg, self.arena
        edits = [pool.proposals[i].edit for i in chosen]
        applied = apply(pool.skill, edits, protect=pool.protect, max_tokens=pool.max_tokens)
        candidate = applied.skill
        price = cfg.length_price * max(0, candidate.tokens - pool.skill.tokens) / 1000
        order = sorted(arena.select, key=lambda sample: sample.id)
        rng(arena.seed, "race", name).shuffle(order)
        looks: list[dict[str, float]] = []
        accepted, why = False, ""
        for attempt in range(cfg.passes):
            for start in range(0, len(order), cfg.block):
                block = order[start : start + cfg.block]
                await arena.roll(candidate, block, attempt=attempt, purpose=f"{name} race {candidate.hash} {start}")
                posterior = self._fit_race(pool.skill, candidate)
                gain, sd = posterior.contrast({"gain": 1.0})
                better = normal_cdf((gain - price) / sd)
                harm = normal_cdf((-cfg.regression_bound - gain) / sd)
                used = attempt * len(order) + start + len(block)
                looks.append({"n": used, "gain": gain, "sd": sd, "better": better, "harm": harm})
                last = attempt == cfg.passes - 1 and start + cfg.block >= len(order)
                bar = LAST_CONFIDENCE if last else cfg.confidence
                if better >= bar and harm < 1 - cfg.confidence:
                    accepted, why = True, f"P(better) = {better:.2f}"
                elif better < cfg.futility:
                    why = f"P(better) = {better:.2f}, given up"
                elif last:
                    why = f"P(better) = {better:.2f} after {cfg.passes} passes: undecided"
                if why:
                    break
            if why:
                break
        figures = looks[-1]
        old, new = dict(self._select_scores(pool.skill.hash)), dict(self._select_scores(candidate.hash))
        differences = {sample: new[sample] - old[sample] for sample in sorted(new) if sample in old}
        return Verdict(
            skill=candidate if accepted else pool.skill,
            accepted=accepted,
            reason=f"{100 * figures['gain']:+.1f} ± {100 * figures['sd']:.1f} points "
            f"on {figures['n']} select rollouts, {why}",
            score=mean(list(new.values())) if accepted else score,
            candidate=candidate,
            before=mean([old[sample] for sample in differences]),
            after=mean([new[sample] for sample in differences]),
            differences=differences,
            reports=applied.reports,
            numbers={"rule": "race", "looks": looks, "price": price},
        )

    def _fit_race(self, incumbent: Skill, candidate: Skill) -> Posterior:
        """All that was ever seen on `select`: the incumbent's level, the candidate's gain, other versions' distance."""
        ids = {sample.id for sample in self.arena.select}
        prior = {"level": LEVEL, "gain": GAIN}
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

    def _raced(self, pool: Pool, chosen: tuple[int, ...]) -> list[Observation]:
        """A raced candidate's select scores as evidence on its edits."""
        candidate = pool.text(chosen)
        columns = edit_columns(pool, chosen, None, self._shares(pool))
        return [
            Observation(sample, {"select level": 1.0, candidate.hash: 1.0, **columns}, score)
            for sample, score in self._select_scores(candidate.hash)
        ]

    def _select_scores(self, version: str) -> list[tuple[str, float]]:
        """(sample, score) of every rollout of a version on `select`, in a fixed order."""
        ids = {sample.id for sample in self.arena.select}
        return [
            (sample, self.arena.metric(rollout.score))
            for (skill, sample, _), rollout in sorted(self.arena.roll.seen.items())
            if skill == version and sample in ids and rollout.score is not None
        ]

    # -- what stays

    def _settle(self, pool: Pool, posterior: Posterior, verdict: Verdict, raced: list[tuple[int, ...]]) -> Verdict:
        """Keep promising leftovers and what is known of them; name the others as tried, with the measured effects."""
        taken = set(raced[-1]) if verdict.accepted else set()
        lost = {i for chosen in raced for i in chosen} - taken
        effects = {i: self._effect(posterior, pool, i) for i in range(len(pool.proposals))}
        good = [
            i
            for i, (middle, sd) in effects.items()
            if i not in taken and i not in lost and middle > 0 and normal_cdf(middle / sd) >= WORTH
        ]
        self.leftover = [pool.proposals[i] for i in sorted(good, key=lambda i: -effects[i][0])]
        self.learned.clear()
        for i in good:
            for kind in ("edit", "claim"):
                middle, sd = posterior.contrast({f"{kind} {i}": 1.0})
                self.learned[f"{pool.proposals[i].edit.key} {kind}"] = (middle, FORGET * sd)

        def measured(i: int) -> str:
            raced_too = ", raced and not kept" if i in lost else ""
            return f"measured effect {100 * effects[i][0]:+.1f} ± {100 * effects[i][1]:.1f} points{raced_too}"

        dropped = [i for i in range(len(pool.proposals)) if i not in taken and i not in good]
        table = [
            {"key": p.edit.key, "text": p.edit.text or p.edit.target, "effect": effects[i][0], "sd": effects[i][1]}
            for i, p in enumerate(pool.proposals)
        ]
        return replace(
            verdict,
            rejected=tuple(Rejected(pool.proposals[i].edit, measured(i)) for i in dropped),
            numbers={**verdict.numbers, "screen": table, "races": len(raced)},
        )
