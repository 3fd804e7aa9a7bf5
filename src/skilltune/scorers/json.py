"""A JSON answer, compared with a JSON target or checked against a small schema.

The schema language is a subset on purpose. An unsupported keyword is refused by name, because ignoring it would be a
check that silently passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import as_text, final_answer, nearest, quote

_OPENING = re.compile(r"\{(?=\s*[\"}])|\[(?=\s*[\"\[\]{\-0-9tfn])")  # no JSON object or list begins otherwise
_ROOM = 5_000_000  # characters of work on openings that turn out to begin no JSON, about half a second
_TRY = 1_000  # of them, at least, for each opening
_REBASED = 4_096  # characters before an opening; a JSON error counts the lines of all text before it
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_ENFORCED = ("type", "required", "properties", "additionalProperties", "items", "enum", "const")
_REMARKS = ("title", "description", "$schema", "$id", "$comment", "default", "examples")


def json_value(
    sample: Sample,
    answer: str,
    *,
    match: Literal["equal", "subset"] | None = None,
    schema: dict[str, Any] | None = None,
    read: Literal["answer", "whole", "anywhere"] = "answer",
) -> Score:
    """1 if the answer is JSON that matches. `soft` is the share of the target's leaves that the answer has right.

    By default it reads the last `<answer>` tag, else the last fenced block, else the whole answer. With `read` "whole"
    it reads only the whole answer; with "anywhere" every object or list in it, and the best one counts.

    `match` "equal" allows nothing beyond the target, "subset" allows more keys in objects. The default is "equal" if
    there is no schema. Numbers compare by value (1 = 1.0), booleans are not numbers, and order matters only in lists.
    With a `schema` alone the target is ignored; with `schema` and `match` both must hold.
    """
    if schema is not None:
        check_schema(schema)
    target = None if schema is not None and match is None else _target(sample)
    if read == "anywhere":
        scores = [_compare(value, schema, target, closed=match != "subset") for value in _values(answer)]
        nothing = Score(0.0, f"no JSON object or list in {quote(answer)}", soft=0.0)
        return max(scores, key=lambda score: (score.value, score.partial), default=nothing)
    body = answer if read == "whole" else final_answer(answer)
    if read == "answer" and (fenced := _FENCE.findall(body)):
        body = fenced[-1]
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return Score(0.0, f"{quote(body)} is not JSON: {quote(str(error))}", soft=0.0)
    return _compare(value, schema, target, closed=match != "subset")


def _compare(value: Any, schema: dict[str, Any] | None, target: tuple[Any] | None, *, closed: bool) -> Score:
    """The score of a JSON value against a schema, a target (in a tuple), or both."""
    problems = list(violations(value, schema, "$")) if schema is not None else []
    soft = float(not problems)
    if target is not None:
        problems += _differences(value, target[0], "$", closed=closed)
        soft = 1.0 if not problems else min(_share(value, target[0]), 0.99)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return Score(0.0, problems[0] + more, soft=soft)
    return Score(1.0, "the JSON matches", soft=1.0)


def _values(text: str) -> Iterator[Any]:
    """Yield the outermost JSON objects and lists in a text. The search ends early in a hostile text: to try each
    opening takes quadratic time."""
    decoder, place, room = json.JSONDecoder(parse_constant=_refuse_constant), 0, _ROOM
    while room > 0 and (opening := _OPENING.search(text, place)):
        if opening.start() > _REBASED:
            text, place = text[opening.start() :], 0
            continue
        try:
            value, place = decoder.raw_decode(text, opening.start())
            yield value
        except ValueError as error:
            place = opening.end()
            room -= _TRY + getattr(error, "pos", place) - opening.start()
        except RecursionError:  # no answer nests a thousand levels deep; each further try would be as slow
            return


def difference(value: Any, wanted: Any) -> str:
    """The first difference between two JSON values, or "" if they are equal. Numbers compare by value."""
    return next(iter(_differences(value, wanted, "$", closed=True)), "")


def expected_json(sample: Sample) -> str:
    return "" if sample.target is None else json.dumps(_target(sample)[0], ensure_ascii=False)


def check_schema(schema: Any, path: str = "schema") -> None:
    """Raise UsageError for a keyword or a type that this subset does not enforce."""
    if not isinstance(schema, Mapping):
        raise UsageError(f"{path} must be an object, not {quote(as_text(schema))}")
    for keyword in schema:
        if keyword not in _ENFORCED and keyword not in _REMARKS:
            raise UsageError(
                f'{path}: the keyword "{keyword}" is not supported{nearest(keyword, _ENFORCED)}; '
                f"supported: {', '.join(_ENFORCED)}. For more, write a scorer (python:file.py:fn)"
            )
    for name in _named_types(schema):
        if name not in _TYPES:
            raise UsageError(f'{path}.type: "{name}" is not a JSON type{nearest(str(name), _TYPES)}')
    for keyword, wanted in {"required": list, "properties": dict, "enum": list, "additionalProperties": bool}.items():
        if keyword in schema and not isinstance(schema[keyword], wanted):
            raise UsageError(f"{path}.{keyword} must be a {wanted.__name__}, not {quote(as_text(schema[keyword]))}")
    for name, part in schema.get("properties", {}).items():
        check_schema(part, f"{path}.properties.{name}")
    if "items" in schema:
        check_schema(schema["items"], f"{path}.items")


def violations(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield the violations of a schema (see `check_schema`), one line each. `path` names the value."""
    types = _named_types(schema)
    if types and not any(_TYPES[name](value) for name in types):
        yield f"{path} should be {' or '.join(types)}, is {_show(value)}"
    if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
        yield f"{path} should be {' or '.join(map(_show, schema['enum']))}, is {_show(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{path} should be {_show(schema['const'])}, is {_show(value)}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        yield from (f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        if schema.get("additionalProperties") is False:
            yield from (f"{path}.{name} is not allowed" for name in value if name not in properties)
        for name, part in properties.items():
            if name in value:
                yield from violations(value[name], part, f"{path}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from violations(item, schema["items"], f"{path}[{i}]")


def _differences(value: Any, wanted: Any, path: str, *, closed: bool) -> list[str]:
    if isinstance(wanted, dict) and isinstance(value, dict):
        found = [f"{path}.{name} is not expected" for name in value if closed and name not in wanted]
        for name, part in wanted.items():
            missing = [f"{path}.{name} is missing"]
            found += _differences(value[name], part, f"{path}.{name}", closed=closed) if name in value else missing
        return found
    if isinstance(wanted, list) and isinstance(value, list) and len(wanted) == len(value):
        pairs = enumerate(zip(value, wanted, strict=True))
        return [line for i, (v, w) in pairs for line in _differences(v, w, f"{path}[{i}]", closed=closed)]
    if isinstance(wanted, list) and isinstance(value, list):
        return [f"{path} should have {len(wanted)} items, has {len(value)}"]
    same = not isinstance(wanted, dict | list) and _same_leaf(value, wanted)
    return [] if same else [f"{path}: expected {_show(wanted)}, got {_show(value)}"]


def _share(value: Any, wanted: Any) -> float:
    """Share of the leaves of `wanted` (values without children) that `value` has in the same place."""
    right = total = 0
    todo = [(value, wanted)]
    while todo:
        got, want = todo.pop()
        if isinstance(want, dict) and want:
            todo += [(got.get(name, ...) if isinstance(got, dict) else ..., part) for name, part in want.items()]
        elif isinstance(want, list) and want:
            items = got if isinstance(got, list) else []
            todo += [(items[i] if i < len(items) else ..., part) for i, part in enumerate(want)]
        else:
            total += 1
            right += got is not ... and not _differences(got, want, "$", closed=True)
    return right / total


def _same(value: Any, wanted: Any) -> bool:
    return not _differences(value, wanted, "$", closed=True)


def _same_leaf(value: Any, wanted: Any) -> bool:
    return isinstance(value, bool) == isinstance(wanted, bool) and value == wanted


def _named_types(schema: Mapping[str, Any]) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _target(sample: Sample) -> tuple[Any]:
    """The target as JSON data, in a tuple, because it may be null. A text that is JSON is parsed."""
    if sample.target is None:
        raise UsageError(f'sample "{sample.id}" has no target to compare with{nearest("target", sample.metadata)}')
    if isinstance(sample.target, str):
        try:
            return (json.loads(sample.target),)
        except ValueError:
            pass
    return (sample.target,)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {len(value)} keys"
    return f"a list of {len(value)}" if isinstance(value, list) else quote(as_text(value))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
