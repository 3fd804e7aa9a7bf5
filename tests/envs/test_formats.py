"""Reading samples: the formats that people have, and messages that say file, line and what was probably meant."""

import datetime
import importlib.util
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.authoring.convert import convert
from skilltune.build import build_env
from skilltune.config import load_config
from skilltune.envs import Env
from skilltune.envs.formats import load_samples, located
from skilltune.envs.formats.plain import json_rows
from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Trajectory
from skilltune.samples import ChatTurn

pytestmark = pytest.mark.anyio


def answered(text):
    return Rollout("g", "skill", 0, Trajectory(text), None)


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


def test_a_folder_of_splits(tmp_path):
    for name, ids in {"train": ["a", "b"], "val": ["c"], "test": ["d"]}.items():
        write(tmp_path / name / "items.json", [{"id": x, "question": x, "answers": [x]} for x in ids])
    samples = load_samples(tmp_path)
    assert {s.id: s.split for s in samples} == {"a": "train", "b": "train", "c": "select", "d": "test"}
    write(tmp_path / "test" / "items.json", [{"id": "d", "question": "q", "split": "train"}])
    with pytest.raises(UsageError, match='split "train" differs from its folder, test'):
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
    with pytest.raises(UsageError, match=r'data.jsonl:4: the id "x" is already used by .*data.jsonl:1'):
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
        ('{"input": "q"', r"data.jsonl:2: not valid JSON: Expecting ',' delimiter at column 14$"),
        ('["q"]', "data.jsonl:2: expected an object"),
        ("[" * 100_000, "data.jsonl:2: "),
    ],
)
def test_pitfall_26_errors_name_file_line_and_the_nearest_key(tmp_path, row, message):
    with pytest.raises(UsageError, match=message):
        load_samples(lines(tmp_path, {"input": "fine"}, row))


def test_pitfall_26_all_broken_lines_are_told_at_once_ten_at_most(tmp_path):
    broken = ['{"input": "a', {"qestion": "q"}, {"input": "q", "split": "tset"}]
    with pytest.raises(UsageError) as refused:
        load_samples(lines(tmp_path, {"input": "fine"}, *broken, {"input": "fine too"}))
    assert [line.split(":")[1] for line in str(refused.value).splitlines()] == ["2", "3", "4"]
    with pytest.raises(UsageError) as refused:
        load_samples(lines(tmp_path, *[{"input": number} for number in range(5, 28)]))
    shown = str(refused.value).splitlines()
    assert (len(shown), shown[-1]) == (11, "… and 13 more like these")


def test_equal_problems_are_one_line_with_their_number(tmp_path):
    with pytest.raises(UsageError) as refused:
        load_samples(lines(tmp_path, *[{"input": "q", "split": "tset"}] * 23, {"input": 5}))
    first, second = str(refused.value).splitlines()
    assert ':1: unknown split "tset"' in first
    assert "(23 of them; also " in first
    assert "data.jsonl:4, …)" in first
    assert ":24: input must be text" in second


def test_pitfall_26_a_sample_that_cannot_be_scored_is_named_with_its_line(tmp_path):
    (tmp_path / "data.csv").write_text("input,target\nq,a\nr,\ns,b\nt,\n")
    with pytest.raises(UsageError) as refused:
        Env(tmp_path / "data.csv")
    places = [line.partition(": ")[0] for line in str(refused.value).splitlines()]
    assert places == [f"{tmp_path / 'data.csv'}:{number}" for number in (3, 5)]
    assert "has no target to compare with" in str(refused.value)


