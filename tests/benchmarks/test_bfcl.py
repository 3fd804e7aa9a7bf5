"""BFCL: calls are parsed and never run, and compared by the leaderboard's rules."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune import Env, benchmarks
from skilltune.benchmarks.bfcl import CATEGORIES, expected, grade
from skilltune.benchmarks.calls import fault, paired, read_calls
from skilltune.errors import UsageError
from skilltune.samples import ChatTurn, Sample

PLAY = {
    "name": "music.play",
    "description": "Plays songs.",
    "parameters": {
        "type": "dict",
        "properties": {
            "artist": {"type": "string"},
            "minutes": {"type": "integer"},
            "volume": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "at": {"type": "tuple", "items": {"type": "integer"}},
            "options": {"type": "dict"},
            "loud": {"type": "boolean"},
            "rooms": {"type": "array", "items": {"type": "dict"}},
        },
        "required": ["artist"],
    },
}
ONE = [{"music.play": {"artist": ["Queen", "The Queen"], "minutes": [20], "volume": ["", 0.5], "tags": [["rock"], ""]}}]
TWO = [{"music.play": {"artist": [name], "minutes": [n]}} for name, n in (("Queen", 20), ("ABBA", 15))]


def items(folder: Path, category: str, *calls: list[Any]) -> Path:
    """A folder with items of a category: a question each, and the expected calls unless it is about irrelevance."""
    (folder / "possible_answer").mkdir(parents=True, exist_ok=True)
    turns = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Play {songs}."}]]
    rows = [{"id": f"{category}_{n}", "question": turns, "function": [PLAY]} for n, _ in enumerate(calls)]
    (folder / f"BFCL_v4_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"id": f"{category}_{n}", "ground_truth": one} for n, one in enumerate(calls)]
    if "irrelevance" not in category:
        text = "".join(json.dumps(row) + "\n" for row in answers)
        (folder / "possible_answer" / f"BFCL_v4_{category}.json").write_text(text)
    return folder


def sample(calls: list[Any]) -> Sample:
    return Sample(id="s", input="?", target={"calls": calls, "functions": [PLAY]})


@pytest.mark.parametrize(
    ("call", "right"),
    [
        ("artist='Queen', minutes=20", True),
        ("artist='the-QUEEN.', minutes=4*5", True),  # case, spaces and some punctuation do not count
        ("artist='Queen', minutes=20, volume=0.5, tags=['Rock']", True),
        ("artist='Queen', minutes=20, tags=[]", True),  # as good as left out
        ("artist='Queen', minutes=20.0", False),  # a float is no integer
        ("artist='Queen', minutes='20'", False),
        ("artist='Queen', minutes=True", False),
        ("artist='Queen'", False),  # minutes may not be left out
        ("minutes=20", False),
        ("artist='Queen', minutes=20, loud=True", False),
        ("artist='Queen', minutes=20, tags=['rock', 'pop']", False),
        ("artist='Queen', minutes=20, tags=('rock',)", False),
    ],
)
def test_one_call_is_compared_by_name_type_and_value(call: str, right: bool) -> None:
    score = grade(sample(ONE), f"I call it.\n<answer>[music.play({call})]</answer>")
    assert score.value == float(right), score.why


@pytest.mark.parametrize(
    ("accepted", "value", "right"),
    [
        ({"volume": [1.0]}, "1", True),  # an integer is a float
        ({"at": [[1, 2]]}, "(1, 2)", True),
        ({"at": [[1, 2]]}, "[1, 2]", True),
        ({"options": [{"a": ["x", ""], "b": [1]}]}, "{'b': 1}", True),
        ({"options": [{"a": ["x", ""], "b": [1]}]}, "{'a': 'X', 'b': 1}", True),
        ({"options": [{"a": ["x", ""], "b": [1]}]}, "{'a': 'x'}", False),
        ({"options": [{"b": [1]}]}, "{'b': 1, 'c': 2}", False),
        ({"rooms": [[{"a": [1]}, {"a": [2]}]]}, "[{'a': 1}, {'a': 2}]", True),
        ({"rooms": [[{"a": [1]}, {"a": [2]}]]}, "[{'a': 2}, {'a': 1}]", False),
        ({"rooms": [[{"a": [1]}]]}, "[1]", False),
        ({"loud": [True]}, "True", True),
        ({"loud": [True]}, "1", False),
        ({"minutes": ["length"]}, "length", True),  # a variable instead of a value
        ({"volume": [-0.5]}, "-0.5", True),
        ({"tags": [["a", "b"]]}, "[*'ab']", False),
    ],
)
def test_values_of_each_type(accepted: dict[str, Any], value: str, right: bool) -> None:
    (call,) = read_calls(f"music.play(artist='Q', {next(iter(accepted))}={value})")
    assert (fault(call, {"music.play": {"artist": ["Q"], **accepted}}, [PLAY]) == "") is right


def test_parallel_calls_are_paired_in_any_order_and_share_the_partial_credit() -> None:
    queen, abba = "music.play(artist='Queen', minutes=20)", "music.play(artist='ABBA', minutes=15)"
    for text, value, soft in (
        (f"[{abba}, {queen}]", 1.0, 1.0),
        (f"{abba}, {queen}", 1.0, 1.0),
        (f"[{queen}]", 0.0, 0.5),
        (f"[{queen}, {queen}]", 0.0, 0.5),
        (f"[{abba}, {queen}, {queen}]", 0.0, 2 / 3),
    ):
        score = grade(sample(TWO), text)
        assert (score.value, score.soft) == (value, soft), text


def test_the_best_pairing_counts_and_not_the_first_one() -> None:
    """The first expected call accepts both calls, and the second only the one that comes first."""
    wanted = [{"music.play": {"artist": ["Queen", "ABBA"]}}, {"music.play": {"artist": ["Queen"]}}]
    calls = read_calls("[music.play(artist='Queen'), music.play(artist='ABBA')]")
    assert paired(calls, wanted, [PLAY]) == 2


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("No function plays films.", 1.0),
        ("<answer>[]</answer>", 1.0),
        ("<answer>[music.play(artist='x')]</answer>", 0.0),
    ],
)
def test_if_no_call_is_expected_none_is_right(answer: str, value: float) -> None:
    assert grade(sample([]), answer).value == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch never')",
        "f(a=__import__('os').getcwd())",
        "f(a=9**9**9**9)",
        "f(a=1/0)",
        "f(a='x'*10)",
        "f(1)",
        "x = f(a=1)",
        "f(a=" + "[" * 2000,
        "f(a=1) and then I stop",
    ],
)
def test_an_answer_is_parsed_and_never_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda command: pytest.fail("it was run"))
    try:
        calls = read_calls(text)
    except ValueError:
        return
    assert calls == [("f", {"a": "__import__('os').getcwd()"})]  # a call without names is its own text


@given(st.text(alphabet="fa(=)[]{},'\"*1 .-:", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_calls(text)
    except ValueError:
        pass


@pytest.mark.anyio
async def test_items_come_from_a_folder_a_wheel_or_the_installed_package_that_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = items(tmp_path / "site" / "bfcl_eval" / "data", "parallel", TWO, TWO[:1])
    (folder.parent / "__init__.py").write_text("raise SystemError('imported')")
    wheel = tmp_path / "wheels" / "bfcl_eval-2026.3.23-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as packed:
        for path in folder.rglob("*.json"):
            packed.write(path, str(path.relative_to(tmp_path / "site")))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    places = (folder, tmp_path / "site", wheel, wheel.parent, tmp_path / "nothing")
    loaded = [benchmarks.load("bench:bfcl/parallel", place) for place in places]
    assert {env.fingerprint for env in loaded} == {loaded[0].fingerprint}
    assert folder in loaded[1].private, "a target could read the expected calls in the installed package"
    assert folder in loaded[-1].private
    env = loaded[0]
    assert await env.validate() == []
    messages = env.task(env.samples[0]).messages
    assert [message.role for message in messages] == ["system", "user"]
    assert '"name": "music.play"' in messages[1].text
    assert "ground_truth" not in messages[1].text


def test_an_item_that_accepts_no_answer_is_left_out(tmp_path: Path) -> None:
    contradicts = [{"music.play": {"minutes": [5]}}]  # artist is required, and no value of it is accepted
    env = benchmarks.load("bench:bfcl/simple_python", items(tmp_path, "simple_python", ONE, contradicts))
    assert [one.id for one in env.samples] == ["simple_python_0"]
    assert "1 items accept no answer at all" in env.notes()[0]
    assert expected(env.samples[0]).startswith("<answer>[music.play(artist='Queen', minutes=20, volume=0.5")


@pytest.mark.parametrize(
    "wrong",
    [
        {"function": "x"},
        {"function": [{"name": "music.play"}]},
        {"function": [{"parameters": {}}]},
        {"question": [[{"role": "nobody", "content": "?"}]]},
        {"question": []},
    ],
)
def test_an_item_of_another_kind_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    items(tmp_path, "simple_python", ONE)
    file = tmp_path / "BFCL_v4_simple_python.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(UsageError, match=r"simple_python\.json:1: not an item of BFCL"):
        benchmarks.load("bench:bfcl/simple_python", tmp_path)


@pytest.mark.parametrize("calls", [[{}], "x", [{"music.play": [1]}], [{"music.play": {"artist": 1}}]])
def test_expected_calls_of_another_kind_are_named(tmp_path: Path, calls: list[Any]) -> None:
    with pytest.raises(UsageError, match="not an item of BFCL"):
        benchmarks.load("bench:bfcl/simple_python", items(tmp_path, "simple_python", calls))


def test_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    items(tmp_path, "simple_python", ONE)
    file = tmp_path / "BFCL_v4_simple_python.json"
    file.write_text(file.read_text().replace("{songs}", "\u2028\x85") + "\n")
    (sample,) = benchmarks.load("bench:bfcl/simple_python", tmp_path).samples
    assert sample.input[-1] == ChatTurn(role="user", content="Play \u2028\x85.")


@pytest.mark.parametrize("number", ["0x" + "f" * 5_000, "*".join(["10**100"] * 60), "-0b" + "1" * 20_000])
def test_a_number_of_thousands_of_digits_is_a_wrong_answer(number: str) -> None:
    score = grade(sample(ONE), f"<answer>[music.play(artist='Queen', minutes={number})]</answer>")
    assert (score.value, "too large" in score.why) == (0.0, True)


def test_categories_that_cannot_be_used_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, words in (("multi_turn_base", "several turns"), ("simple_java", "Java"), ("paralel", 'mean "parallel"')):
        with pytest.raises(UsageError, match=words):
            benchmarks.load(f"bench:bfcl/{name}", tmp_path)
    with pytest.raises(UsageError, match="bench:bfcl/CATEGORY"):
        benchmarks.load("bench:bfcl", tmp_path)
    with pytest.raises(benchmarks.Missing, match="pip install --no-deps bfcl-eval"):
        benchmarks.load("bench:bfcl/parallel", tmp_path)
    (tmp_path / "possible_answer").mkdir()
    with pytest.raises(UsageError, match=r"BFCL_v4_parallel\.json cannot be read"):
        benchmarks.load("bench:bfcl/parallel", tmp_path)


@pytest.mark.slow
@pytest.mark.anyio
async def test_all_items_of_the_installed_package_score_1() -> None:
    """Runs where bfcl-eval is installed."""
    try:
        loaded: list[Env] = [benchmarks.load(f"bench:bfcl/{category}") for category in CATEGORIES]
    except benchmarks.Missing:
        pytest.skip("bfcl-eval is not installed")
    for env in loaded:
        assert await env.validate() == []
