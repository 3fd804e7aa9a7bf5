"""The one-turn benchmarks on fixtures of our own: loaders, prompts, scorers and their traps."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_server import Answer, Server
from skilltune import benchmarks
from skilltune.api import aevaluate
from skilltune.benchmarks import bbh, docvqa, livemath, officeqa, searchqa
from skilltune.benchmarks.figures import figures, matches
from skilltune.envs import Env
from skilltune.errors import UsageError
from skilltune.preflight.audit import audit
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample, split
from skilltune.workspace.tools import ToolError

pytestmark = pytest.mark.anyio


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


async def graded(env: Env, sample: Sample, answer: str) -> Score:
    return await env.score(sample, Rollout(sample.id, "", 0, Trajectory(answer), None))


# -- SearchQA

CLUE = {
    "id": "a1",
    "question": "A stone bridge builder of our town",
    "context": "[DOC] [TLE] Bridges [PAR] Built by the {co-op}. [DOC] [TLE] More [PAR] text",
    "answers": ["The Co-op", "Miller"],
}


async def test_searchqa_reads_rows_and_scores_their_answers(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", [CLUE, {**CLUE, "id": "a2", "answers": ["The"]}])
    env = benchmarks.load("bench:searchqa", tmp_path)
    assert await env.validate() == []
    text = env.task(env.samples[0]).messages[0].text
    assert CLUE["context"] in text
    assert f"Clue: {CLUE['question']}" in text


@pytest.mark.parametrize(
    ("answer", "em", "contains"),
    [
        ("<answer>coop</answer>", 1, 1),  # punctuation is deleted, not replaced by a space
        ("I think\n<ANSWER> the CO-OP! </ANSWER>", 1, 1),
        ("Miller", 1, 1),
        ("It was miller\n\n", 0, 1),
        ("<answer>co op</answer>", 0, 0),
        ("<answer></answer>", 0, 0),
        ("<answer>the</answer>", 0, 0),
        ("<answer>?!</answer>", 0, 0),
    ],
)
def test_searchqa_reports_both_definitions(answer: str, em: int, contains: int) -> None:
    score = searchqa.grade(Sample(id="1", input="?", target=CLUE["answers"]), answer)
    assert (score.value, score.metrics["em"], score.metrics["contains"]) == (em, em, contains)
    assert score.soft == score.metrics["f1"] >= em


def test_an_empty_prediction_equals_no_article() -> None:
    """SQuAD's script makes both texts empty, and would score 1."""
    sample = Sample(id="1", input="?", target=["The"])
    assert searchqa.grade(sample, "<answer>a</answer>").value == 0
    assert searchqa.grade(sample, "<answer>The</answer>").value == 1


def test_a_long_context_is_cut_between_documents() -> None:
    parts = [f"[DOC] [TLE] {i} [PAR] {'x' * 1500}" for i in range(6)]
    kept = searchqa.shortened(" ".join(parts))
    assert len(kept) <= searchqa.CONTEXT_CHARS
    assert kept == " ".join(parts[:3])
    alone = searchqa.shortened("[DOC] " + "y" * 9000)
    assert len(alone) == searchqa.CONTEXT_CHARS


@pytest.mark.parametrize("row", [{**CLUE, "answers": "Miller"}, {**CLUE, "answers": [" "]}, {**CLUE, "context": ""}])
def test_searchqa_refuses_rows_of_another_kind(tmp_path: Path, row: dict[str, Any]) -> None:
    lines(tmp_path / "x.jsonl", [CLUE, row])
    with pytest.raises(UsageError, match=r"x\.jsonl:2"):
        benchmarks.load("bench:searchqa", tmp_path)


# -- LiveMathematicianBench


def question(number: int, giveaway: bool = False, month: str = "202501") -> dict[str, Any]:
    right = "One of the remaining options is correct, but a stronger result holds." if giveaway else f"x < {number}"
    wrong = [{"label": label, "text": f"x < {number}{label}"} for label in "BCDE"]
    mcq = {"question": f"Bound {number}?", "correct_choice": {"label": "A", "text": right}, "choices": wrong}
    return {"month": month, "no": number, "theorem": f"T{number}", "sketch": f"S{number}", "mcq": mcq}


