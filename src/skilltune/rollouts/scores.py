"""The table of scores of a run. It knows the split of each sample, so every reader names the splits that it reads.

What reaches the optimizer may rest on `on("train")` only: the screen, the choice of candidates, the reasons of
rejections. `on("select")` is for the accept decision and for reselection. A gate cannot read `test` here at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample, SplitName, Splits

Key = tuple[str, str, int]
"""Skill hash, sample id, attempt."""
Seen = Literal["train", "select"]


@dataclass(slots=True)
class Scores:
    """Every scored rollout that this process has requested: score and cost. The journal has the transcript.

    `split_of` maps sample ids to splits; a sample without one is on no split. `metric` is the number that is compared.
    `held` is for the roller, which fills it; readers use the methods.
    """

    split_of: Mapping[str, SplitName] = field(default_factory=dict)
    metric: Callable[[Score], float] = lambda score: score.value
    held: dict[Key, Rollout] = field(default_factory=dict)

    @classmethod
    def of(cls, splits: Splits, metric: Callable[[Score], float]) -> Scores:
        return cls(split_map(train=splits.train, select=splits.select, test=splits.test), metric)

    def __len__(self) -> int:
        """The number of scored rollouts on all splits."""
        return len(self.held)

    def add(self, rollout: Rollout) -> None:
        """Add a scored rollout, without its transcript."""
        cost = Trajectory("", outcome=rollout.outcome, usage=rollout.trajectory.usage)
        self.held[rollout.skill, rollout.sample, rollout.attempt] = replace(rollout, trajectory=cost)

    def on(self, *splits: Seen) -> dict[Key, float]:
        """Every score on samples of these splits, in a fixed order."""
        return {
            key: self.metric(rollout.score)
            for key, rollout in sorted(self.held.items())
            if rollout.score is not None and self.split_of.get(key[1]) in splits
        }

    def one(self, split: Seen, skill: str, sample: str, attempt: int) -> float | None:
        """One score on a sample of this split, None if there is none."""
        rollout = self.held.get((skill, sample, attempt))
        if rollout is None or rollout.score is None or self.split_of.get(sample) != split:
            return None
        return self.metric(rollout.score)

    def missing(self, skill: str, samples: Iterable[Sample], attempts: int = 1) -> int:
        """The number of these rollouts of a skill that this process has not requested, or that have no score."""
        return sum((skill, sample.id, n) not in self.held for sample in samples for n in range(attempts))

    def rollouts(self, *splits: Seen) -> list[Rollout]:
        """The rollouts with a score on samples of these splits, in a fixed order."""
        return [rollout for key, rollout in sorted(self.held.items()) if self.split_of.get(key[1]) in splits]


def split_map(**splits: Iterable[Sample]) -> dict[str, SplitName]:
    """The split of each sample, by its id. The keywords are names of splits."""
    names: Mapping[str, SplitName] = {"train": "train", "select": "select", "test": "test"}
    return {sample.id: names[name] for name, samples in splits.items() for sample in samples}
