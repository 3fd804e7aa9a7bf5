"""A chat model with tools: a bounded loop of tool calls in a workspace and a sandbox.

So tasks with files train on any chat model without an agent's command line. The tools of the environment, if it offers
some, stand beside the loop's own. The rollout is one unit of the budget. A failed call is repeated where the loop
stands. Each answer is journaled, so a rollout that starts again after a kill is answered from the journal as far as its
tools print the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from skilltune.envs.task import Task
from skilltune.envs.tools import Tools
from skilltune.errors import CallError, InfraError, Outcome, SkilltuneError, UsageError
from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, exchange_kind
from skilltune.metering.client import Client
from skilltune.models import Message, Reply, Request, Tool, ToolCall, ToolResult
from skilltune.rollout import THINKING, Artifact, Trajectory, Turn
from skilltune.sandbox import Command, Limits, Policy, Sandbox, describe
from skilltune.skill import Skill
from skilltune.targets.agents.job import KEPT, gone, left_files, readable, reading
from skilltune.targets.chat import GUESSED_ANSWER, with_skill
from skilltune.targets.text_calls import NO_CALL, call_in, explained, observed
from skilltune.usage import Usage, minus
from skilltune.workspace import Workspace, changes, close_workspace, open_workspace
from skilltune.workspace.tools import GLOB, GREP, READ, WRITE, ToolError, glob, grep, read_file, text_tool, write_file

MAX_TURNS = 20  # if target.max_turns is not set
GUESSED_CALLS = 4  # calls of a rollout, before the first one
ARGUMENT_BYTES = 100_000  # of a program; Linux starts none with an argument of 128 kB
SHOWN = 20_000  # characters of a tool's output that the model sees: its beginning and its end
COMMAND = Limits(wall_s=120, cpu_s=120, memory_mb=2_000, processes=200, file_mb=500, output_bytes=200_000)
Calls = Literal["native", "text"]
"""The way in which a model calls tools: by its endpoint's function calling, or by a line of its answer."""


TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        text_tool("bash", "Run a shell command in the current folder and see its output.", command="the command"),
        text_tool("python", "Run a Python program in the current folder and see what it prints.", code="the program"),
        READ,
        WRITE,
        GLOB,
        GREP,
    )
}


@dataclass(slots=True)
class _Talk:
    """The state of a rollout: it outlives a failed call. `usage` is the cost of its answers, and `paid` of those that
    this process paid for."""

    key: str
    sample: str
    messages: list[Message]
    workspace: Workspace
    offered: Mapping[str, Tool]  # by name
    given: Tools | None  # the environment's tools, open
    usage: Usage = field(default_factory=lambda: Usage(usd=0.0))
    paid: Usage = field(default_factory=lambda: Usage(usd=0.0))
    turns: list[Turn] = field(default_factory=list)
    said: str = ""
    taken: int = 0


class _EnvironmentFailed(Exception):
    """A tool of the environment failed. A repeated call cannot help, because the state of the tools is lost."""


def no_tools(task: Task) -> None:
    """An environment that offers no tools."""


