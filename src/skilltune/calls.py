"""A model as the run uses it: within the budget, through its endpoint's window, retried, counted."""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace

from skilltune.budget import Budget
from skilltune.errors import InfraError
from skilltune.models import Model, Reply, Request, Usage
from skilltune.models.endpoint import Ahead, Endpoint
from skilltune.models.prices import price
from skilltune.run import Run

DEFAULT_ANSWER_TOKENS = 1024  # bound of an answer whose length the request leaves open, for the first estimates
IMAGE_TOKENS = 1000


looking_ahead: ContextVar[Ahead | None] = ContextVar("looking_ahead", default=None)
"""Set in a task whose calls are made ahead of their need."""


@dataclass(slots=True)
class Client:
    """Callable with a `Request`, returns the model's priced `Reply`. `role` ("target", …) names it in budgets.

    Raises `BudgetExceeded` before a call that may pass a limit, `InfraError` after the last retry, `CallConfigError`
    at once.
    """

    model: Model
    endpoint: Endpoint
    budget: Budget
    journal: Run
    role: str
    rate: tuple[float, float] | None = None  # dollars per million input and output tokens, over the price list
    answered: bool = False  # has this client ever had an answer? A provider that never answered is not waited for

    async def __call__(self, request: Request) -> Reply:
        """Calls that are made ahead of their need yield to all others at the endpoint. A straggler that was sent twice
        is paid twice, as far as anybody can tell: the reply tells the cost of one, budget and journal count both."""
        bound = self.bound(request)
        with ExitStack() as reserved:
            spent: list[list[Usage]] = []

            def reserve() -> None:
                spent.append(reserved.enter_context(self.budget.reserve(self.role, bound)))

            reserve()
            try:
                reply = await self.endpoint.call(
                    self.model,
                    request,
                    role=self.role,
                    ahead=looking_ahead.get(),
                    on_attempt=self._attempt,
                    on_hedge=reserve,
                )
            except InfraError as failure:
                for _ in spent:
                    self._failed(failure)
                raise
            self.answered = True
            for call in spent:
                call.append(reply.usage)
            if len(spent) > 1:
                self.journal.fail(self.role, "sent twice: the slower one", reply.usage)
        return reply

    def _attempt(self, number: int, failure: InfraError | None) -> None:
        """Told before every attempt how the one before it failed; raises `BudgetExceeded` if it may not be made."""
        if (ahead := looking_ahead.get()) is not None:
            ahead.begun = True
        if failure is not None:
            self._failed(failure)
            self.budget.check(Usage())  # the next attempt is what the reservation stands for

    def _failed(self, failure: InfraError) -> None:
        """A failed attempt may have been billed: it counts as a call, in this life of the run and in the next."""
        if not failure.reached:
            return
        self.budget.spend(failure.usage or Usage(calls=1))
        self.journal.fail(self.role, str(failure), failure.usage)

    def bound(self, request: Request) -> Usage:
        """What the call costs at most, judged from the request: 4 characters a token, the answer at its bound."""
        chars = sum(len(message.text) for message in request.messages)
        images = sum(len(message.images) for message in request.messages)
        usage = Usage(1, chars // 4 + IMAGE_TOKENS * images, request.max_tokens or DEFAULT_ANSWER_TOKENS)
        return replace(usage, usd=price(self.model.name, usage, override=self.rate))

    async def aclose(self) -> None:
        await self.model.aclose()
