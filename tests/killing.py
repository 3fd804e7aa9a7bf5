"""A training that is killed with SIGKILL at random moments of its life until it ends, and what must hold after each.

`python tests/killing.py LOG JSON` trains as `tests/training.py` does, and appends the journal key of every call that it
begins to pay for to the file LOG. It exits with the result's exit code.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from skilltune.journal.run import Paid, Run
from training import events, prepare, train, train_at
from world import World

Json = dict[str, Any]
Due = Callable[[], bool]
Moment = Callable[[World, Path], Due]  # begins with a life of the run in a folder: is it time to kill it?
START_UP_S = 0.7  # of a process; only scales the moments at which it is killed
FILES = ("config.toml", "versions/0000/SKILL.md", "best_skill.md", "metrics.jsonl", "rollouts.jsonl", "card.md")


@dataclass(frozen=True)
class Outcome:
    """The parts in which a killed run and an undisturbed one must be equal, byte for byte."""

    exit_code: int
    finish: Json  # version hashes, certificate, …
    verdicts: list[Json]
    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path, exit_code: int) -> Outcome:
        skills = [folder / "best_skill.md", *sorted(folder.glob("versions/*/*"))]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in skills}
        (finish,) = events(folder, "finish")
        return cls(exit_code, finish, events(folder, "verdict"), files)


@dataclass
class Lives:
    """A run's lives: where each kill met it, and what was paid twice."""

    outcome: Outcome
    kills: list[str] = field(default_factory=list)  # phases
    begun_twice: int = 0  # calls whose answer had not reached the journal when the process was killed
    answered_twice: int = 0  # of those, the ones that the world had answered in full
    asked_again: set[str] = field(default_factory=set)  # calls begun although the journal held them: none, ever


def undisturbed(world: World, folder: Path, settings: Json, **tables: Any) -> tuple[Outcome, float]:
    """The outcome of a run that nothing disturbs, and about how long a process of its own takes for it, in seconds."""
    began = time.perf_counter()
    trained = asyncio.run(train(world, folder, settings, **tables))
    took = time.perf_counter() - began
    return Outcome.of(trained.folder, trained.result.exit_code), START_UP_S + took


def killed(world: World, folder: Path, moments: Iterable[Moment], settings: Json, **tables: Any) -> Lives:
    """Run and kill, once at each of the moments, until a life ends before its moment comes or none is left."""
    prepare(world, folder)
    run, log, best = folder / "run", folder / "begun.log", folder / "run" / "best_skill.md"
    given = {"url": world.url, "folder": str(folder), "settings": settings, **tables}
    command = [sys.executable, __file__, str(log), json.dumps(given)]
    phases: list[str] = []
    held: set[str] = set()  # the journal's keys at the last kill
    again: set[str] = set()
    log.touch()
    coming = iter(moments)
    while True:
        seen, begun, written = len(world.requests), log.stat().st_size, _written(best)
        due = next(coming, _never)(world, run)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not due():
            time.sleep(0.0005)
        process.kill()
        _, complaint = process.communicate()
        again |= held & set(log.read_text()[begun:].split())
        if process.returncode >= 0:
            break
        held, happened = _journal(run)
        phases.append("writing of files" if _written(best) != written else _phase(world, seen, happened))
    if process.returncode not in (0, 1, 5) or b"Traceback" in complaint:
        raise AssertionError(f"a life after {len(phases)} kills ended badly: {complaint.decode()}")
    begun_twice = sum(count - 1 for count in Counter(log.read_text().split()).values())
    full = Counter((r.digest, r.key) for r in world.requests if r.status == 200 and r.fault is None)
    answered_twice = sum(count - 1 for count in full.values())
    return Lives(Outcome.of(run, process.returncode), phases, begun_twice, answered_twice, again)


def after_seconds(seconds: float) -> Moment:
    def moment(world: World, run: Path) -> Due:
        at = time.monotonic() + seconds
        return lambda: time.monotonic() >= at

    return moment


def after_requests(number: int) -> Moment:
    """The world has seen so many more requests."""

    def moment(world: World, run: Path) -> Due:
        last = len(world.requests) + number
        return lambda: len(world.requests) >= last

    return moment


def after_file(name: str, delay_s: float = 0.0) -> Moment:
    """A derived file has been written."""

    def moment(world: World, run: Path) -> Due:
        before = _written(run / name)
        return lambda: _written(run / name) != before and time.sleep(delay_s) is None

    return moment


def random_moments(draw: random.Random, whole_s: float) -> Iterator[Moment]:
    """Moments over the whole life of a process that takes `whole_s` seconds where nothing disturbs it; more often early
    ones, or few lives would be killed before they end."""
    while True:
        what = draw.random()
        if what < 0.6:
            yield after_seconds(whole_s * draw.random() ** 2)
        elif what < 0.8:
            yield after_requests(draw.randrange(1, 80))
        else:
            yield after_file(draw.choice(FILES), draw.random() * 0.003)


def _never(world: World, run: Path) -> Due:
    return lambda: False


def _written(path: Path) -> int:
    """Changes with every atomic write of a file; 0 while it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _journal(run: Path) -> tuple[set[str], set[str]]:
    """The keys of the memos and the types of the events in a dead process's journal. Read from a copy: to look at the
    original would clear its write-ahead log, which the next life is to find as the kill left it."""
    with tempfile.TemporaryDirectory() as name:
        for path in run.glob("run.db*"):
            shutil.copy(path, name)
        with closing(sqlite3.connect(Path(name) / "run.db")) as db:
            if not db.execute("SELECT 1 FROM sqlite_master").fetchone():
                return set(), set()
            keys = {key for (key,) in db.execute("SELECT key FROM memo")}
            return keys, {type for (type,) in db.execute("SELECT DISTINCT type FROM event")}


def _phase(world: World, seen: int, happened: set[str]) -> str:
    """The place where a process was killed, read from its last request and from the journal."""
    if len(world.requests) == seen:
        return "start-up and replay"
    last = world.requests[-1]
    if last.role != "target" or last.sample is None:
        return "reflection"
    split = world.tickets[last.sample].split
    if split == "select":
        return "race" if "start" in happened else "baseline"
    return {"train": "batch and screen", "test": "certificate"}[split]


def main() -> None:
    log, given = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND), json.loads(sys.argv[2])
    once = Run.memo

    async def watched(self: Run, key: str, kind: str, fn: Callable[[], Awaitable[Paid]]) -> Any:
        async def noted() -> Paid:
            os.write(log, f"{key}\n".encode())
            return await fn()

        return await once(self, key, kind, noted)

    with patch.object(Run, "memo", watched):
        trained = asyncio.run(train_at(given.pop("url"), Path(given.pop("folder")), **given))
    sys.exit(trained.result.exit_code)


if __name__ == "__main__":
    main()
