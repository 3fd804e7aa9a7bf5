"""Runs one command to its end, bounded in time, processor, memory, processes and output, and leaves no process behind.

A small supervisor (`supervisor.py`) stands between this process and the command. It adopts the command's orphans, so
that a daemonised grandchild is found and ended; it ends them all if this process dies.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from errno import E2BIG, EACCES, ELOOP, ENOENT, ENOEXEC, ENOTDIR, EPERM
from pathlib import Path
from typing import Any

from skilltune.aio import background
from skilltune.errors import CallConfigError, InfraError
from skilltune.sandbox import supervisor
from skilltune.sandbox.supervisor import MARK, marked

GRACE_S = 5.0  # time between SIGTERM and SIGKILL
LATE_S = 60.0  # time after which a supervisor that should have ended is killed (the command may have stopped it)
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one command; None means no limit. All but `file_mb` (per file) hold for the whole tree of processes.

    `memory_mb` is private resident memory. Processor, memory and processes are looked at every 0.1 s, so a command can
    pass them for that long. `output_bytes` is kept of each stream; the command may print more.
    """

    wall_s: float
    cpu_s: float | None = None
    memory_mb: int | None = None
    processes: int | None = None
    file_mb: int | None = None
    output_bytes: int = 8_000_000


@dataclass(frozen=True, slots=True)
class Command:
    """A command line. `env` is complete: nothing is inherited (one variable, `supervisor.MARK`, is added)."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a command.

    `code` is negative for a signal and None if the command could not be waited for. `limit` names the limit of `Limits`
    that ended it, or is "". `timed_out` is True for the limits of time, `wall_s` and `cpu_s`. `survivors` counts
    processes that lived on after the command and were killed. `truncated` is True if a stream is kept in part (its
    beginning and its end).
    """

    code: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float
    cpu_s: float
    survivors: int
    truncated: bool
    limit: str = ""


async def run_process(command: Command, limits: Limits, *, on_line: Callable[[bytes], None] | None = None) -> Exit:
    """Run a command in a session of its own and return when its last process has ended.

    Stdin is closed after its bytes. Both streams are drained all the time. `on_line` gets each line of stdout without
    its end as it comes; of a line longer than `limits.output_bytes` it gets the beginning. A time-out is a result.
    Raises CallConfigError if the command cannot be started, InfraError if its supervisor was killed, and whatever
    `on_line` raises. If the caller is cancelled, the tree is ended first.
    """
    mark = command.env.get(MARK) or _mark(command)
    spec = _spec(command, limits, mark)
    stdin = _content(command.stdin)
    try:
        listen, control = os.pipe()
        status, report = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                os.path.realpath(sys.executable),
                *("-I", "-S", supervisor.__file__, str(spec), str(listen), str(report)),
                stdin=stdin,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(spec, listen, report),
                start_new_session=True,
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
            )
        except BaseException:
            os.close(control)
            os.close(status)
            raise
        finally:
            os.close(listen)
            os.close(report)
    finally:
        os.close(spec)
        os.close(stdin)
    running = _Running(process, control, mark, limits)
    return await running.end(command, status, on_line)


def _mark(command: Command) -> str:
    """A mark that is equal when the command is run again, because an agent may print its environment."""
    return hashlib.blake2b("\0".join((str(command.cwd), *command.argv)).encode("utf-8", "surrogateescape")).hexdigest()[
        :16
    ]


def _spec(command: Command, limits: Limits, mark: str) -> int:
    env = {**command.env, MARK: mark}
    for text in (*command.argv, *env, *env.values()):
        if "\0" in text:
            raise CallConfigError(f"an argument or variable of {command.argv[0]} contains a zero byte: {text[:80]!r}")
    job: dict[str, Any] = {"argv": command.argv, "cwd": os.path.abspath(command.cwd), "env": env, "grace_s": GRACE_S}
    return _content(json.dumps({**job, **asdict(limits)}).encode())


