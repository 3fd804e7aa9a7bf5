"""SpreadsheetBench: changes to Excel workbooks, each tested on up to three workbooks of the same layout.

The target sees the first workbook. In v0.1 it leaves a program that is run on the workbook of each test case, so that
what was written by hand for the first one fails on the others. In the verified set each item has one case, and the
target leaves the changed workbook itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from skilltune.benchmarks.benchmark import Benchmark, Draw, Metric, Source, missing, text
from skilltune.benchmarks.rows import Row, json_lines, json_list, text_of
from skilltune.envs import Env
from skilltune.errors import CallConfigError, InfraError, JudgeError, NotGraded, UsageError
from skilltune.execute import current
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.sandbox import Sandbox, describe
from skilltune.scorers.apart import Raised, call_apart
from skilltune.scorers.cells import difference, parse_areas, require_openpyxl
from skilltune.scorers.scorer import Scorer
from skilltune.scorers.tests import RESEND, Options, TestsJob, required_sandbox, run_over

INPUT, OUTPUT, PROGRAM = "input.xlsx", "output.xlsx", "solution.py"
CASES = 3  # of each item of v0.1, by the official scorer
PROGRAM_S = 120.0  # seconds of a program on one workbook, and of a calculation
MOST_BYTES = 50_000_000  # of a sheet that is searched for formulas
NAMES = {
    "verified": (("{n}_*_init.xlsx", "{n}_*_golden.xlsx"), ("initial.xlsx", "golden.xlsx")),
    "v0.1": (("{n}_*_input.xlsx", "{n}_*_answer.xlsx"),),
}
"""Names of a case's workbooks, input and answer, in the folder of an item. The id in a name is not always right."""
ARCHIVES = {"verified": "spreadsheetbench_verified_400", "v0.1": "spreadsheetbench_912_v0.1"}
_ID = re.compile(r"[\w.-]+")
_UNCALCULATED = re.compile(rb"<c\b(?![^>]*\bt=\"str\")[^>]*>\s*<f\b(?:[^>]*/>|[^<]*</f>)\s*(?:<v\s*/>|<v>\s*</v>|</c>)")
SHOWN = 300  # characters of a program's output in a reason
NAMED = 3  # unusable items that a remark names


def make(place: Path, variant: str, draw: Draw) -> Env:
    require_openpyxl()
    listed = place.resolve()
    if (unpacked := listed / ARCHIVES[variant]).is_dir():
        listed = unpacked
    place = listed.parent if listed.is_file() else listed
    unusable: dict[str, str] = {}
    samples = draw(_samples(listed, place, variant, unusable))
    if not samples:
        why = f" (first: {next(iter(unusable.values()))})" if unusable else ""
        raise UsageError(f"bench:spreadsheetbench/{variant}: no item in {place} can be used{why}")
    calculator = shutil.which("soffice") or shutil.which("libreoffice") or ""
    prompt = text("spreadsheetbench", "prompt.md").rstrip()
    deliverable = "workbook.md" if variant == "verified" else "program.md"
    for slot, file in (("deliverable", deliverable), ("formulas", "calculated.md" if calculator else "values.md")):
        prompt = prompt.replace(f"{{{slot}}}", text("spreadsheetbench", file).rstrip())
    grader = Grader(place, variant, calculator)
    made = Env(samples, grader.scorer(), prompt=prompt, root=place)
    made.remarks += _remarks(grader, samples, unusable)
    return made


def _remarks(grader: Grader, samples: list[Sample], unusable: Mapping[str, str]) -> Iterator[str]:
    if grader.variant != "verified":
        yield "the workbooks are those of v0.1: scores on them are not scores of the verified 400"
        yield f"the programs that targets leave run in {describe(grader.sandbox)}"
    if grader.variant != "verified" and (few := sum(len(sample.target) < CASES for sample in samples)):
        yield f"{few} samples have fewer than {CASES} test cases: the official soft score counts a missing case as 0"
    if not grader.calculator:
        yield (
            "LibreOffice (soffice) is not installed, so a formula that a target writes has no value and reads as an "
            "empty cell; the prompt says so"
        )
    if unusable:
        first = "; ".join(f"{name}: {why}" for name, why in list(unusable.items())[:NAMED])
        yield f"{len(unusable)} items are unusable and left out, never scored 0 ({first})"


# -- the data


