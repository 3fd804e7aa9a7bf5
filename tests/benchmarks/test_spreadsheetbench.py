"""SpreadsheetBench: the loader of both versions, what a target leaves, and both definitions of the soft score."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("openpyxl", reason="the extra xlsx is not installed")

import openpyxl

from skilltune import Env, Rollout, Score, benchmarks
from skilltune.build import build_parts
from skilltune.cli.main import app
from skilltune.config import make_config
from skilltune.errors import NotGraded, UsageError
from skilltune.journal.run import Run
from skilltune.rollout import Artifact, Trajectory
from skilltune.sandbox import probe
from skilltune.skill import Skill
from upstream import Call, Turn, Upstream, turns

pytestmark = pytest.mark.anyio
needs_sandbox = pytest.mark.skipif(probe().level == "none", reason="no sandbox holds here")


def book(sheet: str = "Data", **cells: Any) -> bytes:
    made = openpyxl.Workbook()
    assert made.active is not None
    made.active.title = sheet
    for place, value in cells.items():
        made.active[place] = value
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


DOUBLE = b"""
import re, zipfile  # without openpyxl, which takes long to import
with zipfile.ZipFile("input.xlsx") as old, zipfile.ZipFile("output.xlsx", "w") as new:
    for name in old.namelist():
        text = old.read(name)
        if name.endswith("sheet1.xml"):
            value = 2 * int(re.search(rb"<v>(.*?)</v>", text)[1])
            text = text.replace(b"</c>", b'</c><c r="B1"><v>%d</v></c>' % value)
        new.writestr(name, text)
