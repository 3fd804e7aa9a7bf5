"""The match of an answer with figures in it, as OfficeQA's publisher defines it.

Numbers are compared in order, as decimals, with a relative tolerance. Words of the expected answer must occur too. The
published scorer is lenient by mistake in some places; `docs/benchmarks.md` lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

YEARS = (1900, 2100)
_NUMBER = re.compile(
    r"(?<![\w.])\(\s*(?P<inner>\d+(?:\.\d+)?)\s*%?\s*\)|(?P<minus>(?<![\w)])-\s?)?"
    r"(?P<plain>\d*\.?\d+)"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CURRENCY = re.compile(r"(?:(?:US|U\.S\.)\s?)?[$€£¥]\s?", re.IGNORECASE)
_UNITS = {
    "trillion": r"trillions?",
    "billion": r"billions?|bn|b",
    "million": r"millions?|mn|m",
    "thousand": r"thousands?|k",
}
_UNIT = re.compile(
    rf"(?<![a-z])(?:{'|'.join(f'(?P<{name}>{form})' for name, form in _UNITS.items())})\b", re.IGNORECASE
)
_FILLER = re.compile(r"\b(?:percent(?:age)?|hundreds?|dollars?|usd)\b|%", re.IGNORECASE)
_YEAR = re.compile(  # "(1977)", but not "$(1977)" or "(1977) million": these are negative amounts
    r"(?<![$€£¥])(?<![$€£¥]\s)\(\s*(19\d\d|20\d\d|2100)\s*\)"
    rf"(?!\s*(?:(?:{'|'.join(_UNITS.values())}|percent(?:age)?|dollars?|usd)\b|%))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number as it stands in a text, never multiplied, and the unit that is stated with it ("" for none)."""

    value: Decimal
    unit: str = ""

    @property
    def is_year(self) -> bool:
        """True for a whole number of the range of years."""
        return YEARS[0] <= self.value <= YEARS[1] and self.value == int(self.value)


def matches(expected: str, got: str, tolerance: float = 0.0) -> bool:
    """True if the answer states the expected numbers in the expected order, and the expected words.

    Each number may differ by `tolerance` times the expected one; an expected 0 needs 0. Years (1900 to 2100) in the
    answer are dropped unless the expected answer has one; after that the counts of numbers must be equal. Units must
    agree if both sides state one. A percent sign, currency signs and thousands commas do not count. "(123)" is −123
    and so are "(1,950)", "$(1950)" and "(1950) million" negative, but "(1950)" alone is a year.
    """
    wanted, found = figures(expected), figures(got)
    if not any(figure.is_year for figure in wanted):
        found = [figure for figure in found if not figure.is_year]
    if len(wanted) != len(found):
        return False
    if not wanted:
        return _bare(expected) == _bare(got)
    return all(map(_close, wanted, found, [Decimal(str(tolerance))] * len(wanted))) and _same_words(expected, got)


def figures(text: str) -> list[Figure]:
    """The numbers of a text in order. A unit belongs to the number before it, else to the first number after it."""
    text = _plain(text)
    places = list(_NUMBER.finditer(text))
    found = []
    end = 0  # of the number before
    for place, after in pairwise((*places, None)):
        assert place is not None
        value = Decimal(place["inner"] or place["plain"])
        spaced = place["minus"] and place["minus"] != "-"  # "10 million - 20" is a range, and "- 20" alone is negative
        to = spaced and found and not _without_units(text[end : place.start()]).strip(" \t\n)")
        negative = place["inner"] or (place["minus"] and not to)
        end = place.end()
        stated = _UNIT.search(text, place.end(), after.start() if after else len(text))
        if stated is None and place is places[0]:
            stated = _UNIT.search(text, 0, place.start())
        found.append(Figure(-value if negative else value, stated.lastgroup or "" if stated else ""))
    return found


def _close(wanted: Figure, found: Figure, tolerance: Decimal) -> bool:
    if wanted.unit and found.unit and wanted.unit != found.unit:
        return False
    return abs(wanted.value - found.value) <= tolerance * abs(wanted.value)


def _same_words(expected: str, got: str) -> bool:
    """True if the words of one text occur in the other, whole and in order, or if none are expected."""
    wanted, found = _words(expected), _words(got)
    if not wanted:
        return True
    return bool(found) and (f" {wanted} " in f" {found} " or f" {found} " in f" {wanted} ")


def _words(text: str) -> str:
    """The words of a text besides numbers and units; "" if less than two characters are left."""
    rest = _without_units(_NUMBER.sub(" ", _plain(text)))
    words = " ".join(re.sub(r"[^\w\s]", " ", rest.casefold()).split())
    return words if len(words) >= 2 else ""


def _without_units(text: str) -> str:
    return _FILLER.sub(" ", _UNIT.sub(" ", text))


def _plain(text: str) -> str:
    """The text with one kind of minus, with "[1977]" for "(1977)", and without currency signs and thousands commas."""
    text = _YEAR.sub(r"[\1]", text.replace("\u2212", "-").replace("\u2013", "-"))
    return _CURRENCY.sub("", _THOUSANDS.sub("", text))


def _bare(text: str) -> str:
    """A text answer without case, quotes, remarks in brackets, a full stop and doubled spaces."""
    without = re.sub(r"\([^()]*\)", " ", text.casefold())
    return " ".join(without.split()).strip("\"' .")