def test_two_samples_on_one_line_are_two(tmp_path):
    (tmp_path / "data.json").write_text('[{"input": "a", "target": 1}, {"input": "b", "target": 2}]')
    assert [sample.input for sample in load_samples(tmp_path / "data.json")] == ["a", "b"]


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
        ("data.json", b'{"input": "q"}\n{"input": "r"}', "name the file .jsonl"),
        ("data.json", b'{"things": []}', "expected a list of samples, or an object with one of"),
        ("data.json", b'"text"', "expected a list of samples"),
        ("data.csv", b"input,target\nq,a,b\n", r"data.csv:2: 3 cells for 2 columns"),
        ("data.csv", b'input,target\n"q\nr",a\nq\n', r"data.csv:4: 1 cells for 2 columns"),
        ("data.csv", b"input,input\nq,a\n", "same name"),
        ("data.csv", b'input,target\nq,a\n"r,b\ns,c\n', r"data.csv:3: not a readable table, from this line on"),
        (
            "data.json",
            b'[{"input": "q"},\n {"input": }]',
            r"data.json:2: not valid JSON: Expecting value at column 12$",
        ),
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
    start = time.process_time()
    samples = load_samples(path)
    assert len({sample.id for sample in samples}) == 10_000
    assert time.process_time() - start < 5


# -- formats of other tools


def test_places_in_json_are_lines(tmp_path):
    text = '{"evals": 1,\n "data": [],\n "data": [\n  {"input": "a", "x": [{}, "]"]},\n\n  {"input": 5}]}'
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UsageError, match=r"data.json:6: input must be text"):
        load_samples(tmp_path / "data.json")


@pytest.mark.slow
@settings(deadline=None)
@given(st.data())
def test_every_item_of_a_json_list_is_placed_at_its_line(tmp_path_factory, data):
    values = st.recursive(
        st.text() | st.integers(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=5
    )
    rows = data.draw(st.lists(st.dictionaries(st.text(min_size=3), values, max_size=2), max_size=4))
    key = data.draw(st.sampled_from([None, "samples"]))
    whole = rows if key is None else {"before": data.draw(values), key: rows, "after": data.draw(values)}
    indent = data.draw(st.sampled_from([None, 1, "\t"]))
    path = tmp_path_factory.mktemp("json") / "data.json"
    path.write_text(json.dumps(whole, indent=indent))
    found = list(json_rows(path))
    assert [row for _, row in found] == rows
    lines = path.read_text().split("\n")
    assert all(lines[int(where.rpartition(":")[2]) - 1].lstrip().find("{") >= 0 for where, _ in found)


def test_nan_is_no_json_and_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"data.jsonl:1: not valid JSON: NaN is not JSON; write null"):
        load_samples(lines(tmp_path, '{"input": "q", "target": NaN}'))


def test_tables_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "a.csv").write_text("input;target\nq, r;1,5\n")
    assert [(s.input, s.target) for s in load_samples(tmp_path / "a.csv")] == [("q, r", "1,5")]
    (tmp_path / "b.csv").write_text(",input , target\n0,q,a\n")
    (sample,) = load_samples(tmp_path / "b.csv")
    assert (sample.input, sample.target, sample.metadata) == ("q", "a", {"column 1": "0"})


@pytest.mark.parametrize(
    ("item", "check"),
    [
        ("is polite", {"type": "judge", "text": "is polite"}),
        ({"text": "is polite", "passed": None}, {"type": "judge", "text": "is polite"}),
        ({"name": "tone", "description": "is polite"}, {"type": "judge", "text": "is polite"}),
        ({"type": "length", "max_chars": 3}, {"type": "length", "max_chars": 3}),
    ],
)
@pytest.mark.parametrize("key", ["expectations", "assertions", "rubric"])
def test_expectations_are_texts_or_objects(tmp_path, key, item, check):
    assert load_samples(lines(tmp_path, {"input": "q", key: [item]}))[0].checks == (check,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"input": "q", "assertions": [{"type": "file_exists", "path": "x"}]},
            ':1: the check type "file_exists" is not',
        ),
        ({"input": "q", "checks": [{"type": "contain"}]}, 'did you mean "contains"'),
        ({"input": "q", "assertions": [{"passed": True}]}, ":1: an expectation needs a `text` or a `type`"),
        ({"input": "q", "assert": [{"type": "javascript"}]}, ":1: `assert` is promptfoo's"),
    ],
)
def test_a_check_that_nothing_reads_is_refused_at_its_line(tmp_path, row, message):
    with pytest.raises(UsageError, match=message):
        load_samples(lines(tmp_path, row))


