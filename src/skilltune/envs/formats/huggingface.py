"""Reads local Hugging Face data: parquet and arrow files, or a dataset in the local cache.

Nothing is downloaded here, because the data of a run must still exist later. Downloads are left to the user's own
tools.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

from skilltune.envs.formats.rows import SPLIT_NAMES, Row
from skilltune.errors import UsageError
from skilltune.scorers.reading import nearest, quote

_SUFFIXES = (".parquet", ".arrow")
_BATCH = 1024  # rows that are converted to Python objects at once


def rows(name: str) -> Iterator[Row]:
    """Yield the rows of "PATH_OR_NAME[/CONFIG][@SPLIT]".

    Without a split, samples keep the split in their file's name (`train-00000-of-00001.parquet`). With one, only that
    split's files are read, and its samples are split anew. A name is looked up in the local cache ($HF_HUB_CACHE, else
    $HF_HOME/hub, else ~/.cache/huggingface/hub).
    """
    place, wanted = without_split(name), _split(name)
    folder = Path(place)
    if not folder.exists():
        folder = _cached(place, name)
    files = [folder] if folder.is_file() else _data_files(folder, place)
    by_split: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        by_split[_split_of(path)].append(path)
    if wanted and wanted not in by_split:
        known = ", ".join(sorted(filter(None, by_split))) or "none that its files' names tell"
        raise UsageError(f"hf:{name}: there is no split {quote(wanted)}{nearest(wanted, by_split)}; it has {known}")
    pyarrow = pyarrow_for(name)
    for split, paths in by_split.items():
        if wanted in ("", split):
            for path in paths:
                for number, row in enumerate(_read(pyarrow, path), 1):
                    where = f"{path}, row {number}"
                    values = {key: _plain(where, key, value) for key, value in row.items()}
                    ours = {} if wanted or split not in SPLIT_NAMES else {"split": split}
                    yield where, {**ours, **{key: value for key, value in values.items() if value is not None}}


def without_split(name: str) -> str:
    return name.rpartition("@")[0] if _split(name) else name


def _split(name: str) -> str:
    place, at, split = name.rpartition("@")
    return split if at and place and "/" not in split else ""


def _split_of(path: Path) -> str:
    """The split in the name of a file or its folder: "train" for "gsm8k-train-00000-of-00001.parquet"."""
    for text in (path.stem, path.parent.name):
        if found := next((part for part in re.split(r"[-_.]", text.lower()) if part in SPLIT_NAMES), None):
            return found
    return path.stem.lower().split("-")[0]


def _data_files(folder: Path, place: str) -> list[Path]:
    """The data files of one config in a folder. Raises UsageError if the folder has several configs."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"hf:{place}: no {' or '.join(_SUFFIXES)} file in {folder}; other formats are named by file")
    configs: defaultdict[str, list[Path]] = defaultdict(list)
    for path in found:
        parts = [part for part in path.relative_to(folder).parts[:-1] if part.lower() not in ("data", *SPLIT_NAMES)]
        configs["/".join(parts)].append(path)
    if len(configs) > 1:
        raise UsageError(f"hf:{place} holds several configs: name one, hf:{place}/CONFIG: {', '.join(sorted(configs))}")
    return found


def _cached(place: str, name: str) -> Path:
    """The folder of a dataset's config in the local cache. In "a/b", a is the owner, or b is a config of a."""
    cache = _cache()
    parts = place.strip("/").split("/")
    for length in (2, 1):
        snapshots = cache / f"datasets--{'--'.join(parts[:length])}" / "snapshots"
        if len(parts) < length or not snapshots.is_dir():
            continue
        folder = _snapshot(snapshots).joinpath(*parts[length:])
        if folder.is_dir():
            return folder
        known = ", ".join(sorted(entry.name for entry in _snapshot(snapshots).iterdir() if entry.is_dir()))
        raise UsageError(f"hf:{name}: no config {'/'.join(parts[length:])!r} in the cached dataset; it has {known}")
    dataset = "/".join(parts[:2])
    raise UsageError(
        f"hf:{name}: there is no such file or folder, and no such dataset in {cache}; skilltune downloads nothing: run "
        f"`hf download --repo-type dataset {dataset}` (of the package huggingface_hub), then the same command again"
    )


def _cache() -> Path:
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _snapshot(snapshots: Path) -> Path:
    """The snapshot named by refs/main, or the only one."""
    main = snapshots.parent / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    if len(found) != 1:
        raise UsageError(f"{snapshots} holds {len(found)} snapshots and no refs/main: name one by its path, hf:PATH")
    return found[0]


def _read(pyarrow: Any, path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH)
            else:
                batches = _arrow_batches(pyarrow, file)
            for batch in batches:
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"{path}: not a readable {path.suffix} file: {error}") from None


def _arrow_batches(pyarrow: Any, file: Any) -> Iterator[Any]:
    """Yield record batches of the stream format (which `datasets` writes) or of the file format."""
    try:
        yield from pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _plain(where: str, key: str, value: Any) -> Any:
    """A value as JSON data: dates and decimals as text, NaN as None. Bytes (images, audio) are refused."""
    if isinstance(value, bytes):
        raise UsageError(
            f"{where}: the column {quote(key)} holds bytes, which cannot be part of a sample: leave it out"
        )
    if isinstance(value, Mapping):
        return {name: _plain(where, key, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(where, key, item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return None
    return str(value) if isinstance(value, Decimal) else value


def pyarrow_for(name: str) -> Any:
    """The module pyarrow, with `ipc` and `parquet`. Raises UsageError, with `name` and the extra, if it is missing."""
    try:
        for module in ("pyarrow.ipc", "pyarrow.parquet"):
            import_module(module)
        return import_module("pyarrow")
    except ImportError:
        raise UsageError(f"{name}: parquet and arrow files need pyarrow: pip install 'skilltune[hf]'") from None
