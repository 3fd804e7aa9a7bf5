"""Several checks on one answer, each a scorer with its own target; and the negation of a check.

A check that needs a reader is `{"type": "judge", "text": "The tone is friendly"}`, one line of a rubric (see
`scorers.judge`). Without a judge it is refused, and never passed or dropped.
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
SHOWN = 5  # failed checks in a reason; the optimizer must see everything that is wrong with an answer


class Options(BaseModel):
    """Options of `{"type": "checks", …}`. Without `checks`, each sample provides its own (`Sample.checks`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "all"
    checks: tuple[dict[str, Any], ...] | None = None


class Weight(BaseModel):
    """The option of a check that does not belong to its scorer."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def parts(sample: Sample, specs: Sequence[Mapping[str, Any]], build: Callable[[Any], Scorer]) -> list[Scorer]:
    """The scorers of a sample's checks. Raises UsageError with the names of sample and check."""
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

    `soft` is the weighted mean of the checks' partial credit; for `any` it is the best one. The reason names the failed
    checks.
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
    """Options of `{"type": "not", …}`: the check that must fail."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: dict[str, Any]


async def negated(sample: Sample, rollout: Rollout, scorer: Scorer) -> Score:
    """1 if the scorer does not give full marks. An empty answer always scores 0."""
    if rollout.empty:
        return Score(0.0, "the answer is empty")
    score = await evaluate(scorer, sample, rollout)
    verb = "must not pass, but does" if score.hard else "fails, as it must"
    return Score(1.0 - score.hard, f"{scorer.name} {verb}: {score.why}")


def compares_with_target(spec: Mapping[str, Any], targetless: Collection[str]) -> bool:
    """True if this check uses the sample's own target. `targetless` scorers never use it."""
    kind = spec.get("type", "")
    if kind == "checks":
        return any(compares_with_target(part, targetless) for part in spec.get("checks") or ())
    return kind not in targetless and not spec.keys() & {"target", "pattern", "schema"}
