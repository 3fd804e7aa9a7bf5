"""The certificate's test on simulated test splits: its error, the coverage of its interval, and the power it costs.

    python bench/certificate.py [--runs 2000] [--out bench/certificate.md]

Without a gain, the share of runs with p < .05 is the type-1 error. It must not pass 5 %, whatever the distribution of
the differences. The former test (sign flips; exact for symmetric differences only) is printed beside it. With a gain,
the share of runs with p < .05 is the power. About 5 minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from skilltune.stats import mcnemar, paired
from skilltune.stats.bounded import mean_above

ALPHA = 0.05
SIZES = (10, 20, 40, 60, 120, 300)
GROUPS = (3, 5, 7, 4, 6)  # sizes of the groups, again and again: 5 on average, unequal
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
"""(generator, n) → scores before and after of n independent units."""


# -- worlds


def coins(change: float, gain: float = 0.0) -> Draw:
    """0 or 1: a share `change` of the samples comes out differently, (change + gain)/2 of all turn right."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        u, solved = rng.random(n), rng.random(n) < 0.5
        fixed, broken = u < (change + gain) / 2, (u >= (change + gain) / 2) & (u < change)
        return np.where(fixed, 0.0, np.where(broken, 1.0, solved)), np.where(fixed, 1.0, np.where(broken, 0.0, solved))

    return draw


def attempts(k: int, gain: float = 0.0) -> Draw:
    """The mean of k attempts at samples of every difficulty."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        p = rng.random(n) * (1 - gain)
        return rng.binomial(k, p) / k, rng.binomial(k, p + gain) / k

    return draw


def differences(of: Callable[[np.random.Generator, int], np.ndarray]) -> Draw:
    """Differences of any kind, and scores that have them."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        moved = np.clip(of(rng, n), -1.0, 1.0)
        before = np.maximum(0.0, -moved) + rng.random(n) * (1 - np.abs(moved))
        return before, np.clip(before + moved, 0.0, 1.0)

    return draw


def wreck(small: float, share: float) -> Draw:
    """A little better nearly everywhere, ruined in a share of the samples: no gain on the whole."""
    return differences(lambda rng, n: np.where(rng.random(n) < share, -small * (1 - share) / share, small))


def ratings(gain: float = 0.0) -> Draw:
    """A judge's marks of 0, ¼, ½, ¾ or 1; a gain raises some by one."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        before, after = rng.integers(0, 5, n), rng.integers(0, 5, n)
        raised = (rng.random(n) < 5 * gain) & (after < 4)
        return before / 4, (after + raised) / 4

    return draw


def normal(gain: float, sd: float) -> Draw:
    return differences(lambda rng, n: rng.normal(gain, sd, n))


NULL: dict[str, Draw] = {
    "0/1, half change": coins(0.5),
    "0/1, 5 % change": coins(0.05),
    "0/1, all change": coins(1.0),
    "mean of 3 attempts": attempts(3),
    "ratings in quarters": ratings(),
    "normal, sd .2": normal(0.0, 0.2),
    "uniform": differences(lambda rng, n: rng.uniform(-1, 1, n)),
    "many zeros, else ±.3": differences(lambda rng, n: rng.choice([0.0, 0.3, -0.3], n, p=[0.8, 0.1, 0.1])),
    "+.02, 2 % wrecked": wreck(0.02, 0.02),
    "+.05, 5 % wrecked": wreck(0.05, 0.05),
    "+.1, 10 % wrecked": wreck(0.1, 0.1),
    "+.2, 20 % wrecked": wreck(0.2, 0.2),
    "+.4, 30 % wrecked": wreck(0.4, 0.3),
    "−.02, 2 % rescued": differences(lambda rng, n: np.where(rng.random(n) < 0.02, 0.98, -0.02)),
}
BETTER: dict[str, Draw] = {
    "0/1, 15 % → +10": coins(0.15, 0.1),
    "0/1, 40 % → +20": coins(0.4, 0.2),
    "3 attempts, +15": attempts(3, 0.15),
    "3 attempts, +30": attempts(3, 0.3),
    "ratings, +10": ratings(0.1),
    "normal, +5, sd .2": normal(0.05, 0.2),
    "normal, +10, sd .2": normal(0.1, 0.2),
    "normal, +10, sd .4": normal(0.1, 0.4),
}


def grouped(draw: Draw) -> Draw:
    """The same, but the samples of a group have the same scores: n samples are far fewer witnesses."""

    def of_groups(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = group_sizes(n)
        before, after = draw(rng, len(sizes))
        return np.repeat(before, sizes), np.repeat(after, sizes)

    return of_groups


def group_sizes(n: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < n:
        sizes.append(min(GROUPS[len(sizes) % len(GROUPS)], n - sum(sizes)))
    return sizes


# -- tests


def sign_flips(moved: np.ndarray, flips: np.ndarray) -> float:
    """The former test: p of the sum under random signs (Fisher 1935)."""
    return float((np.sum(flips[:, : len(moved)] @ moved >= moved.sum() - 1e-12) + 1) / (len(flips) + 1))


def hoeffding(moved: np.ndarray) -> float:
    return math.exp(-len(moved) / 2 * max(0.0, float(moved.mean())) ** 2)


def bernstein(moved: np.ndarray) -> bool:
    """Does the empirical Bernstein bound (Maurer & Pontil 2009) exclude 0?"""
    n, log = len(moved), math.log(2 / ALPHA)
    return moved.mean() > math.sqrt(2 * moved.var(ddof=1) * log / n) + 14 * log / (3 * (n - 1))


def plug_in(moved: np.ndarray, rng: np.random.Generator, orders: int) -> float:
    """Predictable plug-in bets (Waudby-Smith & Ramdas 2024), the wealth averaged over random orders."""
    n = len(moved)
    x = rng.permuted(np.tile(moved, (orders, 1)), axis=1)
    t = np.arange(1, n + 1)
    mean = np.cumsum(x, axis=1) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (t + 1)
    known = np.concatenate([np.full((orders, 1), 0.25), variance[:, :-1]], axis=1)
    bets = np.minimum(np.sqrt(2 * math.log(1 / ALPHA) / (n * known)), 0.75)
    return min(1.0, 1 / float(np.exp(np.log1p(bets * x).sum(axis=1)).mean()))


def units(before: np.ndarray, after: np.ndarray, sizes: Sequence[int]) -> tuple[list[list[float]], list[list[float]]]:
    ends = np.cumsum(sizes)[:-1]
    return [part.tolist() for part in np.split(before, ends)], [part.tolist() for part in np.split(after, ends)]


# -- tables


def excluded(old: list[list[float]], new: list[list[float]]) -> tuple[float, bool]:
    """p, and whether the interval leaves out the true gain, which is 0. For bounded means this needs no search for the
    ends: the high end is never below 0, and the low end is above it exactly if p is below the level."""
    if binary(old, new):
        said = paired(old, new)
        return said.p, not said.low <= 0 <= said.high
    p = mean_above(halved(old, new), 0.5)
    return p, p < ALPHA


def binary(old: list[list[float]], new: list[list[float]]) -> bool:
    """Does McNemar's test apply?"""
    return all(len(unit) == 1 and unit[0] in (0.0, 1.0) for side in (old, new) for unit in side)


