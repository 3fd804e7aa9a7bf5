"""The published items, if they are here. With -s, the figures are printed. Nothing of it is part of the project.

SKILLTUNE_REAL_DATA=FOLDER python -m pytest tests/benchmarks/test_real_data.py -s

FOLDER holds searchqa, livemath (or livemathematicianbench), bbh and gsm8k, each as `skilltune data fetch` leaves it or
with a part of the files.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from skilltune import benchmarks
from skilltune.benchmarks.bbh import TASKS
from skilltune.envs import Env
from skilltune.preflight.audit import audit
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import Sample, split

DATA = os.environ.get("SKILLTUNE_REAL_DATA", "")
EVERYTHING = 10**6
RATIO = (2, 1, 7)
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not DATA, reason="SKILLTUNE_REAL_DATA names no folder")]


def load(spec: str, *folders: str, limit: int | None = None) -> Env:
    place = next((Path(DATA, name) for name in folders if Path(DATA, name).exists()), None)
    if place is None:
        pytest.skip(f"no {' or '.join(folders)} in {DATA}")
    try:
        return benchmarks.load(spec, place, limit=limit)
    except benchmarks.Missing as error:
        pytest.skip(str(error))


async def solved_by(env: Env, answer: str) -> int:
    scores = [await env.score(s, Rollout(s.id, "", 0, Trajectory(answer), None)) for s in env.samples]
    return sum(bool(score.hard) for score in scores)


async def notes(env: Env, *more: Sample) -> list[str]:
    env.samples = (*env.samples, *more)
    return (await audit(env, split(env.samples, env.split or RATIO, 42))).notes


async def test_the_answers_of_searchqa_score_1() -> None:
    env = load("bench:searchqa", "searchqa", limit=2000)
    assert await env.validate() == []
    print(f"\nsearchqa: {len(env.samples)} answers score 1")


@pytest.mark.parametrize("variant", ["all", "plain"])
async def test_always_a_solves_a_fifth_of_livemath(variant: str) -> None:
    env = load(f"bench:livemath/{variant}", "livemath", "livemathematicianbench")
    n = len(env.samples)
    assert await env.validate() == []
    hits = await solved_by(env, "A")
    places = Counter(str(sample.target) for sample in env.samples)
    print(
        f"\nlivemath/{variant}: {n} answers score 1; always A solves {hits} ({hits / n:.1%}); {sorted(places.items())}"
    )
    assert 0.10 < hits / n < 0.30
    found = await notes(env)
    print(*found, sep="\n")
    assert any("remaining options" in note for note in found) is (variant == "all")


@pytest.mark.parametrize("task", TASKS)
async def test_the_answers_of_bbh_score_1(task: str) -> None:
    env = load(f"bench:bbh/{task}", "bbh")
    assert await env.validate() == []
    print(f"\nbbh/{task}: {len(env.samples)} answers score 1")


async def test_the_answers_of_gsm8k_score_1() -> None:
    env = load("bench:gsm8k", "gsm8k", limit=EVERYTHING)
    assert await env.validate() == []
    print(f"\ngsm8k: {len(env.samples)} answers score 1")


async def test_the_audit_finds_planted_give_aways() -> None:
    """An expected answer in the prompt, always the same label, and a duplicate in another split."""
    env = load("bench:gsm8k", "gsm8k", limit=100)
    named = [s.model_copy(update={"input": f"{s.input} (Solution: {s.target}.00)", "split": None}) for s in env.samples]
    env.samples = tuple(s.model_copy(update={"target": f"{s.target}.00"}) for s in named)
    assert any("the expected answer stands in the input" in note for note in await notes(env))

    first, *others = env.samples
    env.samples = (first.model_copy(update={"split": "train"}), *others)
    twin = Sample(id="twin", input=f"{first.text}!", target=first.target, split="test")
    assert any("in train and twin in test" in note for note in await notes(env, twin))

    env = load("bench:livemath/plain", "livemath", "livemathematicianbench")
    env.samples = tuple(_labelled(sample) for sample in env.samples)
    found = await audit(env, split(env.samples, RATIO, 42))
    assert any('the answer "A" solves every sample' in problem for problem in found.problems)


def _labelled(sample: Sample) -> Sample:
    """The sample as published: the right option is always A."""
    options = [option["text"] for option in sample.metadata["choices"]]
    right = options.pop("ABCDE".index(str(sample.target)))
    choices = [{"label": a, "text": b} for a, b in zip("ABCDE", [right, *options], strict=True)]
    return sample.model_copy(update={"target": "A", "metadata": {"choices": choices}})