"""


def data(folder: Path, *rows: Mapping[str, Any], version: str = "v0.1", cases: int = 3) -> Path:
    """Items whose answer is twice A1, in the files of a version."""
    given, answer = ("input", "answer") if version == "v0.1" else ("init", "golden")
    items = []
    for row in rows:
        name = str(row["id"])
        place = folder / "spreadsheet" / name
        place.mkdir(parents=True)
        for n in range(1, cases + 1):
            (place / f"{n}_{name}_{given}.xlsx").write_bytes(book(A1=n))
            (place / f"{n}_{name}_{answer}.xlsx").write_bytes(book(A1=n, B1=2 * n))
        items.append({"instruction": "Double A1.", "answer_position": "B1", "instruction_type": "Cell-Level", **row})
    (folder / "dataset.json").write_text(json.dumps(items))
    return folder


def load(folder: Path, version: str = "v0.1") -> Env:
    return benchmarks.load(f"bench:spreadsheetbench/{version}", folder)


async def score(env: Env, number: int = 0, **left: bytes) -> Score:
    files = {name.replace("__", "."): Artifact.of(content) for name, content in left.items()}
    sample = sorted(env.samples, key=lambda sample: sample.id)[number]
    return await env.score(sample, Rollout(sample.id, "", 0, Trajectory("done", artifacts=files), None))


@needs_sandbox
@pytest.mark.slow
async def test_a_program_is_run_on_the_workbook_of_each_case(tmp_path: Path) -> None:
    env = load(data(tmp_path / "all", {"id": 7}))
    solved = await score(env, solution__py=DOUBLE)
    assert (solved.value, solved.soft) == (1.0, 1.0)
    by_hand = await score(env, solution__py=DOUBLE.replace(b"value = ", b"value = 4 #"))
    assert (by_hand.value, round(by_hand.partial, 3)) == (0.0, 0.333)
    assert 'case 1: B1 is "4", expected "2"' in by_hand.why
    few = load(data(tmp_path / "few", {"id": 7}, cases=2))
    fails = await score(few, solution__py=b"1 / 0")
    assert "case 1, 2: solution.py failed: exit code 1: ZeroDivisionError" in fails.why
    assert "wrote no output.xlsx" in (await score(few, solution__py=b"")).why


FIRST_ONLY = DOUBLE.replace(b"2 * int(", b'{b"1": 2}.__getitem__(')


@needs_sandbox
@pytest.mark.slow
async def test_a_chat_model_sees_the_errors_of_the_first_case_and_none_of_the_hidden_ones(tmp_path: Path) -> None:
    """Its first program fails and is mended; the last one works only for the workbook that it sees. It is never told
    how a hidden case or the cells fared, so a rollout on train is the same as one on select and test."""
    script = turns(
        Turn(calls=(Call("write", {"path": "solution.py", "content": "raise SystemExit('a slip')"}),)),
        Turn(calls=(Call("bash", {"command": "python3 solution.py"}),)),
        Turn(calls=(Call("write", {"path": "solution.py", "content": FIRST_ONLY.decode()}),)),
        Turn(calls=(Call("bash", {"command": "python3 solution.py && ls"}),)),
        Turn("Done."),
    )
    data(tmp_path / "data", *({"id": id} for id in (6, 7, 8)))
    async with Upstream(script) as upstream:
        target = {"model": f"openai@{upstream.url}/v1/m", "tools": ["bash", "write"], "max_turns": 30}
        env = {"samples": "bench:spreadsheetbench/v0.1", "data": "data", "split": [1, 1, 1]}
        cfg = make_config({"skill": "no", "env": env, "target": target, "optimizer": {"model": "examples"}})
        parts = build_parts(cfg, Run.open(tmp_path / "run"), tmp_path)
        done = {}
        for split in ("train", "select", "test"):
            (sample,) = getattr(parts.splits, split)
            upstream.asked.clear()
            rollout = await parts.target.run(Skill.parse("Be brief."), parts.env.task(sample), 0)
            made = await parts.env.score(sample, Rollout(sample.id, "", 0, rollout, None))
            assert (made.value, round(made.partial, 3)) == (0.0, 0.333)
            assert "case 2: solution.py failed: exit code 1: KeyError: b'2'" in made.why
            sent = "".join(asked.raw.decode() for asked in upstream.asked)
            assert not [name for name in ("answer.xlsx", f"2_{sample.id}", f"3_{sample.id}") if name in sent]
            messages = upstream.asked[-1].body["messages"]
            done[split] = [json.dumps(message) for message in messages if message["role"] == "tool"]
        await parts.aclose()
        parts.run.close()
    assert done["train"] == done["select"] == done["test"]
    assert any("a slip" in text for text in done["train"]), "its own error is fed back"
    assert any("output.xlsx" in text for text in done["train"]), "and the success of the next try"
    assert not any("KeyError" in text or "expected" in text for text in done["train"])


@needs_sandbox
async def test_a_program_cannot_read_the_answers(tmp_path: Path) -> None:
    env = load(data(tmp_path, {"id": "1-1"}, cases=1))
    answer = tmp_path / "spreadsheet/1-1/1_1-1_answer.xlsx"
    steal = f"import shutil; shutil.copy({str(answer)!r}, 'output.xlsx')".encode()
    link = f"import os; os.symlink({str(answer)!r}, 'output.xlsx')".encode()
    assert [(await score(env, solution__py=program)).value for program in (steal, link)] == [0.0, 0.0]


async def test_a_workbook_alone_counts_for_the_first_case_and_nothing_for_none(tmp_path: Path) -> None:
    env = load(data(tmp_path, {"id": 7}))
    made = await score(env, output__xlsx=book(B1=2))
    assert (made.value, made.soft) == (0.0, 1 / 3)
    assert "case 2, 3: the target left no solution.py to run" in made.why
    assert "(v0.1)" in made.why
    assert (await score(env, output__xlsx=b"no workbook")).soft == 0.0
    assert (await score(env)).soft == 0.0


async def test_both_soft_scores_are_named_and_differ_if_a_case_is_missing(tmp_path: Path) -> None:
    env = load(data(tmp_path, {"id": 7}, cases=1))
    made = await score(env, output__xlsx=book(B1="2.001"))
    assert (made.value, made.soft) == (1.0, 1 / 3)
    assert made.metrics == {"official": 1 / 3, "of the cases found": 1.0}
    named = benchmarks.find("spreadsheetbench")
    assert {metric.name for metric in (named.soft, *named.others)} == made.metrics.keys()
    assert "fewer than 3 test cases" in "\n".join(env.notes())


async def test_the_verified_set_has_one_case_and_other_names(tmp_path: Path) -> None:
    env = load(data(tmp_path / "a", {"id": 7}, version="verified", cases=1), "verified")
    made = await score(env, output__xlsx=book(B1=2))
    assert (made.value, made.soft, made.metrics["official"]) == (1.0, 1.0, 1.0)
    assert "solution.py" not in env.task(env.samples[0]).messages[0].text
    assert (await score(env, output__xlsx=book(B1=2, A1="changed elsewhere"))).value == 1.0
    place = tmp_path / "b" / "spreadsheetbench_verified_400"  # as the archive unpacks
    for name, files in (("9", ("initial.xlsx", "golden.xlsx")), ("10", ("1_10_init.xlsx", "1_110_golden.xlsx"))):
        (place / "spreadsheet" / name).mkdir(parents=True)
        for file in files:
            (place / "spreadsheet" / name / file).write_bytes(book(A1=1))
    rows = [{"id": n, "instruction": "Double.", "answer_position": "B1"} for n in (9, 10)]
    (place / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(sample.id for sample in load(tmp_path / "b", "verified").samples) == ["10", "9"]


def test_scores_of_the_two_versions_are_never_mixed_up(tmp_path: Path) -> None:
    folder = data(tmp_path, {"id": 7})
    with pytest.raises(UsageError, match=r"holds workbooks of v0\.1.*name bench:spreadsheetbench/v0\.1"):
        benchmarks.load("bench:spreadsheetbench", folder)
    env = load(folder)
    assert (env.name, env.scorer) == ("spreadsheetbench/v0.1", "spreadsheetbench v0.1")
    assert "not scores of the verified 400" in env.notes()[0]


@pytest.mark.slow
async def test_eval_says_which_version_its_score_is_for(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", *({"id": n} for n in range(10)), cases=1)
    (tmp_path / "SKILL.md").write_text("Edit.")
    async with Upstream(lambda asked: Turn("Done.")) as server:
        config = f"""
            skill = "SKILL.md"
            [env]
            samples = "bench:spreadsheetbench/v0.1"
            data = "{folder}"
            [target]
            model = "openai@{server.url}/v1/m"
            tools = ["python"]
            sandbox = "none"
        """
        (tmp_path / "skilltune.toml").write_text(config)
        command = ["eval", str(tmp_path), "--only", "with"]
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert "with the skill  0.0 %" in result.output
    assert "note: the workbooks are those of v0.1: scores on them are not scores of the verified 400" in result.output


def test_the_target_sees_the_first_input_and_no_answer(tmp_path: Path) -> None:
    env = load(data(tmp_path, {"id": 7}))
    task = env.task(env.samples[0])
    first = (tmp_path / "spreadsheet/7/1_7_input.xlsx").read_bytes()
    assert task.files == {"input.xlsx": first}
    assert str(tmp_path) not in repr((task.messages, task.metadata))
    _, known = env.hashes(env.samples[0])
    assert len(known) == 7  # the shown input, and three pairs of input and answer, which decide the score
    with pytest.raises(UsageError, match="a chat target never sees"):
        env.require_shown()


def test_data_may_be_named_by_a_relative_path_a_link_or_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data(tmp_path / "real", {"id": 7})
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for place in (Path("real"), tmp_path / "link", folder / "dataset.json"):
        env = load(place)
        assert len(env.hashes(env.samples[0])[1]) == 7


def test_an_item_that_cannot_be_used_is_named_and_left_out(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "answer_position": "'b, c'!B1:B2"},
        {"id": 2, "answer_position": "the total"},
        {"id": 3, "answer_position": "B1：B2"},
        {"id": 4, "answer_position": "A1:XFD1048576"},
        {"id": "5", "spreadsheet_path": "../elsewhere"},
    ]
    env = load(data(tmp_path, *rows))
    assert sorted(sample.id for sample in env.samples) == ["1", "3"]
    (said,) = [note for note in env.notes() if "unusable" in note]
    assert said.startswith("3 items are unusable and left out, never scored 0 (2: ")
    with pytest.raises(UsageError, match="can be used"):
        load(data(tmp_path / "x", {"id": 2, "answer_position": "the total"}))


@pytest.mark.parametrize("rows", [[{"instruction": "x"}], {"a": 1}, [{"id": "../x", "instruction": "i"}], [3]])
def test_a_file_of_another_kind_is_refused(rows: Any, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=r"dataset\.json"):
        load(tmp_path)


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(benchmarks.Missing, match=r"dataset\.json of v0\.1 is not in"):
        load(tmp_path)


async def test_an_answer_that_is_gone_is_no_wrong_result(tmp_path: Path) -> None:
    env = load(data(tmp_path, {"id": 7}))
    (tmp_path / "spreadsheet/7/1_7_answer.xlsx").unlink()
    with pytest.raises(NotGraded, match="cannot be read"):
        await score(env, output__xlsx=book(B1=2))


# -- formulas


async def test_without_libreoffice_a_formula_is_empty_and_the_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name, **_: None)
    env = load(data(tmp_path, {"id": 7}))
    assert "Write values, not formulas" in env.task(env.samples[0]).messages[0].text
    assert "no LibreOffice is installed" in (await score(env, output__xlsx=book(B1="=A1*2"))).why
    assert "LibreOffice" not in (await score(env, output__xlsx=book(B1=3))).why


@needs_sandbox
@pytest.mark.slow
async def test_libreoffice_calculates_formulas_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in its place writes what LibreOffice would."""
    office = tmp_path / "bin" / "soffice"
    office.parent.mkdir()
    fill = 'book.active["B1"] = 2; book.save("calculated/output.xlsx")'
    code = f'import openpyxl, os; book = openpyxl.load_workbook("output.xlsx"); os.mkdir("calculated"); {fill}'
    office.write_text(f"#!/bin/sh\n[ \"$2\" = --headless ] && exec {sys.executable} -c '{code}'\n")
    office.chmod(0o755)
    monkeypatch.setenv("PATH", f"{office.parent}{os.pathsep}{os.environ['PATH']}")
    env = load(data(tmp_path / "data", {"id": 7}, version="verified", cases=1), "verified")
    assert "are calculated before" in env.task(env.samples[0]).messages[0].text
    assert (await score(env, output__xlsx=book(B1="=A1*2"))).value == 1.0
    assert (await score(env, output__xlsx=book(B1=3))).value == 0.0  # nothing to calculate
    office.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(NotGraded, match="calculated no formulas: exit code 3"):
        await score(env, output__xlsx=book(B1="=A1*2"))
