"""Turns a row of any format into a Sample.

A sample without an id gets one made from its content. Such an id does not change when other lines are added or removed,
so a run can resume after samples were added.

Defaults that are chosen without being requested are recorded in a `Reading`, so that `check` can report them: a key
that became metadata, or an unknown type of check.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from skilltune.envs.formats import assertions, chat, criteria
from skilltune.envs.formats.reading import Reading, Suspect
from skilltune.errors import UsageError
from skilltune.samples import Sample
from skilltune.scorers.reading import nearest, quote

Row = tuple[str, Mapping[str, Any] | UsageError]  # its place, and its keys or its problem
Placed = tuple[str, Sample]

ALIASES: dict[str, tuple[str, ...]] = {
    "input": ("question", "prompt", "query"),
    "target": (
        "answer",
        "answers",
        "ideal",
        "expected",
        "expected_output",
        "output",
        "label",
        "expectedOutput",
        "expected_answer",
        "expected_response",
    ),
}
INSTRUCTION = "instruction"  # alpaca's name of the task; `input` is then its material
SPLIT_NAMES = {
    "train": "train",
    "select": "select",
    "val": "select",
    "valid": "select",
    "validation": "select",
    "dev": "select",
    "test": "test",
}
IGNORE = "ignore"  # in `fields`: keys that are deliberately unused
MOST_SHOWN = 10  # problems of one source in one message
DEEPEST = 100  # levels of nesting in a row
_LEAVES = {"input": ("text", "content", "messages", "task"), "target": ("text", "content", "response", "reference")}
_SURROGATE = re.compile("[\ud800-\udfff]")


def assemble(
    rows: Iterable[Row | Sample], fields: Mapping[str, str] | None = None, reading: Reading | None = None
) -> list[Placed]:
    """Convert rows to samples with unique ids, each with its place.

    A row without an id gets 12 hex digits of its content's hash. If the same content repeats, "-2", "-3", … is appended
    (`split` keeps such twins together). Raises UsageError with one line for each problem.
    """
    fields, reading = dict(fields or {}), Reading() if reading is None else reading
    known = [*Sample.model_fields, *criteria.ROLES, IGNORE]
    for ours in fields:
        if ours not in known:
            raise UsageError(
                f'fields: "{ours}" is not a field of a sample{nearest(ours, known)}; there are {", ".join(known)}'
            )
    samples: list[Placed] = []
    places: dict[str, str] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, 1):
        where, content = (f"sample {number}", row) if isinstance(row, Sample) else row
        try:
            sample = _whole(where, content) if isinstance(content, Sample) else parse(where, content, fields, reading)
            if sample.id in places:
                raise UsageError(
                    f'{where}: the id "{sample.id}" is already used by {places[sample.id]}; ids must be unique'
                )
        except UsageError as error:
            problems.append(str(error))
            continue
        if not sample.id:
            sample = sample.model_copy(update={"id": _content_id(sample, places)})
        places[sample.id] = where
        samples.append((where, sample))
    refuse(problems)
    named = {key: ours for ours, theirs in fields.items() for key in _keys(ours, theirs)}
    if samples and (unused := named.keys() - reading.mapped):
        theirs = min(unused)
        raise UsageError(f'fields: no sample has the key "{theirs}", which was named for `{named[theirs]}`')
    return samples


def refuse(problems: Sequence[str]) -> None:
    """Raise UsageError with the first ten problems, if there are any. Problems that differ only in place and sample are
    merged, with their number."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(_PLACE.sub("", problem), []).append(problem)
    shown = [line for same in alike.values() for line in _folded(same)]
    if shown:
        more = [f"… and {len(shown) - MOST_SHOWN:,} more like these"] if len(shown) > MOST_SHOWN else []
        raise UsageError("\n".join([*shown[:MOST_SHOWN], *more]))


_PLACE = re.compile(r'^(?:\S.*?:\d+|\S.*?, row \d+|sample \d+): |(?<=sample )"(?:[^"\\]|\\.)*"')
_FEW = 3  # equal problems that are still listed one by one


def _folded(same: Sequence[str]) -> list[str]:
    if len(same) <= _FEW:
        return list(same)
    others = [place[0].rstrip(": ") for problem in same[1:4] if (place := _PLACE.match(problem))]
    also = f"; also {', '.join(others)}{', …' if len(same) > 4 else ''}" if others else ""
    return [f"{same[0]} ({len(same):,} of them{also})"]


