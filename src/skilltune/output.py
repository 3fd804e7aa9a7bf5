"""Standard output is ours: what a user's code prints goes to standard error.

A scorer runs in our process, and `sys.stdout` is the same for all of it. The threads of users' code are told apart by
their name. With --json, file descriptor 1 is moved away too, because a subprocess of a scorer would write to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread
from typing import Any, TextIO

USERS_THREAD = "scorer"  # name of the threads in which users' code runs


class Output:
    """A text stream that takes the place of `sys.stdout`. Nobody can close it: a scorer that closes its standard output
    must not silence the run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @property
    def _place(self) -> TextIO:
        return sys.stderr if current_thread().name == USERS_THREAD else self.stream

    def write(self, text: str) -> int:
        return self._place.write(text)

    def writelines(self, lines: list[str]) -> None:
        self._place.writelines(lines)

    def flush(self) -> None:
        self._place.flush()

    def close(self) -> None:
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)


def take_over() -> None:
    """Put an `Output` in the place of `sys.stdout`, once."""
    if not isinstance(sys.stdout, Output):
        sys.stdout = Output(sys.stdout)  # type: ignore[assignment]


@contextmanager
def alone(wanted: bool = True) -> Iterator[None]:
    """Meanwhile nothing but what we print ourselves reaches standard output, if that is `wanted`."""
    out: Any = sys.stdout
    if not wanted or not isinstance(out, Output):
        yield
        return
    try:
        number = out.stream.fileno()
        out.stream.flush()
        ours = os.dup(number)
        os.dup2(sys.stderr.fileno(), number)
    except (OSError, ValueError):  # no real files, as in a test: the threads are told apart all the same
        yield
        return
    before, encoding, errors = out.stream, out.stream.encoding, out.stream.errors
    out.stream = open(ours, "w", encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        with suppress(OSError):  # the reader has gone, which was said where it was found
            out.stream.flush()
        out.stream = before
        os.dup2(ours, number)
        os.close(ours)
