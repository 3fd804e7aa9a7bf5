"""One scheduler for all calls to one endpoint: how many at once, who is next, what is sent again.

Callers share three things. The *window* follows the endpoint: additive increase, multiplicative decrease, which
converges to a fair share of a limit that nobody knows (Chiu & Jain 1989); but refusals that come as often at half the
load are no sign of load, and to halve for them would only cost time. The *pause*: where a whole row of calls is told to
wait, all do, so that sixty workers do not each discover the same limit. The *turn* goes round the roles, so that
thousands of queued target calls do not keep one optimizer call waiting. Providers themselves never retry.
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

from skilltune.aio import background
from skilltune.errors import InfraError, InfraStopped, UnreachableError
from skilltune.limits import MAX_WAIT_S
from skilltune.models import Model, Reply, Request
from skilltune.models.retry import RateLimited, RetryPolicy, TimedOut, clock_time, span

DEAD_S = 8.0  # an endpoint from which nothing ever came is given up rather than asked beyond this
HOPELESS = 100  # attempts in vain, of all callers, after which an endpoint that never gave an answer is given up
STRAGGLER = 3.0  # a good value of `hedge`
SEEN = 50, 10  # the answers whose median counts: so many at most, so many at least
CALM_S = 0.02  # since the last slot was left by a call that was needed, before a speculative call takes one
IN_A_ROW = 6  # refusals, or a window of them if that is more, are no chance
ENOUGH = 16.0  # answers from which the share of refusals at a size of the window can be told
MEMORY = 64  # answers, about, that such a share rests on
SAID_S = 5.0  # a shorter wait is not worth a line, and is not ended early

OnAttempt = Callable[[int, InfraError | None], None]
"""Told before every attempt its number (0, 1, …) and how the one before it failed; to raise is to end the call."""

OnFailure = Callable[[InfraError], None]
"""Told as soon as an attempt has failed."""

OnWait = Callable[[float, InfraError], None]
"""Told of a wait that is worth a line: its seconds and the refusal."""

OnHedge = Callable[[], None]
"""Told before a call is sent once more while it is under way; to raise is not to send it."""


@dataclass(slots=True, eq=False)
class Ahead:
    """A call made ahead of its need; `begun` when it was sent, and so paid for; `wanted` when somebody waits for it."""

    begun: bool = False
    wanted: bool = False
    promotions: set[Callable[[], None]] = field(default_factory=set)  # of its places in lines

    def want(self) -> None:
        """It is needed now: from here on it waits as any other call."""
        self.wanted = True
        for promote in tuple(self.promotions):
            promote()


_Place = asyncio.Future[None]  # in a line; its result is a slot
_Line = OrderedDict[_Place, None]  # first in, first out, and left at no cost


class Endpoint:
    """At most `workers` calls at once, retried on `InfraError` and on nothing else. Make one per `Name.endpoint`.

    The window starts at `workers`, is halved (not below 1) by `RateLimited`, and grows by about one per window of good
    answers. A call that was under way when the window was halved does not halve it again: it tells nothing new. Nor is
    it halved where half of it was refused as often, unless most calls are refused.

    Waits end: none is begun that ends more than `max_wait_s` seconds after the first refusal since the last good
    answer, nor one for a quota of the day. Then the endpoint is closed: this call and all others raise `InfraStopped`,
    which says when to run again.

    With `hedge`, a call that has been under way for longer than `hedge` times the median of its role's last answers is
    sent once more as soon as a slot is idle, and the first good answer counts. Off (None) it costs nothing.

    `draw` gives uniform numbers in [0, 1); `sleep` and `clock` (seconds, monotonic) are parameters for tests.
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
        self._before = self._window  # the last halving
        self._in_a_row = 0  # refusals since the last good answer
        self._answers: dict[int, tuple[float, float]] = {}  # (good, refused) of late, by size of the window
        self._lines: dict[str, _Line] = {}  # by role, none empty; the first one has the next turn
        self._speculative: _Line = OrderedDict()
        self._needed_until = float("-inf")  # when a call that was needed last left its slot
        self._filling: asyncio.Task[None] | None = None  # exists while speculative calls wait to be given one
        self._opens_at = float("-inf")
        self._opening: asyncio.Task[None] | None = None  # exists while somebody waits for the end of a pause
        self._asked_at: float | None = None
        self._heard = False  # did anything ever come back, an error included?
        self._in_vain = 0  # attempts until the first good answer; none is counted after it
        self._took: dict[str, deque[float]] = {}  # seconds of the last answers, by role
        self._dry_since: float | None = None  # the first refusal since the last good answer
        self._told_until = float("-inf")  # the end of the last wait that was told of
        self._closed = ""  # why no call is made any more
        self._closing = asyncio.Event()

    @property
    def window(self) -> int:
        """How many calls may be under way now: 1 to `workers`."""
        return int(self._window)

    async def call(
        self,
        model: Model,
        request: Request,
        *,
        role: str = "target",
        ahead: Ahead | None = None,
        on_attempt: OnAttempt | None = None,
        on_hedge: OnHedge | None = None,
        on_failure: OnFailure | None = None,
        on_wait: OnWait | None = None,
    ) -> Reply:
        """The first good reply. Raises the last `InfraError`, naming the number of attempts, `InfraStopped` for a wait
        that is too long, or at once any other error of the model. Cancelling ends a wait or a running attempt
        immediately.

        Roles that wait are served in turn, each its oldest call first; a call `ahead` of its need, until it is wanted,
        only when no other waits.
        No slot is held between two attempts. Where nothing was ever heard, no attempt is begun that would last beyond
        `DEAD_S` if it took as long as the one before, and with it all that wait are given up; likewise after
        `HOPELESS` attempts of anybody without a single good answer.
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
                    return await self._ask(model, request, role)
                return await self._ask_again(model, request, role, patience, on_hedge)
            except InfraError as error:
                alike = alike + 1 if failure is not None and failure.systemic == error.systemic else 1
                again = isinstance(failure, RateLimited) and failure.daily
                failure, now = error, self._clock()
                if on_failure is not None:
                    on_failure(error)
                delay = self.policy.delay(attempt, self._draw(), error)
                if (why := self._too_long(role, error, delay, now, again)) is not None:
                    self._close(why)
                    raise InfraStopped(why) from error
                if isinstance(error, RateLimited) and self._all_refused:
                    self._pause(delay)
                dead = not self._heard and now + delay + (now - began) > self._asked_at + DEAD_S
                self._in_vain += self._in_vain >= 0
                dead = dead or self._in_vain >= HOPELESS
                if dead:
                    self._turn_away(type(error), f"{error} (not tried: no good answer ever came from there)")
            finally:
                self._leave(ahead)
            attempt += 1
            if dead or attempt >= self.policy.attempts or (failure.attempts is not None and alike >= failure.attempts):
                tries = f" (gave up after {attempt} attempt{'s' * (attempt > 1)})" if failure.attempts != 1 else ""
                raise failure.reworded(f"{failure}{tries}") from failure
            if delay >= SAID_S and on_wait is not None and now >= self._told_until:
                self._told_until = now + delay
                on_wait(delay, failure)
            await self._rest(delay)

    async def _ask(self, model: Model, request: Request, role: str) -> Reply:
        """One attempt, in a slot that the caller holds; what comes of it moves the window."""
        halvings, began, size = self._halvings, self._clock(), self._size
        try:
            reply = await model.complete(request)
        except InfraError as error:
            self._heard = self._heard or not isinstance(error, UnreachableError | TimedOut)
            if isinstance(error, RateLimited):
                self._in_a_row += 1
                self._count(size, refused=True)
                if halvings == self._halvings:
                    self._give_way(size)
            raise
        self._heard, self._in_vain, self._in_a_row, self._dry_since = True, -HOPELESS, 0, None
        self._count(size, refused=False)
        self._window = min(self._workers, self._window + 1 / self._window)
        if self._hedge is not None:
            self._took.setdefault(role, deque(maxlen=SEEN[0])).append(self._clock() - began)
        return reply

    # -- waits end

    def _too_long(self, role: str, error: InfraError, delay: float, now: float, again: bool) -> str | None:
        """Why the wait after this refusal is not begun, in words for the user; None if it may be. `again`: this call
        has waited for a quota of the day before."""
        if not isinstance(error, RateLimited) and error.retry_after is None:
            return None
        self._dry_since = now if self._dry_since is None else self._dry_since
        stated, limit = error.retry_after, self._max_wait_s
        setting = f"{role}.max_wait_s = {limit:g}"
        kept = "What was paid is kept"
        if isinstance(error, RateLimited) and error.daily and (stated is None or again):
            return (
                f"{error}\nA quota of the day is used up, and the answer does not say when it opens again. {kept}: run "
                "the same command again tomorrow, or name another model or key"
            )
        if stated is not None and stated > limit:
            return (
                f"{error}\nIt asks for a wait of {span(stated)}, longer than is waited for ({setting}). {kept}: run "
                f"the same command again after {clock_time(stated)} (local time)"
            )
        if now + (delay if stated is None else stated) > self._dry_since + limit:
            return (
                f"{error}\nNo good answer has come for {span(now - self._dry_since)}, and the next try would be beyond "
                f"what is waited for ({setting}). {kept}: run the same command again after {clock_time(delay)} (local "
                "time)"
            )
        return None

    def _close(self, why: str) -> None:
        """Make no call any more: whoever waits for a slot or for another try is told why."""
        self._closed = why
        self._closing.set()
        self._turn_away(InfraStopped, why)

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not beyond the closing of the endpoint."""
        if seconds < SAID_S:
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

    # -- is it the load?

    @property
    def _size(self) -> int:
        """Of the window, in half octaves: 0 is 1 call, 2 are 2 calls, 8 are 16 to 22."""
        return int(2 * math.log2(self.window))

    def _count(self, size: int, *, refused: bool) -> None:
        """Remember an answer to a call that began when the window had this size."""
        good, bad = (count * (1 - 1 / MEMORY) for count in self._lately(size))
        self._answers[size] = good + (not refused), bad + refused

    def _lately(self, *sizes: int) -> tuple[float, float]:
        """(good, refused) answers of late at these sizes."""
        known = [self._answers.get(size, (0.0, 0.0)) for size in sizes]
        return sum(good for good, _ in known), sum(bad for _, bad in known)

    @property
    def _all_refused(self) -> bool:
        """A whole window of calls was refused: the load, or a limit that all share, is to blame."""
        return self._in_a_row >= max(IN_A_ROW, self._window)

    def _give_way(self, size: int) -> None:
        """After a refusal at this size of the window: halve it, if half of it is refused less often. Where that is not
        known, what the last halving did tells it; one that did nothing is undone. The first is made on trial."""
        here, half, twice = self._lately(size), self._lately(size - 3, size - 2), self._lately(size + 2, size + 3)
        more = twice if any(twice) else self._lately(size + 1)
        fewer, helped = _eased(half, here), _eased(here, more) if any(more) else True
        most = here[1] > max(ENOUGH, sum(here) + self._taken) / 2  # those under way count as good: refusals come sooner
        if self._all_refused or most or (helped if fewer is None else fewer):
            self._before, self._window, self._halvings = self._window, max(1.0, self._window / 2), self._halvings + 1
            self._answers = {known: counts for known, counts in self._answers.items() if known >= size}
        elif helped is False:
            self._window = max(self._window, self._before)

    # -- stragglers

    def _patience(self, role: str) -> float | None:
        """Seconds after which a call of this role is a straggler; None where that cannot be told."""
        took = self._took.get(role, ())
        return None if self._hedge is None or len(took) < SEEN[1] else self._hedge * statistics.median(took)

    async def _ask_again(
        self, model: Model, request: Request, role: str, patience: float, on_hedge: OnHedge | None
    ) -> Reply:
        """As `_ask`; after `patience` seconds a duplicate waits for an idle slot. What is not needed is cancelled."""
        sent = False

        async def duplicate() -> Reply:
            nonlocal sent
            await self._enter(role, Ahead())
            try:
                if on_hedge is not None:
                    on_hedge()
                sent = True
                return await self._ask(model, request, role)
            finally:
                self._leave()

        asked = [first := background(self._ask(model, request, role))]
        try:
            await asyncio.wait(asked, timeout=patience)
            if not first.done():
                asked.append(background(duplicate()))
            waiting = set(asked)
            while first in waiting or (sent and waiting):  # a failure does not wait for a duplicate without a slot
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
        """Wait for a slot and take it. Raises `InfraError` if the endpoint is found dead meanwhile."""
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
                self._leave()  # the slot had just been given
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
        """Give free slots to those who wait, or see to it that it is done when the pause is over."""
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
        """Is there a slot that only a speculative call could use now?"""
        open_to_all = self._opening is None and self._taken < self.window
        return bool(self._speculative) and not self._lines and open_to_all

    def _give_away(self) -> None:
        while self._spare:
            place, _ = self._speculative.popitem(last=False)
            if not place.done():  # else cancelled a moment ago
                self._taken += 1
                place.set_result(None)

    async def _fill(self) -> None:
        """Give slots to speculative calls a moment after the last needed one has ended: where all calls of a batch end
        together, the next batch is asked for a moment later, and would wait for whatever was begun in between."""
        while self._spare and (wait := self._needed_until + CALM_S - self._clock()) > 0:
            began = self._clock()
            await self._sleep(wait)
            if self._clock() - began > wait + CALM_S:  # busy meanwhile: who needs a slot could not say so
                self._needed_until = self._clock()
        self._filling = None
        self._give_away()

    def _next(self) -> _Place | None:
        """Whose turn it is, taken out of the line; None if nobody waits or no slot is free."""
        while self._lines and self._taken < self.window:
            role, line = next(iter(self._lines.items()))
            place, _ = line.popitem(last=False)
            del self._lines[role]
            if line:
                self._lines[role] = line  # behind the others
            if not place.done():  # else cancelled a moment ago
                return place
        return None

    def _turn_away(self, kind: type[Exception], why: str) -> None:
        """Whoever waits for a slot gets an error instead."""
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
        while (wait := self._opens_at - self._clock()) > 0:  # a call under way may have prolonged it meanwhile
            await self._sleep(wait + self._draw() * self.policy.base_s)  # not at the same moment as other processes
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
    """Of the (good, refused) answers at two sizes of the window: is the lesser one clearly refused less, by half, or
    with half as many good ones more? (Beyond a limit on calls at once, halving doubles the share of good answers, or
    leaves no other.) None: too few answers at the lesser one."""
    if sum(less) < ENOUGH or not any(more):
        return None
    here, there = ((bad + 0.5) / (good + bad + 1) for good, bad in (less, more))
    return here <= there / 2 or 1 - here >= 1.5 * (1 - there)
