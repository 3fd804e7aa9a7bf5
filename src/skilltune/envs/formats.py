"""Samples from files as people already have them: JSONL, JSON, CSV, evals.json of a skill, a folder of splits.

Every format becomes rows with a place ("data.jsonl:12"), and one function turns a row into a Sample, so that aliases,
messages and rules are the same for all. A sample without an id gets one made from its content: it stays the same
when other lines come and go, which is what lets a run resume after samples were added.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from skilltune.errors import UsageError
from skilltune.samples import Sample
from skilltune.scorers.reading import nearest, quote

Row = tuple[str, Mapping[str, Any]]  # where it stands, and its keys

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
_LISTS = ("examples", "samples", "data", "evals")
_PROSE = ("expectations", "assertions")
_FOREIGN_CHECKS = ("judge", "assert", "rubric")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


def load_samples(path: str | Path, fields: Mapping[str, str] | None = None) -> list[Sample]:
    """Read samples from a file or folder; `fields` maps our names to theirs: {"input": "question"}.

    Accepts .jsonl, .json (a list, or an object with examples, samples, data or evals), .csv and .tsv with a header, a
    skill folder with evals/evals.json, and a folder with train, val and test in it (each with items.json or
    items.jsonl). Unknown keys go to `metadata`. Checks that only a person or a model can judge are kept in `checks`
    with the type "judge", where a scorer that cannot judge refuses them. Raises UsageError naming file and line.
    """
    path = Path(path)
    samples = assemble(_rows(path), fields)
    if not samples:
        raise UsageError(f"{path} holds no samples: expected one object per sample, with at least `input`")
    return samples


def root_of(path: Path) -> Path:
    """The folder that the sample files' own paths are relative to; for a skill's evals/evals.json, the skill's."""
    if path.is_dir():
        return path
    return path.parent.parent if path.name == "evals.json" and path.parent.name == "evals" else path.parent


def assemble(rows: Iterable[Row | Sample], fields: Mapping[str, str] | None = None) -> list[Sample]:
    """Rows to samples with unique ids. A row without one gets 12 hex digits of its content's hash; when the same
    content comes again, "-2", "-3", … is appended (`split` keeps such twins together)."""
    fields = dict(fields or {})
    for ours in fields:
        if ours not in Sample.model_fields:
            raise UsageError(
                f'fields: "{ours}" is not a field of a sample{nearest(ours, Sample.model_fields)}; '
                f"there are {', '.join(Sample.model_fields)}"
            )
    samples: list[Sample] = []
    places: dict[str, str] = {}
    unused = set(fields.values())
    for number, row in enumerate(rows, 1):
        where, sample = (f"sample {number}", row) if isinstance(row, Sample) else (row[0], parse(*row, fields))
        if not isinstance(row, Sample):
            unused -= row[1].keys()
        if not sample.id:
            sample = sample.model_copy(update={"id": _content_id(sample, places)})
        elif sample.id in places:
            raise UsageError(f'{where}: the id "{sample.id}" is already that of {places[sample.id]}; ids are unique')
        places[sample.id] = where
        samples.append(sample)
    if samples and unused:
        theirs = min(unused)
        ours = next(ours for ours, name in fields.items() if name == theirs)
        raise UsageError(f'fields: no sample has the key "{theirs}", which was named for `{ours}`')
    return samples


def parse(where: str, row: Mapping[str, Any], fields: Mapping[str, str]) -> Sample:
    """One row as a Sample; its id is "" if the row has none. Raises UsageError that begins with `where`."""
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
                    f"{where}: {' and '.join(found)} could both be the {ours}: "
                    f'name one, e.g. fields = {{"{ours}": "{found[0]}"}}'
                )
            if found:
                values[ours] = rest.pop(found[0])
    if values.get("input") is None:
        raise UsageError(_no_input(where, row, fields))

    checks = _list(where, "checks", values.get("checks"))
    for key in _PROSE:
        checks += [_as_check(item) for item in _list(where, key, rest.pop(key, None))]
    checks += [{"type": key, "spec": rest.pop(key)} for key in _FOREIGN_CHECKS if rest.get(key) is not None]
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise UsageError(f"{where}: metadata must be an object, not {quote(str(metadata))}")
    values |= {"checks": checks, "metadata": {**rest, **metadata}, "id": _id(where, values)}
    values |= {"files": _files(where, values.get("files")), "split": _split_name(where, values.get("split"))}
    if isinstance(values.get("group"), int) and not isinstance(values["group"], bool):
        values["group"] = str(values["group"])
    if not isinstance(values["input"], str | list | tuple):
        raise UsageError(f"{where}: input must be text or a list of chat messages, not {quote(str(values['input']))}")
    try:
        return Sample.model_validate(values)
    except ValidationError as error:
        problems = [e for e in error.errors() if isinstance(values["input"], str) or e["loc"][:2] != ("input", "str")]
        loc = [str(part) for part in problems[0]["loc"] if not str(part).startswith("tuple[")]
        raise UsageError(f"{where}: {'.'.join(loc)}: {problems[0]['msg']}") from None


