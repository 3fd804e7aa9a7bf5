"""How well and how cheaply the presets learn in the simulated world (tests/world.py), over real HTTP.

K failure classes, 120/60/120 samples, an optimizer whose ideas are right with probability q, answers flipped with
probability p. Prints one row per preset and p: mean true test score (noise-free) of the shipped skill over the seeds,
its spread, target calls before the certificate, accepted versions. Run: python bench/learning.py --seeds 10
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import skilltune as st
from world import World

Mode = Literal["normal", "useless", "harmful"]


def one(preset: str, p: float, q: float, seed: int, classes: int, mode: Mode, epochs: int) -> dict[str, float]:
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
        return {
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
            means = {name: fmean(row[name] for row in rows) for name in rows[0]}
            print(
                f"| {preset} | {p:g} | {fmean(true):.3f} | {pstdev(true):.3f} | {min(true):.3f} | "
                f"{means['target']:.0f} | {means['optimizer']:.0f} | {means['versions']:.1f} | "
                f"{sum(row['versions'] > 0 for row in rows)} of {len(rows)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