@pytest.fixture
def theorems(tmp_path: Path) -> Path:
    rows = [question(i, giveaway=i % 2 == 0) for i in range(120)]
    (tmp_path / "202501").mkdir()
    (tmp_path / "202501" / "qa_202501_final.json").write_text(json.dumps(rows))
    return tmp_path


async def test_livemath_merges_and_shuffles_the_options(theorems: Path) -> None:
    env = benchmarks.load("bench:livemath", theorems)
    assert await env.validate() == []
    places = Counter(str(sample.target) for sample in env.samples)
    assert set(places) == set("ABCDE")
    assert max(places.values()) < 0.35 * len(env.samples)
    again = benchmarks.load("bench:livemath", theorems)
    assert [sample.target for sample in again.samples] == [sample.target for sample in env.samples]


async def test_livemath_shows_neither_theorem_nor_sketch_by_default(theorems: Path) -> None:
    for variant, shown in (("all", False), ("plain", False), ("theorem", True)):
        env = benchmarks.load(f"bench:livemath/{variant}", theorems)
        text = env.task(env.samples[0]).messages[0].text
        assert ("Theorem: T" in text) is shown
        assert text.count("x < ") >= 4
        assert env.samples[0].metadata.keys() == {"choices"}


async def test_the_audit_finds_the_option_that_gives_the_key_away(theorems: Path) -> None:
    for variant, found in (("all", True), ("plain", False)):
        env = benchmarks.load(f"bench:livemath/{variant}", theorems)
        notes = (await audit(env, split(env.samples, env.split or (), 42))).notes
        assert any("remaining options" in note for note in notes) is found
        assert any("Report bench:livemath/plain" in note for note in env.notes()) is found


@pytest.mark.parametrize(
    ("answer", "value"),
    [("<answer>{label}</answer>", 1), ("{lower}).", 1), ("{text}", 1), ("Z", 0), ("", 0), ("{wrong}", 0)],
)
async def test_livemath_matches_a_label_or_an_option(theorems: Path, answer: str, value: int) -> None:
    env = benchmarks.load("bench:livemath/plain", theorems)
    sample = env.samples[0]
    options = {option["label"]: option["text"] for option in sample.metadata["choices"]}
    wrong = next(label for label in options if label != sample.target)
    said = answer.format(
        label=sample.target, lower=str(sample.target).lower(), text=options[str(sample.target)], wrong=wrong
    )
    assert (await graded(env, sample, said)).value == value


def test_livemath_refuses_equal_options_and_other_files(tmp_path: Path) -> None:
    twice = question(1)
    twice["mcq"]["choices"][0]["text"] = twice["mcq"]["correct_choice"]["text"]
    for rows, message in (([twice], "differ"), ([{"no": 1}], "mcq"), ({"no": 1}, "list")):
        (tmp_path / "qa_1.json").write_text(json.dumps(rows))
        with pytest.raises(UsageError, match=message):
            livemath.make(tmp_path, "all", benchmarks.Draw((1, 1, 1)))


# -- BIG-Bench Hard


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct_choice": {"text": 3}},
        {"correct_choice": {"text": ["x"]}},
        {"correct_choice": None},
        {"choices": [{"text": None}]},
        {"choices": "ab"},
        {"choices": [{"text": str(n)} for n in range(26)]},
        {"choices": []},
    ],
)
def test_livemath_names_a_question_of_another_kind(tmp_path: Path, wrong: dict[str, Any]) -> None:
    mcq = {"question": "?", "correct_choice": {"text": "right"}, "choices": [{"text": "wrong"}]}
    (tmp_path / "qa_1.json").write_text(json.dumps([{"month": "m", "no": 1, "mcq": mcq | wrong}]))
    with pytest.raises(UsageError, match="item 1"):
        benchmarks.load("bench:livemath", tmp_path)


@pytest.mark.parametrize(
    ("target", "answer", "value"),
    [
        ("(B)", "<answer>B</answer>", 1),
        ("(B)", "so it is\n(b).", 1),
        ("(B)", "<answer>(C)</answer>", 0),
        ("(B)", "<answer>B or C</answer>", 0),
        ("True", "true", 1),
        ("No", "<answer>no.</answer>", 1),
        ("24", "24", 1),
        ("24", "-24", 0),
        ("] )", "<answer>])</answer>", 1),
        ("] )", "<answer>) ]</answer>", 0),
        ("ant bee", "<answer>ant  bee</answer>", 1),
        ("ant bee", "<answer>antbee</answer>", 0),
    ],
)
def test_bbh_compares_the_form_that_a_task_asks_for(target: str, answer: str, value: int) -> None:
    score = bbh.grade(Sample(id="1", input="?", target=target), answer)
    assert score.value == value
    assert score.metrics["strict"] <= value


