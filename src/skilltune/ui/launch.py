"""Start a training as a process of its own, which outlives the server and the page.

The process is the command line, in a session of its own, so that neither Ctrl-C nor a closed terminal of the server
reaches it. API keys come from the server's environment and are written nowhere. Output goes to a log in the run folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skilltune.errors import RunError, UsageError
from skilltune.journal.run import Run
from skilltune.text import visible

LOG = "train.log"
PATIENCE_S = 30.0  # time until a started training has the run open
LOOK_S = 0.05
MOST_TOLD = 4_000  # characters at the end of the log that an error tells
MOST_READ = 1_000_000  # bytes of the log of one process that are read
PLAN = "\nrun       "  # the last row of the plan, which `train` prints before it pays for anything

_started: list[subprocess.Popen[bytes]] = []


def launch(words: Sequence[str], folder: Path, run: Path) -> None:
    """Run `skilltune train WORDS --run RUN` in a folder and return when its parts are built and it begins to pay.

    Raises `UsageError` with what the process said if it ended before. A process that takes longer than `PATIENCE_S`
    goes on. The run folder must exist; if the process fails before it paid for anything, a folder that held no run
    before is removed.
    """
    fresh = not (run / "run.db").exists()
    began = _size(run / LOG)
    process = _begin(["train", *words, "--run", str(run)], folder, run / LOG)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        ended = process.poll()
        said = _read(run / LOG, began)
        if PLAN in said:
            return
        if ended is not None:
            break
        time.sleep(LOOK_S)
    else:
        return
    if fresh and not _paid(run):
        shutil.rmtree(run, ignore_errors=True)
    raise UsageError(_error_in(said) or f"the training ended at once with exit code {ended}")


def _begin(arguments: Sequence[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    _started[:] = [process for process in _started if process.poll() is None]  # reaps the ended ones
    try:
        # neither a link out of the folder nor a pipe, which would block
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        output = os.open(log, flags, 0o600)
    except OSError as error:
        raise UsageError(f"cannot write {log}: {error.strerror or error}") from error
    try:
        # -P: the folder of the project is not searched for modules, as with the command `skilltune`
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "skilltune", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except OSError as error:
        raise UsageError(f"cannot start a training in {folder}: {error.strerror or error}") from error
    finally:
        os.close(output)
    _started.append(process)
    return process


def reap() -> None:
    """Collect the exit codes of trainings that have ended, so that none stays behind as a zombie."""
    _started[:] = [process for process in _started if process.poll() is None]


def _paid(run: Path) -> bool:
    if not (run / "run.db").exists():
        return False
    try:
        with Run.read(run) as journal:
            return journal.spent
    except RunError:
        return True  # unknown, so nothing is removed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, begin: int) -> str:
    """The text of a log from this byte on."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(begin)
        return visible(file.read(MOST_READ).decode("utf-8", "replace"))
    return ""


def _error_in(said: str) -> str:
    """The error that a process ended with: from the last "error:" on, or its last words."""
    return said[said.rfind("error: ") + len("error: ") :].strip() if "error: " in said else said[-MOST_TOLD:].strip()
