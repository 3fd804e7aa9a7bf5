"""A regular expression found in the answer."""

from __future__ import annotations

import re

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import alternatives, quote


def regex(sample: Sample, answer: str, *, pattern: str | None = None) -> Score:
    """1 if the pattern (by default the target; of several, any) is found anywhere in the whole answer.

    Python's `re` syntax: `(?i)` ignores case, `\\A…\\Z` ties it to the whole answer.
    """
    patterns = alternatives(sample) if pattern is None else [pattern]
    for source in patterns:
        try:
            found = re.search(source, answer)
        except re.error as error:
            raise UsageError(
                f'sample "{sample.id}": {quote(source)} is not a valid regular expression: {error}'
            ) from None
        if found:
            return Score(1.0, f"{quote(source)} is found at {quote(found.group())}")
    return Score(0.0, f"{' or '.join(quote(source) for source in patterns[:3])} is not found in {quote(answer)}")


def example(sample: Sample) -> str:
    """An answer that matches: a pattern names none, so the sample may (`metadata.example`)."""
    return str(sample.metadata.get("example", ""))
