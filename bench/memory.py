"""What a memory beyond an epoch is worth (failure patterns, rejected edits, judged texts), in the simulated world.

K failure classes, 120/60/120 samples, ideas right with probability q, answers flipped with probability p. The same runs
with `optimizer.patterns` off and on, to the end of all epochs; the world's optimizer attends to what `<unfixed>` names:
of the classes that fail in a minibatch it answers those first that failed before and were never answered. Prints one
row per p and setting: mean true test score (noise-free) over the seeds, its spread and worst, target calls before the
certificate, calls of the optimizer, accepted versions. Run: python bench/memory.py --seeds 8
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from statistics import fmean, pstdev

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import skilltune as st
from world import Dice, Json, Optimizer, Prompt, World, blocks


class Attentive(Optimizer):
    """Answers first what has failed for long."""

    def reflect(self, prompt: Prompt, dice: Dice) -> Json:
        lines = [line for _, body in blocks("unfixed", prompt.text) for line in body.strip().splitlines()]
        failing = {self.desk.recognise(entry["pattern"]): entry["failing"] for entry in map(json.loads, lines)}
        answer = super().reflect(dataclasses.replace(prompt, budget=len(self.desk.names)), dice)

        def persistence(edit: Json) -> int:
            return failing.get(self.desk.recognise(edit["evidence"][0]["quote"]) if edit["evidence"] else None, 0)

        edits = sorted(answer["edits"], key=persistence, reverse=True)
        return {**answer, "edits": edits[: prompt.budget]}


def one(patterns: bool, p: float, q: float, seed: int, classes: int, epochs: int) -> dict[str, float]:
    """One run; the world's seed and the run's are the same number."""
    with World(classes, 120, 60, 120, p=p, q=q, seed=seed) as world, tempfile.TemporaryDirectory() as folder:
        known = world.optimizer
        world.optimizer = Attentive(known.desk, known.q, known.harmful, known.sloppy, known.misquote)
        samples = Path(folder) / "data.jsonl"
        world.write(samples)
        result = st.train(
            skill=Path(folder) / "SKILL.md",
            env=samples,
            target={"model": f"openai@{world.url}/target", "lookahead": False},
            optimizer={"model": f"openai@{world.url}/optimizer", "patterns": patterns},
            run=Path(folder) / "run",
            seed=seed,
            train={"epochs": epochs, "patience": 0},
        )
        tested = 2 * 120 if result.versions[-1].text != result.start.text else 0
        return {
            "true": world.true_score(result.best.text),
            "target": world.calls["target"] - tested,
            "optimizer": world.calls["optimizer"],
            "versions": len(result.versions) - 1,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--p", default="0,0.1")
    parser.add_argument("--q", type=float, default=0.6)
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    print(f"K = {options.classes}, 120/60/120 samples, q = {options.q}, {options.epochs} epochs, {options.seeds} seeds")
    print("| p | patterns | true test score | sd | worst | target calls | optimizer calls | accepted |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for p in map(float, options.p.split(",")):
        for patterns in (False, True):
            rows = [one(patterns, p, options.q, seed, options.classes, options.epochs) for seed in range(options.seeds)]
            true = [row["true"] for row in rows]
            means = {name: fmean(row[name] for row in rows) for name in rows[0]}
            print(
                f"| {p:g} | {'on' if patterns else 'off'} | {fmean(true):.3f} | {pstdev(true):.3f} | {min(true):.3f} | "
                f"{means['target']:.0f} | {means['optimizer']:.0f} | {means['versions']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
