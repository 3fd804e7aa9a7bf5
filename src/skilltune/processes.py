"""Signals to a process group."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def signal_group(group: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process group, and do nothing if no process of it is left.

    On macOS a group that holds only processes that nobody has waited for yet raises `PermissionError`.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
