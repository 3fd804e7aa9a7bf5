"""Background tasks, and a gather that cancels the rest on the first error.

asyncio complains on stderr if a task fails and nobody retrieves its exception. An owner may stop waiting for a task,
because something else failed first or because it was cancelled. Such tasks are created here: a caller that still waits
gets the error, and nobody else does.
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
    """Create a task whose exception counts as retrieved, so that its owner may stop waiting for it."""
    task = asyncio.get_running_loop().create_task(work, name=name, context=context)
    task.add_done_callback(_mark_retrieved)
    return task


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def run_all(coroutines: Iterable[Awaitable] | AsyncIterable[Awaitable]) -> list:
    """Run all coroutines at once and return their results in order. The first error cancels the rest and is raised
    without an exception group.

    An async iterable may supply coroutines over time; each is started when it arrives. `Stopped` is raised only after
    all others have ended, because calls under way are paid for and their results are kept.
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
