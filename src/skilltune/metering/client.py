"""A model within a run: each call is metered and priced, and options that its endpoint lacks are journaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from skilltune.metering.meter import Meter
from skilltune.models import Model, Reply, Request
from skilltune.models.prices import price
from skilltune.usage import Usage

DEFAULT_ANSWER_TOKENS = 1024  # assumed length of an answer without a limit, for the first estimates
IMAGE_TOKENS = 1000
LEARNED = "learned"  # event type: a parameter that an endpoint does not support


@dataclass(slots=True)
class Client:
    """Calls a model with a `Request` and returns its priced `Reply`. Raises the errors of `Meter`."""

    model: Model
    meter: Meter
    rate: tuple[float, float] | None = None  # dollars per million input and output tokens; overrides the price list
    noted: int = 0  # entries of `model.learned` that are already journaled
    answered: bool = False  # True once this client had an answer; a provider that never answered is not waited for

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def learned(self) -> Mapping[str, str]:
        """Features that the endpoint turned out not to support: parameter → a sentence for the user."""
        return getattr(self.model, "learned", {})

    async def __call__(self, request: Request) -> Reply:
        reply = await self.meter(partial(self.model.complete, request), self.bound(request))
        self.note_learned()
        self.answered = True
        return reply

    def note_learned(self) -> None:
        """Journal the parameters that the endpoint does not support, each once per run."""
        if len(self.learned) > self.noted:
            self.noted = len(self.learned)
            known = [data for _, _, data in self.meter.journal.events(LEARNED)]
            for what in self.learned.values():
                event = {"model": self.name, "what": what}
                if event not in known:
                    self.meter.journal.record(LEARNED, **event)

    def bound(self, request: Request) -> Usage:
        """Upper estimate of a call's cost: 4 characters per token, and the longest answer that the request allows."""
        chars = sum(message.chars for message in request.messages)
        images = sum(len(message.images) for message in request.messages)
        usage = Usage(1, chars // 4 + IMAGE_TOKENS * images, request.max_tokens or DEFAULT_ANSWER_TOKENS)
        return replace(usage, usd=self.usd(usage))

    def usd(self, usage: Usage) -> float | None:
        """The price of a usage in dollars, or None if it is unknown."""
        return price(self.name, usage, override=self.rate)

    async def aclose(self) -> None:
        await self.model.aclose()
