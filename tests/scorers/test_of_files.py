"""The scorers of files that a target left behind: `files` and `cells`."""

from __future__ import annotations

import asyncio
import datetime
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune import Env, Score
from skilltune.build import build_parts
from skilltune.config import make_config
from skilltune.errors import CallConfigError, JudgeError, NotGraded, UsageError
from skilltune.journal.run import Run
from skilltune.rollout import Artifact, Rollout, Trajectory
from skilltune.rollouts.roller import Roller
from skilltune.scorers.cells import Area, parse_areas, same_value
from skilltune.skill import Skill

openpyxl = pytest.importorskip("openpyxl")


def left(**files: bytes | str) -> Rollout:
    """A rollout whose target wrote these files; `__` stands for a dot."""
    data = {name.replace("__", "."): text if isinstance(text, bytes) else text.encode() for name, text in files.items()}
    return Rollout("s", "h", 0, Trajectory("", artifacts={k: Artifact.of(v) for k, v in data.items()}), None)


def env(target: Any, folder: Path, score: Any = "files", **row: Any) -> Env:
    return Env([{"id": "s", "input": "Write.", "target": target, **row}], score, root=folder)


def score(made: Env, rollout: Rollout) -> Score:
    return asyncio.run(made.score(made.samples[0], rollout))


# -- files


@pytest.mark.parametrize(
    ("expected", "got", "value", "why"),
    [
        ("a\nb\n", "a\nb\n", 1, "1 of 1 files"),
        ("a\nb\n", "a\r\nb", 1, "1 of 1 files"),
        ("a\nb", "\ufeffa\rb\n", 1, "1 of 1 files"),
        ("a\nb", "a\nb\n\n", 0, "it has 3 lines, expected 2"),
        ("a\nb", "a\nB", 0, 'line 2 is "B", expected "b"'),
        ("a\nb", "a \nb", 0, "line 1"),
        ("a", b"\xff", 0, "not UTF-8"),
        ("", "", 1, "1 of 1"),
        ("", "x", 0, "line 1"),
        ({"json": {"a": [1, True]}}, '{"a": [1.0, true]}', 1, "1 of 1"),
        ({"json": {"a": 1}}, '{"a": true}', 0, "expected"),
        ({"json": {"a": 1}}, '{"a": 1, "b": 2}', 0, "not expected"),
        ({"json": 1}, "{", 0, "not JSON"),
        ({"file": "gold.bin"}, b"\0\1\2", 1, "1 of 1"),
        ({"file": "gold.bin"}, b"\0\1\3", 0, "3 bytes that differ"),
    ],
)
def test_a_file_is_right_if_its_content_is(tmp_path: Path, expected: Any, got: Any, value: int, why: str) -> None:
    (tmp_path / "gold.bin").write_bytes(b"\0\1\2")
    found = score(env({"out.txt": expected}, tmp_path), left(out__txt=got))
    assert found.value == value
    assert why in found.why


@pytest.mark.parametrize(
    ("compare", "path", "expected", "got", "value"),
    [
        ("bytes", "a.txt", "a\n", "a\r\n", 0),
        ("text", "a.json", '{"a": 1}', '{"a":1}', 0),
        ("json", "a.txt", '{"a": 1}', '{"a":1}', 1),
        ("auto", "a.JSON", '{"a": 1}', ' {"a":1.0}', 1),
        ("auto", "a.json", "no JSON", "no JSON\n", 1),  # the expected file is what it is
    ],
)
def test_the_way_to_compare_can_be_chosen(
    tmp_path: Path, compare: str, path: str, expected: str, got: str, value: int
) -> None:
    made = env({path: expected}, tmp_path, {"type": "files", "compare": compare})
    assert score(made, left(**{path.replace(".", "__"): got})).value == value
    assert (
        score(env({path: expected}, tmp_path, f"files:{compare}"), left(**{path.replace(".", "__"): got})).value
        == value
    )


