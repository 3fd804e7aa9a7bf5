"""Criteria of eval files: each is a check as a whole, or its key is refused. None is dropped or cut to its label."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skilltune.envs import Env
from skilltune.envs.formats import load_samples
from skilltune.envs.formats.criteria import AVERSE, PROSE
from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Trajectory

pytestmark = pytest.mark.anyio
JUDGE = {"judge": "openai/none"}
NOT = "This must not be true of the answer: "


def evals(tmp_path, *rows, **beside):
    path = tmp_path / "evals" / "evals.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"skill_name": "s", "evals": list(rows), **beside}, indent=1))
    return path


def checks(tmp_path, **row):
    return load_samples(evals(tmp_path, {"prompt": "Greet Ada.", **row}))[0].checks


def prose(text, **more):
    return {"type": "judge", "text": text, **more}


@pytest.mark.parametrize("key", sorted(PROSE))
def test_every_key_that_holds_prose_is_read(tmp_path, key):
    assert checks(tmp_path, **{key: ["Is short", "Names Ada"]}) == (prose("Is short"), prose("Names Ada"))


@pytest.mark.parametrize("key", [*sorted(AVERSE), "mustNot", "Must-Not", "antiPatterns"])
def test_what_must_not_be_is_turned_round(tmp_path, key):
    assert checks(tmp_path, **{key: ["Begs pardon"]}) == (prose(f"{NOT}Begs pardon"),)


@pytest.mark.parametrize(
    ("item", "check"),
    [
        ({"name": "greets_ada", "check": "Greets Ada by name"}, prose("Greets Ada by name")),
        ({"label": "greets", "criterion": "Greets Ada", "priority": "high"}, prose("Greets Ada")),
        ({"id": "a", "text": "Greets Ada", "type": "semantic"}, prose("Greets Ada")),
        ({"title": "It greets Ada", "passed": True, "evidence": "…"}, prose("It greets Ada")),
        ({"description": "Greeting", "requirement": "Names Ada"}, prose("Greeting: Names Ada")),
        ({"expect": "Names Ada", "fail": "names nobody"}, prose("Names Ada (it fails if: names nobody)")),
        ({"criterion": "Names a drug", "points": -3}, prose(f"{NOT}Names a drug", weight=3)),
        ({"text": "Names Ada", "weight": 2}, prose("Names Ada", weight=2)),
        ({"type": "llm-rubric", "value": "is kind"}, prose("is kind")),
        (
            {"type": "icontains", "value": "ada", "name": "x"},
            {"type": "contains", "target": "ada", "ignore_case": True},
        ),
        (
            {"type": "not_contains", "value": "sorry"},
            {"type": "not", "check": {"type": "contains", "target": "sorry"}},
        ),
        ({"type": "regex", "pattern": "A[ds]a"}, {"type": "regex", "pattern": "A[ds]a"}),
    ],
)
@pytest.mark.parametrize("key", ["assertions", "criteria", "checks"])
def test_an_object_is_read_as_a_whole(tmp_path, key, item, check):
    assert checks(tmp_path, **{key: [item]}) == (check,)


def test_texts_among_checks_and_texts_by_name_are_prose(tmp_path):
    assert checks(tmp_path, checks=["Is short"]) == (prose("Is short"),)
    assert checks(tmp_path, rubric={"tone_of_voice": "is warm"}) == (prose("tone of voice: is warm"),)
    assert checks(tmp_path, expected_behavior="Greets her") == (prose("Greets her"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"assertions": [{"name": "greets_ada"}]}, "an expectation needs a `text` or a `type`"),
        ({"assertions": [{"text": "Names Ada", "threshold": 0.7}]}, '"threshold" of an expectation is not understood'),
        ({"assertions": [{"type": "file_exists", "path": "a.pdf"}]}, 'check type "file_exists" is not supported'),
        ({"assertions": [{"text": "Names Ada", "required": False}]}, '"required" of an expectation is not understood'),
        ({"assertions": [{"criterion": "c", "points": 0}]}, "must be a number other than 0"),
        ({"assertions": [7]}, "must be a text or an object, not"),
        ({"rubrics": {"score1_description": "bad", "score2_description": "good"}}, "a scale of scores"),
        ({"expectations": {"facts": ["a"]}}, r'env.fields = {judge = "expectations.facts"}'),
    ],
)
def test_what_is_not_understood_is_refused_with_its_key_and_line(tmp_path, row, message):
    with pytest.raises(UsageError, match=rf"evals.json:4: .*{message}"):
        checks(tmp_path, **row)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("must_have", ["Ada\\s+L"], 'regex = "must_have"'),
        ("mustInclude", ["Ada"], 'contains = "mustInclude"'),
        ("forbidden_words", "sorry, alas", 'not_contains = "forbidden_words"'),
        ("expected_keywords", ["Ada"], 'contains = "expected_keywords"'),
        ("expected_tools", [{"name": "send"}], "A scorer of your own"),
        ("test_list", ["assert f(1) == 2"], 'contains = "test_list"'),
        ("graders", [{"type": "string_check"}], "A scorer of your own"),
        ("should_trigger", False, "when a skill is chosen"),
    ],
)
def test_what_looks_like_a_check_and_is_ambiguous_is_refused_with_a_way_out(tmp_path, key, value, hint):
    path = evals(tmp_path, {"prompt": "Greet Ada.", "target": "Hello Ada", key: value})
    with pytest.raises(UsageError, match=rf"evals.json:4: .*{key}.*({hint})"):
        Env(path)
    assert Env(path, fields={"ignore": key}).samples[0].metadata[key] == value
    assert Env(path, lambda sample, rollout: 1.0).samples[0].metadata[key] == value


async def test_fields_say_what_texts_are(tmp_path):
    row = {"prompt": "Greet Ada.", "must_have": ["Ada", "hello"], "banned": ["so+rry"]}
    made = Env(evals(tmp_path, row), fields={"contains": "must_have", "not_regex": "banned"})
    (sample,) = made.samples
    for answer, value in {"hello Ada": 1, "hello": 0, "hello Ada, soorry": 0}.items():
        assert (await made.score(sample, Rollout("1", "s", 0, Trajectory(answer), None))).value == value
    assert sample.metadata == {}
    deep = Env([{"input": "q", "expected": {"phrases": ["Ada"]}}], fields={"contains": "expected.phrases"})
    assert deep.samples[0].checks == ({"type": "contains", "target": "Ada"},)
    with pytest.raises(UsageError, match="must be a text or a list of texts to be read as contains"):
        Env([{"input": "q", "words": [1]}], fields={"contains": "words"})


def test_a_key_that_the_prompt_shows_is_no_lost_check(tmp_path):
    path = evals(tmp_path, {"prompt": "Greet Ada.", "target": "Hello", "requirements": "Be brief."})
    with pytest.raises(UsageError, match="requirements in 1 of 1 samples"):
        Env(path)
    assert Env(path, prompt="{requirements} {input}").notes() == []


def test_a_description_in_evals_is_its_own_check_and_needs_a_judge(tmp_path):
    rows = [{"prompt": f"Greet {n}.", "expected_output": f"A warm line that names {n}."} for n in ("Ada", "Bo")]
    path = evals(tmp_path, *rows)
    message = r"evals.json:4: the expected_output of 2 of 2 samples describes .* env.score.judge=MODEL.*exact"
    with pytest.raises(UsageError, match=message):
        Env(path)
    made = Env(path, JUDGE)
    assert made.lines(made.samples[0]) == ["The answer is what this describes: A warm line that names Ada."]
    assert made.samples[0].target == rows[0]["expected_output"]
    for scorer in ("f1", {"type": "exact"}):
        assert Env(path, scorer).expected(made.samples[0]) == rows[0]["expected_output"]


def test_an_answer_of_one_word_or_of_another_format_is_compared_as_it_is(tmp_path):
    made = Env(evals(tmp_path, {"prompt": "Sum?", "expected_output": "41.5"}))
    assert made.judged(made.samples[0]) == ['exact: expects "41.5"']
    (tmp_path / "data.jsonl").write_text('{"input": "q", "expected_output": "all of it"}\n')
    assert Env(tmp_path / "data.jsonl").samples[0].checks == ()


def test_evals_by_name_and_in_other_containers(tmp_path):
    path = tmp_path / "evals.json"
    for key in ("evals", "cases", "test_cases", "items"):
        path.write_text(json.dumps({key: {"one": {"prompt": "a", "target": 1}, "two": {"prompt": "b", "target": 2}}}))
        assert [(sample.id, sample.input) for sample in load_samples(path)] == [("one", "a"), ("two", "b")]
    path.write_text('{"evals": {\n"one": {"prompt": "a"},\n"two": {"prompt": "b", "split": "x"}}}')
    with pytest.raises(UsageError, match=r"evals.json:3: unknown split"):
        load_samples(path)
    path.write_text('{"evals": {"one": [1]}}')
    with pytest.raises(UsageError, match="`evals` is a mapping"):
        load_samples(path)
    path.write_text('{"evals": [{"prompt": "a"}], "cases": [{"prompt": "b"}]}')
    with pytest.raises(UsageError, match="evals and cases could both be the samples"):
        load_samples(path)


def test_criteria_beside_the_samples_are_refused_and_other_lists_noted(tmp_path):
    row = {"prompt": "a", "target": "b"}
    with pytest.raises(UsageError, match='"success_criteria" beside `evals` is not read'):
        load_samples(evals(tmp_path, row, success_criteria=["Is short"]))
    assert Env(evals(tmp_path, row, trigger_queries=[{"query": "x"}])).notes() == [
        "`trigger_queries` beside `evals` in evals.json is not read (1 sample)"
    ]


def test_a_type_that_is_no_scorer_is_noted_once_with_its_count(tmp_path):
    row = {"prompt": "a", "assertions": [{"text": "Is short", "type": "manual"}, {"text": "Is kind", "type": "manual"}]}
    (note,) = Env(evals(tmp_path, row, {**row, "prompt": "b"}), JUDGE).notes()
    assert (
        note == 'the type "manual" of an expectation is not a scorer of skilltune: a judge reads its text (2 samples)'
    )


def test_a_list_of_descriptions_is_a_description_too(tmp_path):
    made = Env(evals(tmp_path, {"prompt": "a", "expected_output": ["A warm line.", "It names Ada."]}), JUDGE)
    assert made.lines(made.samples[0]) == ["The answer is what this describes: A warm line.; It names Ada."]


def test_a_score_that_passes_over_the_checks_of_samples_is_noted(tmp_path):
    path = evals(tmp_path, {"prompt": "a", "target": "b", "assertions": ["Is kind"]}, {"prompt": "c", "target": "d"})
    (note,) = Env(path, "f1").notes()
    assert note.startswith("1 of 2 samples have checks of their own, which the score f1 does not look at")
    assert Env(evals(tmp_path, {"prompt": "a", "assertions": ["Is kind"]}), JUDGE).notes() == []
    described = evals(tmp_path, {"prompt": "a", "expected_output": "A warm line."})
    assert Env(described, "f1").notes() == []


WORDS = st.sampled_from(["a", "", "Is kind", "contains: x", "regex:(", "llm-rubric:", "file://x", "A", "1", "{input}"])
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | WORDS
KEYS = st.sampled_from(
    ["type", "text", "value", "check", "name", "weight", "points", "role", "content", "pattern", "target", "answer"]
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
ROW_KEYS = st.sampled_from(
    [
        *("input", "question", "prompt", "instruction", "target", "answer", "expected_output", "id", "split", "group"),
        *("files", "checks", "metadata", "choices", "options", "assert", "judge", "assertions", "rubric", "fail"),
        *("must_have", "expected_tools", "should_trigger", "__expected", "__expected2", "__prefix", "inputs"),
    ]
)
KINDS = st.sampled_from(["judge", "contains", "regex", "semantic", "not-contains", "not_equals", "is-json", "checks"])
ITEMS = st.fixed_dictionaries({"type": KINDS}, optional={"text": VALUES, "value": VALUES, "weight": VALUES})
CHATS = st.lists(st.fixed_dictionaries({"role": WORDS, "content": VALUES}), max_size=2)


@settings(deadline=None)
@given(
    rows=st.lists(st.dictionaries(ROW_KEYS, VALUES | st.lists(ITEMS, max_size=2) | CHATS, max_size=5), max_size=2),
    score=st.sampled_from(["exact", "choice", "number", "json", "checks", JUDGE]),
    fields=st.dictionaries(
        st.sampled_from(["input", "target", "contains", "not_regex", "judge", "ignore"]),
        st.sampled_from(["must_have", "inputs.text", "input", "__expected", "assertions, fail"]),
        max_size=2,
    ),
)
@example([{"input": [{"role": [], "content": "a"}]}], "exact", {})
@example([{"input": [{"role": "user", "name": {}, "content": "a"}]}], "exact", {})
def test_whatever_stands_in_a_row_is_read_or_refused(rows, score, fields):
    try:
        made = Env(rows, score, fields=fields)
    except UsageError:
        return
    for sample in made.samples:
        assert made.judged(sample)
        assert made.messages(sample)
    made.notes()