def test_worked_examples_of_openai_evals_become_turns(tmp_path):
    chat = [{"role": "system", "name": "example_user", "content": "a"}, {"role": "user", "content": "b"}]
    (sample,) = load_samples(lines(tmp_path, {"input": chat, "ideal": ["x", "y"]}))
    assert sample.input == (ChatTurn(role="user", content="a"), ChatTurn(role="user", content="b"))
    assert sample.target == ["x", "y"]


def gbrain(tmp_path, judge, task="t"):
    return load_samples(lines(tmp_path, {"task_id": "g", "task": task, "judge": judge}))[0]


@pytest.mark.parametrize(
    ("op", "arg", "good", "bad"),
    [
        ("contains", "Ada", "by Ada", "by ada"),
        ("regex", "^b$", "a\nb", "ab"),
        ("section_present", "## Next steps", "# next steps\nx", "next steps"),
        ("max_chars", 3, "abc", "abcd"),
        ("min_citations", 2, "[x](people/ada)", "[x](y)"),
        ("min_citations", 2, "[1] and wiki/a", "[1] and wiki"),
    ],
)
async def test_gbrain_rules(tmp_path, op, arg, good, bad):
    sample = gbrain(tmp_path, {"kind": "rule", "checks": [{"op": op, "arg": arg}]})
    env = Env([sample])
    assert [(await env.score(sample, answered(text))).value for text in (good, bad)] == [1, 0]


async def test_gbrain_qrels_are_a_ranking_and_rubrics_a_judges(tmp_path):
    sample = gbrain(tmp_path, {"kind": "qrels", "expected_slugs": ["people/ada", "wiki/x"], "k": 3})
    env = Env([sample], "checks:weighted")
    answers = ("wiki/x, people/ada", "- people/bob\n- people/ada", "none")
    values = [(await env.score(sample, answered(text))).value for text in answers]
    assert values == [1, pytest.approx(0.6309 / 1.6309, abs=1e-4), 0]
    assert gbrain(tmp_path, {"kind": "llm", "rubric": "is kind"}).checks == ({"type": "judge", "text": "is kind"},)
    with pytest.raises(UsageError, match=r"needs a judge.*score = {judge"):
        Env([gbrain(tmp_path, {"kind": "llm", "rubric": "is kind"})])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (
            {"kind": "rule", "checks": [{"op": "tool_called", "arg": "x"}]},
            ':1: the rule "tool_called" is not supported',
        ),
        ({"kind": "rule", "checks": [{"op": "contain", "arg": "x"}]}, 'did you mean "contains"'),
        ({"kind": "rule", "checks": []}, "list of checks that is not empty"),
        ({"kind": "vibes"}, "use rule, llm or qrels"),
        ({"op": "is"}, ":1: judge must be an object with kind"),
        ({"kind": "llm", "rubric": " "}, "rubric needs a text"),
    ],
)
def test_gbrain_judges_that_cannot_be(tmp_path, judge, message):
    with pytest.raises(UsageError, match=message):
        gbrain(tmp_path, judge)


def test_gbrain_drafts_await_review(tmp_path):
    row = {"task_id": "g", "task": "t", "judge": {"kind": "llm", "rubric": "r"}}
    with pytest.raises(UsageError, match=r"data.jsonl:2: these tasks were drafted and await review"):
        load_samples(lines(tmp_path, row, "# BOOTSTRAP_PENDING_REVIEW"))


def promptfoo(tmp_path, *asserts, text="prompts: ['{{q}}']"):
    body = "".join(f"      - {json.dumps(item)}\n" for item in asserts)
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(f"{text}\ntests:\n  - vars: {{q: Say it, name: Ada}}\n    assert:\n{body or '      []'}")
    return load_samples(path)


