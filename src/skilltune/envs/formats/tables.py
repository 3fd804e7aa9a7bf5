"""CSV and TSV with a header: quoted cells may hold delimiters, lines and megabytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from skilltune.envs.formats.plain import read_text
from skilltune.envs.formats.rows import Row
from skilltune.errors import UsageError


def table_rows(path: Path) -> Iterator[Row]:
    """One row a record, an empty cell meaning no value. A .csv whose header has semicolons and no comma is split at
    those, as spreadsheets write it in half of Europe; a column without a name is called "column N"."""
    text = read_text(path)
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses cells beyond 128 kB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
        header = [name.strip() or f"column {i}" for i, name in enumerate(next(reader, []), 1)]
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
        raise UsageError(
            f"{path}: not a readable table: {error}; a cell that holds a quote is quoted, its quotes doubled"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: Path, text: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = text.partition("\n")[0]
    return ";" if ";" in first and "," not in first else ","
