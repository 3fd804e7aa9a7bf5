"""LiveMathematicianBench: theorems of recent papers as questions with five options."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, missing, pinned, text
from skilltune.benchmarks.rows import files_below, json_list, scorer, text_of
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import final_answer, folded, verdict

_HOST = (
    "https://raw.githubusercontent.com/LiveMathematicianBench/LiveMathematicianBench.github.io/"
    "bb4b95a35b5f2df9a5a52154a8d6d4f21abbb061/data"
)
SHUFFLE_SEED = 7  # puts the right option at each place about equally often
GIVEAWAY = re.compile(r"one of the (?:remaining|other) options is correct", re.IGNORECASE)


def make(place: Path, variant: str, draw: Draw) -> Env:
    samples = draw(_samples(place, variant))
    if not samples:
        raise UsageError(f"bench:livemath/{variant}: no question of {place} is left")
    env = Env(samples, scorer("livemath", grade), prompt=text("livemath", "prompt.md").rstrip())
    if given := sum(gives_away(sample) for sample in samples):
        env.remarks.append(
            f"{given} of {len(samples)} questions have an option that says that one of the remaining options is "
            "correct; wherever that was checked, it was the right one. Report bench:livemath/plain too, which leaves "
            "these questions out"
        )
    return env


def _samples(place: Path, variant: str) -> Iterator[Sample]:
    files = [place] if place.is_file() else files_below(place, "qa_*.json")
    if not files:
        raise missing("livemath", place, "qa_202511_final.json")
    for path in files:
        for where, row in json_list(path):
            sample = _sample(row, where, variant)
            if variant != "plain" or not gives_away(sample):
                yield sample


def _sample(row: Mapping[str, Any], where: str, variant: str) -> Sample:
    question: Any = row.get("mcq")
    try:
        name, choices = f"{row['month']}:{row['no']}", list(question["choices"])
    except (KeyError, TypeError):
        raise UsageError(
            f'{where}: expected month, no and "mcq" with question, correct_choice and choices; is it another file?'
        ) from None
    right = text_of(question.get("correct_choice"), "text", f"{where}, correct_choice")
    options = merged(name, right, [text_of(choice, "text", f"{where}, choices") for choice in choices])
    if len(set(options)) < len(options) or not 2 <= len(options) <= len(ascii_uppercase):
        raise UsageError(f"{where}: its 2 to {len(ascii_uppercase)} options must differ from one another")
    asked = text_of(question, "question", where)
    if variant == "theorem":
        hints = (text_of(row, "theorem", where), str(row.get("sketch") or ""))
        asked = "\n\n".join((asked, f"Theorem: {hints[0]}", f"Sketch of the proof: {hints[1]}"))
    return Sample(
        id=name,
        input=asked,
        target=ascii_uppercase[options.index(right)],
        metadata={"choices": [{"label": a, "text": b} for a, b in zip(ascii_uppercase, options, strict=False)]},
    )


def merged(name: str, right: str, others: list[str]) -> list[str]:
    """The right option among the others, in an order that depends on the question's id alone.

    The published file has the right option apart from the others and labels it A everywhere.
    """
    options = [right, *others]
    random.Random(hashlib.sha256(f"{SHUFFLE_SEED}\0{name}".encode()).digest()).shuffle(options)
    return options


def gives_away(sample: Sample) -> bool:
    """True if an option says that one of the remaining options is correct."""
    return any(GIVEAWAY.search(option["text"]) for option in sample.metadata["choices"])


def grade(sample: Sample, answer: str) -> Score:
    """1 for the right label (any case, with or without `.`, `)` or `:`), or for the full text of its option."""
    got = final_answer(answer, last_line=True)
    options = {option["label"]: option["text"] for option in sample.metadata["choices"]}
    label = re.sub(r"[().:\s]", "", got).upper()
    if label not in options:
        label = next((name for name, option in options.items() if folded(option) == folded(got)), "")
    return verdict(label == sample.target, f"{sample.target}: {options[sample.target]}", got)


LIVEMATH = Benchmark(
    name="livemath",
    title="LiveMathematicianBench, theorems with five options",
    make=make,
    splits=(35, 17, 125),
    source="https://github.com/LiveMathematicianBench/LiveMathematicianBench.github.io",
    licence="none stated: for your own measurements only, do not redistribute",
    hard=Metric("accuracy", "the label or the full text of the right option; a guess is right in 20 %"),
    soft=Metric("accuracy", "the same; there is no partial credit"),
    files=pinned("livemath", _HOST),
    variants=("all", "plain", "theorem"),
    traps=(
        "The published choices hold the four wrong options only, and the right one is always labelled A. Here the five "
        "are merged and shuffled, by an order that depends on the question's id.",
        "An option that says that one of the remaining options is correct is always the right one. "
        "bench:livemath/plain leaves out the questions that have one; report both.",
        "Theorem and sketch contain the answer. They are shown only in bench:livemath/theorem.",
    ),
)
