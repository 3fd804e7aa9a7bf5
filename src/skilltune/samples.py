"""Samples: input, expected answer and split of each task, and the smallest gain that a split can detect.

Samples are split by hash instead of shuffling, so that a sample keeps its split when the file is reordered or grows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from skilltune.errors import UsageError
from skilltune.usage import counted

SplitName = Literal["train", "select", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "select", "test")
NEEDED = {"select": ("show", 5), "test": ("certify", 10)}  # minimum sizes: 5 to detect any gain, 10 to certify one


class ChatTurn(BaseModel):
    """One chat message of a sample's input. `images` are paths relative to the sample file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"] = "user"
    content: str
    images: tuple[str, ...] = ()


class Sample(BaseModel):
    """One task. `input` is text or chat messages; `target` is the expected value for a scorer (any JSON value).

    `group` keeps related samples, such as paraphrases, in one split. `split` fixes the split by hand. `files` maps a
    path in the workspace to a path beside the sample file. `checks` are scorer specs of this sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    input: str | tuple[ChatTurn, ...]
    target: Any = None
    files: dict[str, str] = {}
    group: str | None = None
    metadata: dict[str, Any] = {}
    checks: tuple[dict[str, Any], ...] = ()
    split: SplitName | None = None

    @field_validator("target")
    @classmethod
    def _no_nan(cls, value: Any) -> Any:
        """NaN is pandas' mark of an empty cell, so it means no value."""
        return None if isinstance(value, float) and math.isnan(value) else value

    @property
    def text(self) -> str:
        """The input as plain text (chat messages joined by blank lines)."""
        return self.input if isinstance(self.input, str) else "\n\n".join(turn.content for turn in self.input)


@dataclass(frozen=True, slots=True)
class Splits:
    """The optimizer learns from `train`, the gate decides on `select`, and the certificate reads `test` once."""

    train: tuple[Sample, ...]
    select: tuple[Sample, ...]
    test: tuple[Sample, ...]


def split(samples: Iterable[Sample], ratio: Sequence[float] = (4, 3, 3), seed: int = 0) -> Splits:
    """Partition samples into train : select : test by `ratio`. The order of the samples does not matter.

    Samples with an explicit `split` keep it, and the others fill the remaining room. Samples of one `group` stay
    together, and so do samples that are equal except for the id. Larger groups are placed first, each size by largest
    remainder. So without groups the ratio is exact to one sample, and adding a sample moves at most a few others.

    Within a split the order is a seeded shuffle. A ratio of 0 for test means no certificate. Raises UsageError for
    duplicate ids, a group with two explicit splits, and an empty train or select.
    """
    pool = tuple(samples)
    if len(ratio) != 3 or not all(math.isfinite(part) and part >= 0 for part in ratio) or not sum(ratio) > 0:
        raise UsageError(f"split ratio {list(ratio)} must be three numbers >= 0: train, select, test; e.g. [4, 3, 3]")
    if twice := [name for name, count in Counter(sample.id for sample in pool).items() if count > 1]:
        raise UsageError(f'sample id "{twice[0]}" occurs more than once: ids must be unique')

    goal = apportion(len(pool), ratio)
    placed: dict[SplitName, list[Sample]] = {name: [] for name in SPLITS}
    free: defaultdict[int, list[list[Sample]]] = defaultdict(list)
    for unit in _units(pool):
        fixed: set[SplitName] = {sample.split for sample in unit if sample.split}
        if len(fixed) > 1:
            what = f'group "{unit[0].group}"' if unit[0].group is not None else f'the repeated sample "{unit[0].id}"'
            raise UsageError(
                f"{what} is in {' and '.join(sorted(fixed))} at once, so that one split would leak into another: "
                "give all its samples the same split"
            )
        if fixed:
            placed[fixed.pop()].extend(unit)
        else:
            free[len(unit)].append(unit)
    for size in sorted(free, reverse=True):
        room = [max(0, target - len(placed[name])) for name, target in zip(SPLITS, goal, strict=True)]
        queue = iter(sorted(free[size], key=lambda unit: _hash(seed, "split", _unit_name(unit))))
        for name, count in zip(SPLITS, apportion(len(free[size]), room), strict=True):
            for unit in islice(queue, count):
                placed[name].extend(unit)

    sizes = ", ".join(f"{name} {len(members)}" for name, members in placed.items())
    for name in SPLITS[:2]:
        if not placed[name]:
            stated = ":".join(f"{part:g}" for part in ratio)
            raise UsageError(
                f"the {name} split is empty ({sizes}; {counted(len(pool), 'sample')}, ratio {stated}): "
                "add samples, use smaller groups, change the ratio, or set `split` on some samples"
            )
    return Splits(
        **{name: tuple(sorted(placed[name], key=lambda sample: _hash(seed, "order", sample.id))) for name in SPLITS}
    )


