"""The anytime curves of several sources side by side, over the families that all of them have in common.

It reads what `bench/worlds.py` and `bench/peers.py` write with `--keep`, and the tables of runs that `--write` makes of
it. Sources of a table are named in it; the name of a kept outcome of ours is its preset, or what stands before `=`.

    python bench/curves.py bench/peers-locked.csv                           the committed runs of the peers
    python bench/curves.py bench/peers-locked.csv ours=locked.jsonl         ours beside them
    python bench/curves.py gepa.jsonl skillopt.jsonl --write runs.csv       a table of the runs
    python bench/curves.py bench/peers-locked.csv --families                the means of each family, too
    python bench/curves.py bench/peers-locked.csv --right 0.6               only optimizers that are right so often

*after N*: the true score of the best skill after N target calls, mean over families, and its 95 % bootstrap interval
(seeds are drawn again within each family). *worst*: of all runs, after the last budget. *never right*: runs that
changed the skill, in families whose optimizer is never right; they are in no mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from worlds import FAMILIES
from worlds.anytime import BUDGETS, bootstrap


@dataclass(frozen=True, slots=True)
class Made:
    """One run. `curve` holds the true score after each of the budgets."""

    who: str
    family: str
    seed: int
    score: float
    changed: bool
    calls: int  # of the target, before a test
    curve: tuple[float, ...]


COLUMNS = ("who", "family", "seed", "true score", "changed", "target calls", *(f"after {n}" for n in BUDGETS))


def read(source: str) -> Iterator[Made]:
    """The runs of a file: a table of runs, or kept outcomes of either bench."""
    name, _, file = source.rpartition("=")
    text = Path(file).read_text().splitlines()
    if file.endswith(".csv"):
        yield from (_of_table(row) for row in csv.DictReader(text))
        return
    for line in text:
        with suppress(json.JSONDecodeError):  # a killed process may leave half a line
            row = json.loads(line)
            yield _of_peer(row) if "peer" in row else _of_ours(row, name)


def _of_table(row: dict[str, str]) -> Made:
    curve = tuple(float(row[f"after {n}"]) for n in BUDGETS)
    changed, calls = row["changed"] == "1", int(row["target calls"])
    return Made(row["who"], row["family"], int(row["seed"]), float(row["true score"]), changed, calls, curve)


def _of_peer(row: dict[str, Any]) -> Made:
    figures = row["figures"]
    curve = tuple(figures[f"after {n}"] for n in BUDGETS)
    calls = int(figures["calls before"])
    return Made(row["peer"], row["family"], row["seed"], figures["score"], bool(figures["changed"]), calls, curve)


def _of_ours(row: dict[str, Any], name: str) -> Made:
    task, outcome = json.loads(row["key"]), row["outcome"]
    true, calls = outcome["true"], outcome["target"]
    curve = tuple(true if calls <= n else [s for made, s in outcome["curve"] if made <= n][-1] for n in BUDGETS)
    family = task["family"]["name"]
    return Made(name or task["preset"], family, task["seed"], true, outcome["changed"], calls, curve)


def write(runs: Iterable[Made], file: Path) -> None:
    with file.open("w", newline="") as opened:
        table = csv.writer(opened, lineterminator="\n")
        table.writerow(COLUMNS)
        for run in sorted(runs, key=astuple):
            figures = (f"{score:.4g}" for score in run.curve)
            table.writerow((run.who, run.family, run.seed, f"{run.score:.4g}", int(run.changed), run.calls, *figures))


Cells = dict[str, dict[str, list[Made]]]  # source → family → runs


def cells_of(runs: Iterable[Made]) -> Cells:
    cells: Cells = {}
    for run in runs:
        cells.setdefault(run.who, {}).setdefault(run.family, []).append(run)
    return cells


def comparison(cells: Cells, right: float = 0.0) -> Iterator[str]:
    """The table of the means over the families that all sources have, and whose optimizer is right so often."""
    shared = set.intersection(*(set(families) for families in cells.values()))
    able = [name for name in FAMILIES if name in shared and 0 < FAMILIES[name].q >= right]
    never = [name for name in FAMILIES if name in shared and not FAMILIES[name].q]
    if not able:
        raise SystemExit("the sources have no family in common whose optimizer is right so often")
    yield f"{len(able)} families: {', '.join(able)}"
    yield f"never right: {', '.join(never) or 'none'}\n"
    headers = ("who", "runs", *(f"after {n:,}" for n in BUDGETS), "worst", "target calls", "never right: changed")
    yield f"| {' | '.join(headers)} |\n{'| --- ' * len(headers)}|"
    for who, families in cells.items():
        runs = [run for name in able for run in families[name]]
        useless = [run for name in never for run in families[name]]
        curve = [bootstrap([[run.curve[i] for run in families[name]] for name in able]) for i in range(len(BUDGETS))]
        row = (
            *(who, str(len(runs)), *(f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in curve)),
            *(f"{min(run.curve[-1] for run in runs):.2f}", f"{fmean(run.calls for run in runs):.0f}"),
            f"{sum(run.changed for run in useless)} of {len(useless)}",
        )
        yield f"| {' | '.join(row)} |"


def by_family(cells: Cells) -> Iterator[str]:
    """The table of the means of each family and source."""
    headers = ("family", "who", "runs", "worst", "target calls", "changed", *(f"after {n:,}" for n in BUDGETS))
    yield f"\n| {' | '.join(headers)} |\n{'| --- ' * len(headers)}|"
    for family in FAMILIES:
        for who, families in cells.items():
            if runs := families.get(family):
                row = (
                    *(family, who, str(len(runs)), f"{min(run.curve[-1] for run in runs):.2f}"),
                    *(f"{fmean(run.calls for run in runs):.0f}", f"{sum(run.changed for run in runs)} of {len(runs)}"),
                    *(f"{fmean(run.curve[i] for run in runs):.3f}" for i in range(len(BUDGETS))),
                )
                yield f"| {' | '.join(row)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]FILE", help="kept outcomes, or a table of runs (.csv)")
    parser.add_argument("--write", type=Path, help="write all runs to this table")
    parser.add_argument("--families", action="store_true", help="print the means of each family, too")
    parser.add_argument("--right", type=float, default=0.0, help="only families whose optimizer is right so often")
    options = parser.parse_args()
    runs = [run for source in options.sources for run in read(source)]
    if options.write:
        write(runs, options.write)
    cells = cells_of(runs)
    print("\n".join(comparison(cells, options.right)))
    if options.families:
        print("\n".join(by_family(cells)))


if __name__ == "__main__":
    main()
