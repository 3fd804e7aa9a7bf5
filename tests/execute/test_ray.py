"""A whole training on a simulated Ray cluster. Needs the extra `ray`: `make test-ray`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import desk
import fakes
from skilltune import Env
from skilltune.api import atrain
from skilltune.errors import UsageError
from skilltune.execute.ray import OnRay
from skilltune.history.record import Record
from skilltune.journal.run import Run
from skilltune.preflight.doctor import examine
from upstream import Upstream

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SKILL = "---\nname: desk\ndescription: Enters the code of a ticket. Use for every ticket.\n---\nAnswer with the code.\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "SKILL.md").write_text(SKILL)
    monkeypatch.setenv("PATH", f"{fakes.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its Unix sockets need a short path
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


async def trained(
    folder: Path, name: str, on: str, kill: Callable[[], None] | None = None, samples: int = 48
) -> tuple[list[str], str, int, int]:
    """(the versions, the certificate, exchanges that the server answered, exchanges in the journal)."""
    async with Upstream(desk.desk, delay=0.01) as server:
        model = f"openai@{server.url}/v1/m"
        workers: dict[str, Any] = {"workers": {"on": on, "cpus": 0.5}} if on != "local" else {}

        async def kill_later() -> None:
            while len(server.asked) < 30:
                await asyncio.sleep(0.05)
            if kill:
                await asyncio.to_thread(kill)

        killing = asyncio.create_task(kill_later())
        await atrain(
            folder / "desk",
            Env(desk.samples(samples), root=folder),
            {"model": "command:script {prompt_file}", "upstream": model, "sandbox": "none"},
            optimizer="examples",
            run=folder / name,
            train={"epochs": 1, "batch_size": 8},
            **workers,
        )
        killing.cancel()
        answered = len(server.asked)
    with Run.read(folder / name) as run:
        record = Record.of(run)
        paid = run.usage["target exchange"].calls
        return [version.hash for version in record.versions], str(record.certificate), answered, paid


async def test_the_versions_are_the_same_on_one_three_and_eight_machines(folder: Path, cluster) -> None:
    local = await trained(folder, "local", "local")
    machines = 0
    for wanted in (1, 3, 8):
        while machines < wanted:
            cluster.add_node(num_cpus=1)
            machines += 1
        assert await trained(folder, f"run{wanted}", "ray") == local


async def test_a_killed_machine_changes_nothing_and_no_answered_exchange_is_paid_twice(folder: Path, cluster) -> None:
    local = await trained(folder, "local", "local")
    nodes = [cluster.add_node(num_cpus=2) for _ in range(3)]

    versions, certificate, answered, paid = await trained(
        folder, "killed", "ray", lambda: cluster.remove_node(nodes[0], allow_graceful=False)
    )
    assert (versions, certificate, paid) == (local[0], local[1], local[3])
    with Run.read(folder / "killed") as run:
        (*_, account) = [data for _, _, data in run.events("workers")]
    assert account["lost"] >= 1
    assert answered >= paid  # an exchange under way at the kill has no answer, so it is asked again


async def test_doctor_names_each_machine_and_refuses_one_without_the_agent(folder: Path, cluster) -> None:
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    async with Upstream(desk.desk) as server:
        rows = [f'{{"id": "{i}", "input": "hi {i}", "target": "x"}}\n' for i in range(12)]
        (folder / "data.jsonl").write_text("".join(rows))
        (folder / "skilltune.toml").write_text(
            f'skill = "desk"\n[env]\nsamples = "data.jsonl"\n[workers]\non = "ray"\n'
            f'[target]\nmodel = "command:script {{prompt_file}}"\nupstream = "openai@{server.url}/v1/m"\n'
        )
        found = await examine(folder / "skilltune.toml")
    named = [f.text for f in found if f.topic == "workers" and f.level == "ok"]
    assert len(named) == 2, [f.text for f in found]  # not the head, which has no processor for jobs


@contextmanager
def head(**env: str) -> Iterator[str]:
    """The address of a cluster that `ray start` began, for a client."""
    port, client = free_ports(2)
    start = (
        f"start --head --block --port={port} --ray-client-server-port={client} --num-cpus=2 --include-dashboard=false"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *start.split()],
        env={**os.environ, "RAY_TMPDIR": "/tmp", **env},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with suppress(OSError), socket.create_connection(("127.0.0.1", client)):
                break
            time.sleep(0.2)
        yield f"ray://127.0.0.1:{client}"
    finally:
        ray.shutdown()
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        open_ = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in open_:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in open_]


async def test_a_remote_cluster_gives_the_same_versions_through_a_client(folder: Path) -> None:
    with head(RAY_AUTH_MODE="disabled") as remote:
        assert await trained(folder, "remote", remote, samples=24) == await trained(
            folder, "local", "local", samples=24
        )
    with Run.read(folder / "remote") as run:
        (first, *_, account) = [data for _, _, data in run.events("workers")]
    assert (len(first["machines"]), account["lost"]) == (1, 0)
    assert account["sent"] == account["done"] > 0


CONNECT = """
import asyncio, sys
from skilltune.errors import UsageError
from skilltune.execute.ray import OnRay

async def main():
    workers = OnRay(sys.argv[1])
    await workers.ready()
    print("machines", workers.machines)
    await workers.aclose()

try:
    asyncio.run(main())
except UsageError as error:
    print(error)
"""


def test_a_client_sends_the_token_of_its_user(folder: Path) -> None:
    """Once its user has a token, `ray start` asks for it."""
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as remote:
        said = {
            mode: subprocess.run(
                [sys.executable, "-c", CONNECT, remote],
                env={**env, "RAY_AUTH_TOKEN_PATH": str(token), **more},
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            for mode, more in {"token": {}, "without": {"RAY_AUTH_MODE": "disabled"}}.items()
        }
    assert "machines 1" in said["token"]
    assert "wants RAY_AUTH_MODE=token" in said["without"]


async def test_a_cluster_that_does_not_answer_is_refused() -> None:
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        await OnRay("ray://127.0.0.1:1").ready()
