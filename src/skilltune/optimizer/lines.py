"""Lines of the skill by number: shown to the optimizer, and resolved to text when its answer is read.

An edit that names a place by number becomes an edit with verbatim text here, so that `edits` knows exact places only.
A line that is not unique is quoted with its neighbours; the edit then replaces the whole quote.
"""

from __future__ import annotations

import json
import re
from typing import Any

from skilltune.edits import MALFORMED_RAW, Edit, Malformed, parse_edits

_NUMBER = re.compile(r"(?P<word>lines?\s*|[lL#]\s*)?(?P<number>\d{1,5})\s*[|:.]?", re.IGNORECASE)
_PREFIX = re.compile(r"^[ \t]*\d{1,5}\| ?", re.MULTILINE)


def number_lines(body: str) -> str:
    """The body with the number of each line before it. Blank lines around the body are not shown, but counted."""
    first = len(body) - len(body.lstrip("\r\n"))
    skipped = body.count("\n", 0, first)
    return "\n".join(f"{n}| {line}".rstrip() for n, line in enumerate(_lines(body), 1) if n > skipped)


def read_edits(data: object, body: str, *, numbered: bool = False) -> list[Edit | Malformed]:
    """As `parse_edits`, but `target` and `after` may also be the number of a line of the body.

    A number is an integer, or a text such as "line 3", "L3" or "3| - Be kind.", unless the body contains that text. A
    bare number in a text, such as "3", is a line only if the question numbered the lines (`numbered`).
    """
    items: Any = data["edits"] if isinstance(data, dict) and "edits" in data else data
    if not isinstance(items, list | tuple):
        return parse_edits(data)
    return [edit for item in items for edit in _read(item, body, numbered)]


def _line_edit(op: str, number: int, text: str | None, body: str) -> dict[str, Any]:
    """An edit at a line, as JSON with verbatim anchors. `op` is add (after the line), replace or delete.

    Raises ValueError if there is no such line, or if it is blank.
    """
    lines, at = _lines(body), number - 1
    if not 0 <= at < len(lines):
        raise ValueError(f"there is no line {number}; the skill has {len(lines)} lines")
    while op == "add" and at > 0 and not lines[at].strip():
        at -= 1
    if not lines[at].strip():
        raise ValueError(f"line {number} is blank")
    first, last = _unique(lines, at, body)
    if first == last:
        quote = lines[at]
        return {"op": op, "after": quote, "text": text} if op == "add" else {"op": op, "target": quote, "text": text}
    above, below = lines[first:at], lines[at + 1 : last + 1]
    middle = {"add": [lines[at], text], "replace": [text], "delete": []}[op]
    kept = [line for line in (*above, *middle, *below) if line is not None]
    return {"op": "replace", "target": "\n".join(lines[first : last + 1]), "text": "\n".join(kept)}


def _read(item: object, body: str, numbered: bool) -> list[Edit | Malformed]:
    if not isinstance(item, dict):
        return parse_edits([item])
    fields: dict[str, Any] = {**item}
    for name in ("after", "target"):
        if isinstance(place := fields.get(name), str):
            fields[name] = _unnumbered(place, body)
    text = fields.get("text")
    if numbered and isinstance(text, str) and _all_numbered(text) and not _PREFIX.search(body):
        fields["text"] = _PREFIX.sub("", text)
    op = fields["op"].strip().lower() if isinstance(fields.get("op"), str) else ""
    name = {"add": "after", "replace": "target", "delete": "target"}.get(op, "")
    number = _number(fields.get(name), body, numbered)
    if number is None:
        return parse_edits([fields])
    checked = parse_edits([{**fields, name: "a line"}])  # the other fields may be malformed
    if isinstance(checked[0], Malformed):
        return checked
    try:
        edit = _line_edit(op, number, None if op == "delete" else fields["text"], body)
        return parse_edits([{**fields, "after": None, "target": None, **edit}])
    except ValueError as error:
        return [Malformed(json.dumps(item, ensure_ascii=False)[:MALFORMED_RAW], str(error))]


def _number(place: object, body: str, numbered: bool) -> int | None:
    """The number of the line that a place names, or None if it is a quote."""
    if isinstance(place, int) and not isinstance(place, bool):
        return place
    if not isinstance(place, str) or not (found := _NUMBER.fullmatch(place.strip())):
        return None
    bare = found["word"] is None
    if (bare and not numbered) or (not bare and place.strip() in body):
        return None
    return int(found["number"])


def _unnumbered(place: str, body: str) -> str:
    """A quote without the numbers before its lines, if only that occurs in the body."""
    bare = _PREFIX.sub("", place)
    return bare if place not in body and _all_numbered(place) and bare.strip() and bare.strip() in body else place


def _all_numbered(text: str) -> bool:
    return all(_PREFIX.match(line) for line in text.strip().splitlines())


def _unique(lines: list[str], at: int, body: str) -> tuple[int, int]:
    """The first and last line of the shortest quote around a line that the body contains once."""
    first = last = at
    while body.find(quote := "\n".join(lines[first : last + 1])) != body.rfind(quote):
        if last + 1 < len(lines):
            last += 1
        else:
            first -= 1
    return first, last


def _lines(body: str) -> list[str]:
    return body.rstrip("\r\n").split("\n")
