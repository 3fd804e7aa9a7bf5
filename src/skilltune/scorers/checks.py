"""Several checks on one answer, each a scorer of its own with its own target; and a check turned round.

A check that only a reader can decide is `{"type": "judge", "text": "The tone is friendly"}`, one line of a rubric (see
`scorers.judge`). It is refused where no judge is named: never passed, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.scorer import Scorer, evaluate

Mode = Literal["all", "any", "weighted"]
SHOWN = 5  # failed checks that a reason names: who is to mend an answer must see what else is wrong with it


class Options(BaseModel):
    """What `{"type": "checks", …}` takes. Without `checks`, each sample brings its own (`Sample.checks`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "all"
    checks: tuple[dict[str, Any], ...] | None = None


class Weight(BaseModel):
    """The part of a check that is not its scorer's."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def parts(sample: Sample, specs: Sequence[Mapping[str, Any]], build: Callable[[Any], Scorer]) -> list[Scorer]:
    """The scorers of a sample's checks. Raises UsageError that names sample and check."""
    if not specs:
        raise UsageError(f'sample "{sample.id}" has no checks')
    scorers = []
    for i, spec in enumerate(specs, 1):
        try:
            scorers.append(build({key: value for key, value in spec.items() if key != "weight"}))
        except UsageError as error:
            raise UsageError(f'sample "{sample.id}", check {i}: {error}') from None
    return scorers


async def run(
    sample: Sample,
    rollout: Rollout,
    scorers: Sequence[Scorer],
    weights: Sequence[float],
    mode: Mode,
) -> Score:
    """`all`: 1 if every check passes. `any`: the best check. `weighted`: the weighted mean of the checks' scores.

    `soft` is the weighted mean of the checks' partial credit, for `any` the best of it. The reason names what failed.
    """
    scores = [await evaluate(scorer, sample, rollout) for scorer in scorers]
    total = sum(weights)
    mean = sum(w * s.value for w, s in zip(weights, scores, strict=True)) / total
    soft = min(1.0, sum(w * s.partial for w, s in zip(weights, scores, strict=True)) / total)
    best = max(scores, key=lambda score: (score.value, score.partial))
    failed = [f"{scorer.name}: {score.why}" for scorer, score in zip(scorers, scores, strict=True) if not score.hard]
    passed = len(scores) - len(failed)
    why = "; ".join((f"{passed} of {len(scores)} checks pass", *failed[:SHOWN]))
    why += f" (and {len(failed) - SHOWN} more)" if len(failed) > SHOWN else ""
    if mode == "any":
        return Score(best.value, why, soft=best.partial)
    if mode == "all":
        return Score(float(not failed), why, soft=soft)
    return Score(min(1.0, mean) if failed else 1.0, why, soft=soft)


class Negation(BaseModel):
    """What `{"type": "not", …}` takes: the check that must fail."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: dict[str, Any]


async def negated(sample: Sample, rollout: Rollout, scorer: Scorer) -> Score:
    """1 if the scorer does not give full marks. An empty answer fails like everywhere: it fails by saying nothing."""
    if not rollout.answer.strip():
        return Score(0.0, "the answer is empty")
    score = await evaluate(scorer, sample, rollout)
    verb = "must not pass, but does" if score.hard else "fails, as it must"
    return Score(1.0 - score.hard, f"{scorer.name} {verb}: {score.why}")


def compares_with_target(spec: Mapping[str, Any], targetless: Collection[str]) -> bool:
    """Does this check look at the sample's own target? `targetless` are the scorers that never do."""
    kind = spec.get("type", "")
    if kind == "checks":
        return any(compares_with_target(part, targetless) for part in spec.get("checks") or ())
    return kind not in targetless and not spec.keys() & {"target", "pattern", "schema"}
