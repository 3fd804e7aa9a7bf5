"""Calls of a model through an endpoint, without a budget."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

from skilltune.metering.slots import Endpoint
from skilltune.models import Model, Reply, Request


def send(
    endpoint: Endpoint, model: Model, request: Request, *, role: str = "target", **options: Any
) -> Coroutine[Any, Any, Reply]:
    return endpoint.run(role, partial(model.complete, request), **options)
