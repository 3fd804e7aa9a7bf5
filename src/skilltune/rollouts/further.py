"""Further targets of a run: each has a roller of its own, with its own scores, over the same samples."""

from __future__ import annotations

from dataclasses import dataclass

from skilltune.journal.run import Run
from skilltune.rollouts.roller import Roller

FINGERPRINTS = "further targets"  # key of a decision: the fingerprint of each, by name


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
