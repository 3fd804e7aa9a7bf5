"""The other side of `handoff:DIR`: which questions are open, and answering them by hand or by a command."""

from __future__ import annotations

import asyncio
import html
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from skilltune.edits import Malformed, apply, parse_edits
from skilltune.errors import UsageError
from skilltune.optimizer.handoff import REQUEST, Question, claimed, in_use, is_handoff, questions, read_answer
from skilltune.optimizer.render import support
from skilltune.skill import Skill

TRIES = 3  # answers of a command to one question
POLL_S = 0.25
ENDING_S = 1.0  # that a command which is told to end is given
_SKILL = re.compile(r"^<skill>\n(.*?)\n</skill>$", re.DOTALL | re.MULTILINE)
_TRAJECTORY = re.compile(r'^<trajectory sample="([^"]*)"[^>]*>\n(.*?)\n</trajectory>$', re.DOTALL | re.MULTILINE)


def open_questions(folder: Path) -> list[Question]:
    """The questions that want an answer, the oldest first. Raises UsageError if there is no such folder, or it is not
    one of questions."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder.absolute()}. A run with optimizer.model=handoff:DIR makes DIR: there it "
            "counts from the config's folder, here from where you are"
        )
    if not is_handoff(folder):
        raise UsageError(
            f"{folder.absolute()} is no folder of questions: no run has used it. Name the DIR of "
            "optimizer.model=handoff:DIR; there it counts from the config's folder, here from where you are"
        )
    return [question for question in questions(folder) if question.is_open]


def named(folder: Path, name: str) -> Question:
    """A question by its name or its number, open or with an answer that no run has used yet. Raises UsageError."""
    name = name.removesuffix(".md")
    known = open_questions(folder)
    found = _by_name(questions(folder), name)
    if len(found) != 1:
        listed = ", ".join(question.name for question in known) or "none"
        used = " (it is answered, and the answer used)" if _by_name(questions(folder / "done"), name) else ""
        raise UsageError(f'{folder} has no open question "{name}"{used}; open are: {listed}')
    return found[0]


def _by_name(known: Sequence[Question], name: str) -> list[Question]:
    return [question for question in known if question.name == name or question.name.split("-")[0] == name.zfill(4)]


def hand_in(question: Question, text: str) -> list[str]:
    """File an answer; what the run will find wrong with it, as far as the question tells, see `doubts`. Raises
    UsageError that says what is wrong with its form; the question stays as it was then."""
    asked = question.text()  # a run that waits files it away at once
    try:
        question.hand_in(text)
    except ValueError as error:
        raise UsageError(f"{question.name}: {error}") from None
    return doubts(asked, read_answer(text, question.stage))


def doubts(question: str, data: Mapping[str, Any]) -> list[str]:
    """What speaks against the edits of an answer to a question about trajectories: a sample that was not shown, a
    quote that does not stand there, a place that the skill does not have. No verdict, which only the run can give: it
    knows the skill to the byte, and whether it enforces its checks."""
    request = question.partition(REQUEST)[2]
    shown: dict[str, str] = {}
    for name, text in _TRAJECTORY.findall(request):
        sample = html.unescape(name)
        shown[sample] = f"{shown.get(sample, '')}\n{text}"
    skill = _SKILL.search(request)
    if not shown or skill is None:
        return []
    found = []
    for number, edit in enumerate(parse_edits(data), 1):
        if isinstance(edit, Malformed):
            found.append(f"edit {number}: {edit.reason}")
            continue
        unknown = sorted({cited.sample for cited in edit.evidence} - shown.keys())
        found += [f'edit {number}: the question shows no sample "{sample}"' for sample in unknown]
        if not unknown and not support(edit, shown):
            found.append(f"edit {number}: none of its quotes stands in the trajectory that it names")
        report = apply(Skill(skill[1]), [edit]).reports[0]
        if report.status == "rejected":
            found.append(f"edit {number}: {report.reason}")
    return found


async def answer_by(folder: Path, command: str, *, idle: float, say: Callable[[str], None]) -> int:
    """Let a shell command answer every question until no run has had the folder open for `idle` seconds; how many.

    The command gets the question on stdin and prints the answer. It runs in an empty folder, so that an agent does not
    find the samples by chance, and with the whole environment. Raises UsageError where it fails, or where `TRIES` of
    its answers to one question could not be used.
    """
    answered, tries = 0, Counter[str]()
    seen = time.monotonic()
    while True:
        found = open_questions(folder) if folder.is_dir() and is_handoff(folder) else []
        worked = False
        for question in found:
            with claimed(question) as ours:
                if not ours or not question.is_open:
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
            open_questions(folder)  # says so if there is no such folder
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
