"""The difference between two versions of a skill, word by word.

Lines are compared first and words only inside of lines that differ, so that a moved comma does not tear up a page and
a large skill stays quick. `page/diff.js` does the same for any two versions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Literal

from skilltune.report.markup import Html, el, many

Change = tuple[Literal["=", "-", "+"], str]

CONTEXT = 3  # lines shown around a change
MOST_PAIRS = 4_000_000  # of lines or words compared (difflib is quadratic); beyond, a block is replaced as a whole

_WORD = re.compile(r"\s|\w+|[^\w\s]")


def changes(before: str, after: str) -> list[Change]:
    """Kept, removed and added text in order: "=" and "-" give `before`, "=" and "+" give `after`."""
    found: list[Change] = []
    old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    for tag, a, b, c, d in _opcodes(old, new):
        if tag == "equal":
            found.append(("=", "".join(old[a:b])))
        else:
            found += _words("".join(old[a:b]), "".join(new[c:d]))
    return _joined(found)


def diff_html(before: str, after: str) -> Html:
    """The changes as a block of text with `del` and `ins`, long unchanged stretches folded."""
    found = changes(before, after)
    if all(kind == "=" for kind, _ in found):
        return el("p", "No difference.")
    parts: list[Html] = []
    for i, (kind, text) in enumerate(found):
        if kind != "=":
            parts.append(el("del" if kind == "-" else "ins", text))
            continue
        lines = text.splitlines(keepends=True)
        head = CONTEXT if i else 0
        tail = CONTEXT + 1 if i < len(found) - 1 else 0
        folded = len(lines) - head - tail
        if folded <= 1:
            parts.append(many([text]))
        else:
            fold = el("span", f"⋯ {folded} unchanged lines ⋯", class_="fold")
            parts += [many(lines[:head]), fold, Html("\n"), many(lines[len(lines) - tail :] if tail else [])]
    return el("pre", *parts, class_="diff", dir="auto", tabindex=0)


def _words(before: str, after: str) -> list[Change]:
    """Word by word. A single blank between two changes belongs to the change."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    found: list[Change] = []
    minus = plus = ""
    for tag, a, b, c, d in _opcodes(old, new):
        same = "".join(old[a:b])
        if tag != "equal":
            minus, plus = minus + same, plus + "".join(new[c:d])
        elif minus and plus and same == " " and b < len(old) and d < len(new):
            minus, plus = minus + same, plus + same
        else:
            found.extend((("-", minus), ("+", plus), ("=", same)))
            minus = plus = ""
    found.extend((("-", minus), ("+", plus)))
    return found


def _opcodes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    if len(old) * len(new) > MOST_PAIRS:
        return [("replace", 0, len(old), 0, len(new))]
    return list(SequenceMatcher(None, old, new, autojunk=False).get_opcodes())


def _joined(found: list[Change]) -> list[Change]:
    joined: list[Change] = []
    for kind, text in found:
        if not text:
            continue
        if joined and joined[-1][0] == kind:
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined
