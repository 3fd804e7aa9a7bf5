"""How well and how cheaply the presets learn in the simulated world (tests/world.py), over real HTTP.

K failure classes, 120/60/120 samples, an optimizer whose ideas are right with probability q, answers flipped with
probability p. Prints one row per preset and p: mean true test score (noise-free) of the shipped skill over the seeds,
its spread, target calls before the certificate, accepted versions. `--beliefs` adds what the gate believed of each gain
that it accepted, against the true one. Run: python bench/learning.py --seeds 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import skilltune as st
from skilltune.journal.run import Run
from world import World

Mode = Literal["normal", "useless", "harmful"]


def one(preset: str, p: float, q: float, seed: int, classes: int, mode: Mode, epochs: int) -> dict[str, Any]:
    """One run; the world's seed and the run's are the same number."""
    with (
        World(classes, 120, 60, 120, p=p, q=q, seed=seed, optimizer_mode=mode) as world,
        tempfile.TemporaryDirectory() as d,
    ):
        samples = Path(d) / "data.jsonl"
        world.write(samples)
        url = world.url
        result = st.train(
            skill=Path(d) / "SKILL.md",
            env=samples,
            target={"model": f"openai@{url}/target", "lookahead": False},  # it would blur the count of calls
            optimizer=f"openai@{url}/optimizer",
            run=Path(d) / "run",
            preset=preset,
            seed=seed,
            train={"epochs": epochs},
        )
        tested = 2 * 120 if result.certificate is not None else 0
        levels = [(1 - 2 * p) * world.true_score(version.text) for version in result.versions]
        with Run.read(result.folder) as journal:
            accepted = [data for _, _, data in journal.events("verdict") if data["accepted"]]
        gains = [b - a for a, b in pairwise(levels)]
        looks = [
            (data["numbers"]["looks"][-1], gain)
            for data, gain in zip(accepted, gains, strict=True)
            if preset == "default"
        ]
        return {
            "beliefs": [(look["gain"], look["sd"], gain) for look, gain in looks],
            "true": world.true_score(result.best.text),
            "start": world.true_score(result.start.text),
            "target": world.calls["target"] - tested,
            "optimizer": world.calls["optimizer"],
            "versions": len(result.versions) - 1,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed; the default preset was tuned on 0 to 39")
    parser.add_argument("--presets", default="paper,default")
    parser.add_argument("--p", default="0,0.1")
    parser.add_argument("--q", type=float, default=0.6)
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--mode", default="normal", choices=["normal", "useless", "harmful"])
    parser.add_argument("--beliefs", action="store_true", help="compare believed with true gains of what was accepted")
    options = parser.parse_args()
    print(
        f"K = {options.classes}, 120/60/120 samples, q = {options.q}, optimizer {options.mode}, {options.seeds} seeds"
    )
    print("| preset | p | true test score | sd | worst | target calls | optimizer calls | accepted | in runs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for preset in options.presets.split(","):
        for p in map(float, options.p.split(",")):
            rows = [
                one(preset, p, options.q, seed, options.classes, options.mode, options.epochs)
                for seed in range(options.first, options.first + options.seeds)
            ]
            true = [row["true"] for row in rows]
            means = {name: fmean(row[name] for row in rows) for name in rows[0] if name != "beliefs"}
            print(
                f"| {preset} | {p:g} | {fmean(true):.3f} | {pstdev(true):.3f} | {min(true):.3f} | "
                f"{means['target']:.0f} | {means['optimizer']:.0f} | {means['versions']:.1f} | "
                f"{sum(row['versions'] > 0 for row in rows)} of {len(rows)} |",
                flush=True,
            )
            if options.beliefs and (beliefs := [belief for row in rows for belief in row["beliefs"]]):
                off = [abs(gain - believed) / sd for believed, sd, gain in beliefs]
                print(
                    f"{preset}, p = {p:g}: of {len(off)} accepted steps the true gain was within one sd of what was "
                    f"believed in {sum(x <= 1 for x in off)}, within two in {sum(x <= 2 for x in off)}; believed "
                    f"{100 * fmean(b for b, _, _ in beliefs):+.1f} points in the mean, true "
                    f"{100 * fmean(gain for _, _, gain in beliefs):+.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
