"""An event loop whose clock runs only while everybody sleeps: hours of waiting in milliseconds, the same every time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and scheduled:
            self.now = max(self.now, min(timer.when() for timer in scheduled))
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in simulated time; `asyncio.get_running_loop().time` is the clock."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)