@pytest.mark.parametrize(
    ("assertion", "good", "bad"),
    [
        ({"type": "equals", "value": "{{name}}"}, "Ada", "Ada!"),
        ({"type": "equals", "value": {"a": 1}}, '{"a": 1}', 'so: {"a": 1}'),
        ({"type": "contains", "value": 12}, "a 12", "a 13"),
        ({"type": "contains-all", "value": ["a", "b"]}, "b a", "a"),
        ({"type": "contains-any", "value": 'x, "y, z"'}, "y, z", "y"),
        ({"type": "icontains", "value": "ADA"}, "ada", "bob"),
        ({"type": "regex", "value": "^\\d+$"}, "12", "12a"),
        ({"type": "is-json"}, "[1]", "```\n[1]\n```"),
        ({"type": "is-json", "value": {"required": ["a"]}}, '{"a": 1}', '{"b": 1}'),
        ({"type": "contains-json", "value": "required: [a]"}, 'x {"b": {}} {"a": 1}', 'x {"b": 1}'),
        ({"type": "not-contains", "value": "x"}, "y", "x"),
        ({"type": "not-contains-all", "value": ["a", "b"]}, "a", "ab"),
        ({"type": "not-is-json"}, "{", "{}"),
        ({"type": "not-contains", "value": "x"}, "y", ""),
    ],
)
async def test_promptfoo_assertions_mean_what_they_mean_there(tmp_path, assertion, good, bad):
    (sample,) = promptfoo(tmp_path, assertion)
    env = Env([sample])
    assert [(await env.score(sample, answered(text))).value for text in (good, bad)] == [1, 0]


@pytest.mark.parametrize("kind", ["javascript", "python", "similar", "not-llm-rubric", "cost", "assert-set", "contain"])
def test_promptfoo_assertions_that_are_not_supported_are_named_with_their_line(tmp_path, kind):
    with pytest.raises(UsageError, match=rf'promptfooconfig.yaml:6: the assertion "{kind}" is not supported'):
        promptfoo(tmp_path, {"type": "contains", "value": "x"}, {"type": kind, "value": "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: ['{{q | upper}}']", ":3: only {{ name }} is supported of the template language"),
        ("prompts: ['{% if q %}{% endif %}']", "only {{ name }} is supported"),
        ("prompts: ['{{nobody}}']", r":3: the test sets no variable for {{nobody}}; it has q, name"),
        ("prompts: ['{{q}}']\nscenarios: []", '"scenarios" of the configuration is not supported'),
        ("prompts: [file://make.py]", ":1: a prompt from .*make.py.* is not supported"),
        ("prompts: []", "no prompts"),
        ("prompts: ['x", "not valid YAML"),
        ("prompts: ['{{q}}']\nprompts: []", r":1: not valid YAML: the key 'prompts' comes twice"),
        ("prompts: ['{{q}}']\ndefaultTest: {metadata: 5}", "metadata must be a mapping"),
        ("prompts: ['{{q}}']\ndefaultTest: {threshold: 1}", ':2: "threshold" of defaultTest is not supported'),
    ],
)
def test_promptfoo_configurations_that_cannot_be_read_say_where(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        promptfoo(tmp_path, text=text)


def test_promptfoo_prompts_times_tests(tmp_path):
    (tmp_path / "chat.json").write_text('[{"role": "system", "content": "s"}, {"role": "user", "content": "{{ q }}"}]')
    (tmp_path / "more.yaml").write_text("- {description: d, vars: {q: [yes, 1:30]}, metadata: {k: 1}}\n")
    text = (
        "prompts: ['Q: {{q}}', file://chat.json]\ndefaultTest: {assert: [{type: llm-rubric, value: 'about {{q}}'}]}\n"
    )
    (tmp_path / "promptfooconfig.yaml").write_text(f"{text}tests: [file://more.yaml]\nproviders: [x]\n")
    samples = load_samples(tmp_path)
    assert [sample.text for sample in samples] == ["Q: yes", "s\n\nyes", "Q: 1:30", "s\n\n1:30"]
    assert samples[0].checks == ({"type": "judge", "text": "about yes"},)
    assert len({sample.group for sample in samples}) == 1
    assert samples[0].metadata == {"k": 1, "vars": {"q": "yes"}, "description": "d"}


@pytest.mark.parametrize("written", ["one.txt", "file://one.txt", "o*.txt", "file://o*.txt"])
def test_promptfoo_reads_the_file_that_a_prompt_names(tmp_path, written):
    (tmp_path / "one.txt").write_text("Say {{q}}\n---\nTell {{q}}\n")
    assert [sample.input for sample in promptfoo(tmp_path, text=f"prompts: ['{written}']")] == [
        "Say Say it",
        "Tell Say it",
    ]


def test_promptfoo_prompts_of_other_files(tmp_path):
    (tmp_path / "a.j2").write_text("A {{q}}")
    (tmp_path / "b.yaml").write_text("- {role: system, content: s}\n- {role: user, content: 'B {{q}}'}\n")
    (tmp_path / "c.jsonl").write_text('[{"role": "user", "content": "C {{q}}"}]\n')
    samples = promptfoo(tmp_path, text="prompts: [a.j2, b.yaml, c.jsonl, '2 * 2 = ?']")
    assert [sample.text for sample in samples] == ["A Say it", "s\n\nB Say it", "C Say it", "2 * 2 = ?"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("gone.txt", 'there is no file "gone.txt"'),
        ("file://gone", 'there is no file "gone"'),
        ("p/*.md", "no file fits the pattern"),
        ("make.py:prompt", "it is a program"),
    ],
)
def test_promptfoo_prompts_that_can_only_be_files_must_be_there(tmp_path, prompt, message):
    with pytest.raises(UsageError, match=rf"promptfooconfig.yaml:1: .*{re.escape(message)}"):
        promptfoo(tmp_path, text=f"prompts: ['{prompt}']")


