"""Searches the answer for a regular expression."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from skilltune.errors import JudgeError, UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.patterns import find_all
from skilltune.scorers.reading import alternatives, quote


def regex(
    sample: Sample, answer: str, *, pattern: str | None = None, at_least: Annotated[int, Field(ge=1)] = 1
) -> Score:
    """1 if the pattern occurs anywhere in the whole answer, at least `at_least` times. The default pattern is the
    target; with several targets, any of them.

    The syntax is that of Python's `re`: `(?i)` ignores case, `\\A…\\Z` matches the whole answer. A pattern that exceeds
    its time limit (see `scorers.patterns`) is a JudgeError that names it and the sample.
    """
    patterns = alternatives(sample) if pattern is None else [pattern]
    for source in patterns:
        try:
            found = find_all(source, answer)
        except JudgeError as error:
            raise error.reworded(f'sample "{sample.id}": {error}') from None
        except re.error as error:
            raise UsageError(
                f'sample "{sample.id}": {quote(source)} is not a valid regular expression: {error}'
            ) from None
        if len(found) >= at_least:
            return Score(1.0, f"{quote(source)} is found at {quote(found[0])}")
    wanted = "" if at_least == 1 else f" {at_least} times"
    return Score(
        0.0, f"{' or '.join(quote(source) for source in patterns[:3])} is not found{wanted} in {quote(answer)}"
    )


def example(sample: Sample) -> str:
    """An answer that matches, if the sample gives one (`metadata.example`), else ""."""
    return str(sample.metadata.get("example", ""))
