"""Further targets of a run: each has a roller of its own, with its own scores, over the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skilltune.errors import RunError
from skilltune.journal.run import Run
from skilltune.rollouts.roller import Roller

FINGERPRINTS = "further targets"  # key of a decision: the fingerprint of each, by name
MEASURED = "measured"  # event: a target of `eval --targets` with its fingerprint, and facts such as a version


def kind_of(name: str) -> str:
    """The kind of a further target's rollouts in journal and budget. They are no rollouts of the run's own target."""
    return f"target {name}"


@dataclass(frozen=True, slots=True)
class Further:
    """A further target by its name, with the roller of its rollouts. `proven` is False for an agent whose model calls
    nobody sees, so that nobody knows if it was given the skill; None for a chat model."""

    name: str
    roll: Roller
    proven: bool | None = None

    async def aclose(self) -> None:
        await self.roll.aclose()
        if (close := getattr(self.roll.target, "aclose", None)) is not None:
            await close()


def pin_further(run: Run, further: tuple[Further, ...]) -> None:
    """Journal the fingerprints of the further targets once, so that their rollouts are found without them."""
    if further:
        run.decide(FINGERPRINTS, lambda: {other.name: other.roll.target.fingerprint for other in further})


def pinned_further(run: Run) -> dict[str, str]:
    """The fingerprints of the further targets of a run, by name."""
    known = run.recall(FINGERPRINTS)
    return dict(known[0]) if known else {}


def pin_measured(run: Run, other: Further, settings: str) -> None:
    """Journal the identity of a target that an evaluation measures. `settings` identifies its options.

    Raises `RunError` if the run measured it with the same options before, and its program or model has changed since.
    """
    facts: Sequence[str] = getattr(other.roll.target, "facts", ())
    now = {"target": other.name, "settings": settings, "fingerprint": other.roll.target.fingerprint, "facts": [*facts]}
    with run.reading():
        known = [e for _, _, e in run.events(MEASURED) if (e["target"], e["settings"]) == (other.name, settings)]
        if known and known[0]["fingerprint"] != now["fingerprint"]:
            was, is_now = ("; ".join(event["facts"]) or "unknown" for event in (known[0], now))
            raise RunError(
                f"the target {other.name} changed since the run in {run.folder} measured it (then: {was}; now: "
                f"{is_now}): restore it, or measure everything anew with `--run DIR` for a fresh folder"
            )
    if not known:
        run.record(MEASURED, **now)


def measured(run: Run) -> list[str]:
    """The names of the targets that evaluations in this run have measured."""
    return list(dict.fromkeys(event["target"] for _, _, event in run.events(MEASURED)))
