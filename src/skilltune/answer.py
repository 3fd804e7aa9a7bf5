"""The other side of `handoff:DIR`: which questions are open, and answering them by hand or by a command."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from skilltune.errors import UsageError
from skilltune.optimizer.handoff import Question, claimed, in_use, questions

TRIES = 3  # answers of a command to one question
POLL_S = 0.25
ENDING_S = 1.0  # that a command which is told to end is given


def open_questions(folder: Path) -> list[Question]:
    """The questions that want an answer, the oldest first. Raises UsageError if there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; a run with optimizer.model=handoff:{folder} makes it")
    return [question for question in questions(folder) if question.answer is None]


def named(folder: Path, name: str) -> Question:
    """An open question by its name or its number. Raises UsageError."""
    name = name.removesuffix(".md")
    known = open_questions(folder)
    found = [question for question in known if question.name == name or question.name.split("-")[0] == name.zfill(4)]
    if len(found) != 1:
        listed = ", ".join(question.name for question in known) or "none"
        raise UsageError(f'{folder} has no open question "{name}"; open are: {listed}')
    return found[0]


def hand_in(question: Question, text: str) -> None:
    """File an answer. Raises UsageError that says what is wrong with it; the question stays open then."""
    try:
        question.hand_in(text)
    except ValueError as error:
        raise UsageError(f"{question.name}: {error}") from None


async def answer_by(folder: Path, command: str, *, idle: float, say: Callable[[str], None]) -> int:
    """Let a shell command answer every question until no run has had the folder open for `idle` seconds; how many.

    The command gets the question on stdin and prints the answer. It runs in an empty folder, so that an agent does not
    find the samples by chance, and with the whole environment. Raises UsageError where it fails, or where `TRIES` of
    its answers to one question could not be used.
    """
    answered, tries = 0, Counter[str]()
    seen = time.monotonic()
    while True:
        found = open_questions(folder) if folder.is_dir() else []
        worked = False
        for question in found:
            with claimed(question) as ours:
                if not ours or question.answer is not None:
                    continue
                worked = True
                if tries[question.name] == TRIES:
                    raise UsageError(
                        f"{TRIES} answers of the command to {question.name} could not be used; the question stays "
                        f"open. The last one: {question.refusals[-1]}"
                    )
                tries[question.name] += 1
                say(f"{question.name} …")
                text = await _output(command, question)
                try:
                    question.hand_in(text)
                    answered += 1
                except ValueError as error:
                    question.refuse(text, str(error))
                    say(f"{question.name}: not usable: {error}")
        if found or in_use(folder):
            seen = time.monotonic()
        elif time.monotonic() - seen >= idle:
            return answered
        if not worked:
            await asyncio.sleep(POLL_S)


async def _output(command: str, question: Question) -> str:
    """What the command prints. It and all that it started end with us: through files, because a pipe that a grandchild
    holds open would keep us waiting."""
    with (
        tempfile.TemporaryDirectory(prefix="skilltune-answer-") as empty,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as said,
    ):
        asked.write(question.prompt().encode("utf-8", "replace"))
        asked.seek(0)
        process = subprocess.Popen(command, shell=True, stdin=asked, stdout=said, cwd=empty, start_new_session=True)  # noqa: ASYNC220
        try:
            while process.poll() is None:
                await asyncio.sleep(POLL_S / 5)
        finally:
            _end(process)
        said.seek(0)
        out = said.read()
    if process.returncode:
        raise UsageError(f"the command ended with exit code {process.returncode}; {question.name} stays open")
    return out.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process's group, in good order where there is time for it."""
    with suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
