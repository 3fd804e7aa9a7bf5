"""Normal distributions and mixtures of them: beliefs about one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_cdf(z: float) -> float:
    return _NORMAL.cdf(z)


def normal_quantile(p: float) -> float:
    return _NORMAL.inv_cdf(p)


@dataclass(frozen=True, slots=True)
class Mixture:
    """A belief about a number: weighted normal components (weight, mean, sd)."""

    parts: tuple[tuple[float, float, float], ...]

    @property
    def mean(self) -> float:
        return math.fsum(w * m for w, m, _ in self.parts)

    @property
    def sd(self) -> float:
        return math.sqrt(math.fsum(w * (s * s + (m - self.mean) ** 2) for w, m, s in self.parts))

    def above(self, bar: float) -> float:
        """P(number > bar)."""
        return math.fsum(w * normal_cdf((m - bar) / s) for w, m, s in self.parts)

    def draws(self, n: int, random: Random) -> list[float]:
        """Independent draws from the mixture."""
        parts = random.choices(self.parts, [w for w, _, _ in self.parts], k=n)
        return [random.gauss(m, s) for _, m, s in parts]


def updated(prior: Sequence[tuple[float, float, float]], estimate: float, variance: float) -> Mixture:
    """Posterior of a number under a mixture of normals (weight, mean, sd) after a normal measurement. With a component
    at zero it is the spike and slab of Mitchell & Beauchamp (1988): most changes do nothing, a few do a lot."""
    parts = []
    for weight, middle, sd in prior:
        total = variance + sd * sd
        log_fit = -((estimate - middle) ** 2) / (2 * total) - 0.5 * math.log(total)
        mean = (middle * variance + estimate * sd * sd) / total
        parts.append((math.log(weight) + log_fit, mean, math.sqrt(variance * sd * sd / total)))
    top = max(log_fit for log_fit, _, _ in parts)
    evidence = math.fsum(math.exp(log_fit - top) for log_fit, _, _ in parts)
    return Mixture(tuple((math.exp(log_fit - top) / evidence, m, s) for log_fit, m, s in parts))
