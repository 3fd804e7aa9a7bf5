"""HTML that is safe by construction: every string is escaped on insertion, unless `el` itself made it.

Skills, samples and answers are untrusted text. Besides markup they may hold characters that a reader cannot see or
that turn a line around (control and bidi characters, half surrogate pairs): `visible` spells those out.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from skilltune.text import visible

_SLOT = re.compile(r"\{\{(\w+)\}\}")


class Html(str):
    """Markup that is safe as it stands."""

    __slots__ = ()


def el(tag: str, *children: str | None, **attributes: str | int | float | bool | None) -> Html:
    """One element. Children are put in order, None is left out; `class_` gives `class`, `aria_label` `aria-label`, True
    a bare attribute, None and False none."""
    inside = "".join(child if isinstance(child, Html) else _escape(child) for child in children if child is not None)
    given = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    shown = "".join(
        f" {name}" if value is True else f' {name}="{_escape(str(value))}"'
        for name, value in given
        if value is not None and value is not False
    )
    return Html(f"<{tag}{shown}>{inside}</{tag}>")


def many(parts: Iterable[str]) -> Html:
    """The parts one after another."""
    return Html("".join(part if isinstance(part, Html) else _escape(part) for part in parts))


def cut(text: str, most: int, where: str) -> str:
    """At most `most` characters, and then how many more there are, and where."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[… {len(text) - most:,} more characters; {where}]"


def data(value: Any) -> Html:
    """JSON for a script element that is not run: nothing in it can end the element."""
    return Html(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def asset(name: str) -> str:
    """A file of this package."""
    return (files("skilltune.report") / name).read_text("utf-8")


def source_hash(text: str) -> str:
    """The name of an inline script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def fill(template: str, **slots: str) -> str:
    """Put the slots in, all at once: a `{{name}}` inside of a value stays what it is."""
    return _SLOT.sub(lambda found: slots[found[1]], template)


def _escape(text: str) -> str:
    return html.escape(visible(text))
