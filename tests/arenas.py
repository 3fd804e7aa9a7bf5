"""A gate's arena over rollouts whose scores are given by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from skilltune.config import GateConfig
from skilltune.gate import Arena, metric_of
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.scores import Scores, split_map
from skilltune.samples import Sample
from skilltune.skill import Skill

START = Skill("# Desk\n\nAnswer.\n")
TRAIN = [Sample(id=f"t{i}", input="q") for i in range(8)]
SELECT = [Sample(id=f"s{i}", input="q") for i in range(16)]
Given = Callable[[str, int], float | None]  # (skill text, number of the sample) → score, None for a call that failed


class Rolls:
    """A roller with given scores; `asked` holds every (skill, sample, attempt) in order, `expected` those announced."""

    def __init__(self, score: Given, metric: Callable[[Score], float] = lambda score: score.value) -> None:
        self.score = score
        self.scores = Scores(split_map(train=TRAIN, select=SELECT), metric)
        self.asked: list[tuple[str, str, int]] = []
        self.expected: list[tuple[str, str, int]] = []

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = ""
    ) -> list[Rollout]:
        rollouts = []
        for sample in samples:
            key = skill.hash, sample.id, attempt
            self.asked.append(key)
            value = self.score(skill.text, int(sample.id[1:]))
            score = None if value is None else Score(value)
            rollouts.append(Rollout(sample.id, skill.hash, attempt, Trajectory(""), score))
            if value is not None:
                self.scores.add(rollouts[-1])
        return rollouts

    def prefetch(self, skill: Skill, samples: Sequence[Sample], attempt: int = 0) -> None:
        self.expected += [(skill.hash, sample.id, attempt) for sample in samples]


def arena(score: Given = lambda text, i: 0.0, **cfg: Any) -> Arena:
    settings = GateConfig(**{"screen": 0, **cfg})
    rolls: Any = Rolls(score, metric_of(settings))
    return Arena(rolls, TRAIN, SELECT, settings, seed=1, max_tokens=2000)


def set_select(place: Arena, samples: Sequence[Sample]) -> None:
    """Let the arena's `select` split hold these samples."""
    place.select = samples
    place.scores.split_of = split_map(train=place.train, select=samples)
