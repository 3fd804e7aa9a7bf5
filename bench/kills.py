"""SIGKILL at a hundred random moments: does every run end as if nothing had happened, and is nothing paid twice?

For each world (seed) and preset: one undisturbed run, then the same run in a process that is killed at moments drawn
over its whole life (start-up, baseline, screening, judging, certificate, writing of files) until it ends. Compared are
exit code, version hashes, certificate, verdicts and the bytes of every skill file. A call is *asked again* if the
journal held its answer at a kill and a later life began it once more: that must never happen. *Answered twice* are
those whose answer was on its way when the process died. Prints Markdown tables, and fails if a claim does not hold.
Run: python bench/kills.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from killing import Lives, killed, random_moments, undisturbed
from training import small

WORKERS = 8
SETTINGS = {
    "default": {"train.epochs": 1, "target.workers": WORKERS},
    "paper": {"train.epochs": 2, "train.lr": 1, "train.lr_min": 1, "target.workers": WORKERS},
}


def one(seed: int, preset: str) -> tuple[Lives, bool]:
    """The lives of one run that is killed, and whether it ended like the undisturbed one."""
    world = {"p": 0.1, "q": 0.7, "latency": 0.01, "seed": seed}
    settings = SETTINGS[preset]
    with tempfile.TemporaryDirectory() as name:
        quiet, loud = Path(name) / "quiet" / "desk", Path(name) / "loud" / "desk"  # a skill is named after its folder
        for folder in (quiet, loud):
            folder.mkdir(parents=True)
        with small(**world) as server:
            expected, whole_s = undisturbed(server, quiet, settings, preset=preset, seed=seed)
        with small(**world) as server:
            moments = random_moments(random.Random(f"{seed} {preset}"), whole_s)
            lives = killed(server, loud, moments, settings, preset=preset, seed=seed)
    return lives, lives.outcome == expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=10, help="at least so many for each preset")
    parser.add_argument("--kills", type=int, default=100, help="at least so many in all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    given = parser.parse_args()
    phases: Counter[str] = Counter()
    sound = True
    print("| world | preset | kills | versions | exit code | same end | asked again | begun twice | answered twice |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        for first in count(step=given.jobs):
            if first >= given.worlds and phases.total() >= given.kills:
                break
            cases = [(seed, preset) for seed in range(first, first + given.jobs) for preset in SETTINGS]
            for (seed, preset), (lives, same) in zip(cases, pool.map(one, *zip(*cases, strict=True)), strict=True):
                phases.update(lives.kills)
                sound = sound and same and not lives.asked_again and lives.answered_twice <= lives.begun_twice
                print(
                    f"| {seed} | {preset} | {len(lives.kills)} | {len(lives.outcome.finish['versions'])} | "
                    f"{lives.outcome.exit_code} | {'yes' if same else 'NO'} | {len(lives.asked_again)} | "
                    f"{lives.begun_twice} | {lives.answered_twice} |",
                    flush=True,
                )
    print(f"\n| killed during | {phases.total()} kills |\n| --- | --- |")
    for phase, number in phases.most_common():
        print(f"| {phase} | {number} |")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
