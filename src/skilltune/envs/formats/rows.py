"""From a row, whatever format it comes from, to a Sample.

A sample without an id gets one made from its content: it stays the same when other lines come and go, which is what
lets a run resume after samples were added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from skilltune import plugins
from skilltune.errors import UsageError
from skilltune.samples import Sample
from skilltune.scorers import KINDS
from skilltune.scorers.reading import nearest, quote

Row = tuple[str, Mapping[str, Any] | UsageError]  # where it stands, and its keys or what is wrong with it
Placed = tuple[str, Sample]

ALIASES: dict[str, tuple[str, ...]] = {
    "input": ("question", "prompt", "query"),
    "target": ("answer", "answers", "ideal", "expected", "expected_output", "output", "label"),
}
SPLIT_NAMES = {
    "train": "train",
    "select": "select",
    "val": "select",
    "valid": "select",
    "validation": "select",
    "dev": "select",
    "test": "test",
}
_PROSE = ("expectations", "assertions", "rubric")
_PROSE_TEXT = ("text", "expectation", "assertion", "description", "name")  # of an expectation written as an object
MOST_SHOWN = 10  # problems of one source
_EXAMPLES = {"example_user": "user", "example_assistant": "assistant"}  # OpenAI evals name worked examples so


def assemble(rows: Iterable[Row | Sample], fields: Mapping[str, str] | None = None) -> list[Placed]:
    """Rows to samples with unique ids, each with its place. A row without an id gets 12 hex digits of its
    content's hash; when the same content comes again, "-2", "-3", … is appended (`split` keeps such twins together).
    Raises UsageError with what is wrong with each row, a line for each."""
    fields = dict(fields or {})
    for ours in fields:
        if ours not in Sample.model_fields:
            raise UsageError(
                f'fields: "{ours}" is not a field of a sample{nearest(ours, Sample.model_fields)}; '
                f"there are {', '.join(Sample.model_fields)}"
            )
    samples: list[Placed] = []
    places: dict[str, str] = {}
    problems: list[str] = []
    unused = set(fields.values())
    for number, row in enumerate(rows, 1):
        where, content = (f"sample {number}", row) if isinstance(row, Sample) else row
        if isinstance(content, Mapping):
            unused -= content.keys()
        try:
            sample = content if isinstance(content, Sample) else parse(where, content, fields)
            if sample.id in places:
                raise UsageError(
                    f'{where}: the id "{sample.id}" is already that of {places[sample.id]}; ids are unique'
                )
        except UsageError as error:
            problems.append(str(error))
            continue
        if not sample.id:
            sample = sample.model_copy(update={"id": _content_id(sample, places)})
        places[sample.id] = where
        samples.append((where, sample))
    refuse(problems)
    if samples and unused:
        theirs = min(unused)
        ours = next(ours for ours, name in fields.items() if name == theirs)
        raise UsageError(f'fields: no sample has the key "{theirs}", which was named for `{ours}`')
    return samples


def refuse(problems: Sequence[str]) -> None:
    """Raises UsageError with the first ten of the problems, if there are any."""
    if problems:
        more = [f"… and {len(problems) - MOST_SHOWN:,} more like these"] if len(problems) > MOST_SHOWN else []
        raise UsageError("\n".join([*problems[:MOST_SHOWN], *more]))


def parse(where: str, row: Mapping[str, Any] | UsageError, fields: Mapping[str, str]) -> Sample:
    """One row as a Sample; its id is "" if the row has none. Raises UsageError that begins with `where`."""
    if isinstance(row, UsageError):
        raise row
    if not isinstance(row, Mapping):
        raise UsageError(f"{where}: expected an object with at least `input`, found {quote(str(row))}")
    rest = dict(row)
    values = {ours: rest.pop(theirs) for ours, theirs in fields.items() if theirs in rest}
    for ours in Sample.model_fields:
        if ours not in values and ours in rest and ours not in fields:
            values[ours] = rest.pop(ours)
    for ours, aliases in ALIASES.items():
        if ours not in values and ours not in fields:
            found = [alias for alias in aliases if rest.get(alias) is not None]
            if len(found) > 1:
                raise UsageError(
                    f"{where}: {' and '.join(found)} could both be the {ours}: name one, e.g. {_named(ours, found[0])}"
                )
            if found:
                values[ours] = rest.pop(found[0])
    if values.get("input") is None:
        raise UsageError(_no_input(where, row, fields))

    checks = [_known(where, check) for check in _list(where, "checks", values.get("checks"))]
    for key in _PROSE:
        prose = rest.pop(key, None)
        items = [prose] if isinstance(prose, str) else _list(where, key, prose)
        checks += [_known(where, _as_check(where, item)) for item in items]
    if rest.get("assert") is not None:
        raise UsageError(f"{where}: `assert` is promptfoo's: name the YAML file that holds prompts and tests")
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UsageError(f"{where}: metadata must be an object, not {quote(str(metadata))}")
    values |= {"checks": checks, "metadata": {**rest, **metadata}, "id": _id(where, values)}
    values |= {"files": _files(where, values.get("files")), "split": _split_name(where, values.get("split"))}
    if isinstance(values.get("group"), int) and not isinstance(values["group"], bool):
        values["group"] = str(values["group"])
    if isinstance(values["input"], list):
        values["input"] = [_turn(turn) for turn in values["input"]]
    elif not isinstance(values["input"], str | tuple):
        raise UsageError(f"{where}: input must be text or a list of chat messages, not {quote(str(values['input']))}")
    try:
        return Sample.model_validate(values)
    except ValidationError as error:
        problems = [e for e in error.errors() if isinstance(values["input"], str) or e["loc"][:2] != ("input", "str")]
        loc = [str(part) for part in problems[0]["loc"] if not str(part).startswith("tuple[")]
        raise UsageError(f"{where}: {'.'.join(loc)}: {problems[0]['msg']}") from None


def _no_input(where: str, row: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    names = [fields["input"]] if "input" in fields else ["input", *ALIASES["input"]]
    hint = next(filter(None, (nearest(name, row) for name in names)), "")
    keys = ", ".join(map(str, row)) or "none"
    how = "" if "input" in fields else f"; name it with {_named('input', '…')}"
    return f"{where}: no {' or '.join(names)} among its keys{hint}: {keys}{how}"


def _named(ours: str, theirs: str) -> str:
    """How to say which key is ours, in a config and to a command."""
    return f'env.fields = {{{ours} = "{theirs}"}} (skilltune convert: --field {ours}={theirs})'


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
    """A list of paths means: each under its own name in the workspace."""
    if not isinstance(raw, list | tuple):
        return raw or {}
    files = {PurePosixPath(str(path).replace("\\", "/")).name: str(path) for path in raw}
    if len(files) < len(raw):
        raise UsageError(f"{where}: two files have the same name: write files as {{name in the workspace: path}}")
    return files


def _as_check(where: str, item: Any) -> Any:
    """An expectation as a check: prose is a judge's, whether bare or in an object; an object may also name its type."""
    if not isinstance(item, Mapping):
        return {"type": "judge", "text": str(item)}
    if item.get("type") not in (None, "judge"):
        return dict(item)
    text = next((item[key] for key in _PROSE_TEXT if isinstance(item.get(key), str)), None)
    if text is None:
        raise UsageError(f"{where}: an expectation needs a `text` or a `type`: {quote(json.dumps(item, default=str))}")
    return {"type": "judge", "text": text}


def _known(where: str, check: Any) -> Any:
    """The check, if its type is one that some scorer reads; its options are looked at when it becomes a scorer."""
    if not isinstance(check, Mapping):
        return check  # Sample says what is wrong with it
    kind = check.get("type")
    if kind not in KINDS and not str(kind).startswith("python:") and plugins.find("scorer", str(kind)) is None:
        raise UsageError(
            f'{where}: the check type "{kind}" is not supported{nearest(str(kind), KINDS)}; '
            f"there are {', '.join(KINDS)} and python:file.py:fn"
        )
    return check


def _turn(turn: Any) -> Any:
    """A chat message; a worked example that OpenAI evals hide in a named system message is the turn that it shows."""
    if isinstance(turn, Mapping) and turn.get("name") in _EXAMPLES:
        return {"role": _EXAMPLES[turn["name"]], **{k: v for k, v in turn.items() if k not in ("role", "name")}}
    return turn


def _list(where: str, key: str, raw: Any) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{where}: {key} must be a list, not {quote(str(raw))}")
    return list(raw)
