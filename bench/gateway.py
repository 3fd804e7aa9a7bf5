"""Cost of the gateway: exchanges per second, and CPU per exchange of the process that it runs in.

A model server that answers at once and the agents that ask run in processes of their own. Each agent asks one streamed
question after another, as large as those of Claude Code (50 KB). `python bench/gateway.py` prints the table of
`bench/agents.md`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
from aiohttp import web

from skilltune.gateway import Activation, Gateway, RolloutLimits, Upstream
from skilltune.journal.run import Run
from skilltune.models.dialects import Dialect
from small_agent import DIALECTS, PATHS, first
from upstream import STREAMS, Turn

EXCHANGES = 400
SKILL = "Write the total as a plain number."
TURN = Turn("word " * 60, thinking="hm " * 20)
KINDS = {"anthropic-messages": "messages", "openai-responses": "responses", "openai-chat": "completions"}


def question(dialect: Dialect, number: int) -> bytes:
    """A request of 50 KB. The number makes it differ from all others."""
    body = first(dialect, f"{number} {SKILL} " + "lorem ipsum " * 1000)
    body["tools"] = [
        json.loads(json.dumps(body["tools"][0]).replace('"Runs."', json.dumps("It runs a command. " * 180)))
        for _ in range(11)
    ]
    return json.dumps(body).encode()


async def serve() -> None:
    """A model server that answers every request with the same stream at once."""
    streams = {
        PATHS[dialect].partition("?")[0]: b"".join(
            STREAMS[KINDS[dialect]](TURN, {"model": "m", "stream_options": {"include_usage": True}})
        )
        for dialect in DIALECTS
    }

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length"))
                await reader.readexactly(int(length.partition(":")[2]))
                data = streams[head.split(" ")[1].partition("?")[0]]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def ask(url: str, dialect: Dialect, agents: int, begin: int) -> None:
    """Agents that ask all at once, each one question after another."""
    _, _, rest = url.partition("//")
    host, _, token = rest.partition("/")
    path = f"/{token}{PATHS[dialect]}" if token else PATHS[dialect]
    numbers = itertools.count(begin)

    async def agent(count: int) -> None:
        reader, writer = await asyncio.open_connection(*host.split(":"))
        for _ in range(count):
            body = question(dialect, next(numbers))
            writer.write(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            assert " 200 " in head, head
            if "chunked" in head.lower():
                while await reader.readuntil(b"\r\n") != b"0\r\n":
                    pass
                await reader.readuntil(b"\r\n")
            else:
                length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length"))
                await reader.readexactly(int(length.partition(":")[2]))
        writer.close()

    await asyncio.gather(*(agent(EXCHANGES // agents) for _ in range(agents)))


async def asked(url: str, dialect: Dialect, agents: int) -> tuple[float, float]:
    """(exchanges per second, CPU milliseconds of this process per exchange)."""
    cpu = wall = 0.0
    for begin in (0, EXCHANGES):  # the first round warms up
        cpu, wall = time.process_time(), time.perf_counter()
        command = [sys.executable, __file__, "ask", url, dialect, str(agents), str(begin)]
        asking = await asyncio.create_subprocess_exec(*command)
        assert await asking.wait() == 0
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return EXCHANGES / wall, 1000 * cpu / EXCHANGES


async def bare(port: int) -> tuple[float, float]:
    """The same for a server that only passes bytes on: what HTTP alone costs."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = b"".join([part async for part in request.content.iter_any()])
            async with session.post(f"http://127.0.0.1:{port}{request.path}", data=body) as answer:
                response = web.StreamResponse(headers={"Content-Type": answer.headers["Content-Type"]})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                return response

        runner = web.ServerRunner(web.Server(handle, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await asked(f"http://127.0.0.1:{runner.addresses[0][1]}", "anthropic-messages", 4)
        finally:
            await runner.cleanup()


async def measure(below: Dialect, above: Dialect, agents: int, port: int, *, journal: bool) -> tuple[float, float]:
    """The same for the gateway."""
    base = f"http://127.0.0.1:{port}" + ("" if above == "anthropic-messages" else "/v1")
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder) / "run") as run:
        async with Gateway() as door:
            lease = door.lease(
                Upstream(above, base, "m"),
                Activation("forced", "totals", "Writes totals.", SKILL),
                RolloutLimits(),
                rollout_key="r",
                run=run if journal else None,
                slots=None,
            )
            figures = await asked(lease.url, below, agents)
            assert lease.fault is None
            assert lease.exchanges == 2 * (EXCHANGES // agents) * agents
    return figures


def cases() -> Iterator[tuple[Dialect, Dialect, int, bool]]:
    """Each row: dialect of the agent, dialect of the model, agents at once, with a journal."""
    for dialect in DIALECTS:
        yield dialect, dialect, 4, True
    for below, above in itertools.permutations(DIALECTS, 2):
        yield below, above, 4, True
    for agents, journal in ((1, True), (8, True), (4, False)):
        yield DIALECTS[0], DIALECTS[0], agents, journal


async def main() -> None:
    serving = await asyncio.create_subprocess_exec(sys.executable, __file__, "serve", stdout=subprocess.PIPE)
    assert serving.stdout is not None
    try:
        port = int(await serving.stdout.readline())
        print("| agent asks | model speaks | agents at once | journal | exchanges per s | CPU ms per exchange |")
        print("| --- | --- | --- | --- | --- | --- |")
        rate, cpu = await bare(port)
        print(f"| (bytes passed on) | (the same) | 4 | no | {rate:.0f} | {cpu:.2f} |", flush=True)
        for below, above, agents, journal in cases():
            rate, cpu = await measure(below, above, agents, port, journal=journal)
            row = below, above, agents, "yes" if journal else "no", f"{rate:.0f}", f"{cpu:.2f}"
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    finally:
        serving.terminate()
        await serving.wait()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["ask", url, dialect, agents, begin]:
            asyncio.run(ask(url, dialect, int(agents), int(begin)))  # type: ignore[arg-type]
        case _:
            asyncio.run(main())
