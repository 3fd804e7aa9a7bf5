"""The gradient: small structured edits, and their application to the document.

An edit changes exactly one span, `[start, start + len(removed))`, and its report states the removed and the inserted
text. So text outside the span stays as it is, every edit has an exact inverse, and no diff is needed to see what an
edit did. An edit is rejected with a reason if its place is not certain; it is never placed somewhere else.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, cast

from skilltune.skill import LOCK_MARKER, Skill

Op = Literal["add", "replace", "delete", "rewrite"]
Match = Literal["exact", "whitespace", "similar", "end"]
Span = tuple[int, int]

MOST_PLACES = 200  # most occurrences of an anchor that are searched for
SIMILARITY = 0.9  # least difflib ratio between an anchor and a window of lines
MARGIN = 0.02  # least lead of the best window over windows that it overlaps
SIMILAR_ANCHOR = 2_000  # characters; a longer anchor must be an exact quote
SIMILAR_TEXT = 2_000_000  # most characters of all windows together
SIMILAR_WORK = 4_000_000  # most pairs of characters compared (difflib is quadratic)
MALFORMED_RAW = 300  # characters kept of an edit that could not be read


@dataclass(frozen=True, slots=True)
class Citation:
    """Evidence for an edit: a sample id, and a quote from that sample's trajectory."""

    sample: str
    quote: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to a skill's body. For `rewrite`, `text` is the whole new body; it is never read from a model."""

    op: Op
    after: str | None = None
    target: str | None = None
    text: str | None = None
    why: str = ""
    evidence: tuple[Citation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The edit in the JSON form that optimizers write and read."""
        return {
            "op": self.op,
            "after": self.after,
            "target": self.target,
            "text": self.text,
            "why": self.why,
            "evidence": [{"sample": evidence.sample, "quote": evidence.quote} for evidence in self.evidence],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edit:
        """The inverse of `to_json`. Only "op" must be there; other keys than the fields are ignored."""
        evidence = tuple(Citation(item["sample"], item["quote"]) for item in data.get("evidence", ()))
        return cls(data["op"], data.get("after"), data.get("target"), data.get("text"), data.get("why", ""), evidence)

    @property
    def key(self) -> str:
        """16 hex digits, equal for edits that differ only in whitespace, `why` and evidence."""
        parts = [self.op, *(part and _squeeze(part) for part in (self.after, self.target, self.text))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Malformed:
    """An edit that could not be read: its beginning, and the reason."""

    raw: str
    reason: str


def _strict(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


EDIT_SCHEMA: dict[str, Any] = _strict(
    {
        "op": {"type": "string", "enum": ["add", "replace", "delete"]},
        "after": {"type": ["string", "null"]},
        "target": {"type": ["string", "null"]},
        "text": {"type": ["string", "null"]},
        "why": {"type": "string"},
        "evidence": {"type": "array", "items": _strict({"sample": {"type": "string"}, "quote": {"type": "string"}})},
    }
)


def parse_edits(data: object) -> list[Edit | Malformed]:
    """Read an optimizer's answer: a list of edits, or an object with "edits". Never raises.

    Null and blank fields count as absent. Fields that the operation does not use are dropped. An edit that cannot be
    read becomes `Malformed`, at its place in the list.
    """
    if isinstance(data, dict) and "edits" in data:
        data = cast(Any, data)["edits"]
    if data is None:
        return []
    if not isinstance(data, list | tuple):
        return [Malformed(_show(data), f"edits must be a list, not {_kind_of(data)}")]
    return [_parse(item) for item in data]


def _parse(item: object) -> Edit | Malformed:
    try:
        if not isinstance(item, dict):
            raise _Refused(f"an edit must be an object, not {_kind_of(item)}")
        fields: dict[Any, Any] = item
        op = (_string(fields, "op") or "").strip().lower()
        after, target, text = (_string(fields, name) for name in ("after", "target", "text"))
        after, target = (part if part and part.strip() else None for part in (after, target))
        if op == "add":
            if target is not None and after is None:
                raise _Refused("add is placed by after, not by target")
            if text is None or not text.strip():
                raise _Refused("add needs text")
            target = None
        elif op in ("replace", "delete"):
            if target is None:
                raise _Refused(f"{op} needs target")
            if op == "replace" and text is None:
                raise _Refused("replace needs text")
            if op == "delete" and text is not None and text.strip():
                raise _Refused("delete takes no text; use replace")
            after, text = None, text if op == "replace" else None
        else:
            raise _Refused(f"unknown op {_show(fields.get('op'))}: use add, replace or delete")
        return Edit(cast(Op, op), after, target, text, _string(fields, "why") or "", _evidence(fields.get("evidence")))
    except _Refused as refused:
        return Malformed(_show(item), str(refused))


def _string(fields: dict[Any, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _Refused(f"{name} must be a text, not {_kind_of(value)}")
    if value is not None and not _is_unicode(value):
        raise _Refused(f"{name} is not valid Unicode")
    return value


def _evidence(value: object) -> tuple[Citation, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise _Refused(f"evidence must be a list, not {_kind_of(value)}")
    found: list[Citation] = []
    for item in value:
        if not isinstance(item, dict):
            raise _Refused(f"evidence must hold objects with sample and quote, not {_kind_of(item)}")
        fields: dict[Any, Any] = dict(item)
        if isinstance(fields.get("sample"), int) and not isinstance(fields["sample"], bool):
            fields["sample"] = _show(fields["sample"])  # models often write a numeric id without quotes
        sample, quote = _string(fields, "sample"), _string(fields, "quote")
        if sample is None or quote is None:
            raise _Refused("evidence needs both sample and quote")
        found.append(Citation(sample, quote))
    return tuple(found)


def _kind_of(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _show(value: object) -> str:
    try:
        shown = json.dumps(value, ensure_ascii=False, default=lambda part: type(part).__name__)
    except (TypeError, ValueError, RecursionError):  # odd keys; cycles and huge numbers; depth
        shown = f"({_kind_of(value)})"
    return shown[:MALFORMED_RAW].encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one edit. `start`, `removed` and `inserted` refer to the document before this edit.

    `match` tells how its anchor was found; "end" means that no anchor was needed. `overlaps` lists earlier edits of the
    patch whose change this one touches. A rejected edit has `start` -1 and a reason.
    """

    edit: Edit
    status: Literal["applied", "rejected"]
    reason: str = ""
    match: Match | None = None
    start: int = -1
    removed: str = ""
    inserted: str = ""
    overlaps: tuple[int, ...] = ()

    @property
    def applied(self) -> bool:
        return self.status == "applied"

    @property
    def shortens(self) -> bool:
        """True if a line of the document is gone."""
        kept = {_squeeze(line) for line in self.inserted.splitlines()}
        return self.applied and any(line.strip() and _squeeze(line) not in kept for line in self.removed.splitlines())

    def to_json(self) -> dict[str, Any]:
        """The edit and its fate in one object; `start` is left out."""
        return {
            **self.edit.to_json(),
            "status": self.status,
            "match": self.match,
            "reason": self.reason,
            "removed": self.removed,
            "inserted": self.inserted,
            "overlaps": list(self.overlaps),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`; `start` is unknown and becomes -1."""
        return cls(
            edit=Edit.from_json(data),
            status=data["status"],
            reason=data.get("reason", ""),
            match=data.get("match"),
            removed=data.get("removed", ""),
            inserted=data.get("inserted", ""),
            overlaps=tuple(data.get("overlaps", ())),
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """The skill after a patch, one report per edit in order, and `changed`: True if the text differs."""

    skill: Skill
    reports: tuple[Report, ...]
    changed: bool


def apply(
    skill: Skill,
    edits: Iterable[Edit],
    *,
    protect: Sequence[str] = (),
    limit: int | None = None,
    max_tokens: int | None = None,
) -> Applied:
    """Apply edits one after another, each to the document that the previous one left. Never raises for their content.

    Texts in `protect` are kept like locked regions wherever they occur. At most `limit` edits are applied. An edit is
    rejected if it makes the body longer and the new body has more than `max_tokens` tokens.
    """
    now, reports = skill, list[Report]()
    changes: dict[int, Span] = {}  # the current span of each applied edit's text
    for index, edit in enumerate(edits):
        if limit is not None and len(changes) >= limit:
            reports.append(Report(edit, "rejected", f"over the edit budget of {limit}"))
            continue
        plan = _plan(now, edit, tuple(protect))
        if isinstance(plan, str):
            reports.append(Report(edit, "rejected", plan))
            continue
        new = now.with_text(now.text[: plan.start] + plan.inserted + now.text[plan.end :])
        if max_tokens is not None and new.tokens > max(max_tokens, now.tokens):
            reason = f"the body would grow to about {new.tokens} tokens, over the limit of {max_tokens}"
            reports.append(Report(edit, "rejected", reason))
            continue
        overlaps = tuple(i for i, span in changes.items() if _meet(span, plan.anchor) or _meet(span, plan.span))
        removed = now.text[plan.start : plan.end]
        reports.append(
            Report(edit, "applied", plan.note, plan.match, plan.start, removed, plan.inserted, overlaps=overlaps)
        )
        changes = {i: _moved(span, plan) for i, span in changes.items()}
        changes[index] = (plan.start, plan.start + len(plan.inserted))
        now = new
    return Applied(now, tuple(reports), now.text != skill.text)


def undo(skill: Skill, report: Report) -> Skill:
    """Undo the edit of one report. Undoing all reports of a patch in reverse order restores the original bytes.

    Raises `ValueError` if the skill is not the result of that edit.
    """
    if report.status == "rejected":
        return skill
    end = report.start + len(report.inserted)
    if skill.text[report.start : end] != report.inserted:
        raise ValueError("this edit cannot be undone here: the document does not hold its text at its place")
    return skill.with_text(skill.text[: report.start] + report.removed + skill.text[end:])


def inverse(op: Op, removed: str, inserted: str, why: str) -> Edit | None:
    """An edit that takes an applied edit back, even if its text has moved. Deleted text returns at the end of the body.
    None for a rewrite."""
    old, new = removed.strip("\r\n"), inserted.strip("\r\n")
    match op:
        case "rewrite":
            return None
        case _ if op == "delete" or not new.strip():
            return Edit("add", text=old, why=why)
        case _ if old.strip():
            return Edit("replace", target=new, text=old, why=why)
        case _:
            return Edit("delete", target=new, why=why)


def addition(edit: Edit) -> Edit:
    """Convert a replacement that repeats its target and continues below into an addition after the target.

    Models write both forms. Other edits are returned as they are.
    """
    target, text = (edit.target or "").strip(), (edit.text or "").strip()
    more = text.removeprefix(target)
    if edit.op != "replace" or not target or more == text or not more.startswith(("\n", "\r\n")):
        return edit
    return replace(edit, op="add", after=edit.target, target=None, text=more.strip("\r\n"))


def says(text: str, part: str) -> bool:
    """True if the text contains the lines of `part` in a row; blank lines and white space are ignored."""
    whole, lines = ([_squeeze(line) for line in t.splitlines() if line.strip()] for t in (text, part))
    return bool(lines) and any(whole[i : i + len(lines)] == lines for i in range(len(whole) - len(lines) + 1))


def conflict(skill: Skill, a: Edit, b: Edit, protect: Sequence[str] = ()) -> str:
    """The reason why two edits cannot be combined in this skill; "" if they can, in any order."""
    if a.key == b.key:
        return "the same edit"
    first, second = (_plan(skill, edit, tuple(protect)) for edit in (a, b))
    if isinstance(first, str) or isinstance(second, str):
        return f"one of them cannot be applied: {first if isinstance(first, str) else second}"
    if "rewrite" in (a.op, b.op):
        return "a rewrite stands alone"
    if "end" not in (first.match, second.match):  # no edit can remove the end of the document
        if _meet(first.span, second.span):
            return "they change the same text"
        if _meet(first.span, second.anchor) or _meet(second.span, first.anchor):
            return "one changes text that the other is anchored in"
        if first.anchor == second.anchor:
            return "they have the same anchor"
    if a.text and b.text and (says(a.text, b.text) or says(b.text, a.text)):
        return "they bring the same text"
    for pair in ((a, b), (b, a)):  # an edit may bring text that makes the other's anchor ambiguous
        if reasons := [r.reason for r in apply(skill, pair, protect=protect).reports if r.status == "rejected"]:
            return f"with one of them the other no longer applies: {reasons[0]}"
    return ""


class _Refused(Exception):
    """An edit is malformed or rejected; the text is the reason."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Replace [start, end) by `inserted`. `anchor` is the span of the text that the edit names; empty if none."""

    anchor: Span
    start: int
    end: int
    inserted: str
    match: Match | None = None
    note: str = ""

    @property
    def span(self) -> Span:
        return self.start, self.end


@dataclass(frozen=True, slots=True)
class _Regions:
    """Sorted, disjoint spans that no edit may touch, with a name for each."""

    spans: tuple[Span, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, skill: Skill, protect: tuple[str, ...]) -> _Regions:
        found = [(0, _body_start(skill), "the frontmatter")] if _body_start(skill) else []
        found += [(start, end, "a locked region") for start, end in skill.locked]
        for text in filter(None, protect):
            places = re.finditer(re.escape(text), skill.text)
            found += [(place.start(), place.end(), "protected text") for place in places]
        merged: list[tuple[int, int, str]] = []
        for start, end, name in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
            else:
                merged.append((start, end, name))
        return cls(tuple((start, end) for start, end, _ in merged), tuple(name for *_, name in merged))

    def hit(self, start: int, end: int) -> int | None:
        """The index of a region that overlaps [start, end), or that strictly contains it if it is empty; else None."""
        last = bisect_left(self.spans, end, key=lambda span: span[0]) - 1
        return last if last >= 0 and start < self.spans[last][1] else None


@lru_cache(maxsize=256)  # every pair and every subset of a pool places the same edits again
def _plan(skill: Skill, edit: Edit, protect: tuple[str, ...]) -> _Plan | str:
    """The place and the new text of an edit, or the reason why it is rejected."""
    try:
        if edit.op not in _PLANNERS:
            raise _Refused(f"unknown op {edit.op!r}")
        if edit.text is not None and not _is_unicode(edit.text):
            raise _Refused("the text is not valid Unicode")
        if edit.text is not None and edit.op in ("add", "replace") and LOCK_MARKER.search(edit.text):
            raise _Refused("the text contains a lock marker")
        regions = _Regions.of(skill, protect)
        plan = _PLANNERS[edit.op](skill, edit, regions)
        new = skill.with_text(skill.text[: plan.start] + plan.inserted + skill.text[plan.end :])
        if new.text == skill.text:
            raise _Refused("it changes nothing")
        # An edit joins the text on its left and right, which can complete a fence or a marker by accident.
        if new.frontmatter.rstrip() != skill.frontmatter.rstrip():
            raise _Refused("it would change what is read as frontmatter")
        if _locked_texts(new) != _locked_texts(skill):
            raise _Refused("it would change what is locked")
        return plan
    except _Refused as refused:
        return str(refused)


def _plan_add(skill: Skill, edit: Edit, regions: _Regions) -> _Plan:
    if not edit.text or not edit.text.strip():
        raise _Refused("there is no text to add")
    text = skill.text
    if edit.after is None or not edit.after.strip():
        at = _line_end(text, max(_body_start(skill), len(text.rstrip())))
        if (inside := regions.hit(at, at)) is not None:
            at = regions.spans[inside][1]  # only whitespace follows, so this is the end too
        return _Plan((at, at), at, at, _block(text, at, edit.text), "end")
    start, end, match, note = _locate(text, regions, edit.after)
    at = _line_end(text, end)
    if (inside := regions.hit(at, at)) is not None:
        raise _Refused(f"the anchor's line ends inside {regions.names[inside]}")
    return _Plan((start, end), at, at, _block(text, at, edit.text), match, note)


def _plan_replace(skill: Skill, edit: Edit, regions: _Regions) -> _Plan:
    if edit.text is None:
        raise _Refused("there is no text to put in")
    if not edit.text.strip():
        return _plan_delete(skill, edit, regions)
    start, end, match, note = _locate(skill.text, regions, edit.target)
    text = _with_newlines(edit.text.strip("\r\n"), skill.text)
    if match != "exact" and edit.target:  # the match begins after the indentation, so the old indentation stays
        text = text.removeprefix(_indent(edit.target.strip("\r\n")))
    return _Plan((start, end), start, end, text, match, note)


def _plan_delete(skill: Skill, edit: Edit, regions: _Regions) -> _Plan:
    start, end, match, note = _locate(skill.text, regions, edit.target)
    text = skill.text
    line = (max(_body_start(skill), text.rfind("\n", 0, start) + 1), _line_end(text, end))
    if not (text[line[0] : start] + text[end : line[1]]).strip():  # nothing else on these lines: they go whole
        newline = re.compile(r"\r?\n").match(text, line[1])
        whole = (line[0], newline.end() if newline else line[1])
        if regions.hit(*whole) is None:
            return _Plan((start, end), *whole, "", match, note)
    return _Plan((start, end), start, end, "", match, note)


def _plan_rewrite(skill: Skill, edit: Edit, regions: _Regions) -> _Plan:
    if not edit.text or not edit.text.strip():
        raise _Refused("the new body is empty")
    text = edit.text
    if front := Skill.parse(text).frontmatter:  # models often send the whole document back
        if front.split() != skill.frontmatter.split():
            raise _Refused("it would change the frontmatter")
        text = text[len(front) :]
    floor = _body_start(skill)
    old = skill.text[floor:]
    margins = (old[: len(old) - len(old.lstrip("\r\n"))], old[len(old.rstrip("\r\n")) :])
    fence_is_open = bool(skill.frontmatter) and not skill.frontmatter.endswith("\n")
    before, after = margins if old.strip("\r\n") else ("\n" * fence_is_open, "\n")
    new = _with_newlines(before + text.lstrip("\ufeff").strip("\r\n") + after, skill.text)
    at = 0
    for (start, end), name in zip(regions.spans, regions.names, strict=True):
        if start >= floor:
            kept = skill.text[start:end]
            found = new.find(kept, at)
            if found < 0:
                raise _Refused(f"{name} is missing, changed or out of order")
            at = found + len(kept)
    return _Plan((floor, len(skill.text)), floor, len(skill.text), new)


_PLANNERS: dict[str, Callable[[Skill, Edit, _Regions], _Plan]] = {
    "add": _plan_add,
    "replace": _plan_replace,
    "delete": _plan_delete,
    "rewrite": _plan_rewrite,
}


def _locate(text: str, regions: _Regions, anchor: str | None) -> tuple[int, int, Match, str]:
    """(start, end, kind of match, note) of the anchor. Searches exactly, then up to whitespace, then by similarity.
    Raises `_Refused` if the place is not unique."""
    if not anchor or not anchor.strip():
        raise _Refused("it names no text to act on")
    searches: tuple[tuple[Match, Callable[[str, str], list[Span]]], ...] = (("exact", _exact), ("whitespace", _loose))
    for match, search in searches:
        found = [_without_line_breaks(text, *span) for span in search(text, anchor)]
        free = [span for span in found if regions.hit(*span) is None]
        if len(found) == MOST_PLACES:
            raise _Refused(f"ambiguous: the text it names occurs {MOST_PLACES} times or more")
        if len(free) == 1:
            return *free[0], match, "" if match == "exact" else "found up to whitespace"
        if free:
            raise _Refused(f"ambiguous: the text it names occurs {len(free)} times")
        if found:
            name = regions.names[regions.hit(*found[0]) or 0]
            raise _Refused(f"the text it names lies in {name}, or reaches into it")
    start, end, ratio = _similar(text, regions, anchor)
    return start, end, "similar", f"found by similarity {ratio:.2f}"


def _exact(text: str, anchor: str) -> list[Span]:
    """The first `MOST_PLACES` occurrences, overlapping ones included."""
    found: list[Span] = []
    start = text.find(anchor)
    while start >= 0 and len(found) < MOST_PLACES:
        found.append((start, start + len(anchor)))
        start = text.find(anchor, start + 1)
    return found


def _loose(text: str, anchor: str) -> list[Span]:
    """Occurrences if all runs of whitespace count as equal. One linear search in the squeezed text."""
    words = [(word.start(), len(word.group())) for word in re.finditer(r"\S+", text)]
    if not words:
        return []
    squeezed = list(accumulate((length + 1 for _, length in words[:-1]), initial=0))  # start of each word there

    def original(position: int) -> int:
        word = bisect_right(squeezed, position) - 1
        return words[word][0] + position - squeezed[word]

    plain = " ".join(text[start : start + length] for start, length in words)
    return [(original(start), original(end - 1) + 1) for start, end in _exact(plain, _squeeze(anchor))]


def _similar(text: str, regions: _Regions, anchor: str) -> tuple[int, int, float]:
    """(start, end, ratio) of the window most similar to the anchor; a window has as many non-blank lines as the anchor.
    Raises `_Refused` if no window is similar enough, or if two are."""
    wanted = _squeeze(anchor)
    height = sum(1 for line in anchor.split("\n") if line.strip())
    if len(wanted) > SIMILAR_ANCHOR or len(text) * height > SIMILAR_TEXT:
        raise _Refused("not found (too long to look for something similar)")
    lines = [(m.start(), m.start() + len(m.group().rstrip())) for m in re.finditer(r"\S[^\n]*", text)]
    matcher = SequenceMatcher(None, "", wanted, autojunk=False)
    found: list[tuple[float, int, int]] = []
    work = 0
    for (start, _), (_, end) in zip(lines, lines[height - 1 :], strict=False):
        if end - start < len(wanted) / 2 or regions.hit(start, end) is not None:
            continue
        matcher.set_seq1(window := _squeeze(text[start:end]))
        if matcher.real_quick_ratio() < SIMILARITY or matcher.quick_ratio() < SIMILARITY:  # upper bounds
            continue
        work += len(window) * len(wanted)
        if work > SIMILAR_WORK:
            raise _Refused("not found (too many passages are faintly similar)")
        if (ratio := matcher.ratio()) >= SIMILARITY:
            found.append((ratio, start, end))
    if not found:
        raise _Refused("not found: the text it names (`target` or `after`) is not in the skill")
    ratio, start, end = max(found)
    rivals = [1 for other, a, b in found if not _meet((a, b), (start, end)) or (a != start and ratio - other < MARGIN)]
    if rivals:
        raise _Refused(f"ambiguous: the text it names resembles {len(rivals) + 1} passages")
    return start, end, ratio


def _block(text: str, at: int, new: str) -> str:
    """`new` as separate lines at offset `at`, with the newlines that it needs before and after.

    Blank lines set off a paragraph, heading or fenced block. One line break is enough inside a code block, and between
    two items of a list, rows of a table or lines of a quote.
    """
    new = new.strip("\r\n").rstrip()
    before, after = text[:at].removeprefix("\ufeff"), text[at:]
    above, below = before.rstrip(), after.lstrip()
    above_line = above.rsplit("\n", 1)[-1]
    below_line = after[after.rfind("\n", 0, len(after) - len(below)) + 1 :].split("\n", 1)[0]
    gap_above = before.count("\n", len(above))
    gap_below = after.count("\n", 0, len(after) - len(below))
    in_code = _in_code(text, at)
    lines = new.split("\n")

    def breaks(upper: str, lower: str) -> int:
        return 1 if in_code or (_kind(upper) is not None and _kind(upper) == _kind(lower)) else 2

    lead = max(0, breaks(above_line, lines[0]) - gap_above) if above else 0
    trail = max(0, breaks(lines[-1], below_line) - gap_below) if below else 0
    if not after and (not before or before.endswith("\n")):
        trail = 1  # the document ended with a newline, or is empty
    return _with_newlines("\n" * lead + new + "\n" * trail, text)


def _kind(line: str) -> str | None:
    if re.match(r"[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]", line) or re.match(r"[ \t]+\S", line):  # or a continuation line
        return "list"
    return {"|": "table", ">": "quote"}.get(line[:1])


def _in_code(text: str, at: int) -> bool:
    fence = ""
    for match in re.finditer(r"^[ \t]*(`{3,}|~{3,})([^\n]*)", text[:at], re.MULTILINE):
        mark, rest = match.groups()
        if not fence:
            fence = mark if mark[0] == "~" or "`" not in rest else ""
        elif mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip():
            fence = ""
    return bool(fence)


def _with_newlines(text: str, document: str) -> str:
    """`text` with the line endings of `document`."""
    crlf = document.count("\r\n")
    newline = "\r\n" if crlf and 2 * crlf >= document.count("\n") else "\n"
    return re.sub(r"\r\n?|\n", newline, text)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    if end < 0:
        return len(text)
    return end - 1 if end > at and text[end - 1] == "\r" else end


def _without_line_breaks(text: str, start: int, end: int) -> Span:
    """The span without the line breaks at its ends, so that an anchor with stray newlines does not join lines."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip("\r\n")), end - len(part) + len(part.rstrip("\r\n"))


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" \t"))]


def _body_start(skill: Skill) -> int:
    """The offset of the editable text: after the frontmatter, or after a BOM without frontmatter."""
    return len(skill.frontmatter) or int(skill.text.startswith("\ufeff"))


def _locked_texts(skill: Skill) -> list[str]:
    return [skill.text[start:end] for start, end in skill.locked]


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _is_unicode(text: str) -> bool:
    return not re.search(r"[\ud800-\udfff]", text)


def _meet(a: Span, b: Span) -> bool:
    """True if two spans share a character, or if an empty one lies strictly inside the other."""
    return a[0] < b[1] and b[0] < a[1]


def _moved(span: Span, plan: _Plan) -> Span:
    """The position of `span` after the plan is applied. A span that the plan touches grows to cover the new text."""
    shift = len(plan.inserted) - (plan.end - plan.start)
    start, end = span
    if end <= plan.start:
        return span
    if start >= plan.end:
        return start + shift, end + shift
    return min(start, plan.start), max(end, plan.end) + shift