def _samples(listed: Path, place: Path, variant: str, unusable: dict[str, str]) -> Iterator[Sample]:
    """The items whose workbooks are there and whose position can be read. The reasons for others go to `unusable`."""
    for where, row in _rows(listed, variant):
        name = str(row.get("id", ""))
        if not _ID.fullmatch(name):
            raise UsageError(f'{where}: "id" must be a name such as 13-1, not {name!r:.80}')
        instruction, position = text_of(row, "instruction", where), text_of(row, "answer_position", where)
        try:
            parse_areas(position)
        except ValueError as error:
            unusable[name] = str(error)
            continue
        folder = str(row.get("spreadsheet_path") or f"spreadsheet/{name}").removeprefix("/")
        cases = list(_cases(place, folder, variant))
        if not cases:
            _refuse_other_version(place, folder, variant)
            unusable[name] = f"no workbooks in {folder}"
            continue
        yield Sample(
            id=name,
            input=instruction,
            files={INPUT: cases[0][0]},
            target=[{"input": given, "answer": answer, "cells": position} for given, answer in cases],
            metadata={"answer_position": position, "instruction_type": str(row.get("instruction_type", ""))},
        )


def _rows(place: Path, variant: str) -> Iterator[Row]:
    found = [place] if place.is_file() else [place / "dataset.json", *sorted(place.glob("*.jsonl"))]
    file = next((path for path in found if path.is_file()), None)
    if file is None:
        raise missing("spreadsheetbench", place, f"dataset.json of {variant}")
    yield from json_lines(file) if file.suffix == ".jsonl" else json_list(file)


def _cases(place: Path, folder: str, variant: str) -> Iterator[tuple[str, str]]:
    """The test cases of an item as paths of (input, answer); a case without one of its files is left out."""
    try:
        if not (place / folder).resolve().is_relative_to(place.resolve()):
            return
    except (OSError, ValueError):  # no name of a folder
        return
    for n in range(1, CASES + 1):
        for given, answer in NAMES[variant]:
            found = [sorted((place / folder).glob(form.format(n=n))) for form in (given, answer)]
            if ("{n}" in given or n == 1) and all(found):
                yield str(found[0][0].relative_to(place)), str(found[1][0].relative_to(place))
                break


def _refuse_other_version(place: Path, folder: str, variant: str) -> None:
    """Raise UsageError if the workbooks of an item are those of the other version."""
    for other in NAMES:
        if other != variant and list(_cases(place, folder, other)):
            raise UsageError(
                f"bench:spreadsheetbench/{variant}: {place} holds workbooks of {other}, and scores on them are not "
                f"scores of {variant}: name bench:spreadsheetbench/{other}, or other data with --data PATH (env.data)"
            )


# -- the score


