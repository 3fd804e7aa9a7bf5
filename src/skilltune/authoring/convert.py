"""Convert samples of any readable format to plain JSONL, one sample per line, that loads to the same samples."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from skilltune.envs.formats import Reading, placed_samples, refuse, root_of
from skilltune.envs.formats.reading import unread_criteria
from skilltune.errors import UsageError
from skilltune.files import write_atomic
from skilltune.samples import Sample


def to_jsonl(samples: Iterable[Sample]) -> str:
    """The samples as JSONL with skilltune's field names and with ids. Unset fields are left out."""
    return "".join(_line(sample.model_dump(mode="json", exclude_defaults=True)) for sample in samples)


def convert(
    source: str | Path,
    out: Path | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    force: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> str:
    """Read `source`, return its samples as JSONL, and write them to `out` if given. `warn` gets a message about samples
    without target and checks, because only the user's own scorer can score them.

    Paths of files and images are relative to the sample file, so they are rewritten for the folder of `out`. Raises
    UsageError if `out` exists (unless `force`), where such a path would lead out of its folder, and for a key that
    looks like criteria: as metadata it would not be noticed again.
    """
    reading = Reading()
    placed = placed_samples(source, fields, reading)
    for note in reading.told():
        warn(note)
    refuse(unread_criteria(reading, (), len(placed)))
    samples = [sample for _, sample in placed]
    if bare := [place for place, sample in placed if sample.target is None and not sample.checks]:
        places = ", ".join(bare[:5]) + (", …" if len(bare) > 5 else "")
        warn(f"{len(bare)} of {len(samples)} samples have neither target nor checks: {places}")
    if out is not None:
        if out.exists() and not force:
            raise UsageError(f"{out} exists and was not changed: choose another file with -o, or add --force")
        samples = [_moved(sample, root_of(source).resolve(), root_of(out).resolve()) for sample in samples]
    text = to_jsonl(samples)
    if out is not None:
        try:
            write_atomic(out, text)
        except OSError as error:
            raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    return text


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write only as an escape
        text = json.dumps(row)
    return f"{text}\n"


def _moved(sample: Sample, old: Path, new: Path) -> Sample:
    """The sample with its paths rewritten relative to the folder `new`. Raises UsageError for a file outside of it."""

    def moved(path: str) -> str:
        relative = os.path.relpath(old / path, new)
        if relative.startswith(".."):
            raise UsageError(
                f'sample "{sample.id}": its file {path} lies outside of {new}: write the samples into {old}'
            )
        return Path(relative).as_posix()

    if old == new:
        return sample
    files = {name: moved(path) for name, path in sample.files.items()}
    turns = sample.input
    if not isinstance(turns, str):
        turns = tuple(turn.model_copy(update={"images": tuple(map(moved, turn.images))}) for turn in turns)
    return sample.model_copy(update={"files": files, "input": turns})