def test_each_right_file_is_partial_credit_and_a_missing_one_is_the_agents_fault(tmp_path: Path) -> None:
    made = env({"a": "1", "b": "2", "c": "3", "d": "4"}, tmp_path)
    found = score(made, left(a="1", b="x", c="3"))
    assert (found.value, found.soft) == (0, 0.5)
    assert found.why.startswith("2 of 4 files are as expected; b: line 1")
    assert "d: the target did not write it" in found.why
    nothing = score(made, Rollout("s", "h", 0, Trajectory("All done!"), None))
    assert (nothing.value, nothing.soft) == (0, 0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a text", "must map a path"),
        ({}, "must map a path"),
        (None, "must map a path"),
        ({"a": 3}, "must be a text, "),
        ({"a": {"fil": "x"}}, "must be a text, "),
        ({"a": {"file": "gone.txt"}}, 'no expected file "gone.txt"'),
        ({"a": {"file": "../secret"}}, "leads out of"),
        ({"a": {"file": "given.txt"}}, "so the target would receive the answer"),
    ],
)
def test_a_sample_that_cannot_be_graded_is_refused_before_anything_is_spent(
    tmp_path: Path, target: Any, message: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret").write_text("x")
    (home / "given.txt").write_text("x")
    with pytest.raises(UsageError, match=message):
        env(target, home, files={"in.txt": "given.txt"})


def test_an_expected_file_that_is_gone_or_broken_is_not_graded_and_never_a_score(tmp_path: Path) -> None:
    (tmp_path / "gold.txt").write_text("x")
    made = env({"a": {"file": "gold.txt"}}, tmp_path)
    (tmp_path / "gold.txt").unlink()
    with pytest.raises(NotGraded, match=r'sample "s": its expected file cannot be read'):
        score(made, left(a="x"))
    with pytest.raises(NotGraded, match="is not JSON"):
        score(env({"a": "{"}, tmp_path, "files:json"), left(a="{}"))
    with pytest.raises(NotGraded, match="cannot be read"):
        checks = [{"type": "files", "target": {"a": {"file": "gold.txt"}}}]
        (tmp_path / "gold.txt").write_text("x")
        made = env(None, tmp_path, "checks", checks=checks)
        (tmp_path / "gold.txt").unlink()
        score(made, left(a="x"))


def test_files_combine_with_other_checks(tmp_path: Path) -> None:
    checks = [{"type": "files", "target": {"a": "1"}}, {"type": "contains", "target": "done"}]
    made = env(None, tmp_path, "checks", checks=checks)
    assert score(made, left(a="1")).soft == 0.5
    both = Rollout("s", "h", 0, Trajectory("done", artifacts={"a": Artifact.of(b"1")}), None)
    assert score(made, both).value == 1
    not_there = env(None, tmp_path, "checks", checks=[{"type": "not", "check": checks[0]}])
    assert score(not_there, left(a="2")).value == 1
    assert score(not_there, left(a="1")).value == 0


class Silent:
    fingerprint = "silent"


def test_the_content_of_an_expected_file_is_part_of_a_rollouts_key(tmp_path: Path) -> None:
    def key(text: str, **row: Any) -> str:
        (tmp_path / "gold.txt").write_text(text)
        target: Any = Silent()
        made = env(**({"target": {"a": {"file": "gold.txt"}}} | row), folder=tmp_path)
        return Roller(target, made, run).key(Skill("x"), made.samples[0], 0)

    checks = [{"type": "not", "check": {"type": "files", "target": {"a": {"file": "gold.txt"}}}}]
    with Run.open(tmp_path / "run") as run:
        assert key("one") == key("one") != key("two")
        by_checks: Any = {"target": None, "score": "checks", "checks": checks}
        assert key("one", **by_checks) == key("one", **by_checks) != key("two", **by_checks)


@pytest.mark.parametrize("kind", ["files", "cells"])
def test_a_chat_target_cannot_be_scored_by_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "gold.xlsx").write_bytes(book(A1=1))
    rows = [{"input": f"q{i}", "target": {"a": {"file": "gold.xlsx", "cells": "A1"}}} for i in range(12)]
    made = Env(rows, kind, root=tmp_path)
    config = make_config({"target": {"model": "openai@http://127.0.0.1:9/v1/m"}})
    with Run.open(tmp_path / "run") as run, pytest.raises(UsageError, match="a chat target writes none"):
        build_parts(config, run, tmp_path, env=made, skill=Skill("x"))


# -- cells


