"""A request's body is read once, changed in one place, and known again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.gateway.body import read_body, request_key

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["model", "messages", "tools", 'a"b', ""]) | st.text(max_size=5)


@given(data=st.dictionaries(names, values, max_size=5), indent=st.sampled_from([None, 0, 2]), ascii=st.booleans())
def test_only_the_model_changes(data: dict[str, Any], indent: int | None, ascii: bool):
    raw = json.dumps(data, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:  # half a surrogate pair
        with pytest.raises(ValueError, match="decode"):
            read_body(raw)
        return
    body = read_body(raw)
    assert dict(body.data) == data
    changed = body.for_model("other")
    assert json.loads(changed.decode("utf-8", "surrogatepass")) == {**data, "model": "other"}
    if isinstance(data.get("model"), str):
        assert body.for_model(data["model"]) == raw
        old = json.dumps(data["model"], ensure_ascii=ascii).encode()
        assert len(changed) - len(b'"other"') == len(raw) - len(old)


@given(st.binary(max_size=40) | st.text('{}[]",:ab1 \n', max_size=30).map(str.encode))
def test_any_bytes_are_an_object_or_a_value_error(raw: bytes):
    try:
        body = read_body(raw)
    except ValueError:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(raw.decode()), dict)
        return
    assert body.data == json.loads(raw.decode())


def key(body: dict[str, Any], rollout: str = "r", upstream: str = "u") -> str:
    return request_key(rollout, upstream, "d", read_body(json.dumps(body, ensure_ascii=False).encode()))


def codex(turn: str, output: str) -> dict[str, Any]:
    return {
        "model": "m",
        "client_metadata": {"turn_id": turn},
        "prompt_cache_key": turn,
        "input": [
            {
                "type": "message",
                "id": f"msg_{turn}",
                "role": "user",
                "content": f"<current_date>{output}</current_date>",
            },
            {"type": "function_call", "id": f"fc_{turn}", "call_id": "c1", "name": "x", "arguments": "{}"},
            {"type": "function_call_output", "id": f"fco_{turn}", "call_id": "c1", "output": output},
        ],
    }


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            codex("a1", "Chunk ID: 309c74\nWall time: 0.1153 seconds\nOutput:\nhello"),
            codex("b2", "Chunk ID: 7eab6c\nWall time: 12 seconds\nOutput:\nhello"),
        ),
        (
            {"metadata": {"user_id": "a"}, "system": [{"text": "# currentDate\nToday's date is 2026-11-30.\nGo"}]},
            {"metadata": {"user_id": "b"}, "system": [{"text": "# currentDate\nToday's date is 2026-12-01.\nGo"}]},
        ),
        (
            {"messages": [{"role": "system", "content": "Today's date: Mon Nov 30 2026\n</env>"}]},
            {"messages": [{"role": "system", "content": "Today's date: Tue Dec 01 2026\n</env>"}]},
        ),
    ],
)
def test_two_runs_of_an_agent_ask_the_same(one: dict[str, Any], two: dict[str, Any]):
    assert key(one) == key(two)


@pytest.mark.parametrize(
    "two",
    [
        codex("a1", "Chunk ID: 309c74\nWall time: 0.1153 seconds\nOutput:\nhello!"),
        codex("a1", "x") | {"model": "n"},
        codex("a1", "x") | {"input": [{"type": "item_reference", "id": "msg_1"}]},
    ],
)
def test_other_questions_have_other_keys(two: dict[str, Any]):
    one = codex("a1", "Chunk ID: 309c74\nWall time: 0.1153 seconds\nOutput:\nhello")
    assert key(one) != key(two)
    assert key(one) != key(one, rollout="r2")
    assert key(one) != key(one, upstream="u2")
