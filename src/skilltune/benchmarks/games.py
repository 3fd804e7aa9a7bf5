"""Text games as tools: one process per game, one tool `act`, and the state at the end as evidence.

The process speaks the protocol of `textworld_engine`. A process that ends, hangs or answers nonsense is a fault of the
environment, and never an observation.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from skilltune.aio import background
from skilltune.envs.task import Task
from skilltune.envs.tools import Tools
from skilltune.errors import InfraError
from skilltune.models import Tool
from skilltune.processes import signal_group
from skilltune.workspace.tools import text_tool

STATE = "game.json"  # the artifact with the state at the end
START_S, STEP_S = 120.0, 60.0  # seconds until an answer
LINE_BYTES = 4_000_000  # of one answer
END_S = 5.0  # seconds between the end of the input and a kill
LISTED = 200  # admissible commands that an observation lists
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "ALFWORLD_DATA", "SYSTEMROOT")
"""Variables that the process of a game inherits; it needs no key."""
ACT = text_tool("act", "Take one step in the game.", command="one of the admissible commands, letter by letter")


@dataclass(frozen=True)
class Games:
    """Gives each task its own game: `Env(…, tools=Games(engine, files, steps))`.

    engine: the command that plays a game, without the game.
    files:  the game of each task, by its id.
    steps:  most commands of a game; then it is over.
    """

    engine: tuple[str, ...]
    files: Mapping[str, Path] = field(hash=False)
    steps: int

    def __call__(self, task: Task) -> Game:
        return Game((*self.engine, str(self.files[task.id])), self.steps)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the engine's program and of the limit. The games belong to the samples."""
        program = Path(self.engine[-1])
        content = program.read_bytes() if program.is_file() else program.name.encode()
        return sha256(content + b"\0%d" % self.steps).hexdigest()


class Game(Tools):
    """A running game."""

    decides = True

    def __init__(self, command: tuple[str, ...], steps: int) -> None:
        self.command, self.steps = command, steps
        self._taken = 0
        self._state: dict[str, Any] = {}
        self._said: deque[bytes] = deque(maxlen=20)  # last lines of the engine's errors

    @property
    def offered(self) -> tuple[Tool, ...]:
        return (ACT,)

    @property
    def over(self) -> bool:
        return bool(self._state["won"] or self._state["lost"]) or self._taken >= self.steps

    @property
    def opening(self) -> str:
        goal = f"Goal: {self._state['goal']}\n\n" if self._state["goal"] not in self._state["text"] else ""
        return f"{goal}{self._observed(self._state['text'])}"

    async def __aenter__(self) -> Game:
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,
            limit=LINE_BYTES,
        )
        self._errors = background(self._drain())
        try:
            self._state = await self._answer(START_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), END_S if not failure or failure[0] is None else 0.1)
        finally:
            if process.returncode is None:
                signal_group(process.pid)
            self._errors.cancel()
            await process.wait()

    async def call(self, name: str, given: Mapping[str, str]) -> str:
        if self.over:
            return "The game is over."
        command = " ".join(given["command"].split())
        self._taken += 1
        admitted = {known.casefold(): known for known in self._state["commands"]}
        if command.casefold() not in admitted:  # others may save, load or restart the game
            return self._observed(f"{command[:100]!r} is no admissible command, so nothing happened.")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(admitted[command.casefold()].encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._ended() from None
        self._state = await self._answer(STEP_S)
        return self._observed(self._state["text"])

    def left(self) -> Mapping[str, bytes]:
        known = {key: self._state[key] for key in ("won", "lost", "score", "most")}
        return {STATE: json.dumps(known | {"steps": self._taken}).encode()}

    def _observed(self, text: str) -> str:
        """The text of a step, and what can be done next."""
        said = text.strip()
        if self.over:
            return f"{said}\n\nThe game is over."
        listed = ", ".join(self._state["commands"][:LISTED])
        return f"{said}\n\nAdmissible commands: {listed}\nSteps left: {self.steps - self._taken}"

    async def _answer(self, limit: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), limit)
        except TimeoutError:
            raise InfraError(
                f"the game did not answer within {limit:g} s", systemic="the game does not answer"
            ) from None
        except ValueError as error:
            raise InfraError(f"the game's answer is too long: {error}") from None
        if not line:
            raise await self._ended()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict) and "fault" in answer:
            raise InfraError(f"the game failed: {str(answer['fault'])[:500]}", systemic=str(answer["fault"])[:200])
        if (
            not isinstance(answer, dict)
            or not {"text", "goal", "commands", "won", "lost", "score", "most"} <= answer.keys()
        ):
            raise InfraError(f"the game's answer cannot be read: {line[:200]!r}")
        return answer

    async def _ended(self) -> InfraError:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._errors), 1.0)
        said = b"".join(self._said).decode(errors="replace").strip()[-400:] or "it printed nothing"
        return InfraError(f"the game ended by itself: {said}", systemic="the game ends by itself")

    async def _drain(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(1 << 16):
            self._said.append(chunk)


def textworld_engine() -> tuple[str, ...]:
    """The command that plays a TextWorld game."""
    return sys.executable, str(Path(__file__).with_name("textworld_engine.py"))
