"""SIGINT and SIGTERM at random moments: how soon does a run end, and does it end as if nothing had happened?

For each preset a run of `skilltune train`, a process of its own, at a world of its own in which a fifth of all calls
hang for longer than anybody waits; it is told to end at moments drawn over its life, and started again with the same
command, until it finishes. Compared are the version hashes, the certificate and the bytes of the best skill with those
of a run that nothing disturbs. *Under way*: calls that the world had not answered when the signal came. Prints Markdown
tables, and fails if an end took longer than `MOST_S` or any run ended otherwise. Run: python bench/signals.py
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from training import Json, events, prepare, small
from world import Faults, World

MOST_S = 2.0
HANG = Faults(hang=0.2, hang_s=600.0)
TIMEOUT_S = 2.0  # of a call: a run that hangs goes on after it


@dataclass(frozen=True)
class End:
    """How a life ended that was told to: by which signal, after how many seconds, with what exit code."""

    signal: str
    seconds: float
    code: int
    under_way: int


def start(folder: Path, world: World, preset: str, seed: int) -> subprocess.Popen[str]:
    prepare(world, folder)
    tables = "".join(
        f'[{role}]\nmodel = "openai@{world.url}/{role}"\nworkers = 8\ntimeout_s = {TIMEOUT_S}\n'
        for role in ("target", "optimizer")
    )
    (folder / "desk.toml").write_text(
        f'preset = "{preset}"\nseed = {seed}\n[env]\nsamples = "samples.jsonl"\n[train]\nepochs = 1\n{tables}'
    )
    command = [sys.executable, "-m", "skilltune.cli.main", "train", "desk.toml", "--run", "run"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def outcome(folder: Path, code: int) -> tuple[int, Json, bytes]:
    (finish,) = events(folder / "run", "finish")
    return code, finish, (folder / "run" / "best_skill.md").read_bytes()


def undisturbed(folder: Path, preset: str, seed: int) -> tuple[int, Json, bytes]:
    with small(p=0.1, seed=seed, latency=0.02) as world:
        process = start(folder, world, preset, seed)
        _, said = process.communicate()
        if process.returncode not in (0, 1, 5):
            raise AssertionError(said)
    return outcome(folder, process.returncode)


def interrupted(folder: Path, preset: str, seed: int, whole_s: float) -> tuple[list[End], tuple[int, Json, bytes]]:
    """The ends of a run that is told to end again and again, until it finishes, and its outcome."""
    draw, ends = random.Random(f"{seed} {preset}"), list[End]()
    with small(p=0.1, seed=seed, latency=0.02, faults=HANG) as world:
        while True:
            number = draw.choice((signal.SIGINT, signal.SIGTERM))
            left = sum(world.calls.values()) - len(world.requests)  # those of earlier lives hang on
            process = start(folder, world, preset, seed)
            try:
                _, said = process.communicate(timeout=0.7 + whole_s * draw.random())
            except subprocess.TimeoutExpired:
                under_way = sum(world.calls.values()) - len(world.requests) - left
                began = time.monotonic()
                process.send_signal(number)
                _, said = process.communicate()
                if process.returncode in (4, -number):
                    ends.append(End(number.name, time.monotonic() - began, process.returncode, under_way))
                    continue
            if process.returncode not in (0, 1, 5):
                raise AssertionError(f"a life after {len(ends)} signals ended with {process.returncode}: {said}")
            return ends, outcome(folder, process.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=24, help="at least so many in all")
    parser.add_argument(
        "--life", type=float, default=6.0, help="seconds after which a life is told to end at the latest"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it begins in the background ignore it
    ends, same = list[End](), True
    print("| world | preset | signals | slowest end s | same end |\n| --- | --- | --- | --- | --- |")
    for seed in range(1000):
        if len(ends) >= given.signals:
            break
        for preset in ("default", "paper"):
            with tempfile.TemporaryDirectory() as name:
                quiet, loud = Path(name) / "quiet" / "desk", Path(name) / "loud" / "desk"
                for folder in (quiet, loud):
                    folder.mkdir(parents=True)
                expected = undisturbed(quiet, preset, seed)
                some, got = interrupted(loud, preset, seed, given.life)
            same = same and got == expected
            slowest = max((end.seconds for end in some), default=0.0)
            told = "yes" if got == expected else "NO"
            print(f"| {seed} | {preset} | {len(some)} | {slowest:.2f} | {told} |", flush=True)
            ends += some
    print("\n| signal | number | under way (median) | median s | 90 % s | slowest s |\n|" + " --- |" * 6)
    for name in ("SIGINT", "SIGTERM"):
        taken = sorted(end.seconds for end in ends if end.signal == name)
        if taken:
            under_way = median(end.under_way for end in ends if end.signal == name)
            print(
                f"| {name} | {len(taken)} | {under_way:g} | {median(taken):.2f} | {taken[int(0.9 * len(taken))]:.2f} | "
                f"{taken[-1]:.2f} |"
            )
    return 0 if same and max(end.seconds for end in ends) <= MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())
