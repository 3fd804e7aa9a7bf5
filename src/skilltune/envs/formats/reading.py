"""Defaults that were chosen while reading a source, and keys in it that nothing would read."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Suspect:
    """A key that looks like criteria but is not read: its places, and its probable role."""

    role: str
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """Defaults that were chosen while reading a source. Counts are samples."""

    notes: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)  # keys of rows that became metadata
    suspects: dict[str, Suspect] = field(default_factory=dict)
    mapped: set[str] = field(default_factory=set)  # keys named by `fields` that a row had
    evals: bool = False  # True if the rows are a skill's evals, whose `expected_output` describes an answer
    described: int = 0  # samples whose only check is that description

    def told(self) -> list[str]:
        """The notes, each with the number of its samples."""
        return [f"{note} ({count:,} sample{'s' * (count > 1)})" for note, count in self.notes.items()]


def unread_criteria(reading: Reading, shown: Collection[str], samples: int) -> list[str]:
    """The problem with keys that look like criteria and that nothing would read. Keys in `shown` are in the prompt."""
    suspects = {key: suspect for key, suspect in reading.suspects.items() if key not in shown}
    if not suspects:
        return []
    if (trigger := suspects.get("should_trigger")) is not None:
        return [
            f"{trigger.places[0]}: should_trigger asks when a skill is chosen, which no answer shows: skilltune trains "
            "what a skill says, not when it is used; leave these evals out"
        ]
    patterns = any(suspect.role.endswith("regex") for suspect in suspects.values())
    by_role: dict[str, list[str]] = {}
    for key, suspect in suspects.items():
        if suspect.role:
            by_role.setdefault(suspect.role.replace("contains", "regex") if patterns else suspect.role, []).append(key)
    where = next(iter(suspects.values())).places[0]
    most = max(len(suspect.places) for suspect in suspects.values())
    said = (
        f"{where}: {' and '.join(suspects)} in {most} of {samples} samples: it looks like checks, and nothing reads it"
    )
    if by_role:
        how = ", ".join(f'{role} = "{", ".join(keys)}"' for role, keys in by_role.items())
        options = " ".join(_option(role, keys) for role, keys in by_role.items())
        said += (
            f". Say what its texts are, e.g. env.fields = {{{how}}} (skilltune convert: {options}): contains (words), "
            "regex (patterns) or judge (prose), with not_ before it for what must not be"
        )
    else:
        said += ". A scorer of your own can read it in sample.metadata: python:file.py:fn"
    ignored, option = ", ".join(suspects), _option("ignore", suspects)
    return [f'{said}. If it does nothing: env.fields = {{ignore = "{ignored}"}} (skilltune convert: {option})']


def _option(role: str, keys: Collection[str]) -> str:
    """The option of `skilltune convert` that reads keys as a role."""
    return "--field " + shlex.quote(f"{role}={','.join(keys)}")


def no_judge(reading: Reading, problems: Sequence[str], samples: int) -> str:
    """The error for samples with checks in prose and no judge, made of the problem of each sample."""
    described = reading.described
    said = (
        f"the expected_output of {described} of {samples} samples describes an answer, and comparing it letter by "
        "letter would score 0: name a judge, a model that reads the answers, env.score.judge=MODEL; or, if it is the "
        'answer itself, say so, env.score={type = "exact"}'
    )
    if described == len(problems):
        return f"{problems[0].partition(': sample ')[0]}: {said}"
    how = f"{len(problems)} of {samples} samples have such checks"
    first = f"{problems[0]}; {how}; in a command it is 'env.score={{judge = \"MODEL\"}}'"
    return f"{first}. Among them, {said}" if described else first
