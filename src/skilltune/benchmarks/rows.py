"""Reads the files of benchmarks row by row, and makes scorers of plain functions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from skilltune.envs.formats.huggingface import pyarrow_for
from skilltune.errors import UsageError
from skilltune.files import is_blank
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.python import function_fingerprint
from skilltune.scorers.scorer import Scorer, first_target

Row = tuple[str, dict[str, Any]]
"""A place such as "train.jsonl:12", and the object that stands there."""

OTHER_FILE = "is this file another one?"
ANOTHER_COPY = "delete it and fetch it again, or name another copy with --data PATH (env.data)"


def files_below(place: Path, *patterns: str) -> list[Path]:
    """The files below a folder whose names match one of the patterns, sorted. Hidden files and folders are left out:
    an archive that is being unpacked is in one."""
    found = list[Path]()
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith(".")]
        shown = [name for name in names if not name.startswith(".")]
        found += [Path(folder, name) for name in shown if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return sorted(found)


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one line at a time. Raises UsageError with the line of a fault, or if there is
    none."""
    _require_content(path)
    with _reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _object(line, f"{path}:{number}")


def json_document(path: Path) -> Any:
    """The content of a JSON file. Raises UsageError."""
    _require_content(path)
    with _reading(path):
        return json.loads(path.read_text(encoding="utf-8-sig"))


def json_list(path: Path, key: str = "") -> Iterator[Row]:
    """The objects of a JSON file that is a list, or an object with a list under `key`; each with its place. Raises
    UsageError for anything else, and for an empty list."""
    rows = json_document(path)
    if key:
        rows = rows.get(key) if isinstance(rows, dict) else None
    if not isinstance(rows, list):
        kind = f'an object with a list "{key}"' if key else "a list"
        raise UsageError(f"{path}: expected {kind}: {OTHER_FILE}")
    if not rows:
        raise UsageError(f"{path}: its list of items is empty: {ANOTHER_COPY}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}, item {number}: expected an object, not {type(row).__name__}: {OTHER_FILE}")
        yield f"{path}, item {number}", row


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file, each with the number of its line. Raises UsageError if it lacks one of the columns, and
    if it has no rows."""
    _require_content(path)
    with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows, row = csv.DictReader(file), None
        if lacking := [name for name in columns if name not in (rows.fieldnames or ())]:
            raise UsageError(f"{path}:1: no column {', '.join(lacking)}: {OTHER_FILE}")
        for row in rows:
            yield f"{path}:{rows.line_num}", row
        if row is None:
            raise UsageError(f"{path} has no row below its header: {ANOTHER_COPY}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a UsageError that names it."""
    try:
        yield
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"cannot read {path}: {error}") from None


def _require_content(path: Path) -> None:
    with _reading(path):
        if is_blank(path):
            raise UsageError(f"{path} is empty: {ANOTHER_COPY}")


def text_of(row: Any, key: str, where: str) -> str:
    """A text of a row that must not be empty. Raises UsageError with its place."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f'{where}: "{key}" must be a text, not {json.dumps(value)[:80]}: {OTHER_FILE}')
    return value


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a parquet file with those of the columns that it has; other columns are not read. Raises
    UsageError."""
    _require_content(path)
    pyarrow = pyarrow_for(str(path))
    try:
        with path.open("rb") as raw:
            file = pyarrow.parquet.ParquetFile(raw)
            if not file.metadata.num_rows:
                raise UsageError(f"{path} has no rows: {ANOTHER_COPY}")
            known = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=known):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def parquet_values(path: Path, column: str, rows: Set[int]) -> Iterator[tuple[int, Any]]:
    """The values of a column in some rows, counted from 1. Row groups without such a row are not read."""
    pyarrow = pyarrow_for(str(path))
    try:
        with path.open("rb") as raw:
            file, first = pyarrow.parquet.ParquetFile(raw), 1
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                wanted = sorted(row for row in rows if first <= row < first + size)
                if wanted:
                    values = file.read_row_group(group, columns=[column]).column(column)
                    yield from ((row, values[row - first].as_py()) for row in wanted)
                first += size
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read the column {column} of {path}: {error}") from None


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
