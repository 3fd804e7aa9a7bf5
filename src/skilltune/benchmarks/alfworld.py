"""ALFWorld: household tasks as text games of the TextWorld engine. Any other TextWorld games can be played too."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Source, missing, text
from skilltune.benchmarks.games import STATE, Games, textworld_engine
from skilltune.benchmarks.rows import files_below, json_document
from skilltune.envs import Env
from skilltune.errors import NotGraded, UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample, SplitName
from skilltune.scorers.python import function_fingerprint
from skilltune.scorers.scorer import Scorer

STEPS = 50
HOUSEHOLD = "game.tw-pddl"  # a game of ALFWorld; its folder names the task
_HOST = "https://github.com/alfworld/alfworld/releases/download"
_GAMES = (".z8", ".ulx")
_SPLITS: Mapping[str, SplitName] = {"train": "train", "valid_seen": "select", "valid_unseen": "test"}
_UNSUPPORTED = ("movable", "Sliced")  # tasks that the engine of ALFWorld leaves out


def make(place: Path, variant: str, draw: Draw) -> Env:
    return environment(place.resolve(), draw, None)


def environment(place: Path, draw: Draw, engine: tuple[str, ...] | None) -> Env:
    """The games below a folder. `engine` plays them in place of TextWorld."""
    files: dict[str, Path] = {}
    left_out: list[str] = []
    samples = draw(_samples(place, files, left_out))
    if not samples and left_out:
        raise UsageError(
            f"bench:alfworld: no game in {place} can be used: {len(left_out)} cannot be won or are not supported "
            f"(first: {left_out[0]})"
        )
    if not samples:
        raise missing("alfworld", place, f"a game ({HOUSEHOLD} or *{' or *'.join(_GAMES)})")
    if engine is None:
        _require_engine([files[sample.id] for sample in samples])
    scorer = Scorer(
        "alfworld",
        function_fingerprint(grade),
        grade,
        lambda sample: "",
        describe=lambda sample: [f"the game is won within {STEPS} steps"],
    )
    games = Games(engine or textworld_engine(), {sample.id: files[sample.id] for sample in samples}, STEPS)
    prompt = text("alfworld", "prompt.md").rstrip().replace("{steps}", str(STEPS))
    made = Env(samples, scorer, prompt=prompt, root=place, tools=games)
    if left_out:
        made.remarks.append(
            f"{len(left_out)} games cannot be won or are not supported, and are left out (first: {left_out[0]})"
        )
    return made


def _samples(place: Path, files: dict[str, Path], left_out: list[str]) -> Iterator[Sample]:
    """The games in the order of their paths. Their files go to `files`, by id."""
    for path in files_below(place, HOUSEHOLD, *(f"*{suffix}" for suffix in _GAMES)):
        name = str(
            path.relative_to(place).with_suffix("") if path.name != HOUSEHOLD else path.parent.relative_to(place)
        )
        kind = path.stem
        if path.name == HOUSEHOLD:
            if any(mark in name for mark in _UNSUPPORTED) or not _member(json_document(path), "solvable"):
                left_out.append(name)
                continue
            told = path.with_name("traj_data.json")
            kind = str(_member(json_document(told), "task_type") or "") if told.is_file() else name.partition("-")[0]
        files[name] = path
        yield Sample(
            id=name,
            input=kind.replace("_", " "),
            split=next((_SPLITS[part] for part in path.relative_to(place).parts if part in _SPLITS), None),
            metadata={"task_type": kind, "game": str(path.relative_to(place))},
        )


def _member(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, dict) else None


def _require_engine(games: list[Path]) -> None:
    needed = ["textworld"]
    if any(game.name == HOUSEHOLD for game in games):
        needed += ["alfworld", "fast_downward"]
    if lacking := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UsageError(f'bench:alfworld needs the package {lacking[0]}: pip install "skilltune[alfworld]"')


def grade(sample: Sample, rollout: Rollout) -> Score:
    """1 if the game was won. The game itself says so; no text of the target counts."""
    if rollout.empty:
        return Score(0.0, "no game was played", soft=0.0)
    if STATE not in rollout.artifacts:
        raise NotGraded(f'sample "{sample.id}": no game was played', systemic="the target does not play the game")
    state = json.loads(rollout.artifact(STATE))
    most, steps = state["most"], state["steps"]
    points = f", {state['score']} of {most} points" if most > 1 else ""
    how = "won" if state["won"] else "lost" if state["lost"] else "not won"
    soft = 1.0 if state["won"] else min(1.0, max(0.0, state["score"] / most)) if most > 1 else 0.0
    return Score(float(state["won"]), f"the game was {how} after {steps} steps{points}", soft, {"steps": float(steps)})


ALFWORLD = Benchmark(
    name="alfworld",
    title="ALFWorld, household tasks as text games",
    make=make,
    splits=(39, 18, 134),
    source="https://github.com/alfworld/alfworld",
    licence="MIT",
    hard=Metric("won", f"the game is won within {STEPS} steps"),
    soft=Metric("won", "the same; a game that counts points gives their share"),
    others=(Metric("steps", "commands of the game"),),
    files=(
        Source(
            "json_2.1.1_json.zip",
            f"{_HOST}/0.2.2/json_2.1.1_json.zip",
            unpack=True,
        ),
        Source(
            "json_2.1.2_tw-pddl.zip",
            f"{_HOST}/0.4.0/json_2.1.2_tw-pddl.zip",
            unpack=True,
        ),
    ),
    needs="alfworld",
    settings=text("alfworld", "settings.toml"),
    traps=(
        "The verbs differ between versions of the games (put X in Y, move X to Y), so the commands come from the game.",
        "A failure of the engine is a failure of the rollout, and not the command look, as in some published runners.",
        "Each game is a process of its own; published runners step through games together, and one waits for all.",
        "The games of train, valid_seen and valid_unseen are train, select and test samples.",
    ),
)
