"""CSV and TSV with a header. Quoted cells may contain delimiters, line breaks and megabytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from skilltune.envs.formats.text import read_text
from skilltune.errors import UsageError


def records(path: Path, *, keep_empty: bool = False) -> Iterator[tuple[str, dict[str, str] | UsageError]]:
    """Yield the records with their places. Empty cells are left out, unless `keep_empty`.

    A .csv file whose header has semicolons and no comma is split at semicolons, as spreadsheets write it in much of
    Europe. A column without a name is called "column N".
    """
    text, start = read_text(path), 1
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses cells beyond 128 kB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
        header = [name.strip() or f"column {i}" for i, name in enumerate(next(reader, []), 1)]
        if len(set(header)) < len(header):
            raise UsageError(f"{path}:1: two columns have the same name: {', '.join(header)}")
        start = reader.line_num + 1
        for cells in reader:
            if len(cells) > len(header) or (cells and len(cells) < len(header)):
                problem = f"{len(cells)} cells for {len(header)} columns: is a comma unquoted?"
                yield f"{path}:{start}", UsageError(f"{path}:{start}: {problem}")
            elif any(cells):
                pairs = zip(header, cells, strict=True)
                yield f"{path}:{start}", {name: cell for name, cell in pairs if cell != "" or keep_empty}
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}:{start}: not a readable table, from this line on: {error}; a quote that opens a cell is closed at "
            "its end, and one inside of it doubled"
        ) from None
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: Path, text: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = text.partition("\n")[0]
    return ";" if ";" in first and "," not in first else ","
