"""The published rule: one pass over `select`, accept iff the mean is strictly larger than the incumbent's.

Kept exactly, so that others can compare; `race` says why it is not our default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skilltune.edits import Applied, apply
from skilltune.gate import Arena
from skilltune.gate.also import check_elsewhere
from skilltune.optimizer import Proposal
from skilltune.rollout import Rollout
from skilltune.rollouts.roller import MAX_UNSCORED, comparable
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.stats.proportions import mean
from skilltune.verdict import FAILED, Rejected, StrictFigures, Verdict, percent


@dataclass(slots=True)
class Strict:
    """Implements `Gate`."""

    arena: Arena

    async def baseline(self, skill: Skill) -> float | None:
        return mean(list(self._scores(await self._roll(skill)).values()))

    async def judge(
        self,
        skill: Skill,
        proposals: Sequence[Proposal],
        *,
        limit: int,
        name: str,
        protect: Sequence[str] = (),
        alone: bool = False,  # always so: there is no pool
    ) -> Verdict:
        edits = [proposal.edit for proposal in proposals]
        applied = apply(skill, edits, protect=protect, limit=limit, max_tokens=self.arena.max_tokens)
        was = await self._roll(skill)  # in the journal since the skill became the incumbent
        old = self._scores(was)
        score, spread = mean(list(old.values())), standard_error(list(old.values()))
        if not applied.changed:
            reason = "nothing was proposed" if not edits else "none of the edits could be applied"
            rejected = _rejected(applied, reason)
            return Verdict(skill, False, reason, score, spread, reports=applied.reports, rejected=rejected)
        if why := self.arena.refuses(applied.skill):
            rejected = _rejected(applied, why)
            return Verdict(skill, False, why, score, spread, reports=applied.reports, rejected=rejected)
        self.arena.notify("phase", name="race")
        self.arena.roll.prefetch(skill, self.arena.upcoming)  # most candidates fail
        now = await self._roll(applied.skill)
        new = self._scores(now)
        differences = {sample: new[sample] - old[sample] for sample in old if sample in new}
        before = mean([old[sample] for sample in differences])
        after = mean([new[sample] for sample in differences])
        enough = len(differences) >= (1 - MAX_UNSCORED) * comparable(zip(was, now, strict=True))
        accepted = enough and before is not None and after is not None and after > before
        better = accepted
        elsewhere = await check_elsewhere(self.arena, skill, applied.skill, name) if better else ()
        accepted = better and not any(check.vetoed for check in elsewhere)
        fixed, broken = sum(d > 0 for d in differences.values()), sum(d < 0 for d in differences.values())
        reason = f"{percent(before)} → {percent(after)} on {len(differences)} select samples (+{fixed} −{broken})"
        reason += "" if better else ": not better" if enough else ": too few were scored on both sides to decide"
        return Verdict(
            skill=applied.skill if accepted else skill,
            accepted=accepted,
            reason="; ".join((reason, *map(str, elsewhere))),
            score=after if accepted else score,
            score_sd=standard_error(list(new.values())) if accepted else spread,
            candidate=applied.skill,
            before=before,
            after=after,
            differences=differences,
            reports=applied.reports,
            rejected=_rejected(applied, "" if accepted else FAILED),
            numbers=StrictFigures(before, after, len(differences)),
            elsewhere=elsewhere,
        )

    async def _roll(self, skill: Skill) -> list[Rollout]:
        return await self.arena.roll(skill, self.arena.select, purpose="select")

    def _scores(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        return {rollout.sample: self.arena.metric(rollout.score) for rollout in rollouts if rollout.score is not None}


def _rejected(applied: Applied, verdict: str) -> tuple[Rejected, ...]:
    """The edits that could not be applied, with the reason. If there is a verdict on the patch, the other edits too."""
    return tuple(
        Rejected(report.edit, report.reason if report.status == "rejected" else f"the patch was rejected: {verdict}")
        for report in applied.reports
        if report.status == "rejected" or verdict
    )
