"""Proof that the skill stands in a request, and that no other skill does."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from skilltune.gateway.body import texts_of

Mode = Literal["inline", "forced", "native"]

DESCRIPTION = 150  # characters of a description that a listing must show; agents shorten long ones

_NUMBERED = re.compile(r"^[ \t]*\d+(?:→|\t)", re.MULTILINE)  # line numbers that some tools write before each line
_LISTING = re.compile(
    r"skills are available\b|^#+ *available skills\b|^available skills:", re.IGNORECASE | re.MULTILINE
)
_ENTRY = re.compile(r"^- `?([\w.:-]+)`?: ", re.MULTILINE)
_TAGGED = re.compile(r"<available_skills>(.*?)</available_skills>", re.DOTALL)
_NAMED = re.compile(r"<name>\s*(.*?)\s*</name>|<skill\b[^>]*\bname=\"([^\"]+)\"", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Activation:
    """The promise of an activation mode: `inline` and `forced` put the body into the first request, `native` lists name
    and description there."""

    mode: Mode
    name: str
    description: str
    body: str


def plain(text: str) -> str:
    """The text with every white space as one blank."""
    return " ".join(text.split())


def holds_body(activation: Activation, texts: Iterable[str]) -> bool:
    """True if the body stands in one of the texts, apart from white space and line numbers."""
    body = plain(activation.body)
    rarest = max(body.split(), key=len, default="")  # most texts do not hold this word, so they are not normalised
    texts = (text for text in texts if rarest in text)
    return any(
        body in plain(text) or (("→" in text or "\t" in text) and body in plain(_NUMBERED.sub("", text)))
        for text in texts
    )


def listed(texts: Iterable[str]) -> dict[str, str]:
    """The skills that a request lists for the model: name → the text of the listing."""
    found: dict[str, str] = {}
    for text in texts:
        if "skill" not in text and "Skill" not in text:
            continue
        for names, section in _sections(text):
            found |= dict.fromkeys(names, section)
    return found


def _sections(text: str) -> Iterator[tuple[list[str], str]]:
    for tagged in _TAGGED.finditer(text):
        yield [first or second for first, second in _NAMED.findall(tagged[1])], html.unescape(tagged[1])
    for heading in _LISTING.finditer(text):
        lines, begun = list[str](), False
        for line in text[heading.end() :].split("\n")[1:]:
            if _ENTRY.match(line):
                begun = True
            elif begun and (not line.strip() or line.startswith("#") or line.startswith("<")):
                break
            lines.append(line)
        section = "\n".join(lines)
        yield _ENTRY.findall(section), section


def complaint(activation: Activation | None, body: Mapping[str, Any]) -> str:
    """The reason why this request does not hold what the activation promises, or "" if it does."""
    texts = list(texts_of(body))
    names = listed(texts)
    own = {activation.name, *listed([activation.body])} if activation is not None else set[str]()
    if foreign := sorted(names.keys() - own):
        shown = ", ".join(f"`{name}`" for name in foreign[:5])
        return (
            f"the agent lists skills that are not under test: {shown}. Give it a home of its own and switch its "
            "bundled skills and plug-ins off"
        )
    if activation is None:
        return ""
    if activation.mode == "native":
        begin = plain(activation.description)[:DESCRIPTION]
        if activation.name in names and begin in plain(names[activation.name]):
            return ""
        return (
            f"the agent does not list the skill `{activation.name}` with its description: check the folder in which "
            "the skill is installed"
        )
    if holds_body(activation, texts):
        return ""
    return (
        f"the body of the skill `{activation.name}` is not in the agent's first request, which activation = "
        f'"{activation.mode}" promises: check how the skill is passed to the agent'
    )