def parse(where: str, row: Mapping[str, Any] | UsageError, fields: Mapping[str, str], reading: Reading) -> Sample:
    """One row as a Sample; its id is "" if the row has none. Raises UsageError that begins with `where`."""
    if isinstance(row, UsageError):
        raise row
    if not isinstance(row, Mapping):
        raise UsageError(f"{where}: expected an object with at least `input`, found {quote(str(row))}")
    rest: dict[str, Any] = plain(where, row)
    values, more = _mapped(where, rest, fields, reading)
    if "input" not in fields:
        values["input"] = _asked(where, rest)
    for ours in Sample.model_fields:
        if ours not in values and ours in rest and ours not in fields:
            values[ours] = rest.pop(ours)
    alias = _take_target(where, rest, values) if "target" not in values and "target" not in fields else None
    if values.get("input") is None or isinstance(values["input"], Mapping):
        raise UsageError(_no_input(where, row, fields))

    said: set[str] = set()
    ignored = _keys(IGNORE, fields.get(IGNORE, ""))
    checks = [
        check for item in _list(where, "checks", values.get("checks")) for check in criteria.own(where, item, said)
    ]
    checks += [*more, *_expected(where, rest, values, fields)]
    read: set[str] = set()
    for key, found in criteria.found(where, {k: v for k, v in rest.items() if k not in ignored}, said):
        checks += found
        read.add(key)
    suspects = [
        key for key, value in rest.items() if key not in (*read, *ignored) and criteria.looks_like_one(key, value)
    ]
    if reading.evals and alias == "expected_output" and not (checks or suspects) and _describes(values["target"]):
        texts = [values["target"]] if isinstance(values["target"], str) else values["target"]
        checks.append({"type": "judge", "text": criteria.DESCRIBED + "; ".join(text.strip() for text in texts)})
        reading.described += 1
    if rest.get("assert") is not None:
        raise UsageError(f"{where}: `assert` is promptfoo's: name the YAML file that holds prompts and tests")
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UsageError(f"{where}: metadata must be an object, not {quote(str(metadata))}")
    rest = {key: value for key, value in rest.items() if key not in read or key not in criteria.OLD}
    values |= {"checks": checks, "metadata": {**rest, **metadata}, "id": _id(where, values)}
    values |= {"files": _files(where, values.get("files")), "split": _split_name(where, values.get("split"))}
    if isinstance(values.get("group"), int) and not isinstance(values["group"], bool):
        values["group"] = str(values["group"])
    if isinstance(values["input"], list):
        values["input"] = [chat.turn(where, number, turn) for number, turn in enumerate(values["input"], 1)]
    elif not isinstance(values["input"], str | tuple):
        raise UsageError(f"{where}: input must be text or a list of chat messages, not {quote(str(values['input']))}")
    try:
        sample = Sample.model_validate(values)
    except ValidationError as error:
        problems = [e for e in error.errors() if isinstance(values["input"], str) or e["loc"][:2] != ("input", "str")]
        loc = [str(part) for part in problems[0]["loc"] if not str(part).startswith("tuple[")]
        raise UsageError(f"{where}: {'.'.join(loc)}: {problems[0]['msg']}") from None
    reading.notes.update(said)
    for key, value in rest.items():
        if value is not None and key not in read and key not in ignored:
            reading.columns[key] += 1
    for key in suspects:
        reading.suspects.setdefault(key, Suspect(criteria.role_of(key, rest[key]))).places.append(where)
    return sample


def plain(where: str, value: Any, depth: int = 0) -> Any:
    """A copy of the data in JSON's types. NaN, pandas' mark of an empty cell, becomes None.

    Raises UsageError for data that the files of a run cannot store: half a surrogate pair, an infinite number, a
    hundred levels of nesting.
    """
    if isinstance(value, str):
        if found := _SURROGATE.search(value):
            raise UsageError(
                f"{where}: a text holds half a surrogate pair (\\u{ord(found[0]):x}) and not a character: "
                "write the whole character"
            )
        return value
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise UsageError(f"{where}: {value} is not a number in JSON")
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' other marks of an empty cell
        return None
    if not isinstance(value, Mapping | list):
        return value
    if depth >= DEEPEST:
        raise UsageError(f"{where}: nested more than {DEEPEST} levels deep")
    if isinstance(value, list):
        return [plain(where, item, depth + 1) for item in value]
    return {plain(where, key): plain(where, item, depth + 1) for key, item in value.items()}


def _whole(where: str, sample: Sample) -> Sample:
    """Check that all of a sample from Python can be stored."""
    plain(where, sample.model_dump())
    return sample


# -- the meaning of keys


