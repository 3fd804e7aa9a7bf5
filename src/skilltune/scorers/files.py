"""The content of files that the target left behind, compared with expected files.

The expected content stands in the sample's target, or in a file beside the samples. The target never sees either of
them: a `Task` holds neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from skilltune.errors import NotGraded, UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.json import difference
from skilltune.scorers.reading import as_text, quote

Compare = Literal["auto", "bytes", "text", "json"]
SHOWN = 3  # wrong files that a reason names
_FORMS = 'a text, {"file": "a path beside the samples"} or {"json": value}'


def files(sample: Sample, rollout: Rollout, root: Path, *, compare: Compare = "auto") -> Score:
    """1 if every named file has the expected content; `soft` is the share of files that have.

    `sample.target` maps a path in the workspace to the expected content: a text, {"file": PATH} for a file beside the
    samples, or {"json": VALUE}. "bytes" compares exactly. "text" ignores how lines end, and the last line end. "json"
    compares values: 1 equals 1.0, and the order of keys does not count. "auto" is "json" for {"json": VALUE} and for
    names in .json, "text" for text, and "bytes" for anything else.
    """
    found = {path: _differs(sample, rollout, path, spec, root, compare) for path, spec in wanted(sample).items()}
    wrong = {path: why for path, why in found.items() if why}
    return share(len(wanted(sample)), wrong)


def share(total: int, wrong: Mapping[str, str]) -> Score:
    """1 if nothing is wrong; `soft` is the share of the files that are right. `wrong` maps a path to the reason."""
    if not wrong:
        return Score(1.0, f"{total} of {total} files are as expected", soft=1.0)
    named = "; ".join(f"{path}: {why}" for path, why in list(wrong.items())[:SHOWN])
    more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
    right = total - len(wrong)
    return Score(0.0, f"{right} of {total} files are as expected; {named}{more}", soft=right / total)


def wanted(sample: Sample) -> Mapping[str, Any]:
    """The expected files by their path in the workspace. Raises UsageError if the target names none."""
    if not isinstance(sample.target, Mapping) or not sample.target:
        raise UsageError(
            f'sample "{sample.id}": its target must map a path in the workspace to the expected content ({_FORMS}), '
            f"not {quote(as_text(sample.target))}"
        )
    return sample.target


def check(sample: Sample, root: Path) -> None:
    """Raise UsageError if an expected file is of no known form, or is missing."""
    for path, spec in wanted(sample).items():
        if not isinstance(spec, str) and not (isinstance(spec, Mapping) and ("json" in spec or "file" in spec)):
            raise UsageError(
                f'sample "{sample.id}": the expected content of {quote(path)} must be {_FORMS}, not '
                f"{quote(as_text(spec))}"
            )
        if isinstance(spec, Mapping) and "file" in spec:
            reference(sample, spec["file"], root)


def reads(sample: Sample, root: Path) -> Iterator[Path]:
    """The files of the samples' folder that decide the score."""
    for spec in wanted(sample).values():
        if isinstance(spec, Mapping) and "file" in spec:
            yield reference(sample, spec["file"], root)


def reference(sample: Sample, path: Any, root: Path) -> Path:
    """An expected file. Raises UsageError if it is missing, outside of `root`, or also given to the target."""
    full = (root / str(path)).resolve()
    if not full.is_relative_to(root.resolve()):
        raise UsageError(f'sample "{sample.id}": the expected file {quote(str(path))} leads out of {root}')
    if not full.is_file():
        raise UsageError(f'sample "{sample.id}": there is no expected file {quote(str(path))} in {root}')
    if any((root / given).resolve() == full for given in sample.files.values()):
        raise UsageError(
            f'sample "{sample.id}": the expected file {quote(str(path))} is also in `files`, so the target would '
            "receive the answer: remove it there"
        )
    return full


def expected_bytes(sample: Sample, path: Any, root: Path) -> bytes:
    """The content of an expected file. Raises NotGraded if it cannot be read any more: the answer is not to blame."""
    try:
        return reference(sample, path, root).read_bytes()
    except (OSError, UsageError) as error:
        why = f'sample "{sample.id}": its expected file cannot be read: {error}'
        raise NotGraded(why, systemic="an expected file cannot be read") from error


def _differs(sample: Sample, rollout: Rollout, path: str, spec: Any, root: Path, compare: Compare) -> str:
    """The reason why a file is not as expected, or ""."""
    if path not in rollout.artifacts:
        return "the target did not write it"
    got = rollout.artifact(path)
    if isinstance(spec, Mapping) and "json" in spec:
        return _json(got, spec["json"])
    data = spec.encode() if isinstance(spec, str) else expected_bytes(sample, spec["file"], root)
    if compare == "json" or (compare == "auto" and path.lower().endswith(".json")):
        try:
            return _json(got, json.loads(data))
        except ValueError as error:
            if compare == "json":
                raise NotGraded(f'sample "{rollout.sample}": the expected {path} is not JSON: {error}') from error
    if compare != "bytes" and (text := _text(data)) is not None:
        return _compare_text(got, text)
    if compare == "text":
        raise NotGraded(f'sample "{rollout.sample}": the expected {path} is not UTF-8 text')
    return "" if got == data else f"{len(got):,} bytes that differ from the expected {len(data):,}"


def _json(got: bytes, expected: Any) -> str:
    try:
        value = json.loads(got)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {quote(str(error))}"
    return difference(value, expected)


def _text(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _compare_text(got: bytes, expected: str) -> str:
    text = _text(got)
    if text is None:
        return "it is not UTF-8 text"
    if text == expected:
        return ""
    ours, theirs = text.split("\n"), expected.split("\n")
    for number, (line, right) in enumerate(zip(ours, theirs, strict=False), 1):
        if line != right:
            return f"line {number} is {quote(line)}, expected {quote(right)}"
    return f"it has {len(ours):,} lines, expected {len(theirs):,}"
