"""A chat model with tools: a bounded loop of tool calls in a workspace and a sandbox.

So tasks with files train on any chat model without an agent's command line. The rollout is one unit of the budget. A
failed call is repeated where the loop stands. Each answer is journaled, so a rollout that starts again after a kill is
answered from the journal as far as its tools print the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import regex

from skilltune.envs.task import Task
from skilltune.errors import InfraError, Outcome
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, exchange_kind
from skilltune.metering.client import Client
from skilltune.models import Message, Reply, Request, Tool, ToolCall, ToolResult
from skilltune.rollout import THINKING, Trajectory, Turn
from skilltune.sandbox import Command, Limits, Policy, Sandbox, describe
from skilltune.skill import Skill
from skilltune.targets.agents.job import KEPT, gone, left_files, readable, reading
from skilltune.targets.chat import GUESSED_ANSWER, with_skill
from skilltune.usage import Usage, minus
from skilltune.workspace import Workspace, changes, close_workspace, open_workspace

MAX_TURNS = 20  # if target.max_turns is not set
GUESSED_CALLS = 4  # calls of a rollout, before the first one
SHOWN = 20_000  # characters of a tool's output that the model sees: its beginning and its end
READ_BYTES = 2_000_000  # of a file
FOUND = 200  # paths or lines that `glob` and `grep` list
COMMAND = Limits(wall_s=120, cpu_s=120, memory_mb=2_000, processes=200, file_mb=500, output_bytes=200_000)
PATTERN_S = 5.0


def _tool(name: str, description: str, **parameters: str) -> Tool:
    """A tool whose parameters are all text. One whose description begins with "optional" may be left out."""
    needed = [key for key, text in parameters.items() if not text.startswith("optional")]
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    return Tool(name, description, {"type": "object", "properties": properties, "required": needed})


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        _tool("bash", "Run a shell command in the current folder and see its output.", command="the command"),
        _tool("python", "Run a Python program in the current folder and see what it prints.", code="the program"),
        _tool("read", "Read a text file.", path="path of the file"),
        _tool("write", "Write a text file. An existing file is replaced.", path="path of the file", content="its text"),
        _tool("glob", "List the files that match a pattern.", pattern="for example **/*.csv"),
        _tool("grep", "Search text files line by line.", pattern="regular expression", path="optional: file or folder"),
    )
}


class ToolError(Exception):
    """A tool call that failed. The model sees the message."""


@dataclass(slots=True)
class _Talk:
    """The state of a rollout: it outlives a failed call. `usage` is the cost of its answers, and `paid` of those that
    this process paid for."""

    key: str
    sample: str
    messages: list[Message]
    workspace: Workspace
    usage: Usage = field(default_factory=lambda: Usage(usd=0.0))
    paid: Usage = field(default_factory=lambda: Usage(usd=0.0))
    turns: list[Turn] = field(default_factory=list)
    said: str = ""
    taken: int = 0


@dataclass(frozen=True, slots=True)
class ToolsTarget:
    """Implements `Target`: a chat model that works with tools until it answers without calling one.

    The skill's body is the system message. The task's files are in the workspace. After `max_turns` requests the
    outcome is `agent_limit`, and the last text counts as the answer.
    """

    client: Client
    tools: tuple[str, ...]
    sandbox: Sandbox
    parent: Path
    hidden: tuple[Path, ...] = ()
    max_turns: int = MAX_TURNS
    temperature: float | None = None
    max_tokens: int | None = None

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def learned(self) -> Mapping[str, str]:
        return self.client.learned

    @property
    def fingerprint(self) -> str:
        options = self.tools, self.max_turns, self.temperature, self.max_tokens, self.sandbox.level
        return digest("tools", self.client.fingerprint, *options)

    def request(self, messages: tuple[Message, ...], attempt: int) -> Request:
        offered = tuple(TOOLS[name] for name in self.tools)
        return Request(messages, self.temperature, self.max_tokens, draw=attempt, tools=offered)

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences about the target for `check`, `doctor` and the card."""
        return (f"the tools of the target run in {describe(self.sandbox)}",)

    def guess(self, skill: Skill, task: Task) -> Usage:
        request = self.request(with_skill(skill.body, task.messages), 0)
        one = self.client.bound(replace(request, max_tokens=self.max_tokens or GUESSED_ANSWER))
        calls = min(GUESSED_CALLS, self.max_turns)
        return sum([one] * (calls - 1), one)

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        began = time.monotonic()
        asked = with_skill(skill.body, with_names(task))
        names = [(name, digest(data.hex())) for name, data in sorted(task.files.items())]
        said = [(m.role, m.text, [image.base64 for image in m.images]) for m in asked]
        key = digest("tools rollout", self.fingerprint, task.id, said, names, attempt)
        workspace = await asyncio.to_thread(open_workspace, self.parent, key, task.files)
        turns = [Turn(m.role, m.text) for m in asked if m.role != "system"]
        talk = _Talk(key, task.id, [*asked], workspace, turns=turns)
        meter, done = self.client.meter, None
        try:
            done = await meter(lambda: self._go_on(talk, attempt), self.guess(skill, task))
            self.client.note_learned()
            left = await asyncio.to_thread(changes, workspace)
        finally:  # also at the end of the budget, and if the rollout is cancelled
            counted = Usage() if done is None else done.usage  # by the meter, replayed answers too
            meter.budget.spend(minus(talk.paid, counted))
            await asyncio.to_thread(close_workspace, workspace)
        assert done is not None
        seconds = round(time.monotonic() - began, 4)
        return replace(done, seconds=seconds, artifacts=left_files(left), deleted=gone(left), diff=left.diff)

    async def _go_on(self, talk: _Talk, attempt: int) -> Trajectory:
        """The loop, from where it stands."""
        while talk.taken < self.max_turns:
            reply = await self._ask(talk, self.request(tuple(talk.messages), attempt))
            talk.taken, talk.usage = talk.taken + 1, talk.usage + reply.usage
            self._note(talk, reply)
            if not reply.tool_calls:
                cut = reply.finish == "length"
                error = "the answer was cut at max_tokens" if cut else ""
                return self._ended(talk, "agent_limit" if cut else "ok", error)
            results = [await self._result(call, talk) for call in reply.tool_calls]
            talk.messages += [
                Message("assistant", reply.text, tool_calls=reply.tool_calls),
                Message("user", "", tool_results=tuple(results)),
            ]
        return self._ended(talk, "agent_limit", f"no answer within {self.max_turns} requests (target.max_turns)")

    async def _ask(self, talk: _Talk, request: Request) -> Reply:
        """The answer to a request of this rollout, paid once per run."""

        async def pay() -> Paid:
            try:
                reply = await self.client.model.complete(request)
            except InfraError as failure:
                failure.guess = self.client.bound(request)  # one call failed, not a whole rollout
                raise
            talk.paid += reply.usage
            return Paid(_stored(reply, talk.sample), reply.usage)

        meter = self.client.meter
        said = [(m.text, [asdict(c) for c in m.tool_calls], [asdict(r) for r in m.tool_results]) for m in talk.messages]
        key = digest("tools exchange", talk.key, said)
        stored = await meter.journal.memo(key, exchange_kind(meter.kind or meter.role), pay)
        with meter.journal.reading():
            return _restored(stored)

    def _note(self, talk: _Talk, reply: Reply) -> None:
        talk.said = reply.text or talk.said
        if reply.thinking:
            talk.turns.append(Turn(THINKING, reply.thinking))
        if reply.text:
            talk.turns.append(Turn("assistant", reply.text))

    def _ended(self, talk: _Talk, outcome: Outcome, error: str) -> Trajectory:
        return Trajectory(talk.said, tuple(talk.turns), outcome, error, talk.usage, journaled=True)

    async def _result(self, call: ToolCall, talk: _Talk) -> ToolResult:
        talk.turns.append(Turn("tool call", f"{call.name} {call.arguments}"))
        try:
            text, failed = await self._do(call, talk.workspace), False
        except ToolError as error:
            text, failed = str(error), True
        text = shortened(text) or "(no output)"
        talk.turns.append(Turn("tool", f"[error]\n{text}" if failed else text))
        return ToolResult(call.id, text, failed)

    async def _do(self, call: ToolCall, ws: Workspace) -> str:
        given = arguments(call, self.tools)
        root = ws.work.resolve()
        match call.name:
            case "bash":
                return await self._command(("bash", "-c", given["command"]), ws)
            case "python":
                return await self._command((sys.executable, "-c", given["code"]), ws)
            case "read":
                return await asyncio.to_thread(read_file, root, given["path"])
            case "write":
                return await asyncio.to_thread(write_file, root, given["path"], given["content"])
            case "glob":
                return await asyncio.to_thread(glob, root, given["pattern"])
            case _:
                return await asyncio.to_thread(grep, root, given["pattern"], given.get("path", "."))

    async def _command(self, argv: tuple[str, ...], ws: Workspace) -> str:
        env = {name: os.environ[name] for name in KEPT if name in os.environ}
        command = Command(argv, ws.work, {"LANG": "C.UTF-8", **env, "HOME": str(ws.home), "TMPDIR": str(ws.tmp)})
        policy = reading(Policy((ws.root,), hidden=self.hidden, connect=()), ws, readable(command, hidden=self.hidden))
        exit = await self.sandbox.run(command, policy, COMMAND)
        output = (exit.stdout + exit.stderr).decode("utf-8", "replace").rstrip()
        if exit.limit:
            return f"{output}\n[ended by the limit {exit.limit}]"
        return f"{output}\n[exit code {exit.code}]" if exit.code else output

    def usd(self, usage: Usage) -> float | None:
        return self.client.usd(usage)

    async def aclose(self) -> None:
        await self.client.aclose()


