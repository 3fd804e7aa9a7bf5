"""The schedule of a run: the samples of each step, and the number of edits it may apply (the textual learning rate)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skilltune.config import TrainConfig
from skilltune.journal.keys import rng
from skilltune.samples import Sample


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `index` and `epoch` count from 1. `lr` is None if the optimizer names the number of edits itself.
    `upcoming` is the next step's batch; it is empty in the last step."""

    index: int
    epoch: int
    batch: tuple[Sample, ...]
    lr: int | None
    starts_epoch: bool
    ends_epoch: bool
    upcoming: tuple[Sample, ...] = ()

    @property
    def name(self) -> str:
        """The name of the step in the journal."""
        return f"step {self.index}"


def learning_rate(schedule: str, step: int, steps: int, lr: int, lr_min: int) -> int | None:
    """The number of edits allowed at `step` (1…`steps`); None for "autonomous".

    Linear and cosine fall from `lr` to `lr_min`, which the last step reaches.
    """
    if schedule == "constant":
        return lr
    if schedule == "linear":
        return max(lr_min, round(lr + (lr_min - lr) * step / steps))
    if schedule == "cosine":
        return max(lr_min, round(lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * step / steps))))
    return None


def steps_per_epoch(cfg: TrainConfig, samples: int) -> int:
    return math.ceil(samples / cfg.batch_size)


def after_all(cfg: TrainConfig, samples: Sequence[Sample]) -> Step:
    """The step after the last one, at which edits are left out."""
    last = steps_per_epoch(cfg, len(samples)) * cfg.epochs
    return Step(last + 1, cfg.epochs, (), 1, starts_epoch=False, ends_epoch=False)


def schedule(cfg: TrainConfig, samples: Sequence[Sample], seed: int) -> Iterator[Step]:
    """All steps of a run. Each epoch visits every train sample once, in a new random order."""
    per_epoch = steps_per_epoch(cfg, len(samples))
    batches: list[tuple[Sample, ...]] = []
    for epoch in range(1, cfg.epochs + 1):
        order = sorted(samples, key=lambda sample: sample.id)
        rng(seed, "epoch", epoch).shuffle(order)
        batches += [tuple(order[start : start + cfg.batch_size]) for start in range(0, len(order), cfg.batch_size)]
    for index, (batch, upcoming) in enumerate(zip(batches, [*batches[1:], ()], strict=False), start=1):
        yield Step(
            index,
            1 + (index - 1) // per_epoch,
            batch,
            learning_rate(cfg.schedule, index, len(batches), cfg.lr, cfg.lr_min),
            starts_epoch=index % per_epoch == 1 or per_epoch == 1,
            ends_epoch=index % per_epoch == 0,
            upcoming=upcoming,
        )
