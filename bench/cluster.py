"""Jobs on a simulated Ray cluster: utilization, overhead, lost machines, memory of the driver, reach of one gateway.

The machines are processes of `ray.cluster_utils` on this computer, and the target sleeps, so the figures are those of
driver and engine, not of agents. Needs the extra `ray`. Run: python bench/cluster.py
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import heapq
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles
from threading import Event, Thread
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from cluster_jobs import TURNS, Asking, ask, sleep
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

from skilltune.errors import InfraError
from skilltune.execute import Counts
from skilltune.execute.ray import OnRay
from skilltune.gateway import Gateway, RolloutLimits, Upstream
from skilltune.journal.run import FAILED, Run
from skilltune.streams import protect
from skilltune.usage import Usage

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from upstream import Asked, Turn  # noqa: E402
from upstream import Upstream as Model  # noqa: E402

EVENT_S = 0.05  # between two events of an answer, so that kills hit answers under way
CONTENT = os.urandom(200_000)  # a file that every job carries


def durations(n: int, mean: float, seed: int = 0) -> list[float]:
    """Lognormal seconds with this mean; the longest tenth takes a third of the time."""
    rng = random.Random(seed)
    drawn = [rng.lognormvariate(0.0, 0.8) for _ in range(n)]
    return [mean * x / fmean(drawn) for x in drawn]


async def utilization(slots: int, jobs: int, mean: float, nodes: int) -> str:
    executor = OnRay("ray", cpus=1.0, most=slots)
    for _ in range(2):  # start all workers; Python needs a second each, on two processors
        await asyncio.gather(*(executor.run(sleep, (0.25 * slots, CONTENT)) for _ in range(slots)))
    wanted = durations(jobs, mean)
    began = time.perf_counter()
    await asyncio.gather(*(executor.run(sleep, (seconds, CONTENT)) for seconds in wanted))
    wall = time.perf_counter() - began
    used, least = sum(wanted) / (slots * wall), in_order(wanted, slots)
    times = f"{wall:.1f} | {least:.1f} | {100 * least / wall:.0f} %"
    return f"| {nodes} | {slots} | {jobs:,} | {mean:g} | {times} | {100 * used:.0f} % |"


def in_order(seconds: list[float], slots: int) -> float:
    """The time that jobs need if each starts the moment that a slot is free, without any overhead."""
    ends = [0.0] * slots
    for each in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return max(ends)


async def overhead(jobs: int) -> str:
    executor = OnRay("ray", cpus=1.0, most=1)
    await executor.run(sleep, (0.0, CONTENT))
    times, cpu = list[float](), time.process_time()
    for _ in range(jobs):
        began = time.perf_counter()
        inside = await executor.run(sleep, (0.0, CONTENT))
        times.append(time.perf_counter() - began - inside)
    cpu = (time.process_time() - cpu) / jobs
    median, most = (1000 * quantiles(times, n=20)[at] for at in (9, 18))
    return f"| {jobs} | {median:.1f} | {most:.1f} | {1000 * cpu:.2f} |"


def reply(asked: Asked) -> Turn:
    return Turn(hashlib.sha256(asked.body["messages"][-1]["content"].encode()).hexdigest())


@dataclass
class Outcome:
    """What came of many asking jobs: results by job, exchanges that the model server was asked, that the journal holds,
    that were cut off with their job, and that were paid. A provider may bill what was cut off, so it counts as paid."""

    results: dict[int, str]
    asked: int
    journaled: int
    cut: int
    paid: int
    counts: Counts
    seconds: float


async def exchanges(wanted: list[float], slots: int) -> Outcome:
    """Jobs that ask through the gateway. A lost one is tried again under the same key, as a target does it."""
    executor, results, paid = OnRay("ray", cpus=1.0, most=slots), dict[int, str](), 0
    await executor.ready()
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder)) as run:
        async with Model(reply, delay=EVENT_S) as server, Gateway(host=executor.host) as gateway:
            upstream = Upstream("openai-chat", f"{server.url}/v1", "m")

            async def one(number: int, seconds: float) -> None:
                nonlocal paid
                while number not in results:
                    lease = gateway.lease(
                        upstream, None, RolloutLimits(), rollout_key=f"job {number}", run=run, slots=None
                    )
                    try:
                        results[number] = await executor.run(ask, Asking(number, seconds, lease.url, lease.token))
                    except InfraError:
                        await asyncio.sleep(0.1)
                    finally:
                        await lease.end()
                        paid += lease.paid.calls
                        lease.close()

            began = time.perf_counter()
            await asyncio.gather(*(one(number, seconds) for number, seconds in enumerate(wanted)))
            wall = time.perf_counter() - began
        cut = run.usage.get(FAILED, Usage()).calls
        answered = run.usage["target exchange"].calls
        return Outcome(results, len(server.asked), answered, cut, paid, executor.counts, wall)


class Killer:
    """Kills worker processes and whole machines in turn, every few seconds, by SIGKILL. For each machine that dies, a
    new one joins. Two machines stay alive, because a new one takes a while. Of a simulated machine, the raylet and the
    workers are killed: everything else of it is no part of a job, and to wait for its end takes tens of seconds."""

    def __init__(self, cluster: Cluster, every_s: float, cpus: int) -> None:
        self.processes = self.machines = self.joined = 0
        self._cluster, self._every_s, self._cpus = cluster, every_s, cpus
        self._over = Event()
        self._threads = [Thread(target=work, daemon=True) for work in (self._kill, self._join)]
        self._dead: list[Any] = []

    def __enter__(self) -> Killer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for node in self._dead:
            node.kill_all_processes(check_alive=False, allow_graceful=False)

    def _join(self) -> None:
        while not self._over.wait(0.1):
            if self.joined < self.machines:
                with suppress(Exception):  # on a busy computer its start may take longer than Ray waits
                    self._cluster.add_node(num_cpus=self._cpus)
                    self.joined += 1

    def _kill(self) -> None:
        rng = random.Random(0)
        while not self._over.wait(self._every_s):
            nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)
            node = rng.choice(nodes)
            raylet = node.all_processes["raylet"][0].process.pid
            workers = [pid for pid, command in children(raylet) if command.startswith("ray::")]
            busy = [pid for pid, command in children(raylet) if command.startswith("ray::_work")]
            if (self.processes + self.machines) % 2 and len(nodes) > 2:
                self._cluster.worker_nodes.remove(node)
                self._dead.append(node)
                for pid in (raylet, *workers):
                    kill(pid)
                self.machines += 1
            elif busy:
                kill(rng.choice(busy))
                self.processes += 1


def children(parent: int) -> list[tuple[int, str]]:
    """(process, its command) of each child of a process."""
    listed = subprocess.run(["ps", "--ppid", str(parent), "-o", "pid=,args="], capture_output=True, text=True).stdout
    rows = (line.split(None, 1) for line in listed.splitlines())
    return [(int(pid), command) for pid, command in rows]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def killed(cluster: Cluster, jobs: int, slots: int, every_s: float, cpus: int, mean: float) -> str:
    """The same jobs without and with kills, as two rows."""
    wanted = durations(jobs, mean)
    calm = await exchanges(wanted, slots)
    with Killer(cluster, every_s, cpus) as killer:
        hit = await exchanges(wanted, slots)
    rows = [
        (calm, "none", "–"),
        (hit, f"{killer.processes} worker processes, {killer.machines} machines", killer.joined),
    ]
    return "\n".join(
        f"| {kills} | {joined} | {found.counts.sent:,} | {found.counts.lost} | {found.results == calm.results} | "
        f"{found.asked:,} | {found.cut} | {found.paid - found.cut - found.journaled} | {found.seconds:.0f} |"
        for found, kills, joined in rows
    )


async def memory(jobs: int, slots: int) -> str:
    executor = OnRay("ray", cpus=1.0, most=slots)
    rows, done = list[str](), 0
    began = time.perf_counter()
    for _ in range(4):
        await asyncio.gather(*(executor.run(sleep, (0.0, CONTENT)) for _ in range(jobs // 4)))
        done += jobs // 4
        rows.append(f"{resident_mb():.0f}")
    wall = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {done:,} | {slots} | {wall:.0f} | {' / '.join(rows)} | {peak:.0f} |"


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=640)
    parser.add_argument("--mean", type=float, default=5.0, help="seconds of a job in the first table")
    parser.add_argument("--killed", type=int, default=1_000)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills")
    parser.add_argument("--short", type=float, default=2.0, help="mean seconds of a job in the table of kills")
    parser.add_argument("--flat", type=int, default=10_000)
    tables = ["use", "overhead", "memory", "kills"]
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    args = parser.parse_args()
    protect()  # without Ray's remarks
    each = args.slots // args.nodes
    # without signal handlers, because machines join from a thread
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, shutdown_at_exit=False)
    try:
        for _ in range(args.nodes):
            cluster.add_node(num_cpus=each)
        os.environ["RAY_ADDRESS"] = str(cluster.address)
        await measure(args, cluster, each)
    finally:
        ray.shutdown()
        cluster.shutdown()


async def measure(args: argparse.Namespace, cluster: Cluster, each: int) -> None:
    """Print the tables. Each machine has `each` slots."""
    if "use" in args.tables:
        print(
            "| machines | slots | jobs | mean s | wall s | without overhead s | share | slots in use, tail included |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        print(await utilization(args.slots, args.jobs, args.mean, args.nodes), flush=True)
    if "overhead" in args.tables:
        print("\n| jobs, one at a time | overhead ms (median) | (95 %) | CPU ms of the driver |\n" + "| --- " * 4 + "|")
        print(await overhead(100), flush=True)
    if "memory" in args.tables:
        print("\n| jobs | slots | wall s | driver MB after each quarter | peak MB |\n| --- | --- | --- | --- | --- |")
        print(await memory(args.flat, args.slots), flush=True)
    if "kills" in args.tables:
        print(
            f"\n| killed, of {args.killed:,} jobs with {TURNS} exchanges each | joined | jobs sent | jobs lost "
            "| same result | exchanges asked | cut off | answered and paid twice | wall s |\n" + "| --- " * 9 + "|"
        )
        print(await killed(cluster, args.killed, args.slots, args.every, each, args.short), flush=True)


if __name__ == "__main__":
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)  # the workers import the jobs from there
    asyncio.run(main())
