"""Journals as training writes them, made without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skilltune.journal.keys import digest
from skilltune.journal.run import Paid, Run
from skilltune.rollout import Rollout, Score, Trajectory, Turn, rollout_to_json
from skilltune.skill import Skill
from skilltune.usage import Usage

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' --> <!-- ]]> &amp; {{main}} </pre></details>"
    "\x00\x1b[31m \u202eesrever\u202c \ud800 שלום \u200b `x` | https://example.com\u2028end"
)


def rolled(skill: Skill, sample: str, value: float, text: str = "an answer", why: str = "because") -> dict[str, Any]:
    trajectory = Trajectory(text, (Turn("user", text), Turn("assistant", text)), usage=Usage(1, 10, 5))
    return rollout_to_json(Rollout(sample, skill.hash, 0, trajectory, Score(value, why)))


def a_run(
    folder: Path, texts: list[str], samples: dict[str, list[str]], text: str = "an answer", finish: bool = True
) -> Run:
    """A journal as training writes it: every version on every sample, the first wrong and all others right."""
    run = Run.open(folder, {"skill": "SKILL.md", "seed": 1, "preset": "default", "target": {"model": text}})
    run.decide("split", lambda: samples)
    skills = [Skill(each) for each in texts]
    run._db.execute("BEGIN")  # thousands of rows at once
    for number, skill in enumerate(skills):
        run.put_blob(skill.hash, skill.text.encode("utf-8", "surrogatepass"))
        for sample in (sample for part in samples.values() for sample in part):
            value = rolled(skill, sample, float(number > 0), text, text)
            run.put(digest(number, sample), "rollout", Paid(value, Usage(1, 10, 5)))
    run.record("start", skill=skills[0].hash, score=0.0, score_sd=0.01, select=len(samples["select"]))
    for number, skill in enumerate(skills[1:], start=1):
        edit = {"op": "replace", "after": None, "target": text, "text": text, "why": text}
        edit["evidence"] = [{"sample": sample, "quote": text} for sample in samples["train"][:2]]
        run.record(
            "verdict",
            **{"accepted": True, "reason": text, "score": 0.9, "score_sd": 0.02, "skill": skill.hash},
            **{"candidate": skill.hash, "before": 0.0, "after": 1.0, "step": number, "epoch": 1, "lr": 4},
            version=number,
            differences=dict.fromkeys(samples["select"], 1.0),
            edits=[{**edit, "status": "applied", "match": "exact", "reason": "", "removed": text, "inserted": text}],
            rejected=[{"edit": {**edit, "op": "delete"}, "reason": text}],
            numbers={},
        )
    run._db.execute("COMMIT")
    if finish:
        hashes = {"start": skills[0].hash, "best": skills[-1].hash}
        run.record("finish", name=text, exit_code=0, **hashes, versions=[], certificate=None, stopped=None)
    return run


def splits(n: int, prefix: str = "s") -> dict[str, list[str]]:
    return {name: [f"{prefix}-{name}-{i}" for i in range(n)] for name in ("train", "select", "test")}
