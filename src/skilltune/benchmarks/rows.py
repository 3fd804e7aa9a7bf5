"""Reads the files of benchmarks row by row, and makes scorers of plain functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.python import function_fingerprint
from skilltune.scorers.scorer import Scorer, first_target

Row = tuple[str, dict[str, Any]]
"""A place such as "train.jsonl:12", and the object that stands there."""


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one line at a time. Raises UsageError with the line of a fault."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def json_document(path: Path) -> Any:
    """The content of a JSON file. Raises UsageError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def text_of(row: Any, key: str, where: str) -> str:
    """A text of a row that must not be empty. Raises UsageError with its place."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f'{where}: "{key}" must be a text, not {json.dumps(value)[:80]}: is this file another one?')
    return value


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected an object, not {type(value).__name__}")
    return value


def scorer(
    name: str,
    grade: Callable[[Sample, str], Score],
    *,
    expected: Callable[[Sample], str] = first_target,
    apart: bool = False,
) -> Scorer:
    """A scorer of the answer. `apart` is for a slow one: it runs in a thread of its own and has a time limit.

    `grade` is called only with an answer that is not empty: an empty one scores 0.
    """

    def score(sample: Sample, rollout: Rollout) -> Score:
        if not rollout.answer.strip():
            return Score(0.0, "the answer is empty", soft=0.0)
        return grade(sample, rollout.answer)

    def describe(sample: Sample) -> list[str]:
        return [f"{name}: expects {expected(sample)[:400]}"]

    return Scorer(name, function_fingerprint(grade), score, expected, apart=apart, describe=describe)
