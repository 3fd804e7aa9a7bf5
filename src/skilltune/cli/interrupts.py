"""SIGINT and SIGTERM: an interrupted process cleans up, ends soon, and always has the same exit code.

The first signal cancels the work. Later signals change nothing, because a second Ctrl-C must not disturb the cleanup.
Work that has not ended after `GRACE_S`, such as a thread that cannot be cancelled, is abandoned. No answer is lost,
because the journal holds every answer at any time.
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
    """Handles the signals of one process until it ends. `exit_code` is the exit code of an interrupted process."""

    def __init__(self, exit_code: int) -> None:
        self.received = False
        self._exit_code = exit_code
        self._message = ""  # printed if the running command is interrupted; "" if no command is running
        self._running: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def install(self) -> None:
        """Handle both signals. An ignored SIGINT, as in a script's background job, stays ignored."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, lambda *_: self._leave())

    @contextmanager
    def during(self, message: str) -> Iterator[None]:
        """In the block, a signal raises `KeyboardInterrupt` if there is no coroutine to cancel."""
        self._message = message
        try:
            yield
        finally:
            self._message = ""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Like `asyncio.run`, but a signal cancels the work."""

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
        """Call last in the process. Afterwards no signal changes the exit code, and an interrupted process waits for no
        thread."""
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
        """End the process at once. Writes by `os.write` only, because the streams may be in the middle of a write."""
        with suppress(OSError):
            os.write(2, f"error: {self._message or 'interrupted'}\n".encode())
            if os.isatty(1):
                os.write(1, SHOW_CURSOR)
        os._exit(self._exit_code)
