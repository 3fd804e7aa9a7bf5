"""Converts criteria, in every known spelling of eval files, to checks.

A dropped criterion is a check that always passes, and a criterion reduced to its label checks something else. So an
object is read as a whole, or refused with the key that is not understood. A list of texts may be words to find,
patterns or prose. This is never guessed: the user states it once (`ROLES`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from skilltune.envs.formats import assertions
from skilltune.errors import UsageError
from skilltune.scorers import is_kind, kinds
from skilltune.scorers.reading import nearest, quote

PROSE = frozenset(  # keys of a row whose texts describe in prose what the answer must do
    [
        "acceptance_criteria",
        "acceptance_criterion",
        "assertions",
        "checklist",
        "criteria",
        "criterion",
        "eval_criteria",
        "evaluation_criteria",
        "evaluation_rubric",
        "expect",
        "expectation",
        "expectations",
        "expected_behavior",
        "expected_behaviors",
        "expected_behaviour",
        "expected_behaviours",
        "expected_outcome",
        "expected_outcomes",
        "grading_criteria",
        "grading_rubric",
        "guidelines",
        "judge_criteria",
        "pass_criteria",
        "pass_if",
        "quality_criteria",
        "required_behavior",
        "required_behaviors",
        "rubric",
        "rubrics",
        "scoring_criteria",
        "success_criteria",
    ]
)
AVERSE = frozenset(  # keys whose texts describe in prose what the answer must not do
    [
        "anti_patterns",
        "antipatterns",
        "fail",
        "fail_criteria",
        "fail_if",
        "failure_conditions",
        "failure_criteria",
        "failure_modes",
        "forbidden_behavior",
        "forbidden_behaviors",
        "forbidden_behaviour",
        "forbidden_behaviours",
        "must_not",
        "negative_criteria",
        "prohibited_behavior",
        "prohibited_behaviors",
        "should_not",
        "unacceptable",
        "unexpected_behavior",
        "unexpected_behaviors",
    ]
)
OLD = ("expectations", "assertions", "rubric")  # these become checks and are removed from the metadata
ROLES = {  # roles of a list of texts in `fields`: the check that each text becomes
    "contains": lambda text: {"type": "contains", "target": text},
    "regex": lambda text: {"type": "regex", "pattern": text},
    "judge": lambda text: {"type": "judge", "text": text},
    "not_contains": lambda text: {"type": "not", "check": {"type": "contains", "target": text}},
    "not_regex": lambda text: {"type": "not", "check": {"type": "regex", "pattern": text}},
    "not_judge": lambda text: {"type": "judge", "text": f"{AVERSION}{text}"},
}
DESCRIBED = "The answer is what this describes: "
AVERSION = "This must not be true of the answer: "
_LOOKS = re.compile(
    r"(must|should|shall)(_.*)?|(not_|un)?expect(s|ed|ation|ations)?(_.*)?"
    r"|(forbid|forbidden|prohibited|disallowed|banned|required|mandatory)(_.*)?"
    r"|(assert|assertion|check|criterion|criteria|rubric|grader|grading|requirement|validator|verifier|evaluator)s?"
    r"|(.*_)?(assertions?|checks|criteria|criterion|rubrics?|expectations?|requirements|graders?)"
    r"|(pass|fail)(_(if|when|criteria|conditions?))?|(not_)?(contains|regex)(_.*)?|(answer_|expected_)?regex(es)?"
    r"|test_list|challenge_test_list"
    r"|(grading|judge|judging|scoring|evaluation|eval)_(notes?|steps?|guidance|guidelines?|instructions?|rules?|prompt)"
)
_FOR_A_READER = re.compile(r".*_(notes?|steps?|guidance|guidelines?|instructions?|rules?|prompt)")
_TEXTS = (  # keys for the text of a criterion written as an object
    "text",
    "check",
    "criterion",
    "criteria",
    "expectation",
    "assertion",
    "description",
    "requirement",
    "condition",
    "statement",
    "rubric",
    "question",
    "expected",
    "expected_behavior",
    "expect",
    "rule",
    "content",
    "prompt",
    "instruction",
    "pass",
    "pass_if",
    "pass_criteria",
    "evaluation_criteria",
    "details",
    "value",
)
_LABELS = ("name", "title", "label", "id", "key")
_ASIDE = (  # keys without effect on the check
    "category",
    "comment",
    "evidence",
    "importance",
    "metric",
    "note",
    "notes",
    "passed",
    "priority",
    "provider",
    "rationale",
    "reason",
    "severity",
    "tags",
    "type",
)
_SCALE = re.compile(r"(score|level|grade|rating|points?)?[ _-]?\d+(_description)?", re.IGNORECASE)


def snake(key: str) -> str:
    """A key in snake case: mustHave, Must-Have and must_have are equal."""
    return re.sub(r"[\s-]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)).lower()


def looks_like_one(key: str, value: Any) -> bool:
    """True if the key may contain a criterion. Numbers and booleans do not count.

    `should_trigger` counts, because it asks when a skill is chosen, which no answer shows.
    """
    name = snake(key)
    if name == "should_trigger":
        return True
    return isinstance(value, str | list | Mapping) and bool(value) and _LOOKS.fullmatch(name) is not None


def role_of(key: str, value: Any) -> str:
    """The probable role of a key's texts, as a hint for a message and never for a score. "" for other values."""
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        return ""
    name, text = snake(key), json.dumps(value, default=str)
    if _FOR_A_READER.fullmatch(name):
        return "judge"
    averse = re.search(r"not_|forbid|prohibit|disallow|banned|unexpect", name) is not None
    pattern = re.search(r"regex|pattern|match", name) or re.search(r"\\\\[a-zA-Z(.\[]|\.\*|\(\?", text)
    return f"{'not_' if averse else ''}{'regex' if pattern else 'contains'}"


