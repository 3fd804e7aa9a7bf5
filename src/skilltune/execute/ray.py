"""Jobs on a Ray cluster (extra `ray`): plain tasks, no actors, no retries by Ray, no scheduler of ours.

https://docs.ray.io/en/latest/ray-core/tasks.html. Content of 16 KB or more is put into Ray's object store once per
content hash, and the jobs refer to it. A job is pickled by the standard library, which takes functions by name only, so
no closure travels. Ray passes no variable of this process to its workers; a job names what its agent gets.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import io
import logging
import os
import pickle
import platform
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as Engine
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from skilltune.errors import CallConfigError, UsageError
from skilltune.execute import (
    Call,
    Counts,
    Elsewhere,
    Ended,
    J,
    Place,
    R,
    Tls,
    counts_of,
    in_worker,
    require_equal,
    result_of,
)
from skilltune.version import __version__

SHARED_BYTES = 16_000  # content of at least this size goes through the object store
ANSWER_S = 5.0  # longest wait for a cluster to accept a connection
QUICK_S = 15.0  # a connection that fails sooner was refused by a machine that answers
LOOK_S = 5.0  # between two looks at the machines
KEPT = 256  # contents that stay in the object store between jobs


@dataclass(slots=True, eq=False)
class OnRay:
    """Implements `Executor` on a cluster.

    `name` is "ray" for the cluster that RAY_ADDRESS names or that runs on this machine (without one, a new one is
    started), or "ray://HOST:10001" for a remote one. `cpus` and `memory_mb` are reserved for each job, and `most` is
    the number of jobs at once. `own` is the address at which workers reach this process, by default that of this
    machine in the cluster, and `tls` the certificate that it shows them. It connects when the first job comes.
    `on_event` hears of the machines whenever they change, and at the end of the account.
    """

    name: str
    cpus: float = 1.0
    memory_mb: int | None = None
    most: int = 8
    own: str = ""
    tls: Tls | None = None
    on_event: Callable[[Mapping[str, Any]], None] = lambda facts: None
    counts: Counts = field(default_factory=Counts)
    _jobs: Elsewhere | None = None
    _connected: bool = False  # True if the connection is ours to close
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _known: dict[str, str] = field(default_factory=dict)  # the machines: address → id
    _looked: float = 0.0

    async def ready(self) -> None:
        """Connect, and compare the versions of all machines. Raises `UsageError` if Ray is missing, if no cluster
        answers, or if a machine would run other code."""
        async with self._starting:
            if self._jobs is not None:
                return
            jobs = self._connect()
            places = await _places(jobs.engine)
            require_equal(places, self.name)
            self._jobs = jobs
            self._looked = time.monotonic()
        names = {place.name for place in places}
        self._tell({name: node for name, node in (await asyncio.to_thread(_names)).items() if name in names})

    def _tell(self, machines: dict[str, str]) -> None:
        self._known = machines
        self.on_event({"on": self.name, "machines": list(machines), "slots": self.slots, **counts_of(self)})

    async def _look(self) -> None:
        """Notice machines that joined or vanished, at most every `LOOK_S` seconds."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            machines = await asyncio.to_thread(_names)
        except Exception:  # Ray raises many kinds; the job will tell
            return
        if set(machines.values()) != set(self._known.values()) and self._jobs is not None:
            self._tell(machines)

    def _connect(self) -> Elsewhere:
        require_ray(self.name)
        send_token()
        ray, errors = _module("ray"), _module("ray.exceptions")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # `uv run` would send the project to each worker
        if not ray.is_initialized():
            require_answer(self.name)
            try:
                _init(None if self.name == "ray" else self.name)
                self._connected = True
            except Exception as error:  # Ray raises many kinds
                raise UsageError(
                    f"workers.on={self.name}: no Ray cluster answers ({_short(error)}); start one with `ray start "
                    "--head --ray-client-server-port=10001`, or set workers.on=local; a cluster with a token wants "
                    "RAY_AUTH_MODE=token and that token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
                ) from error
        lost = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
            errors.RaySystemError,
            ConnectionError,  # of a remote cluster
        )
        limits: dict[str, Any] = {"num_cpus": self.cpus, "max_retries": 0}
        if self.memory_mb is not None:
            limits["memory"] = self.memory_mb * 1_000_000
        return Elsewhere(Tasks(limits), lost, self.name, self.most, self.counts)

    @property
    def host(self) -> str:
        if self.own:
            return self.own
        remote = urlsplit(self.name).hostname
        return _route_to(remote) if remote else _module("ray").util.get_node_ip_address()

    @property
    def slots(self) -> int | None:
        return self.most

    @property
    def machines(self) -> int:
        return len(self._known)

    async def run(self, call: Call[J, R], job: J, *, resend: int = 0) -> R:
        await self.ready()
        jobs = self._jobs
        assert jobs is not None
        await self._look()
        return await jobs.run(call, job, resend=resend)

    async def on_each(self, call: Call[J, R], job: J) -> dict[str, R | BaseException]:
        await self.ready()
        assert self._jobs is not None
        assert isinstance(self._jobs.engine, Tasks)
        asked, engine = _names(), self._jobs.engine
        sent = {name: engine.submit_to(node, in_worker, call, job) for name, node in asked.items()}
        found = {name: await _result(call, future) for name, future in sent.items()}
        alive = set(_names().values())
        return {name: result for name, result in found.items() if asked[name] in alive}

    async def places(self) -> tuple[Place, ...]:
        await self.ready()
        assert self._jobs is not None
        return await _places(self._jobs.engine)

    async def aclose(self) -> None:
        """Leave the cluster, unless the caller had joined it before. A cluster that was started here ends."""
        if self._jobs is None:
            return
        self._tell({})
        self._jobs = None
        if self._connected:
            self._connected = False
            await asyncio.to_thread(_module("ray").shutdown)