def _rows(path: Path) -> Iterator[Row]:
    if path.is_dir():
        if (evals := path / "evals" / "evals.json").is_file():
            return _json_rows(evals)
        return _split_rows(path)
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no such file: {path}{nearest(path.name, siblings)}; looked in {path.parent.resolve()}")
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _line_rows(path)
        case ".json":
            return _json_rows(path)
        case ".csv" | ".tsv":
            return _table_rows(path)
    raise UsageError(f"{path}: cannot read samples from a {path.suffix or 'nameless'} file; use {', '.join(_SUFFIXES)}")


def _line_rows(path: Path) -> Iterator[Row]:
    # Split at \n only: JSON text may hold the other characters that str.splitlines() takes for line ends.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _json_rows(path: Path) -> Iterator[Row]:
    text = _text(path)
    data = _json(text, str(path)) if text.strip() else []
    if isinstance(data, dict):
        lists = [key for key in _LISTS if isinstance(data.get(key), list)]
        if len(lists) != 1:
            raise UsageError(
                f"{path}: expected a list of samples, or an object with one of {', '.join(_LISTS)} as a list; "
                f"its keys are {', '.join(map(str, data)) or 'none'}"
            )
        data = data[lists[0]]
    if not isinstance(data, list):
        raise UsageError(f"{path}: expected a list of samples, found {quote(str(data))}")
    for number, row in enumerate(data, 1):
        yield f"{path}, item {number}", row


def _table_rows(path: Path) -> Iterator[Row]:
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses cells beyond 128 kB
    try:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise UsageError(f"{path}:1: two columns have the same name: {', '.join(header)}")
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) > len(header) or (cells and len(cells) < len(header)):
                raise UsageError(f"{path}:{start}: {len(cells)} cells for {len(header)} columns: is a comma unquoted?")
            if any(cells):
                yield f"{path}:{start}", {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}: not a readable table: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _split_rows(folder: Path) -> Iterator[Row]:
    files = [
        (folder / name / items, split)
        for name, split in SPLIT_NAMES.items()
        for items in ("items.json", "items.jsonl")
        if (folder / name / items).is_file()
    ]
    if not files:
        raise UsageError(
            f"{folder}: a folder of samples has evals/evals.json in it, or train/items.json, val/items.json, …"
        )
    for path, split in files:
        for where, row in _rows(path):
            if isinstance(row, Mapping) and SPLIT_NAMES.get(str(row.get("split", split)).lower()) != split:
                raise UsageError(f'{where}: its split "{row["split"]}" is not that of its folder, {path.parent.name}')
            yield where, {**row, "split": split} if isinstance(row, Mapping) else row


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UsageError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        hint = "; with one object per line, name the file .jsonl" if str(error).startswith("Extra data") else ""
        raise UsageError(f"{where}: not valid JSON: {error}{hint}") from None


def _no_input(where: str, row: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    names = [fields["input"]] if "input" in fields else ["input", *ALIASES["input"]]
    hint = next(filter(None, (nearest(name, row) for name in names)), "")
    keys = ", ".join(map(str, row)) or "none"
    how = "" if "input" in fields else '; name it with fields = {"input": "…"}'
    return f"{where}: no {' or '.join(names)} among its keys{hint}: {keys}{how}"


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


def _as_check(item: Any) -> dict[str, Any]:
    if isinstance(item, Mapping):
        return {"type": "judge", **item}
    return {"type": "judge", "text": str(item)}


def _list(where: str, key: str, raw: Any) -> list[Any]:
    if raw is None:
        return []
    if not isinstance(raw, list | tuple):
        raise UsageError(f"{where}: {key} must be a list, not {quote(str(raw))}")
    return list(raw)
