"""What edits do to a score, on the logit scale: P(solved) = lapse + (1 − 2·lapse)·σ(level + sample + edits).

On this scale a harmful edit outweighs the helpful ones beside it and a solved sample cannot become more solved, which a
linear model gets wrong. Gaussian priors, mode by Fisher scoring, Laplace posterior (Tierney & Kadane 1986); sample
effects are eliminated first as in `crossed`. The lapse (Wichmann & Hill 2001) keeps one odd answer from ruling out an
edit. Fractional scores enter as quasi-likelihood (Papke & Wooldridge 1996).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from skilltune.gate.crossed import Observation, cholesky, lower_inverse

LAPSE = 0.05
SAMPLE_SD = 2.0  # of sample effects on the logit
MOST_ROUNDS = 40
STEP = 2.0  # longest change of an effect in one round: far from the mode the quadratic is a poor guide
CLOSE = 1e-6


@dataclass(frozen=True, slots=True)
class Effects:
    """Posterior of the columns: mode, and the inverse of the precision's Cholesky factor; sample effects at the mode
    with how they move when the columns do (`pull`: sample → column → shift per unit)."""

    names: tuple[str, ...]
    mode: tuple[float, ...]
    factor: tuple[tuple[float, ...], ...]
    samples: Mapping[str, float]
    pull: Mapping[str, Mapping[int, float]]

    def draws(self, n: int, random: Random) -> list[tuple[float, ...]]:
        """`n` draws of all columns from the Laplace posterior; the first is the mode."""
        k = len(self.names)
        made = [self.mode]
        for _ in range(n - 1):
            z = [random.gauss(0, 1) for _ in range(k)]
            made.append(tuple(self.mode[i] + sum(self.factor[m][i] * z[m] for m in range(i, k)) for i in range(k)))
        return made

    def sample_effect(self, sample: str, draw: Sequence[float]) -> float:
        shift = sum(rate * (draw[i] - self.mode[i]) for i, rate in self.pull.get(sample, {}).items())
        return self.samples.get(sample, 0.0) + shift


def solved(logit: float, lapse: float = LAPSE) -> float:
    """P(solved) at a logit."""
    if logit < 0:
        e = math.exp(max(logit, -700))
        return lapse + (1 - 2 * lapse) * e / (1 + e)
    return lapse + (1 - 2 * lapse) / (1 + math.exp(-min(logit, 700)))


def fit_effects(observations: Sequence[Observation], prior: Mapping[str, tuple[float, float]]) -> Effects:
    """Posterior of the columns named in `prior` (name → mean and sd on the logit), from scores in [0, 1]."""
    names = tuple(sorted(prior))
    index = {name: i for i, name in enumerate(names)}
    rows = sorted(observations, key=lambda o: (o.sample, sorted(o.columns.items()), o.score))
    ids = sorted({row.sample for row in rows})
    number = {sample: j for j, sample in enumerate(ids)}
    data = [([(index[c], w) for c, w in row.columns.items()], number[row.sample], row.score) for row in rows]
    beta = [prior[name][0] for name in names]
    u = [0.0] * len(ids)
    for _ in range(MOST_ROUNDS):
        system = _System.at(data, beta, u, names, prior)
        change = system.step()
        shifts = [
            (g - sum(w * change[i] for i, w in cross.items())) / weight
            for g, cross, weight in zip(system.sample_gradient, system.cross, system.sample_weight, strict=True)
        ]
        longest = max((abs(c) for c in (*change, *shifts)), default=0.0)
        scale = min(1.0, STEP / longest) if longest else 1.0
        beta = [b + scale * c for b, c in zip(beta, change, strict=True)]
        u = [a + scale * s for a, s in zip(u, shifts, strict=True)]
        if longest < CLOSE:
            break
    system = _System.at(data, beta, u, names, prior)
    pull = {
        sample: {i: -w / weight for i, w in cross.items()}
        for sample, cross, weight in zip(ids, system.cross, system.sample_weight, strict=True)
    }
    factor = lower_inverse(cholesky(system.reduced()))
    return Effects(names, tuple(beta), tuple(map(tuple, factor)), dict(zip(ids, u, strict=True)), pull)


@dataclass(slots=True)
class _System:
    """Gradient and Fisher information at a point, in blocks: columns, samples (diagonal), and across."""

    information: list[list[float]]
    gradient: list[float]
    sample_weight: list[float]
    sample_gradient: list[float]
    cross: list[dict[int, float]]

    @classmethod
    def at(
        cls,
        data: Sequence[tuple[list[tuple[int, float]], int, float]],
        beta: Sequence[float],
        u: Sequence[float],
        names: Sequence[str],
        prior: Mapping[str, tuple[float, float]],
    ) -> _System:
        k = len(names)
        precision = [1 / prior[name][1] ** 2 for name in names]
        information = [[precision[i] if i == j else 0.0 for j in range(k)] for i in range(k)]
        gradient = [(prior[name][0] - beta[i]) * precision[i] for i, name in enumerate(names)]
        sample_weight = [1 / SAMPLE_SD**2] * len(u)
        sample_gradient = [-a / SAMPLE_SD**2 for a in u]
        cross: list[dict[int, float]] = [{} for _ in u]
        for columns, j, y in data:
            p = solved(u[j] + sum(w * beta[i] for i, w in columns))
            slope = (p - LAPSE) * (1 - LAPSE - p) / (1 - 2 * LAPSE)  # dp/dlogit
            weight = slope * slope / (p * (1 - p))
            pushed = (y - p) * slope / (p * (1 - p))
            sample_weight[j] += weight
            sample_gradient[j] += pushed
            for i, w in columns:
                gradient[i] += w * pushed
                cross[j][i] = cross[j].get(i, 0.0) + w * weight
                for m, v in columns:
                    information[i][m] += w * v * weight
        return cls(information, gradient, sample_weight, sample_gradient, cross)

    def reduced(self) -> list[list[float]]:
        """Information of the columns after the samples are eliminated (Schur complement)."""
        matrix = [line[:] for line in self.information]
        for cross, weight in zip(self.cross, self.sample_weight, strict=True):
            for i, a in cross.items():
                for m, b in cross.items():
                    matrix[i][m] -= a * b / weight
        return matrix

    def step(self) -> list[float]:
        """The Newton step of the columns."""
        right = self.gradient[:]
        for cross, weight, g in zip(self.cross, self.sample_weight, self.sample_gradient, strict=True):
            for i, a in cross.items():
                right[i] -= a * g / weight
        half = lower_inverse(cholesky(self.reduced()))
        k = len(right)
        partial = [sum(half[m][i] * right[i] for i in range(m + 1)) for m in range(k)]
        return [sum(half[m][i] * partial[m] for m in range(i, k)) for i in range(k)]
