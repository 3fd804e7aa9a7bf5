"""Hard budget limits. Every unit of work is reserved against the budget at the moment when it is sent.

A unit is one call to a model, or one rollout of an agent that makes any number of calls. Its cost is unknown until it
ends, so it is estimated by the mean cost of its kind. The first few units are estimated by the larger one of that mean
and a bound that is computed from the request. While no cost of a kind is known, one unit runs alone. Reserved plus
spent never exceeds a limit, so the overshoot is at most the estimation error of the units in flight. The budget that
`hold` sets aside is not available to other calls.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from skilltune.errors import BudgetExceeded, UsageError
from skilltune.limits import Limits
from skilltune.usage import Usage, minus

MIN_PACED_CALLS = 20  # fewest calls from which the pace of a run is estimated
FEW = 5  # below this number of units, the mean cost of a kind may be too low
SPARE = 1.1  # safety factor on expected tokens and dollars that are held back


@dataclass(slots=True)
class _Kind:
    """Costs of one kind of unit so far, for the next estimate."""

    units: int = 0
    total: Usage = field(default_factory=Usage)
    squares: tuple[float, float] = (0.0, 0.0)  # sums of squared tokens and dollars, this process only
    counted: int = 0  # units in `squares`

    def add(self, usage: Usage) -> None:
        tokens, usd = self.squares
        self.squares = tokens + float(usage.tokens) ** 2, usd + (usage.usd or 0.0) ** 2
        self.units, self.counted, self.total = self.units + 1, self.counted + 1, self.total + usage

    def estimate(self, bound: Usage) -> Usage:
        """Estimate of the next unit: the mean cost, but at least the bound for the first `FEW` units."""
        n, total = self.units, self.total
        if not n:
            return bound
        usd = None if total.usd is None else total.usd / n
        mean = Usage(-(-total.calls // n), total.input_tokens // n, total.output_tokens // n, usd=usd)
        return mean if n >= FEW else _larger(mean, bound)

    def expect(self, units: int, guess: Usage) -> Usage:
        """Expected total cost of this many units, with a margin.

        For a new kind, `guess` counts as the cost of the first few units, so that one expensive unit does not stop a
        run.
        """
        unseen = max(0, FEW - self.units)
        n = self.units + unseen
        read, written, calls = (
            (getattr(self.total, name) + unseen * getattr(guess, name)) / n
            for name in ("input_tokens", "output_tokens", "calls")
        )
        usd = None if self.total.usd is None or guess.usd is None else (self.total.usd + unseen * guess.usd) / n
        tokens = units * (read + written)
        more = max((SPARE - 1) * tokens, self._spread(0, units)) / tokens if tokens else 0.0
        if usd is not None:
            usd = units * usd + max((SPARE - 1) * units * usd, self._spread(1, units))
        read, written = (round(units * figure * (1 + more)) for figure in (read, written))
        return Usage(math.ceil(units * calls), read, written, usd=usd)

    def _spread(self, which: int, units: int) -> float:
        """Two standard deviations of the total cost of this many units, estimated from the units of this process."""
        if self.counted < FEW or self.counted != self.units:
            return 0.0
        mean = (self.total.tokens, self.total.usd or 0.0)[which] / self.units
        return 2 * math.sqrt(units * max(0.0, self.squares[which] / self.counted - mean**2))


class Budget:
    """Compares spent, reserved and held costs with the limits. `usd` spent is None after an unpriced call."""

    def __init__(
        self,
        limits: Limits,
        spent: Usage,
        elapsed: Callable[[], float] | None = None,
        *,
        known: Mapping[str, tuple[int, Usage]] | None = None,
    ) -> None:
        """`spent` is the usage before this process. `elapsed` returns the age of the run in seconds.

        `known` maps each kind to (units paid before, their total cost).
        """
        began = time.monotonic()
        self.limits = limits
        self._elapsed = elapsed or (lambda: time.monotonic() - began)
        self.spent = spent
        self._held: dict[str, tuple[int, Usage]] = {}
        self._again = False
        self._reserved = Usage()
        self._kinds = {kind: _Kind(*before) for kind, before in (known or {}).items()}
        self._first: dict[str, asyncio.Event] = {}  # by kind, set when the first unit has ended
        self.rest: Callable[[], tuple[str, int, Usage]] = lambda: ("", 0, Usage())
        """Returns (kind, units, guess per unit): the remaining work of a typical run, certificate included.

        The costs of other kinds are extrapolated per unit of this kind.
        """

    def estimate(self, kind: str, bound: Usage) -> Usage:
        """Estimated cost of the next unit of a kind. `bound` is the caller's upper estimate."""
        return self._kinds.setdefault(kind, _Kind()).estimate(bound)

    def units(self, kind: str) -> int:
        """Number of paid units of a kind."""
        return self._kinds[kind].units if kind in self._kinds else 0

    @asynccontextmanager
    async def in_turn(self, kind: str) -> AsyncIterator[None]:
        """Wraps a unit of work including its wait for a slot.

        If tokens or dollars are limited and no cost of the kind is known, the first unit runs alone and the others
        wait.
        """
        if (first := self._first.get(kind)) is not None:
            await first.wait()
            yield
            return
        first = self._first[kind] = asyncio.Event()
        measured = self.limits.usd is not None or self.limits.tokens is not None
        if not measured or self._kinds.setdefault(kind, _Kind()).units:
            first.set()
        try:
            yield
        finally:
            first.set()

    @contextmanager
    def reserve(self, kind: str, bound: Usage) -> Iterator[list[Usage]]:
        """Reserve one unit of work at the moment when it is sent. The caller appends the actual cost to the yielded
        list.

        `bound` is the caller's upper estimate. Raises `BudgetExceeded` if the unit may exceed a limit. Raises
        `UsageError` if dollars are limited and this unit or an earlier one has no known price.
        """
        self.require_price(kind, bound)
        cost = self.estimate(kind, bound)
        self.check(cost)
        self._reserved = self._reserved + cost
        actual: list[Usage] = []
        try:
            yield actual
        finally:
            self._reserved = minus(self._reserved, cost)
            for usage in actual:
                self.spent = self.spent + usage
                self._kinds[kind].add(usage)

    def require_price(self, kind: str, bound: Usage) -> None:
        """Raise `UsageError` if dollars are limited and calls of this kind have no known price."""
        if self.limits.usd is None or bound.usd is not None:
            return
        role, _, further = kind.partition(" ")
        price = "price = [input, output]"
        where = f'`{{model = "{further}", {price}}}` in place of its name' if further else f"`[{role}] {price}`"
        raise UsageError(
            f"the budget is in dollars, but the price of {further or f'the {role} model'} is unknown: state it as "
            f"{where} (dollars per million tokens), or budget in calls or tokens."
        )

    def check(self, cost: Usage) -> None:
        """Raise `BudgetExceeded` if `cost`, on top of spent, reserved and held, may exceed a limit."""
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
                spent = getattr(self.spent, name)
                larger, how = self._raise_it(name, limit, spent)
                raise BudgetExceeded(f"the next call could pass the budget of {limit:.12g} {name}{kept}; {how}", larger)
        if self.limits.minutes is not None and self._elapsed() + self._held_s() > self.limits.minutes * 60:
            larger, how = self._raise_it("minutes", self.limits.minutes, self._elapsed() / 60)
            raise BudgetExceeded(f"the budget of {self.limits.minutes:g} minutes is used up; {how}", larger)

    def _raise_it(self, name: str, limit: float, spent: float) -> tuple[str, str]:
        """A setting with a limit that lasts for the whole run, as far as that can be estimated, and how to go on."""
        kind, units, guess = self.rest()
        done = self.units(kind)
        one = getattr(self.estimate(kind, guess), name, None) or 0.0
        each = max(one, spent / done) if done >= FEW else one
        enough = SPARE * (spent + units * each)
        if not units or enough <= limit:
            return raise_it(name, limit)
        larger = f"budget.{name}={_round_up(enough)}"
        return larger, (
            f"raise it with {larger} and run the same command to go on: {spent:.4g} are spent, and the rest of a "
            f"typical run takes {units:,} more {kind} calls, its certificate included"
        )

    def spend(self, usage: Usage) -> None:
        """Count costs outside of reservations, such as failed attempts."""
        self.spent = self.spent + usage

    def hold(self, kind: str, calls: int, guess: Usage, *, again: bool = False) -> None:
        """Hold back the expected cost of `calls` units of a kind, with a margin.

        Each unit is expected to cost `guess`, and later the mean of its kind. With `again`, everything that is spent
        until the release is held back a second time.
        """
        self._held[kind] = (calls, guess)
        self._again = self._again or again

    def release(self) -> None:
        self._held.clear()
        self._again = False

    def _held_s(self) -> float:
        """Seconds that the held calls will take at the pace of this run."""
        return self.held.calls * self._elapsed() / self.spent.calls if self.spent.calls >= MIN_PACED_CALLS else 0.0

    @property
    def held(self) -> Usage:
        """Estimated cost of everything that is held back."""
        held = Usage()
        for kind, (units, guess) in self._held.items():
            held += self._kinds.setdefault(kind, _Kind()).expect(units, guess)
        return held + self.spent + self._reserved if self._again else held


def _larger(one: Usage, other: Usage) -> Usage:
    """The maximum of each field."""
    usd = None if one.usd is None or other.usd is None else max(one.usd, other.usd)
    read, written = max(one.input_tokens, other.input_tokens), max(one.output_tokens, other.output_tokens)
    return Usage(max(one.calls, other.calls), read, written, usd=usd)


def _round_up(value: float) -> str:
    """Round up to two digits, in the format of the command line: 1234.5 → "1300", 0.0123 → "0.013"."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    value = math.ceil(value / unit - 1e-9) * unit
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def raise_it(name: str, limit: float) -> tuple[str, str]:
    """A setting with twice the limit, and the advice to go on with it."""
    larger = f"budget.{name}={2 * limit or 1:.12g}"
    return larger, f"raise it with {larger} (twice as much) and run the same command to go on"
