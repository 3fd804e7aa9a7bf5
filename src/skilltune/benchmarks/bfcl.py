"""BFCL, the Berkeley Function-Calling Leaderboard: requests that are to become calls of given functions.

The items are read out of the package bfcl-eval, installed or as a wheel, without importing it. The calls are an answer
in text, so every target can do the tasks, with or without function calling of its own.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, missing, text
from skilltune.benchmarks.calls import example, fault, paired, read_calls
from skilltune.benchmarks.rows import ANOTHER_COPY, scorer
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.rollout import Score
from skilltune.samples import ChatTurn, Sample
from skilltune.scorers.reading import final_answer, nearest

_ANSWERED = ("simple_python", "multiple", "parallel", "parallel_multiple")
CATEGORIES = (
    *_ANSWERED,
    "irrelevance",
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance"),
)
_OTHERS = {
    "multi_turn": "its items call stateful programs over several turns, which this environment does not run",
    "simple_java": "its values are written in Java, which is not compared here",
    "simple_javascript": "its values are written in JavaScript, which is not compared here",
    "memory": "its items need the leaderboard's own store",
    "web_search": "its items need the web",
    "format_sensitivity": "its items are variants of the prompt of others",
    "live_relevance": "its items have no expected call",
}
PACKAGE = "bfcl-eval"
_HOW = f"`pip install --no-deps {PACKAGE}` brings it, or `pip download --no-deps {PACKAGE}` a wheel to name"
_FOLDER = "bfcl_eval/data"
NAMED = 3  # unusable items that a remark names


def make(place: Path, variant: str, draw: Draw) -> Env:
    if variant not in CATEGORIES:
        why = next((why for name, why in _OTHERS.items() if variant.startswith(name)), "")
        if why:
            raise UsageError(f"bench:bfcl/{variant} cannot be used: {why}. There are {', '.join(CATEGORIES)}")
        raise UsageError(
            f"bench:bfcl has no category {variant!r}{nearest(variant, CATEGORIES)}; there are {', '.join(CATEGORIES)}"
        )
    unusable: list[str] = []
    data = _Data.at(place)
    samples = draw(_samples(data, variant, unusable))
    if not samples:
        raise UsageError(f"bench:bfcl/{variant}: no item of {data.root} accepts an answer (first: {unusable[0]})")
    made = Env(samples, scorer("bfcl", grade, expected=expected), prompt=text("bfcl", "prompt.md").rstrip())
    if isinstance(data.root, Path):  # else it is a wheel in `place`
        made.private.append(data.root)
    if unusable:
        made.remarks.append(
            f"{len(unusable)} items accept no answer at all, because their schema and their expected calls contradict "
            f"each other; they are left out ({', '.join(unusable[:NAMED])})"
        )
    return made


class _Data:
    """The folder of the items: on disk, or inside a wheel."""

    def __init__(self, root: Path | zipfile.Path) -> None:
        self.root = root

    @classmethod
    def at(cls, place: Path) -> _Data:
        """The data in a wheel or folder, else in the installed package. Raises `Missing`."""
        wheels = [place] if place.suffix == ".whl" else sorted(place.glob("bfcl_eval-*.whl"))
        for wheel in wheels[-1:]:
            try:
                return cls(zipfile.Path(wheel, f"{_FOLDER}/"))
            except (OSError, zipfile.BadZipFile) as error:
                raise UsageError(f"{wheel} cannot be read: {error}") from None
        spec = importlib.util.find_spec("bfcl_eval")  # finds the package without running it
        installed = [Path(folder) / "data" for folder in (spec.submodule_search_locations or ())] if spec else []
        for folder in (place, place / _FOLDER, place / "data", *installed):
            if (folder / "possible_answer").is_dir():
                return cls(folder)
        raise missing("bfcl", place, f"the data of the package {PACKAGE}", _HOW)

    def rows(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of a file of JSON lines, with their places."""
        path = self.root.joinpath(*name.split("/"))
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
        except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None
        if not any(line.strip() for line in lines):
            raise UsageError(f"{path} is empty: {ANOTHER_COPY}")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise UsageError(f'{path}:{number}: an item needs an "id"')
            yield f"{path}:{number}", row


def _samples(data: _Data, category: str, unusable: list[str]) -> Iterator[Sample]:
    """The items of a category. The ids of those that accept no answer go to `unusable`."""
    file = f"BFCL_v4_{category}.json"
    relevant = not category.endswith("irrelevance")
    answers = {row["id"]: row for _, row in data.rows(f"possible_answer/{file}")} if relevant else {}
    for where, row in data.rows(file):
        try:
            turns = [ChatTurn(role=turn["role"], content=turn["content"]) for turn in row["question"][0]]
            functions = row["function"]
            calls = answers[row["id"]]["ground_truth"] if relevant else []
            alone = len(turns) == 1 and turns[0].role == "user"
            sample = Sample(
                id=row["id"],
                input=turns[0].content if alone else tuple(turns),
                target={"calls": calls, "functions": functions},
                metadata={"functions": "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)},
            )
            usable = grade(sample, expected(sample)).value == 1.0
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RecursionError) as error:
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{where}: not an item of BFCL: {fault}") from None
        if usable:
            yield sample
        else:
            unusable.append(sample.id)


def expected(sample: Sample) -> str:
    return f"<answer>{example(sample.target['calls'], sample.target['functions'])}</answer>"


def grade(sample: Sample, answer: str) -> Score:
    """1 if the calls are the expected ones, in any order; `soft` is the share of them. If none is expected, any text
    that is no call is right, as on the leaderboard."""
    wanted, functions = sample.target["calls"], sample.target["functions"]
    try:
        calls = read_calls(final_answer(answer))
    except ValueError as error:
        if not wanted:
            return Score(1.0, "calls no function, as expected", soft=1.0)
        return Score(0.0, f"no calls can be read ({error}); expected {example(wanted, functions)}", soft=0.0)
    if not wanted:
        named = ", ".join(name for name, _ in calls)
        return Score(
            float(not calls), f"calls {named}, expected no call" if calls else "calls no function", float(not calls)
        )
    right, most = paired(calls, wanted, functions), max(len(calls), len(wanted))
    if right == most:
        return Score(1.0, "the calls are as expected", soft=1.0)
    why = f"{right} of {len(wanted)} expected calls are right; it makes {len(calls)}"
    if len(calls) == len(wanted) == 1:
        why = fault(calls[0], wanted[0], functions)
    return Score(0.0, f"{why}; expected {example(wanted, functions)}", soft=right / most)


BFCL = Benchmark(
    name="bfcl",
    title="BFCL v4, calls of functions",
    make=make,
    splits=(0, 0, 0),
    source="https://gorilla.cs.berkeley.edu/leaderboard.html, by the package bfcl-eval",
    licence="Apache-2.0",
    hard=Metric("calls", "all calls are as expected by the leaderboard's rules for Python, in any order"),
    soft=Metric("share of calls", "right calls, as a share of the expected or of the made ones, whichever are more"),
    gated=_HOW,
    variant="CATEGORY",
    required=True,
    traps=(
        "The leaderboard's own checker imports the SDKs of all vendors. The rules are written anew; on 63,000 altered "
        "answers they agree with it but for the pairing below.",
        "A few items accept no answer at all, such as live_simple_106-63-0. They are left out and named.",
        "The leaderboard runs arithmetic in an answer with eval. Here it is computed from the syntax tree.",
        "The leaderboard pairs parallel calls greedily, so an answer can fail although a pairing exists. Here the best "
        "pairing counts.",
        "If no call is expected, any text that is no call is right: an answer of nonsense passes too.",
    ),
)
