"""One scheduler for all work at one endpoint. It decides how many run at once, which is next, and which are retried.

Callers share three things:
- The *window* limits the calls at once. It follows the endpoint by additive increase and multiplicative decrease, which
  converges to a fair share of an unknown limit (Chiu & Jain 1989). It is not halved if half the load is refused as
  often, because then the load is not the cause and halving would only cost time.
- The *pause* stops all callers after a full window of refusals, so that they do not each discover the same limit.
- The *turn* goes round the roles, so that thousands of queued target calls do not delay one optimizer call.

Providers themselves never retry.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from skilltune.aio import background
from skilltune.errors import InfraError, InfraStopped, UnreachableError
from skilltune.limits import MAX_WAIT_S
from skilltune.models.retry import RateLimited, RetryPolicy, TimedOut, clock_time, span

DEAD_S = 8.0  # time after which an endpoint that never responded is given up
HOPELESS = 100  # failed attempts by all callers after which an endpoint that never gave a good answer is given up
STRAGGLER = 3.0  # recommended value of `hedge`
LATENCIES = 50, 10  # latencies that the median uses: (at most, at least)
CALM_S = 0.02  # time without needed calls before a speculative call gets a slot
IN_A_ROW = 6  # refusals in a row (or a full window, if that is more) that are not chance
ENOUGH = 16.0  # fewest answers from which a share of refusals is estimated
DISCOUNT = 64  # time constant, in answers, of the exponentially weighted share of refusals
LONG_WAIT_S = 5.0  # shorter waits are not reported, and not ended early

T = TypeVar("T")
Work = Callable[[], Awaitable[T]]
"""One call of a model, or one rollout of an agent. A retry or a duplicate calls it again."""

OnAttempt = Callable[[int, InfraError | None], None]
"""Called before every attempt with its number (0, 1, …) and the previous failure. An exception ends the call."""

OnFailure = Callable[[InfraError], None]
"""Called as soon as an attempt has failed."""

OnWait = Callable[[float, InfraError], None]
"""Called with the seconds and the refusal, for each wait that is long enough to report."""

OnHedge = Callable[[], None]
"""Called before a duplicate of a running call is sent. If it raises, the duplicate is not sent."""


@dataclass(slots=True, eq=False)
class Ahead:
    """A speculative call. `begun` is set when it is sent (and so paid for), `wanted` when a caller needs its result."""

    begun: bool = False
    wanted: bool = False
    promotions: set[Callable[[], None]] = field(default_factory=set)  # one for each line that it waits in

    def want(self) -> None:
        """Mark the call as needed. From now on it queues like any other call."""
        self.wanted = True
        for promote in tuple(self.promotions):
            promote()


_Place = asyncio.Future[None]  # a caller's place in a line; the result means that it has a slot
_Line = OrderedDict[_Place, None]  # first in, first out; leaving it is O(1)


class Endpoint:
    """Runs at most `workers` calls at once, and retries `InfraError` only. Make one per `Name.endpoint`.

    The window starts at `workers`. A `RateLimited` halves it (not below 1), and each window of good answers adds about
    one. A call that was sent before the last halving does not halve the window again. Neither does a refusal if half
    the window was refused as often, unless most calls are refused.

    Waits are bounded. No wait begins that would end more than `max_wait_s` seconds after the first refusal since the
    last good answer. A daily quota is waited for only if the endpoint says when it resets, and at most once per call.
    Instead of a longer wait the endpoint closes: this call and all others raise `InfraStopped`, which says when to run
    again.

    With `hedge`, a call that takes longer than `hedge` times the median latency of its role is sent a second time as
    soon as a slot is idle, and the first good answer counts. None turns hedging off at no cost.

    `draw` returns uniform numbers in [0, 1). `sleep` and `clock` (seconds, monotonic) are parameters for tests.
    """

    def __init__(
        self,
        workers: int,
        policy: RetryPolicy | None = None,
        *,
        hedge: float | None = None,
        max_wait_s: float = MAX_WAIT_S,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if hedge is not None and not hedge >= 1:
            raise ValueError(f"hedge must be None or at least 1, got {hedge}")
        self.policy = policy or RetryPolicy()
        self._workers, self._hedge, self._max_wait_s = workers, hedge, max_wait_s
        self._draw, self._sleep, self._clock = draw, sleep, clock
        self._window, self._halvings, self._taken = float(workers), 0, 0
        self._before = self._window  # size of the window before the last halving
        self._in_a_row = 0  # refusals since the last good answer
        self._answers: dict[int, tuple[float, float]] = {}  # discounted (good, refused) counts, by size of the window
        self._lines: dict[str, _Line] = {}  # by role, never empty; the first one has the next turn
        self._speculative: _Line = OrderedDict()
        self._needed_until = float("-inf")  # when the last needed call left its slot
        self._filling: asyncio.Task[None] | None = None  # exists while speculative calls wait for a free slot
        self._opens_at = float("-inf")
        self._opening: asyncio.Task[None] | None = None  # exists while callers wait for the end of a pause
        self._asked_at: float | None = None
        self._responded = False  # True once the endpoint responded, even with an error
        self._failures = 0  # attempts before the first good answer; not counted after it
        self._latencies: dict[str, deque[float]] = {}  # latencies of the last answers in seconds, by role
        self._refused_since: float | None = None  # time of the first refusal since the last good answer
        self._reported_until = float("-inf")  # end of the last reported wait
        self._closed = ""  # the reason why the endpoint is closed
        self._closing = asyncio.Event()

    @property
    def window(self) -> int:
        """Number of calls that may be under way now, from 1 to `workers`."""
        return int(self._window)

    async def run(
        self,
        role: str,
        work: Work[T],
        *,
        ahead: Ahead | None = None,
        on_attempt: OnAttempt | None = None,
        on_hedge: OnHedge | None = None,
        on_failure: OnFailure | None = None,
        on_wait: OnWait | None = None,
    ) -> T:
        """Return the first good result of `work`. Each attempt takes one slot, from its start to its end.

        Raises the last `InfraError` with the number of attempts, `InfraStopped` if the wait would be too long, and any
        other error of the work at once. Cancelling ends a wait or a running attempt immediately.

        Waiting roles are served in turn, each with its oldest call first. A speculative call (`ahead`) gets a slot only
        if no other call waits, until it is wanted. No slot is held between two attempts.

        If the endpoint has never responded, no attempt begins that would end later than `DEAD_S` (if it takes as long
        as the last one), and all waiting calls fail too. The same holds after `HOPELESS` attempts without any good
        answer.
        """
        attempt, alike, failure = 0, 0, None
        while True:
            if self._closed:
                raise InfraStopped(self._closed)
            await self._enter(role, ahead)
            began = self._clock()
            self._asked_at = began if self._asked_at is None else self._asked_at
            try:
                if on_attempt is not None:
                    on_attempt(attempt, failure)
                patience = None if attempt or ahead else self._patience(role)
                if patience is None:
                    return await self._try(role, work)
                return await self._hedged(role, work, patience, on_hedge)
            except InfraError as error:
                alike = alike + 1 if failure is not None and failure.systemic == error.systemic else 1
                again = isinstance(failure, RateLimited) and failure.daily
                failure, now = error, self._clock()
                if on_failure is not None:
                    on_failure(error)
                delay = self.policy.delay(attempt, self._draw(), error)
                if (why := self._excessive_wait(role, error, delay, now, again)) is not None:
                    self._close(why)
                    raise InfraStopped(why) from error
                if isinstance(error, RateLimited) and self._all_refused:
                    self._pause(delay)
                dead = not self._responded and now + delay + (now - began) > self._asked_at + DEAD_S
                self._failures += self._failures >= 0
                dead = dead or self._failures >= HOPELESS
                if dead:
                    self._turn_away(type(error), f"{error} (not tried: the endpoint has never given a good answer)")
            finally:
                self._leave(ahead)
            attempt += 1
            if dead or attempt >= self.policy.attempts or (failure.attempts is not None and alike >= failure.attempts):
                tries = f" (gave up after {attempt} attempt{'s' * (attempt > 1)})"
                if failure.attempts == 1 or "(gave up after " in str(failure):  # said already, by a call of the work
                    tries = ""
                raise failure.reworded(f"{failure}{tries}") from failure
            if delay >= LONG_WAIT_S and on_wait is not None and now >= self._reported_until:
                self._reported_until = now + delay
                on_wait(delay, failure)
            await self._rest(delay)

    async def _try(self, role: str, work: Work[T]) -> T:
        """One attempt, in a slot that the caller holds. Its outcome adjusts the window."""
        halvings, began, size = self._halvings, self._clock(), self._size
        try:
            result = await work()
        except InfraError as error:
            self._responded = self._responded or not isinstance(error, UnreachableError | TimedOut)
            if isinstance(error, RateLimited):
                self._in_a_row += 1
                self._count(size, refused=True)
                if halvings == self._halvings:
                    self._maybe_halve(size)
            raise
        self._responded, self._failures, self._in_a_row, self._refused_since = True, -HOPELESS, 0, None
        self._count(size, refused=False)
        self._window = min(self._workers, self._window + 1 / self._window)
        if self._hedge is not None:
            self._latencies.setdefault(role, deque(maxlen=LATENCIES[0])).append(self._clock() - began)
        return result

    # -- bounded waits

    def _excessive_wait(self, role: str, error: InfraError, delay: float, now: float, again: bool) -> str | None:
        """The message for the user if the wait after this refusal would be too long, else None.

        `again` is True if this call has already waited for a daily quota.
        """
        if not isinstance(error, RateLimited) and error.retry_after is None:
            return None
        self._refused_since = now if self._refused_since is None else self._refused_since
        stated, limit = error.retry_after, self._max_wait_s
        setting = f"{role}.max_wait_s = {limit:g}"
        kept = "All paid answers are kept"
        if isinstance(error, RateLimited) and error.daily and (stated is None or again):
            return (
                f"{error}\nA daily quota is used up, and the endpoint does not say when it resets. {kept}: run "
                "the same command again tomorrow, or name another model or key"
            )
        if stated is not None and stated > limit:
            return (
                f"{error}\nIt asks for a wait of {span(stated)}, longer than the limit ({setting}). {kept}: run "
                f"the same command again after {clock_time(stated)} (local time)"
            )
        if now + (delay if stated is None else stated) > self._refused_since + limit:
            return (
                f"{error}\nNo good answer has come for {span(now - self._refused_since)}, and the next try would pass "
                f"the limit ({setting}). {kept}: run the same command again after {clock_time(delay)} (local "
                "time)"
            )
        return None

    def _close(self, why: str) -> None:
        """Stop making calls. All callers that wait for a slot or a retry get the reason."""
        self._closed = why
        self._closing.set()
        self._turn_away(InfraStopped, why)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but wake up when the endpoint closes."""
        if seconds < LONG_WAIT_S:
            await self._sleep(seconds)
            return

        async def rested() -> None:
            await self._sleep(seconds)

        async def closed() -> None:
            await self._closing.wait()

        ends = [background(rested()), background(closed())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    # -- share of refusals

    @property
    def _size(self) -> int:
        """The size of the window in half octaves: 1 call is 0, 2 calls are 2, 16 to 22 calls are 8."""
        return int(2 * math.log2(self.window))

    def _count(self, size: int, *, refused: bool) -> None:
        """Record the answer to a call that began at this size of the window."""
        good, bad = (count * (1 - 1 / DISCOUNT) for count in self._recent(size))
        self._answers[size] = good + (not refused), bad + refused

    def _recent(self, *sizes: int) -> tuple[float, float]:
        """Discounted (good, refused) counts at these sizes of the window."""
        known = [self._answers.get(size, (0.0, 0.0)) for size in sizes]
        return sum(good for good, _ in known), sum(bad for _, bad in known)

    @property
    def _all_refused(self) -> bool:
        """True if a whole window of calls was refused, because of the load or a shared limit."""
        return self._in_a_row >= max(IN_A_ROW, self._window)

    def _maybe_halve(self, size: int) -> None:
        """After a refusal at this size of the window, halve the window if calls are refused less often at half the
        size.

        If that is unknown, the effect of the last halving decides, and a halving without effect is undone. The first
        halving is always tried.
        """
        here, half, twice = self._recent(size), self._recent(size - 3, size - 2), self._recent(size + 2, size + 3)
        more = twice if any(twice) else self._recent(size + 1)
        fewer, helped = _eased(half, here), _eased(here, more) if any(more) else True
        most = here[1] > max(ENOUGH, sum(here) + self._taken) / 2  # running calls count as good: refusals are faster
        if self._all_refused or most or (helped if fewer is None else fewer):
            self._before, self._window, self._halvings = self._window, max(1.0, self._window / 2), self._halvings + 1
            self._answers = {known: counts for known, counts in self._answers.items() if known >= size}
        elif helped is False:
            self._window = max(self._window, self._before)

    # -- hedging

    def _patience(self, role: str) -> float | None:
        """Seconds after which a call of this role is hedged. None if hedging is off or too few latencies are known."""
        took = self._latencies.get(role, ())
        return None if self._hedge is None or len(took) < LATENCIES[1] else self._hedge * statistics.median(took)

    async def _hedged(self, role: str, work: Work[T], patience: float, on_hedge: OnHedge | None) -> T:
        """Like `_try`, but a duplicate waits for an idle slot after `patience` seconds. The slower one is cancelled."""
        sent = False

        async def duplicate() -> T:
            nonlocal sent
            await self._enter(role, Ahead())
            try:
                if on_hedge is not None:
                    on_hedge()
                sent = True
                return await self._try(role, work)
            finally:
                self._leave()

        asked = [first := background(self._try(role, work))]
        try:
            await asyncio.wait(asked, timeout=patience)
            if not first.done():
                asked.append(background(duplicate()))
            waiting = set(asked)
            while first in waiting or (sent and waiting):  # a failure does not wait for an unsent duplicate
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in asked:
                    if task in done and not task.exception():
                        return task.result()
            return first.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    # -- slots

    async def _enter(self, role: str, ahead: Ahead | None) -> None:
        """Wait for a slot and take it. Raises the endpoint's failure if it is given up or closed meanwhile."""
        place: _Place = asyncio.get_running_loop().create_future()

        def promote() -> None:
            if self._speculative.pop(place, place) is None:
                self._lines.setdefault(role, OrderedDict())[place] = None
                self._hand_out()

        if ahead is None or ahead.wanted:
            self._lines.setdefault(role, OrderedDict())[place] = None
        else:
            self._speculative[place] = None
            ahead.promotions.add(promote)
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                for line in (self._speculative, self._lines.get(role, {})):
                    line.pop(place, None)
                if not self._lines.get(role, True):
                    del self._lines[role]
                self._stop_waiting()
            elif place.exception() is None:
                self._leave()  # the slot was assigned just before the cancellation
            raise
        finally:
            if ahead is not None:
                ahead.promotions.discard(promote)

    def _leave(self, ahead: Ahead | None = None) -> None:
        self._taken -= 1
        if ahead is None or ahead.wanted:
            self._needed_until = self._clock()
        self._hand_out()

    def _hand_out(self) -> None:
        """Assign free slots to waiting calls, now or at the end of the pause."""
        if self._opening is None and self._opens_at > self._clock() and (self._lines or self._speculative):
            self._opening = background(self._open())
        while self._opening is None and (place := self._next()) is not None:
            self._taken += 1
            place.set_result(None)
        if self._spare and self._clock() - self._needed_until >= CALM_S:
            self._give_away()
        elif self._spare and self._filling is None:
            self._filling = background(self._fill())

    @property
    def _spare(self) -> bool:
        """True if there is a slot that only a speculative call can use now."""
        open_to_all = self._opening is None and self._taken < self.window
        return bool(self._speculative) and not self._lines and open_to_all

    def _give_away(self) -> None:
        while self._spare:
            place, _ = self._speculative.popitem(last=False)
            if not place.done():  # else cancelled just now
                self._taken += 1
                place.set_result(None)

    async def _fill(self) -> None:
        """Assign slots to speculative calls `CALM_S` after the last needed call.

        The calls of a batch often end together, and the next batch is requested a moment later. Without the delay it
        would wait for speculative calls.
        """
        while self._spare and (wait := self._needed_until + CALM_S - self._clock()) > 0:
            began = self._clock()
            await self._sleep(wait)
            if self._clock() - began > wait + CALM_S:  # the event loop was busy, so callers could not queue
                self._needed_until = self._clock()
        self._filling = None
        self._give_away()

    def _next(self) -> _Place | None:
        """Take the next caller out of its line. None if nobody waits or no slot is free."""
        while self._lines and self._taken < self.window:
            role, line = next(iter(self._lines.items()))
            place, _ = line.popitem(last=False)
            del self._lines[role]
            if line:
                self._lines[role] = line  # behind the others
            if not place.done():  # else cancelled just now
                return place
        return None

    def _turn_away(self, kind: type[Exception], why: str) -> None:
        """Raise an error in all callers that wait for a slot."""
        for line in (*self._lines.values(), self._speculative):
            for place in line:
                if not place.done():
                    place.set_exception(kind(why))
            line.clear()
        self._lines.clear()
        self._stop_waiting()

    # -- the pause

    def _pause(self, seconds: float) -> None:
        self._opens_at = max(self._opens_at, self._clock() + seconds)

    async def _open(self) -> None:
        while (wait := self._opens_at - self._clock()) > 0:  # a running call may have prolonged it
            await self._sleep(wait + self._draw() * self.policy.base_s)  # jitter, because other processes wait too
        self._opening = None
        self._hand_out()

    def _stop_waiting(self) -> None:
        if self._filling is not None and not self._speculative:
            self._filling.cancel()
            self._filling = None
        if self._opening is not None and not self._lines and not self._speculative:
            self._opening.cancel()
            self._opening = None


def _eased(less: tuple[float, float], more: tuple[float, float]) -> bool | None:
    """True if calls are clearly refused less often at the smaller of two window sizes, given (good, refused) counts.

    Clearly means half the share of refusals, or 1.5 times the share of good answers. Beyond a limit on concurrent
    calls, halving doubles the share of good answers. Returns None if the smaller size has too few answers.
    """
    if sum(less) < ENOUGH or not any(more):
        return None
    here, there = ((bad + 0.5) / (good + bad + 1) for good, bad in (less, more))
    return here <= there / 2 or 1 - here >= 1.5 * (1 - there)