TESTS = {
    "t.csv": "q,name,__expected,__expected2,__description,__metadata:level,__metric\n"
    'Say it,,"contains-any: Ada, Bo",not-regex:x+,first,3,m\n',
    "t.json": json.dumps(
        [
            {
                "vars": {"q": "Say it", "name": ""},
                "description": "first",
                "metadata": {"level": "3"},
                "assert": [{"type": "contains-any", "value": ["Ada", "Bo"]}, {"type": "not-regex", "value": "x+"}],
            }
        ]
    ),
}
TESTS["t.jsonl"] = json.dumps(json.loads(TESTS["t.json"])[0]) + "\n"
TESTS["t.yaml"] = TESTS["t.json"]


@pytest.mark.parametrize("written", [*TESTS, "file://t.csv", "t*.csv"])
def test_promptfoo_tests_in_files(tmp_path, written):
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text)
    config = tmp_path / "promptfooconfig.yaml"
    config.write_text(f"prompts: ['{{{{q}}}}{{{{name}}}}']\ntests: '{written}'\n")
    (sample,) = load_samples(config)
    assert sample.input == "Say it"
    assert sample.checks == (
        {"type": "contains", "target": ["Ada", "Bo"]},
        {"type": "not", "check": {"type": "regex", "pattern": "x+"}},
    )
    assert sample.metadata == {"vars": {"q": "Say it", "name": ""}, "description": "first", "level": "3"}


def test_promptfoo_tests_that_name_themselves_are_refused(tmp_path):
    (tmp_path / "t.yaml").write_text("[file://u.yaml]")
    (tmp_path / "u.yaml").write_text("[file://t.yaml]")
    (tmp_path / "promptfooconfig.yaml").write_text("prompts: ['{{q}}']\ntests: t.yaml\n")
    with pytest.raises(UsageError, match=r"u\.yaml:1: the tests of t\.yaml name t\.yaml itself"):
        load_samples(tmp_path)


