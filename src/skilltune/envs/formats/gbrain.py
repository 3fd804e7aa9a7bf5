"""Reads gbrain's skill benchmarks, JSONL of `{task_id, task, judge}`, and turns each judge into checks.

`rule` judges are computed. The rubric of an `llm` judge goes to our judge. `qrels` becomes a ranking in the answer
(gbrain reads it from the results of its own retrieval tools, which a chat target does not have). gbrain scores the
share of rules that hold; `score = "checks:weighted"` does the same, and the default requires all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from skilltune.errors import UsageError
from skilltune.scorers.reading import nearest, quote

PENDING = "# BOOTSTRAP_PENDING_REVIEW"
# Citations are a Markdown link, a page of the brain, or a footnote. Look-ahead keeps a page in a link's target
# countable, as in gbrain.
CITATION = (
    r"(?=\[[^\]]+\]\([^)]+\))|(?=\[\d+\])"
    r"|(?i:\b(?:wiki|people|companies|deals|topics|concepts|projects|writing|originals)/[a-z0-9][a-z0-9/-]*\b)"
)
_OPS = ("contains", "regex", "section_present", "max_chars", "min_citations")
_TOOL_OPS = ("tool_called", "tool_not_called")


def refuse_unreviewed(line: str, where: str) -> None:
    """Refuse a draft: gbrain ends a drafted benchmark with a marker line until it is reviewed."""
    if line.strip() == PENDING:
        raise UsageError(f"{where}: these tasks were drafted and await review: read them, then delete this line")


def translated(where: str, row: Any) -> Any:
    """A gbrain row in our names. Any other row is returned unchanged."""
    if not isinstance(row, Mapping) or "judge" not in row:
        return row
    judge = row["judge"]
    if not isinstance(judge, Mapping) or "kind" not in judge:
        raise UsageError(
            f'{where}: judge must be an object with kind "rule", "llm" or "qrels" (gbrain), not {judge!r:.80}'
        )
    rest = {key: value for key, value in row.items() if key not in ("judge", "task_id", "task")}
    named = {ours: row[theirs] for ours, theirs in (("id", "task_id"), ("input", "task")) if theirs in row}
    return {**rest, **named, "checks": [*_checks(where, judge), *rest.get("checks", ())]}


def _checks(where: str, judge: Mapping[str, Any]) -> list[dict[str, Any]]:
    match judge["kind"]:
        case "rule":
            rules = judge.get("checks")
            if not isinstance(rules, list) or not rules:
                raise UsageError(f"{where}: a rule judge needs a list of checks that is not empty")
            return [_rule(where, rule) for rule in rules]
        case "llm":
            return [{"type": "judge", "text": _text(where, "rubric", judge.get("rubric"))}]
        case "qrels":
            slugs = judge.get("expected_slugs")
            if not isinstance(slugs, list) or not slugs or not all(isinstance(slug, str) and slug for slug in slugs):
                raise UsageError(f"{where}: a qrels judge needs expected_slugs, a list of texts that is not empty")
            return [{"type": "ndcg", "target": slugs, "k": judge.get("k", 10)}]
        case kind:
            raise UsageError(f"{where}: unknown judge {quote(str(kind))}; use rule, llm or qrels")


def _rule(where: str, rule: Any) -> dict[str, Any]:
    if not isinstance(rule, Mapping):
        raise UsageError(f"{where}: a rule is an object with op and arg, not {rule!r:.80}")
    op, arg = rule.get("op"), rule.get("arg")
    match op:
        case "contains":
            return {"type": "contains", "target": _text(where, op, arg)}
        case "regex":
            return {"type": "regex", "pattern": f"(?m:{_text(where, op, arg)})"}
        case "section_present":
            heading = _text(where, op, arg).lstrip("#").strip()
            return {"type": "regex", "pattern": rf"(?mi)^#{{1,6}}\s+{re.escape(heading)}\s*$"}
        case "max_chars":
            return {"type": "length", "max_chars": _count(where, op, arg)}
        case "min_citations":
            count = _count(where, op, arg)
            return (
                {"type": "regex", "pattern": CITATION, "at_least": count}
                if count
                else {"type": "length", "min_chars": 0}
            )
    if op in _TOOL_OPS:
        raise UsageError(f'{where}: the rule "{op}" is not supported: the targets of skilltune report no tool names')
    raise UsageError(f"{where}: unknown rule {quote(str(op))}{nearest(str(op), _OPS)}; supported: {', '.join(_OPS)}")


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: {name} needs a text, not {value!r:.80}")
    return value


def _count(where: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise UsageError(f"{where}: {name} needs a whole number, not {value!r:.80}")
    return int(value)