def book(sheets: dict[str, dict[str, Any]] | None = None, **values: Any) -> bytes:
    made = openpyxl.Workbook()
    made.remove(made.active)
    for title, content in (sheets or {"Sheet": values}).items():
        sheet = made.create_sheet(title)
        for place, value in content.items():
            sheet[place] = value
    made.save(file := io.BytesIO())
    return file.getvalue()


def graded(folder: Path, gold: bytes, got: bytes, cells: str, kind: Any = "cells") -> Score:
    (folder / "gold.xlsx").write_bytes(gold)
    made = env({"out.xlsx": {"file": "gold.xlsx", "cells": cells}}, folder, kind)
    return score(made, left(out__xlsx=got))


DAY = datetime.datetime(2026, 11, 30)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1.004, 1, True),
        (1.006, 1, False),
        ("1.50", 1.5, True),
        ("1e3", 1000, True),
        ("nan", "nan", True),
        ("", None, True),
        (None, 0, False),
        (" ", None, False),
        ("a", "A", False),
        ("a", "a ", False),
        (True, 1, True),  # as the official script
        (DAY, DAY + datetime.timedelta(hours=11), True),
        (DAY, DAY + datetime.timedelta(hours=13), False),
        (DAY, "2026-11-30", False),
        (datetime.time(9, 30, 1), datetime.time(9, 30, 59), True),
        (datetime.time(9, 30), datetime.time(9, 31), False),
        ("#REF!", "#REF!", True),
    ],
)
def test_cells_are_the_same_by_the_rules_of_the_benchmark(one: Any, other: Any, same: bool) -> None:
    assert same_value(one, other) is same
    assert same_value(other, one) is same


def test_a_tolerance_replaces_the_rounding() -> None:
    assert same_value(1.0, 1.4, 0.5)
    assert not same_value(1.0, 1.004, 0.001)
    assert same_value("1.0", 1, 0.0)


@pytest.mark.parametrize(
    ("text", "areas"),
    [
        ("A1", [Area("", 1, 1, 1, 1)]),
        ("$A$1:B20", [Area("", 1, 1, 2, 20)]),
        ("'My Sheet'!A1:B2,C3", [Area("My Sheet", 1, 1, 2, 2), Area("", 3, 3, 3, 3)]),
        ("'Main!'A2:M70", [Area("Main", 1, 2, 13, 70)]),
        ("Sheet1'!A1:F14", [Area("Sheet1", 1, 1, 6, 14)]),
        ("'Sheet1!'A1:A50,'Sheet2!'A1:E20'", [Area("Sheet1", 1, 1, 1, 50), Area("Sheet2", 1, 1, 5, 20)]),
        (
            "'b2b, sez'!A5,'c, d'!B1:B2,C3",
            [*(Area("b2b, sez", 1, 5, 1, 5), Area("c, d", 2, 1, 2, 2), Area("", 3, 3, 3, 3))],
        ),
        ("G12：J15", [Area("", 7, 12, 10, 15)]),
        ("'Sheet1'!BD2:308", [Area("Sheet1", 56, 2, 56, 308)]),
        ("A:G", [Area("", 1, None, 7, None)]),
        ("xfd3", [Area("", 16384, 3, 16384, 3)]),
    ],
)
def test_positions_are_read_as_the_benchmark_writes_them(text: str, areas: list[Area]) -> None:
    assert parse_areas(text) == areas


@pytest.mark.parametrize("text", ["", "A", "1", "1:2", "A1:", "B2:A1", "A3:A2", "A1:XFD1048576", "A1;B2", "one", "A0x"])
def test_a_position_that_cannot_be_read_makes_the_sample_unusable_and_not_wrong(tmp_path: Path, text: str) -> None:
    (tmp_path / "gold.xlsx").write_bytes(book(A1=1))
    with pytest.raises(ValueError, match=r"."):
        parse_areas(text)
    with pytest.raises(UsageError, match='sample "s": '):
        env({"out.xlsx": {"file": "gold.xlsx", "cells": text}}, tmp_path, "cells")


@given(st.text(max_size=40))
def test_any_position_is_read_or_refused(text: str) -> None:
    try:
        areas = parse_areas(text)
    except ValueError:
        return
    assert all(1 <= area.left <= area.right for area in areas)


