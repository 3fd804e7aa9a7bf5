"""DocVQA: questions about images of scanned pages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Source, missing, text
from skilltune.benchmarks.place import data_folder
from skilltune.benchmarks.rows import (
    Row,
    files_below,
    json_lines,
    json_list,
    parquet_rows,
    parquet_values,
    scorer,
    text_of,
)
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.files import write_atomic
from skilltune.rollout import Score
from skilltune.samples import ChatTurn, Sample
from skilltune.scorers.anls import similarity
from skilltune.scorers.reading import final_answer, verdict

SOLVED = 0.999
_COLUMNS = ("questionId", "question", "answers", "ucsf_document_id", "ucsf_document_page_no")
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


def make(place: Path, variant: str, draw: Draw) -> Env:
    root = place.parent if place.is_file() else place
    samples = draw(_samples(place))
    if any("parquet" in sample.metadata for sample in samples):
        root, samples = _with_images(root, samples)
    return Env(samples, scorer("docvqa", grade), prompt=text("docvqa", "prompt.md").rstrip(), root=root)


def _samples(place: Path) -> Iterator[Sample]:
    """Samples with the place of their image: a path, or file and row of a parquet file, which is not read yet."""
    for where, row in _rows(place):
        name = row.get("questionId", row.get("id"))
        found = row.get("answers")
        answers = [text for text in found if isinstance(text, str) and text.strip()] if isinstance(found, list) else []
        if not isinstance(name, int | str) or not answers:
            raise UsageError(f'{where}: expected "questionId" and a list "answers" (the test split has no answers)')
        asked = text_of(row, "question", where)
        apart = where.rpartition(", row ")[2].isdecimal()  # a row of a parquet file: its image is read later
        inside = () if apart else (text_of(row, "image", where),)
        yield Sample(
            id=str(name),
            input=(ChatTurn(content=asked, images=inside),),
            target=answers,
            metadata={} if inside else {"parquet": where, "page": _page(row, str(name))},
        )


def _rows(place: Path) -> Iterator[Row]:
    files = [place] if place.is_file() else files_below(place, "*.parquet")
    files = [path for path in files if not path.name.startswith(("test", "train"))]
    if not files:
        files = sorted([*place.glob("*.jsonl"), *place.glob("*.json")])
    if not files:
        raise missing("docvqa", place, "validation-*.parquet")
    for path in files:
        if path.suffix == ".parquet":
            yield from parquet_rows(path, _COLUMNS)
        elif path.suffix == ".jsonl":
            yield from json_lines(path)
        else:
            yield from json_list(path, "data")


def _page(row: Mapping[str, Any], name: str) -> str:
    """The name of a page's image; the questions on one page share it."""
    document, page = row.get("ucsf_document_id"), row.get("ucsf_document_page_no")
    return re.sub(r"[^\w-]", "_", f"{document}_{page}" if document else f"question_{name}")


def _with_images(place: Path, samples: list[Sample]) -> tuple[Path, list[Sample]]:
    """The samples with image files. Only images of these samples are read, and each page once.

    The files are kept beside the parquet files, or in the data folder if that place is not writable.
    """
    root = place if os.access(place, os.W_OK) else data_folder() / "docvqa"
    folder = root / "images"
    there = {path.stem: path.name for path in folder.glob("*.*")} if folder.is_dir() else {}
    wanted: dict[str, dict[int, str]] = {}
    for sample in samples:
        page = sample.metadata["page"]
        if page not in there:
            file, _, row = sample.metadata["parquet"].rpartition(", row ")
            wanted.setdefault(file, {})[int(row)] = page
    for file, rows in wanted.items():
        for row, value in parquet_values(Path(file), "image", set(rows)):
            if rows[row] in there:
                continue
            data = bytes((value.get("bytes") if isinstance(value, Mapping) else value) or b"")
            kind = next((end for start, end in _SUFFIXES.items() if data.startswith(start)), "")
            if not kind:
                raise UsageError(f"{file}, row {row}: its image is not PNG, JPEG, GIF or WebP")
            there[rows[row]] = f"{rows[row]}{kind}"
            write_atomic(folder / there[rows[row]], data, mode=None)

    def shown(sample: Sample) -> Sample:
        asked = sample.input[0]
        assert isinstance(asked, ChatTurn)
        image = f"images/{there[sample.metadata['page']]}"
        return sample.model_copy(update={"input": (asked.model_copy(update={"images": (image,)}),), "metadata": {}})

    return root, [shown(sample) for sample in samples]


def grade(sample: Sample, answer: str) -> Score:
    """ANLS with the best accepted answer; solved if it is at least SOLVED."""
    got = final_answer(answer, last_line=True)
    accepted = list(sample.target)
    anls, best = max(((similarity(_folded(got), _folded(each)), each) for each in accepted), key=lambda pair: pair[0])
    made = verdict(anls >= SOLVED, best, got, soft=anls)
    return Score(made.value, made.why, anls, {"anls": anls})


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


DOCVQA = Benchmark(
    name="docvqa",
    title="DocVQA, questions about scanned pages",
    make=make,
    splits=(107, 53, 374),
    source="https://huggingface.co/datasets/lmms-lab/DocVQA",
    licence="not stated by the publisher of this copy; the original asks for registration and is for research",
    hard=Metric("solved", f"ANLS of at least {SOLVED}"),
    soft=Metric("anls", "1 − edit distance / longer length, 0 if that is not above 0.5; best accepted answer"),
    files=(Source("DocVQA/validation-*.parquet", dataset="lmms-lab/DocVQA"),),
    needs="hf",
    traps=(
        "The released splits draw from the validation set, because the test set has no answers.",
        "Several questions show the same page, so a page can be in two splits.",
        "The target must read images: a chat model that does not is refused by its endpoint.",
    ),
)
