"""The part of the budget that is kept back for the end of a run: the certificate and the control arms."""

from __future__ import annotations

import math

from skilltune.config import Config
from skilltune.finish.controls import CONTROL_ARMS
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.parts import Parts
from skilltune.samples import Splits
from skilltune.usage import Usage

TYPICAL = 0.4  # of the way from the least to the most calls of a training


def hold_back(s: Parts) -> None:
    """Keep back the cost of the certificate, its judge included, and of the control arms if they are configured. The
    dearest arm takes as much as the training itself."""
    cfg, test = s.cfg.certify, s.splits.test
    draws = (2 + CONTROL_ARMS * cfg.controls) * cfg.attempts
    s.budget.hold("target", draws * len(test), typical_call(s), again=cfg.controls)
    if s.judge is not None and (read := [sample for sample in test if s.env.lines(sample)]):
        sample = max(read, key=lambda sample: len(sample.text))
        guess = s.judge.client.bound(s.judge.request(sample, "", s.env.lines(sample)))
        s.budget.hold("judge", draws * len(read), guess)


def typical_call(s: Parts) -> Usage:
    """A guess at one target call on a test sample, used until calls have been seen. A guess that is too small costs
    little; one that is too large would stop the run before its first call."""
    sample = max(s.splits.test or s.splits.select, key=lambda sample: len(sample.text))
    return s.roll.target.guess(s.skill, s.env.task(sample))


def rest(s: Parts) -> tuple[str, int, Usage]:
    """The target calls that a typical run still takes: the role, their number, and a guess at the cost of one."""
    fewest, most = estimate_calls(s.cfg, s.splits)
    done = s.budget.units("target")
    after = (2 + CONTROL_ARMS * s.cfg.certify.controls) * s.cfg.certify.attempts * len(s.splits.test)
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
    first = min(len(splits.train), cfg.train.batch_size) if cfg.train.patience else len(splits.train)
    fewest = first * cfg.target.attempts * bool(cfg.train.epochs) + select
    twice, rules = select * cfg.gate.calibrate, steps * cfg.train.lr * cfg.train.compact
    fewest += twice
    if cfg.train.confirm and cfg.target.attempts == 1:
        batches *= 2  # each failure once more
    if cfg.gate.policy == "strict":
        most = batches + select * (1 + steps + slow) + slow * 2 * cfg.slow.samples
    else:
        race = cfg.gate.passes * select  # of the candidate; the incumbent was one before, or is the start skill
        most = batches + race + (steps + slow) * (cfg.gate.screen + race) + slow * 2 * cfg.slow.samples
    most += twice + rules * (cfg.train.minibatch_size + 2 * select)
    arms = most + CONTROL_ARMS * test // 2 if cfg.certify.controls else 0
    return fewest, most + test + arms
