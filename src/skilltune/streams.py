"""The process's own output: no text from outside drives the terminal, and `--json` is JSON alone."""

from __future__ import annotations

import io
import os
import sys
from threading import current_thread
from typing import Any, TextIO

from skilltune.text import visible

USERS_THREAD = "scorer"  # name of the threads in which users' code runs
claimed: list[TextIO] = []  # by `claim_stdout`


class _Visible(io.TextIOWrapper):
    """Shows control characters instead of obeying them; nobody draws on it."""

    def write(self, text: str, /) -> int:
        super().write(visible(text))
        return len(text)


class Output:
    """A text stream in the place of `sys.stdout` or `sys.stderr`. Text of users' code goes to `users`.

    A scorer runs in our process, and `sys.stdout` is the same for all of it. The threads of users' code are told apart
    by their name.
    """

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


def protect() -> None:
    """Show on stderr, from now on, whatever text arrives there (tracebacks and warnings too), and let a stream that
    cannot encode a character replace it. Prints of users' code go to stderr, and it cannot close either stream."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Visible(sys.stderr.buffer, sys.stderr.encoding, "replace", line_buffering=True)
    if not isinstance(sys.stdout, Output):
        out, err = Output(sys.stdout, sys.stderr), Output(sys.stderr, sys.stderr)
        sys.stdout, sys.stderr = out, err  # type: ignore[assignment]


def claim_stdout() -> TextIO:
    """Stdout for the caller alone: what anybody else writes to it from now on, a scorer's print() or a program that it
    starts, goes to stderr.

    The caller gets a duplicate of the file descriptor, and descriptor 1 becomes stderr's. Where stdout is no file (a
    program that runs the command line inside itself), only Python's `sys.stdout` is turned.
    """
    mine, sys.stdout = sys.stdout, sys.stderr
    try:
        mine.flush()
        number, errors = mine.fileno(), sys.stderr.fileno()
        mine = os.fdopen(os.dup(number), "w", encoding="utf-8")
        os.dup2(errors, number)
    except OSError:  # as io.UnsupportedOperation is
        pass
    claimed.append(mine)  # it must live as long as the process, or it would close what others look at
    return mine
