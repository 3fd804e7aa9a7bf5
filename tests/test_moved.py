"""A model at another address is another one, unless its user says that it is the same. What is said of reuse holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skilltune.api import run_training
from skilltune.config import make_config
from skilltune.errors import RunError, UsageError
from skilltune.journal.run import Run
from skilltune.models.build import build_model
from training import events, judged_world, prepare, small, train_at
from world import World

pytestmark = pytest.mark.anyio

SHORT: dict[str, Any] = {"train.epochs": 1}


def twins(**settings: Any) -> tuple[World, World]:
    """One world at two addresses."""
    return small(q=1.0, **settings), small(q=1.0, **settings)


def told(folder: Path, changed: list[dict[str, Any]]) -> dict[str, Any]:
    (event,) = changed
    assert event["source"] == str(folder)
    return event


@pytest.mark.slow
async def test_a_moved_model_is_refused_with_the_way_out_and_goes_on_where_it_is_declared_the_same(
    tmp_path: Path,
) -> None:
    here, there = twins()
    with here, there:
        prepare(here, tmp_path)
        stopped = await train_at(here.url, tmp_path, {**SHORT, "budget.calls": 100})
        assert stopped.result.exit_code == 4
        with pytest.raises(RunError) as refused:
            await train_at(there.url, tmp_path, SHORT)
        assert f"then add target.same_as=openai@{here.url}/target)" in str(refused.value)
        same = {f"{role}.same_as": f"openai@{here.url}/{role}" for role in ("target", "optimizer")}
        with pytest.raises(RunError, match=r"optimizer\.model"):  # each role is declared for itself
            await train_at(there.url, tmp_path, {**SHORT, "target.same_as": same["target.same_as"]})
        before = here.calls["target"]
        moved = await train_at(there.url, tmp_path, {**SHORT, **same})
        paid = before + there.calls["target"]
        whole = await train_at(there.url, tmp_path, SHORT, run="whole")
        assert moved.result.exit_code == 0
        assert moved.versions == whole.versions
        assert here.calls["target"] == before
    run = Run.read(tmp_path / "run")
    assert run.usage["rollout"].calls == paid  # every call is kept, and none was made at both addresses
    run.close()


async def test_another_spelling_of_the_address_is_no_move(tmp_path: Path) -> None:
    with small(q=1.0) as world:
        prepare(world, tmp_path)
        await train_at(world.url, tmp_path, SHORT)
        calls = world.calls["target"]
        spelled = {"target.model": f"openai@{world.url}/#target"}
        again = await train_at(world.url, tmp_path, {**SHORT, **spelled}, fork=True)
        assert again.result.exit_code == 0
        assert world.calls["target"] == calls  # the answers are known under one name


async def test_a_moved_judge_keeps_its_verdicts(tmp_path: Path) -> None:
    async def run(tree: dict[str, Any]) -> int:
        return (await run_training(make_config({**tree, "seed": 1}), tmp_path, tmp_path / "run")).exit_code

    here, there = twins()
    with here, there:
        tree = judged_world(tmp_path, here)
        await run(tree)
        verdicts = here.calls["judge"]
        assert verdicts
        moved = {**tree, "env": {**tree["env"], "score": {"judge": f"openai@{there.url}/judge"}}}
        with pytest.raises(RunError, match=r"then add judge\.same_as=openai@"):
            await run(moved)
        assert await run({**moved, "judge": {"same_as": f"openai@{here.url}/judge"}}) in (0, 1, 5)
        assert (here.calls["judge"], there.calls["judge"]) == (verdicts, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "moved", "held"),
    [
        ({"train.lr": 3}, False, "all"),
        ({}, True, "none"),
        ({}, "declared", "all"),
        ({"env.score": "contains"}, False, "none"),
        ({"target.max_tokens": 99}, False, "none"),
    ],
)
async def test_a_fork_says_how_many_rollouts_can_be_reused_and_keeps_its_word(
    tmp_path: Path, settings: dict[str, Any], moved: bool | str, held: str
) -> None:
    here, there = twins()
    with here, there:
        prepare(here, tmp_path)
        old = await train_at(here.url, tmp_path, {**SHORT, "target.key_env": None})
        total = here.calls["target"]
        forks: list[dict[str, Any]] = []
        same = {f"{role}.same_as": f"openai@{here.url}/{role}" for role in ("target", "optimizer")}
        world = there if moved else here
        with pytest.MonkeyPatch.context() as patch:
            tell = Run.notify
            patch.setattr(
                Run,
                "notify",
                lambda run, type, **data: (forks.append(data) if type == "forked" else None, tell(run, type, **data)),
            )
            declared = same if moved == "declared" else {}
            await train_at(world.url, tmp_path, {**SHORT, **settings, **declared}, fork=True)
        said = told(old.folder, forks)
        assert (said["answers"], said["rollouts"]) == ({"all": total, "none": 0}[held], total)
        paid = here.calls["target"] + there.calls["target"] - total
        assert paid == 0 if held == "all" and not settings else paid < total if held == "all" else paid >= total / 2
        assert bool(said["changed"]) == (held == "none")
    assert events(old.folder, "finish")


def test_what_cannot_be_the_same_model_is_refused() -> None:
    with pytest.raises(UsageError, match="speak different APIs"):
        build_model("openai@http://127.0.0.1:1/v1/m", same_as="anthropic@http://127.0.0.1:1/m")
    with pytest.raises(UsageError, match="leave same_as out"):
        build_model("local/smollm2-135m", same_as="local/smollm2-135m")
