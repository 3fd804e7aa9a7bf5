"""reasoning-gym: the generator's own score, and generators that cannot be used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from skilltune import Rollout, benchmarks
from skilltune.benchmarks.rg import REFUSED, environment
from skilltune.errors import UsageError
from skilltune.rollout import Trajectory

pytestmark = pytest.mark.anyio


class Sums:
    """A generator in the shape of the package's: full points for the sum, some for any number."""

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken  # 1: no answer has points; 2: every answer has all

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"question": f"{n} + 1 = ?", "answer": str(n + 1), "metadata": {"sum": n + 1}}

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        if self.broken:
            return self.broken - 1.0
        assert answer
        return 1.0 if int(answer) == entry["metadata"]["sum"] else 0.25


def entries(generator: Sums) -> dict[str, dict[str, Any]]:
    return {f"sums:42:{n}": generator[n] for n in range(12)}


async def test_the_generators_own_points_are_partial_credit() -> None:
    generator = Sums()
    env = environment("sums", generator, entries(generator), "1.0")
    assert await env.validate() == []
    sample = env.samples[4]
    for answer, value, soft in (
        ("It is\n<answer>5</answer>", 1.0, 1.0),
        ("<answer>6</answer>", 0.0, 0.25),
        ("5", 1.0, 1.0),
        ("<answer></answer>", 0.0, 0.0),
        ("five", 0.0, 0.0),
    ):
        score = await env.score(sample, Rollout(sample.id, "", 0, Trajectory(answer), None))
        assert (score.value, score.partial) == (value, soft), answer
    unread = await env.score(sample, Rollout(sample.id, "", 0, Trajectory("five"), None))
    assert "it cannot be read: ValueError" in unread.why
    assert env.fingerprint != environment("sums", generator, entries(generator), "1.1").fingerprint


@pytest.mark.parametrize(("broken", "fault"), [(1, "stored answer does not score 1"), (2, "nonsense scores 1")])
def test_a_generator_whose_scores_mean_nothing_is_refused(broken: int, fault: str) -> None:
    generator = Sums(broken)
    with pytest.raises(UsageError, match=f"in task 0 .*{fault}"):
        environment("sums", generator, entries(generator), "1.0")


def test_generators_that_cannot_be_used_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, why in REFUSED.items():
        with pytest.raises(UsageError, match=f"bench:rg/{name} cannot be used: {why}"):
            benchmarks.load(f"bench:rg/{name}")
    with pytest.raises(UsageError, match="leave out --data"):
        benchmarks.load("bench:rg/sums", tmp_path)
    with pytest.raises(UsageError, match="bench:rg/GENERATOR"):
        benchmarks.load("bench:rg")
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "reasoning_gym" else find(name))
    with pytest.raises(UsageError, match=r"skilltune\[rg\]"):
        benchmarks.load("bench:rg/sums")


@pytest.mark.slow
async def test_generators_of_the_package_accept_their_own_answers() -> None:
    pytest.importorskip("reasoning_gym")
    for name in ("basic_arithmetic", "leg_counting", "word_ladder"):
        env = benchmarks.load(f"bench:rg/{name}", limit=12)
        assert await env.validate() == []
        assert [s.id for s in env.samples] == [f"{name}:42:{n}" for n in range(12)]
        assert env.samples == benchmarks.load(f"bench:rg/{name}", limit=12).samples
    with pytest.raises(UsageError, match="no generator 'leg_count'"):
        benchmarks.load("bench:rg/leg_count")