def _module(name: str) -> Any:
    """A module of Ray. It is imported late, because Ray is an extra."""
    return importlib.import_module(name)


def require_ray(name: str) -> None:
    """Raise `UsageError` if the extra is not installed."""
    needed = ("ray", "grpc") if name.startswith("ray://") else ("ray",)
    if not all(importlib.util.find_spec(module) for module in needed):
        raise UsageError(f"workers.on={name} needs the extra `ray`: pip install 'skilltune[ray]'")


def send_token() -> None:
    """Let Ray send the token of this user, if there is one. `ray start` asks for a token as soon as its user has one,
    but a client sends it only if RAY_AUTH_MODE says so. Ray reads that variable when it is imported.

    https://docs.ray.io/en/latest/ray-security/token-auth.html
    """
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_TOKEN") or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def require_answer(name: str) -> None:
    """Raise `UsageError` if nothing listens at the address of the cluster. Ray itself would try for minutes, and fill
    the terminal meanwhile."""
    address, origin = name.removeprefix("ray://"), ""
    if name == "ray":
        noted = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
        address, origin = os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS"
        if not address and noted.is_file():
            address, origin = noted.read_text().strip(), f"`ray start`, see {noted},"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray starts a cluster of its own, or has an address of another kind
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        named = "" if name != "ray" else f", which {origin} names"
        raise UsageError(
            f"workers.on={name}: no Ray cluster answers at {host}:{port}{named} ({error}): start it, or set "
            "workers.on=local; `ray stop` forgets a cluster that has ended"
        ) from error


