import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skilltune.text import one_line, visible, visible_json

DRIVING = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u202a\u202e\u2066\u2069\u200b\u200f\ufeff\U000e0041",
]
KEPT = "\t\n"


@pytest.mark.parametrize("character", DRIVING)
def test_what_drives_a_terminal_or_hides_is_spelled_out(character: str) -> None:
    assert visible(f"a{character}b") == (f"a{character}b" if character in KEPT else f"a{_spelled(character)}b")


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def test_writing_of_people_stays() -> None:
    for text in ("Grüße, 世界", "नमस्ते", "שלום", "👩‍💻 ok", "e\u0301"):
        assert visible(text) == text


@given(st.text())
def test_shown_text_is_shown_the_same_again_and_one_line_has_one(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    assert not set(visible(text)) & set(DRIVING) - set(KEPT)
    assert "\n" not in one_line(text)


@given(st.dictionaries(st.text(), st.text()))
def test_json_keeps_its_meaning(value: dict[str, str]) -> None:
    shown = visible_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(shown) == value
    assert not set(shown) & set(DRIVING)
