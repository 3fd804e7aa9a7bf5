"""Makes text from outside safe to show.

Skills, samples, answers, reasons of scorers and file names are untrusted. They may contain characters that control a
terminal, are invisible, or reverse a line: control characters (ANSI sequences begin with one), bidi controls,
zero-width characters, tags, half surrogate pairs. Everything that is printed goes through `visible`, which escapes
them.
"""

from __future__ import annotations

import json
import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with invisible characters escaped (`\\x00`, `\\u202e`). Tab and newline stay, CRLF becomes LF."""
    return _HIDDEN.sub(_spell, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Like `visible`, but on one line, so that no text can imitate a line of ours."""
    return visible(text).replace("\n", " ")


def visible_json(text: str) -> str:
    """Equivalent JSON with invisible characters as JSON escapes (in JSON they occur only inside strings)."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _spell(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