@pytest.mark.parametrize(
    ("cell", "check"),
    [
        ("Paris", {"type": "exact", "target": "Paris"}),
        ("Answer: 4", {"type": "exact", "target": "Answer: 4"}),
        ("icontains: paris", {"type": "contains", "target": "paris", "ignore_case": True}),
        ("not-contains:Rome", {"type": "not", "check": {"type": "contains", "target": "Rome"}}),
        ("regex: ^P", {"type": "regex", "pattern": "^P"}),
        ("is-json", {"type": "json", "read": "whole", "schema": {}}),
        ("llm-rubric: names a town", {"type": "judge", "text": "names a town"}),
        ("grade: names a town", {"type": "judge", "text": "names a town"}),
    ],
)
@pytest.mark.parametrize("header", ["__expected", "__expected1"])
def test_a_table_may_hold_promptfoo_assertions(tmp_path, cell, check, header):
    path = write(tmp_path / "t.csv", f"question,{header}", f'Where?,"{cell}"')
    (sample,) = load_samples(path)
    assert (sample.target, sample.checks) == (None, (check,))
    (sample,) = load_samples(path, {"target": header})
    plain = check["type"] == "exact"
    assert (sample.target, sample.checks) == ((cell, ()) if plain else (None, (check,)))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("javascript: output.length < 9", 'assertion "javascript" is not supported'),
        ("similar(0.8): Paris", 'assertion "similar" is not supported'),
        ("contains-all(0.5): a", "a threshold is not supported"),
        ("file://check.py", "is a script"),
    ],
)
def test_a_table_with_an_assertion_that_is_not_supported_is_refused(tmp_path, cell, message):
    with pytest.raises(UsageError, match=rf"t\.csv:2: .*{message}"):
        load_samples(write(tmp_path / "t.csv", "question,__expected", f'Where?,"{cell}"'))
    with pytest.raises(UsageError, match=r't\.csv:2: the column "__suffix" is not supported'):
        load_samples(write(tmp_path / "t.csv", "question,__expected,__suffix", "Where?,x,y"))


def bomb(link):
    steps = [f"{chr(98 + i)}: &{chr(98 + i)} {link.format(', '.join([f'*{chr(97 + i)}'] * 9))}" for i in range(12)]
    return "\n".join(["a: &a {x: 1}", *steps])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[{}]"), "its aliases stand for .* values, more than 2,000,000"),
        (bomb("{{<<: [{}]}}"), "its aliases stand for"),
        (bomb("{{k: [{}]}}"), "its aliases stand for"),
        ("prompts: &a [*a]", "an alias that holds itself"),
        ("a: &a " + "x" * 200_000 + "\nb: [" + "*a, " * 2000 + "]", "its aliases stand for"),
        ("prompts: " + "[" * 1500 + "]" * 1500, "nested too deeply"),
        ("prompts: " + "[" * 150 + "]" * 150, "nested more than 100 levels deep"),
        (
            "prompts: ['{{a}}']\ntests: [{vars: {" + ", ".join(f"{k}: [{'1, ' * 99} 1]" for k in "abcde") + "}}]",
            "come to 10,000,000,000 samples",
        ),
    ],
)
def test_a_yaml_that_would_explode_is_refused_before_it_does(tmp_path, text, message):
    (tmp_path / "promptfooconfig.yaml").write_text(text)
    with pytest.raises(UsageError, match=rf"promptfooconfig\.yaml.*{message}"):
        load_samples(tmp_path)


@pytest.mark.parametrize("depth", [101, 900, 50_000])
@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_deep_nesting_is_a_problem_with_its_place(tmp_path, name, depth):
    (tmp_path / name).write_text(
        '[{"input": "q", "x": '[name == "d.jsonl" :] + "[" * depth + "]" * depth + "}]"[: 1 + (name == "d.json")]
    )
    with pytest.raises(UsageError, match=rf"{re.escape(name)}.*nested"):
        load_samples(tmp_path / name)


# -- nothing to read


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff\n"])
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "yaml", "parquet", "arrow"])
def test_an_empty_file_is_named_with_the_way_out(tmp_path, suffix, content):
    path = tmp_path / f"data.{suffix}"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))} is empty: (write|name) ."):
        load_samples(path)


