"""Standard output is ours: what a user's code prints goes to standard error, and it cannot close either.

A scorer runs in our process, and `sys.stdout` is the same for all of it. The threads of users' code are told apart by
their name.
"""

from __future__ import annotations

import sys
from threading import current_thread
from typing import Any, TextIO

USERS_THREAD = "scorer"  # name of the threads in which users' code runs


class Output:
    """A text stream in the place of `sys.stdout` or `sys.stderr`. `users` is where the text of users' code goes."""

    def __init__(self, stream: TextIO, users: TextIO) -> None:
        self._ours, self._users = stream, users

    @property
    def _stream(self) -> TextIO:
        return self._users if current_thread().name == USERS_THREAD else self._ours

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def close(self) -> None:
        """Flushes only: a scorer that closes its output must not silence the run."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def take_over() -> None:
    """Put an `Output` in the place of both streams, once."""
    if not isinstance(sys.stdout, Output):
        out, err = Output(sys.stdout, sys.stderr), Output(sys.stderr, sys.stderr)
        sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
