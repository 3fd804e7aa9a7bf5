"""The statistics that decide, each against an independent computation: enumeration, a dense solve, published values."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise, product
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.config import CertifyConfig
from skilltune.finish.certify import certify
from skilltune.gate.blocks import doubling
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats import Mixture, mcnemar, normal_cdf, normal_quantile, updated, wilson
from skilltune.stats import linear as crossed
from skilltune.stats.linear import Observation, Posterior, fit
from skilltune.usage import Usage

Matrix = list[list[float]]


def inverse(matrix: Sequence[Sequence[float]]) -> Matrix:
    """By Gauss-Jordan elimination with pivoting."""
    n = len(matrix)
    rows = [[*line, *(float(i == j) for j in range(n))] for i, line in enumerate(matrix)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for r in range(n):
            if r != i and rows[r][i]:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [line[n:] for line in rows]


def times(matrix: Sequence[Sequence[float]], vector: Sequence[float]) -> list[float]:
    return [math.fsum(a * b for a, b in zip(line, vector, strict=True)) for line in matrix]


# -- proportions


def test_the_normal_distribution_is_the_standard_one():
    assert normal_cdf(0) == 0.5
    assert normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-6)
    assert normal_cdf(normal_quantile(0.2)) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),  # Newcombe 1998 (Statistics in Medicine 17, 857), table I, score method
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_ends_are_the_proportions_that_a_score_test_just_does_not_reject(n, share, level):
    successes = round(share * n)
    z = normal_quantile(0.5 + level / 2)
    low, high = wilson(successes, n, level)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_no_samples_say_nothing():
    assert wilson(0, 0) == (0, 1)
    assert mcnemar(0, 0) == 1


def test_mcnemar_is_the_share_of_coin_tosses_with_so_many_heads():
    for n in range(1, 12):
        heads = Counter(sum(tosses) for tosses in product((0, 1), repeat=n))
        for fixed in range(n + 1):
            exact = sum(count for k, count in heads.items() if k >= fixed) / 2**n
            assert mcnemar(fixed, n - fixed) == pytest.approx(exact, rel=1e-12)


def test_mcnemar_of_a_thousand_samples_does_not_overflow():
    z = (600 - 0.5 - 550) / math.sqrt(1_100 / 4)
    assert mcnemar(600, 500) == pytest.approx(1 - normal_cdf(z), rel=0.01)
    assert 0 <= mcnemar(1_100, 0) < 1e-300


# -- the crossed model

PRIOR = {"level": (0.5, 1.0), "gain": (0.0, 0.2), "other": (0.0, 0.3)}


def crossed_world(n: int, seed: int) -> list[Observation]:
    draw = random.Random(seed)
    observations = []
    for i in range(n):
        u = draw.gauss(0, 0.3)
        for columns in ({"level": 1.0}, {"level": 1.0, "gain": 1.0}, {"level": 1.0, "other": 0.5})[
            : draw.randint(1, 3)
        ]:
            score = 0.5 + u + 0.1 * columns.get("gain", 0.0) + draw.gauss(0, 0.2)
            observations.append(Observation(f"s{i}", columns, min(1.0, max(0.0, score))))
    return observations


def dense(observations: Sequence[Observation], prior: dict[str, tuple[float, float]], rounds: int) -> dict[str, Any]:
    """The same model with every sample effect an explicit unknown, and EM by the full covariance."""
    names = [*sorted(prior), *sorted({o.sample for o in observations})]
    k = len(prior)
    z = [[o.columns.get(name, float(name == o.sample)) for name in names] for o in observations]
    y = [o.score for o in observations]
    noise, spread, theta, covariance = 0.08, 0.10, list[float](), list[list[float]]()
    for last in [False] * rounds + [True]:
        precision = [1 / prior[name][1] ** 2 for name in names[:k]] + [1 / spread] * (len(names) - k)
        middle = [prior[name][0] for name in names[:k]] + [0.0] * (len(names) - k)
        system = [
            [sum(row[i] * row[j] for row in z) / noise + (precision[i] if i == j else 0) for j in range(len(names))]
            for i in range(len(names))
        ]
        right = [
            precision[i] * middle[i] + sum(row[i] * value for row, value in zip(z, y, strict=True)) / noise
            for i in range(len(names))
        ]
        covariance = inverse(system)
        theta = times(covariance, right)
        if last:
            break
        squares = sum(
            (value - sum(a * b for a, b in zip(row, theta, strict=True))) ** 2 for row, value in zip(z, y, strict=True)
        )
        trace = sum(a * b for row in z for a, b in zip(row, times(covariance, row), strict=True))
        sample_squares = sum(theta[i] ** 2 + covariance[i][i] for i in range(k, len(names)))
        noise = max((squares + trace) / len(y), crossed.NOISE_FLOOR)
        spread = max(sample_squares / (len(names) - k), crossed.NOISE_FLOOR)
    return {"names": names[:k], "theta": theta[:k], "covariance": covariance, "noise": noise, "spread": spread}


@pytest.mark.parametrize("seed", range(4))
def test_the_crossed_model_is_the_dense_ridge_system_with_explicit_sample_effects(seed):
    observations = crossed_world(12, seed)
    posterior, reference = fit(observations, PRIOR), dense(observations, PRIOR, crossed.ROUNDS)
    assert posterior.noise == pytest.approx(reference["noise"], rel=1e-9)
    assert posterior.sample == pytest.approx(reference["spread"], rel=1e-9)
    assert [posterior.mean[name] for name in reference["names"]] == pytest.approx(reference["theta"], abs=1e-9)
    for i in range(3):
        assert posterior.covariance[i] == pytest.approx(reference["covariance"][i][:3], abs=1e-9)
    weights = {"gain": 1.0, "other": -2.0}
    w = [weights.get(name, 0.0) for name in reference["names"]]
    middle, sd = posterior.contrast(weights)
    assert middle == pytest.approx(sum(a * b for a, b in zip(w, reference["theta"], strict=True)))
    assert sd**2 == pytest.approx(sum(w[i] * w[j] * reference["covariance"][i][j] for i in range(3) for j in range(3)))


def test_without_observations_the_posterior_is_the_prior():
    posterior = fit([], PRIOR)
    assert posterior.mean == pytest.approx({name: middle for name, (middle, _) in PRIOR.items()})
    assert posterior.contrast({"gain": 1.0}) == pytest.approx((0.0, 0.2))
    with pytest.raises(KeyError):
        posterior.contrast({"unknown": 1.0})


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_crossed_model_does_not_depend_on_the_order_of_observations(shuffler):
    observations = crossed_world(8, 1)
    shuffled = observations[:]
    shuffler.shuffle(shuffled)
    shuffled = [Observation(o.sample, dict(reversed(list(o.columns.items()))), o.score) for o in shuffled]
    assert fit(shuffled, PRIOR) == fit(observations, dict(reversed(list(PRIOR.items()))))


def test_equal_columns_have_equal_effects_whatever_else_is_in_the_model():
    """Decisions go by such effects, and are made again from the journal with other columns beside them."""
    twins = [f"twin {i}" for i in range(5)]
    observations = [Observation(f"s{j}", {"level": 1.0}, 0.1 * (j % 3)) for j in range(7)]
    observations += [Observation(f"s{j}", {"level": 1.0, twin: 1.0}, 0.9) for twin in twins for j in range(7)]
    prior = {"level": (0.5, 1.0), **dict.fromkeys(twins, (0.0, 0.3))}
    alone = fit(observations, prior)
    assert len({alone.contrast({twin: 1.0}) for twin in twins}) == 1
    for names in (["a"], ["m", "zz"], [f"{i}" for i in range(20)]):
        crowded = fit(observations, prior | dict.fromkeys(names, (0.0, 0.2)))
        assert [crowded.contrast({name: 1.0}) for name in twins] == [alone.contrast({name: 1.0}) for name in twins]


def test_easy_samples_do_not_pass_for_a_better_version():
    """Pooled means are wrong if the new version was seen on the easy half only. Paired, nothing changed."""
    observations = [Observation(f"s{i}", {"level": 1.0}, float(i % 2)) for i in range(40)]
    observations += [Observation(f"s{i}", {"level": 1.0, "gain": 1.0}, 1.0) for i in range(1, 40, 2)]
    gain, sd = fit(observations, PRIOR).contrast({"gain": 1.0})
    assert abs(gain) < 2 * sd
    assert gain < 0.1


def test_the_crossed_model_finds_a_planted_gain():
    found = []
    for seed in range(10):
        draw = random.Random(seed)
        observations = []
        for i in range(60):
            u = draw.gauss(0, 0.25)
            for gain in (0.0, 1.0):
                columns = {"level": 1.0, "gain": gain} if gain else {"level": 1.0}
                observations.append(Observation(f"s{i}", columns, 0.5 + u + 0.1 * gain + draw.gauss(0, 0.2)))
        posterior = fit(observations, PRIOR)
        found.append((posterior.mean["gain"], posterior.contrast({"gain": 1.0})[1], posterior.noise, posterior.sample))
    assert fmean(gain for gain, *_ in found) == pytest.approx(0.1, abs=0.04)
    assert sum(abs(gain - 0.1) < 2 * sd for gain, sd, *_ in found) >= 8
    assert fmean(noise for *_, noise, _ in found) == pytest.approx(0.04, rel=0.3)
    assert fmean(sample for *_, sample in found) == pytest.approx(0.0625, rel=0.3)


# -- the certificate


class Rolls:
    """A roller with given scores: (skill text, sample id, attempt) → score, None for a call that failed."""

    def __init__(self, scores: dict[tuple[str, str, int], float | None]) -> None:
        self.scores, self.asked, self.abreast = scores, Counter[str](), 2

    async def __call__(
        self, skill: Skill, samples: Sequence[Sample], *, attempt: int = 0, purpose: str = "", at_once: int = 0
    ) -> list[Rollout]:
        assert (purpose, at_once) == ("test", 2)
        self.asked[skill.text] += len(samples)
        trajectory = Trajectory("", usage=Usage(1, 10 * len(skill.text), 0, usd=0.01))
        rollouts = []
        for sample in samples:
            value = self.scores[skill.text, sample.id, attempt]
            rollouts.append(
                Rollout(sample.id, skill.hash, attempt, trajectory, None if value is None else Score(value))
            )
        return rollouts


async def certified(
    old: Sequence[float | None], new: Sequence[float | None], attempts: int = 1, look: int = 1, size: int = 0
) -> Any:
    """With a `size` so many samples at a time are of one group."""
    samples = [
        Sample(id=f"s{i}", input="q", group=f"g{i // size}" if size else None) for i in range(len(old) // attempts)
    ]
    scores = {
        (text, sample.id, attempt): values[attempt * len(samples) + i]
        for text, values in (("a", old), ("bbb", new))
        for i, sample in enumerate(samples)
        for attempt in range(attempts)
    }
    rolls: Any = Rolls(scores)
    return await certify(
        rolls, Skill("a"), Skill("bbb"), samples, lambda s: s.value, CertifyConfig(attempts=attempts), 1, look
    )


@pytest.mark.anyio
async def test_a_binary_certificate_is_mcnemars():
    card = await certified([0, 0, 0, 0, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    assert (card.before, card.after, card.n, card.fixed, card.broken) == (0.3, 0.8, 10, 6, 1)
    assert card.p == pytest.approx(8 / 128)
    assert not card.certified
    assert card.low <= 0 < card.gain < card.high
    assert (card.tokens, card.usd) == (20, pytest.approx(0))
    sure = await certified([0] * 5 + [1] * 5, [1] * 10)  # p = 1/32
    assert sure.certified
    assert sure.low > 0


@pytest.mark.anyio
async def test_samples_of_one_group_are_one_witness():
    """Ten samples in two groups: two witnesses can never exclude luck, whatever they say."""
    alone, pair = await certified([0] * 10, [1] * 10), await certified([0] * 10, [1] * 10, size=5)
    assert (alone.p, alone.groups, alone.certified) == (2**-10, 10, True)
    assert (pair.groups, pair.certified) == (2, False)
    assert pair.p >= 0.25
    assert "10 unseen samples in 2 groups (95 % CI" in str(pair)
    assert pair.method == "betting test for bounded means of whole groups"
    assert pair.high - pair.low > 2 * (alone.high - alone.low)


@pytest.mark.anyio
async def test_pitfall_12_the_k_th_look_at_the_same_samples_has_a_k_th_of_the_error():
    for look, certain in ((1, True), (2, False), (3, False)):
        card = await certified([0] * 5 + [1] * 5, [1] * 10, look=look)  # p = 1/32, between 0.05/2 and 0.05
        assert (card.p, card.look, card.certified) == (1 / 32, look, certain)
    assert (await certified([0] * 7 + [1] * 3, [1] * 10, look=6)).certified  # p = 1/128 < 0.05/6


@pytest.mark.anyio
async def test_the_interval_has_the_level_of_the_look():
    """A certificate at the second look rests on p < 0.025, so its interval has 97.5 % and agrees with it."""
    first, second = [await certified([0] * 5 + [1] * 5, [1] * 10, look=look) for look in (1, 2)]
    assert (first.level, second.level) == (0.95, 0.975)
    assert first.low > 0 >= second.low
    assert "(97.5 % CI" in str(second)


@pytest.mark.anyio
async def test_a_low_end_just_above_zero_is_not_printed_as_zero():
    card = await certified([0] * 41 + [1] * 26 + [1] * 233, [1] * 41 + [0] * 26 + [1] * 233)  # p = 0.0432
    assert card.certified
    for low, shown in ((card.low, "+0."), (5e-324, "+0.001…"), (0.0003, "+0.030…"), (-0.0003, "-0.0…")):
        printed = replace(card, low=low).interval
        assert printed.startswith(shown)
        assert not printed.startswith("+0.0…")


@pytest.mark.anyio
async def test_pitfall_4_nothing_is_certified_on_less_than_nine_tenths_of_the_samples():
    for lost, certain in ((0, True), (2, True), (3, False)):
        card = await certified([None] * lost + [0.0] * (20 - lost), [1.0] * 20)
        assert (card.n, card.failed_before) == (20, lost)
        assert card.p < 0.001
        assert card.certified == certain


@pytest.mark.anyio
async def test_fractional_scores_and_several_attempts_get_the_betting_test():
    old, new = [0.1, 0.5, 0.3, 0.0, 0.2, 0.4] * 3, [0.6, 0.7, 0.9, 0.5, 0.8, 0.5] * 3
    card = await certified(old, new)
    assert card.gain == pytest.approx(fmean(new) - fmean(old))
    assert card.certified
    assert 0 < card.low < card.gain < card.high
    twice = await certified([0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1], attempts=2)  # three samples, two attempts each
    assert (twice.before, twice.after, twice.attempts) == (0.5, pytest.approx(5 / 6), 2)
    assert "betting" in twice.method


@pytest.mark.anyio
async def test_what_has_a_score_on_one_side_only_counts_against_the_trained_skill():
    card = await certified([None, 1, 0, 0, None], [1, None, 1, 0, None])
    assert (card.before, card.after, card.n) == (0.5, 0.5, 4)  # 1 for the first before, 0 for the second after
    assert (card.failed_before, card.failed_after, card.left_out) == (1, 1, 1)
    assert card.unscored == (
        "without a score: 1 only with the trained skill (counted as 0 there), 1 only with the input (counted as 1 "
        "there), 1 with neither (left out)"
    )
    assert await certified([None], [None]) is None
    assert (await certified([0, 1], [1, 1])).unscored == ""


@pytest.mark.anyio
async def test_failures_of_the_trained_skill_cannot_make_it_better():
    """Leaving out what only the trained skill cannot finish would turn a loss into a gain."""
    old, new = [1] * 12 + [0] * 18, [None, None, None] + [1] * 9 + [1] * 6 + [0] * 12
    card = await certified(old, new)
    assert (card.fixed, card.broken, card.failed_after) == (6, 3, 3)
    assert card.gain == pytest.approx(0.1)


@pytest.mark.anyio
async def test_a_lost_attempt_counts_against_the_trained_skill_too():
    """Three samples, two attempts each; the second attempt at the first sample failed with the trained skill only, that
    at the second with the input only, that at the third with both."""
    card = await certified([1, 1, 0, 1, None, None], [1, 1, 1, None, 1, None], attempts=2)
    assert card.before == pytest.approx(fmean([1, 1, 0]))
    assert card.after == pytest.approx(fmean([0.5, 1, 1]))
    assert (card.failed_after, card.failed_before, card.left_out) == (1, 1, 0)


@pytest.mark.anyio
async def test_pitfall_8_the_same_text_is_not_tested_twice():
    rolls: Any = Rolls({})
    samples = [Sample(id="s", input="q")]
    for best, test in ((Skill("a", name="other"), samples), (Skill("b"), [])):
        assert await certify(rolls, Skill("a"), best, test, lambda s: s.value, CertifyConfig(), 1) is None
    assert not rolls.asked


def test_most_changes_do_little_but_a_large_effect_is_believed():
    prior = ((0.8, 0.0, 0.03), (0.2, 0.0, 0.30))
    lucky = updated(prior, 0.10, 0.05**2)  # two standard errors: the luck of a null edit, one time in 44
    assert lucky.above(0) < 0.95
    assert lucky.mean < 0.05
    large = updated(prior, 0.75, 0.11**2)
    assert large.above(0) > 0.999
    assert 0.6 < large.mean < 0.75
    assert updated(prior, 0.0, 0.05**2).above(0) == pytest.approx(0.5)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(-1, 1), st.floats(0.02, 1)), min_size=1, max_size=4),
    st.floats(-1, 1),
    st.floats(0.02, 1),
    st.floats(-0.5, 0.5),
)
def test_an_updated_belief_is_the_posterior_on_a_grid(parts, estimate, error, bar):
    """Prior times likelihood, summed over twelve thousand values; weights need not sum to one."""
    prior = [(weight / sum(w for w, _, _ in parts), middle, sd) for weight, middle, sd in parts]
    step = 0.001
    grid = [(k + 0.5) * step for k in range(-6_000, 6_000)]

    def density(x: float) -> float:
        before = math.fsum(w * math.exp(-(((x - m) / s) ** 2) / 2) / s for w, m, s in prior)
        return before * math.exp(-(((x - estimate) / error) ** 2) / 2 + _nearest(prior, estimate, error))

    masses = [density(x) for x in grid]
    total = math.fsum(masses)
    mean = math.fsum(x * mass for x, mass in zip(grid, masses, strict=True)) / total
    spread = math.fsum((x - mean) ** 2 * mass for x, mass in zip(grid, masses, strict=True)) / total
    belief = updated(prior, estimate, error**2)
    assert math.fsum(weight for weight, _, _ in belief.parts) == pytest.approx(1)
    assert belief.mean == pytest.approx(mean, abs=1e-4)
    assert belief.sd == pytest.approx(math.sqrt(spread), rel=1e-3, abs=1e-4)
    exact = math.fsum(mass for x, mass in zip(grid, masses, strict=True) if x > bar) / total
    assert belief.above(bar) == pytest.approx(exact, abs=step / min(error, *(s for _, _, s in prior)) + 1e-4)


def _nearest(prior: Sequence[tuple[float, float, float]], estimate: float, error: float) -> float:
    """A constant that keeps the largest density near one."""
    return min((m - estimate) ** 2 / (2 * (s * s + error * error)) for _, m, s in prior)


def test_a_belief_that_the_measurement_rules_out_is_still_a_belief():
    """If every component is thousands of standard errors away, nothing is divided by zero."""
    far = updated(((0.9, 0.0, 0.001), (0.1, 0.0, 0.002)), 1.0, 1e-8)
    assert far.mean == pytest.approx(1, abs=0.01)
    assert far.above(0) == pytest.approx(1)


def test_a_mixture_has_the_moments_of_its_draws():
    belief = Mixture(((0.7, 0.0, 0.1), (0.3, 1.0, 0.2)))
    dice = random.Random(1)
    draws = [dice.gauss(*dice.choices(((0.0, 0.1), (1.0, 0.2)), (0.7, 0.3))[0]) for _ in range(20_000)]
    assert belief.mean == pytest.approx(fmean(draws), abs=0.02)
    assert belief.sd == pytest.approx(pstdev(draws), abs=0.02)
    assert belief.above(0.5) == pytest.approx(fmean(draw > 0.5 for draw in draws), abs=0.02)


# -- how often a race looks


@pytest.mark.slow
@given(st.integers(0, 300), st.integers(1, 40))
def test_a_race_looks_after_twice_as_much_as_before_and_sees_every_sample_once(n, first):
    samples = [Sample(id=f"s{i:03}", input="q") for i in range(n)]
    cut = doubling(samples, first)
    assert [sample for block in cut for sample in block] == samples
    seen = list(accumulate(len(block) for block in cut))
    assert all(len(block) >= min(first, n) for block in cut)
    for number, (before, after) in enumerate(pairwise([0, *seen])):
        last = number == len(cut) - 1
        assert after == max(first, 2 * before) or (last and after - max(first, 2 * before) < first)
    assert len(cut) <= 1 + math.log2(max(1, n / first)) + 1
    assert bool(cut) == bool(n)


@given(st.floats(-0.5, 0.5), st.floats(0.01, 0.2), st.floats(0.1, 0.6))
def test_a_prior_that_is_taken_out_leaves_no_trace(middle: float, sd: float, wide: float) -> None:
    """A normal measurement (middle, sd) under the wide prior, then under another: as if the wide one had never been."""
    prior = [(0.7, 0.0, 0.002), (0.3, 0.1, 0.2)]
    variance = 1 / (1 / sd**2 + 1 / wide**2)
    known = Posterior(("x",), {"x": middle * variance / sd**2}, ((variance,),), 0.1, 0.1)
    shrunk, direct = known.shrunk("x", wide, prior), updated(prior, middle, sd**2)
    assert (shrunk.mean, shrunk.sd) == pytest.approx((direct.mean, direct.sd), rel=1e-6, abs=1e-9)
