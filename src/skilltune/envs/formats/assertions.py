"""Converts promptfoo's assertions to checks. They are a mapping (`{type, value}`) or a text ("contains-any: a, b").

They occur in promptfoo's YAML and CSV files, and in eval files of tools that adopted them. An assertion that skilltune
cannot compute is refused by name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from typing import Any

from skilltune.envs.formats.yaml12 import parse
from skilltune.errors import UsageError
from skilltune.scorers.reading import as_text, nearest, quote

KINDS = (
    "contains",
    "contains-all",
    "contains-any",
    "contains-json",
    "equals",
    "icontains",
    "icontains-all",
    "icontains-any",
    "is-json",
    "llm-rubric",
    "regex",
)
_KEYS = ("metric", "provider", "type", "value", "weight")
_ELSEWHERE = (  # promptfoo's other assertions, so that their names are not read as expected answers
    "answer-relevance",
    "assert-set",
    "bleu",
    "classifier",
    "contains-html",
    "contains-sql",
    "contains-xml",
    "context-faithfulness",
    "context-recall",
    "context-relevance",
    "cost",
    "eval",
    "f-score",
    "factuality",
    "finish-reason",
    "fn",
    "g-eval",
    "gleu",
    "guardrails",
    "is-html",
    "is-refusal",
    "is-sql",
    "is-valid-openai-function-call",
    "is-valid-openai-tools-call",
    "is-xml",
    "javascript",
    "latency",
    "levenshtein",
    "meteor",
    "model-graded-closedqa",
    "model-graded-factuality",
    "moderation",
    "perplexity",
    "perplexity-score",
    "pi",
    "python",
    "rouge-n",
    "ruby",
    "select-best",
    "similar",
    "starts-with",
    "trajectory",
    "webhook",
    "word-count",
)
_PREFIX = re.compile(r"(?P<kind>(?:not-)?[a-z][a-z-]+)(?P<threshold>\(\d+(?:\.\d+)?\))?(?P<colon>:)?", re.IGNORECASE)
_GRADERS = ("grade", "llm-rubric")


def is_one(kind: Any) -> bool:
    """True for the name of a supported assertion, also written with `_` for `-`."""
    return isinstance(kind, str) and _named(kind).removeprefix("not-") in KINDS and _named(kind) != "not-llm-rubric"


def parsed(text: str, where: str) -> dict[str, Any] | None:
    """Parse a text such as "icontains: bonjour", as in `__expected` of promptfoo's CSV files.

    Returns None for a text without an assertion's name, because it is the expected answer itself. Raises UsageError for
    a script or a threshold.
    """
    text = text.strip()
    if text.startswith("file://"):
        raise UsageError(f"{where}: the expectation {quote(text)} is a script, which is not supported")
    named = _PREFIX.match(text)
    if named is None:
        return None
    kind = named["kind"].lower()
    kind = "llm-rubric" if kind in _GRADERS else kind
    base = kind.removeprefix("not-")
    if base not in KINDS and base not in _ELSEWHERE:
        return None
    alone = base in ("is-json", "contains-json") or base in _ELSEWHERE
    if not named["colon"] and not (alone and named.end() == len(text)):
        return None
    if named["threshold"] and base in KINDS:
        raise UsageError(f"{where}: a threshold is not supported: {quote(text)}")
    value = text[named.end() :].strip()
    return {"type": kind, **({"value": value} if value else {})}


def checks(assertion: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """One assertion as our checks. Returns a list, because `contains-all` becomes several checks."""
    kind = assertion.get("type")
    base = _named(str(kind)).removeprefix("not-")
    if not is_one(kind):
        hint = "; say the rubric the other way round" if base == "llm-rubric" else nearest(base, KINDS)
        raise UsageError(
            f'{where}: the assertion "{kind}" is not supported{hint}; supported: {", ".join(KINDS)}, '
            "and all but llm-rubric with not- before it"
        )
    for key in assertion:
        if key not in _KEYS:
            raise UsageError(f'{where}: "{key}" of the assertion "{kind}" is not supported{nearest(str(key), _KEYS)}')
    value = assertion.get("value")
    if isinstance(value, str) and value.startswith("file://"):
        raise UsageError(f'{where}: the assertion "{kind}" takes its value from a file, which is not supported')
    found = _positive(base, value, where)
    if _named(str(kind)) != base:
        found = [{"type": "not", "check": found[0] if len(found) == 1 else {"type": "checks", "checks": found}}]
    weight = assertion.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        raise UsageError(
            f"{where}: weight must be a number above 0, not {quote(str(weight))}: delete the assertion instead"
        )
    return found if weight == 1 else [{**check, "weight": weight / len(found)} for check in found]


def _named(kind: str) -> str:
    return kind.replace("_", "-")


def _positive(kind: str, value: Any, where: str) -> list[dict[str, Any]]:
    ignore = {"ignore_case": True} if kind.startswith("i") and kind != "is-json" else {}
    match kind:
        case "equals":
            exact = isinstance(value, dict | list)
            return [
                {"type": "json", "read": "whole", "target": value}
                if exact
                else {"type": "exact", "target": _text(kind, value, where)}
            ]
        case "contains" | "icontains":
            return [{"type": "contains", "target": _text(kind, value, where), **ignore}]
        case "contains-any" | "icontains-any":
            return [{"type": "contains", "target": _several(kind, value, where), **ignore}]
        case "contains-all" | "icontains-all":
            return [{"type": "contains", "target": text, **ignore} for text in _several(kind, value, where)]
        case "regex":
            return [{"type": "regex", "pattern": _text(kind, value, where)}]
        case "is-json" | "contains-json":
            return [
                {"type": "json", "read": "whole" if kind == "is-json" else "anywhere", "schema": _schema(value, where)}
            ]
        case _:
            return [{"type": "judge", "text": _text(kind, value, where)}]


def _text(kind: str, value: Any, where: str) -> str:
    if not isinstance(value, str | int | float) or not str(value).strip():
        raise UsageError(f'{where}: the assertion "{kind}" needs a text as its value, not {quote(str(value))}')
    return as_text(value)


def _several(kind: str, value: Any, where: str) -> list[str]:
    """A list of texts, or one text with items separated by commas."""
    if isinstance(value, str):
        value = [part.strip() for part in next(csv.reader([value], skipinitialspace=True), [])]
    if not isinstance(value, list) or not value:
        raise UsageError(f'{where}: the assertion "{kind}" needs a list of texts as its value')
    return [_text(kind, item, where) for item in value]


def _schema(value: Any, where: str) -> dict[str, Any]:
    """A JSON schema, given as a mapping or as text; none allows any JSON."""
    if isinstance(value, str) and value.strip():
        value = parse(value, f"{where}: the JSON schema")
    if value in (None, ""):
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: a JSON schema must be a mapping, not {quote(str(value))}")
    return dict(value)
