"""One scheduler for all calls to one endpoint: how many at once, who is next, what is sent again.

Callers share three things. The *window* follows the endpoint: additive increase, multiplicative decrease, which
converges to a fair share of a limit that nobody knows (Chiu & Jain 1989). The *pause*: when one call is told to wait,
all do, so that sixty workers do not each discover the same limit. The *turn* goes round the roles, so that thousands
of queued target calls do not keep one optimizer call waiting. Providers themselves never retry.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from skilltune.errors import InfraError, UnreachableError
from skilltune.models import Model, Reply, Request
from skilltune.models.retry import RateLimited, RetryPolicy, TimedOut

LONGEST_PAUSE_S = 60.0
DEAD_S = 8.0  # an endpoint from which nothing ever came is given up rather than asked beyond this
HOPELESS = 100  # attempts in vain, of all callers, after which an endpoint that never gave an answer is given up
STRAGGLER = 3.0  # a good value of `hedge`
SEEN = 50, 10  # the answers whose median counts: so many at most, so many at least

OnAttempt = Callable[[int, InfraError | None], None]
"""Told before every attempt its number (0, 1, …) and how the one before it failed; to raise is to end the call."""

OnHedge = Callable[[], None]
"""Told before a call is sent once more while it is under way; to raise is not to send it."""

_Place = asyncio.Future[None]  # in a line; its result is a slot
_Line = OrderedDict[_Place, None]  # first in, first out, and left at no cost


class Endpoint:
    """At most `workers` calls at once, retried on `InfraError` and on nothing else. Make one per `Name.endpoint`.

    The window starts at `workers`, is halved (not below 1) by `RateLimited`, and grows by about one per window of good
    answers. A call that was under way when the window was halved does not halve it again: it tells nothing new.

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
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if hedge is not None and not hedge >= 1:
            raise ValueError(f"hedge must be None or at least 1, got {hedge}")
        self.policy = policy or RetryPolicy()
        self.room = 0  # slots that speculative calls leave idle; one of them may always run where nothing else does
        self._workers, self._hedge = workers, hedge
        self._draw, self._sleep, self._clock = draw, sleep, clock
        self._window, self._halvings, self._taken = float(workers), 0, 0
        self._lines: dict[str, _Line] = {}  # by role, none empty; the first one has the next turn
        self._speculative: _Line = OrderedDict()
        self._opens_at = float("-inf")
        self._opening: asyncio.Task[None] | None = None  # exists while somebody waits for the end of a pause
        self._asked_at: float | None = None
        self._heard = False  # did anything ever come back, an error included?
        self._in_vain = 0  # attempts until the first good answer; none is counted after it
        self._took: dict[str, deque[float]] = {}  # seconds of the last answers, by role

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
        speculative: bool = False,
        on_attempt: OnAttempt | None = None,
        on_hedge: OnHedge | None = None,
    ) -> Reply:
        """The first good reply. Raises the last `InfraError`, naming the number of attempts, or at once any other
        error of the model. Cancelling ends a wait or a running attempt immediately.

        Roles that wait are served in turn, each its oldest call first; a `speculative` call only when no other waits.
        No slot is held between two attempts. Where nothing was ever heard, no attempt is begun that would last beyond
        `DEAD_S` if it took as long as the one before, and with it all that wait are given up; likewise after
        `HOPELESS` attempts of anybody without a single good answer.
        """
        attempt, failure = 0, None
        while True:
            await self._enter(role, speculative)
            began = self._clock()
            self._asked_at = began if self._asked_at is None else self._asked_at
            try:
                if on_attempt is not None:
                    on_attempt(attempt, failure)
                patience = None if attempt or speculative else self._patience(role)
                if patience is None:
                    return await self._ask(model, request, role)
                return await self._ask_again(model, request, role, patience, on_hedge)
            except InfraError as error:
                failure, now = error, self._clock()
                delay = self.policy.delay(attempt, self._draw())
                if isinstance(error, RateLimited):  # a limit without a stated wait concerns all callers too
                    self._pause(delay)
                dead = not self._heard and now + delay + (now - began) > self._asked_at + DEAD_S
                self._in_vain += self._in_vain >= 0
                dead = dead or self._in_vain >= HOPELESS
                if dead:
                    self._turn_away(error)
            finally:
                self._leave()
            attempt += 1
            if dead or attempt == self.policy.attempts:
                tries = f"{attempt} attempt{'s' * (attempt > 1)}"
                raise type(failure)(f"{failure} (gave up after {tries})", retry_after=failure.retry_after) from failure
            await self._sleep(delay)

    async def _ask(self, model: Model, request: Request, role: str) -> Reply:
        """One attempt, in a slot that the caller holds; what comes of it moves the window."""
        halvings, began = self._halvings, self._clock()
        try:
            reply = await model.complete(request)
        except InfraError as error:
            self._heard = self._heard or not isinstance(error, UnreachableError | TimedOut)
            if isinstance(error, RateLimited) and halvings == self._halvings:
                self._window, self._halvings = max(1.0, self._window / 2), halvings + 1
            if error.retry_after is not None:
                self._pause(error.retry_after)
            raise
        self._heard, self._in_vain = True, -HOPELESS
        self._window = min(self._workers, self._window + 1 / self._window)
        if self._hedge is not None:
            self._took.setdefault(role, deque(maxlen=SEEN[0])).append(self._clock() - began)
        return reply

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
            await self._enter(role, speculative=True)
            try:
                if on_hedge is not None:
                    on_hedge()
                sent = True
                return await self._ask(model, request, role)
            finally:
                self._leave()

        asked = [first := asyncio.create_task(self._ask(model, request, role))]
        try:
            await asyncio.wait(asked, timeout=patience)
            if not first.done():
                asked.append(asyncio.create_task(duplicate()))
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

    async def _enter(self, role: str, speculative: bool) -> None:
        """Wait for a slot and take it. Raises `InfraError` if the endpoint is found dead meanwhile."""
        place: _Place = asyncio.get_running_loop().create_future()
        line = self._speculative if speculative else self._lines.setdefault(role, OrderedDict())
        line[place] = None
        self._hand_out()
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                line.pop(place, None)
                if not line and self._lines.get(role) is line:
                    del self._lines[role]
                self._stop_waiting()
            elif place.exception() is None:
                self._leave()  # the slot had just been given
            raise

    def _leave(self) -> None:
        self._taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free slots to those who wait, or see to it that it is done when the pause is over."""
        if self._opening is None and self._opens_at > self._clock() and (self._lines or self._speculative):
            self._opening = asyncio.create_task(self._open())
        while self._opening is None and (place := self._next()) is not None:
            self._taken += 1
            place.set_result(None)

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
        while self._speculative and self._taken < max(1, self.window - self.room):
            place, _ = self._speculative.popitem(last=False)
            if not place.done():
                return place
        return None

    def _turn_away(self, failure: InfraError) -> None:
        """Nothing ever came from this endpoint: who waits for it shares the failure."""
        for line in (*self._lines.values(), self._speculative):
            for place in line:
                if not place.done():
                    place.set_exception(type(failure)(f"{failure} (not tried: no good answer ever came from there)"))
            line.clear()
        self._lines.clear()
        self._stop_waiting()

    # -- the pause

    def _pause(self, seconds: float) -> None:
        self._opens_at = max(self._opens_at, self._clock() + min(seconds, LONGEST_PAUSE_S))

    async def _open(self) -> None:
        while (wait := self._opens_at - self._clock()) > 0:  # a call under way may have prolonged it meanwhile
            await self._sleep(wait + self._draw() * self.policy.base_s)  # not at the same moment as other processes
        self._opening = None
        self._hand_out()

    def _stop_waiting(self) -> None:
        if self._opening is not None and not self._lines and not self._speculative:
            self._opening.cancel()
            self._opening = None
