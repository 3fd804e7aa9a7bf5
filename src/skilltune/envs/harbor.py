"""Harbor tasks as environments: `harbor:DIR`.

A sample is a task folder, with `task.toml` and `instruction.md`. Harbor runs and verifies it in one trial
(`targets.harbor`), so a score comes with the rollout. It is read from the trial's own result and never from the mean of
a job, which counts failed trials as 0.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from skilltune.envs.docker import no_docker
from skilltune.envs.recorded import RecordedEnv
from skilltune.errors import JudgeError, NotGraded, UsageError
from skilltune.journal.keys import digest
from skilltune.names import TaskName
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers import Scorer
from skilltune.scorers.reading import quote

INSTRUCTION, SETTINGS = "instruction.md", "task.toml"
REWARD = "reward"  # the reward of a task that gives one number


class HarborEnv(RecordedEnv):
    """The tasks of a folder. `folders` maps the id of a sample to its task folder."""

    def __init__(self, folders: Mapping[str, Path], samples: list[Sample], reward: str, root: Path) -> None:
        name = f"harbor:{reward}" if reward else "harbor"
        made = Scorer(name, digest("harbor scorer", reward), partial(score_of, reward=reward), custom=True)
        super().__init__(samples, made, root)
        self.folders = folders


def load_harbor(name: TaskName, root: Path, reward: str | None = None) -> HarborEnv:
    """The environment that a name means. A relative folder starts at `root`.

    `reward` chooses one of several rewards of a task; by default it is "reward", or the only one. Raises `UsageError`
    if Harbor or Docker is missing, or if a task cannot be read.
    """
    require_harbor(name)
    folder = (root / Path(name.path).expanduser()).resolve()
    if not folder.is_dir():
        raise UsageError(f"`{name}`: there is no folder {folder}")
    found = [path.parent for path in sorted(folder.glob(f"*/{SETTINGS}"))]
    if not found:
        raise UsageError(f"`{name}`: no folder in {folder} holds a {SETTINGS}; a Harbor data set has one folder a task")
    folders = {path.name: path for path in found}
    samples = [_sample(path) for path in found]
    return HarborEnv(folders, samples, reward or "", folder)


def require_harbor(name: TaskName) -> None:
    """Raise `UsageError` unless Harbor's command line and a Docker daemon are there."""
    if shutil.which("harbor") is None:
        raise UsageError(
            f"`{name}` needs Harbor's command line, and there is no command `harbor` on the PATH: install it with "
            "`uv tool install harbor` (it needs Python 3.12)"
        )
    if why := no_docker():
        raise UsageError(f"`{name}`: Harbor runs its tasks in Docker, and {why}")


def _sample(folder: Path) -> Sample:
    """A task. Everything in its folder decides the score, so the hash of all of it is a part of the sample."""
    steps = sorted(folder.glob(f"steps/*/{INSTRUCTION}"))
    asked = [folder / INSTRUCTION] if (folder / INSTRUCTION).is_file() else steps
    if not asked:
        raise UsageError(f"{folder} has no {INSTRUCTION}")
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    text = "\n\n".join(path.read_text(encoding="utf-8").strip() for path in asked)
    return Sample(id=folder.name, input=text, metadata={"content": content.hexdigest()})


# -- the score of a trial


def score_of(sample: Sample, rollout: Rollout, *, reward: str) -> Score:
    """The reward of a trial. Raises `JudgeError` if there is none in [0, 1]."""
    if rollout.trajectory.stream is None:
        raise NotGraded("a Harbor task scores only what its own trial has made")
    rewards = rewards_of(json.loads(rollout.trajectory.stream.read()))
    if not rewards:
        raise JudgeError("the trial has no reward", systemic="the trials have no reward: check the tasks' tests")
    key = reward or (REWARD if REWARD in rewards else next(iter(rewards)))
    if key not in rewards or (not reward and REWARD not in rewards and len(rewards) > 1):
        raise JudgeError(
            f"the trial has the rewards {', '.join(rewards)}; name one of them in env.score",
            systemic="the trials have several rewards: name one in env.score",
        )
    value = rewards[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise JudgeError(
            f"the trial's {key} is {quote(str(value))}, and a score is a number from 0 to 1",
            systemic=f"the trials' {key} is not between 0 and 1",
        )
    others = {name: float(x) for name, x in rewards.items() if name != key and isinstance(x, int | float)}
    return Score(float(value), f"{key}: {value:g}", metrics=others)


def rewards_of(trial: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rewards of a trial's result, as its verifier gave them; empty without a verification."""
    return (trial.get("verifier_result") or {}).get("rewards") or {}
