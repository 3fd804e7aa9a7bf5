"""Scorers: right on the cases that existing tools got wrong, and never raising, whatever an agent answers."""

import functools
import inspect
import json
import re
import textwrap
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skilltune.errors import InfraError, JudgeError, UsageError
from skilltune.rollout import Rollout, Score, Trajectory
from skilltune.samples import Sample
from skilltune.scorers import BUILTIN, build, evaluate
from skilltune.scorers.anls import levenshtein
from skilltune.scorers.f1 import normalise
from skilltune.scorers.number import last_number
from skilltune.scorers.reading import final_answer, quote

pytestmark = pytest.mark.anyio


def sample(target: Any = None, **kw) -> Sample:
    return Sample(**{"id": "s1", "input": "question", "target": target, **kw})


def rollout(answer: str) -> Rollout:
    return Rollout("s1", "skill", 0, Trajectory(answer), None)


def score(spec: Any, target: Any, answer: str, **kw) -> Score:
    result = build(spec)(sample(target, **kw), rollout(answer))
    assert isinstance(result, Score)
    return result


@pytest.mark.parametrize(
    ("spec", "target", "answer", "value"),
    [
        ("exact", "12.50", " 12.50\n", 1),
        ("exact", "12.50", "12.5", 0),
        ("exact", "Yes", "yes", 0),
        ({"type": "exact", "ignore_case": True}, "Yes", "yes", 1),
        ("exact", ["a", "b"], "b", 1),
        ("exact", True, "true", 1),
        ("exact", 8, "8", 1),
        ("exact", "b", "I think <answer>a</answer>, no, <ANSWER> b </ANSWER>.", 1),
        ("exact", "b", "<answer>b</answer> or <answer>c", 1),
        ("contains", "Paris", "It is Paris.", 1),
        ("contains", "paris", "It is Paris.", 0),
        ({"type": "contains", "ignore_case": True}, "paris", "It is Paris.", 1),
        ("regex", r"\b\d{4}-\d\d\b", "due 2024-05, I think", 1),
        ("regex", r"\A\d+\Z", "12 apples", 0),
        (r"regex:(?i)total: *\d+", None, "TOTAL: 12", 1),
        ("choice", "B", "(B)", 1),
        ("choice", "(B)", "b.", 1),
        ("choice", "B", "I weigh (A) and (C).\nThe answer is (B).", 1),
        ("choice", "B", "(A) or (B)", 0),
        ("choice", "B", "Bananas", 0),
        ("number", 72, "so 48 + 24 = 72.", 1),
        ("number", "reasons … #### 1,234", "$1,234.00", 1),
        ("number", -5, "−5", 1),
        ("number", -5, "-$5.00", 1),
        ("number", 3, "5-3", 1),
        ("number", -1234.5, "(1,234.50)", 1),
        ("number", 72, "the total (72)", 1),
        ("number", 50, "12,50", 0),
        ("number", 12.5, "12.5%", 1),
        ("number", 12.5, "12.51", 0),
        ("number:0.01", 12.5, "12.51", 1),
        ("number", 0.3, "0.30000000000000004", 0),
        ("number", 1200, "1.2e3", 1),
        ("number", 7, "no number at all", 0),
        ("number", f"-1{'0' * 40}1", f"-1{'0' * 40}2", 0),
        ("number:1", 1, "-" + "9" * 1_000_001, 0),
        ("em", "coop", "The co-op!", 1),
        ("em", ["Clifford Odets"], "Reasoning: Smith?\nclifford odets.\n\n", 1),
        ("em", "A", "the", 0),
        ("em", "A", "a", 1),
        ("json", {"a": 1, "b": [1, 2]}, 'Here:\n```json\n{"b": [1, 2], "a": 1.0}\n```', 1),
        ("json", {"a": 1}, '{"a": 1, "b": 2}', 0),
        ("json:subset", {"a": 1}, '{"a": 1, "b": 2}', 1),
        ("json", {"a": 1}, '{"a": true}', 0),
        ("json", '{"a": null}', '{"a": null}', 1),
        ("json", [1, 2], "[2, 1]", 0),
    ],
)
def test_scores(spec, target, answer, value):
    result = score(spec, target, answer)
    assert result.value == value
    assert result.why


