"""Reasons to end the training before its last step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skilltune.config import TrainConfig
from skilltune.errors import Paused
from skilltune.journal.run import Run
from skilltune.stats import wilson

LEFT, CONFIDENCE = 0.1, 0.9  # training ends if the interval of the share of failing tasks lies below LEFT


@dataclass(frozen=True, slots=True)
class Stopping:
    """Decides if the training ends, and records the reason as an event."""

    run: Run
    cfg: TrainConfig

    def before_step(self, outcomes: Sequence[str], steps_without_accept: int, score: float | None) -> bool:
        """True if patience is used up or the target score is reached. `outcomes` has one text per finished step.
        Raises `Paused` like `pause_if_wanted`."""
        self.pause_if_wanted()
        reason = ""
        if self.cfg.patience and steps_without_accept >= self.cfg.patience:
            counted = Counter(list(outcomes)[-steps_without_accept:])
            how = ", ".join(f"{times} × {outcome}" for outcome, times in counted.items())
            reason = f"no accept in {steps_without_accept} steps (train.patience = {self.cfg.patience}): {how}"
        elif self.cfg.target_score is not None and score is not None and score >= self.cfg.target_score:
            reason = f"the score on select reached {self.cfg.target_score:g}"
        return self._record(reason)

    def pause_if_wanted(self) -> None:
        """Raise `Paused` if the run folder contains a file named `stop`, by which the user asks for a pause."""
        if (self.run.place / "stop").exists():
            raise Paused(f"{self.run.folder / 'stop'} exists; delete it and run the same command to go on")

    def nothing_left(self, failed: Mapping[str, bool]) -> bool:
        """True if too few failing tasks are left to learn from.

        `failed` maps each train sample that the incumbent did to True if it failed. A failure that a second attempt
        solved does not count as failed.
        """
        left = sum(failed.values())
        few = self.cfg.patience and failed and wilson(left, len(failed), CONFIDENCE)[1] <= LEFT
        counts = f"{left} of {len(failed)} train tasks are left to learn from, too few"
        return self._record(f"{counts} (train.patience = 0 goes on)" if few else "")

    def _record(self, reason: str) -> bool:
        if reason:
            self.run.record("stopping", reason=reason)
        return bool(reason)
