"""What the journal costs: a run of 50,000 rollouts of about 1.5 kB is written, and then opened and replayed by another
process, as a resumed run does.

Prints a Markdown table; times are CPU (user and system) and, in brackets, elapsed, which other work on the machine
stretches. Run: python bench/journal.py
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from skilltune.journal.keys import digest, rng
from skilltune.journal.run import Paid, Run
from skilltune.rollout import Rollout, Score, Trajectory, Turn, rollout_from_json, rollout_to_json
from skilltune.usage import Usage

T = TypeVar("T")

WORDS = ("invoice", "the", "tray", "of", "parcel", "nobody", "code", "night", "under", "a", "claim", "contract", "sent")
KIB_PER_MAXRSS = 1 / 1024 if sys.platform == "darwin" else 1  # macOS counts bytes
CONFIG = {"seed": 1}


def key_of(number: int) -> str:
    return digest("rollout", number)


def paid(number: int) -> Paid:
    """One rollout as the loop stores it."""
    draw = rng(0, number)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    usage = Usage(1, draw.randrange(200, 900), draw.randrange(20, 200), usd=draw.randrange(1, 900) / 1e6)
    answer = text(60)
    turns = (Turn("user", text(80)), Turn("assistant", answer))
    trajectory = Trajectory(answer, turns, usage=usage, seconds=round(draw.random(), 4))
    skill, score = digest("skill", number // 120), Score(float(draw.random() < 0.5), "expected another code")
    return Paid(rollout_to_json(Rollout(f"t-{number % 300:04d}", skill, 0, trajectory, score)), usage)


class Clock:
    """Adds up the elapsed and the CPU seconds of blocks."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall, self.cpu = self.wall + time.perf_counter() - wall, self.cpu + time.process_time() - cpu

    def __str__(self) -> str:
        return f"{self.cpu:.2f} s ({self.wall:.2f} s)"

    def each(self, n: int) -> str:
        return f"{1e6 * self.cpu / n:.0f} µs ({1e6 * self.wall / n:.0f} µs)"


def timed(fn: Callable[[], T]) -> tuple[T, Clock]:
    clock = Clock()
    with clock():
        value = fn()
    return value, clock


def row(what: str, value: object) -> None:
    print(f"| {what} | {value} |", flush=True)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB_PER_MAXRSS / 1024


async def write(run: Run, n: int) -> None:
    """Pay for `n` rollouts, one after another; making them up is not counted."""
    clock = Clock()
    for start in range(0, n, 1000):
        batch = [(key_of(number), paid(number)) for number in range(start, min(start + 1000, n))]
        with clock():
            for key, answer in batch:

                async def fn(answer: Paid = answer) -> Paid:
                    return answer

                await run.memo(key, "rollout", fn)
    row("`once` with a new answer", clock.each(n))
    row("new answers per second", f"{n / clock.cpu:,.0f} ({n / clock.wall:,.0f})")


async def replay(run: Run, keys: list[str]) -> None:
    async def fn() -> Paid:
        raise AssertionError("an answer that is stored was asked for again")

    for key in keys:
        rollout_from_json(await run.memo(key, "rollout", fn))


def resume(folder: Path, n: int) -> None:
    """The second process: open the run, recall every answer, replay it as rollouts."""
    import_module("skilltune.api")  # as `skilltune train` does
    import_module("skilltune.cli.main")
    row("process start, all imports", f"{time.process_time():.2f} s")
    keys = [key_of(number) for number in range(n)]
    run, opened = timed(lambda: Run.open(folder, CONFIG))
    row("`Run.open`", opened)
    with run:
        before = peak_mib()
        known, recalled = timed(lambda: sum(run.recall(key) is not None for key in keys))
        assert known == n
        row("`recall`", recalled.each(n))
        _, replayed = timed(lambda: asyncio.run(replay(run, keys)))
        row("`once` with a known answer, made a rollout", replayed.each(n))
        row("all answers replayed", replayed)
        row("process start, open, recall and replay in all", f"{time.process_time():.2f} s")
        row("memory added by that", f"{peak_mib() - before:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=50_000)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    n = given.rollouts
    if given.resume:
        return resume(given.resume, n)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        print(f"| a journal of {n:,} rollouts | CPU (elapsed) |\n| --- | --- |", flush=True)
        with Run.open(folder, CONFIG) as run:
            asyncio.run(write(run, n))
        sizes = [file.stat().st_size for file in folder.iterdir()]
        text = sum(len(str(paid(number).value)) for number in range(0, n, 100)) * 100 / n
        row("files in the folder", f"{len(sizes)}, {sum(sizes) / 1e6:.0f} MB")
        row("bytes of a rollout, and in the file", f"{text:,.0f}, {sum(sizes) / n:,.0f}")
        subprocess.run([sys.executable, __file__, "--rollouts", str(n), "--resume", str(folder)], check=True)
        reader, read = timed(lambda: Run.read(folder))
        reader.close()
        row("`Run.read`", read)
        command = [sys.executable, "-m", "skilltune.cli.main", "show", str(folder)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _, shown = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        row("`skilltune show`, the whole process", f"{cpu:.2f} s ({shown.wall:.2f} s)")
    return None


if __name__ == "__main__":
    main()
