"""Tasks that may be left behind.

asyncio complains on stderr when a task has failed and nobody asked how it ended. A task that its owner may stop
waiting for (because something else failed first, or because the owner was cancelled) is made here: whoever still
waits for it sees its error, and nobody else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


def background(
    work: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
) -> asyncio.Task[T]:
    """A task for `work` that may be left behind: its error counts as seen."""
    task = asyncio.get_running_loop().create_task(work, name=name, context=context)
    task.add_done_callback(_seen)
    return task


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