class Tasks(Engine):
    """`concurrent.futures.Executor` over Ray's tasks. `limits` are the options of each task."""

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self._ray, self._limits = _module("ray"), limits
        self._task = self._ray.remote(_work)
        self._shared: OrderedDict[str, Any] = OrderedDict()  # content hash → reference

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._send(self._task.options(**self._limits), (fn, args, kwargs))

    def submit_to(self, node: str, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run a call on one machine. It takes no processor, so that it need not wait for jobs."""
        return self._send(self._task.options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node)), (fn, args, {}))

    def ask_versions(self, node: str) -> Future[tuple[str, str, float]]:
        """(Python, skilltune or "", processors) of a machine. This function travels by value, because skilltune may be
        missing there."""

        def versions() -> tuple[str, str, float]:
            import importlib.metadata
            import os
            import platform

            try:
                ours = importlib.metadata.version("skilltune")
            except importlib.metadata.PackageNotFoundError:
                ours = ""
            return platform.python_version(), ours, float(os.cpu_count() or 1)

        task = self._ray.remote(versions).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node))
        return task.remote().future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._shared.clear()

    def _send(self, task: Any, call: Any) -> Future[Any]:
        data, contents = pack(call)
        ref = task.remote(
            __version__, data, {name: self._reference(name, content) for name, content in contents.items()}
        )
        future: Future[Any] = ref.future()
        future.add_done_callback(lambda done: self._cancel(ref) if done.cancelled() else None)
        return future

    def _reference(self, name: str, content: bytes) -> Any:
        if name not in self._shared:
            self._shared[name] = self._ray.put(content)
            if len(self._shared) > KEPT:
                self._shared.popitem(last=False)  # jobs under way hold references of their own
        self._shared.move_to_end(name)
        return self._shared[name]

    def _cancel(self, ref: Any) -> None:
        self._ray.cancel(ref, force=False)  # interrupts the job, which then removes its workspace


# -- what travels


class _Packer(pickle.Pickler):
    """Takes long byte strings out of a job."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.contents: dict[str, bytes] = {}

    def persistent_id(self, obj: Any) -> str | None:
        if type(obj) is not bytes or len(obj) < SHARED_BYTES:
            return None
        name = hashlib.sha256(obj).hexdigest()
        self.contents[name] = obj
        return name


class _Unpacker(pickle.Unpickler):
    def __init__(self, data: bytes, contents: Mapping[str, bytes]) -> None:
        super().__init__(io.BytesIO(data))
        self._contents = contents

    def persistent_load(self, pid: str) -> bytes:
        return self._contents[pid]


def pack(value: Any) -> tuple[bytes, dict[str, bytes]]:
    """(the pickled value, its long byte strings by content hash). Raises `pickle.PicklingError` or `AttributeError` for
    a closure."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.contents


def unpack(data: bytes, contents: Mapping[str, bytes]) -> Any:
    """The value that `pack` took apart."""
    return _Unpacker(data, contents).load()


def _work(version: str, data: bytes, references: Mapping[str, Any]) -> Any:
    """Run one call in a worker. A machine that joined during the run is compared here, by its version of skilltune."""
    if version != __version__:
        text = f"{platform.node()} has skilltune {__version__}, and this run needs {version}: install it there"
        return pickle.dumps(Ended(error=CallConfigError(text)))
    ray = _module("ray")
    names = list(references)
    contents = dict(zip(names, ray.get([references[name] for name in names]), strict=True))
    try:
        fn, args, kwargs = unpack(data, contents)
    except Exception as error:
        text = f"{platform.node()} cannot read its job ({error}): it needs the driver's code"
        return pickle.dumps(Ended(error=CallConfigError(text)))
    return fn(*args, **kwargs)


# -- the cluster


def _init(address: str | None) -> None:
    """Connect to a cluster. On a busy head, the server that Ray starts for a client can end at once: then once more. A
    missing cluster or a wrong token shows only after Ray's own time-out, and is not tried again."""
    began = time.monotonic()
    for last in (address is None, True):
        try:
            _module("ray").init(address, log_to_driver=False, logging_level=logging.CRITICAL)
            return
        except Exception:  # Ray raises many kinds
            if last or time.monotonic() - began > QUICK_S:
                raise
            time.sleep(1.0)


def _alive() -> list[Mapping[str, Any]]:
    """The machines that are alive and have a processor for jobs, which a head often has not. If none has one, the
    cluster grows on demand, and all of them count."""
    alive = [node for node in _module("ray").nodes() if node["Alive"]]
    return [node for node in alive if node["Resources"].get("CPU")] or alive


def _names() -> dict[str, str]:
    """The ids of the machines, by address; simulated ones share an address and are numbered."""
    names = dict[str, str]()
    for node in _alive():
        name, number = node["NodeManagerAddress"], 1
        while name in names:
            number += 1
            name = f"{node['NodeManagerAddress']}#{number}"
        names[name] = node["NodeID"]
    return names


def _on(node: str) -> Any:
    return _module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy(node_id=node, soft=False)


async def _places(engine: Engine) -> tuple[Place, ...]:
    """The machines that are alive. One that is lost while it is asked is left out."""
    assert isinstance(engine, Tasks)
    asked, found = _names(), list[Place]()
    for name, future in {name: engine.ask_versions(node) for name, node in asked.items()}.items():
        try:
            python, ours, cpus = await asyncio.wrap_future(future)
        except Exception as error:
            if asked[name] not in _names().values():
                continue
            raise UsageError(f"the machine {name} of the cluster runs nothing: {_short(error)}") from error
        found.append(Place(name, python, ours, cpus))
    return tuple(found)


async def _result(call: Call[Any, Any], future: Future[Any]) -> Any:
    try:
        data = await asyncio.wrap_future(future)
    except Exception as error:
        return CallConfigError(_short(error))
    try:
        return result_of(call, data)
    except Exception as error:
        return error


def _route_to(host: str) -> str:
    """The address of this machine on the way to another. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return probe.getsockname()[0]


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
