"""Scorers: what an answer is worth, and one line on why. One small file each; `build` turns a spec into one.

A built-in scorer is a function `(sample, answer, *, options) -> Score`; its keyword parameters are the options that a
spec may set, and the first of them is what "name:value" sets. An empty answer scores 0 before any of them sees it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from hashlib import sha256
from json import dumps  # by name: the submodule scorers.json takes the name `json` in this package
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from skilltune.errors import UsageError
from skilltune.rollout import Rollout, Score
from skilltune.samples import Sample
from skilltune.scorers import checks as _checks
from skilltune.scorers.anls import anls
from skilltune.scorers.choice import choice
from skilltune.scorers.contains import contains
from skilltune.scorers.em import em
from skilltune.scorers.exact import exact
from skilltune.scorers.f1 import f1
from skilltune.scorers.json import expected_json, json_value
from skilltune.scorers.number import number
from skilltune.scorers.python import function_fingerprint, function_name, load_object
from skilltune.scorers.reading import nearest, quote
from skilltune.scorers.regex import example, regex
from skilltune.scorers.scorer import Scorer, evaluate, first_target, one_line_or_tagged

Compare = Callable[..., Score]
BUILTIN: dict[str, Compare] = {
    "exact": exact,
    "contains": contains,
    "regex": regex,
    "choice": choice,
    "number": number,
    "f1": f1,
    "em": em,
    "anls": anls,
    "json": json_value,
}
_EXPECTED: dict[str, Callable[[Sample], str]] = {
    "regex": example,
    "json": expected_json,
    **dict.fromkeys(("choice", "f1", "em", "anls"), one_line_or_tagged),  # these read the last line only
}
_JUDGED = ("judge", "assert", "rubric")


def build(spec: str | Mapping[str, Any] | Callable[..., Any], root: Path = Path()) -> Scorer:
    """A scorer from "number", "number:0.01", {"type": "number", "tolerance": 0.01}, "python:file.py:fn" or a function.

    A mapping may carry its own `target`, which then replaces the sample's. `root` is where python files are looked up.
    A function takes (sample, rollout) and returns a Score, a float or a bool, or an awaitable of one. Raises UsageError
    for an unknown name or option (naming the nearest) or a value of the wrong kind.
    """
    if isinstance(spec, Scorer):
        return spec
    if isinstance(spec, str):
        kind, colon, value = spec.partition(":")
        if kind == "python":
            return _python(load_object(value, root), spec)
        options = {_first_option(kind): value} if colon else {}
    elif isinstance(spec, Mapping):
        options = {str(key): value for key, value in spec.items() if key != "type"}
        kind = spec.get("type", "")
        if isinstance(kind, str) and kind.startswith("python:"):
            if options:
                raise UsageError(f"{kind} takes no options, got {', '.join(options)}")
            return _python(load_object(kind.removeprefix("python:"), root), kind)
    elif callable(spec):
        return _python(spec, function_name(spec))
    else:
        raise UsageError(f"a scorer is a name, a mapping with a type, or a function, not {type(spec).__name__}")
    return _checklist(options, root) if kind == "checks" else _builtin(kind, options)


def _builtin(kind: Any, options: dict[str, Any]) -> Scorer:
    compare = _find(kind, options)
    own = (options.pop("target"),) if "target" in options else None
    options = _validated(kind, compare, options)

    def adapt(sample: Sample) -> Sample:
        return sample if own is None else sample.model_copy(update={"target": own[0]})

    def score(sample: Sample, rollout: Rollout) -> Score:
        if not rollout.answer.strip():
            return Score(0.0, "the answer is empty")
        return compare(adapt(sample), rollout.answer, **options)

    def expected(sample: Sample) -> str:
        return _EXPECTED.get(kind, first_target)(adapt(sample))

    def check(sample: Sample) -> None:
        compare(adapt(sample), expected(sample) or "x", **options)

    spec = {"type": kind, **options, **({} if own is None else {"target": own[0]})}
    return Scorer(kind, _digest(spec), score, expected, check)


def _checklist(options: dict[str, Any], root: Path) -> Scorer:
    try:
        chosen = _checks.Options.model_validate(options)
    except ValidationError as error:
        raise UsageError(_explain("checks", error, list(_checks.Options.model_fields))) from None

    def parts(sample: Sample) -> tuple[list[Scorer], list[float]]:
        specs = sample.checks if chosen.checks is None else chosen.checks
        scorers = _checks.parts(sample, specs, lambda spec: build(spec, root))
        try:
            return scorers, [_checks.Weight.model_validate(spec).weight for spec in specs]
        except ValidationError as error:
            raise UsageError(f'sample "{sample.id}": {_explain("checks", error, ["weight"])}') from None

    def score(sample: Sample, rollout: Rollout) -> Any:
        if not rollout.answer.strip():
            return Score(0.0, "the answer is empty")
        return _checks.run(sample, rollout, *parts(sample), chosen.mode)

    def expected(sample: Sample) -> str:
        specs = sample.checks if chosen.checks is None else chosen.checks
        compared = any(not spec.keys() & {"target", "pattern", "schema"} for spec in specs)
        return example(sample) or (first_target(sample) if compared else "")

    def check(sample: Sample) -> None:
        for part in parts(sample)[0]:
            part.check(sample)

    inner = [build({k: v for k, v in spec.items() if k != "weight"}, root).fingerprint for spec in chosen.checks or ()]
    return Scorer("checks", _digest({"type": "checks", **chosen.model_dump(), "inner": inner}), score, expected, check)


def _python(fn: Any, name: str) -> Scorer:
    if not callable(fn):
        raise UsageError(f"{name} is not a function but a {type(fn).__name__}")
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError:
        raise UsageError(f"{name} must take two arguments: (sample, rollout)") from None
    except ValueError:  # a builtin that does not tell its signature
        pass
    return Scorer(name, f"python:{function_name(fn)}:{function_fingerprint(fn)}", fn)


def _find(kind: Any, options: Mapping[str, Any]) -> Compare:
    if isinstance(kind, str) and kind in BUILTIN:
        return BUILTIN[kind]
    if kind in _JUDGED:
        prose = quote(str(next(iter(options.values()), "")))
        raise UsageError(
            f'the check {prose} (type "{kind}") needs a judge to read it, and there is none: '
            'state it as a check that can be computed, e.g. {"type": "contains", "target": "…"}, '
            "or name another score, e.g. python:file.py:fn"
        )
    names = [*BUILTIN, "checks"]
    raise UsageError(
        f'unknown scorer "{kind}"{nearest(str(kind), names)}; there are {", ".join(names)} and python:file.py:fn'
    )


def _first_option(kind: str) -> str:
    if kind == "checks":
        return "mode"
    options = _option_names(_find(kind, {}))
    if not options:
        raise UsageError(f'the scorer "{kind}" takes no options')
    return options[0]


def _option_names(compare: Compare) -> list[str]:
    parameters = inspect.signature(compare).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _validated(kind: str, compare: Compare, options: Mapping[str, Any]) -> dict[str, Any]:
    names, hints = _option_names(compare), get_type_hints(compare, include_extras=True)
    valid: dict[str, Any] = {}
    for key, value in options.items():
        if key not in names:
            raise UsageError(_unknown(kind, key, [*names, "target"]))
        try:
            valid[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UsageError(f'scorer "{kind}": {key} = {quote(str(value))}: {message}') from None
    return valid


def _explain(kind: str, error: ValidationError, names: list[str]) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0])
    return (
        _unknown(kind, key, names) if first["type"] == "extra_forbidden" else f'scorer "{kind}": {key}: {first["msg"]}'
    )


def _unknown(kind: str, key: str, names: list[str]) -> str:
    return f'scorer "{kind}" has no option "{key}"{nearest(key, names)}; it has: {", ".join(names) or "none"}'


def _digest(spec: Any) -> str:
    return sha256(dumps(spec, sort_keys=True, default=str).encode()).hexdigest()


__all__ = ["BUILTIN", "Scorer", "build", "evaluate"]
