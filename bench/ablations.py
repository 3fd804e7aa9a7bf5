"""Each mechanism of the gate, with it and without it, in the same worlds with the same seeds.

A variant is a list of changes: a setting (`train.ablation=true`), a constant (`gate.priors.ROUNDS=[1.0]`), or
`no-claims`, by which no edit has an effect of its own on the samples that it claims. A difference is that of a variant
minus the shipped default in the same world: the mean over runs ± its standard error. Runs go seed by seed, so a table
of fewer seeds can be printed at any time.

    python bench/ablations.py --keep FILE                       run all variants in the tuning families, and print
    python bench/ablations.py --keep FILE --variants "one round" --seeds 12
    python bench/ablations.py --keep FILE --print               print what is known
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
SPEC = importlib.util.spec_from_file_location("bench_worlds", Path(__file__).with_name("worlds.py"))
assert SPEC
assert SPEC.loader
bench: Any = importlib.util.module_from_spec(SPEC)
sys.modules["bench_worlds"] = bench
SPEC.loader.exec_module(bench)

from skilltune.gate import trials  # noqa: E402
from skilltune.stats.effects import Odds  # noqa: E402

DEFAULT = "default"
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "one round": ("gate.priors.ROUNDS=[1.0]",),
    "never diffuse": ("gate.priors.CLAIMS=-1.0",),
    "no removals": ("gate.priors.REMOVALS=0",),
    "no places for fresh edits": ("gate.priors.FRESH=0.0",),
    "all places for fresh edits": ("gate.priors.FRESH=1.0",),
    "no claims": ("no-claims",),
    "free riders": ("gate.priors.WORTH=0.05",),
    "patience 3 as well": ("train.patience=3",),
    "calls at half the price": ("train.call_price=0.005",),
    "last ablation": ("train.ablation=true",),
}


def run(variant: str, family: Any, seed: int) -> dict[str, Any]:
    changes = VARIANTS[variant]
    values = bench.assigned([change for change in changes if "=" in change])
    constants = {name: value for name, value in values.items() if name.rpartition(".")[2].isupper()}
    settings = bench.tree_of({name: value for name, value in values.items() if name not in constants})
    task = bench.Task(family, seed, "default", json.dumps(settings), json.dumps(constants), False)
    with ExitStack() as stack:
        if "no-claims" in changes:
            stack.enter_context(patch.object(trials, "Odds", lambda: Odds(claimed=(1e9, 1e-3))))
        outcome = bench.run(task)
    return {
        "variant": variant, "family": family.name, "seed": seed, "true": outcome.true, "calls": outcome.target,
        "changed": outcome.changed, "never right": not family.q, "seconds": outcome.seconds,
    }  # fmt: skip


def error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def table(rows: Sequence[dict[str, Any]]) -> str:
    found = {(row["variant"], row["family"], row["seed"]): row for row in rows}
    lines = [
        "| variant | runs | true score | worst | difference | target calls | difference | never right: changed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        both = [(row, found[DEFAULT, f, s]) for (v, f, s), row in found.items()
                if v == variant and (DEFAULT, f, s) in found]  # fmt: skip
        able = [(a, b) for a, b in both if not a["never right"]]
        never = [a for a, _ in both if a["never right"]]
        if not able:
            continue
        score, calls = ([a[name] - b[name] for a, b in able] for name in ("true", "calls"))
        plain = variant == DEFAULT
        lines.append(
            f"| {variant} | {len(able)} | {fmean(a['true'] for a, _ in able):.3f} | "
            f"{min(a['true'] for a, _ in able):.2f} | "
            + ("| " if plain else f"{fmean(score):+.3f} ± {error(score):.3f} | ")
            + f"{fmean(a['calls'] for a, _ in able):.0f} | "
            + ("| " if plain else f"{fmean(calls):+.0f} ± {error(calls):.0f} | ")
            + f"{sum(row['changed'] for row in never)} of {len(never)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, required=True, help="a file of known outcomes (JSON lines)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, separated by commas")
    parser.add_argument("--families", default="tuning")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--print", action="store_true", help="print what is known, and run nothing")
    options = parser.parse_args()
    known = options.keep.read_text().splitlines() if options.keep.exists() else []
    rows = [json.loads(line) for line in known]
    done = {(row["variant"], row["family"], row["seed"]) for row in rows}
    variants = list(dict.fromkeys([DEFAULT, *options.variants.split(",")]))
    for seed in range(options.first, options.first + options.seeds) if not options.print else ():
        for family in bench.chosen(options.families, {}, ""):
            for variant in variants:
                if (variant, family.name, seed) not in done:
                    rows.append(run(variant, family, seed))
                    with options.keep.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
