"""The process's own output: no text from outside drives the terminal, and `--json` is JSON alone."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

from skilltune.text import visible

claimed: list[TextIO] = []  # by `claim_stdout`


class _Visible(io.TextIOWrapper):
    """Shows control characters instead of obeying them; nobody draws on it."""

    def write(self, text: str, /) -> int:
        super().write(visible(text))
        return len(text)


def protect() -> None:
    """Show on stderr, from now on, whatever text arrives there (tracebacks and warnings too), and let a stream that
    cannot encode a character replace it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Visible(sys.stderr.buffer, sys.stderr.encoding, "replace", line_buffering=True)


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
