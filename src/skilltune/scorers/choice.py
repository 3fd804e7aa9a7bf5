"""Multiple choice: the label of an option, or its full text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import alternatives, final_answer, folded, quote, verdict

_LABEL = re.compile(r"[A-Z]|[0-9]{1,2}")
_LEADING = re.compile(r"\(?([A-Za-z]|[0-9]{1,2})(?:\)[.:]?|[.:])\s+(\S.*)", re.DOTALL)
_BRACKETED = re.compile(r"\(([A-Z]|[0-9]{1,2})\)")


def choice(sample: Sample, answer: str) -> Score:
    """1 if the answer names the right option.

    It reads the last `<answer>` tag, else the last non-empty line. It looks for a label ("b", "(B)", "B."), else the
    full text of an option, else a label and a text ("B) Paris"), else the only label in brackets of that line ("… is
    (B).").

    Options come from `metadata.choices`, else `metadata.options`: a list of texts (labelled A, B, …), a list of
    {"label", "text"}, a mapping of labels to texts, or {"label": […], "text": […]}. Without options, only labels match.
    The target is a label or the full text of an option.
    """
    options = options_of(sample)
    right = {_pick(target, options) or _refuse(sample, target, options) for target in alternatives(sample)}
    got = final_answer(answer, last_line=True)
    picked = _pick(got, options)
    label = next(iter(sorted(right)))
    return verdict(picked in right, f"{label}: {options[label]}" if label in options else label, got)


def _pick(text: str, options: Mapping[str, str]) -> str | None:
    text = text.strip().strip("*_`").strip()
    label = re.sub(r"[().:\s]", "", text).upper()
    if label in options or (not options and _LABEL.fullmatch(label)):
        return label
    for name, option in options.items():
        if folded(text) == folded(option):
            return name
    if leading := _LEADING.fullmatch(text):
        label, rest = leading[1].upper(), leading[2]
        if not options or (label in options and folded(rest) == folded(options[label])):
            return label
    named = set(_BRACKETED.findall(text))
    if len(named) == 1 and ((label := named.pop()) in options or not options):
        return label
    return None


def options_of(sample: Sample) -> dict[str, str]:
    """The options by label from `metadata.choices`; empty if there are none."""
    raw: Any = sample.metadata.get("choices")
    if raw is None and isinstance(sample.metadata.get("options"), list | tuple | Mapping):
        raw = sample.metadata["options"]
    if raw is None:
        return {}
    if isinstance(raw, Mapping) and {"label", "text"} == raw.keys() and not isinstance(raw["text"], str):
        pairs = list(zip(raw["label"], raw["text"], strict=True))
    elif isinstance(raw, Mapping):
        pairs = list(raw.items())
    elif isinstance(raw, list | tuple) and all(
        isinstance(item, Mapping) and {"label", "text"} <= item.keys() for item in raw
    ):
        pairs = [(item["label"], item["text"]) for item in raw]
    elif isinstance(raw, list | tuple) and len(raw) <= len(ascii_uppercase):
        pairs = list(zip(ascii_uppercase, raw, strict=False))
    else:
        raise UsageError(
            f'sample "{sample.id}": metadata.choices must be a list of texts, a list of {{"label", "text"}} '
            f"or a mapping of labels to texts, not {quote(str(raw))}"
        )
    return {re.sub(r"[().:\s]", "", str(label)).upper(): str(text) for label, text in pairs}


def _refuse(sample: Sample, target: str, options: Mapping[str, str]) -> str:
    known = (
        f"one of {', '.join(options)} or an option's text" if options else 'a label such as "B" (no metadata.choices)'
    )
    raise UsageError(f'sample "{sample.id}": the target {quote(target)} must be {known}')