@dataclass(frozen=True, slots=True)
class ToolsTarget:
    """Implements `Target`: a chat model that works with tools until it answers without calling one.

    The skill's body is the system message. The task's files are in the workspace. After `max_turns` requests the
    outcome is `agent_limit`, and the last text counts as the answer. `offers` returns the tools of the environment for
    one rollout. If they fail by themselves, `run` raises `InfraError`, and the rollout is worth another from its
    beginning. With `calls` "text" the model needs no function calling: it calls a tool in the text of its answer.
    """

    client: Client
    tools: tuple[str, ...]
    sandbox: Sandbox
    parent: Path
    hidden: tuple[Path, ...] = ()
    max_turns: int = MAX_TURNS
    temperature: float | None = None
    max_tokens: int | None = None
    offers: Callable[[Task], Tools | None] = no_tools
    calls: Calls = "native"

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def learned(self) -> Mapping[str, str]:
        return self.client.learned

    @property
    def fingerprint(self) -> str:
        options = self.tools, self.max_turns, self.temperature, self.max_tokens, self.sandbox.level
        return digest("tools", self.client.fingerprint, *options, *(["text"] if self.calls == "text" else []))

    def request(self, messages: tuple[Message, ...], attempt: int, offered: Iterable[Tool]) -> Request:
        callable_tools = tuple(offered) if self.calls == "native" else ()
        return Request(messages, self.temperature, self.max_tokens, draw=attempt, tools=callable_tools)

    @property
    def facts(self) -> tuple[str, ...]:
        """Sentences about the target for `check`, `doctor` and the card."""
        return (f"the tools of the target run in {describe(self.sandbox)}",) if self.tools else ()

    def offered(self, given: Tools | None) -> dict[str, Tool]:
        """All tools of a rollout by name. Raises `UsageError` if the environment has one of the same name."""
        theirs = {tool.name: tool for tool in given.offered} if given is not None else {}
        if twice := sorted(theirs.keys() & set(self.tools)):
            raise UsageError(f"target.tools: the environment has a tool {twice[0]} of its own; leave it out there")
        return {name: TOOLS[name] for name in self.tools} | theirs

    def asked(self, skill: Skill, task: Task, offered: Mapping[str, Tool]) -> tuple[Message, ...]:
        """The first messages of a rollout."""
        notes = [explained(offered.values())] if self.calls == "text" else []
        return with_skill(skill.body, with_notes(with_names(task), notes))

    def guess(self, skill: Skill, task: Task) -> Usage:
        offered = self.offered(self.offers(task))
        request = self.request(self.asked(skill, task, offered), 0, offered.values())
        one = self.client.bound(replace(request, max_tokens=self.max_tokens or GUESSED_ANSWER))
        calls = min(GUESSED_CALLS, self.max_turns)
        return sum([one] * (calls - 1), one)

    async def run(self, skill: Skill, task: Task, attempt: int) -> Trajectory:
        began = time.monotonic()
        given = self.offers(task)
        offered = self.offered(given)
        asked = self.asked(skill, task, offered)
        names = [(name, digest(data.hex())) for name, data in sorted(task.files.items())]
        said = [(m.role, m.text, [image.base64 for image in m.images]) for m in asked]
        key = digest("tools rollout", self.fingerprint, task.id, said, names, attempt)
        workspace = await asyncio.to_thread(open_workspace, self.parent, key, task.files)
        talk = _Talk(key, task.id, [], workspace, offered, given)
        meter, done, kept = self.client.meter, None, {}
        try:
            async with opened(given, task):
                opening = [given.opening] if given is not None and given.opening else []
                talk.messages += with_notes(asked, opening)
                talk.turns += [Turn(m.role, m.text) for m in talk.messages if m.role != "system"]
                done = await meter(lambda: self._go_on(talk, attempt), self.guess(skill, task))
                kept = {path: Artifact.of(data) for path, data in given.left().items()} if given is not None else {}
            self.client.note_learned()
            left = await asyncio.to_thread(changes, workspace)
        finally:  # also at the end of the budget, and if the rollout is cancelled
            counted = Usage() if done is None else done.usage  # by the meter, replayed answers too
            meter.budget.spend(minus(talk.paid, counted))
            await asyncio.to_thread(close_workspace, workspace)
        assert done is not None
        seconds = round(time.monotonic() - began, 4)
        artifacts = left_files(left) | kept
        return replace(done, seconds=seconds, artifacts=artifacts, deleted=gone(left), diff=left.diff)

    async def _go_on(self, talk: _Talk, attempt: int) -> Trajectory:
        """The loop, from where it stands."""
        while talk.taken < self.max_turns:
            reply = await self._ask(talk, self.request(tuple(talk.messages), attempt, talk.offered.values()))
            talk.taken, talk.usage = talk.taken + 1, talk.usage + reply.usage
            self._note(talk, reply)
            calls = reply.tool_calls if self.calls == "native" else call_in(reply.text, talk.offered.values())
            if not calls and reply.finish == "length":
                return self._ended(talk, "agent_limit", "the answer was cut at max_tokens")
            if not calls and not (talk.given is not None and talk.given.decides):
                return self._ended(talk, "ok", "")
            results = [await self._result(call, talk) for call in calls]
            if talk.given is not None and talk.given.over:
                return self._ended(talk, "ok", "")
            if not results:
                talk.turns.append(Turn("user", NO_CALL))
                talk.messages += [Message("assistant", reply.text), Message("user", NO_CALL)]
            elif self.calls == "native":
                talk.messages += [
                    Message("assistant", reply.text, tool_calls=reply.tool_calls),
                    Message("user", "", tool_results=tuple(results)),
                ]
            else:
                talk.messages += [Message("assistant", reply.text), Message("user", observed(results))]
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
            text, failed = await self._do(call, talk), False
        except ToolError as error:
            text, failed = str(error), True
        text = shortened(text) or "(no output)"
        talk.turns.append(Turn("tool", f"[error]\n{text}" if failed else text))
        return ToolResult(call.id, text, failed)

    async def _do(self, call: ToolCall, talk: _Talk) -> str:
        given, ws = arguments(call, talk.offered), talk.workspace
        root = ws.work.resolve()
        if call.name not in self.tools:
            return await of_environment(talk.given, call.name, given)
        match call.name:
            case "bash":
                return await self._command(("bash", "-c", argument(given["command"])), ws)
            case "python":
                return await self._command((sys.executable, "-c", argument(given["code"])), ws)
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


