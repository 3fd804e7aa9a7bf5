"""The sampler of `skilltune.gate.effects` compiled (chain.c), for simulations of thousands of screens.

It gives the very draws of the Python code, which `same` shows on a made-up screen before any result is printed.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import POINTER, Array, Structure, c_double, c_int, c_uint32
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from skilltune.gate import effects
from skilltune.gate.effects import Draw, Odds, Trial


class _Lists(Structure):
    _fields_ = (("start", POINTER(c_int)), ("trial", POINTER(c_int)))


@cache
def _compiled() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "chain.so"
        source = Path(__file__).with_name("chain.c")
        flags = ["-O3", "-ffp-contract=off", "-shared", "-fPIC"]  # no fused operations: Python has none
        subprocess.run(["cc", *flags, str(source), "-o", str(library), "-lm"], check=True)
        return ctypes.CDLL(str(library))


def draw_effects(
    trials: Sequence[Trial],
    edits: int,
    odds: Odds,
    random: Random,
    *,
    draws: int = effects.DRAWS,
    active: int | None = None,
    start: Draw | None = None,
) -> list[Draw]:
    """As `effects.draw_effects`, whose chain is asked for the state at the beginning."""
    ordered = sorted(trials, key=lambda t: (t.sample, t.edits, t.score))
    at_first = effects.Chain(ordered, edits, odds, random, start)
    scores = [round(trial.score, 2) for trial in ordered]
    distinct = sorted(set(scores))
    row = {score: j for j, score in enumerate(distinct)}
    of_edit: list[list[list[int]]] = [[[] for _ in range(edits)] for _ in range(2)]
    for t, trial in enumerate(ordered):
        for of, which in zip(of_edit, (trial.edits, trial.claiming), strict=True):
            for i in which:
                of[i].append(t)
    n, width = len(at_first.samples), len(at_first.samples) + 2 * edits
    out = (c_int * (width * draws + 1))()
    weights = [[[w / sum(values.values()) for w in values.values()] for values in of] for of in effects.CLASSES]
    slabs = [_doubles([w for weight in of for w in weight]) for of in weights]
    grids = [_ints(grid) for grid in effects.GRIDS]
    classes = [_ints([effects.CLASS[kind][value] for value in grid]) for kind, grid in enumerate(effects.GRIDS)]
    _compiled().chain(
        (c_uint32 * 625)(*random.getstate()[1]),
        *(n, edits, edits if active is None else active, effects.RESTING),
        *(len(ordered), _tables(tuple(distinct)), effects.REACH, len(distinct)),
        *(_ints([row[score] for score in scores]), _ints(at_first.sums)),
        _ints([*at_first.bases, *at_first.effects[0], *at_first.effects[1]]),
        *(_lists(lists) for lists in (at_first.of_sample, *of_edit)),
        *(_ints(effects.BASES), len(effects.BASES), c_double(effects.BASE_SD)),
        *(_each(grids, c_int), _each(classes, c_int), _ints([len(grid) for grid in effects.GRIDS])),
        *(_each(slabs, c_double), _ints([len(of) for of in effects.CLASSES])),
        _each([_doubles(counts) for counts in (odds.general, odds.claimed)], c_double),
        *(c_double(effects.RAREST), c_double(at_first.level)),
        _each([_doubles(rates) for rates in at_first.rates], c_double),
        *(effects.WARM if start else effects.BURN_IN, draws, out),
    )
    rows = (out[begin : begin + width] for begin in range(0, width * draws, width))
    return [
        Draw(dict(zip(at_first.samples, d, strict=False)), tuple(d[n : n + edits]), tuple(d[n + edits :])) for d in rows
    ]


def same() -> bool:
    """Whether compiled and Python draws agree on a screen with fractional scores and claims, from nothing and from a
    draw."""
    random = Random(0)
    trials = [Trial(f"{i % 12}", (), (), round(random.random(), 1)) for i in range(20)]
    for _ in range(60):
        subset = tuple(sorted(random.sample(range(6), 3)))
        trials.append(Trial(f"{random.randrange(12)}", subset, subset[:1], float(random.random() < 0.6)))
    ours, theirs = ([f(trials, 6, Odds(), Random(1))] for f in (draw_effects, effects.draw_effects))
    for draws, f in ((ours, draw_effects), (theirs, effects.draw_effects)):
        draws.append(f(trials, 6, Odds(), Random(2), draws=20, active=4, start=draws[0][-1]))
    return ours == theirs


@cache
def _tables(scores: tuple[float, ...]) -> Array[c_double]:
    return _doubles([value for score in scores for value in effects.log_likelihood(score)])


def _ints(values: Sequence[int]) -> Array[c_int]:
    return (c_int * max(1, len(values)))(*values)


def _doubles(values: Sequence[float]) -> Array[c_double]:
    return (c_double * max(1, len(values)))(*values)


def _each(arrays: Sequence[Array[Any]], kind: type) -> Array[Any]:
    return (POINTER(kind) * len(arrays))(*(ctypes.cast(array, POINTER(kind)) for array in arrays))


def _lists(lists: Sequence[Sequence[int]]) -> _Lists:
    start = [0]
    for trials in lists:
        start.append(start[-1] + len(trials))
    flat = _ints([t for trials in lists for t in trials])
    return _Lists(ctypes.cast(_ints(start), POINTER(c_int)), ctypes.cast(flat, POINTER(c_int)))
