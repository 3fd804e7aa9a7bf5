"""The handoff: a person or another agent is the optimizer. Each question is a file in a folder, and so is its answer.

The two sides share the folder and nothing else. The run writes a question twice: `NAME.md` is one text, and the folder
`NAME/` is the same in files, as an agent gets it (`files.layout`). The answerer writes `NAME.answer.json` (or `.md`) or
`NAME/answer/answer.json`. The run moves a used question to `done/`, and an answer that it cannot use to
`NAME.refused-1.json`. A question's name holds a hash of its content, so a resumed run finds its open questions and
their answers again. A question of an older version has no folder `NAME/`; it gets one.

A file may be read while it is being written, so an incomplete JSON object does not count as an answer yet. Broken JSON
is never repaired, because a guessed ending is an answer that nobody gave.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from skilltune.errors import Unanswered, UsageError
from skilltune.files import make_private, write_atomic
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.metering.budget import Budget
from skilltune.models import Request
from skilltune.optimizer.files import ANSWER, ANSWERS, README, REFUSED, layout, refusal
from skilltune.optimizer.stage import SCHEMAS, Brief, load_prompt
from skilltune.scorers.json import violations
from skilltune.usage import Usage

T = TypeVar("T")

POLL_S = 0.25
SETTLED_S = 1.0  # an incomplete file is reported once it has not changed for this long
LOCK = ".lock"
BODY = "\n## What to do\n"
REQUEST = "\n## The request\n"
STRAY = "it answers no open question: rename it after one, or delete it (answered questions are in done/)"
_NAME = re.compile(r"(\d{4,})-([a-z_]+)-([0-9a-f]{8})")
_ANSWER = re.compile(r"(.+)\.answer\.(?:json|md)")
_FENCE_OPEN = re.compile(r"```\w*[ \t]*\n\s*\{")
_FENCE_CLOSE = re.compile(r"\n[ \t]*```")


@dataclass(frozen=True, slots=True)
class Question:
    """A question in a folder, by its name, "0001-reflect-1a2b3c4d"."""

    folder: Path
    name: str

    @property
    def stage(self) -> str:
        found = _NAME.fullmatch(self.name)
        assert found is not None
        return found[2]

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.md"

    @property
    def answer(self) -> Path | None:
        """The file with the answer, if there is one."""
        places = (self._part("answer.json"), self._part("answer.md"), self.as_files / ANSWER)
        return next((path for path in places if path.is_file()), None)

    @property
    def as_files(self) -> Path:
        """The folder with the question as files."""
        return self.folder / self.name

    @property
    def fault(self) -> str:
        """The reason why the answer's file cannot be used ("" if it can, or if there is none)."""
        if (path := self.answer) is None:
            return ""
        try:
            read_answer(_read(path), self.stage)
        except OSError:  # another process moved it
            return ""
        except ValueError as error:
            return f"{path.relative_to(self.folder)}: {error}"
        return ""

    @property
    def is_open(self) -> bool:
        """True unless a usable answer waits for the run."""
        return self.answer is None or bool(self.fault)

    @property
    def refusals(self) -> list[str]:
        """The reasons why answers could not be used; the current answer's comes last."""
        return [*(_read(path).strip() for path in self._refused("txt")), *filter(None, [self.fault])]

    @property
    def refused(self) -> list[str]:
        """The answers that were moved aside."""
        return [_read(path) for path in self._refused("json")]

    def fetch(self) -> str | None:
        """The text of the answer if it holds a complete JSON object, else None."""
        try:
            if (path := self.answer) is not None:
                read_object(text := _read(path))
                return text
        except (OSError, ValueError):
            pass
        return None

    def text(self) -> str:
        """The question, and the faults of earlier answers. Raises UsageError if its file is gone."""
        try:
            text = self.file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read {self.file}: {error.strerror or error}") from error
        parts = [text.rstrip()]
        for number, reason in enumerate(self.refusals, 1):
            parts.append(f"## Answer {number} could not be used\n\n{reason}")
        return "\n\n".join(parts) + "\n"

    def prompt(self) -> str:
        """The question for a program that prints its answer."""
        return f"{load_prompt('handoff_stdout')}\n{BODY}{self.text().partition(BODY)[2]}"

    def hand_in(self, text: str) -> None:
        """File an answer; it replaces one that no run has used yet. Raises ValueError if it does not fit the schema."""
        data = read_answer(text, self.stage)
        write_atomic(self._part("answer.json"), json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        self._part("answer.md").unlink(missing_ok=True)
        (self.as_files / ANSWER).unlink(missing_ok=True)

    def refuse(self, text: str, reason: str) -> None:
        """Move an answer aside and write the reason beside it. A newer answer that has replaced it stays."""
        number = len(self._refused("txt")) + 1
        write_atomic(self._part(f"refused-{number}.json"), text)
        write_atomic(self._part(f"refused-{number}.txt"), f"{reason}\n")
        if self.as_files.is_dir():
            write_atomic(self.as_files / REFUSED, refusal((text, reason)))
        if (path := self.answer) is not None and _read(path) == text:
            path.unlink()

    def file_away(self) -> None:
        """Move the question, its answer and its refusals to done/."""
        done = self.folder / "done"
        done.mkdir(exist_ok=True)
        if self.as_files.is_dir():
            self.as_files.replace(done / self.name)
        for path in sorted(self.folder.glob(f"{self.name}.*"), reverse=True):  # the question after its answer
            path.replace(done / path.name)

    def _part(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def _refused(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.refused-*.{kind}"), key=lambda path: (len(path.name), path.name))


def questions(folder: Path) -> list[Question]:
    """The questions of a folder that are not done, by number, including those with an answer that no run has used."""
    names = [path.stem for path in folder.glob("*.md") if _NAME.fullmatch(path.stem)]
    return [Question(folder, name) for name in sorted(names, key=_number)]


def strays(folder: Path) -> list[Path]:
    """Answer files without an open question: the name is wrong, or the question is done."""
    named = {question.name for question in questions(folder)}
    return sorted(path for path in folder.glob("*.answer.*") if _answers(path.name) not in {None, *named})


def _answers(file: str) -> str | None:
    """The question's name in an answer file's name; None for other files."""
    found = _ANSWER.fullmatch(file)
    return found and found[1]


def read_object(text: str) -> dict[str, Any]:
    """The JSON object in an answer: the last fenced block, or the text between the outer braces.

    Raises ValueError, with a message for the answerer, if there is none or it is incomplete.
    """
    text = text.strip()
    if not text.startswith("{"):
        text = _last_fenced(text)
    begin, end = text.find("{"), text.rfind("}") + 1
    if begin < 0:
        raise ValueError("the answer holds no JSON object")
    try:
        return json.loads(text[begin : end or None])
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the answer is not a whole JSON object: {error}") from None


def _last_fenced(text: str) -> str:
    """The content of the last fenced block that holds an object; the text itself if no block is closed.

    It takes one pass, because a text may be long and a waiting run reads it again and again.
    """
    found, end = text, 0
    while opening := _FENCE_OPEN.search(text, end):
        closing = _FENCE_CLOSE.search(text, opening.end())
        if closing is None and end:
            raise ValueError("the last fenced block of the answer is not closed")
        if closing is None:
            break
        found, end = text[opening.end() - 1 : closing.start()], closing.end()
    return found


def read_answer(text: str, stage: str) -> dict[str, Any]:
    """As `read_object`; also raises ValueError if the object breaks the schema of the stage."""
    data = read_object(text)
    problems = list(violations(data, SCHEMAS[stage], stage))
    if problems:
        raise ValueError("the answer does not fit the schema:\n" + "\n".join(problems))
    return data


# -- the run's side


@dataclass(slots=True)
class Handoff:
    """Implements `Answers` by files. Without `wait`, an open question raises `Unanswered`; the run can be resumed."""

    folder: Path
    run: Run
    budget: Budget
    wait: bool = True
    _lock: IO[str] | None = field(default=None, init=False)
    _reported: set[str] = field(default_factory=set, init=False)  # reasons that were reported, each once
    _last_search: float = field(default=0.0, init=False)  # time of the last search for strays

    def open(self) -> None:
        """Lock the folder, which shows answerers that a run uses it. Raises UsageError if it cannot be used."""
        try:
            make_private(self.folder)
            self._lock = (self.folder / LOCK).open("a")
        except OSError as error:
            raise UsageError(f"cannot use the folder {self.folder}: {error.strerror or error}") from error
        import fcntl

        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def ask(self, brief: Brief, read: Callable[[Any], T]) -> T:
        """The first answer that `read` accepts. Each refused answer is moved aside with the reason.

        `read` may depend on the answers before, so a resumed run and a replay show it the refused ones again, in order.
        """
        stage, key = brief.stage, digest("optimizer", "handoff", asdict(brief.request))
        found: list[T] = []

        def reread(texts: list[str]) -> None:
            for text in texts:
                with suppress(ValueError):
                    read(read_answer(text, stage))

        async def pay() -> Paid:
            with self.budget.reserve("optimizer", Usage(1)) as spent:
                question = self._put(brief, key)
                refused = question.refused
                reread(refused)
                while True:
                    text = await self._answer(question)
                    try:
                        found.append(read(read_answer(text, stage)))
                        break
                    except ValueError as error:
                        question.refuse(text, str(error))
                        refused.append(text)
                        self.run.notify("handoff", name=question.name, folder=str(self.folder), refused=str(error))
                spent.append(Usage(1))
            return Paid({"text": text, "finish": "stop", "refused": refused}, Usage(1))

        reply = await self.run.memo(key, "optimizer", pay)
        if question := self._find(stage, key):
            question.file_away()
        self.run.notify("optimizer", stage=stage)
        if not found:  # a replay
            reread(reply["refused"])
            found.append(read(read_answer(reply["text"], stage)))
        return found[0]

    def _put(self, brief: Brief, key: str) -> Question:
        """The question's files, written unless an earlier session of the run did."""
        stage = brief.stage
        if (question := self._find(stage, key)) is None:
            taken = [path.stem for path in self.folder.glob("**/*.md") if _NAME.fullmatch(path.stem)]
            number = max(map(_number, taken), default=0) + 1
            question = Question(self.folder, f"{number:04d}-{stage}-{key[:8]}")
            self._lay_out(question, brief)
            write_atomic(question.file, render(question.name, brief.request))  # last, because it makes it a question
        else:
            self._lay_out(question, brief)
        return question

    def _lay_out(self, question: Question, brief: Brief) -> None:
        """Write the question as files. The README comes last, because it is complete with it."""
        if (question.as_files / README).is_file():
            return
        (question.as_files / ANSWERS).mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in layout(brief, load_prompt("handoff_answering").replace("{name}", question.name)).items():
            write_atomic(question.as_files / name, data)

    def _find(self, stage: str, key: str) -> Question | None:
        found = sorted(self.folder.glob(f"*-{stage}-{key[:8]}.md"))
        return Question(self.folder, found[0].stem) if found else None

    async def _answer(self, question: Question) -> str:
        """Wait for a complete answer and return its text. Raises `Unanswered` if the run does not wait."""
        if (text := question.fetch()) is None:
            self.run.notify("handoff", name=question.name, folder=str(self.folder), refused="")
        while text is None:
            fault = question.fault
            if not self.wait:
                raise Unanswered(
                    f"{question.file} waits for an answer{f' ({fault})' if fault else ''}: "
                    f"`skilltune answer {self.folder}` lists all that do. "
                    "Answer them and run the same command to go on."
                )
            if fault and (path := question.answer) and _unchanged_lately(path):
                self._report_once(question.name, fault)
            self._report_strays()
            await asyncio.sleep(POLL_S)
            text = question.fetch()
        return text

    def _report_strays(self) -> None:
        if time.monotonic() - self._last_search > SETTLED_S:
            self._last_search = time.monotonic()
            for path in strays(self.folder):
                self._report_once(str(_answers(path.name)), f"{path.name}: {STRAY}")

    def _report_once(self, name: str, why: str) -> None:
        if why not in self._reported:
            self._reported.add(why)
            self.run.notify("handoff", name=name, folder=str(self.folder), refused=why)


def render(name: str, request: Request) -> str:
    """The text of a question's file: instructions, schema, an example, then the parts of the request."""
    assert request.schema is not None
    instructions, *parts = (message.text for message in request.messages)
    example = json.loads(load_prompt("examples.json"))[request.schema.name]
    return "\n".join(
        [
            load_prompt("handoff").replace("{name}", name),
            f"{BODY}\n{instructions}",
            f"\n## Schema of the answer\n\n```json\n{json.dumps(request.schema.schema, indent=1)}\n```",
            "\n## Example of an answer\n\nIt is of another skill and shows the form only.\n",
            f"```json\n{json.dumps(example, indent=1, ensure_ascii=False)}\n```",
            REQUEST,
            *parts,
            "",
        ]
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _unchanged_lately(path: Path) -> bool:
    try:
        return abs(time.time() - path.stat().st_mtime) > SETTLED_S
    except OSError:  # gone
        return False


def _number(name: str) -> int:
    return int(name.partition("-")[0])


# -- for the answering side


def is_handoff(folder: Path) -> bool:
    """True if a run has ever used the folder."""
    return (folder / LOCK).exists() or bool(questions(folder) or questions(folder / "done"))


def in_use(folder: Path) -> bool:
    """True if a run on this machine has the folder open."""
    import fcntl

    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def claimed(question: Question) -> Iterator[bool]:
    """Lock the question for the block. Yields False if another process has locked it, or if it is gone."""
    import fcntl

    try:
        file = question.file.open("r")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