async def test_bbh_reads_one_task(tmp_path: Path) -> None:
    rows = [{"input": f"{i} + 1 =", "target": str(i + 1)} for i in range(20)]
    (tmp_path / "object_counting.json").write_text(json.dumps({"canary": "x", "examples": rows}))
    env = benchmarks.load("bench:bbh/object_counting", tmp_path)
    assert await env.validate() == []
    assert env.split is None
    with pytest.raises(benchmarks.Missing, match=r"navigate\.json is not in"):
        benchmarks.load("bench:bbh/navigate", tmp_path)
    with pytest.raises(UsageError, match="did you mean"):
        benchmarks.load("bench:bbh/navigat", tmp_path)
    with pytest.raises(UsageError, match="needs a variant"):
        benchmarks.load("bench:bbh", tmp_path)


# -- DocVQA


def png(shade: int) -> bytes:
    """A PNG of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, shade]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def pages(folder: Path, n: int = 20) -> Path:
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(n):
        (folder / f"page{i}.png").write_bytes(png(i))
        rows.append(
            {"questionId": i, "question": f"Total of page {i}?", "answers": [f"{i}00 EUR"], "image": f"page{i}.png"}
        )
    lines(folder / "questions.jsonl", rows)
    return folder


async def test_docvqa_sends_the_page_as_an_image(tmp_path: Path) -> None:
    reply = {"choices": [{"message": {"content": "<answer>100 EUR</answer>"}}], "usage": {}}
    async with Server(Answer(reply)) as server:
        env = {"samples": "bench:docvqa", "data": str(pages(tmp_path / "data")), "limit": 8}
        found = await aevaluate("", env, f"openai@{server.url}/v1/eyes", split="test")
    assert found.n >= 2
    content = server.calls[0].body["messages"][0]["content"]
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert [url.partition(",")[0] for url in images] == ["data:image/png;base64"]


@pytest.mark.parametrize(
    ("answer", "soft", "hard"),
    [
        ("100 eur", 1.0, 1),
        ("100  EUR", 1.0, 1),
        ("101 EUR", 1 - 1 / 7, 0),
        ("EUR", 0.0, 0),
        ("<answer></answer>", 0.0, 0),
    ],
)
def test_docvqa_is_solved_at_an_anls_of_almost_1(answer: str, soft: float, hard: int) -> None:
    score = docvqa.grade(Sample(id="1", input="?", target=["1 dollar", "100 EUR"]), answer)
    assert (score.value, score.soft) == (hard, pytest.approx(soft))


@pytest.mark.parametrize("wrong", [{"image": None}, {"image": {"bytes": "x"}}, {"answers": [""]}, {"answers": [None]}])
def test_docvqa_names_a_question_without_image_or_answer(tmp_path: Path, wrong: dict[str, Any]) -> None:
    row = {"questionId": 1, "question": "?", "answers": ["a"], "image": "a.png"} | wrong
    (tmp_path / "val.json").write_text(json.dumps({"data": [row]}))
    with pytest.raises(UsageError, match="item 1"):
        benchmarks.load("bench:docvqa", tmp_path)


async def test_docvqa_extracts_only_the_images_of_drawn_samples(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra hf")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "questionId": str(i),
            "question": f"Total {i}?",
            "answers": [f"{i}"],
            "ucsf_document_id": f"doc/{i // 2}",  # two questions on each page
            "ucsf_document_page_no": "1",
            "image": {"bytes": png(i // 2), "path": None},
        }
        for i in range(40)
    ]
    (tmp_path / "DocVQA").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "DocVQA" / "validation-0.parquet", row_group_size=7)
    env = benchmarks.load("bench:docvqa", tmp_path, limit=6)
    images = list((tmp_path / "images").iterdir())
    assert 3 <= len(images) <= 6
    for sample in env.samples:
        assert env.task(sample).messages[0].images[0].data == png(int(sample.id) // 2)
    assert await env.validate() == []
    assert len(benchmarks.load("bench:docvqa", tmp_path, limit=6).samples) == 6  # from the images that are there


async def test_searchqa_reads_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra hf")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"key": f"k{i}", **{k: CLUE[k] for k in ("question", "context", "answers")}} for i in range(9)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-0.parquet")
    env = benchmarks.load("bench:searchqa", tmp_path, limit=4)
    assert len(env.samples) == 4
    assert await env.validate() == []


# -- OfficeQA


def bulletins(folder: Path, *answers: str) -> Path:
    corpus = folder / "treasury_bulletins_parsed" / "transformed"
    corpus.mkdir(parents=True)
    (corpus / "own_1950_01.txt").write_text("Receipts | 12.5\n")
    rows = ["uid,question,answer,source_docs,source_files,difficulty"]
    rows += [f'U{i},How many {i}?,"{answer}",,own_1950_01.txt,easy' for i, answer in enumerate(answers)]
    (folder / "officeqa_full.csv").write_text("\n".join(rows) + "\n")
    return folder


async def test_officeqa_reads_the_publishers_table(tmp_path: Path) -> None:
    env = benchmarks.load("bench:officeqa", bulletins(tmp_path, "12.5", "March 1977", "[1, 2]", "Trust Fund (OASI)"))
    assert await env.validate() == []
    task = env.task(env.samples[0])
    assert task.files == {}
    offered = env.tools(task)
    assert offered is not None
    async with offered as tools:
        assert "Receipts" in await tools.call("grep", {"pattern": "12[.]5"})
        with pytest.raises(ToolError):  # the questions and answers lie beside the documents
            await tools.call("read", {"path": "../../officeqa_full.csv"})
    oracle = benchmarks.load("bench:officeqa/oracle", tmp_path)
    assert oracle.task(oracle.samples[0]).files == {"own_1950_01.txt": b"Receipts | 12.5\n"}


def test_officeqa_explains_the_gate(tmp_path: Path) -> None:
    for place in (tmp_path, bulletins(tmp_path / "no_questions")):
        (place / "officeqa_full.csv").unlink(missing_ok=True)
        with pytest.raises(benchmarks.Missing, match="the publisher gates") as caught:
            benchmarks.load("bench:officeqa", place)
        assert "HF_TOKEN" in str(caught.value)


@pytest.mark.parametrize(
    ("expected", "answer", "value"),
    [
        ("12.5", "It is\n<FINAL_ANSWER>1</FINAL_ANSWER> no\n<final_answer> 12.50 % </final_answer>", 1),
        ("12.5", "I put it into <FINAL_ANSWER> tags.\n<FINAL_ANSWER>12.5</FINAL_ANSWER>", 1),
        ("12.5", "12.5", 1),
        ("12.5", "the answer\nis 12.5", 0),
        ("12.5", "<FINAL_ANSWER></FINAL_ANSWER>12.5", 0),
        ("12.5", f"12.5 {'x' * 250}", 0),
        ("12.5", "12.5, but unable to determine", 0),
        ("12.5", "12.5 13.5 14.5", 0),
    ],
)
def test_officeqa_refuses_what_is_no_final_answer(expected: str, answer: str, value: int) -> None:
    assert officeqa.grade(Sample(id="1", input="?", target=expected), answer).value == value


@pytest.mark.parametrize(
    "row", [b"1,\xff,5", b"1," + b"q" * 200_000 + b",5", b'1,"q,5', b"1,q"], ids=["bytes", "huge", "open", "short"]
)
def test_a_damaged_table_is_named(tmp_path: Path, row: bytes) -> None:
    place = bulletins(tmp_path)
    (place / "officeqa_full.csv").write_bytes(b"uid,question,answer\n" + row + b"\n")
    with pytest.raises(UsageError, match=r"officeqa_full\.csv"):
        benchmarks.load("bench:officeqa", place)


def test_officeqa_reports_every_definition() -> None:
    score = officeqa.grade(Sample(id="1", input="?", target="1,000 million"), "1004")
    assert score.metrics == {
        "official": 0,
        "within 0.1 %": 0,
        "within 1 %": 1,
        "within 5 %": 1,
        "em": 0,
        "f1": score.soft,
    }


@pytest.mark.parametrize(
    ("expected", "got", "tolerance", "equal"),
    [
        ("543 million", "543", 0, True),
        ("543 million", "543 billion", 0, False),
        ("543 million", "543000000", 0, False),
        ("543 m", "in millions: 543", 0, True),
        ("5 million and 3 billion", "5 million, 3 million", 0, False),
        ("-123", "(123)", 0, True),
        ("123", "(123)", 0, False),
        ("−7", "-7", 0, True),
        ("1,234.5", "US$ 1234.50 million in 1977", 0, True),
        ("12.5%", "12.5", 0, True),
        ("0", "0.00", 0, True),
        ("0", "0.01", 0.05, False),
        ("100", "105", 0.05, True),
        ("100", "105.1", 0.05, False),
        ("[1, 2]", "1 and 2", 0, True),
        ("[1, 2]", "2, 1", 0, False),
        ("12", "in 1999 it was 12", 0, True),
        ("1999", "1999", 0, True),
        ("2003", "in 2001 it was 2003", 0, False),
        ("March 1977", "March 1977", 0, True),
        ("March 1977", "April 1977", 0, False),
        ("March 1977", "1977", 0, False),
        ("March 1977", "ar 1977", 0, False),
        ("Trust Fund (OASI)", "'trust fund'.", 0, True),
        ("Trust Fund", "trust funds", 0, False),
    ],
)
def test_figures_match_as_the_publisher_defines(expected: str, got: str, tolerance: float, equal: bool) -> None:
    assert matches(expected, got, tolerance) is equal


@given(st.text("0123456789.,-()$%€ −bkmilonA'", max_size=30))
def test_any_text_matches_itself(text: str) -> None:
    assert matches(text, text)
    assert all(figure.value == figure.value for figure in figures(text))


# -- data that is empty

EMPTY = [  # (benchmark, file, content without an item)
    ("searchqa", "train.jsonl", "\n"),
    ("gsm8k", "train.jsonl", ""),
    ("gsm8k", "test.jsonl", "\ufeff"),
    ("livemath", "qa_202511_final.json", ""),
    ("livemath", "qa_202511_final.json", "[]"),
    ("docvqa", "val.json", ""),
    ("docvqa", "val.json", '{"data": []}'),
    ("docvqa", "val.jsonl", ""),
    ("docvqa", "validation-0.parquet", ""),
    ("officeqa", "officeqa_full.csv", ""),
    ("officeqa", "officeqa_full.csv", "uid,question,answer\n"),
    ("bbh/navigate", "navigate.json", ""),
    ("bbh/navigate", "navigate.json", '{"examples": []}'),
    ("bfcl/irrelevance", "BFCL_v4_irrelevance.json", "\n"),
    ("alfworld", "a/game.tw-pddl", ""),
]


@pytest.mark.parametrize(("name", "file", "content"), EMPTY)
def test_an_empty_file_of_a_benchmark_is_named_with_the_way_out(
    tmp_path: Path, name: str, file: str, content: str
) -> None:
    for folder in ("corpus", "possible_answer"):  # of officeqa and bfcl
        (tmp_path / folder).mkdir()
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(UsageError) as found:
        benchmarks.load(f"bench:{name}", tmp_path)
    assert str(found.value).startswith(str(path))
    assert str(found.value).endswith("delete it and fetch it again, or name another copy with --data PATH (env.data)")


@pytest.mark.parametrize("name", [name for name in benchmarks.BENCHMARKS if name not in ("rg", "bfcl")])
def test_an_empty_folder_of_a_benchmark_is_named_with_the_command_that_fills_it(tmp_path: Path, name: str) -> None:
    if name == "spreadsheetbench":
        pytest.importorskip("openpyxl")
    with pytest.raises(UsageError, match=r"is not in .*skilltune data fetch") as found:
        benchmarks.load(f"bench:{name}{'/navigate' if name == 'bbh' else ''}", tmp_path)
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize(("name", "file"), [("officeqa", "officeqa_full.csv"), ("alfworld", "a.z8")])
def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).write_text("uid,question,answer\n")
    with pytest.raises(UsageError, match=rf"{re.escape(file)} is a file: name the folder with"):
        benchmarks.load(f"bench:{name}", tmp_path / file)


def test_games_that_cannot_be_won_are_not_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "game.tw-pddl").write_text('{"solvable": false}')
    with pytest.raises(
        UsageError, match=r"no game in .* can be used: 1 cannot be won or are not supported \(first: a\)"
    ):
        benchmarks.load("bench:alfworld", tmp_path)
