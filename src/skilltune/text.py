"""Text from outside, made fit to be shown.

Skills, samples, answers, a scorer's words and file names are untrusted. They may hold characters that drive a terminal,
that a reader cannot see, or that turn a line around: control characters (ANSI sequences begin with one), bidi controls,
zero-width characters, tags, half surrogate pairs. Everything that prints goes through `visible`, which spells them out.
"""

from __future__ import annotations

import json
import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with what cannot be seen spelled out (`\\x00`, `\\u202e`); tab and newline stay, CRLF becomes LF."""
    return _HIDDEN.sub(_spell, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """As `visible`, on one line: no text can pass for a line of ours."""
    return visible(text).replace("\n", " ")


def visible_json(text: str) -> str:
    """JSON that means the same, with what cannot be seen as JSON's own escapes (in JSON it only stands in strings)."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _spell(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