def detectable_gain(n: int, *, power: float = 0.8, alpha: float = 0.05, discordant: float = 0.2) -> float:
    """Smallest true gain (a fraction of samples) that `n` paired samples detect with probability `power`.

    The test is the exact one-sided McNemar (sign) test at level `alpha` on binary scores. `discordant` is the share of
    samples on which the two versions differ; a larger gain raises it. Solves the sample-size formula of Connor
    (Biometrics 43, 1987): n·g = ½ + z(alpha)·√(n·d) + z(power)·√(n·(d − g²)). The ½ is a continuity correction for the
    coarse steps of the exact test; from n = 8 on, the exact power is within 2.5 points. Returns inf if even n wins out
    of n would not be significant.
    """
    if not (0 < alpha < 0.5 and 0.5 <= power < 1 and 0 < discordant <= 1):
        raise ValueError("need 0 < alpha < 0.5 <= power < 1 and 0 < discordant <= 1")
    if n < 1 or 0.5**n > alpha:
        return math.inf
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)

    def seen(gain: float) -> bool:
        d = max(discordant, gain)
        return n * gain >= 0.5 + z_alpha * math.sqrt(n * d) + z_power * math.sqrt(n * (d - gain * gain))

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def describe_power(splits: Splits) -> str:
    """Sizes of the splits, and the gains that select and test can detect, one line each: to read before paying for a
    run."""
    lines = [" · ".join(f"{name} {len(getattr(splits, name))}" for name in SPLITS)]
    for name, (verb, least) in NEEDED.items():
        members: tuple[Sample, ...] = getattr(splits, name)
        if not members:
            line = "empty, so nothing will be certified"
        elif len(members) < least:
            line = f"{len(members)} paired samples are too few to {verb} any gain (at least {least} are needed)"
        else:
            gain = 100 * detectable_gain(len(members))
            line = f"{len(members)} paired samples see a gain of {gain:.0f} points or more 4 times out of 5"
        if members and (groups := len(_units(members))) < len(members):
            line += f"; they form {groups} groups, and if a group succeeds or fails as one, expect less"
        lines.append(f"{name}: {line}")
    return "\n".join(lines)


def too_small(splits: Splits) -> str:
    """The purposes for which the splits are too small, or "". A test split that is empty on purpose is not listed."""
    short = [
        f"{name} has {n} of the {least} samples that it takes to {verb} any gain"
        for name, (verb, least) in NEEDED.items()
        if (n := len(getattr(splits, name))) < least and (n or name == "select")
    ]
    return "; ".join(short)


def _units(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples that must stay together: those of one group; without a group, those equal except for id and split."""
    units: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.group is not None:
            units["group", sample.group].append(sample)
        else:
            content = json.dumps(sample.model_dump(exclude={"id", "split"}), sort_keys=True, default=str)
            units["content", content].append(sample)
    return list(units.values())


def _unit_name(unit: Sequence[Sample]) -> str:
    group = unit[0].group
    return f"id:{min(sample.id for sample in unit)}" if group is None else f"group:{group}"


def apportion(n: int, weights: Sequence[float]) -> list[int]:
    """Share out n whole units by weight (largest remainder, ties to the earlier)."""
    shares = [n * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return counts


def _hash(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


def spread(samples: Sequence[Sample], n: int) -> Sequence[Sample]:
    """At most n samples, evenly spaced."""
    return samples if len(samples) <= n else [samples[i * len(samples) // n] for i in range(n)]
