"""Reading samples: the formats that people have, and messages that say file, line and what was probably meant."""

import json
import time

import pytest

from skilltune.envs.formats import load_samples
from skilltune.errors import UsageError
from skilltune.samples import ChatTurn


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def lines(tmp_path, *rows):
    return write(tmp_path / "data.jsonl", *rows)


def test_jsonl_with_our_own_names(tmp_path):
    row = {"id": 7, "input": "q", "target": 1.5, "group": 3, "split": "dev", "files": {"a.txt": "in/a.txt"}, "x": 1}
    (sample,) = load_samples(lines(tmp_path, {**row, "metadata": {"y": 2}}))
    assert (sample.id, sample.input, sample.target, sample.group, sample.split) == ("7", "q", 1.5, "3", "select")
    assert (sample.files, sample.metadata) == ({"a.txt": "in/a.txt"}, {"x": 1, "y": 2})


@pytest.mark.parametrize("asked", ["question", "prompt", "query", "input"])
@pytest.mark.parametrize("answered", ["answer", "ideal", "expected", "expected_output", "output", "label", "answers"])
def test_usual_names_are_understood(tmp_path, asked, answered):
    (sample,) = load_samples(lines(tmp_path, {asked: "q", answered: ["a", "b"]}))
    assert (sample.input, sample.target, sample.metadata) == ("q", ["a", "b"], {})


def test_fields_name_other_keys(tmp_path):
    path = lines(tmp_path, {"frage": "q", "antwort": "a", "answer": "not this"}, {"frage": "r"})
    first, second = load_samples(path, {"input": "frage", "target": "antwort"})
    assert (first.input, first.target, first.metadata) == ("q", "a", {"answer": "not this"})
    assert second.target is None


def test_json_lists_and_objects_and_openai_evals(tmp_path):
    rows = [{"input": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "ideal": "x"}]
    wanted = (ChatTurn(role="system", content="s"), ChatTurn(role="user", content="u"))
    for data in (rows, {"canary": "keep out", "examples": rows}, {"samples": rows}, {"data": rows}):
        (sample,) = load_samples(write(tmp_path / "data.json", data))
        assert (sample.input, sample.target) == (wanted, "x")


def test_csv_cells_may_hold_commas_lines_and_a_hundred_kilobytes(tmp_path):
    text = '\ufeffid,question,answer,note\r\n1,"a, b\nc",x,\r\n\r\n2,' + "y" * 300_000 + ",z,n\r\n"
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode())
    first, second = load_samples(path)
    assert (first.id, first.input, first.target, first.metadata) == ("1", "a, b\nc", "x", {})
    assert (len(second.input), second.metadata) == (300_000, {"note": "n"})
    (tmp_path / "data.tsv").write_text("input\ttarget\nq, r\ta\n")
    assert load_samples(tmp_path / "data.tsv")[0].input == "q, r"


def test_evals_of_a_skill_by_folder_or_file(tmp_path):
    evals = [
        {"id": 1, "prompt": "p", "expected_output": "e", "files": ["evals/files/a.csv"], "expectations": ["is polite"]},
        {"id": 2, "prompt": "q", "assertions": [{"type": "contains", "target": "x"}, {"text": "is short"}]},
    ]
    path = write(tmp_path / "skill" / "evals" / "evals.json", {"skill_name": "s", "evals": evals})
    first, second = load_samples(tmp_path / "skill")
    assert load_samples(path) == [first, second]
    assert (first.id, first.target, first.files) == ("1", "e", {"a.csv": "evals/files/a.csv"})
    assert first.checks == ({"type": "judge", "text": "is polite"},)
    assert second.checks == ({"type": "contains", "target": "x"}, {"type": "judge", "text": "is short"})


def test_checks_of_other_tools_are_carried_as_checks_and_never_dropped(tmp_path):
    path = lines(tmp_path, {"input": "q", "judge": {"op": "is"}}, {"input": "r", "assert": [{"type": "llm-rubric"}]})
    assert [sample.checks[0]["type"] for sample in load_samples(path)] == ["judge", "assert"]


def test_a_folder_of_splits(tmp_path):
    for name, ids in {"train": ["a", "b"], "val": ["c"], "test": ["d"]}.items():
        write(tmp_path / name / "items.json", [{"id": x, "question": x, "answers": [x]} for x in ids])
    samples = load_samples(tmp_path)
    assert {s.id: s.split for s in samples} == {"a": "train", "b": "train", "c": "select", "d": "test"}
    write(tmp_path / "test" / "items.json", [{"id": "d", "question": "q", "split": "train"}])
    with pytest.raises(UsageError, match='split "train" is not that of its folder, test'):
        load_samples(tmp_path)


@pytest.mark.parametrize("alias", ["val", "valid", "Validation", " dev ", "select"])
def test_names_of_the_select_split(tmp_path, alias):
    assert load_samples(lines(tmp_path, {"input": "q", "split": alias}))[0].split == "select"


