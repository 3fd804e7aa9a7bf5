"""Regular expressions from files, run with a time limit.

A pattern with nested repeats can take forever on an unlucky answer. Python's `re` cannot be stopped, so the `regex`
module runs the pattern. It interprets a few patterns differently, for example `{e}` as "with one error". These places
are escaped, so that every pattern means the same as in `re`. A pattern that `re` rejects is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache

import regex

from skilltune.errors import JudgeError

LIMIT_S = 2.0  # limit of one pattern on one answer; usual ones take microseconds
_REPEAT = re.compile(r"\{(?:\d+(?:,\d*)?|,\d*)\}")


def find_all(pattern: str, text: str) -> list[str]:
    """All matches of a pattern in a text. Raises `re.error` for an invalid pattern, and JudgeError after `LIMIT_S`."""
    compiled = _compiled(pattern)
    try:
        return [match.group() for match in compiled.finditer(text, timeout=LIMIT_S)]
    except TimeoutError:
        way = "avoid nested repeats"
        raise JudgeError(
            f"the pattern {pattern[:200]!r} did not end within {LIMIT_S:g} s on an answer of {len(text):,} characters; "
            f"{way}",
            systemic=f"the pattern {pattern[:200]!r} takes too long: {way}",
        ) from None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    verbose = bool(re.compile(pattern).flags & re.VERBOSE)
    try:
        return regex.compile(as_re(pattern, verbose), regex.VERSION0)
    except regex.error as error:
        raise re.error(str(error), pattern) from None


def as_re(pattern: str, verbose: bool = False) -> str:
    """The pattern with escapes for syntax of `regex` alone: a brace that is not a repeat, a bracket in a set.

    `verbose` means that the pattern has comments.
    """
    found: list[str] = []
    at, start = 0, -1  # `start` is the position of the open set, -1 outside of sets
    while at < len(pattern):
        sign, taken = pattern[at], 1
        if sign == "\\":
            taken = 2 if not pattern.startswith("\\N{", at) else pattern.find("}", at) + 1 - at
        elif start >= 0:
            if sign == "]" and at > start:
                start = -1
            elif sign == "[":
                found.append("\\")
        elif sign == "#" and verbose:
            taken = (pattern.find("\n", at) + 1 or len(pattern)) - at
        elif sign == "[":
            start = at + 1 + (pattern[at + 1 : at + 2] == "^")
        elif sign == "{":
            if repeat := _REPEAT.match(pattern, at):
                taken = repeat.end() - at
            else:
                found.append("\\")
        found.append(pattern[at : at + taken])
        at += taken
    return "".join(found)
