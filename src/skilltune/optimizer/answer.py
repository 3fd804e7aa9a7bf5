"""The answering side of `handoff:DIR`: list the open questions, and answer them by hand or by a command."""

from __future__ import annotations

import asyncio
import html
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

from skilltune.edits import Malformed, apply
from skilltune.errors import UsageError
from skilltune.optimizer.handoff import REQUEST, Question, claimed, in_use, is_handoff, questions, read_answer
from skilltune.optimizer.lines import read_edits
from skilltune.optimizer.render import support
from skilltune.processes import signal_group
from skilltune.skill import Skill

TRIES = 3  # answers that a command may give to one question
POLL_S = 0.25
GRACE_S = 1.0  # between SIGTERM and SIGKILL
_SKILL = re.compile(r"^<skill>\n(.*?)\n</skill>$", re.DOTALL | re.MULTILINE)
_TRAJECTORY = re.compile(r'^<trajectory sample="([^"]*)"[^>]*>\n(.*?)\n</trajectory>$', re.DOTALL | re.MULTILINE)


def open_questions(folder: Path) -> list[Question]:
    """The open questions, the oldest first. Raises UsageError if the folder does not exist or no run has used it."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder.absolute()}. A run with optimizer.model=handoff:DIR makes DIR. In a config, a "
            "relative DIR starts at the config's folder; here it starts at the current folder"
        )
    if not is_handoff(folder):
        raise UsageError(
            f"{folder.absolute()} holds no questions: no run has used it. Name the DIR of optimizer.model=handoff:DIR. "
            "In a config, a relative DIR starts at the config's folder; here it starts at the current folder"
        )
    return [question for question in questions(folder) if question.is_open]


def named(folder: Path, name: str) -> Question:
    """A question by its name or number: an open one, or one with an answer that no run has used yet. Raises UsageError
    if there is none."""
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
    """File an answer and return its `doubts`. Raises UsageError if the answer does not fit the schema; the question
    then stays as it was."""
    asked = question.text()  # read first: a waiting run moves the question as soon as it has an answer
    try:
        question.hand_in(text)
    except ValueError as error:
        raise UsageError(f"{question.name}: {error}") from None
    return doubts(asked, read_answer(text, question.stage))


def doubts(question: str, data: Mapping[str, Any]) -> list[str]:
    """Likely faults of the edits in an answer about trajectories, one message each.

    Faults are a sample that the question does not show, a quote that its trajectory does not contain, and a place that
    the skill does not contain. Only the run decides, because it has the skill's exact bytes and the setting
    `optimizer.checks`.
    """
    request = question.partition(REQUEST)[2]
    shown: dict[str, str] = {}
    for name, text in _TRAJECTORY.findall(request):
        sample = html.unescape(name)
        shown[sample] = f"{shown.get(sample, '')}\n{text}"
    skill = _SKILL.search(request)
    if not shown or skill is None:
        return []
    found = []
    for number, edit in enumerate(read_edits(data, skill[1]), 1):
        if isinstance(edit, Malformed):
            found.append(f"edit {number}: {edit.reason}")
            continue
        unknown = sorted({cited.sample for cited in edit.evidence} - shown.keys())
        found += [f'edit {number}: the question shows no sample "{sample}"' for sample in unknown]
        if not unknown and not support(edit, shown):
            found.append(f"edit {number}: the trajectory that it names contains none of its quotes")
        report = apply(Skill(skill[1]), [edit]).reports[0]
        if report.status == "rejected":
            found.append(f"edit {number}: {report.reason}")
    return found


async def answer_by(folder: Path, command: str, *, idle: float, say: Callable[[str], None]) -> int:
    """Let a shell command answer all questions, and return their number.

    Ends when no run has had the folder open for `idle` seconds. The command gets the question on stdin and prints the
    answer. It inherits the whole environment, and runs in an empty folder so that an agent does not find the samples by
    chance. Raises UsageError if the command fails, or if `TRIES` of its answers to one question could not be used.
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
            open_questions(folder)  # raises if there is no such folder
            return answered
        if not worked:
            await asyncio.sleep(POLL_S)


async def _output(command: str, question: Question) -> str:
    """The output of the command. The command and its children end with this process.

    Input and output are files, because a grandchild could hold a pipe open and keep us waiting.
    """
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
            _terminate(process)
        said.seek(0)
        out = said.read()
    if process.returncode:
        raise UsageError(f"the command ended with exit code {process.returncode}; {question.name} stays open")
    return out.decode("utf-8", "replace")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End the remaining processes of the group: SIGTERM first, SIGKILL after `GRACE_S`."""
    signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    signal_group(process.pid)
    process.wait()