def found(where: str, row: Mapping[str, Any], said: set[str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the keys of a row with criteria in prose, each with its checks. Remarks for the user go to `said`."""
    for key, value in row.items():
        averse = snake(key) in AVERSE
        if (averse or snake(key) in PROSE) and value not in (None, "", [], {}):
            yield key, [check for item in _items(where, key, value) for check in as_checks(where, item, said, averse)]


def as_role(where: str, role: str, key: str, value: Any) -> list[dict[str, Any]]:
    """The texts of a key as checks of the role that the user chose."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UsageError(f"{where}: {key} must be a text or a list of texts to be read as {role}, not {_shown(value)}")
    return [ROLES[role](text) for text in texts]


def as_checks(where: str, item: Any, said: set[str], averse: bool = False) -> list[dict[str, Any]]:
    """Checks of one criterion. Prose, bare or in an object, goes to the judge; an object may also be a check itself."""
    if isinstance(item, str):
        return [_prose(item, averse)]
    if not isinstance(item, Mapping):
        raise UsageError(f"{where}: an expectation must be a text or an object, not {_shown(item)}")
    kind = item.get("type")
    computed = is_kind(kind)
    if assertions.is_one(kind) and ("value" in item or not computed) and not _text_of(item, ("text",)):
        borrowed = {key: value for key, value in item.items() if key not in (*_LABELS, *_ASIDE) or key == "type"}
        made = assertions.checks(borrowed, where)
    elif computed and kind != "judge":
        made = [dict(item)]
    else:
        if kind not in (None, "judge"):
            said.add(f'the type "{kind}" of an expectation is not a scorer of skilltune: a judge reads its text')
        return [_object(where, item, averse)]
    return [{"type": "not", "check": check} for check in made] if averse else made


def own(where: str, item: Any, said: set[str]) -> list[dict[str, Any]]:
    """Checks of an item of `checks`. A check in our own form is kept; anything else is read like an expectation."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    return [dict(item)] if is_kind(kind) and "value" not in item else as_checks(where, item, said)


def _unknown_type(kind: Any) -> str:
    return (
        f'the check type "{kind}" is not supported{nearest(str(kind), kinds())}; there are {", ".join(kinds())} and '
        "python:file.py:fn; a `text` in place of the type goes to the judge"
    )


def _object(where: str, item: Mapping[str, Any], averse: bool) -> dict[str, Any]:
    kind = item.get("type")
    texts = _text_of(item, _TEXTS)
    against = _text_of(item, tuple(AVERSE))
    if not texts and not against:
        texts = [text for text in _text_of(item, _LABELS) if " " in text.strip()][:1]
    if not texts and not against:
        if kind not in (None, "judge"):
            raise UsageError(f"{where}: {_unknown_type(kind)}")
        raise UsageError(f"{where}: an expectation needs a `text` or a `type`: {_shown(item)}")
    for key, value in item.items():
        read = key in (*_TEXTS, *AVERSE) and isinstance(value, str)
        aside = key in (*_LABELS, *_ASIDE, "weight", "points") or (key in ("required", "critical") and value is True)
        if not read and not aside and value not in (None, "", [], {}):
            raise UsageError(
                f'{where}: "{key}" of an expectation is not understood, and what it asks for would be lost: '
                f"{_shown(item)}; say all of it in `text`, which a judge reads, or use a check of skilltune"
            )
    text = ": ".join(dict.fromkeys(texts))
    if against:
        text = f"{text} (it fails if: {'; '.join(against)})" if text else f"{AVERSION}{'; '.join(against)}"
    return _weighed(where, item, text, averse)


def _weighed(where: str, item: Mapping[str, Any], text: str, averse: bool) -> dict[str, Any]:
    """The criterion with its weight. Negative points mean that the answer must not do it."""
    weight = item.get("weight", item.get("points"))
    if weight is None:
        return _prose(text, averse)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight:
        raise UsageError(f"{where}: the weight of an expectation must be a number other than 0, not {_shown(weight)}")
    return {**_prose(text, averse != (weight < 0)), **({} if abs(weight) == 1 else {"weight": abs(weight)})}


def _prose(text: str, averse: bool) -> dict[str, Any]:
    return {"type": "judge", "text": f"{AVERSION}{text}" if averse else text}


def _text_of(item: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [item[key] for key in keys if isinstance(item.get(key), str) and item[key].strip()]


def _items(where: str, key: str, value: Any) -> list[Any]:
    """The criteria under a key: a list, one text, one object, or texts by name."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Mapping) and "type" not in value and not _text_of(value, _TEXTS):
        if all(_SCALE.fullmatch(str(name)) for name in value):
            raise UsageError(f"{where}: {key} is a scale of scores and not a list of criteria: {_shown(value)}")
        if all(isinstance(text, str) and text.strip() for text in value.values()):
            return [f"{str(name).replace('_', ' ')}: {text}" for name, text in value.items()]
        part = next((str(name) for name, texts in value.items() if isinstance(texts, list)), next(iter(value)))
        raise UsageError(
            f"{where}: {key} must be a list of texts or objects, not an object: {_shown(value)}; say what its parts "
            f'are, e.g. env.fields = {{judge = "{key}.{part}"}}, with target in place of judge for the expected answer'
        )
    if isinstance(value, str | Mapping):
        return [value]
    raise UsageError(f"{where}: {key} must be a list, not {quote(str(value))}")


def _shown(value: Any) -> str:
    return quote(json.dumps(value, ensure_ascii=False, default=str))
