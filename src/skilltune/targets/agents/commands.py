"""An environment's tools as commands in an agent's workspace: `sh ./act "open the drawer"`.

A command leaves its call as a file in a folder of the workspace and waits for the answer there, because files work in
every agent and in every sandbox. This side runs outside the sandbox, so it follows no link and opens nothing but
regular files.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from skilltune.aio import background
from skilltune.envs.tools import Tools
from skilltune.models import Tool, ToolCall
from skilltune.targets.tools import arguments, of_environment, shortened
from skilltune.workspace.tools import ToolError

FOLDER = ".calls"
POLL_S = 0.05
LONGEST = 100_000  # bytes of a call
T = TypeVar("T")
_PROMPTS = Path(__file__).parents[1] / "prompts"
_SCRIPT = """#!/bin/sh
calls=$(dirname "$0")/{folder}
name={tool}.$$.$(date +%s%N)
printf '%s' "$*" > "$calls/$name.part" && mv "$calls/$name.part" "$calls/$name.in" || exit 1
until [ -f "$calls/$name.out" ]; do sleep 0.05; done
cat "$calls/$name.out" && rm -f "$calls/$name.out"
"""


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands for the open tools of one rollout."""

    tools: Tools

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the workspace: one script for each tool, and the folder of the calls."""
        made = {
            tool.name: _SCRIPT.replace("{folder}", FOLDER).replace("{tool}", tool.name) for tool in self.tools.offered
        }
        return {name: script.encode() for name, script in made.items()} | {f"{FOLDER}/.keep": b""}

    @property
    def explained(self) -> str:
        """The description of the commands for the prompt."""
        lines = []
        for tool in self.tools.offered:
            about = {key: value.get("description", key) for key, value in _parameters(tool).items()}
            given = json.dumps(about) if len(about) != 1 else next(iter(about.values()))
            lines.append(f"- `sh ./{tool.name} '…'` {tool.description} In the quotes: {given}")
        text = (_PROMPTS / "commands.md").read_text(encoding="utf-8").strip()
        return text.replace("{commands}", "\n".join(lines))

    async def beside(self, work: Awaitable[T], root: Path) -> T:
        """The result of `work`, while the calls from the workspace at `root` are answered. If a tool fails by itself,
        the work is cancelled, and the failure is raised."""
        serving, working = background(self._serve(root)), background(_awaited(work))
        try:
            await asyncio.wait((serving, working), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                working.cancel()
                await asyncio.wait([working])
                serving.result()  # raises
            return working.result()
        finally:
            serving.cancel()
            working.cancel()
            await asyncio.wait([serving, working])

    async def _serve(self, root: Path) -> None:
        while True:
            for name, text in _calls(root):
                with suppress(OSError):  # the agent may have removed its folder
                    _answer(root, name, await self._result(name.partition(".")[0], text))
            await asyncio.sleep(POLL_S)

    async def _result(self, name: str, text: str) -> str:
        offered = {tool.name: tool for tool in self.tools.offered}
        parameters = _parameters(offered[name]) if name in offered else {}
        if len(parameters) == 1:
            text = json.dumps({next(iter(parameters)): text})
        try:
            given = arguments(ToolCall("", name, text), offered)
            return shortened(await of_environment(self.tools, name, given))
        except ToolError as error:
            return f"[error]\n{error}"


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _parameters(tool: Tool) -> Mapping[str, Mapping[str, str]]:
    return tool.parameters.get("properties", {})


def _calls(root: Path) -> list[tuple[str, str]]:
    """The calls that wait in a workspace, oldest first, as (name, text). They are removed there."""
    found = []
    with suppress(OSError), _folder(root) as folder:
        names = [name for name in os.listdir(folder) if name.endswith(".in")]
        for name in sorted(names, key=lambda name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns):
            text = b""
            with suppress(OSError):
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                with os.fdopen(file, "rb") as content:
                    if stat.S_ISREG(os.fstat(file).st_mode):
                        text = content.read(LONGEST)
            try:
                os.unlink(name, dir_fd=folder)
            except OSError:  # a folder of that name
                continue
            found.append((name.removesuffix(".in"), text.decode("utf-8", "replace")))
    return found


def _answer(root: Path, name: str, text: str) -> None:
    with _folder(root) as folder:
        new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(f"{name}.new", new, 0o600, dir_fd=folder), "wb") as file:
            file.write(f"{text}\n".encode("utf-8", "replace"))
        os.rename(f"{name}.new", f"{name}.out", src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _folder(root: Path) -> Iterator[int]:
    """The folder of the calls, reached without following a link. Raises OSError."""
    place = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in (root.name, "work", FOLDER):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = below
        yield place
    finally:
        os.close(place)
