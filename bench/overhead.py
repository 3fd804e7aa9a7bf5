"""What a rollout costs the client: CPU seconds per 1,000 of them, and the peak of its memory.

The target is `tests/world.py` in a process of its own, without latency, so that only our side is counted: user plus
system time of one client process. Rows: bare aiohttp posts of the same requests (the floor), `Client` (budget, window,
typed errors, usage), whole rollouts by `skilltune.evaluate` (journal, scoring), and whole runs of training (optimizer,
gate, certificate, report). Every row is a process of its own, warmed up before it is measured: on a few samples, or for
training by a run before. Run: python bench/overhead.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKILL = "".join(f"- Rule {n}: answer in the form that the desk asks for, and nothing else.\n" for n in range(56))
WARM_UP = 20  # samples

ROWS = [
    ("bare posts", 2000, 16), ("bare posts", 2000, 64), ("Client", 2000, 16), ("Client", 2000, 64),
    ("rollouts", 100, 16), ("rollouts", 1000, 16), ("rollouts", 10_000, 16), ("rollouts", 1000, 64),
]  # fmt: skip
TRAINED = 300  # samples of a world to train on, one answer in ten of which is odd
SEEDS = range(40, 46)


def load(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def head(file: Path, samples: int) -> Path:
    """A file beside `file` with its first samples."""
    part = file.with_name(f"{samples}.jsonl")
    with file.open(encoding="utf-8") as lines:
        part.write_text("".join(islice(lines, samples)), encoding="utf-8")
    return part


async def bare(url: str, file: Path, workers: int) -> int:
    """The same requests with nothing around them: one session, a queue, JSON in and out."""
    import aiohttp

    queue = iter(load(file))

    async def worker(session: aiohttp.ClientSession) -> None:
        for row in queue:
            messages = [{"role": "system", "content": SKILL}, {"role": "user", "content": row["input"]}]
            async with session.post(
                f"{url}/chat/completions", json={"model": "target", "messages": messages}
            ) as response:
                json.loads(await response.read())["choices"][0]["message"]["content"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(workers)))
    return len(load(file))


async def client(url: str, file: Path, workers: int) -> int:
    from skilltune.journal.run import Run
    from skilltune.limits import Limits
    from skilltune.metering.budget import Budget
    from skilltune.metering.client import Client
    from skilltune.metering.meter import Meter
    from skilltune.metering.slots import Endpoint
    from skilltune.models import Request, system, user
    from skilltune.models.build import build_model
    from skilltune.usage import Usage

    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder)) as run:
        meter = Meter(Endpoint(workers), Budget(Limits(), Usage()), run, "target")
        call = Client(build_model(f"openai@{url}/target"), meter)
        try:
            return len(
                await asyncio.gather(*(call(Request((system(SKILL), user(row["input"])))) for row in load(file)))
            )
        finally:
            await call.aclose()


async def rollouts(url: str, file: Path, workers: int) -> int:
    from skilltune import Skill, aevaluate

    done = await aevaluate(Skill(SKILL), file, {"model": f"openai@{url}/target", "workers": workers})
    assert done.n == done.total
    return done.total


async def training(url: str, file: Path, workers: int) -> int:
    from skilltune import atrain

    with tempfile.TemporaryDirectory() as folder:
        target = {"model": f"openai@{url}/target", "workers": workers}
        await atrain(Path(folder, "SKILL.md"), file, target, f"openai@{url}/optimizer", run=Path(folder, "run"))
        return len(load(Path(folder, "run", "rollouts.jsonl")))


KINDS: dict[str, Callable[[str, Path, int], Awaitable[int]]] = {
    "bare posts": bare,
    "Client": client,
    "rollouts": rollouts,
    "training": training,
}


def measure(kind: str, url: str, file: Path, samples: int, workers: int) -> dict[str, float]:
    """One row, in this process: calls of the target, CPU seconds, and the peak of its resident memory in MB."""
    few, all_of_them = head(file, samples if kind == "training" else WARM_UP), head(file, samples)

    async def both() -> tuple[int, float]:
        await KINDS[kind](url, few, workers)
        before = os.times()
        calls = await KINDS[kind](url, all_of_them, workers)
        after = os.times()
        return calls, after.user + after.system - before.user - before.system

    calls, cpu = asyncio.run(both())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"calls": calls, "cpu_s": cpu, "rss_mb": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)}


def measured(kind: str, url: str, file: Path, samples: int, workers: int) -> dict[str, float]:
    """One row, in a process of its own."""
    row = [sys.executable, __file__, "--row", kind, url, str(file), str(samples), str(workers)]
    done = subprocess.run(row, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


@contextmanager
def world(file: Path, samples: int, *options: str) -> Iterator[str]:
    """The URL of a world of so many samples, which it writes to `file`; half train, a quarter each select and test."""
    sizes = {"train": samples // 2, "select": samples // 4, "test": samples // 4}
    size = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    command = [sys.executable, str(ROOT / "tests/world.py"), "--write", str(file), *size, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield json.loads(server.stdout.readline())["url"]
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=5, metavar=("KIND", "URL", "FILE", "SAMPLES", "WORKERS"), help="measure one row")
    options = parser.parse_args()
    if options.row:
        kind, url, file, samples, workers = options.row
        print(json.dumps(measure(kind, url, Path(file), int(samples), int(workers))))
        return
    print("| what | samples | workers | CPU s per 1,000 | peak RSS, MB |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.jsonl"
        with world(file, max(samples for _, samples, _ in ROWS)) as url:
            for kind, samples, workers in ROWS:
                got = measured(kind, url, file, samples, workers)
                per_1000 = 1000 * got["cpu_s"] / got["calls"]
                print(f"| {kind} | {samples} | {workers} | {per_1000:.2f} | {got['rss_mb']:.0f} |", flush=True)
        runs = []
        for seed in SEEDS:
            with world(file, TRAINED, "--p", "0.1", "--seed", str(seed)) as url:
                runs.append(measured("training", url, file, TRAINED, 16))
        calls, cpu = (sum(run[name] for run in runs) for name in ("calls", "cpu_s"))
        peak = max(run["rss_mb"] for run in runs)
        print(f"| training, {len(runs)} runs | {TRAINED} | 16 | {1000 * cpu / calls:.2f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
