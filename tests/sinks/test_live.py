"""live.json: what a running process does, as somebody outside of it can read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from skilltune.journal.run import Paid, Run
from skilltune.journal.under_way import UnderWay
from skilltune.sinks import live
from skilltune.usage import Usage
from skilltune.verdict import RaceFigures, VerdictRecord
from training import small, train

pytestmark = pytest.mark.anyio
Json = dict[str, Any]


async def watched(folder: Path, until: asyncio.Event) -> list[Json]:
    """Every distinct state that the file had until the event."""
    seen: list[Json] = []
    while not until.is_set():
        try:
            state = json.loads((folder / live.FILE_NAME).read_text())
        except FileNotFoundError:
            state = None
        if state and (not seen or state != seen[-1]):
            seen.append(state)
        await asyncio.sleep(0.002)
    return seen


@pytest.mark.slow
async def test_a_run_tells_its_step_its_phase_its_calls_and_the_race_and_removes_the_file(tmp_path: Path) -> None:
    over = asyncio.Event()
    with small(q=0.9, latency=0.004) as world, patch.object(live, "EVERY_S", 0.003):
        watching = asyncio.create_task(watched(tmp_path / "run", over))
        trained = await train(world, tmp_path, {"train.epochs": 1})
        over.set()
        seen = await watching
        names = set(world.tickets)
    assert not (trained.folder / live.FILE_NAME).exists()
    phases = [state["phase"] for state in seen]
    assert [phase for phase in dict.fromkeys(phases) if phase in ("baseline", "batch", "race")] == [
        "baseline",
        "batch",
        "race",
    ]
    assert {state["steps"] for state in seen if state["step"]} == {2}
    calls = [call for state in seen for call in state["in_flight"]]
    assert {call["role"] for call in calls} >= {"target", "optimizer"}
    hashes = {version[:8] for version in trained.versions}
    assert {call["version"] for call in calls if call["role"] == "target"} >= hashes
    assert {call["sample"] for call in calls if call["role"] == "target"} <= names
    assert all(call["sample"] == "" for call in calls if call["role"] == "optimizer")
    assert max(state["calls"] for state in seen) > 1
    assert all(call["since"] <= state["at"] for state in seen for call in state["in_flight"])
    races = [state["race"] for state in seen if state["race"]]
    judged = [VerdictRecord.from_json(verdict).figures for verdict in trained.verdicts]
    looks = [look for figures in judged if isinstance(figures, RaceFigures) for look in figures.interims]
    assert {(race["n"], race["p_better"]) for race in races} <= {(look.n, look.better) for look in looks}


async def test_a_call_is_under_way_until_it_ended_and_also_if_it_failed() -> None:
    calls = UnderWay()
    with calls.call("target"), pytest.raises(KeyError), calls.call("judge"):
        assert [call.role for call in calls.calls] == ["target", "judge"]
        raise KeyError
    assert calls.calls == []


def test_the_file_is_bounded_holds_no_key_and_a_full_disk_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(live, "EVERY_S", 0.001)
    with Run.open(tmp_path) as run:
        run.put("a", "rollout", Paid(1, Usage()))
        contexts = [run.under_way.call("target") for _ in range(3 * live.MOST_CALLS)]
        for context in contexts:
            context.__enter__()
        with patch.object(live, "write_atomic", side_effect=OSError(28, "No space left on device")):
            board = live.Live(run)
            board.hear("step", {"step": 2, "steps": 9})
            board.hear("interim", {"look": 1, "n": 8, "p_better": 0.8, "gain": 0.1, "sd": 0.05})
            board.close()
        assert (board.state()["step"], board.state()["race"]["p_better"]) == (2, 0.8)
        board.hear("verdict", {})
        assert board.state()["race"] is None
        assert board.state()["calls"] == 3 * live.MOST_CALLS
        assert len(board.state()["in_flight"]) == live.MOST_CALLS
        assert "sk-secret" not in json.dumps(board.state())
        for context in contexts:
            context.__exit__(None, None, None)
        assert board.state()["in_flight"] == []
