"""Protects the process's output: outside text cannot control the terminal, and `--json` prints only JSON."""

from __future__ import annotations

import io
import os
import sys
from threading import current_thread
from typing import Any, TextIO

from skilltune.text import visible

USERS_THREAD = "scorer"  # name of the threads that run users' code
SILENT_THREADS = {"ray_listen_error_messages"}  # Ray prints the remarks of its machines, which its log files hold too
claimed: list[TextIO] = []  # filled by `claim_stdout`


class _Visible(io.TextIOWrapper):
    """Escapes control characters; nothing draws on this stream."""

    def write(self, text: str, /) -> int:
        super().write(visible(text))
        return len(text)


class Output:
    """A text stream that replaces `sys.stdout` or `sys.stderr`. Text of users' code goes to `users`.

    A scorer runs in our process and shares `sys.stdout`. Threads of users' code are recognised by their name, and so
    are those whose text is dropped.
    """

    def __init__(self, stream: TextIO, users: TextIO) -> None:
        self._ours, self._users = stream, users

    @property
    def _stream(self) -> TextIO:
        return self._users if current_thread().name == USERS_THREAD else self._ours

    def write(self, text: str) -> int:
        return len(text) if current_thread().name in SILENT_THREADS else self._stream.write(text)

    def close(self) -> None:
        """Only flush, because a scorer that closes its output must not silence the run."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect() -> None:
    """Escape control characters on stderr from now on, in tracebacks and warnings too. Characters that a stream cannot
    encode are replaced. Prints of users' code go to stderr, and it cannot close either stream."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Visible(sys.stderr.buffer, sys.stderr.encoding, "replace", line_buffering=True)
    if not isinstance(sys.stdout, Output):
        out, err = Output(sys.stdout, sys.stderr), Output(sys.stderr, sys.stderr)
        sys.stdout, sys.stderr = out, err  # type: ignore[assignment]


def claim_stdout() -> TextIO:
    """Reserve stdout for the caller. Later output of others, such as a scorer's print() or a program that it starts,
    goes to stderr.

    The caller gets a duplicate of the file descriptor, and descriptor 1 becomes stderr's. If stdout is not a file (a
    program that runs the command line inside itself), only Python's `sys.stdout` is redirected.
    """
    mine, sys.stdout = sys.stdout, sys.stderr
    try:
        mine.flush()
        number, errors = mine.fileno(), sys.stderr.fileno()
        mine = os.fdopen(os.dup(number), "w", encoding="utf-8")
        os.dup2(errors, number)
    except OSError:  # includes io.UnsupportedOperation
        pass
    claimed.append(mine)  # keep it alive: closing it would close a stream that others use
    return mine