async def of_environment(tools: Tools | None, name: str, given: Mapping[str, str]) -> str:
    assert tools is not None
    try:
        return await tools.call(name, given)
    except ToolError:
        raise
    except Exception as error:
        raise _EnvironmentFailed(f"the environment's tool {name} failed: {_said(error)}") from error


def _stored(reply: Reply, sample: str) -> dict[str, Any]:
    """An answer as JSON data, for the journal."""
    calls = [asdict(call) for call in reply.tool_calls]
    data = {"text": reply.text, "finish": reply.finish, "thinking": reply.thinking, "calls": calls}
    return data | {"usage": reply.usage.to_json(), "sample": sample}


def _restored(data: Mapping[str, Any]) -> Reply:
    calls = tuple(ToolCall(**call) for call in data["calls"])
    return Reply(data["text"], Usage(**data["usage"]), data["finish"], data["thinking"], calls)


@asynccontextmanager
async def opened(tools: Tools | None, task: Task) -> AsyncGenerator[None]:
    """The environment's tools, open. Raises `InfraError` if they cannot be opened, or failed while in use."""
    if tools is None:
        yield
        return
    where = f'sample "{task.id}": '
    try:
        await tools.__aenter__()
    except SkilltuneError:
        raise
    except Exception as error:
        raise InfraError(f"{where}the environment's tools cannot be opened: {_said(error)}") from error
    try:
        yield
    except _EnvironmentFailed as error:
        if isinstance(error.__cause__, CallError):
            raise error.__cause__ from None
        raise InfraError(f"{where}{error}") from error.__cause__
    finally:
        with suppress(Exception):  # the rollout is paid, whatever happens to its tools now
            await tools.__aexit__(None, None, None)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def with_names(task: Task) -> tuple[Message, ...]:
    """The messages; the last of the user's ends with the names of the files in the workspace."""
    named = [f"Files in the current folder: {', '.join(sorted(task.files))}"] if task.files else []
    return with_notes(task.messages, named)


def with_notes(messages: tuple[Message, ...], notes: list[str]) -> tuple[Message, ...]:
    """The messages with notes at the end of the user's last one."""
    if not notes:
        return messages
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    text = "\n\n".join((messages[last].text, *notes))
    return (*messages[:last], replace(messages[last], text=text), *messages[last + 1 :])


def arguments(call: ToolCall, offered: Mapping[str, Tool]) -> dict[str, str]:
    """The checked arguments of a call. Raises `ToolError` that tells the model how to call."""
    if call.name not in offered:
        raise ToolError(f"there is no tool {call.name}; there are: {', '.join(offered)}")
    schema = offered[call.name].parameters
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the arguments are not JSON: {error}") from None
    needed = schema.get("required", ())
    if not isinstance(given, dict) or any(key not in given for key in needed):
        raise ToolError(f"{call.name} needs the arguments {', '.join(needed) or 'as a JSON object'}")
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}


def argument(text: str) -> str:
    """A text that a program can be given. Raises `ToolError` for one that no program can be started with."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ToolError(f"its character {error.start + 1} is half a surrogate pair: write the whole one") from None
    if "\0" in text:
        raise ToolError(f"its character {text.index(chr(0)) + 1} is a NUL, which no program can be given")
    if size > ARGUMENT_BYTES:
        raise ToolError(f"it has {size:,} bytes, and at most {ARGUMENT_BYTES:,} can be run: write parts to files first")
    return text


def shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
