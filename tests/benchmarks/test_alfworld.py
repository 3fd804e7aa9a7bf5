"""Text games: one process each, an engine that fails is no observation, and only the game says that it is won."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from skilltune import Env, Rollout, benchmarks
from skilltune.benchmarks import Draw
from skilltune.benchmarks import games as module
from skilltune.benchmarks.alfworld import HOUSEHOLD, environment
from skilltune.benchmarks.games import STATE, Game
from skilltune.benchmarks.textworld_engine import plain
from skilltune.build import build_parts
from skilltune.config import make_config
from skilltune.errors import InfraError, NotGraded, UsageError
from skilltune.journal.run import Run
from skilltune.rollout import Artifact, Trajectory
from skilltune.skill import Skill
from upstream import Asked, Call, Turn, Upstream

pytestmark = pytest.mark.anyio

ENGINE = """
import json, os, sys, time
game = json.loads(open(sys.argv[1]).read())
lit, said = False, "A dark room. Your task is to: light the lamp."
while True:
    commands = ["look", *([] if lit else ["rub lamp"]), *game.get("more", [])]
    told = {"text": said, "goal": "light the lamp", "commands": commands, "won": lit, "lost": False}
    print(json.dumps(told | {"score": 0, "most": 0}), flush=True)
    line = sys.stdin.readline()
    if not line:
        break
    command = line.strip()
    with open(game["log"], "a") as log:
        log.write(f"{os.getpid()} {command} {os.environ.get('OPENAI_API_KEY')}\\n")
    if command == "crash":
        sys.exit("segmentation fault")
    if command == "hang":
        time.sleep(60)
    if command == "babble":
        print("Oops", flush=True)
    lit = lit or command == "rub lamp"
    said = "The lamp shines." if lit else "It is dark."
