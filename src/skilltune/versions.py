"""Record verdicts and accepted skills as events and files of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from skilltune.finish.records import Start
from skilltune.finish.reselect import Reselection
from skilltune.journal.run import Run
from skilltune.optimizer import Step
from skilltune.parts import Parts
from skilltune.rollouts.inputs import require_unchanged
from skilltune.skill import Skill
from skilltune.stats import standard_error
from skilltune.verdict import Verdict


def record_start(s: Parts, skill: Skill, score: float | None) -> None:
    """Record the input as version 0, with its score on `select` and that score's standard error.

    From now on the scorer and the prompt must not change: raises `RunError` if they did.
    """
    scores = [value for (text, _, _), value in s.arena.scores.on("select").items() if text == skill.hash]
    start = Start(skill.hash, score, standard_error(scores), len(s.splits.select))
    level = {"skill": start.skill, "score": start.score, "score_sd": start.score_sd}
    _write(s.run, 0, skill, {"version": 0, **level, "reason": "the input"})
    s.run.record("start", **start.to_json())
    require_unchanged(s.run, "env", "the scorer or the prompt", s.env.fingerprint)


def record_verdict(s: Parts, step: Step, verdict: Verdict, limit: int, version: int) -> None:
    """Record a verdict: an event with all its figures and, if it accepts, the files of the new version."""
    if verdict.candidate is not None:
        _keep(s.run, verdict.candidate)
    data = verdict.to_json() | {"step": step.index, "epoch": step.epoch, "lr": limit, "version": version}
    if verdict.accepted:
        _write(s.run, version, verdict.skill, data)
    s.run.record("verdict", **data)


def record_choice(s: Parts, chosen: Reselection, version: int) -> None:
    """Record the final choice: an event and, if a rejected candidate was chosen, the files of its new version."""
    data = chosen.to_json()
    if chosen.best.version is None:
        data["version"] = version
        _write(s.run, version, chosen.best.skill, data)
    s.run.record("reselection", **data)


def _write(run: Run, number: int, skill: Skill, verdict: Mapping[str, Any]) -> None:
    folder = f"versions/{number:04d}"
    _keep(run, skill)
    run.write(f"{folder}/SKILL.md", skill.text.encode("utf-8", "surrogatepass"))
    run.write(f"{folder}/verdict.json", json.dumps(verdict, indent=1, ensure_ascii=False) + "\n")


def _keep(run: Run, skill: Skill) -> None:
    run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
