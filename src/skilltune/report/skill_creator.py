"""A run as a workspace of Anthropic's skill-creator, so that its viewer and its aggregation script open it.

    NAME-workspace/iteration-N/
      benchmark.json
      eval-1/eval_metadata.json
      eval-1/with_skill/run-1/{grading.json, timing.json, outputs/answer.md}
      eval-1/without_skill/run-1/…

Schemas: references/schemas.md of skill-creator (github.com/anthropics/skills). The two configurations are the trained
and the input skill, called with_skill and without_skill where the input is empty, else new_skill and old_skill.
A rollout without a score is not an answer: it is left out and counted in the notes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from skilltune.errors import UsageError
from skilltune.export import unfinished
from skilltune.files import write_atomic
from skilltune.finish.records import Finish
from skilltune.journal.run import Run
from skilltune.rollout import Rollout, rollout_from_json
from skilltune.skill import Skill

Graded = tuple[str, Rollout]  # configuration, scored rollout


def export_workspace(run: Run, out: Path) -> Path:
    """Write the next free iteration of NAME-workspace below `out` and return its folder.

    The samples are those of the `test` split where the certificate has measured both skills on it, else of `select`.
    Raises UsageError for a run that has not finished.
    """
    finished = run.events("finish")
    if not finished:
        raise UsageError(unfinished(run))
    t, _, data = finished[-1]
    end = Finish.from_json(data)
    split = "test" if end.certificate else "select"
    graded, unscored = _graded(run, end.start, end.best, split)
    workspace = out / f"{end.name}-workspace"
    number = 1 + max((int(p.name[10:]) for p in workspace.glob("iteration-*") if p.name[10:].isdecimal()), default=0)
    folder = workspace / f"iteration-{number}"
    config = run.config or {}
    score = _scorer(config)
    try:
        for i, (sample, rollouts) in enumerate(graded.items(), 1):
            _write_eval(folder / f"eval-{i}", i, sample, rollouts, score)
        benchmark = _benchmark(end.name, config, graded, t, split, unscored)
        write_atomic(folder / "benchmark.json", _json(benchmark))
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _graded(run: Run, start: str, best: str, split: str) -> tuple[dict[str, list[Graded]], int]:
    """The scored rollouts of both skills by sample, the trained skill's first, and how many others were left out."""
    samples = (run.recall("split") or ({},))[0].get(split, [])
    text = (run.blob(start) or b"").decode("utf-8", "replace")
    new, old = ("new_skill", "old_skill") if Skill(text).body.strip() else ("with_skill", "without_skill")
    names = {start: old, best: new}  # one and the same skill is the trained one
    found: defaultdict[str, list[Graded]] = defaultdict(list)
    for _, value, _ in run.each_memo("rollout"):
        rollout = rollout_from_json(value)
        if rollout.skill in names and rollout.score is not None:
            found[rollout.sample].append((names[rollout.skill], rollout))
    graded = {name: sorted(found[name], key=lambda g: (g[0], g[1].attempt)) for name in samples if name in found}
    return graded, len(samples) * len(names) - sum(len({c for c, _ in part}) for part in graded.values())


def _write_eval(folder: Path, number: int, sample: str, graded: Sequence[Graded], score: str) -> None:
    prompt = next((turn.text for turn in graded[0][1].trajectory.turns if turn.role == "user"), "")
    metadata = {"eval_id": number, "eval_name": sample, "prompt": prompt, "assertions": [score]}
    write_atomic(folder / "eval_metadata.json", _json(metadata))
    for configuration, rollout in graded:
        place = folder / configuration / f"run-{rollout.attempt + 1}"
        write_atomic(place / "outputs" / "answer.md", rollout.answer)
        write_atomic(place / "grading.json", _json(_grading(rollout, score)))
        seconds, tokens = rollout.trajectory.seconds, rollout.trajectory.usage.tokens
        timing = {"total_tokens": tokens, "duration_ms": round(1000 * seconds), "total_duration_seconds": seconds}
        write_atomic(place / "timing.json", _json(timing))


