"""Cells of spreadsheets that the target left behind, compared by the rules of SpreadsheetBench.

Numbers and numeric text are rounded to two decimals, dates to whole days, and an empty text equals an empty cell.
Otherwise type and value must be equal. Styles do not count. Both workbooks are read by their stored values: a formula
that no program has calculated reads as an empty cell.
"""

from __future__ import annotations

import datetime
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from skilltune.errors import NotGraded, UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers.files import expected_bytes, reference, share, wanted
from skilltune.scorers.reading import as_text, quote

MOST_CELLS = 2_000_000  # cells of one range
MOST_BYTES = 500_000_000  # bytes of an unpacked workbook
_RANGE = re.compile(r"([A-Z]{1,3})?(\d{1,7})?(?::([A-Z]{1,3})?(\d{1,7})?)?")
_EPOCH = datetime.datetime(1899, 12, 30)  # day 0 of a spreadsheet


@dataclass(frozen=True, slots=True)
class Area:
    """A range of cells. `sheet` "" is the first sheet of the expected workbook. A column or row of None is open."""

    sheet: str
    left: int
    top: int | None
    right: int
    bottom: int | None


class Unreadable(Exception):
    """A workbook that cannot be read, with the reason."""


def cells(sample: Sample, rollout: Rollout, root: Path, *, tolerance: float | None = None) -> Score:
    """1 if all cells of all named workbooks are as expected; `soft` is the share of workbooks that are.

    `sample.target` maps a path in the workspace to {"file": PATH, "cells": "'Sheet'!A1:B2,C3"}. PATH is the expected
    workbook, beside the samples. `tolerance` replaces the rounding of numbers by a largest difference.
    """
    wrong = {}
    for path, spec in wanted(sample).items():
        if path not in rollout.artifacts:
            wrong[path] = "the target did not write it"
            continue
        expected = expected_bytes(sample, spec["file"], root)
        if why := difference(sample, rollout.artifact(path), expected, spec["cells"], tolerance):
            wrong[path] = why
    return share(len(wanted(sample)), wrong)


def difference(sample: Sample, got: bytes, expected: bytes, position: str, tolerance: float | None = None) -> str:
    """The first cell of a workbook that is not as expected, or the reason why it cannot be read; "" if all are.

    Raises `NotGraded` if the expected workbook cannot be read.
    """
    try:
        right = _Book(expected)
    except Unreadable as error:
        raise NotGraded(f'sample "{sample.id}": the expected workbook: {error}') from error
    try:
        return next(_differences(sample, _Book(got), right, position, tolerance), "")
    except Unreadable as error:
        return str(error)


def check(sample: Sample, root: Path) -> None:
    """Raise UsageError if the extra is not installed, a workbook is missing, or a range cannot be read."""
    require_openpyxl()
    for path, spec in wanted(sample).items():
        if not isinstance(spec, Mapping) or "file" not in spec or not isinstance(spec.get("cells"), str):
            raise UsageError(
                f'sample "{sample.id}": {quote(path)} must be {{"file": "expected.xlsx", "cells": "\'Sheet\'!A1:B2"}}, '
                f"not {quote(as_text(spec))}"
            )
        if not zipfile.is_zipfile(reference(sample, spec["file"], root)):
            raise UsageError(f'sample "{sample.id}": the expected file {quote(str(spec["file"]))} is no .xlsx workbook')
        try:
            parse_areas(spec["cells"])
        except ValueError as error:
            raise UsageError(f'sample "{sample.id}": {error}') from None


def parse_areas(text: str) -> list[Area]:
    """The ranges of a position such as "'Sheet 1'!A1:B2,C3". Raises ValueError for anything else.

    It also reads what the benchmark contains: misplaced quotes, full-width colons, whole columns (A:G), a last cell
    without its column (BD2:308), and commas in the name of a sheet.
    """
    areas, held = list[Area](), ""
    for part in text.replace("：", ":").split(","):
        held = f"{held},{part}" if held else part
        opened = held.strip().startswith("'") and held.count("'") == 1 and "!" not in held
        if not opened:  # else it is the beginning of a sheet's name
            areas.append(_area(held))
            held = ""
    return [*areas, _area(held)] if held else areas


