"""Reads JSON and JSONL, with the line of every sample."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skilltune.envs.formats import criteria, gbrain
from skilltune.envs.formats.reading import Reading
from skilltune.envs.formats.rows import Row
from skilltune.envs.formats.text import read_text
from skilltune.errors import UsageError
from skilltune.scorers.reading import quote

_LISTS = (  # `evals` is the key of skill-creator
    "examples",
    "samples",
    "data",
    "evals",
    "cases",
    "test_cases",
    "testcases",
    "tests",
    "items",
    "tasks",
    "questions",
)
_SPACE = re.compile(r"[ \t\n\r]*")


def line_rows(path: Path) -> Iterator[Row]:
    """JSONL: one object per line; empty lines are skipped."""
    # Split only at \n, because JSON text may contain the other characters that str.splitlines() splits at.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            gbrain.refuse_unreviewed(line, where)
            try:
                yield where, gbrain.translated(where, _json(line, path, number))
            except UsageError as error:
                yield where, error


def json_rows(path: Path, reading: Reading | None = None) -> Iterator[Row]:
    """JSON: a list of samples, or an object with one list of them, or an object that maps names to samples."""
    reading = Reading() if reading is None else reading
    text = read_text(path)
    data = _json(text, path) if text.strip() else []
    key = None
    if isinstance(data, dict):
        key = _container(data, path)
        _look_beside(data, key, path, reading)
        data = data[key]
    if not isinstance(data, list | dict):
        raise UsageError(f"{path}: expected a list of samples, found {quote(str(data))}")
    reading.evals = key == "evals" or (path.name == "evals.json" and path.parent.name == "evals")
    names = list(data) if isinstance(data, dict) else None
    items = list(data.values()) if isinstance(data, dict) else data
    line, counted = 1, 0
    for place, (row, start) in enumerate(zip(items, _item_starts(text, key), strict=False)):  # without items: no list
        line, counted = line + text.count("\n", counted, start), start
        where = f"{path}:{line}"
        if names is not None:
            row = {"id": names[place], **row}
        try:
            yield where, gbrain.translated(where, row)
        except UsageError as error:
            yield where, error


def _container(data: dict[str, Any], path: Path) -> str:
    """The key of the samples."""
    held = [name for name in _LISTS if isinstance(data.get(name), list) or _by_name(data.get(name))]
    held = [name for name in held if data[name]] or held
    if len(held) == 1:
        return held[0]
    if held:
        raise UsageError(f"{path}: {' and '.join(held)} could both be the samples: keep one of them in this file")
    if isinstance(data.get("prompts"), list | str) and "tests" in data:
        raise UsageError(f"{path}: this is a promptfoo configuration: name the file .yaml, which JSON is too")
    odd = next((name for name in _LISTS if name in data), None)
    found = f"; `{odd}` is {_kind(data[odd])}" if odd else ""
    raise UsageError(
        f"{path}: expected a list of samples, or an object with one of {', '.join(_LISTS)} as a list; "
        f"its keys are {', '.join(map(str, data)) or 'none'}{found}"
    )


def _by_name(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(row, dict) for row in value.values())


def _kind(value: Any) -> str:
    return "a mapping of names to something else than samples" if isinstance(value, dict) else quote(str(value))


def _look_beside(data: dict[str, Any], key: str, path: Path, reading: Reading) -> None:
    """Refuse criteria beside the samples that are meant for all of them; note other lists."""
    for name, value in data.items():
        if name == key:
            continue
        if criteria.looks_like_one(name, value) and name not in _LISTS:
            raise UsageError(
                f'{path}: "{name}" beside `{key}` is not read: put it into each of them, or, for all, into the score: '
                'score = {judge = "MODEL", rubric = ["…"]}'
            )
        if isinstance(value, list | dict) and value and name != "metadata":
            reading.notes[f"`{name}` beside `{key}` in {path.name} is not read"] += 1


def _json(text: str, path: Path, line: int = 0) -> Any:
    """The value of a whole file, or of one `line` of it. Raises UsageError with the line of the file."""
    where = f"{path}:{line}" if line else str(path)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise UsageError(f"{where}: JSON nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = "; with one object per line, name the file .jsonl" if error.msg == "Extra data" and not line else ""
        place = f"{path}:{line or error.lineno}"
        raise UsageError(f"{place}: not valid JSON: {error.msg} at column {error.colno}{hint}") from None
    except ValueError as error:
        raise UsageError(f"{where}: not valid JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null where a value is missing")


def _item_starts(text: str, key: str | None) -> Iterator[int]:
    """Yield the start of each sample in the text: the items of a list, or the values of an object. The list or object
    is the (valid) document itself, or the value of its `key`."""
    decoder = json.JSONDecoder()

    def skip(place: int, mark: str = "") -> int:
        """Skip white space, one `mark` and more white space. Skips only white space if the mark does not follow."""
        start = _end_of_space(text, place)
        return _end_of_space(text, start + 1) if mark and text[start] == mark else start

    def values(place: int) -> Iterator[tuple[str, int]]:
        """Yield the name and the start of each value of the list or object at a place."""
        named = text[place] == "{"
        place = skip(place, text[place])
        while text[place] not in "]}":
            name = ""
            if named:
                name, place = decoder.raw_decode(text, place)
                place = skip(place, ":")
            yield name, place
            _, place = decoder.raw_decode(text, place)
            place = skip(place, ",")

    place = skip(0)
    if key is not None:
        place = dict(values(place))[key]  # if a key is repeated, the last one counts
    starts = list(values(place))
    last = {name: index for index, (name, _) in enumerate(starts)} if text[place] == "{" else {}
    for index, (name, start) in enumerate(starts):
        if not last or last[name] == index:
            yield start


def _end_of_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place
