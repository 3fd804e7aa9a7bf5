"""Executors: the places where pure jobs run. By default that is this process; an engine such as Ray adds machines.

A job is plain data, its function stands at the top of a module, and its result is plain data. So every engine with the
interface of `concurrent.futures.Executor` can run it. Journal, budget, slots, keys and gateway stay with the driver,
the process that trains. A worker keeps no state, and a job that is lost with its worker is an `InfraError`.
"""

from __future__ import annotations

import asyncio
import pickle
import platform
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor as Engine
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from skilltune.errors import CallConfigError, InfraError, UsageError
from skilltune.execute.tls import Tls
from skilltune.usage import counted
from skilltune.version import __version__

LOOPBACK = "127.0.0.1"
J = TypeVar("J")
R = TypeVar("R")
Call = Callable[[J], Coroutine[Any, Any, R]]
"""An async function at the top of a module. It takes one job."""


@dataclass(frozen=True, slots=True)
class Place:
    """One machine of an engine: the versions that decide what a job returns."""

    name: str
    python: str
    skilltune: str
    cpus: float = 1.0


@dataclass(slots=True)
class Counts:
    """The account of an engine: `sent` jobs, of which `running` have not ended, and `lost` vanished with a worker and
    were sent again, if retries were left. `late` requests came from agents whose rollout had ended; they were refused
    and cost nothing."""

    sent: int = 0
    running: int = 0
    done: int = 0
    lost: int = 0
    late: int = 0


class Executor(Protocol):
    """Runs jobs. `ready` makes sure that its machines answer and run the same code; it raises `UsageError`.

    `host` is the address at which a worker reaches this process, with the certificate `tls` (None: unencrypted).
    `slots` is the most jobs at once (None: no limit), and `machines` how many are alive. They are known once it is
    ready. `run` returns the job's result or raises its error, and `InfraError` if the worker
    was lost. A lost job is sent again `resend` times; a job that costs money needs 0, because its caller accounts for
    each attempt. `on_each` runs a job on every machine and gives the results by the machine's name, with an exception
    in place of a result that failed.
    """

    name: str
    counts: Counts
    tls: Tls | None

    @property
    def host(self) -> str: ...

    @property
    def slots(self) -> int | None: ...

    @property
    def machines(self) -> int: ...

    async def ready(self) -> None: ...

    async def run(self, call: Call[J, R], job: J, *, resend: int = 0) -> R: ...

    async def on_each(self, call: Call[J, R], job: J) -> dict[str, R | BaseException]: ...

    async def places(self) -> tuple[Place, ...]: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True, eq=False)
class Here:
    """Runs jobs in this process, as they come."""

    name: str = "local"
    counts: Counts = field(default_factory=Counts)
    host: str = LOOPBACK
    slots: int | None = None
    machines: int = 1
    tls: Tls | None = None

    async def ready(self) -> None:
        pass

    async def run(self, call: Call[J, R], job: J, *, resend: int = 0) -> R:
        return await call(job)

    async def on_each(self, call: Call[J, R], job: J) -> dict[str, R | BaseException]:
        return {platform.node(): await _caught(call, job)}

    async def places(self) -> tuple[Place, ...]:
        return (here(),)

    async def aclose(self) -> None:
        pass


HERE = Here()
current: ContextVar[Executor] = ContextVar("current", default=HERE)
"""The executor of the scorers' jobs, such as `tests`. `Env` sets it around each call of a scorer."""


@dataclass(slots=True, eq=False)
class Elsewhere:
    """Runs jobs by an engine with the interface of `concurrent.futures.Executor`.

    `lost` are the engine's errors for a worker that vanished. `slots` is the most jobs that are sent at once. A job or
    a result that cannot be pickled is a `CallConfigError`.
    """

    engine: Engine
    lost: tuple[type[BaseException], ...]
    name: str = "engine"
    slots: int | None = None
    counts: Counts = field(default_factory=Counts)
    host: str = LOOPBACK
    machines: int = 1
    tls: Tls | None = None
    _gate: asyncio.Semaphore | None = None

    async def ready(self) -> None:
        pass

    async def run(self, call: Call[J, R], job: J, *, resend: int = 0) -> R:
        if self._gate is None and self.slots is not None:
            self._gate = asyncio.Semaphore(self.slots)
        async with self._gate or nullcontext():
            for left in range(resend, -1, -1):
                self.counts.sent += 1
                self.counts.running += 1
                try:
                    ended = await asyncio.wrap_future(self.engine.submit(in_worker, call, job))
                except self.lost as error:
                    self.counts.lost += 1
                    if not left:
                        raise InfraError(f"the worker of a job was lost: {_first_line(error)}") from error
                except UNPICKLABLE as error:
                    if can_be_pickled((call, job)):
                        raise
                    raise CallConfigError(f"{_named(call)} cannot be sent to a worker: {_first_line(error)}") from error
                else:
                    self.counts.done += 1
                    return result_of(call, ended)
                finally:
                    self.counts.running -= 1
        raise AssertionError("unreachable")

    async def on_each(self, call: Call[J, R], job: J) -> dict[str, R | BaseException]:
        return {self.name: await _caught(self.run, call, job)}

    async def places(self) -> tuple[Place, ...]:
        return (here(),)

    async def aclose(self) -> None:
        await asyncio.to_thread(self.engine.shutdown, wait=True, cancel_futures=True)