@pytest.mark.parametrize(
    "choices",
    [
        ["Rome", "Paris"],
        [{"label": "A", "text": "Rome"}, {"label": "B", "text": "Paris"}],
        {"A": "Rome", "(B)": "Paris"},
    ],
)
@pytest.mark.parametrize("target", ["B", "(b)", "Paris"])
@pytest.mark.parametrize(
    "answer", ["B", "b)", "paris.", "B) Paris", "(B) Paris", "**B**", "<answer>B: Paris</answer> (not A)"]
)
def test_a_choice_is_a_label_or_the_full_text_of_its_option(choices, target, answer):
    assert score("choice", target, answer, metadata={"choices": choices}).value == 1
    for wrong in ("A", "Rome", "A) Paris", "C", "Par"):
        assert score("choice", target, wrong, metadata={"choices": choices}).value == 0


def test_f1_and_em_give_partial_credit():
    assert score("f1", "the New York Times", "york times").value == pytest.approx(0.8)
    partial = score("em", ["x", "New York Times"], "york times")
    assert (partial.value, partial.soft) == (0, pytest.approx(0.8))
    assert partial.why == 'expected "New York Times", got "york times"'


def test_anls_forgives_less_than_half():
    assert score("anls", ["Annual Report", "x"], "annual  reprot").value == pytest.approx(1 - 2 / 13)
    assert score("anls", "abcd", "abxy").value == 0  # a distance of exactly one half
    assert score("anls", "abcd", "abcx").value == 0.75


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_bit_parallel_distance_is_the_textbook_distance(left, right):
    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        swap = distance(i - 1, j - 1) + (left[i - 1] != right[j - 1])
        return min(swap, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    assert levenshtein(left, right) == distance(len(left), len(right))


def test_json_tells_what_differs_and_what_was_right():
    wanted = {"total": 12.5, "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]}
    result = score("json", wanted, '{"total": 12.5, "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 3}]}')
    assert result == Score(0.0, '$.lines[1].n: expected "2", got "3"', soft=0.8)
    assert score("json", wanted, "{}").why == "$.total is missing and 1 more"
    assert score("json", wanted, "the total is 12.5").why.startswith('"the total is 12.5" is not JSON')
    assert score("json", {"a": 1}, '{"a": NaN}').value == 0


def test_json_schema_enforces_what_it_accepts():
    schema = {
        "type": "object",
        "required": ["total"],
        "additionalProperties": False,
        "properties": {"total": {"type": "number"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    }
    spec = {"type": "json", "schema": schema}
    assert score(spec, None, '{"total": 1.5, "tags": ["a"]}').value == 1
    for wrong in ("[]", "{}", '{"total": true}', '{"total": 1, "more": 2}', '{"total": 1, "tags": ["c"]}'):
        assert score(spec, None, wrong).value == 0
    both = {**spec, "match": "subset"}
    assert score(both, {"total": 2}, '{"total": 1}').value == 0
    assert score(both, {"total": 1}, '{"total": 1}').value == 1
    for text, right in {"1": True, "1.0": True, "1.5": False, "true": False, "1e999": False, '"1"': False}.items():
        assert score({"type": "json", "schema": {"type": "integer"}}, None, text).value == right


def test_a_schema_keyword_that_is_not_enforced_is_refused_by_name():
    refused = {"pattern": {"pattern": "x"}, "minLength": {"properties": {"a": {"minLength": 1}}}}
    refused |= {"oneOf": {"items": {"oneOf": []}}, "strng": {"type": "strng"}}
    for name, schema in refused.items():
        with pytest.raises(UsageError, match=f'"{name}"'):
            build({"type": "json", "schema": schema}).check(sample())


@pytest.mark.parametrize("name", [*BUILTIN, "checks"])
async def test_an_empty_answer_scores_0_under_every_scorer(name):
    everything = sample("1", checks=[{"type": "regex", "pattern": ".*"}])
    spec = {"type": name, "pattern": ".*"} if name == "regex" else name
    for answer in ("", " \n\t"):
        assert (await evaluate(build(spec), everything, rollout(answer))).value == 0


@settings(deadline=None)
@given(answer=st.text(), target=st.text(min_size=1).filter(lambda text: text.strip()))
def test_no_text_makes_a_text_scorer_raise(answer, target):
    for name in ("exact", "contains", "em", "f1", "anls", "json"):
        result = score(name, target, answer)
        assert 0 <= result.value <= 1
        assert "\n" not in result.why
        assert 0 < len(result.why) < 600


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NUMBERISH = st.text("0123456789.,-−()$€eE% x\n", max_size=30)


@settings(deadline=None)
@given(
    answer=st.one_of(st.text(), NUMBERISH, st.from_regex(r"\(?[A-E]\)?[.:]? ?\w*")),
    number=st.integers() | st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
def test_no_text_makes_number_choice_or_regex_raise(answer, number):
    for spec, target, more in (
        ("number:0.5", number, {}),
        ("choice", "B", {}),
        ("choice", "B", {"metadata": {"choices": ["x", "y"]}}),
        ("regex", r"(\d+)\s*$", {}),
    ):
        assert score(spec, target, answer, **more).value in (0, 1)


@settings(deadline=None)
@given(target=JSONISH.filter(lambda value: value is not None), answer=JSONISH)
def test_no_json_makes_the_json_scorer_raise(target, answer):
    schema = {"type": ["object", "integer"], "properties": {"a": {"type": "array", "items": {"const": target}}}}
    for spec in ("json", "json:subset", {"type": "json", "schema": schema}):
        assert 0 <= score(spec, target, json.dumps(answer)).partial <= 1


PLAIN = st.text(min_size=1).filter(lambda text: text.strip() and "<" not in text)


@settings(deadline=None)
@given(target=PLAIN | st.lists(PLAIN, min_size=1, max_size=3) | st.booleans() | st.integers())
def test_the_expected_answer_scores_1(target):
    for name in ("exact", "contains", "em", "f1", "anls"):
        scorer, one = build(name), sample(target)
        result = scorer(one, rollout(scorer.expected(one)))
        assert isinstance(result, Score)
        assert result.value == 1


@settings(deadline=None)
@given(target=st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_the_expected_number_scores_1(target):
    scorer, one = build("number"), sample(target)
    assert scorer(one, rollout(scorer.expected(one))).value == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_hostile_answers_are_read_in_reasonable_time():
    repeated = ["9", "<answer>", "</answer>", "[", "```\n", "(1) ", "-$", "1,", "a "]
    for answer in (text * 50_000 for text in repeated):
        for name in BUILTIN:
            score({"type": name, **({"max_chars": 9} if name == "length" else {})}, "1", answer)
    score("anls", "ab" * 3000, "ba" * 3000)


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("exact", None),
        ("exact", ""),
        ("contains", [" "]),
        ("number", "none"),
        ("number", True),
        ("regex", "(unclosed"),
        ("choice", "not a label"),
        ("json", None),
    ],
)
def test_a_target_that_cannot_be_met_is_the_users_error_and_never_a_0(spec, target):
    with pytest.raises(UsageError, match='sample "s1"'):
        build(spec).check(sample(target))


def test_a_missing_target_names_the_key_that_was_meant():
    with pytest.raises(UsageError, match='did you mean "taget"'):
        build("exact").check(sample(metadata={"taget": "x"}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exat", 'unknown scorer "exat" .did you mean "exact"'),
        ({"type": "number", "tolerence": 1}, 'no option "tolerence" .did you mean "tolerance"'),
        ("number:-1", "tolerance"),
        ("number:wide", "tolerance"),
        ("f1:2", "takes no options"),
        ({"tolerance": 1}, "unknown scorer"),
        ({"type": ["exact"]}, "unknown scorer"),
        (5, "not int"),
        ("json:superset", "match"),
        ("checks:most", "mode"),
        ({"type": "checks", "check": []}, 'no option "check" .did you mean "checks"'),
        ({"type": "judge", "text": "is polite"}, '"is polite".*needs a judge'),
        ("python:nowhere.py:fn", "no such Python file"),
        (lambda sample: 1.0, "two arguments"),
    ],
)
def test_pitfall_26_a_typo_is_an_error_that_names_the_nearest(spec, message):
    with pytest.raises(UsageError, match=message):
        build(spec)


CHECKS = [
    {"type": "contains", "target": "total", "weight": 3},
    {"type": "regex", "pattern": r"\d+\.\d\d"},
]


@pytest.mark.parametrize(
    ("mode", "answer", "value", "soft"),
    [
        ("all", "total 12.50", 1, 1),
        ("all", "total 12", 0, 0.75),
        ("any", "total 12", 1, 1),
        ("any", "nothing", 0, 0),
        ("weighted", "total 12", 0.75, 0.75),
        ("weighted", "12.50", 0.25, 0.25),
    ],
)
async def test_checks_of_a_sample_are_combined(mode, answer, value, soft):
    result = await evaluate(build(f"checks:{mode}"), sample(checks=CHECKS), rollout(answer))
    assert (result.value, result.partial) == (value, soft)
    assert "checks pass" in result.why
    inline = build({"type": "checks", "mode": mode, "checks": CHECKS})
    assert await evaluate(inline, sample(), rollout(answer)) == result


def test_a_check_that_nothing_can_compute_is_refused_never_passed():
    prose = sample(checks=[*CHECKS, {"type": "judge", "text": "The tone is friendly"}])
    with pytest.raises(UsageError, match=r'sample "s1", check 3: .*The tone is friendly'):
        build("checks").check(prose)
    with pytest.raises(UsageError, match="has no checks"):
        build("checks").check(sample("x"))
    with pytest.raises(UsageError, match="weight"):
        build("checks").check(sample(checks=[{"type": "contains", "target": "x", "weight": 0}]))


async def test_functions_may_return_bools_floats_and_scores_and_may_be_async():
    async def half(sample, rollout):
        return 0.5

    assert (await evaluate(build(lambda s, r: r.answer == s.target), sample("x"), rollout("x"))).value == 1
    result = await evaluate(build(half), sample("x"), rollout("y"))
    assert (result.value, result.why.partition(" gave ")[2]) == (0.5, '0.5; got "y", expected "x"')
    assert await evaluate(build(lambda s, r: Score(0.2, "because")), sample(), rollout("y")) == Score(0.2, "because")


@pytest.mark.parametrize("returned", [None, "1", 1.5, float("nan"), [1]])
async def test_pitfall_4_a_scorer_that_fails_is_a_judge_error_and_never_a_0(returned):
    with pytest.raises(JudgeError, match='failed on sample "s1"'):
        await evaluate(build(lambda s, r: returned), sample(), rollout("y"))


async def test_pitfall_4_an_exception_names_scorer_sample_and_cause():
    def broken(sample, rollout):
        raise KeyError("colour")

    def throttled(sample, rollout):
        raise InfraError("429", retry_after=3)

    class Keyed:
        async def __call__(self, sample, rollout):
            return json.loads(rollout.answer)["total"]

    first = inspect.currentframe().f_code.co_firstlineno  # type: ignore[union-attr]
    line = rf"broken failed on sample \"s1\": KeyError: 'colour' \({re.escape(__file__)}:{first + 2}\)$"
    for scorer in (broken, functools.partial(broken)):
        with pytest.raises(JudgeError, match=line):
            await evaluate(build(scorer), sample(), rollout("y"))
    with pytest.raises(JudgeError, match=rf"JSONDecodeError: .* \({re.escape(__file__)}:{first + 9}\)$"):
        await evaluate(build(Keyed()), sample(), rollout("y"))  # where it calls the library, not inside of that
    with pytest.raises(JudgeError) as caught:
        await evaluate(build(throttled), sample(), rollout("y"))
    assert caught.value.retry_after == 3


def write(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


async def test_a_function_of_a_file_is_a_scorer_and_its_fingerprint_is_its_meaning(tmp_path):
    code = """
        LIMIT = 0.5
        OTHER = 1
        def helper(x):
            return x
        def fn(sample, rollout):
            return helper(LIMIT)
    """
    prints = []
    for old, new in [("", ""), ("0.5", "0.25"), ("return x", "return x * 1"), ("OTHER = 1", "OTHER = 2")]:
        folder = tmp_path / str(len(prints))
        folder.mkdir()
        write(folder / "mine.py", code.replace(old, new) if old else code)
        scorer = build("python:mine.py:fn", folder)
        assert (await evaluate(scorer, sample(), rollout("x"))).value in (0.5, 0.25)
        prints.append(scorer.fingerprint)
    assert prints[0] != prints[1]
    assert prints[0] != prints[2]
    assert prints[0] == prints[3]  # nothing that the scorer uses
    with pytest.raises(UsageError, match=r'no "fnn" .did you mean "fn"'):
        build("python:mine.py:fnn", folder)
    with pytest.raises(UsageError, match=r"broken.py:2: importing it failed with NameError"):
        build("python:broken.py:fn", write(tmp_path / "broken.py", "\nnonsense\n").parent)


def test_fingerprints_tell_options_targets_and_closures_apart():
    def within(limit):
        return lambda sample, rollout: len(rollout.answer) < limit

    specs = [
        "exact",
        "em",
        "number",
        "number:0.1",
        {"type": "exact", "target": "x"},
        "checks",
        "checks:any",
        within(3),
        within(4),
        functools.partial(lambda k, s, r: k, 0),
        functools.partial(lambda k, s, r: k, 1),
    ]
    assert len({build(spec).fingerprint for spec in specs}) == len(specs)
    assert build("number:0.1").fingerprint == build({"type": "number", "tolerance": 0.1}).fingerprint
    assert build(within(3)).fingerprint == build(within(3)).fingerprint


def test_reading():
    assert final_answer("a\n\n b \n\n", last_line=True) == "b"
    assert final_answer("</answer> <answer>x</answer> y </answer>") == "x"
    assert final_answer("<answer></answer>") == ""
    assert normalise("The  Co-op's a-game!") == "coops agame"
    assert str(last_number("It rose 3 times to $1,234.50.")) == "1234.50"
    assert last_number("1.234,56") is None
    assert len(quote("x" * 1000)) < 100
    assert quote('a "b"\nc') == r'"a \"b\"\nc"'


async def test_a_reason_names_every_failed_check() -> None:
    """If all checks must pass, repairing the first alone earns nothing, so the optimizer must see the others too."""
    words = [f"word{i}" for i in range(7)]
    spec = {"type": "checks", "checks": [{"type": "contains", "target": word} for word in words]}
    why = (await evaluate(build(spec), sample("x"), rollout("none of these"))).why
    assert why.startswith("0 of 7 checks pass; contains: ")
    assert all(word in why for word in words[:5])
    assert why.endswith("(and 2 more)")


OPENINGS = 60_000


@pytest.mark.parametrize(
    "text",
    [
        "{" * OPENINGS,
        '["' * OPENINGS,
        "[-" * OPENINGS,
        ("[" * 900 + "x") * (OPENINGS // 300),
        ('{"a":' * 900 + "x ") * (OPENINGS // 900),
        ("[" + "1," * 200) * (OPENINGS // 100),
        '{"a\\' * OPENINGS,
        "```json\n" * OPENINGS,
        "```" + "\n" * 4 * OPENINGS,
    ],
)
@pytest.mark.parametrize("read", ["answer", "anywhere"])
def test_pitfall_35_a_text_full_of_openings_is_read_in_no_time(text: str, read: str) -> None:
    started = time.process_time()
    assert score({"type": "json", "read": read}, {"a": 1}, text).value == 0.0
    assert time.process_time() - started < 2.0  # a try at each opening takes half a minute


@pytest.mark.parametrize("before", ["if (x) { y[i] = z; }\n" * 5000, "\\frac{a}{b} " * 5000, "[] {} [1] " * 500])
def test_json_is_found_behind_long_code(before: str) -> None:
    assert score({"type": "json", "read": "anywhere"}, {"a": 1}, before + ' so {\n "a": 1}').value == 1.0
