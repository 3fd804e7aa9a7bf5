"""Inspect tasks as environments: `inspect:FILE.py@TASK`.

The samples are the task's. Its solver and its scorer run together in Inspect (`targets.inspect`), so a score comes with
the rollout: the target keeps the evaluation's result in `Trajectory.stream`, and this environment reads it there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from skilltune.config import TargetConfig
from skilltune.envs.inspect.process import GRACE_S, ask_once
from skilltune.envs.recorded import RecordedEnv
from skilltune.errors import JudgeError, NotGraded, UsageError
from skilltune.journal.keys import digest
from skilltune.names import TaskName
from skilltune.rollout import Rollout, Score
from skilltune.samples import ChatTurn, Sample
from skilltune.scorers import Scorer
from skilltune.scorers.reading import nearest, quote

TIMEOUT_S = 900.0  # of a rollout, if target.timeout_s is not set
_LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}  # correct, incorrect, partial, no answer
_WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


@dataclass(frozen=True, slots=True)
class InspectTask:
    """A task in its file. `code` identifies everything that evaluates a sample: the file, the modules of its folder
    that it imports, and Inspect's version. `digests` maps the id of each sample to its content."""

    file: Path
    task: str
    code: str
    digests: Mapping[str, str]


class InspectEnv(RecordedEnv):
    """The samples of an Inspect task, and one of its scorers."""

    def __init__(self, task: InspectTask, samples: list[Sample], scorer: str, key: str, notes: list[str]) -> None:
        name = f"{scorer}/{key}" if key else scorer
        score = partial(score_of, scorer=scorer, key=key)
        made = Scorer(f"inspect:{name}", digest("inspect scorer", task.code, name), score, custom=True)
        super().__init__(samples, made, task.file.parent, notes)
        self.task_file = task


def load_inspect(name: TaskName, root: Path, score: str | None = None, *, timeout_s: float = TIMEOUT_S) -> InspectEnv:
    """The environment that a name means. A relative file starts at `root`. `timeout_s` is the time to load the task.

    `score` chooses one of the task's scorers, `NAME` or `NAME/KEY` for one value of several. By default it is the first
    one and its first key. Raises `UsageError` if Inspect is not installed, or if the task cannot be used.
    """
    file = (root / Path(name.path).expanduser()).resolve()
    try:
        told = ask_once({"do": "load", "file": str(file), "task": name.task}, timeout_s + GRACE_S)
    except UsageError as error:
        raise UsageError(f"`{name}` in {file.parent}: {error}") from None
    if why := told.get("unusable") or told.get("error"):
        raise UsageError(f"`{name}` in {file.parent}: {why}")
    scorer, key, notes = _chosen(told["scorers"], score)
    code = digest("inspect task", name.task, told["code"], told["version"])
    samples = [_sample(row) for row in told["samples"]]
    digests = {row["id"]: row["digest"] for row in told["samples"]}
    return InspectEnv(InspectTask(file, name.task, code, digests), samples, scorer, key, notes)


def time_limit(cfg: TargetConfig) -> float:
    """The seconds of one rollout, and of loading the task: `target.timeout_s`, whose default is for one call only."""
    return cfg.timeout_s if "timeout_s" in cfg.model_fields_set else TIMEOUT_S


def _sample(row: Mapping[str, Any]) -> Sample:
    asked, target = row["input"], row["target"]
    if not isinstance(asked, str):  # messages of tools are left out here, because our samples cannot hold them
        asked = tuple(ChatTurn(**turn) for turn in asked if turn["role"] in ("system", "user", "assistant"))
    return Sample(id=row["id"], input=asked, target=target or None, metadata=row["metadata"])


def _chosen(scorers: list[dict[str, Any]], asked: str | None) -> tuple[str, str, list[str]]:
    """(scorer, key, notes). Raises `UsageError` for a scorer that the task does not have."""
    names = {scorer["name"]: scorer["keys"] for scorer in scorers}
    name, _, key = (asked or next(iter(names))).partition("/")
    if name not in names:
        raise UsageError(
            f"env.score: the task has no scorer {quote(name)}{nearest(name, names)}; it has: {', '.join(names)}"
        )
    key = key or next(iter(names[name]), "")
    others = [f"{other}/{k}" if k else other for other, keys in names.items() for k in keys or [""]]
    chosen = f"{name}/{key}" if key else name
    if asked or others == [chosen]:
        return name, key, []
    return name, key, [f"the task has the scores {', '.join(others)}; {chosen} counts; env.score names another"]


# -- the score of an evaluation


def score_of(sample: Sample, rollout: Rollout, *, scorer: str, key: str) -> Score:
    """The score that Inspect gave. Raises `JudgeError` if it gave none that lies in [0, 1]."""
    if rollout.trajectory.stream is None:
        raise NotGraded("an Inspect task scores only what its own evaluation has made")
    given = json.loads(rollout.trajectory.stream.read())["scores"]
    if scorer not in given:
        raise JudgeError(f"Inspect gave no score of {scorer}", systemic=f"the scorer {scorer} gives no score")
    score = given[scorer]
    value, name = score["value"], scorer
    if isinstance(value, Mapping):
        key = key or next(iter(value), "")
        if key not in value:
            raise JudgeError(
                f"the scorer {scorer} gave no value {quote(key)}; it gave: {', '.join(value) or 'nothing'}",
                systemic=f"the scorer {scorer} gives no value {key}: name another in env.score",
            )
        value, name = value[key], f"{scorer}/{key}"
    number = number_of(value)
    if number is None:
        raise NotGraded(f"the scorer {name} gave no score{_because(score)}")
    if not 0.0 <= number <= 1.0:
        raise JudgeError(
            f"the scorer {name} gave {quote(str(value))}, and a score is C, P, I, N, true, false or a number from 0 to "
            "1: let the task's scorer return one of these",
            systemic=f"the scorer {name} gives values that are not between 0 and 1",
        )
    said = f"{name}: {value}{_because(score)}"
    answer = score.get("answer")
    return Score(number, f"{said}; read as the answer: {quote(answer)}" if answer else said)


def _because(score: Mapping[str, Any]) -> str:
    return f" ({score['explanation']})" if score.get("explanation") else ""


def number_of(value: Any) -> float | None:
    """The number that a value of Inspect's means; None if it was not scored, and NaN if it means none."""
    if value is None:
        return None
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        return math.nan
    known = _LETTERS.get(value, _WORDS.get(value.lower()))
    if known is not None:
        return known
    try:
        return float(value)
    except ValueError:
        return math.nan


__all__ = ["InspectEnv", "InspectTask", "load_inspect", "number_of", "score_of", "time_limit"]
