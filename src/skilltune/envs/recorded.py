"""An environment whose score comes with the rollout, because another framework runs and scores a task in one go.

The target keeps the framework's own record in `Trajectory.stream`, and the scorer reads it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from skilltune.envs import Env
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers import Scorer


class RecordedEnv(Env):
    """Samples whose scorer reads `rollout.trajectory.stream`. `notes` say which choices were made by default."""

    scores_text = False

    def __init__(self, samples: Sequence[Sample], scorer: Scorer, root: Path, notes: Iterable[str] = ()) -> None:
        super().__init__(samples, _never, root=root)
        self._notes = tuple(notes)
        self._scorer = self._own_checks = scorer

    def notes(self) -> list[str]:
        return [*super().notes(), *self._notes]

    async def validate(self) -> list[str]:
        return []

    async def tried(self, sample: Sample) -> Score | None:
        return None


def _never(sample: Sample, rollout: Rollout) -> Score:
    """Stands for the scorer while the samples are checked. `RecordedEnv` replaces it, so it is never called."""
    raise NotImplementedError