"""


def place(folder: Path, *names: str, more: tuple[str, ...] = ()) -> tuple[Path, tuple[str, ...]]:
    """A folder of games, and the engine that plays them."""
    (folder / "engine.py").write_text(ENGINE)
    for name in names:
        path = folder / "games" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"log": str(folder / "log.txt"), "more": more, "solvable": True}))
    return folder / "games", (sys.executable, "-S", str(folder / "engine.py"))


def games(folder: Path, *names: str, more: tuple[str, ...] = ()) -> Env:
    at, engine = place(folder, *(names or [f"game{n}.z8" for n in range(12)]), more=more)
    return environment(at, Draw((0, 0, 0)), engine)


def test_a_hidden_folder_holds_no_games(tmp_path: Path) -> None:
    shown = games(tmp_path, "game1.z8", ".unpacking/game1.z8", "valid_seen/.cache/game2.z8", ".game3.z8")
    assert [sample.id for sample in shown.samples] == ["game1"]


def rolled(env: Env, left: Any, number: int = 0) -> Rollout:
    files = {} if left is None else {STATE: Artifact.of(json.dumps(left).encode())}
    return Rollout(env.samples[number].id, "", 0, Trajectory("I won!", artifacts=files), None)


async def test_models_play_games_of_their_own_and_the_game_says_who_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    env = games(tmp_path)

    def script(asked: Asked) -> Turn:
        wins = "game1)" in asked.raw.decode()
        steps = ["Rub  LAMP"] if wins else ["save", "look"]
        return Turn("I won!", calls=(Call("act", {"command": steps[min(asked.results, len(steps) - 1)]}),))

    async with Upstream(script) as server:
        target = {"model": f"openai@{server.url}/v1/m", "max_turns": 3}
        cfg = make_config({"target": target, "optimizer": {"model": f"openai@{server.url}/v1/m"}})
        run = Run.open(tmp_path / "run")
        parts = build_parts(cfg, run, tmp_path, env=env, skill=Skill("Rub it."))
        try:
            played = {sample.id: sample for sample in env.samples}
            lost, won = await parts.roll(Skill("Rub it."), [played["game0"], played["game1"]])
        finally:
            await parts.aclose()
            run.close()
    assert [rollout.score and rollout.score.value for rollout in (lost, won)] == [0.0, 1.0]
    assert won.outcome == "ok"
    assert lost.outcome == "agent_limit"
    first = won.trajectory.turns[0].text
    assert "Your task is to: light the lamp.\n\nAdmissible commands: look, rub lamp\nSteps left: 50" in first
    assert [turn.text for turn in won.trajectory.turns if turn.role == "tool"] == [
        "The lamp shines.\n\nThe game is over."
    ]
    assert "'save' is no admissible command" in next(t.text for t in lost.trajectory.turns if t.role == "tool")
    assert lost.score
    assert lost.score.why == "the game was not won after 3 steps"
    log = [line.split(" ", 1) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert sorted(said for _, said in log) == ["look None", "look None", "rub lamp None"]  # the key is not passed on
    assert len({process for process, _ in log}) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [("crash", "ended by itself: segmentation fault"), ("hang", "did not answer within"), ("babble", "cannot be read")],
)
async def test_a_failure_of_the_engine_is_no_observation(
    command: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_S", 0.3)
    monkeypatch.setattr(module, "END_S", 0.2)
    env = games(tmp_path, "a.z8", more=(command,))
    game = env.tools(env.task(env.samples[0]))
    assert isinstance(game, Game)
    async with game:
        with pytest.raises(InfraError, match=words):
            for _ in range(2):
                await game.call("act", {"command": command})
    with pytest.raises(ProcessLookupError):
        os.kill(game._process.pid, 0)


async def test_an_engine_that_does_not_start_is_named(tmp_path: Path) -> None:
    at, engine = place(tmp_path, "a.z8")
    (tmp_path / "engine.py").write_text("import nothing_of_the_kind")
    env = environment(at, Draw((0, 0, 0)), engine)
    game = env.tools(env.task(env.samples[0]))
    assert game is not None
    with pytest.raises(InfraError, match="No module named 'nothing_of_the_kind'"):
        async with game:
            pass


async def test_a_cancelled_rollout_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_S", 0.2)
    env = games(tmp_path, "a.z8", more=("hang",))
    game = env.tools(env.task(env.samples[0]))
    assert isinstance(game, Game)

    async def play() -> None:
        async with game:
            await game.call("act", {"command": "hang"})

    playing = asyncio.create_task(play())
    while not (tmp_path / "log.txt").exists():
        await asyncio.sleep(0.01)
    playing.cancel()
    await asyncio.wait([playing])
    with pytest.raises(ProcessLookupError):
        os.kill(game._process.pid, 0)


async def test_a_game_is_over_after_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skilltune.benchmarks.alfworld.STEPS", 2)
    env = games(tmp_path, "a.z8")
    game = env.tools(env.task(env.samples[0]))
    assert game is not None
    async with game:
        assert game.opening.endswith("Steps left: 2")
        await game.call("act", {"command": "look"})
        assert not game.over
        assert (await game.call("act", {"command": "look"})).endswith("The game is over.")
        assert game.over
        left = json.loads(game.left()[STATE])
    score = await env.score(env.samples[0], rolled(env, left))
    assert (score.value, score.soft, score.metrics) == (0.0, 0.0, {"steps": 2.0})


async def test_points_are_partial_credit_and_a_game_that_was_not_played_is_not_graded(tmp_path: Path) -> None:
    env = games(tmp_path, "a.z8")
    state = {"won": False, "lost": True, "score": 3, "most": 4, "steps": 9}
    score = await env.score(env.samples[0], rolled(env, state))
    assert (score.value, score.soft, score.why) == (0.0, 0.75, "the game was lost after 9 steps, 3 of 4 points")
    with pytest.raises(NotGraded):
        await env.score(env.samples[0], rolled(env, None))
    assert await env.validate() == []


def test_the_games_of_alfworld_are_read_from_their_folders(tmp_path: Path) -> None:
    made = ("train", "look_at_obj", "t1"), ("valid_seen", "pick", "t1"), ("valid_unseen", "pick_two", "t9")
    paths = [f"json_2.1.1/{split}/{kind}-Mug-None-Desk-308/{trial}/{HOUSEHOLD}" for split, kind, trial in made]
    more = [f"json_2.1.1/train/{name}/t/{HOUSEHOLD}" for name in ("pick-movable_recep", "pick-AppleSliced", "hard-X")]
    at, engine = place(tmp_path, *paths, *more)
    (at / more[-1]).write_text('{"solvable": false}')
    (at / paths[0]).with_name("traj_data.json").write_text('{"task_type": "look_at_obj_in_light"}')
    env = environment(at, Draw((0, 0, 0)), engine)
    found = {sample.split: sample for sample in env.samples}
    assert found.keys() == {"train", "select", "test"}
    assert found["train"].input == "look at obj in light"
    assert "3 games cannot be won or are not supported" in "\n".join(env.notes())
    assert "Mug" not in env.task(found["test"]).messages[0].text  # the folder's name gives the goal away


def test_a_folder_without_games_and_a_missing_engine_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(benchmarks.Missing, match="skilltune data fetch alfworld"):
        benchmarks.load("bench:alfworld", tmp_path)
    (tmp_path / "a.z8").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"skilltune\[alfworld\]"):
        benchmarks.load("bench:alfworld", tmp_path)


def test_banner_prompt_and_status_of_the_engine_are_left_out() -> None:
    text = "\n\n  ____\n |  \\\\ $$\n\nGet ready!\r\n\n-= Attic =-\nA lamp.\n\n>      -= Attic =-0/1"
    assert plain(text) == "Get ready!\n\n-= Attic =-\nA lamp."


@pytest.mark.slow
async def test_games_made_by_textworld_are_won_by_the_commands_that_they_admit() -> None:
    """SKILLTUNE_GAMES names a folder of games made by tw-make, each with its NAME.json, which holds the solution."""
    pytest.importorskip("textworld")
    if not (folder := os.environ.get("SKILLTUNE_GAMES")):
        pytest.skip("SKILLTUNE_GAMES names no folder of games")
    env = benchmarks.load("bench:alfworld", Path(folder))
    for number, sample in enumerate(env.samples):
        told = json.loads((Path(folder) / f"{sample.id}.json").read_text())
        game = env.tools(env.task(sample))
        assert game is not None
        async with game:
            for command in told["metadata"]["walkthrough"]:
                assert "no admissible command" not in await game.call("act", {"command": command})
            left = json.loads(game.left()[STATE])
        assert (await env.score(sample, rolled(env, left, number))).value == 1.0
