"""Samples that nobody has read yet, and that must not decide what a skill learns.

Examples of a template and drafts of a model carry a mark in their metadata, `"template": true` or `"reviewed": false`.
"""

from __future__ import annotations

from collections.abc import Iterable

from skilltune.errors import UsageError
from skilltune.samples import Sample


def unread(samples: Iterable[Sample]) -> list[str]:
    """Why samples must not be trained on yet, one sentence for each kind of reason; nothing if they may."""
    samples = list(samples)
    templates = [sample.id for sample in samples if sample.metadata.get("template") is True]
    drafts = [sample.id for sample in samples if sample.metadata.get("reviewed") is False]
    found = []
    if templates:
        found.append(
            f"{len(templates)} of {len(samples)} samples are still the template's examples ({_some(templates)}): "
            'write your own tasks in their place, without `"template": true`'
        )
    if drafts:
        found.append(
            f"{len(drafts)} of {len(samples)} samples are drafts that nobody has reviewed ({_some(drafts)}): read "
            'each, mend or delete it, then set its "reviewed" to true'
        )
    return found


def refuse_unread(samples: Iterable[Sample], source: str) -> None:
    """Raises UsageError for samples that must not be trained on yet, naming where they are."""
    if problems := unread(samples):
        raise UsageError("\n".join(f"{source}: {problem}" if source else problem for problem in problems))


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
