"""Jobs on a simulated Ray cluster: utilization, overhead, lost machines, memory of the driver, reach of one gateway.

The machines are processes of `ray.cluster_utils` on this computer, and the target sleeps, so the figures are those of
driver and engine, not of agents. Needs the extra `ray`. Run: python bench/cluster.py
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import os
import random
import resource
import time
from pathlib import Path
from statistics import fmean, quantiles

import ray  # pyright: ignore[reportMissingImports]
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

from skilltune.errors import InfraError
from skilltune.execute.ray import OnRay

CONTENT = os.urandom(200_000)  # a file that every job carries


async def sleep(job: tuple[float, bytes]) -> float:
    """A job that sleeps and returns its own seconds."""
    began = time.perf_counter()
    await asyncio.sleep(job[0])
    return time.perf_counter() - began


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


async def killed(cluster: Cluster, jobs: int, slots: int, every_s: float, cpus: int) -> str:
    """Jobs while a machine is killed every few seconds and a new one joins. The caller tries a lost job again."""
    executor = OnRay("ray", cpus=1.0, most=slots)
    await executor.ready()
    results, kills, ended = dict[int, float](), 0, False

    async def one(number: int, seconds: float) -> None:
        while True:
            try:
                results[number] = await executor.run(sleep, (seconds, CONTENT))
                return
            except InfraError:
                await asyncio.sleep(0.1)

    async def kill() -> None:
        nonlocal kills
        while not ended:
            await asyncio.sleep(every_s)
            nodes = list(cluster.worker_nodes)
            if nodes and not ended:
                kills += 1
                await asyncio.to_thread(cluster.remove_node, nodes[kills % len(nodes)], False)
                await asyncio.to_thread(cluster.add_node, num_cpus=cpus)

    began, killer = time.perf_counter(), asyncio.create_task(kill())
    await asyncio.gather(*(one(number, seconds) for number, seconds in enumerate(durations(jobs, 2.0))))
    wall, ended = time.perf_counter() - began, True
    killer.cancel()
    lost = executor.counts.lost
    return f"| {jobs:,} | {kills} | {len(results):,} | {lost} | {executor.counts.sent:,} | {wall:.0f} |"


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
    parser.add_argument("--flat", type=int, default=10_000)
    args = parser.parse_args()
    each = args.slots // args.nodes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(args.nodes):
        cluster.add_node(num_cpus=each)
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    print("| machines | slots | jobs | mean s | wall s | without overhead s | share | slots in use, tail included |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(await utilization(args.slots, args.jobs, args.mean, args.nodes), flush=True)
    print("\n| jobs, one at a time | overhead ms (median) | (95 %) | CPU ms of the driver |\n| --- | --- | --- | --- |")
    print(await overhead(100), flush=True)
    print("\n| jobs | slots | wall s | driver MB after each quarter | peak MB |\n| --- | --- | --- | --- | --- |")
    print(await memory(args.flat, args.slots), flush=True)
    print(
        "\n| jobs | machines killed | results | jobs lost | jobs sent | wall s |\n| --- | --- | --- | --- | --- | --- |"
    )
    print(await killed(cluster, args.killed, args.slots, 5.0, each), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the workers import the jobs from this file
    import cluster

    asyncio.run(cluster.main())
