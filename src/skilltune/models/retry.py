"""Retries and the concurrency window, shared by everybody who calls one endpoint.

The non-obvious part is the *shared* pause: when one call is told to slow down, all callers of the endpoint wait, so
that sixty workers do not each discover the same limit. Providers themselves never retry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from skilltune.errors import InfraError
from skilltune.models import Model, Reply, Request

LONGEST_PAUSE_S = 60.0

OnAttempt = Callable[[int, InfraError | None], None]
"""Told before every attempt its number (0, 1, …) and how the one before it failed; to raise is to end the call."""


class RateLimited(InfraError):
    """The endpoint asks everybody to slow down (429, 529)."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all; before the k-th retry a wait drawn from [0, min(cap_s, base_s · 2^k)] ("full jitter")."""

    attempts: int = 5
    base_s: float = 0.5
    cap_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")

    def delay(self, retry: int, draw: float) -> float:
        return draw * min(self.cap_s, self.base_s * 2.0**retry)


class Endpoint:
    """At most `workers` calls at once, retried on `InfraError` and on nothing else.

    Make one per `Name.endpoint` and share it. `draw` gives uniform numbers in [0, 1); `sleep` and `clock` (seconds,
    monotonic) are parameters for tests.
    """

    def __init__(
        self,
        workers: int,
        policy: RetryPolicy | None = None,
        *,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.policy = policy or RetryPolicy()
        self._slots = asyncio.Semaphore(workers)
        self._opens_at = float("-inf")
        self._draw, self._sleep, self._clock = draw, sleep, clock

    async def call(self, model: Model, request: Request, *, on_attempt: OnAttempt | None = None) -> Reply:
        """The first good reply. Raises the last `InfraError`, naming the number of attempts, or at once any other
        error of the model. Cancelling ends a wait or a running attempt immediately."""
        failure: InfraError | None = None
        for attempt in range(self.policy.attempts):
            if failure is not None:
                await self._back_off(attempt - 1, failure)
            async with self._slots:
                await self._until_open()
                if on_attempt is not None:
                    on_attempt(attempt, failure)
                try:
                    return await model.complete(request)
                except InfraError as error:
                    failure = error
                    self._pause(error.retry_after)
        assert failure is not None
        raise type(failure)(
            f"{failure} (gave up after {self.policy.attempts} attempts)", retry_after=failure.retry_after
        ) from failure

    async def _back_off(self, retry: int, failure: InfraError) -> None:
        delay = self.policy.delay(retry, self._draw())
        if isinstance(failure, RateLimited):  # a limit without a stated wait concerns all callers too
            self._pause(delay)
        await self._sleep(delay)

    def _pause(self, seconds: float | None) -> None:
        if seconds is not None:
            self._opens_at = max(self._opens_at, self._clock() + min(seconds, LONGEST_PAUSE_S))

    async def _until_open(self) -> None:
        while (wait := self._opens_at - self._clock()) > 0:  # another caller may have prolonged it meanwhile
            await self._sleep(wait + self._draw() * self.policy.base_s)  # spread the restart
