"""The part of the budget that is kept back for the certificate, and the calls that a run takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from skilltune.config import Config
from skilltune.gate.priors import DOUBTS, EACH, ROUNDS_AT_END
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.parts import Parts
from skilltune.rollouts.further import kind_of
from skilltune.samples import Splits
from skilltune.usage import Usage

TYPICAL = 0.4  # of the way from the least to the most calls of a training


def hold_back(s: Parts, skills: int = 2) -> None:
    """Keep back the cost of the certificate, its judge included. `skills` is the number of skills that it measures."""
    test, attempts = s.splits.test, skills * s.cfg.certify.attempts
    s.budget.hold("target", attempts * len(test), typical_call(s))
    for other in s.arena.also if test else ():
        sample = max(test, key=lambda sample: len(sample.text))
        guess = other.roll.target.guess(s.skill, s.env.task(sample))
        s.budget.hold(other.roll.kind, attempts * len(test), guess)
    if s.judge is not None and (read := [sample for sample in test if s.env.lines(sample)]):
        sample = max(read, key=lambda sample: len(sample.text))
        guess = s.judge.client.bound(s.judge.request(sample, "", s.env.lines(sample)))
        s.budget.hold("judge", attempts * len(read), guess)


def typical_call(s: Parts) -> Usage:
    """A guess at one target call on a test sample, used until calls have been seen. A guess that is too small costs
    little; one that is too large would stop the run before its first call."""
    sample = max(s.splits.test or s.splits.select, key=lambda sample: len(sample.text))
    return s.roll.target.guess(s.skill, s.env.task(sample))


def rest(s: Parts) -> tuple[str, int, Usage]:
    """The target calls that a typical run still takes: the role, their number, and a guess at the cost of one."""
    fewest, most = estimate_calls(s.cfg, s.splits)
    done = s.budget.units("target")
    after = 2 * s.cfg.certify.attempts * len(s.splits.test)
    training = max(0, fewest - done) + TYPICAL * max(0, most - after - max(done, fewest))
    return "target", math.ceil(training + after), typical_call(s)


def estimate_calls(cfg: Config, splits: Splits) -> tuple[int, int]:
    """(fewest, most) target calls of a whole run: all solved in the first batch (or, without patience, no edit
    ever worth a race), and every candidate raced to the end."""
    steps = steps_per_epoch(cfg.train, len(splits.train)) * cfg.train.epochs
    batches = cfg.train.epochs * len(splits.train) * cfg.target.attempts
    select, test = len(splits.select), 2 * cfg.certify.attempts * len(splits.test)
    looks_back = cfg.slow.enabled and cfg.optimizer.model != "examples"
    slow = max(0, cfg.train.epochs - 1) if looks_back else 0
    first = min(len(splits.train), cfg.train.batch_size) if cfg.train.patience != 0 else len(splits.train)
    fewest = first * cfg.target.attempts * bool(cfg.train.epochs) + select
    twice = select * cfg.gate.calibrate
    fewest += twice
    if cfg.train.confirm and cfg.target.attempts == 1:
        batches *= 2  # each failure once more
    if cfg.gate.policy == "strict":
        most = batches + select * (1 + steps + slow) + slow * 2 * cfg.slow.samples
    else:
        race = cfg.gate.passes * select  # of the candidate; the incumbent was one before, or is the start skill
        most = batches + race + (steps + slow) * (cfg.gate.screen + race) + slow * 2 * cfg.slow.samples
    most += cfg.train.ablation * (ROUNDS_AT_END * DOUBTS * EACH + 2 * select)
    return fewest, most + twice + test


def estimate_elsewhere(cfg: Config, splits: Splits) -> tuple[int, int]:
    """(fewest, most) calls of each further target: only the certificate, and every candidate checked on all of
    `select`, with the input."""
    steps = steps_per_epoch(cfg.train, len(splits.train)) * cfg.train.epochs
    steps += max(0, cfg.train.epochs - 1) * cfg.slow.enabled + cfg.train.ablation
    test, select = 2 * cfg.certify.attempts * len(splits.test), cfg.gate.passes * len(splits.select)
    alone = 1 if cfg.gate.policy == "strict" else 1 + cfg.train.lr  # the edits of a vetoed team, one by one
    return test, test + select * (1 + steps * (1 + alone) * bool(steps))


@dataclass(frozen=True, slots=True)
class Planned:
    """Most calls of a command on a finished run, by role, and their cost at the mean of the run's own calls. `further`
    has the calls of each further target by its name."""

    target: int
    optimizer: int
    cost: Usage
    further: Mapping[str, int] = field(default_factory=dict)


def planned(s: Parts, target: int, optimizer: int = 0, further: Mapping[str, int] | None = None) -> Planned:
    """A plan of so many calls. A role that the run has not paid yet counts as the guess of one target call."""
    further = further or {}

    def cost(kind: str, calls: int) -> Usage:
        paid, total = s.run.paid(kind)
        if not paid:
            paid, total = 1, typical_call(s)
        share = calls / paid
        usd = None if total.usd is None else share * total.usd
        return Usage(calls, round(share * total.input_tokens), round(share * total.output_tokens), usd=usd)

    others = sum((cost(kind_of(name), calls) for name, calls in further.items()), Usage())
    return Planned(target, optimizer, cost("rollout", target) + cost("optimizer", optimizer) + others, further)
