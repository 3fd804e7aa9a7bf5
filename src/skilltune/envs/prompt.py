"""Renders a sample into the text that the target reads: the slots of `env.prompt` and the options of a choice.

All slots are filled in one pass, so that inserted text is never searched for slots. Braces that name no column stay,
because prompts are full of JSON and LaTeX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skilltune.errors import UsageError
from skilltune.samples import Sample
from skilltune.scorers.choice import options_of
from skilltune.scorers.reading import as_text, nearest, quote

INPUT = "input"
CHOICES = ("choices", "options")
_SLOT = re.compile(r"\{\{-?\s*(?P<double>[^{}|%\n]{1,80}?)\s*-?\}\}|\{(?P<single>[^{}\n]{1,80})\}")
_LOGIC = re.compile(r"\{\{[^{}\n]*\|[^{}\n]*\}\}|\{%.*?%\}|\{#.*?#\}")
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Template:
    """`env.prompt` and the columns that it shows."""

    text: str
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, samples: Sequence[Sample]) -> Template:
        """Parse a prompt. Raises UsageError if it lacks the input, contains logic, or has a slot that no sample can
        fill."""
        if logic := _LOGIC.search(text):
            raise UsageError(
                f"env.prompt: {quote(logic[0])} is not supported: only {{input}} and {{column}} are filled, without "
                "filters and without logic"
            )
        slots = [(slot, slot["double"] or slot["single"].strip()) for slot in _SLOT.finditer(text)]
        if INPUT not in (name for _, name in slots):
            raise UsageError(f"the prompt {quote(text)} has no {{input}}: the target would never see the samples")
        known = dict.fromkeys(key for sample in samples for key in sample.metadata)
        columns = [name for _, name in slots if any(_value(sample, name) is not None for sample in samples)]
        for slot, name in slots:
            meant = nearest(name, known) if _NAME.fullmatch(name) and name not in (*columns, INPUT) else ""
            if meant or (slot["double"] and name not in (*columns, INPUT)):
                has = ", ".join(known) or "none"
                raise UsageError(
                    f"env.prompt: no sample has a column for {slot[0]}{meant}; besides {{input}} there are: {has}"
                )
        return cls(text, tuple(dict.fromkeys(columns)))

    def notes(self, samples: Sequence[Sample]) -> list[str]:
        """Slots that stay unfilled, and columns that some samples lack."""
        names = [slot["single"].strip() for slot in _SLOT.finditer(self.text) if slot["single"]]
        kept = [name for name in names if _NAME.fullmatch(name) and name not in (*self.columns, INPUT)]
        found = [
            f"{{{name}}} in env.prompt stays as it is: no sample has such a column" for name in dict.fromkeys(kept)
        ]
        for name in self.columns:
            lacking = sum(_value(sample, name) is None for sample in samples)
            if lacking:
                found.append(f"{{{name}}} in env.prompt is empty for {lacking} of {len(samples)} samples")
        return found

    def fill(self, sample: Sample, text: str) -> str:
        def filled(slot: re.Match[str]) -> str:
            name = slot["double"] or slot["single"].strip()
            if name == INPUT:
                return text
            return shown(sample, name) if name in self.columns else slot[0]

        return _SLOT.sub(filled, self.text)


def shown(sample: Sample, name: str) -> str:
    """A column as text: a list of texts as paragraphs, the options of a choice with their labels."""
    value = _value(sample, name)
    if name in CHOICES and (options := _options(sample)):
        return list_options(options)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "\n\n".join(value)
    return "" if value is None else as_text(value)


def with_choices(sample: Sample, text: str, template: Template) -> str:
    """The input followed by the sample's options, unless the message already shows all of them."""
    options = _options(sample)
    seen = template.fill(sample, text).casefold()
    if not options or all(option.casefold().strip() in seen for option in options.values()):
        return text
    return f"{text.rstrip()}\n\n{list_options(options)}"


def list_options(options: Mapping[str, str]) -> str:
    return "\n".join(f"{label}) {text}" for label, text in options.items())


def _options(sample: Sample) -> dict[str, str]:
    try:
        return options_of(sample)
    except UsageError:
        return {}


def _value(sample: Sample, name: str) -> Any:
    """The value of a column by its name, or by a dotted path."""
    if name in sample.metadata:
        return sample.metadata[name]
    value: Any = sample.metadata
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
