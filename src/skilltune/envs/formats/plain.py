"""JSON and JSONL, with the line at which every sample begins."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skilltune.envs.formats import gbrain
from skilltune.envs.formats.rows import Row
from skilltune.errors import UsageError
from skilltune.scorers.reading import quote

_LISTS = ("examples", "samples", "data", "evals")  # `evals` is skill-creator's
_SPACE = re.compile(r"[ \t\n\r]*")


def line_rows(path: Path) -> Iterator[Row]:
    """JSONL: one object a line; empty lines do not count."""
    # Split at \n only: JSON text may hold the other characters that str.splitlines() takes for line ends.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            gbrain.refuse_unreviewed(line, where)
            try:
                yield where, gbrain.translated(where, _json(line, path, number))
            except UsageError as error:
                yield where, error


def json_rows(path: Path) -> Iterator[Row]:
    """JSON: a list of samples, or an object that holds one list of them."""
    text = read_text(path)
    data = _json(text, path) if text.strip() else []
    key = None
    if isinstance(data, dict):
        lists = [name for name in _LISTS if isinstance(data.get(name), list)]
        if len(lists) != 1:
            raise UsageError(
                f"{path}: expected a list of samples, or an object with one of {', '.join(_LISTS)} as a list; "
                f"its keys are {', '.join(map(str, data)) or 'none'}"
            )
        (key,) = lists
        data = data[key]
    if not isinstance(data, list):
        raise UsageError(f"{path}: expected a list of samples, found {quote(str(data))}")
    line, counted = 1, 0
    for row, start in zip(data, _item_starts(text, key), strict=False):  # without items there is no list to look into
        line, counted = line + text.count("\n", counted, start), start
        where = f"{path}:{line}"
        try:
            yield where, gbrain.translated(where, row)
        except UsageError as error:
            yield where, error


def read_text(path: Path) -> str:
    """A file's UTF-8 text without its byte order mark; UsageError names the line that is something else."""
    try:
        data = path.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None


def _json(text: str, path: Path, line: int = 0) -> Any:
    """The value of a whole file, or of one `line` of it. Raises UsageError naming the line of the file."""
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
    """Where the items of the list begin, the list being the whole (valid) document or what `key` of it holds."""
    decoder = json.JSONDecoder()

    def skip(place: int, mark: str = "") -> int:
        """Past white space, one `mark` and more white space; `place` itself where the mark does not follow."""
        start = _end_of_space(text, place)
        return _end_of_space(text, start + 1) if mark and text[start] == mark else start

    place = skip(0)
    if key is not None:
        place, found = skip(place, "{"), -1
        while text[place] != "}":
            name, place = decoder.raw_decode(text, place)
            place = skip(place, ":")
            found = place if name == key else found  # of a key that comes twice, the last one counts
            _, place = decoder.raw_decode(text, place)
            place = skip(place, ",")
        place = found
    place = skip(place, "[")
    while text[place] != "]":
        yield place
        _, place = decoder.raw_decode(text, place)
        place = skip(place, ",")


def _end_of_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place
