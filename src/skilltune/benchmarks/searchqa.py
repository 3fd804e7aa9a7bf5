"""SearchQA: clues of a quiz show, each with snippets of web search results that hold the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Source, missing, text
from skilltune.benchmarks.rows import Row, files_below, json_lines, parquet_rows, scorer, text_of
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import Sample
from skilltune.scorers.f1 import normalise, token_f1
from skilltune.scorers.reading import final_answer, verdict

CONTEXT_CHARS = 6000
_DOC = "[DOC]"
_COLUMNS = ("id", "key", "question", "context", "answers")


def make(place: Path, variant: str, draw: Draw) -> Env:
    samples = draw(_samples(place))
    return Env(samples, scorer("searchqa", grade), prompt=text("searchqa", "prompt.md").rstrip())


def _samples(place: Path) -> Iterator[Sample]:
    for where, row in _rows(place):
        name = row.get("id") or row.get("key")
        if not isinstance(name, str):
            raise UsageError(f'{where}: no "id" and no "key"')
        answers = [answer.strip() for answer in _texts(row.get("answers")) if answer.strip()]
        if not answers:
            raise UsageError(f'{where}: "answers" must be a list of texts: is this file another one?')
        yield Sample(
            id=name,
            input=text_of(row, "question", where),
            target=answers,
            metadata={"context": shortened(text_of(row, "context", where))},
        )


def _rows(place: Path) -> Iterator[Row]:
    files = [place] if place.is_file() else files_below(place, "*.jsonl", "*.parquet")
    if not files:
        raise missing("searchqa", place, "a .parquet or .jsonl file")
    for path in files:
        yield from parquet_rows(path, _COLUMNS) if path.suffix == ".parquet" else json_lines(path)


def _texts(value: Any) -> Sequence[str]:
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else ()


def shortened(context: str) -> str:
    """Whole documents of the context, as many as fit into CONTEXT_CHARS. The first one is cut if it alone is longer."""
    if len(context) <= CONTEXT_CHARS:
        return context
    kept = ""
    for place, part in enumerate(context.split(_DOC)):
        document = part if place == 0 else _DOC + part
        if len(kept) + len(document) > CONTEXT_CHARS:
            break
        kept += document
    return kept.rstrip() if kept.strip() else context[:CONTEXT_CHARS].rstrip()


def grade(sample: Sample, answer: str) -> Score:
    """Exact match and token F1 by SQuAD's normalisation, the best over the accepted answers. `contains` is 1 if the
    normalised answer contains a normalised accepted answer."""
    got = final_answer(answer, last_line=True)
    said = normalise(got)
    accepted = list(sample.target)
    matches = [expected for expected in accepted if said and normalise(expected) == said]
    f1 = max(token_f1(got, expected) for expected in accepted)
    held = bool(said) and any(normalise(expected) in said for expected in accepted)
    made = verdict(bool(matches), matches[0] if matches else accepted[0], got, soft=f1)
    return Score(made.value, made.why, made.soft, {"em": made.value, "f1": f1, "contains": float(held)})


SEARCHQA = Benchmark(
    name="searchqa",
    title="SearchQA, quiz clues with search results",
    make=make,
    splits=(400, 200, 1400),
    source="https://huggingface.co/datasets/lucadiliello/searchqa",
    licence="not stated by the publisher of this copy; the original is for research",
    hard=Metric("em", "SQuAD exact match with any accepted answer"),
    soft=Metric("f1", "SQuAD token F1 with the best accepted answer"),
    others=(Metric("contains", "the normalised answer contains a normalised accepted answer"),),
    files=(Source("data/*.parquet", dataset="lucadiliello/searchqa"),),
    needs="hf",
    traps=(
        f"The context is cut between documents to at most {CONTEXT_CHARS} characters, as the reference does.",
        "SQuAD's script turns an answer of articles alone (The, A) into an empty text, which equals any other such "
        "text. Here such an answer keeps its words.",
        "An empty answer scores 0 under every metric; a substring test of published scripts gives it 1.",
    ),
)
