"""The optimizer that is a person or another agent: each question is a file in a folder, and so is its answer.

A question's name holds a hash of its content, so a run that was killed finds its open questions again, and answers
that came meanwhile. Both sides share the folder and nothing else: the run writes `NAME.md`, whoever answers writes
`NAME.answer.json` (or `.md`); a used pair is moved to `done/`, an answer that cannot be used to `NAME.refused-1.json`.
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

from skilltune.budget import Budget
from skilltune.errors import Unanswered, UsageError
from skilltune.models import Reply, Request, Usage
from skilltune.models.structured import parse
from skilltune.optimizer.stage import SCHEMAS, load_prompt
from skilltune.run import Paid, Run, digest, write_atomic
from skilltune.scorers.json import violations

T = TypeVar("T")

POLL_S = 0.25
SETTLED_S = 1.0  # an answer that cannot be read may still be under way to the disk for so long
LOCK = ".lock"
BODY = "\n## What to do\n"
_NAME = re.compile(r"(\d{4,})-([a-z_]+)-([0-9a-f]{8})")
_FENCE = re.compile(r"```\w*[ \t]*\n\s*(\{.*?)\n[ \t]*```", re.DOTALL)


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
        """The file of its answer, if there is one."""
        return next((path for kind in ("json", "md") if (path := self._part(f"answer.{kind}")).is_file()), None)

    @property
    def refusals(self) -> list[str]:
        """Why earlier answers could not be used."""
        return [path.read_text(encoding="utf-8").strip() for path in self._refused("txt")]

    def text(self) -> str:
        """The question as it stands, and what was wrong with earlier answers. Raises UsageError if it is gone."""
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
        """File an answer. Raises ValueError for what cannot be an answer to this question."""
        data = read_answer(text, self.stage)
        write_atomic(self._part("answer.json"), json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    def refuse(self, text: str, reason: str) -> None:
        """Move an answer aside, its reason beside it."""
        number = len(self._refused("txt")) + 1
        write_atomic(self._part(f"refused-{number}.json"), text)
        write_atomic(self._part(f"refused-{number}.txt"), f"{reason}\n")
        if (path := self.answer) is not None:
            path.unlink()

    def file_away(self) -> None:
        """Move the question, its answer and its refusals to done/."""
        done = self.folder / "done"
        done.mkdir(exist_ok=True)
        for path in sorted(self.folder.glob(f"{self.name}.*"), reverse=True):  # the question after its answer
            path.replace(done / path.name)

    def _part(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def _refused(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}.refused-*.{kind}"), key=lambda path: (len(path.name), path.name))


def questions(folder: Path) -> list[Question]:
    """The questions of a folder that are not done, by number; also those whose answer no run has fetched yet."""
    names = [path.stem for path in folder.glob("*.md") if _NAME.fullmatch(path.stem)]
    return [Question(folder, name) for name in sorted(names, key=_number)]


def read_answer(text: str, stage: str) -> dict[str, Any]:
    """The JSON object in an answer: the whole text, its last fenced block, or what stands between the outer braces.
    Raises ValueError, in words for whoever answers, where there is none or it breaks the schema of the stage."""
    text = text.strip()
    if not text.startswith("{"):
        fenced = _FENCE.findall(text)
        text = fenced[-1] if fenced else text[text.find("{") : text.rfind("}") + 1]
    if not text:
        raise ValueError("the answer holds no JSON object")
    data = parse(Reply(text, Usage()))
    problems = list(violations(data, SCHEMAS[stage], stage))
    if problems:
        raise ValueError("the answer does not fit the schema:\n" + "\n".join(problems))
    return data


# -- the run's side


@dataclass(slots=True)
class Handoff:
    """Implements `Answers` by files. Without `wait`, an open question ends the run (`Unanswered`), to be resumed."""

    folder: Path
    run: Run
    budget: Budget
    wait: bool = True
    _lock: IO[str] | None = field(default=None, init=False)

    def open(self) -> None:
        """Show to those who answer that a run is there. Raises UsageError where the folder cannot be used."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK).open("a")
        except OSError as error:
            raise UsageError(f"cannot use the folder {self.folder}: {error.strerror or error}") from error
        import fcntl

        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def ask(self, request: Request, read: Callable[[Any], T]) -> T:
        """An answer that `read` refuses is moved aside with the reason, as often as it takes."""
        assert request.schema is not None
        stage, key = request.schema.name, digest("optimizer", "handoff", asdict(request))
        found: list[T] = []

        async def pay() -> Paid:
            refused: list[str] = []
            with self.budget.reserve("optimizer", Usage(1)) as spent:
                question = self._put(request, stage, key)
                while True:
                    text = await self._answer(question)
                    try:
                        found.append(read(read_answer(text, stage)))
                        break
                    except ValueError as error:
                        question.refuse(text, str(error))
                        refused.append(text)
                        self.run.tell("handoff", name=question.name, folder=str(self.folder), refused=str(error))
                spent.append(Usage(1))
            return Paid({"text": text, "finish": "stop", "refused": refused}, Usage(1))

        reply = await self.run.once(key, "optimizer", pay)
        if question := self._find(stage, key):
            question.file_away()
        self.run.tell("optimizer", stage=stage)
        if not found:  # a replay: what `read` makes of the last answer may rest on those before it
            for text in reply["refused"]:
                with suppress(ValueError):
                    read(read_answer(text, stage))
            found.append(read(read_answer(reply["text"], stage)))
        return found[0]

    def _put(self, request: Request, stage: str, key: str) -> Question:
        """The question's file; it is there already where an earlier life of the run asked."""
        if (question := self._find(stage, key)) is None:
            taken = [path.stem for path in self.folder.glob("**/*.md") if _NAME.fullmatch(path.stem)]
            number = max(map(_number, taken), default=0) + 1
            question = Question(self.folder, f"{number:04d}-{stage}-{key[:8]}")
            write_atomic(question.file, render(question.name, request))
        self.run.tell("handoff", name=question.name, folder=str(self.folder), refused="")
        return question

    def _find(self, stage: str, key: str) -> Question | None:
        found = sorted(self.folder.glob(f"*-{stage}-{key[:8]}.md"))
        return Question(self.folder, found[0].stem) if found else None

    async def _answer(self, question: Question) -> str:
        """The text of the answer, once there is one that is complete."""
        while (text := _fetch(question)) is None:
            if not self.wait:
                raise Unanswered(
                    f"{question.file} waits for an answer: `skilltune answer {self.folder}` lists all that do. "
                    "Answer them and run the same command to go on."
                )
            await asyncio.sleep(POLL_S)
        return text


def render(name: str, request: Request) -> str:
    """A question as a file: what to do, the schema, an example, and the parts of the request at the end."""
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
            "\n## The request\n",
            *parts,
            "",
        ]
    )


def _fetch(question: Question) -> str | None:
    path = question.answer
    if path is None:
        return None
    try:
        text, changed = path.read_text(encoding="utf-8-sig", errors="replace"), path.stat().st_mtime
    except OSError:  # renamed under our hands: the next look finds it
        return None
    try:
        read_answer(text, question.stage)
    except ValueError:
        return text if abs(time.time() - changed) > SETTLED_S else None
    return text


def _number(name: str) -> int:
    return int(name.partition("-")[0])


# -- seen from the other side


def in_use(folder: Path) -> bool:
    """Does a run have the folder open, on this machine?"""
    import fcntl

    try:
        with (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def claimed(question: Question) -> Iterator[bool]:
    """Whether nobody else is at work on the question; while the block lasts, nobody else will be."""
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