def _keys(ours: str, theirs: str) -> list[str]:
    """The keys in one entry of `fields`: one for a field of a sample, otherwise a list separated by commas."""
    return [theirs] if ours in Sample.model_fields else [key.strip() for key in theirs.split(",") if key.strip()]


def _mapped(
    where: str, rest: dict[str, Any], fields: Mapping[str, str], reading: Reading
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Remove the keys of `fields` from the row. Returns their values for the sample, and their checks."""
    values: dict[str, Any] = {}
    checks: list[dict[str, Any]] = []
    for ours, theirs in fields.items():
        for key in _keys(ours, theirs):
            if (path := _path(rest, key)) is None:
                continue
            reading.mapped.add(key)
            if ours == IGNORE:
                continue
            value = _popped(rest, path)
            if ours in criteria.ROLES:
                checks += criteria.as_role(where, ours, key, value) if value is not None else []
            else:
                values[ours] = value
    return values, checks


def _path(row: Mapping[str, Any], name: str) -> list[str] | None:
    """The path to a name in a row, or None. The name is a key, or a dotted path; a number is an index of a list."""
    if name in row:
        return [name]
    inner: Any = row
    for part in name.split("."):
        if isinstance(inner, Mapping) and part in inner:
            inner = inner[part]
        elif isinstance(inner, list) and part.isdecimal() and int(part) < len(inner):
            inner = inner[int(part)]
        else:
            return None
    return name.split(".")


def _popped(row: dict[str, Any], path: Sequence[str]) -> Any:
    """Remove and return the value at a path, together with the objects that become empty. An expected answer must not
    stay in the row."""
    first, *deeper = path
    if not deeper:
        return row.pop(first)
    inner: Any = row[first]
    if isinstance(inner, list):
        place = int(deeper[0])
        return inner[place] if len(deeper) == 1 else _popped(inner[place], deeper[1:])
    value = _popped(inner, deeper)
    if not inner:
        del row[first]
    return value


def _asked(where: str, rest: dict[str, Any]) -> Any:
    """Remove the input by its usual names from the row and return it, or None.

    Alpaca's `instruction` and `input` are joined to one text in that order. Other pairs of keys that could both be the
    input are refused.
    """
    names = ("input", *ALIASES["input"])
    found = [name for name in names if rest.get(name) not in (None, "", [])]
    instruction = rest.get(INSTRUCTION)
    if isinstance(instruction, str) and instruction.strip():
        if not found or (found == ["input"] and isinstance(rest["input"], str)):
            del rest[INSTRUCTION]
            material = str(rest.pop("input", None) or "").strip()
            return f"{instruction}\n\n{material}" if material else instruction
        found = [INSTRUCTION, *found]
    if len(found) > 1:
        kept, other = ("input", found[-1]) if "input" in found else (found[-1], found[0])
        raise UsageError(
            f"{where}: {' and '.join(found)} could both be the input: name one, e.g. {_named('input', found[-1])}; "
            f'to show both, env.fields = {{input = "{kept}"}} and env.prompt = "{{{other}}}\\n\\n{{input}}"'
        )
    chosen = next((name for name in (*found, *names) if rest.get(name) is not None), None)
    value = None if chosen is None else rest.pop(chosen)
    rest.pop("input", None)  # an empty one beside another
    return value


def _take_target(where: str, rest: dict[str, Any], values: dict[str, Any]) -> str | None:
    """Move the target by its usual names from the row to the values. Returns the name that was found."""
    found = [alias for alias in ALIASES["target"] if rest.get(alias) is not None]
    if len(found) > 1:
        raise UsageError(
            f"{where}: {' and '.join(found)} could both be the target: name one, e.g. {_named('target', found[0])}"
        )
    if found:
        values["target"] = rest.pop(found[0])
    return found[0] if found else None


def _expected(where: str, rest: dict[str, Any], values: dict[str, Any], fields: Mapping[str, str]) -> list[Any]:
    """Remove promptfoo's columns `__expected`, `__expected1`, … from the row and return their checks. A text without an
    assertion's name is the expected answer."""
    checks: list[Any] = []
    target = values.get("target") if fields.get("target", "").startswith("__expected") else None
    if isinstance(target, str) and (assertion := assertions.parsed(target, where)) is not None:
        checks += assertions.checks(assertion, where)
        del values["target"]
    for key in [key for key in rest if key.startswith("__expected") and isinstance(rest[key], str)]:
        text = rest.pop(key)
        checks += assertions.checks(assertions.parsed(text, where) or {"type": "equals", "value": text}, where)
    if refused := [
        key for key in rest if key in ("__prefix", "__suffix", "__threshold") or key.startswith("__config:")
    ]:
        raise UsageError(f'{where}: the column "{refused[0]}" is not supported: skilltune would ignore it')
    return checks


def _no_input(where: str, row: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    names = [fields["input"]] if "input" in fields else ["input", *ALIASES["input"]]
    keys = ", ".join(map(str, row)) or "none"
    deeper = {ours: path for ours in ("input", "target") if (path := _deeper(row, ours))}
    if "input" in deeper:
        odd = isinstance(row.get("input"), Mapping)
        said = (
            f"input is an object and not a text; the keys are {keys}"
            if odd
            else f"no {' or '.join(names)} among its keys: {keys}"
        )
        return f"{where}: {said}; the fields are probably deeper: {_naming(deeper)}"
    hint = next(filter(None, (nearest(name, row) for name in names)), "")
    how = "" if "input" in fields else f"; name it with {_named('input', '…')}"
    return f"{where}: no {' or '.join(names)} among its keys{hint}: {keys}{how}"


def _deeper(row: Mapping[str, Any], ours: str) -> str:
    """The dotted path inside the row's objects that is probably our field, or ""."""
    names = (ours, *ALIASES[ours], *((INSTRUCTION,) if ours == "input" else ()), *_LEAVES[ours])
    level = [(str(key), value) for key, value in row.items() if isinstance(value, Mapping) and key != "metadata"]
    for _ in range(3):
        leaves = [(name, path) for path, inner in level for name in inner if isinstance(inner[name], str | list)]
        if found := sorted((names.index(name), place) for place, (name, _) in enumerate(leaves) if name in names):
            name, path = leaves[found[0][1]]
            return f"{path}.{name}"
        level = [(f"{path}.{key}", v) for path, inner in level for key, v in inner.items() if isinstance(v, Mapping)]
    return ""


def _naming(paths: Mapping[str, str]) -> str:
    config = ", ".join(f'{ours} = "{theirs}"' for ours, theirs in paths.items())
    command = " ".join(f"--field {ours}={theirs}" for ours, theirs in paths.items())
    return f"env.fields = {{{config}}} (skilltune convert: {command})"


def _named(ours: str, theirs: str) -> str:
    """The way to name a key as our field, in a config and in a command."""
    return _naming({ours: theirs})


# -- the form of values


def _describes(expected: Any) -> bool:
    """True if an eval's `expected_output` describes an answer, as in skill-creator. One word is an answer itself."""
    texts = [expected] if isinstance(expected, str) else expected
    return (
        isinstance(texts, list)
        and all(isinstance(text, str) and len(text.split()) > 1 for text in texts)
        and bool(texts)
    )


def _id(where: str, values: Mapping[str, Any]) -> str:
    raw = values.get("id")
    if raw is None:
        return ""
    if isinstance(raw, bool) or not isinstance(raw, str | int) or not str(raw).strip():
        raise UsageError(f"{where}: id must be a text or a whole number, not {quote(str(raw))}")
    return str(raw)


def _content_id(sample: Sample, taken: Mapping[str, str]) -> str:
    content = json.dumps(sample.model_dump(exclude={"id", "split"}), sort_keys=True, default=str)
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    repeat = next(number for number in range(1, len(taken) + 2) if _nth(name, number) not in taken)
    return _nth(name, repeat)


def _nth(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _split_name(where: str, raw: Any) -> str | None:
    if raw is None:
        return None
    if (name := SPLIT_NAMES.get(str(raw).strip().lower())) is None:
        raise UsageError(
            f"{where}: unknown split {quote(str(raw))}{nearest(str(raw), SPLIT_NAMES)}; use train, select or test"
        )
    return name


def _files(where: str, raw: Any) -> Any:
    """A list of paths means that each file keeps its own name in the workspace."""
    raw = [raw] if isinstance(raw, str) and raw else raw
    if not isinstance(raw, list | tuple):
        return raw or {}
    if odd := [item for item in raw if not isinstance(item, str)]:
        raise UsageError(
            f"{where}: files are paths beside the sample file, not {quote(json.dumps(odd[0], default=str))}"
        )
    files = {PurePosixPath(str(path).replace("\\", "/")).name: str(path) for path in raw}
    if len(files) < len(raw):
        raise UsageError(f"{where}: two files have the same name: write files as {{name in the workspace: path}}")
    return files


def _list(where: str, key: str, raw: Any) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{where}: {key} must be a list, not {quote(str(raw))}")
    return list(raw)
