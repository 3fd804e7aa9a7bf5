"""Makes the clients and meters of a run. Roles that call one endpoint with one key share its slots."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from skilltune.config import ModelConfig
from skilltune.execute import HERE, Executor
from skilltune.journal.run import Run
from skilltune.metering.budget import Budget
from skilltune.metering.client import Client
from skilltune.metering.meter import Meter
from skilltune.metering.slots import Endpoint
from skilltune.models import Model, Request
from skilltune.models.build import build_model
from skilltune.names import parse_name
from skilltune.usage import Usage


class Clients:
    """The models of a run, each made once, and the meters of everything that costs money.

    `sections` are the run's models. They decide the number of slots of an endpoint and the key that it gets. `hedge` is
    the patience with the target's stragglers (see `Endpoint`), None for no duplicates. `executor` runs the jobs of
    agents. `further` names the further targets.
    """

    def __init__(
        self,
        sections: Sequence[ModelConfig],
        run: Run,
        budget: Budget,
        *,
        hedge: float | None = None,
        executor: Executor = HERE,
        further: Collection[str] = (),
    ) -> None:
        self.run, self.budget, self.executor = run, budget, executor
        self._sections, self._hedge, self._further = tuple(sections), hedge, frozenset(further)
        self._endpoints: dict[tuple[str, str | None], Endpoint] = {}  # a rate limit belongs to a host and a key
        self._models: dict[tuple[object, ...], Model] = {}  # a model in two roles is loaded once

    def client(self, section: ModelConfig, role: str) -> Client:
        """The model of a section, called in a role. Raises `UsageError` for a name that is not a chat model, for a
        missing key, and if the budget is in dollars and the model's price is unknown."""
        made = Client(self._model(section), self.meter(section, role), section.price)
        self.require_price(section, role, made.bound(Request(())))
        return made

    def require_price(self, section: ModelConfig, role: str, bound: Usage) -> None:
        """See `Budget.require_price`. The message says where the price of this section belongs."""
        further = role == "target" and section.model in self._further
        self.budget.require_price(f"{role} {section.model}" if further else role, bound)

    def meter(self, section: ModelConfig, role: str) -> Meter:
        """The account of a role's work at the endpoint of a section."""
        return Meter(self.endpoint(section, role), self.budget, self.run, role)

    def key_env(self, section: ModelConfig) -> str | None:
        """The variable with the key of a section's endpoint, None for the provider's own."""
        return endpoint_key(section, self._sections)

    def endpoint(self, section: ModelConfig, role: str = "target") -> Endpoint:
        """The endpoint of a section. Its slots are the most that a section of this endpoint and key asks for."""
        key = endpoint_key(section, self._sections)
        every = (*self._sections, section)
        sharing = [s for s in every if _same_place(s, section) and endpoint_key(s, self._sections) == key]
        workers, patience = max(s.workers for s in sharing), max(s.max_wait_s for s in sharing)
        hedge = self._hedge if role == "target" else None
        place = parse_name(section.model).endpoint, key
        return self._endpoints.setdefault(place, Endpoint(workers, hedge=hedge, max_wait_s=patience))

    def _model(self, section: ModelConfig) -> Model:
        key = endpoint_key(section, self._sections)
        which = (section.model, section.api, section.timeout_s, section.price, key, section.same_as)
        which = (*which, section.context, section.threads)
        if which not in self._models:
            self._models[which] = build_model(
                section.model,
                api=section.api,
                timeout_s=section.timeout_s,
                price=section.price,
                key_env=key,
                same_as=section.same_as,
                context=section.context,
                threads=section.threads,
            )
        return self._models[which]


def endpoint_key(section: ModelConfig, sections: Sequence[ModelConfig]) -> str | None:
    """The environment variable of the section's key. If the section names none, it shares the variable that other
    sections name for the same endpoint, provided that they agree."""
    if section.key_env is not None:
        return section.key_env
    named = {other.key_env for other in sections if other.key_env and _same_place(other, section)}
    return named.pop() if len(named) == 1 else None


def _same_place(one: ModelConfig, other: ModelConfig) -> bool:
    return bool(one.model and other.model) and parse_name(one.model).endpoint == parse_name(other.model).endpoint
