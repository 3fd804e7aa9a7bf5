"""`skilltune compact`: the best skill of a finished run without the edits that harm or add nothing.

The shorter skill is a version of the run. It is certified like the longer one, on the same test samples, so the test
split is read a second time and the certificate needs a smaller p. If nothing is left out, nothing changes.
"""

from __future__ import annotations

from dataclasses import replace

from skilltune.errors import RunError
from skilltune.finish.ablation import Ablation, learned
from skilltune.finish.proof import prove
from skilltune.finish.reserve import Planned, hold_back, planned
from skilltune.journal.run import Run
from skilltune.optimizer.schedule import after_all
from skilltune.parts import Parts
from skilltune.result import Result, conclude
from skilltune.state import State, apply_verdict
from skilltune.verdict import COMPACTED

DONE = "compaction"  # key of a decision: the hash of the skill that the compaction left
FORMER = "compacted"  # the same key in runs of an earlier skilltune, which dropped one rule after the other


def is_compacted(run: Run) -> bool:
    """True if a compaction of the run has ended. From then on it belongs to the run, and a replay repeats it.

    Raises `RunError` if an earlier skilltune compacted the run in a way that this one cannot repeat.
    """
    if run.recall(FORMER) is not None:
        (version,) = run.recall("input version") or ("of unknown version",)
        raise RunError(
            f"the run in {run.folder} was compacted by an earlier skilltune ({version}), which dropped one rule after "
            "the other. This one cannot repeat that, so the run stays as it is: `skilltune show` and `skilltune "
            "report` read it, and its best_skill.md is the compacted skill. `skilltune train … --fork` begins a new "
            "run that reuses its answers."
        )
    return run.recall(DONE) is not None


async def in_doubt(s: Parts, result: Result) -> Ablation | None:
    """The ablation of the best skill of a finished run, ready to be made; None if no edit is in doubt."""
    return await Ablation.of(s.arena, result.best, result.start, result.verdicts, learned(s.gate), rule=COMPACTED)


def plan(s: Parts, result: Result, ablation: Ablation | None) -> Planned:
    """Upper bounds of the calls of `compacted`. On a further target, the check needs the input, the best skill and the
    shorter one, and the certificate needs the first and the last of them."""
    if ablation is None:
        return planned(s, 0)
    start, best, test = result.start.hash, result.best.hash, s.splits.test
    passes, attempts = s.cfg.gate.passes, s.cfg.certify.attempts
    further = {}
    for other in s.arena.also:
        scores = other.roll.scores
        check = sum(scores.missing(text, s.arena.select, passes) for text in {start, best})
        check += passes * len(s.arena.select)
        further[other.name] = check + attempts * len(test) + scores.missing(start, test, attempts)
    attempts = s.arena.draws(attempts)
    certificate = attempts * len(test) + s.roll.scores.missing(start, test, attempts)
    return planned(s, ablation.most_calls + certificate, further=further)


async def compacted(s: Parts, result: Result, ablation: Ablation | None) -> Result:
    """Leave out the edits that harm or add nothing, and certify what is left.

    `result` is what `train` returned for these parts. It stays as it is if nothing was left out, and if only the longer
    skill is certified: then the longer one still ships. Raises `Stopped` if the budget is used up; the run stays as it
    was, and the journal keeps what was paid.
    """
    state = State(list(result.versions), verdicts=list(result.verdicts))
    state.revived = result.best.hash if result.revived else ""
    best = result.best
    if ablation is not None:
        hold_back(s, skills=1)
        verdict = await ablation.verdict()
        apply_verdict(s, state, after_all(s.cfg.train, s.splits.train), verdict, len(verdict.reports))
        best = verdict.skill
        s.budget.release()
    shorter = replace(result, spent=s.budget.spent)
    if best.text != result.best.text:
        proof = await prove(s, state.start, best, len(state.verdicts))
        shorter = conclude(s, state, best, proof)
    s.run.decide(DONE, lambda: best.hash)
    if result.exit_code == 0 and shorter.exit_code != 0:
        return replace(result, versions=shorter.versions, spent=shorter.spent)
    return shorter


async def replayed(s: Parts, result: Result) -> Result:
    """The result of a run whose training has been replayed: that of its compaction, if it was compacted."""
    return await compacted(s, result, await in_doubt(s, result)) if is_compacted(s.run) else result