def _stored(reply: Reply, sample: str) -> dict[str, Any]:
    """An answer as JSON data, for the journal."""
    calls = [asdict(call) for call in reply.tool_calls]
    data = {"text": reply.text, "finish": reply.finish, "thinking": reply.thinking, "calls": calls}
    return data | {"usage": reply.usage.to_json(), "sample": sample}


def _restored(data: Mapping[str, Any]) -> Reply:
    calls = tuple(ToolCall(**call) for call in data["calls"])
    return Reply(data["text"], Usage(**data["usage"]), data["finish"], data["thinking"], calls)


def with_names(task: Task) -> tuple[Message, ...]:
    """The messages; the last of the user's ends with the names of the files in the workspace."""
    if not task.files:
        return task.messages
    last = max(i for i, message in enumerate(task.messages) if message.role == "user")
    named = f"{task.messages[last].text}\n\nFiles in the current folder: {', '.join(sorted(task.files))}"
    return (*task.messages[:last], replace(task.messages[last], text=named), *task.messages[last + 1 :])


def arguments(call: ToolCall, offered: tuple[str, ...]) -> dict[str, str]:
    """The checked arguments of a call. Raises `ToolError` that tells the model how to call."""
    if call.name not in offered:
        raise ToolError(f"there is no tool {call.name}; there are: {', '.join(offered)}")
    schema = TOOLS[call.name].parameters
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the arguments are not JSON: {error}") from None
    if not isinstance(given, dict) or any(key not in given for key in schema["required"]):
        raise ToolError(f"{call.name} needs the arguments {', '.join(schema['required'])}")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}


def shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


# -- tools without a process: they never leave the workspace, also not by a link


def inside(root: Path, name: str) -> Path:
    """A path below `root`, which has no links. Raises `ToolError` if it leads out."""
    try:
        path = (root / name).resolve()
        path.exists()  # raises for a name that is too long
    except (OSError, ValueError, RuntimeError):
        raise ToolError(f"{name!r} is no path") from None
    if not path.is_relative_to(root):
        raise ToolError(f"{name} is outside of the current folder")
    return path


def read_file(root: Path, name: str) -> str:
    path = inside(root, name)
    if not path.is_file():
        raise ToolError(f"there is no file {name}")
    if path.stat().st_size > READ_BYTES:
        raise ToolError(f"{name} is too large to read at once ({path.stat().st_size:,} bytes)")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ToolError(f"{name} is not a text file") from None
    except OSError as error:
        raise ToolError(f"{name}: {error.strerror}") from None


def write_file(root: Path, name: str, content: str) -> str:
    path = inside(root, name)
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise ToolError(f"{name} is not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ToolError(f"{name}: {error.strerror}") from None
    return f"{name} is written ({len(content):,} characters)"


def glob(root: Path, pattern: str) -> str:
    wanted = tuple(part for part in pattern.split("/") if part != ".")
    if ".." in wanted or not all(wanted):
        raise ToolError(f"{pattern!r} is no pattern of paths below the current folder")
    found = (str(path.relative_to(root)) for path in _files(root))
    return _listed(sorted(name for name in found if _matches(tuple(name.split("/")), wanted)))


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """True if the parts of a path match those of a pattern, in which `**` stands for any number of folders."""
    if not parts or not wanted:
        return not parts and not [part for part in wanted if part != "**"]
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def grep(root: Path, pattern: str, place: str) -> str:
    try:
        wanted = regex.compile(pattern)
    except regex.error as error:
        raise ToolError(f"{pattern!r} is no regular expression: {error}") from None
    start = inside(root, place or ".")
    files = [start] if start.is_file() else sorted(_files(start))
    found: list[str] = []
    ends = time.monotonic() + PATTERN_S
    for path in files:
        try:
            lines = read_file(root, str(path.relative_to(root))).splitlines()
        except ToolError:
            continue
        for number, line in enumerate(lines, 1):
            try:
                if wanted.search(line, timeout=max(0.01, ends - time.monotonic())):
                    found.append(f"{path.relative_to(root)}:{number}:{line}")
            except TimeoutError:
                raise ToolError(f"{pattern!r} takes longer than {PATTERN_S:g} s: simplify it") from None
    return _listed(found)


def _files(folder: Path) -> Iterator[Path]:
    """The regular files below a folder, without links and without those of git. No link is followed, because it may
    lead to the whole disk."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _listed(found: list[str]) -> str:
    more = f"\n… and {len(found) - FOUND:,} more" if len(found) > FOUND else ""
    return "\n".join(found[:FOUND]) + more if found else "nothing found"