def test_the_first_wrong_cell_is_named(tmp_path: Path) -> None:
    gold = book(A1="name", B1="sum", A2="x", B2=2.5, D9=1)
    assert graded(tmp_path, gold, gold, "A1:B2").value == 1
    found = graded(tmp_path, gold, book(A1="name", B1="sum", A2="x", B2="2,5"), "A1:B2")
    assert (found.value, found.soft) == (0, 0)
    assert 'out.xlsx: B2 is "2,5", expected "2.5"' in found.why
    dated = graded(tmp_path, book(A1=DAY, A2=datetime.time(9, 30)), book(A1="30 Nov", A2="9:30"), "A1:A2")
    assert 'A1 is "30 Nov", expected "2026-11-30 00:00:00"' in dated.why
    assert 'A1 is "09:30:00"' in graded(tmp_path, book(A1=1), book(A1=datetime.time(9, 30)), "A1").why
    (tmp_path / "gold.xlsx").write_bytes(gold)
    assert 'B2 is empty, expected "2.5"' in graded(tmp_path, gold, book(A1="name", B1="sum", A2="x"), "A1:B2").why
    assert graded(tmp_path, gold, book(A1="name", B1="sum", A2="x"), "A1:B1,A2").value == 1
    assert "D9 is empty" in graded(tmp_path, gold, book(A1="name", B1="sum", A2="x", B2=2.5), "A:D").why


def test_sheets_are_found_by_name_and_the_first_of_the_expected_book_is_the_default(tmp_path: Path) -> None:
    gold = book({"One": {"A1": 1}, "Two": {"A1": 2}})
    turned = book({"Two": {"A1": 2}, "One": {"A1": 1}})
    assert graded(tmp_path, gold, turned, "A1").value == 1
    assert graded(tmp_path, gold, turned, "'Two'!A1,One!A1").value == 1
    assert 'it has no sheet "Two"; it has "One"' in graded(tmp_path, gold, book({"One": {"A1": 1}}), "Two!A1").why
    with pytest.raises(NotGraded, match='has no sheet "Three"'):
        graded(tmp_path, gold, gold, "Three!A1")


def test_a_formula_that_was_never_calculated_is_an_empty_cell(tmp_path: Path) -> None:
    assert "A3 is empty" in graded(tmp_path, book(A3=3), book(A1=1, A2=2, A3="=A1+A2"), "A3").why


@pytest.mark.parametrize("got", [b"", b"PK\3\4 torn", b"a,b\n1,2\n", b"\0" * 100])
def test_what_is_no_workbook_is_wrong_and_an_expected_one_that_is_none_is_refused(tmp_path: Path, got: bytes) -> None:
    assert "no readable workbook" in graded(tmp_path, book(A1=1), got, "A1").why
    with pytest.raises(UsageError, match=r"is no \.xlsx workbook"):
        graded(tmp_path, got, book(A1=1), "A1")


def test_an_expected_workbook_that_cannot_be_read_is_not_graded(tmp_path: Path) -> None:
    empty = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(empty, "w") as packed:
        packed.writestr("a.txt", "no workbook")
    with pytest.raises(NotGraded, match="the expected workbook"):
        graded(tmp_path, empty.getvalue(), book(A1=1), "A1")


def test_a_workbook_that_unpacks_without_end_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = book(A1=1)
    monkeypatch.setattr("skilltune.scorers.cells.MOST_BYTES", 1000)
    (tmp_path / "small.xlsx").write_bytes(gold)
    with pytest.raises((NotGraded, JudgeError, CallConfigError), match="unpacks to more than"):
        graded(tmp_path, gold, gold, "A1")


def test_a_share_of_the_cases_is_partial_credit(tmp_path: Path) -> None:
    target = {}
    for n in (1, 2, 3):
        (tmp_path / f"{n}.xlsx").write_bytes(book(A1=n))
        target[f"{n}_out.xlsx"] = {"file": f"{n}.xlsx", "cells": "A1"}
    made = env(json.loads(json.dumps(target)), tmp_path, "cells")
    files = {f"{n}_out.xlsx": Artifact.of(book(A1=1)) for n in (1, 2)}
    found = score(made, Rollout("s", "h", 0, Trajectory("", artifacts=files), None))
    assert (found.value, found.soft) == (0, pytest.approx(1 / 3))
    assert "3_out.xlsx: the target did not write it" in found.why
