"""Runs a user's code apart from the run: in threads of its own, with a time limit for each call.

A scorer may raise anything, compute forever, block an event loop or change the working directory. None of this may end
or hang the run. Plain functions share one thread and run one after another, so they need not be thread-safe. Awaitable
results are awaited in a separate event loop.

A Python thread cannot be killed. A call that exceeds its limit is abandoned together with its thread, and the next call
gets a new one. All threads are daemons, so they do not keep the process alive. `os._exit` is an error of the call like
`sys.exit`, because its exit code would be taken for the run's. A crash of the interpreter cannot be caught here.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, NoReturn

from skilltune.streams import USERS_THREAD

LIMIT_S = 60.0
AWAITED = 10  # limits that an awaited call may take, because it blocks nobody; blocking the loop is limited to one

limit_s: ContextVar[float] = ContextVar("limit_s", default=LIMIT_S)
"""Time limit of one call, in seconds."""


@dataclass(frozen=True, slots=True)
class Raised:
    """A call ended with this error, of any type."""

    error: BaseException


class TookTooLong(Exception):
    """A call was abandoned at its time limit. The text states the limit."""


async def call_apart(call: Callable[[], Any]) -> Any:
    """The result of a user's function, awaited if it is awaitable; `Raised` if it failed or took too long.

    If the wait is cancelled, a call that has not started is not made; a running call continues, and its result is
    dropped. If another call blocked the event loop of an awaited result, the function is called again.
    """
    while True:
        result = await _called(call, limit_s.get())
        if isinstance(result, Raised) or not inspect.isawaitable(result):
            return result
        result = await _awaited(result, limit_s.get())
        if result is not _LOST:
            return result


# -- plain calls, one after another


@dataclass(slots=True, eq=False)
class _Call:
    run: Callable[[], Any]
    result: Future[Any] = field(default_factory=Future)
    began: float | None = None
    thread: _Worker | None = None


class _Worker:
    """A thread that makes the calls of a queue."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        self.abandoned = False
        Thread(target=self._work, name=USERS_THREAD, daemon=True).start()

    def _work(self) -> None:
        while not self.abandoned:
            call = self.calls.get()
            if not call.result.set_running_or_notify_cancel():
                continue
            call.thread, call.began = self, time.monotonic()
            call.result.set_result(_contained(call.run))


_workers: list[_Worker] = []  # the current one; empty before the first call


@functools.cache
def _contain_exit() -> None:
    """Let `os._exit` raise SystemExit in a thread of a user's calls. A process that was forked there really ends."""
    end, process = os._exit, os.getpid()

    def exit_or_raise(status: int) -> NoReturn:
        if os.getpid() == process and current_thread().name == USERS_THREAD:
            raise SystemExit(status)
        end(status)

    os._exit = exit_or_raise


def _worker() -> _Worker:
    _contain_exit()
    if not _workers:
        _workers.append(_Worker())
    return _workers[0]


def _abandon(worker: _Worker) -> None:
    """Move the calls that wait for a worker to a new one."""
    if worker.abandoned:
        return
    worker.abandoned = True
    _workers[:] = [_Worker()]
    with suppress(Empty):
        while True:
            _workers[0].calls.put(worker.calls.get_nowait())


def _contained(run: Callable[[], Any]) -> Any:
    """The result of a call, or the error that it raised. Restores the working directory."""
    place = _working_directory()
    try:
        return run()
    except BaseException as error:  # SystemExit too: it would end the thread and leave all others waiting
        return Raised(error)
    finally:
        if place != _working_directory():
            with suppress(OSError):
                os.chdir(place)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


async def _called(run: Callable[[], Any], limit: float) -> Any:
    context = contextvars.copy_context()
    call = _Call(lambda: context.run(run))
    _worker().calls.put(call)
    result = asyncio.wrap_future(call.result)
    try:
        while not result.done():
            left = limit / 10 if call.began is None else call.began + limit - time.monotonic()
            if left <= 0:
                assert call.thread is not None
                _abandon(call.thread)
                return Raised(TookTooLong(f"it did not end within {limit:g} s"))
            await asyncio.wait([result], timeout=left)
        return result.result()
    finally:
        result.cancel()  # cancels a call that has not started; has no effect on one that has ended


# -- awaited results


class _Loop:
    """An event loop in a thread. `blocker` is the number of the call that blocked it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.blocker: str | None = None
        self.asked: float | None = None  # time of the unanswered request for a sign of life
        Thread(target=self._run, name=USERS_THREAD, daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while self.blocker is None:
            with suppress(BaseException):  # a callback that raises SystemExit ends `run_forever`
                self.loop.run_forever()

    def ask(self) -> None:
        self.asked = time.monotonic()
        self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self.asked = None


_LOST = object()  # result of a call whose event loop was blocked by another call
_loops: list[_Loop] = []  # the current one; empty before the first awaited result
_numbers = itertools.count()


async def _awaited(given: Awaitable[Any], limit: float) -> Any:
    number, began = f"{USERS_THREAD} {next(_numbers)}", time.monotonic()
    if not _loops:
        _loops.append(_Loop())
    place = _loops[0]

    async def guarded() -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(number)
        try:
            return await given
        except BaseException as error:
            return Raised(error)

    result = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(guarded(), place.loop))
    try:
        while True:
            await asyncio.wait([result], timeout=limit / 4)
            now = time.monotonic()
            if result.done():
                return result.result()
            if place.blocker is None and place.asked is not None and now - place.asked >= limit:
                task = asyncio.current_task(place.loop)
                place.blocker = task.get_name() if task else number
                _loops[:] = [_Loop()]
            if place.blocker == number:
                return Raised(TookTooLong(f"it blocked its event loop for more than {limit:g} s"))
            if place.blocker is not None:
                return _LOST
            if now - began >= AWAITED * limit:
                return Raised(TookTooLong(f"it did not end within {AWAITED * limit:g} s"))
            if place.asked is None:
                place.ask()
    finally:
        result.cancel()
