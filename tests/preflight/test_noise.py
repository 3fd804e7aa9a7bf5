"""Calibration: the noise is measured, the gate's errors are those of the gate, and nothing known is paid for twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from skilltune.config import GateConfig
from skilltune.gate import Arena
from skilltune.history.replay import recompute
from skilltune.journal.keys import rng
from skilltune.journal.run import Run
from skilltune.preflight.noise import Calibration, _solving, calibrate
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.rollouts.forward import repeats_itself
from skilltune.samples import Sample
from skilltune.skill import Skill
from skilltune.stats.linear import NOISE_FLOOR, Observation, fit
from training import Trained, events, small, train
from world import Call, World

pytestmark = pytest.mark.anyio
ON = {"gate.calibrate": True}


class Coins:
    """A roller whose samples are solved with given odds, or score a given mean with noise of that sd."""

    def __init__(self, run: Run, odds: list[float], sd: float | None = None) -> None:
        self.run, self.odds, self.sd = run, odds, sd

    async def __call__(
        self, skill: Skill, samples: list[Sample], *, attempt: int = 0, purpose: str = ""
    ) -> list[Rollout]:
        rolled = []
        for sample in samples:
            p, draw = self.odds[int(sample.id[1:])], rng(0, sample.id, attempt)
            value = float(draw.random() < p) if self.sd is None else min(1.0, max(0.0, draw.gauss(p, self.sd)))
            rolled.append(Rollout(sample.id, skill.hash, attempt, Trajectory(f"{value}"), Score(value)))
        return rolled


async def measured(tmp_path: Path, odds: list[float], sd: float | None = None, **cfg: Any) -> tuple[Calibration, Arena]:
    with Run.open(tmp_path / "run") as run:
        roll: Any = Coins(run, odds, sd)
        samples = [Sample(id=f"s{i}", input="q") for i in range(len(odds))]
        arena = Arena(roll, (), samples, GateConfig(**cfg), seed=1, max_tokens=2000)
        found = await calibrate(arena, Skill("# Desk\n"))
    assert found is not None
    return found, arena


@pytest.mark.slow
async def test_the_noise_of_a_repeat_is_measured(tmp_path: Path) -> None:
    found, arena = await measured(tmp_path, [0.5] * 60, policy="strict")
    assert 0.3 < found.differing < 0.7
    assert arena.noise == pytest.approx(found.sd**2)
    assert found.sd**2 == pytest.approx(0.25, abs=0.1)
    assert not found.deterministic
    assert arena.draws(3) == 3


@pytest.mark.slow
async def test_the_strict_rule_accepts_noise_as_often_as_chance_says(tmp_path: Path) -> None:
    """Two fair-coin passes over 40 samples: the second is strictly better in 45.6 of 100 cases."""
    found, _ = await measured(tmp_path, [0.5] * 40, policy="strict")
    assert found.false_accept == pytest.approx(0.456, abs=0.11)  # 200 simulations, and the odds are estimated
    assert found.detectable is not None
    assert 0.02 < found.detectable < 0.25


@pytest.mark.slow
async def test_the_race_accepts_less_noise_than_the_strict_rule(tmp_path: Path) -> None:
    odds = [0.1] * 14 + [0.5] * 12 + [0.9] * 14
    strict, _ = await measured(tmp_path / "strict", odds, policy="strict")
    race, _ = await measured(tmp_path / "race", odds, policy="race")
    assert race.false_accept < strict.false_accept / 2
    assert race.detectable is not None


@pytest.mark.slow
async def test_a_deterministic_target_is_detected(tmp_path: Path) -> None:
    found, arena = await measured(tmp_path, [0.0] * 15 + [1.0] * 15)
    assert found.deterministic
    assert (found.sd, found.differing, found.false_accept, arena.noise) == (0.0, 0.0, 0.0, 0.0)
    assert arena.draws(3) == 1
    assert "attempted twice" in str(found)
    assert "sd" not in str(found)  # nothing was measured of it, and nothing assumed


@pytest.mark.slow
async def test_equal_scores_of_different_answers_are_no_proof_of_determinism(tmp_path: Path) -> None:
    """Wrong answers of the simulated world differ from draw to draw, their scores do not."""
    done, _ = await trained(tmp_path, {**ON, "train.epochs": 1})
    (told,) = events(done.folder, "calibration")
    assert not told["deterministic"]
    assert told["differing"] == 0
    assert told["sd"] == pytest.approx(1 / 6)
    assert "0 % of 16 select samples score differently when repeated (sd assumed, not measured: 0.17)" in told["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(("solved", "deterministic"), [(10, True), (12, True), (13, False), (20, False), (1, False)])
async def test_a_constant_answer_is_no_proof_of_determinism(tmp_path: Path, solved: int, deterministic: bool) -> None:
    """A start skill that says one thing, whatever it is asked, repeats itself at any temperature."""
    found, arena = await measured(tmp_path, [0.0] * (20 - solved) + [1.0] * solved)
    assert found.deterministic == deterministic
    assert (arena.draws(3) == 1) == deterministic
    assert ("assumed, not measured" in str(found)) != deterministic


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        ([(f"{i}", f"{i}") for i in range(9)], True),
        ([(f"{i}", f"{i}") for i in range(8)], False),  # too few
        ([(f"{i}", f"{i}") for i in range(20)] + [("a", "b")], False),
        ([("no idea", "no idea")] * 100 + [(f"{i}", f"{i}") for i in range(8)], True),
        ([("no idea", "no idea")] * 100 + [(f"{i}", f"{i}") for i in range(7)], False),
        ([("yes", "yes")] * 8 + [("no", "no")] * 9, True),
        ([], False),
    ],
)
def test_a_target_repeats_itself_if_enough_answers_beside_the_commonest_did(
    answers: list[tuple[str, str]], shown: bool
) -> None:
    assert repeats_itself(answers) == shown


def test_what_was_simulated_is_said_and_no_gain_is_promised_where_none_is_found() -> None:
    found = Calibration(40, 0.1, 0.22, False, "race", 0.005, 0.39)
    assert str(found) == (
        "10 % of 40 select samples score differently when repeated (sd 0.22); a change that no screen has measured, "
        "while nothing was accepted yet, is accepted by race in 0.5 % of cases if it does nothing, and 4 times out of "
        "5 if it gains 39 points"
    )
    assert str(replace(found, detectable=None)).endswith("and less than 4 times out of 5 whatever it gains")


def test_whatever_two_passes_scored_each_sample_gets_a_probability() -> None:
    """All k of n that both passes solve, and m more that only one of them did."""
    for n in (1, 2, 3, 7, 30, 75, 100):
        for k in range(n + 1):
            same = [(1.0, 1.0)] * k + [(0.0, 0.0)] * (n - k)
            assert _solving(same, rng(0, n, k)) == [a for a, _ in same]
            for m in {1, n - k} if n > k else ():
                mixed = [(1.0, 1.0)] * k + [(1.0, 0.0)] * m + [(0.0, 0.0)] * (n - k - m)
                odds = _solving(mixed, rng(0, n, k, m))
                assert all(0 <= p <= 1 for p in odds)
                assert len(set(odds)) > 1 or n == 1  # they are drawn


@pytest.mark.slow
async def test_a_target_that_repeats_itself_is_calibrated_whatever_it_solves(tmp_path: Path) -> None:
    found, _ = await measured(tmp_path, [1.0] * 7 + [0.0] * 68, policy="strict")
    assert (found.n, found.differing, found.false_accept) == (75, 0.0, 0.0)


async def test_fractional_scores(tmp_path: Path) -> None:
    found, _ = await measured(tmp_path, [0.3 + 0.01 * i for i in range(40)], sd=0.05, policy="strict")
    assert found.sd == pytest.approx(0.05, abs=0.02)
    assert found.detectable is not None
    assert found.detectable < 0.05


def test_what_a_repeat_shows_is_the_least_of_the_models_noise() -> None:
    rows = [Observation(f"s{i}", {"level": 1.0}, float(i % 2)) for i in range(20)]
    assert fit(rows, {"level": (0.5, 1.0)}, 0.15).noise >= 0.15
    assert fit(rows, {"level": (0.5, 1.0)}, 0.0).noise >= NOISE_FLOOR


# -- a whole run


class Fixed(World):
    """A world whose target says the same whenever it is asked the same."""

    def _solve(self, call: Call, draw: str) -> str:
        return super()._solve(call, "")


async def trained(
    folder: Path, settings: dict[str, Any], make: Callable[..., World] = small, **world: Any
) -> tuple[Trained, int]:
    with make(**{"q": 0.9, **world}) as there:
        done = await train(there, folder, settings, run=f"run-{len(list(folder.iterdir()))}")
        return done, there.calls["target"]


@pytest.mark.slow
async def test_a_deterministic_target_is_never_paid_for_a_replicate(tmp_path: Path) -> None:
    alone = {"target.lookahead": False}  # speculative calls depend on timing
    many = {"target.attempts": 2, "gate.passes": 2, "certify.attempts": 2, **alone}
    fixed = partial(Fixed, classes=4, train=32, select=16, test=24, sloppy=0.0)
    once, base = await trained(tmp_path, {"train.confirm": False, **alone}, fixed)  # it finds out by asking twice
    thrice, calls = await trained(tmp_path, {**many, **ON}, fixed)
    assert calls == base + 16  # the repeat of `select` itself
    assert thrice.versions == once.versions
    (told,) = events(thrice.folder, "calibration")
    assert told["deterministic"]
    assert told["n"] == 16
    with Run.read(thrice.folder) as run:
        assert (await recompute(run)).exit_code == 0


@pytest.mark.slow
async def test_a_noisy_target_is_told_from_a_deterministic_one_and_the_run_says_so(tmp_path: Path) -> None:
    done, _ = await trained(tmp_path, ON, p=0.3)
    (told,) = events(done.folder, "calibration")
    assert not told["deterministic"]
    assert told["sd"] > 0
    assert told["false_accept"] <= 0.1
    assert f"{100 * told['differing']:.0f} % of 16 select samples" in told["reason"]
