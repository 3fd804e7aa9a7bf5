"""Tools that an environment offers to a target for one rollout.

The environment answers calls; the loop that makes them is the target's. So each environment runs with a chat model, the
tool loop and, if its tools only read a folder, with agents.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

from skilltune.envs.task import Task
from skilltune.models import Tool
from skilltune.workspace.tools import GLOB, GREP, ToolError, files_below, glob, grep, inside, text_tool

LINES, CHARS = 400, 18_000  # lines and characters of a document that `read` returns at once
LINE_CHARS = 2_000  # characters of a line that `read` returns
_LINE_NUMBER = re.compile(r"[0-9]{1,12}")
SEARCH_S, LARGEST = 60.0, 100_000_000  # seconds of a search; bytes of a document that is searched


class Tools(Protocol):
    """The tools of one rollout. Derive from this class to get its defaults.

    The target opens them with `async with` when a rollout begins, and closes them at its end. They have a state of
    their own, which no other rollout shares. `offered` is known before they are opened; all tasks offer tools, or none.

    `call` returns the text that the model sees. It raises `ToolError` if the call is wrong; the model sees the message.
    Any other exception is the environment's fault: the rollout has no score, and is repeated from its beginning.

    `decides` is True if the tools decide when the task is over, as in a game. A reply without a call is then no answer.
    `over` is True once the task is over, and the target stops. `left` returns files for the scorer. They become
    artifacts of the rollout, and replace what the target itself wrote to the same path. `opening` is a text for the end
    of the prompt, known once the tools are open. `folder` is a folder whose files the tools only read, so that an agent
    may read it by itself; None if the tools do anything else.
    """

    decides: bool = False
    folder: Path | None = None

    @property
    def offered(self) -> tuple[Tool, ...]: ...

    @property
    def over(self) -> bool:
        return False

    @property
    def opening(self) -> str:
        return ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: object) -> None:
        return None

    async def call(self, name: str, given: Mapping[str, str]) -> str: ...

    def left(self) -> Mapping[str, bytes]:
        return {}


READ_LINES = text_tool(
    "read",
    f"Read at most {LINES} lines of a text file.",
    path="path of the file",
    start="optional: number of the first line, 1 if left out",
)


class Documents(Tools):
    """`glob`, `grep` and `read` over a folder of text files, which nothing changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def offered(self) -> tuple[Tool, ...]:
        return GLOB, GREP, READ_LINES

    async def call(self, name: str, given: Mapping[str, str]) -> str:
        assert self.folder is not None
        match name:
            case "glob":
                return await asyncio.to_thread(glob, self.folder, given["pattern"])
            case "grep":
                place = given.get("path", ".")
                return await asyncio.to_thread(
                    grep, self.folder, given["pattern"], place, seconds=SEARCH_S, largest=LARGEST
                )
            case _:
                return await asyncio.to_thread(read_lines, self.folder, given["path"], given.get("start", "1"))


@dataclass(frozen=True)
class Corpus:
    """Gives each task the tools of `Documents` over one folder: `Env(…, tools=Corpus(folder))`."""

    folder: Path

    def __call__(self, task: Task) -> Documents:
        return Documents(self.folder.resolve())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names and contents of all documents. The place of the folder does not count."""
        root, known = self.folder.resolve(), hashlib.sha256()
        for path in sorted(files_below(root)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            known.update(f"{path.relative_to(root)}\0{content}\n".encode("utf-8", "surrogateescape"))
        return known.hexdigest()


def read_lines(root: Path, name: str, start: str) -> str:
    """The lines of a text file from line `start` (1 is the first), as many as `LINES` and `CHARS` allow. The last line
    says which they are."""
    path = inside(root, name)
    if not path.is_file():
        raise ToolError(f"there is no file {name}")
    if not _LINE_NUMBER.fullmatch(start.strip()) or (first := int(start)) < 1:
        raise ToolError(f"start must be the number of a line, not {start[:40]!r}")
    found, total, room = list[str](), 0, CHARS
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            for total, line in enumerate(lines, 1):
                if first <= total < first + LINES and room > 0:
                    found.append(line.rstrip("\n")[:LINE_CHARS])
                    room -= len(found[-1]) + 1
    except OSError as error:
        raise ToolError(f"{name}: {error.strerror}") from None
    last = first + len(found) - 1
    if not found:
        return f"[{name} has {total:,} lines]"
    return "\n".join(found) + (f"\n[lines {first}-{last} of {total:,}]" if len(found) < total else "")


__all__ = ["Corpus", "Documents", "ToolError", "Tools", "text_tool"]
