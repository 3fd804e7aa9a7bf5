"""The worker processes that run Inspect, seen from skilltune's side. See `envs.inspect.worker`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skilltune.errors import InfraError, UsageError
from skilltune.processes import signal_group

Json = dict[str, Any]
NEEDED = ("inspect_ai", "openai")  # Inspect calls the gateway by OpenAI's client
LINE_BYTES = 256_000_000  # longest answer of a worker
SHOWN = 600  # characters of a worker's output in a message
GRACE_S = 60.0  # beyond the time limit: Inspect starts, ends a sample at its limit and scores it; then it is killed
ATTEMPTS = 3  # equal errors of a task's code in a row
_PRIVATE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|AUTH|^INSPECT_", re.IGNORECASE)


def require_inspect() -> None:
    """Raise `UsageError` if the extra `inspect` is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"Inspect tasks need {missing[0]}: pip install 'skilltune[inspect]'")


def ask_once(request: Json, timeout_s: float) -> Json:
    """The answer of a worker that is started for this request alone. Raises `UsageError` if it ends without one, or
    gives none within the time."""
    require_inspect()
    with tempfile.TemporaryDirectory(prefix="skilltune-inspect-") as logs, tempfile.TemporaryFile() as said:
        worker = subprocess.Popen(
            _command(),
            env=_environment(logs),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        )
        late = threading.Event()
        clock = threading.Timer(timeout_s, lambda: (late.set(), signal_group(worker.pid)))
        with worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            clock.start()
            try:
                with suppress(BrokenPipeError):
                    worker.stdin.write(_line(request))
                    worker.stdin.flush()
                answer = worker.stdout.readline()
            finally:
                clock.cancel()
                clock.join()
                signal_group(worker.pid)
        if not answer:
            said.seek(0)
            if late.is_set():
                raise UsageError(
                    f"it was not loaded within {timeout_s:g} s: raise target.timeout_s, or look for code in it that "
                    f"waits, such as a download. Its last output: {_tail(said.read())}"
                )
            raise UsageError(f"the process that runs Inspect ended early: {_tail(said.read())}")
    return json.loads(answer)


@dataclass(slots=True)
class Workers:
    """At most `most` worker processes, started when they are needed. Each evaluates one sample at a time."""

    most: int
    _idle: list[asyncio.subprocess.Process] = field(default_factory=list)
    _logs: tempfile.TemporaryDirectory[str] | None = None
    _free: asyncio.Semaphore | None = None

    async def ask(self, request: Json, timeout_s: float) -> Json:
        """The answer of one worker. Raises `InfraError` if it ends without one, or gives none within the time."""
        self._free = self._free or asyncio.Semaphore(self.most)
        self._logs = self._logs or tempfile.TemporaryDirectory(prefix="skilltune-inspect-")
        async with self._free:
            worker = self._idle.pop() if self._idle else await self._start(self._logs.name)
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                async with asyncio.timeout(timeout_s):
                    logs = tempfile.mkdtemp(dir=self._logs.name)
                    worker.stdin.write(_line({**request, "logs": logs}))
                    await worker.stdin.drain()
                    answer = await worker.stdout.readline()
                if not answer:
                    raise ConnectionResetError
            except TimeoutError:
                await _kill(worker)
                raise InfraError(
                    f"Inspect gives no result within {timeout_s:g} s, so its process was ended: a solver, tool or "
                    "scorer of the task blocks it, e.g. by time.sleep or a request without a time limit",
                    systemic="a solver, tool or scorer of the Inspect task blocks its process",
                    attempts=ATTEMPTS,
                ) from None
            except (ConnectionError, ValueError):
                await _kill(worker)
                said = _tail(self._said(worker).read_bytes())
                raise InfraError(
                    f"the process that runs Inspect ended early: {said}",
                    systemic="the process that runs Inspect ends early",
                ) from None
            except BaseException:  # cancelled: its evaluation must not go on
                await _kill(worker)
                raise
            self._idle.append(worker)
        return json.loads(answer)

    async def _start(self, folder: str) -> asyncio.subprocess.Process:
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            worker = await asyncio.create_subprocess_exec(
                *_command(),
                env=_environment(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=handle,
                limit=LINE_BYTES,
                start_new_session=True,
            )
        finally:
            os.close(handle)
        os.replace(name, Path(folder) / f"stderr-{worker.pid}")
        return worker

    def _said(self, worker: asyncio.subprocess.Process) -> Path:
        assert self._logs is not None
        return Path(self._logs.name) / f"stderr-{worker.pid}"

    async def aclose(self) -> None:
        while self._idle:
            await _kill(self._idle.pop())
        if self._logs is not None:
            self._logs.cleanup()
            self._logs = None


async def _kill(worker: asyncio.subprocess.Process) -> None:
    """End a worker and what it started."""
    signal_group(worker.pid)
    await worker.wait()


def _command() -> list[str]:
    return [sys.executable, "-P", "-m", "skilltune.envs.inspect.worker"]


def _environment(folder: str) -> Mapping[str, str]:
    """The environment of a worker: ours without keys, because tools that a model calls may print them."""
    kept = {name: value for name, value in os.environ.items() if not _PRIVATE.search(name)}
    return {**kept, "TMPDIR": folder, "XDG_DATA_HOME": folder, "INSPECT_LOG_DIR": folder, "NO_COLOR": "1"}


def _line(request: Json) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _tail(output: bytes) -> str:
    text = output.decode("utf-8", "replace").strip()
    return text[-SHOWN:] if text else "it printed nothing"
