"""The posterior of edits' effects: equal to enumeration where that is possible, and calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.edits import Edit
from skilltune.gate.screen import Pool, Screened
from skilltune.optimizer import Proposal
from skilltune.skill import Skill
from skilltune.stats.effects import (
    BASE_SD,
    BASES,
    CHAINS,
    CLASS,
    CLASSES,
    GRIDS,
    LAPSE,
    REACH,
    Draw,
    Odds,
    Trial,
    draw_effects,
    solved,
)

Supports = Sequence[frozenset[int]]  # of each edit, the numbers of the samples that it claims


def name(sample: int) -> str:
    return f"s{sample:02}"


def trial(sample: int, edits: Sequence[int], supports: Supports, score: float) -> Trial:
    return Trial(name(sample), tuple(edits), tuple(i for i in edits if sample in supports[i]), score)


def screen(draws: Sequence[Draw], supports: Supports, samples: int) -> Screened:
    proposals = [Proposal(Edit("add", text=f"- {i}"), tuple(map(name, sorted(s)))) for i, s in enumerate(supports)]
    return Screened(Pool.of(Skill("# Desk\n"), proposals, (), 2_000), draws, [name(j) for j in range(samples)])


def chance(draws: Sequence[Draw], kind: str, edit: int) -> float:
    """P(effect ≠ 0)."""
    return fmean(getattr(draw, kind)[edit] != 0 for draw in draws)


def blocks(samples: int, edits: int) -> list[frozenset[int]]:
    """Edit number i claims the i-th of equal parts of the samples."""
    return [frozenset(j for j in range(samples) if j * edits // samples == i) for i in range(edits)]


def design(supports: Supports, samples: int, rollouts: int, draw: Random) -> list[tuple[int, tuple[int, ...]]]:
    """Each sample once without edits, then random pairs of edits, two in three on a sample that they claim, the others
    on one of those that no edit claims."""
    rows: list[tuple[int, tuple[int, ...]]] = [(j, ()) for j in range(samples)]
    free = [j for j in range(samples) if not any(j in claimed for claimed in supports)]
    for number in range(rollouts):
        chosen = tuple(sorted(draw.sample(range(len(supports)), 2)))
        claimed = sorted(j for i in chosen for j in supports[i])
        rows.append((draw.choice(free if free and number % 3 == 0 else claimed), chosen))
    return rows


def test_solved_is_a_sigmoid_between_the_lapses():
    assert solved(0) == pytest.approx(0.5)
    assert (solved(-1_000), solved(1_000)) == (pytest.approx(LAPSE), pytest.approx(1 - LAPSE))
    for units in (1, 5, 40):
        assert solved(units) + solved(-units) == pytest.approx(1)
        assert solved(units) > solved(units - 1)


def test_beyond_its_reach_the_sigmoid_is_flat():
    """A cut at REACH loses nothing: there the limits are reached to the last bit."""
    for units in (REACH, -REACH):
        assert solved(2 * units) == solved(10**9 * units) == solved(units)
    assert (solved(-REACH), solved(REACH)) == (pytest.approx(LAPSE, abs=1e-15), pytest.approx(1 - LAPSE, abs=1e-15))


@pytest.mark.parametrize(("general", "claimed", "score"), [(16, 48, 1.0), (-32, 0, 0.0)])
def test_sums_beyond_the_reach_count_as_the_reach(general: int, claimed: int, score: float):
    """Sixty edits in one text, each at the end of its grid: their sum is far outside of every table."""
    edits = 60
    supports = [frozenset(range(4))] * edits
    trials = [trial(j, range(edits), supports, score) for j in range(4)]
    far = Draw(dict.fromkeys(map(name, range(4)), 48), (general,) * edits, (claimed,) * edits)
    assert edits * abs(general + claimed) > 2 * REACH
    draws = draw_effects(trials, edits, Odds(), Random(1), start=[far])
    assert {value for draw in draws for value in draw.general} <= set(GRIDS[0])
    right = [
        fmean(solved(draw.bases[name(j)] + sum(draw.general) + sum(draw.claimed)) for draw in draws) for j in range(4)
    ]
    assert right == [pytest.approx(score, abs=0.35)] * 4


def test_one_edit_among_many_is_judged_by_its_own_trials_even_beyond_the_reach():
    """If the sum of the others saturates, a trial tells nothing about an edit."""
    odds = Odds((1e-3, 1e-3, 1e6), (1e-3, 1e6))  # every edit has large effects
    supports = [frozenset({0})] * 40
    trials = [trial(0, range(40), supports, 1.0) for _ in range(5)]
    start = Draw({name(0): 48}, (16,) * 40, (48,) * 40)
    draws = draw_effects(trials, 40, odds, Random(2), draws=200, start=[start])
    positive = fmean(value > 0 for draw in draws for value in draw.general)
    large = weighed(0, (0.0, 0.0, 1.0))
    assert positive == pytest.approx(sum(weight for value, weight in large.items() if value > 0), abs=0.03)


# -- against the posterior summed over every combination of values


def weighed(kind: int, rates: Sequence[float]) -> dict[int, float]:
    """The prior of an effect, general (0) or claimed (1), given how common each class is."""
    return {
        value: rate * weight / sum(values.values())
        for values, rate in zip(CLASSES[kind], rates, strict=True)
        for value, weight in values.items()
    }


def share(odds: tuple[float, ...], found: Sequence[int]) -> float:
    """Prior of one pattern of effects, of which so many are of each class: the rates are integrated out
    (Dirichlet-multinomial)."""
    return math.exp(
        math.lgamma(sum(odds)) - math.lgamma(sum(odds) + sum(found))
        + sum(math.lgamma(a + n) - math.lgamma(a) for a, n in zip(odds, found, strict=True))
    )  # fmt: skip


def enumerated(trials: Sequence[Trial], edits: int, odds: Odds) -> dict[str, list[float]]:
    """P(general ≠ 0), P(claimed ≠ 0), E[σ(sample)] by brute force; for at most two samples."""
    samples = sorted({t.sample for t in trials})
    counts = (odds.general, odds.claimed)
    within = [weighed(kind, [1.0] * len(counts[kind])) for kind in (0, 1)]
    total = 0.0
    has, levels = [0.0] * 2 * edits, [0.0] * len(samples)
    for values in product(*(GRIDS * edits)):  # general 0, claimed 0, general 1, …
        prior = 1.0
        for kind in (0, 1):
            effects = values[kind::2]
            prior *= math.prod(within[kind][v] for v in effects)
            classes = [CLASS[kind][v] for v in effects]
            prior *= share(counts[kind], [classes.count(c) for c in range(len(counts[kind]))])
        for bases in product(BASES, repeat=len(samples)):
            # a common level with a flat prior, integrated out
            mass = prior * math.exp(-((bases[0] - bases[-1]) ** 2) / (4 * BASE_SD**2))
            for t in trials:
                units = bases[samples.index(t.sample)] + sum(values[2 * i] for i in t.edits)
                p = solved(units + sum(values[2 * i + 1] for i in t.claiming))
                mass *= p**t.score * (1 - p) ** (1 - t.score)
            total += mass
            for k, value in enumerate(values):
                has[k] += mass * (value != 0)
            for j, base in enumerate(bases):
                levels[j] += mass * solved(base)
    return {
        "general": [h / total for h in has[::2]],
        "claimed": [h / total for h in has[1::2]],
        "level": [level / total for level in levels],
    }


BY_HAND: list[tuple[int, list[tuple[int, tuple[int, ...], float]], list[frozenset[int]]]] = [  # edits, trials, claims
    (1, [(0, (), 0.0), (1, (), 1.0), (0, (0,), 1.0), (1, (0,), 1.0)], [frozenset({0})]),
    (1, [(0, (), 0.0), (1, (), 0.0), (0, (0,), 0.0), (1, (0,), 1.0), (1, (0,), 1.0)], [frozenset({0})]),
    (1, [(0, (), 1.0), (1, (), 1.0), (0, (0,), 0.0), (1, (0,), 0.0)], [frozenset({1})]),
    (1, [(0, (), 0.25), (1, (0,), 0.75), (0, (0,), 0.5)], [frozenset({0, 1})]),
    (2, [(0, (), 0.0), (0, (0, 1), 1.0), (0, (0,), 0.0), (0, (1,), 0.5)], [frozenset({0}), frozenset({0})]),
]


@pytest.mark.parametrize(("edits", "rows", "supports"), BY_HAND)
def test_the_draws_are_of_the_posterior_that_enumeration_gives(edits: int, rows: list, supports: list[frozenset[int]]):
    trials = [trial(sample, chosen, supports, score) for sample, chosen, score in rows]
    odds = Odds((7.0, 2.0, 1.0), (2.0, 2.0))
    draws = draw_effects(trials, edits, odds, Random(1), draws=4_000)
    exact = enumerated(trials, edits, odds)
    for kind in ("general", "claimed"):
        assert [chance(draws, kind, i) for i in range(edits)] == pytest.approx(exact[kind], abs=0.04)
    levels = [fmean(solved(draw.bases[sample]) for draw in draws) for sample in sorted({t.sample for t in trials})]
    assert levels == pytest.approx(exact["level"], abs=0.03)


# From 48,000 draws of a sampler with one chain and without arrays, which drew every effect alone: P(general ≠ 0) and
# P(claimed ≠ 0) of each edit, the mean of both effects, the mean of each sample.
REFERENCE = {
    "has general": (0.092, 0.090, 0.088, 0.093, 0.178, 0.093),
    "has claimed": (0.141, 0.865, 0.225, 0.155, 0.064, 0.121),
    "general": (-0.181, -0.044, 0.001, 0.101, -2.237, -0.011),
    "claimed": (2.27, 32.96, 5.01, 2.69, 0.88, 2.01),
    "base": (-15.0, -17.1, 4.2, -11.6, -17.3, -10.8, -18.0, -13.9, -11.4, -20.5, -7.5, -11.4),
}


def test_many_edits_with_fractional_scores_have_the_moments_of_another_sampler():
    samples, edits = 12, 6
    draw, claims = Random(7), blocks(samples, edits)
    trials = []
    for j, chosen in design(claims, samples, 40, draw):
        level = 0.2 + 0.6 * (1 in chosen and j in claims[1]) - 0.15 * (4 in chosen) + 0.1 * (j % 3)
        score = round(level + draw.uniform(-0.1, 0.1), 2) if j % 2 else float(draw.random() < level)
        trials.append(trial(j, chosen, claims, min(1.0, max(0.0, score))))
    draws = draw_effects(trials, edits, Odds(), Random(1), draws=8_000)
    for kind in ("general", "claimed"):
        assert [chance(draws, kind, i) for i in range(edits)] == pytest.approx(REFERENCE[f"has {kind}"], abs=0.02)
        means = [fmean(getattr(draw, kind)[i] for draw in draws) for i in range(edits)]
        assert means == pytest.approx(REFERENCE[kind], abs=0.6)
    bases = [fmean(draw.bases[name(j)] for draw in draws) for j in range(samples)]
    assert bases == pytest.approx(REFERENCE["base"], abs=1.0)


def test_the_same_seed_gives_the_same_draws_on_every_machine_and_version_of_numpy():
    trials = [trial(j % 3, (0, 1)[: j % 3], [frozenset({1}), frozenset({0})], float(j % 2)) for j in range(9)]
    draws = draw_effects(trials, 2, Odds(), Random(5), draws=10)
    assert draws == draw_effects(trials, 2, Odds(), Random(5), draws=10)
    assert draws != draw_effects(trials, 2, Odds(), Random(6), draws=10)
    assert [tuple(draw.bases.values()) for draw in draws[:3]] == [(0, 0, 40), (-40, -16, -8), (0, -8, -24)]


def test_without_trials_the_draws_are_of_the_prior():
    odds = Odds((36.0, 3.0, 1.0), (20.0, 20.0))
    draws = draw_effects([], 30, odds, Random(3))
    assert fmean(chance(draws, "general", i) for i in range(30)) == pytest.approx(0.1, abs=0.04)
    assert fmean(chance(draws, "claimed", i) for i in range(30)) == pytest.approx(0.5, abs=0.08)
    assert {value for draw in draws for value in draw.claimed} == set(GRIDS[1])
    assert all(draw.bases == {} for draw in draws)
    assert draw_effects([], 0, Odds(), Random(3))[0] == Draw({}, (), ())


# -- what it finds and what it leaves alone

SAMPLES, FAILING, EDITS = 24, 16, 8
CLAIMS = blocks(FAILING, EDITS)


def planted(seed: int, truth: str) -> Screened:
    """A pool of which edit number 2 does something: "rule" makes it solve what it claims, "harm" makes all fail. Each
    edit claims two of the samples that the incumbent fails; one answer in thirty is odd."""
    draw = Random(seed)
    trials = []
    for j, chosen in design(CLAIMS, SAMPLES, 96, draw):
        right = j >= FAILING
        if 2 in chosen:
            right = (right or j in CLAIMS[2]) if truth == "rule" else right and truth != "harm"
        trials.append(trial(j, chosen, CLAIMS, float(right != (draw.random() < 1 / 30))))
    return screen(draw_effects(trials, EDITS, Odds(), draw), CLAIMS, SAMPLES)


def test_a_planted_rule_is_found_where_it_claims_to_help():
    for seed in range(3):
        found = planted(seed, "rule")
        gain, _, better = found.gain([2])
        assert chance(found.draws, "claimed", 2) > 0.8
        assert chance(found.draws, "general", 2) < 0.3
        assert better > 0.8
        assert gain == pytest.approx(2 / SAMPLES, abs=0.04)
        assert found.assemble(1, 0.6) == (2,)
        assert gain > 2 * max(found.gain([i])[0] for i in range(EDITS) if i != 2)


def test_a_planted_harmful_edit_is_found_everywhere():
    for seed in range(3):
        found = planted(seed, "harm")
        assert fmean(draw.general[2] < 0 for draw in found.draws) > 0.8
        assert found.gain([2])[0] < -0.15
        assert found.gain([2])[2] < 0.1
        assert 2 not in found.assemble(EDITS, 0.6)


def test_many_edits_that_claim_one_sample_add_up_to_no_more_than_the_sampler_can_hold():
    """Each of 90 edits is known to solve two samples of its own. A text that holds all of them was tried on a sample
    that all of them claim: there the sum of their effects leaves every table of the sampler."""
    edits = 90
    trials = [
        Trial(f"s{i}-{j}", held, held, score)
        for i in range(edits)
        for j in range(2)
        for held, score in (((), 0.0), ((i,), 1.0))
    ]
    trials += [Trial("all", (), (), 0.0), Trial("all", tuple(range(edits)), tuple(range(edits)), 1.0)]
    drawn = draw_effects(trials, edits, Odds(), Random(1), draws=12)
    assert fmean(sum(draw.claimed) for draw in drawn) > 2000
    assert fmean(value > 0 for draw in drawn for value in draw.claimed) > 0.9


def test_of_null_edits_it_says_nothing():
    for seed in range(3):
        found = planted(seed, "null")
        gains = [found.gain([i])[0] for i in range(EDITS)]
        assert max(map(abs, gains)) < 0.05
        assert abs(fmean(gains)) < 0.02
        assert max(chance(found.draws, "general", i) for i in range(EDITS)) < 0.5
        assert found.assemble(EDITS, 0.6) == ()


def test_fractional_scores_count_for_their_share():
    """Scores that an edit raises from 0.2 to 0.5, to 0.8 and to 1."""
    rows = design(CLAIMS, SAMPLES, 192, Random(1))

    def gain(after: float) -> float:
        scores = [after if 1 in chosen and j in CLAIMS[1] else 0.2 for j, chosen in rows]
        trials = [trial(j, chosen, CLAIMS, score) for (j, chosen), score in zip(rows, scores, strict=True)]
        return screen(draw_effects(trials, EDITS, Odds(), Random(2)), CLAIMS, SAMPLES).gain([1])[0]

    gains = [gain(after) for after in (0.2, 0.5, 0.8, 1.0)]
    assert gains == sorted(gains)
    assert abs(gains[0]) < 0.01 < gains[2]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sets(st.integers(0, 3)), st.sampled_from([0.0, 0.5, 1.0])),
        max_size=24,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_trials_changes_nothing(rows, shuffler):
    trials = [trial(j, sorted(chosen), blocks(6, 4), score) for j, chosen, score in rows]
    shuffled = trials[:]
    shuffler.shuffle(shuffled)
    assert draw_effects(shuffled, 4, Odds(), Random(1)) == draw_effects(trials, 4, Odds(), Random(1))


# -- calibration: worlds drawn from the prior


def prior_world(seed: int, samples: int = 8, edits: int = 4, rollouts: int = 24) -> tuple[Screened, Draw]:
    """The estimates for a world, and its truth."""
    draw, odds, claims = Random(seed), Odds((12.0, 2.0, 2.0), (4.0, 4.0)), blocks(samples, edits)
    level = draw.gauss(0, 8)
    masses = [math.exp(-((base - level) ** 2) / (2 * BASE_SD**2)) for base in BASES]
    bases = draw.choices(BASES, masses, k=samples)
    kinds = []
    for kind, counts in enumerate((odds.general, odds.claimed)):
        common = [draw.gammavariate(n, 1.0) for n in counts]
        prior = weighed(kind, [n / sum(common) for n in common])
        kinds.append(tuple(draw.choices(list(prior), list(prior.values()), k=edits)))
    general, claimed = kinds
    trials = []
    for j, chosen in design(claims, samples, rollouts, draw):
        units = bases[j] + sum(general[i] + claimed[i] * (j in claims[i]) for i in chosen)
        trials.append(trial(j, chosen, claims, float(draw.random() < solved(units))))
    draws = draw_effects(trials, edits, odds, draw)
    return screen(draws, claims, samples), Draw({name(j): b for j, b in enumerate(bases)}, general, claimed)


@pytest.fixture(scope="module")
def worlds() -> list[tuple[Screened, Draw]]:
    return [prior_world(seed) for seed in range(200)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["general", "claimed"])
def test_an_effect_is_there_as_often_as_is_said(worlds: list[tuple[Screened, Draw]], kind: str):
    said = [(chance(s.draws, kind, i), getattr(truth, kind)[i] != 0) for s, truth in worlds for i in range(4)]
    for low, high in ((0.0, 0.35), (0.35, 0.65), (0.65, 1.01)):  # not cut at the priors, near which chance sorts
        part = [(p, is_there) for p, is_there in said if low <= p < high]
        if len(part) >= 20:
            expected, found = fmean(p for p, _ in part), fmean(is_there for _, is_there in part)
            assert found == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / len(part)) + 0.03)
    assert fmean(p for p, _ in said) == pytest.approx(fmean(is_there for _, is_there in said), abs=0.04)
    assert max(p for p, _ in said) > 0.8  # it does say something
    assert min(p for p, _ in said) < 0.3


@pytest.mark.slow
def test_the_interval_of_a_teams_gain_covers_the_truth_as_often_as_it_says(worlds: list[tuple[Screened, Draw]]):
    """The rank of the truth among the draws is uniform. Ties, most of them at no gain, are broken at random."""
    draw = Random(0)
    places = []
    for (screened, truth), team in product(worlds, ((0, 1), (2, 3))):
        gains = screened.gains(team)
        [real] = screen([truth], blocks(8, 4), 8).gains(team)
        below, equal = sum(g < real - 1e-12 for g in gains), sum(abs(g - real) <= 1e-12 for g in gains)
        places.append((below + draw.random() * (equal + 1)) / (len(gains) + 1))
    assert 0.85 <= fmean(0.05 <= place <= 0.95 for place in places) <= 0.95
    assert 0.42 <= fmean(0.25 <= place <= 0.75 for place in places) <= 0.58
    assert fmean(places) == pytest.approx(0.5, abs=0.06)


# -- a chain that goes on where another ended


@pytest.mark.parametrize(("edits", "rows", "supports"), BY_HAND)
def test_where_the_chain_starts_is_forgotten(edits: int, rows: list, supports: list[frozenset[int]]):
    trials = [trial(sample, chosen, supports, score) for sample, chosen, score in rows]
    odds, far = Odds((7.0, 2.0, 1.0), (2.0, 2.0)), Draw({name(0): 48, "elsewhere": -48}, (-32,) * edits, (48,) * edits)
    draws = draw_effects(trials, edits, odds, Random(1), draws=4_000, start=[far])
    exact = enumerated(trials, edits, odds)
    for kind in ("general", "claimed"):
        assert [chance(draws, kind, i) for i in range(edits)] == pytest.approx(exact[kind], abs=0.04)
    assert set(draws[-1].bases) == {t.sample for t in trials}


def test_edits_that_rest_are_drawn_now_and_then_and_from_the_same_posterior():
    edits, rows, supports = BY_HAND[-1]
    trials = [trial(sample, chosen, supports, score) for sample, chosen, score in rows]
    odds = Odds((7.0, 2.0, 1.0), (2.0, 2.0))
    draws = draw_effects(trials, edits, odds, Random(1), draws=6_000, active=1)
    exact = enumerated(trials, edits, odds)
    for kind in ("general", "claimed"):
        assert [chance(draws, kind, i) for i in range(edits)] == pytest.approx(exact[kind], abs=0.05)
    changes = [
        sum(a != b for c in range(CHAINS) for a, b in pairwise(draw.claimed[i] for draw in draws[c::CHAINS]))
        for i in range(edits)
    ]
    assert 0 < changes[1] < 0.75 * changes[0]


# -- the gain of a set


@given(st.sets(st.integers(0, 3)), st.integers(0, 2))
def test_a_gain_is_the_mean_difference_over_the_samples(chosen: set[int], seed: int):
    draw, claims = Random(seed), blocks(12, 4)
    truth = Draw(
        {name(j): draw.choice(BASES) for j in range(12)},
        tuple(draw.choice(GRIDS[0]) for _ in range(4)),
        tuple(draw.choice(GRIDS[1]) for _ in range(4)),
    )
    by_hand = []
    for j in range(12):
        base = truth.bases[name(j)]
        moved = base + sum(truth.general[i] + truth.claimed[i] * (j in claims[i]) for i in chosen)
        by_hand.append(solved(moved) - solved(base))
    assert screen([truth], claims, 12).gains(sorted(chosen)) == [pytest.approx(fmean(by_hand))]


def test_what_an_edit_claims_of_those_it_was_shown_is_its_share_of_all():
    """The optimizer saw 4 of 12 samples and claims 1: that is a quarter of all tasks, not a twelfth."""
    made = screen([Draw(dict.fromkeys(map(name, range(12)), -48), (0,), (96,))], [frozenset({0})], 12)
    seen = Pool(made.pool.skill, tuple(replace(p, among=4) for p in made.pool.proposals), frozenset(), (), 2_000)
    whole = solved(48) - solved(-48)
    assert made.gains([0]) == [pytest.approx(whole / 12)]
    assert Screened(seen, made.draws, made.known).gains([0]) == [pytest.approx(whole / 4)]