# -- in the worker


def can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # a value's own code may raise anything
        return False
    return True


UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError)  # pickle raises all of them


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job: its result or its error."""

    value: Any = None
    error: BaseException | None = None


def in_worker(call: Call[Any, Any], job: Any) -> bytes:
    """Run a job in a process that has no event loop, and return its `Ended`, pickled. Errors are returned too, so that
    an engine adds nothing to them."""
    return packed(call, asyncio.run(_ended(call, job)))


def packed(call: Call[Any, Any], ended: Ended) -> bytes:
    """The end of a job, pickled. If that fails, the error says so in its place. An error is read again, because many a
    class of errors can be pickled and not read."""
    try:
        data = pickle.dumps(ended, pickle.HIGHEST_PROTOCOL)
        if ended.error is not None:
            pickle.loads(data)
        return data
    except Exception as error:  # a result's own code may raise anything
        kind = f"its result ({type(ended.value).__qualname__})"
        if ended.error is not None:
            kind = f"its error {type(ended.error).__qualname__}: {_first_line(ended.error)}"
        text = f"{_named(call)} ended on {platform.node()}, but {kind} cannot be pickled: {_first_line(error)}"
        return pickle.dumps(Ended(error=CallConfigError(text)))


def result_of(call: Call[Any, R], data: bytes) -> R:
    """The result of a job that `in_worker` ran, or its error, raised."""
    try:
        ended = pickle.loads(data)
    except Exception as error:
        text = f"the result of {_named(call)} came back, but cannot be read here: {_first_line(error)}"
        raise CallConfigError(text) from error
    if ended.error is not None:
        raise ended.error
    return ended.value


def _named(call: Call[Any, Any]) -> str:
    """The name of a job's function for messages."""
    return f"the job {call.__module__}.{call.__qualname__}"  # pyright: ignore[reportFunctionMemberAccess]


async def _ended(call: Call[Any, Any], job: Any) -> Ended:
    try:
        return Ended(await call(job))
    except Exception as error:
        return Ended(error=error)


async def _caught(call: Callable[..., Coroutine[Any, Any, R]], *args: Any) -> R | BaseException:
    try:
        return await call(*args)
    except Exception as error:
        return error


# -- versions


def here() -> Place:
    """This machine."""
    return Place(platform.node(), platform.python_version(), __version__)


def require_equal(places: tuple[Place, ...], engine: str) -> None:
    """Raise `UsageError` for machines whose versions differ from the driver's, with the versions of both. Only major
    and minor version of Python count."""
    own = here()
    bad = [
        f"{place.name} has Python {place.python} and skilltune {place.skilltune or 'missing'}"
        for place in places
        if _minor(place.python) != _minor(own.python) or place.skilltune != own.skilltune
    ]
    if bad:
        raise UsageError(
            f"workers.on={engine}: {len(bad)} of {len(places)} machines would run other code than this one (Python "
            f"{own.python}, skilltune {own.skilltune}): {'; '.join(bad[:5])}. Install the same versions there, or take "
            "the machine out of the cluster"
        )


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def counts_of(executor: Executor) -> dict[str, int]:
    """The account of an executor, for events."""
    return asdict(executor.counts)


def describe_load(executor: Executor) -> str:
    """The machines and slots in use, and jobs that were lost; "" for this process, and before machines are known."""
    if executor is HERE or not executor.machines:
        return ""
    counts, slots = executor.counts, executor.slots
    running = f"{counts.running} of {slots} slots" if slots else counted(counts.running, "job")
    lost = f"{counted(counts.lost, 'job')} lost with a worker and sent again" if counts.lost else ""
    late = f"{counted(counts.late, 'late request')} of ended agents refused" if counts.late else ""
    return " · ".join(filter(None, (f"{running} on {counted(executor.machines, 'machine')}", lost, late)))


__all__ = ["HERE", "Call", "Counts", "Elsewhere", "Executor", "Here", "Place", "Tls", "current", "require_equal"]