def test_pitfall_18_bom_crlf_empty_lines_and_odd_line_separators(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"input": "a\u2028b {x} 🎉"}\r\n\r\n  \r\n{"input": "c"}'.encode())
    assert [sample.input for sample in load_samples(path)] == ["a\u2028b {x} 🎉", "c"]


def test_ids_made_from_content_outlive_other_lines_and_a_new_split(tmp_path):
    one, two = {"input": "a", "target": 1}, {"input": "b", "target": 1}
    first = {s.input: s.id for s in load_samples(lines(tmp_path, one, two))}
    second = {s.input: s.id for s in load_samples(lines(tmp_path, {"input": "new"}, two, {**one, "split": "test"}))}
    assert first.items() <= second.items()
    twins = [sample.id for sample in load_samples(lines(tmp_path, one, one, two))]
    assert twins == [first["a"], f"{first['a']}-2", first["b"]]


def test_pitfall_17_duplicate_ids_are_refused_with_both_lines(tmp_path):
    path = lines(tmp_path, {"id": "x", "input": "a"}, "", {"id": "y", "input": "b"}, {"id": "x", "input": "c"})
    with pytest.raises(UsageError, match=r'data.jsonl:4: the id "x" is already that of .*data.jsonl:1'):
        load_samples(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"qestion": "q"}, r'data.jsonl:2: no input or question .*did you mean "qestion"'),
        ({"input": None}, "data.jsonl:2: no input"),
        ({"input": 5}, "data.jsonl:2: input must be text or a list of chat messages"),
        ({"input": [{"role": "sytem", "content": "x"}]}, r"data.jsonl:2: input.*role: .*'system'"),
        ({"input": [{"role": "user", "content": "x", "imges": []}]}, r"data.jsonl:2: input.*imges: Extra"),
        ({"input": "q", "split": "tset"}, 'data.jsonl:2: unknown split "tset" .did you mean "test"'),
        ({"input": "q", "answer": "a", "label": "b"}, "data.jsonl:2: answer and label could both be the target"),
        ({"input": "q", "id": ""}, "data.jsonl:2: id must be"),
        ({"input": "q", "id": True}, "data.jsonl:2: id must be"),
        ({"input": "q", "files": ["a/x", "b/x"]}, "data.jsonl:2: two files have the same name"),
        ({"input": "q", "checks": "x"}, "data.jsonl:2: checks must be a list"),
        ({"input": "q", "metadata": 1}, "data.jsonl:2: metadata must be an object"),
        ('{"input": "q"', r"data.jsonl:2: not valid JSON: Expecting"),
        ('["q"]', "data.jsonl:2: expected an object"),
        ("[" * 100_000, "data.jsonl:2: "),
    ],
)
def test_pitfall_26_errors_name_file_line_and_the_nearest_key(tmp_path, row, message):
    with pytest.raises(UsageError, match=message):
        load_samples(lines(tmp_path, {"input": "fine"}, row))


def test_pitfall_26_a_field_that_nobody_has_is_refused(tmp_path):
    path = lines(tmp_path, {"input": "q", "label": "a"})
    with pytest.raises(UsageError, match=r'"traget" is not a field of a sample .did you mean "target"'):
        load_samples(path, {"traget": "label"})
    with pytest.raises(UsageError, match='no sample has the key "lable", which was named for `target`'):
        load_samples(path, {"target": "lable"})
    with pytest.raises(UsageError, match="no frage among its keys: input, label"):
        load_samples(path, {"input": "frage"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", b"", "holds no samples"),
        ("data.json", b"", "holds no samples"),
        ("data.csv", b"input,target\n", "holds no samples"),
        ("data.json", b'{"input": "q"}\n{"input": "r"}', "name the file .jsonl"),
        ("data.json", b'{"items": []}', "expected a list of samples, or an object with one of"),
        ("data.json", b'"text"', "expected a list of samples"),
        ("data.csv", b"input,target\nq,a,b\n", r"data.csv:2: 3 cells for 2 columns"),
        ("data.csv", b'input,target\n"q\nr",a\nq\n', r"data.csv:4: 1 cells for 2 columns"),
        ("data.csv", b"input,input\nq,a\n", "same name"),
        ("data.csv", b'input,target\n"q,a\n', "not a readable table"),
        ("data.jsonl", b'{"input": "a"}\n{"input": "\xff"}\n', r"data.jsonl:2: not UTF-8"),
        ("data.xlsx", b"PK", "cannot read samples from a .xlsx file"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_samples(tmp_path / name)


def test_a_missing_file_names_its_neighbour(tmp_path):
    lines(tmp_path, {"input": "q"})
    with pytest.raises(UsageError, match=r'did you mean "data.jsonl"'):
        load_samples(tmp_path / "date.jsonl")
    with pytest.raises(UsageError, match=r"evals/evals.json in it, or train/items.json"):
        load_samples(tmp_path)


def test_ten_thousand_lines_are_quick(tmp_path):
    path = lines(tmp_path, *({"input": f"question {i}", "answer": i, "extra": "x"} for i in range(10_000)))
    start = time.perf_counter()
    samples = load_samples(path)
    assert len({sample.id for sample in samples}) == 10_000
    assert time.perf_counter() - start < 5
