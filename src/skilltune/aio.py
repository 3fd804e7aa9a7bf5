"""Tasks that may be left behind.

asyncio complains on stderr when a task has failed and nobody asked how it ended. A task that its owner may stop
waiting for (because something else failed first, or because the owner was cancelled) is made here: whoever still
waits for it sees its error, and nobody else does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Coroutine, Iterable
from contextvars import Context
from typing import Any, TypeVar

from skilltune.errors import Stopped

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


async def run_all(coroutines: Iterable[Awaitable] | AsyncIterable[Awaitable]) -> list:
    """Run all at once, results in order; the first error cancels the rest and is raised itself, not in a group.

    Coroutines that become ready one after the other (an async iterable) are started as they come. An ordered stop
    (`Stopped`) is raised only after the rest has ended: what is under way is paid for, so it is let finish and kept.
    """

    async def one(coroutine: Awaitable) -> object:
        try:
            return await coroutine
        except Stopped as stop:
            return stop

    tasks: list[asyncio.Task] = []
    ended: list[object] = []
    try:
        async with asyncio.TaskGroup() as group:
            if isinstance(coroutines, AsyncIterable):
                try:
                    async for coroutine in coroutines:
                        tasks.append(group.create_task(one(coroutine)))
                except Stopped as stop:
                    ended.append(stop)
            else:
                tasks += [group.create_task(one(coroutine)) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    results = [*ended, *(task.result() for task in tasks)]
    for result in results:
        if isinstance(result, Stopped):
            raise result
    return results


def _first(errors: BaseExceptionGroup) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
