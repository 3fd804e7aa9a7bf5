"""`skilltune compact`: the best skill of a finished run without the rules that add nothing.

The shorter skill is a version of the run. It is certified like the longer one, on the same test samples, so the test
split is read a second time and the certificate needs a smaller p. Without a drop, nothing changes.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from skilltune.finish.compact import compact
from skilltune.finish.ledger import Rule, ledger_of
from skilltune.finish.proof import prove
from skilltune.finish.reserve import hold_back
from skilltune.journal.run import Run
from skilltune.optimizer import Step
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.parts import Parts
from skilltune.result import Result, conclude
from skilltune.state import State, apply_verdict
from skilltune.verdict import VerdictRecord

DONE = "compacted"  # key of a decision: the hash of the skill that the compaction left


def is_compacted(run: Run) -> bool:
    """True if a compaction of the run has ended. From then on it belongs to the run, and a replay repeats it."""
    return run.recall(DONE) is not None


def rules_of(s: Parts, result: Result) -> list[Rule]:
    """The rules of the best skill, with their effects by all rollouts of the training."""
    return ledger_of(s.run, s.roll.seen.values(), s.arena.metric, result.best.hash, _trained(s.run))


async def compacted(s: Parts, result: Result) -> Result:
    """Drop the rules that add nothing, and certify what is left.

    `result` is what `train` returned for these parts. It stays as it is if no rule was dropped, and if only the longer
    skill is certified: then the longer one still ships. Raises `Stopped` if the budget is used up; the run stays as it
    was, and the journal keeps what was paid.
    """
    trained = _trained(s.run)
    state = State(list(result.versions), revived=result.best.hash if result.revived else "")
    judged = {result.start.hash, *(verdict.candidate for verdict in trained if verdict.candidate)}
    steps, best = steps_per_epoch(s.cfg.train, len(s.splits.train)) * s.cfg.train.epochs, result.best
    hold_back(s, skills=1)
    async with aclosing(compact(s.arena, best, rules_of(s, result), judged)) as verdicts:
        async for verdict in verdicts:
            steps += 1
            step = Step(steps, s.cfg.train.epochs, (), 1, starts_epoch=False, ends_epoch=False)
            apply_verdict(s, state, step, verdict, 1)
            best = verdict.skill
    s.budget.release()
    shorter = replace(result, spent=s.budget.spent)
    if best.text != result.best.text:
        proof = await prove(s, state.start, best, len(trained) + len(state.verdicts))
        shorter = conclude(s, state, best, proof)
    s.run.decide(DONE, lambda: best.hash)
    if result.exit_code == 0 and shorter.exit_code != 0:
        return replace(result, versions=shorter.versions, spent=shorter.spent)
    return shorter


def _trained(run: Run) -> list[VerdictRecord]:
    """The verdicts of the training in the journal, without those of a compaction."""
    verdicts = (VerdictRecord.from_json(data) for _, _, data in run.events("verdict"))
    return [verdict for verdict in verdicts if not verdict.compacts]
