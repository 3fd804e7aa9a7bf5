"""How long a run takes on the clock, and how much of that is waiting: the simulated world with slow calls, over HTTP.

World and run are processes of their own. Of every call the client notes when it was asked for, how long the endpoint
took, and when its answer was there. Printed per setting, mean over the seeds:

span         seconds from the first request to the last answer, certificate included
training     of these, until the first request about a test sample
utilization  seconds of calls under way / (span × workers)
bound        max(seconds of calls / workers, longest chain of calls of which each was asked for after the one before
             it had been answered): what this sequence of decisions takes at least; span / bound is what we lose

Run: python bench/span.py --seeds 3
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from bisect import bisect_left
from heapq import heappop, heappush
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import skilltune as st
from skilltune.metering.client import Client
from skilltune.models import Reply, Request
from skilltune.models.openai import OpenAIModel
from world import World, lognormal

SETTINGS = {
    "constant": {"target": 0.2, "optimizer": 0.2},
    "lognormal": {"target": lognormal(0.2, 0.8), "optimizer": 2.0},
}
PEERS = {("constant", 16): 40.0, ("constant", 64): 30.0, ("lognormal", 16): 140.0, ("lognormal", 64): 140.0}


def serve(setting: str, seed: int, samples: str, pipe: Connection) -> None:
    """A world in a process of its own, until the pipe is closed."""
    with World(12, 120, 60, 120, p=0.1, q=0.6, seed=seed, latency=SETTINGS[setting]) as world:
        world.write(samples)
        pipe.send(world.url)
        command = pipe.recv()
        splits = {name: ticket.split for name, ticket in world.tickets.items()}
        calls = [(call.role, call.began, call.ended, splits.get(call.sample or "")) for call in world.requests]
        pipe.send(calls if command == "calls" else None)


def one(
    setting: str, preset: str, workers: int, seed: int, options: dict[str, Any], extra: dict[str, Any]
) -> dict[str, float]:
    """One run; all its figures. `options` are of the target, `extra` are tables of the config."""
    asked: list[tuple[float, float]] = []  # of each call: when it was asked for, when its answer was there
    complete = OpenAIModel.complete

    async def timed(self: OpenAIModel, request: Request) -> Reply:
        began = time.monotonic()
        reply = await complete(self, request)
        took.append((began, time.monotonic()))
        return reply

    took: list[tuple[float, float]] = []
    call = Client.__call__

    async def noted(self: Client, request: Request, **options: Any) -> Reply:
        began = time.monotonic()
        reply = await call(self, request, **options)
        asked.append((began, time.monotonic()))
        return reply

    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as d:
        samples = str(Path(d) / "data.jsonl")
        process = multiprocessing.Process(target=serve, args=(setting, seed, samples, there))
        process.start()
        url = here.recv()
        with patch.object(Client, "__call__", noted), patch.object(OpenAIModel, "complete", timed):
            started = time.process_time()
            result = st.train(
                skill=Path(d) / "SKILL.md",
                env=samples,
                target={"model": f"openai@{url}/target", "workers": workers} | options,
                optimizer={"model": f"openai@{url}/optimizer", "workers": workers},
                run=Path(d) / "run",
                preset=preset,
                seed=seed,
                **extra,
            )
            cpu = time.process_time() - started
        here.send("calls")
        calls = here.recv()
        process.join()
    span = max(end for _, end in took) - min(begin for begin, _ in took)
    busy = sum(end - begin for begin, end in took)
    chain = longest_chain(asked, took)
    bound = max(busy / workers, chain)
    tested = min((began for _, began, _, split in calls if split == "test"), default=float("inf"))
    training = [(began, ended) for _, began, ended, _ in calls if began < tested]
    return {
        "span": span,
        "training": max(ended for _, ended in training) - min(began for began, _ in training),
        "busy": busy / workers,
        "chain": chain,
        "utilization": busy / workers / span,
        "ratio": span / bound,
        "target": sum(role == "target" for role, *_ in calls),
        "optimizer": sum(role == "optimizer" for role, *_ in calls),
        "cpu": cpu,
        "versions": len(result.versions) - 1,
    }


def longest_chain(asked: list[tuple[float, float]], took: list[tuple[float, float]]) -> float:
    """Seconds of the longest chain of calls, each asked for after the answer of the one before it was there. A call is
    found again in `took`, which knows its latency without the wait for a slot, by the time of its answer."""
    ends = sorted((end, end - begin) for begin, end in took)
    under_way: list[tuple[float, float]] = []  # (answer there, length of the chain that ends with it)
    so_far = longest = 0.0
    for begin, end in sorted(asked):
        while under_way and under_way[0][0] <= begin:
            so_far = max(so_far, heappop(under_way)[1])
        at = bisect_left(ends, (end, 0.0))
        latency = ends[max(0, at - 1)][1]  # the answer was there a moment before the caller had it
        heappush(under_way, (end, so_far + latency))
        longest = max(longest, so_far + latency)
    return longest


HEADERS = (
    *("latencies", "preset", "workers", "span s", "training s", "of SkillOpt's", "utilization", "span / bound"),
    *("busy / workers s", "chain s", "target calls", "optimizer calls", "client CPU s", "accepted"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--presets", default="paper,default")
    parser.add_argument("--settings", default="constant,lognormal")
    parser.add_argument("--workers", default="16,64")
    parser.add_argument("--hedge", action="store_true", help="send stragglers once more")
    parser.add_argument("--no-lookahead", action="store_true", help="no calls ahead of their need")
    parser.add_argument("--extra", type=json.loads, default={}, help="config sections as JSON")
    options = parser.parse_args()
    of_target = {"hedge": options.hedge} | ({"lookahead": False} if options.no_lookahead else {})
    print(f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|")
    for setting in options.settings.split(","):
        for preset in options.presets.split(","):
            for workers in map(int, options.workers.split(",")):
                rows = [one(setting, preset, workers, seed, of_target, options.extra) for seed in range(options.seeds)]
                m = {name: fmean(row[name] for row in rows) for name in rows[0]}
                cells = (
                    *(setting, preset, str(workers), f"{m['span']:.1f}", f"{m['training']:.1f}"),
                    f"{m['span'] / PEERS[setting, workers]:.2f}",
                    *(f"{100 * m['utilization']:.0f} %", f"{m['ratio']:.2f}", f"{m['busy']:.1f}", f"{m['chain']:.1f}"),
                    *(f"{m['target']:.0f}", f"{m['optimizer']:.0f}", f"{m['cpu']:.1f}", f"{m['versions']:.1f}"),
                )
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
