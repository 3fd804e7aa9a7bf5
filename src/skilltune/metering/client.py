"""A model as the run uses it: within the budget, through its endpoint's window, retried, counted."""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace

from skilltune.errors import InfraError
from skilltune.journal.run import Run
from skilltune.metering.budget import Budget
from skilltune.metering.slots import Ahead, Endpoint
from skilltune.models import Model, Reply, Request
from skilltune.models.prices import price
from skilltune.models.reading import RAISE_LIMIT
from skilltune.models.retry import clock_time
from skilltune.usage import Usage

DEFAULT_ANSWER_TOKENS = 1024  # bound of an answer whose length the request leaves open, for the first estimates
IMAGE_TOKENS = 1000
LEARNED = "learned"  # type of the event that says what an endpoint does not know


looking_ahead: ContextVar[Ahead | None] = ContextVar("looking_ahead", default=None)
"""Set in a task whose calls are made ahead of their need."""


@dataclass(slots=True)
class Client:
    """Callable with a `Request`, returns the model's priced `Reply`. `role` ("target", …) names it in budgets.

    Raises `BudgetExceeded` before a call that may pass a limit, `InfraError` after the last retry, `InfraStopped` for a
    wait that is too long, `CallConfigError` at once.
    """

    model: Model
    endpoint: Endpoint
    budget: Budget
    journal: Run
    role: str
    rate: tuple[float, float] | None = None  # dollars per million input and output tokens, over the price list
    noted: int = 0  # of what the model learned of its endpoint, so much is written down
    answered: bool = False  # has this client ever had an answer? A provider that never answered is not waited for

    async def __call__(self, request: Request) -> Reply:
        """Calls that are made ahead of their need yield to all others at the endpoint. A straggler that was sent twice
        is paid twice, as far as anybody can tell: the reply tells the cost of one, budget and journal count both."""
        bound = self.bound(request)
        under_way: list[tuple[ExitStack, list[Usage]]] = []  # the reservation of each attempt that was sent

        def reserve() -> None:
            stack = ExitStack()
            under_way.append((stack, stack.enter_context(self.budget.reserve(self.role, bound))))

        def lost(failure: InfraError) -> None:
            """The attempts under way have failed."""
            while under_way:
                under_way.pop()[0].close()
                self._failed(failure, bound)

        def attempt(number: int, failure: InfraError | None) -> None:
            """Reserve an attempt in the moment that it has its slot; raises `BudgetExceeded` if it may not be made."""
            if (ahead := looking_ahead.get()) is not None:
                ahead.begun = True
            reserve()

        try:
            async with self.budget.in_turn(self.role):
                reply = await self.endpoint.call(
                    self.model,
                    request,
                    role=self.role,
                    ahead=looking_ahead.get(),
                    on_attempt=attempt,
                    on_hedge=reserve,
                    on_failure=lost,
                    on_wait=self._waits,
                )
            for _, spent in under_way:
                spent.append(reply.usage)
        except InfraError as failure:
            raise self._named(failure) from failure
        finally:
            for stack, _ in under_way:
                stack.close()
        self._note_learned()
        self.answered = True
        if len(under_way) > 1:
            self.journal.record_failure(self.role, "sent twice: the slower one", reply.usage)
        return reply

    def _failed(self, failure: InfraError, bound: Usage) -> None:
        """Count a failed attempt as a call, in this life of the run and in the next. What may have been billed at a
        cost that nobody told is counted at the mean of its kind, or at its bound."""
        if not failure.reached:
            return
        known = failure.usage or (None if failure.billed else Usage(calls=1))
        usage = known or self.budget.estimate(self.role, bound)
        self.budget.spend(usage)
        self.journal.record_failure(self.role, str(failure), usage, estimated=known is None)

    def _named(self, failure: InfraError) -> InfraError:
        """The failure with the section of the config in front of the key that it says to change."""
        key = f"raise {self.role}.max_tokens"
        named = failure.reworded(str(failure).replace(RAISE_LIMIT, key))
        named.systemic = failure.systemic.replace(RAISE_LIMIT, key)
        return named

    def _note_learned(self) -> None:
        """Write down, once per run, what the model's endpoint turned out not to know."""
        learned = getattr(self.model, "learned", {})
        if len(learned) > self.noted:
            self.noted = len(learned)
            known = [data for _, _, data in self.journal.events(LEARNED)]
            for what in learned.values():
                event = {"model": self.model.name, "what": what}
                if event not in known:
                    self.journal.record(LEARNED, **event)

    def _waits(self, seconds: float, failure: InfraError) -> None:
        until = clock_time(seconds)
        self.journal.notify("waiting", purpose=self.role, seconds=round(seconds), why=str(failure), until=until)

    def bound(self, request: Request) -> Usage:
        """What the call costs at most, judged from the request: 4 characters a token, the answer at its bound."""
        chars = sum(len(message.text) for message in request.messages)
        images = sum(len(message.images) for message in request.messages)
        usage = Usage(1, chars // 4 + IMAGE_TOKENS * images, request.max_tokens or DEFAULT_ANSWER_TOKENS)
        return replace(usage, usd=price(self.model.name, usage, override=self.rate))

    async def aclose(self) -> None:
        await self.model.aclose()
