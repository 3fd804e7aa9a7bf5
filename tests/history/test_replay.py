"""Every decision can be made again from the journal alone, and what was tampered with is found."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from skilltune.cli.main import app
from skilltune.history.replay import differences, recompute
from skilltune.journal.run import Run
from training import START, Fated, Trained, prepare, small, train
from world import Call

pytestmark = pytest.mark.anyio
PRESETS = ("default", "paper")
CASES = {
    "default": {"preset": "default"},
    "paper": {"preset": "paper"},
    "autonomous": {"preset": "default", "settings": {"train.schedule": "autonomous"}},
    "examples": {"preset": "default", "settings": {"optimizer.model": "examples"}},
    "two draws": {"preset": "default", "settings": {"target.attempts": 2, "gate.passes": 2, "certify.attempts": 2}},
}


def change(folder: Path, sql: str, *values: Any) -> None:
    with sqlite3.connect(folder / "run.db") as db:
        assert db.execute(sql, values).rowcount > 0
    db.close()


async def trained(folder: Path, **given: Any) -> Trained:
    with small(p=0.1, q=0.7) as world:
        return await train(world, folder, **given)


def of_steps(trained: Trained) -> list[dict[str, Any]]:
    """The verdicts without that of the last ablation, which belongs to no step."""
    return [verdict for verdict in trained.verdicts if verdict["numbers"].get("rule") != "ablation"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
async def test_every_decision_is_made_again_without_target_optimizer_and_samples(tmp_path: Path, case: str) -> None:
    done = await trained(tmp_path, **CASES[case])  # the world is gone now
    (tmp_path / "samples.jsonl").unlink()
    (tmp_path / "SKILL.md").unlink()
    before = {path.name: path.read_bytes() for path in done.folder.iterdir() if path.is_file()}
    with Run.read(done.folder) as run:
        found = await recompute(run)
    assert (found.exit_code, found.lacking) == (0, "")
    named = [decision.name for decision in found.decisions]
    steps = [f"step {verdict['step']}" for verdict in of_steps(done)]
    assert [name for name in named if name.startswith("step")] == steps
    assert ("certificate" in named) == (done.result.certificate is not None)
    for name, data in before.items():
        if not name.startswith("run.db-"):  # SQLite's own, beside the journal
            assert (done.folder / name).read_bytes() == data


@pytest.mark.slow
async def test_a_skill_folder_is_rebuilt_from_the_journal(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "SKILL.md").write_text(START)
    (desk / "logo.bin").write_bytes(bytes(range(256)))
    done = await trained(tmp_path, skill="desk")
    shutil.rmtree(desk)
    shutil.rmtree(done.folder / "best")
    with Run.read(done.folder) as run:
        assert (await recompute(run)).exit_code == 0


@pytest.mark.slow
async def test_a_fork_recomputes_its_own_decisions(tmp_path: Path) -> None:
    with small(p=0.1, q=0.7) as world:
        await train(world, tmp_path, {"target.temperature": 0.5})
        fork = await train(world, tmp_path, {"target.temperature": 1.0}, fork=True)
    with Run.read(fork.folder) as run:
        found = await recompute(run)
    assert fork.folder.name == "run-2"
    assert found.exit_code == 0
    assert len(of_steps(fork)) == sum(decision.name.startswith("step") for decision in found.decisions)


@pytest.mark.slow
async def test_a_run_that_the_budget_stopped_is_compared_as_far_as_it_came(tmp_path: Path) -> None:
    done = await trained(tmp_path, budget="130 calls")
    assert done.result.exit_code == 4
    with Run.read(done.folder) as run:
        found = await recompute(run)
    assert found.exit_code == 0
    assert len(of_steps(done)) == sum(decision.name.startswith("step") for decision in found.decisions)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["110 calls", "150 calls", "190 calls"])
async def test_a_run_that_was_stopped_and_went_on_is_compared_by_what_it_came_to(tmp_path: Path, first: str) -> None:
    """The choice and certificate made when the budget stopped the run are void once the run goes on."""
    slow = {"train.lr": 1, "train.lr_min": 1}
    with small(p=0.1, q=0.7, seed=0) as world:
        stopped = await train(world, tmp_path, slow, budget=first, seed=0)
        assert stopped.result.exit_code == 4
        with Run.read(stopped.folder) as run:
            assert (await recompute(run)).exit_code == 0
        done = await train(world, tmp_path, slow, budget="5000 calls", seed=0)
        assert done.result.stopped is None
    with Run.read(done.folder) as run:
        found = await recompute(run)
        assert len(run.events("reselection")) > 1
    assert (found.exit_code, found.lacking) == (0, ""), found
    named = [decision.name for decision in found.decisions]
    assert named.count("reselection") == 1
    steps = [f"step {verdict['step']}" for verdict in of_steps(done)]
    assert [name for name in named if name.startswith("step")] == steps


@pytest.mark.slow
async def test_a_run_that_goes_on_and_has_ended_no_step_yet_is_compared_as_far_as_it_came(tmp_path: Path) -> None:
    with small(p=0.1, q=0.7) as world:
        await train(world, tmp_path, budget="200 calls")
        second = await train(world, tmp_path, budget="210 calls")
        change(second.folder, "DELETE FROM event WHERE type = 'finish' AND id = (SELECT max(id) FROM event)")
    with Run.read(second.folder) as run:  # as if it had been killed
        assert (await recompute(run)).exit_code == 0


@pytest.mark.slow
async def test_a_run_that_was_paused_is_compared_as_far_as_it_came_and_again_when_it_went_on(tmp_path: Path) -> None:
    stop = tmp_path / "run" / "stop"

    def pause(call: Call, sample: str | None) -> None:
        """The user asks for a pause while the first step is under way."""
        if call.stage == "reflect":
            stop.touch()

    with Fated(pause, q=0.8) as world:
        paused = await train(world, tmp_path)
        world.fate = lambda call, sample: None
        with Run.read(paused.folder) as run:
            found = await recompute(run)
        assert (found.exit_code, [decision.name for decision in found.decisions]) == (0, ["start", "step 1"])
        stop.unlink()
        done = await train(world, tmp_path)
    with Run.read(done.folder) as run:
        found = await recompute(run)
    assert (found.exit_code, found.lacking) == (0, "")
    assert [decision.name for decision in found.decisions][-2:] == ["reselection", "certificate"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_says_what_differs_and_what_is_lacking(tmp_path: Path, preset: str) -> None:
    done = asyncio.run(trained(tmp_path, preset=preset))
    ask = ["show", str(done.folder), "--recompute"]
    equal = CliRunner().invoke(app, ask)
    assert equal.exit_code == 0, equal.output
    lines = equal.stdout.splitlines()
    assert all(line.startswith("equal") for line in lines)
    assert len(lines) > len(done.verdicts)

    verdict = done.verdicts[0]
    number = next(v for v in (verdict["after"], verdict["score"]) if v is not None)
    forged = json.dumps(verdict, ensure_ascii=False, separators=(",", ":")).replace(repr(number), repr(number + 1e-6))
    saved = (done.folder / "run.db").read_bytes()
    change(
        done.folder, "UPDATE event SET json = ? WHERE id = (SELECT min(id) FROM event WHERE type = 'verdict')", forged
    )
    told = CliRunner().invoke(app, ask)
    assert told.exit_code == 1
    assert told.stdout.count("differs") == 1
    assert f"{number + 1e-6!r} → {number!r}" in told.stdout

    (done.folder / "run.db").write_bytes(saved)
    gone = done.result.versions[0].hash
    change(done.folder, "DELETE FROM memo WHERE kind = 'rollout' AND json_extract(value, '$.skill') = ?", gone)
    lacking = CliRunner().invoke(app, [*ask, "--json"])
    assert lacking.exit_code == 2
    assert "no rollout" in json.loads(lacking.stdout)["lacking"]


@pytest.mark.slow
async def test_a_forged_score_in_the_journal_is_found(tmp_path: Path) -> None:
    done = await trained(tmp_path)
    sample = next(iter(done.verdicts[0]["differences"]))
    flip = "json_set(value, '$.score.value', 1.0 - json_extract(value, '$.score.value'))"
    change(
        done.folder,
        f"UPDATE memo SET value = {flip} WHERE kind = 'rollout' AND json_extract(value, '$.sample') = ?",
        sample,
    )
    with Run.read(done.folder) as run:
        assert (await recompute(run)).exit_code == 1


def test_a_folder_without_a_training_run_is_refused(tmp_path: Path) -> None:
    prepare(small(), tmp_path)
    with Run.open(tmp_path / "run", {}):
        pass
    refused = CliRunner().invoke(app, ["show", str(tmp_path / "run"), "--recompute"])
    assert refused.exit_code == 2
    assert "has not begun" in refused.output


def test_differences_names_the_path_and_forgives_rounding() -> None:
    old = {"a": [1.0, {"b": 2}], "same": None, "text": "x"}
    new = {"a": [1.0 + 1e-12, {"b": 3}], "same": None, "text": "y", "more": True}
    assert list(differences(old, old)) == []
    assert list(differences(old, new)) == [
        "a[1].b: 2 → 3",
        'text: "x" → "y"',
        "more: null → true",
    ]