@pytest.mark.parametrize(
    ("name", "content", "how"),
    [
        ("data.csv", "input,target\n", "one sample per line below it"),
        ("data.csv", "input,target\n,\n", "one sample per line below it"),
        ("data.tsv", "input\ttarget\n", "with a tab between them"),
        ("data.json", "[]", "a list of JSON objects"),
        ("data.json", '{"samples": []}', "a list of JSON objects"),
        ("evals/evals.json", '{"skill_name": "x", "evals": []}', r'put at least one .*"evals": \[\{"prompt": "…"'),
        ("evals/evals.json", "[]", r'"evals": \[\{"prompt": "…"'),
        ("promptfooconfig.yaml", "prompts: ['{{q}}']\ntests: []\n", "at least one test"),
    ],
)
def test_a_file_without_samples_is_named_with_the_way_out(tmp_path, name, content, how):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    for source in (path, *([tmp_path] if not name.startswith("data") else [])):
        with pytest.raises(UsageError, match=rf"^{re.escape(str(path))} holds no samples: .*{how}"):
            load_samples(source)


def test_a_hub_data_set_without_rows_says_what_to_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pa.table({"input": pa.array([], pa.string())}), tmp_path / "d.parquet"
    )
    with pytest.raises(UsageError, match=r"holds no samples: set env\.samples to a file with at least one row$"):
        load_samples(f"hf:{tmp_path}")


@pytest.mark.parametrize(("items", "content"), [("items.jsonl", "\n"), ("items.json", "[]")])
def test_an_empty_file_of_a_split_is_no_empty_split(tmp_path, items, content):
    for name, text in (("train", '[{"input": "q", "target": "a"}]'), ("test", content)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("items.json" if name == "train" else items)).write_text(text)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(tmp_path / 'test' / items))} .*, or delete the file$"):
        load_samples(tmp_path)


def test_an_empty_folder_says_what_a_folder_of_samples_holds(tmp_path):
    with pytest.raises(UsageError, match=rf"^{re.escape(str(tmp_path))}: a folder of samples has evals/evals\.json"):
        load_samples(tmp_path)
    with pytest.raises(UsageError, match=r"no \.parquet or \.arrow file in"):
        load_samples(f"hf:{tmp_path}")


# -- chats


@pytest.mark.parametrize(
    ("turn", "read"),
    [
        ({"role": "developer", "content": "Be brief."}, ChatTurn(role="system", content="Be brief.")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]}, "a\nb"),
        ({"role": "user", "content": ["a", "b"]}, "a\nb"),
        ({"from": "human", "value": "a"}, "a"),
        ({"role": "assistant", "content": "a", "tool_calls": [], "refusal": None, "name": None}, "a"),
    ],
)
def test_turns_as_logs_have_them(tmp_path, turn, read):
    (sample,) = load_samples(lines(tmp_path, {"input": [turn, {"role": "user", "content": "u"}], "ideal": "x"}))
    assert not isinstance(sample.input, str)
    assert sample.input[0] == (
        read if isinstance(read, ChatTurn) else ChatTurn(role=sample.input[0].role, content=read)
    )


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "1"}, 'has the role "tool"'),
        ({"role": "function", "name": "f", "content": "4"}, 'has the role "function"'),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, r"calls tools \(tool_calls\)"),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, r"calls tools \(function_call\)"),
        ({"role": "user", "content": None}, "has no text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "save it as a file"),
        ({"role": "user", "content": [{"type": "audio"}]}, "has a part that is not a text"),
    ],
)
def test_turns_that_no_chat_target_could_be_sent_are_refused(tmp_path, turn, message):
    with pytest.raises(UsageError, match=rf"data.jsonl:1: message 2 of the chat {message}|2 of the chat .*{message}"):
        load_samples(lines(tmp_path, {"input": [{"role": "user", "content": "u"}, turn], "ideal": "x"}))


# -- Hugging Face


