"""Refuse to train on samples that nobody has reviewed, and review a model's drafts one by one.

Their metadata marks them: `"template": true` for a template's example, `"reviewed": false` for a model's draft. A
decision on a draft changes its own line of the file and no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from skilltune.errors import UsageError
from skilltune.files import write_atomic
from skilltune.samples import Sample

MARK = "reviewed"
MOST_BYTES = 20_000_000  # of a file of drafts


def unread(samples: Iterable[Sample]) -> list[str]:
    """The reasons why the samples must not be used for training yet, one sentence each; empty if they may."""
    samples = list(samples)
    templates = [sample.id for sample in samples if sample.metadata.get("template") is True]
    drafts = [sample.id for sample in samples if sample.metadata.get("reviewed") is False]
    found = []
    if templates:
        found.append(
            f"{len(templates)} of {len(samples)} samples are still the template's examples ({_some(templates)}): "
            'write your own tasks in their place, without `"template": true`'
        )
    if drafts:
        found.append(
            f"{len(drafts)} of {len(samples)} samples are drafts that nobody has reviewed ({_some(drafts)}): read "
            'each, fix or delete it, then set its "reviewed" to true'
        )
    return found


def refuse_unread(samples: Iterable[Sample], source: str) -> None:
    """Raise UsageError, with the sample file's name, if samples must not be used for training yet."""
    if problems := unread(samples):
        raise UsageError("\n".join(f"{source}: {problem}" if source else problem for problem in problems))


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")


# -- the drafts of a JSONL file


class Changed(UsageError):
    """The file was changed after the draft was shown."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft: its line as an object, and a digest of the line, which tells if it changed meanwhile."""

    id: str
    digest: str
    row: Mapping[str, Any]


def drafts_in(path: Path) -> tuple[list[Draft], int]:
    """(the drafts of a JSONL file, the number of all its samples). Raises `UsageError` if it cannot be read."""
    rows = [(line, row) for line in _lines(path) if (row := _row(line)) is not None]
    drafts = [Draft(str(row.get("id", "")), _digest(line), row) for line, row in rows if _is_draft(row)]
    return drafts, len(rows)


def decide(
    path: Path,
    digest: str,
    decision: Literal["keep", "edit", "delete"],
    changed: Mapping[str, Any] | None = None,
) -> int:
    """Keep a draft as it is, keep it with the fields of `changed` in place of its own, or delete it. Returns the number
    of drafts that are left.

    `changed` may change every field but the id. Raises `Changed` if no draft has this digest any more, `UsageError` for
    fields that are no sample.
    """
    lines = _lines(path)
    place = next((i for i, line in enumerate(lines) if line.strip() and _digest(line) == digest), None)
    row = None if place is None else _row(lines[place])
    if place is None or row is None or not _is_draft(row):
        raise Changed(f"{path}: this draft was changed or decided meanwhile; load the drafts again")
    if decision == "delete":
        del lines[place]
    else:
        kept = {**row, **(changed or {}), "id": row["id"]} if "id" in row else {**row, **(changed or {})}
        if decision == "edit":
            _require_sample(kept, path)
        end = lines[place][len(lines[place].rstrip("\r\n")) :]
        lines[place] = json.dumps(_marked(kept), ensure_ascii=False) + end
    try:
        write_atomic(path, "".join(lines), mode=path.stat().st_mode & 0o777)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return sum(_is_draft(row) for line in lines if (row := _row(line)) is not None)


def _lines(path: Path) -> list[str]:
    """The lines with their ends. Only a newline ends a line, because JSON may contain other line ends."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path} is larger than {MOST_BYTES:,} bytes: review it in an editor")
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    return [f"{line}\n" for line in text.split("\n")[:-1]] + ([rest] if (rest := text.rpartition("\n")[2]) else [])


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _is_draft(row: Mapping[str, Any]) -> bool:
    metadata = row.get("metadata")
    return row.get(MARK) is False or (isinstance(metadata, Mapping) and metadata.get(MARK) is False)


def _marked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, marked as reviewed in the place where it was marked as a draft."""
    marked, metadata = dict(row), row.get("metadata")
    if marked.get(MARK) is False:
        marked[MARK] = True
    if isinstance(metadata, Mapping) and metadata.get(MARK) is False:
        marked["metadata"] = {**metadata, MARK: True}
    return marked


def _require_sample(row: Mapping[str, Any], path: Path) -> None:
    """Raise `UsageError` if the row has no usable input. Columns of other formats are left to the loader."""
    text = row.get("input")
    if not (isinstance(text, str) and text.strip()) and not isinstance(text, list):
        raise UsageError(f"{path}: a sample needs an input; this one has {text!r:.60}")


def _digest(line: str) -> str:
    return sha256(line.strip().encode("utf-8", "surrogatepass")).hexdigest()[:32]
