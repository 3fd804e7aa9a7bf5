"""The ledger of a run as a table: each rule of its best skill, its effect, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from skilltune.config import stored_config
from skilltune.errors import RunError
from skilltune.finish.ledger import Rule, ledger_of
from skilltune.gate import metric_of
from skilltune.journal.run import Run
from skilltune.rollouts.inputs import Pins

WIDTH = 60  # characters of a rule that a row shows


def read_ledger(run: Run, best: str | None) -> list[Rule]:
    """The ledger of the skill with that hash, from the journal alone; also while the run is under way."""
    if best is None or run.config is None:
        raise RunError(f"the run in {run.folder} has no version yet")
    metric = metric_of(stored_config(run.config, run.folder).gate)
    return ledger_of(run, Pins.of(run).rollouts(run), metric, best)


def to_json(rule: Rule) -> dict[str, Any]:
    """The rule with the 95 % interval `low` to `high`. A rule that the data cannot separate from others has the
    interval in `together`, and no effect of its own."""
    low, high = rule.interval
    if rule.together is None:
        return asdict(rule) | {"low": low, "high": high}
    low, high = rule.together.interval
    nothing = dict.fromkeys(("effect", "sd", "low", "high"))
    return asdict(rule) | nothing | {"together": asdict(rule.together) | {"low": low, "high": high}}


ABOUT = (
    "Points that each rule of the best skill adds, estimated from what its screen predicted and from the train and "
    "select samples that were tried with it and without it; a range that holds 0 may be luck. Fixed and broke: train "
    "samples whose score rose or fell by half or more with it."
)
HEADERS = ("rule", "since", "effect, points (95 %)", "train samples", "why")


def row(rule: Rule) -> tuple[str, ...]:
    """The cells of one rule, in the order of `HEADERS`."""
    text = _words(rule)
    text = text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
    moved = f"fixed {rule.fixed}, broke {rule.broken} of {rule.known}" if rule.known else "never seen with and without"
    return (
        text,
        f"version {rule.version}, step {rule.step}",
        _effect(rule),
        moved,
        "; ".join(filter(None, (" ".join(rule.why.split()).rstrip("."), _cited(rule.evidence)))),
    )


def _words(rule: Rule) -> str:
    """The text that the edit brought or, if it brought nothing new, the text that it removed."""
    came, went = ([" ".join(line.split()) for line in part.splitlines()] for part in (rule.text, rule.removed))
    if rule.op != "delete" and (new := " ".join(line for line in came if line not in went).strip()):
        return new
    return "− " + " ".join(line for line in went if rule.op == "delete" or line not in came).strip()


def _effect(rule: Rule) -> str:
    """The effect of a rule. Of rules that the data cannot separate, the first row has the effect of all of them."""
    together = rule.together
    if together is None:
        return _points(rule.effect, rule.interval)
    if rule.key != together.keys[0]:
        return "not separable"
    return f"not separable: {_points(together.effect, together.interval)} for {len(together.keys)} together"


def _points(effect: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * effect:+.1f} ({100 * low:+.1f}…{100 * high:+.1f})"


def _cited(samples: Sequence[str], most: int = 3) -> str:
    """The samples that an edit quoted."""
    more = f" and {len(samples) - most} more" if len(samples) > most else ""
    return f"from {', '.join(samples[:most])}{more}" if samples else ""
