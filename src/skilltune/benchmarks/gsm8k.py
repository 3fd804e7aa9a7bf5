"""GSM8K: word problems of primary school; the last number of the answer counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, missing, pinned, text
from skilltune.benchmarks.rows import json_lines, scorer, text_of
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.number import last_number
from skilltune.scorers.reading import final_answer, missed, verdict

_HOST = (
    "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
    "grade_school_math/data"
)
_FILES = ("train.jsonl", "test.jsonl")


def make(place: Path, variant: str, draw: Draw) -> Env:
    return Env(draw(_samples(place)), scorer("gsm8k", grade), prompt=text("gsm8k", "prompt.md").rstrip())


def _samples(place: Path) -> Iterator[Sample]:
    """Samples of test.jsonl are test samples; those of other files are split by the draw."""
    files = [place] if place.is_file() else sorted(place.glob("*.jsonl"))
    if not files:
        raise missing("gsm8k", place, _FILES[0])
    official = {path.name for path in files} >= set(_FILES)
    for path in files:
        if official and path.name not in _FILES:
            continue
        for where, row in json_lines(path):
            question, solution = text_of(row, "question", where), text_of(row, "answer", where)
            _, mark, number = solution.rpartition("#### ")
            if not mark or last_number(number) is None:
                raise UsageError(f'{where}: "answer" must end in "#### " and a number')
            yield Sample(
                id=f"{path.stem}:{where.rpartition(':')[2]}",
                input=question,
                target=number.strip(),
                split="test" if official and path.name == "test.jsonl" else None,
            )


def grade(sample: Sample, answer: str) -> Score:
    """1 if the last number equals the expected one as a decimal: 72, 72.0, $72 and 1,072 are numbers."""
    got, expected = final_answer(answer), str(sample.target)
    value, wanted = last_number(got), last_number(expected)
    if value is None:
        return Score(0.0, f"{missed(expected, got)}, which does not end in a plain number")
    return verdict(value == wanted, expected, got)


GSM8K = Benchmark(
    name="gsm8k",
    title="GSM8K, word problems",
    make=make,
    splits=(200, 100, 700),
    source="https://github.com/openai/grade-school-math",
    licence="MIT",
    hard=Metric("accuracy", "the last number of the answer equals the expected number as a decimal"),
    soft=Metric("accuracy", "the same; there is no partial credit"),
    files=pinned("gsm8k", _HOST),
    traps=(
        "The paper does not use this set, so its split sizes are ours. Test samples come from the official test file.",
        "The worked solution stands in the same field as the answer; only the number behind #### becomes the target.",
    ),
)
