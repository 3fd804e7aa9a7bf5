"""TODO."""

from __future__ import annotations

from skilltune.config import Config
from skilltune.finish.controls import CONTROL_ARMS
from skilltune.optimizer.schedule import steps_per_epoch
from skilltune.samples import Splits


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


TYPICAL = 0.4  # of the way from the least to the most calls of a training
