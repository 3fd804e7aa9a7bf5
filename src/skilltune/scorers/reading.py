"""Reads answers and expected values for scorers, and quotes them in one line of limited length.

All scorers share these rules: the part of a long answer that counts, the meaning of a list of alternatives, and the
form of a reason. The expected value is read first. So an unusable one is the user's error (`UsageError`), and never a 0
that the optimizer would learn from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample

Mode = Literal["all", "any", "weighted"]
"""The rule by which several checks become one score."""

_SPANS = {"text", "answer_start", "answer_end", "answer_id", "is_impossible"}


def final_answer(text: str, *, last_line: bool = False, tag: str = "answer") -> str:
    """The last `<answer>…</answer>` (any case) if there is one, else the last non-empty line or the whole text. `tag`
    names another tag; it is a plain word."""
    closes = [found.start() for found in re.finditer(f"</{tag}>", text, re.IGNORECASE)]
    opening = re.compile(f"<{tag}>", re.IGNORECASE)
    opens = [found.end() for found in opening.finditer(text, 0, closes[-1])] if closes else []
    if opens:  # the last opening tag that is closed, up to its closing tag
        return text[opens[-1] : next(start for start in closes if start >= opens[-1])].strip()
    text = text.strip()
    return text.rsplit("\n", 1)[-1].strip() if last_line else text


def alternatives(sample: Sample) -> list[str]:
    """The accepted answers as text. A list target means any of its items. Raises UsageError if there is none."""
    values = accepted(sample.target)
    if odd := next((value for value in values if isinstance(value, Mapping | list | tuple)), None):
        what = f"an object with the keys {', '.join(map(str, odd))}" if isinstance(odd, Mapping) else "a list in a list"
        part = next(iter(odd), "text") if isinstance(odd, Mapping) else "0"
        raise UsageError(
            f'sample "{sample.id}": its target is {what}, which no answer in text equals: name the part that is the '
            f'answer, e.g. env.fields = {{target = "KEY.{part}"}}, or compare JSON with score = "json"'
        )
    texts = [as_text(value) for value in values if value is not None]
    if not texts:
        hint = nearest("target", sample.metadata)
        raise UsageError(f'sample "{sample.id}" has no target to compare with{hint}')
    if not all(text.strip() for text in texts):
        raise UsageError(f'sample "{sample.id}" has an empty target: an empty answer would equal it')
    return texts


def accepted(target: Any) -> list[Any]:
    """The values that a target accepts: the items of a list, or the texts of SQuAD's `{"text": […], "answer_start":
    […]}`."""
    values = list(target) if isinstance(target, list | tuple) else [target]
    found: list[Any] = []
    for value in values:
        texts = value.get("text") if isinstance(value, Mapping) and value.keys() <= _SPANS else None
        found += list(texts) if isinstance(texts, list | tuple) else [texts if isinstance(texts, str) else value]
    return found


def as_text(value: Any) -> str:
    """A target as an agent would write it: strings unchanged, other values as JSON (12.5, true)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def best_of(sample: Sample, compare: Callable[[str], Score]) -> Score:
    """The best score over all accepted answers."""
    return max((compare(text) for text in alternatives(sample)), key=lambda score: (score.value, score.partial))


def verdict(passed: bool, expected: str, got: str, soft: float | None = None) -> Score:
    """A pass-or-fail score with a reason that quotes both sides."""
    return Score(float(passed), matched(expected) if passed else missed(expected, got), soft)


def matched(expected: str) -> str:
    return f"matches {quote(expected)}"


def missed(expected: str, got: str) -> str:
    return f"expected {quote(expected)}, got {quote(got)}" if got else f"expected {quote(expected)}, got no answer"


def quote(text: str, limit: int = 80) -> str:
    """The text in quotes on one line. If it is longer than `limit` characters, its middle is elided, because the end
    often contains the answer."""
    return (
        json.dumps(elided(text, limit), ensure_ascii=False)
        .replace("\u2028", " ")
        .replace("\u2029", " ")
        .replace("\x85", " ")
    )


def elided(text: str, limit: int) -> str:
    """The text. If it is longer than `limit` characters, its middle is elided."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-(limit // 2) :]}"


def nearest(name: str, options: Iterable[str]) -> str:
    """The hint of an error message about an unknown name: ` (did you mean "…"?)`, or ""."""
    close = get_close_matches(name, [str(option) for option in options], n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def folded(text: str) -> str:
    """The text in a form that ignores case, white space and a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".")
