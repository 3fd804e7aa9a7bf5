"""The target reads slots, options and files of a sample; targets that no scorer of text could mean are refused."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.build import build_parts
from skilltune.config import make_config
from skilltune.envs import Env
from skilltune.envs.task import INLINED
from skilltune.errors import UsageError
from skilltune.journal.run import Run
from skilltune.targets.chat import ChatTarget

pytestmark = pytest.mark.anyio

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


def asked(row, score="exact", **kw):
    made = Env([{"input": "How many?", "target": "A", **row}], score, **kw)
    return made.messages(made.samples[0])[-1].text


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{facts}\n{input}", "one\n\ntwo\nHow many?"),
        ("{{ facts }}|{{input}}", "one\n\ntwo|How many?"),
        ("{page.title}: {input}", "Rooms: How many?"),
        ("{page}: {input}", '{"title": "Rooms"}: How many?'),
        ('{"answer": {n}} \\boxed{answer} {input}', '{"answer": 7} \\boxed{answer} How many?'),
        ("{ input }", "How many?"),
    ],
)
def test_slots_are_filled_from_columns_and_other_braces_stay(prompt, text):
    assert asked({"facts": ["one", "two"], "page": {"title": "Rooms"}, "n": 7}, prompt=prompt) == text


@given(st.text(), st.text())
def test_what_fills_a_slot_is_not_searched_for_slots(question, column):
    row = {"input": f"{{note}}{question}", "note": f"{{input}}{{{{note}}}}{column}"}
    assert asked(row, prompt="{note} > {input} <") == f"{row['note']} > {row['input']} <"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{fcats} {input}", r"no sample has a column for {fcats} \(did you mean \"facts\"\?\)"),
        ("{{nothing}} {input}", "no sample has a column for {{nothing}}"),
        ("{{ facts | upper }} {input}", "filters"),
        ("{% if facts %}{input}{% endif %}", "logic"),
        ("{facts}", "has no {input}"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(prompt, message):
    with pytest.raises(UsageError, match=message):
        asked({"facts": "one"}, prompt=prompt)


def test_silent_choices_are_noted():
    rows = [{"input": "q", "target": "a", "facts": "f", "level": 3}, {"input": "r", "target": "a", "level": 3}]
    notes = Env(rows, prompt="{facts} {input} {elsewhere}").notes()
    assert "{elsewhere} in env.prompt stays as it is: no sample has such a column" in notes
    assert "{facts} in env.prompt is empty for 1 of 2 samples" in notes
    assert any(
        note.startswith("columns that neither the target nor the scorer sees") and "level" in note for note in notes
    )
    assert Env(rows, prompt="{facts}{level}{input}").notes() == ["{facts} in env.prompt is empty for 1 of 2 samples"]
    assert Env(rows, fields={"ignore": "facts, level"}).notes() == []
    assert Env(rows, lambda sample, rollout: 1.0).notes() == []
    assert Env([{"input": "q", "target": "a", "metadata": {"level": 3}}]).notes() == []


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["red", "blue"]},
        {"options": {"A": "red", "B": "blue"}},
        {"choices": {"text": ["red", "blue"], "label": ["A", "B"]}},
        {"choices": [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}]},
    ],
)
def test_options_of_a_choice_are_shown(row):
    assert asked(row, "choice", prompt="{input}\nOne letter.") == "How many?\n\nA) red\nB) blue\nOne letter."
    assert asked({**row, "input": "Red or blue?"}, "choice") == "Red or blue?"
    assert asked({**row, "input": "Redder?"}, "choice") == "Redder?\n\nA) red\nB) blue"
    slot = next(iter(row))
    assert asked(row, "choice", prompt=f"{{{slot}}}\n{{input}}") == "A) red\nB) blue\nHow many?"
    assert asked(row) == "How many?"
    (note,) = Env([{"input": "How many?", "target": "A", **row}]).notes()
    assert f"scorer sees, with their samples: {slot} (in 1)" in note


def with_files(tmp_path, *names):
    row = {"id": "a", "prompt": "Read it.", "target": "t", "files": [f"in/{name}" for name in names]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    return Env(tmp_path / "d.jsonl")


def test_text_files_and_images_reach_a_chat_target(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rooms.csv").write_text("room,boxes\n1,4")
    (tmp_path / "in" / "plan.png").write_bytes(PNG)
    made = with_files(tmp_path, "rooms.csv", "plan.png")
    (message,) = made.messages(made.samples[0])
    assert message.text == 'Read it.\n\n<file path="rooms.csv">\nroom,boxes\n1,4\n</file>'
    assert [image.data for image in message.images] == [PNG]
    made.require_shown()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"%PDF\xff\xfe", "neither text nor an image"),
        (b"a\0b", "neither text nor an image"),
        (b"x" * (INLINED + 1), "too long: at most 100,000 characters"),
        (b"x" * (4 * INLINED + 1), "too long"),
    ],
)
def test_a_file_that_a_chat_target_never_sees_is_a_problem(tmp_path, data, why):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "big.bin").write_bytes(data)
    with pytest.raises(UsageError, match=f'1 of 1 samples have files .* sample "a": big.bin is {why}'):
        with_files(tmp_path, "big.bin").require_shown()


def test_the_files_of_a_sample_share_the_room(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_text("x" * (INLINED // 2 + 1))
    with pytest.raises(UsageError, match=r"b\.txt is too long"):
        with_files(tmp_path, "a.txt", "b.txt").require_shown()


def test_an_empty_input_is_refused():
    with pytest.raises(UsageError, match='sample "a": its input is empty'):
        Env([{"id": "a", "input": " \n", "target": "x"}])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"instruction": "Add up.", "input": "1, 2", "output": "3"}, "Add up.\n\n1, 2"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi."),
        ({"instruction": "Say hi.", "output": "hi"}, "Say hi."),
        ({"input": "", "question": "Who?", "answer": "I"}, "Who?"),
    ],
)
def test_an_instruction_and_its_material_are_one_text(row, text):
    assert Env([row]).samples[0].input == text


@pytest.mark.parametrize("pair", [("input", "prompt"), ("question", "query"), ("instruction", "question")])
def test_two_keys_that_could_both_be_the_input_are_refused(pair):
    row = {pair[0]: "one", pair[1]: "two", "answer": "x"}
    with pytest.raises(UsageError, match=f"{pair[0]} and {pair[1]} could both be the input"):
        Env([row])
    assert Env([row], fields={"input": pair[1]}).samples[0].input == "two"


# -- targets


@pytest.mark.parametrize("score", ["exact", "em", "f1", "contains", "anls"])
@pytest.mark.parametrize(
    "target",
    [
        {"text": ["4", "four"], "answer_start": [0, 9]},
        [{"text": "4", "answer_start": 0}, {"text": "four", "answer_start": 9}],
    ],
)
async def test_the_answers_of_squad_are_alternatives(score, target):
    made = Env([{"input": "How many?", "answers": target}], score)
    assert made.expected(made.samples[0]) == "4"
    assert 'expects "4" or "four"' in made.judged(made.samples[0])[0]
    assert await made.validate() == []


@pytest.mark.parametrize("score", ["exact", "em", "f1", "contains", "number", "choice", "regex"])
@pytest.mark.parametrize("target", [{"value": "4", "aliases": ["four"]}, [["4"]], {"text": {"a": 1}}])
def test_an_object_under_a_scorer_of_text_is_refused(score, target):
    with pytest.raises(UsageError, match="which no answer in text equals"):
        Env([{"input": "How many?", "target": target}], score)
    assert Env([{"input": "How many?", "target": target}], "json")


@pytest.mark.parametrize("target", [float("nan"), [float("nan")], None])
def test_a_cell_that_pandas_left_empty_is_no_value(target):
    with pytest.raises(UsageError, match="has no target"):
        Env([{"input": "q", "target": target}])
    assert Env([{"input": "q", "target": "x", "note": target}]).samples[0].metadata["note"] in (None, [None])


@pytest.mark.parametrize("target", ["contains: x", "not-icontains:y", "llm-rubric: is kind"])
def test_a_target_that_begins_with_an_assertion_is_not_compared_letter_by_letter(target):
    with pytest.raises(UsageError, match="name the column __expected"):
        Env([{"input": "q", "target": target}])
    assert Env([{"input": "q", "target": target}], {"type": "json"})


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"inputs": {"question": "q"}, "outputs": {"answer": "a"}}, ("inputs.question", "outputs.answer")),
        ({"input": {"query": "q"}, "expected": {"answer": "a"}}, ("input.query", "expected.answer")),
        ({"item": {"prompt": "q", "ideal": "a"}, "sample": {}}, ("item.prompt", "item.ideal")),
        ({"data": {"in": {"text": "q"}, "out": {"label": "a"}}}, ("data.in.text", "data.out.label")),
    ],
)
def test_exports_that_keep_text_deeper_name_the_path_that_leads_there(row, fields):
    with pytest.raises(UsageError) as refused:
        Env([row])
    assert f'env.fields = {{input = "{fields[0]}", target = "{fields[1]}"}}' in str(refused.value)
    (sample,) = Env([row], fields=dict(zip(("input", "target"), fields, strict=True))).samples
    assert (sample.input, sample.target) == ("q", "a")
    assert "a" not in json.dumps(sample.metadata.get("outputs", ""))


def test_a_dotted_name_may_lead_through_a_list_and_a_key_may_hold_dots():
    row = {"turns": [{"content": "q"}, {"content": "a"}], "a.b": "x"}
    (sample,) = Env([row], fields={"input": "turns.0.content", "target": "a.b"}).samples
    assert (sample.input, sample.target) == ("q", "x")
    with pytest.raises(UsageError, match=r'no sample has the key "a\.c"'):
        Env([{"input": "q", **row}], fields={"target": "a.c"}, score=lambda sample, rollout: 1.0)


async def test_a_judge_reads_the_task_as_the_target_is_asked_it(tmp_path):
    (tmp_path / "rooms.csv").write_text("room,boxes\n4,9\n")
    row = {"input": "How many boxes?", "city": "Bern", "choices": ["nine", "ten"], "target": "A"}
    row |= {"files": {"rooms.csv": "rooms.csv"}, "checks": [{"type": "choice"}, {"type": "judge", "text": "Is short"}]}
    rows = [{**row, "id": split, "group": split, "split": split} for split in ("train", "select", "test")]
    score = {"judge": "openai@http://127.0.0.1:1/v1/judge"}
    made = Env(rows, score, prompt="In {city}: {input}", root=tmp_path)
    config = {"skill": "SKILL.md", "target": {"model": "openai@http://127.0.0.1:1/v1/m"}}
    with Run.open(tmp_path / "run") as run:
        parts = build_parts(make_config({**config, "optimizer": {"model": "examples"}}), run, tmp_path, env=made)
        sample = parts.env.samples[0]
        judge, target = parts.judge, parts.roll.target
        assert judge is not None
        assert isinstance(target, ChatTarget)
        question = judge.request(sample, "nine", parts.env.lines(sample)).messages[-1].text
        told = target.request(parts.skill, parts.env.task(sample), 0).messages[-1].text
        await parts.aclose()
    assert "In Bern: How many boxes?\n\nA) nine\nB) ten" in told
    assert "4,9" in told
    assert f"<task>\n{told}\n</task>" in question


def test_what_is_asked_is_all_turns_of_a_chat():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    made = Env([{"input": turns, "target": "A", "city": "Bern"}], prompt="{city}: {input}")
    assert made.asked(made.samples[0]) == "Be brief.\n\nBern: How many?"
