"""Training on the embedded model over several seeds: the shipped examples, how additive edits are, and a placebo.

Per run: the certificate; the gain that the screen predicted for each candidate (its prior mean, shrunk) against the one
measured in its race; and the score on `test` of a placebo, the words of the best skill in random order.
Run: python bench/embedded.py --seeds 5
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import skilltune as st
from skilltune.config import load_config
from skilltune.finish.controls import shuffled
from skilltune.journal.run import Run

EXAMPLES = Path(__file__).parents[1] / "examples"
EPOCHS = 2  # the shipped `amounts` has one, so that the demo is short


def one(name: str, seed: int) -> list[str]:
    """A row of the table."""
    cfg, root = load_config(EXAMPLES / name / "skilltune.toml")
    tables = cfg.model_dump(exclude_defaults=True, exclude={"skill", "env", "seed"})
    tables["train"] = {**tables.get("train", {}), "epochs": EPOCHS}
    env = cfg.env.model_dump(exclude_defaults=True) | {"samples": str(root / cfg.env.samples)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        result = st.train(skill=root / cfg.skill, env=env, run=run, seed=seed, **tables)
        with Run.read(run) as journal:
            verdicts = [data for _, _, data in journal.events("verdict") if data["differences"]]
        predicted = [data["numbers"]["prior"][0] for data in verdicts if "prior" in data["numbers"]]
        seen = [data["after"] - data["before"] for data in verdicts if "prior" in data["numbers"]]
        control = st.evaluate(shuffled(result.best, seed), env=env, target=tables["target"], split="test", seed=seed)
    proof = result.certificate
    pairs = ", ".join(f"{100 * a:+.0f} → {100 * b:+.0f}" for a, b in zip(predicted, seen, strict=True))
    return [
        name,
        str(seed),
        f"{100 * proof.before:.1f} → {100 * proof.after:.1f}" if proof else "—",
        f"{100 * proof.low:+.1f}…{100 * proof.high:+.1f}" if proof else "—",
        "yes" if proof and proof.certified else "no",
        f"{100 * control.score:.1f}" if control.score is not None else "—",
        pairs,
        str(result.spent.calls),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", default="amounts,dates,short-answers")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print(
        "| example | seed | test, % | 95 % of the gain | certified | placebo, % | predicted → measured | target calls |"
    )
    print("| --- " * 8 + "|")
    for seed in range(options.seeds):
        for name in options.examples.split(","):
            print(f"| {' | '.join(one(name, seed))} |", flush=True)


if __name__ == "__main__":
    main()