def test_hugging_face_data_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="downloads nothing: run `hf download --repo-type dataset openai/gsm8k`"):
        load_samples("hf:openai/gsm8k/main@train")
    if importlib.util.find_spec("pyarrow") is None:
        (tmp_path / "train.parquet").write_bytes(b"")
        with pytest.raises(UsageError, match=r"pip install 'skilltune\[hf\]'"):
            load_samples(f"hf:{tmp_path / 'train.parquet'}")


def table(path, rows, kind="parquet"):
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra hf")
    parquet, ipc = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.ipc")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pyarrow.Table.from_pylist(rows)
    if kind == "parquet":
        parquet.write_table(data, path)
    else:
        with (ipc.new_stream if kind == "stream" else ipc.new_file)(str(path), data.schema) as writer:
            writer.write_table(data)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_hugging_face_files(tmp_path, kind):
    suffix = "parquet" if kind == "parquet" else "arrow"
    rows = [{"question": "q", "answer": 1.5, "tags": ["a"], "on": datetime.date(2024, 1, 2), "gap": float("nan")}]
    path = table(tmp_path / f"train-00000-of-00001.{suffix}", rows, kind)
    for source in (path, f"hf:{path}", f"hf:{tmp_path}"):
        (sample,) = load_samples(source)
        assert (sample.input, sample.target, sample.split) == ("q", 1.5, "train")
        assert sample.metadata == {"tags": ["a"], "on": "2024-01-02"}
    assert load_samples(f"hf:{tmp_path}@train")[0].split is None
    with pytest.raises(UsageError, match=r'no split "trian" .did you mean "train"'):
        load_samples(f"hf:{tmp_path}@trian")
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="not a readable"):
        load_samples(path)


def test_hugging_face_datasets_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    dataset = tmp_path / "hub" / "datasets--openai--gsm8k"
    for config in ("main", "socratic"):
        for split in ("train", "test"):
            row = {"question": f"{config} {split}", "answer": "a"}
            table(dataset / "snapshots" / "abc" / config / f"{split}-00000-of-00001.parquet", [row])
    (sample,) = load_samples("hf:openai/gsm8k/main@test")
    assert sample.input == "main test"
    assert [s.split for s in load_samples("hf:openai/gsm8k/socratic")] == ["test", "train"]
    with pytest.raises(UsageError, match=r"several configs: name one, .*: main, socratic"):
        load_samples("hf:openai/gsm8k")
    with pytest.raises(UsageError, match="no config 'mian' in the cached dataset; it has main, socratic"):
        load_samples("hf:openai/gsm8k/mian")
    table(tmp_path / "x" / "test.parquet", [{"question": b"raw"}])
    with pytest.raises(UsageError, match='row 1: the column "question" holds bytes'):
        load_samples(f"hf:{tmp_path / 'x'}")


def test_a_config_names_hugging_face_data_beside_it(tmp_path):
    assert located(tmp_path, "hf:owner/name@train") == "hf:owner/name@train"
    (tmp_path / "data").mkdir()
    assert located(tmp_path, "hf:data@train") == f"hf:{tmp_path / 'data'}@train"
    assert located(tmp_path, "data.jsonl") == tmp_path / "data.jsonl"


# -- the documentation

DOCS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
EXAMPLES = {
    title: dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', section, re.MULTILINE | re.DOTALL))
    for title, section in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL)
}


@pytest.mark.parametrize("title", [title for title, files in EXAMPLES.items() if files])
async def test_every_example_of_the_documentation_is_sound(tmp_path, title):
    for name, text in EXAMPLES[title].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    cfg, root = load_config(tmp_path / "skilltune.toml")
    env = build_env(cfg, root)
    assert await env.validate() == []
    convert(root / cfg.env.samples, tmp_path / "converted.jsonl", fields=cfg.env.fields)
    assert Env(tmp_path / "converted.jsonl", cfg.env.score).samples == env.samples


def test_the_documentation_shows_every_format():
    assert len([title for title, files in EXAMPLES.items() if files]) == 8