def _content(data: bytes) -> int:
    """A descriptor from which the data can be read: an unnamed file, so that nobody has to write while others read."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY)
    if sys.platform == "linux":
        memory = os.memfd_create("skilltune")
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(data)
        os.lseek(memory, 0, os.SEEK_SET)
        return memory
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return os.dup(file.fileno())


@dataclass(slots=True, eq=False)
class _Running:
    """A supervisor and its command."""

    process: asyncio.subprocess.Process
    control: int
    mark: str
    limits: Limits

    async def end(self, command: Command, status: int, on_line: Callable[[bytes], None] | None) -> Exit:
        kept = [_Kept(self.limits.output_bytes), _Kept(self.limits.output_bytes)]
        lines = _Lines(on_line, self.limits.output_bytes) if on_line else None
        streams = zip((self.process.stdout, self.process.stderr), kept, (lines, None), strict=True)
        work = background(self._waited(status, [_drain(*stream) for stream in streams]))
        try:
            told = await asyncio.shield(work)
        except BaseException:
            self._close()
            with suppress(Exception):
                await work
            raise
        finally:
            self._close()
        if "failed" in told:
            raise _not_started(command, told["failed"], told["stage"])
        if "code" not in told:
            raise InfraError(f"{command.argv[0]}: its supervisor was killed, so its end is unknown")
        limit = told["limit"] if told["limit"] != "closed" else ""
        return Exit(
            code=told["code"],
            stdout=kept[0].content(),
            stderr=kept[1].content(),
            timed_out=limit in ("wall_s", "cpu_s"),
            seconds=told["seconds"],
            cpu_s=told["cpu_s"],
            survivors=told["survivors"],
            truncated=any(part.left_out for part in kept),
            limit=limit,
        )

    def _close(self) -> None:
        """Tell the supervisor to end the command."""
        if self.control >= 0:
            os.close(self.control)
            self.control = -1

    async def _waited(self, status: int, drains: list[Any]) -> dict[str, Any]:
        """The supervisor's report, after both streams and the supervisor have ended."""
        reader = background(_read_all(status))
        streams = background(_first_error(drains))
        try:
            latest = self.limits.wall_s + GRACE_S + supervisor.KILL_S + LATE_S
            ended, _ = await asyncio.wait({streams, reader}, timeout=latest, return_when=asyncio.FIRST_COMPLETED)
            if streams in ended:  # all processes have closed their output, or `on_line` failed
                if streams.exception():
                    self._close()
                ended, _ = await asyncio.wait({reader}, timeout=latest)
            if not ended:
                with suppress(ProcessLookupError):
                    self.process.kill()
            told = _told(await reader)
            if not told.keys() & {"code", "failed"}:  # what is left of the tree holds the streams open
                await asyncio.to_thread(_end_marked, self.mark)
            await asyncio.wait({streams}, timeout=GRACE_S)  # longer only if a process could not be ended
            if streams.done():
                streams.result()
                await self.process.wait()
            return told
        finally:
            streams.cancel()
            reader.cancel()


def _told(report: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for line in report.splitlines():
        told |= json.loads(line)
    return told


async def _first_error(drains: list[Any]) -> None:
    await asyncio.gather(*drains)


async def _read_all(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()


async def _drain(stream: asyncio.StreamReader | None, kept: _Kept, lines: _Lines | None) -> None:
    assert stream is not None
    while chunk := await stream.read(CHUNK):
        kept.add(chunk)
        if lines:
            lines.add(chunk)
    if lines:
        lines.finish()


@dataclass(slots=True)
class _Kept:
    """The first and the last half of a stream."""

    most: int
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    left_out: int = 0

    def add(self, chunk: bytes) -> None:
        room = self.most - self.most // 2 - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[max(room, 0) :]
        if len(self.tail) > self.most + CHUNK:  # cut rarely, because a cut moves the rest
            self._cut()

    def _cut(self) -> None:
        over = len(self.tail) - self.most // 2
        if over > 0:
            self.left_out += over
            del self.tail[:over]

    def content(self) -> bytes:
        self._cut()
        gap = f"\n[{self.left_out} bytes left out]\n".encode() if self.left_out else b""
        return bytes(self.head) + gap + bytes(self.tail)


@dataclass(slots=True)
class _Lines:
    """Splits a stream into lines of any length. Only the first `most` bytes of a line are held."""

    on_line: Callable[[bytes], None]
    most: int
    rest: bytearray = field(default_factory=bytearray)

    def add(self, chunk: bytes) -> None:
        *ended, last = chunk.split(b"\n")
        for part in ended:
            self._extend(part)
            self._emit()
        self._extend(last)

    def _extend(self, part: bytes) -> None:
        self.rest += part[: self.most - len(self.rest)]

    def _emit(self) -> None:
        line = bytes(self.rest)
        self.rest.clear()
        self.on_line(line.removesuffix(b"\r"))

    def finish(self) -> None:
        if self.rest:
            self._emit()


def _not_started(command: Command, number: int, stage: str) -> CallConfigError | InfraError:
    name, reason = command.argv[0], os.strerror(number) if number else stage
    if stage == "cwd":
        return CallConfigError(f"{name} cannot start: its folder {command.cwd} cannot be entered ({reason})")
    if number == ENOENT and "/" not in name:
        return CallConfigError(
            f'there is no command "{name}" on the PATH {command.env.get("PATH", "")!r}: install it, or name its file'
        )
    if number == ENOENT and Path(command.cwd, name).exists():
        return CallConfigError(f"{name} cannot start: the interpreter that its first line names does not exist")
    if number in (ENOENT, ENOTDIR, ELOOP):
        return CallConfigError(f"{name} cannot start: there is no such file; check the path")
    if number in (EACCES, EPERM):
        return CallConfigError(
            f"{name} cannot start: it is not executable ({reason}); run chmod +x, or name its program"
        )
    if number == E2BIG:
        return CallConfigError(f"{name} cannot start: its arguments are too long; pass the text in a file or by stdin")
    if number == ENOEXEC:
        return CallConfigError(
            f'{name} cannot start: it is no program, and a script needs a first line such as "#!/bin/sh"'
        )
    return InfraError(f"{name} cannot start: {reason}") if number else CallConfigError(f"{name} cannot start: {reason}")


def _end_marked(mark: str) -> None:
    """End what a killed supervisor left."""
    for _ in range(100):
        if not (left := marked(mark)):
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, number)
