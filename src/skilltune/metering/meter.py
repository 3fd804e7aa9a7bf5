"""Meters one unit of work: a slot at the endpoint, a reservation in the budget, retries, and the account of failures.

A unit is one call of a model, or one rollout of an agent that makes any number of calls. It is reserved once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

from skilltune.errors import CallError, InfraError
from skilltune.journal.run import Run
from skilltune.metering.budget import Budget
from skilltune.metering.slots import Ahead, Endpoint
from skilltune.models.reading import RAISE_LIMIT
from skilltune.models.retry import clock_time
from skilltune.usage import Usage

looking_ahead: ContextVar[Ahead | None] = ContextVar("looking_ahead", default=None)
"""Set in tasks that run speculative work."""


class Billed(Protocol):
    """A result that states its cost."""

    @property
    def usage(self) -> Usage: ...


B = TypeVar("B", bound=Billed)


@dataclass(slots=True)
class Meter:
    """Runs units of work of one role ("target", …) within the budget.

    Raises `BudgetExceeded` before a unit that may exceed a limit, `InfraError` after the last retry, `InfraStopped` if
    a wait would be too long, and other errors of the work at once.
    """

    endpoint: Endpoint
    budget: Budget
    journal: Run
    role: str
    kind: str = ""  # name of these units in budget and journal, if it is not the role

    async def __call__(self, work: Callable[[], Awaitable[B]], bound: Usage) -> B:
        """Run `work`, and again after an `InfraError`. `bound` is the upper estimate of its cost.

        Speculative units yield to all others at the endpoint. A hedged unit is billed twice, but its result reports
        only one of the two. We count its cost twice, in budget and journal.
        """
        kind = self.kind or self.role
        under_way: list[tuple[ExitStack, list[Usage]]] = []  # the reservation of each attempt that was sent

        def reserve() -> None:
            stack = ExitStack()
            under_way.append((stack, stack.enter_context(self.budget.reserve(kind, bound))))
            stack.enter_context(self.journal.under_way.call(self.role))

        def lost(failure: InfraError) -> None:
            """All running attempts have failed."""
            while under_way:
                under_way.pop()[0].close()
                self._failed(kind, failure, bound)

        def attempt(number: int, failure: InfraError | None) -> None:
            """Reserve an attempt when it gets its slot. Raises `BudgetExceeded` if it may not be made."""
            if (ahead := looking_ahead.get()) is not None:
                ahead.begun = True
            reserve()

        try:
            async with self.budget.in_turn(kind):
                result = await self.endpoint.run(
                    self.role,
                    work,
                    ahead=looking_ahead.get(),
                    on_attempt=attempt,
                    on_hedge=reserve,
                    on_failure=lost,
                    on_wait=self._waits,
                )
            for _, spent in under_way:
                spent.append(result.usage)
        except InfraError as failure:
            raise self._named(failure) from failure
        except CallError as failure:
            if failure.usage is not None:  # the work ended early, and the endpoint billed it
                self._count(kind, str(failure), failure.usage)
            raise
        finally:
            for stack, _ in under_way:
                stack.close()
        if len(under_way) > 1:
            self.journal.record_failure(kind, "sent twice: the slower one", result.usage)
        return result

    def _failed(self, kind: str, failure: InfraError, bound: Usage) -> None:
        """Count a failed attempt as a call, in the budget and in the journal.

        If it may have been billed and the cost is unknown, it counts as the guess of whoever made the call, else as the
        estimate of its kind.
        """
        if not failure.reached:
            return
        known = failure.usage or (None if failure.billed else Usage(calls=1))
        usage = known or failure.guess or self.budget.estimate(kind, bound)
        self._count(kind, str(failure), usage, estimated=known is None)

    def _count(self, kind: str, why: str, usage: Usage, *, estimated: bool = False) -> None:
        self.budget.spend(usage)
        self.journal.record_failure(kind, why, usage, estimated=estimated)

    def _named(self, failure: InfraError) -> InfraError:
        """The failure with the full name of the setting to change, such as `target.max_tokens`."""
        key = f"raise {self.role}.max_tokens"
        named = failure.reworded(str(failure).replace(RAISE_LIMIT, key))
        named.systemic = failure.systemic.replace(RAISE_LIMIT, key)
        return named

    def _waits(self, seconds: float, failure: InfraError) -> None:
        until = clock_time(seconds)
        self.journal.notify("waiting", purpose=self.role, seconds=round(seconds), why=str(failure), until=until)
