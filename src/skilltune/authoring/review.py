"""Refuse to train on samples that nobody has reviewed.

Their metadata marks them: `"template": true` for a template's example, `"reviewed": false` for a model's draft.
"""

from __future__ import annotations

from collections.abc import Iterable

from skilltune.errors import UsageError
from skilltune.samples import Sample


def unread(samples: Iterable[Sample]) -> list[str]:
    """The reasons why the samples must not be used for training yet, one sentence each; empty if they may."""
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
            'each, fix or delete it, then set its "reviewed" to true'
        )
    return found


def refuse_unread(samples: Iterable[Sample], source: str) -> None:
    """Raise UsageError, with the sample file's name, if samples must not be used for training yet."""
    if problems := unread(samples):
        raise UsageError("\n".join(f"{source}: {problem}" if source else problem for problem in problems))


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