@dataclass(frozen=True, slots=True)
class Grader:
    """Compares what a target left with the answer of each test case.

    `calculator` is the program that calculates formulas, or "".
    """

    root: Path
    variant: str
    calculator: str

    @property
    def options(self) -> Options:
        return Options(command=(sys.executable, PROGRAM), timeout_s=PROGRAM_S)

    @property
    def sandbox(self) -> Sandbox:
        return required_sandbox(self.options)

    def scorer(self) -> Scorer:
        spec = repr(("spreadsheetbench 1", self.variant, bool(self.calculator)))
        return Scorer(
            f"spreadsheetbench {self.variant}",
            hashlib.sha256(spec.encode()).hexdigest(),
            self.score,
            lambda sample: "",
            describe=lambda sample: [f"all cells {sample.target[0]['cells']} of {len(sample.target)} test cases match"],
            reads=lambda sample: [self.root / case[key] for case in sample.target for key in ("input", "answer")],
        )

    async def score(self, sample: Sample, rollout: Rollout) -> Score:
        """1 if all cells of all cases are as expected. `soft` is the official share of cases, see `METRICS`."""
        wrong: dict[int, str] = {}
        for number, case in enumerate(sample.target, 1):
            if why := await self._fault(sample, rollout, number, case):
                wrong[number] = why
        found = len(sample.target)
        right = found - len(wrong)
        official = right / (CASES if self.variant == "v0.1" else found)
        metrics = {"official": official, "of the cases found": right / found}
        said = f"{right} of {found} test cases are as expected ({self.variant})"
        for why in dict.fromkeys(wrong.values()):
            said += f"; case {', '.join(str(number) for number, other in wrong.items() if other == why)}: {why}"
        return Score(float(not wrong), said, official, metrics)

    async def _fault(self, sample: Sample, rollout: Rollout, number: int, case: Mapping[str, str]) -> str:
        """The reason why a case is not as expected; "" if it is."""
        made = await self._result(sample, rollout, number, case)
        if isinstance(made, str):
            return made
        empty = await asyncio.to_thread(uncalculated, made)
        if empty and self.calculator:
            made = await self._calculated(sample, made)
        answer = self._read(sample, case["answer"])
        found = await call_apart(lambda: difference(sample, made, answer, case["cells"]))
        if isinstance(found, Raised):
            raise found.error
        if found and empty and not self.calculator:
            found += " (the workbook has formulas without values, and no LibreOffice is installed to calculate them)"
        return found

    async def _result(self, sample: Sample, rollout: Rollout, number: int, case: Mapping[str, str]) -> bytes | str:
        """The workbook of a case, or the reason why there is none."""
        if PROGRAM not in rollout.artifacts or (self.variant == "verified" and OUTPUT in rollout.artifacts):
            if number == 1 and OUTPUT in rollout.artifacts:
                return rollout.artifact(OUTPUT)
            lacks = f"{PROGRAM} to run" if self.variant == "v0.1" else OUTPUT
            return f"the target left no {lacks}"
        files = {INPUT: self._read(sample, case["input"]), PROGRAM: rollout.artifact(PROGRAM)}
        made, ended = await self._run(sample, files, self.options.argv, OUTPUT)
        if ended:
            return f"{PROGRAM} failed: {ended}"
        return made or f"{PROGRAM} wrote no {OUTPUT}"

    async def _calculated(self, sample: Sample, made: bytes) -> bytes:
        """The workbook with the values of its formulas. Raises `NotGraded` if LibreOffice fails."""
        options = ("--headless", "--convert-to", "xlsx", "--outdir", "calculated", OUTPUT)
        argv = ("sh", "-c", text("spreadsheetbench", "calculate.sh"), "sh", self.calculator, *options)
        done, fault = await self._run(sample, {OUTPUT: made}, argv, f"calculated/{OUTPUT}")
        if done is None:
            raise NotGraded(
                f'sample "{sample.id}": {self.calculator} calculated no formulas: {fault or "it wrote no workbook"}',
                systemic="LibreOffice does not calculate workbooks",
            )
        return done

    async def _run(
        self, sample: Sample, files: Mapping[str, bytes], argv: tuple[str, ...], wanted: str
    ) -> tuple[bytes | None, str]:
        """(the file that a command wrote or None, the reason why the command failed or "")."""
        job = TestsJob(files, argv, self.options, self.sandbox.level, self.root, (wanted,))
        try:
            ran = await current.get().run(run_over, job, resend=RESEND)
        except CallConfigError as error:
            raise NotGraded(f'sample "{sample.id}": {argv[-1]} did not run: {error}', systemic=str(error)) from error
        except InfraError as error:
            raise JudgeError(f'sample "{sample.id}": {argv[-1]} did not end: {error}') from error
        ended = ran.exit
        output = (ended.stdout + ended.stderr).decode(errors="replace").strip().rpartition("\n")[2][-SHOWN:]
        if ended.limit:
            return None, f"it passed the limit {ended.limit} ({PROGRAM_S:g} s)"
        return ran.files.get(wanted), f"exit code {ended.code}: {output}" if ended.code else ""

    def _read(self, sample: Sample, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            why = f'sample "{sample.id}": {path} cannot be read: {error.strerror}'
            raise NotGraded(why, systemic="a workbook of the benchmark cannot be read") from error


def uncalculated(workbook: bytes) -> bool:
    """True if a workbook holds a formula without a stored value, as every formula that openpyxl writes."""
    try:
        with zipfile.ZipFile(BytesIO(workbook)) as packed:
            sheets = [part for part in packed.infolist() if part.filename.startswith("xl/worksheets/")]
            return any(_UNCALCULATED.search(packed.read(part)) for part in sheets if part.file_size <= MOST_BYTES)
    except Exception:  # no workbook: the comparison says so
        return False


_HOST = "https://raw.githubusercontent.com/RUCKBReasoning/SpreadsheetBench/main/data"
SPREADSHEETBENCH = Benchmark(
    name="spreadsheetbench",
    title="SpreadsheetBench, changes to workbooks",
    make=make,
    splits=(80, 40, 280),
    source="https://github.com/RUCKBReasoning/SpreadsheetBench",
    licence="CC BY-SA 4.0",
    hard=Metric("all cases", "all cells of all test cases are as expected"),
    soft=Metric("official", f"share of the {CASES} test cases (verified: of the one); a missing case counts as failed"),
    others=(Metric("of the cases found", "share of the test cases whose files are there, as in the paper's code"),),
    files=tuple(Source(f"{name}.tar.gz", f"{_HOST}/{name}.tar.gz", unpack=True) for name in ARCHIVES.values()),
    needs="xlsx",
    variants=("verified", "v0.1"),
    settings=text("spreadsheetbench", "settings.toml"),
    traps=(
        "The workbooks of v0.1 and of the verified 400 differ, so each is a variant: a score names the one it is for.",
        "The official script as published compares the answer with the input file. Here the target's workbook counts.",
        "Positions have full-width colons, whole columns, misplaced quotes and commas in names of sheets. All that can "
        "be read is read; any other item is left out and named, never 0.",
        "A formula that openpyxl writes has no stored value. LibreOffice calculates it if installed; else it is empty.",
        "Some inputs already hold the answer: 13-1 passes untouched, and so do single cases of 263-1, 10747, 32023, "
        "37378 and 55060.",
    ),
)
