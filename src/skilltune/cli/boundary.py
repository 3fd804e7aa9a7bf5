"""The boundary of a command: errors become a message and an exit code."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from skilltune import __version__, streams
from skilltune.cli.interrupts import Interrupts
from skilltune.errors import CallConfigError, RunError, SkilltuneError, Stopped
from skilltune.text import visible

if TYPE_CHECKING:
    from skilltune.parts import Parts

INTERRUPTED = 4
interrupts = Interrupts(INTERRUPTED)
PIPE_CLOSED = 141  # like a program that SIGPIPE ends: the reader stopped reading, which is no error
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk or the quota is full
OUR_FAULT = 70  # EX_SOFTWARE of sysexits.h: a bug in skilltune


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print text from any source; control characters are made visible."""
    typer.echo(visible(text), nl=nl, err=err)


def our_fault(error: Exception, folder: Path | None) -> str:
    """The message for an unexpected error. The traceback, without keys, is written to the run folder, or to a temporary
    file if there is no run."""
    import tempfile
    import traceback

    from skilltune.api_keys import all_keys
    from skilltune.models.redact import redacted

    trace = redacted("".join(traceback.format_exception(error)), *all_keys())
    what = redacted(f"{type(error).__name__}: {error}"[:300].rstrip(": "), *all_keys())
    where = "the traceback follows:\n" + trace
    for place in filter(None, (folder, Path(tempfile.gettempdir()))):
        with suppress(OSError):
            number, path = tempfile.mkstemp(".txt", "crash-" if place == folder else "skilltune-crash-", place)
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"skilltune {__version__}, Python {sys.version}\n{trace}")
            where = f"the traceback is in {path}"
            break
    kept = " Paid answers are kept, and the same command resumes the run." if folder else ""
    return f"a bug in skilltune, not your mistake ({what}); please report it: {where}{kept}"


def delivered() -> bool:
    """True if all output reached its readers. If a reader has gone, the rest is dropped, because the interpreter's last
    flush would print an error."""
    arrived = True
    for stream in (sys.stdout, sys.stderr, *streams.claimed):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:  # the reader is gone, or the disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            arrived = False
    return arrived


def fail(message: str, exit_code: int, larger: str = "") -> None:
    say(f"error: {message}", err=True)


def folder_of(opened: list[Parts]) -> Path | None:
    return opened[0].run.folder if opened else None


@contextmanager
def boundary(
    spent: Callable[[], bool] = lambda: False,
    fail: Callable[[str, int, str], None] = fail,
    message: str = "interrupted",
    gone: str = "",
    folder: Callable[[], Path | None] = lambda: None,
) -> Iterator[None]:
    """Turn skilltune's own errors into a message and an exit code. Any other error is a bug: `OUR_FAULT`, with its
    traceback in the run's `folder`.

    A fault that only a call can reveal, such as a wrong key or a full disk, exits with 2 while nothing was `spent`, and
    with 3 after. If the reader of the output is gone, the command ends quietly; if that cuts it short, it prints `gone`
    and ends like an interrupt.
    """

    def leave(text: str, exit_code: int, larger: str = "") -> NoReturn:
        with suppress(BrokenPipeError):
            fail(text, exit_code, larger)
        raise typer.Exit(exit_code)

    try:
        with interrupts.during(message):
            yield
            sys.stdout.flush()
    except (KeyboardInterrupt, asyncio.CancelledError):
        leave(message, INTERRUPTED)
    except BrokenPipeError:
        delivered()
        if gone:
            leave(gone, INTERRUPTED)
        raise typer.Exit(PIPE_CLOSED) from None
    except (RunError, CallConfigError) as error:
        leave(str(error), 3 if spent() else 2)
    except Stopped as error:
        leave(str(error), error.exit_code, error.larger)
    except SkilltuneError as error:
        leave(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in FULL:
            leave(our_fault(error, folder()), OUR_FAULT)
        place = f" ({error.filename})" if error.filename else ""
        fix = "free some space on the disk, then run the same command again"
        leave(f"{error.strerror}{place}: {fix}", 3 if spent() else 2)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        leave(our_fault(error, folder()), OUR_FAULT)