def _grading(rollout: Rollout, score: str) -> dict[str, Any]:
    """grading.json: our one score as one expectation, its reason as the evidence; `pass_rate` keeps partial scores."""
    assert rollout.score is not None
    passed = int(rollout.score.hard)
    transcript = sum(len(turn.text) for turn in rollout.trajectory.turns)
    return {
        "expectations": [{"text": score, "passed": bool(passed), "evidence": rollout.score.why}],
        "summary": {"passed": passed, "failed": 1 - passed, "total": 1, "pass_rate": rollout.score.value},
        "execution_metrics": {
            "tool_calls": {},
            "total_tool_calls": sum(turn.role == "tool" for turn in rollout.trajectory.turns),
            "total_steps": sum(turn.role == "assistant" for turn in rollout.trajectory.turns),
            "errors_encountered": 0,
            "output_chars": len(rollout.answer),
            "transcript_chars": transcript,
        },
        "timing": {
            "executor_duration_seconds": rollout.trajectory.seconds,
            "total_duration_seconds": rollout.trajectory.seconds,
        },
    }


def _benchmark(
    name: str, config: Mapping[str, Any], graded: Mapping[str, Sequence[Graded]], t: float, split: str, unscored: int
) -> dict[str, Any]:
    score = _scorer(config)
    runs = [
        {
            "eval_id": i,
            "eval_name": sample,
            "configuration": configuration,
            "run_number": rollout.attempt + 1,
            "result": _result(rollout, score),
            "expectations": _grading(rollout, score)["expectations"],
            "notes": [],
        }
        for i, (sample, part) in enumerate(graded.items(), 1)
        for configuration, rollout in part
    ]
    target, optimizer = (config.get(role, {}).get("model", "") for role in ("target", "optimizer"))
    notes = [f"Samples of the {split} split. The certificate of the run, not this mean, says what may be claimed."]
    if unscored:
        notes.append(f"{unscored} answers could not be had or scored; they are left out, not counted as failures.")
    return {
        "metadata": {
            "skill_name": name,
            "skill_path": config.get("skill", ""),
            "executor_model": target,
            "analyzer_model": optimizer or target,
            "timestamp": datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "evals_run": list(range(1, len(graded) + 1)),
            "runs_per_configuration": max((run["run_number"] for run in runs), default=0),
        },
        "runs": runs,
        "run_summary": _summary(runs),
        "notes": notes,
    }


def _result(rollout: Rollout, score: str) -> dict[str, Any]:
    return {
        **_grading(rollout, score)["summary"],
        "time_seconds": rollout.trajectory.seconds,
        "tokens": rollout.trajectory.usage.tokens,
        "tool_calls": sum(turn.role == "tool" for turn in rollout.trajectory.turns),
        "errors": 0,
    }


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and range per configuration, and their difference as skill-creator writes it."""
    summary: dict[str, Any] = {}
    for configuration in sorted({run["configuration"] for run in runs}):
        results = [run["result"] for run in runs if run["configuration"] == configuration]
        summary[configuration] = {
            key: _statistics([float(result[key]) for result in results])
            for key in ("pass_rate", "time_seconds", "tokens")
        }
    if len(summary) == 2:
        new, old = summary.values()
        digits = {"pass_rate": 2, "time_seconds": 1, "tokens": 0}
        delta = {key: f"{new[key]['mean'] - old[key]['mean']:+.{n}f}" for key, n in digits.items()}
        summary["delta"] = delta
    return summary


def _statistics(values: Sequence[float]) -> dict[str, float]:
    spread = stdev(values) if len(values) > 1 else 0.0
    numbers = {"mean": fmean(values), "stddev": spread, "min": min(values), "max": max(values)}
    return {key: round(number, 4) for key, number in numbers.items()}


def _scorer(config: Mapping[str, Any]) -> str:
    score = config.get("env", {}).get("score", "")
    return f"The scorer accepts the answer: {score if isinstance(score, str) else json.dumps(score)}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
