"""OfficeQA: questions whose answers are figures in a corpus of U.S. Treasury Bulletins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Source, missing, text
from skilltune.benchmarks.figures import matches
from skilltune.benchmarks.rows import csv_rows, scorer, text_of
from skilltune.envs import Env
from skilltune.envs.tools import Corpus
from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.f1 import normalise, token_f1
from skilltune.scorers.reading import final_answer, verdict

LONGEST = 250  # characters of a final answer
TOLERANCES = {"official": 0.0, "within 0.1 %": 0.001, "within 1 %": 0.01, "within 5 %": 0.05}
"""The metrics of the official scorer by name, each with its relative tolerance."""

_TAG = "FINAL_ANSWER"
_CORPORA = ("treasury_bulletins_parsed/transformed", "corpus")
_GATED = (
    "the publisher gates questions and answers, so that agents do not find them: ask for access at "
    "https://huggingface.co/datasets/databricks/officeqa, then run `skilltune data fetch officeqa` with your token in "
    "HF_TOKEN"
)


def make(place: Path, variant: str, draw: Draw) -> Env:
    corpus = next((place / name for name in _CORPORA if (place / name).is_dir()), None)
    if corpus is None:
        raise missing("officeqa", place, f"the folder of documents ({' or '.join(_CORPORA)})", _GATED)
    file = place / ("officeqa_pro.csv" if variant == "pro" else "officeqa_full.csv")
    if not file.is_file():
        raise missing("officeqa", place, file.name, _GATED)
    oracle = corpus if variant == "oracle" else None
    samples = draw(_samples(file, place, oracle))
    prompt = text("officeqa", "prompt_oracle.md" if oracle else "prompt.md").rstrip()
    return Env(samples, scorer("officeqa", grade), prompt=prompt, root=place, tools=None if oracle else Corpus(corpus))


def _samples(file: Path, place: Path, oracle: Path | None) -> Iterator[Sample]:
    """The questions. With `oracle`, each has its source documents as files."""
    for where, row in csv_rows(file, ("uid", "question", "answer")):
        answer = text_of(row, "answer", where).strip()
        if "\n" in answer or len(answer) > LONGEST:
            raise UsageError(f"{where}: its answer is no single line of at most {LONGEST} characters")
        yield Sample(
            id=text_of(row, "uid", where),
            input=text_of(row, "question", where),
            target=answer,
            files={} if oracle is None else _sources(row.get("source_files") or "", oracle, place, where),
            metadata={"difficulty": row.get("difficulty") or ""},
        )


def _sources(listed: str, corpus: Path, place: Path, where: str) -> dict[str, str]:
    """The source documents of a question, by their names in the workspace."""
    found = {}
    for name in re.findall(r"[\w.-]+\.\w+", listed):
        if not (corpus / name).is_file():
            raise UsageError(f"{where}: its source {name} is not in {corpus}")
        found[name] = str((corpus / name).relative_to(place))
    if not found:
        raise UsageError(f'{where}: "source_files" names no document, which bench:officeqa/oracle needs')
    return found


def grade(sample: Sample, answer: str) -> Score:
    """The official match with tolerance 0, see `figures.matches`; `soft` is token F1."""
    got, expected = final_answer(answer, tag=_TAG), str(sample.target)
    fault = refused(got, expected)
    found = {name: float(not fault and matches(expected, got, limit)) for name, limit in TOLERANCES.items()}
    f1 = 0.0 if fault else token_f1(got, expected)
    em = float(not fault and normalise(got) == normalise(expected))
    made = verdict(bool(found["official"]), expected, got, soft=f1)
    return Score(made.value, f"{made.why} ({fault})" if fault else made.why, f1, {**found, "em": em, "f1": f1})


def refused(got: str, expected: str) -> str:
    """The reason why a final answer counts as none, or ""."""
    if not got:
        return "the final answer is empty"
    if "\n" in got or "\r" in got:
        return "the final answer has several lines"
    if len(got) > LONGEST:
        return f"the final answer is longer than {LONGEST} characters"
    if "unable to determine" in got.lower() and "unable to determine" not in expected.lower():
        return "the answer says that it cannot be determined"
    return ""


OFFICEQA = Benchmark(
    name="officeqa",
    title="OfficeQA, figures from Treasury Bulletins",
    make=make,
    splits=(50, 24, 172),
    source="https://huggingface.co/datasets/databricks/officeqa",
    licence="CC BY-SA 4.0; the publisher gates the questions and answers",
    hard=Metric("official", "the publisher's match of numbers and text with a relative tolerance of 0"),
    soft=Metric("f1", "SQuAD token F1"),
    others=(
        *(Metric(name, f"the same match, tolerance {limit:.1%}") for name, limit in list(TOLERANCES.items())[1:]),
        Metric("em", "SQuAD exact match"),
    ),
    files=(
        Source("officeqa_full.csv", dataset="databricks/officeqa"),
        Source("officeqa_pro.csv", dataset="databricks/officeqa"),
        Source("treasury_bulletins_parsed/transformed/*.txt", dataset="databricks/officeqa"),
    ),
    gated=_GATED,
    variants=("full", "pro", "oracle"),
    traps=(
        "Never look for copies of the questions elsewhere: the gate keeps them from agents and from training corpora.",
        "The first published scorer accepts an answer that lists many numbers, reads the first tag, strips every "
        "comma and accepts any part of the expected words. Here the count of numbers must be equal, the last tag "
        "counts, only thousands commas are stripped, and words are compared whole.",
    ),
)
