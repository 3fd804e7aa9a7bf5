"""A sample that is refused, lost or withdrawn does not lock a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skilltune.errors import CallConfigError, RunError, UsageError
from skilltune.history.replay import recompute
from skilltune.journal.run import Run
from skilltune.rollouts.inputs import split_ids
from training import Fated, events, quick_retries, small, train, train_at
from world import Call

pytestmark = pytest.mark.anyio
FAST = {"train.epochs": 1, "target.lookahead": False}


def split_of(folder: Path, name: str) -> list[str]:
    with Run.read(folder / "run") as run:
        ids = split_ids(run)
    assert ids is not None
    return ids[name]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    path = folder / "samples.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    return lambda row: None if row["id"] == name else row


@pytest.mark.slow
@pytest.mark.parametrize(("name", "calls"), [("train", 120), ("select", 120), ("test", 60), ("test", 80)])
async def test_pitfall_32_a_lost_sample_is_dropped_and_the_decisions_before_it_stay(
    tmp_path: Path, name: str, calls: int
) -> None:
    with small() as world:
        stopped = await train(world, tmp_path, {**FAST, "budget.calls": calls})
        assert stopped.result.stopped
        assert bool(stopped.verdicts) == (name != "test")
        lost = split_of(stopped.folder.parent, name)[0]
        rewrite(tmp_path, without(lost))
        with pytest.raises(UsageError, match=f"first: '{lost}'.* --drop {lost}"):
            await train_at(world.url, tmp_path, FAST)
        done = await train_at(world.url, tmp_path, FAST, drop=[lost])
        assert done.verdicts[: len(stopped.verdicts)] == stopped.verdicts
        assert done.result.exit_code == 0
        new = done.rows("rollouts.jsonl")[len(stopped.rows("rollouts.jsonl")) :]
        assert lost not in {row["sample"] for row in new}
        assert (lost in split_of(tmp_path, name)) == (name != "test")
        assert done.result.certificate
        assert done.result.certificate.n == 24 - (name == "test")
        again = await train_at(world.url, tmp_path, FAST)  # the drop is a decision of the run
        assert again.outcome == done.outcome
        with Run.read(done.folder) as run:
            assert (await recompute(run)).exit_code == 0


async def test_a_test_sample_that_is_dropped_after_the_certificate_changes_nothing(tmp_path: Path) -> None:
    with small() as world:
        done = await train(world, tmp_path, FAST)
        lost = split_of(tmp_path, "test")[0]
        rewrite(tmp_path, without(lost))
        again = await train_at(world.url, tmp_path, FAST, drop=[lost])
        assert again.outcome == done.outcome
        assert events(done.folder, "dropped") == [{"sample": lost, "out_of": []}]


async def test_a_changed_sample_is_refused_or_dropped_and_then_counts_as_it_was(tmp_path: Path) -> None:
    with small() as world:
        done = await train(world, tmp_path, FAST)
        changed = split_of(tmp_path, "train")[0]
        rewrite(tmp_path, lambda row: {**row, "target": "another"} if row["id"] == changed else row)
        with pytest.raises(RunError, match=f"1 samples changed .*'{changed}'.* --drop {changed}"):
            await train_at(world.url, tmp_path, FAST)
        assert (await train_at(world.url, tmp_path, FAST, drop=[changed])).outcome == done.outcome


async def test_a_sample_whose_call_is_refused_can_be_dropped_by_the_name_that_the_error_says(tmp_path: Path) -> None:
    with small() as world:
        world.write(tmp_path / "samples.jsonl")
        bad = next(sample["id"] for sample in world.samples() if sample["split"] == "select")

    def refuse(call: Call, sample: str | None) -> str | None:
        return "reject" if call.model == "target" and sample == bad else None

    with quick_retries(2), Fated(refuse) as world:
        with pytest.raises(CallConfigError, match=f"--drop {bad}"):
            await train(world, tmp_path, FAST)
        done = await train_at(world.url, tmp_path, FAST, drop=[bad])
        assert done.result.exit_code == 0
        assert bad not in split_of(tmp_path, "select")  # nothing was decided with it


@pytest.mark.parametrize(("drop", "said"), [(["t-9999"], "no sample 't-9999'"), ([""], "no sample ''")])
async def test_what_the_run_does_not_have_cannot_be_dropped(tmp_path: Path, drop: list[str], said: str) -> None:
    with small() as world:
        with pytest.raises(UsageError, match=said):
            await train(world, tmp_path, FAST, drop=drop)
        assert not world.calls
