"""Reads samples from existing files, without conversion or code.

Each format has a module that yields rows with a place ("data.jsonl:12"). One function (`rows.parse`) turns a row into a
Sample, so that aliases, messages and rules are the same for all formats. A criterion that skilltune cannot score is
refused with its place and name, because a dropped check would silently pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from skilltune.envs.formats import huggingface, promptfoo
from skilltune.envs.formats.plain import json_rows, line_rows
from skilltune.envs.formats.reading import Reading
from skilltune.envs.formats.rows import SPLIT_NAMES, Placed, Row, assemble, refuse
from skilltune.envs.formats.tables import records
from skilltune.errors import UsageError
from skilltune.files import is_blank
from skilltune.samples import Sample
from skilltune.scorers.reading import nearest

HF = "hf:"
_EVALS = Path("evals", "evals.json")
_CONFIGS = ("promptfooconfig.yaml", "promptfooconfig.yml")
_LINES = 'write one JSON object per line, such as {"input": "…", "target": "…"}'
_TABLE = "write a header such as input,target and one sample per line below it"
_EVALS_HOW = 'put at least one into its list, as in {"evals": [{"prompt": "…", "expected_output": "…"}]}'
_HOW: Mapping[str, str] = {
    ".jsonl": _LINES,
    ".ndjson": _LINES,
    ".json": 'write a list of JSON objects, such as [{"input": "…", "target": "…"}]',
    ".csv": _TABLE,
    ".tsv": "write a header such as input and target, with a tab between them, and one sample per line below it",
    ".yaml": "write prompts and at least one test",
    ".yml": "write prompts and at least one test",
    ".parquet": "name a file with rows",
    ".arrow": "name a file with rows",
}
"""Advice for a file without samples, by its suffix."""


def load_samples(source: str | Path, fields: Mapping[str, str] | None = None) -> list[Sample]:
    """Read samples from a file, folder or Hugging Face data.

    It accepts .jsonl and .json (plain, OpenAI evals, gbrain, skill-creator's evals.json), .csv and .tsv with a header,
    .yaml (promptfoo), .parquet and .arrow, "hf:PATH_OR_NAME[/CONFIG][@SPLIT]", a folder with evals/evals.json or
    promptfooconfig.yaml, and a folder with train, val and test (each with items.json or items.jsonl). Unknown keys go
    to `metadata`.

    `fields` maps our names to the file's: {"input": "question"}. It may lead into objects ("inputs.question"), state
    the kind of the texts under a key ({"contains": "must_have"}), or mark a key as unused ({"ignore": "tags"}). Checks
    in prose are kept in `checks` with the type "judge", which a scorer without a judge refuses. Raises UsageError with
    file and line of the problems, at most ten.
    """
    return [sample for _, sample in placed_samples(source, fields)]


def placed_samples(
    source: str | Path, fields: Mapping[str, str] | None = None, reading: Reading | None = None
) -> list[Placed]:
    """The samples that `load_samples` reads, each with its place ("data.jsonl:12"). Defaults that were chosen without
    being requested are added to `reading`."""
    reading = Reading() if reading is None else reading
    samples = assemble(_rows(source, reading), fields, reading)
    if not samples:
        raise UsageError(f"{source} holds no samples: set env.samples to a file with at least one row")
    return samples


def root_of(source: str | Path) -> Path:
    """The folder for relative paths in the sample files. For a skill's evals/evals.json it is the skill's folder."""
    path = Path(str(source).removeprefix(HF))
    if is_huggingface(source):
        return path.parent if path.suffix else path if path.is_dir() else Path()
    if path.is_dir():
        return path
    return path.parent.parent if _is_evals(path) else path.parent


def _is_evals(path: Path) -> bool:
    return path.parts[-2:] == _EVALS.parts


def is_huggingface(source: str | Path) -> bool:
    return isinstance(source, str) and source.startswith(HF)


def located(root: Path, spec: str) -> str | Path:
    """A source from a config, relative to `root`: "data.jsonl", "hf:data/@train", "hf:owner/name"."""
    if not is_huggingface(spec):
        return root / spec
    name = spec.removeprefix(HF)
    return f"{HF}{root / name}" if (root / huggingface.without_split(name)).exists() else spec


def _rows(source: str | Path, reading: Reading, otherwise: str = "") -> Iterator[Row]:
    """The rows of a source. `otherwise` names another way out of an empty file."""
    if isinstance(source, str) and is_huggingface(source):
        return huggingface.rows(source.removeprefix(HF))
    path = Path(source)
    if path.is_dir():
        if (path / _EVALS).is_file():
            return _some(path / _EVALS, lambda file: json_rows(file, reading))
        config = next((path / name for name in _CONFIGS if (path / name).is_file()), None)
        return _some(config, promptfoo.rows) if config else _split_rows(path, reading)
    if not path.is_file():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no such file: {path}{nearest(path.name, siblings)}; looked in {path.parent.resolve()}")
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _some(path, line_rows, otherwise)
        case ".json":
            return _some(path, lambda file: json_rows(file, reading), otherwise)
        case ".csv" | ".tsv":
            return _some(path, records)
        case ".yaml" | ".yml":
            return _some(path, promptfoo.rows)
        case ".parquet" | ".arrow":
            return _some(path, lambda file: huggingface.rows(str(file)))
    raise UsageError(f"{path}: cannot read samples from a {path.suffix or 'nameless'} file; use {', '.join(_HOW)}")


def _some(path: Path, read: Callable[[Path], Iterator[Row]], otherwise: str = "") -> Iterator[Row]:
    """The rows of a file. Raises UsageError if it has none."""
    how = (_EVALS_HOW if _is_evals(path) else _HOW[path.suffix.lower()]) + otherwise
    if is_blank(path):
        raise UsageError(f"{path} is empty: {how}")
    row = None
    for row in read(path):
        yield row
    if row is None:
        raise UsageError(f"{path} holds no samples: {how}")


def _split_rows(folder: Path, reading: Reading) -> Iterator[Row]:
    files = [
        (folder / name / items, split)
        for name, split in SPLIT_NAMES.items()
        for items in ("items.json", "items.jsonl")
        if (folder / name / items).is_file()
    ]
    if not files:
        raise UsageError(
            f"{folder}: a folder of samples has evals/evals.json in it, or train/items.json, val/items.json, …, "
            f"or promptfooconfig.yaml; a folder of parquet files is named {HF}{folder}"
        )
    for path, split in files:
        for where, row in _rows(path, reading, ", or delete the file"):
            if isinstance(row, Mapping) and SPLIT_NAMES.get(str(row.get("split", split)).lower()) != split:
                raise UsageError(f'{where}: its split "{row["split"]}" differs from its folder, {path.parent.name}')
            yield where, {**row, "split": split} if isinstance(row, Mapping) else row


__all__ = ["Reading", "assemble", "is_huggingface", "load_samples", "located", "placed_samples", "refuse", "root_of"]