def _area(text: str) -> Area:
    sheet, _, place = text.strip().rpartition("!")
    found = _RANGE.fullmatch(place.strip().strip("'").replace("$", "").strip().upper())
    if found is None or found[1] is None:
        raise ValueError(f"{quote(text)} is no range of cells, such as 'Sheet'!A1:B2")
    left, top = _column(found[1]), int(found[2]) if found[2] else None
    right = _column(found[3]) if found[3] else left
    single = ":" not in found[0]
    bottom = top if single else int(found[4]) if found[4] else None
    if (single and top is None) or (not single and found[3] is None and found[4] is None):
        raise ValueError(f"{quote(text)} is no range of cells, such as 'Sheet'!A1:B2")
    if right < left or (top is not None and bottom is not None and bottom < top):
        raise ValueError(f"{quote(text)} ends before it begins")
    if (right - left + 1) * ((bottom or 1) - (top or 1) + 1) > MOST_CELLS:
        raise ValueError(f"{quote(text)} has more than {MOST_CELLS:,} cells")
    return Area(sheet.strip().strip("'"), left, top, right, bottom)


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number


def _letters(column: int) -> str:
    text = ""
    while column:
        column, digit = divmod(column - 1, 26)
        text = chr(ord("A") + digit) + text
    return text


class _Book:
    """A workbook's stored values."""

    def __init__(self, data: bytes) -> None:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(part.file_size for part in packed.infolist()) > MOST_BYTES:
                    raise Unreadable(f"it unpacks to more than {MOST_BYTES:,} bytes")
            self._book = require_openpyxl().load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        except Unreadable:
            raise
        except Exception as error:  # the parser raises whatever a broken file makes it raise
            raise Unreadable(f"it is no readable workbook ({type(error).__name__}: {str(error)[:200]})") from error
        self.sheets = {sheet.title: sheet for sheet in self._book.worksheets}

    def rows(self, area: Area, sheet: str) -> Iterator[tuple[Any, ...]]:
        """The values of an area, row by row, as far as the sheet goes."""
        try:
            yield from self.sheets[sheet].iter_rows(
                min_row=area.top or 1, max_row=area.bottom, min_col=area.left, max_col=area.right, values_only=True
            )
        except Exception as error:
            raise Unreadable(f"sheet {quote(sheet)} cannot be read ({type(error).__name__})") from error


def _differences(sample: Sample, got: _Book, expected: _Book, position: str, tolerance: float | None) -> Iterator[str]:
    """One line for each cell that is not as expected, and for each sheet that is missing."""
    for area in parse_areas(position):
        sheet = area.sheet or next(iter(expected.sheets), "")
        if sheet not in expected.sheets:
            raise NotGraded(f'sample "{sample.id}": the expected workbook has no sheet {quote(sheet)}')
        if sheet not in got.sheets:
            yield f"it has no sheet {quote(sheet)}; it has {', '.join(map(quote, got.sheets))}"
            continue
        rights = _graded(sample, expected.rows(area, sheet))
        try:
            for y, (row, right) in enumerate(zip_longest(got.rows(area, sheet), rights, fillvalue=()), area.top or 1):
                for x, (value, wanted_value) in enumerate(zip_longest(row, right), area.left):
                    if not same_value(value, wanted_value, tolerance):
                        yield f"{_letters(x)}{y} is {_show(value)}, expected {_show(wanted_value)}"
        except Unreadable as error:
            yield str(error)


def _graded(sample: Sample, rows: Iterator[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows of the expected workbook. The answer is not to blame if they cannot be read."""
    try:
        yield from rows
    except Unreadable as error:
        raise NotGraded(f'sample "{sample.id}": the expected workbook: {error}') from error


def same_value(one: Any, other: Any, tolerance: float | None = None) -> bool:
    """True if two cells hold the same value by the benchmark's rules."""
    one, other = _plain(one, tolerance), _plain(other, tolerance)
    if {one, other} == {"", None}:
        return True
    if isinstance(one, float) and isinstance(other, float) and tolerance is not None:
        return abs(one - other) <= tolerance
    return type(one) is type(other) and one == other


def _plain(value: Any, tolerance: float | None) -> Any:
    if isinstance(value, datetime.datetime):
        return ("day", round((value.replace(tzinfo=None) - _EPOCH) / datetime.timedelta(days=1)))
    if isinstance(value, datetime.time):
        return str(value)[:-3]
    if isinstance(value, str | int | float):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return value
        if math.isfinite(number):
            return round(number, 2) if tolerance is None else number
    return value


def _show(value: Any) -> str:
    return "empty" if value is None else quote(str(value))


def require_openpyxl() -> Any:
    """The package openpyxl. Raises UsageError, with the extra to install, if it is missing."""
    try:
        import openpyxl
    except ImportError as error:
        raise UsageError('the scorer "cells" needs openpyxl: pip install "skilltune[xlsx]"') from error
    return openpyxl