def halved(old: list[list[float]], new: list[list[float]]) -> list[list[float]]:
    """The differences, moved to [0, 1]."""
    return [[(1 + b - a) / 2 for a, b in zip(x, y, strict=True)] for x, y in zip(old, new, strict=True)]


def null_rows(runs: int, log: Callable[[str], None]) -> Iterator[list[str]]:
    for name, draw in NULL.items():
        for kind, make in (("alone", draw), ("groups", grouped(draw))):
            cells = []
            for n in SIZES:
                rng = np.random.default_rng([n, *name.encode(), kind == "groups"])
                sizes = group_sizes(n) if kind == "groups" else [1] * n
                flips = rng.choice([-1.0, 1.0], (1000, len(sizes)))
                wrong = former = odd = missed = 0
                for run in range(runs):
                    before, after = make(rng, n)
                    old, new = units(before, after, sizes)
                    p, out = excluded(old, new)
                    if run < 20:
                        said = paired(old, new)
                        odd += (said.low > 0) != (said.p < ALPHA) or said.p != p
                    wrong, missed = wrong + (p < ALPHA), missed + out
                    moved = np.add.reduceat(after - before, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
                    former += sign_flips(moved, flips) < ALPHA
                assert not odd
                assert missed == wrong  # at a gain of 0 the interval errs when the test does
                cells.append(f"{100 * wrong / runs:.1f} / {100 * former / runs:.1f}")
            log(f"{name}, {kind}: {' · '.join(cells)}")
            yield [name, kind, *cells]


def coverage_rows(runs: int, log: Callable[[str], None]) -> Iterator[list[str]]:
    """Coverage of the interval at true gains above 0. For independent 0/1 scores the tests compute it exactly."""
    for name, draw in BETTER.items():
        if name.startswith("0/1"):
            continue
        rng = np.random.default_rng(list(name.encode()))
        before, after = draw(rng, 1_000_000)
        truth = float((after - before).mean())
        for kind, make in (("alone", draw), ("groups", grouped(draw))):
            cells = []
            for n in SIZES[1:5]:
                held, width = 0, 0.0
                for _ in range(runs):
                    sizes = group_sizes(n) if kind == "groups" else [1] * n
                    said = paired(*units(*make(rng, n), sizes))
                    held += said.low - 1e-3 <= truth <= said.high + 1e-3  # `truth` is an estimate itself
                    width += (said.high - said.low) / runs
                cells.append(f"{100 * held / runs:.1f} ({100 * width:.0f})")
            log(f"coverage {name}, {kind}: {' · '.join(cells)}")
            yield [name, kind, *cells]


def power_rows(runs: int, log: Callable[[str], None]) -> Iterator[list[str]]:
    for name, draw in BETTER.items():
        for kind, make in (("alone", draw), ("groups", grouped(draw))):
            cells = []
            for n in SIZES:
                rng = np.random.default_rng([n, *name.encode(), kind == "groups"])
                sizes = group_sizes(n) if kind == "groups" else [1] * n
                flips = rng.choice([-1.0, 1.0], (1000, len(sizes)))
                ours = former = 0
                for _ in range(runs):
                    before, after = make(rng, n)
                    ours += _p(*units(before, after, sizes)) < ALPHA
                    moved = np.add.reduceat(after - before, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
                    former += sign_flips(moved, flips) < ALPHA
                cells.append(f"{100 * ours / runs:.0f} / {100 * former / runs:.0f}")
            log(f"power {name}, {kind}: {' · '.join(cells)}")
            yield [name, kind, *cells]


def _p(old: list[list[float]], new: list[list[float]]) -> float:
    """The p of `paired` without its interval, which takes longer."""
    if binary(old, new):
        changes = [b - a for (a,), (b,) in zip(old, new, strict=True)]
        return mcnemar(changes.count(1.0), changes.count(-1.0))
    return mean_above(halved(old, new), 0.5)


def candidate_rows(runs: int, log: Callable[[str], None]) -> Iterator[list[str]]:
    """The tests that are valid for bounded means, beside each other, samples alone. 0/1 scores go through them too."""
    for name, draw in BETTER.items():
        for n in (20, 60, 120):
            rng = np.random.default_rng([n, *name.encode()])
            counts = np.zeros(5)
            flips = rng.choice([-1.0, 1.0], (1000, n))
            for _ in range(runs):
                before, after = draw(rng, n)
                moved = after - before
                counts += (
                    mean_above([[(1 + d) / 2] for d in moved.tolist()], 0.5) < ALPHA,
                    plug_in(moved, rng, 20) < ALPHA,
                    bernstein(moved),
                    hoeffding(moved) < ALPHA,
                    sign_flips(moved, flips) < ALPHA,
                )
            row = [name, str(n), *(f"{100 * count / runs:.0f}" for count in counts)]
            log(f"candidates {' · '.join(row)}")
            yield row


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--runs", type=int, default=2000)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    runs, began = chosen.runs, time.process_time()

    def log(line: str) -> None:
        print(f"{time.process_time() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    sizes = [f"n = {n}" for n in SIZES]
    null = list(null_rows(runs, log))
    worst = max(float(cell.split(" / ")[0]) for row in null for cell in row[2:])
    former = max(float(cell.split(" / ")[1]) for row in null for cell in row[2:])
    allowed = 100 * (ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs))
    text = [
        "# The certificate's test, simulated",
        "",
        f"`python bench/certificate.py --runs {runs} --out bench/certificate.md`",
        "",
        f"{runs} test splits in each cell unless said otherwise; level 5 %. *alone*: independent samples. *groups*: "
        f"groups of {', '.join(map(str, GROUPS))}, … samples with the same scores: a fifth as many witnesses.",
        "",
        "## Without a gain: certified by mistake, %",
        "",
        "This test / the former one (sign flips). Independent 0/1 scores get the exact McNemar test. At a gain of 0 "
        "the interval misses the truth exactly when the test errs (asserted), so its coverage is 100 % less the first "
        "figure.",
        "",
        table(["differences", "samples", *sizes], null),
        "",
        f"The worst cell is {worst:.1f} %, the former test's {former:.1f} %; up to {allowed:.1f} % would be the luck "
        f"of {runs} runs at 5 %.",
        "",
        "## With a gain: certified, %",
        "",
        f"{runs // 4} runs in each cell. This test / the former one, which does not hold its level in general.",
        "",
        table(["gain in points", "samples", *sizes], list(power_rows(runs // 4, log))),
        "",
        "## With a gain: the 95 % interval holds it, % (mean width in points)",
        "",
        f"{runs // 20} runs in each cell.",
        "",
        table(["gain in points", "samples", *sizes[1:5]], list(coverage_rows(runs // 20, log))),
        "",
        "## Candidates: power, %",
        "",
        f"{runs // 10} runs in each cell, samples alone. All but the last hold their level for bounded differences. "
        "*Fixed shares* ships: its result depends neither on the order of the samples nor on a seed. *Plug-in*: bets "
        "that learn from the samples before, averaged over 20 random orders.",
        "",
        table(
            ["gain in points", "n", "fixed shares", "plug-in", "empirical Bernstein", "Hoeffding", "sign flips"],
            list(candidate_rows(runs // 10, log)),
        ),
        "",
    ]
    print("\n".join(text))
    if chosen.out:
        chosen.out.write_text("\n".join(text), encoding="utf-8")
    assert worst <= allowed, "the test does not hold its level"


if __name__ == "__main__":
    main()
