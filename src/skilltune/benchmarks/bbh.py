"""BIG-Bench Hard: 27 tasks with short answers, compared by exact match."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, missing, pinned, text
from skilltune.benchmarks.rows import files_below, json_list, scorer, text_of
from skilltune.envs import Env
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.reading import final_answer, verdict

TASKS = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)
_HOST = "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/9ee07bd481feebf959a6b59d61ea57bdcf30964d/bbh"
_LABEL = re.compile(r"\(?([a-z])\)?[.:]?")
_BRACKETS = re.compile(r"[\s()\[\]{}<>]+")


def make(place: Path, variant: str, draw: Draw) -> Env:
    return Env(draw(_samples(place, variant)), scorer("bbh", grade), prompt=text("bbh", "prompt.md").rstrip())


def _samples(place: Path, task: str) -> Iterator[Sample]:
    path = place if place.is_file() else next(iter(files_below(place, f"{task}.json")), None)
    if path is None:
        raise missing("bbh", place, f"{task}.json")
    for number, (where, row) in enumerate(json_list(path, "examples"), 1):
        yield Sample(id=f"{task}:{number}", input=text_of(row, "input", where), target=text_of(row, "target", where))


def grade(sample: Sample, answer: str) -> Score:
    """Exact match without case, outer space and a full stop at the end. An option's label counts with or without its
    brackets, and brackets of the task dyck_languages with or without spaces. `strict` is 1 for the very same text."""
    got, expected = final_answer(answer, last_line=True), str(sample.target)
    made = verdict(_plain(got, expected) == _plain(expected, expected), expected, got)
    return Score(made.value, made.why, metrics={"strict": float(got == expected.strip())})


def _plain(answer: str, expected: str) -> str:
    folded = " ".join(answer.casefold().split()).rstrip(".").rstrip()
    if re.fullmatch(r"\([A-Z]\)", expected.strip()) and (label := _LABEL.fullmatch(folded)):
        return label[1]
    if _BRACKETS.fullmatch(expected):
        return "".join(folded.split())
    return folded


BBH = Benchmark(
    name="bbh",
    title="BIG-Bench Hard, 27 tasks with short answers",
    make=make,
    splits=(0, 0, 0),
    source="https://github.com/suzgunmirac/BIG-Bench-Hard",
    licence="MIT",
    hard=Metric("exact match", "equal without case, outer space, a full stop at the end, and brackets of a label"),
    soft=Metric("exact match", "the same; there is no partial credit"),
    others=(Metric("strict", "the very same text as the expected answer"),),
    files=pinned("bbh", _HOST),
    variants=TASKS,
    required=True,
    traps=(
        "The paper does not use this set. All examples of a task are split 2:1:7.",
        "The files carry a canary line, so that training corpora can leave them out. Keep it in every copy.",
        "Some inputs occur twice in a file. Equal samples stay in one split.",
    ),
)
