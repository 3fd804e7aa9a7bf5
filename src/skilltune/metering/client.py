"""A model behind the budget, the endpoint's window and the retries. Every call is priced and journaled."""

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

DEFAULT_ANSWER_TOKENS = 1024  # assumed length of an answer without a limit, for the first estimates
IMAGE_TOKENS = 1000
LEARNED = "learned"  # event type: a parameter that an endpoint does not support


looking_ahead: ContextVar[Ahead | None] = ContextVar("looking_ahead", default=None)
"""Set in tasks that run speculative calls."""


@dataclass(slots=True)
class Client:
    """Calls a model with a `Request` and returns its priced `Reply`. `role` ("target", …) names the calls in budgets.

    Raises `BudgetExceeded` before a call that may exceed a limit, `InfraError` after the last retry, `InfraStopped` if
    a wait would be too long, and `CallConfigError` at once.
    """

    model: Model
    endpoint: Endpoint
    budget: Budget
    journal: Run
    role: str
    rate: tuple[float, float] | None = None  # dollars per million input and output tokens; overrides the price list
    noted: int = 0  # entries of `model.learned` that are already journaled
    answered: bool = False  # True once this client had an answer; a provider that never answered is not waited for
    kind: str = ""  # name of these calls in budget and journal, if it is not the role

    @property
    def _kind(self) -> str:
        return self.kind or self.role

    async def __call__(self, request: Request) -> Reply:
        """Speculative calls yield to all others at the endpoint.

        A hedged call is billed twice, but the reply reports only one of the two. We count its cost twice, in budget and
        journal.
        """
        bound = self.bound(request)
        under_way: list[tuple[ExitStack, list[Usage]]] = []  # the reservation of each attempt that was sent

        def reserve() -> None:
            stack = ExitStack()
            under_way.append((stack, stack.enter_context(self.budget.reserve(self._kind, bound))))

        def lost(failure: InfraError) -> None:
            """All running attempts have failed."""
            while under_way:
                under_way.pop()[0].close()
                self._failed(failure, bound)

        def attempt(number: int, failure: InfraError | None) -> None:
            """Reserve an attempt when it gets its slot. Raises `BudgetExceeded` if it may not be made."""
            if (ahead := looking_ahead.get()) is not None:
                ahead.begun = True
            reserve()

        try:
            async with self.budget.in_turn(self._kind):
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
            self.journal.record_failure(self._kind, "sent twice: the slower one", reply.usage)
        return reply

    def _failed(self, failure: InfraError, bound: Usage) -> None:
        """Count a failed attempt as a call, in the budget and in the journal.

        If it may have been billed and the cost is unknown, it counts as the estimate of its kind.
        """
        if not failure.reached:
            return
        known = failure.usage or (None if failure.billed else Usage(calls=1))
        usage = known or self.budget.estimate(self._kind, bound)
        self.budget.spend(usage)
        self.journal.record_failure(self._kind, str(failure), usage, estimated=known is None)

    def _named(self, failure: InfraError) -> InfraError:
        """The failure with the full name of the setting to change, such as `target.max_tokens`."""
        key = f"raise {self.role}.max_tokens"
        named = failure.reworded(str(failure).replace(RAISE_LIMIT, key))
        named.systemic = failure.systemic.replace(RAISE_LIMIT, key)
        return named

    def _note_learned(self) -> None:
        """Journal the parameters that the endpoint does not support, each once per run."""
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
        """Upper estimate of a call's cost: 4 characters per token, and the longest answer that the request allows."""
        chars = sum(len(message.text) for message in request.messages)
        images = sum(len(message.images) for message in request.messages)
        usage = Usage(1, chars // 4 + IMAGE_TOKENS * images, request.max_tokens or DEFAULT_ANSWER_TOKENS)
        return replace(usage, usd=price(self.model.name, usage, override=self.rate))

    async def aclose(self) -> None:
        await self.model.aclose()
