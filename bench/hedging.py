"""What hedging gains and costs: batches of calls at an endpoint with a long tail, with `hedge` off and on.

`python bench/hedging.py` prints one Markdown table. The tail is log-normal; each row is the same calls twice. Time is
the wall clock until a batch has all its answers, which is what a training step waits for.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from skilltune.metering.slots import STRAGGLER, Endpoint
from skilltune.models import Request, user
from skilltune.models.build import build_model
from world import World, lognormal


async def batches(url: str, count: int, size: int, workers: int, hedge: float | None) -> tuple[list[float], int]:
    """(seconds of each batch, duplicates sent)."""
    model, endpoint, hedges = build_model(f"openai@{url}/target"), Endpoint(workers, hedge=hedge), []
    seconds = []
    for batch in range(count):
        began = time.monotonic()
        requests = [Request((user(f"Batch {batch}, question {n}"),)) for n in range(size)]
        await asyncio.gather(
            *(endpoint.run("target", partial(model.complete, r), on_hedge=lambda: hedges.append(1)) for r in requests)
        )
        seconds.append(time.monotonic() - began)
    await model.aclose()
    return seconds, len(hedges)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--median", type=float, default=0.1, help="seconds of the median call")
    options.add_argument("--batches", type=int, default=20)
    options.add_argument("--size", type=int, default=40, help="calls in a batch")
    given = options.parse_args()
    print(f"{given.batches} batches of {given.size} calls, median {given.median:g} s, hedge at {STRAGGLER:g} medians\n")
    print("| sigma | workers | batch off, s | batch on, s | time | slowest off, s | slowest on, s | more calls |")
    print("|---|---|---|---|---|---|---|---|")
    for sigma in (0.3, 0.6, 1.0):
        for workers in (16, 64):
            rows = []
            for hedge in (None, STRAGGLER):
                with World(latency=lognormal(given.median, sigma)) as world:
                    rows.append(asyncio.run(batches(world.url, given.batches, given.size, workers, hedge)))
            (off, _), (on, sent) = rows
            change = statistics.fmean(on) / statistics.fmean(off) - 1
            print(
                f"| {sigma:g} | {workers} | {statistics.fmean(off):.2f} | {statistics.fmean(on):.2f} | {change:+.0%} | "
                f"{max(off):.2f} | {max(on):.2f} | {sent / (given.batches * given.size):.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
