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
PIPE_CLOSED = 141  # as of a program that SIGPIPE ends: the reader had enough, and nothing is wrong
FULL = {errno.ENOSPC, errno.EDQUOT}  # no fault of ours
OUR_FAULT = 70  # as EX_SOFTWARE of sysexits.h: no end of a run, but an error of skilltune itself


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print text that may come from anywhere."""
    typer.echo(visible(text), nl=nl, err=err)


def our_fault(error: Exception, folder: Path | None) -> str:
    """What to say of an error that nobody foresaw. Its traceback is written to the run folder, or where there is none
    to a temporary file; both without keys."""
    import tempfile
    import traceback

    from skilltune.keys import all_keys
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
    kept = " What was paid is kept, and the same command goes on." if folder else ""
    return f"an error of skilltune itself, not of yours ({what}); please report it: {where}{kept}"


def delivered() -> bool:
    """Has all output reached its readers? Where one has gone, what is left is dropped, or the interpreter's own last
    flush would complain of it."""
    arrived = True
    for stream in (sys.stdout, sys.stderr, *streams.claimed):
        try:
            if not stream.closed:
                stream.flush()
        except OSError:  # the reader has gone, or the disk is full
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
    """What was raised on purpose becomes a message and an exit code. Anything else is an error of skilltune itself:
    `OUR_FAULT`, with its traceback in the run's `folder`.

    What only a call could reveal (a wrong key, a full disk) is 2 while nothing was `spent`, 3 after. Output that nobody
    reads any more ends a command quietly, and one that it cuts short with the message `gone`, as an interrupt.
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
