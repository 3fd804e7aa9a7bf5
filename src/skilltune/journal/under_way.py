"""The calls that a process waits for at this moment, so that an observer can show them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

subject: ContextVar[tuple[str, str]] = ContextVar("subject", default=("", ""))
"""The sample and the hash of the skill that the calls of this task are about; empty for calls about neither."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call that was sent and has no answer yet. `since` is the time at which it was sent."""

    role: str
    sample: str
    version: str
    since: float


class UnderWay:
    """The calls under way, the oldest first. Another thread may read them."""

    def __init__(self) -> None:
        self._calls: dict[object, Sent] = {}

    @property
    def calls(self) -> list[Sent]:
        return list(self._calls.values())

    @contextmanager
    def call(self, role: str) -> Iterator[None]:
        """In the block, one call of this role is under way."""
        sample, version = subject.get()
        key = object()
        self._calls[key] = Sent(role, sample, version, time.time())
        try:
            yield
        finally:
            del self._calls[key]
