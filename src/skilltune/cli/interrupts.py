"""SIGINT and SIGTERM: a process that is told to end leaves soon, in good order, always with the same exit code.

The first signal cancels the work; later ones change nothing, because a second Ctrl-C must not tear apart what the
first one is tidying up. What has not ended after `GRACE_S` (a scorer that computes, a thread that cannot be
cancelled) is left where it is: the journal holds every answer whenever the process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 1.5
SHOW_CURSOR = b"\x1b[?25h\n"


class Interrupts:
    """The signals of one process, for all its life; `exit_code` is what an interrupted one ends with."""

    def __init__(self, exit_code: int) -> None:
        self.received = False
        self._exit_code = exit_code
        self._message = ""  # of the command under way; "" while none is
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def install(self) -> None:
        """Take both signals over; a SIGINT that is ignored (a background job of a script) stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, lambda *_: self._leave())

    @contextmanager
    def during(self, message: str) -> Iterator[None]:
        """While a command is under way: a signal that finds no coroutine to cancel raises `KeyboardInterrupt`."""
        self._message = message
        try:
            yield
        finally:
            self._message = ""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run`, in which a signal cancels the work wherever it waits."""

        async def main() -> T:
            task = asyncio.current_task()
            assert task is not None
            self._running = asyncio.get_running_loop(), task
            try:
                return await work
            finally:
                self._running = None

        return asyncio.run(main())

    def end(self, code: object) -> None:
        """The last act of the process. From here no signal can change its exit code, and an interrupted one waits for
        no thread."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.received:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code if isinstance(code, int) else self._exit_code)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = True
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        if self._running is not None:
            loop, task = self._running
            loop.call_soon_threadsafe(task.cancel)
        elif self._message:
            raise KeyboardInterrupt
        else:
            self._leave()

    def _leave(self) -> None:
        """End here and now. Only `os.write`: the streams may be in the middle of a write of their own."""
        with suppress(OSError):
            os.write(2, f"error: {self._message or 'interrupted'}\n".encode())
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)
        os._exit(self._exit_code)
