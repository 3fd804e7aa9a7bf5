"""Hard money: every call is reserved against the budget before it is made.

A call's cost is unknown until it returns, so each kind of call is estimated by the mean of what it has cost so far
(the first ones by a bound computed from the request). What is reserved plus what is spent never passes a limit, so a
budget is overshot at most by the estimation error of the calls in flight. What `hold` names is kept back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from skilltune.errors import BudgetExceeded, UsageError
from skilltune.models import Usage


@dataclass(frozen=True, slots=True)
class Limits:
    """The user's limits; None is no limit. `minutes` counts the wall clock of all lives of the run."""

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None
    minutes: float | None = None


PACED = 20  # calls until the pace of a run can be told
_UNITS = {"usd": "usd", "$": "usd", "token": "tokens", "call": "calls", "minute": "minutes", "min": "minutes"}
_SCALE = {"": 1, "k": 1_000, "m": 1_000_000}


def parse_budget(text: str) -> dict[str, float]:
    """ "5 usd", "$5", "2M tokens, 30 minutes" → {"usd": 5.0, …}. Raises `UsageError`."""
    limits: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.lower().split(","))):
        found = re.fullmatch(r"(\$?)\s*(\d[\d_]*(?:\.\d+)?)\s*([km]?)\s*(usd|tokens?|calls?|minutes?|min|)", part)
        unit = found and found[1] + found[4].rstrip("s")  # both or neither: no unit
        if not found or unit not in _UNITS:
            raise UsageError(
                f'cannot read the budget "{part}": write "5 usd", "2000 calls", "2M tokens" or "30 minutes"'
            )
        if _UNITS[unit] in limits:
            raise UsageError(f'the budget "{text}" limits {_UNITS[unit]} twice')
        limits[_UNITS[unit]] = round(float(found[2]) * _SCALE[found[3]], 9)  # 1.001k is a whole number
    if not limits:
        raise UsageError(
            'the budget is empty: write "5 usd", "2000 calls", "2M tokens" or "30 minutes", or leave it out'
        )
    return limits


@dataclass(slots=True)
class _Kind:
    """What calls of one kind have cost so far, for the next estimate."""

    total: Usage = field(default_factory=Usage)

    def estimate(self, bound: Usage) -> Usage:
        if self.total.calls < 5:
            return bound
        n = self.total.calls
        usd = None if self.total.usd is None else self.total.usd / n
        return Usage(1, self.total.input_tokens // n, self.total.output_tokens // n, usd=usd)


class Budget:
    """Spent, reserved and held, against the limits. `usd` spent is None once an unpriced call was made."""

    def __init__(self, limits: Limits, spent: Usage, elapsed: Callable[[], float] | None = None) -> None:
        """`spent` before this process began; `elapsed` tells the seconds that the run has lived until now."""
        began = time.monotonic()
        self.limits = limits
        self._elapsed = elapsed or (lambda: time.monotonic() - began)
        self.spent = spent
        self._held: dict[str, tuple[int, Usage]] = {}
        self._again = False
        self._reserved = Usage()
        self._kinds: dict[str, _Kind] = {}

    @contextmanager
    def reserve(self, kind: str, bound: Usage) -> Iterator[list[Usage]]:
        """Reserve one call before it is made; append what it really cost to the yielded list.

        `bound` is the caller's upper estimate. Raises `BudgetExceeded` when the call may pass a limit, `UsageError`
        when dollars are limited and this call, or one before it, has no known price.
        """
        self.require_price(kind, bound)
        cost = self._kinds.setdefault(kind, _Kind()).estimate(bound)
        self.check(cost)
        self._reserved = self._reserved + cost
        actual: list[Usage] = []
        try:
            yield actual
        finally:
            self._reserved = minus(self._reserved, cost)
            for usage in actual:
                self.spent = self.spent + usage
                self._kinds[kind].total = self._kinds[kind].total + usage

    def require_price(self, kind: str, bound: Usage) -> None:
        """Raise `UsageError` where dollars are limited and calls of this kind have no known price."""
        if self.limits.usd is not None and bound.usd is None:
            raise UsageError(
                f"the budget is in dollars, but the price of the {kind} model is unknown: state it under "
                f"`[{kind}] price = [input, output]` (dollars per million tokens), or budget in calls or tokens."
            )

    def check(self, cost: Usage) -> None:
        """Raise `BudgetExceeded` if spending `cost` now may pass a limit, over what is reserved and held."""
        after = self.spent + self._reserved + self.held + cost
        for name, limit, value in (
            ("calls", self.limits.calls, after.calls),
            ("tokens", self.limits.tokens, after.tokens),
            ("usd", self.limits.usd, after.usd),
        ):
            if limit is not None and value is None:
                raise UsageError(
                    "the budget is in dollars, but a call of this run had no known price, so what is spent is unknown: "
                    "budget in calls or tokens, or start a fresh run with `price` set for every model."
                )
            if limit is not None and value is not None and value > limit + 1e-9:
                kept = " (part of it is kept for the certificate)" if self.held.calls else ""
                raise BudgetExceeded(
                    f"the next call could pass the budget of {limit:.12g} {name}{kept}; {raise_it(name, limit)}"
                )
        if self.limits.minutes is not None and self._elapsed() + self._held_s() > self.limits.minutes * 60:
            raise BudgetExceeded(
                f"the budget of {self.limits.minutes:g} minutes is used up; {raise_it('minutes', self.limits.minutes)}"
            )

    def spend(self, usage: Usage) -> None:
        """Count what was spent beside reserved calls: attempts that failed."""
        self.spent = self.spent + usage

    def hold(self, kind: str, calls: int, guess: Usage, *, again: bool = False) -> None:
        """Keep back what `calls` calls of a kind will cost: `guess` each until some were made, then their mean. With
        `again` all that is spent until the release is kept back once more."""
        self._held[kind] = (calls, guess)
        self._again = self._again or again

    def release(self) -> None:
        self._held.clear()
        self._again = False

    def _held_s(self) -> float:
        """Seconds that the held calls will take at the pace of this run."""
        return self.held.calls * self._elapsed() / self.spent.calls if self.spent.calls >= PACED else 0.0

    @property
    def held(self) -> Usage:
        """What is kept back, by the present estimate."""
        held = Usage()
        for kind, (calls, guess) in self._held.items():
            one = self._kinds.setdefault(kind, _Kind()).estimate(guess)
            usd = None if one.usd is None else one.usd * calls
            held += Usage(calls, one.input_tokens * calls, one.output_tokens * calls, usd=usd)
        return held + self.spent + self._reserved if self._again else held


def raise_it(name: str, limit: float) -> str:
    """The way on after a limit of the budget."""
    return f"raise it with budget.{name}={2 * limit or 1:.12g} (twice as much) and run the same command to go on"


def minus(total: Usage, part: Usage) -> Usage:
    """What is left of a total without a part of it."""
    usd = None if total.usd is None or part.usd is None else total.usd - part.usd
    return Usage(
        total.calls - part.calls,
        total.input_tokens - part.input_tokens,
        total.output_tokens - part.output_tokens,
        usd=usd,
    )
